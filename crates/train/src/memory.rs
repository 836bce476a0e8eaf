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

/// What a run held, as the system tells.
///
/// # Units
/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Measured {
    /// By kind: base and adapters from how much the process grew, the optimiser's from its state, and
    /// under activations whatever else the process held at its largest while it trained.
    pub parts: Memory,
    /// The process before it read the model: the program, tokenizer and rows.
    pub before: usize,
    /// The most while the model was read.
    pub peak_loading: usize,
    /// The most from then on.
    pub peak_training: usize,
}

impl Measured {
    /// The most that the process held.
    #[must_use]
    pub fn peak(self) -> Option<usize> {
        Some(self.peak_loading.max(self.peak_training))
    }
}

/// Looks at the process while a model is read and trained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watcher {
    before: usize,
    loaded: usize,
    adapted: usize,
    peak_loading: usize,
}

impl Watcher {
    /// Watches `load`, then `adapt`. `None` in place of a watcher where the system does not tell.
    pub(crate) fn watch<A, B, E>(
        load: impl FnOnce() -> Result<A, E>,
        adapt: impl FnOnce(A) -> Result<B, E>,
    ) -> Result<(B, Option<Self>), E> {
        let before = resident().filter(|_| forget_peak());
        let loaded = load()?;
        let (peak_loading, after) = (peak_resident(), resident());
        let adapted = adapt(loaded)?;
        let watcher = || {
            Some(Self {
                before: before?,
                loaded: after?,
                adapted: resident()?,
                peak_loading: peak_loading?,
            })
        };
        let watcher = watcher().filter(|_| forget_peak());
        Ok((adapted, watcher))
    }

    /// After the run, whose gradients and optimiser state had these sizes.
    pub(crate) fn measured(self, gradients: usize, optimizer: usize) -> Option<Measured> {
        let peak_training = peak_resident()?;
        let base = self.loaded.saturating_sub(self.before);
        let adapters = self.adapted.saturating_sub(self.loaded) + gradients;
        let rest = peak_training.saturating_sub(self.before);
        Some(Measured {
            parts: Memory {
                base,
                adapters,
                optimizer,
                activations: rest.saturating_sub(base + adapters + optimizer),
            },
            before: self.before,
            peak_loading: self.peak_loading,
            peak_training,
        })
    }
}

/// Lets [`peak_resident`] count from now; `false` where the system cannot.
pub fn forget_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
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

/// The most memory that this process has held so far, or since [`forget_peak`]; `None` where the system does not tell.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(
        clippy::print_stdout,
        reason = "a check that cannot be made is said so"
    )]
    fn what_was_held_while_loading_is_told_from_what_stays() {
        if resident().is_none() || !forget_peak() {
            println!("nothing checked: the system does not tell how much memory is held");
            return;
        }
        const MIB: usize = 1 << 20;
        let fill = |mib: usize| std::hint::black_box(vec![1u8; mib * MIB]);
        let load = || {
            drop(fill(200));
            Ok::<_, ()>(fill(60))
        };
        let (kept, watcher) = Watcher::watch(load, |kept| Ok((kept, fill(8)))).unwrap();
        drop(fill(100));
        let measured = watcher.unwrap().measured(MIB, 2 * MIB).unwrap();
        drop(kept);
        // Other tests run beside this one, so only what they cannot undo is compared.
        assert!(measured.peak_loading >= 200 * MIB, "{measured:?}");
        assert!(measured.peak_training >= 168 * MIB, "{measured:?}");
        assert_eq!(measured.parts.optimizer, 2 * MIB);
    }
}
