//! Directories that appear whole or not at all, and take nothing away that is not theirs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{Builder, TempDir};

use crate::atomic::{
    Existing, is_empty_directory, parent, refuse_existing, remove, sync_directory, sync_tree,
    temporary_prefix,
};
use crate::error::{FormatError, Result};
use crate::fault;

/// Whether a file is one that an earlier writing of the same kind may have left, by its path inside
/// the directory.
pub type IsOurs = fn(&Path) -> bool;

/// A directory being filled under a temporary name.
///
/// With [`Existing::Replace`] only files that the writer writes, or may have written before, are
/// replaced. A directory that holds nothing else is replaced in one step; where it holds other
/// files, those stay, and the new ones are moved in beside them.
#[derive(Debug)]
pub struct AtomicDir {
    target: PathBuf,
    existing: Existing,
    is_ours: IsOurs,
    staging: TempDir,
    /// Whether the temporary directory lies inside the target.
    inside: bool,
}

impl AtomicDir {
    /// Starts a directory that will be called `target`; missing parents are made. `is_ours` knows
    /// the files of an earlier writing.
    ///
    /// An empty directory of that name does not count as existing.
    ///
    /// # Errors
    /// If the target exists and must not be replaced, is a file, or the temporary cannot be made.
    pub fn create(target: impl Into<PathBuf>, existing: Existing, is_ours: IsOurs) -> Result<Self> {
        let mut target = target.into();
        if !is_empty_directory(&target) {
            refuse_existing(&target, existing)?;
        }
        if fs::symlink_metadata(&target).is_ok() {
            if !target.is_dir() {
                return Err(FormatError::NotADirectory { path: target });
            }
            // What a link leads to is written, and the link stays.
            target = fs::canonicalize(&target).map_err(FormatError::io(&target, "open"))?;
        }
        fault::point("create", &target)?;
        let (staging, inside) = staging_of(&target)?;
        Ok(Self {
            target,
            existing,
            is_ours,
            staging,
            inside,
        })
    }

    /// The temporary directory, to write into.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.staging.path()
    }

    /// The name that the directory will have.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes everything inside to the disk and gives the directory its name.
    ///
    /// What is replaced is first moved aside, and moved back if anything fails.
    ///
    /// # Errors
    /// If the system refuses, or a target has appeared that must not be replaced.
    pub fn commit(self) -> Result<()> {
        sync_tree(self.staging.path())?;
        let mut files = Vec::new();
        list(self.staging.path(), Path::new(""), &mut files)?;
        let replaces = self.existing == Existing::Replace && self.target.is_dir();
        if self.inside || replaces && self.holds_others(&files)? {
            self.move_in(&files)
        } else {
            self.swap()
        }
    }

    /// Replaces the whole directory in one step.
    fn swap(self) -> Result<()> {
        let aside = self.move_target_aside()?;
        let renamed = fault::point("rename", &self.target).and_then(|()| {
            fs::rename(self.staging.path(), &self.target).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty => {
                    FormatError::TargetExists {
                        path: self.target.clone(),
                    }
                }
                _ => FormatError::io(&self.target, "rename")(source),
            })
        });
        if let Err(error) = renamed {
            if let Some(aside) = &aside {
                // Best effort: the first error is the one to report.
                let _ = fs::rename(aside, &self.target);
            }
            return Err(error);
        }
        // The rename took the directory away from its guard.
        let _ = self.staging.keep();
        sync_directory(parent(&self.target))?;
        match aside {
            Some(aside) => remove(&aside),
            None => Ok(()),
        }
    }

    fn move_target_aside(&self) -> Result<Option<PathBuf>> {
        if self.existing == Existing::Refuse || fs::symlink_metadata(&self.target).is_err() {
            return Ok(None);
        }
        let aside = self.aside();
        fault::point("move aside", &self.target)?;
        fs::rename(&self.target, &aside).map_err(FormatError::io(&self.target, "move aside"))?;
        Ok(Some(aside))
    }

    fn aside(&self) -> PathBuf {
        let mut name = self.staging.path().as_os_str().to_owned();
        name.push(".replaced");
        PathBuf::from(name)
    }

    /// Whether the target holds anything that this writer neither writes nor wrote before.
    fn holds_others(&self, files: &[PathBuf]) -> Result<bool> {
        let folders = folders(files);
        let mut pending = vec![PathBuf::new()];
        while let Some(folder) = pending.pop() {
            for (inside, is_folder) in entries(&self.target, &folder)? {
                match is_folder {
                    true if folders.contains(&inside) => pending.push(inside),
                    false if (self.is_ours)(&inside) || files.contains(&inside) => {}
                    _ => return Ok(true),
                }
            }
        }
        Ok(false)
    }

    /// Moves the new files in, one after the other, and those that they replace out.
    fn move_in(self, files: &[PathBuf]) -> Result<()> {
        let folders = folders(files);
        for folder in &folders {
            let path = self.target.join(folder);
            if fs::symlink_metadata(&path).is_ok() && !path.is_dir() {
                return Err(FormatError::NotADirectory { path });
            }
        }
        let replaced = self.replaced(files, &folders)?;
        let aside = self.aside();
        let staging = self.staging.path();
        let mut moves = Moves::default();
        let moved = replaced
            .iter()
            .try_for_each(|file| moves.add(&self.target, &aside, file))
            .and_then(|()| {
                files
                    .iter()
                    .try_for_each(|file| moves.add(staging, &self.target, file))
            });
        if let Err(error) = moved {
            moves.undo();
            // Empty again, unless the undoing failed as well.
            remove_empty_folders(&aside);
            return Err(error);
        }
        for folder in &folders {
            sync_directory(&self.target.join(folder))?;
        }
        match fs::symlink_metadata(&aside) {
            Ok(_) => remove(&aside),
            Err(_) => Ok(()),
        }
    }

    /// The files of the target that are replaced or belong to an earlier writing.
    fn replaced(&self, files: &[PathBuf], folders: &BTreeSet<PathBuf>) -> Result<Vec<PathBuf>> {
        let mut replaced = Vec::new();
        for folder in folders {
            if !self.target.join(folder).is_dir() {
                continue;
            }
            for (inside, is_folder) in entries(&self.target, folder)? {
                let written = files.contains(&inside);
                let path = || self.target.join(&inside);
                if self.existing == Existing::Refuse && written {
                    return Err(FormatError::TargetExists { path: path() });
                }
                if is_folder && written {
                    return Err(FormatError::NotAFile { path: path() });
                }
                let left = self.existing == Existing::Replace && (self.is_ours)(&inside);
                if !is_folder && (written || left) {
                    replaced.push(inside);
                }
            }
        }
        Ok(replaced)
    }
}

/// A temporary directory beside `target`, or inside it where a rename from beside it cannot work:
/// it is a mount point, or its parent cannot be written.
fn staging_of(target: &Path) -> Result<(TempDir, bool)> {
    let parent = parent(target);
    fs::create_dir_all(parent).map_err(FormatError::io(parent, "create"))?;
    let mut builder = Builder::new();
    let prefix = temporary_prefix(target);
    builder.prefix(&prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let inside = || builder.tempdir_in(target).map(|staging| (staging, true));
    let staging = match is_mount_point(target, parent) {
        true => inside(),
        false => match builder.tempdir_in(parent) {
            Err(error) if target.is_dir() => inside().map_err(|_| error),
            staging => staging.map(|staging| (staging, false)),
        },
    };
    staging.map_err(FormatError::io(target, "create"))
}

#[cfg(unix)]
fn is_mount_point(target: &Path, parent: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).ok().map(|metadata| metadata.dev());
    device(target).is_some_and(|own| device(parent) != Some(own))
}

#[cfg(not(unix))]
fn is_mount_point(_: &Path, _: &Path) -> bool {
    false
}

/// Renames that can be undone.
#[derive(Default)]
struct Moves(Vec<(PathBuf, PathBuf)>);

impl Moves {
    fn add(&mut self, from: &Path, to: &Path, file: &Path) -> Result<()> {
        let (from, to) = (from.join(file), to.join(file));
        fault::point("rename", &to)?;
        let folder = parent(&to);
        fs::create_dir_all(folder).map_err(FormatError::io(folder, "create"))?;
        fs::rename(&from, &to).map_err(FormatError::io(&to, "rename"))?;
        self.0.push((from, to));
        Ok(())
    }

    /// Best effort: the error that led here is the one to report.
    fn undo(self) {
        for (from, to) in self.0.into_iter().rev() {
            let _ = fs::rename(to, from);
        }
    }
}

/// Files under `root/folder` by their paths from `root`, sorted.
fn list(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for (inside, is_folder) in entries(root, folder)? {
        match is_folder {
            true => list(root, &inside, files)?,
            false => files.push(inside),
        }
    }
    files.sort();
    Ok(())
}

/// The folders that some files lie in, the root included.
fn folders(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let ancestors = files.iter().flat_map(|file| file.ancestors().skip(1));
    let root = std::iter::once(Path::new(""));
    root.chain(ancestors).map(Path::to_owned).collect()
}

/// What stands in `root/folder`, by its path from `root`, and whether it is a folder; temporaries
/// of this module are left out.
fn entries(root: &Path, folder: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let path = root.join(folder);
    let mut found = Vec::new();
    for entry in fs::read_dir(&path).map_err(FormatError::io(&path, "list"))? {
        let entry = entry.map_err(FormatError::io(&path, "list"))?;
        let name = entry.file_name();
        if is_partial(&name.to_string_lossy()) {
            continue;
        }
        found.push((folder.join(name), entry.path().is_dir()));
    }
    Ok(found)
}

fn is_partial(name: &str) -> bool {
    name.starts_with('.') && name.contains(".partial-")
}

fn remove_empty_folders(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_empty_folders(&entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(file: &Path) -> bool {
        file == Path::new("old.json") || file == Path::new("sub/old")
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut files = Vec::new();
        list(directory, Path::new(""), &mut files).unwrap();
        let name = |file: PathBuf| file.to_str().unwrap().to_owned();
        files.into_iter().map(name).collect()
    }

    fn write(directory: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    fn read(path: PathBuf) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn directory_is_renamed_whole() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("deep/er/out");
        let dir = AtomicDir::create(&target, Existing::Refuse, ours).unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/x"), b"1").unwrap();
        assert!(!target.exists());
        dir.commit().unwrap();
        assert_eq!(names(target.parent().unwrap()), ["out/sub/x"]);
        assert_eq!(read(target.join("sub/x")), "1");
    }

    #[test]
    fn directory_with_content_is_kept_unless_told() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        fs::create_dir(&target).unwrap();
        let first = AtomicDir::create(&target, Existing::Refuse, ours).unwrap();
        fs::write(first.path().join("old.json"), b"1").unwrap();
        let second = AtomicDir::create(&target, Existing::Refuse, ours).unwrap();
        first.commit().unwrap();
        let error = second.commit().unwrap_err();
        assert!(matches!(error, FormatError::TargetExists { .. }), "{error}");
        assert!(AtomicDir::create(&target, Existing::Refuse, ours).is_err());
        let third = AtomicDir::create(&target, Existing::Replace, ours).unwrap();
        fs::write(third.path().join("third"), b"3").unwrap();
        third.commit().unwrap();
        assert_eq!(names(root.path()), ["out/third"]);
    }

    #[test]
    fn dropped_directory_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let dir = AtomicDir::create(root.path().join("out"), Existing::Refuse, ours).unwrap();
        fs::write(dir.path().join("x"), b"1").unwrap();
        drop(dir);
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn what_is_not_ours_stays_where_it_is() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let before = [
            ("notes.md", "mine"),
            (".git/HEAD", "mine"),
            ("data/new", "mine"),
            ("sub/mine", "mine"),
            ("sub/old", "stale"),
            ("old.json", "stale"),
            ("new.json", "old"),
        ];
        write(&target, &before);
        let dir = AtomicDir::create(&target, Existing::Replace, ours).unwrap();
        write(dir.path(), &[("new.json", "new"), ("sub/new", "new")]);
        dir.commit().unwrap();
        let expected = [
            ".git/HEAD",
            "data/new",
            "new.json",
            "notes.md",
            "sub/mine",
            "sub/new",
        ];
        assert_eq!(names(&target), expected);
        assert_eq!(read(target.join("new.json")), "new");
        for mine in ["notes.md", ".git/HEAD", "data/new", "sub/mine"] {
            assert_eq!(read(target.join(mine)), "mine");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 5);
    }

    #[test]
    fn a_failure_on_the_way_leaves_the_old_files() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("out");
        let before = [("a", "old"), ("old.json", "old"), ("b/mine", "mine")];
        write(&target, &before);
        let dir = AtomicDir::create(&target, Existing::Replace, ours).unwrap();
        write(dir.path(), &[("a", "new"), ("c", "new")]);
        // It is listed, and gone when it is to be moved.
        fs::remove_file(dir.path().join("c")).unwrap();
        let files = ["a", "c"].map(PathBuf::from);
        assert!(dir.move_in(&files).is_err());
        assert_eq!(names(&target), ["a", "b/mine", "old.json"]);
        assert_eq!(read(target.join("a")), "old");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_no_directory_and_a_directory_no_file() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("notes.md");
        fs::write(&file, "mine").unwrap();
        let error = AtomicDir::create(&file, Existing::Replace, ours).unwrap_err();
        assert!(
            matches!(error, FormatError::NotADirectory { .. }),
            "{error}"
        );
        assert_eq!(read(file), "mine");
        let target = root.path().join("out");
        write(&target, &[("config.json/mine", "mine"), ("a", "old")]);
        let dir = AtomicDir::create(&target, Existing::Replace, ours).unwrap();
        write(dir.path(), &[("a", "new"), ("config.json", "new")]);
        let error = dir.commit().unwrap_err();
        assert!(matches!(error, FormatError::NotAFile { .. }), "{error}");
        assert_eq!(names(&target), ["a", "config.json/mine"]);
        assert_eq!(read(target.join("a")), "old");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_directory_stays_a_link() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().join("real");
        write(&real, &[("old.json", "old")]);
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let dir = AtomicDir::create(&link, Existing::Replace, ours).unwrap();
        write(dir.path(), &[("new", "new")]);
        dir.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(names(&real), ["new"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_whose_parent_cannot_be_written_is_filled_from_inside() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let closed = root.path().join("closed");
        let target = closed.join("out");
        write(&target, &[("mine", "mine"), ("a", "old")]);
        let mode = |mode| fs::set_permissions(&closed, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o555);
        let (dir, is_root) = (
            AtomicDir::create(&target, Existing::Replace, ours).unwrap(),
            fs::write(closed.join("probe"), "").is_ok(),
        );
        write(dir.path(), &[("a", "new")]);
        // The superuser writes anywhere.
        assert!(dir.inside || is_root);
        dir.commit().unwrap();
        mode(0o755);
        assert_eq!(read(target.join("a")), "new");
        assert_eq!(names(&target), ["a", "mine"]);
    }
}
