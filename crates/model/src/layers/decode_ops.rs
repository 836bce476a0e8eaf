//! The ops of a layer while sequences are continued: no tape, nothing saved, keys and values from a pool, and rows of
//! several adapters in one pass.

use std::ops::Range;

use backdraft_arch::{Forward, Group, Heads, Norm, NormPlaces, TargetModule, Values};
use backdraft_kernels::paged_attention::Places;
use backdraft_kernels::rope::RotaryTables;
use backdraft_kernels::{norm_rope, rope, swiglu};
use backdraft_lora::Projection;
use burn::tensor::Tensor;

use super::{Context, DecoderLayer, Whole};
use crate::cache::LayerPool;

/// Values of which nothing is remembered.
pub(super) struct Passing;

impl Values for Passing {
    type Tensor = Tensor<2>;
    type Stats = ();
    type LogSumExp = ();
    type Side = ();
}

/// One layer of one base.
pub(super) struct DecodeOps<'a> {
    /// Rows, and the layer with the adapter that they go through.
    pub(super) parts: &'a [(Range<usize>, &'a DecoderLayer)],
    pub(super) context: &'a Context,
    pub(super) pool: &'a mut LayerPool,
    pub(super) places: &'a Places,
}

impl DecodeOps<'_> {
    fn base(&self) -> &DecoderLayer {
        self.parts[0].1
    }

    fn tables(&self) -> &RotaryTables {
        self.context.tables(self.base().self_attn.layout())
    }

    fn query_tables(&self) -> &RotaryTables {
        let layout = self.base().self_attn.layout();
        self.context.query_tables(layout)
    }

    fn tables_of(&self, norm: Norm) -> &RotaryTables {
        match norm {
            Norm::Query => self.query_tables(),
            _ => self.tables(),
        }
    }

    fn through(&self, target: TargetModule, x: &Tensor<2>, sum: Option<&Tensor<2>>) -> Tensor<2> {
        let parts: Vec<_> = self
            .parts
            .iter()
            .map(|(rows, layer)| (rows.clone(), layer.projection(target)))
            .collect();
        Projection::forward_parts(&parts, x, sum)
    }
}

impl Forward for DecodeOps<'_> {
    type Values = Passing;
    type Deferred = Tensor<2>;
    type SharedDown = Whole;

    fn adapts(&self, target: TargetModule) -> bool {
        self.parts.iter().any(|(_, layer)| layer.adapts(target))
    }

    fn norm_places(&self) -> NormPlaces {
        self.base().norm_places()
    }

    fn norm(&mut self, norm: Norm, x: &Tensor<2>) -> (Tensor<2>, ()) {
        (self.base().norm(norm).forward_saving(x).0, ())
    }

    fn norm_onto(&mut self, norm: Norm, x: &Tensor<2>, stream: &Tensor<2>) -> (Tensor<2>, ()) {
        let (y, ()) = self.norm(norm, x);
        (y + stream.clone(), ())
    }

    fn shared_down(&mut self, group: Group, x: &Tensor<2>) -> Whole {
        self.base().fused(group)?;
        Some(self.through(group.fused(), x, None))
    }

    fn project(&mut self, target: TargetModule, x: &Tensor<2>, whole: &Whole) -> (Tensor<2>, ()) {
        if let Some(part) = self.base().cut(target, whole) {
            return (part, ());
        }
        (self.through(target, x, None), ())
    }

    fn project_deferred(
        &mut self,
        target: TargetModule,
        x: &Tensor<2>,
        down: &Whole,
    ) -> (Tensor<2>, ()) {
        self.project(target, x, down)
    }

    fn complete(&mut self, output: Tensor<2>) -> Tensor<2> {
        output
    }

    fn project_onto(
        &mut self,
        target: TargetModule,
        x: &Tensor<2>,
        stream: Option<&Tensor<2>>,
    ) -> (Tensor<2>, ()) {
        (self.through(target, x, stream), ())
    }

    fn rope(&mut self, query: Tensor<2>, key: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        match &self.context.query_tables {
            None => rope::forward_both(query, key, self.tables()),
            Some(scaled) => (
                rope::forward(query, scaled),
                rope::forward(key, self.tables()),
            ),
        }
    }

    fn rope_one(&mut self, target: TargetModule, x: Tensor<2>) -> Tensor<2> {
        let tables = match target {
            TargetModule::QProj => self.query_tables(),
            _ => self.tables(),
        };
        rope::forward(x, tables)
    }

    fn heads(&self) -> Heads {
        self.base().self_attn.heads()
    }

    fn norm_rope(&mut self, norm: Norm, x: &Tensor<2>) -> Tensor<2> {
        let (gain, eps) = self.base().norm(norm).parts();
        norm_rope::forward(x, gain, eps, self.tables_of(norm))
    }

    fn attend(&mut self, qkv: [&Tensor<2>; 3]) -> (Tensor<2>, ()) {
        let layout = self.base().self_attn.layout();
        (self.pool.attend(qkv, self.places, layout), ())
    }

    fn glu(&mut self, gate: Tensor<2>, up: Tensor<2>) -> [Tensor<2>; 3] {
        let product = self.glu_again(&gate, &up);
        [gate, up, product]
    }

    fn glu_again(&mut self, gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
        swiglu::forward(gate, up, self.base().mlp.activation)
    }
}
