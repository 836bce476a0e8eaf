use std::path::Path;

use super::*;
use crate::format::{FieldMap, Format};
use crate::options::DataOptions;
use crate::supervise::Supervision;
use crate::tokenizer::tests::{CHATML, tokenizer};

fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> Source {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    Source::from_file(&path)
}

fn options(max_seq_length: usize) -> TokenizeOptions {
    TokenizeOptions {
        skip_bad_rows: 1,
        ..DataOptions {
            format: Format::Alpaca,
            template: None,
            supervision: Supervision::Responses,
            max_seq_length,
        }
        .into()
    }
}

fn rows(count: usize) -> String {
    let row = |i| {
        format!(
            "{{\"instruction\":\"{i}\",\"output\":\"{}\"}}\n",
            "é".repeat(i % 7)
        )
    };
    (0..count).map(row).collect()
}

fn load(sources: &[Source], options: &TokenizeOptions, template: &str, cache: &Path) -> Cached {
    tokenize_cached(
        sources,
        options,
        &tokenizer(Some(template)),
        cache,
        &mut |_| {},
    )
    .unwrap()
}

#[test]
fn the_file_holds_what_memory_would() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let text = format!("{}nonsense\n{}", rows(700), rows(5));
    let sources = [
        write(&folder, "a.jsonl", &text),
        write(&folder, "b.jsonl", &rows(3)),
    ];
    let cached = load(&sources, &options(30), CHATML, &cache);
    let mut memory = TokenRows::default();
    let tokenizer = tokenizer(Some(CHATML));
    let outcome = tokenize(&sources, &options(30), &tokenizer, &mut memory, &mut |_| {}).unwrap();
    assert_eq!(cached.outcome, outcome);
    assert_eq!(outcome.source_rows, [705, 3]);
    assert_eq!((cached.rows.len(), memory.len()), (708, 708));
    for row in 0..708 {
        assert_eq!(cached.rows.row(row), memory.row(row));
    }
    assert_eq!(cached.rows.lengths(), memory.lengths());
    assert_eq!(cached.rows.keys(), memory.keys());
    let again = load(&sources, &options(30), CHATML, &cache);
    assert!(again.hit && !cached.hit);
    assert_eq!(again.outcome, outcome);
    assert_eq!(again.rows.keys(), memory.keys());
}

#[test]
fn anything_that_matters_makes_another_file() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let source = write(&folder, "a.jsonl", &rows(3));
    let first = load(std::slice::from_ref(&source), &options(30), CHATML, &cache).path;
    let other = CHATML.replace("\n", "\\n\\n");
    let supervision = TokenizeOptions {
        data: DataOptions {
            supervision: Supervision::All,
            ..options(30).data
        },
        ..options(30)
    };
    let overlapping = TokenizeOptions {
        split_overlap: 2,
        ..options(30)
    };
    let own = source.clone().with_rows(
        Format::PromptCompletion,
        FieldMap::new(
            Format::PromptCompletion,
            [("prompt", "instruction"), ("completion", "output")],
        )
        .unwrap(),
    );
    let different = [
        load(&[own], &options(30), CHATML, &cache),
        load(std::slice::from_ref(&source), &options(29), CHATML, &cache),
        load(std::slice::from_ref(&source), &options(30), &other, &cache),
        load(std::slice::from_ref(&source), &supervision, CHATML, &cache),
        load(std::slice::from_ref(&source), &overlapping, CHATML, &cache),
        load(
            &[source.clone(), source.clone()],
            &options(30),
            CHATML,
            &cache,
        ),
        load(
            &[write(&folder, "a.jsonl", &rows(4))],
            &options(30),
            CHATML,
            &cache,
        ),
    ];
    let mut paths: Vec<_> = different.iter().map(|cached| &cached.path).collect();
    assert!(different.iter().all(|cached| !cached.hit));
    paths.push(&first);
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), different.len() + 1);
}

#[test]
fn a_damaged_file_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let source = [write(&folder, "a.jsonl", &rows(3))];
    let first = load(&source, &options(30), CHATML, folder.path());
    let keys = first.rows.keys();
    let path = first.path.clone();
    drop(first);
    let sound = std::fs::read(&path).unwrap();
    std::fs::write(&path, &sound[..sound.len() / 2]).unwrap();
    let second = load(&source, &options(30), CHATML, folder.path());
    assert!(!second.hit);
    assert_eq!(second.rows.keys(), keys);
}

#[test]
fn nothing_is_left_of_work_that_failed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let source = [write(&folder, "a.jsonl", &format!("{}x\nx\n", rows(2)))];
    let error = tokenize_cached(
        &source,
        &options(30),
        &tokenizer(Some(CHATML)),
        &cache,
        &mut |_| {},
    )
    .unwrap_err();
    assert!(matches!(error, DataError::TooManyBadRows { limit: 1, .. }));
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);
}

/// A file where the folder should be, as where `HOME` is no directory.
#[test]
fn a_cache_that_cannot_be_written_is_no_reason_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let source = [write(&folder, "a.jsonl", &rows(5))];
    let sound = load(&source, &options(30), CHATML, &folder.path().join("cache"));
    let file = folder.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let aside = load(&source, &options(30), CHATML, &file.join("tokens"));
    assert!(sound.problem.is_none());
    let problem = aside.problem.unwrap();
    assert!(matches!(problem, DataError::Cache { .. }), "{problem}");
    assert!(!aside.hit);
    assert_eq!(aside.outcome, sound.outcome);
    assert_eq!(aside.rows.keys(), sound.rows.keys());
    assert_eq!(aside.rows.row(4), sound.rows.row(4));
    assert!(matches!(aside.rows, TokenRows::File(_)));
    assert_eq!(std::fs::read_to_string(file).unwrap(), "mine");
}
