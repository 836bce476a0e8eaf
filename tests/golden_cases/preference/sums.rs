//! Losses that are summed, against the golden values of each alone: both the loss of a step and its gradients are linear.

use backdraft::recipe::{DpoLosses, ObjectiveRecipe, ReferenceStart};

use super::*;

/// A sum of golden cases, which have β and label smoothing in common, and the weight of the nll of chosen answers.
struct Sum {
    cases: &'static [(&'static str, f64)],
    sft_weight: f64,
}

const SUMS: [Sum; 3] = [
    Sum {
        cases: &[("dpo_sigmoid_beta_0.1", 1.0), ("dpo_ipo_beta_0.1", 0.02)],
        sft_weight: 0.0,
    },
    Sum {
        cases: &[
            ("dpo_sigmoid_label_smoothing_0.1", 0.3),
            ("dpo_robust_label_smoothing_0.1", 1.5),
        ],
        sft_weight: 0.0,
    },
    Sum {
        cases: &[("dpo_ipo_beta_0.1", 0.05), ("dpo_sigmoid_beta_0.1", 2.0)],
        sft_weight: 0.4,
    },
];

impl Sum {
    fn objective(&self, case: &Case) -> Objective {
        let of = |name: &str| &case.golden.losses[name].options;
        let first = of(self.cases[0].0);
        let losses = self.cases.iter().map(|&(name, weight)| {
            let options = of(name);
            assert_eq!(options.beta, first.beta);
            assert_eq!(options.label_smoothing, first.label_smoothing);
            (options.dpo_loss(), weight)
        });
        ObjectiveRecipe::Dpo {
            beta: first.beta,
            losses: DpoLosses::weighted(losses),
            label_smoothing: first.label_smoothing,
            sft_weight: self.sft_weight,
            reference: ReferenceStart::Start,
            precompute_reference: false,
        }
        .into()
    }
}

/// The nll of the chosen answers and its gradients: CPO has that of TRL beside its comparison, which is taken away.
fn nll(case: &Case) -> (f64, BTreeMap<String, Vec<f32>>) {
    let name = "cpo_sigmoid_beta_0.1";
    let golden = &case.golden.losses[name];
    let alone = Options {
        cpo_alpha: 0.0,
        ..golden.options.clone()
    };
    let trainee = case.trainee(false, alone.objective());
    let rows = case.rows(&[0, 1, 2], false);
    let step = case.steps(&rows, alone.objective(), 3, 1).remove(0);
    let (_, grads) = case.step(&trainee, step);
    let less = grads.into_iter().map(|(factor, grad)| {
        let all = case.tensors.f32(&format!("{name}.grad.{factor}"));
        let nll = all.iter().zip(&grad).map(|(all, other)| all - other);
        (factor, nll.collect())
    });
    (golden.nll.unwrap(), less.collect())
}

#[test]
fn golden_preference_losses_that_are_summed() {
    let Some(case) = Case::open() else {
        return;
    };
    let (nll, nll_grads) = nll(&case);
    for sum in SUMS {
        let objective = sum.objective(&case);
        let trainee = case.trainee(false, objective);
        let golden = || {
            let cases = sum.cases.iter();
            cases.map(|&(name, weight)| (name, &case.golden.losses[name], weight))
        };
        let comparison: f64 = golden().map(|(_, it, weight)| weight * it.loss).sum();
        let expected = comparison + sum.sft_weight * nll;
        for size in [3, 1, 2] {
            let what = format!("{:?}, {size} rows a pass", sum.cases);
            let rows = case.rows(&[0, 1, 2], false);
            let step = case.steps(&rows, objective, size, 1).remove(0);
            let (metrics, grads) = case.step(&trainee, step);
            check_loss(&what, metrics.loss, expected);
            let answers = metrics.answers.unwrap();
            check_loss(&what, answers.loss.mean, comparison);
            let told: Vec<_> = answers.losses.iter().collect();
            assert_eq!(told.len(), sum.cases.len(), "{what}");
            for (name, it, _) in golden() {
                let of_name = |(loss, _): &&(_, _)| *loss == it.options.dpo_loss();
                let (_, found) = told.iter().find(of_name).unwrap();
                check_loss(format!("{what}, {name}"), found.mean, it.loss);
            }
            let told_nll = (sum.sft_weight > 0.0).then_some(nll);
            assert_eq!(answers.nll.is_some(), told_nll.is_some(), "{what}");
            if let Some(found) = answers.nll {
                check_loss(format!("{what}, nll"), found, nll);
            }
            assert_eq!(grads.len(), 28);
            for (factor, grad) in grads {
                let mut expected: Vec<f64> = vec![0.0; grad.len()];
                let mut add = |values: &[f32], weight: f64| {
                    for (sum, value) in expected.iter_mut().zip(values) {
                        *sum += weight * f64::from(*value);
                    }
                };
                for (name, _, weight) in golden() {
                    add(&case.tensors.f32(&format!("{name}.grad.{factor}")), weight);
                }
                add(&nll_grads[&factor], sum.sft_weight);
                let expected: Vec<f32> = expected.iter().map(|value| *value as f32).collect();
                TINY_GRADIENT.check(format!("{what}, {factor}"), &grad, &expected);
            }
        }
    }
}
