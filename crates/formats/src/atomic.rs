//! Files that appear whole or not at all; directories do in [`crate::atomic_dir`].
//!
//! Both kinds are written under a hidden temporary name beside their target, flushed to the disk,
//! and renamed. Whatever fails on the way, a full disk included, the temporary is removed and the
//! target is as it was. Only a process that is killed leaves a temporary behind; its name starts
//! with a dot and contains `.partial-`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::error::{FormatError, Result};
use crate::fault;

/// What to do with a target that is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Fail with [`FormatError::TargetExists`].
    #[default]
    Refuse,
    /// Replace it, in one step where the system can.
    Replace,
}

/// A file being written under a temporary name.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    existing: Existing,
    file: BufWriter<NamedTempFile>,
}

impl AtomicFile {
    /// Starts a file that will be called `target`, in a directory that exists.
    ///
    /// # Errors
    /// If the target exists and must not be replaced, is a directory, or the temporary cannot be made.
    pub fn create(target: impl Into<PathBuf>, existing: Existing) -> Result<Self> {
        let target = target.into();
        if target.is_dir() {
            return Err(FormatError::NotAFile { path: target });
        }
        refuse_existing(&target, existing)?;
        fault::point("create", &target)?;
        let mut builder = Builder::new();
        let prefix = temporary_prefix(&target);
        builder.prefix(&prefix);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder
            .tempfile_in(parent(&target))
            .map_err(FormatError::io(&target, "create"))?;
        Ok(Self {
            file: BufWriter::with_capacity(1 << 20, file),
            target,
            existing,
        })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// If the system refuses, for instance because the disk is full.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        fault::point("write", &self.target)?;
        self.file
            .write_all(bytes)
            .map_err(FormatError::io(&self.target, "write"))
    }

    /// Moves to a byte offset from the start; what lies between reads as zeros.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn seek(&mut self, offset: u64) -> Result<()> {
        self.file
            .seek(SeekFrom::Start(offset))
            .map(|_| ())
            .map_err(FormatError::io(&self.target, "seek in"))
    }

    /// The name that the file will have.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes the file to the disk and gives it its name.
    ///
    /// # Errors
    /// If the system refuses, or a file of that name has appeared that must not be replaced.
    pub fn commit(self) -> Result<()> {
        let Self {
            target,
            existing,
            file,
        } = self;
        fault::point("write", &target)?;
        let file = file
            .into_inner()
            .map_err(io::IntoInnerError::into_error)
            .map_err(FormatError::io(&target, "write"))?;
        fault::point("flush", &target)?;
        file.as_file()
            .sync_all()
            .map_err(FormatError::io(&target, "flush"))?;
        fault::point("rename", &target)?;
        let persisted = match existing {
            Existing::Replace => file.persist(&target),
            Existing::Refuse => file.persist_noclobber(&target),
        };
        match persisted {
            Ok(_) => {}
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(FormatError::TargetExists { path: target });
            }
            Err(error) => return Err(FormatError::io(&target, "rename")(error.error)),
        }
        sync_directory(parent(&target))
    }
}

/// Writes a whole file in one call.
///
/// # Errors
/// As [`AtomicFile::create`] and [`AtomicFile::commit`].
pub fn write_file(target: impl Into<PathBuf>, bytes: &[u8], existing: Existing) -> Result<()> {
    let mut file = AtomicFile::create(target, existing)?;
    file.write_all(bytes)?;
    file.commit()
}

pub(crate) fn remove(path: &Path) -> Result<()> {
    fault::point("remove", path)?;
    let removed = if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.map_err(FormatError::io(path, "remove"))
}

pub(crate) fn refuse_existing(target: &Path, existing: Existing) -> Result<()> {
    // `symlink_metadata`: a dangling link is something too.
    if existing == Existing::Refuse && fs::symlink_metadata(target).is_ok() {
        return Err(FormatError::TargetExists {
            path: target.into(),
        });
    }
    Ok(())
}

pub(crate) fn is_empty_directory(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}

pub(crate) fn parent(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

pub(crate) fn temporary_prefix(target: &Path) -> String {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.partial-")
}

pub(crate) fn sync_tree(directory: &Path) -> Result<()> {
    let entries = fs::read_dir(directory).map_err(FormatError::io(directory, "list"))?;
    for entry in entries {
        let path = entry.map_err(FormatError::io(directory, "list"))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            fault::point("flush", &path)?;
            // Windows flushes what is open for writing, and only that.
            File::options()
                .read(true)
                .write(cfg!(windows))
                .open(&path)
                .and_then(|file| file.sync_all())
                .map_err(FormatError::io(&path, "flush"))?;
        }
    }
    sync_directory(directory)
}

/// Removes what killed processes left of [`AtomicFile`]s and [`AtomicDir`](crate::AtomicDir)s in `directory`, and gives the
/// names. Only for a directory that nobody else writes to.
///
/// # Errors
/// If the system refuses; a directory that does not exist is none.
pub fn remove_partials(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(FormatError::io(directory, "list"))?,
    };
    let mut removed = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FormatError::io(directory, "list"))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.contains(".partial-") {
            remove(&entry.path())?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

/// Makes a rename inside `directory` durable.
///
/// # Errors
/// If the system refuses.
pub fn sync_directory(directory: &Path) -> Result<()> {
    // Windows cannot open a directory as a file, and makes renames durable by itself.
    if cfg!(unix) {
        fault::point("flush", directory)?;
        match File::open(directory).and_then(|file| file.sync_all()) {
            // Some network file systems flush no directories, and one that may be written need not be
            // readable: what is in it is there all the same.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput
                        | io::ErrorKind::Unsupported
                        | io::ErrorKind::PermissionDenied
                ) => {}
            flushed => flushed.map_err(FormatError::io(directory, "flush"))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn file_appears_only_on_commit() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a.json");
        let mut file = AtomicFile::create(&target, Existing::Refuse).unwrap();
        file.write_all(b"hello").unwrap();
        assert!(!target.exists());
        file.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"hello");
        assert_eq!(names(root.path()), ["a.json"]);
    }

    #[test]
    fn dropped_file_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(root.path().join("a"), Existing::Refuse).unwrap();
        file.write_all(b"hello").unwrap();
        drop(file);
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn existing_file_is_kept_unless_told() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a");
        write_file(&target, b"old", Existing::Refuse).unwrap();
        let error = write_file(&target, b"new", Existing::Refuse).unwrap_err();
        assert!(matches!(error, FormatError::TargetExists { .. }), "{error}");
        assert_eq!(fs::read(&target).unwrap(), b"old");
        write_file(&target, b"new", Existing::Replace).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn a_directory_is_never_replaced_by_a_file() {
        let root = tempfile::tempdir().unwrap();
        for existing in [Existing::Refuse, Existing::Replace] {
            let error = write_file(root.path(), b"new", existing).unwrap_err();
            assert!(matches!(error, FormatError::NotAFile { .. }), "{error}");
        }
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn file_that_appears_meanwhile_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a");
        let file = AtomicFile::create(&target, Existing::Refuse).unwrap();
        fs::write(&target, b"other").unwrap();
        let error = file.commit().unwrap_err();
        assert!(matches!(error, FormatError::TargetExists { .. }), "{error}");
        assert_eq!(fs::read(&target).unwrap(), b"other");
        assert_eq!(names(root.path()), ["a"]);
    }

    #[test]
    fn leftovers_of_a_kill_are_removed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        assert!(
            remove_partials(&root.path().join("nowhere"))
                .unwrap()
                .is_empty()
        );
        fs::write(root.path().join("a"), b"1").unwrap();
        fs::write(root.path().join(".hidden"), b"1").unwrap();
        fs::write(root.path().join(".a.partial-x1"), b"1").unwrap();
        fs::create_dir(root.path().join(".d.partial-x2")).unwrap();
        fs::write(root.path().join(".d.partial-x2/y"), b"1").unwrap();
        assert_eq!(remove_partials(root.path()).unwrap().len(), 2);
        assert_eq!(names(root.path()), [".hidden", "a"]);
    }

    #[cfg(unix)]
    #[test]
    fn others_may_read_what_the_umask_allows() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let plain = root.path().join("plain");
        fs::write(&plain, b"").unwrap();
        let atomic = root.path().join("atomic");
        write_file(&atomic, b"", Existing::Refuse).unwrap();
        let mode = |path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(plain), mode(atomic));
    }
}
