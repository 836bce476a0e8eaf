//! Cases as folders, some of them packed.

use std::fmt;
use std::fs::{self, File};
use std::ops::Deref;
use std::path::{Path, PathBuf};

use tar::Archive;
use tempfile::TempDir;

use crate::golden;

/// How the name of a packed case ends.
const PACKED: &str = ".tar.zst";

/// The folder of a case. One that was unpacked is removed when this goes.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Where a packed case was unpacked.
    _unpacked: Option<TempDir>,
}

impl Folder {
    /// The name of the case.
    #[must_use]
    pub fn name(&self) -> String {
        name(&self.path)
    }

    /// What lies at a path, a folder or an archive; `None` if it is neither.
    fn open(path: PathBuf) -> Option<Self> {
        if path.is_dir() {
            return Some(Self {
                path,
                _unpacked: None,
            });
        }
        let case = name(&path).strip_suffix(PACKED)?.to_owned();
        let directory = tempfile::tempdir().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let folder = directory.path().join(case);
        unpack(&path, &folder).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Some(Self {
            path: folder,
            _unpacked: Some(directory),
        })
    }
}

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for Folder {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// The cases of a part that hold `file`, in the order of their names: folders, and archives `NAME.tar.zst` of
/// what a folder would hold.
///
/// # Panics
/// If the part is there without any such case, or an archive cannot be unpacked.
#[must_use]
pub fn folders(part: &str, file: &str) -> Vec<Folder> {
    golden::part(part).map_or_else(Vec::new, |path| folders_of(&path, file))
}

/// The folder of a part that holds `file`: the part itself, or one of its cases. `None` where another directory than
/// the project's lacks the part.
///
/// # Panics
/// If the part is there without `file`.
#[must_use]
pub fn folder_with(part: &str, file: &str) -> Option<Folder> {
    let path = golden::part(part)?;
    if path.join(file).is_file() {
        return Folder::open(path);
    }
    folders_of(&path, file).into_iter().next()
}

fn folders_of(path: &Path, file: &str) -> Vec<Folder> {
    let entries = fs::read_dir(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut folders: Vec<Folder> = entries
        .filter_map(|entry| Folder::open(entry.ok()?.path()))
        .filter(|folder| folder.join(file).is_file())
        .collect();
    assert!(
        !folders.is_empty(),
        "no case of {} holds a {file}",
        path.display()
    );
    folders.sort_by_key(Folder::name);
    folders
}

fn unpack(archive: &Path, folder: &Path) -> std::io::Result<()> {
    fs::create_dir(folder)?;
    Archive::new(zstd::Decoder::new(File::open(archive)?)?).unpack(folder)
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn pack(path: &Path, files: &[(&str, &[u8])]) {
        let encoder = zstd::Encoder::new(File::create(path).unwrap(), 3).unwrap();
        let mut archive = tar::Builder::new(encoder.auto_finish());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        archive.into_inner().unwrap();
    }

    #[test]
    fn packed_cases_stand_beside_unpacked_ones() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        pack(&at("b.tar.zst"), &[("config.json", b"{}"), ("more", b"1")]);
        pack(&at("without.tar.zst"), &[("more", b"2")]);
        for name in ["a", "c"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("config.json"), name).unwrap();
        }
        fs::create_dir(at("empty")).unwrap();
        fs::write(at("config.json"), "not a case").unwrap();
        let folders = folders_of(root.path(), "config.json");
        let names: Vec<String> = folders.iter().map(Folder::name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(fs::read(folders[1].join("more")).unwrap(), b"1");
        assert_eq!(folders[2].path, at("c"));
        let unpacked = folders[1].path.clone();
        drop(folders);
        assert!(!unpacked.exists() && at("a").exists());
    }

    #[test]
    #[should_panic(expected = "broken.tar.zst")]
    fn a_broken_archive_is_named() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("broken.tar.zst"), "no archive").unwrap();
        let _ = folders_of(root.path(), "config.json");
    }
}
