//! A table that stays in the host's memory.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};

#[cfg(feature = "cuda")]
use super::cuda::PinnedRows;

/// A dense table in the host's memory, of which a device reads the rows that it needs by itself: a pass reads `t` rows
/// of an embedding, and the others need not lie in the device's memory.
///
/// On CUDA the table is pinned and a kernel reads it over the link, at the link's speed and in the order of the device's
/// other work: 32 MiB, the rows of 4,096 tokens of an 8B model, take as long as a copy of them would.
#[derive(Clone, Debug)]
pub struct HostTable {
    dims: [usize; 2],
    dtype: DType,
    device: Device,
    memory: Arc<PinnedRows>,
}

/// Nothing can be pinned.
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
enum PinnedRows {}

#[cfg(not(feature = "cuda"))]
impl PinnedRows {
    fn holding(_: &[u8], _: usize, _: &Device) -> Option<Self> {
        None
    }

    fn rows(&self, _: &[u32], _: usize, _: DType) -> Tensor<2> {
        match *self {}
    }
}

impl HostTable {
    /// `None` where the device cannot read the host's memory by itself, where rows are no whole number of 16 bytes, or
    /// where so much memory cannot be pinned.
    ///
    /// # Shapes
    /// `data` `[rows, width]`.
    pub fn pinned(data: &TensorData, device: &Device) -> Option<Self> {
        let &[rows, width] = &data.shape()[..] else {
            return None;
        };
        let row = width * data.dtype().size();
        let memory = PinnedRows::holding(data.as_bytes(), row, device)?;
        Some(Self {
            dims: [rows, width],
            dtype: data.dtype(),
            device: device.clone(),
            memory: Arc::new(memory),
        })
    }

    /// `[rows, width]`.
    #[must_use]
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// Of its values.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device that reads it.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The rows with the given numbers, on the device.
    ///
    /// # Shapes
    /// `[ids.len(), width]`.
    ///
    /// # Panics
    /// If a number is not below the table's.
    #[must_use]
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        let [rows, width] = self.dims;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
            panic!("id {id} of a table of {rows} rows");
        }
        self.memory.rows(ids, width, self.dtype)
    }

    /// All of it, on the device.
    ///
    /// # Shapes
    /// `[rows, width]`.
    #[must_use]
    pub fn whole(&self) -> Tensor<2> {
        let ids: Vec<u32> = (0..self.dims[0] as u32).collect();
        self.rows(&ids)
    }
}
