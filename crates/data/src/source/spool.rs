//! Pipes: read once, into a temporary file that can be read again.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tempfile::NamedTempFile;

use crate::error::DataError;

/// The bytes that came out of a pipe. The file is removed with its last copy.
#[derive(Debug)]
pub struct Spool(NamedTempFile);

impl Spool {
    /// Where the bytes lie.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl PartialEq for Spool {
    fn eq(&self, other: &Self) -> bool {
        self.path() == other.path()
    }
}

impl Eq for Spool {}

impl Hash for Spool {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.path().hash(state);
    }
}

/// Pipes that somebody still holds the bytes of: they cannot be read a second time.
static SPOOLS: Mutex<Vec<(PathBuf, Weak<Spool>)>> = Mutex::new(Vec::new());

/// Whether a path leads to something that is neither file nor folder: a pipe, a socket, a terminal.
pub(super) fn is_pipe(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// The bytes of a pipe, which is read to its end unless somebody holds them already.
pub(super) fn spool(path: &Path) -> Result<Arc<Spool>, DataError> {
    let mut spools = SPOOLS.lock().unwrap_or_else(PoisonError::into_inner);
    spools.retain(|(_, spool)| spool.strong_count() > 0);
    let known = spools.iter().find(|(known, _)| known == path);
    if let Some(spool) = known.and_then(|(_, spool)| spool.upgrade()) {
        return Ok(spool);
    }
    let spool = Arc::new(read(path)?);
    spools.push((path.to_owned(), Arc::downgrade(&spool)));
    Ok(spool)
}

fn read(path: &Path) -> Result<Spool, DataError> {
    let io = |source| DataError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = std::env::temp_dir();
    let spool = |source| DataError::Spool {
        path: path.to_owned(),
        folder: folder.clone(),
        source,
    };
    let mut pipe = open(path)?;
    let mut file = NamedTempFile::with_prefix("backdraft-rows-").map_err(spool)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let count = match pipe.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io(error)),
        };
        file.write_all(&buffer[..count]).map_err(spool)?;
    }
    Ok(Spool(file))
}

fn open(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let refuse = |found| DataError::NotRows {
        path: path.to_owned(),
        found,
        next: "name a file, or pipe rows into it",
    };
    // A socket has no name that could be opened, and as standard input needs none.
    if ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"].contains(&&*path.to_string_lossy()) {
        return match io::stdin().is_terminal() {
            true => Err(refuse("a terminal")),
            false => Ok(Box::new(io::stdin().lock())),
        };
    }
    if is_device(path) {
        return Err(refuse("a device"));
    }
    let file = File::open(path).map_err(|source| DataError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(Box::new(file))
}

#[cfg(unix)]
fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|metadata| {
        metadata.file_type().is_char_device() || metadata.file_type().is_block_device()
    })
}

#[cfg(not(unix))]
fn is_device(_: &Path) -> bool {
    false
}
