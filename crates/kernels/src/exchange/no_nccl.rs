//! Builds without CUDA have no NCCL, and no group.

use std::convert::Infallible;
use std::time::Duration;

use burn::tensor::{Device, Tensor};

use super::shares::Chunk;
use super::{NcclError, NcclLibrary, UniqueId};

/// Processes whose devices exchange; there are none in this build.
#[derive(Clone, Debug)]
pub struct Group(Infallible);

/// The NCCL of this process.
///
/// # Errors
/// This build has none.
pub fn found() -> Result<NcclLibrary, NcclError> {
    Err(NcclError::NotBuilt)
}

/// What a group meets by.
///
/// # Errors
/// This build has no NCCL.
pub fn unique_id() -> Result<UniqueId, NcclError> {
    Err(NcclError::NotBuilt)
}

impl Group {
    /// Joins the others.
    ///
    /// # Errors
    /// This build has no NCCL.
    pub fn join(
        _: &Device,
        _: &UniqueId,
        _: (usize, usize),
        _: Duration,
    ) -> Result<Self, NcclError> {
        Err(NcclError::NotBuilt)
    }

    /// Which process this is.
    pub fn rank(&self) -> usize {
        match self.0 {}
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        match self.0 {}
    }

    pub(super) fn sum_chunk(
        &self,
        _: &Chunk,
        _: (&[usize], &[[usize; 2]]),
        _: &[Tensor<1>],
        _: &Tensor<1>,
    ) {
        match self.0 {}
    }
}
