//! Rounding to bf16 by chance: up or down with the probability that makes the mean the value itself, so that updates too small
//! for the type are not lost.
//!
//! A value between its neighbours lo and hi in magnitude becomes hi with probability (|x| − lo)/(hi − lo), else lo. The draw follows
//! from a seed and the value's place alone. Values below 2⁻¹⁰⁰ become 0, those beyond bf16's largest become that.
//!
//! # Source
//! Gupta et al. 2015, "Deep learning with limited numerical precision", arXiv:1502.02551.

mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use crate::uniform::bits;

/// Below this nothing is kept: bf16's own subnormals are far below.
const SMALLEST: f32 = f32::from_bits((127 - 100) << 23);
/// The largest value of bf16.
const LARGEST: f32 = f32::from_bits(0x7F7F_0000);

/// Values of bf16, in f32.
///
/// # Shapes
/// `x` and the result `[rows, columns]`, f32.
pub fn to_bf16(x: Tensor<2>, seed: u64) -> Tensor<2> {
    cpu::to_bf16(x, seed).unwrap_or_else(|x| reference::to_bf16(x, seed))
}

/// What the draws of a row follow from.
fn key(seed: u64, row: usize) -> u64 {
    bits(seed, row as u64)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    fn tensor(values: &[f32], columns: usize) -> Tensor<2> {
        let dims = [values.len() / columns, columns];
        Tensor::from_data(TensorData::new(values.to_vec(), dims), &Device::flex())
    }

    fn values(x: Tensor<2>) -> Vec<f32> {
        x.into_data().try_into_vec().unwrap()
    }

    /// Every magnitude, both signs, values of bf16 themselves, and those next to powers of two.
    fn inputs() -> Vec<f32> {
        let mut inputs = vec![
            0.0,
            -0.0,
            1.0,
            -1.0,
            1e-38,
            1e-31,
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            3.3e38,
            -3.39e38,
        ];
        for exponent in -99..127 {
            for mantissa in [
                0u32, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x7F_FFFF, 0x7F_0001,
            ] {
                let value = f32::from_bits((((exponent + 127) as u32) << 23) | mantissa);
                inputs.extend([value, -value]);
            }
        }
        inputs.extend((0..4096).map(|i| crate::uniform::uniform(3, i) * 4.0 - 2.0));
        inputs.truncate(inputs.len() / 7 * 7);
        inputs
    }

    #[test]
    fn the_loop_gives_the_bits_of_the_reference() {
        let inputs = inputs();
        for seed in 0..20 {
            let found = values(to_bf16(tensor(&inputs, 7), seed));
            let expected = values(reference::to_bf16(tensor(&inputs, 7), seed));
            for ((x, found), expected) in inputs.iter().zip(found).zip(expected) {
                assert_eq!(found, expected, "{x:e} of seed {seed}");
            }
        }
    }

    #[test]
    fn results_are_the_neighbours_of_a_value_in_bf16() {
        let inputs = inputs();
        for seed in 0..20 {
            for (&x, y) in inputs.iter().zip(values(to_bf16(tensor(&inputs, 7), seed))) {
                assert_eq!(
                    y.to_bits() & 0xFFFF,
                    0,
                    "{x:e} became {y:e}, which is no bf16"
                );
                if x.abs() < SMALLEST {
                    assert_eq!(y, 0.0);
                    continue;
                }
                let down = x.to_bits() & !0xFFFF;
                let neighbours = [down, down + 0x1_0000].map(f32::from_bits);
                let bounded = neighbours.map(|y| y.clamp(-LARGEST, LARGEST));
                assert!(bounded.contains(&y), "{x:e} became {y:e}");
                if x.to_bits() & 0xFFFF == 0 {
                    assert_eq!(y, x.clamp(-LARGEST, LARGEST));
                }
            }
        }
    }

    #[test]
    fn the_mean_of_many_draws_is_the_value() {
        let draws = 1 << 16;
        for (i, x) in [1.0f32 + 1.0 / 1024.0, -0.3, 1e-20, 255.9, 2.0 - 1e-6]
            .into_iter()
            .enumerate()
        {
            let found = values(to_bf16(tensor(&vec![x; draws], 256), 7 + i as u64));
            let mean = found.iter().map(|&y| f64::from(y)).sum::<f64>() / draws as f64;
            let down = f32::from_bits(x.to_bits() & !0xFFFF);
            let up = f32::from_bits((x.to_bits() & !0xFFFF) + 0x1_0000);
            let [down, up] = [down, up].map(f64::from);
            let p = (f64::from(x) - down) / (up - down);
            // Four standard errors of so many draws.
            let error = 4.0 * (up - down).abs() * (p * (1.0 - p) / draws as f64).sqrt();
            assert!((mean - f64::from(x)).abs() <= error, "{x:e}: {mean:e}");
            let ups = found.iter().filter(|&&y| f64::from(y) == up).count();
            assert_eq!(ups > 0, p > 1e-4, "{x:e}");
        }
        // Another seed, other draws; the same, the same.
        let x = tensor(&vec![0.3; 256], 256);
        let of = |seed| values(to_bf16(x.clone(), seed));
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }
}
