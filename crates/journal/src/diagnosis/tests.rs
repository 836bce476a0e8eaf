mod trained;

use proptest::prelude::*;

use super::corpus::{Corpus, Specimen};
use super::*;

fn train(losses: &[f64]) -> Vec<TrainPoint> {
    let point = |(i, &loss): (usize, &f64)| TrainPoint {
        step: i + 1,
        loss,
        grad_norm: None,
        learning_rate: 2e-4,
    };
    losses.iter().enumerate().map(point).collect()
}

fn eval(losses: &[f64]) -> Vec<EvalPoint> {
    let point = |(i, &loss): (usize, &f64)| EvalPoint { step: i + 1, loss };
    losses.iter().enumerate().map(point).collect()
}

fn whole_run(train_losses: &[f64], eval_losses: &[f64]) -> Diagnosis {
    diagnose(&Series {
        train: &train(train_losses),
        eval: &eval(eval_losses),
        total_steps: train_losses.len(),
        warmup_steps: 0,
        stopped_early: false,
    })
}

const HEALTHY: [[f64; 5]; 2] = [[2.0, 1.5, 1.2, 1.0, 0.9], [2.1, 1.6, 1.3, 1.1, 1.0]];
const OVERFITTING: [[f64; 5]; 2] = [[1.0, 0.8, 0.6, 0.5, 0.4], [1.1, 1.0, 1.1, 1.3, 1.5]];
const TOO_HIGH_A_RATE: [f64; 5] = [2.0, 1.8, 2.1, 1.5, 2.3];

#[test]
fn the_healthy_curve_of_the_brief() {
    let diagnosis = whole_run(&HEALTHY[0], &HEALTHY[1]);
    assert_eq!(diagnosis.verdict, Verdict::Healthy);
    assert!(diagnosis.advice.is_empty());
}

#[test]
fn the_overfitting_curve_of_the_brief() {
    let diagnosis = whole_run(&OVERFITTING[0], &OVERFITTING[1]);
    let expected = Verdict::Overfitting {
        since: 3,
        best_step: 2,
        best_loss: 1.0,
    };
    assert_eq!(diagnosis.verdict, expected);
    let advice = [
        Advice::StopEarly,
        Advice::KeepCheckpoint { step: 2 },
        Advice::FewerEpochs,
    ];
    assert_eq!(diagnosis.advice, advice);
}

#[test]
fn the_unstable_curve_of_the_brief() {
    let diagnosis = whole_run(&TOO_HIGH_A_RATE, &[]);
    let cause = Cause::LearningRateTooHigh;
    let expected = Verdict::Unstable { since: 1, cause };
    assert_eq!(diagnosis.verdict, expected);
    assert_eq!(diagnosis.advice[0], Advice::LowerLearningRate);
}

/// Losses of every step of a real run: SmolLM2-135M, rank 8, four rows a step, learning rate 2e-4 from
/// step 2 on. Single batches scatter by a fifth, which is no instability.
const REAL: [f64; 110] = [
    3.49, 3.94, 3.61, 3.42, 2.70, 2.79, 2.65, 2.81, 2.75, 2.63, 2.31, 2.30, 2.38, 1.92, 2.27, 2.16,
    2.29, 1.87, 2.04, 2.19, 2.12, 1.73, 2.42, 1.59, 1.46, 3.47, 2.43, 2.92, 2.05, 1.37, 1.29, 1.61,
    1.95, 1.87, 2.34, 1.83, 2.02, 2.18, 1.48, 1.38, 1.91, 1.79, 2.70, 1.84, 2.14, 1.56, 2.15, 1.75,
    1.83, 2.16, 1.56, 2.19, 1.63, 1.35, 1.77, 1.26, 2.16, 1.83, 2.20, 2.20, 2.18, 1.97, 2.74, 1.56,
    2.41, 1.75, 1.33, 2.09, 1.75, 1.55, 1.25, 1.63, 1.57, 1.17, 2.34, 2.26, 1.76, 1.07, 2.07, 2.57,
    2.02, 2.05, 1.29, 1.68, 1.74, 2.10, 1.69, 2.25, 1.90, 2.32, 1.26, 2.21, 1.91, 1.64, 1.67, 1.59,
    1.50, 1.88, 1.23, 1.43, 2.44, 1.21, 2.39, 2.87, 2.31, 1.60, 1.80, 2.16, 1.98, 1.07,
];

#[test]
fn small_batches_are_no_instability() {
    let losses = train(&REAL);
    for end in 1..=REAL.len() {
        let diagnosis = diagnose(&Series {
            train: &losses[..end],
            eval: &[],
            total_steps: REAL.len(),
            warmup_steps: 5,
            stopped_early: false,
        });
        let class = diagnosis.verdict.class();
        assert!(
            matches!(
                class,
                Class::WarmingUp | Class::NoClearChange | Class::Healthy | Class::Converged
            ),
            "{end}: {diagnosis:?}"
        );
    }
}

/// Curves of seeds that no threshold was chosen with.
#[test]
fn generated_curves_are_recognised() {
    let confusion = Confusion::on_seeds(9001..9004, 100);
    assert_eq!(confusion.total(), 3 * 100 * Class::ALL.len());
    assert!(confusion.accuracy() >= 0.95, "{confusion}");
    for class in Class::ALL {
        assert!(confusion.recall(class) >= 0.9, "{class}: {confusion}");
        assert!(confusion.precision(class) >= 0.88, "{class}: {confusion}");
    }
}

/// Trials of 3 to 20 steps with up to 4 evaluations.
#[test]
fn brief_runs_are_recognised() {
    let confusion = Confusion::of_brief_runs(9001..9004, 100);
    assert_eq!(confusion.total(), 3 * 100 * 7);
    assert!(confusion.accuracy() >= 0.93, "{confusion}");
    let alarms = [Class::Overfitting, Class::Unstable, Class::Diverged];
    let calm = [Class::WarmingUp, Class::Healthy, Class::Converged];
    for (truth, alarm) in calm.iter().flat_map(|t| alarms.map(|a| (*t, a))) {
        assert!(confusion.count(truth, alarm) <= 2, "{confusion}");
    }
    for truth in Class::ALL {
        let known = confusion.recall(truth);
        assert!(known.is_nan() || known >= 0.82, "{truth}: {confusion}");
    }
}

/// The numbers of a verdict say the same as the verdict.
#[track_caller]
fn has_its_sign(diagnosis: &Diagnosis) {
    let fails = diagnosis.evidence.iter().any(|evidence| match *evidence {
        Evidence::TrainLoss { first, now } => {
            let class = diagnosis.verdict.class();
            now >= first && !matches!(class, Class::Unstable | Class::Stuck)
        }
        Evidence::EvalLoss { first, now } => now >= first,
        Evidence::AboveStart { first, now } => now <= first,
        Evidence::EvalAgainstBest { best, now, .. } => now <= best,
        Evidence::NoBetterEval { best, now, .. } => {
            (now > best) != (diagnosis.verdict.class() == Class::Overfitting)
        }
        Evidence::RecentFall { share, .. } => !(0.0..=1.0).contains(&share),
        Evidence::EvalNoise { gain, .. } => gain <= 0.0,
        _ => false,
    });
    assert!(!fails, "{diagnosis:?}");
}

#[test]
fn evidence_has_the_sign_of_its_verdict_at_every_step() {
    let long = Corpus::generate(31, 20).specimens;
    for specimen in Corpus::brief(31, 40).specimens.iter().chain(&long) {
        let mut evals = specimen.eval.iter().peekable();
        let mut seen = Monitor::new(specimen.total_steps, specimen.warmup_steps);
        for (i, point) in specimen.train.iter().enumerate().take(80) {
            has_its_sign(seen.train(*point));
            while let Some(eval) = evals.next_if(|e| e.step <= point.step) {
                has_its_sign(seen.eval(*eval));
            }
            has_its_sign(&diagnose(&Series {
                train: &specimen.train[..=i],
                ..specimen.series()
            }));
        }
        for stopped_early in [false, true] {
            has_its_sign(&diagnose(&Series {
                stopped_early,
                ..specimen.series()
            }));
        }
    }
}

#[test]
fn losses_that_only_scatter_are_not_healthy() {
    // Rates that are too high for twelve steps on random rows.
    let losses = [
        5.681, 5.912, 5.774, 5.655, 5.803, 5.590, 5.701, 5.842, 5.633, 5.688, 5.574, 6.058,
    ];
    for end in 5..=losses.len() {
        let class = whole_run(&losses[..end], &[]).verdict.class();
        assert!(
            matches!(class, Class::NoClearChange | Class::Stuck),
            "{end}: {class}"
        );
    }
    let diagnosis = whole_run(&losses, &[]);
    assert_eq!(diagnosis.verdict, Verdict::NoClearChange);
    assert!(diagnosis.advice.is_empty());
}

#[test]
fn early_stopping_is_a_sign_of_over_fitting() {
    let stopped = |eval_losses: &[f64]| {
        diagnose(&Series {
            train: &train(&[2.0, 1.8, 1.6, 1.45, 1.3, 1.2, 1.1, 1.0]),
            eval: &eval(eval_losses),
            total_steps: 40,
            warmup_steps: 0,
            stopped_early: true,
        })
    };
    let rising = stopped(&[2.1, 1.7, 1.71, 1.705]);
    let expected = Verdict::Overfitting {
        since: 3,
        best_step: 2,
        best_loss: 1.7,
    };
    assert_eq!(rising.verdict, expected);
    assert_eq!(rising.advice[0], Advice::KeepCheckpoint { step: 2 });
    let said = rising.evidence[0].to_string();
    assert!(
        said.starts_with("eval loss 1.700 at step 2, not better in 2"),
        "{said}"
    );
    // Better by less than early stopping asks for.
    let flat = stopped(&[2.1, 1.7, 1.699, 1.698]);
    assert_eq!(flat.verdict.class(), Class::Converged, "{flat:?}");
}

#[test]
fn a_loss_that_rises_is_not_stuck() {
    let losses: Vec<f64> = (0..30)
        .map(|i| 2.0 + 0.008 * f64::from(i) + 0.01 * f64::from(i % 3))
        .collect();
    let diagnosis = whole_run(&losses, &[]);
    assert_eq!(diagnosis.verdict, Verdict::Diverged { since: 1 });
}

#[test]
fn a_seed_makes_the_same_curves() {
    let bits = |seed| -> Vec<u64> {
        let curves = Corpus::generate(seed, 3).specimens;
        let losses = curves.iter().flat_map(|s| &s.train);
        losses.map(|p| p.loss.to_bits()).collect()
    };
    assert_eq!(bits(5), bits(5));
    assert_ne!(bits(5), bits(6));
}

fn verdict_of(train: &[TrainPoint], total_steps: usize) -> Verdict {
    let series = Series {
        train,
        eval: &[],
        total_steps,
        warmup_steps: 0,
        stopped_early: false,
    };
    diagnose(&series).verdict
}

#[test]
fn a_nan_that_a_resume_went_over_is_forgotten() {
    let mut points = train(&HEALTHY[0]);
    let broken = TrainPoint {
        loss: f64::NAN,
        ..points[3]
    };
    points.insert(3, broken);
    assert_eq!(verdict_of(&points, 5), Verdict::Healthy);
    points.remove(4);
    points[4].loss = f64::INFINITY;
    assert_eq!(verdict_of(&points, 5), Verdict::Diverged { since: 4 });
}

#[test]
fn a_gradient_or_an_evaluation_that_is_no_number_counts() {
    let mut points = train(&HEALTHY[0]);
    points[4].grad_norm = Some(f64::INFINITY);
    let series = Series {
        train: &points,
        eval: &[],
        total_steps: 5,
        warmup_steps: 0,
        stopped_early: false,
    };
    assert_eq!(diagnose(&series).verdict, Verdict::Diverged { since: 5 });
    let diagnosis = whole_run(&HEALTHY[0], &[2.0, f64::NAN]);
    assert_eq!(diagnosis.verdict, Verdict::Diverged { since: 2 });
}

#[test]
fn a_cosine_that_ends_is_not_convergence() {
    // The loss follows the sum of the rates: it has a long way to go when they end.
    let steps = 400;
    let mut time = 0.0f64;
    let points: Vec<TrainPoint> = (0..steps)
        .map(|i| {
            let share = 0.5 * (1.0 + (std::f64::consts::PI * i as f64 / steps as f64).cos());
            let loss = 1.0 + (-time / 150.0).exp();
            time += share;
            TrainPoint {
                step: i + 1,
                loss,
                grad_norm: None,
                learning_rate: 1e-4 * share,
            }
        })
        .collect();
    let series = Series {
        train: &points,
        eval: &[],
        total_steps: steps,
        warmup_steps: 0,
        stopped_early: false,
    };
    assert_eq!(diagnose(&series).verdict, Verdict::Healthy);
    let blind: Vec<TrainPoint> = points
        .iter()
        .map(|p| TrainPoint {
            learning_rate: 0.0,
            ..*p
        })
        .collect();
    let series = Series {
        train: &blind,
        ..series
    };
    assert_eq!(diagnose(&series).verdict.class(), Class::Healthy);
}

#[test]
fn early_jumps_ask_for_more_warmup() {
    let mut losses: Vec<f64> = (0..60).map(|i| 3.0 - 0.005 * f64::from(i)).collect();
    for (start, height) in [(12, 2.0), (26, 1.6), (42, 1.2)] {
        for i in 0..8 {
            losses[start + i] += height * 0.7f64.powi(i as i32);
        }
    }
    let points = train(&losses);
    let seen_of = |total_steps| {
        diagnose(&Series {
            train: &points,
            eval: &[],
            total_steps,
            warmup_steps: 5,
            stopped_early: false,
        })
    };
    let advice = |d: &Diagnosis| d.advice[0];
    assert_eq!(advice(&seen_of(1000)), Advice::LongerWarmup);
    assert_eq!(advice(&seen_of(60)), Advice::LowerLearningRate);
}

#[test]
fn words() {
    let diagnosis = whole_run(&OVERFITTING[0], &OVERFITTING[1]);
    let mut text = diagnosis.verdict.to_string();
    for evidence in &diagnosis.evidence {
        text += &format!("\n- {evidence}");
    }
    for advice in &diagnosis.advice {
        text += &format!("\n> {advice}");
    }
    let expected = "\
over-fitting since step 3: eval loss rises, best at step 2
- eval loss 1.000 at step 2, now 1.400 (11.5 standard errors above)
- train loss 1.000 → 0.400
> stop early
> keep the checkpoint of step 2
> train for fewer epochs";
    assert_eq!(text, expected);
}

#[test]
fn nothing_to_judge_by() {
    for losses in [&[][..], &[1.0], &[1.0, 2.0], &[0.0; 4]] {
        assert_eq!(
            whole_run(losses, &[]).verdict,
            Verdict::WarmingUp,
            "{losses:?}"
        );
    }
    let series = Series {
        train: &[],
        eval: &eval(&[1.0; 30]),
        total_steps: usize::MAX,
        warmup_steps: usize::MAX,
        stopped_early: false,
    };
    assert_eq!(diagnose(&series).verdict, Verdict::WarmingUp);
}

#[test]
fn the_monitor_comes_to_the_same_conclusion() {
    for specimen in &Corpus::generate(77, 2).specimens {
        let mut monitor = Monitor::new(specimen.total_steps, specimen.warmup_steps);
        let mut evals = specimen.eval.iter().peekable();
        for point in &specimen.train {
            monitor.train(*point);
            while let Some(eval) = evals.next_if(|e| e.step <= point.step) {
                monitor.eval(*eval);
            }
        }
        let at_the_end = diagnose(&specimen.series());
        assert_eq!(monitor.conclude(), &at_the_end);
        assert_eq!(monitor.diagnosis(), &at_the_end);
    }
}

#[test]
fn the_monitor_waits_for_three_looks_but_not_after_a_nan() {
    let mut monitor = Monitor::new(40, 0);
    let mut classes = Vec::new();
    let losses = (0..20).map(|i| 3.0 * (-0.1 * f64::from(i)).exp());
    let points = train(&losses.collect::<Vec<_>>());
    for point in &points {
        classes.push(monitor.train(*point).verdict.class());
    }
    let first_seen = (1..=points.len()).find(|&n| {
        let series = Series {
            train: &points[..n],
            eval: &[],
            total_steps: 40,
            warmup_steps: 0,
            stopped_early: false,
        };
        diagnose(&series).verdict == Verdict::Healthy
    });
    let first_shown = classes.iter().position(|&c| c == Class::Healthy);
    assert_eq!(first_shown.unwrap() + 1, first_seen.unwrap() + 2);
    let broken = TrainPoint {
        step: 21,
        loss: f64::NAN,
        ..points[0]
    };
    assert_eq!(
        monitor.train(broken).verdict,
        Verdict::Diverged { since: 21 }
    );
}

/// A curve of the corpus with everything in it multiplied.
fn scaled(specimen: &Specimen, loss: f64, steps: usize, rate: f64) -> Specimen {
    let mut scaled = specimen.clone();
    for point in &mut scaled.train {
        point.step *= steps;
        point.loss *= loss;
        point.learning_rate *= rate;
    }
    for point in &mut scaled.eval {
        point.step *= steps;
        point.loss *= loss;
    }
    scaled.total_steps *= steps;
    scaled.warmup_steps *= steps;
    scaled
}

fn any_loss() -> impl Strategy<Value = f64> {
    prop_oneof![
        6 => -1.0..10.0f64,
        1 => prop::num::f64::ANY,
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(0.0), Just(f64::MAX)],
    ]
}

prop_compose! {
    fn any_train()(
        step in prop_oneof![4 => 0..200usize, 1 => any::<usize>()],
        loss in any_loss(),
        grad_norm in prop::option::of(any_loss()),
        learning_rate in any_loss(),
    ) -> TrainPoint {
        TrainPoint { step, loss, grad_norm, learning_rate }
    }
}

proptest! {
    #[test]
    fn any_series_has_a_verdict(
        train in prop::collection::vec(any_train(), 0..120),
        eval in prop::collection::vec((0..200usize, any_loss()), 0..40),
        total_steps in any::<usize>(),
        warmup_steps in prop_oneof![0..300usize, any::<usize>()],
        stopped_early in any::<bool>(),
    ) {
        let eval: Vec<EvalPoint> =
            eval.into_iter().map(|(step, loss)| EvalPoint { step, loss }).collect();
        let series = Series { train: &train, eval: &eval, total_steps, warmup_steps, stopped_early };
        let diagnosis = diagnose(&series);
        prop_assert!(!diagnosis.evidence.is_empty());
        prop_assert!(!diagnosis.verdict.to_string().is_empty());
        for evidence in &diagnosis.evidence {
            prop_assert!(!evidence.to_string().is_empty());
        }
    }

    /// Powers of two, so that rounding is the same.
    #[test]
    fn units_do_not_matter(
        seed in any::<u64>(),
        loss in -20..20i32,
        steps in 0..8u32,
        rate in -20..20i32,
    ) {
        for specimen in Corpus::generate(seed, 1).specimens {
            let other = scaled(&specimen, 2f64.powi(loss), 2usize.pow(steps), 2f64.powi(rate));
            let (a, b) = (diagnose(&specimen.series()), diagnose(&other.series()));
            // The first log line of a scaled run comes later, which a jump may count from.
            prop_assert_eq!(a.verdict.class(), b.verdict.class());
        }
    }

    /// The order in which points come does not matter.
    #[test]
    fn order_does_not_matter(seed in any::<u64>(), by in 0..100usize) {
        for specimen in Corpus::generate(seed, 1).specimens {
            let mut other = specimen.clone();
            let unique = specimen.train.windows(2).all(|w| w[0].step < w[1].step);
            if unique {
                other.train.rotate_left(by % specimen.train.len());
                prop_assert_eq!(diagnose(&specimen.series()), diagnose(&other.series()));
            }
        }
    }
}
