//! Scales of blocks.

use half::f16;

/// Puts a number in half precision at byte `at`, and gives back what it became.
pub(super) fn put_half<const B: usize>(block: &mut [u8; B], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}
