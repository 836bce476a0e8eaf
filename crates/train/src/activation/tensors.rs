//! The tensors of a decoder layer: their bytes, what rebuilds them, and how memory goes while the layer is
//! computed.
//!
//! [`LayerShape::forward`] and [`LayerShape::backward`] follow `DecoderLayer::forward_saving` and `backward`
//! allocation by allocation. Whoever changes one changes the other: a test with a counting allocator compares
//! them.

use backdraft_lora::TargetModule;
use backdraft_model::layers::{AwaySet, KeepSet, SavedTensor};

use SavedTensor as T;

/// How the ops of a device take memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryModel {
    /// Bytes of an activation: 4 for f32, 2 for bf16.
    pub element: u64,
    /// Whether a quantised weight is dequantised as a whole for its product.
    pub dequantizes_whole: bool,
    /// Whether the gradients of gate and up take the place of gate and up.
    pub swiglu_in_place: bool,
    /// Rows of scores that attention holds at a time, over all threads; each as long as the longest sequence.
    pub score_rows: u64,
    /// Tokens whose logits exist at a time.
    pub logits_chunk: u64,
    /// Buffers that the device's libraries hold on to.
    pub workspace: u64,
    /// Whether tensors share pages, see `StepShape::page_for`.
    pub paged: bool,
}

/// The tokens of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PassShape {
    /// Tokens.
    pub tokens: u64,
    /// Tokens with a target.
    pub supervised: u64,
    /// Tokens of the longest sequence.
    pub longest: u64,
    /// Pairs of a query and a key that it sees.
    pub pairs: u64,
}

impl PassShape {
    /// A pass over sequences of these lengths, every token supervised that has a successor.
    #[must_use]
    pub fn of_sequences(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut shape = Self {
            tokens: 0,
            supervised: 0,
            longest: 0,
            pairs: 0,
        };
        for length in lengths {
            let length = length as u64;
            shape.tokens += length;
            shape.supervised += length.saturating_sub(1);
            shape.longest = shape.longest.max(length);
            shape.pairs += length * (length + 1) / 2;
        }
        shape
    }
}

/// One projection of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProjectionShape {
    /// Features of the output.
    pub out: u64,
    /// Features of the input.
    pub input: u64,
    /// Rank of the adapter, 0 without one.
    pub rank: u64,
    /// Whether the adapter's input is dropped out.
    pub dropout: bool,
    /// Whether the weight is kept in codes.
    pub quantized: bool,
    /// Bytes of the weight as it is kept.
    pub weight_bytes: u64,
}

impl ProjectionShape {
    /// Values of the adapter.
    #[must_use]
    pub const fn adapter_values(&self) -> u64 {
        self.rank * (self.out + self.input)
    }

    const fn forward_flops(&self, tokens: u64) -> u64 {
        2 * tokens * (self.out * self.input + self.adapter_values())
    }

    /// With the gradients of both factors; the input's where it is wanted.
    const fn backward_flops(&self, tokens: u64, wanted: bool) -> u64 {
        let factors = 2 * tokens * self.rank * (2 * self.out + self.input);
        let input = 2 * tokens * (self.out * self.input + self.rank * self.input);
        factors + if wanted { input } else { 0 }
    }
}

/// What an op does, to be turned into time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Floating-point operations of matrix products.
    pub gemm: u64,
    /// Those of attention's scores and sums.
    pub attention: u64,
    /// Bytes read and written by passes over tensors.
    pub bytes: u64,
    /// Bytes of codes that are dequantised.
    pub codes: u64,
    /// Launches.
    pub ops: u64,
}

impl Work {
    /// All floating-point operations.
    #[must_use]
    pub const fn flops(&self) -> u64 {
        self.gemm + self.attention
    }
}

impl std::ops::Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            gemm: self.gemm + other.gemm,
            attention: self.attention + other.attention,
            bytes: self.bytes + other.bytes,
            codes: self.codes + other.codes,
            ops: self.ops + other.ops,
        }
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), |sum, work| sum + work)
    }
}

/// A decoder layer as the planner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerShape {
    /// Features of the residual stream.
    pub hidden: u64,
    /// Query heads.
    pub heads: u64,
    /// The projections, in the order of [`TargetModule::ALL`].
    pub projections: [ProjectionShape; 7],
    /// Whether the gradient of its input is wanted: not in the lowest adapted layer.
    pub wanted: bool,
}

/// Live and highest bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    live: u64,
    peak: u64,
}

impl Meter {
    fn add(&mut self, bytes: u64) {
        self.live += bytes;
        self.peak = self.peak.max(self.live);
    }

    fn drop(&mut self, bytes: u64) {
        debug_assert!(self.live >= bytes, "{bytes} of {}", self.live);
        self.live -= bytes;
    }

    fn transient(&mut self, bytes: u64) {
        self.add(bytes);
        self.drop(bytes);
    }
}

impl LayerShape {
    /// A projection.
    #[must_use]
    pub fn projection(&self, target: TargetModule) -> &ProjectionShape {
        &self.projections[target as usize]
    }

    fn adapted(&self, targets: &[TargetModule]) -> bool {
        targets
            .iter()
            .any(|&target| self.projection(target).rank > 0)
    }

    fn adapts_attention_input(&self) -> bool {
        use TargetModule as M;
        self.adapted(&[M::QProj, M::KProj, M::VProj])
    }

    fn adapts_mlp_input(&self) -> bool {
        use TargetModule as M;
        self.adapted(&[M::GateProj, M::UpProj])
    }

    fn goes_on(&self) -> bool {
        self.wanted || self.adapts_attention_input() || self.adapted(&[TargetModule::OProj])
    }

    /// What the backward pass uses, as `DecoderLayer::uses` says.
    #[must_use]
    pub fn uses(&self) -> KeepSet {
        let mut set = KeepSet::of([T::Gate, T::Up]);
        if self.adapted(&[TargetModule::DownProj]) {
            set = set.with(T::Product);
        }
        if self.adapts_mlp_input() {
            set = set.with(T::PostNormed);
        }
        if !self.goes_on() {
            return set;
        }
        set = [T::Query, T::Key, T::Value, T::Attention, T::Mid]
            .into_iter()
            .fold(set, KeepSet::with);
        if self.adapts_attention_input() {
            set = set.with(T::InputNormed);
        }
        set
    }

    /// The tensors that are rebuilt when `kept` are there: those that are used, and those that it takes to
    /// rebuild them.
    #[must_use]
    pub fn rebuilt(&self, kept: KeepSet) -> KeepSet {
        let mut missing = self.uses().difference(kept);
        // From the last to the first: each asks for what it is made of.
        for tensor in T::ALL.into_iter().rev() {
            if missing.contains(tensor) {
                for &part in parts(tensor) {
                    if !kept.contains(part) {
                        missing = missing.with(part);
                    }
                }
            }
        }
        missing
    }

    /// Bytes of the residual stream.
    #[must_use]
    pub const fn stream(&self, pass: PassShape, memory: &MemoryModel) -> u64 {
        pass.tokens * self.hidden * memory.element
    }

    /// Bytes of one tensor with what goes with it.
    #[must_use]
    pub fn bytes(&self, tensor: SavedTensor, pass: PassShape, memory: &MemoryModel) -> u64 {
        let (t, e) = (pass.tokens, memory.element);
        let output = |target| {
            let p = self.projection(target);
            t * e * (p.out + p.rank)
        };
        use TargetModule as M;
        match tensor {
            T::InputNormed | T::PostNormed => t * e * self.hidden,
            T::Query => output(M::QProj),
            T::Key => output(M::KProj),
            T::Value => output(M::VProj),
            T::Attention => t * e * self.projection(M::QProj).out + 4 * t * self.heads,
            T::Mid => output(M::OProj),
            T::Gate => output(M::GateProj),
            T::Up => output(M::UpProj),
            T::Product => {
                let down = self.projection(M::DownProj);
                t * e * (down.input + down.rank)
            }
        }
    }

    /// Bytes of what can wait in the host's memory, without what stays beside it.
    #[must_use]
    pub fn away(&self, away: AwaySet, pass: PassShape, memory: &MemoryModel) -> u64 {
        use TargetModule as M;
        let features = |tensor| match tensor {
            T::InputNormed | T::PostNormed => self.hidden,
            T::Query | T::Attention => self.projection(M::QProj).out,
            T::Key => self.projection(M::KProj).out,
            T::Value => self.projection(M::VProj).out,
            T::Mid => self.projection(M::OProj).out,
            T::Gate => self.projection(M::GateProj).out,
            T::Up => self.projection(M::UpProj).out,
            T::Product => self.projection(M::DownProj).input,
        };
        let input = if away.input { self.hidden } else { 0 };
        let tensors: u64 = away.tensors.iter().map(features).sum();
        pass.tokens * memory.element * (input + tensors)
    }

    /// The statistics of both norms.
    const fn statistics(pass: PassShape) -> u64 {
        2 * 4 * pass.tokens
    }

    /// What a layer keeps: its input, the statistics and these tensors.
    #[must_use]
    pub fn kept(&self, keep: KeepSet, pass: PassShape, memory: &MemoryModel) -> u64 {
        let tensors: u64 = keep
            .iter()
            .map(|tensor| self.bytes(tensor, pass, memory))
            .sum();
        self.stream(pass, memory) + Self::statistics(pass) + tensors
    }

    /// The work of one tensor, from the tensors that it is made of.
    #[must_use]
    pub fn work(&self, tensor: SavedTensor, pass: PassShape, memory: &MemoryModel) -> Work {
        let (t, e) = (pass.tokens, memory.element);
        let project = |target| {
            let p = self.projection(target);
            Work {
                gemm: p.forward_flops(t),
                bytes: t * e * (p.input + p.out),
                codes: if p.quantized { p.weight_bytes } else { 0 },
                ops: if p.rank > 0 { 3 } else { 1 },
                ..Work::default()
            }
        };
        let pass_over = |bytes| Work {
            bytes,
            ops: 1,
            ..Work::default()
        };
        use TargetModule as M;
        match tensor {
            T::InputNormed | T::PostNormed => pass_over(2 * t * e * self.hidden),
            T::Query => project(M::QProj) + pass_over(2 * t * e * self.projection(M::QProj).out),
            T::Key => project(M::KProj) + pass_over(2 * t * e * self.projection(M::KProj).out),
            T::Value => project(M::VProj),
            T::Attention => {
                let (q, k) = (self.projection(M::QProj).out, self.projection(M::KProj).out);
                Work {
                    attention: 4 * pass.pairs * q,
                    bytes: t * e * 2 * (q + k),
                    ops: 1,
                    ..Work::default()
                }
            }
            T::Mid => project(M::OProj) + pass_over(2 * t * e * self.hidden),
            T::Gate => project(M::GateProj),
            T::Up => project(M::UpProj),
            T::Product => {
                let down = self.projection(M::DownProj);
                Work {
                    gemm: 2 * t * down.input * down.rank,
                    bytes: 3 * t * e * down.input,
                    ops: 2,
                    ..Work::default()
                }
            }
        }
    }

    /// What it takes to rebuild tensors.
    #[must_use]
    pub fn rebuilding(&self, tensors: KeepSet, pass: PassShape, memory: &MemoryModel) -> Work {
        tensors
            .iter()
            .map(|tensor| self.work(tensor, pass, memory))
            .sum()
    }

    /// The whole forward pass.
    #[must_use]
    pub fn forward_work(&self, pass: PassShape, memory: &MemoryModel) -> Work {
        let down = self.projection(TargetModule::DownProj);
        let (t, e) = (pass.tokens, memory.element);
        let last = Work {
            gemm: 2 * t * (down.out * down.input + down.out * down.rank),
            bytes: t * e * (down.input + 3 * down.out),
            codes: if down.quantized { down.weight_bytes } else { 0 },
            ops: 3,
            ..Work::default()
        };
        self.rebuilding(KeepSet::ALL, pass, memory) + last
    }

    /// The backward pass without what it rebuilds.
    #[must_use]
    pub fn backward_work(&self, pass: PassShape, memory: &MemoryModel) -> Work {
        use TargetModule as M;
        let (t, e) = (pass.tokens, memory.element);
        let mut work = Work::default();
        for target in M::ALL {
            let p = self.projection(target);
            let input = matches!(target, M::QProj | M::KProj | M::VProj);
            let behind = matches!(target, M::GateProj | M::UpProj | M::DownProj);
            if !behind && !self.goes_on() {
                continue;
            }
            let wanted = if input { self.wanted } else { true };
            work = work
                + Work {
                    gemm: p.backward_flops(t, wanted),
                    bytes: t * e * (p.input + p.out),
                    codes: if p.quantized && wanted {
                        p.weight_bytes
                    } else {
                        0
                    },
                    ops: if p.rank > 0 { 5 } else { 1 },
                    ..Work::default()
                };
        }
        if self.goes_on() {
            let q = self.projection(M::QProj).out;
            work.attention += 10 * pass.pairs * q;
        }
        let inner = self.projection(M::GateProj).out;
        work.bytes += t * e * (5 * inner + 8 * self.hidden);
        work.ops += 8;
        work
    }

    /// Gradients of the layer's adapters, in f32.
    #[must_use]
    pub fn gradient_bytes(&self) -> u64 {
        let values: u64 = self
            .projections
            .iter()
            .map(ProjectionShape::adapter_values)
            .sum();
        4 * values
    }

    /// The most bytes while the layer runs forwards, its input included.
    #[must_use]
    pub fn forward(&self, keep: KeepSet, pass: PassShape, memory: &MemoryModel) -> u64 {
        use TargetModule as M;
        let size = |tensor| self.bytes(tensor, pass, memory);
        let stream = self.stream(pass, memory);
        let mut meter = Meter::default();
        let let_go = |meter: &mut Meter, tensor| {
            if !keep.contains(tensor) {
                meter.drop(size(tensor));
            }
        };
        meter.add(stream);
        meter.add(size(T::InputNormed) + 4 * pass.tokens);
        for (tensor, target) in [
            (T::Query, M::QProj),
            (T::Key, M::KProj),
            (T::Value, M::VProj),
        ] {
            self.project(&mut meter, target, pass, memory);
            meter.add(size(tensor));
        }
        let_go(&mut meter, T::InputNormed);
        meter.add(size(T::Attention));
        meter.transient(4 * memory.score_rows * pass.longest);
        for tensor in [T::Query, T::Key, T::Value] {
            let_go(&mut meter, tensor);
        }
        self.project(&mut meter, M::OProj, pass, memory);
        meter.add(size(T::Mid));
        let_go(&mut meter, T::Attention);
        // The adapter's part of `mid` goes at once, the stream itself is needed to the end.
        if !keep.contains(T::Mid) {
            meter.drop(size(T::Mid) - stream);
        }
        meter.add(size(T::PostNormed) + 4 * pass.tokens);
        for (tensor, target) in [(T::Gate, M::GateProj), (T::Up, M::UpProj)] {
            self.project(&mut meter, target, pass, memory);
            meter.add(size(tensor));
        }
        let_go(&mut meter, T::PostNormed);
        let down = self.projection(M::DownProj);
        let xa = pass.tokens * memory.element * down.rank;
        meter.add(size(T::Product) - xa);
        let_go(&mut meter, T::Gate);
        let_go(&mut meter, T::Up);
        self.project(&mut meter, M::DownProj, pass, memory);
        meter.add(stream + xa);
        meter.peak
    }

    /// What a product with a frozen weight takes besides its operands and its result.
    fn project(
        &self,
        meter: &mut Meter,
        target: TargetModule,
        pass: PassShape,
        memory: &MemoryModel,
    ) {
        let p = self.projection(target);
        if p.quantized && memory.dequantizes_whole {
            let result = pass.tokens * p.out * memory.element;
            meter.transient(p.out * p.input * memory.element + result);
        }
        if p.dropout && p.rank > 0 {
            let result = pass.tokens * (p.out + p.rank) * memory.element;
            meter.transient(pass.tokens * p.input * memory.element + result);
        }
    }

    /// A projection backwards: the gradient of its input is made, gradients of its factors are made and added.
    /// `gradients` is where those stay; `None` where they are added to ones that are there.
    fn project_back(
        &self,
        meter: &mut Meter,
        target: TargetModule,
        wanted: bool,
        pass: PassShape,
        memory: &MemoryModel,
        accumulated: bool,
    ) {
        let p = self.projection(target);
        let (t, e) = (pass.tokens, memory.element);
        if wanted {
            if p.quantized && memory.dequantizes_whole {
                meter.transient(p.out * p.input * e + t * p.input * e);
            }
            meter.add(t * p.input * e);
        }
        if p.rank > 0 {
            meter.add(t * p.rank * e);
            if p.dropout {
                meter.transient(t * p.input * e);
            }
            meter.add(4 * p.adapter_values());
            if p.dropout && wanted {
                meter.transient(t * p.input * e);
            }
            meter.drop(t * p.rank * e);
            if accumulated {
                meter.drop(4 * p.adapter_values());
            }
        }
    }

    /// The most bytes while the layer runs backwards, beyond what the layers below keep: the gradient of its
    /// result and what it has kept included. Gradients of its adapters that come to stay count where none are
    /// `accumulated` yet.
    #[must_use]
    pub fn backward(
        &self,
        keep: KeepSet,
        pass: PassShape,
        memory: &MemoryModel,
        accumulated: bool,
    ) -> u64 {
        use TargetModule as M;
        let size = |tensor| self.bytes(tensor, pass, memory);
        let (t, e) = (pass.tokens, memory.element);
        let stream = self.stream(pass, memory);
        let kept = keep.intersection(self.uses());
        let mut meter = Meter::default();
        meter.add(self.kept(kept, pass, memory) + stream);
        let mut there = kept;

        // The MLP.
        let no_gate = !there.contains(T::Gate) || !there.contains(T::Up);
        if no_gate {
            self.rebuild(&mut meter, &mut there, T::PostNormed, pass, memory);
            self.rebuild(&mut meter, &mut there, T::Gate, pass, memory);
            self.rebuild(&mut meter, &mut there, T::Up, pass, memory);
            if !self.adapts_mlp_input() {
                self.let_go(&mut meter, &mut there, T::PostNormed, pass, memory);
            }
        }
        if self.adapted(&[M::DownProj]) {
            self.rebuild(&mut meter, &mut there, T::Product, pass, memory);
        }
        let back = |meter: &mut Meter, target, wanted| {
            self.project_back(meter, target, wanted, pass, memory, accumulated);
        };
        back(&mut meter, M::DownProj, true);
        self.let_go(&mut meter, &mut there, T::Product, pass, memory);
        let inner = t * e * self.projection(M::GateProj).out;
        if !memory.swiglu_in_place {
            meter.transient(2 * inner);
        }
        meter.drop(inner);
        if self.adapts_mlp_input() {
            self.rebuild(&mut meter, &mut there, T::PostNormed, pass, memory);
        }
        back(&mut meter, M::GateProj, true);
        meter.drop(inner);
        back(&mut meter, M::UpProj, true);
        // Sum of both, then the other half and the adapters' parts.
        meter.drop(stream);
        meter.drop(size(T::Gate) + size(T::Up) - inner);
        there = there.without(T::Gate).without(T::Up);
        self.let_go(&mut meter, &mut there, T::PostNormed, pass, memory);
        if !self.goes_on() {
            return meter.peak;
        }
        self.rebuild(&mut meter, &mut there, T::Mid, pass, memory);
        // The norm's gradient is added to dy in place.
        meter.transient(stream);
        meter.drop(stream);

        // Attention.
        meter.drop(stream);
        for tensor in [T::Query, T::Key, T::Value, T::Attention] {
            self.rebuild(&mut meter, &mut there, tensor, pass, memory);
        }
        if !self.adapts_attention_input() {
            self.let_go(&mut meter, &mut there, T::InputNormed, pass, memory);
        }
        back(&mut meter, M::OProj, true);
        let (q, kv) = (
            t * e * self.projection(M::QProj).out,
            t * e * self.projection(M::KProj).out,
        );
        meter.add(q + 2 * kv);
        meter.transient(2 * 4 * memory.score_rows * pass.longest);
        meter.drop(q);
        self.let_go(&mut meter, &mut there, T::Attention, pass, memory);
        // The adapters' parts stay to the end; they are counted with the tensors all the same.
        let xa: u64 = [M::QProj, M::KProj, M::VProj]
            .iter()
            .map(|&target| t * e * self.projection(target).rank)
            .sum();
        meter.drop(q + 2 * kv);
        there = there.without(T::Query).without(T::Key).without(T::Value);
        if self.adapts_attention_input() {
            self.rebuild(&mut meter, &mut there, T::InputNormed, pass, memory);
        }
        let mut first = true;
        for (target, bytes) in [(M::QProj, q), (M::KProj, kv), (M::VProj, kv)] {
            back(&mut meter, target, self.wanted);
            if self.wanted && !first {
                meter.drop(stream);
            }
            first = false;
            meter.drop(bytes);
        }
        meter.drop(xa);
        self.let_go(&mut meter, &mut there, T::InputNormed, pass, memory);
        if self.wanted {
            meter.transient(stream);
        }
        meter.peak
    }

    /// Makes a tensor that is not there, and what it takes for it.
    fn rebuild(
        &self,
        meter: &mut Meter,
        there: &mut KeepSet,
        tensor: SavedTensor,
        pass: PassShape,
        memory: &MemoryModel,
    ) {
        use TargetModule as M;
        if there.contains(tensor) {
            return;
        }
        for &part in parts(tensor) {
            self.rebuild(meter, there, part, pass, memory);
        }
        if tensor == T::Attention && !self.adapts_attention_input() {
            self.let_go(meter, there, T::InputNormed, pass, memory);
        }
        match tensor {
            T::Query => self.project(meter, M::QProj, pass, memory),
            T::Key => self.project(meter, M::KProj, pass, memory),
            T::Value => self.project(meter, M::VProj, pass, memory),
            T::Mid => self.project(meter, M::OProj, pass, memory),
            T::Gate => self.project(meter, M::GateProj, pass, memory),
            T::Up => self.project(meter, M::UpProj, pass, memory),
            T::InputNormed | T::PostNormed => {
                meter.transient(self.bytes(tensor, pass, memory) + 4 * pass.tokens)
            }
            T::Attention => meter
                .transient(self.bytes(tensor, pass, memory) + 4 * memory.score_rows * pass.longest),
            T::Product => {
                let down = self.projection(M::DownProj);
                if down.dropout {
                    let product = pass.tokens * memory.element * down.input;
                    meter.transient(2 * product);
                }
            }
        }
        meter.add(self.bytes(tensor, pass, memory));
        *there = there.with(tensor);
    }

    fn let_go(
        &self,
        meter: &mut Meter,
        there: &mut KeepSet,
        tensor: SavedTensor,
        pass: PassShape,
        memory: &MemoryModel,
    ) {
        if there.contains(tensor) {
            meter.drop(self.bytes(tensor, pass, memory));
            *there = there.without(tensor);
        }
    }
}

/// What a tensor is made of, besides the layer's input.
const fn parts(tensor: SavedTensor) -> &'static [SavedTensor] {
    match tensor {
        T::InputNormed => &[],
        T::Query | T::Key | T::Value => &[T::InputNormed],
        T::Attention => &[T::Query, T::Key, T::Value],
        T::Mid => &[T::Attention],
        T::PostNormed => &[T::Mid],
        T::Gate | T::Up => &[T::PostNormed],
        T::Product => &[T::Gate, T::Up],
    }
}
