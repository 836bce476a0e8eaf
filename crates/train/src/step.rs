//! One micro-batch, layer by layer: no tape is recorded. An [`ActivationPlan`] says what a layer keeps, the
//! backward pass rebuilds the rest, and a layer's values are dropped as soon as its backward pass is done.

use std::ops::Range;

use backdraft_arch::{InputGrad, KeepSet};
use backdraft_data::Batch;
use backdraft_kernels::offload::Lane;
use backdraft_kernels::{cross_entropy, embedding, noise};
use backdraft_lora::{AdapterGrads, TokenMatrix};
use backdraft_model::layers::{
    Context, DecoderLayer, LayerSaved, OffloadedLayer, PrefetchedLayer, offload,
};
use backdraft_model::{CausalLm, Targets, Tokens};
use backdraft_plan::memory::{Guard, OutOfMemory};
use backdraft_plan::tensors::PassShape;
use backdraft_plan::{ActivationPlan, Segment};
use burn::tensor::{Device, Tensor};

use crate::neftune::Neftune;
use crate::objective::{Goal, Outputs, ToldAnswers};

/// Tokens, and what they should predict.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// The documents, end to end.
    pub tokens: Tokens,
    /// The supervised positions.
    pub targets: Targets,
}

impl MicroBatch {
    /// Its shape, as plans have it.
    #[must_use]
    pub fn shape(&self) -> PassShape {
        let lengths = self.tokens.segments.iter().map(|(rows, _)| rows.len());
        PassShape {
            supervised: self.targets.len() as u64,
            ..PassShape::of_sequences(lengths)
        }
    }
}

impl From<Batch> for MicroBatch {
    fn from(batch: Batch) -> Self {
        let documents: Vec<&[u32]> = batch
            .cu_seqlens
            .windows(2)
            .map(|ends| &batch.input_ids[ends[0] as usize..ends[1] as usize])
            .collect();
        let tokens = Tokens::from_sequences(&documents);
        let targets = Targets::from_labels(&tokens.segments, &batch.labels);
        Self { tokens, targets }
    }
}

/// Forward and backward pass of one micro-batch of plain fine-tuning: Σ nll over its targets, and the gradient of
/// `scale`·Σ nll added to `grads`.
///
/// With `scale` = 1 / (targets of the whole optimiser step), the sum over micro-batches is the exact
/// gradient of the step's mean loss.
///
/// # Shapes
/// Result `[1]`, in nats.
///
/// The gradients are bit for bit the same under every `plan`: what is not kept is computed again by the same
/// ops from the same values.
///
/// # Panics
/// If there is no target, the model has no adapter, or the plan is for another number of layers.
pub fn forward_backward(
    model: &CausalLm,
    batch: &MicroBatch,
    scale: f32,
    dropout_seed: Option<u64>,
    plan: &ActivationPlan,
    grads: &mut AdapterGrads,
) -> Tensor<1> {
    match guarded(
        model,
        (batch, Trunk::new(model, batch)),
        &Goal::next_token(scale),
        dropout_seed,
        (plan, None),
        grads,
    ) {
        Ok(told) => told.nll,
        Err(error) => unreachable!("nobody watches the memory: {error}"),
    }
}

/// What a pass leaves behind.
#[derive(Clone, Debug)]
pub struct Told {
    /// Σ nll over its targets, or over those of good answers where answers are compared, `[1]`; 0 where a head scores them.
    pub nll: Tensor<1>,
    /// Σ of its targets' losses with the penalty, where the goal has one, `[1]`.
    pub penalized: Option<Tensor<1>>,
    /// What came of its answers, where they are compared.
    pub answers: Option<ToldAnswers>,
}

/// A micro-batch below the lowest adapter of a model, where its reference computes the same: both go on from here.
#[derive(Clone, Debug)]
pub struct Trunk {
    context: Context,
    /// `[t, hidden]`.
    h: Tensor<2>,
    /// Layers below.
    depth: usize,
    /// Whether it begins with an embedding that has an adapter.
    adapted: bool,
}

impl Trunk {
    /// Nothing here needs a gradient, so nothing is saved but the result.
    pub fn new(model: &CausalLm, batch: &MicroBatch) -> Self {
        Self::noisy(model, batch, None)
    }

    /// As [`new`](Self::new), with noise on the embeddings, if any is given.
    pub fn noisy(model: &CausalLm, batch: &MicroBatch, noise: Option<Neftune>) -> Self {
        let h = model.embed(&batch.tokens.input_ids).inner();
        let h = match noise {
            None => h,
            Some(noise) => {
                let rows = noise.rows(&batch.tokens, h.dims()[1]);
                noise::add(h, &rows)
            }
        };
        Self::from_embeddings(model, batch, h)
    }

    /// As [`new`](Self::new), of these embeddings.
    ///
    /// # Shapes
    /// `h` `[tokens, hidden]`.
    pub fn from_embeddings(model: &CausalLm, batch: &MicroBatch, h: Tensor<2>) -> Self {
        let depth = model.first_adapted_layer();
        Self::below(depth.unwrap_or(model.layers.len()), model, batch, h)
    }

    /// As [`new`](Self::new), below the adapters of another model too, over the same base.
    pub fn of_both(model: &CausalLm, other: Option<&CausalLm>, batch: &MicroBatch) -> Self {
        let both = [Some(model), other].into_iter().flatten();
        let lowest = both.filter_map(CausalLm::first_adapted_layer).min();
        let h = model.embed(&batch.tokens.input_ids).inner();
        Self::below(lowest.unwrap_or(model.layers.len()), model, batch, h)
    }

    fn below(depth: usize, model: &CausalLm, batch: &MicroBatch, h: Tensor<2>) -> Self {
        let context = model.context(&batch.tokens, None);
        let (frozen, above) = model.layers.split_at(depth);
        let h = forward_all(frozen, above.first(), h, &context);
        Self {
            context,
            h,
            depth,
            adapted: model.adapts_embedding(),
        }
    }

    /// The trunk of another model over the same base with the same layers below: this one, but where one of the two has an adapter on its
    /// embedding.
    pub(crate) fn under(&self, other: &CausalLm, batch: &MicroBatch) -> Self {
        match self.adapted || other.adapts_embedding() {
            false => self.clone(),
            true => {
                let h = other.embed(&batch.tokens.input_ids).inner();
                Self::below(self.depth, other, batch, h)
            }
        }
    }

    /// Where it lies.
    pub(crate) fn device(&self) -> Device {
        self.h.device()
    }
}

/// Nll of each target under `model` without dropout, from a trunk on, and without saving anything: `model` is the one of
/// the trunk, or one with the same layers below. It has one layer's values at a time beside the trunk, which is the input
/// that a step keeps of its first layer, and so needs no more than the forward pass of a step: a plan that fits a step fits
/// this before or after it.
///
/// # Shapes
/// `[targets]`, in nats.
pub fn nll(model: &CausalLm, batch: &MicroBatch, trunk: Trunk) -> Tensor<1> {
    let head = in_front(model, batch, trunk);
    head.outputs(model, batch).nll()
}

/// As [`nll`], and the entropy of the distribution that each target is drawn from.
///
/// # Shapes
/// Both `[targets]`, in nats.
pub fn nll_and_entropy(model: &CausalLm, batch: &MicroBatch, trunk: Trunk) -> [Tensor<1>; 2] {
    let head = in_front(model, batch, trunk);
    let outputs = head.outputs(model, batch);
    [outputs.nll(), outputs.entropies()]
}

/// Score of each text of a micro-batch, from a trunk on, as [`nll`].
///
/// # Shapes
/// `[texts]`, f32.
///
/// # Panics
/// If the model's head does not score.
pub fn scores(model: &CausalLm, batch: &MicroBatch, trunk: Trunk) -> Tensor<1> {
    let head = in_front(model, batch, trunk);
    model.scores(&head.normed)
}

fn in_front(model: &CausalLm, batch: &MicroBatch, trunk: Trunk) -> Headed {
    let Trunk {
        context, h, depth, ..
    } = trunk;
    // Passes without a way back follow one another.
    let h = forward_all(&model.layers[depth..], model.layers.first(), h, &context);
    Headed::new(model, batch, h, None)
}

/// Supervised rows in front of the head: norm, head and loss see no others.
struct Headed {
    hidden: Tensor<2>,
    /// What the head reads.
    normed: Tensor<2>,
    rstd: Tensor<1>,
    head: TokenMatrix,
}

impl Headed {
    fn new(model: &CausalLm, batch: &MicroBatch, h: Tensor<2>, dropout_seed: Option<u64>) -> Self {
        let hidden = embedding::forward(&h, &batch.targets.rows);
        drop(h);
        let (normed, rstd) = model.norm().forward_saving(&hidden);
        let normed = model.before_head(normed, dropout_seed);
        Self {
            hidden,
            normed,
            rstd,
            head: model.head(),
        }
    }

    /// What the goal makes of it, and the gradient of what the head reads.
    fn learn(
        &self,
        model: &CausalLm,
        batch: &MicroBatch,
        goal: &Goal<'_>,
        grads: &mut AdapterGrads,
    ) -> (Told, Tensor<2>) {
        if goal.objective.scores() {
            return self.learn_scores(model, goal, grads);
        }
        let outputs = self.outputs(model, batch);
        let (weights, answers) = goal.weights(&outputs);
        let (nll, penalized, d_normed) =
            outputs.loss(&weights, goal.penalty, &mut |hidden, d_logits| {
                model.add_head_grad(grads, (hidden, d_logits));
            });
        let nll = match &goal.answers {
            None => cross_entropy::total(&nll),
            Some((compared, _)) => compared.good_nll(&nll),
        };
        let told = Told {
            nll,
            penalized: penalized.as_ref().map(cross_entropy::total),
            answers,
        };
        (told, d_normed)
    }

    fn learn_scores(
        &self,
        model: &CausalLm,
        goal: &Goal<'_>,
        grads: &mut AdapterGrads,
    ) -> (Told, Tensor<2>) {
        let scores = model.scores(&self.normed);
        let (slopes, answers) = goal.slopes(scores);
        let d_normed = model.scores_backward(grads, (&self.normed, slopes));
        let told = Told {
            nll: Tensor::zeros([1], &d_normed.device()),
            penalized: None,
            answers: Some(answers),
        };
        (told, d_normed)
    }

    fn outputs<'a>(&'a self, model: &CausalLm, batch: &'a MicroBatch) -> Outputs<'a> {
        Outputs {
            normed: &self.normed,
            head: &self.head,
            cap: model.logits_softcap(),
            targets: &batch.targets,
            segments: &batch.tokens.segments,
        }
    }
}

/// Whose model a pass goes through, and who hears of gradients during its backward pass.
pub trait GradientSink {
    /// The model as it is now.
    fn model(&self) -> &CausalLm;

    /// The gradients of a part of the model are complete, and no later part of this pass reads its weights: `grads` may be
    /// taken and the weights changed. `last` says that nothing comes after, not even a gradient of a table that is read twice.
    fn complete(&mut self, grads: &mut AdapterGrads, last: bool);
}

/// Leaves gradients where they are, for other passes of the step to add to.
impl GradientSink for &CausalLm {
    fn model(&self) -> &CausalLm {
        self
    }

    fn complete(&mut self, _: &mut AdapterGrads, _: bool) {}
}

/// As [`forward_backward`], for any [`Goal`]; asks before each segment of the forward pass whether its memory can
/// be had; if not, what there is of the pass is dropped, and `grads` hold nothing of it.
///
/// # Errors
/// The guard says no.
///
/// # Panics
/// As [`forward_backward`].
pub fn guarded(
    mut sink: impl GradientSink,
    (batch, trunk): (&MicroBatch, Trunk),
    goal: &Goal<'_>,
    dropout_seed: Option<u64>,
    (plan, guard): (&ActivationPlan, Option<Guard<'_>>),
    grads: &mut AdapterGrads,
) -> Result<Told, OutOfMemory> {
    let model = sink.model();
    let Trunk {
        context,
        mut h,
        depth,
        ..
    } = trunk;
    let context = Context {
        dropout_seed,
        ..context
    };
    let adapted = &model.layers[depth..];
    // Of a head that is trained alone no layer needs a gradient.
    assert!(
        model.trained_params().next().is_some(),
        "a model without adapters has nothing to train"
    );
    let to_embedding = model.trains_embedding();
    assert_eq!(plan.num_layers(), adapted.len(), "layers of the plan");
    let mut segments = Vec::with_capacity(plan.segments.len());
    let mut below = depth;
    let mut lane = Lane::default();
    for segment in &plan.segments {
        if let Some(guard) = guard {
            guard.check(below - depth)?;
        }
        let layers = below..below + segment.len();
        below = layers.end;
        let saved;
        let input_grad = InputGrad::needed_if(to_embedding || !segments.is_empty());
        let of = &model.layers[layers.clone()];
        // Behind the highest, the way back begins.
        let next = model.layers.get(below).or(match segment {
            Segment::Rerun(_) => of.first(),
            Segment::Stored(..) => None,
        });
        (h, saved) = Saved::forward(segment, (of, next), (h, input_grad), &context, &mut lane);
        segments.push((layers, saved));
        lane.turn();
    }
    lane.finish();

    let t = h.dims()[0];
    let head = Headed::new(model, batch, h, dropout_seed);
    let (told, d_normed) = head.learn(model, batch, goal, grads);
    let Headed {
        hidden,
        normed,
        rstd,
        head,
    } = head;
    // Where it is updated, what it was is let go.
    drop(head);
    let d_normed = model.before_head_backward(grads, (&normed, d_normed), dropout_seed);
    drop(normed);
    model.norm().add_grad(grads, &d_normed, &hidden, &rstd);
    let d_rows = model.norm().backward(&d_normed, &hidden, &rstd);
    drop((d_normed, hidden));
    sink.complete(grads, false);
    let mut dh = Some(embedding::spread(&d_rows, &batch.targets.rows, t));
    drop(d_rows);

    while let Some((layers, saved)) = segments.pop() {
        let Some(dy) = dh.take() else {
            unreachable!("a layer above gives its input's gradient")
        };
        // The next pass begins with the first of all layers.
        let mut then = 0;
        if let Some((next, kept)) = segments.pop() {
            then = kept.first_of(&next);
            // Its copies back run while this segment computes.
            segments.push((next, kept.prefetch()));
        }
        let input_grad = InputGrad::needed_if(to_embedding || layers.start > depth);
        dh = saved.backward(dy, (&mut sink, layers, then), &context, grads, input_grad);
    }
    if let Some(dh) = dh {
        let model = sink.model();
        model.add_embedding_grad(grads, (&batch.tokens.input_ids, &dh));
    }
    sink.complete(grads, true);
    Ok(told)
}

/// What is there of a segment between its forward and its backward pass.
enum Saved {
    Layer(Box<LayerSaved>),
    Offloaded(Box<OffloadedLayer>),
    Prefetched(Box<PrefetchedLayer>),
    Input(Box<Tensor<2>>, Vec<KeepSet>),
}

impl Saved {
    /// The segment's result, and what its backward pass takes: to the gradient of its input, or, where that is not
    /// needed, to its lowest adapter's. `next` is the layer above.
    fn forward(
        segment: &Segment,
        (layers, next): (&[DecoderLayer], Option<&DecoderLayer>),
        (h, input_grad): (Tensor<2>, InputGrad),
        context: &Context,
        lane: &mut Lane,
    ) -> (Tensor<2>, Self) {
        match (segment, layers) {
            (Segment::Stored(keep, away), [layer]) => {
                let keep = keep.intersection(layer.uses(input_grad));
                layer.enter(next);
                let (h, saved) = layer.forward_saving(h, context, keep);
                if away.is_empty() {
                    return (h, Self::Layer(Box::new(saved)));
                }
                (h, Self::Offloaded(Box::new(offload(saved, *away, lane))))
            }
            (Segment::Stored(..), _) => unreachable!("a stored segment has one layer"),
            (Segment::Rerun(keep), layers) => {
                let input = h.clone();
                let h = forward_all(layers, next, h, context);
                (h, Self::Input(Box::new(input), keep.clone()))
            }
        }
    }

    /// Starts the copies of what waits in the host's memory.
    fn prefetch(self) -> Self {
        match self {
            Self::Offloaded(layer) => Self::Prefetched(Box::new(layer.prefetch())),
            other => other,
        }
    }

    /// Of its layers the one that its backward pass begins with.
    fn first_of(&self, layers: &Range<usize>) -> usize {
        match self {
            Self::Input(..) => layers.start,
            Self::Layer(_) | Self::Offloaded(_) | Self::Prefetched(_) => layers.end - 1,
        }
    }

    /// The gradient of the segment's input, where it is needed. `then` is the layer that is computed afterwards.
    fn backward(
        self,
        dy: Tensor<2>,
        (sink, layers, then): (&mut impl GradientSink, Range<usize>, usize),
        context: &Context,
        grads: &mut AdapterGrads,
        input_grad: InputGrad,
    ) -> Option<Tensor<2>> {
        let mut saved = match self {
            Self::Layer(saved) => vec![*saved],
            Self::Offloaded(layer) => vec![layer.prefetch().arrived()],
            Self::Prefetched(layer) => vec![layer.arrived()],
            Self::Input(input, keep) => {
                let mut h = *input;
                let mut again = Vec::with_capacity(layers.len());
                let of = &sink.model().layers[layers.clone()];
                for (i, (layer, keep)) in of.iter().zip(keep).enumerate() {
                    let keep = keep.intersection(layer.uses(above(input_grad, i)));
                    layer.enter(of.get(i + 1));
                    let saved;
                    (h, saved) = layer.forward_saving(h, context, keep);
                    again.push(saved);
                }
                again
            }
        };
        let mut dy = Some(dy);
        for (i, layer) in layers.enumerate().rev() {
            let (Some(saved), Some(of_result)) = (saved.pop(), dy.take()) else {
                unreachable!(
                    "every layer has saved something, and the one above gives its input's gradient"
                )
            };
            let below = if i > 0 { layer - 1 } else { then };
            let all = &sink.model().layers;
            all[layer].enter(all.get(below));
            dy = all[layer].backward(of_result, saved, context, grads, above(input_grad, i));
            sink.complete(grads, false);
        }
        dy
    }
}

/// Of layer `i` of a segment: all but the lowest give their input's gradient to the one below.
const fn above(lowest: InputGrad, i: usize) -> InputGrad {
    if i == 0 { lowest } else { InputGrad::Needed }
}

/// The result of layers alone, after which `next` is computed.
fn forward_all(
    layers: &[DecoderLayer],
    next: Option<&DecoderLayer>,
    h: Tensor<2>,
    context: &Context,
) -> Tensor<2> {
    layers.iter().enumerate().fold(h, |h, (i, layer)| {
        layer.enter(layers.get(i + 1).or(next));
        layer.forward_saving(h, context, KeepSet::NONE).0
    })
}

#[cfg(test)]
mod tests;
