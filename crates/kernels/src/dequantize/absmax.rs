//! The scales of blocks.

use burn::tensor::{Device, Int, Tensor};

use super::{PartsError, Tensors, check, floats};
use crate::codebook::bytes;
use crate::quantize::{NESTED_BLOCK_SIZE, NestedScales};

/// The scale of each block.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one of a matrix, which owns both kinds of tensor anyway"
)]
pub enum Absmax {
    /// As f32.
    ///
    /// # Shapes
    /// `[blocks]`.
    Single(Tensor<1>),
    /// Quantised in turn: `map[code] · scale + offset`, one scale for 256 codes.
    ///
    /// # Shapes
    /// `codes` `[blocks]` u8, `scales` `[ceil(blocks / 256)]`.
    Double {
        /// Codes of the signed dynamic map.
        codes: Tensor<1, Int>,
        /// Their scales.
        scales: Tensor<1>,
        /// Mean that was taken off before.
        offset: f32,
    },
}

/// Scales of blocks on the host.
#[derive(Clone, Debug, PartialEq)]
pub enum HostAbsmax {
    /// As they are.
    Single(Vec<f32>),
    /// Quantised in turn.
    Double(NestedScales),
}

impl HostAbsmax {
    /// The scales of so many blocks on a device.
    pub(super) fn on(self, device: &Device, blocks: usize) -> Result<Absmax, PartsError> {
        match self {
            Self::Single(absmax) => {
                check("scales", blocks, absmax.len())?;
                Ok(Absmax::Single(floats(absmax, device)))
            }
            Self::Double(NestedScales {
                blocks: nested,
                offset,
            }) => {
                check("codes of scales", blocks, nested.codes.len())?;
                let scales = blocks.div_ceil(NESTED_BLOCK_SIZE);
                check("scales of scales", scales, nested.absmax.len())?;
                Ok(Absmax::Double {
                    codes: bytes(nested.codes, device),
                    scales: floats(nested.absmax, device),
                    offset,
                })
            }
        }
    }
}

impl Absmax {
    /// Whether the scales are quantised too.
    pub fn is_double(&self) -> bool {
        matches!(self, Self::Double { .. })
    }

    /// The same of other tensors.
    pub(super) fn over(self, tensors: &mut impl Tensors) -> Self {
        match self {
            Self::Single(absmax) => Self::Single(tensors.scales(absmax)),
            Self::Double {
                codes,
                scales,
                offset,
            } => Self::Double {
                codes: tensors.codes(codes),
                scales: tensors.scales(scales),
                offset,
            },
        }
    }

    /// # Units
    /// Bytes.
    pub(super) fn num_bytes(&self) -> usize {
        match self {
            Self::Single(absmax) => 4 * absmax.dims()[0],
            Self::Double { codes, scales, .. } => codes.dims()[0] + 4 * scales.dims()[0] + 4,
        }
    }
}
