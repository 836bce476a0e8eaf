//! Rows whose answers a reward model scores.

use std::path::Path;

use backdraft_data::{Answers, RowSet};
use backdraft_formats::{Existing, write_file};
use backdraft_recipe::ObjectiveRecipe;
use backdraft_train::deal::Deal;
use backdraft_train::evaluate::{Rewards, score};
use backdraft_train::objective::Objective;
use serde_json::json;

use super::{ROWS_AT_A_TIME, Read, Results};
use crate::error::CliError;
use crate::output::Output;
use crate::plain::count;
use crate::session::Session;

/// Scores rows with the adapter's head, and with the base's where that has one; `to` gets a reward for each answer.
pub(super) fn run(
    session: &Session,
    read: &Read,
    to: Option<(&Path, Existing)>,
    output: Output,
) -> Result<Results, CliError> {
    let objective = match read.objective {
        said @ ObjectiveRecipe::Reward { .. } => said,
        _ => REWARD,
    };
    let deal = Deal {
        objective: Objective::from(objective),
        max_seq_length: read.max_seq_length,
    };
    let rows = &read.rows;
    let adapted = session.adapter.is_some();
    let base = session
        .scores_alone()
        .then(|| session.model.clone().without_adapter());
    let base = base.map(|model| ("base", "base", model));
    let with = adapted.then(|| ("with adapter", "adapter", session.model.clone()));
    let mut results = Vec::new();
    for (name, key, model) in base.into_iter().chain(with) {
        output.progress(format!("{name}: {}", count(rows.len() as u64, "row")));
        let found = score(&model, rows, (deal, ROWS_AT_A_TIME))?;
        output.line(line(&found, name))?;
        results.push((key, found));
    }
    if let Some((path, existing)) = to {
        write_file(path, lines(rows, &results).as_bytes(), existing)?;
        output.line(format!("Wrote {}", path.display()))?;
    }
    let results = results.iter().map(|(key, found)| {
        let mut result = json!({
            "nll": null,
            "perplexity": null,
            "tokens": found.scores.len(),
            "answers": found.answers,
        });
        if let Some(loss) = found.loss {
            result["loss"] = loss.into();
        }
        ((*key).to_owned(), result)
    });
    Ok(results.collect())
}

const REWARD: ObjectiveRecipe = ObjectiveRecipe::Reward {
    gamma: 0.0,
    center_rewards_coefficient: 0.0,
};

fn line(found: &Rewards, name: &str) -> String {
    let mut line = format!("{name:<14} ");
    if let Some(loss) = found.loss {
        line += &format!("loss {loss:.4}");
        if let Some(error) = found.answers.loss.error {
            line += &format!(" ± {error:.4}");
        }
        line += ", ";
    }
    line + &found.answers.to_string()
}

/// A line for each row, with the reward of each of its answers by each model.
fn lines(rows: &RowSet, results: &[(&str, Rewards)]) -> String {
    let (mut lines, mut at) = (String::new(), 0);
    for (number, row) in rows.iter().enumerate() {
        let mut line = json!({ "line": rows.place(number).map(|place| place.line) });
        let names: &[&str] = match row.answers {
            Answers::Pair { .. } => &["chosen", "rejected"],
            Answers::One | Answers::Judged { .. } => &["reward"],
        };
        if let Answers::Judged { desirable } = row.answers {
            line["label"] = desirable.into();
        }
        for (key, found) in results {
            let rewards = names.iter().zip(&found.scores[at..]);
            let rewards = rewards.map(|(name, reward)| ((*name).to_owned(), (*reward).into()));
            line[*key] = serde_json::Value::Object(rewards.collect());
        }
        at += names.len();
        lines += &format!("{line}\n");
    }
    lines
}
