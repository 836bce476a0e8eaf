//! Further sets of rows held out: what each came to, and how that changed.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::svg::{Curve, Mark, figure};
use super::{escape, name_of};
use crate::records::Report;
use crate::report::SetReport;
use crate::run_files::RunFiles;

/// Their losses over the steps; nothing where no run has such sets.
pub(super) fn figure_of(runs: &[RunFiles]) -> String {
    let mut curves = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        for (j, name) in names(run).into_iter().enumerate() {
            let points = measured(run, name);
            let start = points.first().and_then(|(_, set)| set.start_loss);
            let later = points
                .iter()
                .map(|(step, set)| (*step as f64, set.eval_loss));
            curves.push(Curve {
                name: name_of(run, runs, name),
                // One run has colours left for its sets.
                run: if runs.len() == 1 { j } else { i },
                mark: Mark::Dots,
                points: start
                    .map(|loss| (0.0, loss))
                    .into_iter()
                    .chain(later)
                    .collect(),
            });
        }
    }
    figure("Loss of further held-out sets, nats", &curves)
}

/// A row for each set of each run; nothing where no run has such sets.
pub(super) fn table(runs: &[RunFiles]) -> String {
    let mut rows = String::new();
    for run in runs {
        for name in names(run) {
            let points = measured(run, name);
            let (Some((step, last)), Some((_, first))) = (points.last(), points.first()) else {
                continue;
            };
            let lowest = points.iter().map(|(_, set)| set.eval_loss);
            let lowest = lowest.fold(f64::INFINITY, f64::min);
            let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
            let _ = writeln!(
                rows,
                "<tr><th>{}</th><td>{}</td><td>{lowest:.4}</td><td>{:.4} after step {step}</td><td>{}</td></tr>",
                escape(&name_of(run, runs, name)),
                or_dash(first.start_loss.map(|loss| format!("{loss:.4}"))),
                last.eval_loss,
                or_dash(last.change().map(|change| format!("{change:+.4}"))),
            );
        }
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "<h2>Further held-out sets</h2>\n<table>\n<tr><th></th><th>Loss before the first step</th><th>Lowest</th>\
         <th>Last</th><th>Change</th></tr>\n{rows}</table>\n"
    )
}

fn names(run: &RunFiles) -> BTreeSet<&str> {
    let sets = run.reports.iter().filter_map(|report| match report {
        Report::Step(_) => None,
        Report::Eval(eval) => Some(&eval.sets),
    });
    sets.flatten().map(|set| set.name.as_str()).collect()
}

/// The evaluations of a set, with their steps.
fn measured<'a>(run: &'a RunFiles, name: &str) -> Vec<(usize, &'a SetReport)> {
    let mut found = Vec::new();
    for report in &run.reports {
        if let Report::Eval(eval) = report {
            let set = eval.sets.iter().find(|set| set.name == name);
            found.extend(set.map(|set| (eval.step, set)));
        }
    }
    found
}
