//! The ops of a layer while sequences are continued: no tape, nothing saved, keys and values from a pool, and rows of
//! several adapters in one pass.

use std::ops::Range;

use backdraft_arch::{
    Activation, Forward, Group, Heads, Mixer, Norm, NormPlaces, TargetModule, Trained, ValueHeads,
    Values,
};
use backdraft_kernels::paged_attention::Places;
use backdraft_kernels::rope::RotaryTables;
use backdraft_kernels::{gated_delta, head_gate, norm_rope, rope, swiglu};
use backdraft_lora::Projection;
use burn::tensor::Tensor;

use super::device_ops::delta_operands;
use super::{Context, DecoderLayer, Whole};
use crate::cache::{LayerPool, LayerStates, Slot};

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
    /// What the states of each sequence go by.
    pub(super) slots: &'a [Slot],
}

impl<'a> DecodeOps<'a> {
    fn base(&self) -> &'a DecoderLayer {
        self.parts[0].1
    }

    fn tables(&self) -> &RotaryTables {
        self.context.tables(self.base().self_attn().layout())
    }

    fn states(&mut self) -> &mut LayerStates {
        match self.pool {
            LayerPool::States(states) => states,
            LayerPool::KeysAndValues(_) => unreachable!("this layer attends"),
        }
    }

    fn query_tables(&self) -> &RotaryTables {
        let layout = self.base().self_attn().layout();
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

impl Trained for DecodeOps<'_> {
    fn trains(&self, target: TargetModule) -> bool {
        self.parts.iter().any(|(_, layer)| layer.trains(target))
    }

    fn trains_bias(&self, target: TargetModule) -> bool {
        self.parts
            .iter()
            .any(|(_, layer)| layer.trains_bias(target))
    }

    fn trains_norm(&self, norm: Norm) -> bool {
        self.parts.iter().any(|(_, layer)| layer.trains_norm(norm))
    }
}

impl Forward for DecodeOps<'_> {
    type Values = Passing;
    type Deferred = Tensor<2>;
    type SharedDown = Whole;

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
        Some(self.through(group.fused()?, x, None))
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
        let layout = self.base().self_attn().layout();
        self.context.turn(layout, query, key)
    }

    fn rope_one(&mut self, target: TargetModule, x: Tensor<2>) -> Tensor<2> {
        let tables = match target {
            TargetModule::QProj => self.query_tables(),
            _ => self.tables(),
        };
        rope::forward(x, tables)
    }

    fn heads(&self) -> Heads {
        self.base().heads()
    }

    fn norm_rope(&mut self, norm: Norm, x: &Tensor<2>) -> Tensor<2> {
        let (gain, eps) = self.base().norm(norm).parts();
        norm_rope::forward(x, gain, eps, self.tables_of(norm))
    }

    fn values(&self) -> ValueHeads {
        self.base().values()
    }

    fn norm_values(&mut self, x: &Tensor<2>) -> (Tensor<2>, ()) {
        let attention = self.base().self_attn();
        let (y, _) = (attention.value_norm()).forward_saving(&attention.value_heads(x));
        (y.reshape(x.dims()), ())
    }

    fn scale(&mut self, stream: Tensor<2>) -> Tensor<2> {
        self.base().scale(stream)
    }

    fn mixer(&self) -> Mixer {
        self.base().mixer()
    }

    fn split_query(&mut self, x: &Tensor<2>) -> [Tensor<2>; 2] {
        head_gate::split(x, self.base().self_attn().layout().head_dim)
    }

    fn gate_heads(&mut self, out: &Tensor<2>, gate: &Tensor<2>) -> Tensor<2> {
        head_gate::forward(out, gate)
    }

    fn convolve(&mut self, qkv: &Tensor<2>) -> Tensor<2> {
        let conv = self.base().delta_net().conv();
        let sequences = (self.places.segments(), self.slots);
        self.states().convolve(qkv, conv, sequences)
    }

    fn delta_gates(&mut self, [b, a]: [&Tensor<2>; 2]) -> [Tensor<2>; 2] {
        let [a_log, dt_bias] = self.base().delta_net().rates().map(Tensor::clone);
        gated_delta::gates(b.clone(), a.clone(), a_log, dt_bias)
    }

    fn delta(&mut self, convolved: &Tensor<2>, gates: [&Tensor<2>; 2]) -> Tensor<2> {
        let layout = self.base().delta_net().layout();
        let sequences = (self.places.segments(), self.slots);
        let x = delta_operands(convolved, gates);
        self.states().delta(&x, layout, sequences)
    }

    fn norm_gated(&mut self, out: &Tensor<2>, z: &Tensor<2>) -> Tensor<2> {
        let net = self.base().delta_net();
        let (normed, _) = net.norm().forward_saving(&net.heads(out));
        swiglu::forward(z, &normed.reshape(z.dims()), Activation::Silu)
    }

    fn attend(&mut self, qkv: [&Tensor<2>; 3]) -> (Tensor<2>, ()) {
        let layout = self.base().self_attn().layout();
        match self.pool {
            LayerPool::KeysAndValues(pool) => (pool.attend(qkv, self.places, layout), ()),
            LayerPool::States(_) => unreachable!("this layer is a DeltaNet"),
        }
    }

    fn glu(&mut self, gate: Tensor<2>, up: Tensor<2>) -> [Tensor<2>; 3] {
        let product = self.glu_again(&gate, &up);
        [gate, up, product]
    }

    fn glu_again(&mut self, gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
        swiglu::forward(gate, up, self.base().mlp.activation)
    }
}
