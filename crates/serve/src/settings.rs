//! What a server allows.

use std::time::Duration;

/// What a server allows.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Sequences that are continued together.
    pub max_batch: usize,
    /// Requests that may wait beside those; one more is answered with 429.
    pub queue: usize,
    /// Tokens whose keys and values are kept, of all sequences together.
    pub cached_tokens: usize,
    /// New tokens of a chat that names no limit.
    pub default_max_tokens: usize,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// How long a request may take, waiting included.
    pub timeout: Duration,
    /// How long requests may still take when the server is told to end.
    pub grace: Duration,
    /// How long a client may take to send a request, or to read what was written.
    pub patience: Duration,
    /// Connections at a time.
    pub connections: usize,
    /// What clients must send as `Authorization: Bearer`.
    pub api_key: Option<String>,
    /// Whether an address that other machines reach may be served without a key.
    pub allow_unprotected: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_batch: 64,
            queue: 256,
            cached_tokens: 1 << 16,
            default_max_tokens: 1024,
            max_body: 1 << 20,
            timeout: Duration::from_secs(600),
            grace: Duration::from_secs(30),
            patience: Duration::from_secs(30),
            connections: 1024,
            api_key: None,
            allow_unprotected: false,
        }
    }
}
