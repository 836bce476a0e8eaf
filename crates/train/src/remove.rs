//! Removing files, so that a failure names its path.

use std::fs;
use std::path::{Path, PathBuf};

use backdraft_formats::{FormatError, fault};

/// Removes files that are ours from a directory, and it where that leaves nothing.
pub(crate) fn clear_folder(
    directory: &Path,
    is_ours: fn(&Path) -> bool,
) -> Result<(), FormatError> {
    for (path, name) in entries(directory)? {
        if path.is_file() && is_ours(&name) {
            remove_file(&path)?;
        }
    }
    remove_if_empty(directory)
}

/// Paths and names of what lies in a directory.
pub(crate) fn entries(directory: &Path) -> Result<Vec<(PathBuf, PathBuf)>, FormatError> {
    let entries = fs::read_dir(directory).map_err(FormatError::io(directory, "list"))?;
    entries
        .map(|entry| {
            let entry = entry.map_err(FormatError::io(directory, "list"))?;
            Ok((entry.path(), entry.file_name().into()))
        })
        .collect()
}

pub(crate) fn remove_file(path: &Path) -> Result<(), FormatError> {
    fault::point("remove", path)?;
    fs::remove_file(path).map_err(FormatError::io(path, "remove"))
}

/// Removes a directory that holds nothing more.
pub(crate) fn remove_if_empty(directory: &Path) -> Result<(), FormatError> {
    if entries(directory)?.is_empty() {
        fault::point("remove", directory)?;
        fs::remove_dir(directory).map_err(FormatError::io(directory, "remove"))?;
    }
    Ok(())
}
