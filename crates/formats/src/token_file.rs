//! Tokenised rows in one memory-mapped file, in a layout of our own.
//!
//! ```text
//! "BDTOKENS" version  rows…  index  note  trailer
//! row     ids u32[n], a bit for each trained token, zeros up to a multiple of 4 bytes, a pair's margin f32 where it has one
//! index   per row: offset u64, length u32, source u32, line u64, key u64, kind u32, second u32
//! trailer index offset u64, rows u64, note offset u64, note length u64, "BDTOKENS"
//! ```
//!
//! Everything is little-endian. A file is written beside the rows it came from or in a cache, and
//! made again where it cannot be read.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::atomic::{AtomicFile, Existing};
use crate::error::{FormatError, Result};
use crate::mapped::Mapped;

const MAGIC: &[u8; 8] = b"BDTOKENS";
const VERSION: u64 = 2;
const HEADER: usize = 16;
const ENTRY: usize = 40;
const TRAILER: usize = 40;
/// Kind of a pair with a margin.
const WITH_MARGIN: u32 = 4;

/// A row as it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoredRow<'a> {
    /// Token ids, `[s]`.
    pub ids: &'a [u32],
    /// A bit for each token, lowest first: whether it is trained.
    pub trained: &'a [u8],
    /// Number of the source that the row came from.
    pub source: u32,
    /// Its line there.
    pub line: u64,
    /// A hash of what it says; equal rows have equal keys.
    pub key: u64,
    /// What its answers are to each other.
    pub answers: StoredAnswers,
}

/// What the answers of a row are to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum StoredAnswers {
    /// Nothing: one text.
    #[default]
    One,
    /// Two texts.
    Pair {
        /// The token that the second begins at.
        second: u32,
        /// How much higher the first should be rated, where that is known; finite.
        margin: Option<f32>,
    },
    /// One text, and whether it is a good one.
    Judged(bool),
}

impl StoredAnswers {
    /// Kind and second text, as the index has them.
    const fn code(self) -> [u32; 2] {
        match self {
            Self::One => [0, 0],
            Self::Pair { second, margin } => match margin {
                None => [1, second],
                Some(_) => [WITH_MARGIN, second],
            },
            Self::Judged(true) => [2, 0],
            Self::Judged(false) => [3, 0],
        }
    }

    /// What a code stands for in a row of `length` tokens; `margin` is what stands behind it, where something does.
    const fn of(code: [u32; 2], length: usize, margin: Option<f32>) -> Option<Self> {
        match code {
            [0, 0] => Some(Self::One),
            [1 | WITH_MARGIN, second] if second as usize <= length => {
                Some(Self::Pair { second, margin })
            }
            [2, 0] => Some(Self::Judged(true)),
            [3, 0] => Some(Self::Judged(false)),
            _ => None,
        }
    }

    /// The margin of a pair that has one.
    const fn margin(self) -> Option<f32> {
        match self {
            Self::Pair { margin, .. } => margin,
            Self::One | Self::Judged(_) => None,
        }
    }
}

impl StoredRow<'_> {
    /// Whether a token is trained.
    #[must_use]
    pub fn is_trained(&self, token: usize) -> bool {
        self.trained
            .get(token / 8)
            .is_some_and(|byte| byte >> (token % 8) & 1 == 1)
    }
}

/// Writes a token file row by row; it appears whole or not at all.
#[derive(Debug)]
pub struct TokenFileWriter {
    file: AtomicFile,
    /// Kept on the disk too: millions of rows would fill the memory.
    index: BufWriter<File>,
    offset: u64,
    rows: u64,
}

impl TokenFileWriter {
    /// Starts a file, replacing one of that name.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let index = tempfile::tempfile_in(folder).map_err(FormatError::io(folder, "write in"))?;
        let mut file = AtomicFile::create(path, Existing::Replace)?;
        file.write_all(MAGIC)?;
        file.write_all(&VERSION.to_le_bytes())?;
        Ok(Self {
            file,
            index: BufWriter::with_capacity(1 << 16, index),
            offset: HEADER as u64,
            rows: 0,
        })
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`FormatError::TokenFile`] for more than 2³² tokens or bits that do not fit them, or the
    /// system's refusal.
    pub fn push(&mut self, row: StoredRow<'_>) -> Result<()> {
        let length = u32::try_from(row.ids.len())
            .map_err(|_| self.fault("fewer than 2^32 tokens in a row", row.ids.len()))?;
        if row.trained.len() != row.ids.len().div_ceil(8) {
            return Err(self.fault("one bit for each token", row.trained.len()));
        }
        for id in row.ids {
            self.file.write_all(&id.to_le_bytes())?;
        }
        let bits = row.trained.len().next_multiple_of(4);
        self.file.write_all(row.trained)?;
        self.file.write_all(&[0; 3][..bits - row.trained.len()])?;
        let margin = row.answers.margin().map(f32::to_le_bytes);
        let margin = margin.as_ref().map_or(&[][..], |bytes| bytes);
        self.file.write_all(margin)?;
        let mut entry = [0; ENTRY];
        entry[..8].copy_from_slice(&self.offset.to_le_bytes());
        entry[8..12].copy_from_slice(&length.to_le_bytes());
        entry[12..16].copy_from_slice(&row.source.to_le_bytes());
        entry[16..24].copy_from_slice(&row.line.to_le_bytes());
        entry[24..32].copy_from_slice(&row.key.to_le_bytes());
        let [kind, second] = row.answers.code();
        entry[32..36].copy_from_slice(&kind.to_le_bytes());
        entry[36..].copy_from_slice(&second.to_le_bytes());
        self.index
            .write_all(&entry)
            .map_err(FormatError::io(self.file.target(), "write the index of"))?;
        self.offset += 4 * u64::from(length) + (bits + margin.len()) as u64;
        self.rows += 1;
        Ok(())
    }

    /// Ends the file with a note of the caller's and gives it its name.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn finish(mut self, note: &[u8]) -> Result<()> {
        let target = self.file.target().to_path_buf();
        let io = |source| FormatError::io(&target, "write the index of")(source);
        let padding = self.offset.next_multiple_of(8) - self.offset;
        self.file.write_all(&[0; 8][..padding as usize])?;
        let index_offset = self.offset + padding;
        let mut index = self
            .index
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .map_err(io)?;
        index.seek(SeekFrom::Start(0)).map_err(io)?;
        let mut index = BufReader::with_capacity(1 << 16, index);
        let mut chunk = vec![0; 1 << 16];
        loop {
            let read = index.read(&mut chunk).map_err(io)?;
            if read == 0 {
                break;
            }
            self.file.write_all(&chunk[..read])?;
        }
        let note_offset = index_offset + self.rows * ENTRY as u64;
        self.file.write_all(note)?;
        for number in [index_offset, self.rows, note_offset, note.len() as u64] {
            self.file.write_all(&number.to_le_bytes())?;
        }
        self.file.write_all(MAGIC)?;
        self.file.commit()
    }

    fn fault(&self, expected: &'static str, actual: impl ToString) -> FormatError {
        FormatError::TokenFile {
            path: self.file.target().to_path_buf(),
            expected,
            actual: actual.to_string(),
        }
    }
}

/// A token file, mapped into memory.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    mapped: Mapped,
    index: usize,
    rows: usize,
    note: std::ops::Range<usize>,
}

impl TokenFile {
    /// Opens a file and checks its whole index.
    ///
    /// # Errors
    /// [`FormatError::TokenFile`] for a file that is not what this version writes, and
    /// [`FormatError::NotFound`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let mapped = Mapped::open(&path)?;
        let fault = |expected, actual: String| FormatError::TokenFile {
            path: path.clone(),
            expected,
            actual,
        };
        let bytes: &[u8] = &mapped;
        if cfg!(target_endian = "big") {
            return Err(fault("a little-endian machine", "another".to_owned()));
        }
        let length = bytes.len();
        if length < HEADER + TRAILER || !bytes.starts_with(MAGIC) || !bytes.ends_with(MAGIC) {
            return Err(fault("a whole token file", format!("{length} other bytes")));
        }
        let version = number(bytes, 8);
        if version != VERSION as usize {
            return Err(fault("version 2", version.to_string()));
        }
        let trailer = length - TRAILER;
        let [index, rows, note, note_length] =
            [0, 1, 2, 3].map(|at| number(bytes, trailer + 8 * at));
        let ends = rows
            .checked_mul(ENTRY)
            .and_then(|bytes| bytes.checked_add(index))
            .zip(note.checked_add(note_length));
        if index < HEADER || !index.is_multiple_of(8) || ends != Some((note, trailer)) {
            let found =
                format!("index at {index}, {rows} rows, note at {note}, {note_length} long");
            return Err(fault("sections one behind the other", found));
        }
        let file = Self {
            index,
            rows,
            note: note..note + note_length,
            path: path.clone(),
            mapped,
        };
        match (0..rows).find(|row| file.place(*row).is_none()) {
            None => Ok(file),
            Some(row) => Err(fault(
                "rows inside the file",
                format!("row {row} elsewhere"),
            )),
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// What the writer left as a note.
    #[must_use]
    pub fn note(&self) -> &[u8] {
        &self.mapped[self.note.clone()]
    }

    /// Tokens of a row; 0 for one that does not exist.
    #[must_use]
    pub fn length(&self, row: usize) -> usize {
        if row >= self.rows {
            return 0;
        }
        small_number(&self.mapped, self.index + ENTRY * row + 8) as usize
    }

    /// A row; `None` for one that does not exist.
    #[must_use]
    pub fn row(&self, row: usize) -> Option<StoredRow<'_>> {
        let (start, length, answers) = (row < self.rows).then(|| self.place(row)).flatten()?;
        let middle = start + 4 * length;
        let entry = self.index + ENTRY * row;
        Some(StoredRow {
            ids: bytemuck::try_cast_slice(&self.mapped[start..middle]).ok()?,
            trained: &self.mapped[middle..middle + length.div_ceil(8)],
            source: small_number(&self.mapped, entry + 12),
            line: wide_number(&self.mapped, entry + 16),
            key: wide_number(&self.mapped, entry + 24),
            answers,
        })
    }

    /// Offset, length and answers of a row, if it lies where rows may lie.
    fn place(&self, row: usize) -> Option<(usize, usize, StoredAnswers)> {
        let entry = self.index + ENTRY * row;
        let start = number(&self.mapped, entry);
        let length = small_number(&self.mapped, entry + 8) as usize;
        let code = [32, 36].map(|at| small_number(&self.mapped, entry + at));
        let has_margin = code[0] == WITH_MARGIN;
        let bytes = length
            .checked_mul(4)?
            .checked_add(length.div_ceil(8).next_multiple_of(4))?
            .checked_add(if has_margin { 4 } else { 0 })?;
        let end = start.checked_add(bytes)?;
        if start < HEADER || !start.is_multiple_of(4) || end > self.index {
            return None;
        }
        let margin = has_margin.then(|| f32::from_bits(small_number(&self.mapped, end - 4)));
        if margin.is_some_and(|margin| !margin.is_finite()) {
            return None;
        }
        let answers = StoredAnswers::of(code, length, margin)?;
        Some((start, length, answers))
    }
}

/// A number that is a place or a count; one beyond the address space is beyond any file.
fn number(bytes: &[u8], at: usize) -> usize {
    usize::try_from(wide_number(bytes, at)).unwrap_or(usize::MAX)
}

fn wide_number(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn small_number(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answers(index: usize, ids: &[u32]) -> StoredAnswers {
        let pair = |margin| StoredAnswers::Pair {
            second: ids.len() as u32 / 2,
            margin,
        };
        match index % 5 {
            0 => StoredAnswers::One,
            1 => pair(None),
            2 => pair(Some(index as f32 - 7.5)),
            3 => StoredAnswers::Judged(true),
            _ => StoredAnswers::Judged(false),
        }
    }

    fn write(path: &Path, rows: &[Vec<u32>], note: &[u8]) {
        let mut writer = TokenFileWriter::create(path).unwrap();
        for (index, ids) in rows.iter().enumerate() {
            let trained = vec![0b1010_0101; ids.len().div_ceil(8)];
            writer
                .push(StoredRow {
                    ids,
                    trained: &trained,
                    source: 3,
                    line: index as u64 + 1,
                    key: u64::MAX - index as u64,
                    answers: answers(index, ids),
                })
                .unwrap();
        }
        writer.finish(note).unwrap();
    }

    #[test]
    fn bits_must_fit_the_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = TokenFileWriter::create(folder.path().join("x")).unwrap();
        let row = StoredRow {
            ids: &[1],
            trained: &[],
            source: 0,
            line: 1,
            key: 0,
            answers: StoredAnswers::One,
        };
        let error = writer.push(row).unwrap_err().to_string();
        assert!(
            error.contains("expected one bit for each token, found 0"),
            "{error}"
        );
    }

    #[test]
    fn damaged_files_are_refused_or_read_within_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tokens");
        write(&path, &[vec![1, 2, 3], vec![], vec![7; 20]], b"note");
        let sound = std::fs::read(&path).unwrap();
        for at in 0..sound.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = sound.clone();
                damaged[at] = value;
                std::fs::write(&path, &damaged).unwrap();
                if let Ok(file) = TokenFile::open(&path) {
                    for row in 0..file.len() + 1 {
                        assert_eq!(file.row(row).is_some(), row < file.len());
                    }
                }
            }
        }
        for length in 0..sound.len() {
            std::fs::write(&path, &sound[..length]).unwrap();
            assert!(TokenFile::open(&path).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn rows_come_back(rows in proptest::collection::vec(proptest::collection::vec(any::<u32>(), 0..40), 0..20), note: Vec<u8>) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.tokens");
            write(&path, &rows, &note);
            let file = TokenFile::open(&path).unwrap();
            prop_assert_eq!(file.len(), rows.len());
            prop_assert_eq!(file.note(), note.as_slice());
            for (index, ids) in rows.iter().enumerate() {
                let row = file.row(index).unwrap();
                prop_assert_eq!(row.ids, ids.as_slice());
                prop_assert_eq!(file.length(index), ids.len());
                prop_assert_eq!((row.source, row.line), (3, index as u64 + 1));
                prop_assert_eq!(row.key, u64::MAX - index as u64);
                prop_assert_eq!(row.answers, answers(index, ids));
                prop_assert_eq!(row.trained.len(), ids.len().div_ceil(8));
                for token in 0..ids.len() {
                    prop_assert_eq!(row.is_trained(token), 0b1010_0101 >> (token % 8) & 1 == 1);
                }
            }
            prop_assert!(file.row(rows.len()).is_none());
        }
    }
}
