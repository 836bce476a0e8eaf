//! How a device takes memory, how fast it is, and how much a run may use of it.

use std::sync::Arc;

use backdraft_kernels::device::{free_and_held, report};
use backdraft_kernels::offload::is_there;
use burn::tensor::Device;

use super::cost::Roofline;
use super::tensors::MemoryModel;
use crate::memory::{self, MemoryWatch, SystemMemory};

/// What the planner needs to know of a device.
#[derive(Clone, Debug)]
pub struct DeviceFacts {
    /// How its ops take memory.
    pub memory: MemoryModel,
    /// How fast it is.
    pub roofline: Roofline,
    /// Its own memory; `None` on the processor, which uses the system's.
    pub capacity: Option<u64>,
    /// Bytes of the host's memory in which tensors of the device may wait: half of what is free.
    pub host: u64,
    device: Device,
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
            host: if is_there(device) { host_room() } else { 0 },
            device: device.clone(),
        }
    }

    /// Of the processor.
    #[must_use]
    pub fn cpu() -> Self {
        Self {
            memory: MemoryModel::cpu(),
            roofline: Roofline::CPU,
            capacity: None,
            host: 0,
            device: Device::flex(),
        }
    }

    /// Who watches its memory.
    #[must_use]
    pub fn watch(&self) -> Arc<dyn MemoryWatch> {
        match self.capacity {
            None => Arc::new(SystemMemory),
            Some(_) => Arc::new(DeviceMemory(self.device.clone())),
        }
    }
}

/// Bytes of this machine's memory in which a GPU's tensors may wait: half of what is free.
#[must_use]
pub fn host_room() -> u64 {
    let resident = memory::resident().unwrap_or(0) as u64;
    let free = SystemMemory.obtainable().unwrap_or(0);
    free.saturating_sub(resident) / 2
}

/// What a GPU's driver says, asked once for each pass: the answer comes after the launches before it. Unknown where
/// the driver does not say, as on WebGPU, whose own errors have to do.
#[derive(Clone, Debug)]
struct DeviceMemory(Device);

impl MemoryWatch for DeviceMemory {
    fn obtainable(&self) -> Option<u64> {
        let [free, held] = free_and_held(&self.0)?;
        Some(free + held)
    }

    fn is_cheap(&self) -> bool {
        false
    }
}

/// What a step may use of a GPU's memory: a sixteenth, and half a GiB at least, stays for its driver, other
/// programs and what the allocator cannot fill.
#[must_use]
pub fn usable(capacity: u64) -> u64 {
    capacity.saturating_sub((capacity / 16).max(1 << 29))
}
