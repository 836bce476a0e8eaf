//! A head with one row, which scores texts by the last of their tokens.
//!
//! # Source
//! transformers' `GenericForSequenceClassification` with one label: `score` has no bias, and reads normed hidden states.

use backdraft_lora::AdapterGrads;
use burn::tensor::{DType, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::causal_lm::CausalLm;

/// A number for each text and its gradients, in f32 whatever activations are in: texts are few, and what tells two of them
/// apart may be small. Element by element: products of matrices in f32 are rounded to TF32 by some of a GPU's kernels.
impl CausalLm {
    /// Scores of texts.
    ///
    /// # Shapes
    /// `hidden` `[n, hidden]`, normed hidden states of their last tokens; result `[n]`, f32, without autodiff.
    ///
    /// # Panics
    /// If the head does not score.
    pub fn scores(&self, hidden: &Tensor<2>) -> Tensor<1> {
        let row = self.score_row();
        let hidden = hidden.clone().cast(DType::F32);
        (hidden * row).sum_dim(1).flatten(0, 1)
    }

    /// The gradient of what [`scores`](Self::scores) read, from that of what it gave; that of the head, where it is trained, is
    /// added to `grads`.
    ///
    /// # Shapes
    /// `hidden` `[n, hidden]`, `d_scores` `[n]`, f32; result `[n, hidden]`.
    ///
    /// # Panics
    /// If the head does not score.
    pub fn scores_backward(
        &self,
        grads: &mut AdapterGrads,
        (hidden, d_scores): (&Tensor<2>, Tensor<1>),
    ) -> Tensor<2> {
        let [texts] = d_scores.dims();
        let d_scores = d_scores.reshape([texts, 1]);
        let read = hidden.clone().cast(DType::F32);
        if let Some(whole) = self.trained_head() {
            whole.add_row_grad(grads, &read, &d_scores);
        }
        (d_scores * self.score_row()).cast(hidden.dtype())
    }

    /// `[1, hidden]`, f32, as it is trained: not rounded.
    fn score_row(&self) -> Tensor<2> {
        assert!(self.spec().scores, "a head that scores texts");
        self.head_values()
    }
}

/// A row of normal numbers of mean 0 and that standard deviation, from a seed.
///
/// # Source
/// Box and Muller; transformers draws heads that a checkpoint lacks so, with `initializer_range` of its config.
pub(crate) fn drawn(columns: usize, deviation: f64, seed: u64) -> TensorData {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Another stream than that of adapters, which are drawn from the same seed.
    rng.set_stream(1);
    let mut pair = || {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        let radius = (-2.0 * (1.0 - u).ln()).sqrt();
        let angle = std::f64::consts::TAU * v;
        [radius * angle.cos(), radius * angle.sin()]
    };
    let pairs = (0..columns.div_ceil(2)).flat_map(|_| pair());
    let values = pairs
        .take(columns)
        .map(|normal| (deviation * normal) as f32);
    TensorData::new(values.collect::<Vec<_>>(), [1, columns])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_drawn_from_its_seed() {
        let values = |seed| drawn(4097, 0.02, seed).try_to_vec::<f32>().unwrap();
        let found = values(42);
        assert_eq!(found, values(42));
        assert_ne!(found, values(43));
        let count = found.len() as f64;
        let mean = found.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let square = found.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / count;
        // Five standard errors.
        assert!(mean.abs() < 5.0 * 0.02 / count.sqrt(), "{mean}");
        assert!((square.sqrt() / 0.02 - 1.0).abs() < 5.0 / (2.0 * count).sqrt());
    }
}
