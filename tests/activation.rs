//! The activation policy on whole steps: gradients, losses, memory.
//!
//! This binary counts every allocation, so its tests run one after the other.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backdraft::arch::{BaseHome, Family, KeepSet, OffloadSet, SavedTensor, Trainable};
use backdraft::burn::tensor::{DType, Device, Tensor};
use backdraft::data::Answer;
use backdraft::formats::{ModelSource, TokenTable};
use backdraft::journal::report::{ReplanReport, Reporter, RunInfo, RunSummary, StepReport};
use backdraft::kernels::adamw::AdamWParams;
use backdraft::kernels::device::{self, free_and_held};
use backdraft::lora::{AdapterGrads, Bias, LoraConfig, TrainedTokens};
use backdraft::model::{CausalLm, Targets, Tokens};
use backdraft::plan::cost::{CostModel, Roofline};
use backdraft::plan::memory::{self, MemoryWatch};
use backdraft::plan::tensors::{MemoryModel, PassShape};
use backdraft::plan::{ActivationPlan, Segment, Setup, StepShape};
use backdraft::quant::{QuantizationPlan, Scheme};
use backdraft::recipe::Recipe;
use backdraft::train::TrainError;
use backdraft::train::compared::Compared;
use backdraft::train::data;
use backdraft::train::objective::{Goal, Objective, Others, ScoreLoss};
use backdraft::train::optimizer::{Optimizer, StatePrecision, clip, global_norm};
use backdraft::train::release::Update;
use backdraft::train::run::{Watch, prepare};
use backdraft::train::step::{MicroBatch, Trunk, forward_backward, guarded};
use backdraft_testkit::random_model::RandomModel;
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

static ALONE: Mutex<()> = Mutex::new(());

const COST: CostModel = CostModel::Roofline(Roofline::CPU);

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const SMALL: RandomModel = RandomModel {
    family: Family::Llama,
    window: None,
    hidden: 64,
    intermediate: 160,
    layers: 6,
    heads: 4,
    kv_heads: 2,
    vocab: 128,
};

/// A model with adapters whose B is not zero, so that every gradient is one.
fn adapted(dir: &Path, shape: RandomModel, nf4: bool, lora: &LoraConfig) -> CausalLm {
    adapted_on((&Device::flex(), DType::F32), dir, shape, nf4, lora)
}

fn adapted_on(
    place: (&Device, DType),
    dir: &Path,
    shape: RandomModel,
    nf4: bool,
    lora: &LoraConfig,
) -> CausalLm {
    let path = dir.join("model");
    if !path.exists() {
        shape.write(&path);
    }
    let source = ModelSource::open(&path).unwrap();
    let plan = nf4.then(|| QuantizationPlan::new(Scheme::NF4));
    let model = CausalLm::load_as(&source, plan.as_ref(), place).unwrap();
    let mut model = model.with_lora(lora, 7).unwrap();
    for (i, (_, _, adapter)) in model.adapters_mut().enumerate() {
        adapter.update(|param| {
            let wave: Vec<f32> = (0..param.len())
                .map(|n| 0.03 * ((n * 7 + i * 13) as f32).sin())
                .collect();
            let wave = Tensor::<1>::from_floats(wave.as_slice(), &param.values.device());
            match param.name {
                // Near the rows' own lengths.
                "lora_magnitude_vector" => param.values * (wave + 1.0),
                _ => wave,
            }
        });
    }
    model
}

/// Adapters on all projections that the model has.
fn everywhere(dir: &Path, shape: RandomModel, lora: LoraConfig) -> LoraConfig {
    let path = dir.join("model");
    if !path.exists() {
        shape.write(&path);
    }
    let source = ModelSource::open(&path).unwrap();
    LoraConfig {
        target_modules: backdraft::model::spec(&source).unwrap().targets(),
        ..lora
    }
}

fn batch(lengths: &[usize], vocab: usize) -> MicroBatch {
    let mut state = 3u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocab as u32
    };
    let rows: Vec<Vec<u32>> = lengths
        .iter()
        .map(|&length| (0..length).map(|_| next()).collect())
        .collect();
    let labels: Vec<i64> = rows.concat().into_iter().map(i64::from).collect();
    let tokens = Tokens::from_sequences(&rows);
    let targets = Targets::from_labels(&tokens.segments, &labels);
    MicroBatch { tokens, targets }
}

fn setup(model: &CausalLm, lora: &LoraConfig, nf4: bool, lengths: &[usize]) -> Setup {
    Setup {
        spec: model.spec().clone(),
        lora: lora.clone(),
        tokens: 0,
        quantization: nf4.then(|| QuantizationPlan::new(Scheme::NF4)),
        base: None,
        dense_element: 4,
        memory: MemoryModel::cpu(),
        optimizer: StatePrecision::F32.into(),
        micro_batch_size: lengths.len(),
        max_seq_length: lengths[0],
        texts_per_row: 1,
        grad_accumulation_steps: 1,
        releases: false,
        masters: true,
        host: 0,
        home: BaseHome::Device,
    }
}

/// `count` budgets from the least to what keeping everything takes.
fn budgets(step: &StepShape, pass: PassShape, count: u64) -> Vec<u64> {
    let all = ActivationPlan::keep_all(step.layers.len());
    let most = step.predict(&all, pass, &COST).peak.total();
    let least = step.least_peak(pass);
    (0..count)
        .map(|i| least + (most - least) * i / (count - 1))
        .collect()
}

/// The fixed plans, and smart ones at some budgets.
fn plans(step: &StepShape, pass: PassShape, smart: u64) -> Vec<(String, ActivationPlan)> {
    let layers = step.layers.len();
    let mut plans = vec![
        ("keep-all".to_owned(), ActivationPlan::keep_all(layers)),
        (
            "recompute-all".to_owned(),
            ActivationPlan::recompute_all(layers),
        ),
        ("sqrt".to_owned(), ActivationPlan::sqrt(layers)),
        (
            "runs of two".to_owned(),
            ActivationPlan::rerun(layers, 2, KeepSet::NONE),
        ),
    ];
    for budget in budgets(step, pass, smart) {
        let plan = step.solve(budget, pass, &COST).unwrap();
        plans.push((format!("smart at {budget}"), plan));
    }
    plans
}

/// Plans that send tensors to the host's memory, which on the processor is where they are.
fn away(layers: usize) -> Vec<(String, ActivationPlan)> {
    use SavedTensor as T;
    let plan = |input, tensors: &[T]| ActivationPlan {
        segments: vec![
            Segment::Stored(
                KeepSet::ALL,
                OffloadSet {
                    input,
                    tensors: KeepSet::of(tensors.iter().copied()),
                }
            );
            layers
        ],
    };
    vec![
        ("all away".to_owned(), plan(true, &T::ALL)),
        (
            "gate and mid away".to_owned(),
            plan(false, &[T::Gate, T::Mid]),
        ),
    ]
}

fn bits(tensor: Tensor<1>) -> Vec<u32> {
    let data = tensor.into_data();
    data.iter::<f32>().map(f32::to_bits).collect()
}

/// What a pass over a micro-batch says: Σ nll, or, of a model whose head scores, the loss of its pairs.
fn pass_over(
    model: &CausalLm,
    batch: &MicroBatch,
    seed: Option<u64>,
    plan: &ActivationPlan,
    grads: &mut AdapterGrads,
) -> Tensor<1> {
    let texts = batch.targets.len();
    let scale = 1.0 / texts as f32;
    if !model.spec().scores {
        return forward_backward(model, batch, scale, seed, plan, grads);
    }
    let answers = [Answer::Good, Answer::Bad].repeat(texts / 2);
    let of = (&batch.targets, &batch.tokens.segments);
    let compared = Compared::new(of, vec![true; texts], &answers);
    let goal = Goal {
        objective: Objective::Scores(ScoreLoss {
            gamma: 0.0,
            center: 0.01,
        }),
        answers: Some((&compared, Others::default())),
        ..Goal::next_token(2.0 * scale)
    };
    let trunk = Trunk::new(model, batch);
    let told = guarded(model, (batch, trunk), &goal, seed, (plan, None), grads);
    told.unwrap().answers.unwrap().losses.mean()
}

/// Loss and every gradient, bit for bit.
fn gradients(
    model: &CausalLm,
    batch: &MicroBatch,
    seed: Option<u64>,
    plan: &ActivationPlan,
) -> Vec<Vec<u32>> {
    let mut grads = AdapterGrads::new();
    let nll = pass_over(model, batch, seed, plan, &mut grads);
    let mut found: Vec<Vec<u32>> = model
        .trained_params()
        .map(|(_, param)| bits(grads.get(param.id).unwrap().clone()))
        .collect();
    found.push(bits(nll));
    found
}

/// Losses of ten steps of AdamW, bit for bit.
fn ten_losses(mut model: CausalLm, batch: &MicroBatch, plan: &ActivationPlan) -> Vec<u64> {
    let params = AdamWParams {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
    };
    let mut optimizer = Optimizer::adamw(params, StatePrecision::F32);
    let scale = 1.0 / batch.targets.len() as f32;
    (0..10)
        .map(|_| {
            let mut grads = AdapterGrads::new();
            let nll = forward_backward(&model, batch, scale, Some(5), plan, &mut grads);
            let norm = global_norm(&model, &grads);
            optimizer.step(&mut model, &clip(grads, &norm, 1.0), 1e-3);
            nll.into_scalar::<f64>().to_bits()
        })
        .collect()
}

#[test]
fn gradients_and_losses_do_not_depend_on_the_plan() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let lengths = [33, 20];
    let mut checked = 0;
    for (family, window, nf4, dropout, use_dora) in [
        (Family::Llama, None, false, 0.0),
        (Family::Llama, None, true, 0.1),
        (Family::Qwen3, None, false, 0.0),
        (Family::Qwen2, Some(9), true, 0.1),
        (Family::Granite, None, false, 0.0),
        (Family::Granite, None, true, 0.1),
        (Family::SmolLm3, Some(9), false, 0.1),
        (Family::Olmo2, None, false, 0.1),
        (Family::Olmo3, Some(9), true, 0.0),
        (Family::Gemma2, Some(9), false, 0.1),
        (Family::Gemma3, Some(9), true, 0.0),
        (Family::Phi3, None, false, 0.0),
        (Family::Phi3, Some(9), true, 0.1),
        (Family::Glm4, None, false, 0.1),
        (Family::Ministral, Some(9), true, 0.0),
        (Family::Ministral3, None, false, 0.1),
        (Family::Qwen35, None, false, 0.1),
        (Family::Qwen35, None, true, 0.0),
        (Family::Gemma4, Some(9), false, 0.1),
        (Family::Gemma4, Some(9), true, 0.0),
    ]
    .map(|(family, window, nf4, dropout)| (family, window, nf4, dropout, false))
    .into_iter()
    .chain([
        (Family::Llama, None, false, 0.0, true),
        (Family::Llama, None, true, 0.1, true),
        (Family::Olmo2, None, false, 0.1, true),
        (Family::Phi3, None, false, 0.1, true),
        (Family::Glm4, None, true, 0.0, true),
        (Family::Qwen35, None, false, 0.0, true),
    ]) {
        let shape = RandomModel {
            family,
            window,
            ..SMALL
        };
        let dir = dir.path().join(format!("{}-{nf4}", family.model_type()));
        let lora = LoraConfig {
            rank: 4,
            dropout,
            use_dora,
            ..LoraConfig::default()
        };
        let lora = everywhere(&dir, shape, lora);
        let model = adapted(&dir, shape, nf4, &lora);
        let batch = batch(&lengths, SMALL.vocab);
        let step = setup(&model, &lora, nf4, &lengths).step();
        let pass = PassShape::of_sequences(lengths);
        let mut expected = None;
        for (name, plan) in plans(&step, pass, 5)
            .into_iter()
            .chain(away(step.layers.len()))
        {
            let found = (
                gradients(&model, &batch, Some(5), &plan),
                ten_losses(model.clone(), &batch, &plan),
            );
            let expected = expected.get_or_insert_with(|| found.clone());
            assert!(found == *expected, "{family:?}, {name}, nf4: {nf4}");
            checked += 1;
        }
        let losses = &expected.unwrap().1;
        assert!(f64::from_bits(losses[9]) < f64::from_bits(losses[0]));
    }
    assert_eq!(checked, 286);
}

#[test]
fn gradients_do_not_depend_on_the_plan_on_a_gpu() {
    let _alone = alone();
    let gpu = match device::cuda(0) {
        Ok(gpu) => gpu,
        Err(error) => return println!("nothing checked: {error}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (DType::F32, false, 0.0, vec![2048; 12]),
        (DType::F32, false, 0.1, vec![2048; 12]),
        (DType::F32, true, 0.1, vec![700, 300]),
        (DType::BF16, false, 0.1, vec![2048; 12]),
        (DType::BF16, true, 0.0, vec![2048; 4]),
        (DType::BF16, true, 0.1, vec![700, 300]),
        (DType::F16, true, 0.1, vec![700, 300]),
    ];
    let plain = cases.map(|case| (DRILLED, case));
    let normed = RandomModel {
        family: Family::Qwen3,
        ..DRILLED
    };
    let windowed = RandomModel {
        family: Family::Qwen2,
        window: Some(200),
        ..DRILLED
    };
    let scaled = RandomModel {
        family: Family::Granite,
        ..DRILLED
    };
    let after = RandomModel {
        family: Family::Olmo2,
        ..DRILLED
    };
    let capped = RandomModel {
        family: Family::Gemma2,
        window: Some(200),
        ..DRILLED
    };
    let local = RandomModel {
        family: Family::Gemma3,
        window: Some(200),
        ..DRILLED
    };
    let fused = RandomModel {
        family: Family::Phi3,
        ..DRILLED
    };
    let two_sizes = RandomModel {
        family: Family::Gemma4,
        window: Some(200),
        ..DRILLED
    };
    let families = [
        (fused, (DType::F32, false, 0.0, vec![700, 300])),
        (fused, (DType::BF16, true, 0.1, vec![700, 300])),
        (normed, (DType::F32, false, 0.0, vec![700, 300])),
        (normed, (DType::BF16, true, 0.1, vec![2048; 4])),
        (windowed, (DType::BF16, true, 0.0, vec![700, 300])),
        (scaled, (DType::BF16, true, 0.1, vec![700, 300])),
        (after, (DType::F32, false, 0.0, vec![700, 300])),
        (after, (DType::BF16, true, 0.1, vec![2048; 4])),
        (capped, (DType::F32, false, 0.0, vec![700, 300])),
        (local, (DType::BF16, true, 0.1, vec![700, 300])),
        (two_sizes, (DType::F32, false, 0.0, vec![700, 300])),
        (two_sizes, (DType::BF16, true, 0.1, vec![700, 300])),
    ];
    for (shape, (dtype, nf4, dropout, lengths)) in plain.into_iter().chain(families) {
        let dir = dir.path().join(shape.family.model_type());
        let lora = LoraConfig {
            rank: 16,
            dropout,
            ..LoraConfig::default()
        };
        let lora = everywhere(&dir, shape, lora);
        let model = adapted_on((&gpu, dtype), &dir, shape, nf4, &lora);
        let batch = batch(&lengths, shape.vocab);
        let setup = Setup {
            dense_element: dtype.size() as u64,
            ..setup(&model, &lora, nf4, &lengths)
        };
        let step = setup.step();
        let pass = PassShape::of_sequences(lengths.clone());
        let mut expected = None;
        let all = ActivationPlan::keep_all(step.layers.len());
        for (name, plan) in plans(&step, pass, 5)
            .into_iter()
            .chain([("keep-all again".to_owned(), all)])
            .chain(away(step.layers.len()))
        {
            let found = gradients(&model, &batch, Some(5), &plan);
            let expected = expected.get_or_insert_with(|| found.clone());
            assert!(
                found == *expected,
                "{:?} {dtype:?}, nf4: {nf4}, dropout: {dropout}: {name}",
                shape.family
            );
        }
    }
}

#[test]
fn adapters_on_some_projections_and_layers_only() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let lengths = [24];
    for (targets, layers) in [
        ("q_proj v_proj", None),
        ("down_proj", None),
        ("gate_proj up_proj", Some(vec![2, 4])),
        ("o_proj", Some(vec![1])),
    ] {
        let lora = LoraConfig {
            rank: 4,
            target_modules: targets.split(' ').map(|t| t.parse().unwrap()).collect(),
            layers_to_transform: layers,
            ..LoraConfig::default()
        };
        let model = adapted(dir.path(), SMALL, false, &lora);
        let batch = batch(&lengths, SMALL.vocab);
        let step = setup(&model, &lora, false, &lengths).step();
        let pass = PassShape::of_sequences(lengths);
        assert_eq!(step.layers.len(), model.num_backward_layers());
        let mut expected = None;
        for (name, plan) in plans(&step, pass, 3)
            .into_iter()
            .chain(away(step.layers.len()))
        {
            let found = gradients(&model, &batch, None, &plan);
            let expected = expected.get_or_insert_with(|| found.clone());
            assert!(found == *expected, "{name}, {targets}");
        }
    }
}

/// Ranks and scales by pattern, modules left out: planned as they are, and computed the same under every plan.
#[test]
fn adapters_of_several_ranks_and_scales() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let shape = RandomModel {
        family: Family::Llama,
        window: None,
        hidden: 256,
        intermediate: 704,
        layers: 6,
        heads: 8,
        kv_heads: 2,
        vocab: 2048,
    };
    let lengths = [384, 384];
    let whole = adapted(dir.path(), shape, false, &LoraConfig::default());
    let recipe = "model = \"a/b\"\n[lora]\nrank = 8\ntarget_modules = \"all-linear\"\n\
        exclude_modules = ['layers.2.self_attn.k_proj', 'layers.3.mlp.down_proj']\n\
        rank_pattern = { 'layers\\.[01]\\..*' = 96, gate_proj = 2 }\nalpha_pattern = { k_proj = 3 }\n\
        [data]\ntrain = \"t\"\n";
    let recipe = Recipe::from_toml(recipe, Path::new("/"), &[]).unwrap();
    let lora = recipe.trained(whole.spec()).unwrap();
    let model = whole.without_adapter().with_lora(&lora, 7).unwrap();
    assert_eq!(model.adapters().count(), 40);
    let batch = batch(&lengths, shape.vocab);
    let setup = setup(&model, &lora, false, &lengths);
    let (step, pass) = (setup.step(), setup.pass());
    assert_eq!(step.adapters as usize, 4 * model.num_trained());
    let all = ActivationPlan::keep_all(step.layers.len());
    let expected = gradients(&model, &batch, None, &all);
    for (name, plan) in plans(&step, pass, 4) {
        let predicted = step.predict(&plan, pass, &COST).peak.of_step() as f64;
        let measured = measured(&model, &batch, &plan) as f64;
        let excess = 100.0 * (predicted / measured - 1.0);
        assert!((0.0..=5.0).contains(&excess), "{name}: {excess:+.2} %");
        assert!(gradients(&model, &batch, None, &plan) == expected, "{name}");
    }
}

/// Rows of tokens beside adapters of the upper layers: the pass goes down to the embedding, which is planned, and computed
/// the same under every plan.
#[test]
fn trained_tokens_are_planned_and_do_not_depend_on_the_plan() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let shape = RandomModel {
        family: Family::Llama,
        window: None,
        hidden: 256,
        intermediate: 704,
        layers: 6,
        heads: 8,
        kv_heads: 2,
        vocab: 2048,
    };
    let lengths = [384, 384];
    let lora = LoraConfig {
        rank: 8,
        layers_to_transform: Some(vec![2, 3, 4, 5]),
        ..LoraConfig::default()
    };
    let model = adapted(dir.path(), shape, false, &lora);
    let batch = batch(&lengths, shape.vocab);
    let mut ids = batch.tokens.input_ids[..20].to_vec();
    ids.sort_unstable();
    ids.dedup();
    let tables = match model.spec().tie_word_embeddings {
        true => &[TokenTable::Embedding][..],
        false => &TokenTable::ALL,
    };
    let rows = tables
        .iter()
        .map(|&table| TrainedTokens::new(table, &ids, model.token_rows(table, &ids)));
    let rows: Vec<TrainedTokens> = rows.collect();
    let model = model.with_tokens(&rows).unwrap();
    let setup = Setup {
        tokens: ids.len(),
        ..setup(&model, &lora, false, &lengths)
    };
    let (step, pass) = (setup.step(), setup.pass());
    assert_eq!(step.adapters as usize, 4 * model.num_trained());
    assert_eq!(step.layers.len(), model.num_backward_layers());
    let all = ActivationPlan::keep_all(step.layers.len());
    let expected = gradients(&model, &batch, None, &all);
    for (name, plan) in plans(&step, pass, 4) {
        let predicted = step.predict(&plan, pass, &COST).peak.of_step() as f64;
        let measured = measured(&model, &batch, &plan) as f64;
        let excess = 100.0 * (predicted / measured - 1.0);
        assert!((0.0..=5.0).contains(&excess), "{name}: {excess:+.2} %");
        assert!(gradients(&model, &batch, None, &plan) == expected, "{name}");
    }
}

/// Norms, biases and tables that are trained whole: planned, and computed the same under every plan; in the lowest layer too,
/// whose input needs no gradient.
#[test]
fn whole_tensors_are_planned_and_do_not_depend_on_the_plan() {
    let _alone = alone();
    let wide = |family| RandomModel {
        family,
        window: matches!(family, Family::Gemma2).then_some(100),
        hidden: 256,
        intermediate: 704,
        layers: 6,
        heads: 8,
        kv_heads: 2,
        vocab: 2048,
    };
    let lengths = [384, 384];
    let upper = Some(vec![2, 3, 4, 5]);
    let mut off = Vec::new();
    for (family, bias, modules, layers) in [
        (
            Family::Llama,
            Bias::None,
            &["norm", "embed_tokens", "lm_head"][..],
            upper.clone(),
        ),
        (
            Family::Llama,
            Bias::None,
            &["lm_head", "model.norm"],
            upper.clone(),
        ),
        (
            Family::Llama,
            Bias::None,
            &["layers.1.input_layernorm"],
            upper.clone(),
        ),
        (Family::Qwen3, Bias::None, &["norm"], None),
        (Family::Qwen2, Bias::All, &["embed_tokens"], upper.clone()),
        (Family::Qwen2, Bias::LoraOnly, &[], upper.clone()),
        (
            Family::Olmo2,
            Bias::None,
            &["norm", "embed_tokens", "lm_head"],
            upper.clone(),
        ),
        (Family::Olmo2, Bias::None, &["embed_tokens"], upper.clone()),
        (Family::Olmo2, Bias::None, &["lm_head"], upper.clone()),
        (Family::Gemma2, Bias::None, &["norm"], None),
        (Family::Glm4, Bias::None, &["layernorm"], None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let lora = LoraConfig {
            rank: 8,
            layers_to_transform: layers,
            bias,
            modules_to_save: modules.iter().map(|&name| name.to_owned()).collect(),
            ..LoraConfig::default()
        };
        let shape = wide(family);
        let lora = everywhere(dir.path(), shape, lora);
        let model = adapted(dir.path(), shape, false, &lora);
        let batch = batch(&lengths, shape.vocab);
        let setup = setup(&model, &lora, false, &lengths);
        let (step, pass) = (setup.step(), setup.pass());
        assert_eq!(
            step.adapters as usize,
            4 * model.num_trained(),
            "{family:?}"
        );
        assert_eq!(step.layers.len(), model.num_backward_layers(), "{family:?}");
        let whole = model.whole().len();
        assert!(whole > 0, "{family:?}");
        let all = ActivationPlan::keep_all(step.layers.len());
        let expected = gradients(&model, &batch, None, &all);
        for (name, plan) in plans(&step, pass, 4)
            .into_iter()
            .chain(away(step.layers.len()))
        {
            let found = gradients(&model, &batch, None, &plan);
            assert!(found == expected, "{family:?}, {name}");
            if name.ends_with("away") {
                continue;
            }
            let peak = step.predict(&plan, pass, &COST).peak;
            let predicted = peak.of_step() as f64;
            let measured = measured(&model, &batch, &plan) as f64;
            let excess = 100.0 * (predicted / measured - 1.0);
            println!(
                "{family:?} {modules:?} {name}: {excess:+.2} % at {}",
                peak.moment
            );
            if !(0.0..=5.0).contains(&excess) {
                off.push(format!(
                    "{family:?} {modules:?} {name}: {excess:+.2} % at {}",
                    peak.moment
                ));
            }
        }
        let losses = ten_losses(model, &batch, &all);
        assert!(
            f64::from_bits(losses[9]) < f64::from_bits(losses[0]),
            "{family:?}"
        );
    }
    assert!(off.is_empty(), "{off:#?}");
}

/// Adapters of the embedding and the head beside those of the upper layers: planned, and computed the same under every plan.
#[test]
fn adapters_of_tables_are_planned_and_do_not_depend_on_the_plan() {
    let _alone = alone();
    let lengths = [384, 384];
    let mut off = Vec::new();
    for (family, tables, rank) in [
        (Family::Llama, &TokenTable::ALL[..], 8),
        (Family::Llama, &[TokenTable::Head], 32),
        (Family::Llama, &[TokenTable::Embedding], 32),
        (Family::Olmo2, &TokenTable::ALL, 16),
        (Family::Olmo2, &[TokenTable::Head], 8),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let shape = RandomModel {
            family,
            window: None,
            hidden: 256,
            intermediate: 704,
            layers: 6,
            heads: 8,
            kv_heads: 2,
            vocab: 2048,
        };
        let lora = LoraConfig {
            rank,
            layers_to_transform: Some(vec![2, 3, 4, 5]),
            target_tables: tables.to_vec(),
            ..LoraConfig::default()
        };
        let mut model = adapted(dir.path(), shape, false, &lora);
        for (_, adapter) in model.table_adapters_mut() {
            adapter.update(|param| param.values.mul_scalar(0.1).add_scalar(0.01));
        }
        let batch = batch(&lengths, shape.vocab);
        let setup = setup(&model, &lora, false, &lengths);
        let (step, pass) = (setup.step(), setup.pass());
        assert_eq!(step.adapters as usize, 4 * model.num_trained());
        assert_eq!(step.layers.len(), model.num_backward_layers());
        let all = ActivationPlan::keep_all(step.layers.len());
        let expected = gradients(&model, &batch, None, &all);
        for (name, plan) in plans(&step, pass, 4) {
            let told = format!("{family:?} {tables:?} {name}");
            assert!(gradients(&model, &batch, None, &plan) == expected, "{told}");
            let peak = step.predict(&plan, pass, &COST).peak;
            let measured = measured(&model, &batch, &plan) as f64;
            let excess = 100.0 * (peak.of_step() as f64 / measured - 1.0);
            println!("{told}: {excess:+.2} % at {}", peak.moment);
            // A product for B of so few columns packs less of the logits' gradient than is counted.
            let most = if tables.contains(&TokenTable::Head) {
                12.0
            } else {
                5.0
            };
            if !(0.0..=most).contains(&excess) {
                off.push(format!("{told}: {excess:+.2} % at {}", peak.moment));
            }
        }
        let losses = ten_losses(model, &batch, &all);
        assert!(f64::from_bits(losses[9]) < f64::from_bits(losses[0]));
    }
    assert!(off.is_empty(), "{off:#?}");
}

/// Full fine-tuning, of everything and of parts: planned, gradients and update, and computed the same under every plan; the base
/// is there once.
#[test]
fn full_fine_tuning_is_planned_and_does_not_depend_on_the_plan() {
    let _alone = alone();
    let lengths = [384, 384];
    let mut off = Vec::new();
    for (family, patterns) in [
        (Family::Llama, &[][..]),
        (Family::Phi3, &[]),
        (Family::Olmo2, &[]),
        (Family::Gemma2, &[]),
        (Family::Gemma4, &[]),
        (Family::Granite, &[]),
        (Family::Qwen2, &["layers.[2-4]", "norm"]),
        (Family::Llama, &["down_proj"]),
        (Family::Llama, &["layers.3.self_attn.v_proj", "lm_head"]),
        (Family::Qwen35, &[".*_proj", "in_proj_.*", "embed_tokens"]),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let shape = RandomModel {
            family,
            window: matches!(family, Family::Gemma2 | Family::Gemma4).then_some(100),
            hidden: 256,
            intermediate: 704,
            layers: 6,
            heads: 8,
            kv_heads: 2,
            vocab: 2048,
        };
        shape.write(&dir.path().join("model"));
        let spec = backdraft::model::spec(&ModelSource::open(dir.path().join("model")).unwrap());
        let patterns = patterns.iter().map(|&pattern| pattern.to_owned());
        let trainable = match patterns.len() {
            0 => Trainable::All,
            _ => Trainable::modules(patterns).unwrap(),
        };
        let lora = LoraConfig::full(trainable, &spec.unwrap()).unwrap();
        let told = format!("{family:?} {}", lora.trainable);
        let mut model = adapted(dir.path(), shape, false, &lora);
        let batch = batch(&lengths, shape.vocab);
        let setup = setup(&model, &lora, false, &lengths);
        let (step, pass) = (setup.step(), setup.pass());
        assert_eq!(step.adapters as usize, 4 * model.num_trained(), "{told}");
        let whole = model.device_bytes() + step.adapters as usize;
        assert_eq!(whole, 4 * model.num_base_params(), "{told}");
        // The numbers that some layers are multiplied by are no parameters.
        let scalars = 4 * model.spec().layers.iter().filter(|it| it.scaled).count();
        assert_eq!(step.base as usize, model.device_bytes() + scalars, "{told}");
        assert_eq!(step.layers.len(), model.num_backward_layers(), "{told}");
        let all = ActivationPlan::keep_all(step.layers.len());
        let expected = gradients(&model, &batch, None, &all);
        for (name, plan) in plans(&step, pass, 4)
            .into_iter()
            .chain(away(step.layers.len()))
        {
            let found = gradients(&model, &batch, None, &plan);
            assert!(found == expected, "{told}, {name}");
            if name.ends_with("away") {
                continue;
            }
            let peak = step.predict(&plan, pass, &COST).peak;
            let measured = measured(&model, &batch, &plan) as f64;
            let excess = 100.0 * (peak.of_step() as f64 / measured - 1.0);
            let line = format!("{told} {name}: {excess:+.2} % at {}", peak.moment);
            println!("{line}");
            if !(0.0..=5.0).contains(&excess) {
                off.push(line);
            }
        }
        let updating = measured_update(&mut model, &batch, &all) as f64;
        let excess = 100.0 * (step.update as f64 / updating - 1.0);
        let line = format!("{told} update: {excess:+.2} %");
        println!("{line}");
        // A few kilobytes of bookkeeping are in `workspace`.
        if !(-0.5..=5.0).contains(&excess) {
            off.push(line);
        }
        let setup = Setup {
            releases: true,
            ..setup
        };
        let step = setup.step();
        for (name, plan) in plans(&step, pass, 4) {
            let peak = step.predict(&plan, pass, &COST).peak;
            let measured = measured_release(&model, &batch, &plan) as f64;
            let excess = 100.0 * (peak.of_step() as f64 / measured - 1.0);
            let line = format!("{told} {name}, released: {excess:+.2} % at {}", peak.moment);
            println!("{line}");
            if !(0.0..=5.0).contains(&excess) {
                off.push(line);
            }
        }
        let losses = ten_losses(model, &batch, &all);
        let [first, last] = [losses[0], losses[9]].map(f64::from_bits);
        assert!(last < first, "{told}: {first} to {last}");
    }
    assert!(off.is_empty(), "{off:#?}");
}

/// The highest memory of a pass that updates layer by layer, beyond what was there before.
fn measured_release(model: &CausalLm, batch: &MicroBatch, plan: &ActivationPlan) -> usize {
    let mut model = model.clone();
    let mut optimizer = adamw();
    let goal = Goal::next_token(1.0 / batch.targets.len() as f32);
    let mut before = 0;
    // What is kept comes with the first, and a copy of its own of what is trained.
    for _ in 0..2 {
        before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let trunk = Trunk::new(&model, batch);
        let mut update = Update::new(&mut model, &mut optimizer, 1e-4);
        let of = (batch, trunk);
        let told = guarded(
            &mut update,
            of,
            &goal,
            None,
            (plan, None),
            &mut AdapterGrads::new(),
        );
        told.unwrap().nll.into_scalar::<f64>();
        update.norm().into_scalar::<f64>();
    }
    ALLOCATOR.peak_usage() - before
}

/// The highest memory of an update, beyond what was there before it.
fn measured_update(model: &mut CausalLm, batch: &MicroBatch, plan: &ActivationPlan) -> usize {
    let mut optimizer = adamw();
    let mut grads = AdapterGrads::new();
    let scale = 1.0 / batch.targets.len() as f32;
    forward_backward(model, batch, scale, None, plan, &mut grads);
    // What is kept comes with the first.
    optimizer.step(model, &grads, 1e-4);
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    optimizer.step(model, &grads, 1e-4);
    ALLOCATOR.peak_usage() - before
}

fn adamw() -> Optimizer {
    let params = AdamWParams {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
    };
    Optimizer::adamw(params, StatePrecision::F32)
}

/// A head with one row, over a vocabulary that would be most of a pass: nothing is planned for logits, and none exist.
#[test]
fn a_reward_model_is_planned_without_logits() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let shape = RandomModel {
        family: Family::Llama,
        window: None,
        hidden: 256,
        intermediate: 704,
        layers: 6,
        heads: 8,
        kv_heads: 2,
        vocab: 8192,
    };
    let lengths = [384, 384];
    let path = dir.path().join("model");
    shape.write(&path);
    let source = ModelSource::open(&path).unwrap();
    let lora = LoraConfig {
        rank: 8,
        modules_to_save: vec!["score".to_owned()],
        ..LoraConfig::default()
    };
    let place = (&Device::flex(), DType::F32);
    let model = CausalLm::load_to_score(&source, None, place, (BaseHome::Device, 3)).unwrap();
    let mut model = model.with_lora(&lora, 7).unwrap();
    for (_, _, adapter) in model.adapters_mut() {
        adapter.update(|param| param.values + 0.01);
    }
    let tokens = batch(&lengths, shape.vocab).tokens;
    let targets = Targets::last_tokens(&tokens);
    let batch = MicroBatch { tokens, targets };
    let setup = setup(&model, &lora, false, &lengths);
    let (step, pass) = (setup.step(), setup.pass());
    assert_eq!(pass, batch.shape());
    assert_eq!(step.adapters as usize, 4 * model.num_trained());
    assert_eq!(model.whole().len(), 1);
    let all = ActivationPlan::keep_all(step.layers.len());
    let expected = gradients(&model, &batch, None, &all);
    for (name, plan) in plans(&step, pass, 4) {
        let predicted = step.predict(&plan, pass, &COST).peak.of_step() as f64;
        let measured = measured(&model, &batch, &plan) as f64;
        let excess = 100.0 * (predicted / measured - 1.0);
        assert!((0.0..=5.0).contains(&excess), "{name}: {excess:+.2} %");
        assert!(gradients(&model, &batch, None, &plan) == expected, "{name}");
    }
}

/// The highest memory of a pass with the gradients that it leaves, beyond what was there before.
fn measured(model: &CausalLm, batch: &MicroBatch, plan: &ActivationPlan) -> usize {
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let mut grads = AdapterGrads::new();
    let nll = pass_over(model, batch, None, plan, &mut grads);
    nll.into_scalar::<f64>();
    ALLOCATOR.peak_usage() - before
}

#[test]
fn the_predicted_peak_is_the_measured_one() {
    let _alone = alone();
    let wide = RandomModel {
        family: Family::Llama,
        window: None,
        hidden: 256,
        intermediate: 704,
        layers: 6,
        heads: 8,
        kv_heads: 2,
        vocab: 2048,
    };
    let deep = RandomModel {
        family: Family::Llama,
        window: None,
        hidden: 192,
        intermediate: 384,
        layers: 10,
        heads: 6,
        kv_heads: 6,
        vocab: 512,
    };
    let normed = RandomModel {
        family: Family::Qwen3,
        ..wide
    };
    let biased = RandomModel {
        family: Family::Qwen2,
        window: Some(100),
        ..deep
    };
    let scaled = RandomModel {
        family: Family::Granite,
        ..wide
    };
    let unturned = RandomModel {
        family: Family::SmolLm3,
        ..wide
    };
    let after = RandomModel {
        family: Family::Olmo2,
        ..wide
    };
    let capped = RandomModel {
        family: Family::Gemma2,
        window: Some(100),
        ..wide
    };
    let local = RandomModel {
        family: Family::Gemma3,
        window: Some(100),
        ..wide
    };
    let fused = RandomModel {
        family: Family::Phi3,
        ..wide
    };
    let fused_mlp = RandomModel {
        family: Family::Glm4,
        ..wide
    };
    let grown = RandomModel {
        family: Family::Ministral3,
        ..wide
    };
    let mixed = RandomModel {
        family: Family::Qwen35,
        ..wide
    };
    let two_sizes = RandomModel {
        family: Family::Gemma4,
        window: Some(100),
        ..wide
    };
    let mut combinations = 0;
    let mut off = Vec::new();
    for (shape, nf4, use_dora, lengths) in [
        (wide, false, vec![384, 384]),
        (wide, true, vec![384, 384]),
        (wide, false, vec![1024]),
        (deep, false, vec![256, 256, 256]),
        (deep, true, vec![768]),
        (normed, false, vec![384, 384]),
        (normed, true, vec![1024]),
        (biased, false, vec![256, 256, 256]),
        (scaled, false, vec![384, 384]),
        (scaled, true, vec![384, 384]),
        (unturned, false, vec![384, 384]),
        (after, false, vec![384, 384]),
        (after, true, vec![1024]),
        (capped, false, vec![384, 384]),
        (capped, true, vec![1024]),
        (local, false, vec![384, 384]),
        (fused, false, vec![384, 384]),
        (fused, true, vec![1024]),
        (fused_mlp, false, vec![384, 384]),
        (grown, false, vec![384, 384]),
        (mixed, false, vec![384, 384]),
        (mixed, true, vec![1024]),
        (two_sizes, false, vec![384, 384]),
        (two_sizes, true, vec![1024]),
    ]
    .map(|(shape, nf4, lengths)| (shape, nf4, false, lengths))
    .into_iter()
    .chain([
        (wide, false, true, vec![384, 384]),
        (wide, true, true, vec![1024]),
        (deep, false, true, vec![256, 256, 256]),
        (after, false, true, vec![384, 384]),
        (fused, false, true, vec![384, 384]),
        (fused, true, true, vec![1024]),
    ]) {
        let dir = tempfile::tempdir().unwrap();
        let lora = LoraConfig {
            rank: 8,
            use_dora,
            ..LoraConfig::default()
        };
        let lora = everywhere(dir.path(), shape, lora);
        let model = adapted(dir.path(), shape, nf4, &lora);
        let batch = batch(&lengths, shape.vocab);
        let setup = setup(&model, &lora, nf4, &lengths);
        let (step, pass) = (setup.step(), setup.pass());
        // Once to fill what libraries hold on to.
        let all = ActivationPlan::keep_all(step.layers.len());
        drop(gradients(&model, &batch, None, &all));
        for (name, plan) in plans(&step, pass, 4) {
            let peak = step.predict(&plan, pass, &COST).peak;
            let predicted = peak.of_step() as f64;
            let measured = measured(&model, &batch, &plan) as f64;
            let excess = 100.0 * (predicted / measured - 1.0);
            println!(
                "{} {}x{} {lengths:?} {}{} {name}: predicted {:.2} MiB at {}, measured {:.2} MiB, {excess:+.1} %",
                shape.family.model_type(),
                shape.hidden,
                shape.layers,
                if nf4 { "nf4" } else { "f32" },
                if use_dora { ", DoRA" } else { "" },
                predicted / 1048576.0,
                peak.moment,
                measured / 1048576.0,
            );
            combinations += 1;
            // Where lengths of rows are trained, a tensor is counted that is there at another moment, and what the repeated product
            // packs is not, which was up to 0.93 % on a processor with 48 KiB of first-level cache.
            let limits = if use_dora { -1.5..=8.0 } else { 0.0..=5.0 };
            if !limits.contains(&excess) {
                let family = shape.family.model_type();
                off.push(format!(
                    "{family} {lengths:?} nf4 {nf4} DoRA {use_dora} {name}: {excess:+.2} %"
                ));
            }
        }
    }
    assert!(combinations >= 10);
    assert!(off.is_empty(), "{off:#?}");
}

/// Memory of which a part goes away after some looks at it.
#[derive(Debug)]
struct Shrinking {
    looks: AtomicUsize,
    after: usize,
    left: AtomicU64,
}

impl MemoryWatch for Shrinking {
    fn obtainable(&self) -> Option<u64> {
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        let all = look < self.after;
        Some(if all {
            u64::MAX >> 1
        } else {
            self.left.load(Ordering::Relaxed)
        })
    }
}

/// What a run said, and what happens after one of its steps.
#[derive(Clone, Default)]
struct Heard(
    Arc<Mutex<Said>>,
    Option<(usize, Arc<dyn Fn() + Send + Sync>)>,
);

/// Bits of the losses, plans made anew, and what was said at the start.
type Said = (Vec<u64>, Vec<ReplanReport>, Vec<RunInfo>);

impl Reporter for Heard {
    fn start(&mut self, info: &RunInfo) {
        self.0.lock().unwrap().2.push(info.clone());
    }

    fn step(&mut self, report: &StepReport) {
        self.0.lock().unwrap().0.push(report.loss.to_bits());
        if let Some((step, happens)) = &self.1
            && report.step == *step
        {
            happens();
        }
    }

    fn replanned(&mut self, report: &ReplanReport) {
        self.0.lock().unwrap().1.push(report.clone());
    }
}

const DRILLED: RandomModel = RandomModel {
    family: Family::Llama,
    window: None,
    hidden: 128,
    intermediate: 384,
    layers: 6,
    heads: 4,
    kv_heads: 2,
    vocab: 512,
};

/// Trains six steps of two passes in `dir`.
fn train(
    dir: &Path,
    overrides: &[&str],
    memory: Arc<dyn MemoryWatch>,
) -> (Result<RunSummary, TrainError>, Heard) {
    let heard = Heard::default();
    let result = train_on(&Device::flex(), dir, overrides, Some(memory), heard.clone());
    (result, heard)
}

fn train_on(
    device: &Device,
    dir: &Path,
    overrides: &[&str],
    memory: Option<Arc<dyn MemoryWatch>>,
    heard: Heard,
) -> Result<RunSummary, TrainError> {
    let model = dir.join("model");
    if !model.exists() {
        DRILLED.write(&model);
        let row = |row: usize| {
            let words: Vec<String> = (0..2100)
                .map(|i| format!("w{}", 2 + (i * (row + 3) + row) % 500))
                .collect();
            format!("{{\"text\": \"{}\"}}\n", words.join(" "))
        };
        fs::write(dir.join("rows.jsonl"), (0..24).map(row).collect::<String>()).unwrap();
        let recipe = "model = \"model\"\noutput_dir = \"out\"\nmax_seq_length = 256\n[lora]\nrank = 16\ndropout = 0.1\n[data]\n\
                      train = \"rows.jsonl\"\nformat = \"text\"\ncache = \"off\"\n[train]\nmicro_batch_size = 3\n\
                      grad_accumulation_steps = 2\nmax_steps = 6\nlearning_rate = 1e-2\nsave_steps = 100\n";
        fs::write(dir.join("recipe.toml"), recipe).unwrap();
    }
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    let recipe = Recipe::load(&dir.join("recipe.toml"), &overrides).unwrap();
    let watch = Watch {
        reporter: Box::new(heard),
        renderer: Box::new(NoRenderer),
        interrupter: Default::default(),
        control: Default::default(),
        start: backdraft::train::run::Start::New { force: true },
        memory,
    };
    let source = ModelSource::open(&model).unwrap();
    let data = data::read(&recipe, &source, &mut |_| ()).unwrap();
    let run = prepare(recipe, source, data, device).unwrap();
    run.train(watch).map(|(summary, _)| summary)
}

/// Whose memory nobody knows, so that only its failures tell.
#[derive(Debug)]
struct Blind;

impl MemoryWatch for Blind {
    fn obtainable(&self) -> Option<u64> {
        None
    }
}

/// How many bytes of a GPU's memory a program beside the test leaves free.
const LEAVE: &str = "BACKDRAFT_TEST_LEAVE";

/// Of the next test: another program, which holds a GPU's memory until it is killed.
#[test]
fn takes_the_memory_of_a_gpu_where_it_is_asked_to() {
    let Ok(leave) = std::env::var(LEAVE) else {
        return;
    };
    let (leave, gpu) = (leave.parse::<u64>().unwrap(), &device::cuda(0).unwrap());
    let mut taken: Vec<Tensor<1>> = Vec::new();
    while let Some([free, _]) = free_and_held(gpu)
        && free > leave + (64 << 20)
    {
        let bytes = (free - leave).min(8 << 30);
        // Of just that size.
        taken.push(device::lasting(gpu, (), |()| {
            Tensor::zeros([bytes as usize / 4], gpu)
        }));
        gpu.sync().unwrap();
    }
    println!("taken");
    std::thread::sleep(std::time::Duration::from_secs(120));
    drop(taken);
}

/// A program that has taken the memory of the GPU.
struct Taker(Child);

impl Taker {
    fn start(leave: u64) -> Self {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args([
            "--exact",
            "takes_the_memory_of_a_gpu_where_it_is_asked_to",
            "--nocapture",
        ]);
        program.env(LEAVE, leave.to_string()).stdout(Stdio::piped());
        let mut child = program.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("taken")));
        Self(child)
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Of a run that fills a GPU.
const LONG: [&str; 3] = [
    "max_seq_length=2048",
    "train.micro_batch_size=12",
    "train.grad_accumulation_steps=1",
];

fn adapter_file(summary: &RunSummary) -> Vec<u8> {
    fs::read(summary.adapter.join("adapter_model.safetensors")).unwrap()
}

#[test]
fn a_run_on_a_gpu_is_the_same_under_every_budget() {
    let _alone = alone();
    let gpu = match device::cuda(0) {
        Ok(gpu) => gpu,
        Err(error) => return println!("nothing checked: {error}"),
    };
    let dir = tempfile::tempdir().unwrap();
    // Kernels that add an adapter's term in passing take ranks of whole tiles.
    for rank in ["lora.rank=4", "lora.rank=16"] {
        let run = |settings: &[&str]| {
            let heard = Heard::default();
            let all = [&LONG[..], &[rank], settings].concat();
            let summary = train_on(&gpu, dir.path(), &all, None, heard.clone()).unwrap();
            let (losses, _, infos) = heard.0.lock().unwrap().clone();
            let prediction = infos[0].activations.prediction;
            (prediction, losses, adapter_file(&summary))
        };
        let (all, losses, adapter) = run(&[]);
        assert_eq!((all.recompute_flops, all.offloaded), (0, 0));
        for percent in [95, 80, 65, 55] {
            let budget = format!(
                "memory_budget={}MiB",
                (all.peak.total() * percent / 100) >> 20
            );
            for offloads in ["activation_offloading=true", "activation_offloading=false"] {
                let (less, found, file) = run(&[&budget, offloads]);
                assert!(less.recompute_flops + less.offloaded > 0, "{budget}");
                assert_eq!(found, losses, "{rank} {budget} {offloads}");
                assert!(file == adapter, "{rank} {budget} {offloads}");
            }
        }
    }
}

/// After the second step everything that the run does not hold is given back to the driver, and another program takes it
/// all but a part of what a step needs.
fn drill(watch: Option<Arc<dyn MemoryWatch>>) {
    let _alone = alone();
    let gpu = match device::cuda(0) {
        Ok(gpu) => gpu,
        Err(error) => return println!("nothing checked: {error}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let heard = Heard::default();
    let undisturbed = train_on(&gpu, dir.path(), &LONG, None, heard.clone()).unwrap();
    let (losses, replans, infos) = heard.0.lock().unwrap().clone();
    assert_eq!((losses.len(), replans.len()), (6, 0));
    let of_step = infos[0].activations.prediction.peak.of_step();
    assert!(of_step > 512 << 20, "{of_step}");
    let expected = adapter_file(&undisturbed);

    let taker = Arc::new(Mutex::new(None));
    let (gpu_then, kept) = (gpu.clone(), taker.clone());
    let happens = move || {
        gpu_then.memory_cleanup();
        *kept.lock().unwrap() = Some(Taker::start(of_step * 6 / 10));
    };
    let heard = Heard(Default::default(), Some((2, Arc::new(happens))));
    let summary = train_on(&gpu, dir.path(), &LONG, watch, heard.clone());
    let (found, replans, _) = heard.0.lock().unwrap().clone();
    println!("{replans:?}");
    let summary = summary.unwrap();
    assert!(taker.lock().unwrap().take().is_some());
    assert_eq!(replans.first().map(|replan| replan.step), Some(3));
    assert_eq!(found, losses);
    assert_eq!(adapter_file(&summary), expected);
}

#[test]
fn a_run_goes_on_when_another_program_takes_the_memory_of_its_gpu() {
    drill(None);
}

#[test]
fn a_run_goes_on_when_the_memory_of_its_gpu_is_gone_unseen() {
    drill(Some(Arc::new(Blind)));
}

#[test]
fn a_run_goes_on_when_memory_goes_away() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let plenty = || {
        Arc::new(Shrinking {
            looks: AtomicUsize::new(0),
            after: usize::MAX,
            left: AtomicU64::new(0),
        })
    };
    let (summary, heard) = train(dir.path(), &[], plenty());
    let undisturbed = summary.unwrap();
    let (losses, replans, infos) = heard.0.lock().unwrap().clone();
    assert_eq!((losses.len(), replans.len()), (6, 0));
    let prediction = infos[0].activations.prediction;
    assert_eq!(prediction.recompute_flops, 0);
    let expected = adapter_file(&undisturbed);

    // In the middle of the third step two thirds of what a step needs for itself are left.
    let step = prediction.peak.of_step();
    let fixed = prediction.peak.total() - step;
    let held = memory::resident().unwrap() as u64;
    let tight = Arc::new(Shrinking {
        looks: AtomicUsize::new(0),
        // One look before the run, then one for each layer of each pass.
        after: 1 + 2 * 12 + 9,
        left: AtomicU64::new(held + fixed + step * 2 / 3),
    });
    let (summary, heard) = train(dir.path(), &[], tight);
    let summary = summary.unwrap();
    let (found, replans, _) = heard.0.lock().unwrap().clone();
    assert!(!replans.is_empty());
    assert!(replans.iter().all(|replan| replan.step == 3), "{replans:?}");
    assert_eq!(found, losses);
    assert_eq!(adapter_file(&summary), expected);
    assert!(summary.memory.activations < undisturbed.memory.activations);
    let metrics = fs::read_to_string(dir.path().join("out/metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"budget_before\""), "{metrics}");
}

#[test]
fn a_budget_that_nothing_fits_names_what_to_lower() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let generous = || {
        Arc::new(Shrinking {
            looks: AtomicUsize::new(0),
            after: usize::MAX,
            left: AtomicU64::new(0),
        })
    };
    // The base takes 5 MiB: rows of 256 tokens, three at a time, need more than the rest.
    let (result, _) = train(dir.path(), &["memory_budget=10MiB"], generous());
    let Err(TrainError::OutOfMemory { exhausted, .. }) = result else {
        panic!("{result:?}")
    };
    assert!(exhausted.needed > exhausted.budget);
    let advice: Vec<String> = exhausted.advice.iter().map(ToString::to_string).collect();
    assert!(
        advice
            .iter()
            .any(|advice| advice.starts_with("max_seq_length from 256 to ")),
        "{advice:?}"
    );
    assert!(!dir.path().join("out").exists());
    // The advice is right: with it, the run starts and ends.
    let set = advice
        .iter()
        .find_map(|advice| advice.strip_prefix("max_seq_length from 256 to "))
        .unwrap();
    let set = format!("max_seq_length={set}");
    let overrides = ["memory_budget=10MiB", &set];
    let (result, _) = train(dir.path(), &overrides, generous());
    assert_eq!(result.unwrap().steps, 6);
}

/// Draws nothing.
struct NoRenderer;

mod no_renderer {
    use backdraft::burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
    use backdraft::burn::train::metric::MetricDefinition;
    use backdraft::burn::train::renderer::{
        EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
        MetricsRendererTraining,
    };

    use super::NoRenderer;

    impl MetricsRendererTraining for NoRenderer {
        fn update_train(&mut self, _: MetricState) {}
        fn update_valid(&mut self, _: MetricState) {}
    }

    impl MetricsRendererEvaluation for NoRenderer {
        fn update_test(&mut self, _: EvaluationName, _: MetricState) {}
    }

    impl TrainingProgressLogger for NoRenderer {
        fn start(&mut self, _: usize, _: usize, _: Option<usize>, _: Option<&str>) {}
        fn update_epoch(&mut self, _: usize) {}
        fn start_split(&mut self, _: &str, _: usize) {}
        fn update_split(&mut self, _: usize) {}
        fn end_split(&mut self) {}
        fn end(&mut self) {}
        fn log_event_training(&mut self, _: String) {}
    }

    impl EvaluationProgressLogger for NoRenderer {
        fn start_global_progress(&mut self, _: usize) {}
        fn start_test(&mut self, _: &str, _: usize) {}
        fn update_test_progress(&mut self, _: usize) {}
        fn end_test(&mut self) {}
        fn end_global_progress(&mut self) {}
        fn log_event_evaluation(&mut self, _: String) {}
    }

    impl MetricsRenderer for NoRenderer {
        fn manual_close(&mut self) {}
        fn register_metric(&mut self, _: MetricDefinition) {}
    }
}
