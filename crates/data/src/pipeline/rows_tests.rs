//! What becomes of the rows of one file.

use std::io::Write;

use super::*;
use crate::IGNORE_INDEX;
use crate::answers::Comparisons;
use crate::options::DataOptions;
use crate::prompt_template::PromptTemplate;
use crate::row_set::RowSet;
use crate::supervise::Supervision;
use crate::tokenizer::tests::{BOS, CHATML, END, EOS, START, tokenizer};

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

fn load(
    path: &Path,
    options: &DataOptions,
    tokenizer: &ChatTokenizer,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<(RowSet, Outcome), DataError> {
    let options = TokenizeOptions::from(options.clone());
    RowSet::load(&[Source::from_file(path)], &options, tokenizer, progress)
}

fn read(contents: &str, options: &DataOptions) -> Result<(RowSet, Outcome), DataError> {
    load(
        file(contents).path(),
        options,
        &tokenizer(Some(CHATML)),
        &mut |_| {},
    )
}

fn lines(rows: &RowSet) -> Vec<usize> {
    rows.iter().map(|row| row.line).collect()
}

/// The lines of rows that have nothing to train.
fn dropped(outcome: &Outcome) -> Vec<usize> {
    let found = outcome.findings.get(&Finding::WithoutSupervision).unwrap();
    found.first.iter().map(|place| place.line).collect()
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
        let (rows, Outcome { report, .. }) = read.unwrap();
        let kept = length.min(13);
        let row = rows.row(0).unwrap();
        assert_eq!(row.input_ids, &IDS[..kept]);
        assert_eq!(*row.labels, LABELS[..kept]);
        assert_eq!(report.truncated, usize::from(length < 13));
        assert_eq!(report.supervised_tokens, if length == 11 { 1 } else { 2 });
        assert_eq!((report.tokens, report.longest), (kept as u64, 13));
    }
}

#[test]
fn reports_every_row() {
    let question = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}\n";
    let long = CHAT.replace("\"B\"", "\"BBBB\"");
    let (rows, outcome) = read(
        &format!("{CHAT}\n{question}{long}{question}"),
        &options(Format::Messages, 14),
    )
    .unwrap();
    let report = &outcome.report;
    let expected = DataReport {
        rows: 4,
        kept: 2,
        truncated: 1,
        dropped: 2,
        tokens: 13 + 14,
        supervised_tokens: 2 + 4,
        longest: 16,
        open_turns: 0,
        duplicates: 1,
        lengths: report.lengths.clone(),
        comparisons: Comparisons::default(),
    };
    assert!(report.lengths.classes().eq([(0, 16, 4)]));
    assert_eq!(*report, expected);
    assert_eq!(dropped(&outcome), [3, 5]);
    assert_eq!(lines(&rows), [1, 4]);
    assert_eq!(supervised_tokens(&rows.row(1).unwrap().labels), 4);
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
    let (_, outcome) = load(file.path(), &all, &tokenizer, &mut |_| {}).unwrap();
    assert_eq!(dropped(&outcome), [1, 2]);
    assert_eq!(outcome.report.supervised_tokens, 1);
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
        let (rows, outcome) = pool.install(|| {
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
        (rows.fingerprint(), lines(&rows), outcome, seen)
    };
    let one = load_on(1);
    assert_eq!(load_on(4), one);
    let (_, lines, outcome, progress) = one;
    assert_eq!(progress, [512, 1024, 1536, 2000]);
    assert_eq!(outcome.report.kept, 2_000);
    assert!(lines.into_iter().eq(1..=2_000));
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
    let error = read("\n\n\"a\"\n", &options(Format::Text, 8))
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("line 3, field `(row)`: expected a JSON object, found the string \"a\""),
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
    assert!(matches!(empty, Err(DataError::NoRows { .. })));
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
    let options = TokenizeOptions::from(options(Format::Messages, 4));
    let load = |path: &Path| load_prompts(&Source::from_file(path), &options, &tokenizer, 2);
    let prompts = load(file.path()).unwrap();
    let expected = |line| Prompt {
        input_ids: IDS[..10].to_vec(),
        text: "<|im_start|>u\nHi<|im_end|>\n<|im_start|>a\n".into(),
        answer: "B".into(),
        line,
    };
    assert_eq!(prompts, [expected(1), expected(2)]);
    let file = self::file("{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}]}\n");
    let error = load(file.path()).unwrap_err().to_string();
    assert!(error.ends_with("field `messages[0].role`: expected \"assistant\" in the last message, to compare with, found \"user\""), "{error}");
}

/// Rows of every format with the ids and the labels of every supervision, written out by hand.
/// `<|im_start|>` is START, `<|im_end|>` END, `<s>` BOS, `</s>` EOS; every other token is a byte.
#[test]
fn every_format_and_supervision_gives_exact_pairs_at_every_length() {
    use Supervision::{All, Completion, LastTurn, Responses};
    const E: i64 = END as i64;
    const S: i64 = EOS as i64;
    let two = "[{\"role\":\"user\",\"content\":\"1\"},{\"role\":\"assistant\",\"content\":\"2\"},\
               {\"role\":\"user\",\"content\":\"3\"},{\"role\":\"assistant\",\"content\":\"4\"}]";
    let messages = format!("{{\"messages\":{two}}}");
    let unweighted = messages.replacen("\"2\"}", "\"2\",\"weight\":0}", 1);
    let sharegpt = "{\"conversations\":[{\"from\":\"human\",\"value\":\"1\"},{\"from\":\"gpt\",\"value\":\"2\"},\
                    {\"from\":\"human\",\"value\":\"3\"},{\"from\":\"gpt\",\"value\":\"4\"}]}";
    let chat_completion = "{\"prompt\":[{\"role\":\"user\",\"content\":\"1\"},{\"role\":\"assistant\",\"content\":\"2\"},\
                    {\"role\":\"user\",\"content\":\"3\"}],\"completion\":[{\"role\":\"assistant\",\"content\":\"4\"}]}";
    let chat_ids = [
        START, 117, 10, 49, END, 10, START, 97, 10, 50, END, 10, START, 117, 10, 51, END, 10,
        START, 97, 10, 52, END, 10,
    ];
    let chat_responses = [
        X, X, X, X, X, X, X, X, X, 50, E, X, X, X, X, X, X, X, X, X, X, 52, E, X,
    ];
    let chat_last = [
        X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, 52, E, X,
    ];
    let alpaca = "{\"instruction\":\"q\",\"input\":\"i\",\"output\":\"a\"}";
    let alpaca_ids = [
        START, 117, 10, 113, 10, 10, 105, END, 10, START, 97, 10, 97, END, 10,
    ];
    let alpaca_answer = [X, X, X, X, X, X, X, X, X, X, X, X, 97, E, X];
    let texts = "{\"prompt\":\"q\",\"completion\":\"ab\"}";
    let texts_ids = [BOS, 113, 97, 98, EOS];
    let texts_answer = [X, X, 97, 98, S];
    let text = "{\"text\":\"ab\"}";
    let text_ids = [BOS, 97, 98, EOS];
    let whole = |ids: &[u32]| -> Vec<i64> { ids.iter().map(|id| i64::from(*id)).collect() };
    let (chat_all, alpaca_all) = (whole(&chat_ids), whole(&alpaca_ids));
    let (texts_all, text_all) = (whole(&texts_ids), whole(&text_ids));

    type Case<'a> = (Format, &'a str, Supervision, &'a [u32], &'a [i64]);
    let cases: [Case<'_>; 22] = [
        (
            Format::Messages,
            &messages,
            Responses,
            &chat_ids,
            &chat_responses,
        ),
        (Format::Messages, &messages, LastTurn, &chat_ids, &chat_last),
        (Format::Messages, &messages, All, &chat_ids, &chat_all),
        (
            Format::Messages,
            &unweighted,
            Responses,
            &chat_ids,
            &chat_last,
        ),
        (
            Format::Messages,
            &unweighted,
            LastTurn,
            &chat_ids,
            &chat_last,
        ),
        (
            Format::Sharegpt,
            sharegpt,
            Responses,
            &chat_ids,
            &chat_responses,
        ),
        (Format::Sharegpt, sharegpt, LastTurn, &chat_ids, &chat_last),
        (Format::Sharegpt, sharegpt, All, &chat_ids, &chat_all),
        (
            Format::PromptCompletion,
            chat_completion,
            Responses,
            &chat_ids,
            &chat_last,
        ),
        (
            Format::PromptCompletion,
            chat_completion,
            LastTurn,
            &chat_ids,
            &chat_last,
        ),
        (
            Format::PromptCompletion,
            chat_completion,
            All,
            &chat_ids,
            &chat_all,
        ),
        (
            Format::PromptCompletion,
            texts,
            Responses,
            &texts_ids,
            &texts_answer,
        ),
        (
            Format::PromptCompletion,
            texts,
            LastTurn,
            &texts_ids,
            &texts_answer,
        ),
        (
            Format::PromptCompletion,
            texts,
            Completion,
            &texts_ids,
            &texts_answer,
        ),
        (Format::PromptCompletion, texts, All, &texts_ids, &texts_all),
        (
            Format::Alpaca,
            alpaca,
            Responses,
            &alpaca_ids,
            &alpaca_answer,
        ),
        (
            Format::Alpaca,
            alpaca,
            LastTurn,
            &alpaca_ids,
            &alpaca_answer,
        ),
        (
            Format::Alpaca,
            alpaca,
            Completion,
            &alpaca_ids,
            &alpaca_answer,
        ),
        (Format::Alpaca, alpaca, All, &alpaca_ids, &alpaca_all),
        (Format::Text, text, Responses, &text_ids, &text_all),
        (Format::Text, text, LastTurn, &text_ids, &text_all),
        (Format::Text, text, All, &text_ids, &text_all),
    ];
    let tokenizer = tokenizer(Some(CHATML));
    for (format, row, supervision, ids, labels) in cases {
        let file = file(row);
        for length in 2..=ids.len() + 1 {
            let what = format!("{format} {supervision:?} at {length}: {row}");
            let options = DataOptions {
                supervision,
                ..options(format, length)
            };
            let kept = length.min(ids.len());
            let read = load(file.path(), &options, &tokenizer, &mut |_| {});
            if supervised_tokens(&labels[..kept]) == 0 {
                let error = read.unwrap_err();
                assert!(matches!(error, DataError::NothingToTrain { .. }), "{what}");
                continue;
            }
            let (rows, _) = read.unwrap();
            let view = rows.row(0).unwrap();
            assert_eq!(view.input_ids, &ids[..kept], "{what}");
            assert_eq!(*view.labels, labels[..kept], "{what}");
        }
    }
}
