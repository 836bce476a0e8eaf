//! The peak of a whole step and the work of its backward pass, for a plan; and the plan that suits a budget.

use std::collections::HashMap;
use std::rc::Rc;

use backdraft_arch::sizes::MEASURED;
use backdraft_arch::{KeepSet, OffloadSet, SavedTensor};
use serde::Serialize;

use crate::cost::CostModel;
use crate::pages;
use crate::plan::{ActivationPlan, Segment};
use crate::size_ops::delta;
use crate::solver::{Choice, Group, Problem};
use crate::tensors::{LayerShape, MemoryModel, PassShape, Work};

/// Everything that a prediction needs to know of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepShape {
    /// Layers below the lowest adapted one, and one of them.
    pub frozen: Option<(usize, LayerShape)>,
    /// The layers that the backward pass goes through, first to last.
    pub layers: Vec<LayerShape>,
    /// Tokens of the vocabulary.
    pub vocab: u64,
    /// Features of the residual stream.
    pub hidden: u64,
    /// Features of a head that are turned, for each pair of tables of rotary angles: one, or others for layers with a window
    /// and for queries.
    pub rotary_dims: Vec<u64>,
    /// How the device takes memory.
    pub memory: MemoryModel,
    /// Bytes of the frozen weights.
    pub base: u64,
    /// Bytes of the adapters' factors.
    pub adapters: u64,
    /// Bytes of the gradients of trained rows of tokens, which are of no layer; 0 where there are none.
    pub token_gradients: u64,
    /// Bytes of the gradients that come of the loss: of the final norm and the head, where those are trained whole, and of the head's
    /// adapter.
    pub loss_gradients: u64,
    /// Bytes of the gradients that come last: of an embedding that is trained whole and is not the head, and of the embedding's adapter.
    pub embedding_gradient: u64,
    /// Columns of the head's adapter, which what the head reads has more; 0 where there is none.
    pub head_rank: u64,
    /// Columns of the embedding's adapter; 0 where there is none.
    pub embedding_rank: u64,
    /// Bytes of the optimiser's state.
    pub optimizer: u64,
    /// Bytes that an update works in.
    pub update: u64,
    /// Whether gradients of an earlier micro-batch of the step are there already.
    pub accumulated: bool,
    /// Where gradients are used as soon as those of a layer are complete, and then dropped.
    pub released: Option<Released>,
    /// Bytes of the host's memory in which tensors may wait; 0 for none.
    pub host: u64,
    /// Bytes of the pages that tensors share at least, see [`page_for`](Self::page_for).
    pub page: u64,
}

/// What the tensors of a base take beyond their own bytes, each rounded up for itself: with room to spare, 8 kB were
/// measured.
const ROUNDED: u64 = 1 << 20;

/// Times that a plan is made again because pages leave too much unfilled.
const REFITS: usize = 16;

/// Tokens of a micro-batch beyond which nobody asks.
const MOST_TOKENS: u64 = 1 << 20;

/// Copies of layers that stay in the host's memory.
#[derive(Default)]
struct Stream {
    bytes: u64,
    /// Picoseconds that nothing hides.
    exposed: u64,
}

impl Stream {
    /// A layer comes while another like it is computed for so long.
    fn see(&mut self, layer: &LayerShape, computing: u64, cost: &CostModel) {
        self.bytes += layer.streamed;
        self.exposed += cost.arrival(layer).saturating_sub(computing);
    }
}

/// When memory is highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// A layer of the forward pass, counted from the lowest adapted one.
    Forward(usize),
    /// Head and loss.
    Loss,
    /// A layer of the backward pass.
    Backward(usize),
    /// The embedding's gradient.
    Embedding,
    /// The optimiser's update.
    Update,
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Forward(layer) => write!(f, "layer {layer} forwards"),
            Self::Loss => f.write_str("the loss"),
            Self::Backward(layer) => write!(f, "layer {layer} backwards"),
            Self::Embedding => f.write_str("the embedding backwards"),
            Self::Update => f.write_str("the update"),
        }
    }
}

/// Gradients that update what they are of, layer by layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Bytes of those that come of the loss and are complete last: of a table that is embedding and head.
    pub late: u64,
    /// Values of the largest tensor that is updated after the loss.
    pub of_loss: u64,
    /// Values of the largest tensor that is updated last.
    pub last: u64,
    /// Bytes that an update works in for each value of a tensor.
    pub update: u64,
}

/// The highest memory of a step, by kind.
///
/// # Units
/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Peak {
    /// Frozen weights.
    pub base: u64,
    /// The adapters' factors.
    pub adapters: u64,
    /// Their gradients, at that moment.
    pub gradients: u64,
    /// The optimiser's state.
    pub optimizer: u64,
    /// What layers below the present one keep.
    pub kept: u64,
    /// The present layer or the loss: its own tensors, rebuilt ones and gradients.
    pub working: u64,
    /// Libraries' buffers, and what belongs to the batch.
    pub workspace: u64,
    /// What the allocator's pages have room for and nothing fills, and what lasting tensors are rounded up by.
    pub unfilled: u64,
    /// When that is.
    pub moment: Moment,
}

impl Peak {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.base
            + self.adapters
            + self.gradients
            + self.optimizer
            + self.kept
            + self.working
            + self.workspace
            + self.unfilled
    }

    /// What comes and goes in a step: everything but base, factors and the optimiser's state.
    #[must_use]
    pub const fn of_step(&self) -> u64 {
        self.total() - self.base - self.adapters - self.optimizer
    }
}

/// What a plan costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Memory.
    pub peak: Peak,
    /// Bytes of the gradients that there are at once.
    #[serde(skip)]
    pub gradients: u64,
    /// Floating-point operations of a micro-batch without recomputation.
    pub flops: u64,
    /// Those of recomputation, on top.
    pub recompute_flops: u64,
    /// Bytes that go to the host's memory and come back.
    pub offloaded: u64,
    /// Time of recomputation and of copies that nothing hides, in seconds.
    pub recompute_seconds: f64,
    /// Bytes of the base that come from the host's memory.
    pub streamed: u64,
    /// What of their time computing does not hide, in seconds.
    pub stream_seconds: f64,
    /// Time of a micro-batch with it, in seconds.
    pub seconds: f64,
}

impl Prediction {
    /// Recomputation as a share of the time of the micro-batch.
    #[must_use]
    pub fn recompute_share(&self) -> f64 {
        self.recompute_seconds / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// No plan fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no plan fits: {needed} bytes are needed at least, {budget} may be used")]
pub struct Shortage {
    /// Bytes that the smallest plan needs.
    pub needed: u64,
    /// Bytes that there are.
    pub budget: u64,
}

impl StepShape {
    /// Lengths of the sequences over which a layer is measured for a pass: one where few tokens are enough for the
    /// ratios between the tensors, and on a GPU, which more of them fill, all up to 8192 tokens.
    #[must_use]
    pub fn sample(&self, pass: PassShape) -> Vec<usize> {
        let longest = pass.longest.clamp(1, 8192);
        match self.memory.paged {
            false => vec![longest.min(2048) as usize],
            true => vec![longest as usize; (pass.tokens.min(8192) / longest).max(1) as usize],
        }
    }

    /// The page for passes up to `pass`: room for the largest tensor, and filled by whole outputs of the widest
    /// projection, which take most of the memory. 0 where tensors share no pages.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub fn page_for(&self, pass: PassShape) -> u64 {
        if !self.memory.paged {
            return 0;
        }
        let (largest, output) = self.tensors(pass);
        largest.max(MEASURED).next_multiple_of(output.max(1))
    }

    /// Bytes of the largest tensor of a pass, and of the largest output of a projection.
    pub(crate) fn tensors(&self, pass: PassShape) -> (u64, u64) {
        let element = self.memory.element;
        let logits = self.memory.logits_chunk.min(pass.supervised) * self.vocab * element;
        let (mut largest, mut output) = (logits.max(self.embedding_gradient), 0);
        let layers = self.layers.iter().flat_map(|layer| &layer.projections);
        for target in layers {
            let whole = target.quantized && self.memory.dequantizes_whole;
            let scratch = if whole {
                target.out * target.input * element
            } else {
                0
            };
            output = output.max(target.out * pass.tokens * element);
            largest = largest.max(scratch).max(output);
        }
        let mixers = self.layers.iter().map(|layer| delta::largest(layer, pass));
        (mixers.fold(largest, u64::max), output)
    }

    /// What is there throughout the step.
    fn fixed(&self, pass: PassShape) -> u64 {
        self.base + self.adapters + self.optimizer + self.workspace(pass)
    }

    /// Rotary tables, and buffers of libraries.
    fn workspace(&self, pass: PassShape) -> u64 {
        4 * pass.tokens * self.rotary_dims.iter().sum::<u64>()
            + 8 * pass.tokens
            + self.memory.workspace
    }

    fn gradients(&self) -> u64 {
        let layers = self.layers.iter().map(LayerShape::gradient_bytes);
        self.token_gradients + self.loss_gradients + self.embedding_gradient + layers.sum::<u64>()
    }

    /// For each layer, gradients that are there when its backward pass begins.
    fn gradients_before(&self) -> Vec<u64> {
        let all = self.gradients();
        if self.accumulated {
            return vec![all; self.layers.len()];
        }
        if let Some(released) = &self.released {
            return vec![released.late; self.layers.len()];
        }
        let mut left = all - self.embedding_gradient;
        let before = |layer: &LayerShape| {
            left -= layer.gradient_bytes();
            left
        };
        self.layers.iter().map(before).collect()
    }

    /// The most gradients that there are at once.
    #[must_use]
    pub fn most_gradients(&self) -> u64 {
        let Some(released) = &self.released else {
            return self.gradients();
        };
        let layers = self.layers.iter().map(LayerShape::gradient_bytes);
        let of_layer = released.late + layers.max().unwrap_or(0);
        let ends = self.loss_gradients.max(self.embedding_gradient);
        of_layer.max(ends)
    }

    /// A layer's backward pass, as [`LayerShape::backward`], with the update that follows it where gradients are released.
    fn backward(&self, layer: &LayerShape, keep: KeepSet, pass: PassShape) -> u64 {
        let backward = layer.backward(keep, pass, &self.memory, self.accumulated);
        let Some(released) = &self.released else {
            return backward;
        };
        let update = released.update * layer.largest_trained();
        let stream = layer.stream(pass, &self.memory);
        backward.max(stream + layer.gradient_bytes() + update)
    }

    /// Beyond what the layers keep: final norm, head, loss, and the gradient of the residual stream.
    fn loss(&self, pass: PassShape) -> u64 {
        let (n, e) = (pass.supervised, self.memory.element);
        let stream = pass.tokens * self.hidden * e;
        let rows = n * self.hidden * e;
        // With what the adapter's A makes of them behind.
        let read = n * (self.hidden + self.head_rank) * e;
        let chunk = self.memory.logits_chunk.min(n);
        let logits = chunk * self.vocab * e;
        let few = 4 * n * 4;
        let selecting = stream + rows;
        // Columns of trained tokens are taken out of a copy.
        let copies = if self.token_gradients > 0 { 2 } else { 1 };
        let losing = rows + read + (read + copies * logits).max(2 * read);
        let spreading = 2 * stream + 2 * rows;
        let gradients = if self.accumulated {
            0
        } else {
            self.loss_gradients
        };
        // On the processor a product for the gradient of a whole head packs the gradient of its logits; the other factor's panels
        // are in `workspace`.
        let whole_head = self.loss_gradients >= 4 * self.vocab * self.hidden;
        let packed = (whole_head || self.head_rank > 0) && !self.memory.paged;
        let losing = losing + if packed { logits } else { 0 };
        let (spreading, updating) = match &self.released {
            None => (spreading + gradients, 0),
            // By then what comes of the loss has been used.
            Some(it) => (
                spreading + it.late,
                rows + gradients + it.update * it.of_loss,
            ),
        };
        selecting
            .max(losing + gradients)
            .max(spreading)
            .max(updating)
            + few
    }

    /// Memory, recomputation and time of a plan.
    ///
    /// # Panics
    /// If the plan is for another number of layers.
    #[must_use]
    pub fn predict(&self, plan: &ActivationPlan, pass: PassShape, cost: &CostModel) -> Prediction {
        assert_eq!(plan.num_layers(), self.layers.len(), "layers of the plan");
        let peak = self.peak(plan, pass);
        let roofline = cost.roofline();
        let work = self.work(pass);
        let (mut again, mut extra, mut offloaded) = (0, 0, 0);
        let mut stream = Stream::default();
        if let Some((count, layer)) = &self.frozen {
            let forward = cost.forward(layer, pass, &self.memory);
            (0..*count).for_each(|_| stream.see(layer, forward, cost));
        }
        for (segment, layers) in self.segments(plan) {
            match segment {
                Segment::Stored(keep, away) => {
                    let layer = &layers[0];
                    let bytes = layer.away(*away, pass, &self.memory);
                    offloaded += bytes;
                    extra += cost.offload(layer, (bytes, away.len()), pass, &self.memory);
                    let tensors = layer.rebuilt(*keep);
                    again += layer.rebuilding(tensors, pass, &self.memory).flops();
                    let rebuild = self.rebuild_time(layer, *keep, pass, cost);
                    extra += rebuild;
                    let forward = cost.forward(layer, pass, &self.memory);
                    let backward = cost.backward(layer, pass, &self.memory) + rebuild;
                    stream.see(layer, forward, cost);
                    stream.see(layer, backward, cost);
                }
                Segment::Rerun(keeps) => {
                    for (layer, keep) in layers.iter().zip(keeps) {
                        again += layer.forward_work(pass, &self.memory).flops();
                        let forward = cost.forward(layer, pass, &self.memory);
                        extra += forward;
                        let tensors = layer.rebuilt(*keep);
                        again += layer.rebuilding(tensors, pass, &self.memory).flops();
                        let rebuild = self.rebuild_time(layer, *keep, pass, cost);
                        extra += rebuild;
                        let backward = cost.backward(layer, pass, &self.memory) + rebuild;
                        for computing in [forward, forward, backward] {
                            stream.see(layer, computing, cost);
                        }
                    }
                }
            }
        }
        let recompute_seconds = extra as f64 / 1e12;
        let stream_seconds = stream.exposed as f64 / 1e12;
        let without: f64 = work.iter().map(|&work| roofline.seconds(work)).sum();
        Prediction {
            peak,
            gradients: self.most_gradients(),
            flops: work.iter().map(Work::flops).sum(),
            recompute_flops: again,
            offloaded,
            recompute_seconds,
            streamed: stream.bytes,
            stream_seconds,
            seconds: without + recompute_seconds + stream_seconds,
        }
    }

    /// Tokens of a micro-batch, of texts as long as those of `pass`, from which on a forward pass takes as long as the copies of a base
    /// that stays in the host's memory; `None` where nothing is copied, or no number of tokens is enough.
    #[must_use]
    pub fn hiding_tokens(&self, pass: PassShape, cost: &CostModel) -> Option<u64> {
        let frozen = self.frozen.iter().map(|(_, layer)| layer);
        let layers: Vec<_> = frozen.chain(&self.layers).collect();
        let slowest = layers.into_iter().max_by_key(|layer| layer.streamed)?;
        let arrival = cost.arrival(slowest);
        let longest = pass.longest.max(1);
        let hides = |tokens: u64| {
            let whole = (tokens / longest) as usize;
            let texts = vec![longest as usize; whole].into_iter();
            let rest = Some((tokens % longest) as usize).filter(|&rest| rest > 0);
            let pass = PassShape::of_sequences(texts.chain(rest));
            cost.forward(slowest, pass, &self.memory) >= arrival
        };
        let (mut low, mut high) = (0, MOST_TOKENS);
        if slowest.streamed == 0 || !hides(high) {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            match hides(middle) {
                true => high = middle,
                false => low = middle,
            }
        }
        Some(high)
    }

    /// The work of a micro-batch without recomputation, op by op as far as times are told apart.
    fn work(&self, pass: PassShape) -> Vec<Work> {
        let mut work = Vec::new();
        if let Some((count, layer)) = &self.frozen {
            work.extend(vec![layer.forward_work(pass, &self.memory); *count]);
        }
        for layer in &self.layers {
            work.push(layer.forward_work(pass, &self.memory));
            work.push(layer.backward_work(pass, &self.memory));
        }
        let of_adapter = 6 * pass.supervised * self.head_rank * (self.hidden + self.vocab);
        work.push(Work {
            gemm: 4 * pass.supervised * self.hidden * self.vocab + of_adapter,
            bytes: 3 * pass.supervised * self.vocab * self.memory.element,
            ops: 3 * pass.supervised.div_ceil(self.memory.logits_chunk.max(1)),
            ..Work::default()
        });
        work
    }

    fn rebuild_time(
        &self,
        layer: &LayerShape,
        keep: KeepSet,
        pass: PassShape,
        cost: &CostModel,
    ) -> u64 {
        layer
            .rebuilt(keep)
            .iter()
            .map(|tensor| cost.rebuild(layer, tensor, pass, &self.memory))
            .sum()
    }

    fn segments<'a>(
        &'a self,
        plan: &'a ActivationPlan,
    ) -> impl Iterator<Item = (&'a Segment, &'a [LayerShape])> {
        let mut rest = &self.layers[..];
        plan.segments.iter().map(move |segment| {
            let (layers, others) = rest.split_at(segment.len());
            rest = others;
            (segment, layers)
        })
    }

    /// The highest memory of a step.
    fn peak(&self, plan: &ActivationPlan, pass: PassShape) -> Peak {
        let (memory, all) = (&self.memory, self.gradients());
        let early = if self.accumulated { all } else { 0 };
        let (left, update) = match &self.released {
            None => (all, self.update),
            Some(it) => (it.late + self.embedding_gradient, it.update * it.last),
        };
        let mut highest = Peak {
            base: self.base,
            adapters: self.adapters,
            gradients: left,
            optimizer: self.optimizer,
            kept: 0,
            working: update,
            workspace: self.memory.workspace,
            unfilled: 0,
            moment: Moment::Update,
        };
        let workspace = self.workspace(pass);
        let mut see = |moment, kept, working, gradients| {
            let peak = Peak {
                gradients,
                kept,
                working,
                workspace,
                moment,
                ..highest
            };
            if peak.total() > highest.total() {
                highest = peak;
            }
        };
        if let Some((_, layer)) = &self.frozen {
            see(
                Moment::Forward(0),
                0,
                layer.forward(KeepSet::NONE, pass, memory),
                early,
            );
        }
        let before = self.gradients_before();
        // Between two layers, what of the lower one is on its way to the host or back.
        let (mut kept, mut moving, mut first) = (0, 0, 0);
        for (segment, layers) in self.segments(plan) {
            let stream = layers[0].stream(pass, memory);
            match segment {
                Segment::Stored(keep, away) => {
                    let keep = keep.intersection(layers[0].uses());
                    let forward = layers[0].forward(keep, pass, memory);
                    let below = kept + moving;
                    see(Moment::Forward(first), below, forward, early);
                    let backward = self.backward(&layers[0], keep, pass);
                    see(Moment::Backward(first), below, backward, before[first]);
                    moving = layers[0].away(*away, pass, memory);
                    kept += layers[0].kept(keep, pass, memory) - moving;
                }
                Segment::Rerun(keeps) => {
                    let last = before[first + layers.len() - 1];
                    let mut inside = 0;
                    for (i, (layer, keep)) in layers.iter().zip(keeps).enumerate() {
                        let held = if i > 0 { stream } else { 0 };
                        let once = layer.forward(KeepSet::NONE, pass, memory) + held;
                        let kept = kept + moving;
                        see(Moment::Forward(first + i), kept, once, early);
                        let keep = keep.intersection(layer.uses());
                        let again = stream + inside + layer.forward(keep, pass, memory);
                        see(Moment::Backward(first + i), kept, again, last);
                        let back = inside + self.backward(layer, keep, pass);
                        see(Moment::Backward(first + i), kept, back, before[first + i]);
                        inside += layer.kept(keep, pass, memory);
                    }
                    kept += stream;
                    moving = 0;
                }
            }
            first += layers.len();
        }
        see(Moment::Loss, kept + moving, self.loss(pass), early);
        if self.embedding_gradient > 0 {
            let others = left - self.embedding_gradient;
            let stream = pass.tokens * self.hidden * memory.element;
            // What was there and what it becomes, or zeros; in flat buffers another for the sum.
            let sums = if memory.paged { 2 } else { 0 };
            let sums =
                (sums + u64::from(!self.accumulated && !memory.paged)) * self.embedding_gradient;
            let gradients = if self.accumulated { all } else { others };
            // Of the adapter's A the sums of rows, and those turned over.
            let turned = 2 * 4 * self.embedding_rank * self.vocab;
            let through = 2 * pass.tokens * self.embedding_rank * memory.element;
            see(
                Moment::Embedding,
                0,
                stream + sums + turned + through,
                gradients,
            );
        }
        if memory.paged {
            // The batch's tables share pages too.
            let shared = highest.kept + highest.working + workspace - memory.workspace;
            let reserved = pages::reserved(self, plan, pass) + ROUNDED;
            highest.unfilled = reserved.saturating_sub(shared);
        }
        highest
    }

    /// The plan that adds the least time within `budget` bytes for everything.
    ///
    /// Tensors on their way to the host's memory and back get one of a few shares of the budget, and for each the choice
    /// is exact.
    ///
    /// Where not even the smallest choice of every layer fits, runs of layers of which only the first one's input
    /// is kept are tried, the shortest first; those are not part of the exact choice.
    ///
    /// # Errors
    /// [`Shortage`] if nothing fits.
    pub fn solve(
        &self,
        budget: u64,
        pass: PassShape,
        cost: &CostModel,
    ) -> Result<ActivationPlan, Shortage> {
        let fixed = self.fixed(pass);
        // Most runs have room for everything, which needs no search.
        let all = ActivationPlan::keep_all(self.layers.len());
        if self.peak(&all, pass).total() <= budget {
            return Ok(all);
        }
        // As if every page were filled, no share can do better than this.
        let first = |reserve| {
            let room = budget.checked_sub(fixed + reserve)?;
            let (problem, treatments) = self.problem((room, reserve), pass, cost);
            let solution = problem.solve()?;
            Some((problem, treatments, solution))
        };
        let firsts = self.reserves(pass, cost).into_iter().filter_map(first);
        let mut firsts: Vec<_> = firsts.collect();
        firsts.sort_by_key(|(.., solution)| solution.time);
        let mut best: Option<(u64, ActivationPlan)> = None;
        for (mut problem, treatments, solution) in firsts {
            if best
                .as_ref()
                .is_some_and(|(time, _)| *time <= solution.time)
            {
                break;
            }
            // What pages leave unfilled is known of a plan only: the next has to do with so much less.
            let mut next = Some(solution);
            for _ in 0..REFITS {
                let Some(solution) = next else {
                    break;
                };
                let plan = treated(&solution.picks, &treatments);
                let over = self.peak(&plan, pass).total().saturating_sub(budget);
                if over == 0 {
                    if best.as_ref().is_none_or(|(time, _)| solution.time < *time) {
                        best = Some((solution.time, plan));
                    }
                    break;
                }
                let less = problem.budget.checked_sub(over.max(budget >> 7));
                problem.budget = less.unwrap_or(0);
                next = problem.solve();
            }
        }
        if let Some((_, plan)) = best {
            return Ok(plan);
        }
        let least = self.least_plans(pass);
        for plan in least.into_iter().chain(self.last_resorts()) {
            if self.peak(&plan, pass).total() <= budget {
                return Ok(plan);
            }
        }
        Err(Shortage {
            needed: self.least_peak(pass),
            budget,
        })
    }

    /// Bytes of a layer that may be on their way to the host or back at a time: none, the layer's input alone, and
    /// multiples of what its forward pass hides.
    fn reserves(&self, pass: PassShape, cost: &CostModel) -> Vec<u64> {
        let mut reserves = self.least_reserves(pass);
        if let ([_, input], Some(layer)) = (&reserves[..], self.layers.last()) {
            let (input, layers) = (*input, self.layers.len() as u64);
            let forward = cost.forward(layer, pass, &self.memory);
            let hidden = (forward as f64 / 1e12 * cost.host().bytes) as u64;
            let more = [hidden / 2, hidden, hidden * 2].into_iter();
            reserves.extend(more.filter(|&more| more > input && more * layers <= self.host));
        }
        reserves
    }

    /// None, and the input of a layer, where the host has room for that of every layer.
    fn least_reserves(&self, pass: PassShape) -> Vec<u64> {
        let stream = |layer: &LayerShape| layer.stream(pass, &self.memory);
        let input = self.layers.last().map_or(0, stream);
        match input * self.layers.len() as u64 <= self.host && input > 0 {
            true => vec![0, input],
            false => vec![0],
        }
    }

    /// Plans that keep the input of every n-th layer only, for n from 2.
    fn last_resorts(&self) -> impl Iterator<Item = ActivationPlan> {
        let layers = self.layers.len();
        (2..=layers).map(move |size| ActivationPlan::rerun(layers, size, KeepSet::NONE))
    }

    /// The plans with the least tensors at a time, without offloading and with that of inputs.
    fn least_plans(&self, pass: PassShape) -> Vec<ActivationPlan> {
        // Only peaks matter here, not times.
        let cost = CostModel::Roofline(super::cost::Roofline::CPU);
        let plan = |reserve| {
            let (mut problem, treatments) = self.problem((u64::MAX >> 1, reserve), pass, &cost);
            problem.budget = problem.least_budget();
            Some(treated(&problem.solve()?.picks, &treatments))
        };
        let reserves = self.least_reserves(pass).into_iter();
        reserves.filter_map(plan).collect()
    }

    /// The memory of the plans that keep least, the least of them: that of any plan that [`solve`](Self::solve) may give,
    /// but where tensors share pages another may fill fewer.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub fn least_peak(&self, pass: PassShape) -> u64 {
        let stored = self.least_plans(pass).into_iter();
        let stored = stored.map(|plan| self.peak(&plan, pass).total());
        let stored = stored.min().unwrap_or(u64::MAX);
        let resorts = self
            .last_resorts()
            .map(|plan| self.peak(&plan, pass).total());
        resorts.fold(stored, u64::min)
    }

    /// The choices of every layer within `room`, and what each stands for; of a layer, bytes up to `reserve` may wait in
    /// the host's memory.
    fn problem(
        &self,
        (room, reserve): (u64, u64),
        pass: PassShape,
        cost: &CostModel,
    ) -> (Problem, Vec<Rc<Vec<Treatment>>>) {
        let mut known: HashMap<(LayerShape, u64), Choices> = HashMap::new();
        let mut groups: Vec<((LayerShape, u64), Group)> = Vec::new();
        let mut treatments = Vec::new();
        for (i, layer) in self.layers.iter().enumerate() {
            // The last layer's backward pass is the first: nothing would hide its copies.
            let last = i + 1 == self.layers.len();
            let key = (*layer, if last { 0 } else { reserve });
            let (choices, names) = known
                .entry(key)
                .or_insert_with(|| self.choices(layer, key.1, pass, cost));
            treatments.push(names.clone());
            match groups.last_mut() {
                Some((before, group)) if *before == key => group.count += 1,
                _ => {
                    let group = Group {
                        count: 1,
                        choices: choices.clone(),
                    };
                    groups.push((key, group));
                }
            }
        }
        let problem = Problem {
            groups: groups.into_iter().map(|(_, group)| group).collect(),
            extra: self.gradients_before(),
            after: self.loss(pass)
                + if self.accumulated {
                    self.gradients()
                } else {
                    0
                },
            budget: room,
        };
        (problem, treatments)
    }

    fn choices(
        &self,
        layer: &LayerShape,
        reserve: u64,
        pass: PassShape,
        cost: &CostModel,
    ) -> Choices {
        let memory = &self.memory;
        let times = SavedTensor::ALL.map(|tensor| cost.rebuild(layer, tensor, pass, memory));
        let input = layer.stream(pass, memory);
        let copies: Vec<(OffloadSet, u64, u64)> = away_sets(layer, reserve, input)
            .map(|away| {
                let bytes = layer.away(away, pass, memory);
                let time = cost.offload(layer, (bytes, away.len()), pass, memory);
                (away, bytes, time)
            })
            .filter(|(_, bytes, _)| *bytes <= reserve)
            .collect();
        let (mut choices, mut treatments) = (Vec::new(), Vec::new());
        for keep in layer.uses().subsets() {
            let forward = layer.forward(keep, pass, memory);
            let backward = self.backward(layer, keep, pass);
            let rebuilt = layer.rebuilt(keep).iter();
            let time: u64 = rebuilt.map(|tensor| times[tensor as usize]).sum();
            let kept = layer.kept(keep, pass, memory);
            let copies = copies.iter();
            for (away, bytes, copying) in
                copies.filter(|(away, ..)| away.tensors.difference(keep).is_empty())
            {
                choices.push(Choice {
                    kept: kept - bytes,
                    peak: forward.max(backward),
                    time: time + copying,
                });
                treatments.push((keep, *away));
            }
        }
        (choices, Rc::new(treatments))
    }
}

/// The plan of the choices that were picked.
fn treated(picks: &[usize], treatments: &[Rc<Vec<Treatment>>]) -> ActivationPlan {
    let segment = |(&pick, treatments): (&usize, &Rc<Vec<Treatment>>)| {
        let (keep, away) = treatments[pick];
        Segment::Stored(keep, away)
    };
    ActivationPlan {
        segments: picks.iter().zip(treatments).map(segment).collect(),
    }
}

/// The choices of a layer, and what each stands for.
type Choices = (Vec<Choice>, Rc<Vec<Treatment>>);

/// What a layer keeps, and what of that waits in the host's memory.
type Treatment = (KeepSet, OffloadSet);

/// What of a layer may wait in the host's memory: its `input`, and where `reserve` is larger whatever takes a product to
/// rebuild.
fn away_sets(layer: &LayerShape, reserve: u64, input: u64) -> impl Iterator<Item = OffloadSet> {
    let tensors = KeepSet::COSTLY.intersection(layer.uses());
    let tensors = if reserve > input {
        tensors
    } else {
        KeepSet::NONE
    };
    let inputs = [false, true].into_iter();
    let inputs = inputs.filter(move |input| reserve > 0 || !input);
    inputs.flat_map(move |input| {
        tensors
            .subsets()
            .map(move |tensors| OffloadSet { input, tensors })
    })
}
