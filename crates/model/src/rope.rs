//! Rotary tables on a device.

use backdraft_arch::RopeConfig;
use backdraft_kernels::rope::RotaryTables;
use burn::tensor::{Device, Tensor, TensorData};

/// Cosine and sine for each token.
///
/// # Shapes
/// `position_ids` `[t]`; tables `[t, d / 2]`.
pub fn tables(rope: &RopeConfig, position_ids: &[u32], device: &Device) -> RotaryTables {
    let (cos, sin) = rope.cos_sin(position_ids);
    let shape = [position_ids.len(), rope.head_dim / 2];
    RotaryTables {
        cos: Tensor::from_data(TensorData::new(cos, shape), device),
        sin: Tensor::from_data(TensorData::new(sin, shape), device),
    }
}
