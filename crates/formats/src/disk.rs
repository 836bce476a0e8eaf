//! Room on a disk.

use std::path::Path;

/// Bytes that may still be written below `path`, an existing directory; `None` where the system does not say.
#[must_use]
pub fn free_bytes(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let system = rustix::fs::statvfs(path).ok()?;
        system.f_bavail.checked_mul(system.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_some_room() {
        let root = tempfile::tempdir().unwrap();
        assert!(free_bytes(root.path()).is_some_and(|bytes| bytes > 0));
        assert_eq!(free_bytes(&root.path().join("none")), None);
    }
}
