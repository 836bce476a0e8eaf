//! The gated MLP.

use backdraft_kernels::swiglu;
use backdraft_lora::{AdapterGrads, Projection, ProjectionSaved, TargetModule};
use burn::module::Module;
use burn::tensor::Tensor;

use super::Context;
use super::saved::Projected;

/// down(silu(gate(x))·up(x)).
#[derive(Module, Debug)]
pub struct Mlp {
    /// hidden → intermediate, through silu.
    pub gate_proj: Projection,
    /// hidden → intermediate.
    pub up_proj: Projection,
    /// intermediate → hidden.
    pub down_proj: Projection,
}

impl Mlp {
    /// # Shapes
    /// `x` and the result `[t, h]`.
    pub fn forward(&self, x: Tensor<2>, context: &Context, layer: usize) -> Tensor<2> {
        let seed = |target| context.seed(layer, target);
        let gate = self
            .gate_proj
            .forward(x.clone(), seed(TargetModule::GateProj));
        let up = self.up_proj.forward(x, seed(TargetModule::UpProj));
        self.down_proj
            .forward(swiglu::swiglu(gate, up), seed(TargetModule::DownProj))
    }

    /// The gate, without autodiff.
    pub(super) fn gate(&self, x: &Tensor<2>, context: &Context, layer: usize) -> Projected {
        let (y, saved) = self
            .gate_proj
            .forward_saving(x, context.seed(layer, TargetModule::GateProj));
        Projected { y, saved }
    }

    /// The other factor, without autodiff.
    pub(super) fn up(&self, x: &Tensor<2>, context: &Context, layer: usize) -> Projected {
        let (y, saved) = self
            .up_proj
            .forward_saving(x, context.seed(layer, TargetModule::UpProj));
        Projected { y, saved }
    }

    /// The residual stream behind the MLP, and what `down_proj` needs for its backward pass, without autodiff.
    pub(super) fn down(
        &self,
        h: Tensor<2>,
        product: &Tensor<2>,
        context: &Context,
        layer: usize,
    ) -> (Tensor<2>, ProjectionSaved) {
        let seed = context.seed(layer, TargetModule::DownProj);
        self.down_proj.forward_adding(product, seed, Some(h))
    }

    /// The product once more, with what `down_proj` needs.
    pub(super) fn product(
        &self,
        gate: &Tensor<2>,
        up: &Tensor<2>,
        context: &Context,
        layer: usize,
    ) -> Projected {
        let y = swiglu::forward(gate, up);
        let saved = self
            .down_proj
            .saving(&y, context.seed(layer, TargetModule::DownProj));
        Projected { y, saved }
    }

    /// From the gradients of gate and up to the input's; `x` is there where either has an adapter.
    pub(super) fn project_backward(
        &self,
        (d_gate, d_up): (Tensor<2>, Tensor<2>),
        x: Option<&Tensor<2>>,
        (gate, up): (&ProjectionSaved, &ProjectionSaved),
        grads: &mut AdapterGrads,
    ) -> Tensor<2> {
        let dx = self.gate_proj.backward(&d_gate, x, gate, grads, true, None);
        drop(d_gate);
        wanted(self.up_proj.backward(&d_up, x, up, grads, true, dx))
    }

    /// Whether gate or up has an adapter, whose gradient needs the input.
    pub(super) fn adapts_input(&self) -> bool {
        self.gate_proj.adapter().is_some() || self.up_proj.adapter().is_some()
    }
}

/// A gradient that was asked for.
pub(super) fn wanted(gradient: Option<Tensor<2>>) -> Tensor<2> {
    match gradient {
        Some(gradient) => gradient,
        None => unreachable!("the input's gradient was asked for"),
    }
}
