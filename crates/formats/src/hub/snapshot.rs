//! Which files of a repository make up a model, and whether the cache has them.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

use super::name::{HubName, Kind, is_plain_part};
use crate::checkpoint::COMPANIONS;
use crate::error::FormatError;
use crate::hf_dir::{INDEX, WEIGHTS, shard_names};

/// The files that come before the weights: configs, tokenizer, chat template.
pub(super) fn is_companion(file: &str) -> bool {
    COMPANIONS.contains(&file)
}

/// The snapshot of a model that the cache has under this name, if it is complete.
pub(super) fn cached(cache: &Path, name: &HubName) -> Option<PathBuf> {
    let snapshot = noted(cache, name)?;
    is_complete(&snapshot).then_some(snapshot)
}

/// The snapshot that the cache has noted for this name, whole or not.
pub(super) fn noted(cache: &Path, name: &HubName) -> Option<PathBuf> {
    let revision = name.revision();
    let repository = repository(name, revision);
    let root = cache.join(repository.folder_name());
    let commit = match std::fs::read_to_string(root.join("refs").join(revision)) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => revision.to_owned(),
    };
    if !is_plain_part(&commit) {
        return None;
    }
    Some(snapshot_path(cache, name, &commit))
}

/// Where the cache keeps the files of one commit.
pub(super) fn snapshot_path(cache: &Path, name: &HubName, commit: &str) -> PathBuf {
    Cache::new(cache.into())
        .repo(repository(name, commit))
        .pointer_path(commit)
}

pub(super) fn repository(name: &HubName, revision: &str) -> Repo {
    let kind = match name.kind() {
        Kind::Model => RepoType::Model,
        Kind::Dataset => RepoType::Dataset,
    };
    Repo::with_revision(name.repository().into(), kind, revision.to_owned())
}

/// Whether a directory has a config and every weight file.
fn is_complete(snapshot: &Path) -> bool {
    snapshot.join("config.json").is_file()
        && (snapshot.join(WEIGHTS).is_file()
            || shards(snapshot)
                .is_ok_and(|shards| shards.iter().all(|shard| snapshot.join(shard).is_file())))
}

/// The shards that the index of a directory names.
pub(super) fn shards(snapshot: &Path) -> Result<Vec<String>, FormatError> {
    shard_names(&snapshot.join(INDEX))
}
