//! The tensors of a decoder layer: their bytes, what rebuilds them, and how memory goes while the layer is
//! computed. All of it comes from running the layer on sizes, see `size_ops`.

use std::cell::RefCell;
use std::rc::Rc;

use backdraft_arch::layer::{self, Kept};
use backdraft_arch::sizes;
use backdraft_arch::{
    Heads, InputGrad, KeepSet, Mixer, Norm, NormPlaces, OffloadSet, SavedTensor, TargetModule,
    Trained, ValueHeads,
};

use crate::size_ops::{Done, Factors, Memory, SizeOps, Sized, Value, alloc};

/// How the ops of a device take memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemoryModel {
    /// Bytes of an activation: 4 for f32, 2 for bf16.
    pub element: u64,
    /// Whether a quantised weight is dequantised as a whole for its product.
    pub dequantizes_whole: bool,
    /// Rows of scores that attention holds at a time, over all threads; each as long as the longest sequence.
    pub score_rows: u64,
    /// Tokens whose logits exist at a time.
    pub logits_chunk: u64,
    /// Buffers that the device's libraries hold on to.
    pub workspace: u64,
    /// Whether tensors share pages, see `StepShape::page_for`.
    pub paged: bool,
    /// Whether the device reads the rows of an embedding in the host's memory, see `ModelSpec::embeds_on_host`.
    pub embeds_on_host: bool,
}

impl MemoryModel {
    /// Threads of the processor; none elsewhere.
    pub(crate) const fn threads(&self) -> u64 {
        self.score_rows / sizes::SCORE_ROWS
    }
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
    /// Chunks of the gated delta rule, each of one sequence.
    pub chunks: u64,
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
            chunks: 0,
        };
        for length in lengths {
            let length = length as u64;
            shape.tokens += length;
            shape.supervised += length.saturating_sub(1);
            shape.longest = shape.longest.max(length);
            shape.pairs += length * (length + 1) / 2;
            shape.chunks += length.div_ceil(sizes::DELTA_CHUNK as u64);
        }
        shape
    }

    /// A pass over texts of these lengths: as [`of_sequences`](Self::of_sequences), or, where a head scores texts, with one token
    /// of each that it reads.
    #[must_use]
    pub fn of_texts(lengths: impl IntoIterator<Item = usize>, scored: bool) -> Self {
        let lengths: Vec<usize> = lengths.into_iter().collect();
        let texts = lengths.len() as u64;
        let shape = Self::of_sequences(lengths);
        match scored {
            true => Self {
                supervised: texts,
                ..shape
            },
            false => shape,
        }
    }

    /// Pairs of a query and a key that it sees where no more than `window` keys are seen, as for sequences of one length.
    #[must_use]
    pub const fn pairs_seen(self, window: Option<u64>) -> u64 {
        let Some(window) = window else {
            return self.pairs;
        };
        let length = match self.tokens {
            0 => 0,
            tokens => 2 * self.pairs / tokens,
        }
        .saturating_sub(1);
        if length <= window {
            return self.pairs;
        }
        // Each sequence lacks the triangle of the keys before its windows.
        let missing = (length - window) * (length - window + 1) / 2;
        self.pairs - (self.tokens * missing).div_ceil(length)
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
    /// The bits of the adapter's s, f32: adapters that share an input are computed together where theirs are the same.
    pub scaling: u32,
    /// Whether the adapter's input is dropped out.
    pub dropout: bool,
    /// Whether the lengths of its rows are trained.
    pub dora: bool,
    /// Whether the weight is kept in codes.
    pub quantized: bool,
    /// Bytes of the weight as it is kept.
    pub weight_bytes: u64,
    /// Which rows of a matrix it multiplies with.
    pub rows: Rows,
    /// Whether its bias is trained.
    pub bias: bool,
    /// Whether its weight is.
    pub weight: bool,
}

/// Rows of a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rows {
    /// All of one that no other projection has.
    #[default]
    All,
    /// The first of a fused one. Its adapter's A, which serves all of them, is counted here.
    First,
    /// Others of a fused one.
    Later,
}

impl ProjectionShape {
    /// Values of the adapter's A, where they are counted here.
    #[must_use]
    pub const fn a_values(&self) -> u64 {
        match self.rows {
            Rows::All | Rows::First => self.rank * self.input,
            Rows::Later => 0,
        }
    }

    /// Values of the adapter's B.
    #[must_use]
    pub const fn b_values(&self) -> u64 {
        self.rank * self.out
    }

    /// Values of the adapter's factors.
    #[must_use]
    pub const fn adapter_values(&self) -> u64 {
        self.a_values() + self.b_values()
    }

    /// Lengths of rows that are trained.
    #[must_use]
    pub const fn magnitudes(&self) -> u64 {
        if self.dora { self.out } else { 0 }
    }

    /// Values of its bias, where that is trained.
    #[must_use]
    pub const fn bias_values(&self) -> u64 {
        if self.bias { self.out } else { 0 }
    }

    /// Values of its weight, where that is trained.
    #[must_use]
    pub const fn trained_weight_values(&self) -> u64 {
        if self.weight {
            self.out * self.input
        } else {
            0
        }
    }

    pub(crate) const fn forward_flops(&self, tokens: u64) -> u64 {
        2 * tokens * (self.out * self.input + self.adapter_values())
    }

    /// With the gradients of both factors or of the weight; the input's where it is needed.
    pub(crate) const fn backward_flops(&self, tokens: u64, needed: bool) -> u64 {
        let factors = 2 * self.b_values() + self.a_values() + self.trained_weight_values();
        let factors = 2 * tokens * factors;
        let input = 2 * tokens * (self.out * self.input + self.a_values());
        factors + if needed { input } else { 0 }
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
    pub query_heads: u64,
    /// Key–value heads.
    pub key_value_heads: u64,
    /// How it mixes tokens.
    pub mixer: Mixer,
    /// What becomes of queries and keys before attention.
    pub heads: Heads,
    /// What becomes of values.
    pub values: ValueHeads,
    /// Where the norms of the residual stream stand.
    pub norm_places: NormPlaces,
    /// Keys that a query sees, itself included; all before it where absent.
    pub window: Option<u64>,
    /// Whether the residual stream behind it is multiplied by a number of its own.
    pub scaled: bool,
    /// The products, in the order of [`TargetModule::ALL`]: a fused projection part by part; those that it lacks are empty.
    pub projections: [ProjectionShape; TargetModule::ALL.len()],
    /// Values of the weights of norms that are trained, in the order of [`Norm::ALL`]; 0 of those that are not.
    pub norms: [u64; Norm::ALL.len()],
    /// Whether the gradient of its input is needed: not in the lowest adapted layer.
    pub input_grad: InputGrad,
    /// Bytes of its matrices that come to the device each time it is computed; 0 where they stay there.
    pub streamed: u64,
}

impl Trained for LayerShape {
    fn trains(&self, target: TargetModule) -> bool {
        let projection = self.projection(target);
        projection.rank > 0 || projection.weight
    }

    fn trains_bias(&self, target: TargetModule) -> bool {
        self.projection(target).bias
    }

    fn trains_norm(&self, norm: Norm) -> bool {
        self.norms[norm as usize] > 0
    }
}

/// Live and highest bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    live: u64,
    peak: u64,
}

impl Memory for Meter {
    type Place = u64;

    fn alloc(&mut self, bytes: u64) -> u64 {
        self.live += bytes;
        self.peak = self.peak.max(self.live);
        bytes
    }

    fn free(&mut self, bytes: &u64) {
        self.live -= bytes;
    }
}

/// A layer after its forward pass, on a meter.
struct Computed {
    meter: Rc<RefCell<Meter>>,
    output: Value<Meter>,
    kept: Kept<Sized<Meter>>,
    done: Done,
}

impl LayerShape {
    /// A projection.
    #[must_use]
    pub const fn projection(&self, target: TargetModule) -> &ProjectionShape {
        &self.projections[target as usize]
    }

    /// Whether it has every tensor of a layer that attends.
    #[must_use]
    pub const fn has_value(&self) -> bool {
        layer::has_value(self.mixer, self.values)
    }

    /// What the backward pass uses.
    #[must_use]
    pub fn uses(&self) -> KeepSet {
        let mixing = (self.mixer, self.values);
        layer::uses(self, mixing, self.norm_places, self.input_grad)
    }

    fn computed(&self, keep: KeepSet, pass: PassShape, memory: &MemoryModel) -> Computed {
        let meter = Rc::default();
        let factors = Factors::Apart { accumulated: true };
        let mut ops = SizeOps::new(self, pass, memory, factors, &meter);
        let input = alloc(&meter, self.stream(pass, memory));
        let (output, kept) = layer::forward(&mut ops, input, keep);
        Computed {
            done: ops.done,
            meter,
            output,
            kept,
        }
    }

    /// The backward pass after a forward pass that kept `keep`: the highest bytes, and what was done.
    fn run_backward(
        &self,
        keep: KeepSet,
        pass: PassShape,
        memory: &MemoryModel,
        accumulated: bool,
    ) -> (u64, Done) {
        // A gradient takes the place of the output.
        let Computed {
            meter,
            output: dy,
            kept,
            ..
        } = self.computed(keep, pass, memory);
        let live = meter.borrow().live;
        meter.borrow_mut().peak = live;
        let factors = Factors::Apart { accumulated };
        let mut ops = SizeOps::new(self, pass, memory, factors, &meter);
        layer::backward(&mut ops, dy, kept, self.input_grad);
        let peak = meter.borrow().peak;
        (peak, ops.done)
    }

    /// The tensors that are rebuilt when `kept` are there: those that are used, and those that it takes to
    /// rebuild them.
    #[must_use]
    pub fn rebuilt(&self, kept: KeepSet) -> KeepSet {
        // Whatever the sizes.
        let pass = PassShape::of_sequences([1]);
        let keep = kept.intersection(self.uses());
        self.run_backward(keep, pass, &MemoryModel::cube(2), true)
            .1
            .made
    }

    /// Bytes of the residual stream.
    #[must_use]
    pub const fn stream(&self, pass: PassShape, memory: &MemoryModel) -> u64 {
        pass.tokens * self.hidden * memory.element
    }

    /// Bytes of what can wait in the host's memory, without what stays on the device.
    #[must_use]
    pub fn away(&self, away: OffloadSet, pass: PassShape, memory: &MemoryModel) -> u64 {
        let mut kept = self.computed(away.tensors, pass, memory).kept;
        let tensors = away.tensors.iter().filter_map(|tensor| kept.take(tensor));
        let tensors: u64 = tensors.map(|(tensor, _)| tensor.bytes()).sum();
        tensors
            + if away.input {
                self.stream(pass, memory)
            } else {
                0
            }
    }

    /// What a layer keeps: its input, the statistics of its norms and these tensors.
    #[must_use]
    pub fn kept(&self, keep: KeepSet, pass: PassShape, memory: &MemoryModel) -> u64 {
        let Computed {
            meter,
            output,
            kept,
            ..
        } = self.computed(keep, pass, memory);
        drop(output);
        let live = meter.borrow().live;
        drop(kept);
        live
    }

    /// The work of one tensor, from the tensors that it is made of.
    #[must_use]
    pub fn work(&self, tensor: SavedTensor, pass: PassShape, memory: &MemoryModel) -> Work {
        self.computed(KeepSet::NONE, pass, memory).done.tensors[tensor as usize]
    }

    /// What it takes to rebuild tensors.
    #[must_use]
    pub fn rebuilding(&self, tensors: KeepSet, pass: PassShape, memory: &MemoryModel) -> Work {
        let done = self.computed(KeepSet::NONE, pass, memory).done;
        tensors
            .iter()
            .map(|tensor| done.tensors[tensor as usize])
            .sum()
    }

    /// The whole forward pass.
    #[must_use]
    pub fn forward_work(&self, pass: PassShape, memory: &MemoryModel) -> Work {
        let done = self.computed(KeepSet::NONE, pass, memory).done;
        done.tensors.into_iter().sum::<Work>() + done.rest
    }

    /// The backward pass without what it rebuilds.
    #[must_use]
    pub fn backward_work(&self, pass: PassShape, memory: &MemoryModel) -> Work {
        self.run_backward(self.uses(), pass, memory, true).1.rest
    }

    /// Gradients of what is trained of the layer, in f32.
    #[must_use]
    pub fn gradient_bytes(&self) -> u64 {
        let projections = self.projections.iter();
        let values = projections.map(|p| {
            let adapter = p.adapter_values() + p.magnitudes();
            adapter + p.bias_values() + p.trained_weight_values()
        });
        4 * (values.sum::<u64>() + self.norms.iter().sum::<u64>())
    }

    /// Values of the largest tensor of the base that is trained.
    #[must_use]
    pub fn largest_trained(&self) -> u64 {
        let mut largest = self.norms.iter().copied().max().unwrap_or(0);
        // Rows of a fused projection are one tensor.
        let mut fused = 0;
        for p in &self.projections {
            fused = match p.rows {
                Rows::Later => fused + p.trained_weight_values(),
                Rows::All | Rows::First => p.trained_weight_values(),
            };
            largest = largest.max(fused).max(p.bias_values());
        }
        largest
    }

    /// The most bytes while the layer runs forwards, its input included.
    #[must_use]
    pub fn forward(&self, keep: KeepSet, pass: PassShape, memory: &MemoryModel) -> u64 {
        self.computed(keep, pass, memory).meter.borrow().peak
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
        let keep = keep.intersection(self.uses());
        self.run_backward(keep, pass, memory, accumulated).0
    }
}
