//! AdamW whose moments are kept in 8 bits between updates.
//!
//! Moments are cut into blocks of 256 values: m in codes of the signed dynamic map, v in codes of the
//! unsigned one, each block with its largest magnitude. An update dequantises them, works in f32 as
//! [`adamw`](crate::adamw) does, and quantises what it has computed.
//!
//! **The guard.** The smallest code above zero stands for 3.25·10⁻⁷ of the block's largest v. A value
//! whose gradient is less than 4·10⁻⁴ of its block's largest has a v below half of that: it rounds to zero,
//! while its m, of the order of the gradient and not of its square, does not, and the next update divides
//! by ε. With [`Guard::On`] a v above zero never rounds to zero, so that an update is at most what the
//! smallest code allows; with [`Guard::Off`] the codes are those of bitsandbytes.
//!
//! # Source
//! Dettmers et al. 2021, arXiv:2110.02861; block size and order of operations of bitsandbytes 0.50.

mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub mod reference;

pub use backdraft_arch::optimizer::{BLOCK_SIZE, Guard, MIN_8BIT_SIZE};
use burn::tensor::{Int, Tensor};

use crate::adamw::AdamWParams;
use crate::codebook::{DynamicMap, bytes};
use crate::dispatch::on_device;
use crate::quantize::blockwise;

/// One moment in codes.
///
/// # Shapes
/// `codes` `[n]` u8, `absmax` `[ceil(n / 256)]`.
#[derive(Clone, Debug)]
pub struct Moment8Bit {
    /// Codes.
    pub codes: Tensor<1, Int>,
    /// Scales.
    pub absmax: Tensor<1>,
}

/// First and second moment.
#[derive(Clone, Debug)]
pub struct Moments8Bit {
    /// m, signed.
    pub m: Moment8Bit,
    /// v, unsigned.
    pub v: Moment8Bit,
}

impl Moments8Bit {
    /// Zeroes like `param`.
    pub fn zeros<const D: usize>(param: &Tensor<D>) -> Self {
        let n = param.shape().num_elements();
        let moment = |map| {
            let zeros = blockwise(&vec![0.0; n], map, BLOCK_SIZE);
            Moment8Bit {
                codes: bytes(zeros.codes, &param.device()),
                absmax: Tensor::zeros([n.div_ceil(BLOCK_SIZE)], &param.device()),
            }
        };
        Self {
            m: moment(DynamicMap::Signed),
            v: moment(DynamicMap::Unsigned),
        }
    }

    /// Memory of codes and scales.
    ///
    /// # Units
    /// Bytes.
    pub fn num_bytes(&self) -> usize {
        let one = |moment: &Moment8Bit| moment.codes.dims()[0] + 4 * moment.absmax.dims()[0];
        one(&self.m) + one(&self.v)
    }
}

/// One update with learning rate `lr`; `t` counts from 1.
///
/// # Panics
/// If the moments are not of the parameter's size.
pub fn step<const D: usize>(
    param: Tensor<D>,
    grad: &Tensor<D>,
    moments: Moments8Bit,
    (lr, t): (f64, u64),
    params: &AdamWParams,
    guard: Guard,
) -> (Tensor<D>, Moments8Bit) {
    let n = param.shape().num_elements();
    assert_eq!(moments.m.codes.dims(), [n], "codes of the first moment");
    assert_eq!(moments.v.codes.dims(), [n], "codes of the second moment");
    cpu::step(param, grad, moments, (lr, t), params, guard)
        .or_else(|(param, moments)| {
            on_device!(
                cube::step(param, grad, moments, (lr, t), params, guard),
                or(param, moments)
            )
        })
        .unwrap_or_else(|(param, moments)| {
            reference::step(param, grad, moments, (lr, t), params, guard)
        })
}

#[cfg(test)]
mod tests;
