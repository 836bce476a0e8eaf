//! Answers that are compared: their curves, and what they show.

use super::svg::{Curve, Mark, figure};
use super::{SMOOTHING, name_of};
use crate::diagnosis::{AnswerPoint, findings as found};
use crate::records::Report;
use crate::report::{AnswersReport, Estimate};
use crate::run_files::RunFiles;

/// A number of answers.
type Number = fn(&AnswersReport) -> Option<Estimate>;

/// Rewards, margins, accuracies, log-likelihoods and entropy; nothing where no run compares answers.
pub(super) fn figures(runs: &[RunFiles]) -> String {
    let all: [(&str, &[(&str, Number)]); 5] = [
        (
            "Rewards",
            &[
                ("chosen", |answers| answers.reward_chosen),
                ("rejected", |answers| answers.reward_rejected),
            ],
        ),
        ("Margin of rewards", &[("margin", |answers| answers.margin)]),
        (
            "Share of pairs the right way round",
            &[("accuracy", |answers| answers.accuracy)],
        ),
        (
            "Log-likelihoods, nats",
            &[
                ("chosen", |answers| answers.logp_chosen),
                ("rejected", |answers| answers.logp_rejected),
            ],
        ),
        (
            "Entropy of held-out answers, nats",
            &[("entropy", |answers| answers.entropy)],
        ),
    ];
    let figures = all.into_iter().map(|(title, numbers)| {
        let mut curves = Vec::new();
        for (i, run) in runs.iter().enumerate() {
            for (j, (name, number)) in numbers.iter().enumerate() {
                // One run has colours left for its second number.
                let color = if runs.len() == 1 { 2 * j } else { i };
                curves.extend(of_run(run, runs, (name, *number), color));
            }
        }
        figure(title, &curves)
    });
    figures.collect()
}

/// Steps, smoothed, and evaluations, as dots.
fn of_run(
    run: &RunFiles,
    runs: &[RunFiles],
    (name, number): (&str, Number),
    color: usize,
) -> [Curve; 2] {
    let (mut sum, mut weight) = (0.0, 0.0);
    let (mut steps, mut evals) = (Vec::new(), Vec::new());
    for report in &run.reports {
        let (step, answers) = match report {
            Report::Step(step) => (step.step, &step.answers),
            Report::Eval(eval) => (eval.step, &eval.answers),
        };
        let Some(value) = answers.as_ref().and_then(number).map(|found| found.mean) else {
            continue;
        };
        match report {
            Report::Step(_) if value.is_finite() => {
                sum = SMOOTHING * sum + (1.0 - SMOOTHING) * value;
                weight = SMOOTHING * weight + (1.0 - SMOOTHING);
                steps.push((step as f64, sum / weight));
            }
            Report::Step(_) => {}
            Report::Eval(_) => evals.push((step as f64, value)),
        }
    }
    let curve = |what: String, color, mark, points| Curve {
        name: name_of(run, runs, &what),
        run: color,
        mark,
        points,
    };
    let held_out = if runs.len() == 1 { color + 1 } else { color };
    [
        curve(format!("{name}, smoothed"), color, Mark::Line, steps),
        curve(format!("{name}, eval"), held_out, Mark::Dots, evals),
    ]
}

/// What the answers of a run show, in words; `None` of a run without pairs.
pub(super) fn findings(run: &RunFiles) -> Option<String> {
    let (mut steps, mut evals) = (Vec::new(), Vec::new());
    for report in &run.reports {
        let (to, step, answers) = match report {
            Report::Step(step) => (&mut steps, step.step, &step.answers),
            Report::Eval(eval) => (&mut evals, eval.step, &eval.answers),
        };
        let point = answers
            .as_ref()
            .and_then(|answers| AnswerPoint::of(step, answers));
        to.extend(point);
    }
    if steps.is_empty() {
        return None;
    }
    let found = found(&steps, &evals);
    let words: Vec<String> = found.iter().map(ToString::to_string).collect();
    Some(match words.is_empty() {
        true => "–".to_owned(),
        false => words.join(". "),
    })
}
