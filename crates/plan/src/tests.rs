//! Predictions and plans of whole steps.

use backdraft_arch::{
    DeltaNetSpec, Heads, InputGrad, KeepSet, Mixer, Norm, NormPlaces, SavedTensor, TargetModule,
    ValueHeads,
};
use proptest::prelude::*;

use crate::cost::{CostModel, Roofline};
use crate::size_ops::delta;
use crate::tensors::{LayerShape, MemoryModel, PassShape, ProjectionShape, Rows};
use crate::*;

pub(crate) const MEMORY: MemoryModel = MemoryModel {
    element: 4,
    dequantizes_whole: false,
    score_rows: 128,
    logits_chunk: 256,
    workspace: 0,
    paged: false,
    embeds_on_host: false,
};

const COST: CostModel = CostModel::Roofline(Roofline::CPU);

/// A small layer with adapters on all projections.
pub(crate) fn layer() -> LayerShape {
    let shape = |out, input| ProjectionShape {
        out,
        input,
        rank: 8,
        scaling: 1,
        dropout: false,
        dora: false,
        quantized: false,
        weight_bytes: 4 * out * input,
        rows: Rows::All,
        bias: false,
        weight: false,
    };
    let usual = [
        shape(64, 64),
        shape(32, 64),
        shape(32, 64),
        shape(64, 64),
        shape(128, 64),
        shape(128, 64),
        shape(64, 128),
    ];
    let mut projections = [ProjectionShape::default(); TargetModule::ALL.len()];
    projections[..usual.len()].copy_from_slice(&usual);
    LayerShape {
        hidden: 64,
        query_heads: 4,
        key_value_heads: 2,
        mixer: Mixer::Attention,
        heads: Heads::Turned,
        values: ValueHeads::Plain,
        norm_places: NormPlaces::Before,
        window: None,
        scaled: false,
        projections,
        norms: [0; Norm::ALL.len()],
        input_grad: InputGrad::Needed,
        streamed: 0,
    }
}

fn step(layers: usize) -> StepShape {
    let lowest = LayerShape {
        input_grad: InputGrad::Skipped,
        ..layer()
    };
    let mut shapes = vec![layer(); layers];
    shapes[0] = lowest;
    StepShape {
        frozen: None,
        layers: shapes,
        vocab: 256,
        hidden: 64,
        rotary_dims: vec![16],
        memory: MEMORY,
        base: 1_000_000,
        adapters: 50_000,
        token_gradients: 0,
        loss_gradients: 0,
        embedding_gradient: 0,
        head_rank: 0,
        embedding_rank: 0,
        optimizer: 100_000,
        update: 50_000,
        accumulated: true,
        released: None,
        host: 0,
        page: 0,
    }
}

#[test]
fn what_is_rebuilt_includes_what_it_takes() {
    let layer = layer();
    assert!(layer.rebuilt(KeepSet::ALL).is_empty());
    assert_eq!(layer.rebuilt(KeepSet::NONE), layer.uses());
    // The gate alone needs nothing else where the MLP's input is there.
    let gate = KeepSet::of([SavedTensor::Gate]);
    assert_eq!(layer.rebuilt(KeepSet::ALL.difference(gate)), gate);
    // Attention's output alone needs q, k and v, which are there.
    let kept = KeepSet::ALL.without(SavedTensor::Attention);
    assert_eq!(layer.rebuilt(kept).len(), 1);
}

/// Where norms follow, the stream itself is what attention and MLP read, and what is normed is kept or made again.
#[test]
fn norms_that_follow_take_one_tensor_more_and_two_less() {
    let layer = LayerShape {
        norm_places: NormPlaces::After,
        ..layer()
    };
    let uses = layer.uses();
    assert!(uses.contains(SavedTensor::Down) && uses.contains(SavedTensor::PostNormed));
    assert!(!uses.contains(SavedTensor::InputNormed));
    assert_eq!(layer.rebuilt(KeepSet::NONE), uses);
    // It takes gate and up, which are there.
    let down = KeepSet::of([SavedTensor::Down]);
    assert_eq!(layer.rebuilt(uses.difference(down)), down);
}

/// A layer with a DeltaNet of four value heads.
fn delta_layer() -> LayerShape {
    let sizes = DeltaNetSpec {
        num_key_heads: 2,
        num_value_heads: 4,
        key_head_dim: 8,
        value_head_dim: 16,
        conv_kernel_dim: 4,
    };
    let plain = layer();
    let shape = |out, input| ProjectionShape {
        out,
        input,
        ..plain.projections[0]
    };
    let mut projections = plain.projections;
    projections[..4].fill(ProjectionShape::default());
    for (target, shape) in [
        (TargetModule::InProjQkv, shape(96, 64)),
        (TargetModule::InProjZ, shape(64, 64)),
        (TargetModule::InProjB, shape(4, 64)),
        (TargetModule::InProjA, shape(4, 64)),
        (TargetModule::OutProj, shape(64, 64)),
    ] {
        projections[target as usize] = shape;
    }
    LayerShape {
        mixer: Mixer::DeltaNet(sizes),
        projections,
        ..plain
    }
}

/// A DeltaNet has no values of their own, and its gates stay whatever is kept.
#[test]
fn a_delta_net_keeps_what_its_convolution_reads() {
    let layer = delta_layer();
    let uses = layer.uses();
    assert!(!uses.contains(SavedTensor::Value));
    assert_eq!(uses.len(), 8);
    assert!(layer.rebuilt(uses).is_empty());
    assert_eq!(layer.rebuilt(KeepSet::NONE), uses);
    for tensor in uses.iter() {
        let rebuilt = layer.rebuilt(uses.without(tensor));
        assert_eq!(rebuilt, KeepSet::of([tensor]), "{tensor:?}");
    }
    let pass = PassShape::of_sequences([100]);
    let kept = |keep| layer.kept(keep, pass, &MEMORY);
    let query = KeepSet::of([SavedTensor::Query]);
    // What the convolution reads, with x·Aᵀ of its projection.
    assert_eq!(kept(query) - kept(KeepSet::NONE), 4 * 100 * (96 + 8));
}

/// On a device all chunks are computed at once, and each belongs to one sequence.
#[test]
fn a_delta_net_works_in_as_many_chunks_as_there_are() {
    let (layer, memory) = (delta_layer(), MemoryModel::cube(2));
    let [even, uneven] = [[64, 64], [65, 63]].map(PassShape::of_sequences);
    assert_eq!((even.tokens, even.chunks), (128, 2));
    assert_eq!((uneven.tokens, uneven.chunks), (128, 3));
    let backward = |pass| layer.backward(layer.uses(), pass, &memory, true);
    // Two squares of pairs, two states and two values for each token, of four heads.
    let chunk = 4 * 4 * 2 * (64 * 64 + 8 * 16 + 64 * 16);
    assert_eq!(backward(uneven) - backward(even), chunk);
    assert_eq!(delta::largest(&layer, uneven), 3 * 4 * 4 * 64 * 64);
    assert_eq!(delta::largest(&self::layer(), uneven), 0);
}

/// Normed values are made again by every backward pass; where they are keys, there is no tensor of theirs.
#[test]
fn normed_values_take_no_tensor_more() {
    let plain = layer();
    let normed = LayerShape {
        values: ValueHeads::Normed,
        heads: Heads::NormedTurned,
        ..plain
    };
    assert_eq!(normed.uses(), plain.uses());
    assert!(normed.rebuilt(KeepSet::ALL).is_empty());
    let mut projections = plain.projections;
    projections[TargetModule::VProj as usize] = ProjectionShape::default();
    let keys = LayerShape {
        values: ValueHeads::NormedKeys,
        projections,
        ..normed
    };
    assert_eq!(keys.uses(), plain.uses().without(SavedTensor::Value));
    assert_eq!(keys.rebuilt(KeepSet::NONE), keys.uses());
    let pass = PassShape::of_sequences([100]);
    let bytes = |layer: LayerShape| layer.kept(layer.uses(), pass, &MEMORY);
    // Values with x·Aᵀ of their projection.
    assert_eq!(bytes(normed) - bytes(keys), 4 * 100 * (32 + 8));
    // Values as attention takes them, and the statistic of each of two heads.
    let forward = |layer: LayerShape| layer.forward(layer.uses(), pass, &MEMORY);
    let turned = LayerShape {
        values: ValueHeads::Plain,
        ..normed
    };
    let more = forward(normed) - forward(turned);
    assert!(more <= 4 * 100 * (32 + 2), "{more}");
    let work = |layer: LayerShape| layer.backward_work(pass, &MEMORY).bytes;
    assert!(work(normed) > work(turned));
}

/// Where norms stand around, the stream between attention and MLP is made again whatever is kept: a pass, no tensor.
#[test]
fn norms_around_take_one_tensor_more() {
    let (before, around) = (
        layer(),
        LayerShape {
            norm_places: NormPlaces::Around,
            ..layer()
        },
    );
    assert_eq!(around.uses(), before.uses().with(SavedTensor::Down));
    assert_eq!(around.rebuilt(KeepSet::NONE), around.uses());
    assert!(around.rebuilt(KeepSet::ALL).is_empty());
    for kept in around.uses().iter() {
        let rebuilt = around.rebuilt(around.uses().without(kept));
        assert!(rebuilt.contains(kept), "{kept:?}");
    }
    // The normed input alone needs the stream, which every backward pass makes.
    let normed = KeepSet::of([SavedTensor::PostNormed]);
    assert_eq!(around.rebuilt(around.uses().difference(normed)), normed);
    let pass = PassShape::of_sequences([100]);
    let bytes = |layer: &LayerShape| layer.kept(layer.uses(), pass, &MEMORY);
    // `Down`, and the statistics of two more norms.
    assert_eq!(bytes(&around) - bytes(&before), 100 * 64 * 4 + 2 * 100 * 4);
}

#[test]
fn a_frozen_projection_needs_no_input() {
    let mut layer = layer();
    for projection in &mut layer.projections[4..] {
        projection.rank = 0;
    }
    let uses = layer.uses();
    assert!(!uses.contains(SavedTensor::PostNormed));
    assert!(uses.contains(SavedTensor::Gate));
    // With attention frozen too, the lowest layer's backward pass has nothing to do beyond the MLP.
    for projection in &mut layer.projections[..4] {
        projection.rank = 0;
    }
    layer.input_grad = InputGrad::Skipped;
    assert_eq!(
        layer.uses(),
        KeepSet::of([SavedTensor::Gate, SavedTensor::Up])
    );
}

#[test]
fn policies_are_ordered_as_they_should_be() {
    let (step, pass) = (step(9), PassShape::of_sequences([200, 150]));
    let predict = |policy: ActivationPolicy| {
        let plan = policy.fixed(9).unwrap();
        step.predict(&plan, pass, &COST)
    };
    let keep = predict(ActivationPolicy::KeepAll);
    let all = predict(ActivationPolicy::RecomputeAll);
    let sqrt = predict(ActivationPolicy::Sqrt);
    assert_eq!(keep.recompute_flops, 0);
    assert!(all.peak.total() < sqrt.peak.total(), "{all:?} {sqrt:?}");
    assert!(sqrt.peak.total() < keep.peak.total());
    // Both run every layer once more.
    assert_eq!(sqrt.recompute_flops, all.recompute_flops);
    assert!(all.seconds > keep.seconds);
}

#[test]
fn smart_recomputes_less_than_recompute_all_at_its_peak() {
    let (step, pass) = (step(12), PassShape::of_sequences([256; 2]));
    let all = ActivationPlan::recompute_all(12);
    let all = step.predict(&all, pass, &COST);
    let plan = step.solve(all.peak.total(), pass, &COST).unwrap();
    let smart = step.predict(&plan, pass, &COST);
    assert!(smart.peak.total() <= all.peak.total());
    let share = smart.recompute_flops as f64 / all.recompute_flops as f64;
    assert!(share < 0.78, "{share}");
}

#[test]
fn runs_of_layers_are_the_last_resort() {
    let (step, pass) = (step(16), PassShape::of_sequences([512]));
    let least = step.least_peak(pass);
    let plan = step.solve(least, pass, &COST).unwrap();
    assert!(step.predict(&plan, pass, &COST).peak.total() <= least);
    assert!(matches!(plan.segments[0], Segment::Rerun(_)), "{plan:?}");
    let error = step.solve(least - 1, pass, &COST).unwrap_err();
    assert_eq!(
        error,
        Shortage {
            needed: least,
            budget: least - 1
        }
    );
}

#[test]
fn a_planner_lowers_its_budget_until_nothing_fits() {
    let (step, pass) = (step(8), PassShape::of_sequences([512]));
    let mut planner = Planner::new(step.clone(), ActivationPolicy::Smart, u64::MAX, COST);
    let mut planned = planner.plan(pass).unwrap();
    assert_eq!(planned.prediction.recompute_flops, 0);
    let mut times = Vec::new();
    let shortage = loop {
        planner.lower(&planned, None).unwrap();
        match planner.plan(pass) {
            Ok(next) => {
                assert!(next.prediction.peak.total() < planned.prediction.peak.total());
                times.push(next.prediction.recompute_seconds);
                planned = next;
            }
            Err(shortage) => break shortage,
        }
    };
    assert!(times.len() > 3, "{times:?}");
    assert!(times.is_sorted(), "{times:?}");
    assert!(shortage.needed > planner.budget());
    let mut fixed = Planner::new(step, ActivationPolicy::KeepAll, u64::MAX, COST);
    let planned = fixed.plan(pass).unwrap();
    assert_eq!(fixed.lower(&planned, None), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_host_with_room_saves_time_and_memory(
        layers in 2usize..12,
        lengths in prop::collection::vec(40usize..300, 1..4),
        sixteenths in 0u64..17,
    ) {
        let alone = step(layers);
        let helped = StepShape { host: 1 << 40, ..alone.clone() };
        let pass = PassShape::of_sequences(lengths);
        prop_assert!(helped.least_peak(pass) <= alone.least_peak(pass));
        let all = ActivationPlan::keep_all(layers);
        let most = alone.predict(&all, pass, &COST).peak.total();
        let least = helped.least_peak(pass);
        let budget = least + (most - least) * sixteenths / 16;
        let plan = helped.solve(budget, pass, &COST).unwrap();
        let prediction = helped.predict(&plan, pass, &COST);
        prop_assert!(prediction.peak.total() <= budget);
        prop_assert!(plan.away().last().unwrap().is_empty());
        let moved: u64 = plan.away().zip(&helped.layers).map(|(away, layer)| layer.away(away, pass, &MEMORY)).sum();
        prop_assert_eq!(prediction.offloaded, moved);
        if let Ok(other) = alone.solve(budget, pass, &COST)
            && other.segments.iter().all(|s| matches!(s, Segment::Stored(..)))
        {
            let other = alone.predict(&other, pass, &COST);
            prop_assert!(prediction.recompute_seconds <= other.recompute_seconds + 1e-11);
        }
    }

    #[test]
    fn plans_fit_and_more_memory_never_hurts(
        layers in 1usize..12,
        lengths in prop::collection::vec(2usize..300, 1..4),
        accumulated: bool,
        rank in 0u64..3,
    ) {
        let mut step = step(layers);
        step.accumulated = accumulated;
        for layer in &mut step.layers {
            layer.projections[6].rank = 8 * rank;
        }
        let pass = PassShape::of_sequences(lengths);
        let most = step.predict(&ActivationPlan::keep_all(layers), pass, &COST).peak.total();
        let least = step.least_peak(pass);
        prop_assert!(least <= most);
        let mut before = u64::MAX;
        for i in 0..=6 {
            let budget = least + (most - least) * i / 6;
            let plan = step.solve(budget, pass, &COST).unwrap();
            let prediction = step.predict(&plan, pass, &COST);
            prop_assert!(prediction.peak.total() <= budget);
            let stored = plan.segments.iter().all(|s| matches!(s, Segment::Stored(..)));
            // Runs of layers are a last resort and not part of the exact choice.
            if stored {
                let time = (prediction.recompute_seconds * 1e12).round() as u64;
                prop_assert!(time <= before, "{time} after {before}");
                before = time;
            }
        }
        prop_assert_eq!(before, 0);
    }
}

/// A step of which all layers stay in the host's memory.
fn streamed(layers: usize, bytes: u64) -> StepShape {
    let mut step = step(layers);
    for layer in &mut step.layers {
        layer.streamed = bytes;
    }
    step
}

#[test]
fn copies_of_layers_take_what_computing_does_not_hide() {
    let pass = PassShape::of_sequences([64]);
    let (plain, line) = (step(4), Roofline::CPU);
    let computing = |layer: &LayerShape| {
        [
            COST.forward(layer, pass, &MEMORY),
            COST.backward(layer, pass, &MEMORY),
        ]
    };
    let [forward, _] = computing(&plain.layers[1]);
    let all = ActivationPlan::keep_all(4);
    let before = plain.predict(&all, pass, &COST);
    assert_eq!((before.streamed, before.stream_seconds), (0, 0.0));
    for of_forward in [0.5, 1.5, 4.0] {
        let bytes = (of_forward * forward as f64 / 1e12 * line.stream) as u64;
        let step = streamed(4, bytes);
        let found = step.predict(&all, pass, &COST);
        assert_eq!(found.streamed, 8 * bytes);
        let arrival = COST.arrival(&step.layers[0]);
        let exposed = plain.layers.iter().flat_map(computing);
        let exposed: u64 = exposed.map(|time| arrival.saturating_sub(time)).sum();
        assert_eq!(exposed > 0, of_forward > 1.0);
        assert_eq!(found.stream_seconds, exposed as f64 / 1e12);
        assert_eq!(found.peak, before.peak);
        let sum = before.seconds + found.stream_seconds;
        assert!((found.seconds - sum).abs() < 1e-9);
    }
    // Runs of layers are computed forwards twice.
    let rerun = ActivationPlan::rerun(4, 2, KeepSet::NONE);
    assert_eq!(
        streamed(4, 1000).predict(&rerun, pass, &COST).streamed,
        12_000
    );
}

#[test]
fn from_some_number_of_tokens_on_computing_hides_copies() {
    let pass = PassShape::of_sequences([64, 64]);
    assert_eq!(step(3).hiding_tokens(pass, &COST), None);
    let step = streamed(3, 1 << 20);
    let tokens = step.hiding_tokens(pass, &COST).unwrap();
    let forward = |tokens: u64| {
        let whole = vec![64; (tokens / 64) as usize];
        let rest = Some((tokens % 64) as usize).filter(|&rest| rest > 0);
        let pass = PassShape::of_sequences(whole.into_iter().chain(rest));
        COST.forward(&step.layers[0], pass, &MEMORY)
    };
    let arrival = COST.arrival(&step.layers[0]);
    assert!(forward(tokens) >= arrival && forward(tokens - 1) < arrival);
    assert_eq!(streamed(3, 1 << 50).hiding_tokens(pass, &COST), None);
}
