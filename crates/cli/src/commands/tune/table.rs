//! The trials of a sweep as a table.

use backdraft_journal::tuning::{Standing, TrialReport, TuneReport};

/// A row for each trial, the best first, columns apart.
pub(super) fn table(report: &TuneReport) -> String {
    let mut head = vec![String::new(), "trial".to_owned()];
    head.extend(report.keys.iter().cloned());
    head.extend([
        report.measure.name.clone(),
        "at step".to_owned(),
        "steps".to_owned(),
        String::new(),
    ]);
    let mut rows = vec![head];
    for (place, trial) in report.ranking.trials.iter().enumerate() {
        rows.push(row(report, place + 1, trial));
    }
    let columns = rows[0].len();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn row(report: &TuneReport, place: usize, trial: &TrialReport) -> Vec<String> {
    let place = match trial.standing {
        Standing::Finished => place.to_string(),
        _ => String::new(),
    };
    let mut cells = vec![place, trial.trial.to_string()];
    let value = |key: &String| trial.settings.get(key).unwrap_or("-").to_owned();
    cells.extend(report.keys.iter().map(value));
    let (score, step) = match trial.score {
        Some(score) => (format!("{:.4}", score.value), score.step.to_string()),
        None => ("-".to_owned(), "-".to_owned()),
    };
    let standing = match &trial.reason {
        // The page has all of it.
        Some(reason) => {
            let (first, _) = reason.split_once("; ").unwrap_or((reason, ""));
            format!("{}: {first}", trial.standing)
        }
        None => trial.standing.to_string(),
    };
    let steps = match trial.total_steps {
        0 => trial.steps.to_string(),
        total => format!("{}/{total}", trial.steps),
    };
    cells.extend([score, step, steps, standing]);
    cells
}

#[cfg(test)]
mod tests {
    use backdraft_journal::tuning::{Measure, Score, Settings, rank};

    use super::*;

    #[test]
    fn trials_stand_in_their_order_below_what_they_try() {
        let trial = |trial, rate: &str, rank: &str, standing, value: Option<f64>| TrialReport {
            trial,
            settings: Settings(vec![
                ("train.learning_rate".to_owned(), rate.to_owned()),
                ("lora.rank".to_owned(), rank.to_owned()),
            ]),
            standing,
            steps: 40,
            total_steps: if standing == Standing::Failed { 0 } else { 120 },
            score: value.map(|value| Score { step: 40, value }),
            reason: (standing == Standing::Failed).then(|| "step 40: the loss is NaN".to_owned()),
            ..TrialReport::default()
        };
        let trials = vec![
            trial(1, "1e-4", "8", Standing::Finished, Some(1.5)),
            trial(2, "1e-3", "16", Standing::Finished, Some(1.23456)),
            trial(3, "0.1", "8", Standing::Failed, None),
            trial(4, "3e-4", "8", Standing::Dropped, Some(1.4)),
        ];
        let measure = Measure {
            name: "eval loss".to_owned(),
            higher_is_better: false,
            held_out: true,
        };
        let report = TuneReport {
            method: "halving".to_owned(),
            keys: vec!["train.learning_rate".to_owned(), "lora.rank".to_owned()],
            ranking: rank(trials, &measure),
            measure,
            interrupted: false,
            seconds: 1.0,
            step_seconds: 1.0,
            base_loads: 1,
            report: "tune.html".into(),
        };
        let lines = [
            "   trial  train.learning_rate  lora.rank  eval loss  at step  steps",
            "1  2      1e-3                 16         1.2346     40       40/120  finished",
            "2  1      1e-4                 8          1.5000     40       40/120  finished",
            "   4      3e-4                 8          1.4000     40       40/120  dropped",
            "   3      0.1                  8          -          -        40      failed: step 40: the loss is NaN",
        ];
        assert_eq!(table(&report).lines().collect::<Vec<_>>(), lines);
    }
}
