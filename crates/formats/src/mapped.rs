//! Read-only memory maps.

use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::Path;

use crate::error::{FormatError, Result};

/// The bytes of a file, mapped into memory; empty for an empty file.
#[derive(Debug)]
pub(crate) struct Mapped(Option<memmap2::Mmap>);

impl Mapped {
    /// Maps `path`, which must be a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => FormatError::NotFound { path: path.into() },
            _ => FormatError::io(path, "read")(source),
        })?;
        // Asked before opening: to open a pipe would wait for its other end.
        if !metadata.is_file() {
            return Err(FormatError::NotAModel {
                path: path.into(),
                actual: "something that is not a regular file".into(),
            });
        }
        let file = File::open(path).map_err(FormatError::io(path, "open"))?;
        if metadata.len() == 0 {
            return Ok(Self(None));
        }
        #[expect(
            unsafe_code,
            reason = "a map is the only way to read one tensor at a time"
        )]
        // SAFETY: the map is private and read-only, and every type read from it accepts any bit
        // pattern, so its contents cannot break an invariant of ours. Another process that
        // shortens the file while it is mapped makes the read fail with SIGBUS, which ends the
        // program: the files of a model are documented as not to be written while in use.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(FormatError::io(path, "map"))?;
        Ok(Self(Some(map)))
    }
}

impl Mapped {
    /// Lets the system take back the memory of a range that was read; reading it again is possible.
    #[cfg_attr(
        not(unix),
        expect(unused_variables, reason = "others take it by themselves")
    )]
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.0 {
            #[expect(
                unsafe_code,
                reason = "the advice could drop what was written to a map"
            )]
            // SAFETY: nothing is ever written to this map, so dropping its pages changes no byte: the next read
            // fetches them from the file again. A refused advice leaves the pages, which is harmless.
            let _ = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}
