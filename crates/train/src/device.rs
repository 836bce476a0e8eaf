//! How a device takes memory, how fast it is, and how much a run may use of it.

use std::sync::Arc;

use backdraft_kernels::device::{best_dtype, computes_in, free_and_held, gpu, report};
use backdraft_kernels::offload::is_there;
use backdraft_plan::cost::Roofline;
use backdraft_plan::memory::{MemoryWatch, SystemMemory, host_room};
use backdraft_plan::tensors::MemoryModel;
use backdraft_recipe::DType;
use burn::tensor::{self, Device};

use crate::error::TrainError;

/// The type in which a recipe has `device` compute.
///
/// # Errors
/// A type that the device does not compute in.
pub fn dtype_on(recipe: DType, device: &Device) -> Result<tensor::DType, TrainError> {
    let dtype = match recipe {
        DType::Auto => return Ok(best_dtype(device)),
        DType::Bf16 => tensor::DType::BF16,
        DType::F16 => tensor::DType::F16,
        DType::F32 => tensor::DType::F32,
    };
    if computes_in(device, dtype) {
        return Ok(dtype);
    }
    Err(TrainError::Dtype {
        dtype: recipe,
        device: report(device).name,
    })
}

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
        let Some(report) = gpu(device) else {
            return Self::cpu();
        };
        Self {
            memory: MemoryModel {
                embeds_on_host: is_there(device),
                ..MemoryModel::cube(element)
            },
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
