//! The ops of a layer on Burn's tape, one node each.

use backdraft_arch::{
    Activation, Forward, Group, Heads, Mixer, Norm, NormPlaces, TargetModule, Trained, ValueHeads,
    Values,
};
use backdraft_kernels::attention::{self, Qkv};
use backdraft_kernels::rope::RotaryTables;
use backdraft_kernels::{causal_conv, gated_delta, head_gate, norm_rope, rope, swiglu};
use burn::tensor::Tensor;

use super::device_ops::delta_operands;
use super::{Context, DecoderLayer, Whole};

/// Values that Burn's autodiff follows, so that nothing needs to be remembered beside them.
pub(super) struct OnTape;

impl Values for OnTape {
    type Tensor = Tensor<2>;
    type Stats = ();
    type LogSumExp = ();
    type Side = ();
}

/// One layer on one batch.
pub(super) struct TapeOps<'a> {
    pub(super) layer: &'a DecoderLayer,
    pub(super) context: &'a Context,
}

impl TapeOps<'_> {
    fn tables(&self) -> &RotaryTables {
        self.context.tables(self.layer.self_attn().layout())
    }

    fn query_tables(&self) -> &RotaryTables {
        let layout = self.layer.self_attn().layout();
        self.context.query_tables(layout)
    }

    fn tables_of(&self, norm: Norm) -> &RotaryTables {
        match norm {
            Norm::Query => self.query_tables(),
            _ => self.tables(),
        }
    }
}

impl Trained for TapeOps<'_> {
    fn trains(&self, target: TargetModule) -> bool {
        self.layer.trains(target)
    }

    fn trains_bias(&self, target: TargetModule) -> bool {
        self.layer.trains_bias(target)
    }

    fn trains_norm(&self, norm: Norm) -> bool {
        self.layer.trains_norm(norm)
    }
}

impl Forward for TapeOps<'_> {
    type Values = OnTape;
    type Deferred = Tensor<2>;
    type SharedDown = Whole;

    fn norm_places(&self) -> NormPlaces {
        self.layer.norm_places()
    }

    fn norm(&mut self, norm: Norm, x: &Tensor<2>) -> (Tensor<2>, ()) {
        (self.layer.norm(norm).forward(x.clone()), ())
    }

    fn norm_onto(&mut self, norm: Norm, x: &Tensor<2>, stream: &Tensor<2>) -> (Tensor<2>, ()) {
        let (y, ()) = self.norm(norm, x);
        (stream.clone() + y, ())
    }

    fn shared_down(&mut self, group: Group, x: &Tensor<2>) -> Whole {
        let fused = self.layer.fused(group)?;
        let seed = self.layer.dropout_seed(group.targets()[0], self.context);
        Some(fused.whole.forward(x.clone(), seed))
    }

    fn project(&mut self, target: TargetModule, x: &Tensor<2>, whole: &Whole) -> (Tensor<2>, ()) {
        if let Some(part) = self.layer.cut(target, whole) {
            return (part, ());
        }
        let seed = self.layer.dropout_seed(target, self.context);
        (self.layer.projection(target).forward(x.clone(), seed), ())
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
        let (y, ()) = self.project(target, x, &None);
        match stream {
            Some(stream) => (stream.clone() + y, ()),
            None => (y, ()),
        }
    }

    fn rope(&mut self, query: Tensor<2>, key: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        match &self.context.query_tables {
            None => rope::rope_both(query, key, self.tables()),
            Some(scaled) => (rope::rope(query, scaled), rope::rope(key, self.tables())),
        }
    }

    fn rope_one(&mut self, target: TargetModule, x: Tensor<2>) -> Tensor<2> {
        let tables = match target {
            TargetModule::QProj => self.query_tables(),
            _ => self.tables(),
        };
        rope::rope(x, tables)
    }

    fn heads(&self) -> Heads {
        self.layer.heads()
    }

    fn norm_rope(&mut self, norm: Norm, x: &Tensor<2>) -> Tensor<2> {
        let norms = self.layer.norm(norm);
        let (_, eps) = norms.parts();
        norm_rope::norm_rope(x.clone(), norms.tracked(), eps, self.tables_of(norm))
    }

    fn values(&self) -> ValueHeads {
        self.layer.values()
    }

    fn norm_values(&mut self, x: &Tensor<2>) -> (Tensor<2>, ()) {
        let attention = self.layer.self_attn();
        let y = attention.value_norm().forward(attention.value_heads(x));
        (y.reshape(x.dims()), ())
    }

    fn scale(&mut self, stream: Tensor<2>) -> Tensor<2> {
        self.layer.scale(stream)
    }

    fn mixer(&self) -> Mixer {
        self.layer.mixer()
    }

    fn split_query(&mut self, x: &Tensor<2>) -> [Tensor<2>; 2] {
        head_gate::split(x, self.layer.self_attn().layout().head_dim)
    }

    fn gate_heads(&mut self, out: &Tensor<2>, gate: &Tensor<2>) -> Tensor<2> {
        head_gate::forward(out, gate)
    }

    fn convolve(&mut self, qkv: &Tensor<2>) -> Tensor<2> {
        let conv = self.layer.delta_net().conv().clone();
        causal_conv::causal_conv(qkv.clone(), conv, &self.context.segments)
    }

    fn delta_gates(&mut self, [b, a]: [&Tensor<2>; 2]) -> [Tensor<2>; 2] {
        let [a_log, dt_bias] = self.layer.delta_net().rates().map(Tensor::clone);
        gated_delta::gates(b.clone(), a.clone(), a_log, dt_bias)
    }

    fn delta(&mut self, convolved: &Tensor<2>, gates: [&Tensor<2>; 2]) -> Tensor<2> {
        let layout = self.layer.delta_net().layout();
        let x = delta_operands(convolved, gates);
        gated_delta::gated_delta(x, &self.context.segments, layout)
    }

    fn norm_gated(&mut self, out: &Tensor<2>, z: &Tensor<2>) -> Tensor<2> {
        let net = self.layer.delta_net();
        let normed = net.norm().forward(net.heads(out));
        swiglu::swiglu(z.clone(), normed.reshape(z.dims()), Activation::Silu)
    }

    fn attend(&mut self, [q, k, v]: [&Tensor<2>; 3]) -> (Tensor<2>, ()) {
        let [q, k, v] = [q, k, v].map(Tensor::clone);
        let segments = &self.context.segments;
        let layout = self.layer.self_attn().layout();
        (attention::attention(Qkv { q, k, v }, segments, layout), ())
    }

    fn glu(&mut self, gate: Tensor<2>, up: Tensor<2>) -> [Tensor<2>; 3] {
        let product = self.glu_again(&gate, &up);
        [gate, up, product]
    }

    fn glu_again(&mut self, gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
        swiglu::swiglu(gate.clone(), up.clone(), self.layer.mlp.activation)
    }
}
