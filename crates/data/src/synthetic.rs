//! The quickstart's data: sentences about payments, orders and bookings, to be turned into JSON.
//!
//! Everything is made from a seed, so the data has no licence and no download, an answer is right
//! or wrong, and the test split holds only people, companies and sentence forms that training
//! never shows. With SmolLM2's tokenizer and chat template a row has 105 tokens on average, 41 of
//! them answer, and at most 116.

mod score;
mod words;

use std::collections::HashSet;

use serde_json::json;

use crate::rng::SplitMix64;
pub use score::{Score, score};
use words::{CURRENCIES, ITEMS, MONTHS, Pools, SUFFIXES};

/// What the user turn says before the sentence.
pub const INSTRUCTION: &str = "Extract as JSON:";

/// The keys of an answer, in order.
pub const FIELDS: [&str; 5] = ["name", "company", "amount", "currency", "date"];

/// Which people, companies and sentence forms are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// For training.
    Train,
    /// For scoring; shares no person, company or sentence form with [`Split::Train`].
    Test,
}

/// A sentence and its JSON.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// The sentence.
    pub sentence: String,
    /// The answer: one JSON object with the keys [`FIELDS`], without spaces.
    pub answer: String,
}

impl Row {
    /// The user turn.
    pub fn prompt(&self) -> String {
        format!("{INSTRUCTION} {}", self.sentence)
    }

    /// The row as one line of a `messages` file, without the line break.
    pub fn to_jsonl(&self) -> String {
        json!({"messages": [
            {"role": "user", "content": self.prompt()},
            {"role": "assistant", "content": self.answer},
        ]})
        .to_string()
    }
}

/// Makes `count` different rows; the same arguments always give the same rows, and fewer rows are
/// the beginning of more.
pub fn rows(split: Split, count: usize, seed: u64) -> Vec<Row> {
    let pools = words::pools(split);
    let mut rng = SplitMix64::stream(seed, split as u64);
    let mut seen = HashSet::new();
    let mut rows = Vec::new();
    while rows.len() < count {
        let row = make_row(&mut rng, pools);
        if seen.insert(row.sentence.clone()) {
            rows.push(row);
        }
    }
    rows
}

/// The rows as a `messages` file.
pub fn to_jsonl(rows: &[Row]) -> String {
    rows.iter().map(|row| row.to_jsonl() + "\n").collect()
}

fn make_row(rng: &mut SplitMix64, pools: &Pools) -> Row {
    let name = format!(
        "{} {}",
        pools.name(pools.first_names, rng),
        pools.name(pools.last_names, rng)
    );
    let company = format!(
        "{} {}",
        pools.name(pools.companies, rng),
        rng.pick(&SUFFIXES)
    );
    let amount = format!("{}.{:02}", 1 + rng.below(999), rng.below(100));
    let (currency, symbol) = *rng.pick(&CURRENCIES);
    let (year, month, day) = (2018 + rng.below(8), rng.below(12), 1 + rng.below(28));
    let month_name = MONTHS[month];
    let date = match rng.below(3) {
        0 => format!("{day} {month_name} {year}"),
        1 => format!("{month_name} {day}, {year}"),
        _ => format!("{year}-{:02}-{day:02}", month + 1),
    };
    let money = match rng.below(3) {
        0 => format!("{amount} {currency}"),
        1 => format!("{currency} {amount}"),
        _ => format!("{symbol}{amount}"),
    };
    let sentence = rng
        .pick(pools.forms)
        .replace("{name}", &name)
        .replace("{company}", &company)
        .replace("{money}", &money)
        .replace("{date}", &date)
        .replace("{item}", ITEMS[rng.below(ITEMS.len())]);
    let answer = format!(
        "{{\"name\":\"{name}\",\"company\":\"{company}\",\"amount\":{amount},\
         \"currency\":\"{currency}\",\"date\":\"{year}-{:02}-{day:02}\"}}",
        month + 1
    );
    Row { sentence, answer }
}

#[cfg(test)]
mod tests;
