//! Slopes against autodiff, weights against it through a head.

use backdraft_data::Answer;
use backdraft_model::Tokens;
use backdraft_quant::Weight;
use backdraft_recipe::{DpoLoss, DpoLosses};
use burn::tensor::activation::{log_sigmoid, sigmoid};
use burn::tensor::{Device, Distribution};

use super::*;
use crate::compared::floats;

fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().try_into_vec().unwrap()
}

/// Two answers to one prompt, as a preference has them: three targets and two.
fn pair() -> (Tokens, Targets, Compared) {
    let tokens = Tokens::from_sequences(&[vec![1, 2, 3, 4], vec![1, 5, 6]]);
    let labels = [-100, 2, 3, 4, -100, 5, 6];
    let targets = Targets::from_labels(&tokens.segments, &labels);
    let answers = [Answer::Good, Answer::Bad];
    let compared = Compared::new((&targets, &tokens.segments), vec![true; 5], &answers);
    (tokens, targets, compared)
}

fn random() -> (Tensor<2>, Weight) {
    let normal = Distribution::Normal(0.0, 1.0);
    let device = Device::flex();
    let head = Tensor::random([9, 4], normal, &device);
    (Tensor::random([5, 4], normal, &device), Weight::Dense(head))
}

#[test]
fn plain_fine_tuning_weighs_every_token_alike() {
    let (tokens, targets, _) = pair();
    let (normed, head) = random();
    let outputs = Outputs {
        normed: &normed,
        head: &TokenMatrix::from(&head),
        cap: None,
        targets: &targets,
        segments: &tokens.segments,
    };
    let (weights, told) = Goal::next_token(0.3).weights(&outputs);
    assert_eq!(values(weights), [0.3; 5]);
    assert!(told.is_none());
}

/// SimPO's order: log-likelihoods, then the margin's weights, of opposite signs, then the gradient; against autodiff through
/// the loss as it is written, with the nll of the chosen answer beside it.
#[test]
fn weights_that_come_of_log_likelihoods_give_the_gradient_of_a_preference() {
    const BETA: f64 = 0.7;
    let (tokens, targets, compared) = pair();
    let (normed, head) = random();
    let outputs = Outputs {
        normed: &normed,
        head: &TokenMatrix::from(&head),
        cap: None,
        targets: &targets,
        segments: &tokens.segments,
    };
    let goal = Goal {
        objective: Objective::Pairs {
            loss: PairLoss::Margin {
                beta: BETA,
                gamma: 0.5,
                label_smoothing: 0.0,
                of_means: true,
            },
            nll_weight: 0.2,
        },
        scale: 1.0,
        nll_scale: 0.2 / 3.0,
        penalty: None,
        answers: Some((&compared, Others::default())),
    };
    let (weights, told) = goal.weights(&outputs);
    let (nll, _, found) = outputs.loss(&weights, None, &mut |_, _| ());
    let sums = targets.log_likelihoods(&tokens.segments, &nll);
    let told = told.unwrap();
    assert_eq!(values(sums), values(told.log_likelihoods));

    let leaf = normed.clone().autodiff().require_grad();
    let logits = leaf
        .clone()
        .matmul(head.dequantize().autodiff().transpose());
    let (nll, _) = cross_entropy::reference::softmax_nll(logits, None, &targets.ids, None);
    let [chosen, rejected] =
        [(0, 3), (3, 2)].map(|(at, len)| nll.clone().narrow(0, at, len).mean());
    let margin = (rejected - chosen.clone()) * BETA - 0.5;
    let loss = log_sigmoid(margin).neg();
    assert!((values(loss.clone().inner())[0] - values(told.losses)[0]).abs() < 1e-6);
    let expected = leaf.grad(&(loss + chosen * 0.2).backward()).unwrap();
    for (found, expected) in values(found).into_iter().zip(values(expected)) {
        assert!(
            (found - expected).abs() < 1e-5,
            "{found} instead of {expected}"
        );
    }
}

/// Log-likelihoods of three pairs under the policy and the reference, and lengths.
fn three_pairs(device: &Device) -> [Tensor<1>; 3] {
    [
        [-9.0, -11.5, -20.0, -6.0, -3.0, -2.5],
        [-10.0, -9.0, -19.0, -9.5, -3.0, -2.0],
        [4.0, 6.0, 9.0, 3.0, 2.0, 5.0],
    ]
    .map(|numbers: [f32; 6]| floats(numbers, device))
}

fn halves(all: Tensor<1>) -> [Tensor<1>; 2] {
    let all = all.reshape([3, 2]);
    [0, 1].map(|i| all.clone().narrow(1, i, 1).reshape([3]))
}

/// Each loss as TRL's table has it, on the tape.
fn as_written(loss: PairLoss, policy: Tensor<1>, reference: Tensor<1>, n: Tensor<1>) -> Tensor<1> {
    let ln = |x: Tensor<1>| log_sigmoid(x);
    let [nc, nr] = halves(n.clone());
    match loss {
        PairLoss::Dpo {
            beta,
            losses,
            label_smoothing: e,
        } => {
            let [c, r] = halves(policy - reference);
            let d = (c.clone() - r.clone()) * beta;
            let means = c.clone() / nc - r.clone() / nr;
            let (bc, br) = (c * beta, r * beta);
            let each = |loss| match loss {
                DpoLoss::Sigmoid => ln(d.clone()) * (e - 1.0) - ln(d.clone().neg()) * e,
                DpoLoss::SigmoidNorm => ln(means.clone() * beta).neg(),
                DpoLoss::Ipo => (means.clone() - 0.5 / beta).powi_scalar(2),
                DpoLoss::Hinge => (d.clone().neg() + 1.0).clamp_min(0.0),
                DpoLoss::Robust => {
                    (ln(d.clone()) * (e - 1.0) + ln(d.clone().neg()) * e) / (1.0 - 2.0 * e)
                }
                DpoLoss::ApoZero => sigmoid(bc.clone()).neg() + 1.0 + sigmoid(br.clone()),
                DpoLoss::ApoDown => sigmoid(bc.clone()) + 1.0 - sigmoid(d.clone()),
                DpoLoss::NcaPair => {
                    ln(bc.clone()).neg() - (ln(bc.clone().neg()) + ln(br.clone().neg())) * 0.5
                }
            };
            let terms = losses.iter().map(|(loss, weight)| each(loss) * weight);
            terms.reduce(|sum, term| sum + term).unwrap()
        }
        PairLoss::Orpo { beta } => {
            let [c, r] = halves(policy / n);
            let odds = |p: Tensor<1>| p.clone() - (p.exp().neg() + 1.0).log();
            ln(odds(c) - odds(r)) * -beta
        }
        PairLoss::Margin {
            beta,
            gamma,
            label_smoothing: e,
            of_means,
        } => {
            let [c, r] = halves(if of_means { policy / n } else { policy });
            let x = (c - r) * beta - gamma;
            ln(x.clone()) * (e - 1.0) - ln(x.neg()) * e
        }
    }
}

#[test]
fn slopes_of_every_pair_loss_are_those_of_autodiff() {
    let device = Device::flex();
    let mut losses: Vec<PairLoss> = DpoLoss::ALL
        .iter()
        .map(|&loss| PairLoss::Dpo {
            beta: 0.3,
            losses: DpoLosses::one(loss),
            label_smoothing: if loss.smooths() { 0.1 } else { 0.0 },
        })
        .collect();
    let weights = (1..).map(|weight| f64::from(weight) * 0.25);
    losses.push(PairLoss::Dpo {
        beta: 0.3,
        losses: DpoLosses::weighted(DpoLoss::ALL.iter().copied().zip(weights)),
        label_smoothing: 0.1,
    });
    losses.push(PairLoss::Orpo { beta: 0.3 });
    for (gamma, of_means) in [(0.5, true), (0.0, false)] {
        losses.push(PairLoss::Margin {
            beta: 0.3,
            gamma,
            label_smoothing: 0.1,
            of_means,
        });
    }
    for loss in losses {
        let [policy, reference, lengths] = three_pairs(&device);
        let judged = loss.judge(&policy, Some(&reference), &lengths);
        let leaf = policy.autodiff().require_grad();
        let written = as_written(loss, leaf.clone(), reference.autodiff(), lengths.autodiff());
        let slopes = leaf.grad(&written.clone().sum().backward()).unwrap();
        let pairs = [
            (values(judged.losses), values(written.inner())),
            (values(judged.slopes), values(slopes)),
        ];
        for (found, expected) in pairs {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                let off = (found - expected).abs();
                assert!(
                    off < 2e-6 * expected.abs().max(1.0),
                    "{loss:?}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn slopes_of_scores_are_those_of_autodiff() {
    let device = Device::flex();
    let cases = [
        (0.0, 0.0, [0.0; 3]),
        (0.5, 0.0, [0.0; 3]),
        (0.25, 0.01, [0.0; 3]),
        (0.0, 0.0, [1.5, -0.5, 0.0]),
        (0.25, 0.01, [0.75, 0.0, 3.0]),
    ];
    for (gamma, center, each) in cases {
        let margins = floats(each.into_iter().flat_map(|margin| [margin; 2]), &device);
        let scores = floats([1.5, -0.5, -2.0, 1.0, 0.0, 0.0], &device);
        let found = ScoreLoss { gamma, center }.judge(&scores, &margins);
        assert_eq!(values(found.rewards), values(scores.clone()));
        let leaf = scores.autodiff().require_grad();
        let [c, r] = halves(leaf.clone());
        let written = log_sigmoid(c.clone() - r.clone() - gamma - floats(each, &device).autodiff())
            .neg()
            + (c + r).powi_scalar(2) * center;
        let slopes = leaf.grad(&written.clone().sum().backward()).unwrap();
        let pairs = [
            (values(found.losses), values(written.inner())),
            (values(found.slopes), values(slopes)),
        ];
        for (found, expected) in pairs {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-6, "{found} {expected}");
            }
        }
    }
    let equal = ScoreLoss {
        gamma: 0.0,
        center: 0.0,
    };
    let judged = equal.judge(&floats([0.3, 0.3], &device), &floats([0.0; 2], &device));
    assert_eq!(values(judged.losses), [std::f32::consts::LN_2]);
}

#[test]
fn slopes_of_single_answers_are_those_of_autodiff() {
    let device = Device::flex();
    let [policy, reference, _] = three_pairs(&device);
    let loss = SingleLoss {
        beta: 0.3,
        desirable_weight: 1.0,
        undesirable_weight: 1.5,
    };
    let good = [true, false, false, true, false, true];
    let divergence = floats([0.4], &device);
    let judged = loss.judge(&policy, &reference, &divergence, &good);
    let leaf = policy.autodiff().require_grad();
    let away = leaf.clone() - reference.autodiff() - divergence.autodiff();
    let signs = floats(good.map(|good| if good { 1.0 } else { -1.0 }), &device).autodiff();
    let weights = floats(good.map(|good| if good { 1.0 } else { 1.5 }), &device).autodiff();
    let written = weights * (sigmoid(away * signs * 0.3).neg() + 1.0);
    let slopes = leaf.grad(&written.clone().sum().backward()).unwrap();
    let pairs = [
        (values(judged.losses), values(written.inner())),
        (values(judged.slopes), values(slopes)),
    ];
    for (found, expected) in pairs {
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }
}

/// ORPO's nll goes over the prompt of the chosen text; the odds do not.
#[test]
fn targets_of_a_prompt_count_in_the_nll_alone() {
    let tokens = Tokens::from_sequences(&[vec![1, 2, 3, 4], vec![1, 2, 6]]);
    let labels = [1, 2, 3, 4, -100, -100, 6];
    let targets = Targets::from_labels(&tokens.segments, &labels);
    let in_answer = vec![false, true, true, true];
    let answers = [Answer::Good, Answer::Bad];
    let of = (&targets, &tokens.segments);
    let compared = Compared::new(of, in_answer, &answers);
    assert_eq!(
        (compared.lengths.as_slice(), compared.good_targets()),
        (&[2, 1][..], 3)
    );
    let device = Device::flex();
    let nll = floats([8.0, 1.0, 2.0, 4.0], &device);
    assert_eq!(values(compared.log_likelihoods(of, &nll)), [-3.0, -4.0]);
    assert_eq!(values(compared.good_nll(&nll)), [11.0]);
    let weights = compared.weights(floats([0.5, -0.25], &device), 2.0);
    assert_eq!(values(weights), [2.0, 1.5, 1.5, 0.25]);
}

#[test]
fn no_margin_costs_exactly_ln_2() {
    let device = Device::flex();
    let [policy, _, lengths] = three_pairs(&device);
    let loss = PairLoss::Dpo {
        beta: 0.1,
        losses: DpoLosses::default(),
        label_smoothing: 0.0,
    };
    let judged = loss.judge(&policy, Some(&policy), &lengths);
    assert_eq!(values(judged.losses), [std::f32::consts::LN_2; 3]);
    assert_eq!(values(judged.rewards), [0.0; 6]);
}
