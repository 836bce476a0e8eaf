//! The ops of a layer one by one, to time them.

use backdraft_arch::{
    Forward, Group, Heads, Mixer, Norm, NormPlaces, SavedTensor, TargetModule, Trained, ValueHeads,
};
use backdraft_lora::ProjectionSaved;
use burn::tensor::Tensor;

use super::device_ops::{DeviceOps, OnDevice};

/// Shows each tensor as soon as the op that makes it, or a part of it, has been issued. Each projection computes its own
/// output, as when it alone is rebuilt; the MLP's product and `down_proj`'s output, which nothing rebuilds unless the
/// latter is normed, are left out elsewhere.
pub(super) struct TimedOps<'a, 'b> {
    pub(super) ops: DeviceOps<'a>,
    pub(super) made: &'b mut dyn FnMut(Option<SavedTensor>, &Tensor<2>),
}

impl Trained for TimedOps<'_, '_> {
    fn trains(&self, target: TargetModule) -> bool {
        self.ops.trains(target)
    }

    fn trains_bias(&self, target: TargetModule) -> bool {
        self.ops.trains_bias(target)
    }

    fn trains_norm(&self, norm: Norm) -> bool {
        self.ops.trains_norm(norm)
    }
}

impl Forward for TimedOps<'_, '_> {
    type Values = OnDevice;
    type Deferred = Tensor<2>;
    type SharedDown = Option<Vec<Tensor<2>>>;

    fn norm(&mut self, norm: Norm, x: &Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let (y, stats) = self.ops.norm(norm, x);
        (self.made)(norm.output(self.ops.norm_places()), &y);
        (y, stats)
    }

    fn norm_places(&self) -> NormPlaces {
        self.ops.norm_places()
    }

    fn norm_onto(
        &mut self,
        norm: Norm,
        x: &Tensor<2>,
        stream: &Tensor<2>,
    ) -> (Tensor<2>, Tensor<1>) {
        let (y, stats) = self.ops.norm_onto(norm, x, stream);
        (self.made)(norm.output(self.ops.norm_places()), &y);
        (y, stats)
    }

    fn shared_down(&mut self, group: Group, x: &Tensor<2>) -> Self::SharedDown {
        self.ops.shared_down(group, x)
    }

    fn project(
        &mut self,
        target: TargetModule,
        x: &Tensor<2>,
        down: &Self::SharedDown,
    ) -> (Tensor<2>, ProjectionSaved) {
        let (y, side) = self.ops.project(target, x, down);
        (self.made)(SavedTensor::of(target), &y);
        (y, side)
    }

    fn project_deferred(
        &mut self,
        target: TargetModule,
        x: &Tensor<2>,
        down: &Self::SharedDown,
    ) -> (Tensor<2>, ProjectionSaved) {
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
    ) -> (Tensor<2>, ProjectionSaved) {
        if let (TargetModule::DownProj, Some(stream)) = (target, stream) {
            return (stream.clone(), ProjectionSaved::default());
        }
        let (y, side) = self.ops.project_onto(target, x, stream);
        (self.made)(SavedTensor::of(target), &y);
        (y, side)
    }

    fn rope(&mut self, query: Tensor<2>, key: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let query = self.rope_one(TargetModule::QProj, query);
        (query, self.rope_one(TargetModule::KProj, key))
    }

    fn rope_one(&mut self, target: TargetModule, x: Tensor<2>) -> Tensor<2> {
        let y = self.ops.rope_one(target, x);
        (self.made)(SavedTensor::of(target), &y);
        y
    }

    fn heads(&self) -> Heads {
        self.ops.heads()
    }

    fn norm_rope(&mut self, norm: Norm, x: &Tensor<2>) -> Tensor<2> {
        // Every backward pass makes it, whatever is kept: what follows is timed from here.
        let y = self.ops.norm_rope(norm, x);
        (self.made)(None, &y);
        y
    }

    fn mixer(&self) -> Mixer {
        self.ops.mixer()
    }

    fn values(&self) -> ValueHeads {
        self.ops.values()
    }

    // What every backward pass makes, whatever is kept, has no name.
    fn norm_values(&mut self, x: &Tensor<2>) -> (Tensor<2>, Tensor<1>) {
        let (y, stats) = self.ops.norm_values(x);
        (self.made)(None, &y);
        (y, stats)
    }

    fn scale(&mut self, stream: Tensor<2>) -> Tensor<2> {
        // Behind everything that is rebuilt.
        stream
    }

    fn split_query(&mut self, x: &Tensor<2>) -> [Tensor<2>; 2] {
        let parts = self.ops.split_query(x);
        (self.made)(None, &parts[1]);
        parts
    }

    fn gate_heads(&mut self, out: &Tensor<2>, gate: &Tensor<2>) -> Tensor<2> {
        let y = self.ops.gate_heads(out, gate);
        (self.made)(None, &y);
        y
    }

    fn convolve(&mut self, qkv: &Tensor<2>) -> Tensor<2> {
        let y = self.ops.convolve(qkv);
        (self.made)(None, &y);
        y
    }

    fn delta_gates(&mut self, ba: [&Tensor<2>; 2]) -> [Tensor<2>; 2] {
        let gates = self.ops.delta_gates(ba);
        (self.made)(None, &gates[1]);
        gates
    }

    fn delta(&mut self, convolved: &Tensor<2>, gates: [&Tensor<2>; 2]) -> Tensor<2> {
        let out = self.ops.delta(convolved, gates);
        (self.made)(Some(SavedTensor::Attention), &out);
        out
    }

    fn norm_gated(&mut self, out: &Tensor<2>, z: &Tensor<2>) -> Tensor<2> {
        let y = self.ops.norm_gated(out, z);
        (self.made)(None, &y);
        y
    }

    fn attend(&mut self, qkv: [&Tensor<2>; 3]) -> (Tensor<2>, Tensor<2>) {
        let (out, lse) = self.ops.attend(qkv);
        (self.made)(Some(SavedTensor::Attention), &out);
        (out, lse)
    }

    fn glu(&mut self, gate: Tensor<2>, up: Tensor<2>) -> [Tensor<2>; 3] {
        let product = match self.norm_places().are_after() {
            true => self.glu_again(&gate, &up),
            false => gate.clone(),
        };
        [gate, up, product]
    }

    fn glu_again(&mut self, gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
        self.ops.glu_again(gate, up)
    }
}
