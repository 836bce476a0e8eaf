//! [`cross_entropy`](super::cross_entropy) in plain tensors.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{Penalty, RowLosses};

/// Loss of each row, and the gradient of Σ weightᵢ·nllᵢ with respect to the logits.
pub fn softmax_nll(
    logits: Tensor<2>,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
) -> (Tensor<1>, Option<Tensor<2>>) {
    let losses = row_losses(logits, cap, targets, weights, None);
    (losses.nll, losses.d_logits)
}

/// Losses of each row, and the gradient of Σ weightᵢ·lossᵢ with respect to the logits.
pub fn row_losses(
    logits: Tensor<2>,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
    penalty: Option<Penalty>,
) -> RowLosses {
    let [n, v] = logits.dims();
    let (dtype, device) = (logits.dtype(), logits.device());
    let shares = cap.map(|cap| logits.clone().cast(DType::F32).div_scalar(cap).tanh());
    let logits = match (&shares, cap) {
        (Some(shares), Some(cap)) => shares.clone().mul_scalar(cap),
        _ => logits.cast(DType::F32),
    };
    let log_probs = log_softmax(logits.clone(), 1);
    let targets: Vec<i64> = targets.iter().map(|&t| i64::from(t)).collect();
    let index = Tensor::<2, Int>::from_data(TensorData::new(targets, [n, 1]), &device);
    let nll = log_probs
        .clone()
        .gather(1, index.clone())
        .neg()
        .squeeze_dim(1);
    // One column is as good as another.
    let logsumexp = || (logits.clone() - log_probs.clone()).narrow(1, 0, 1);
    let penalized = penalty.map(|it| {
        let uniform = log_probs.clone().mean_dim(1).neg().squeeze_dim::<1>(1);
        let squares = logsumexp().square().squeeze_dim::<1>(1);
        Tensor::<1>::clone(&nll).mul_scalar(1.0 - it.label_smoothing)
            + uniform.mul_scalar(it.label_smoothing)
            + squares.mul_scalar(it.z_loss)
    });
    let d_logits = weights.map(|weights| {
        let onehot = index
            .equal(Tensor::arange(0..v as i64, &device).unsqueeze())
            .float();
        let weights = weights.clone().unsqueeze_dim(1);
        let (probs, onehot) = (log_probs.clone().exp(), onehot.cast(DType::F32));
        let d: Tensor<2> = match penalty {
            None => probs - onehot,
            Some(it) => {
                let factor = logsumexp().mul_scalar(2.0 * it.z_loss).add_scalar(1.0);
                (probs * factor - onehot.mul_scalar(1.0 - it.label_smoothing))
                    .sub_scalar(it.label_smoothing / v as f32)
            }
        };
        let d = d * weights;
        match shares {
            None => d.cast(dtype),
            Some(shares) => (d * shares.square().neg().add_scalar(1.0)).cast(dtype),
        }
    });
    RowLosses {
        nll,
        penalized,
        d_logits,
    }
}

/// Σ nll over plain logits; differentiable with respect to hidden states and head.
///
/// # Shapes
/// `hidden` `[n, h]`, `head` `[v, h]`; result `[1]`.
pub fn cross_entropy(
    hidden: Tensor<2>,
    head: Tensor<2>,
    cap: Option<f32>,
    targets: &[u32],
) -> Tensor<1> {
    softmax_nll(hidden.matmul(head.transpose()), cap, targets, None)
        .0
        .sum()
}
