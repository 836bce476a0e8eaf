//! Self-attention with grouped key–value heads.

use backdraft_kernels::attention::{self, HeadLayout, Qkv};
use backdraft_kernels::rope;
use backdraft_lora::{AdapterGrads, Projection, ProjectionSaved, TargetModule};
use burn::module::Module;
use burn::tensor::Tensor;

use super::Context;
use crate::cache::LayerCache;

/// o(attention(rope(q(x)), rope(k(x)), v(x))).
#[derive(Module, Debug)]
pub struct Attention {
    /// hidden → heads.
    pub q_proj: Projection,
    /// hidden → key–value heads.
    pub k_proj: Projection,
    /// hidden → key–value heads.
    pub v_proj: Projection,
    /// heads → hidden.
    pub o_proj: Projection,
    #[module(skip)]
    layout: HeadLayout,
}

/// What [`Attention::backward`] needs.
#[derive(Clone, Debug)]
pub struct AttentionSaved {
    x: Tensor<2>,
    /// After rotation.
    qkv: Qkv,
    out: Tensor<2>,
    lse: Tensor<2>,
    q_proj: ProjectionSaved,
    k_proj: ProjectionSaved,
    v_proj: ProjectionSaved,
    o_proj: ProjectionSaved,
}

impl Attention {
    /// From its four projections: q, k, v and o.
    pub fn new([q_proj, k_proj, v_proj, o_proj]: [Projection; 4], layout: HeadLayout) -> Self {
        Self {
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            layout,
        }
    }

    /// With a cache, the keys and values of earlier tokens come from it and the new ones go into it;
    /// `context.segments` must say so.
    ///
    /// # Shapes
    /// `x` and the result `[t, h]`.
    pub fn forward(
        &self,
        x: Tensor<2>,
        context: &Context,
        layer: usize,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<2> {
        let seed = |target| context.seed(layer, target);
        let q = self.q_proj.forward(x.clone(), seed(TargetModule::QProj));
        let k = self.k_proj.forward(x.clone(), seed(TargetModule::KProj));
        let v = self.v_proj.forward(x, seed(TargetModule::VProj));
        let (q, k) = (
            rope::rope(q, &context.tables),
            rope::rope(k, &context.tables),
        );
        let (k, v) = match cache {
            Some(cache) => cache.extend(k, v, &context.segments),
            None => (k, v),
        };
        let out = attention::attention(Qkv { q, k, v }, &context.segments, self.layout);
        self.o_proj.forward(out, seed(TargetModule::OProj))
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
    ) -> (Tensor<2>, AttentionSaved) {
        let seed = |target| context.seed(layer, target);
        let (q, q_proj) = self.q_proj.forward_saving(&x, seed(TargetModule::QProj));
        let (k, k_proj) = self.k_proj.forward_saving(&x, seed(TargetModule::KProj));
        let (v, v_proj) = self.v_proj.forward_saving(&x, seed(TargetModule::VProj));
        let q = rope::forward(q, &context.tables);
        let k = rope::forward(k, &context.tables);
        let qkv = Qkv { q, k, v };
        let (out, lse) = attention::forward(&qkv, &context.segments, self.layout);
        let (y, o_proj) = self.o_proj.forward_saving(&out, seed(TargetModule::OProj));
        (
            y,
            AttentionSaved {
                x,
                qkv,
                out,
                lse,
                q_proj,
                k_proj,
                v_proj,
                o_proj,
            },
        )
    }

    /// The input's gradient, or only the adapters' where it is not `wanted`.
    ///
    /// # Shapes
    /// `dy` and the result `[t, h]`.
    pub fn backward(
        &self,
        dy: &Tensor<2>,
        saved: AttentionSaved,
        context: &Context,
        grads: &mut AdapterGrads,
        wanted: bool,
    ) -> Option<Tensor<2>> {
        let Some(d_out) = self
            .o_proj
            .backward(dy, &saved.out, &saved.o_proj, grads, true)
        else {
            unreachable!("the input's gradient was asked for");
        };
        let forward = (&saved.out, &saved.lse);
        let d = attention::backward(&d_out, &saved.qkv, forward, &context.segments, self.layout);
        let dq = rope::backward(d.q, &context.tables);
        let dk = rope::backward(d.k, &context.tables);
        let parts = [
            (&self.q_proj, dq, &saved.q_proj),
            (&self.k_proj, dk, &saved.k_proj),
            (&self.v_proj, d.v, &saved.v_proj),
        ];
        let mut dx: Option<Tensor<2>> = None;
        for (projection, dy, projection_saved) in parts {
            let part = projection.backward(&dy, &saved.x, projection_saved, grads, wanted);
            dx = match (dx, part) {
                (Some(sum), Some(part)) => Some(sum + part),
                (sum, part) => sum.or(part),
            };
        }
        dx
    }
}
