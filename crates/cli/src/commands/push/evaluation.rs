//! What `eval --json` found, for the card.

use serde_json::Value;

use crate::plain::{count, fixed};

/// Scores of the base and of the adapter on the same rows.
#[derive(Debug, PartialEq)]
pub(super) struct Evaluation {
    base: Value,
    adapter: Value,
}

impl Evaluation {
    /// The scores in a line of `eval --json`; `None` where it measured the base alone.
    pub(super) fn of(line: &Value) -> Option<Self> {
        let scores = |name: &str| {
            line.get(name)
                .filter(|scores| scores["nll"].is_number())
                .cloned()
        };
        Some(Self {
            base: scores("base")?,
            adapter: scores("adapter")?,
        })
    }

    /// The card's section.
    pub(super) fn section(&self) -> String {
        let share = |value: f64| format!("{:.1} %", 100.0 * value);
        let row = |name: &str, key: &str, text: &dyn Fn(f64) -> String| {
            let (base, adapter) = (self.base[key].as_f64()?, self.adapter[key].as_f64()?);
            Some(format!("| {name} | {} | {} |\n", text(base), text(adapter)))
        };
        let rows = [
            row("loss, nats", "nll", &fixed),
            row("perplexity", "perplexity", &fixed),
            row("answers that match exactly", "exact_match", &share),
            row("answers with the right first word", "first_word", &share),
        ];
        let tokens = self.adapter["tokens"].as_u64().unwrap_or_default();
        format!(
            "## Before and after\n\nOver {}.\n\n| | base | this adapter |\n| --- | --- | --- |\n{}",
            count(tokens, "supervised token"),
            rows.into_iter().flatten().collect::<String>()
        )
    }
}
