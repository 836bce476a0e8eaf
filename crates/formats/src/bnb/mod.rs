//! Weights as bitsandbytes stores them in safetensors files.
//!
//! | tensor | type and shape | what |
//! | --- | --- | --- |
//! | `X.weight` | any type, ⌈n/2⌉ bytes | 4-bit codes over the row-major weight, the first in the high half |
//! | `X.weight.absmax` | f32, or u8 where nested | the scale of each block |
//! | `X.weight.quant_map` | f32 `[16]` | the value of each code |
//! | `X.weight.nested_absmax`, `….nested_quant_map` | f32 | scales and values of the nested codes |
//! | `X.weight.quant_state.bitsandbytes__nf4` (`…__fp4`) | u8 | JSON: type, block size, shape, … |
//! | `X.weight`, `X.SCB` | i8 `[out, in]`, f32 `[out]` | 8 bits: row · SCB / 127 |
//!
//! # Source
//! `bitsandbytes.functional.QuantState`, version 0.50.

mod config;
mod state;

use std::borrow::Cow;
use std::path::Path;

pub use config::{BnbConfig, BnbKind};
pub use state::BnbQuantType;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::tensor::TensorInfo;

/// A weight in codes.
#[derive(Debug, Clone, PartialEq)]
pub enum BnbTensor<'a> {
    /// NF4 or FP4.
    FourBit(BnbFourBit<'a>),
    /// Whole numbers of 8 bits by rows.
    Int8(BnbInt8<'a>),
}

/// A weight in 4-bit codes; every length has been checked.
#[derive(Debug, Clone, PartialEq)]
pub struct BnbFourBit<'a> {
    /// What the codes stand for.
    pub quant_type: BnbQuantType,
    /// Values that share a scale.
    pub block_size: usize,
    /// The type that the weight had.
    pub dtype: Dtype,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Two codes to a byte, the first in the high half.
    pub packed: Cow<'a, [u8]>,
    /// The scales.
    pub absmax: BnbAbsmax,
}

/// The scale of each block.
#[derive(Debug, Clone, PartialEq)]
pub enum BnbAbsmax {
    /// As they are.
    Single(Vec<f32>),
    /// `map[code] · scale + offset` with the signed dynamic map, a scale for 256 codes.
    Nested {
        /// One for each block.
        codes: Vec<u8>,
        /// One for 256 codes.
        scales: Vec<f32>,
        /// The mean that was taken off.
        offset: f32,
    },
}

/// A weight in whole numbers of 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct BnbInt8<'a> {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Two's complement, row-major.
    pub codes: Cow<'a, [u8]>,
    /// The largest magnitude of each row.
    pub absmax: Vec<f32>,
}

/// What the values of codes are, for a reader to check and a writer to write.
#[derive(Debug, Clone, Copy)]
pub struct BnbMaps<'a> {
    /// NF4, 16 values.
    pub nf4: &'a [f32; 16],
    /// FP4, 16 values.
    pub fp4: &'a [f32; 16],
    /// The signed dynamic map.
    pub signed: &'a [f32; 256],
}

impl BnbMaps<'_> {
    fn of(&self, quant_type: BnbQuantType) -> &[f32; 16] {
        match quant_type {
            BnbQuantType::Nf4 => self.nf4,
            BnbQuantType::Fp4 => self.fp4,
        }
    }
}

impl BnbKind {
    /// The tensors that a weight becomes, for a [`SafetensorsWriter`](crate::SafetensorsWriter).
    #[must_use]
    pub fn layout(self, weight: &TensorInfo) -> Vec<TensorInfo> {
        let name = &weight.name;
        let values = weight.checked_elements().unwrap_or(usize::MAX);
        let part = |suffix: &str, dtype, shape: &[usize]| {
            TensorInfo::new(format!("{name}.{suffix}"), dtype, shape)
        };
        match self {
            Self::FourBit {
                quant_type,
                block_size,
                nested,
            } => {
                let blocks = values.div_ceil(block_size);
                let packed = [values.div_ceil(2), 1];
                let mut tensors = vec![
                    TensorInfo::new(name, Dtype::U8, packed),
                    part("quant_map", Dtype::F32, &[16]),
                    part(&state::suffix(quant_type), Dtype::U8, &[state::PADDED]),
                ];
                if nested {
                    let scales = [blocks.div_ceil(state::NESTED_BLOCK_SIZE)];
                    tensors.extend([
                        part("absmax", Dtype::U8, &[blocks]),
                        part("nested_absmax", Dtype::F32, &scales),
                        part("nested_quant_map", Dtype::F32, &[256]),
                    ]);
                } else {
                    tensors.push(part("absmax", Dtype::F32, &[blocks]));
                }
                tensors
            }
            Self::Int8 => {
                let module = name.strip_suffix(".weight").unwrap_or(name);
                let rows = [weight.shape.first().copied().unwrap_or(0)];
                vec![
                    TensorInfo::new(name, Dtype::I8, weight.shape.clone()),
                    TensorInfo::new(format!("{module}.SCB"), Dtype::F32, rows),
                    TensorInfo::new(format!("{module}.weight_format"), Dtype::U8, []),
                ]
            }
        }
    }
}

impl BnbTensor<'_> {
    /// The bytes of each tensor of [`BnbKind::layout`], by name; `path` is what they are written to.
    ///
    /// # Errors
    /// An offset of nested scales that is not finite.
    pub fn parts(
        &self,
        path: &Path,
        name: &str,
        maps: BnbMaps<'_>,
    ) -> Result<Vec<(String, Cow<'_, [u8]>)>> {
        let floats = |values: &[f32]| Cow::Owned(bytemuck::cast_slice(values).to_vec());
        Ok(match self {
            Self::FourBit(weight) => {
                let part = |suffix: &str| format!("{name}.{suffix}");
                let mut parts = vec![
                    (name.to_owned(), Cow::Borrowed(&*weight.packed)),
                    (part("quant_map"), floats(maps.of(weight.quant_type))),
                    (
                        part(&state::suffix(weight.quant_type)),
                        Cow::Owned(state::write(path, name, weight)?),
                    ),
                ];
                match &weight.absmax {
                    BnbAbsmax::Single(absmax) => parts.push((part("absmax"), floats(absmax))),
                    BnbAbsmax::Nested { codes, scales, .. } => parts.extend([
                        (part("absmax"), Cow::Borrowed(&**codes)),
                        (part("nested_absmax"), floats(scales)),
                        (part("nested_quant_map"), floats(maps.signed)),
                    ]),
                }
                parts
            }
            Self::Int8(weight) => {
                let module = name.strip_suffix(".weight").unwrap_or(name);
                vec![
                    (name.to_owned(), Cow::Borrowed(&*weight.codes)),
                    (format!("{module}.SCB"), floats(&weight.absmax)),
                    (
                        format!("{module}.weight_format"),
                        Cow::Owned(vec![state::ROW_MAJOR]),
                    ),
                ]
            }
        })
    }
}

pub(crate) use state::{Entry, Lookup, find};

#[cfg(test)]
mod tests;
