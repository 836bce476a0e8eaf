//! Where files are sent, and as whom.

use std::ffi::OsString;
use std::time::Duration;

use super::error::PushError;
use crate::hub::options::HubOptions;

/// Settings for [`Push`](super::Push).
#[derive(Clone)]
pub struct PushOptions {
    /// The hub: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: String,
    /// The access token: `HF_TOKEN`. Never shown, and sent to the hub only.
    pub token: String,
    /// The wait before the second attempt of a request; doubled with every further one.
    pub pause: Duration,
}

impl std::fmt::Debug for PushOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushOptions")
            .field("endpoint", &self.endpoint)
            .field("token", &"(hidden)")
            .field("pause", &self.pause)
            .finish()
    }
}

impl PushOptions {
    /// Reads the environment, for a push to `name`. Unlike downloads this takes no token from a file: that another
    /// program has logged in is no order to publish.
    ///
    /// # Errors
    /// [`PushError::Offline`], [`PushError::Token`].
    pub fn from_env(name: &str) -> Result<Self, PushError> {
        Self::from_variables(name, |name| std::env::var_os(name))
    }

    pub(super) fn from_variables(
        name: &str,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, PushError> {
        let token = variable("HF_TOKEN");
        let HubOptions {
            endpoint, offline, ..
        } = HubOptions::from_variables(variable);
        if offline {
            return Err(PushError::Offline { name: name.into() });
        }
        let invalid = |problem| PushError::Token {
            problem,
            endpoint: endpoint.clone(),
        };
        let token = token.unwrap_or_default();
        let token = token
            .into_string()
            .map_err(|_| invalid("is no text"))?
            .trim()
            .to_owned();
        if token.is_empty() {
            return Err(invalid("is not set"));
        }
        // What could end a header, or is none of a token's characters.
        if !token.chars().all(|c| c.is_ascii_graphic()) {
            return Err(invalid("holds characters that no access token has"));
        }
        Ok(Self {
            endpoint,
            token,
            pause: Duration::from_secs(1),
        })
    }
}
