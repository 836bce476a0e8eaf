//! Dropout whose mask is a function of a seed, so that nothing is kept for the backward pass.

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::cpu::{f32s, into_vec, tensor};

/// Zeroes values with probability `p` and scales the rest by 1 / (1 − p).
///
/// Which values depends on `seed` and their position alone: the same call gives the same mask on
/// every device and with any number of threads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of a zero, in [0, 1).
    pub p: f32,
    /// Chooses the mask.
    pub seed: u64,
}

impl Dropout {
    /// `x` under the mask.
    ///
    /// # Shapes
    /// `x` and the result `[t, n]`.
    pub fn apply(self, x: Tensor<2>) -> Tensor<2> {
        let shape = x.dims();
        if f32s(&x).is_some() {
            let mut values = into_vec(x);
            values
                .par_iter_mut()
                .with_min_len(1 << 14)
                .enumerate()
                .for_each(|(i, value)| *value *= self.factor(i));
            return tensor(values, shape);
        }
        let device = x.device();
        let mask: Vec<f32> = (0..shape[0] * shape[1]).map(|i| self.factor(i)).collect();
        let mask = Tensor::<2>::from_data(TensorData::new(mask, shape), &device);
        x.clone() * mask.cast(x.dtype())
    }

    fn factor(self, index: usize) -> f32 {
        // SplitMix64's finaliser over a Weyl sequence.
        let mut z = self.seed.wrapping_add(
            (index as u64)
                .wrapping_add(1)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15),
        );
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let uniform = ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32;
        if uniform < self.p {
            0.0
        } else {
            1.0 / (1.0 - self.p)
        }
    }
}
