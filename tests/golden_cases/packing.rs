//! Packs against their documents alone: nothing leaks from one document into another.

use backdraft::data::pipeline::TokenizedRow;
use backdraft::data::rng::SplitMix64;
use backdraft::data::{
    Answer, Answers, Batch, Batching, IGNORE_INDEX, Loader, LoaderOptions, RowSet, TokenRows,
};
use backdraft::lora::AdapterGrads;
use backdraft::model::CausalLm;
use backdraft::plan::ActivationPlan;
use backdraft::train::step::{MicroBatch, forward_backward};
use backdraft_testkit::golden::Tensors;
use backdraft_testkit::tolerance::{TINY_GRADIENT, TINY_LOGITS, TINY_LOSS, TINY_NORM, Tolerance};

use super::compare::{by_name, norm, scalar, values};
use super::lora_entry::LoraCase;
use super::tiny_case::TinyCase;

/// Tokens of a pack.
const CAPACITY: usize = 40;
/// Products over other rows round otherwise, and by no more than this; tokens that see another document are far beyond it.
const LOSS: Tolerance = Tolerance::Relative(1e-5);
const GRADIENT: Tolerance = Tolerance::OfLargest(1e-5);
/// Products round otherwise where a batch has other rows, and a DeltaNet brings short keys to length 1, which makes that
/// larger: 2.2e-4 was seen. Its own ops give the same bits (`kernels/src/parity/delta.rs`); a state that leaks changes
/// gradients by as much as they are large.
const DELTA_NET_GRADIENT: Tolerance = Tolerance::OfLargest(1e-3);

/// Documents of 2 to `CAPACITY` tokens, about half of them trained.
fn documents(count: usize, vocabulary: usize, seed: u64) -> RowSet {
    let mut rng = SplitMix64::new(seed);
    let rows = (0..count).map(|line| {
        let length = 2 + rng.below(CAPACITY - 1);
        let input_ids: Vec<u32> = (0..length).map(|_| rng.below(vocabulary) as u32).collect();
        let mut labels: Vec<i64> = input_ids
            .iter()
            .map(|id| match rng.below(2) {
                0 => IGNORE_INDEX,
                _ => i64::from(*id),
            })
            .collect();
        labels[length - 1] = i64::from(input_ids[length - 1]);
        TokenizedRow {
            input_ids,
            labels,
            answers: Answers::One,
            file: 0,
            line,
            key: line as u64,
        }
    });
    RowSet::new(TokenRows::Memory(rows.collect()), &[])
}

/// Σ nll and the gradients of `scale`·Σ nll, over micro-batches.
fn step(model: &CausalLm, batches: &[Batch], scale: f32) -> (f64, Vec<(String, Vec<f32>)>) {
    let plan = ActivationPlan::keep_all(model.layers.len());
    let mut grads = AdapterGrads::new();
    let mut nll = 0.0;
    for batch in batches {
        let batch = MicroBatch::from(batch.clone());
        nll += scalar(&forward_backward(
            model, &batch, scale, None, &plan, &mut grads,
        ));
    }
    (nll, by_name(model, &grads))
}

/// All micro-batches of an epoch.
fn epoch(rows: &RowSet, batching: Batching, micro_batch_size: usize) -> Vec<Batch> {
    let options = LoaderOptions {
        micro_batch_size,
        grad_accumulation_steps: 1,
        seed: 7,
        shuffle: true,
        batching,
        sources: Vec::new(),
    };
    let mut loader = Loader::with_options(rows.lengths(), options).unwrap();
    let steps = loader.steps_per_epoch();
    let numbers = (0..steps).flat_map(|_| loader.next_step());
    let numbers: Vec<Vec<usize>> = numbers.collect();
    numbers
        .iter()
        .map(|numbers| Batch::from_rows(rows, numbers).unwrap())
        .collect()
}

#[test]
fn golden_tiny_packed_equals_unpacked() {
    for case in TinyCase::all() {
        for LoraCase { name, model, .. } in LoraCase::all(&case) {
            let rows = documents(24, model.spec().vocab_size, 3);
            let targets = rows.counts().supervised_tokens;
            let scale = 1.0 / targets as f32;
            let alone: Vec<Batch> = (0..rows.len())
                .map(|row| Batch::from_rows(&rows, &[row]).unwrap())
                .collect();
            let (nll, grads) = step(&model, &alone, scale);
            let packed = Batching::Packed {
                max_seq_length: CAPACITY,
            };
            let padded: Vec<Batch> = epoch(&rows, Batching::LengthGrouped, 4)
                .iter()
                .map(|batch| batch.padded(0).unwrap())
                .collect();
            for (kind, batches) in [
                ("packed", epoch(&rows, packed, 1)),
                ("two packs", epoch(&rows, packed, 2)),
                ("padding-free", epoch(&rows, Batching::PaddingFree, 4)),
                ("padded", padded),
            ] {
                // There padding counts in the length of a text, which chooses its rotary frequencies.
                let longrope = model.spec().rope.scaling.name() == "longrope";
                if longrope && kind == "padded" {
                    continue;
                }
                let what = format!("{name}, {kind}");
                assert!(
                    batches.len() < rows.len(),
                    "{what}: nothing was put together"
                );
                let supervised: usize = batches.iter().map(Batch::supervised_tokens).sum();
                assert_eq!(supervised as u64, targets, "{what}: targets");
                let (together, packed_grads) = step(&model, &batches, scale);
                LOSS.check_one(format!("{what}: loss"), together, nll);
                assert_eq!(packed_grads.len(), grads.len());
                for ((factor, grad), (other, expected)) in packed_grads.iter().zip(&grads) {
                    assert_eq!(factor, other);
                    let gradient = match model.spec().has_delta_nets() {
                        true => DELTA_NET_GRADIENT,
                        false => GRADIENT,
                    };
                    gradient.check(format!("{what}: {factor}"), grad, expected);
                }
            }
        }
    }
}

/// The packs that some cases give, with the values of their documents alone.
#[test]
fn golden_tiny_given_packs() {
    for case in TinyCase::all() {
        let path = case.path.join("packed.safetensors");
        if !path.exists() {
            continue;
        }
        let (given, tensors) = (&case.golden["packed"], Tensors::open(path));
        let [ids, labels] = ["input_ids", "labels"].map(|name| tensors.i64(name));
        let mut ends = vec![0];
        for length in tensors.i64("document_lengths") {
            ends.push(ends[ends.len() - 1] + length as u32);
        }
        let positions = tensors.i64("position_ids").into_iter();
        let batch = Batch {
            input_ids: ids.iter().map(|&id| id as u32).collect(),
            labels,
            position_ids: positions.map(|position| position as u32).collect(),
            rows: (1..ends.len()).collect(),
            answers: vec![Answer::Plain; ends.len() - 1],
            margins: vec![0.0; ends.len() - 1],
            cu_seqlens: ends.clone(),
        };
        let pack = MicroBatch::from(batch.clone());
        let logits = case
            .model
            .logits(case.model.forward_hidden(&pack.tokens, None));
        TINY_LOGITS.check(&case.name, &values(&logits), &tensors.f32("logits"));
        let mean = |model: &CausalLm| scalar(&model.nll(&pack.tokens, &pack.targets).mean());
        let expected = given["loss"].as_f64().unwrap();
        TINY_LOSS.check_one(&case.name, mean(&case.model), expected);
        for LoraCase { name, model, .. } in LoraCase::all(&case) {
            let targets = pack.targets.len();
            let (nll, grads) = step(&model, std::slice::from_ref(&batch), 1.0 / targets as f32);
            let expected = given["lora_loss"].as_f64().unwrap();
            TINY_LOSS.check_one(&name, nll / targets as f64, expected);
            for (factor, grad) in &grads {
                let expected = tensors.f32(&format!("lora.grad.{factor}"));
                TINY_GRADIENT.check(format!("{name}, {factor}"), grad, &expected);
            }
            let total = norm(grads.iter().flat_map(|(_, grad)| grad));
            TINY_NORM.check_one(&name, total, given["lora_grad_norm"].as_f64().unwrap());
        }
    }
}

#[test]
fn golden_tiny_documents_of_a_pack_do_not_see_each_other() {
    for case in TinyCase::all() {
        for LoraCase { name, model, .. } in LoraCase::all(&case) {
            let rows = documents(3, model.spec().vocab_size, 11);
            let others = documents(3, model.spec().vocab_size, 12);
            // The same middle document between different neighbours of the same lengths.
            let batch = Batch::from_rows(&rows, &[0, 1, 2]).unwrap();
            let mut changed = batch.clone();
            let middle = batch.cu_seqlens[1] as usize..batch.cu_seqlens[2] as usize;
            let noise: Vec<u32> = others
                .iter()
                .flat_map(|row| row.input_ids.to_vec())
                .collect();
            for (at, id) in changed.input_ids.iter_mut().enumerate() {
                if !middle.contains(&at) {
                    *id = (*id + 1 + noise[at % noise.len()] % 7) % model.spec().vocab_size as u32;
                }
            }
            assert_ne!(batch.input_ids, changed.input_ids);
            let logits = |batch: &Batch| {
                let tokens = MicroBatch::from(batch.clone()).tokens;
                let hidden = model.forward_hidden(&tokens, None);
                let hidden = hidden.narrow(0, middle.start, middle.len());
                super::compare::values(&model.logits(hidden))
            };
            assert_eq!(logits(&batch), logits(&changed), "{name}");
        }
    }
}
