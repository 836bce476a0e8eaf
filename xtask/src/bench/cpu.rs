//! LoRA steps on the processor.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use backdraft_data::{
    Batch, Batching, DataOptions, Format, Loader, LoaderOptions, RowSet, Source, Supervision,
    TokenizeOptions,
};
use backdraft_formats::ModelSource;
use backdraft_kernels::adamw::AdamWParams;
use backdraft_lora::{AdapterGrads, LoraConfig};
use backdraft_model::{CausalLm, Targets, Tokens};
use backdraft_plan::ActivationPlan;
use backdraft_train::data::tokenizer;
use backdraft_train::optimizer::{Optimizer, StatePrecision, clip, global_norm};
use backdraft_train::step::{MicroBatch, forward_backward};
use burn::tensor::Device;

/// One timed case.
struct Case {
    name: String,
    batches: Vec<MicroBatch>,
    rows: usize,
}

/// Prints a table, and one JSON object for each row of it.
pub(crate) fn run(
    model: Option<PathBuf>,
    rows: Option<PathBuf>,
    only_batching: bool,
    steps: usize,
) -> anyhow::Result<()> {
    let path = model
        .or_else(default_model)
        .context("name the model with --model")?;
    let device = Device::flex();
    let source = ModelSource::open(&path)?;
    let model = CausalLm::load(&source, &device)?.with_lora(&LoraConfig::default(), 42)?;
    let vocabulary = model.spec().vocab_size as u32;
    let mut cases = match only_batching {
        true => Vec::new(),
        false => vec![random(4, 256, vocabulary), random(2, 512, vocabulary)],
    };
    if let Some(rows) = rows {
        let tokenizer = tokenizer(&source)?;
        let options = TokenizeOptions::from(DataOptions {
            format: Format::Messages,
            template: None,
            supervision: Supervision::Responses,
            max_seq_length: 2048,
        });
        let sources = [Source::from_file(&rows)];
        let (rows, _) = RowSet::load(&sources, &options, &tokenizer, &mut |_| ())?;
        let rows = rows.choose(0..rows.len().min(64));
        if !only_batching {
            cases.push(from_rows(&rows)?);
        }
        for (name, batching) in [
            ("padded", Batching::LengthGrouped),
            ("padding-free", Batching::PaddingFree),
            (
                "packed",
                Batching::Packed {
                    max_seq_length: PACK,
                },
            ),
        ] {
            cases.push(batched(&rows, name, batching)?);
        }
    }
    println!("{} threads, after loading {:.2} GiB", threads(), peak_gib());
    for case in &cases {
        measure(model.clone(), case, steps)?;
    }
    Ok(())
}

fn measure(mut model: CausalLm, case: &Case, steps: usize) -> anyhow::Result<()> {
    let tokens: usize = case.batches.iter().map(|batch| batch.tokens.len()).sum();
    let mut optimizer = Optimizer::adamw(
        AdamWParams {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
        },
        StatePrecision::F32,
    );
    let plan = ActivationPlan::keep_all(model.num_backward_layers());
    let mut seconds = Vec::new();
    let mut processor = 0.0;
    for step in 0..=steps {
        let (began, used) = (Instant::now(), processor_seconds());
        for batch in &case.batches {
            let mut grads = AdapterGrads::new();
            let scale = 1.0 / batch.targets.len() as f32;
            let nll = forward_backward(&model, batch, scale, None, &plan, &mut grads);
            let norm = global_norm(&model, &grads);
            optimizer.step(&mut model, &clip(grads, &norm, 1.0), 2e-4);
            nll.try_into_scalar::<f64>()?;
        }
        if step > 0 {
            seconds.push(began.elapsed().as_secs_f64());
            processor += (processor_seconds() - used) / steps as f64;
        }
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let row = serde_json::json!({
        "case": case.name,
        "seconds": median,
        "seconds_min": seconds[0],
        "seconds_max": seconds[seconds.len() - 1],
        // Of all threads, the mean of the steps: what other programs take of the machine is not in it.
        "processor_seconds": processor,
        "tokens_per_second": tokens as f64 / median,
        "rows_per_second": case.rows as f64 / median,
        "peak_gib": peak_gib(),
        "threads": threads(),
    });
    println!(
        "{:<22} {:>8.3} s  {:>7.1} tokens/s  {:>6.2} rows/s  peak {:.2} GiB\n{row}",
        case.name,
        median,
        tokens as f64 / median,
        case.rows as f64 / median,
        peak_gib(),
    );
    Ok(())
}

fn random(batch: usize, length: usize, vocabulary: u32) -> Case {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    let documents: Vec<Vec<u32>> = (0..batch)
        .map(|_| (0..length).map(|_| next()).collect())
        .collect();
    let labels: Vec<i64> = documents.concat().into_iter().map(i64::from).collect();
    let tokens = Tokens::from_sequences(&documents);
    let targets = Targets::from_labels(&tokens.segments, &labels);
    Case {
        name: format!("{batch}x{length} random ids"),
        batches: vec![MicroBatch { tokens, targets }],
        rows: batch,
    }
}

fn from_rows(rows: &RowSet) -> anyhow::Result<Case> {
    let numbers: Vec<usize> = (0..rows.len()).collect();
    let batches = numbers
        .chunks(MICRO_BATCH)
        .map(|numbers| Ok(MicroBatch::from(Batch::from_rows(rows, numbers)?)))
        .collect::<anyhow::Result<_>>()?;
    Ok(Case {
        name: format!("{} rows by {MICRO_BATCH}", rows.len()),
        batches,
        rows: rows.len(),
    })
}

/// Rows of a micro-batch.
const MICRO_BATCH: usize = 4;
/// Tokens of a pack.
const PACK: usize = 512;

/// An epoch as training deals it out: the same rows, put together in one of three ways.
fn batched(rows: &RowSet, name: &str, batching: Batching) -> anyhow::Result<Case> {
    let packed = matches!(batching, Batching::Packed { .. });
    let options = LoaderOptions {
        // A pack holds as many rows as fit: one of them is a micro-batch.
        micro_batch_size: if packed { 1 } else { MICRO_BATCH },
        grad_accumulation_steps: 1,
        seed: 42,
        shuffle: true,
        batching,
        sources: Vec::new(),
    };
    let mut loader = Loader::with_options(rows.lengths(), options)?;
    let density = loader.density().unwrap_or_default();
    let mut batches = Vec::new();
    for _ in 0..loader.steps_per_epoch() {
        for numbers in loader.next_step() {
            let batch = Batch::from_rows(rows, &numbers)?;
            batches.push(MicroBatch::from(match batching {
                Batching::LengthGrouped => batch.padded(0)?,
                Batching::PaddingFree | Batching::Packed { .. } => batch,
            }));
        }
    }
    Ok(Case {
        name: format!(
            "{} rows {name}, {} passes, {:.1} % full, {} tokens wasted",
            rows.len(),
            batches.len(),
            100.0 * density.density(),
            density.wasted()
        ),
        batches,
        rows: rows.len(),
    })
}

/// Where `quickstart` keeps its model.
pub(crate) fn default_model() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(PathBuf::from(home).join(".cache"))
        })?;
    Some(cache.join("backdraft/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Processor time of all threads so far; Linux counts in hundredths.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in brackets, may have spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

/// Peak resident memory of this process, from the kernel's own count.
fn peak_gib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line
        .and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(f64::NAN);
    kib / 1024.0 / 1024.0
}
