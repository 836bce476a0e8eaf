//! Eight sub-blocks side by side, so that each keeps the reference's order of sums and the processor's vectors are still used.

/// A number of each of eight sub-blocks.
pub(super) type Lanes = [f32; 8];

/// The same for integers.
pub(super) type Codes = [i32; 8];

/// Element `i` of eight sub-blocks of `N` values, for each `i`.
pub(super) fn transposed<const N: usize>(values: &[f32]) -> [Lanes; N] {
    let mut out = [[0.0; 8]; N];
    for (lane, values) in values.chunks_exact(N).take(8).enumerate() {
        for (out, value) in out.iter_mut().zip(values) {
            out[lane] = *value;
        }
    }
    out
}

/// A number for each lane.
pub(super) fn map(f: impl FnMut(usize) -> f32) -> Lanes {
    std::array::from_fn(f)
}

/// The nearest integer, halves to even, by the reference's trick: the low bits of `value + 1.5 · 2^23`.
///
/// Beyond ±2^22 the result is as wrong as the reference's.
pub(super) fn nearest(value: f32) -> i32 {
    let bits = (value + 12_582_912.0).to_bits() as i32;
    (bits & 0x007f_ffff) - 0x0040_0000
}
