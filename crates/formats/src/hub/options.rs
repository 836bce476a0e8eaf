//! Where the hub and its cache are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Settings for [`resolve_model`](super::resolve_model), by default from the environment variables
/// that Hugging Face's own tools read.
#[derive(Clone)]
pub struct HubOptions {
    /// The cache: `HF_HUB_CACHE`, else `hub` in `HF_HOME` (`~/.cache/huggingface`).
    pub cache: PathBuf,
    /// The hub: `HF_ENDPOINT`, else `https://huggingface.co`.
    pub endpoint: String,
    /// The access token: `HF_TOKEN`, else the file `token` in `HF_HOME`. Never shown.
    pub token: Option<String>,
    /// Whether to use nothing but the cache: `HF_HUB_OFFLINE`.
    pub offline: bool,
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("offline", &self.offline)
            .finish()
    }
}

impl HubOptions {
    /// Reads the environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var_os(name))
    }

    /// Reads variables through `variable`.
    pub(super) fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name)?.into_string().ok();
        let home = set("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(set("XDG_CACHE_HOME")?).join("huggingface")))
            .or_else(|| Some(user_home(&set)?.join(".cache/huggingface")))
            .unwrap_or_else(|| ".cache/huggingface".into());
        let cache = set("HF_HUB_CACHE")
            .or_else(|| set("HUGGINGFACE_HUB_CACHE"))
            .map_or_else(|| home.join("hub"), PathBuf::from);
        let token_path = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let is_on = |name: &str| {
            text(name).is_some_and(|value| {
                ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
            })
        };
        Self {
            cache,
            endpoint: text("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".into())
                .trim_end_matches('/')
                .into(),
            token: text("HF_TOKEN")
                .or_else(|| read_token(&token_path))
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
        }
    }
}

fn user_home(set: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    set("HOME").or_else(|| set("USERPROFILE")).map(Into::into)
}

fn read_token(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}
