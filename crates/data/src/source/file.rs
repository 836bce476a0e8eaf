//! What a data file holds, judged by its name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::head;
use super::spool::{Spool, spool};
use super::stream::{self, DecompressLimits};
use crate::error::DataError;

/// The endings that are read, for messages.
pub const ENDINGS: &str = ".jsonl, .ndjson, .json, .csv, .tsv, .parquet, .txt or .md";

/// How the rows of a file are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// JSON objects, usually one on each line; read as what it is where it is a list.
    Jsonl,
    /// A JSON list of objects; read as what it is where it is objects one after another.
    Json,
    /// A table with a header, its fields separated by this byte.
    Csv {
        /// `,` or a tab.
        delimiter: u8,
    },
    /// Columns of an Apache Parquet file.
    Parquet,
    /// A whole document, one `text` row.
    Text,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// `.gz`.
    Gzip,
    /// `.zst`.
    Zstd,
}

/// A file with rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DataFile {
    /// Where it lies.
    pub path: PathBuf,
    /// How its rows are laid out.
    pub kind: FileKind,
    /// How it is compressed.
    pub compression: Compression,
    /// What came out of it, where it is a pipe.
    pub spool: Option<Arc<Spool>>,
}

impl DataFile {
    /// Judges a file by its name; `None` if no ending is known.
    pub fn by_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let (stem, compression) = if let Some(stem) = name.strip_suffix(".gz") {
            (stem, Compression::Gzip)
        } else if let Some(stem) = name.strip_suffix(".zst") {
            (stem, Compression::Zstd)
        } else {
            (name.as_str(), Compression::None)
        };
        let (_, ending) = stem.rsplit_once('.')?;
        let kind = match ending {
            "jsonl" | "ndjson" => FileKind::Jsonl,
            "json" => FileKind::Json,
            "csv" => FileKind::Csv { delimiter: b',' },
            "tsv" => FileKind::Csv { delimiter: b'\t' },
            // Its columns are compressed already, and it must be read from the end.
            "parquet" if compression == Compression::None => FileKind::Parquet,
            "txt" | "md" | "markdown" => FileKind::Text,
            _ => return None,
        };
        Some(Self {
            path: path.to_owned(),
            kind,
            compression,
            spool: None,
        })
    }

    /// A file of JSON lines, whatever its name.
    pub fn jsonl(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            kind: FileKind::Jsonl,
            compression: Compression::None,
            spool: None,
        }
    }

    /// Reads a pipe to its end. What it holds is judged by its name, else by its first bytes.
    pub(super) fn pipe(path: &Path) -> Result<Self, DataError> {
        let spool = spool(path)?;
        let named = Self::by_name(path);
        let is_named = named.is_some();
        let mut file = named.unwrap_or_else(|| Self::jsonl(path));
        file.spool = Some(spool);
        if !is_named {
            let opened = stream::open(&file, DecompressLimits::default(), &Arc::default())?;
            file.kind = head::kind(path, &opened.head)?;
        }
        Ok(file)
    }

    /// Where its bytes lie.
    pub fn content(&self) -> &Path {
        match &self.spool {
            Some(spool) => spool.path(),
            None => &self.path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judges_by_the_last_endings() {
        let judged = |name: &str| {
            DataFile::by_name(Path::new(name)).map(|file| (file.kind, file.compression))
        };
        let csv = FileKind::Csv { delimiter: b',' };
        for (name, expected) in [
            ("a/b.jsonl", Some((FileKind::Jsonl, Compression::None))),
            ("B.JSON.GZ", Some((FileKind::Json, Compression::Gzip))),
            ("x.y.csv.zst", Some((csv, Compression::Zstd))),
            ("README.md", Some((FileKind::Text, Compression::None))),
            (
                "train-00000-of-00001.parquet",
                Some((FileKind::Parquet, Compression::None)),
            ),
            ("a.parquet.gz", None),
            ("a.gz", None),
            ("jsonl", None),
            ("a.bin", None),
            ("", None),
        ] {
            assert_eq!(judged(name), expected, "{name}");
        }
    }
}
