//! An op of your own: forward, hand-derived backward, reference, and a node on Burn's tape, held to the reference.
//!
//! ```text
//! cargo run --release -p backdraft --example new_op
//! ```
//!
//! The op is Gemma's soft cap, y = c·tanh(x/c). Its derivative is 1 − tanh²(x/c) = 1 − (y/c)², so the backward pass needs
//! y, which the next op holds anyway, and nothing else. Burn's tape of the three plain ops would keep three tensors.
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::error::Error;

use backdraft::burn::backend::DispatchTensor;
use backdraft::burn::tensor::{Device, Distribution, Tensor};
use backdraft::kernels::autograd::{Vjp, attach, parent};

/// y = c·tanh(x/c), in one pass over the values on the host.
///
/// # Shapes
/// `x` and the result `[t, n]`.
fn forward(x: &Tensor<2>, cap: f32) -> Tensor<2> {
    map([x], |[x]| cap * (x / cap).tanh())
}

/// dx = dy·(1 − (y/c)²).
///
/// # Shapes
/// All `[t, n]`.
fn backward(dy: &Tensor<2>, y: &Tensor<2>, cap: f32) -> Tensor<2> {
    map([dy, y], |[dy, y]| dy * (1.0 - (y / cap) * (y / cap)))
}

/// The same in plain tensors, which Burn differentiates itself: the oracle, and what other devices would take.
fn reference(x: Tensor<2>, cap: f32) -> Tensor<2> {
    x.div_scalar(cap).tanh().mul_scalar(cap)
}

/// The differentiable form of [`forward`]: one node on the tape.
fn soft_cap(x: Tensor<2>, cap: f32) -> Tensor<2> {
    let parents = [parent(&x)];
    let y = forward(&x.inner(), cap);
    attach(y.clone(), parents, SoftCap { y, cap })
}

/// What the backward pass needs.
#[derive(Clone, Debug)]
struct SoftCap {
    y: Tensor<2>,
    cap: f32,
}

impl Vjp<1> for SoftCap {
    fn vjp(self, dy: DispatchTensor, [dx]: [bool; 1]) -> [Option<DispatchTensor>; 1] {
        let dy = Tensor::from_dispatch(dy);
        [dx.then(|| backward(&dy, &self.y, self.cap).into_dispatch())]
    }
}

/// `f` of the values of `N` tensors of one shape.
fn map<const N: usize>(tensors: [&Tensor<2>; N], f: impl Fn([f32; N]) -> f32) -> Tensor<2> {
    let (device, shape) = (tensors[0].device(), tensors[0].dims());
    let values = tensors.map(|tensor| tensor.to_data().iter::<f32>().collect::<Vec<_>>());
    let at = |i: usize| f(std::array::from_fn(|n| values[n][i]));
    let mapped: Vec<f32> = (0..shape[0] * shape[1]).map(at).collect();
    Tensor::<1>::from_floats(&*mapped, &device).reshape(shape)
}

/// The largest difference between two tensors.
fn distance(a: &Tensor<2>, b: &Tensor<2>) -> f32 {
    (a.clone().inner() - b.clone().inner())
        .abs()
        .max()
        .into_scalar()
}

/// Forward and gradient of the op and of its reference, under a loss that is not linear.
pub(crate) fn compare(device: &Device) -> [f32; 2] {
    let x = Tensor::<2>::random([5, 7], Distribution::Normal(0.0, 40.0), device);
    let run = |op: fn(Tensor<2>, f32) -> Tensor<2>| {
        let x = x.clone().autodiff().require_grad();
        let y = op(x.clone(), 30.0);
        let gradients = y.clone().powi_scalar(2).sum().backward();
        let dx = x.grad(&gradients).unwrap_or_else(|| x.zeros_like());
        (y, dx)
    };
    let (y, dx) = run(soft_cap);
    let (y_expected, dx_expected) = run(reference);
    [distance(&y, &y_expected), distance(&dx, &dx_expected)]
}

fn main() -> Result<(), Box<dyn Error>> {
    let [y, dx] = compare(&Device::flex());
    println!("largest difference: y {y:.1e}, dx {dx:.1e}");
    if y > 1e-4 || dx > 1e-3 {
        return Err("the op and its reference differ".into());
    }
    Ok(())
}
