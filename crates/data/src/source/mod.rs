//! Where rows come from: files, folders, globs, behind one streaming reader.

mod csv_rows;
mod file;
mod head;
mod json;
mod json_list;
mod json_rows;
mod nest;
mod parquet_rows;
mod parquet_schema;
mod parquet_values;
mod rows;
mod spool;
mod stream;
#[cfg(test)]
mod tests;
mod text_rows;
mod thrift;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::DataError;
use crate::format::{FieldMap, Format};
pub use file::{Compression, DataFile, ENDINGS, FileKind};
pub use rows::{RawBody, RawRow, RowReader};
pub use spool::Spool;
use spool::is_pipe;
pub use stream::DecompressLimits;
pub(crate) use stream::{Stamp, read_error};

/// One of the sources of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// The source as the user wrote it.
    pub spec: String,
    /// Its files, in a fixed order.
    pub files: Vec<DataFile>,
    /// How often an epoch visits each of its rows; 0.5 visits half of them, others each time.
    pub weight: f64,
    /// What its rows are, where that is not what the options of all sources say.
    pub rows: Option<RowFormat>,
}

/// What the rows of one source are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFormat {
    /// Their format.
    pub format: Format,
    /// Their names for its fields.
    pub fields: FieldMap,
}

impl Source {
    /// Finds the files of a path, a folder (with those inside it) or a glob. A pipe is read to its
    /// end, into a temporary file.
    ///
    /// A file without an ending is read as JSON lines. Of a folder or glob, files of kinds that
    /// are not read are left out, and hidden ones too.
    ///
    /// # Errors
    /// [`DataError::NoSource`], [`DataError::NoFiles`], [`DataError::UnknownKind`],
    /// [`DataError::Glob`], [`DataError::Io`], and [`DataError::NotRows`] and [`DataError::Spool`]
    /// for a pipe.
    pub fn open(spec: &str) -> Result<Self, DataError> {
        let path = Path::new(spec);
        let files = if is_pipe(path) {
            vec![DataFile::pipe(path)?]
        } else if path.is_file() {
            vec![named_file(path)?]
        } else if path.is_dir() {
            let mut paths = Vec::new();
            walk(path, 0, &mut paths)?;
            choose(spec, paths)?
        } else if spec.contains(['*', '?', '[']) {
            choose(spec, matches(spec)?)?
        } else {
            return Err(DataError::NoSource {
                spec: spec.to_owned(),
            });
        };
        Ok(Self {
            spec: spec.to_owned(),
            files,
            weight: 1.0,
            rows: None,
        })
    }

    /// Reads a pipe to its end; `None` for any other source, and for a pipe that cannot be read. While
    /// the result is held, whoever opens the pipe finds the same bytes.
    pub fn hold_pipe(spec: &str) -> Option<Arc<Spool>> {
        let path = Path::new(spec);
        is_pipe(path).then(|| spool::spool(path))?.ok()
    }

    /// A source of known files, such as the local copy of a hub data set.
    ///
    /// # Errors
    /// [`DataError::UnknownKind`], and [`DataError::NoFiles`] for an empty list.
    pub fn from_paths(spec: &str, paths: &[PathBuf]) -> Result<Self, DataError> {
        if paths.is_empty() {
            return Err(no_files(spec, 0));
        }
        Ok(Self {
            spec: spec.to_owned(),
            files: paths
                .iter()
                .map(|path| named_file(path))
                .collect::<Result<_, _>>()?,
            weight: 1.0,
            rows: None,
        })
    }

    /// One file, as JSON lines if its name says nothing else.
    pub fn from_file(path: &Path) -> Self {
        Self {
            spec: path.display().to_string(),
            files: vec![DataFile::by_name(path).unwrap_or_else(|| DataFile::jsonl(path))],
            weight: 1.0,
            rows: None,
        }
    }

    /// The same source, visited `weight` times each epoch.
    ///
    /// # Errors
    /// [`DataError::Option`] for a weight that is not above 0 and at most 1000.
    pub fn with_weight(mut self, weight: f64) -> Result<Self, DataError> {
        if !(weight > 0.0 && weight <= 1000.0) {
            return Err(DataError::Option {
                option: "weight",
                expected: "a number above 0 and at most 1000".to_owned(),
                actual: weight.to_string(),
            });
        }
        self.weight = weight;
        Ok(self)
    }

    /// The same source with rows of this format.
    #[must_use]
    pub fn with_rows(mut self, format: Format, fields: FieldMap) -> Self {
        self.rows = Some(RowFormat { format, fields });
        self
    }

    /// Bytes of all its files on disk.
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .filter_map(|file| std::fs::metadata(file.content()).ok())
            .map(|metadata| metadata.len())
            .sum()
    }
}

fn named_file(path: &Path) -> Result<DataFile, DataError> {
    match DataFile::by_name(path) {
        Some(file) => Ok(file),
        None if path.extension().is_none() => Ok(DataFile::jsonl(path)),
        None => Err(DataError::UnknownKind {
            path: path.to_owned(),
            expected: ENDINGS,
        }),
    }
}

fn no_files(spec: &str, others: usize) -> DataError {
    DataError::NoFiles {
        spec: spec.to_owned(),
        expected: ENDINGS,
        others,
    }
}

/// The files of known kinds, sorted.
fn choose(spec: &str, mut paths: Vec<PathBuf>) -> Result<Vec<DataFile>, DataError> {
    paths.sort();
    paths.dedup();
    let files: Vec<DataFile> = paths
        .iter()
        .filter_map(|path| DataFile::by_name(path))
        .collect();
    if files.is_empty() {
        return Err(no_files(spec, paths.len()));
    }
    Ok(files)
}

fn matches(spec: &str) -> Result<Vec<PathBuf>, DataError> {
    let options = glob::MatchOptions {
        require_literal_leading_dot: true,
        require_literal_separator: true,
        case_sensitive: true,
    };
    let found = glob::glob_with(spec, options).map_err(|source| DataError::Glob {
        spec: spec.to_owned(),
        source,
    })?;
    let mut paths = Vec::new();
    for path in found {
        let path = path.map_err(|error| DataError::Io {
            path: error.path().to_owned(),
            source: error.into(),
        })?;
        if path.is_file() {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Folders inside each other; links to folders count too, so a limit ends their circles.
const MAX_DEPTH: usize = 16;

fn walk(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<(), DataError> {
    let io = |source| DataError::Io {
        path: folder.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if path.is_file() {
            paths.push(path);
        } else if path.is_dir() && depth < MAX_DEPTH && !path.is_symlink() {
            walk(&path, depth + 1, paths)?;
        }
    }
    Ok(())
}
