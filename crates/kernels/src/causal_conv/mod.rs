//! A short causal convolution of each feature by itself, then SiLU.
//!
//! zₜ = Σⱼ wⱼ∘xₜ₋ₖ₊₁₊ⱼ over k taps, the last on the present token; y = z·σ(z). What lies before a document's first token counts
//! as zero, whatever stands there in the batch.
//!
//! Backwards, dz = dy∘σ(z)∘(1 + z∘(1 − σ(z))) with z made again, and dxₛ = Σⱼ wⱼ∘dzₛ₊ₖ₋₁₋ⱼ within the document.
//!
//! # Source
//! Gu and Dao 2023, arXiv:2312.00752 (the convolution before a state-space layer); as in Hugging Face's Qwen 3.5.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::dispatch::on_device;
use crate::segments::Segments;

/// # Shapes
/// `x` and the result `[t, c]`, `weight` `[c·k]`, feature by feature.
pub fn forward(x: &Tensor<2>, weight: &Tensor<1>, segments: &Segments) -> Tensor<2> {
    check(x, weight, segments);
    cpu::forward(x, weight, segments)
        .or_else(|| on_device!(cube::forward(x, weight, segments)))
        .unwrap_or_else(|| reference::forward(x, weight, segments))
}

/// As [`forward`], of documents that go on after `past`, which becomes what they go on after next.
///
/// # Shapes
/// `past` `[k − 1, c]` for each document, the last inputs that it had, zeros where it had none.
pub fn forward_continuing(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    segments: &Segments,
    past: Vec<Tensor<2>>,
) -> (Tensor<2>, Vec<Tensor<2>>) {
    check(x, weight, segments);
    assert_eq!(past.len(), segments.len(), "what precedes each sequence");
    let before = taps(x, weight) - 1;
    let mut longer = vec![0u32];
    let parts: Vec<Tensor<2>> = (segments.iter().zip(past))
        .map(|((rows, _), past)| {
            longer.push(longer[longer.len() - 1] + (before + rows.len()) as u32);
            Tensor::cat(vec![past, x.clone().narrow(0, rows.start, rows.len())], 0)
        })
        .collect();
    let all = Tensor::cat(parts.clone(), 0);
    let y = forward(&all, weight, &Segments::from_cumulative(&longer));
    let outputs = longer.iter().zip(&parts).map(|(&start, part)| {
        let rows = part.dims()[0] - before;
        y.clone().narrow(0, start as usize + before, rows)
    });
    let y = Tensor::cat(outputs.collect(), 0);
    let left = parts.into_iter().map(|part| {
        let end = part.dims()[0];
        part.narrow(0, end - before, before)
    });
    (y, left.collect())
}

/// Gradient of the input.
///
/// # Shapes
/// As [`forward`]; `dy` `[t, c]`.
pub fn backward(
    dy: Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    segments: &Segments,
) -> Tensor<2> {
    check(x, weight, segments);
    cpu::backward(dy, x, weight, segments)
        .or_else(|dy| on_device!(cube::backward(dy, x, weight, segments), or dy))
        .unwrap_or_else(|dy| reference::backward(&dy, x, weight, segments).0)
}

/// Gradient of the weight.
///
/// # Shapes
/// As [`backward`]; result `[c·k]`.
pub fn backward_weight(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    segments: &Segments,
) -> Tensor<1> {
    reference::backward(dy, x, weight, segments).1
}

/// The differentiable form of [`forward`].
pub fn causal_conv(x: Tensor<2>, weight: Tensor<1>, segments: &Segments) -> Tensor<2> {
    let parents = [parent(&x), parent(&weight)];
    let (x, weight) = (x.inner(), weight.inner());
    let y = forward(&x, &weight, segments);
    let rule = CausalConv {
        x,
        weight,
        segments: segments.clone(),
    };
    attach(y, parents, rule)
}

/// k.
fn taps(x: &Tensor<2>, weight: &Tensor<1>) -> usize {
    weight.dims()[0] / x.dims()[1]
}

fn check(x: &Tensor<2>, weight: &Tensor<1>, segments: &Segments) {
    let ([t, c], [values]) = (x.dims(), weight.dims());
    assert_eq!(t, segments.queries(), "rows of the documents");
    assert!(
        values >= c && values.is_multiple_of(c),
        "{values} weights are no taps of {c} features"
    );
}

#[derive(Clone, Debug)]
struct CausalConv {
    x: Tensor<2>,
    weight: Tensor<1>,
    segments: Segments,
}

impl Vjp<2> for CausalConv {
    fn vjp(self, dy: DispatchTensor, [dx, dw]: [bool; 2]) -> [Option<DispatchTensor>; 2] {
        let dy: Tensor<2> = Tensor::from_dispatch(dy);
        let Self {
            x,
            weight,
            segments,
        } = self;
        let dw = dw.then(|| backward_weight(&dy, &x, &weight, &segments).into_dispatch());
        let dx = dx.then(|| backward(dy, &x, &weight, &segments).into_dispatch());
        [dx, dw]
    }
}
