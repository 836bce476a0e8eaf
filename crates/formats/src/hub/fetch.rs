//! Fetching what the cache lacks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::Cache;
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};

use super::error::HubError;
use super::name::{HubName, Kind, is_plain_part};
use super::options::HubOptions;
use super::{DownloadProgress, snapshot};
use crate::hf_dir::{INDEX, WEIGHTS, is_pickle};

/// How long the hub may take to say what a repository holds.
const LISTING_TIMEOUT: Duration = Duration::from_secs(30);
/// How often an interrupted download is taken up again.
const RETRIES: usize = 5;

/// The snapshot of a model, from the cache or the hub.
pub(super) fn fetch(
    name: &HubName,
    options: &HubOptions,
    progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    let cached = snapshot::cached(&options.cache, name);
    if options.offline {
        return cached.ok_or_else(|| HubError::Offline {
            name: name.to_string(),
            cache: options.cache.clone(),
        });
    }
    let hub = Hub::new(name, options)?;
    match (hub.listing(), cached) {
        (Ok(listing), _) => hub.snapshot(&listing, progress),
        // No answer is no reason to fail where there is a copy.
        (Err(error @ HubError::Request { .. }), Some(snapshot)) => {
            progress.using_cache(&error);
            Ok(snapshot)
        }
        (Err(error), _) => Err(error),
    }
}

/// A directory with the model's `config.json`, from the cache or the hub.
pub(super) fn config(
    name: &HubName,
    options: &HubOptions,
    progress: &mut dyn DownloadProgress,
) -> Result<PathBuf, HubError> {
    const CONFIG: &str = "config.json";
    let noted = snapshot::noted(&options.cache, name);
    if let Some(snapshot) = noted.filter(|snapshot| snapshot.join(CONFIG).is_file()) {
        return Ok(snapshot);
    }
    if options.offline {
        return Err(HubError::Offline {
            name: name.to_string(),
            cache: options.cache.clone(),
        });
    }
    let hub = Hub::new(name, options)?;
    let listing = hub.listing()?;
    let commit = hub.api.repo(snapshot::repository(name, &listing.sha));
    let path = snapshot::snapshot_path(&options.cache, name, &listing.sha);
    hub.ensure(&commit, &path, CONFIG, progress)?;
    Ok(path)
}

fn api(name: &HubName, options: &HubOptions) -> Result<Api, HubError> {
    ApiBuilder::from_cache(Cache::new(options.cache.clone()))
        .with_endpoint(options.endpoint.clone())
        .with_token(options.token.clone())
        .with_user_agent("backdraft", env!("CARGO_PKG_VERSION"))
        .with_retries(RETRIES)
        .with_progress(false)
        .build()
        .map_err(|source| HubError::Request {
            what: name.to_string(),
            endpoint: options.endpoint.clone(),
            source: source.into(),
        })
}

/// A repository of the hub.
pub(super) struct Hub<'a> {
    pub(super) name: &'a HubName,
    pub(super) options: &'a HubOptions,
    pub(super) api: Api,
}

impl<'a> Hub<'a> {
    pub(super) fn new(name: &'a HubName, options: &'a HubOptions) -> Result<Self, HubError> {
        let api = api(name, options)?;
        Ok(Self { name, options, api })
    }

    /// The commit that the revision stands for, and its files.
    pub(super) fn listing(&self) -> Result<RepoInfo, HubError> {
        let repository = snapshot::repository(self.name, self.name.revision());
        let what = self.name.to_string();
        let listing: RepoInfo = self
            .api
            .repo(repository)
            .info_request()
            .config()
            .timeout_global(Some(LISTING_TIMEOUT))
            .build()
            .call()
            .and_then(|mut answer| answer.body_mut().read_json())
            .map_err(|source| self.request_error(&what, Box::new(source).into()))?;
        // It becomes part of a path.
        if is_plain_part(&listing.sha) {
            Ok(listing)
        } else {
            Err(self.answer_error(&what, "the commit is not a plain name"))
        }
    }

    /// Fetches whatever the cache lacks of one commit, and notes the commit when all is there.
    fn snapshot(
        &self,
        listing: &RepoInfo,
        progress: &mut dyn DownloadProgress,
    ) -> Result<PathBuf, HubError> {
        let files: Vec<&str> = listing.siblings.iter().map(|f| &*f.rfilename).collect();
        let weights = self.weights(&files)?;
        let commit = self.api.repo(snapshot::repository(self.name, &listing.sha));
        let path = snapshot::snapshot_path(&self.options.cache, self.name, &listing.sha);
        let small = files.iter().filter(|file| snapshot::is_companion(file));
        for file in small.chain([&weights]) {
            self.ensure(&commit, &path, file, progress)?;
        }
        if weights == INDEX {
            let shards = snapshot::shards(&path).map_err(|source| HubError::Index {
                name: self.name.to_string(),
                source: source.into(),
            })?;
            for shard in shards {
                self.ensure(&commit, &path, &shard, progress)?;
            }
        }
        // Without the note the next run asks the hub again: a cache that is complete and cannot be
        // written is no reason to stop.
        let _ = self.note_revision(&listing.sha);
        Ok(path)
    }

    /// The file to begin with: the only one, or the index of several.
    fn weights<'f>(&self, files: &[&'f str]) -> Result<&'f str, HubError> {
        let find = |wanted: &str| files.iter().copied().find(|file| *file == wanted);
        if let Some(file) = find(WEIGHTS).or_else(|| find(INDEX)) {
            return Ok(file);
        }
        let name = self.name.to_string();
        Err(match files.iter().find(|file| is_pickle(file)) {
            Some(file) => HubError::OnlyPickle {
                name,
                file: (*file).into(),
            },
            None => HubError::NoWeights {
                name,
                gguf: files.iter().any(|file| file.ends_with(".gguf")),
            },
        })
    }

    pub(super) fn ensure(
        &self,
        commit: &ApiRepo,
        snapshot: &Path,
        file: &str,
        progress: &mut dyn DownloadProgress,
    ) -> Result<(), HubError> {
        let path = snapshot.join(file);
        if path.is_file() {
            return Ok(());
        }
        let wrap = |source| self.request_error(file, source);
        let announced = self.api.metadata(&commit.url(file)).map_err(wrap)?;
        // Both become names in the cache; a weak tag becomes a directory and a name.
        let etag = announced.etag();
        let etag = etag.strip_prefix("W/").unwrap_or(etag);
        if !is_plain_part(etag) || !is_plain_part(announced.commit_hash()) {
            return Err(self.answer_error(file, "its hash or commit is not a plain name"));
        }
        let bridge = Bridge {
            progress: &mut *progress,
            started: false,
        };
        let fetched = commit.download_with_progress(file, bridge).map_err(wrap)?;
        let actual = std::fs::metadata(&fetched)
            .map_err(|source| HubError::Cache {
                path: fetched.clone(),
                source,
            })?
            .len();
        let expected = announced.size() as u64;
        if actual != expected {
            // The link and what it leads to: a bad blob would be taken for good.
            if let Ok(blob) = fetched.canonicalize() {
                let _ = std::fs::remove_file(blob);
            }
            let _ = std::fs::remove_file(&fetched);
            return Err(HubError::Incomplete {
                name: self.name.to_string(),
                file: file.into(),
                expected,
                actual,
            });
        }
        if !path.is_file() {
            return Err(self.answer_error(file, "it belongs to another commit"));
        }
        progress.finish(file);
        Ok(())
    }

    /// So that the snapshot is found without the hub.
    pub(super) fn note_revision(&self, commit: &str) -> Result<(), HubError> {
        Cache::new(self.options.cache.clone())
            .repo(snapshot::repository(self.name, self.name.revision()))
            .create_ref(commit)
            .map_err(|source| HubError::Cache {
                path: self.options.cache.clone(),
                source,
            })
    }

    fn request_error(&self, what: &str, source: ApiError) -> HubError {
        let endpoint = self.options.endpoint.clone();
        let name = self.name.to_string();
        let status = match &source {
            ApiError::RequestError(error) => match **error {
                ureq::Error::StatusCode(status) => Some(status),
                _ => None,
            },
            _ => None,
        };
        match status {
            Some(404) => match self.name.kind() {
                Kind::Model => HubError::UnknownModel { name, endpoint },
                Kind::Dataset => HubError::UnknownDataset { name, endpoint },
            },
            Some(status @ (401 | 403)) => HubError::Forbidden {
                // As in the address of its page.
                name: match self.name.kind() {
                    Kind::Model => self.name.repository().into(),
                    Kind::Dataset => format!("datasets/{}", self.name.repository()),
                },
                endpoint,
                status,
            },
            _ => HubError::Request {
                what: what.into(),
                endpoint,
                source: source.into(),
            },
        }
    }

    fn answer_error(&self, what: &str, problem: &'static str) -> HubError {
        HubError::Answer {
            what: what.into(),
            endpoint: self.options.endpoint.clone(),
            problem,
        }
    }
}

/// Passes on what the hub crate reports.
struct Bridge<'a> {
    progress: &'a mut dyn DownloadProgress,
    started: bool,
}

impl hf_hub::api::Progress for Bridge<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        // Called again for every part of a file that is taken up again.
        if !self.started {
            self.progress.start(filename, size as u64);
            self.started = true;
        }
    }

    fn update(&mut self, size: usize) {
        self.progress.advance(size as u64);
    }

    fn finish(&mut self) {}
}
