//! Models and data sets by name: a path, or a hub id that is fetched into Hugging Face's own cache.
//!
//! Only configs, tokenizer files, safetensors and files of rows are ever fetched; loading scripts
//! never are. Nothing is sent but the
//! requests for them (and what [`push`] is told to send), and nothing at all where the cache has the model and
//! [`HubOptions::offline`] is set.

mod dataset;
mod error;
mod fetch;
mod name;
mod options;
pub mod push;
mod reach;
mod snapshot;

use std::path::{Path, PathBuf};

pub use dataset::resolve_dataset;
pub use error::{HubError, NetworkError};
pub use name::HubName;
pub use options::HubOptions;
pub use reach::reach;

/// What a program may show while files are fetched.
pub trait DownloadProgress {
    /// A file of `bytes` bytes begins; the first [`advance`](Self::advance) may account for a
    /// part that an interrupted download left.
    fn start(&mut self, file: &str, bytes: u64);
    /// More bytes of it have arrived.
    fn advance(&mut self, bytes: u64);
    /// It is complete.
    fn finish(&mut self, file: &str);
    /// The hub could not be asked, and the copy in the cache is used as it is.
    fn using_cache(&mut self, _reason: &HubError) {}
}

/// Shows nothing.
impl DownloadProgress for () {
    fn start(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn finish(&mut self, _: &str) {}
}

/// The directory or file of a model.
///
/// `name` is a directory or a `.gguf` file, which is returned as it is, or a hub id
/// `organisation/name`, optionally with `@revision`. A model from the hub is the snapshot of one
/// commit; it is used from the cache where the hub says that it is current, or does not answer.
///
/// # Errors
/// [`HubError`]: nothing of that name, no permission, no safetensors, or the network.
pub fn resolve_model(
    name: &str,
    options: &HubOptions,
    progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    let path = Path::new(name);
    if path.is_dir() || path.is_file() && has_gguf_ending(path) {
        return Ok(path.into());
    }
    if path.exists() {
        return Err(HubError::NotAModel { path: path.into() });
    }
    match HubName::parse(name) {
        Some(hub_name) => fetch::fetch(&hub_name, options, progress),
        None => Err(HubError::NotFound {
            name: name.into(),
            nearest: name::nearest_path(path),
        }),
    }
}

/// The directory that holds the `config.json` of a model, or its `.gguf` file: as [`resolve_model`], but of a model
/// on the hub nothing else is fetched.
///
/// # Errors
/// As [`resolve_model`].
pub fn resolve_config(
    name: &str,
    options: &HubOptions,
    progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    match HubName::parse(name) {
        Some(hub_name) if !Path::new(name).exists() => fetch::config(&hub_name, options, progress),
        _ => resolve_model(name, options, progress),
    }
}

fn has_gguf_ending(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests;
