//! The ops of a layer on a device, without a tape.

use backdraft_arch::ops::Branch;
use backdraft_arch::{
    Activation, Backward, Forward, Group, Heads, InputGrad, Mixer, Norm, NormPlaces, TargetModule,
    Trained, ValueHeads, Values,
};
use backdraft_kernels::attention::{self, Qkv};
use backdraft_kernels::gated_delta::{self, Operands};
use backdraft_kernels::low_rank::Adapted;
use backdraft_kernels::rope::RotaryTables;
use backdraft_kernels::{causal_conv, head_gate, norm_rope, rope, swiglu};
use backdraft_lora::{AdapterGrads, Ahead, Projection, ProjectionSaved, Rows};
use burn::tensor::Tensor;

use super::{Context, DecoderLayer};

/// Values that are tensors of a device.
#[derive(Clone, Copy, Debug)]
pub struct OnDevice;

impl Values for OnDevice {
    type Tensor = Tensor<2>;
    type Stats = Tensor<1>;
    type LogSumExp = Tensor<2>;
    type Side = ProjectionSaved;
}

/// One layer on one batch. Gradients of adapters go to `grads`.
pub(super) struct DeviceOps<'a> {
    pub(super) layer: &'a DecoderLayer,
    pub(super) context: &'a Context,
    pub(super) grads: &'a mut AdapterGrads,
}

impl DeviceOps<'_> {
    /// The rows of a fused projection that are `part`, where it is one of those.
    fn rows(&self, part: TargetModule) -> Option<Rows<'_>> {
        let fused = self.layer.fused(part.group()?)?;
        Some(Rows::of(&fused.whole, fused.rows_of(part)))
    }

    fn projection(&self, target: TargetModule) -> (&Projection, Option<u64>) {
        (
            self.layer.projection(target),
            self.layer.dropout_seed(target, self.context),
        )
    }

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

    fn down_together<const N: usize>(
        &self,
        targets: [TargetModule; N],
        x: &Tensor<2>,
    ) -> Option<Vec<Tensor<2>>> {
        let (projections, seeds) = (
            targets.map(|target| self.layer.projection(target)),
            targets.map(|target| self.layer.dropout_seed(target, self.context)),
        );
        Projection::down_together(projections, x, seeds).map(Vec::from)
    }
}

impl Trained for DeviceOps<'_> {
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

impl Forward for DeviceOps<'_> {
    type Values = OnDevice;
    type Deferred = Adapted;
    type SharedDown = Option<Vec<Tensor<2>>>;

    fn norm_places(&self) -> NormPlaces {
        self.layer.norm_places()
    }

    fn norm(&mut self, norm: Norm, x: &Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        self.layer.norm(norm).forward_saving(x)
    }

    fn norm_onto(
        &mut self,
        norm: Norm,
        x: &Tensor<2>,
        stream: &Tensor<2>,
    ) -> (Tensor<2>, Tensor<1>) {
        let (y, stats) = self.norm(norm, x);
        (y + stream.clone(), stats)
    }

    fn shared_down(&mut self, group: Group, x: &Tensor<2>) -> Self::SharedDown {
        use TargetModule as M;
        if let Some(fused) = self.layer.fused(group) {
            let parts = group.targets();
            let seed = self.layer.dropout_seed(parts[0], self.context);
            let down = fused.whole.down(x, seed)?;
            return Some(vec![down; parts.len()]);
        }
        match group {
            Group::Qkv if self.values().are_keys() => self.down_together([M::QProj, M::KProj], x),
            Group::Qkv => self.down_together([M::QProj, M::KProj, M::VProj], x),
            Group::GateUp => self.down_together([M::GateProj, M::UpProj], x),
            Group::Delta => {
                self.down_together([M::InProjQkv, M::InProjZ, M::InProjB, M::InProjA], x)
            }
        }
    }

    fn project(
        &mut self,
        target: TargetModule,
        x: &Tensor<2>,
        down: &Self::SharedDown,
    ) -> (Tensor<2>, ProjectionSaved) {
        let ((projection, seed), down) = (self.projection(target), part(down, target));
        match self.rows(target) {
            Some(rows) => rows.forward_saving(x, down, seed),
            None => projection.forward_saving(x, down, seed),
        }
    }

    fn project_deferred(
        &mut self,
        target: TargetModule,
        x: &Tensor<2>,
        down: &Self::SharedDown,
    ) -> (Adapted, ProjectionSaved) {
        let ((projection, seed), down) = (self.projection(target), part(down, target));
        match self.rows(target) {
            Some(rows) => rows.forward_adapted(x, down, seed),
            None => projection.forward_adapted(x, down, seed),
        }
    }

    fn complete(&mut self, output: Adapted) -> Tensor<2> {
        output.complete()
    }

    fn project_onto(
        &mut self,
        target: TargetModule,
        x: &Tensor<2>,
        stream: Option<&Tensor<2>>,
    ) -> (Tensor<2>, ProjectionSaved) {
        let (projection, seed) = self.projection(target);
        projection.forward_adding(x, seed, stream)
    }

    fn rope(&mut self, query: Tensor<2>, key: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let layout = self.layer.self_attn().layout();
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
        self.layer.heads()
    }

    fn norm_rope(&mut self, norm: Norm, x: &Tensor<2>) -> Tensor<2> {
        let (gain, eps) = self.layer.norm(norm).parts();
        norm_rope::forward(x, gain, eps, self.tables_of(norm))
    }

    fn values(&self) -> ValueHeads {
        self.layer.values()
    }

    fn norm_values(&mut self, x: &Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let attention = self.layer.self_attn();
        let (y, stats) = (attention.value_norm()).forward_saving(&attention.value_heads(x));
        (y.reshape(x.dims()), stats)
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
        causal_conv::forward(qkv, self.layer.delta_net().conv(), &self.context.segments)
    }

    fn delta_gates(&mut self, [b, a]: [&Tensor<2>; 2]) -> [Tensor<2>; 2] {
        let [a_log, dt_bias] = self.layer.delta_net().rates().map(Tensor::clone);
        gated_delta::gates(b.clone(), a.clone(), a_log, dt_bias)
    }

    fn delta(&mut self, convolved: &Tensor<2>, gates: [&Tensor<2>; 2]) -> Tensor<2> {
        let layout = self.layer.delta_net().layout();
        gated_delta::forward(
            &delta_operands(convolved, gates),
            &self.context.segments,
            layout,
        )
    }

    fn norm_gated(&mut self, out: &Tensor<2>, z: &Tensor<2>) -> Tensor<2> {
        let net = self.layer.delta_net();
        let (normed, _) = net.norm().forward_saving(&net.heads(out));
        swiglu::forward(z, &normed.reshape(z.dims()), Activation::Silu)
    }

    fn attend(&mut self, qkv: [&Tensor<2>; 3]) -> (Tensor<2>, Tensor<2>) {
        let layout = self.layer.self_attn().layout();
        attention::forward(&operands(qkv), &self.context.segments, layout)
    }

    fn glu(&mut self, gate: Adapted, up: Adapted) -> [Tensor<2>; 3] {
        swiglu::forward_adapted(gate, up, self.layer.mlp.activation)
    }

    fn glu_again(&mut self, gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
        swiglu::forward(gate, up, self.layer.mlp.activation)
    }
}

impl Backward for DeviceOps<'_> {
    type Ahead = (TargetModule, Ahead);

    fn norm_backward(
        &mut self,
        norm: Norm,
        dy: &Tensor<2>,
        x: &Tensor<2>,
        stats: &Tensor<1>,
        sum: Tensor<2>,
    ) -> Tensor<2> {
        self.layer.norm(norm).backward_add(dy, x, stats, sum)
    }

    fn norm_backward_alone(
        &mut self,
        norm: Norm,
        dy: &Tensor<2>,
        x: &Tensor<2>,
        stats: &Tensor<1>,
    ) -> Tensor<2> {
        self.layer.norm(norm).backward(dy, x, stats)
    }

    fn norm_gradient(&mut self, norm: Norm, dy: &Tensor<2>, x: &Tensor<2>, stats: &Tensor<1>) {
        self.layer.norm(norm).add_grad(self.grads, dy, x, stats);
    }

    fn add(&mut self, sum: Tensor<2>, term: Tensor<2>) -> Tensor<2> {
        sum + term
    }

    fn project_backward<const N: usize>(
        &mut self,
        branches: [Branch<'_, Self>; N],
        x: Option<&Tensor<2>>,
        input_grad: InputGrad,
    ) -> Option<Adapted> {
        let layer = self.layer;
        let wanted = input_grad.is_needed();
        let group = branches[0].0.group();
        if let Some(fused) = group.and_then(|group| layer.fused(group)) {
            let parts = branches.map(|(target, dy, side)| {
                let rows = fused.rows_of(target);
                (Rows::of(&fused.whole, rows), dy, side)
            });
            let dx = Rows::backward_together(parts, x, self.grads, wanted)?;
            return Some(Adapted {
                base: dx,
                term: None,
            });
        }
        let branches = branches.map(|(target, dy, side)| (layer.projection(target), dy, side));
        Projection::backward_adapted(branches, x, self.grads, wanted)
    }

    fn project_backward_ahead(
        &mut self,
        (target, dy, side): Branch<'_, Self>,
    ) -> (Adapted, Self::Ahead) {
        let projection = self.layer.projection(target);
        let (dx, ahead) = projection.backward_ahead(dy, side, self.grads);
        (dx, (target, ahead))
    }

    fn factor_gradient(&mut self, (target, ahead): Self::Ahead, x: Tensor<2>) {
        let projection = self.layer.projection(target);
        projection.finish(ahead, &x, self.grads);
    }

    fn attend_backward(
        &mut self,
        d_out: &Tensor<2>,
        qkv: [&Tensor<2>; 3],
        forward: (&Tensor<2>, &Tensor<2>),
    ) -> [Tensor<2>; 3] {
        let (segments, layout) = (&self.context.segments, self.layer.self_attn().layout());
        let d = attention::backward(d_out, &operands(qkv), forward, segments, layout);
        [d.q, d.k, d.v]
    }

    fn rope_backward(&mut self, dq: Tensor<2>, dk: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        match &self.context.query_tables {
            None => rope::backward_both(dq, dk, self.tables()),
            Some(scaled) => (
                rope::backward(dq, scaled),
                rope::backward(dk, self.tables()),
            ),
        }
    }

    fn norm_values_backward(
        &mut self,
        dy: Tensor<2>,
        x: &Tensor<2>,
        stats: &Tensor<1>,
        keys: Option<Tensor<2>>,
    ) -> Tensor<2> {
        let (attention, dims) = (self.layer.self_attn(), x.dims());
        let [dy, x] = [&dy, x].map(|it| attention.value_heads(it));
        let norm = attention.value_norm();
        let dx = match keys {
            None => norm.backward(&dy, &x, stats),
            Some(keys) => norm.backward_add(&dy, &x, stats, keys.reshape(x.dims())),
        };
        dx.reshape(dims)
    }

    fn join_query(&mut self, dq: Tensor<2>, d_gate: Tensor<2>) -> Tensor<2> {
        head_gate::join([&dq, &d_gate], self.layer.self_attn().layout().head_dim)
    }

    fn gate_heads_backward(
        &mut self,
        dy: Tensor<2>,
        out: &Tensor<2>,
        gate: Tensor<2>,
    ) -> [Tensor<2>; 2] {
        head_gate::backward(&dy, out, &gate)
    }

    fn convolve_backward(&mut self, dy: Tensor<2>, qkv: &Tensor<2>) -> Tensor<2> {
        let net = self.layer.delta_net();
        causal_conv::backward(dy, qkv, net.conv(), &self.context.segments)
    }

    fn delta_gates_backward(&mut self, d: [Tensor<2>; 2], ba: [&Tensor<2>; 2]) -> [Tensor<2>; 2] {
        gated_delta::gates_backward(d, ba, self.layer.delta_net().rates())
    }

    fn delta_backward(
        &mut self,
        d_out: &Tensor<2>,
        convolved: &Tensor<2>,
        gates: [&Tensor<2>; 2],
    ) -> (Tensor<2>, [Tensor<2>; 2]) {
        let (layout, segments) = (self.layer.delta_net().layout(), &self.context.segments);
        let x = delta_operands(convolved, gates);
        let d = gated_delta::backward(d_out, &x, segments, layout);
        (d.qkv, [d.beta, d.decay])
    }

    fn norm_gated_backward(
        &mut self,
        dy: Adapted,
        out: Tensor<2>,
        z: Tensor<2>,
    ) -> ([Tensor<2>; 2], Option<Tensor<2>>) {
        let (net, wanted) = (self.layer.delta_net(), self.trains(TargetModule::OutProj));
        let heads = net.heads(&out);
        let (normed, rstd) = net.norm().forward_saving(&heads);
        let normed = normed.reshape(z.dims());
        let d = swiglu::backward_adapted(dy, z, normed, Activation::Silu, wanted);
        let d_out = net.norm().backward(&net.heads(&d.up), &heads, &rstd);
        ([d_out.reshape(d.gate.dims()), d.gate], d.product)
    }

    fn norm_rope_gradient(&mut self, norm: Norm, dy: &Tensor<2>, x: &Tensor<2>) {
        let norms = self.layer.norm(norm);
        if let Some(trained) = norms.trained() {
            let ([normed], (_, eps)) = (norms.weight().dims(), norms.parts());
            let grad = norm_rope::backward_weight(dy, x, normed, eps, self.tables_of(norm));
            trained.add_grad(self.grads, grad);
        }
    }

    fn norm_rope_backward(&mut self, norm: Norm, dy: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        let (gain, eps) = self.layer.norm(norm).parts();
        norm_rope::backward(dy, x, gain, eps, self.tables_of(norm))
    }

    fn glu_backward(
        &mut self,
        d_product: Adapted,
        gate: Tensor<2>,
        up: Tensor<2>,
    ) -> ([Tensor<2>; 2], Option<Tensor<2>>) {
        let wanted = self.trains(TargetModule::DownProj);
        let activation = self.layer.mlp.activation;
        let d = swiglu::backward_adapted(d_product, gate, up, activation, wanted);
        ([d.gate, d.up], d.product)
    }
}

/// That of one projection of a group.
fn part(down: &Option<Vec<Tensor<2>>>, target: TargetModule) -> Option<Tensor<2>> {
    down.as_ref()
        .map(|all| all[target.place_in_group()].clone())
}

fn operands([q, k, v]: [&Tensor<2>; 3]) -> Qkv {
    let [q, k, v] = [q, k, v].map(Tensor::clone);
    Qkv { q, k, v }
}

/// What the delta rule reads.
pub(super) fn delta_operands(convolved: &Tensor<2>, [beta, decay]: [&Tensor<2>; 2]) -> Operands {
    Operands {
        qkv: convolved.clone(),
        beta: beta.clone(),
        decay: decay.clone(),
    }
}
