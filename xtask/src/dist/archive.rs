//! Archives whose bytes depend on what is in them and on nothing else.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context;
use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use tar::{EntryType, Header};

/// A file of a release.
pub(super) struct Entry {
    /// Below the archive's folder, with slashes.
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
    /// Permissions.
    pub(super) mode: u32,
}

impl Entry {
    pub(super) fn file(path: &str, bytes: Vec<u8>) -> Self {
        let path = path.to_owned();
        Self {
            path,
            bytes,
            mode: 0o644,
        }
    }

    pub(super) fn program(path: &str, bytes: Vec<u8>) -> Self {
        Self {
            mode: 0o755,
            ..Self::file(path, bytes)
        }
    }
}

/// Writes the entries, in their order, below a folder `stem`, as a compressed tar archive.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(path: &Path, stem: &str, files: &[Entry], epoch: u64) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let file = BufWriter::new(file);
    let mut gzip = gzip(file);
    tar(&mut gzip, stem, files, epoch)?;
    gzip.finish()?.flush()?;
    Ok(())
}

/// A compressor whose header has neither name nor time.
pub(super) fn gzip<W: Write>(to: W) -> GzEncoder<W> {
    GzBuilder::new().write(to, Compression::best())
}

/// A tar archive of the entries below the folder `root`, all owned by root; folders come before what they hold.
pub(super) fn tar(to: impl Write, root: &str, files: &[Entry], epoch: u64) -> anyhow::Result<()> {
    let mut archive = tar::Builder::new(to);
    let mut put = |path: &str, kind: EntryType, mode: u32, bytes: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        header.set_mtime(epoch);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, path, bytes)
    };
    let mut folders = BTreeSet::new();
    for entry in files {
        let path = format!("{root}/{}", entry.path);
        for (end, _) in path.match_indices('/') {
            let folder = &path[..=end];
            if folders.insert(folder.to_owned()) {
                put(folder, EntryType::Directory, 0o755, &[])?;
            }
        }
        put(&path, EntryType::Regular, entry.mode, &entry.bytes)?;
    }
    archive.finish()?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_same_entries_are_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let entries = [
            Entry::program("backdraft", vec![7; 70_000]),
            Entry::file("man/backdraft.1", b"page".to_vec()),
        ];
        let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
        write(&first, "backdraft-1", &entries, 1_000_000_000).unwrap();
        write(&second, "backdraft-1", &entries, 1_000_000_000).unwrap();
        let bytes = fs::read(&first).unwrap();
        assert_eq!(bytes, fs::read(&second).unwrap());
        assert_eq!(bytes[4..8], [0; 4], "the time in gzip's header");
        assert!(bytes.len() < 2_000, "{} bytes", bytes.len());
    }

    #[test]
    fn programs_stay_programs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar.gz");
        let entries = [
            Entry::program("backdraft", b"program".to_vec()),
            Entry::file("README.md", vec![]),
        ];
        write(&path, "stem", &entries, 5).unwrap();
        let mut archive =
            tar::Archive::new(flate2::read::GzDecoder::new(File::open(&path).unwrap()));
        let found: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let path = entry.path().unwrap().display().to_string();
                (
                    path,
                    header.mode().unwrap(),
                    header.mtime().unwrap(),
                    header.uid().unwrap(),
                )
            })
            .collect();
        let expected = [
            ("stem/", 0o755),
            ("stem/backdraft", 0o755),
            ("stem/README.md", 0o644),
        ];
        assert_eq!(
            found,
            expected.map(|(path, mode)| (path.to_owned(), mode, 5, 0))
        );
    }
}
