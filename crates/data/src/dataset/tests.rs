use std::io::Write;

use super::*;
use crate::tokenizer::tests::{CHATML, END, START, tokenizer};

const X: i64 = IGNORE_INDEX;

fn file(contents: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(contents.as_bytes()).unwrap();
    file
}

fn options(format: Format, max_seq_length: usize) -> DataOptions {
    DataOptions {
        format,
        template: None,
        supervision: Supervision::Responses,
        max_seq_length,
    }
}

fn read(contents: &str, options: &DataOptions) -> Result<Dataset, DataError> {
    load(
        file(contents).path(),
        options,
        &tokenizer(Some(CHATML)),
        &mut |_| {},
    )
}

const CHAT: &str = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"B\"}]}\n";
const IDS: [u32; 13] = [START, 117, 10, 72, 105, END, 10, START, 97, 10, 66, END, 10];
const LABELS: [i64; 13] = [X, X, X, X, X, X, X, X, X, X, 66, END as i64, X];

#[test]
fn truncation_at_every_length_keeps_a_prefix_or_drops_the_row() {
    // The answer begins at position 10: shorter rows have nothing to train.
    for length in 2..=14 {
        let read = read(CHAT, &options(Format::Messages, length));
        if length <= 10 {
            let error = read.unwrap_err();
            assert!(
                matches!(error, DataError::NothingToTrain { rows: 1, .. }),
                "{length}: {error}"
            );
            continue;
        }
        let Dataset { examples, report } = read.unwrap();
        let kept = length.min(13);
        assert_eq!(examples[0].input_ids, IDS[..kept]);
        assert_eq!(examples[0].labels, LABELS[..kept]);
        assert_eq!(report.truncated, usize::from(length < 13));
        assert_eq!(report.supervised_tokens, if length == 11 { 1 } else { 2 });
        assert_eq!((report.tokens, report.longest), (kept as u64, 13));
    }
}

#[test]
fn reports_every_row() {
    let question = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}\n";
    let long = CHAT.replace("\"B\"", "\"BBBB\"");
    let Dataset { examples, report } = read(
        &format!("{CHAT}\n{question}{long}{question}"),
        &options(Format::Messages, 14),
    )
    .unwrap();
    let expected = DataReport {
        rows: 4,
        kept: 2,
        truncated: 1,
        dropped: 2,
        dropped_lines: vec![3, 5],
        tokens: 13 + 14,
        supervised_tokens: 2 + 4,
        longest: 16,
        open_turns: 0,
        duplicates: 1,
        lengths: report.lengths.clone(),
    };
    assert!(report.lengths.classes().eq([(0, 16, 4)]));
    assert_eq!(report, expected);
    assert_eq!(
        examples
            .iter()
            .map(|example| example.line)
            .collect::<Vec<_>>(),
        [1, 4]
    );
    assert_eq!(examples[1].supervised_tokens(), 4);
}

#[test]
fn a_lone_first_label_is_no_target() {
    let all = DataOptions {
        supervision: Supervision::All,
        ..options(Format::Text, 8)
    };
    let tokenizer = crate::tokenizer::ChatTokenizer::new(
        &crate::tokenizer::tests::tokenizer_json(false),
        crate::tokenizer::SpecialTokens::default(),
        None,
    )
    .unwrap();
    let file = file("{\"text\":\"a\"}\n{\"text\":\"\"}\n{\"text\":\"ab\"}\n");
    let dataset = load(file.path(), &all, &tokenizer, &mut |_| {}).unwrap();
    assert_eq!(dataset.report.dropped_lines, [1, 2]);
    assert_eq!(dataset.report.supervised_tokens, 1);
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let rows: String = (0..2_000)
        .map(|i| {
            format!(
                "{{\"instruction\":\"{i}\",\"output\":\"{}\"}}\n",
                "x".repeat(i % 17)
            )
        })
        .collect();
    let file = file(&rows);
    let tokenizer = tokenizer(Some(CHATML));
    let load_on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        let mut seen = Vec::new();
        let dataset = pool.install(|| {
            let mut progress = |progress: LoadProgress| seen.push(progress.rows);
            // The callback need not be `Send`: it runs on the calling thread only.
            load(
                file.path(),
                &options(Format::Alpaca, 64),
                &tokenizer,
                &mut progress,
            )
            .unwrap()
        });
        (dataset, seen)
    };
    let (one, progress) = load_on(1);
    assert_eq!(load_on(4), (one.clone(), progress.clone()));
    assert_eq!(progress, [512, 1024, 1536, 2000]);
    assert_eq!(one.report.kept, 2_000);
    assert!(
        one.examples
            .iter()
            .map(|example| example.line)
            .eq(1..=2_000)
    );
}

#[test]
fn the_fingerprint_is_of_ids_and_labels_alone() {
    let example = |ids: &[u32], labels: &[i64], line| Example {
        input_ids: ids.to_vec(),
        labels: labels.to_vec(),
        line,
    };
    let print = |examples| {
        Dataset {
            examples,
            ..Dataset::default()
        }
        .fingerprint()
    };
    let one = print(vec![example(&[1, 2], &[X, 2], 1)]);
    // Computed outside this project.
    assert_eq!(
        one,
        "4dfa4ebcdacdfd13827b1a77db06d6cd1092e4d2aa9194ac2f59fe74cffac98a"
    );
    assert_eq!(one, print(vec![example(&[1, 2], &[X, 2], 9)]));
    assert_ne!(one, print(vec![example(&[1, 2], &[1, 2], 1)]));
    assert_ne!(
        one,
        print(vec![example(&[1], &[X], 1), example(&[2], &[2], 1)])
    );
}

#[test]
fn the_first_broken_line_is_named() {
    let good = "{\"text\":\"a\"}\n";
    let rows = format!("{}{{\"txt\":1}}\n{good}nonsense\n", good.repeat(700));
    let error = read(&rows, &options(Format::Text, 8))
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with(
            "line 701, field `text`: expected a string, found no such key (the keys are `txt`)"
        ),
        "{error}"
    );
    let error = read("\n\n[1]\n", &options(Format::Text, 8))
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("line 3, field `(row)`: expected a JSON object, found a list of 1"),
        "{error}"
    );
}

#[test]
fn refuses_options_that_cannot_work() {
    let message = |options: &DataOptions| read(CHAT, options).unwrap_err().to_string();
    assert_eq!(
        message(&options(Format::Messages, 1)),
        "max_seq_length: expected at least 2 tokens: one to see, one to predict, found 1"
    );
    let template = PromptTemplate::parse("{instruction}{output}").ok();
    assert_eq!(
        message(&DataOptions {
            template,
            ..options(Format::Messages, 8)
        }),
        "prompt_template: expected format \"alpaca\" beside it, found format \"messages\""
    );
    let missing = load(
        Path::new("/no/such/file"),
        &options(Format::Text, 8),
        &tokenizer(None),
        &mut |_| {},
    );
    assert!(matches!(missing, Err(DataError::Io { .. })));
    let empty = read("", &options(Format::Text, 8));
    assert!(matches!(
        empty,
        Err(DataError::NothingToTrain { rows: 0, .. })
    ));
}

#[test]
fn a_template_that_refuses_a_row_names_it() {
    let file = file(CHAT);
    let tokenizer = tokenizer(Some("{{ raise_exception('no users') }}"));
    let error = load(
        file.path(),
        &options(Format::Messages, 8),
        &tokenizer,
        &mut |_| {},
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("line 1: the template cannot render this row")
    );
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        source,
        "the chat template refuses the conversation: no users"
    );
}

#[test]
fn prompts_stop_where_the_last_answer_begins() {
    use crate::prompts::{Prompt, load_prompts};
    let file = file(&CHAT.repeat(3));
    let tokenizer = tokenizer(Some(CHATML));
    let prompts = load_prompts(file.path(), &options(Format::Messages, 4), &tokenizer, 2).unwrap();
    let expected = |line| Prompt {
        input_ids: IDS[..10].to_vec(),
        text: "<|im_start|>u\nHi<|im_end|>\n<|im_start|>a\n".into(),
        answer: "B".into(),
        line,
    };
    assert_eq!(prompts, [expected(1), expected(2)]);
    let file = self::file("{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}\n");
    let error = load_prompts(file.path(), &options(Format::Messages, 4), &tokenizer, 2)
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("field `messages[0].role`: expected \"assistant\" in the last message, to compare with, found \"user\""), "{error}");
}
