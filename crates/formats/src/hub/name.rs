//! Hub ids, and guesses for misspelt paths.

use std::fmt;
use std::path::{Path, PathBuf};

/// What a repository of the hub holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

/// A model or data set on the hub: `organisation/name`, at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    kind: Kind,
    repository: String,
    revision: Option<String>,
}

impl HubName {
    /// Reads `organisation/name` or `organisation/name@revision`.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (repository, revision) = match name.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (name, None),
        };
        let (organisation, model) = repository.split_once('/')?;
        let plain = [organisation, model].into_iter().all(is_plain_part);
        // Such a name is a misspelt path.
        if !plain || model.to_ascii_lowercase().ends_with(".gguf") {
            return None;
        }
        if revision.is_some_and(|revision| !revision.split('/').all(is_plain_part)) {
            return None;
        }
        Some(Self {
            kind: Kind::Model,
            repository: repository.into(),
            revision: revision.map(Into::into),
        })
    }

    /// Reads `organisation/name`, `organisation/name@revision`, and either with `:split` or
    /// `:config/split` behind; gives the split with it.
    #[must_use]
    pub fn parse_dataset(name: &str) -> Option<(Self, Option<&str>)> {
        let (name, split) = match name.split_once(':') {
            Some((name, split)) => (name, Some(split)),
            None => (name, None),
        };
        if split.is_some_and(|split| !split.split('/').all(is_plain_part)) {
            return None;
        }
        let name = Self {
            kind: Kind::Dataset,
            ..Self::parse(name)?
        };
        Some((name, split))
    }

    /// At another revision.
    #[must_use]
    pub fn at(self, revision: &str) -> Option<Self> {
        let plain = revision.split('/').all(is_plain_part);
        plain.then(|| Self {
            revision: Some(revision.to_owned()),
            ..self
        })
    }

    /// Whether a revision was named.
    #[must_use]
    pub const fn has_revision(&self) -> bool {
        self.revision.is_some()
    }

    pub(super) const fn kind(&self) -> Kind {
        self.kind
    }

    /// `organisation/name`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, tag or commit; `main` if none was given.
    #[must_use]
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// Letters, digits, `-`, `_` and `.`, and not beginning like a path or an option.
pub(super) fn is_plain_part(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !part.is_empty()
        && part.len() <= 96
        && part.chars().all(allowed)
        && !part.starts_with(['.', '-'])
        && !part.contains("..")
}

/// The entry of the same directory whose name is most like that of `path`, if any is.
pub(super) fn nearest_path(path: &Path) -> Option<PathBuf> {
    let wanted = path.file_name()?.to_str()?;
    let parent = path.parent().unwrap_or_else(|| Path::new(""));
    let directory = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let similarity =
        |name: &str| strsim::jaro_winkler(&name.to_lowercase(), &wanted.to_lowercase());
    std::fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .map(|name| (similarity(&name), name))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| parent.join(name))
}
