//! A training loop of your own: micro-batches, accumulated gradients, clipping and a schedule, without a recipe.
//!
//! ```text
//! cargo run --release -p backdraft --example custom_loop [MODEL]
//! ```
//!
//! `MODEL` is a Hugging Face directory or a GGUF file; without it, a tiny random checkpoint serves.
//!
//! The step is the trainer's: hand-written backward passes without a tape, memory by an [`ActivationPlan`], and AdamW
//! over all factors at once. `examples/embed.rs` does the same with Burn's autodiff and optimiser.
#![allow(clippy::print_stdout, reason = "an example talks")]

use std::env;
use std::error::Error;

use backdraft::burn::tensor::Device;
use backdraft::formats::{Existing, ModelSource, PeftWriteOptions};
use backdraft::kernels::adamw::AdamWParams;
use backdraft::lora::LoraConfig;
use backdraft::model::{CausalLm, Targets, Tokens};
use backdraft::plan::ActivationPlan;
use backdraft::train::optimizer::{Optimizer, StatePrecision};
use backdraft::train::step::{MicroBatch, forward_backward};

pub(crate) const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny/llama-tied");
pub(crate) const STEPS: usize = 30;
const ADAMW: AdamWParams = AdamWParams {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.0,
};

/// Documents of several lengths: each counts on in threes from where it begins.
fn documents(step: usize) -> Vec<Vec<u32>> {
    let document = |i: usize| -> Vec<u32> {
        let (first, length) = (step * 7 + i * 13, 8 + i % 5);
        (0..length)
            .map(|j| 3 + ((first + 3 * j) % 96) as u32)
            .collect()
    };
    (0..8).map(document).collect()
}

/// Tokens and targets of some documents; the first two tokens of each are a prompt, which is not trained.
fn micro_batch(documents: &[Vec<u32>]) -> MicroBatch {
    let tokens = Tokens::from_sequences(documents);
    let label = |(i, id): (usize, &u32)| if i < 2 { -100 } else { i64::from(*id) };
    let labels = documents
        .iter()
        .flat_map(|ids| ids.iter().enumerate().map(label));
    let labels: Vec<i64> = labels.collect();
    let targets = Targets::from_labels(&tokens.segments, &labels);
    MicroBatch { tokens, targets }
}

/// Trains adapters on `source`; the losses of all steps, in nats, and the model.
pub(crate) fn train(source: &ModelSource) -> Result<(Vec<f32>, CausalLm), Box<dyn Error>> {
    let lora = LoraConfig {
        rank: 8,
        alpha: 16.0,
        ..LoraConfig::default()
    };
    let mut model = CausalLm::load(source, &Device::flex())?.with_lora(&lora, 42)?;
    let mut optimizer = Optimizer::adamw(ADAMW, StatePrecision::F32);
    optimizer.adopt(&mut model);
    let plan = ActivationPlan::keep_all(model.num_backward_layers());

    let mut losses = Vec::new();
    for step in 0..STEPS {
        let documents = documents(step);
        let batches: Vec<MicroBatch> = documents.chunks(4).map(micro_batch).collect();
        // One divisor for the whole step: it does not matter how documents are cut into micro-batches.
        let targets: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        let scale = 1.0 / targets as f32;

        let mut gradients = optimizer.grads();
        let mut nll = 0.0;
        for batch in &batches {
            let sum = forward_backward(&model, batch, scale, None, &plan, &mut gradients);
            nll += sum.into_scalar::<f32>();
        }
        let (gradients, norm) = optimizer.clip(&model, gradients, 1.0);
        let lr = 1e-2 * (1.0 - step as f64 / STEPS as f64);
        optimizer.step(&mut model, &gradients, lr);

        losses.push(nll * scale);
        if step % 5 == 0 || step + 1 == STEPS {
            let norm = norm.into_scalar::<f32>();
            println!(
                "step {step:>2}  loss {:.4}  gradient norm {norm:.3}",
                nll * scale
            );
        }
    }
    Ok((losses, model))
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).unwrap_or_else(|| TINY.to_owned());
    let (_, model) = train(&ModelSource::open(&path)?)?;

    // A directory that PEFT loads, and `backdraft generate --adapter`.
    let adapter = model.adapter().ok_or("the model has no adapter")?;
    let directory = env::temp_dir().join("backdraft-custom-loop");
    let options = PeftWriteOptions {
        existing: Existing::Replace,
        ..PeftWriteOptions::default()
    };
    adapter.write(&directory, &path, &options)?;
    println!("{}", directory.display());
    Ok(())
}
