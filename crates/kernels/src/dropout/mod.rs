//! Dropout whose mask is a function of a seed, so that nothing is kept for the backward pass.

#[cfg(feature = "cube")]
mod cube;

use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use crate::cpu::{f32s, into_vec, tensor};
use crate::dispatch::on_device;
use crate::uniform::uniform;

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
    /// `x` under the mask, written over it where nothing else holds it.
    ///
    /// # Shapes
    /// `x` and the result `[t, n]`.
    ///
    /// # Panics
    /// On a GPU, if there are 2³² values or more.
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
        on_device!(cube::apply(self, x), or x).unwrap_or_else(|x: Tensor<2>| {
            let mask: Vec<f32> = (0..shape[0] * shape[1]).map(|i| self.factor(i)).collect();
            let mask = Tensor::<2>::from_data(TensorData::new(mask, shape), &x.device());
            let dtype = x.dtype();
            x * mask.cast(dtype)
        })
    }

    /// `sum` and `x` under the mask, written over `sum` where nothing else holds it.
    ///
    /// # Shapes
    /// `x`, `sum` and the result `[t, n]`.
    ///
    /// # Panics
    /// As [`apply`](Self::apply).
    pub fn add_to(self, x: &Tensor<2>, sum: Tensor<2>) -> Tensor<2> {
        on_device!(cube::add(self, x, sum), or sum)
            .unwrap_or_else(|sum: Tensor<2>| sum + self.apply(x.clone()))
    }

    fn factor(self, index: usize) -> f32 {
        let uniform = uniform(self.seed, index as u64);
        if uniform < self.p { 0.0 } else { self.kept() }
    }

    /// What the values that stay are multiplied by.
    fn kept(self) -> f32 {
        1.0 / (1.0 - self.p)
    }
}
