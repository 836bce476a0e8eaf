//! Self-attention with grouped key–value heads.

use backdraft_kernels::attention::{self, HeadLayout, Qkv};
use backdraft_kernels::rope;
use backdraft_lora::{AdapterGrads, Projection, ProjectionSaved, TargetModule};
use burn::module::Module;
use burn::tensor::Tensor;

use super::Context;
use super::saved::{Downs, Projected};
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
        let (q, k) = rope::rope_both(q, k, &context.tables);
        let (k, v) = match cache {
            Some(cache) => cache.extend(k, v, &context.segments),
            None => (k, v),
        };
        let out = attention::attention(Qkv { q, k, v }, &context.segments, self.layout);
        self.o_proj.forward(out, seed(TargetModule::OProj))
    }

    /// What the adapters of q, k and v make of their input, where one product does it for all.
    pub(super) fn downs(&self, x: &Tensor<2>, context: &Context, layer: usize) -> Downs<3> {
        let seeds = [
            TargetModule::QProj,
            TargetModule::KProj,
            TargetModule::VProj,
        ];
        let seeds = seeds.map(|target| context.seed(layer, target));
        Downs(Projection::down_together(
            [&self.q_proj, &self.k_proj, &self.v_proj],
            x,
            seeds,
        ))
    }

    /// Queries and keys after rotation, without autodiff.
    pub(super) fn query_and_key(
        &self,
        x: &Tensor<2>,
        downs: &Downs<3>,
        context: &Context,
        layer: usize,
    ) -> (Projected, Projected) {
        let seed = |target| context.seed(layer, target);
        let [q, k] = [
            (&self.q_proj, 0, TargetModule::QProj),
            (&self.k_proj, 1, TargetModule::KProj),
        ]
        .map(|(projection, i, target)| Projected::of(projection, x, downs.of(i), seed(target)));
        let (q_turned, k_turned) = rope::forward_both(q.y, k.y, &context.tables);
        (
            Projected { y: q_turned, ..q },
            Projected { y: k_turned, ..k },
        )
    }

    /// Queries after rotation, without autodiff.
    pub(super) fn query(
        &self,
        x: &Tensor<2>,
        downs: &Downs<3>,
        context: &Context,
        layer: usize,
    ) -> Projected {
        let seed = context.seed(layer, TargetModule::QProj);
        let query = Projected::of(&self.q_proj, x, downs.of(0), seed);
        let y = rope::forward(query.y, &context.tables);
        Projected { y, ..query }
    }

    /// Keys after rotation, without autodiff.
    pub(super) fn key(
        &self,
        x: &Tensor<2>,
        downs: &Downs<3>,
        context: &Context,
        layer: usize,
    ) -> Projected {
        let seed = context.seed(layer, TargetModule::KProj);
        let key = Projected::of(&self.k_proj, x, downs.of(1), seed);
        let y = rope::forward(key.y, &context.tables);
        Projected { y, ..key }
    }

    /// Values, without autodiff.
    pub(super) fn value(
        &self,
        x: &Tensor<2>,
        downs: &Downs<3>,
        context: &Context,
        layer: usize,
    ) -> Projected {
        let seed = context.seed(layer, TargetModule::VProj);
        Projected::of(&self.v_proj, x, downs.of(2), seed)
    }

    /// Output of the heads and log-sum-exp of the scores, without autodiff.
    pub(super) fn attend(&self, qkv: &Qkv, context: &Context) -> (Tensor<2>, Tensor<2>) {
        attention::forward(qkv, &context.segments, self.layout)
    }

    /// The residual stream behind attention, without autodiff.
    pub(super) fn output(
        &self,
        h: &Tensor<2>,
        out: &Tensor<2>,
        context: &Context,
        layer: usize,
    ) -> Projected {
        let seed = context.seed(layer, TargetModule::OProj);
        let (y, saved) = self.o_proj.forward_adding(out, seed, h);
        Projected { y, saved }
    }

    /// From the gradient of the heads' output to those of q, k and v before rotation.
    pub(super) fn attend_backward(
        &self,
        d_out: &Tensor<2>,
        qkv: &Qkv,
        forward: (&Tensor<2>, &Tensor<2>),
        context: &Context,
    ) -> Qkv {
        let d = attention::backward(d_out, qkv, forward, &context.segments, self.layout);
        let (q, k) = rope::backward_both(d.q, d.k, &context.tables);
        Qkv { q, k, v: d.v }
    }

    /// The input's gradient, or only the adapters' where it is not `wanted`; `x` is there where q, k or v has an
    /// adapter.
    pub(super) fn project_backward(
        &self,
        d: Qkv,
        x: Option<&Tensor<2>>,
        saved: [&ProjectionSaved; 3],
        grads: &mut AdapterGrads,
        wanted: bool,
    ) -> Option<Tensor<2>> {
        let [q, k, v] = saved;
        let branches = [
            (&self.q_proj, d.q, q),
            (&self.k_proj, d.k, k),
            (&self.v_proj, d.v, v),
        ];
        Projection::backward_together(branches, x, grads, wanted)
    }

    /// Whether q, k or v has an adapter, whose gradient needs the input.
    pub(super) fn adapts_input(&self) -> bool {
        [&self.q_proj, &self.k_proj, &self.v_proj]
            .iter()
            .any(|projection| projection.adapter().is_some())
    }
}
