//! The gated MLP.

use backdraft_kernels::low_rank::Adapted;
use backdraft_kernels::swiglu;
use backdraft_lora::{AdapterGrads, Projection, ProjectionSaved, TargetModule};
use burn::module::Module;
use burn::tensor::Tensor;

use super::Context;
use super::saved::{Downs, Projected};

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

    /// What the adapters of gate and up make of their input, where one product does it for both.
    pub(super) fn downs(&self, x: &Tensor<2>, context: &Context, layer: usize) -> Downs<2> {
        let seeds = [TargetModule::GateProj, TargetModule::UpProj];
        let seeds = seeds.map(|target| context.seed(layer, target));
        Downs(Projection::down_together(
            [&self.gate_proj, &self.up_proj],
            x,
            seeds,
        ))
    }

    /// Gate and up, without autodiff; see [`activate`](Self::activate).
    pub(super) fn gate_and_up(
        &self,
        x: &Tensor<2>,
        context: &Context,
        layer: usize,
    ) -> [(Adapted, ProjectionSaved); 2] {
        let downs = self.downs(x, context, layer);
        let seed = |target| context.seed(layer, target);
        let gate = seed(TargetModule::GateProj);
        let up = seed(TargetModule::UpProj);
        [
            self.gate_proj.forward_adapted(x, downs.of(0), gate),
            self.up_proj.forward_adapted(x, downs.of(1), up),
        ]
    }

    /// Gate and up with what their adapters add, and silu(gate)·up.
    pub(super) fn activate(
        [gate, up]: [(Adapted, ProjectionSaved); 2],
    ) -> (Projected, Projected, Tensor<2>) {
        let ((gate, gate_saved), (up, up_saved)) = (gate, up);
        let [gate, up, product] = swiglu::forward_adapted(gate, up);
        let projected = |y, saved| Projected { y, saved };
        (
            projected(gate, gate_saved),
            projected(up, up_saved),
            product,
        )
    }

    /// What `down_proj` needs of its input for the backward pass.
    pub(super) fn down_saved(
        &self,
        product: &Tensor<2>,
        context: &Context,
        layer: usize,
    ) -> ProjectionSaved {
        let seed = context.seed(layer, TargetModule::DownProj);
        self.down_proj.saving(product, seed)
    }

    /// The gate, without autodiff.
    pub(super) fn gate(
        &self,
        x: &Tensor<2>,
        downs: &Downs<2>,
        context: &Context,
        layer: usize,
    ) -> Projected {
        let seed = context.seed(layer, TargetModule::GateProj);
        Projected::of(&self.gate_proj, x, downs.of(0), seed)
    }

    /// The other factor, without autodiff.
    pub(super) fn up(
        &self,
        x: &Tensor<2>,
        downs: &Downs<2>,
        context: &Context,
        layer: usize,
    ) -> Projected {
        let seed = context.seed(layer, TargetModule::UpProj);
        Projected::of(&self.up_proj, x, downs.of(1), seed)
    }

    /// The residual stream behind the MLP, and what `down_proj` needs for its backward pass, without autodiff.
    pub(super) fn down(
        &self,
        h: &Tensor<2>,
        product: &Tensor<2>,
        context: &Context,
        layer: usize,
    ) -> (Tensor<2>, ProjectionSaved) {
        let seed = context.seed(layer, TargetModule::DownProj);
        self.down_proj.forward_adding(product, seed, h)
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
        let saved = self.down_saved(&y, context, layer);
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
        let branches = [(&self.gate_proj, d_gate, gate), (&self.up_proj, d_up, up)];
        wanted(Projection::backward_together(branches, x, grads, true))
    }

    /// Whether gate or up has an adapter, whose gradient needs the input.
    pub(super) fn adapts_input(&self) -> bool {
        self.gate_proj.adapter().is_some() || self.up_proj.adapter().is_some()
    }
}

/// A gradient that was asked for.
pub(super) fn wanted<T>(gradient: Option<T>) -> T {
    match gradient {
        Some(gradient) => gradient,
        None => unreachable!("the input's gradient was asked for"),
    }
}
