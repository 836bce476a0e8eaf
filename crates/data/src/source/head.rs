//! What a file turns out to be by its first bytes.

use std::path::Path;

use super::file::{Compression, FileKind};
use super::nest::Nest;
use crate::error::DataError;

pub(super) const GZIP: &[u8] = b"\x1f\x8b";
pub(super) const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const PARQUET: &[u8] = b"PAR1";
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Keys under which a file's only object holds its rows.
const WRAPPERS: [&str; 9] = [
    "data",
    "rows",
    "train",
    "examples",
    "instances",
    "items",
    "records",
    "samples",
    "dataset",
];
/// Keys that only rows have.
const OF_ROWS: [&str; 6] = [
    "messages",
    "conversations",
    "conversation",
    "instruction",
    "prompt",
    "text",
];

/// How the JSON of a file is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Objects one after another.
    Rows,
    /// A list of objects.
    List,
    /// A list of objects under this key of the file's only object.
    Wrapped(String),
}

impl Layout {
    pub(super) fn of(head: &[u8]) -> Self {
        match head.trim_ascii_start() {
            [b'[', ..] => Self::List,
            object @ [b'{', ..] => wrapper(object).map_or(Self::Rows, Self::Wrapped),
            _ => Self::Rows,
        }
    }
}

/// The length of a byte-order mark.
pub(super) fn mark_length(head: &[u8]) -> usize {
    if head.starts_with(BOM) { BOM.len() } else { 0 }
}

/// How bytes are compressed, by their own words.
pub(super) fn compression(head: &[u8]) -> Compression {
    match head {
        _ if head.starts_with(GZIP) => Compression::Gzip,
        _ if head.starts_with(ZSTD) => Compression::Zstd,
        _ => Compression::None,
    }
}

/// What a pipe without an ending holds, after it is decompressed.
pub(super) fn kind(path: &Path, head: &[u8]) -> Result<FileKind, DataError> {
    let text = head[mark_length(head)..].trim_ascii_start();
    let first_line = text.split(|byte| *byte == b'\n').next().unwrap_or(text);
    match text {
        _ if head.starts_with(PARQUET) => Ok(FileKind::Parquet),
        [] | [b'{' | b'[', ..] => Ok(FileKind::Jsonl),
        // A broken line may come first.
        _ if text.windows(2).any(|two| two == b"\n{") => Ok(FileKind::Jsonl),
        _ if first_line.contains(&b'\t') => Ok(FileKind::Csv { delimiter: b'\t' }),
        _ if first_line.contains(&b',') => Ok(FileKind::Csv { delimiter: b',' }),
        _ => Err(DataError::NotRows {
            path: path.to_owned(),
            found: "text that is neither JSON nor a table",
            next: "write it to a file whose ending says what it is",
        }),
    }
}

/// The separator of a table: where the header of a `.csv` has no comma but semicolons or tabs, as
/// spreadsheets write them in some languages, it is those.
pub(super) fn delimiter(named: u8, head: &[u8]) -> u8 {
    let header = head.split(|byte| *byte == b'\n').next().unwrap_or(head);
    match [b';', b'\t']
        .into_iter()
        .find(|other| header.contains(other))
    {
        Some(other) if named == b',' && !header.contains(&b',') => other,
        _ => named,
    }
}

/// Refuses bytes that are no text, and text that is something else.
pub(super) fn check_text(path: &Path, kind: FileKind, head: &[u8]) -> Result<(), DataError> {
    const CONVERT: &str = "convert it, for instance with iconv -f UTF-16 -t UTF-8";
    let (found, next) = match head {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => ("UTF-16", CONVERT),
        [0, 0, ..] => (
            "NUL bytes",
            "it is damaged or not written to its end; copy it again",
        ),
        [0, _, ..] | [_, 0, ..] => ("UTF-16", CONVERT),
        _ if head.starts_with(PARQUET) => ("a Parquet file", "give it the ending .parquet"),
        _ if head.starts_with(b"PK\x03\x04") => ("a zip archive", "unpack it"),
        _ if head.starts_with(b"BZh") => ("a bzip2 file", "decompress it"),
        _ if head.starts_with(b"\xfd7zXZ\0") => ("an xz file", "decompress it"),
        _ if kind == FileKind::Text => return Ok(()),
        _ if head.starts_with(b"version https://git-lfs") => (
            "the pointer of Git LFS",
            "fetch the file itself with git lfs pull",
        ),
        _ if is_page(head) => ("a web page", "download the file itself"),
        _ => return Ok(()),
    };
    Err(DataError::NotRows {
        path: path.to_owned(),
        found,
        next,
    })
}

fn is_page(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    [b"<!doctype".as_slice(), b"<html"].iter().any(|begin| {
        text.get(..begin.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(begin))
    })
}

/// The key under which an object holds rows, if it is the only object of its file.
fn wrapper(object: &[u8]) -> Option<String> {
    let mut rest = object.strip_prefix(b"{")?;
    loop {
        let (key, behind) = value(rest)?;
        let key: String = serde_json::from_slice(key).ok()?;
        rest = behind.trim_ascii_start().strip_prefix(b":")?;
        let is_list = rest
            .trim_ascii_start()
            .strip_prefix(b"[")
            .is_some_and(|list| list.trim_ascii_start().starts_with(b"{"));
        if OF_ROWS.contains(&&*key) {
            return None;
        }
        if is_list && WRAPPERS.contains(&&*key) {
            // Lines with such a key are rows, whatever they mean.
            let is_only = value(object).is_none_or(|(_, behind)| behind.trim_ascii().is_empty());
            return is_only.then_some(key);
        }
        rest = value(rest)?.1.trim_ascii_start().strip_prefix(b",")?;
    }
}

/// The value at the beginning and what stands behind it; `None` if it does not end here.
fn value(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let bytes = bytes.trim_ascii_start();
    let (length, ended) = Nest::default().advance(bytes);
    (ended && length > 0).then(|| bytes.split_at(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_told_by_the_first_bytes() {
        let wrapped = |key: &str| Layout::Wrapped(key.to_owned());
        for (head, expected) in [
            (" \n [", Layout::List),
            ("{\"a\": 1}\n{\"a\": 2}", Layout::Rows),
            ("", Layout::Rows),
            ("nope", Layout::Rows),
            ("{\"data\": [{\"a\": 1}]}", wrapped("data")),
            (
                "{\"version\": \"1, {\", \"meta\": {\"n\": [1]},\n \"rows\" : [ {\"a\"",
                wrapped("rows"),
            ),
            ("{\"data\": [\"a\"]}", Layout::Rows),
            ("{\"data\": [{\"a\": 1}]}\n{\"data\": [{}]}", Layout::Rows),
            ("{\"messages\": [{\"role\": \"user\"}]}", Layout::Rows),
            ("{\"text\": \"x\", \"data\": [{\"a\": 1}]}", Layout::Rows),
            ("{\"other\": [{\"a\": 1}]}", Layout::Rows),
            ("{\"a\": \"unfinished", Layout::Rows),
        ] {
            assert_eq!(Layout::of(head.as_bytes()), expected, "{head}");
        }
    }
}
