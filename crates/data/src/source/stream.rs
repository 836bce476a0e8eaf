//! The bytes of a file: counted, decompressed within limits, watched for changes.

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::file::{Compression, DataFile};
use crate::error::DataError;

const BUFFER: usize = 1 << 18;

/// How far a compressed file may grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecompressLimits {
    /// Bytes that may come of each compressed byte, beyond [`Self::free_bytes`].
    pub max_ratio: u64,
    /// Bytes that may come of any file.
    pub free_bytes: u64,
}

impl Default for DecompressLimits {
    /// 200 to 1 beyond 256 MiB: text rarely goes beyond 20 to 1.
    fn default() -> Self {
        Self {
            max_ratio: 200,
            free_bytes: 256 << 20,
        }
    }
}

/// The readable side of a file.
pub(super) type Bytes = Box<dyn BufRead + Send>;

/// Opens a file for reading its text; bytes taken from the disk are added to `read`.
pub(super) fn open(
    file: &DataFile,
    limits: DecompressLimits,
    read: &Arc<AtomicU64>,
) -> Result<Bytes, DataError> {
    let io = |source| DataError::Io {
        path: file.path.clone(),
        source,
    };
    let disk = File::open(&file.path).map_err(io)?;
    let before = read.load(Ordering::Relaxed);
    let counted = BufReader::with_capacity(
        BUFFER,
        Counted {
            inner: disk,
            read: Arc::clone(read),
        },
    );
    let limited = |inner| Limited {
        inner,
        read: Arc::clone(read),
        before,
        written: 0,
        limits,
    };
    Ok(match file.compression {
        Compression::None => Box::new(counted),
        Compression::Gzip => Box::new(BufReader::with_capacity(
            BUFFER,
            limited(Box::new(flate2::bufread::MultiGzDecoder::new(counted)) as Box<dyn Read + Send>),
        )),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(counted).map_err(io)?;
            Box::new(BufReader::with_capacity(BUFFER, limited(Box::new(decoder))))
        }
    })
}

/// The error of reading `path`, told apart from what our own readers raise.
pub(crate) fn read_error(path: &Path, source: io::Error) -> DataError {
    let path = path.to_owned();
    if let Some(bomb) = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Grown>())
    {
        return DataError::Bomb {
            path,
            max_ratio: bomb.max_ratio,
            read: bomb.read,
            written: bomb.written,
        };
    }
    if let Some(inner) = source.get_ref()
        && inner.is::<Damaged>()
    {
        return DataError::Compressed { path, source };
    }
    DataError::Io { path, source }
}

/// What must stay the same while a file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    bytes: u64,
    modified: Option<std::time::SystemTime>,
}

impl Stamp {
    pub(crate) fn of(path: &Path) -> Result<Self, DataError> {
        let metadata: Metadata = std::fs::metadata(path).map_err(|source| DataError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }

    /// Refuses a file that is not what it was.
    pub(crate) fn check(&self, path: &Path) -> Result<(), DataError> {
        let now = Self::of(path)?;
        if *self == now {
            return Ok(());
        }
        let (expected, actual) = if self.bytes == now.bytes {
            (
                "its time of change to stay".to_owned(),
                "a later one".to_owned(),
            )
        } else {
            (
                format!("{} bytes", self.bytes),
                format!("{} bytes", now.bytes),
            )
        };
        Err(DataError::Changed {
            path: path.to_owned(),
            expected,
            actual,
        })
    }
}

struct Counted {
    inner: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// More bytes than the limits allow.
#[derive(Debug, thiserror::Error)]
#[error("{written} bytes came of {read}")]
struct Grown {
    max_ratio: u64,
    read: u64,
    written: u64,
}

/// What the decompressor says.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Damaged(io::Error);

struct Limited {
    inner: Box<dyn Read + Send>,
    read: Arc<AtomicU64>,
    before: u64,
    written: u64,
    limits: DecompressLimits,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self
            .inner
            .read(buffer)
            .map_err(|error| io::Error::new(error.kind(), Damaged(error)))?;
        self.written += count as u64;
        let read = self.read.load(Ordering::Relaxed) - self.before;
        let DecompressLimits {
            max_ratio,
            free_bytes,
        } = self.limits;
        if self.written > read.saturating_mul(max_ratio).max(free_bytes) {
            return Err(io::Error::other(Grown {
                max_ratio,
                read,
                written: self.written,
            }));
        }
        Ok(count)
    }
}
