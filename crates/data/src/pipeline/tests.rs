use std::path::Path;

use super::*;
use crate::IGNORE_INDEX;
use crate::store::TokenRows;
use crate::supervise::Supervision;
use crate::tokenizer::tests::{CHATML, EOS, tokenizer};

fn write(folder: &tempfile::TempDir, name: &str, text: &str) -> Source {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    Source::from_file(&path)
}

fn options(format: Format, max_seq_length: usize) -> TokenizeOptions {
    DataOptions {
        format,
        template: None,
        supervision: Supervision::Responses,
        max_seq_length,
    }
    .into()
}

fn run(sources: &[Source], options: &TokenizeOptions) -> Result<(TokenRows, Outcome), DataError> {
    let mut rows = TokenRows::default();
    let tokenizer = tokenizer(Some(CHATML));
    let outcome = tokenize(sources, options, &tokenizer, &mut rows, &mut |_| {})?;
    Ok((rows, outcome))
}

const BROKEN: &str = "{\"text\":\"a\"}\nnope\n{\"txt\":\"b\"}\n{\"text\":\"c\"}\n{\"text\":1}\n";

#[test]
fn a_survey_reads_on_and_tells_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b.json");
    std::fs::write(&path, "[{\"text\":\"d\"}, {\"text\":\"e\"},]").unwrap();
    let mut sources = [
        write(&folder, "a.jsonl", &BROKEN.repeat(2)),
        write(
            &folder,
            "c.jsonl",
            "{\"text\":\"f\"}\n{\"text\":NaN}\n{\"text\":\"g\",\"n\":NaN}\n",
        ),
    ];
    sources[0]
        .files
        .push(Source::from_file(&path).files.remove(0));
    let tokenizer = tokenizer(Some(CHATML));
    let options = options(Format::Text, 8);
    let outcome = survey(&sources, &options, &tokenizer, &mut |_| {}).unwrap();
    // Seven of ten rows, two before the comma, two of three.
    assert_eq!((outcome.report.rows, outcome.report.kept), (15, 8));
    assert_eq!(outcome.broken.rows(), 8);
    let root = format!("{}/", folder.path().display());
    let kinds = outcome.broken.kinds().iter().map(|kind| {
        let first: Vec<_> = kind
            .first
            .iter()
            .map(|row| row.problem.replace(&root, ""))
            .collect();
        format!("{} {}\n  {}\n", kind.rows, kind.kind, first.join("\n  "))
    });
    insta::assert_snapshot!(kinds.collect::<String>(), @r#"
    2 broken JSON
      a.jsonl, line 2: expected one JSON object, found broken JSON: expected ident at column 2
      a.jsonl, line 7: expected one JSON object, found broken JSON: expected ident at column 2
    4 field `text`: expected a string
      a.jsonl, line 3, field `text`: expected a string, found no such key (the keys are `txt`)
      a.jsonl, line 5, field `text`: expected a string, found the number 1
      a.jsonl, line 8, field `text`: expected a string, found no such key (the keys are `txt`)
    1 expected a value
      b.json, line 1: expected a value, found a comma before `]`; remove it
    1 field `text`: expected a value that JSON has
      c.jsonl, line 2, field `text`: expected a value that JSON has, found NaN; write a number, a string or null
    "#);
    let none = [write(&folder, "d.jsonl", "nope\n")];
    let outcome = survey(&none, &options, &tokenizer, &mut |_| {}).unwrap();
    assert_eq!((outcome.report.kept, outcome.broken.rows()), (0, 1));
}

#[test]
fn bad_rows_are_listed_up_to_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [write(&folder, "a.jsonl", BROKEN)];
    let mut options = options(Format::Text, 8);
    options.skip_bad_rows = 3;
    let (rows, outcome) = run(&sources, &options).unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((outcome.report.rows, outcome.report.kept), (5, 2));
    let listed: Vec<_> = outcome
        .skipped
        .iter()
        .map(|row| {
            assert!(row.path.ends_with("a.jsonl"));
            format!("{}: {}", row.line, row.problem.split_once(": ").unwrap().1)
        })
        .collect();
    insta::assert_snapshot!(listed.join("\n"), @r#"
    2: expected one JSON object, found broken JSON: expected ident at column 2
    3: expected a string, found no such key (the keys are `txt`)
    5: expected a string, found the number 1
    "#);
    assert_eq!(outcome.findings.get(&Finding::Skipped).unwrap().rows, 3);

    options.skip_bad_rows = 2;
    let error = run(&sources, &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "more than 2 rows cannot be used; the next one is"
    );
    let next = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        next.ends_with("line 5, field `text`: expected a string, found the number 1"),
        "{next}"
    );
    options.skip_bad_rows = 0;
    let error = run(&sources, &options).unwrap_err();
    assert!(matches!(error, DataError::Json { line: 2, .. }));
}

#[test]
fn a_model_without_chat_template_is_told_so_before_rows_are_read() {
    let folder = tempfile::tempdir().unwrap();
    // The rows are broken, which is not what is said.
    let sources = [write(&folder, "a.jsonl", BROKEN)];
    let told = |format, template: Option<&str>| {
        let mut options = options(format, 8);
        options.skip_bad_rows = 9;
        options.data.template = template.map(|text| crate::PromptTemplate::parse(text).unwrap());
        let read = tokenize(&sources, &options, &tokenizer(None), &mut (), &mut |_| {});
        let error = read.unwrap_err();
        assert!(!error.is_about_a_row(), "{error}");
        error.to_string()
    };
    for format in [Format::Messages, Format::Sharegpt, Format::Alpaca] {
        let said = told(format, None);
        for way_out in [
            "data.chat_template = \"chatml\"",
            "instruction-tuned version",
            "data.prompt_template",
        ] {
            assert!(said.contains(way_out), "{said}");
        }
    }
    assert!(told(Format::Alpaca, Some("{instruction}{output}")).contains("none of its"));
}

#[test]
fn a_broken_file_is_no_broken_row() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [write(
        &folder,
        "a.json",
        "[{\"text\":\"a\"} {\"text\":\"b\"}]",
    )];
    let mut options = options(Format::Text, 8);
    options.skip_bad_rows = 100;
    assert!(matches!(
        run(&sources, &options),
        Err(DataError::Layout { .. })
    ));
}

#[test]
fn long_texts_are_cut_left_out_or_split() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [write(
        &folder,
        "a.jsonl",
        "{\"text\":\"abcdefg\"}\n{\"text\":\"xy\"}\n",
    )];
    let ids = |overlong| {
        let options = TokenizeOptions {
            overlong,
            ..options(Format::Text, 4)
        };
        let (rows, outcome) = run(&sources, &options).unwrap();
        let ids: Vec<Vec<u32>> = (0..rows.len())
            .map(|row| rows.row(row).unwrap().input_ids.to_vec())
            .collect();
        (ids, outcome)
    };
    let [a, b, c, d, e, f, g, x, y] = [97, 98, 99, 100, 101, 102, 103, 120, 121];
    let s = crate::tokenizer::tests::BOS;
    let (rows, outcome) = ids(Overlong::Truncate);
    assert_eq!(rows, [[s, a, b, c], [s, x, y, EOS]]);
    assert_eq!(outcome.findings.get(&Finding::Truncated).unwrap().rows, 1);
    let (rows, outcome) = ids(Overlong::Drop);
    assert_eq!(rows, [[s, x, y, EOS]]);
    assert_eq!((outcome.report.dropped, outcome.report.truncated), (1, 0));
    assert!(outcome.findings.get(&Finding::WithoutSupervision).is_none());
    // Every token but the first is predicted once: 3 + 3 + 2 of 8.
    let (rows, outcome) = ids(Overlong::Split);
    let expected: [&[u32]; 4] = [&[s, a, b, c], &[c, d, e, f], &[f, g, EOS], &[s, x, y, EOS]];
    assert_eq!(rows, expected);
    assert_eq!(outcome.report.supervised_tokens, 3 + 3 + 2 + 3);
    // Three tokens of context, of which the first is predicted by nothing: one more token is trained in each part.
    let overlapping = |split_overlap| {
        let options = TokenizeOptions {
            overlong: Overlong::Split,
            split_overlap,
            ..options(Format::Text, 4)
        };
        run(&sources, &options)
    };
    let (rows, outcome) = overlapping(3).unwrap();
    let rows: Vec<(Vec<u32>, Vec<i64>)> = (0..rows.len() - 1)
        .map(|row| rows.row(row).unwrap())
        .map(|row| (row.input_ids.to_vec(), row.labels[1..].to_vec()))
        .collect();
    let id = i64::from;
    let x = crate::IGNORE_INDEX;
    let expected = [
        (vec![s, a, b, c], vec![id(a), id(b), id(c)]),
        (vec![a, b, c, d], vec![x, x, id(d)]),
        (vec![b, c, d, e], vec![x, x, id(e)]),
        (vec![c, d, e, f], vec![x, x, id(f)]),
        (vec![d, e, f, g], vec![x, x, id(g)]),
        (vec![e, f, g, EOS], vec![x, x, id(EOS)]),
    ];
    assert_eq!(rows, expected);
    assert_eq!(outcome.report.supervised_tokens, 8 + 3);
    for wrong in [0, 4] {
        let error = overlapping(wrong).unwrap_err().to_string();
        let expected = format!(
            "split_overlap: expected at least 1 and below max_seq_length, 4, found {wrong}"
        );
        assert_eq!(error, expected);
    }
    let refused = TokenizeOptions {
        overlong: Overlong::Split,
        ..options(Format::Alpaca, 4)
    };
    insta::assert_snapshot!(run(&sources, &refused).unwrap_err(), @r#"overlong: expected "truncate" or "drop": half a conversation makes no sense, found "split" with format "alpaca""#);
}

#[test]
fn findings_name_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let row = |user: &str, answer: &str| {
        serde_json::json!({"messages": [
            {"role": "user", "content": user}, {"role": "assistant", "content": answer},
        ]})
        .to_string()
    };
    let call = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":null,\
                \"tool_calls\":[{\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}]}";
    let question = "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}]}";
    let lines = [
        row("a", "b"),
        row("a", ""),
        row("<|eot_id|>", "b"),
        row("a", "b"),
        call.to_owned(),
        question.to_owned(),
        row("a", &"long".repeat(20)),
    ];
    let sources = [write(&folder, "a.jsonl", &lines.join("\n"))];
    let (_, outcome) = run(&sources, &options(Format::Messages, 40)).unwrap();
    let place = folder.path().display().to_string();
    insta::assert_snapshot!(outcome.to_string().replace(&place, "."), @r#"
               7  rows
               6  kept
               0  skipped as broken
               1  left out
               1  cut at max_seq_length
               1  duplicates
             107  tokens
              39  supervised tokens
              91  tokens of the longest row
    lengths in tokens:
               5  0 to 16
               1  17 to 32
               1  65 to 128
    problem: 1 row has no supervised token and was left out
      first: ./a.jsonl, line 6
      next: check that they hold answers; raise max_seq_length if they were cut
    problem: 2 rows have an empty answer that is trained
      first: ./a.jsonl, line 2
      next: take them out, or keep the model from learning to say nothing with "weight": 0
    problem: 1 row has `tool_calls` of an assistant message that the chat template does not show
      first: ./a.jsonl, line 5
      next: use a chat template that knows tools, or write tools and calls into the contents
    problem: 1 row contains <|eot_id|>, which looks like a special token but is not one in this tokenizer
      first: ./a.jsonl, line 3
      next: use the chat template that belongs to this model
    problem: 1 row has tool arguments as a string
      first: ./a.jsonl, line 5
      next: write the arguments as a JSON object
    note: 1 row is longer than max_seq_length and was cut
      first: ./a.jsonl, line 7
      next: raise max_seq_length, or shorten them
    note: 1 duplicate row
      first: ./a.jsonl, line 4
      next: take them out unless they are meant to weigh more
    "#);
    assert!(!outcome.findings.is_sound());
}

#[test]
fn fields_that_nothing_reads_are_listed_once() {
    let folder = tempfile::tempdir().unwrap();
    let turns = serde_json::json!([
        {"role": "user", "content": "q", "name": "Ann", "id": 7},
        {"role": "assistant", "content": "a", "refusal": null, "annotations": []},
    ]);
    let lines = [
        serde_json::json!({"messages": turns, "source": "web", "note": "", "score": 1}),
        serde_json::json!({"messages": turns, "lang": "en"}),
        serde_json::json!({"messages": [turns[1]], "system": "S", "tools": null}),
    ];
    let lines = lines.map(|line| line.to_string()).join("\n");
    let sources = [write(&folder, "a.jsonl", &lines)];
    let (_, outcome) = run(&sources, &options(Format::Messages, 40)).unwrap();
    let text = outcome.to_string();
    let place = folder.path().display().to_string();
    let (_, notes) = text.split_once("problem: ").unwrap_or(("", &text));
    let notes = notes.split_once("note: ").unwrap().1.replace(&place, ".");
    insta::assert_snapshot!(notes, @"
    2 rows have fields that are not read: `lang`, `messages[].name`, `score`, `source`
      first: ./a.jsonl, line 1
      next: nothing, unless they should be learned: give them the names of the format's fields with data.fields
    note: 1 duplicate row
      first: ./a.jsonl, line 2
      next: take them out unless they are meant to weigh more
    ");
    assert!(outcome.findings.is_sound());

    let rename = |pairs: [(&str, &str); 2]| FieldMap::new(Format::Alpaca, pairs).unwrap();
    let fields = rename([("instruction", "q"), ("output", "a")]);
    let row = serde_json::json!({"q": "1", "a": "2", "output": "old", "more": 1});
    assert_eq!(fields.unread(Format::Alpaca, &row), ["more", "output"]);
    // A name that stands for another field is read.
    let swapped = rename([("instruction", "output"), ("output", "instruction")]);
    let row = serde_json::json!({"instruction": "a", "output": "q"});
    assert!(swapped.unread(Format::Alpaca, &row).is_empty());
}

#[test]
fn a_row_with_a_token_that_has_no_embedding_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [write(
        &folder,
        "a.jsonl",
        "{\"text\":\"a\"}\n{\"text\":\"b<|im_end|>\"}\n",
    )];
    let options = options(Format::Text, 40);
    let tokenizer = tokenizer(None).with_embedding_rows(260);
    let mut rows = TokenRows::default();
    let error = tokenize(&sources, &options, &tokenizer, &mut rows, &mut |_| {}).unwrap_err();
    let place = folder.path().join("a.jsonl").display().to_string();
    insta::assert_snapshot!(error.to_string().replace(&place, "a.jsonl"), @r#"a.jsonl, line 2: the token "<|im_end|>" has id 260, but the model's embedding has 260 rows (ids 0 to 259); take the token out of the row or the template, or use the tokenizer that belongs to the model"#);
    assert!(error.is_about_a_row());
    let error = crate::load_prompts(&sources[0], &options, &tokenizer, 2).unwrap_err();
    assert!(matches!(error, DataError::Option { .. }), "{error}");
    let chats = "{\"prompt\":\"<|im_end|>\",\"completion\":\"b\"}";
    let source = write(&folder, "b.jsonl", chats);
    let options = super::tests::options(Format::PromptCompletion, 40);
    let error = crate::load_prompts(&source, &options, &tokenizer, 2).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::RowBeyondEmbedding {
                line: 1,
                id: 260,
                rows: 260,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn fields_of_other_names_and_tables_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [
        write(&folder, "a.csv", "q,a\nHi,B\n"),
        write(&folder, "b.json", "[{\"q\":\"Hi\",\"a\":\"B\"}]"),
    ];
    let pairs = [("instruction", "q"), ("output", "a")];
    let options = TokenizeOptions {
        fields: FieldMap::new(Format::Alpaca, pairs).unwrap(),
        ..options(Format::Alpaca, 40)
    };
    let (rows, outcome) = run(&sources, &options).unwrap();
    assert_eq!(outcome.source_rows, [1, 1]);
    assert_eq!(
        rows.row(0).unwrap().input_ids,
        rows.row(1).unwrap().input_ids
    );
    assert_eq!(
        (rows.row(0).unwrap().line, rows.row(1).unwrap().line),
        (2, 1)
    );
    assert_eq!(rows.row(1).unwrap().file, 1);
    assert_eq!(outcome.report.duplicates, 1);
}

#[test]
fn each_source_may_have_its_own_format() {
    let folder = tempfile::tempdir().unwrap();
    let names = FieldMap::new(Format::Alpaca, [("instruction", "q"), ("output", "a")]).unwrap();
    let chat = "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"B\"}]}";
    let sources = [
        write(&folder, "a.jsonl", "{\"q\":\"Hi\",\"a\":\"B\"}").with_rows(Format::Alpaca, names),
        write(&folder, "b.jsonl", chat).with_rows(Format::Messages, FieldMap::default()),
        write(&folder, "c.txt", "Hi").with_rows(Format::Text, FieldMap::default()),
    ];
    let (rows, outcome) = run(&sources, &options(Format::Sharegpt, 40)).unwrap();
    assert_eq!(outcome.source_rows, [1, 1, 1]);
    let row = |number| rows.row(number).unwrap();
    assert_eq!(row(0).input_ids, row(1).input_ids);
    assert_eq!(row(0).labels, row(1).labels);
    assert_eq!([row(0).file, row(1).file, row(2).file], [0, 1, 2]);
    // What one source cannot do is refused though another could.
    let completion = TokenizeOptions {
        data: DataOptions {
            supervision: Supervision::Completion,
            ..options(Format::Alpaca, 40).data
        },
        ..options(Format::Alpaca, 40)
    };
    insta::assert_snapshot!(run(&sources, &completion).unwrap_err(), @r#"train_on: expected "responses", "last_turn" or "everything" beside this format, found "completion" with format "messages""#);
}

#[test]
fn other_names_are_known_to_the_detection() {
    use crate::format::detect::detect;
    let folder = tempfile::tempdir().unwrap();
    let source = write(
        &folder,
        "a.jsonl",
        "{\"question\":\"q\",\"output\":\"x\",\"answer\":\"a\"}",
    );
    let names = [("instruction", "question"), ("output", "answer")];
    assert_eq!(detect(&source, &names, 0).unwrap().format, Format::Alpaca);
    let swapped = [("prompt", "completion"), ("completion", "prompt")];
    let source = write(
        &folder,
        "b.jsonl",
        "{\"prompt\":\"a\",\"completion\":\"q\"}",
    );
    assert_eq!(
        detect(&source, &swapped, 0).unwrap().format,
        Format::PromptCompletion
    );
    let map = FieldMap::new(Format::PromptCompletion, swapped).unwrap();
    let row = serde_json::json!({"prompt": "a", "completion": "q"});
    let Record::Completion(read) = map.read(Format::PromptCompletion, row).unwrap() else {
        panic!("two texts are a completion");
    };
    assert_eq!((read.prompt.as_str(), read.completion.as_str()), ("q", "a"));
}

#[test]
fn progress_knows_rate_and_time_left() {
    let progress = LoadProgress {
        rows: 100,
        bytes: 1_000,
        total_bytes: 4_000,
        elapsed: std::time::Duration::from_secs(2),
    };
    assert_eq!(progress.bytes_per_second(), 500.0);
    assert_eq!(progress.rows_per_second(), 50.0);
    assert_eq!(
        progress.time_left(),
        Some(std::time::Duration::from_secs(6))
    );
    let start = LoadProgress {
        bytes: 0,
        elapsed: std::time::Duration::ZERO,
        ..progress
    };
    assert_eq!((start.bytes_per_second(), start.time_left()), (0.0, None));
}

#[test]
fn formats_are_detected_or_refused() {
    use crate::format::detect::detect;
    let folder = tempfile::tempdir().unwrap();
    let shown = |name: &str, text: &str| {
        let source = write(&folder, name, text);
        let shown = match detect(&source, &[], 0) {
            Ok(detected) => detected.to_string(),
            Err(error) => error.with_causes(),
        };
        shown.replace(&format!("{}/", folder.path().display()), "")
    };
    let text = "{\"text\":\"a\"}\n";
    insta::assert_snapshot!(shown("a.jsonl", &text.repeat(100)), @r#"format "text" (the first 64 rows have text)"#);
    insta::assert_snapshot!(shown("a.csv", "prompt,completion\na,b\n"), @r#"format "prompt_completion" (the first row has prompt and completion)"#);
    insta::assert_snapshot!(shown("a.jsonl", "{\"conversations\":[]}\n{\"conversation\":[]}"), @r#"format "sharegpt" (the first 2 rows have conversations)"#);
    insta::assert_snapshot!(shown("a.jsonl", &format!("{text}{{\"messages\":[]}}")), @r#"a.jsonl, line 2: cannot tell the format: the rows before it look like "text", this one like "messages"; set `format` to one of "alpaca", "messages", "sharegpt", "prompt_completion", "text", "preference", "unpaired""#);
    insta::assert_snapshot!(shown("a.jsonl", "{\"instruction\":1,\"output\":2,\"text\":3}"), @r#"a.jsonl, line 1: cannot tell the format: its keys fit "alpaca" and "text"; set `format` to one of "alpaca", "messages", "sharegpt", "prompt_completion", "text", "preference", "unpaired""#);
    insta::assert_snapshot!(shown("a.jsonl", "{\"question\":1,\"answer\":2}"), @r#"a.jsonl, line 1: cannot tell the format: no format has the keys `question`, `answer`; name yours in `fields`; set `format` to one of "alpaca", "messages", "sharegpt", "prompt_completion", "text", "preference", "unpaired""#);
    insta::assert_snapshot!(shown("a.jsonl", "[[1]]"), @r#"a.jsonl, line 1: cannot tell the format: the row is a list of 1, not an object; set `format` to one of "alpaca", "messages", "sharegpt", "prompt_completion", "text", "preference", "unpaired""#);
    insta::assert_snapshot!(shown("a.jsonl", "{"), @"a.jsonl, line 1: expected one JSON object, found broken JSON: EOF while parsing an object at column 1");
    let bad = write(&folder, "bad.jsonl", &format!("nope\n{text}{{}}\n{text}"));
    let detected = |skip| detect(&bad, &[], skip);
    assert!(matches!(detected(0), Err(DataError::Json { line: 1, .. })));
    assert!(matches!(
        detected(1),
        Err(DataError::TooManyBadRows { limit: 1, source })
            if matches!(*source, DataError::Detect { line: 3, .. })
    ));
    assert_eq!(detected(2).unwrap().rows, 2);
    let stray = write(
        &folder,
        "stray.jsonl",
        &format!("{text}{{\"messages\":[]}}\n{text}"),
    );
    assert!(matches!(
        detect(&stray, &[], 0),
        Err(DataError::Detect { line: 2, .. })
    ));
    assert_eq!(detect(&stray, &[], 1).unwrap().rows, 2);
    insta::assert_snapshot!(shown("a.jsonl", ""), @"a.jsonl: expected rows, found none; name a file that has some");
}

#[test]
fn completion_needs_a_format_that_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let sources = [write(&folder, "a.jsonl", "{\"text\":\"a\"}")];
    let mut options = options(Format::Text, 8);
    options.data.supervision = Supervision::Completion;
    insta::assert_snapshot!(run(&sources, &options).unwrap_err(), @r#"train_on: expected "responses", "last_turn" or "everything" beside this format, found "completion" with format "text""#);
}

proptest::proptest! {
    #[test]
    fn pieces_give_back_the_whole(length in 0usize..60, limit in 2usize..20, overlap in 0usize..20) {
        let overlap = 1 + overlap % (limit - 1);
        let ids: Vec<u32> = (0..length as u32).collect();
        let labels: Vec<i64> = (0..length as i64).map(|id| if id % 3 == 0 { IGNORE_INDEX } else { id }).collect();
        let pieces = split(&ids, &labels, limit, overlap);
        let mut whole: Vec<u32> = Vec::new();
        for (index, (piece, piece_labels)) in pieces.iter().enumerate() {
            proptest::prop_assert!(piece.len() <= limit && piece.len() == piece_labels.len());
            whole.extend(&piece[if index > 0 { overlap } else { 0 }..]);
        }
        proptest::prop_assert_eq!(whole, ids);
        let predicted: usize = pieces.iter().map(|(_, labels)| supervised_tokens(labels)).sum();
        proptest::prop_assert_eq!(predicted, supervised_tokens(&labels));
    }

    #[test]
    fn any_rows_are_tokenised_or_refused(lines in proptest::collection::vec("[{}\\[\\]\":,a-z0-9\u{e9}<|> ]{0,40}", 0..8)) {
        let folder = tempfile::tempdir().unwrap();
        let sources = [write(&folder, "a.jsonl", &lines.join("\n"))];
        for format in Format::ALL {
            let mut options = options(format, 8);
            options.skip_bad_rows = 100;
            let _ = run(&sources, &options);
        }
    }
}

#[test]
fn sources_without_a_file_are_named() {
    let missing = Source::from_file(Path::new("no/such.jsonl"));
    let error = run(&[missing], &options(Format::Text, 8)).unwrap_err();
    assert_eq!(error.to_string(), "cannot read no/such.jsonl");
}
