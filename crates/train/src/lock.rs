//! One run at a time in an output directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use backdraft_formats::FormatError;
use backdraft_journal::text::host;

use crate::error::TrainError;

/// An output directory that this process may write to, until this is dropped or the process ends,
/// however it ends: the system gives the lock back.
#[derive(Debug)]
pub struct RunLock {
    file: File,
    output_dir: PathBuf,
}

impl RunLock {
    /// Name of the file that is locked; what it holds says who did it.
    pub const FILE: &'static str = ".lock";

    /// Locks `output_dir`, which is made where it is missing.
    ///
    /// # Errors
    /// [`TrainError::Locked`] with the owner if another process has it; a system that refuses.
    pub fn acquire(output_dir: &Path) -> Result<Self, TrainError> {
        fs::create_dir_all(output_dir).map_err(FormatError::io(output_dir, "create"))?;
        let path = output_dir.join(RunLock::FILE);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(FormatError::io(&path, "create"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                // Some systems keep others from reading it too.
                let _ = file.take(1000).read_to_string(&mut owner);
                return Err(TrainError::Locked {
                    path: output_dir.to_owned(),
                    owner: owner.trim().to_owned(),
                });
            }
            // Some network file systems know no locks: a run there goes without.
            Err(TryLockError::Error(source)) if knows_no_locks(&source) => {}
            Err(TryLockError::Error(source)) => {
                return Err(FormatError::io(path, "lock")(source).into());
            }
        }
        let note = format!("process {} on {}\n", std::process::id(), host());
        // Who it is helps people only; a full disk is no reason to refuse.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(note.as_bytes()));
        Ok(Self {
            file,
            output_dir: output_dir.to_owned(),
        })
    }

    /// Takes away the file, and the directory if there was nothing else in it: it was no run's.
    pub(crate) fn forget(&self) {
        // What cannot be removed harms nobody.
        let _ = fs::remove_file(self.output_dir.join(RunLock::FILE));
        let _ = fs::remove_dir(&self.output_dir);
    }

    /// The directory.
    #[must_use]
    pub fn output_dir(&self) -> &Path {
        &self.output_dir
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // The file stays: who removes it might remove the lock of a process that came in between.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

fn knows_no_locks(error: &std::io::Error) -> bool {
    const ENOLCK: i32 = 37;
    error.kind() == std::io::ErrorKind::Unsupported
        || cfg!(target_os = "linux") && error.raw_os_error() == Some(ENOLCK)
}

/// Whether a process that is alive holds the lock of `output_dir`.
#[must_use]
pub fn is_held(output_dir: &Path) -> bool {
    let path = output_dir.join(RunLock::FILE);
    let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else {
        return false;
    };
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_told_who_was_first() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("deep/out");
        assert!(!is_held(&directory));
        let first = RunLock::acquire(&directory).unwrap();
        assert!(is_held(&directory));
        let error = RunLock::acquire(&directory).unwrap_err();
        let expected = format!("process {}", std::process::id());
        assert!(error.to_string().contains(&expected), "{error}");
        drop(first);
        assert!(!is_held(&directory));
        RunLock::acquire(&directory).unwrap();
    }
}
