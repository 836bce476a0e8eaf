use super::confusion::PairConfusion;
use super::*;

fn point(step: usize, chosen: f64, rejected: f64) -> AnswerPoint {
    AnswerPoint {
        step,
        pairs: 8,
        chosen,
        rejected,
        accuracy: if chosen > rejected { 0.75 } else { 0.5 },
        length_bias: Some(0.1),
    }
}

/// Runs of seeds that no threshold was chosen with.
#[test]
fn generated_runs_are_recognised() {
    let confusion = PairConfusion::on_seeds(9001..9004, 200);
    for kind in Kind::ALL {
        let runs = [true, false]
            .map(|has| confusion.count(kind, has, true) + confusion.count(kind, has, false));
        assert!(runs[0] >= 60 && runs[1] >= 60, "{confusion}");
        assert!(confusion.recall(kind) >= 0.95, "{confusion}");
        assert!(confusion.precision(kind) >= 0.95, "{confusion}");
    }
    let text = confusion.to_string();
    assert!(
        text.lines().all(|line| line.matches('|').count() == 8),
        "{text}"
    );
}

#[test]
fn rewards_that_fall_together_are_told_with_their_numbers() {
    let wave = |i: usize| 0.01 * (i % 2) as f64;
    let steps: Vec<AnswerPoint> = (0..30)
        .map(|i| point(i + 1, -0.02 * i as f64 + wave(i), -0.05 * i as f64))
        .collect();
    let [
        Finding::BothFall {
            chosen,
            rejected,
            margin,
        },
    ] = findings(&steps, &[])[..]
    else {
        panic!("{:?}", findings(&steps, &[]));
    };
    assert!((chosen + 0.4).abs() < 1e-9 && (rejected + 1.0).abs() < 1e-9);
    assert!((margin - 0.6).abs() < 1e-9);
    let said = findings(&steps, &[])[0].to_string();
    assert!(
        said.starts_with("the margin rose by 0.600 while both rewards fell, chosen by 0.400 and rejected by 1.000. To change: raise"),
        "{said}"
    );
    // Chosen answers that rise, and few steps, are nothing to tell.
    let up: Vec<AnswerPoint> = (0..30)
        .map(|i| point(i + 1, 0.02 * i as f64, -0.05 * i as f64))
        .collect();
    assert_eq!(findings(&up, &[]), []);
    assert_eq!(findings(&steps[..14], &[]), []);
}

#[test]
fn pairs_that_are_soon_told_apart_are_named_with_the_step() {
    let steps = |from: usize, until: usize| -> Vec<AnswerPoint> {
        (1..=80)
            .map(|step| AnswerPoint {
                accuracy: if (from..until).contains(&step) {
                    1.0
                } else {
                    0.6
                },
                ..point(step, 0.0, 0.0)
            })
            .collect()
    };
    assert_eq!(
        findings(&steps(12, 81), &[]),
        [Finding::Separable {
            step: 12,
            accuracy: 1.0
        }]
    );
    // What comes later, or does not last, is learning.
    assert_eq!(findings(&steps(45, 81), &[]), []);
    assert_eq!(findings(&steps(12, 60), &[]), []);
}

#[test]
fn a_margin_that_follows_the_lengths_is_told_from_the_evaluations() {
    let held = |step, length_bias| AnswerPoint {
        pairs: 100,
        length_bias: Some(length_bias),
        ..point(step, 0.1, 0.0)
    };
    let found = findings(&[], &[held(10, 0.1), held(20, -0.6)]);
    let [
        Finding::LengthBias {
            correlation,
            before: Some(before),
        },
    ] = found[..]
    else {
        panic!("{found:?}");
    };
    assert!((correlation + 0.6).abs() < 1e-9 && (before - 0.1).abs() < 1e-9);
    assert!(
        found[0].to_string().starts_with("shorter answers win"),
        "{}",
        found[0]
    );
    assert_eq!(findings(&[], &[held(10, 0.9), held(20, 0.35)]), []);
    // Five pairs may well correlate by chance.
    let few = AnswerPoint {
        pairs: 5,
        ..held(20, 0.9)
    };
    assert_eq!(findings(&[], &[few]), []);
}

#[test]
fn numbers_that_are_none_are_no_finding() {
    let broken: Vec<AnswerPoint> = (0..60)
        .map(|i| AnswerPoint {
            accuracy: f64::NAN,
            length_bias: Some(f64::NAN),
            ..point(i, f64::NAN, f64::INFINITY)
        })
        .collect();
    assert_eq!(findings(&broken, &broken), []);
    assert_eq!(findings(&[], &[]), []);
}

#[test]
fn the_monitor_tells_each_finding_once() {
    let steps = |step: usize| AnswerPoint {
        accuracy: 1.0,
        ..point(step, 0.1, 0.0)
    };
    let mut monitor = AnswerMonitor::default();
    let mut told = Vec::new();
    for step in 1..=60 {
        monitor.step(steps(step));
        told.extend(
            monitor
                .news()
                .into_iter()
                .map(|finding| (step, finding.kind())),
        );
    }
    // Eight steps are enough to see it, three looks to be sure.
    assert_eq!(told, [(10, Kind::Separable)]);
    assert_eq!(monitor.conclude(), []);
    let mut short = AnswerMonitor::default();
    (1..=8).for_each(|step| short.step(steps(step)));
    assert_eq!(short.news(), []);
    assert_eq!(short.conclude().len(), 1);
}
