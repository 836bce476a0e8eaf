//! What a look at the data found, for people.

use backdraft_data::{BrokenRows, Comparisons, Finding, Outcome, RowCounts};
use backdraft_recipe::RowBatching;
use backdraft_train::data::{DataCheck, SourceCheck};

use crate::plain::{count, filled, group, wrapped};

/// Sources, rows, batches and findings, on a few lines without the last line break.
pub(crate) fn text(check: &DataCheck, columns: Option<usize>) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    rows.extend(check.sources.iter().map(|s| ("source", source(s))));
    rows.push(("rows", became(&check.train, check.train_rows)));
    rows.extend(check.eval_sources.iter().map(|s| ("held out", source(s))));
    match (&check.eval, check.eval_rows) {
        (Some(outcome), Some(counts)) => rows.push(("held out", became(outcome, counts))),
        (None, Some(held)) => {
            rows.push(("held out", format!("{}; a share of the rows", counts(held))))
        }
        _ => {}
    }
    for set in &check.eval_sets {
        let sources = set.sources.iter();
        rows.extend(sources.map(|s| ("held out", format!("{}: {}", set.name, source(s)))));
        let became = became(&set.outcome, set.rows);
        rows.push(("held out", format!("{}: {became}", set.name)));
    }
    rows.push(("batches", batches(check)));
    let cached = check.cache.iter().filter(|cache| cache.problem.is_none());
    rows.extend(cached.map(|cache| {
        let how = if cache.hit { "found" } else { "made" };
        ("cache", format!("{how} {}", cache.path.display()))
    }));
    let comparisons = check.train.report.comparisons;
    if !comparisons.is_empty() {
        rows.push(("answers", answers(&comparisons)));
    }
    let mut text = wrapped(&rows, columns);
    for note in comparisons.notes() {
        text.push_str(&format!("note: {note}\n"));
    }
    for note in check.notes() {
        text.push_str(&format!("note: {note}\n"));
    }
    for (name, outcome) in [
        ("", Some(&check.train)),
        ("held out: ", check.eval.as_ref()),
    ] {
        if let Some(outcome) = outcome {
            text.push_str(&broken(name, &outcome.broken, true));
        }
        let findings = outcome.iter().flat_map(|outcome| outcome.findings.iter());
        for (finding, found) in findings.filter(|(finding, _)| **finding != Finding::Skipped) {
            text.push_str(&finding_lines(name, finding, found.rows, outcome));
        }
    }
    if !check.foreign_markers.is_empty() {
        let markers = check.foreign_markers.join(", ");
        text.push_str(&match check.template_ends_turns {
            true => format!("note: the chat template writes {markers} as plain text\n"),
            false => format!(
                "problem: the chat template writes {markers}, which this model does not have as tokens\n  \
                 next: use the template that belongs to the model, or one that needs no special tokens\n"
            ),
        });
    }
    if check.eval_rows_seen > 0 {
        text.push_str(&format!(
            "note: {}; eval loss will look better than it is\n",
            match check.eval_rows_seen {
                1 => "1 held-out row is also a training row".to_owned(),
                rows => format!(
                    "{} held-out rows are also training rows",
                    group(rows as u64)
                ),
            }
        ));
    }
    for set in check.eval_sets.iter().filter(|set| set.rows_seen > 0) {
        text.push_str(&format!(
            "note: {} of the held-out set {} also learned from\n",
            count(set.rows_seen as u64, "row"),
            match set.rows_seen {
                1 => format!("{} is", set.name),
                _ => format!("{} are", set.name),
            }
        ));
    }
    filled(text.trim_end(), columns)
}

/// What a look at all rows found where some cannot be used.
pub(crate) fn survey(outcome: &Outcome, columns: Option<usize>) -> String {
    let report = &outcome.report;
    let skipped = outcome.findings.get(&Finding::Skipped);
    let usable = report.rows - skipped.map_or(0, |found| found.rows);
    let rows = format!(
        "{} read, {} usable; longest {}",
        count(report.rows as u64, "row"),
        group(usable as u64),
        count(report.longest as u64, "token")
    );
    let mut text = wrapped(&[("rows", rows)], columns);
    for note in &outcome.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text.push_str(&broken("", &outcome.broken, false));
    for (finding, found) in outcome.findings.iter() {
        if *finding != Finding::Skipped {
            text.push_str(&finding_lines("", finding, found.rows, Some(outcome)));
        }
    }
    text.trim_end().to_owned()
}

/// What is wrong with rows that cannot be used, a kind each.
pub(crate) fn broken_kinds(broken: &BrokenRows) -> Vec<String> {
    let kinds = broken.kinds().iter();
    let told = kinds.map(|kind| {
        let first = kind.first.first().map_or("", |row| &row.problem);
        let rows = count(kind.rows as u64, "row");
        format!("{rows}: {}; first: {first}", kind.kind)
    });
    told.collect()
}

/// Rows that cannot be used, by what is wrong with them; `allowed` says that skip_bad_rows covers them.
fn broken(name: &str, broken: &BrokenRows, allowed: bool) -> String {
    let rows = broken.rows();
    if rows == 0 {
        return String::new();
    }
    let counted = |rows: usize| count(rows as u64, "row");
    let mut text = format!("problem: {name}{} cannot be used\n", counted(rows));
    for kind in broken.kinds() {
        text.push_str(&format!("  {}: {}\n", counted(kind.rows), kind.kind));
        for row in &kind.first {
            text.push_str(&format!("    {}\n", row.problem));
        }
        if kind.rows > kind.first.len() {
            text.push_str("    …\n");
        }
    }
    text.push_str(&match allowed {
        true => "  next: fix them; training skips them, as skip_bad_rows allows\n".to_owned(),
        false => format!("  next: fix them, or skip them with --skip-bad-rows {rows}\n"),
    });
    text
}

fn source(source: &SourceCheck) -> String {
    let mut text = format!("{}: {}", source.name, source.format);
    if source.files != 1 {
        text.push_str(&format!(", {}", count(source.files as u64, "file")));
    }
    text.push_str(&format!(", {}", count(source.rows as u64, "row")));
    if source.weight != 1.0 {
        let weight = (1e4 * source.weight).round() / 1e4;
        let visits = group(source.rows_per_epoch as u64);
        text.push_str(&format!(", weight {weight}: {visits} an epoch"));
    }
    text
}

/// Counts, and what was lost on the way.
fn became(outcome: &Outcome, kept: RowCounts) -> String {
    let report = &outcome.report;
    let mut text = counts(kept);
    for (number, what) in [
        (outcome.broken.rows(), "skipped as broken"),
        (report.dropped, "left out"),
        (report.truncated, "cut"),
    ] {
        if number > 0 {
            text.push_str(&format!("; {} {what}", group(number as u64)));
        }
    }
    if report.duplicates > 0 {
        text.push_str(&format!(
            "; {}",
            count(report.duplicates as u64, "duplicate")
        ));
    }
    text.push_str(&format!(
        "; longest {}",
        count(report.longest as u64, "token")
    ));
    text
}

fn counts(counts: RowCounts) -> String {
    format!(
        "{}, {}, {} supervised",
        count(counts.rows as u64, "row"),
        count(counts.tokens, "token"),
        group(counts.supervised_tokens)
    )
}

/// How answers to compare divide.
fn answers(comparisons: &Comparisons) -> String {
    let mut parts = Vec::new();
    if comparisons.pairs > 0 {
        let pairs = comparisons.pairs as f64;
        let mean = |tokens: u64| tokens as f64 / pairs;
        let ratio = comparisons.length_ratio().unwrap_or(f64::NAN);
        parts.push(format!(
            "{}; tokens on average: {:.1} chosen, {:.1} rejected (ratio {ratio:.2}); chosen longer in {}, rejected in {}",
            count(comparisons.pairs as u64, "pair"),
            mean(comparisons.chosen_tokens),
            mean(comparisons.rejected_tokens),
            group(comparisons.chosen_longer as u64),
            group(comparisons.rejected_longer as u64),
        ));
    }
    if let Some(margins) = comparisons.margins {
        parts.push(format!(
            "{} with a margin, from {} to {}, {:.2} on average",
            count(margins.pairs as u64, "pair"),
            margins.lowest,
            margins.highest,
            margins.mean()
        ));
    }
    if let Some(share) = comparisons.desirable_share() {
        parts.push(format!(
            "{} desirable, {} undesirable ({:.1} % desirable)",
            group(comparisons.desirable as u64),
            group(comparisons.undesirable as u64),
            100.0 * share
        ));
    }
    parts.join("; ")
}

fn batches(check: &DataCheck) -> String {
    let density = check.density;
    let packs = match check.batching {
        RowBatching::Packed => format!("{}, ", count(density.packs as u64, "pack")),
        _ => String::new(),
    };
    let padding = match density.wasted() {
        0 => "no padding".to_owned(),
        wasted => format!(
            "{:.2} % full, {} of {} positions are padding",
            100.0 * density.density(),
            group(wasted),
            group(density.places)
        ),
    };
    format!(
        "{}: {} per epoch, {packs}{}, {padding}",
        check.batching,
        count(density.rows as u64, "row"),
        count(density.micro_batches as u64, "micro-batch"),
    )
}

fn finding_lines(name: &str, finding: &Finding, rows: usize, outcome: Option<&Outcome>) -> String {
    let level = if finding.is_problem() {
        "problem"
    } else {
        "note"
    };
    let found = outcome.and_then(|outcome| outcome.findings.get(finding));
    let places: Vec<String> = found
        .iter()
        .flat_map(|found| &found.first)
        .take(3)
        .map(ToString::to_string)
        .collect();
    let more = if rows > places.len() { "; …" } else { "" };
    format!(
        "{level}: {name}{} {}\n  first: {}{more}\n  next: {}\n",
        group(rows as u64),
        finding.summary(rows),
        places.join("; "),
        finding.next_step()
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use backdraft_data::{Density, Findings};
    use backdraft_train::data::CacheUse;
    use insta::assert_snapshot;

    use super::*;

    #[test]
    fn says_what_was_found() {
        let mut outcome = Outcome::default();
        outcome.report.rows = 1_205;
        outcome.report.kept = 1_200;
        outcome.report.dropped = 5;
        outcome.report.truncated = 2;
        outcome.report.longest = 3_000;
        let mut findings = Findings::default();
        for line in 1..=5 {
            findings.add(Finding::WithoutSupervision, Path::new("a.jsonl"), line);
        }
        findings.add(Finding::Truncated, Path::new("a.jsonl"), 7);
        findings.add(Finding::Truncated, Path::new("a.jsonl"), 9);
        outcome.findings = findings;
        let source = |name: &str, files, weight| SourceCheck {
            name: name.into(),
            files,
            format: "format \"text\" (the first 64 rows have text)".into(),
            rows: 600,
            weight,
            rows_per_epoch: (600.0 * weight) as usize,
        };
        let counts = |rows, tokens, supervised_tokens| RowCounts {
            rows,
            tokens,
            supervised_tokens,
        };
        let check = DataCheck {
            sources: vec![source("a.jsonl", 1, 1.0), source("docs", 12, 0.5)],
            train: outcome,
            train_rows: counts(1_140, 123_456, 34_567),
            eval_sources: Vec::new(),
            eval: None,
            eval_rows: Some(counts(60, 6_000, 2_000)),
            eval_rows_seen: 3,
            eval_sets: Vec::new(),
            batching: RowBatching::Packed,
            density: Density {
                rows: 840,
                packs: 50,
                micro_batches: 25,
                tokens: 98_000,
                places: 102_400,
            },
            foreign_markers: vec!["<|eot_id|>".into()],
            template_ends_turns: false,
            cache: vec![CacheUse {
                path: "/c/x.tokens".into(),
                hit: true,
                problem: None,
            }],
        };
        assert!(!check.is_sound());
        assert_snapshot!(text(&check, None), @r#"
        source    a.jsonl: format "text" (the first 64 rows have text), 600 rows
        source    docs: format "text" (the first 64 rows have text), 12 files, 600 rows, weight 0.5: 300 an epoch
        rows      1,140 rows, 123,456 tokens, 34,567 supervised; 5 left out; 2 cut; longest 3,000 tokens
        held out  60 rows, 6,000 tokens, 2,000 supervised; a share of the rows
        batches   packed: 840 rows per epoch, 50 packs, 25 micro-batches, 95.70 % full, 4,400 of 102,400 positions are padding
        cache     found /c/x.tokens
        problem: 5 rows have no supervised token and were left out
          first: a.jsonl, line 1; a.jsonl, line 2; a.jsonl, line 3; …
          next: check that they hold answers; raise max_seq_length if they were cut
        note: 2 rows are longer than max_seq_length and were cut
          first: a.jsonl, line 7; a.jsonl, line 9
          next: raise max_seq_length, or shorten them
        problem: the chat template writes <|eot_id|>, which this model does not have as tokens
          next: use the template that belongs to the model, or one that needs no special tokens
        note: 3 held-out rows are also training rows; eval loss will look better than it is
        "#);
    }
}
