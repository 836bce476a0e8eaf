//! How long it takes to find a plan, and what it saves at recompute-all's own peak.

use std::time::Instant;

use backdraft_arch::{BaseHome, StatePrecision};
use backdraft_kernels::adamw8bit::Guard;
use backdraft_lora::LoraConfig;
use backdraft_model::ModelSpec;
use backdraft_plan::cost::{CostModel, Roofline};
use backdraft_plan::tensors::MemoryModel;
use backdraft_plan::{ActivationPlan, Setup};
use backdraft_quant::{QuantizationPlan, Scheme};
use serde_json::json;

/// Prints a line for each model and shape: the slowest of sixteen budgets.
pub(crate) fn run() -> anyhow::Result<()> {
    let models = [("8B", 4096, 14_336, 32, 32), ("70B", 8192, 28_672, 80, 64)];
    for (name, hidden, intermediate, layers, heads) in models {
        for (rows, tokens) in [(2, 2048), (1, 8192)] {
            let spec = ModelSpec::from_hf(&json!({
                "model_type": "llama", "hidden_size": hidden, "intermediate_size": intermediate,
                "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 8,
                "head_dim": 128, "vocab_size": 128_256, "max_position_embeddings": 131_072,
                "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "tie_word_embeddings": false,
            }))?;
            let setup = Setup {
                spec,
                lora: LoraConfig::default(),
                tokens: 0,
                quantization: Some(QuantizationPlan::new(Scheme::NF4)),
                base: None,
                dense_element: 2,
                memory: MemoryModel::cube(2),
                optimizer: StatePrecision::Bits8(Guard::On).into(),
                micro_batch_size: rows,
                max_seq_length: tokens,
                texts_per_row: 1,
                grad_accumulation_steps: 1,
                releases: false,
                masters: true,
                host: 64 << 30,
                home: BaseHome::Device,
            };
            measure(name, &setup);
        }
    }
    Ok(())
}

fn measure(name: &str, setup: &Setup) {
    let (step, pass) = (setup.step(), setup.pass());
    let cost = CostModel::Roofline(Roofline::GPU);
    let layers = step.layers.len();
    let keep = step.predict(&ActivationPlan::keep_all(layers), pass, &cost);
    let all = step.predict(&ActivationPlan::recompute_all(layers), pass, &cost);
    let (least, most) = (step.least_peak(pass), keep.peak.total());
    let mut times = Vec::new();
    for i in 0..16 {
        let budget = least + (most - least) / 16 * i;
        let began = Instant::now();
        if step.solve(budget, pass, &cost).is_err() {
            println!("{name}: nothing fits {budget}");
        }
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let avoided = step.solve(all.peak.total(), pass, &cost).map(|plan| {
        let smart = step.predict(&plan, pass, &cost);
        100.0 * (1.0 - smart.recompute_flops as f64 / all.recompute_flops as f64)
    });
    println!(
        "{name} {} x {}, {layers} layers: a plan in {:.1} ms, {:.1} at most; recompute-all {:.2} GiB, keep-all {:.2} \
         GiB; at recompute-all's peak smart avoids {:.1} % of its recompute FLOPs (predicted)",
        setup.micro_batch_size,
        setup.max_seq_length,
        times[times.len() / 2],
        times[times.len() - 1],
        all.peak.total() as f64 / f64::from(1u32 << 30),
        keep.peak.total() as f64 / f64::from(1u32 << 30),
        avoided.unwrap_or(f64::NAN),
    );
}
