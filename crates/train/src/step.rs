//! One micro-batch, layer by layer: no tape is recorded, and each layer's saved values are dropped as
//! soon as its backward pass is done.

use backdraft_data::Batch;
use backdraft_kernels::cross_entropy;
use backdraft_lora::AdapterGrads;
use backdraft_model::{Llama, Targets, Tokens};
use burn::tensor::{Int, Tensor, TensorData};

/// Tokens, and what they should predict.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// The documents, end to end.
    pub tokens: Tokens,
    /// The supervised positions.
    pub targets: Targets,
}

impl From<Batch> for MicroBatch {
    fn from(batch: Batch) -> Self {
        let documents: Vec<&[u32]> = batch
            .cu_seqlens
            .windows(2)
            .map(|ends| &batch.input_ids[ends[0] as usize..ends[1] as usize])
            .collect();
        let tokens = Tokens::from_sequences(&documents);
        let targets = Targets::from_labels(&tokens.segments, &batch.labels);
        Self { tokens, targets }
    }
}

/// Forward and backward pass of one micro-batch: Σ nll over its targets, and the gradient of
/// `scale`·Σ nll added to `grads`.
///
/// With `scale` = 1 / (targets of the whole optimiser step), the sum over micro-batches is the exact
/// gradient of the step's mean loss.
///
/// # Shapes
/// Result `[1]`, in nats.
///
/// # Panics
/// If there is no target, or the model has no adapter.
pub fn forward_backward(
    model: &Llama,
    batch: &MicroBatch,
    scale: f32,
    dropout_seed: Option<u64>,
    grads: &mut AdapterGrads,
) -> Tensor<1> {
    let context = model.context(&batch.tokens, dropout_seed);
    let first = model.first_adapted_layer();
    let first = first.unwrap_or_else(|| panic!("a model without adapters has nothing to train"));

    // Below the first adapter nothing needs a gradient, so nothing is saved.
    let (frozen, adapted) = model.layers.split_at(first);
    let mut h = model.embed(&batch.tokens.input_ids).inner();
    for layer in frozen {
        h = layer.forward(h, &context, None).inner();
    }
    let mut saved = Vec::with_capacity(adapted.len());
    for layer in adapted {
        let (next, layer_saved) = layer.forward_saving(h, &context);
        h = next;
        saved.push(layer_saved);
    }

    // Norm, head and loss see supervised positions only.
    let [t, width] = h.dims();
    let rows = rows(&batch.targets.rows, &h);
    let (normed, norm_saved) = model
        .norm()
        .forward_saving(h.clone().select(0, rows.clone()));
    let loss = cross_entropy::forward(&normed, model.head(), &batch.targets.ids, Some(scale));
    let Some(d_normed) = loss.d_hidden else {
        unreachable!("a scale was given");
    };
    let d_rows = model.norm().backward(&d_normed, &norm_saved);
    let zeros = Tensor::zeros([t, width], (&h.device(), h.dtype()));
    let mut dh = zeros.select_assign(0, rows, d_rows, burn::tensor::IndexingUpdateOp::Add);

    for (i, (layer, saved)) in adapted.iter().zip(saved).enumerate().rev() {
        match layer.backward(dh, saved, &context, grads, i > 0) {
            Some(next) => dh = next,
            None => break,
        }
    }
    loss.nll.sum()
}

fn rows(rows: &[u32], like: &Tensor<2>) -> Tensor<1, Int> {
    let rows: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), &like.device())
}
