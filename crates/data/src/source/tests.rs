use std::io::Write;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

type Rows = Vec<Result<(usize, Value), DataError>>;

fn read_within(files: &[DataFile], limits: DecompressLimits) -> Rows {
    RowReader::new(files, limits)
        .map(|row| {
            let row = row?;
            let path = &files[row.file].path;
            Ok((row.line, row.body.into_value(path, row.line)?))
        })
        .collect()
}

fn read(path: &Path) -> Rows {
    let source = Source::open(path.to_str().unwrap()).unwrap();
    read_within(&source.files, DecompressLimits::default())
}

/// Rows, or errors with the folder's path left out.
fn show(folder: &tempfile::TempDir, rows: Rows) -> String {
    let folder = format!("{}/", folder.path().display());
    let lines = rows.into_iter().map(|row| match row {
        Ok((line, value)) => format!("{line}: {value}\n"),
        Err(error) => format!("error: {}\n", error.with_causes().replace(&folder, "")),
    });
    lines.collect()
}

#[track_caller]
fn check(name: &str, bytes: &[u8], expected: &str) {
    let folder = folder();
    let path = write(&folder, name, bytes);
    let shown = show(&folder, read(&path));
    assert_eq!(shown, expected, "{name}");
}

const ROWS: &str = "1: {\"text\":\"a\"}\n2: {\"text\":\"é\"}\n";

#[test]
fn every_kind_gives_rows_with_their_lines() {
    let lines = "{\"text\":\"a\"}\n{\"text\":\"é\"}\n".as_bytes();
    check("a.jsonl", lines, ROWS);
    check("a.json", lines, ROWS);
    check("a", lines, ROWS);
    check("a.jsonl.gz", &gzip(lines), ROWS);
    let two_members = [gzip(&lines[..13]), gzip(&lines[13..])].concat();
    check("a.jsonl.gz", &two_members, ROWS);
    check("a.jsonl.zst", &zstd::encode_all(lines, 3).unwrap(), ROWS);
    let list = "\u{feff} [ {\"text\":\"a\"},\n{\"text\":\"é\"}]\n\n".as_bytes();
    check("a.json", list, ROWS);
    check("a.json.gz", &gzip(list), ROWS);
    check("a.json", b"[]", "");
    check(
        "a.csv",
        "\u{feff}text,n\na,1\n\"é, \"\"b\"\"\nc\",2\nd,3\n".as_bytes(),
        "2: {\"text\":\"a\",\"n\":\"1\"}\n3: {\"text\":\"é, \\\"b\\\"\\nc\",\"n\":\"2\"}\n\
         5: {\"text\":\"d\",\"n\":\"3\"}\n",
    );
    check(
        "a.tsv",
        b"text\tn\na,b\t1\n",
        "2: {\"text\":\"a,b\",\"n\":\"1\"}\n",
    );
    check("a.md", b"# A\n\nb\n", "1: {\"text\":\"# A\\n\\nb\\n\"}\n");
    check("a.txt", b" \n\n", "");
}

#[test]
fn long_documents_are_cut_at_empty_lines() {
    let folder = folder();
    let paragraph = format!("{}\n\n", "word ".repeat(100_000));
    let path = write(&folder, "a.txt", paragraph.repeat(7).as_bytes());
    let rows: Vec<_> = read(&path).into_iter().map(Result::unwrap).collect();
    let lines: Vec<usize> = rows.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 7, 13]);
    let joined: String = rows
        .iter()
        .map(|(_, row)| row["text"].as_str().unwrap())
        .collect();
    assert_eq!(joined, paragraph.repeat(7));
}

#[test]
fn parquet_files_of_the_datasets_library_are_read() {
    let rows = |name: &str| -> Vec<Value> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/files")
            .join(name);
        let rows = read(&path).into_iter().map(Result::unwrap).enumerate();
        rows.map(|(index, (line, row))| {
            assert_eq!(line, index + 1);
            row
        })
        .collect()
    };
    assert_eq!(
        rows("messages.parquet"),
        [
            json!({"id": 7, "score": 0.5, "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "B", "name": "bot"},
            ]}),
            json!({"messages": [{"role": "user", "content": "é\n"}]}),
            json!({"id": 9, "score": 1.0, "messages": []}),
        ]
    );
    let alpaca = rows("alpaca.parquet");
    assert_eq!(alpaca.len(), 6);
    assert_eq!(alpaca[4], json!({"instruction": "a", "output": "c"}));
}

/// The texts are those of Python's `isoformat` and `str` for what pyarrow reads.
#[test]
fn of_a_parquet_file_only_leaves_that_cannot_be_read_are_left_out() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/types.parquet");
    let source = Source::open(path.to_str().unwrap()).unwrap();
    let mut reader = RowReader::new(&source.files, DecompressLimits::default());
    let row = reader.next().unwrap().unwrap();
    let expected = json!({
        "messages": [
            {"role": "user", "content": "Hi", "timestamp": "2023-04-09T00:02:53.120000+00:00"},
            {"role": "assistant", "content": "B"},
        ],
        "nanos": "2023-04-09T00:26:40.123456",
        "seconds": "2023-04-09T00:00:00",
        "day": "1969-12-31",
        "time": "01:02:03.000004",
        "price": "-12.50",
        "large": "1000000000000000000000000000000000000000",
        "half": 0.5,
        "words": "café",
        "image": {"path": "a.png"},
        "scores": {"a": 1.5},
    });
    assert_eq!(row.body.into_value(&path, 1).unwrap(), expected);
    assert!(reader.next().is_none());
    let note = reader.notes().concat();
    let (_, leaves) = note.split_once("types.parquet: ").unwrap();
    insta::assert_snapshot!(leaves, @"messages[].digest (FIXED_LEN_BYTE_ARRAY), image.bytes (BYTE_ARRAY), raw (FIXED_LEN_BYTE_ARRAY), sums.value (FIXED_LEN_BYTE_ARRAY)");
}

#[test]
fn what_is_left_out_of_shards_is_said_once() {
    let folder = folder();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/types.parquet");
    let bytes = std::fs::read(fixture).unwrap();
    write(&folder, "0.parquet", &bytes);
    write(&folder, "1.parquet", &bytes);
    let source = Source::open(folder.path().to_str().unwrap()).unwrap();
    let mut reader = RowReader::new(&source.files, DecompressLimits::default());
    assert_eq!((&mut reader).count(), 2);
    assert_eq!(reader.notes().len(), 1);
}

#[test]
fn rows_of_parquet_are_called_rows() {
    let error = DataError::Field {
        path: "a/b.parquet".into(),
        line: 3,
        field: "output".to_owned(),
        expected: "a string".to_owned(),
        found: "null".to_owned(),
    };
    assert_eq!(
        error.to_string(),
        "a/b.parquet, row 3, field `output`: expected a string, found null"
    );
}

#[test]
fn json_is_read_as_what_it_is_whatever_the_ending_says() {
    let rows = "1: {\"n\":1}\n2: {\"n\":2}\n";
    for name in ["a.jsonl", "a.json", "a.ndjson", "a"] {
        check(name, b"[{\"n\":1},\n{\"n\":2}]\n", rows);
        check(name, b"[{\"n\":1}]\n[{\"n\":2}]", rows);
        check(name, b"\xef\xbb\xbf{\"n\":1}\r\n{\"n\":2}\r\n", rows);
        check(
            name,
            b"{\"n\":\n1}{\"n\":2}",
            "1: {\"n\":1}\n2: {\"n\":2}\n",
        );
        check(name, b"{\"n\":1} {\"n\":2}", "1: {\"n\":1}\n1: {\"n\":2}\n");
        check(
            name,
            b"{\r\n  \"n\": [\r\n    {\r\n}\r\n,\r\n\r\n2]\r\n}\r\n\r\n{\"n\":2}\r\n{\r\n\"n\":3}",
            "1: {\"n\":[{},2]}\n10: {\"n\":2}\n11: {\"n\":3}\n",
        );
        check(
            name,
            b"{\"version\": 1,\n\"data\": [\n{\"n\":1},\n{\"n\":2}],\n\"note\": {\"x\": [1]}}\n",
            "3: {\"n\":1}\n4: {\"n\":2}\n",
        );
    }
}

#[test]
fn a_row_that_breaks_off_is_one_broken_row() {
    insta::assert_snapshot!(shown("a.jsonl", b"{\"n\":[1,\n{\"n\":2}\n{\"n\":\"x\n{\"n\":3}\n{\"n\":\n"), @r#"
    error: a.jsonl, line 1: expected one JSON object, found broken JSON: EOF while parsing a value at column 8
    2: {"n":2}
    error: a.jsonl, line 3: expected one JSON object, found broken JSON: EOF while parsing a string at column 7
    4: {"n":3}
    error: a.jsonl, line 5: expected one JSON object, found broken JSON: EOF while parsing a value at column 5
    "#);
    // Thousands of such lines do not mean thousands of looks at all that follow.
    let many = "{\"n\":[\n".repeat(3_000) + "{\"n\":1}\n";
    let folder = folder();
    let rows = read(&write(&folder, "a.jsonl", many.as_bytes()));
    assert_eq!(rows.iter().filter(|row| row.is_err()).count(), 3_000);
    assert_eq!(rows.last().unwrap().as_ref().unwrap().0, 3_001);
}

#[test]
fn faults_inside_a_value_of_several_lines_have_their_own_line() {
    insta::assert_snapshot!(shown("a.json", b"[{\"n\":1},\n{\n\"n\":\n  nope}, {\"n\":2}]"), @r#"
    1: {"n":1}
    error: a.json, line 4: expected one JSON object, found broken JSON: expected ident at column 4
    4: {"n":2}
    "#);
}

#[test]
fn commas_that_do_not_belong_are_named() {
    insta::assert_snapshot!(shown("a.jsonl", b"{\"n\":1},\n{\"n\":2,}\n{\n\"n\":3},{\"n\":4}\n"), @r#"
    error: a.jsonl, line 1: expected objects without commas between them, found a comma after an object; remove it, or put all of them into one list in [ ]
    error: a.jsonl, line 2: expected one JSON object, found broken JSON: trailing comma at column 8
    error: a.jsonl, line 4: expected objects without commas between them, found a comma after an object; remove it, or put all of them into one list in [ ]
    "#);
    insta::assert_snapshot!(shown("a.json", b"[{\"n\":1},\n]"), @r#"
    1: {"n":1}
    error: a.json, line 2: expected a value, found a comma before `]`; remove it
    "#);
    insta::assert_snapshot!(shown("a.json", b"{\"train\": [{\"n\":1}],\n \"rows\": [{\"n\":2}]}"), @r#"
    1: {"n":1}
    error: a.json, line 2: expected one list of rows, found `train` and `rows`; write each to a file of its own
    "#);
}

#[test]
fn what_holds_no_rows_is_named() {
    let utf16: Vec<u8> = "\u{feff}{\"n\":1}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    insta::assert_snapshot!(shown("a.jsonl", &utf16), @"error: a.jsonl: expected rows, found UTF-16; convert it, for instance with iconv -f UTF-16 -t UTF-8");
    insta::assert_snapshot!(shown("a.csv", &utf16[2..]), @"error: a.csv: expected rows, found UTF-16; convert it, for instance with iconv -f UTF-16 -t UTF-8");
    insta::assert_snapshot!(shown("a.json", &[0; 100]), @"error: a.json: expected rows, found NUL bytes; it is damaged or not written to its end; copy it again");
    insta::assert_snapshot!(shown("a.jsonl", b"PAR1x"), @"error: a.jsonl: expected rows, found a Parquet file; give it the ending .parquet");
    insta::assert_snapshot!(shown("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n"), @"error: a.jsonl: expected rows, found the pointer of Git LFS; fetch the file itself with git lfs pull");
    insta::assert_snapshot!(shown("a.csv", b"\n<!DOCTYPE html>"), @"error: a.csv: expected rows, found a web page; download the file itself");
    check("a.md", b"<html>", "1: {\"text\":\"<html>\"}\n");
}

/// A file of a hundred gigabytes that takes no room: nothing of it is read but its first bytes.
#[cfg(unix)]
#[test]
fn a_large_sparse_file_is_not_read_through() {
    let folder = folder();
    for name in ["a.jsonl", "a.json", "a.csv", "a.parquet"] {
        let path = write(&folder, name, b"");
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(100 << 30).unwrap();
        let rows = read(&path);
        assert!(matches!(rows.as_slice(), [Err(_)]), "{name}: {rows:?}");
    }
    // It claims metadata of two gigabytes.
    let path = write(&folder, "b.parquet", b"PAR1");
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    file.set_len(100 << 30).unwrap();
    file.write_all(b"\x00\x00\x00\x80PAR1").unwrap();
    insta::assert_snapshot!(show(&folder, read(&path)), @"error: b.parquet cannot be read as Parquet (row 1); write it again: expected metadata of at most 256 MiB, found 2147483648 bytes");
}

#[test]
fn gzip_is_known_by_its_bytes_and_may_be_padded() {
    let rows = "1: {\"n\":1}\n2: {\"n\":2}\n";
    let one = gzip(b"{\"n\":1}\n");
    let two = gzip(b"{\"n\":2}\n");
    let padded = [one.as_slice(), &two, &[0; 1000]].concat();
    check("a.jsonl.gz", &padded, rows);
    check("a.jsonl", &padded, rows);
    let empty = gzip(b"");
    check(
        "a.jsonl.gz",
        &[empty.as_slice(), &one, &empty, &two].concat(),
        rows,
    );
    let zstd = zstd::encode_all(b"n\n1\n".as_slice(), 3).unwrap();
    check("a.csv", &zstd, "2: {\"n\":\"1\"}\n");
}

#[test]
fn lines_of_csv_are_those_of_an_editor() {
    let rows = "2: {\"a\":\"1\"}\n5: {\"a\":\"x\\r\\ny\"}\n7: {\"a\":\"2\"}\n";
    check("a.csv", b"a\r\n1\r\n\r\n\r\n\"x\r\ny\"\r\n2", rows);
    check(
        "a.csv",
        b"a;b\r\n1;\"2,3\"\r\n",
        "2: {\"a\":\"1\",\"b\":\"2,3\"}\n",
    );
    check("a.csv", b"a;b,c\n1,2\n", "2: {\"a;b\":\"1\",\"c\":\"2\"}\n");
    let rows = rows.replace("\\r", "");
    check("a.csv", b"\xef\xbb\xbf\"a\"\n1\n\n\n\"x\ny\"\n2\n", &rows);
    insta::assert_snapshot!(shown("a.csv", b"a,b\r\n1,2\r\n\r\n3\r\n4,5"), @r#"
    2: {"a":"1","b":"2"}
    error: a.csv, line 4: expected 2 fields, as in the header, found 1; put fields with a separator or a line break into quotes
    5: {"a":"4","b":"5"}
    "#);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_read_once_for_as_long_as_somebody_holds_it() {
    let folder = folder();
    let name = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&name).status();
    if !made.is_ok_and(|status| status.success()) {
        return println!("nothing checked: there is no mkfifo here");
    }
    let fill = |bytes: &[u8]| {
        let (name, bytes) = (name.clone(), bytes.to_vec());
        std::thread::spawn(move || std::fs::write(name, bytes).unwrap())
    };
    let spec = name.to_str().unwrap();
    let rows = |source: &Source| {
        show(
            &folder,
            read_within(&source.files, DecompressLimits::default()),
        )
    };
    for (bytes, expected) in [
        (
            b"{\"n\":1}\n{\"n\":2}\n".to_vec(),
            "1: {\"n\":1}\n2: {\"n\":2}\n",
        ),
        (b"[{\"n\":1}]".to_vec(), "1: {\"n\":1}\n"),
        (gzip(b"a\tb\n1\t2,3\n"), "2: {\"a\":\"1\",\"b\":\"2,3\"}\n"),
        (
            b"nope\n{\"n\":1}\n".to_vec(),
            "error: pipe, line 1: expected one JSON object, found broken JSON: expected ident at column 2\n2: {\"n\":1}\n",
        ),
        (b"nope\n".to_vec(), ""),
    ] {
        let writer = fill(&bytes);
        let held = Source::hold_pipe(spec).unwrap();
        writer.join().unwrap();
        let opened = Source::open(spec);
        let Ok(source) = opened else {
            assert!(matches!(opened, Err(DataError::NotRows { .. })));
            assert!(expected.is_empty());
            continue;
        };
        assert_eq!(source.files[0].path, name);
        assert_eq!(rows(&source), expected);
        // Nobody writes any more: it would wait for ever.
        let again = Source::open(spec).unwrap();
        assert_eq!(rows(&again), expected);
        let kept = source.files[0].content().to_owned();
        drop((source, again));
        assert!(kept.exists());
        drop(held);
        assert!(!kept.exists());
    }
    let error = Source::open("/dev/zero").unwrap_err().to_string();
    assert_eq!(
        error,
        "/dev/zero: expected rows, found a device; name a file, or pipe rows into it"
    );
}

#[test]
fn folders_and_globs_are_read_in_order() {
    let folder = folder();
    write(&folder, "b.jsonl", b"{\"n\":2}\n");
    write(&folder, "a/x.jsonl", b"{\"n\":1}\n");
    write(&folder, "c.csv", b"n\n3\n");
    write(&folder, "model.bin", b"\xff");
    write(&folder, ".hidden.jsonl", b"x");
    write(&folder, ".git/y.jsonl", b"x");
    let files = |spec: &str| -> Vec<String> {
        let source = Source::open(&format!("{}/{spec}", folder.path().display())).unwrap();
        let name = |file: &DataFile| {
            let path = file.path.strip_prefix(folder.path()).unwrap();
            path.to_str().unwrap().to_owned()
        };
        source.files.iter().map(name).collect()
    };
    assert_eq!(files(""), ["a/x.jsonl", "b.jsonl", "c.csv"]);
    assert_eq!(files("*.jsonl"), ["b.jsonl"]);
    assert_eq!(files("**/*.jsonl"), ["a/x.jsonl", "b.jsonl"]);
    assert_eq!(
        show(&folder, read(folder.path())),
        "1: {\"n\":1}\n1: {\"n\":2}\n2: {\"n\":\"3\"}\n"
    );
}

#[test]
fn what_is_no_source_is_refused() {
    let folder = folder();
    write(&folder, "sub/x.bin", b"");
    let root = folder.path().display().to_string();
    let message = |spec: &str| {
        let error = Source::open(&format!("{root}/{spec}")).unwrap_err();
        error.with_causes().replace(&root, ".")
    };
    insta::assert_snapshot!(message("no.jsonl"), @r#"there is no "./no.jsonl"; expected a file, a folder, a glob such as data/*.jsonl, or a hub data set (org/name or org/name:split)"#);
    insta::assert_snapshot!(message("sub"), @r#""./sub" holds no data file; expected files ending in .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt or .md, optionally with .gz or .zst behind (files of other kinds: 1)"#);
    insta::assert_snapshot!(message("*.csv"), @r#""./*.csv" holds no data file; expected files ending in .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt or .md, optionally with .gz or .zst behind (files of other kinds: 0)"#);
    insta::assert_snapshot!(message("sub/x.bin"), @"./sub/x.bin: expected a file ending in .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt or .md, optionally with .gz or .zst behind; rename or convert it");
    let error = Source::open("[a").unwrap_err().with_causes();
    insta::assert_snapshot!(error, @r#""[a" is not a valid glob: Pattern syntax error near position 0: invalid range pattern"#);
    let weight = Source::from_file(Path::new("a.jsonl")).with_weight(f64::NAN);
    insta::assert_snapshot!(weight.unwrap_err(), @"weight: expected a number above 0 and at most 1000, found NaN");
}

#[track_caller]
fn shown(name: &str, bytes: &[u8]) -> String {
    let folder = folder();
    let path = write(&folder, name, bytes);
    show(&folder, read(&path))
}

#[test]
fn broken_rows_are_named_and_the_next_ones_read() {
    let lines = b"{\"n\":1}\nnope\n\xff\n{\"n\":2}\n";
    insta::assert_snapshot!(shown("a.jsonl", lines), @r#"
    1: {"n":1}
    error: a.jsonl, line 2: expected one JSON object, found broken JSON: expected ident at column 2
    error: a.jsonl, line 3: expected UTF-8 text, found an invalid sequence at byte 1 of the line; convert the file to UTF-8
    4: {"n":2}
    "#);
    insta::assert_snapshot!(shown("a.csv", b"a,b\n1\n\"x\n\",\xff\n1,2\n"), @r#"
    error: a.csv, line 2: expected 2 fields, as in the header, found 1; put fields with a separator or a line break into quotes
    error: a.csv, line 3: expected UTF-8 text, found an invalid sequence at byte 1 of the line; convert the file to UTF-8
    5: {"a":"1","b":"2"}
    "#);
    insta::assert_snapshot!(shown("a.json", b"[{\"n\":1},\n{\"n\" 2},\n\"\xff\",{\"n\":3}]"), @r#"
    1: {"n":1}
    error: a.json, line 2: expected one JSON object, found broken JSON: expected `:` at column 6
    error: a.json, line 3: expected UTF-8 text, found an invalid sequence at byte 2 of the line; convert the file to UTF-8
    3: {"n":3}
    "#);
}

#[test]
fn a_line_too_long_is_passed_over() {
    let long = "x".repeat(crate::jsonl::MAX_LINE_BYTES + 100);
    insta::assert_snapshot!(shown("a.jsonl", format!("{long}\n{{\"n\":1}}\n{long}").as_bytes()), @r#"
    error: a.jsonl, line 1: expected a row of at most 33554432 bytes, found a longer line; put one JSON object on each line
    2: {"n":1}
    error: a.jsonl, line 3: expected a row of at most 33554432 bytes, found a longer line; put one JSON object on each line
    "#);
    insta::assert_snapshot!(shown("a.txt", long.as_bytes()), @"error: a.txt, line 1: expected a line of at most 33554432 bytes, found a longer one");
    insta::assert_snapshot!(shown("a.csv", format!("a\n1\n\"{long}\n{long}").as_bytes()), @r#"
    2: {"a":"1"}
    error: a.csv, line 3: expected a record of at most 33554432 bytes, found a longer one; look for a quote that is never closed
    "#);
    insta::assert_snapshot!(shown("a.json", format!("[\"{long}\"").as_bytes()), @"error: a.json, line 1: expected an element of at most 32 MiB, found a longer one");
}

#[test]
fn broken_files_end_in_one_error() {
    insta::assert_snapshot!(shown("a.json", b"[1 2]"), @r#"
    1: 1
    error: a.json, line 1: expected `,` or `]` after an element, found `2`
    "#);
    insta::assert_snapshot!(shown("a.json", b"[{\"n\":1},\n\n"), @r#"
    1: {"n":1}
    error: a.json, line 3: expected the rest of an element, found the end of the file
    "#);
    insta::assert_snapshot!(shown("a.json", b"[,]"), @"error: a.json, line 1: expected a value, found `,`");
    insta::assert_snapshot!(shown("a.json", b"[{\"n\":1}]\n x"), @r#"
    1: {"n":1}
    error: a.json, line 2: expected the end of the file after the list, found `x`
    "#);
    insta::assert_snapshot!(shown("a.json", b"[{\"n\":[1}"), @"error: a.json, line 1: expected the rest of an element, found the end of the file");
    insta::assert_snapshot!(shown("a.csv", b"a,a\n1,2\n"), @r#"error: a.csv, line 1: expected a header with a different name for each column, found the name "a" twice"#);
    insta::assert_snapshot!(shown("a.csv", b""), @"error: a.csv, line 1: expected a header with a different name for each column, found nothing");
    insta::assert_snapshot!(shown("a.csv", b"a,\xff\n"), @"error: a.csv, line 1: expected UTF-8 text, found an invalid sequence at byte 1 of the line; convert the file to UTF-8");
    insta::assert_snapshot!(shown("a.txt", b"ok\nab\xff"), @"error: a.txt, line 2: expected UTF-8 text, found an invalid sequence at byte 3 of the line; convert the file to UTF-8");
    insta::assert_snapshot!(shown("a.jsonl.gz", b"no gzip"), @"error: a.jsonl.gz is damaged or not what its ending says; compress it again, or take the ending away: unexpected end of file");
    insta::assert_snapshot!(shown("a.jsonl.gz", &gzip(b"{\"n\":1}\n{\"n\":2}\n")[..20]), @r#"
    1: {"n":1}
    error: a.jsonl.gz is damaged or not what its ending says; compress it again, or take the ending away: incomplete deflate stream
    "#);
    insta::assert_snapshot!(shown("a.jsonl.zst", b"no zstd"), @"error: a.jsonl.zst is damaged or not what its ending says; compress it again, or take the ending away: Unknown frame descriptor");
    insta::assert_snapshot!(shown("a.parquet", b"no parquet"), @"error: a.parquet cannot be read as Parquet (row 1); write it again: Parquet error: Invalid Parquet file. Corrupt footer");
    // Found by fuzzing: an unknown field with 2³¹ − 1 booleans, which take no bytes.
    let endless = b"PAR1\x19\xf1\xff\xff\xff\xff\x07\x00\x08\x00\x00\x00PAR1";
    insta::assert_snapshot!(shown("b.parquet", endless), @"error: b.parquet cannot be read as Parquet (row 1); write it again: expected lists no longer than the bytes they stand in, found one of 2147483647 elements in metadata");
}

#[test]
fn bombs_stop_at_the_limit() {
    let folder = folder();
    let bomb = gzip(&vec![b' '; 4 << 20]);
    assert!(bomb.len() < 5_000);
    let path = write(&folder, "a.jsonl.gz", &bomb);
    let limits = DecompressLimits {
        max_ratio: 100,
        free_bytes: 1 << 20,
    };
    let files = [DataFile::by_name(&path).unwrap()];
    let rows = read_within(&files, limits);
    assert_eq!(rows.len(), 1);
    assert!(
        matches!(&rows[0], Err(DataError::Bomb { max_ratio: 100, written, .. }) if *written <= (1 << 20) + (1 << 18)),
        "{rows:?}"
    );
    assert!(read_within(&files, DecompressLimits::default()).is_empty());
}

#[test]
fn a_file_that_grows_while_it_is_read_is_refused() {
    let folder = folder();
    let path = write(&folder, "a.jsonl", b"{\"n\":1}\n{\"n\":2}\n");
    let source = Source::open(path.to_str().unwrap()).unwrap();
    let mut reader = RowReader::new(&source.files, DecompressLimits::default());
    assert!(reader.next().unwrap().is_ok());
    let mut file = std::fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap();
    file.write_all(b"{\"n\":3}").unwrap();
    let rest: Vec<_> = reader.collect();
    let error = rest.last().unwrap().as_ref().unwrap_err().to_string();
    assert!(
        error.ends_with(
            "changed while it was read: expected 16 bytes, found 23 bytes; let its writer finish and start again"
        ),
        "{error}"
    );
}

#[test]
fn bytes_are_counted_as_they_lie_on_the_disk() {
    let folder = folder();
    let compressed = gzip("{\"n\":1}\n".repeat(10_000).as_bytes());
    write(&folder, "a.jsonl.gz", &compressed);
    write(&folder, "b.csv", b"n\n1\n");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/alpaca.parquet");
    let parquet = std::fs::read(fixture).unwrap();
    write(&folder, "c.parquet", &parquet);
    let source = Source::open(folder.path().to_str().unwrap()).unwrap();
    let mut reader = RowReader::new(&source.files, DecompressLimits::default());
    assert_eq!((&mut reader).count(), 10_000 + 1 + 6);
    let total = (compressed.len() + 4 + parquet.len()) as u64;
    assert_eq!((reader.bytes(), source.bytes()), (total, total));
}

#[test]
fn damaged_parquet_files_give_rows_or_an_error() {
    let folder = folder();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/messages.parquet");
    let sound = std::fs::read(fixture).unwrap();
    for at in 0..sound.len() {
        let mut damaged = sound.clone();
        damaged[at] ^= 1 << (at % 8);
        let path = write(&folder, "a.parquet", &damaged);
        for row in read(&path) {
            assert!(matches!(row, Ok(_) | Err(DataError::Parquet { .. })));
        }
    }
    for length in (0..sound.len()).step_by(5) {
        let path = write(&folder, "a.parquet", &sound[..length]);
        let rows = read(&path);
        assert!(
            matches!(rows.as_slice(), [Err(DataError::Parquet { .. })]),
            "{length}"
        );
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[\\[\\]{}\",:\\\\ \néx]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec(("[a-c\"\\]]{0,3}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn lists_are_cut_into_their_elements(rows in proptest::collection::vec(any_json(), 0..6), pretty: bool) {
        let folder = folder();
        let text = if pretty {
            serde_json::to_string_pretty(&rows).unwrap()
        } else {
            serde_json::to_string(&rows).unwrap()
        };
        let path = write(&folder, "a.json", text.as_bytes());
        let values: Vec<Value> = read(&path).into_iter().map(|row| row.unwrap().1).collect();
        prop_assert_eq!(values, rows);
    }

    #[test]
    fn any_bytes_give_rows_or_errors(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = folder();
        for name in ["a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"] {
            let path = write(&folder, name, &bytes);
            let rows = read(&path);
            prop_assert!(rows.len() <= bytes.len() + 1);
        }
    }

    #[test]
    fn csv_gives_back_what_was_written(fields in proptest::collection::vec("[a-c\",\n\r é]{1,6}", 2..12)) {
        let folder = folder();
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["x", "y"]).unwrap();
        for pair in fields.chunks_exact(2) {
            writer.write_record(pair).unwrap();
        }
        let path = write(&folder, "a.csv", &writer.into_inner().unwrap());
        let read: Vec<String> = read(&path)
            .into_iter()
            .flat_map(|row| {
                let row = row.unwrap().1;
                [row["x"].as_str().unwrap().to_owned(), row["y"].as_str().unwrap().to_owned()]
            })
            .collect();
        prop_assert_eq!(&read, &fields[..fields.len() / 2 * 2]);
    }
}
