//! A place between file operations, for tests of what a kill or a full disk leaves behind.
//!
//! Everything that writes results passes here before each of its operations. Without a hook, which is
//! how the program runs, that is one load of a pointer.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use crate::error::{FormatError, Result};

/// Is told the operation that comes next and its path. It may never return, or refuse with an error, as a
/// disk does.
pub type Hook = fn(operation: &'static str, path: &Path) -> io::Result<()>;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Installs the hook of this process; only the first one counts. `false` if there was one.
pub fn install(hook: Hook) -> bool {
    HOOK.set(hook).is_ok()
}

/// To be called before a file operation.
///
/// # Errors
/// What the hook says; without one there is none.
pub fn point(operation: &'static str, path: &Path) -> Result<()> {
    match HOOK.get() {
        None => Ok(()),
        Some(hook) => hook(operation, path).map_err(FormatError::io(path, operation)),
    }
}
