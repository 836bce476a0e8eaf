//! What a run needs in memory, predicted and measured.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

use crate::bytes::gib;
use crate::predict::Prediction;

/// Memory by kind.
///
/// # Units
/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Frozen weights, as they are stored.
    pub base: usize,
    /// The adapters' factors and their gradients, or those of trained tensors of the base.
    pub adapters: usize,
    /// The optimiser's moments.
    pub optimizer: usize,
    /// What comes and goes in a step: what layers keep and rebuild, the loss, buffers.
    pub activations: usize,
}

impl Memory {
    /// As predicted, with `trained` values in the adapters.
    #[must_use]
    pub const fn of(prediction: &Prediction, trained: usize) -> Self {
        let peak = &prediction.peak;
        let (base, optimizer) = (peak.base as usize, peak.optimizer as usize);
        let factors = match peak.adapters as usize {
            less if less < 4 * trained => less,
            _ => 4 * trained,
        };
        let adapters = factors + prediction.gradients as usize;
        Self {
            base,
            adapters,
            optimizer,
            activations: (peak.total() as usize).saturating_sub(base + adapters + optimizer),
        }
    }

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The same where so many bytes of what was loaded are trained themselves.
    #[must_use]
    pub fn with_trained(mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.parts.base);
        self.parts.base -= bytes;
        self.parts.adapters += bytes;
        self
    }

    /// The most that the process held.
    #[must_use]
    pub fn peak(self) -> Option<usize> {
        Some(self.peak_loading.max(self.peak_training))
    }
}

/// Looks at the process while a model is read and trained.
#[derive(Clone, Copy, Debug)]
pub struct Watcher {
    before: usize,
    loaded: usize,
    adapted: usize,
    peak_loading: usize,
}

impl Watcher {
    /// Watches `load`, then `adapt`. `None` in place of a watcher where the system does not tell.
    pub fn watch<A, B, E>(
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

    /// Watches one more run over what was loaded, which `adapt` prepares. `None` in place of a watcher as in
    /// [`watch`](Self::watch).
    ///
    /// # Errors
    /// Those of `adapt`.
    pub fn again<B, E>(
        watcher: Option<Self>,
        adapt: impl FnOnce() -> Result<B, E>,
    ) -> Result<(B, Option<Self>), E> {
        let made = adapt()?;
        let watcher = watcher.and_then(|watcher| {
            let adapted = resident().filter(|_| forget_peak())?;
            Some(Self { adapted, ..watcher })
        });
        Ok((made, watcher))
    }

    /// After the run, whose gradients and optimiser state had these sizes.
    pub fn measured(self, gradients: usize, optimizer: usize) -> Option<Measured> {
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

/// Knows how much memory the process could have.
pub trait MemoryWatch: Debug + Send + Sync {
    /// What the process holds and what it could still get; `None` where that is not known.
    ///
    /// # Units
    /// Bytes.
    fn obtainable(&self) -> Option<u64>;

    /// Whether it can be asked before every layer: asking costs next to nothing.
    fn is_cheap(&self) -> bool {
        true
    }
}

/// The memory of this machine, and of the control group that the process is in.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemMemory;

impl MemoryWatch for SystemMemory {
    fn obtainable(&self) -> Option<u64> {
        let free = available()?;
        let group = group_room().unwrap_or(u64::MAX);
        Some(resident()? as u64 + free.min(group))
    }
}

/// Bytes of this machine's memory in which a GPU's tensors may wait: half of what is free.
#[must_use]
pub fn host_room() -> u64 {
    free().unwrap_or(0) / 2
}

/// Bytes of this machine's memory that the process could still take; `None` where the system does not tell.
#[must_use]
pub fn free() -> Option<u64> {
    let held = resident()? as u64;
    Some(SystemMemory.obtainable()?.saturating_sub(held))
}

/// What a step may use of a GPU's memory: a sixteenth, and half a GiB at least, stays for its driver, other
/// programs and what the allocator cannot fill.
#[must_use]
pub fn usable(capacity: u64) -> u64 {
    capacity.saturating_sub((capacity / 16).max(1 << 29))
}

/// Memory that new allocations could take without swapping.
fn available() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    kib_of(&info, "MemAvailable:").map(|kib| kib * 1024)
}

/// What the control group's limit leaves; `None` without a limit.
fn group_room() -> Option<u64> {
    let read = |name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?;
        text.trim().parse().ok()
    };
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

fn kib_of(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Memory that a pass was to have and cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory ran out: {:.2} GiB were needed{}", gib(*needed), obtainable.map_or_else(String::new, |bytes| format!(", {:.2} GiB could be had", gib(bytes))))]
pub struct OutOfMemory {
    /// Bytes that the pass was predicted to need.
    pub needed: u64,
    /// Bytes that could be had; `None` where only the failure is known.
    pub obtainable: Option<u64>,
}

/// Asks before each layer, or once where that takes time, whether the memory of a pass can still be had.
#[derive(Clone, Copy, Debug)]
pub struct Guard<'a> {
    /// Who knows.
    pub watch: &'a dyn MemoryWatch,
    /// Bytes that the pass needs at its peak, everything else that the process holds included.
    pub needed: u64,
}

impl Guard<'_> {
    /// # Errors
    /// Less can be had than is needed before `layer`, counted from the lowest adapted one.
    pub fn check(&self, layer: usize) -> Result<(), OutOfMemory> {
        if layer > 0 && !self.watch.is_cheap() {
            return Ok(());
        }
        match self.watch.obtainable() {
            Some(bytes) if bytes < self.needed => Err(OutOfMemory {
                needed: self.needed,
                obtainable: Some(bytes),
            }),
            _ => Ok(()),
        }
    }
}

/// The line of a device's error that says that its memory ran out; `None` where none does.
#[must_use]
pub fn says_out_of_memory(message: &str) -> Option<&str> {
    message.lines().map(str::trim).find(|line| {
        let line = line.to_lowercase();
        [
            "out of memory",
            "out of device memory",
            "out_of_memory",
            "outofmemory",
            "buffertoobig",
            "buffer too big",
        ]
        .iter()
        .any(|part| line.contains(part))
    })
}

/// A count of the Linux kernel's.
fn status(name: &str) -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kib_of(&status, name).map(|kib| kib as usize * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_stops_where_less_can_be_had() {
        #[derive(Debug)]
        struct Fixed(Option<u64>);
        impl MemoryWatch for Fixed {
            fn obtainable(&self) -> Option<u64> {
                self.0
            }
        }
        let check = |bytes| {
            let watch = &Fixed(bytes);
            let needed = 10 << 30;
            Guard { watch, needed }.check(0)
        };
        assert_eq!(check(None), Ok(()));
        assert_eq!(check(Some(10 << 30)), Ok(()));
        let error = check(Some(9 << 30)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory ran out: 10.00 GiB were needed, 9.00 GiB could be had"
        );
    }

    #[test]
    fn errors_of_devices_are_recognised() {
        for message in [
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY)",
            "BufferTooBig { size: 3 }",
        ] {
            assert_eq!(says_out_of_memory(message), Some(message));
        }
        assert_eq!(
            says_out_of_memory(
                "An IO error happened\nCaused by:\n  out of device memory allocating 38797312 bytes\n  at 3"
            ),
            Some("out of device memory allocating 38797312 bytes")
        );
        assert_eq!(says_out_of_memory("launch failed"), None);
    }

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
