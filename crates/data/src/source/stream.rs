//! The bytes of a file: counted, decompressed within limits, watched for changes.

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;

use super::file::{Compression, DataFile};
use super::head;
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

/// Bytes that are looked at before the rest is read.
const HEAD: u64 = 1 << 16;

/// A file whose first bytes are known.
pub(super) struct Opened {
    /// The first bytes, without a byte-order mark.
    pub(super) head: Vec<u8>,
    /// All of them.
    pub(super) bytes: Bytes,
}

/// Opens a file for reading its text; bytes taken from the disk are added to `read`.
pub(super) fn open(
    file: &DataFile,
    limits: DecompressLimits,
    read: &Arc<AtomicU64>,
) -> Result<Opened, DataError> {
    let mut bytes = decompressed(file, limits, read)?;
    let mut head = Vec::new();
    let failed = (&mut bytes).take(HEAD).read_to_end(&mut head).err();
    head.drain(..head::mark_length(&head));
    let begin = io::Cursor::new(head.clone());
    let bytes: Bytes = match failed {
        None => Box::new(begin.chain(bytes)),
        // What can be read before is read before.
        Some(error) => Box::new(begin.chain(BufReader::new(Fails(Some(error))))),
    };
    Ok(Opened { head, bytes })
}

/// A reader that fails, once.
struct Fails(Option<io::Error>);

impl Read for Fails {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

fn decompressed(
    file: &DataFile,
    limits: DecompressLimits,
    read: &Arc<AtomicU64>,
) -> Result<Bytes, DataError> {
    let io = |source| DataError::Io {
        path: file.path.clone(),
        source,
    };
    let disk = File::open(file.content()).map_err(io)?;
    let before = read.load(Ordering::Relaxed);
    let mut counted = BufReader::with_capacity(
        BUFFER,
        Counted {
            inner: disk,
            read: Arc::clone(read),
        },
    );
    let compression = match file.compression {
        Compression::None => head::compression(counted.fill_buf().map_err(io)?),
        named => named,
    };
    let limited = |inner| Limited {
        inner,
        read: Arc::clone(read),
        before,
        written: 0,
        limits,
    };
    Ok(match compression {
        Compression::None => Box::new(counted),
        Compression::Gzip => Box::new(BufReader::with_capacity(
            BUFFER,
            limited(Box::new(Members::new(counted)) as Box<dyn Read + Send>),
        )),
        Compression::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(counted).map_err(io)?;
            Box::new(BufReader::with_capacity(BUFFER, limited(Box::new(decoder))))
        }
    })
}

/// The members of a gzip file one after another; zeros behind the last one are padding, as gzip
/// itself has it.
struct Members<R: BufRead> {
    decoder: Option<GzDecoder<R>>,
}

impl<R: BufRead> Members<R> {
    fn new(reader: R) -> Self {
        Self {
            decoder: Some(GzDecoder::new(reader)),
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.decoder {
            let count = decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let mut reader = match self.decoder.take() {
                Some(decoder) => decoder.into_inner(),
                None => break,
            };
            if !skip_zeros(&mut reader)? {
                self.decoder = Some(GzDecoder::new(reader));
            }
        }
        Ok(0)
    }
}

/// Whether nothing but zeros is left.
fn skip_zeros(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = reader.fill_buf()?;
        let (zeros, all) = match bytes.iter().position(|byte| *byte != 0) {
            Some(at) => (at, false),
            None => (bytes.len(), true),
        };
        if bytes.is_empty() {
            return Ok(true);
        }
        reader.consume(zeros);
        if !all {
            return Ok(false);
        }
    }
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
#[error("{read} compressed bytes became {written}")]
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
