//! What the loss says of each projection: statistics of its input and its output's gradient.

use backdraft_kernels::embedding;
use backdraft_lora::{AdapterGrads, Sensitivity};
use backdraft_model::{CausalLm, Targets};
use backdraft_plan::ActivationPlan;
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Tensor, TensorReadError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::step::{MicroBatch, forward_backward};

/// Tokens whose probabilities are on the host at a time.
const CHUNK: usize = 256;

/// What a probe found.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    /// Of every projection, in the order of [`ModelSpec::projections`](backdraft_arch::ModelSpec::projections).
    pub(crate) projections: Vec<Sensitivity>,
    /// Sampled tokens.
    pub(crate) tokens: usize,
}

/// Statistics of every projection under the loss Σ nll of tokens that the model itself would say: gradients of these, not
/// of the labels, tell how far its probabilities move. The same model, rows and seed give the same bits.
///
/// # Errors
/// A device that failed.
pub(crate) fn probe(
    model: &CausalLm,
    passes: &[MicroBatch],
    seed: u64,
) -> Result<Probe, TensorReadError> {
    let model = model.clone().adapted_everywhere();
    // Gradients of single tokens leave the range of f16 otherwise.
    let scale: f32 = if model.dtype() == DType::F16 {
        1024.0
    } else {
        1.0
    };
    let plan = ActivationPlan::recompute_all(model.num_backward_layers());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut grads = AdapterGrads::observing();
    let mut tokens = 0;
    for pass in passes {
        let ids = sampled(&model, pass, &mut rng)?;
        tokens += ids.len();
        let rows = pass.targets.rows.clone();
        let sampled = MicroBatch {
            targets: Targets { rows, ids },
            ..pass.clone()
        };
        forward_backward(&model, &sampled, scale, None, &plan, &mut grads);
    }
    let projections = model.adapters().map(|(.., adapter)| {
        let Some(seen) = grads.statistics(adapter.first_id()) else {
            unreachable!("every projection has an adapter, and a gradient went through it");
        };
        seen.read(f64::from(scale))
    });
    let projections = projections.collect::<Result<_, _>>()?;
    Ok(Probe {
        projections,
        tokens,
    })
}

/// A next token at each target, drawn from the model's probabilities.
fn sampled(
    model: &CausalLm,
    pass: &MicroBatch,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<u32>, TensorReadError> {
    let hidden = normed(model, pass);
    let [count, width] = hidden.dims();
    let mut ids = Vec::with_capacity(count);
    for start in (0..count).step_by(CHUNK) {
        let end = (start + CHUNK).min(count);
        let rows = hidden.clone().slice([start..end, 0..width]);
        let probabilities = softmax(model.logits(rows).cast(DType::F32), 1);
        let data = probabilities.try_into_data()?;
        let values: Vec<f32> = data.iter::<f32>().collect();
        let vocab = values.len() / (end - start);
        ids.extend(
            values
                .chunks(vocab)
                .map(|row| draw(row, rng.random_range(0.0..1.0))),
        );
    }
    Ok(ids)
}

/// The token under which the share `at` of the probabilities lies.
fn draw(probabilities: &[f32], at: f64) -> u32 {
    let total: f64 = probabilities.iter().map(|&p| f64::from(p)).sum();
    let mut left = at * total;
    let mut last = 0;
    for (id, &p) in probabilities.iter().enumerate() {
        if p > 0.0 {
            last = id;
            left -= f64::from(p);
            if left < 0.0 {
                break;
            }
        }
    }
    last as u32
}

/// Normed hidden states of the targets' rows, without autodiff, by the ops that a step computes with.
///
/// # Shapes
/// `[targets, hidden]`.
pub(crate) fn normed(model: &CausalLm, pass: &MicroBatch) -> Tensor<2> {
    let context = model.context(&pass.tokens, None);
    let start = model.embed(&pass.tokens.input_ids).inner();
    let layers = model.layers.iter();
    let h = layers.fold(start, |h, layer| layer.forward_alone(h, &context));
    let hidden = embedding::forward(&h, &pass.targets.rows);
    model.norm().forward_saving(&hidden).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_by_their_probabilities() {
        let probabilities = [0.0, 0.25, 0.0, 0.5, 0.25, 0.0];
        let drawn = |at| draw(&probabilities, at);
        assert_eq!(
            [0.0, 0.2, 0.26, 0.74, 0.76, 1.0].map(drawn),
            [1, 1, 3, 3, 4, 4]
        );
    }
}
