//! Why a model could not be had.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

/// A failure of the network: its innermost cause, since the errors around it only say the same again.
#[derive(Debug)]
pub struct NetworkError(Box<dyn Error + Send + Sync>);

impl From<hf_hub::api::sync::ApiError> for NetworkError {
    fn from(error: hf_hub::api::sync::ApiError) -> Self {
        Self(Box::new(error))
    }
}

impl From<ureq::Error> for NetworkError {
    fn from(error: ureq::Error) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut innermost: &dyn Error = &*self.0;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        fmt::Display::fmt(innermost, f)
    }
}

impl Error for NetworkError {}

/// Why a name did not lead to a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Neither a path nor a hub id.
    #[error("there is no {name:?}{}; expected a directory, a .gguf file, or a hub id like HuggingFaceTB/SmolLM2-135M-Instruct", nearest.as_ref().map(|path| format!(" (did you mean {}?)", path.display())).unwrap_or_default())]
    NotFound {
        /// The name as given.
        name: String,
        /// Something with a similar name in the same place.
        nearest: Option<PathBuf>,
    },
    /// A file that is not a model by itself.
    #[error("{} is not a model by itself; name its directory, or a .gguf file", path.display())]
    NotAModel {
        /// The file.
        path: PathBuf,
    },
    /// Nothing may be fetched, and the cache has no complete copy.
    #[error("{name} is not in the cache {}, and HF_HUB_OFFLINE forbids downloading it", cache.display())]
    Offline {
        /// The hub id.
        name: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub does not know the model or the revision.
    #[error("{endpoint} has no model {name}; check its spelling (a private model needs HF_TOKEN)")]
    UnknownModel {
        /// The hub id.
        name: String,
        /// The hub.
        endpoint: String,
    },
    /// Not a hub id of a data set.
    #[error(
        "{name:?} is no hub id of a data set; expected organisation/name, with :split or :config/split behind where it has several"
    )]
    NotADataset {
        /// The name as given.
        name: String,
    },
    /// The hub does not know the data set or the revision.
    #[error("{endpoint} has no data set {name}; check its spelling (a private one needs HF_TOKEN)")]
    UnknownDataset {
        /// The hub id.
        name: String,
        /// The hub.
        endpoint: String,
    },
    /// The data set has no files of that split that could be read.
    #[error("{name} has no data files of the split {split:?}; found {found}")]
    NoSplit {
        /// The hub id.
        name: String,
        /// The split asked for.
        split: String,
        /// What it has.
        found: String,
    },
    /// The data set has several configurations.
    #[error("{name} has the configurations {}; name one, as in {name}:{}/{split}", configs.join(", "), configs.first().map_or("", String::as_str))]
    ManyConfigs {
        /// The hub id.
        name: String,
        /// Their names.
        configs: Vec<String>,
        /// The split asked for.
        split: String,
    },
    /// The hub wants to know who asks.
    #[error(
        "{endpoint} refuses {name} (HTTP {status}); accept its licence at {endpoint}/{name} and set HF_TOKEN to an access token"
    )]
    Forbidden {
        /// The hub id.
        name: String,
        /// The hub.
        endpoint: String,
        /// The HTTP status: 401 or 403.
        status: u16,
    },
    /// The hub did not answer, or not usefully.
    #[error("could not ask {endpoint} for {what}")]
    Request {
        /// What was asked for.
        what: String,
        /// The hub.
        endpoint: String,
        /// The network's error.
        source: NetworkError,
    },
    /// The hub's answer cannot be trusted or understood.
    #[error("{endpoint} gave an unusable answer for {what}: {problem}")]
    Answer {
        /// What was asked for.
        what: String,
        /// The hub.
        endpoint: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The model's weights are only there as a pickle.
    #[error(
        "{name} has its weights only as a pickle ({file}), which can run code when loaded and is never fetched; look for a copy in safetensors"
    )]
    OnlyPickle {
        /// The hub id.
        name: String,
        /// A pickle of it.
        file: String,
    },
    /// The repository has no weights that could be used.
    #[error("{name} has neither model.safetensors nor model.safetensors.index.json{}", if *gguf { "; it has GGUF files: download one and name the file" } else { "" })]
    NoWeights {
        /// The hub id.
        name: String,
        /// Whether it has GGUF files.
        gguf: bool,
    },
    /// A file came out shorter or longer than the hub said.
    #[error("{file} of {name} arrived with {actual} bytes instead of {expected}; try again")]
    Incomplete {
        /// The hub id.
        name: String,
        /// The file.
        file: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes received.
        actual: u64,
    },
    /// The cache cannot be read or written.
    #[error("could not use the cache at {}", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// An index of shards that is malformed.
    #[error("the index of {name}'s shards cannot be used")]
    Index {
        /// The hub id.
        name: String,
        /// What is wrong with it.
        source: Box<crate::FormatError>,
    },
}
