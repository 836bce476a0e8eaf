//! Where the time of a build goes, by crate, from the page that `cargo build --timings` writes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::Value;

use crate::section;

const BEGIN: &str = "<!-- cargo xtask timings writes from here -->";
/// Crates with a row of their own.
const ROWS: usize = 24;

/// Which page to read.
#[derive(Args)]
pub(crate) struct TimingsArgs {
    /// cargo-timings/cargo-timing.html of the target folder, after a build from nothing.
    page: PathBuf,
    /// Put the table into CONTRIBUTING.md.
    #[arg(long)]
    write: bool,
}

/// Shows the table.
pub(crate) fn run(args: &TimingsArgs) -> anyhow::Result<()> {
    let page = fs::read_to_string(&args.page).with_context(|| args.page.display().to_string())?;
    let table = table(&seconds_by_crate(&page)?);
    println!("{table}");
    if args.write {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../CONTRIBUTING.md");
        let text = fs::read_to_string(&path).context("CONTRIBUTING.md")?;
        fs::write(&path, section::replace(&text, BEGIN, &table)?)?;
    }
    Ok(())
}

/// Seconds of all units of each crate: library, tests, build script and its run.
fn seconds_by_crate(page: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    let begin = "const UNIT_DATA = ";
    let (_, rest) = page
        .split_once(begin)
        .context("the page has no UNIT_DATA")?;
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Vec<Value>>();
    let units = values.next().context("UNIT_DATA is empty")??;
    let mut seconds = BTreeMap::new();
    for unit in units {
        let name = unit["name"].as_str().context("a unit without a name")?;
        let took = unit["duration"]
            .as_f64()
            .context("a unit without a duration")?;
        *seconds.entry(name.to_owned()).or_default() += took;
    }
    Ok(seconds)
}

fn table(seconds: &BTreeMap<String, f64>) -> String {
    let total: f64 = seconds.values().sum();
    let mut crates: Vec<(&String, &f64)> = seconds.iter().collect();
    crates.sort_by(|a, b| b.1.total_cmp(a.1));
    let (shown, others) = crates.split_at(ROWS.min(crates.len()));
    let mut text = "| crate | seconds | share |\n| --- | --- | --- |\n".to_owned();
    let mut row = |name: &str, seconds: f64| {
        let share = 100.0 * seconds / total;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {name} | {seconds:.0} | {share:.1} % |");
    };
    for (name, seconds) in shown {
        row(name, **seconds);
    }
    if !others.is_empty() {
        let rest = others.iter().map(|(_, seconds)| **seconds).sum();
        row(&format!("{} others", others.len()), rest);
    }
    row("**all**", total);
    text.trim_end().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn units_of_a_crate_are_added_up_and_the_longest_comes_first() {
        let page = r#"x const UNIT_DATA = [{"name": "a", "duration": 1.0}, {"name": "b", "duration": 5.0},
            {"name": "a", "duration": 2.0}]; const CONCURRENCY_DATA = [];"#;
        let seconds = seconds_by_crate(page).unwrap();
        assert_eq!(
            table(&seconds),
            "| crate | seconds | share |\n| --- | --- | --- |\n| b | 5 | 62.5 % |\n| a | 3 | 37.5 % |\n| **all** | 8 | 100.0 % |"
        );
        assert!(seconds_by_crate("<html>").is_err());
    }
}
