//! How a device takes memory, how fast it is, and how much a run may use of it.

use std::sync::Arc;

use backdraft_kernels::device::report;
use burn::tensor::Device;

use super::cost::Roofline;
use super::tensors::MemoryModel;
use crate::memory::{MemoryWatch, SystemMemory};

/// What the planner needs to know of a device.
#[derive(Clone, Debug)]
pub struct DeviceFacts {
    /// How its ops take memory.
    pub memory: MemoryModel,
    /// How fast it is.
    pub roofline: Roofline,
    /// Its own memory; `None` on the processor, which uses the system's.
    pub capacity: Option<u64>,
}

impl DeviceFacts {
    /// Of `device`, whose activations take `element` bytes each.
    #[must_use]
    pub fn of(device: &Device, element: u64) -> Self {
        let report = report(device);
        if report.name == "cpu" {
            return Self::cpu();
        }
        Self {
            memory: MemoryModel::cube(element),
            roofline: Roofline::GPU,
            capacity: Some(report.memory.unwrap_or(u64::MAX)),
        }
    }

    /// Of the processor.
    #[must_use]
    pub fn cpu() -> Self {
        Self {
            memory: MemoryModel::cpu(),
            roofline: Roofline::CPU,
            capacity: None,
        }
    }

    /// Who watches its memory: nobody that of a GPU, whose own errors have to do.
    #[must_use]
    pub fn watch(&self) -> Arc<dyn MemoryWatch> {
        match self.capacity {
            None => Arc::new(SystemMemory),
            Some(_) => Arc::new(Unwatched),
        }
    }
}

/// Knows nothing.
#[derive(Clone, Copy, Debug)]
struct Unwatched;

impl MemoryWatch for Unwatched {
    fn obtainable(&self) -> Option<u64> {
        None
    }
}

/// What a step may use of a GPU's memory: a sixteenth, and half a GiB at least, stays for its driver, other
/// programs and what the allocator cannot fill.
#[must_use]
pub fn usable(capacity: u64) -> u64 {
    capacity.saturating_sub((capacity / 16).max(1 << 29))
}
