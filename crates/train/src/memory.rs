//! What a run needs in memory, predicted and measured.

use backdraft_model::LlamaConfig;
use serde::Serialize;

/// Tokens whose logits exist at a time.
const LOGITS_CHUNK: usize = 256;

/// Memory by kind.
///
/// # Units
/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Frozen weights, as they are stored.
    pub base: usize,
    /// The adapters' factors and their gradients.
    pub adapters: usize,
    /// The optimiser's moments.
    pub optimizer: usize,
    /// What the layers keep for the backward pass, and the largest block of logits.
    pub activations: usize,
}

impl Memory {
    /// Everything.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.base + self.adapters + self.optimizer + self.activations
    }
}

/// Bytes of activations of a pass over `tokens` tokens with adapters of rank `rank` on all projections, in
/// f32, nothing recomputed.
#[must_use]
pub fn activations(config: &LlamaConfig, rank: usize, tokens: usize) -> usize {
    let (h, m) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    // Kept for each layer: two inputs and two normed inputs, q, k, v, the attention's output, gate, up,
    // their product, x·Aᵀ of seven projections, and a statistic for each row and head.
    let floats = 4 * h + 2 * q + 2 * kv + 3 * m + 7 * rank + 2 + config.num_attention_heads;
    let logits = 2 * tokens.min(LOGITS_CHUNK) * config.vocab_size;
    4 * (tokens * floats * config.num_hidden_layers + logits)
}

/// The most memory that this process has held so far; `None` where the system does not tell.
///
/// # Units
/// Bytes.
#[must_use]
pub fn peak_resident() -> Option<usize> {
    status("VmHWM:")
}

/// The memory that this process holds now; `None` where the system does not tell.
///
/// # Units
/// Bytes.
#[must_use]
pub fn resident() -> Option<usize> {
    status("VmRSS:")
}

/// A count of the Linux kernel's.
fn status(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: usize = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}
