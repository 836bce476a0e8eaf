//! The peak of a whole step and the work of its backward pass, for a plan; and the plan that suits a budget.

use std::collections::HashMap;

use backdraft_model::layers::KeepSet;
use serde::Serialize;

use super::cost::{CostModel, picoseconds};
use super::plan::{ActivationPlan, Segment};
use super::solver::{Choice, Group, Problem};
use super::tensors::{LayerShape, MemoryModel, PassShape, Work};

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
    /// Features of a head.
    pub head_dim: u64,
    /// How the device takes memory.
    pub memory: MemoryModel,
    /// Bytes of the frozen weights.
    pub base: u64,
    /// Bytes of the adapters' factors.
    pub adapters: u64,
    /// Bytes of the optimiser's state.
    pub optimizer: u64,
    /// Whether gradients of an earlier micro-batch of the step are there already.
    pub accumulated: bool,
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
    /// The optimiser's update.
    Update,
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Forward(layer) => write!(f, "layer {layer} forwards"),
            Self::Loss => f.write_str("the loss"),
            Self::Backward(layer) => write!(f, "layer {layer} backwards"),
            Self::Update => f.write_str("the update"),
        }
    }
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
    /// Floating-point operations of a micro-batch without recomputation.
    pub flops: u64,
    /// Those of recomputation, on top.
    pub recompute_flops: u64,
    /// Time of recomputation, in seconds.
    pub recompute_seconds: f64,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes that the smallest plan needs.
    pub needed: u64,
    /// Bytes that there are.
    pub budget: u64,
}

impl StepShape {
    /// What is there throughout the step.
    fn fixed(&self, pass: PassShape) -> u64 {
        self.base + self.adapters + self.optimizer + self.workspace(pass)
    }

    /// Rotary tables, and buffers of libraries.
    fn workspace(&self, pass: PassShape) -> u64 {
        4 * pass.tokens * self.head_dim + 8 * pass.tokens + self.memory.workspace
    }

    fn gradients(&self) -> u64 {
        self.layers.iter().map(LayerShape::gradient_bytes).sum()
    }

    /// For each layer, gradients that are there when its backward pass begins.
    fn gradients_before(&self) -> Vec<u64> {
        let all = self.gradients();
        if self.accumulated {
            return vec![all; self.layers.len()];
        }
        let mut left = all;
        let before = |layer: &LayerShape| {
            left -= layer.gradient_bytes();
            left
        };
        self.layers.iter().map(before).collect()
    }

    /// Beyond what the layers keep: final norm, head, loss, and the gradient of the residual stream.
    fn loss(&self, pass: PassShape) -> u64 {
        let (n, e) = (pass.supervised, self.memory.element);
        let stream = pass.tokens * self.hidden * e;
        let rows = n * self.hidden * e;
        let chunk = self.memory.logits_chunk.min(n);
        let logits = chunk * self.vocab * e;
        let few = 4 * n * 4;
        let selecting = stream + rows;
        let losing = 2 * rows + (rows + logits).max(2 * rows);
        let spreading = 2 * stream + 2 * rows;
        selecting.max(losing).max(spreading) + few
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
        let (mut again, mut extra) = (0, 0);
        for (segment, layers) in self.segments(plan) {
            match segment {
                Segment::Stored(keep) => {
                    let layer = &layers[0];
                    let tensors = layer.rebuilt(*keep);
                    again += layer.rebuilding(tensors, pass, &self.memory).flops();
                    extra += self.rebuild_time(layer, *keep, pass, cost);
                }
                Segment::Rerun(keeps) => {
                    for (layer, keep) in layers.iter().zip(keeps) {
                        again += layer.forward_work(pass, &self.memory).flops();
                        extra += self.rerun_time(layer, pass, cost);
                        let tensors = layer.rebuilt(*keep);
                        again += layer.rebuilding(tensors, pass, &self.memory).flops();
                        extra += self.rebuild_time(layer, *keep, pass, cost);
                    }
                }
            }
        }
        let recompute_seconds = extra as f64 / 1e12;
        let without: f64 = work.iter().map(|&work| roofline.seconds(work)).sum();
        Prediction {
            peak,
            flops: work.iter().map(Work::flops).sum(),
            recompute_flops: again,
            recompute_seconds,
            seconds: without + recompute_seconds,
        }
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
        work.push(Work {
            gemm: 4 * pass.supervised * self.hidden * self.vocab,
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

    fn rerun_time(&self, layer: &LayerShape, pass: PassShape, cost: &CostModel) -> u64 {
        let tensors: u64 = KeepSet::ALL
            .iter()
            .map(|tensor| cost.rebuild(layer, tensor, pass, &self.memory))
            .sum();
        let line = cost.roofline();
        let whole = layer.forward_work(pass, &self.memory);
        let parts = layer.rebuilding(KeepSet::ALL, pass, &self.memory);
        let down = Work {
            gemm: whole.gemm - parts.gemm,
            bytes: whole.bytes - parts.bytes,
            codes: whole.codes - parts.codes,
            ops: whole.ops - parts.ops,
            attention: 0,
        };
        tensors + picoseconds(line.seconds(down))
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
        let mut highest = Peak {
            base: self.base,
            adapters: self.adapters,
            gradients: all,
            optimizer: self.optimizer,
            kept: 0,
            // A copy of the factors while they are replaced.
            working: self.adapters,
            workspace: self.memory.workspace,
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
        let (mut kept, mut first) = (0, 0);
        for (segment, layers) in self.segments(plan) {
            let stream = layers[0].stream(pass, memory);
            match segment {
                Segment::Stored(keep) => {
                    let keep = keep.intersection(layers[0].uses());
                    let forward = layers[0].forward(keep, pass, memory);
                    see(Moment::Forward(first), kept, forward, early);
                    let backward = layers[0].backward(keep, pass, memory, self.accumulated);
                    see(Moment::Backward(first), kept, backward, before[first]);
                    kept += layers[0].kept(keep, pass, memory);
                }
                Segment::Rerun(keeps) => {
                    let last = before[first + layers.len() - 1];
                    let mut inside = 0;
                    for (i, (layer, keep)) in layers.iter().zip(keeps).enumerate() {
                        let held = if i > 0 { stream } else { 0 };
                        let once = layer.forward(KeepSet::NONE, pass, memory) + held;
                        see(Moment::Forward(first + i), kept, once, early);
                        let keep = keep.intersection(layer.uses());
                        let again = stream + inside + layer.forward(keep, pass, memory);
                        see(Moment::Backward(first + i), kept, again, last);
                        let back = inside + layer.backward(keep, pass, memory, self.accumulated);
                        see(Moment::Backward(first + i), kept, back, before[first + i]);
                        inside += layer.kept(keep, pass, memory);
                    }
                    kept += stream;
                }
            }
            first += layers.len();
        }
        see(Moment::Loss, kept, self.loss(pass), early);
        highest
    }

    /// The plan that adds the least time within `budget` bytes for everything.
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
        let (problem, sets) = self.problem(budget.saturating_sub(fixed), pass, cost);
        // Most runs have room for everything, which needs no search.
        let all = ActivationPlan::keep_all(self.layers.len());
        if self.peak(&all, pass).total() <= budget {
            return Ok(all);
        }
        if budget > fixed
            && let Some(solution) = problem.solve()
        {
            let segments = solution.picks.iter().zip(&sets);
            let plan = ActivationPlan {
                segments: segments
                    .map(|(&pick, sets)| Segment::Stored(sets[pick]))
                    .collect(),
            };
            if self.peak(&plan, pass).total() <= budget {
                return Ok(plan);
            }
        }
        for plan in self.last_resorts() {
            if self.peak(&plan, pass).total() <= budget {
                return Ok(plan);
            }
        }
        Err(Shortage {
            needed: self.least_peak(pass),
            budget,
        })
    }

    /// Plans that keep the input of every n-th layer only, for n from 2.
    fn last_resorts(&self) -> impl Iterator<Item = ActivationPlan> {
        let layers = self.layers.len();
        (2..=layers).map(move |size| ActivationPlan::rerun(layers, size, KeepSet::NONE))
    }

    /// The least memory of any plan that [`solve`](Self::solve) may give.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub fn least_peak(&self, pass: PassShape) -> u64 {
        // Only peaks matter here, not times.
        let cost = CostModel::Roofline(super::cost::Roofline::CPU);
        let (problem, _) = self.problem(u64::MAX >> 1, pass, &cost);
        let stored = problem.least_budget().saturating_add(self.fixed(pass));
        let update = self.peak(&ActivationPlan::keep_all(0), pass);
        let resorts = self
            .last_resorts()
            .map(|plan| self.peak(&plan, pass).total());
        resorts.fold(stored, u64::min).max(update.total())
    }

    /// The choices of every layer, and the set that each stands for.
    fn problem(
        &self,
        budget: u64,
        pass: PassShape,
        cost: &CostModel,
    ) -> (Problem, Vec<std::rc::Rc<Vec<KeepSet>>>) {
        let mut known: HashMap<LayerShape, (Vec<Choice>, std::rc::Rc<Vec<KeepSet>>)> =
            HashMap::new();
        let (mut groups, mut sets): (Vec<(LayerShape, Group)>, Vec<_>) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let (choices, names) = known
                .entry(*layer)
                .or_insert_with(|| self.choices(layer, pass, cost));
            sets.push(names.clone());
            match groups.last_mut() {
                Some((last, group)) if last == layer => group.count += 1,
                _ => {
                    let group = Group {
                        count: 1,
                        choices: choices.clone(),
                    };
                    groups.push((*layer, group));
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
            budget,
        };
        (problem, sets)
    }

    fn choices(
        &self,
        layer: &LayerShape,
        pass: PassShape,
        cost: &CostModel,
    ) -> (Vec<Choice>, std::rc::Rc<Vec<KeepSet>>) {
        let memory = &self.memory;
        let times: Vec<u64> = backdraft_model::layers::SavedTensor::ALL
            .into_iter()
            .map(|tensor| cost.rebuild(layer, tensor, pass, memory))
            .collect();
        let (mut choices, mut sets) = (Vec::new(), Vec::new());
        for keep in layer.uses().subsets() {
            let forward = layer.forward(keep, pass, memory);
            let backward = layer.backward(keep, pass, memory, self.accumulated);
            let rebuilt = layer.rebuilt(keep).iter();
            choices.push(Choice {
                kept: layer.kept(keep, pass, memory),
                peak: forward.max(backward),
                time: rebuilt.map(|tensor| times[tensor as usize]).sum(),
            });
            sets.push(keep);
        }
        (choices, std::rc::Rc::new(sets))
    }
}
