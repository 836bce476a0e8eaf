//! The same on a CubeCL device. WebGPU has no 64-bit numbers, so a seed comes in halves of 32 bits.

use cubecl::prelude::*;

use super::{MIX, WEYL, halves};

/// In [0, 1), of a place.
#[cube]
pub(crate) fn uniform(index: u32, seed_low: u32, seed_high: u32) -> f32 {
    let (weyl_low, weyl_high) = times(index + 1u32, 0u32.runtime(), comptime!(halves(WEYL)));
    let low = weyl_low + seed_low;
    let carry = select(low < seed_low, 1u32, 0u32);
    let high = weyl_high + seed_high + carry;
    let (low, high) = times(
        low ^ (low >> 30u32 | high << 2u32),
        high ^ (high >> 30u32),
        comptime!(halves(MIX[0])),
    );
    let (_, high) = times(
        low ^ (low >> 27u32 | high << 5u32),
        high ^ (high >> 27u32),
        comptime!(halves(MIX[1])),
    );
    // The upper 24 bits, which f32 holds exactly.
    f32::cast_from((high ^ (high >> 31u32)) >> 8u32) * comptime!(1.0 / (1u32 << 24) as f32)
}

/// The low and the high half of a product modulo 2⁶⁴.
#[cube]
fn times(low: u32, high: u32, #[comptime] factor: [u32; 2]) -> (u32, u32) {
    let (factor_low, factor_high) = (
        comptime!(factor[0]).runtime(),
        comptime!(factor[1]).runtime(),
    );
    (
        low * factor_low,
        low.mul_hi(factor_low) + low * factor_high + high * factor_low,
    )
}
