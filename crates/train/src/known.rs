//! Log-likelihoods under the reference, computed once before the first step and kept on the disk.
//!
//! ```text
//! magic                    22 bytes, with the layout's number
//! key                      32 bytes: SHA-256 over all that the values depend on
//! values                   u64, how many
//! f32 × values             little-endian, row by row, the chosen answer before the rejected one
//! SHA-256                  32 bytes, over everything above
//! ```

use std::fs;
use std::path::Path;
use std::sync::Arc;

use backdraft_formats::{Existing, FormatError, write_file};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 22] = b"backdraft reference 1\n";
const HASH: usize = 32;
const ANSWERS: usize = 2;

/// Log-likelihoods of the answers of rows of pairs, nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Known(Arc<[f32]>);

impl Known {
    /// Chosen and rejected answers of all rows, in turn.
    #[must_use]
    pub fn new(values: Vec<f32>) -> Self {
        Self(values.into())
    }

    /// Of those rows, in turn, chosen and rejected.
    ///
    /// # Panics
    /// If a row is none of those that are known.
    #[must_use]
    pub fn of(&self, rows: &[usize]) -> Vec<f32> {
        let row = |row: &usize| &self.0[ANSWERS * row..ANSWERS * (row + 1)];
        rows.iter().flat_map(row).copied().collect()
    }

    /// Writes a file that [`read`](Self::read) takes under the same key.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, path: &Path, key: &Key) -> Result<(), FormatError> {
        let mut bytes = [&MAGIC[..], &key.0].concat();
        bytes.extend((self.0.len() as u64).to_le_bytes());
        bytes.extend(self.0.iter().flat_map(|value| value.to_le_bytes()));
        let hash = Sha256::digest(&bytes);
        bytes.extend(hash);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(FormatError::io(folder, "create"))?;
        }
        write_file(path, &bytes, Existing::Replace)
    }

    /// Reads what was written for so many rows under the same key; `None` where there is no file.
    ///
    /// # Errors
    /// In what the file is not what belongs there.
    pub fn read(path: &Path, key: &Key, rows: usize) -> Result<Option<Self>, NotIt> {
        let size = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(_) => return Err(NotIt::Unreadable),
            Ok(facts) => facts.len(),
        };
        let count = ANSWERS * rows;
        let head = MAGIC.len() + HASH + size_of::<u64>();
        let expected = head + size_of::<f32>() * count + HASH;
        // Before anything is read: the rows say how large it can be.
        if size != expected as u64 {
            return Err(NotIt::Size {
                expected: expected as u64,
                actual: size,
            });
        }
        let bytes = fs::read(path).map_err(|_| NotIt::Unreadable)?;
        let Some((content, hash)) = bytes.split_last_chunk::<HASH>() else {
            return Err(NotIt::Unreadable);
        };
        if bytes.len() != expected || Sha256::digest(content)[..] != hash[..] {
            return Err(NotIt::Damaged);
        }
        let number = (count as u64).to_le_bytes();
        if content[..head] != [&MAGIC[..], &key.0, &number].concat() {
            return Err(NotIt::Foreign);
        }
        let values = content[head..].chunks_exact(size_of::<f32>());
        let values = values.map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        Ok(Some(Self(values.collect())))
    }
}

/// What log-likelihoods depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u8; HASH]);

impl Key {
    /// Of parts, whose order counts.
    #[must_use]
    pub fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The name of the file.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}.reference", backdraft_journal::text::hex(&self.0[..16]))
    }
}

/// Why a file is not the one that belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotIt {
    /// The system refuses.
    #[error("it cannot be read")]
    Unreadable,
    /// Another size than the rows give it.
    #[error("it has {actual} bytes, and {expected} belong there")]
    Size {
        /// Bytes that belong there.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// Other bytes than were written.
    #[error("its SHA-256 is not that of what was written")]
    Damaged,
    /// Whole, but of another model, of other rows, or of another layout.
    #[error("it belongs to another model or other rows")]
    Foreign,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_what_was_written_or_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/some.reference");
        let key = Key::of(&["model", "rows"]);
        let known = Known::new(vec![-1.5, -2.25, f32::MIN_POSITIVE, -0.0]);
        assert_eq!(Known::read(&path, &key, 2), Ok(None));
        known.write(&path, &key).unwrap();
        assert_eq!(Known::read(&path, &key, 2), Ok(Some(known.clone())));
        assert_eq!(known.of(&[1, 0]), [f32::MIN_POSITIVE, -0.0, -1.5, -2.25]);
        // Parts do not run into each other.
        let other = Key::of(&["modelr", "ows"]);
        assert_ne!(key.file_name(), other.file_name());
        assert_eq!(Known::read(&path, &other, 2), Err(NotIt::Foreign));
        let found = Known::read(&path, &key, 3);
        assert!(matches!(found, Err(NotIt::Size { .. })), "{found:?}");
        let bytes = fs::read(&path).unwrap();
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert_eq!(Known::read(&path, &key, 2), Err(NotIt::Damaged), "{place}");
            fs::write(&path, &bytes[..place]).unwrap();
            let found = Known::read(&path, &key, 2);
            assert!(matches!(found, Err(NotIt::Size { .. })), "{found:?}");
        }
    }
}
