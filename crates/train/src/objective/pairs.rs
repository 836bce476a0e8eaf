//! What a pair of answers costs, and how steeply that depends on either's log-likelihood.
//!
//! # Source
//! TRL 1.16, whose values and gradients `tests/golden/preference` has.

use backdraft_recipe::{DpoLoss, DpoLosses};
use burn::tensor::Tensor;
use burn::tensor::activation::{log_sigmoid, sigmoid};

use super::judged::Judged;

/// The loss of a pair: c is its chosen answer, r its rejected one, Δ a log-likelihood less the reference's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PairLoss {
    /// Of Δc and Δr.
    Dpo {
        /// β.
        beta: f64,
        /// Which of them, and what each counts.
        losses: DpoLosses,
        /// Share of pairs that are the wrong way round.
        label_smoothing: f64,
    },
    /// −β ln σ(o(c) − o(r)), o(y) = p̄ − ln(1 − exp p̄), p̄ the mean log-likelihood of a token.
    Orpo {
        /// β.
        beta: f64,
    },
    /// −ln σ(β(c − r) − γ).
    Margin {
        /// β.
        beta: f64,
        /// γ.
        gamma: f64,
        /// Share of pairs that are the wrong way round.
        label_smoothing: f64,
        /// Of means over tokens, not of sums.
        of_means: bool,
    },
}

/// Chosen and rejected, `[pairs]` each.
pub(super) type Both = [Tensor<1>; 2];

impl PairLoss {
    /// Whether Δ needs a reference.
    pub const fn has_reference(self) -> bool {
        matches!(self, Self::Dpo { .. })
    }

    /// Judges pairs.
    ///
    /// # Shapes
    /// `policy`, `reference` and `lengths` `[2 × pairs]`, chosen and rejected in turn.
    ///
    /// # Panics
    /// Where a reference is needed and absent.
    pub fn judge(
        self,
        policy: &Tensor<1>,
        reference: Option<&Tensor<1>>,
        lengths: &Tensor<1>,
    ) -> Judged {
        let lengths = apart(lengths.clone());
        match self {
            Self::Dpo {
                beta,
                losses,
                label_smoothing,
            } => {
                let Some(reference) = reference else {
                    panic!("DPO without a reference");
                };
                let deltas = apart(policy.clone() - reference.clone());
                let rewards = deltas.clone().map(|delta| delta * beta);
                let of = |loss| {
                    dpo(
                        loss,
                        (beta, label_smoothing),
                        deltas.clone(),
                        lengths.clone(),
                    )
                };
                summed(losses, of, rewards)
            }
            Self::Orpo { beta } => {
                let means = over(apart(policy.clone()), &lengths);
                // 1 − exp p̄, the probability of anything else.
                let others = means.clone().map(|mean| mean.exp().neg() + 1.0);
                let [chosen, rejected] = [0, 1].map(|i| means[i].clone() - others[i].clone().log());
                let odds = chosen - rejected;
                let losses = log_sigmoid(odds.clone()) * -beta;
                let pull = sigmoid(odds.neg()) * -beta;
                let slopes = [pull.clone(), pull.neg()];
                let [c, r] = over(slopes, &others);
                judged(
                    losses,
                    over([c, r], &lengths),
                    means.map(|mean| mean * beta),
                )
            }
            Self::Margin {
                beta,
                gamma,
                label_smoothing,
                of_means,
            } => {
                let sums = apart(policy.clone());
                let scores = match of_means {
                    true => over(sums, &lengths),
                    false => sums,
                };
                let [chosen, rejected] = scores.clone();
                let x = (chosen - rejected) * beta - gamma;
                let (losses, pull) = smoothed(x, label_smoothing);
                let slopes = [pull.clone() * beta, pull * -beta];
                let slopes = match of_means {
                    true => over(slopes, &lengths),
                    false => slopes,
                };
                judged(losses, slopes, scores.map(|score| score * beta))
            }
        }
    }
}

/// Σ weight · loss, and each loss by itself where there are several.
fn summed(losses: DpoLosses, of: impl Fn(DpoLoss) -> (Tensor<1>, Both), rewards: Both) -> Judged {
    let mut terms = Vec::new();
    let parts = losses.iter().map(|(loss, weight)| {
        let (each, slopes) = of(loss);
        if losses.are_several() {
            terms.push(each.clone());
        }
        match weight {
            1.0 => (each, slopes),
            _ => (each * weight, slopes.map(|slope| slope * weight)),
        }
    });
    let sum = parts.reduce(|(losses, [c, r]), (more, [more_c, more_r])| {
        (losses + more, [c + more_c, r + more_r])
    });
    let Some((losses, slopes)) = sum else {
        panic!("DPO without a loss");
    };
    Judged {
        terms,
        ..judged(losses, slopes, rewards)
    }
}

/// Losses of DPO and their slopes with respect to c and r.
fn dpo(
    loss: DpoLoss,
    (beta, smoothing): (f64, f64),
    deltas: Both,
    lengths: Both,
) -> (Tensor<1>, Both) {
    let margin = |[chosen, rejected]: Both| (chosen - rejected) * beta;
    // Of a loss of the margin alone: its slope pulls at both answers.
    let both = |pull: Tensor<1>| [pull.clone() * beta, pull * -beta];
    // σ(βx) and its slope over β.
    let bent = |x: &Tensor<1>| {
        let s = sigmoid(x.clone() * beta);
        let slope = s.clone() * (s.clone().neg() + 1.0) * beta;
        (s, slope)
    };
    match loss {
        DpoLoss::Sigmoid => {
            let (losses, pull) = smoothed(margin(deltas), smoothing);
            (losses, both(pull))
        }
        DpoLoss::SigmoidNorm => {
            let (losses, pull) = smoothed(margin(over(deltas, &lengths)), 0.0);
            (losses, over(both(pull), &lengths))
        }
        DpoLoss::Ipo => {
            let [chosen, rejected] = over(deltas, &lengths);
            let off = chosen - rejected - 1.0 / (2.0 * beta);
            let slope = off.clone() * 2.0;
            let slopes = [slope.clone(), slope.neg()];
            (off.clone() * off, over(slopes, &lengths))
        }
        DpoLoss::Hinge => {
            let missing = margin(deltas).neg() + 1.0;
            let pull = missing.clone().greater_elem(0.0).float().neg();
            (missing.clamp_min(0.0), both(pull))
        }
        DpoLoss::Robust => {
            let x = margin(deltas);
            let scale = 1.0 / (1.0 - 2.0 * smoothing);
            let losses = log_sigmoid(x.clone()) * -(1.0 - smoothing)
                + log_sigmoid(x.clone().neg()) * smoothing;
            let pull = sigmoid(x) * (1.0 - 2.0 * smoothing) - (1.0 - smoothing);
            (losses * scale, both(pull * scale))
        }
        DpoLoss::ApoZero => {
            let [(c, dc), (r, dr)] = deltas.each_ref().map(bent);
            (c.neg() + 1.0 + r, [dc.neg(), dr])
        }
        DpoLoss::ApoDown => {
            let [chosen, rejected] = deltas;
            let (c, dc) = bent(&chosen);
            let (d, dd) = bent(&(chosen - rejected));
            (c + 1.0 - d, [dc - dd.clone(), dd])
        }
        DpoLoss::NcaPair => {
            let [x, y] = deltas.map(|delta| delta * beta);
            let losses = log_sigmoid(x.clone()).neg()
                - (log_sigmoid(x.clone().neg()) + log_sigmoid(y.clone().neg())) * 0.5;
            let chosen = (sigmoid(x) * 1.5 - 1.0) * beta;
            (losses, [chosen, sigmoid(y) * (0.5 * beta)])
        }
    }
}

/// −(1 − e) ln σ(x) − e ln σ(−x), and its slope.
fn smoothed(x: Tensor<1>, smoothing: f64) -> (Tensor<1>, Tensor<1>) {
    let right = log_sigmoid(x.clone()) * -(1.0 - smoothing);
    let losses = match smoothing {
        0.0 => right,
        _ => right - log_sigmoid(x.clone().neg()) * smoothing,
    };
    let pull = sigmoid(x.clone().neg()) * -(1.0 - smoothing);
    let pull = match smoothing {
        0.0 => pull,
        _ => pull + sigmoid(x) * smoothing,
    };
    (losses, pull)
}

/// Chosen and rejected, which take turns.
pub(super) fn apart(all: Tensor<1>) -> Both {
    let pairs = all.dims()[0] / 2;
    let all = all.reshape([pairs, 2]);
    [0, 1].map(|i| all.clone().narrow(1, i, 1).reshape([pairs]))
}

/// The same, in turn again.
fn in_turn([chosen, rejected]: Both) -> Tensor<1> {
    let pairs = chosen.dims()[0];
    Tensor::stack::<2>(vec![chosen, rejected], 1).reshape([2 * pairs])
}

fn over([a, b]: Both, [by_a, by_b]: &Both) -> Both {
    [a / by_a.clone(), b / by_b.clone()]
}

pub(super) fn judged(losses: Tensor<1>, slopes: Both, rewards: Both) -> Judged {
    Judged {
        losses,
        terms: Vec::new(),
        slopes: in_turn(slopes),
        rewards: in_turn(rewards),
    }
}
