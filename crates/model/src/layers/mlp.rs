//! The gated MLP.

use backdraft_kernels::swiglu;
use backdraft_lora::{AdapterGrads, Projection, ProjectionSaved, TargetModule};
use burn::module::Module;
use burn::tensor::Tensor;

use super::Context;

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

/// What [`Mlp::backward`] needs.
#[derive(Clone, Debug)]
pub struct MlpSaved {
    x: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    product: Tensor<2>,
    gate_proj: ProjectionSaved,
    up_proj: ProjectionSaved,
    down_proj: ProjectionSaved,
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

    /// Without autodiff, with what the backward pass needs.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    pub fn forward_saving(
        &self,
        x: Tensor<2>,
        context: &Context,
        layer: usize,
    ) -> (Tensor<2>, MlpSaved) {
        let seed = |target| context.seed(layer, target);
        let (gate, gate_proj) = self
            .gate_proj
            .forward_saving(&x, seed(TargetModule::GateProj));
        let (up, up_proj) = self.up_proj.forward_saving(&x, seed(TargetModule::UpProj));
        let product = swiglu::forward(&gate, &up);
        let (y, down_proj) = self
            .down_proj
            .forward_saving(&product, seed(TargetModule::DownProj));
        (
            y,
            MlpSaved {
                x,
                gate,
                up,
                product,
                gate_proj,
                up_proj,
                down_proj,
            },
        )
    }

    /// Adds the adapters' gradients to `grads` and returns the input's.
    ///
    /// # Shapes
    /// `dy` and the result `[t, h]`.
    pub fn backward(&self, dy: &Tensor<2>, saved: MlpSaved, grads: &mut AdapterGrads) -> Tensor<2> {
        let mut through =
            |projection: &Projection, dy: &Tensor<2>, x: &Tensor<2>, saved| match projection
                .backward(dy, x, saved, grads, true)
            {
                Some(dx) => dx,
                None => unreachable!("the input's gradient was asked for"),
            };
        let d_product = through(&self.down_proj, dy, &saved.product, &saved.down_proj);
        let (d_gate, d_up) = swiglu::backward(&d_product, &saved.gate, &saved.up);
        through(&self.gate_proj, &d_gate, &saved.x, &saved.gate_proj)
            + through(&self.up_proj, &d_up, &saved.x, &saved.up_proj)
    }
}
