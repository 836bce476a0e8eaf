//! The ops of a layer on sizes: what they take of a memory, and the work they do.
//!
//! A value holds its place in a memory until its last clone is dropped, so allocations come and go in the order of
//! [`backdraft_arch::layer`], which training runs. What an op takes besides its operands and its results is told here.

pub(crate) mod delta;
mod gain;
mod whole;

use std::cell::RefCell;
use std::rc::Rc;

use backdraft_arch::ops::Branch;
use backdraft_arch::{
    Backward, Forward, Group, Heads, InputGrad, KeepSet, Mixer, Norm, NormPlaces, SavedTensor,
    TargetModule, Trained, ValueHeads, Values,
};

use crate::tensors::{LayerShape, MemoryModel, PassShape, ProjectionShape, Rows, Work};

use SavedTensor as T;
use TargetModule as M;

/// Inner features of a panel that the processor's products pack, at most.
const PANEL: u64 = 512;

/// Something that values take their places in.
pub(crate) trait Memory {
    /// Where a value is.
    type Place;

    fn alloc(&mut self, bytes: u64) -> Self::Place;
    fn free(&mut self, place: &Self::Place);
}

/// A value: so many bytes of a memory.
pub(crate) struct Block<A: Memory> {
    place: A::Place,
    bytes: u64,
    memory: Rc<RefCell<A>>,
}

impl<A: Memory> Drop for Block<A> {
    fn drop(&mut self) {
        self.memory.borrow_mut().free(&self.place);
    }
}

/// A value with its clones.
pub(crate) type Value<A> = Rc<Block<A>>;

/// Values that are places in a memory.
pub(crate) struct Sized<A>(std::marker::PhantomData<A>);

impl<A: Memory> Values for Sized<A> {
    type Tensor = Value<A>;
    type Stats = Value<A>;
    type LogSumExp = Value<A>;
    type Side = Side<A>;
}

/// What a projection's forward pass leaves for the other: x·Aᵀ, and the lengths of its rows where those are trained.
pub(crate) struct Side<A: Memory> {
    #[expect(dead_code, reason = "it holds its memory")]
    down: Option<Value<A>>,
    #[expect(dead_code, reason = "it holds its memory")]
    norms: Option<Value<A>>,
}

/// Gradients that a group's projections go on with, and what dropout adds to that of the input.
type BehindGains<A, const N: usize> = ([(TargetModule, Value<A>); N], Option<Value<A>>);

impl<A: Memory> Default for Side<A> {
    fn default() -> Self {
        Self {
            down: None,
            norms: None,
        }
    }
}

/// The output of a projection, and the left factor of the adapter's term where the next op adds it.
pub(crate) struct Deferred<A: Memory> {
    y: Value<A>,
    #[expect(dead_code, reason = "it holds its memory")]
    term: Option<Value<A>>,
}

/// What the gradient of an A takes.
pub(crate) struct Ahead<A: Memory> {
    dyb: Option<Value<A>>,
    /// The gradient of B, where it has no place of its own.
    b: Option<Value<A>>,
    /// The gradient of the output, which that of the lengths of rows, or of the weight, takes too.
    dy: Option<Value<A>>,
    shape: ProjectionShape,
}

impl<A: Memory> Deferred<A> {
    const fn whole(y: Value<A>) -> Self {
        Self { y, term: None }
    }
}

/// Where an optimiser has the adapters' factors and gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Factors {
    /// Each by itself: gradients are made, and stay or are added to those that are there.
    Apart {
        /// Whether there are some already.
        accumulated: bool,
    },
    /// In flat buffers: one product serves the A of a group, gradients are written to their places, and the gradients of
    /// a shared input are summed in place.
    Flat,
}

/// What ops did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    /// For each tensor, in the order of [`SavedTensor::ALL`].
    pub(crate) tensors: [Work; T::ALL.len()],
    /// The tensors that were made.
    pub(crate) made: KeepSet,
    /// All else: `down_proj`'s output, and gradients.
    pub(crate) rest: Work,
}

/// One layer on one pass.
pub(crate) struct SizeOps<'a, A: Memory> {
    layer: &'a LayerShape,
    pass: PassShape,
    model: &'a MemoryModel,
    factors: Factors,
    memory: Rc<RefCell<A>>,
    /// Gradients that came to stay.
    gradients: Vec<Value<A>>,
    pub(crate) done: Done,
}

impl<'a, A: Memory> SizeOps<'a, A> {
    pub(crate) fn new(
        layer: &'a LayerShape,
        pass: PassShape,
        model: &'a MemoryModel,
        factors: Factors,
        memory: &Rc<RefCell<A>>,
    ) -> Self {
        Self {
            layer,
            pass,
            model,
            factors,
            memory: Rc::clone(memory),
            gradients: Vec::new(),
            done: Done::default(),
        }
    }

    fn alloc(&self, bytes: u64) -> Value<A> {
        alloc(&self.memory, bytes)
    }

    fn transient(&self, bytes: u64) {
        if bytes > 0 {
            self.alloc(bytes);
        }
    }

    /// Bytes of that many features of every token.
    const fn features(&self, features: u64) -> u64 {
        self.pass.tokens * features * self.model.element
    }

    const fn projection(&self, target: TargetModule) -> &'a ProjectionShape {
        &self.layer.projections[target as usize]
    }

    fn charge(&mut self, tensor: T, work: Work) {
        let sum = &mut self.done.tensors[tensor as usize];
        *sum = *sum + work;
        self.done.made = self.done.made.with(tensor);
    }

    /// The work of a projection, to the tensor that holds its output, where one does.
    fn charge_output(&mut self, target: M, work: Work) {
        match T::of(target) {
            Some(tensor) => self.charge(tensor, work),
            None => self.charge_rest(work),
        }
    }

    fn charge_rest(&mut self, work: Work) {
        self.done.rest = self.done.rest + work;
    }

    /// Passes over memory of that many features of every token.
    fn pass_over(&self, features: u64) -> Work {
        Work {
            bytes: self.features(features),
            ops: 1,
            ..Work::default()
        }
    }

    /// A product with a frozen weight over `inner` features, which may need the weight dequantised; on the processor one
    /// factor is packed, panel by panel.
    fn product(
        &self,
        p: &ProjectionShape,
        inner: u64,
        make: impl FnOnce() -> Value<A>,
    ) -> Value<A> {
        let whole = p.quantized && self.model.dequantizes_whole;
        let _scratch = whole.then(|| self.alloc(p.out * p.input * self.model.element));
        let made = make();
        if !p.quantized && !self.model.paged {
            // What `workspace` has room for is counted there.
            let depth = inner.div_ceil(inner.div_ceil(PANEL).max(1));
            self.transient(self.features(depth).saturating_sub(self.model.workspace));
        }
        made
    }

    /// x·Aᵀ of one projection, its input dropped out first where that is so.
    fn down(&self, p: &ProjectionShape) -> Option<Value<A>> {
        if p.rank == 0 {
            return None;
        }
        let _dropped = p.dropout.then(|| self.alloc(self.features(p.input)));
        Some(self.alloc(self.features(p.rank)))
    }

    fn projected(&mut self, target: TargetModule, down: &Option<Value<A>>) -> (Value<A>, Side<A>) {
        let p = self.projection(target);
        let norms = self.norms(p);
        let _gain = p.dora.then(|| self.lengths(p));
        let y = self.product(p, p.input, || self.alloc(self.features(p.out)));
        let down = down.clone().or_else(|| self.down(p));
        self.through_gain(p);
        (y, Side { down, norms })
    }

    /// The gradients of a group's outputs back through their gains, where they have some; what dropout adds to that of the input.
    /// Gradients of lengths come to stay, or are added.
    fn back_through_gains<const N: usize>(
        &mut self,
        branches: [Branch<'_, Self>; N],
        needed: bool,
    ) -> BehindGains<A, N> {
        let mut all: Option<Value<A>> = None;
        let mut lengths = Vec::new();
        let branches = branches.map(|(target, dy, _)| {
            let p = self.projection(target);
            if !p.dora {
                return (target, dy);
            }
            lengths.push(self.magnitude_gradient(p));
            let _gain = self.lengths(p);
            let (dy, added) = self.back_through_gain(p, dy, needed);
            // Sums are in the place of the first.
            all = all.take().or(added);
            (target, dy)
        });
        if let Factors::Apart { accumulated: false } = self.factors {
            self.gradients.append(&mut lengths);
        }
        (branches, all)
    }

    fn backward_work(&self, p: &ProjectionShape, needed: bool) -> Work {
        Work {
            gemm: p.backward_flops(self.pass.tokens, needed),
            attention: 0,
            bytes: self.features(p.input + p.out),
            codes: if p.quantized && needed {
                p.weight_bytes
            } else {
                0
            },
            ops: if p.rank > 0 { 5 } else { 1 },
        } + self.gain_backward_work(p, needed)
    }

    fn projecting(&self, p: &ProjectionShape) -> Work {
        Work {
            gemm: p.forward_flops(self.pass.tokens),
            bytes: self.features(p.input + p.out),
            codes: if p.quantized { p.weight_bytes } else { 0 },
            ops: if p.rank > 0 { 3 } else { 1 },
            ..Work::default()
        } + self.gain_work(p)
    }

    /// The backward pass of one of several projections with factors of its own: the gradient of its input is made, those
    /// of its factors are made and stay or are added.
    fn branch_apart(
        &mut self,
        p: &ProjectionShape,
        needed: bool,
        accumulated: bool,
    ) -> Option<Value<A>> {
        let dx = needed.then(|| self.product(p, p.out, || self.alloc(self.features(p.input))));
        if p.rank > 0 {
            let _dyb = self.alloc(self.features(p.rank));
            if p.dropout {
                self.transient(self.features(p.input));
            }
            let gradients = self.alloc(4 * p.adapter_values());
            if p.dropout && needed {
                self.transient(self.features(p.input));
            }
            if !accumulated {
                self.gradients.push(gradients);
            }
        }
        dx
    }

    /// As [`branch_apart`](Self::branch_apart) with flat buffers; the input's gradient is written over `sum`.
    fn branch_flat(
        &self,
        p: &ProjectionShape,
        needed: bool,
        sum: Option<Value<A>>,
    ) -> Option<Value<A>> {
        let dx = needed.then(|| {
            self.product(p, p.out, || {
                sum.unwrap_or_else(|| self.alloc(self.features(p.input)))
            })
        });
        if p.dropout && p.rank > 0 {
            // The input as the adapter saw it, then its gradient.
            self.transient(self.features(p.input));
            if needed {
                self.transient(self.features(p.input));
            }
        }
        dx
    }
}

/// A value of `bytes`.
pub(crate) fn alloc<A: Memory>(memory: &Rc<RefCell<A>>, bytes: u64) -> Value<A> {
    let place = memory.borrow_mut().alloc(bytes);
    Rc::new(Block {
        place,
        bytes,
        memory: Rc::clone(memory),
    })
}

impl<A: Memory> Block<A> {
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<A: Memory> Trained for SizeOps<'_, A> {
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

impl<A: Memory> Forward for SizeOps<'_, A> {
    type Values = Sized<A>;
    type Deferred = Deferred<A>;
    type SharedDown = Option<Value<A>>;

    fn norm_places(&self) -> NormPlaces {
        self.layer.norm_places
    }

    fn norm(&mut self, norm: Norm, _: &Value<A>) -> (Value<A>, Value<A>) {
        let hidden = self.layer.hidden;
        if let Some(tensor) = norm.output(self.layer.norm_places) {
            self.charge(tensor, self.pass_over(2 * hidden));
        }
        let y = self.alloc(self.features(hidden));
        (y, self.alloc(4 * self.pass.tokens))
    }

    fn norm_onto(&mut self, norm: Norm, _: &Value<A>, _: &Value<A>) -> (Value<A>, Value<A>) {
        let hidden = self.layer.hidden;
        let work = Work {
            ops: 2,
            ..self.pass_over(5 * hidden)
        };
        match norm.output(self.layer.norm_places) {
            Some(tensor) => self.charge(tensor, work),
            None => self.charge_rest(work),
        }
        let y = self.alloc(self.features(hidden));
        (y, self.alloc(4 * self.pass.tokens))
    }

    fn shared_down(&mut self, group: Group, _: &Value<A>) -> Option<Value<A>> {
        let first = self.projection(group.targets()[0]);
        if first.rows == Rows::First {
            return self.down(first);
        }
        let projections = (group.targets().iter()).map(|&target| self.projection(target));
        // Those that the layer has.
        let projections = projections.filter(|p| p.out > 0);
        let scaling = projections.clone().next().map(|p| p.scaling);
        let together =
            (projections.clone()).all(|p| p.rank > 0 && !p.dropout && Some(p.scaling) == scaling);
        let rank: u64 = projections.map(|p| p.rank).sum();
        (together && self.factors == Factors::Flat).then(|| self.alloc(self.features(rank)))
    }

    fn project(
        &mut self,
        target: TargetModule,
        _: &Value<A>,
        down: &Option<Value<A>>,
    ) -> (Value<A>, Side<A>) {
        self.charge_output(target, self.projecting(self.projection(target)));
        self.projected(target, down)
    }

    fn project_deferred(
        &mut self,
        target: TargetModule,
        x: &Value<A>,
        down: &Option<Value<A>>,
    ) -> (Deferred<A>, Side<A>) {
        let (y, side) = self.project(target, x, down);
        (Deferred::whole(y), side)
    }

    fn complete(&mut self, output: Deferred<A>) -> Value<A> {
        output.y
    }

    fn project_onto(
        &mut self,
        target: TargetModule,
        _: &Value<A>,
        stream: Option<&Value<A>>,
    ) -> (Value<A>, Side<A>) {
        let p = self.projection(target);
        let work = self.projecting(p);
        let work = match stream {
            Some(_) => work + self.pass_over(2 * p.out),
            None => work,
        };
        match (target, stream) {
            // The next layer's input, which is never made again.
            (M::DownProj, Some(_)) => self.charge_rest(work),
            _ => self.charge_output(target, work),
        }
        self.projected(target, &None)
    }

    fn rope(&mut self, query: Value<A>, key: Value<A>) -> (Value<A>, Value<A>) {
        for (tensor, target) in [(T::Query, M::QProj), (T::Key, M::KProj)] {
            self.charge(tensor, self.pass_over(2 * self.projection(target).out));
        }
        (query, key)
    }

    fn rope_one(&mut self, target: TargetModule, x: Value<A>) -> Value<A> {
        self.charge_output(target, self.pass_over(2 * self.projection(target).out));
        x
    }

    fn heads(&self) -> Heads {
        self.layer.heads
    }

    fn norm_rope(&mut self, norm: Norm, _: &Value<A>) -> Value<A> {
        let features = self.heads_of(norm);
        self.charge_rest(self.pass_over(2 * features));
        self.alloc(self.features(features))
    }

    fn values(&self) -> ValueHeads {
        self.layer.values
    }

    fn norm_values(&mut self, _: &Value<A>) -> (Value<A>, Value<A>) {
        let features = self.heads_of(Norm::Key);
        self.charge_rest(self.pass_over(2 * features));
        let y = self.alloc(self.features(features));
        (y, self.alloc(self.of_key_value_heads()))
    }

    fn scale(&mut self, stream: Value<A>) -> Value<A> {
        if self.layer.scaled {
            self.charge_rest(self.pass_over(2 * self.layer.hidden));
        }
        stream
    }

    fn mixer(&self) -> Mixer {
        self.layer.mixer
    }

    fn split_query(&mut self, _: &Value<A>) -> [Value<A>; 2] {
        let features = self.heads_of(Norm::Query);
        self.charge_rest(self.pass_over(4 * features));
        [(); 2].map(|()| self.alloc(self.features(features)))
    }

    fn gate_heads(&mut self, _: &Value<A>, _: &Value<A>) -> Value<A> {
        let features = self.heads_of(Norm::Query);
        self.charge_rest(self.pass_over(3 * features));
        self.alloc(self.features(features))
    }

    fn convolve(&mut self, _: &Value<A>) -> Value<A> {
        let sizes = self.delta_net();
        let features = sizes.conv_width() as u64;
        self.charge_rest(self.pass_over(2 * features));
        let _taps = (!self.model.paged).then(|| self.alloc(self.taps()));
        self.alloc(self.features(features))
    }

    fn delta_gates(&mut self, _: [&Value<A>; 2]) -> [Value<A>; 2] {
        self.charge_rest(Work {
            ops: 8,
            ..self.pass_over(16 * self.delta_net().num_value_heads as u64)
        });
        let gates = [(); 2].map(|()| self.alloc(self.of_value_heads()));
        self.transient(2 * self.of_value_heads());
        gates
    }

    fn delta(&mut self, _: &Value<A>, _: [&Value<A>; 2]) -> Value<A> {
        let sizes = self.delta_net();
        let (width, values) = (sizes.conv_width() as u64, sizes.value_width() as u64);
        let work = Work {
            attention: self.delta_flops(),
            ..self.pass_over(width + values)
        };
        self.charge(T::Attention, work);
        let out = self.alloc(self.features(values));
        self.delta_scratch();
        out
    }

    fn norm_gated(&mut self, _: &Value<A>, _: &Value<A>) -> Value<A> {
        let features = self.delta_net().value_width() as u64;
        self.charge_rest(Work {
            ops: 2,
            ..self.pass_over(5 * features)
        });
        let _normed = (
            self.alloc(self.features(features)),
            self.alloc(self.of_value_heads()),
        );
        self.alloc(self.features(features))
    }

    fn attend(&mut self, _: [&Value<A>; 3]) -> (Value<A>, Value<A>) {
        let (q, k) = (self.query_width(), self.projection(M::KProj).out);
        let work = Work {
            attention: 4 * self.pass.pairs_seen(self.layer.window) * q,
            ..self.pass_over(2 * (q + k))
        };
        self.charge(T::Attention, work);
        let out = self.alloc(self.features(q));
        let lse = self.alloc(4 * self.pass.tokens * self.layer.query_heads);
        self.transient(4 * self.model.score_rows * self.pass.longest);
        (out, lse)
    }

    fn glu(&mut self, gate: Deferred<A>, up: Deferred<A>) -> [Value<A>; 3] {
        let product = self.glu_again(&gate.y, &up.y);
        [gate.y, up.y, product]
    }

    fn glu_again(&mut self, _: &Value<A>, _: &Value<A>) -> Value<A> {
        let inner = self.projection(M::DownProj).input;
        let work = self.pass_over(3 * inner);
        match self.layer.norm_places.are_after() {
            true => self.charge(T::Down, work),
            false => self.charge_rest(work),
        }
        self.alloc(self.features(inner))
    }
}

impl<A: Memory> SizeOps<'_, A> {
    /// The backward pass of the parts of a fused projection, whose adapter has one A.
    fn branches_fused<const N: usize>(
        &mut self,
        branches: [Branch<'_, Self>; N],
        needed: bool,
    ) -> Option<Deferred<A>> {
        let first = *self.projection(branches[0].0);
        let adapted = first.rank > 0;
        let apart = match self.factors {
            Factors::Apart { accumulated } if adapted => Some(accumulated),
            _ => None,
        };
        let (mut dx, mut dyb, mut b_parts) = (None, None, Vec::new());
        let (branches, _added) = self.back_through_gains(branches, needed);
        for (target, dy) in branches {
            let p = self.projection(target);
            self.charge_rest(self.backward_work(p, needed));
            dx = needed.then(|| {
                let there: Option<Value<A>> = dx.take();
                // On the processor the sum is in the place of the first.
                let one = self.product(p, p.out, || match (&there, self.factors) {
                    (Some(there), Factors::Flat) => Rc::clone(there),
                    _ => self.alloc(self.features(p.input)),
                });
                there.unwrap_or(one)
            });
            if adapted && dyb.is_none() {
                dyb = Some(self.alloc(self.features(p.rank)));
            }
            if apart.is_some() {
                b_parts.push(self.alloc(4 * p.b_values()));
            }
            drop(dy);
        }
        let mut gradients = Vec::new();
        if apart.is_some() {
            gradients.push(self.alloc(b_parts.iter().map(|part| part.bytes()).sum()));
            drop(b_parts);
        }
        if adapted && first.dropout {
            // The input as the adapter saw it.
            self.transient(self.features(first.input));
        }
        if apart.is_some() {
            gradients.push(self.alloc(4 * first.a_values()));
        }
        if adapted && first.dropout && needed {
            self.transient(self.features(first.input));
        }
        if apart == Some(false) {
            self.gradients.append(&mut gradients);
        }
        dx.map(Deferred::whole)
    }

    /// Features of the queries or keys that a norm is for.
    const fn heads_of(&self, norm: Norm) -> u64 {
        match norm {
            Norm::Key => self.projection(M::KProj).out,
            _ => self.query_width(),
        }
    }

    /// Features of all queries, without their gates.
    const fn query_width(&self) -> u64 {
        let out = self.projection(M::QProj).out;
        match self.layer.mixer {
            Mixer::GatedAttention => out / 2,
            Mixer::Attention | Mixer::DeltaNet(_) => out,
        }
    }

    /// f32 for each key–value head of every token.
    const fn of_key_value_heads(&self) -> u64 {
        4 * self.pass.tokens * self.layer.key_value_heads
    }
}

impl<A: Memory> Backward for SizeOps<'_, A> {
    type Ahead = Ahead<A>;

    fn norm_backward(
        &mut self,
        _: Norm,
        _: &Value<A>,
        _: &Value<A>,
        _: &Value<A>,
        sum: Value<A>,
    ) -> Value<A> {
        let hidden = self.layer.hidden;
        self.charge_rest(self.pass_over(4 * hidden));
        if self.factors != Factors::Flat {
            self.transient(self.features(hidden));
        }
        sum
    }

    fn norm_backward_alone(
        &mut self,
        _: Norm,
        _: &Value<A>,
        _: &Value<A>,
        _: &Value<A>,
    ) -> Value<A> {
        self.charge_rest(self.pass_over(3 * self.layer.hidden));
        self.alloc(self.features(self.layer.hidden))
    }

    fn norm_gradient(&mut self, norm: Norm, _: &Value<A>, _: &Value<A>, _: &Value<A>) {
        let hidden = self.layer.hidden;
        self.charge_rest(self.pass_over(2 * hidden));
        self.terms(hidden);
        self.vector_gradient(self.layer.norms[norm as usize]);
    }

    fn add(&mut self, sum: Value<A>, _: Value<A>) -> Value<A> {
        self.charge_rest(self.pass_over(3 * self.layer.hidden));
        sum
    }

    fn project_backward<const N: usize>(
        &mut self,
        branches: [Branch<'_, Self>; N],
        _: Option<&Value<A>>,
        input_grad: InputGrad,
    ) -> Option<Deferred<A>> {
        let needed = input_grad.is_needed();
        let rank: u64 = branches
            .iter()
            .map(|(target, ..)| self.projection(*target).rank)
            .sum();
        // Adapters of different scales are computed one by one.
        let mut adapted = branches.iter().map(|(target, ..)| self.projection(*target));
        let scaling = adapted.clone().find(|p| p.rank > 0).map(|p| p.scaling);
        let mixed = adapted.any(|p| p.rank > 0 && Some(p.scaling) != scaling);
        let flat = self.factors == Factors::Flat && rank > 0;
        let term = (flat && !mixed).then(|| self.alloc(self.features(rank)));
        let mut dx: Option<Value<A>> = None;
        let targets = branches.each_ref().map(|(target, ..)| *target);
        self.bias_gradients(targets);
        self.weight_gradients(targets);
        if self.projection(branches[0].0).rows == Rows::First {
            return self.branches_fused(branches, needed);
        }
        let (branches, _added) = self.back_through_gains(branches, needed);
        for (target, dy) in branches {
            let p = self.projection(target);
            self.charge_rest(self.backward_work(p, needed));
            dx = match self.factors {
                // The sum is in the place of the first.
                Factors::Apart { accumulated } => {
                    let one = self.branch_apart(p, needed, accumulated);
                    dx.or(one)
                }
                Factors::Flat => {
                    if mixed {
                        self.transient(self.features(p.rank));
                    }
                    self.branch_flat(p, needed, dx.take())
                }
            };
            drop(dy);
        }
        dx.map(|y| Deferred { y, term })
    }

    fn project_backward_ahead(
        &mut self,
        (target, dy, _): Branch<'_, Self>,
    ) -> (Deferred<A>, Ahead<A>) {
        let p = self.projection(target);
        self.bias_gradients([target]);
        self.charge_rest(self.backward_work(p, true));
        let kept = (p.dora || p.weight).then(|| Rc::clone(&dy));
        let (dy, _added) = match p.dora {
            true => self.back_through_gain(p, dy, true),
            false => (dy, None),
        };
        let y = self.product(p, p.out, || self.alloc(self.features(p.input)));
        let dyb = (p.rank > 0).then(|| self.alloc(self.features(p.rank)));
        let apart = match self.factors {
            Factors::Apart { .. } if p.rank > 0 => Some(self.alloc(4 * p.rank * p.out)),
            _ => None,
        };
        if p.dropout && p.rank > 0 {
            self.transient(self.features(p.input));
        }
        drop(dy);
        let term = dyb
            .clone()
            .filter(|_| self.factors == Factors::Flat && !p.dropout);
        let ahead = Ahead {
            dyb,
            b: apart,
            dy: kept,
            shape: *p,
        };
        (Deferred { y, term }, ahead)
    }

    fn factor_gradient(&mut self, ahead: Ahead<A>, x: Value<A>) {
        let p = ahead.shape;
        self.weight_gradient(&p);
        if let Some(dy) = ahead.dy.filter(|_| p.dora) {
            let lengths = self.magnitude_gradient(&p);
            drop(dy);
            if let Factors::Apart { accumulated: false } = self.factors {
                self.gradients.push(lengths);
            }
        }
        if p.dropout {
            self.transient(self.features(p.input));
        }
        if let Factors::Apart { accumulated } = self.factors {
            let a = self.alloc(4 * p.rank * p.input);
            if !accumulated {
                self.gradients
                    .extend([Some(a), ahead.b].into_iter().flatten());
            }
        }
        drop((x, ahead.dyb));
    }

    fn rope_backward(&mut self, dq: Value<A>, dk: Value<A>) -> (Value<A>, Value<A>) {
        (dq, dk)
    }

    fn norm_values_backward(
        &mut self,
        _: Value<A>,
        _: &Value<A>,
        _: &Value<A>,
        keys: Option<Value<A>>,
    ) -> Value<A> {
        let features = self.heads_of(Norm::Key);
        match keys {
            None => {
                self.charge_rest(self.pass_over(3 * features));
                self.alloc(self.features(features))
            }
            Some(sum) => {
                self.charge_rest(self.pass_over(4 * features));
                if self.factors != Factors::Flat {
                    self.transient(self.features(features));
                }
                sum
            }
        }
    }

    fn join_query(&mut self, _: Value<A>, _: Value<A>) -> Value<A> {
        let features = self.projection(M::QProj).out;
        self.charge_rest(self.pass_over(2 * features));
        self.alloc(self.features(features))
    }

    fn gate_heads_backward(&mut self, _: Value<A>, _: &Value<A>, _: Value<A>) -> [Value<A>; 2] {
        let features = self.query_width();
        self.charge_rest(self.pass_over(6 * features));
        [(); 2].map(|()| self.alloc(self.features(features)))
    }

    fn convolve_backward(&mut self, dy: Value<A>, _: &Value<A>) -> Value<A> {
        let features = self.delta_net().conv_width() as u64;
        self.charge_rest(Work {
            ops: 2,
            ..self.pass_over(5 * features)
        });
        if self.model.paged {
            return self.alloc(self.features(features));
        }
        let _taps = self.alloc(self.taps());
        let _dz = self.alloc(self.features(features));
        drop(dy);
        self.alloc(self.features(features))
    }

    fn delta_gates_backward(&mut self, _: [Value<A>; 2], _: [&Value<A>; 2]) -> [Value<A>; 2] {
        self.charge_rest(Work {
            ops: 12,
            ..self.pass_over(24 * self.delta_net().num_value_heads as u64)
        });
        let d = [(); 2].map(|()| self.alloc(self.of_value_heads()));
        self.transient(2 * self.of_value_heads());
        d
    }

    fn delta_backward(
        &mut self,
        _: &Value<A>,
        _: &Value<A>,
        _: [&Value<A>; 2],
    ) -> (Value<A>, [Value<A>; 2]) {
        let sizes = self.delta_net();
        let (width, values) = (sizes.conv_width() as u64, sizes.value_width() as u64);
        self.charge_rest(Work {
            attention: 4 * self.delta_flops(),
            ..self.pass_over(2 * width + values)
        });
        let d_qkv = self.alloc(self.features(width));
        let d_gates = self.delta_backward_scratch();
        (d_qkv, d_gates)
    }

    fn norm_gated_backward(
        &mut self,
        dy: Deferred<A>,
        _: Value<A>,
        z: Value<A>,
    ) -> ([Value<A>; 2], Option<Value<A>>) {
        let features = self.delta_net().value_width() as u64;
        self.charge_rest(Work {
            ops: 4,
            ..self.pass_over(10 * features)
        });
        let wanted = self.trains(M::OutProj);
        let d_normed = self.alloc(self.features(features));
        let _stats = self.alloc(self.of_value_heads());
        let d_out = self.alloc(self.features(features));
        drop(d_normed);
        ([d_out, z], wanted.then_some(dy.y))
    }

    fn norm_rope_gradient(&mut self, norm: Norm, _: &Value<A>, _: &Value<A>) {
        let (features, normed) = (self.heads_of(norm), self.layer.norms[norm as usize]);
        self.charge_rest(self.pass_over(2 * features));
        self.terms(features);
        self.head_sums(features, normed);
        self.vector_gradient(normed);
    }

    fn norm_rope_backward(&mut self, norm: Norm, dy: Value<A>, _: &Value<A>) -> Value<A> {
        self.charge_rest(self.pass_over(3 * self.heads_of(norm)));
        dy
    }

    fn attend_backward(
        &mut self,
        _: &Value<A>,
        _: [&Value<A>; 3],
        _: (&Value<A>, &Value<A>),
    ) -> [Value<A>; 3] {
        let q = self.query_width();
        self.charge_rest(Work {
            attention: 10 * self.pass.pairs_seen(self.layer.window) * q,
            ops: 4,
            ..Work::default()
        });
        let k = self.heads_of(Norm::Key);
        let d = [q, k, k].map(|features| self.alloc(self.features(features)));
        self.transient(match self.factors {
            Factors::Flat => 4 * self.pass.tokens * self.layer.query_heads,
            Factors::Apart { .. } => 2 * 4 * self.model.score_rows * self.pass.longest,
        });
        d
    }

    fn glu_backward(
        &mut self,
        d_product: Deferred<A>,
        gate: Value<A>,
        up: Value<A>,
    ) -> ([Value<A>; 2], Option<Value<A>>) {
        let inner = self.projection(M::GateProj).out;
        let wanted = self.trains(M::DownProj);
        let work = Work {
            ops: 2,
            ..self.pass_over(if wanted { 6 } else { 5 } * inner)
        };
        self.charge_rest(work);
        ([gate, up], wanted.then_some(d_product.y))
    }
}
