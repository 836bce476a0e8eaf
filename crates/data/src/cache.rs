//! Tokenised data kept on the disk, so that a second run begins at once.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backdraft_formats::{FormatError, StoredAnswers, StoredRow, TokenFile, TokenFileWriter};
use sha2::{Digest, Sha256};

use crate::answers::Answers;
use crate::error::{DataError, JsonFault};
use crate::pipeline::{Outcome, RowSink, TokenizeOptions, TokenizedRow, tokenize};
use crate::report::LoadProgress;
use crate::source::{DataFile, Source, Stamp};
use crate::store::{TokenRows, trained_bits};
use crate::tokenizer::ChatTokenizer;

/// Tokenised sources.
#[derive(Debug)]
pub struct Cached {
    /// Their rows, mapped from the cache.
    pub rows: TokenRows,
    /// What became of all rows when they were tokenised.
    pub outcome: Outcome,
    /// Whether the cache had them.
    pub hit: bool,
    /// The file.
    pub path: PathBuf,
    /// Why the cache could not be used: the rows are in a temporary file or in memory.
    pub problem: Option<DataError>,
}

/// Tokenises sources into a file in `folder`, or finds them there.
///
/// The file's name is a hash of the contents of all files, of the tokenizer with its template, and
/// of everything else that the result depends on. A file that cannot be read is made again. Rows
/// are never in memory all together, unless neither the cache nor the folder for temporary files can
/// be written.
///
/// # Errors
/// As [`tokenize`].
pub fn tokenize_cached(
    sources: &[Source],
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
    folder: &Path,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Cached, DataError> {
    for source in sources {
        options.of(source).check()?;
    }
    let stamps = stamps(sources)?;
    let key = key(sources, options, tokenizer, progress)?;
    let path = folder.join(format!("{key}.tokens"));
    if let Some((file, outcome)) = find(&path) {
        return Ok(Cached {
            rows: TokenRows::File(file),
            outcome,
            hit: true,
            path,
            problem: None,
        });
    }
    let mut tokenize_to = |path: &Path| {
        let outcome = write_tokens(sources, options, tokenizer, path, progress)?;
        // The name says what was hashed before: it must be what was read afterwards.
        for (file, stamp) in files(sources).zip(&stamps) {
            stamp.check(file)?;
        }
        let file = TokenFile::open(path).map_err(cache_error(path))?;
        Ok((TokenRows::File(file), outcome))
    };
    let (made, problem) = match tokenize_to(&path) {
        Err(problem @ DataError::Cache { .. }) => (tokenize_aside(&mut tokenize_to), Some(problem)),
        made => (made, None),
    };
    let (rows, outcome) = match (made, &problem) {
        (Err(DataError::Cache { .. }), Some(_)) => {
            let mut rows = TokenRows::default();
            let outcome = tokenize(sources, options, tokenizer, &mut rows, progress)?;
            (rows, outcome)
        }
        (made, _) => made?,
    };
    Ok(Cached {
        rows,
        outcome,
        hit: false,
        path,
        problem,
    })
}

type Made = Result<(TokenRows, Outcome), DataError>;

/// Tokenises into a temporary file that has no name any more when it is read.
fn tokenize_aside(tokenize_to: &mut dyn FnMut(&Path) -> Made) -> Made {
    let folder = std::env::temp_dir();
    let aside = tempfile::Builder::new()
        .prefix("backdraft-tokens-")
        .tempdir_in(&folder)
        .map_err(|source| cache_error(&folder)(FormatError::io(&folder, "write in")(source)))?;
    tokenize_to(&aside.path().join("rows.tokens"))
}

fn write_tokens(
    sources: &[Source],
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
    path: &Path,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Outcome, DataError> {
    let error = || cache_error(path);
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)
        .map_err(FormatError::io(folder, "create"))
        .map_err(error())?;
    let mut sink = FileSink {
        path,
        writer: TokenFileWriter::create(path).map_err(error())?,
        bits: Vec::new(),
    };
    let outcome = tokenize(sources, options, tokenizer, &mut sink, progress)?;
    let note = serde_json::to_vec(&outcome).map_err(|source| DataError::Json {
        path: path.to_owned(),
        line: 1,
        source: JsonFault::of(&source),
    })?;
    sink.writer.finish(&note).map_err(error())?;
    Ok(outcome)
}

fn cache_error(path: &Path) -> impl FnOnce(FormatError) -> DataError + use<> {
    let path = path.to_owned();
    move |source| DataError::Cache {
        path,
        source: Box::new(source),
    }
}

fn files(sources: &[Source]) -> impl Iterator<Item = &Path> {
    let files = sources.iter().flat_map(|source| &source.files);
    files.map(DataFile::content)
}

fn stamps(sources: &[Source]) -> Result<Vec<Stamp>, DataError> {
    files(sources).map(Stamp::of).collect()
}

/// The file of an earlier run, if it is sound.
fn find(path: &Path) -> Option<(TokenFile, Outcome)> {
    let file = TokenFile::open(path).ok()?;
    let outcome: Outcome = serde_json::from_slice(file.note()).ok()?;
    (outcome.report.kept == file.len()).then_some((file, outcome))
}

struct FileSink<'a> {
    path: &'a Path,
    writer: TokenFileWriter,
    bits: Vec<u8>,
}

impl RowSink for FileSink<'_> {
    fn push(&mut self, row: TokenizedRow) -> Result<(), DataError> {
        trained_bits(&row.labels, &mut self.bits);
        let stored = StoredRow {
            ids: &row.input_ids,
            trained: &self.bits,
            answers: match row.answers {
                Answers::One => StoredAnswers::One,
                Answers::Pair { rejected, margin } => StoredAnswers::Pair {
                    second: rejected as u32,
                    margin,
                },
                Answers::Judged { desirable } => StoredAnswers::Judged(desirable),
            },
            source: row.file as u32,
            line: row.line as u64,
            key: row.key,
        };
        self.writer.push(stored).map_err(cache_error(self.path))
    }
}

/// A hash of everything that the tokenised rows depend on.
fn key(
    sources: &[Source],
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(b"tokens 5");
    part(tokenizer.fingerprint().as_bytes());
    let TokenizeOptions {
        data,
        fields,
        overlong,
        split_overlap,
        skip_bad_rows,
        limits,
    } = options;
    let template = data.template.as_ref().map(|template| template.source());
    part(format!("{:?} {:?} {:?}", data.format, data.supervision, template).as_bytes());
    part(
        format!(
            "{} {overlong:?} {split_overlap} {skip_bad_rows} {limits:?}",
            data.max_seq_length
        )
        .as_bytes(),
    );
    for (ours, theirs) in fields.pairs() {
        part(ours.as_bytes());
        part(theirs.as_bytes());
    }
    let (began, total_bytes) = (Instant::now(), sources.iter().map(Source::bytes).sum());
    let mut bytes = 0;
    for source in sources {
        part(b"source");
        if let Some(own) = &source.rows {
            part(own.format.name().as_bytes());
            for (ours, theirs) in own.fields.pairs() {
                part(ours.as_bytes());
                part(theirs.as_bytes());
            }
        }
        for file in &source.files {
            part(format!("{:?}", (&file.path, file.kind, file.compression)).as_bytes());
            let mut report = |read: u64| {
                bytes += read;
                progress(LoadProgress {
                    rows: 0,
                    bytes,
                    total_bytes,
                    elapsed: began.elapsed(),
                });
            };
            part(&hash_file(file.content(), &mut report)?);
        }
    }
    Ok(crate::hex(&hash.finalize()[..16]))
}

fn hash_file(path: &Path, report: &mut dyn FnMut(u64)) -> Result<Vec<u8>, DataError> {
    let io = |source| DataError::Io {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut unreported = 0;
    loop {
        let read = file.read(&mut buffer).map_err(io)?;
        unreported += read as u64;
        if read == 0 || unreported >= 256 << 20 {
            report(std::mem::take(&mut unreported));
        }
        if read == 0 {
            return Ok(hash.finalize().to_vec());
        }
        hash.update(&buffer[..read]);
    }
}

#[cfg(test)]
mod tests;
