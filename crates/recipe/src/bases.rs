//! Where a recipe comes from, and what names in it are relative to.

use std::path::Path;

use crate::problem::Place;

/// Who wrote a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Somebody who may name an adapter to take settings from.
    User,
    /// A run, with every value resolved.
    Run,
}

/// Directories that relative paths start from.
pub(crate) struct Bases<'a> {
    pub(crate) recipe: &'a Path,
    pub(crate) working_dir: &'a Path,
}

impl Bases<'_> {
    pub(crate) fn of(&self, place: &Place) -> &Path {
        match place {
            Place::Override(_) => self.working_dir,
            Place::Line(_) | Place::Recipe => self.recipe,
        }
    }
}

/// Whether `name` is one of the hub's, `org/name` or `org/name@revision`.
pub(crate) fn is_hub_id(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (repository, revision) = name.split_once('@').unwrap_or((name, "main"));
    repository
        .split_once('/')
        .is_some_and(|(org, model)| part(org) && part(model))
        && revision.split('/').all(part)
}
