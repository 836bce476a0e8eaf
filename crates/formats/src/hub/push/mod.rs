//! Files to a repository of the hub, in one commit.
//!
//! Large files go into the hub's storage first, where nobody sees them; then one commit names them all. Whatever fails
//! before it leaves the repository as it was. Why this is not left to a crate: `docs/design/hub.md`.
//!
//! # Source
//! The hub's interface as `huggingface_hub` speaks it (`_commit_api.py`, `lfs.py`).

mod answer;
mod client;
mod commit;
mod error;
mod file;
mod options;
mod progress;
mod remote;
mod storage;

pub use error::{PushError, UploadNetworkError};
pub use file::PushFile;
pub use options::PushOptions;
pub use progress::UploadProgress;
pub use remote::{Remote, RemoteFile};

use self::client::Client;
use self::commit::{Added, Mode};
use super::name::HubName;

/// A repository that is to receive files.
#[derive(Debug)]
pub struct Push<'a> {
    name: &'a HubName,
    options: &'a PushOptions,
}

/// What became of a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The repository's page.
    pub url: String,
    /// The commit; `None` where the hub did not say.
    pub commit: Option<String>,
    /// The commit's page.
    pub commit_url: Option<String>,
    /// Whether the repository was made.
    pub created: bool,
    /// Large files that the hub had already.
    pub present: usize,
    /// Files that the repository's `.gitignore` keeps out.
    pub ignored: Vec<String>,
}

impl<'a> Push<'a> {
    /// A push to `name`, whose revision is the branch.
    #[must_use]
    pub const fn new(name: &'a HubName, options: &'a PushOptions) -> Self {
        Self { name, options }
    }

    /// The repository's page.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/{}", self.options.endpoint, self.name.repository())
    }

    /// What the repository has; `None` if there is none. Asks, and sends nothing but the question.
    ///
    /// # Errors
    /// [`PushError`]: the token is not accepted, no answer, or none that can be understood.
    pub fn look(&self) -> Result<Option<Remote>, PushError> {
        let mut nobody = ();
        remote::look(&Client::new(self.options, &mut nobody), self.name)
    }

    /// Sends files. `remote` is what [`look`](Self::look) found: a commit that came in between makes this fail.
    ///
    /// # Errors
    /// [`PushError`]. The repository then has what it had before.
    pub fn send(
        &self,
        files: &[PushFile],
        remote: Option<&Remote>,
        (message, public): (&str, bool),
        progress: &mut dyn UploadProgress,
    ) -> Result<Pushed, PushError> {
        let client = Client::new(self.options, progress);
        let created = remote.is_none();
        let found = match remote {
            Some(remote) if remote.private || public => remote.clone(),
            Some(_) => {
                return Err(PushError::Public {
                    name: self.name.repository().to_owned(),
                });
            }
            None => remote::create(&client, self.name, public)?,
        };
        if found.commit.is_none() && self.name.revision() != "main" {
            remote::create_branch(&client, self.name)?;
        }
        let modes = commit::modes(&client, self.name, files)?;
        let (mut present, mut ignored) = (0, Vec::new());
        let mut added: Vec<Added<'_>> = Vec::new();
        for (file, mode) in files.iter().zip(modes) {
            match mode {
                Mode::Ignored => ignored.push(file.name.clone()),
                // Storage keeps nothing of no length.
                Mode::Regular => added.push((file, None)),
                Mode::Large if file.bytes == 0 => added.push((file, None)),
                Mode::Large => {
                    let sha256 = file.sha256()?;
                    let sent = storage::put(&client, self.name, file, &sha256)?;
                    present += usize::from(!sent);
                    added.push((file, Some(sha256)));
                }
            }
        }
        let parent = found.commit.as_deref();
        let (commit, commit_url) = commit::commit(&client, self.name, (message, parent), &added)?;
        Ok(Pushed {
            url: self.url(),
            commit,
            commit_url,
            created,
            present,
            ignored,
        })
    }
}

#[cfg(test)]
mod tests;
