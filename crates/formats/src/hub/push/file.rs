//! A file on its way to the hub.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::PushError;

/// Bytes at a file's beginning by which the hub tells text from the rest.
const SAMPLE: u64 = 512;

/// A file and its name in the repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushFile {
    /// The path in the repository, with `/`.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl PushFile {
    /// A file of `bytes` bytes on the disk. It must not be written to until it is sent.
    #[must_use]
    pub fn of_path(name: impl Into<String>, path: impl Into<PathBuf>, bytes: u64) -> Self {
        Self {
            name: name.into(),
            bytes,
            content: Content::File(path.into()),
        }
    }

    /// A file that is nowhere on the disk.
    #[must_use]
    pub fn of_bytes(name: impl Into<String>, content: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            bytes: content.len() as u64,
            content: Content::Bytes(content),
        }
    }

    /// Where it lies, else its name.
    pub(super) fn path(&self) -> &Path {
        match &self.content {
            Content::File(path) => path,
            Content::Bytes(_) => Path::new(&self.name),
        }
    }

    /// Its bytes from `from` on, at most `length` of them.
    pub(super) fn open(&self, from: u64, length: u64) -> Result<Box<dyn Read + '_>, PushError> {
        match &self.content {
            Content::File(path) => {
                let open = || -> io::Result<File> {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(from))?;
                    Ok(file)
                };
                let file = open().map_err(|source| self.unreadable(source))?;
                Ok(Box::new(
                    io::BufReader::with_capacity(1 << 18, file).take(length),
                ))
            }
            Content::Bytes(bytes) => {
                let mut cursor = Cursor::new(bytes.as_slice());
                cursor.set_position(from);
                Ok(Box::new(cursor.take(length)))
            }
        }
    }

    /// All of it, for a request's text.
    pub(super) fn read(&self) -> Result<Vec<u8>, PushError> {
        let mut bytes = Vec::new();
        // One byte more tells a file that has grown.
        self.open(0, self.bytes + 1)?
            .read_to_end(&mut bytes)
            .map_err(|source| self.unreadable(source))?;
        self.check(bytes.len() as u64)?;
        Ok(bytes)
    }

    pub(super) fn sample(&self) -> Result<Vec<u8>, PushError> {
        let mut bytes = Vec::new();
        self.open(0, SAMPLE)?
            .read_to_end(&mut bytes)
            .map_err(|source| self.unreadable(source))?;
        Ok(bytes)
    }

    /// The SHA-256 of all of it, in hexadecimal digits.
    pub(super) fn sha256(&self) -> Result<String, PushError> {
        let mut hash = Sha256::new();
        let mut reader = self.open(0, self.bytes + 1)?;
        let (mut buffer, mut read) = (vec![0; 1 << 18], 0);
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    hash.update(&buffer[..count]);
                    read += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.unreadable(source)),
            }
        }
        self.check(read)?;
        Ok(hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect())
    }

    fn check(&self, actual: u64) -> Result<(), PushError> {
        if actual == self.bytes {
            return Ok(());
        }
        Err(PushError::Changed {
            path: self.path().to_owned(),
            expected: self.bytes,
            actual,
        })
    }

    pub(super) fn unreadable(&self, source: io::Error) -> PushError {
        PushError::Read {
            path: self.path().to_owned(),
            source,
        }
    }
}
