//! What becomes of rows of answers to compare.

use serde_json::json;

use super::*;
use crate::IGNORE_INDEX;
use crate::answers::Answer;
use crate::cache::tokenize_cached;
use crate::format::detect::detect;
use crate::row_set::RowSet;
use crate::supervise::Supervision;
use crate::tokenizer::tests::{CHATML, tokenizer};

fn options(format: Format, max_seq_length: usize) -> TokenizeOptions {
    DataOptions {
        format,
        template: None,
        supervision: Supervision::Responses,
        max_seq_length,
    }
    .into()
}

fn read(text: &str, options: &TokenizeOptions) -> Result<(RowSet, Outcome), DataError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, text).unwrap();
    let tokenizer = tokenizer(Some(CHATML));
    RowSet::load(
        &[Source::from_file(&path)],
        options,
        &tokenizer,
        &mut |_| {},
    )
}

/// Ids and labels of every row.
fn texts(rows: &RowSet) -> Vec<(Vec<u32>, Vec<i64>)> {
    let row = |row: crate::store::RowView<'_>| (row.input_ids.to_vec(), row.labels.to_vec());
    rows.iter().map(row).collect()
}

#[test]
fn a_pair_is_its_two_texts_one_behind_the_other() {
    let plain = options(Format::PromptCompletion, 64);
    let pairs = options(Format::Preference, 64);
    // A text, or messages.
    let prompt = |key: &str| match key {
        "text" => json!("ab"),
        _ => json!([{"role": "user", "content": "Hi"}]),
    };
    let answer = |key: &str, text: &str| match key {
        "text" => json!(text),
        _ => json!([{"role": "assistant", "content": text}]),
    };
    let one = |key: &str, text: &str| {
        json!({"prompt": prompt(key), "completion": answer(key, text)}).to_string()
    };
    let pair = |key: &str| {
        let (chosen, rejected) = (answer(key, "cde"), answer(key, "f"));
        json!({"prompt": prompt(key), "chosen": chosen, "rejected": rejected}).to_string()
    };
    for key in ["text", "chat"] {
        let lines = format!("{}\n{}\n", one(key, "cde"), one(key, "f"));
        let apart = texts(&read(&lines, &plain).unwrap().0);
        let (rows, outcome) = read(&pair(key), &pairs).unwrap();
        let row = rows.row(0).unwrap();
        let rejected = apart[0].0.len();
        assert_eq!(
            row.answers,
            crate::Answers::Pair {
                rejected,
                margin: None
            },
            "{key}"
        );
        assert_eq!(
            row.input_ids,
            [apart[0].0.clone(), apart[1].0.clone()].concat()
        );
        assert_eq!(
            *row.labels,
            [apart[0].1.clone(), apart[1].1.clone()].concat()
        );
        let batch = crate::Batch::from_rows(&rows, &[0]).unwrap();
        assert_eq!(batch.answers, [Answer::Good, Answer::Bad]);
        assert_eq!(batch.documents(), 2);
        assert_eq!(batch.position_ids[rejected], 0);
        let found = outcome.report.comparisons;
        // An answer and the token that ends it.
        assert_eq!(
            (found.pairs, found.chosen_tokens, found.rejected_tokens),
            (1, 4, 2)
        );
        assert_eq!(outcome.report.supervised_tokens, 6);
        assert_eq!(outcome.report.longest, apart[0].0.len());
        assert!(
            outcome
                .to_string()
                .contains("chosen answers are 2.00 times as long")
        );
    }
}

#[test]
fn findings_of_pairs() {
    let rows = [
        r#"{"prompt": "ab", "chosen": "c d", "rejected": " c  d "}"#,
        r#"{"prompt": "ab", "chosen": "c", "rejected": "  "}"#,
        r#"{"prompt": "ab", "chosen": "cdefghijklmn", "rejected": "o"}"#,
        r#"{"prompt": "abcdefghijklmn", "chosen": "o", "rejected": "p"}"#,
    ];
    let (kept, outcome) = read(&rows.join("\n"), &options(Format::Preference, 10)).unwrap();
    let lines = |finding: Finding| {
        let found = outcome.findings.get(&finding);
        let places = found.iter().flat_map(|found| &found.first);
        places.map(|place| place.line).collect::<Vec<_>>()
    };
    assert_eq!(lines(Finding::SameAnswers), [1]);
    assert_eq!(lines(Finding::EmptyAnswer), [2]);
    assert_eq!(lines(Finding::LostEnd), [3]);
    assert_eq!(lines(Finding::Truncated), [3, 4]);
    // Its prompt fills the limit: nothing is left to compare.
    assert_eq!(lines(Finding::WithoutSupervision), [4]);
    assert!(!outcome.findings.is_sound());
    let third = kept.row(2).unwrap();
    let lengths: Vec<usize> = third
        .answers
        .texts(third.input_ids.len())
        .map(|(text, _)| text.len())
        .collect();
    assert_eq!(lengths[0], 10);
    assert!(lengths[1] < 10);
    assert_eq!((kept.len(), kept.longest_text()), (3, 10));
    let mut drops = options(Format::Preference, 10);
    drops.overlong = Overlong::Drop;
    assert_eq!(read(&rows.join("\n"), &drops).unwrap().0.len(), 2);
}

#[test]
fn margins_are_kept_through_a_cache_and_tell_rows_apart() {
    let rows = r#"{"prompt": "ab", "chosen": "c", "rejected": "d", "margin": 0.5}
{"prompt": "ab", "chosen": "c", "rejected": "d", "margin": -2}
{"prompt": "ab", "chosen": "c", "rejected": "d", "margin": null}
{"prompt": "ab", "chosen": "c", "rejected": "d"}
"#;
    let options = options(Format::Preference, 10);
    let (read_at_once, outcome) = read(rows, &options).unwrap();
    assert_eq!(outcome.report.duplicates, 1);
    assert_eq!(outcome.findings.iter().count(), 1);
    let found = outcome.report.comparisons.margins.unwrap();
    assert_eq!((found.pairs, found.mean()), (2, -0.75));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows).unwrap();
    let sources = [Source::from_file(&path)];
    let tokenizer = tokenizer(Some(CHATML));
    let cached = || {
        let found = tokenize_cached(&sources, &options, &tokenizer, folder.path(), &mut |_| {});
        let found = found.unwrap();
        (RowSet::new(found.rows, &sources), found.outcome, found.hit)
    };
    for hit in [false, true] {
        let (kept, told, was_there) = cached();
        assert_eq!((&told.report, was_there), (&outcome.report, hit));
        assert_eq!(told.findings.iter().count(), 1);
        let margins: Vec<Option<f32>> = kept.iter().map(|row| row.answers.margin()).collect();
        assert_eq!(margins, [Some(0.5), Some(-2.0), None, None]);
        assert_eq!(kept.fingerprint(), read_at_once.fingerprint());
        let batch = crate::Batch::from_rows(&kept, &[1, 3]).unwrap();
        assert_eq!(batch.margins, [-2.0, -2.0, 0.0, 0.0]);
    }
    let other = read(&rows.replace("0.5", "0.25"), &options).unwrap().0;
    assert_ne!(other.fingerprint(), read_at_once.fingerprint());
}

#[test]
fn judged_answers_keep_their_label() {
    let rows = r#"{"prompt": "ab", "completion": "c", "label": true}
{"prompt": "ab", "completion": "c", "label": false}
{"prompt": "ab", "completion": "d", "label": false}
"#;
    let (kept, outcome) = read(rows, &options(Format::Unpaired, 10)).unwrap();
    let batch = crate::Batch::from_rows(&kept, &[0, 1, 2]).unwrap();
    assert_eq!(batch.answers, [Answer::Good, Answer::Bad, Answer::Bad]);
    assert_eq!(outcome.report.duplicates, 0);
    assert_eq!(
        outcome.report.comparisons.desirable_share(),
        Some(1.0 / 3.0)
    );
    // Another label is another row.
    let fingerprint = |text: &str| {
        read(text, &options(Format::Unpaired, 10))
            .unwrap()
            .0
            .fingerprint()
    };
    assert_ne!(
        fingerprint(rows),
        fingerprint(&rows.replace("false", "true"))
    );
}

#[test]
fn the_cache_gives_back_what_answers_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let tokenizer = tokenizer(Some(CHATML));
    for (text, format) in [
        (
            r#"{"prompt": "ab", "chosen": "cd", "rejected": "e"}"#,
            Format::Preference,
        ),
        (
            r#"{"prompt": "ab", "completion": "cd", "label": false}"#,
            Format::Unpaired,
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let sources = [Source::from_file(&path)];
        let detected = detect(&sources[0], &[], 0).unwrap();
        assert_eq!(detected.format, format);
        let options = options(format, 64);
        let memory = RowSet::load(&sources, &options, &tokenizer, &mut |_| {})
            .unwrap()
            .0;
        for hit in [false, true] {
            let cached =
                tokenize_cached(&sources, &options, &tokenizer, folder.path(), &mut |_| {})
                    .unwrap();
            assert_eq!(cached.hit, hit);
            let cached = RowSet::new(cached.rows, &sources);
            assert_eq!(cached.row(0), memory.row(0));
            assert_eq!(cached.fingerprint(), memory.fingerprint());
        }
    }
}

#[test]
fn rows_that_cannot_be_compared_are_named() {
    let message = |text: &str, options: &TokenizeOptions| {
        let error = read(text, options).unwrap_err().to_string();
        error
            .rsplit_once('/')
            .map_or(error.clone(), |(_, rest)| rest.to_owned())
    };
    let good = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    let bad = r#"{"prompt": "a", "chosen": "b", "rejected": 3}"#;
    assert_eq!(
        message(&format!("{good}\n{bad}\n"), &options(Format::Preference, 8)),
        "rows.jsonl, line 2, field `rejected`: expected a string, found the number 3"
    );
    let mut everything = options(Format::Preference, 8);
    everything.data.supervision = Supervision::All;
    assert!(message(good, &everything).starts_with("train_on: expected"));
    let mut splits = options(Format::Preference, 8);
    splits.overlong = Overlong::Split;
    assert!(message(good, &splits).starts_with("overlong: expected"));
    // No label of ours, so no judgement.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(
        &path,
        r#"{"prompt": "a", "completion": "b", "label": "spam"}"#,
    )
    .unwrap();
    let detected = detect(&Source::from_file(&path), &[], 0).unwrap();
    assert_eq!(detected.format, Format::PromptCompletion);
    let labels = read(good, &options(Format::Preference, 8)).unwrap().0;
    assert_eq!(labels.row(0).unwrap().labels[0], IGNORE_INDEX);
}
