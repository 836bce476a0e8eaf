//! Why a server does not start, or ends.

use std::net::SocketAddr;

/// Why a server does not start, or ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Anybody who reaches the address could use the model.
    #[error("{address} can be reached from other machines, and no API key is set")]
    Unprotected {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The runtime or the engine's thread cannot be started.
    #[error("cannot start the server")]
    Start(#[source] std::io::Error),
    /// No model is to be served, or two have one name.
    #[error("expected models with different names, found {names:?}")]
    Names {
        /// The names.
        names: Vec<String>,
    },
    /// The engine's thread panicked.
    #[error("the engine has stopped: a step of the model failed")]
    EngineStopped,
}
