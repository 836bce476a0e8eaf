//! Step time against memory budget: fixed policies, and `smart` at budgets between them.
//!
//! Every case runs in a process of its own, this same program started again, because allocators do not give back
//! what an earlier case had.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use backdraft_formats::ModelSource;
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::adamw8bit::Guard;
use backdraft_lora::{AdapterGrads, LoraConfig};
use backdraft_model::{Llama, Targets, Tokens};
use backdraft_quant::{QuantizationPlan, Scheme};
use backdraft_train::activation::cost::{Calibration, CostModel, Roofline};
use backdraft_train::activation::tensors::{MemoryModel, PassShape};
use backdraft_train::activation::{ActivationPlan, Prediction, Setup};
use backdraft_train::memory;
use backdraft_train::optimizer::{AdamW, StatePrecision, clip, global_norm};
use backdraft_train::step::{MicroBatch, forward_backward};
use burn::tensor::Device;
use clap::Args;
use serde_json::{Value, json};

use crate::plot::{Plot, Point};

/// What is measured.
#[derive(Debug, Clone, Args)]
pub(crate) struct ActivationArgs {
    /// The model: a directory or a .gguf file; `cargo xtask random-model` writes one.
    #[arg(long)]
    model: PathBuf,
    /// Keep the projections in NF4.
    #[arg(long)]
    nf4: bool,
    /// Rows of a pass.
    #[arg(long, default_value_t = 2)]
    rows: usize,
    /// Tokens of a row.
    #[arg(long, default_value_t = 512)]
    tokens: usize,
    /// Columns of the adapters.
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Budgets of `smart`, from recompute-all's peak to keep-all's.
    #[arg(long, default_value_t = 8)]
    budgets: u64,
    /// Timed steps of each case, after one that is not.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// cpu or cuda.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Directory for `activation.json` and `activation.svg`.
    #[arg(long)]
    out: PathBuf,
    /// Draw Unsloth's two measured points, which are for an 8B model in NF4 at 2 x 2048 tokens on an H100.
    #[arg(long)]
    unsloth: bool,
    /// Internal: measure this one case and print it.
    #[arg(long, hide = true)]
    case: Option<String>,
}

/// Unsloth's step of an 8B model in NF4, rank 16, at 2 x 2048 tokens on an H100: with its checkpointing, and without.
///
/// # Units
/// GiB and milliseconds.
const UNSLOTH: [(&str, f64, f64); 2] = [
    ("Unsloth, recomputing", 6.79, 415.0),
    ("Unsloth, keeping all", 20.8, 288.0),
];

/// Measures, prints a table and a JSON object for each row, and writes both files.
pub(crate) fn run(args: &ActivationArgs) -> anyhow::Result<()> {
    if let Some(case) = &args.case {
        let row = measure(args, case)?;
        println!("{row}");
        return Ok(());
    }
    let mut rows = Vec::new();
    let recompute = child(args, "recompute-all")?;
    let keep = child(args, "keep-all")?;
    let peak = |row: &Value| {
        row["predicted_peak"]
            .as_u64()
            .context("a child without a peak")
    };
    let (least, most) = (peak(&recompute)?, peak(&keep)?);
    show(&recompute);
    rows.push(recompute);
    for i in 0..args.budgets {
        let budget = least + (most - least) / args.budgets.saturating_sub(1).max(1) * i;
        let budget = if i + 1 == args.budgets { most } else { budget };
        let row = child(args, &budget.to_string())?;
        show(&row);
        rows.push(row);
    }
    show(&keep);
    rows.push(keep);
    std::fs::create_dir_all(&args.out)?;
    let text = serde_json::to_string_pretty(&rows)?;
    std::fs::write(args.out.join("activation.json"), text)?;
    std::fs::write(args.out.join("activation.svg"), plot(args, &rows).to_svg())?;
    println!("wrote {}", args.out.join("activation.svg").display());
    Ok(())
}

fn show(row: &Value) {
    let gib = |key: &str| row[key].as_f64().unwrap_or(f64::NAN) / f64::from(1u32 << 30);
    println!(
        "{:<16} {:>9.1} ms  peak {:>6.2} GiB, predicted {:>6.2}  recomputed {:>8.3} TFLOP\n{row}",
        row["case"].as_str().unwrap_or_default(),
        row["milliseconds"].as_f64().unwrap_or(f64::NAN),
        gib("measured_peak"),
        gib("predicted_peak"),
        row["recompute_flops"].as_f64().unwrap_or(f64::NAN) / 1e12,
    );
}

/// The same program again, for one case.
fn child(args: &ActivationArgs, case: &str) -> anyhow::Result<Value> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "activation", "--case", case]);
    command
        .arg("--model")
        .arg(&args.model)
        .arg("--out")
        .arg(&args.out);
    command.args(["--device", &args.device]);
    for (flag, value) in [
        ("--rows", args.rows),
        ("--tokens", args.tokens),
        ("--rank", args.rank),
        ("--steps", args.steps),
    ] {
        command.arg(flag).arg(value.to_string());
    }
    if args.nf4 {
        command.arg("--nf4");
    }
    let output = command.stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("{case}: {}", output.status);
    }
    let text = String::from_utf8(output.stdout)?;
    let line = text
        .lines()
        .last()
        .with_context(|| format!("{case} printed nothing"))?;
    Ok(serde_json::from_str(line)?)
}

/// One case: `recompute-all`, `keep-all`, or a budget of `smart` in bytes.
fn measure(args: &ActivationArgs, case: &str) -> anyhow::Result<Value> {
    let on_gpu = args.device == "cuda";
    let device = match args.device.as_str() {
        "cpu" => Device::flex(),
        "cuda" => backdraft_kernels::device::cuda(0)?,
        other => bail!("--device takes cpu or cuda, not {other}"),
    };
    let source = ModelSource::open(&args.model)?;
    let quantization = args.nf4.then(|| QuantizationPlan::new(Scheme::NF4));
    let lora = LoraConfig {
        rank: args.rank,
        ..LoraConfig::default()
    };
    let model = Llama::load_quantized(&source, quantization.as_ref(), &device)?;
    let mut model = model.with_lora(&lora, 42)?;
    let element = model.norm().weight().dtype().size() as u64;
    let setup = Setup {
        config: model.config().clone(),
        lora,
        quantization,
        base: None,
        dense_element: element,
        memory: if on_gpu {
            MemoryModel::cube(element)
        } else {
            MemoryModel::cpu()
        },
        optimizer: StatePrecision::Bits8(Guard::On),
        micro_batch_size: args.rows,
        max_seq_length: args.tokens,
        grad_accumulation_steps: 1,
    }
    .with_model(&mut model);
    let (step, pass) = (setup.step(), setup.pass());
    let line = if on_gpu { Roofline::GPU } else { Roofline::CPU };
    let cost = CostModel::Measured(calibrate(&model, args.tokens)?, line);
    let layers = step.layers.len();
    let plan = match case {
        "recompute-all" => ActivationPlan::recompute_all(layers),
        "keep-all" => ActivationPlan::keep_all(layers),
        budget => step
            .solve(budget.parse()?, pass, &cost)
            .map_err(|shortage| anyhow::anyhow!("{shortage:?}"))?,
    };
    let prediction = step.predict(&plan, pass, &cost);
    let (seconds, peak) = steps(args, model, &plan, on_gpu)?;
    Ok(row(case, &plan, prediction, &seconds, peak))
}

fn row(
    case: &str,
    plan: &ActivationPlan,
    prediction: Prediction,
    seconds: &[f64],
    peak: Option<u64>,
) -> Value {
    let budget: Option<u64> = case.parse().ok();
    json!({
        "case": if budget.is_some() { "smart" } else { case },
        "budget": budget,
        "milliseconds": 1e3 * seconds[seconds.len() / 2],
        "milliseconds_min": 1e3 * seconds[0],
        "milliseconds_max": 1e3 * seconds[seconds.len() - 1],
        "measured_peak": peak,
        "predicted_peak": prediction.peak.total(),
        "recompute_flops": prediction.recompute_flops,
        "flops": prediction.flops,
        "plan": plan,
    })
}

/// Times of one layer's tensors.
fn calibrate(model: &Llama, tokens: usize) -> anyhow::Result<Calibration> {
    let sample = Tokens::from_sequences(&[vec![0; tokens]]);
    let context = model.context(&sample, None);
    let h = model.embed(&sample.input_ids).inner();
    let layer = model.layers.last().context("a model without layers")?;
    Ok(Calibration::measure(
        layer,
        &h,
        &context,
        PassShape::of_sequences([tokens]),
    )?)
}

/// Sorted times of steps, and the peak.
fn steps(
    args: &ActivationArgs,
    mut model: Llama,
    plan: &ActivationPlan,
    on_gpu: bool,
) -> anyhow::Result<(Vec<f64>, Option<u64>)> {
    let batch = batch(args.rows, args.tokens, model.config().vocab_size as u32);
    let params = AdamWParams {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
    };
    let mut optimizer = AdamW::new(params, StatePrecision::Bits8(Guard::On));
    let mut seconds = Vec::new();
    let watch = on_gpu.then(GpuPeak::start);
    if !on_gpu {
        forget_peak();
    }
    for i in 0..=args.steps {
        let began = Instant::now();
        let mut grads = AdapterGrads::new();
        let scale = 1.0 / batch.targets.len() as f32;
        let nll = forward_backward(&model, &batch, scale, None, plan, &mut grads);
        let norm = global_norm(&model, &grads);
        optimizer.step(&mut model, &clip(grads, &norm, 1.0), 2e-4);
        nll.try_into_scalar::<f64>()?;
        for (_, _, adapter) in model.adapters().take(1) {
            adapter
                .lora_a
                .val()
                .inner()
                .sum()
                .try_into_scalar::<f64>()?;
        }
        if i > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    let peak = match watch {
        Some(watch) => watch.stop(),
        None => memory::peak_resident().map(|bytes| bytes as u64),
    };
    Ok((seconds, peak))
}

fn batch(rows: usize, tokens: usize, vocabulary: u32) -> MicroBatch {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    let documents: Vec<Vec<u32>> = (0..rows)
        .map(|_| (0..tokens).map(|_| next()).collect())
        .collect();
    let labels: Vec<i64> = documents.concat().into_iter().map(i64::from).collect();
    let tokens = Tokens::from_sequences(&documents);
    let targets = Targets::from_labels(&tokens.segments, &labels);
    MicroBatch { tokens, targets }
}

/// Lets the kernel count the peak from now on: reading the model is higher than a step of a small one.
fn forget_peak() {
    // Without the right to do so the peak includes reading the model.
    let _ = std::fs::write(Path::new("/proc/self/clear_refs"), "5");
}

/// The highest memory that `nvidia-smi` has seen in use.
struct GpuPeak {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl GpuPeak {
    fn start() -> Self {
        let (stop, peak) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (stopped, highest) = (stop.clone(), peak.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(bytes) = gpu_memory() {
                    highest.fetch_max(bytes, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self { stop, peak, thread }
    }

    fn stop(self) -> Option<u64> {
        // The allocator keeps what it had, so a look after the last step sees the peak.
        if let Some(bytes) = gpu_memory() {
            self.peak.fetch_max(bytes, Ordering::Relaxed);
        }
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
        Some(self.peak.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}

fn gpu_memory() -> Option<u64> {
    let output = Command::new("nvidia-smi")
        .args([
            "--query-gpu=memory.used",
            "--format=csv,noheader,nounits",
            "-i",
            "0",
        ])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mib: u64 = text.trim().parse().ok()?;
    Some(mib << 20)
}

fn plot(args: &ActivationArgs, rows: &[Value]) -> Plot {
    let point = |row: &Value| {
        let peak = row["measured_peak"]
            .as_f64()
            .or(row["predicted_peak"].as_f64());
        let (x, y) = (peak? / f64::from(1u32 << 30), row["milliseconds"].as_f64()?);
        Some((x, y))
    };
    let smart = rows
        .iter()
        .filter(|row| row["case"] == "smart")
        .filter_map(point);
    let mut points: Vec<Point> = rows
        .iter()
        .filter(|row| row["case"] != "smart")
        .filter_map(|row| {
            let (x, y) = point(row)?;
            Some(Point {
                name: row["case"].as_str()?.to_owned(),
                x,
                y,
            })
        })
        .collect();
    if args.unsloth {
        points.extend(UNSLOTH.map(|(name, x, y)| Point {
            name: name.to_owned(),
            x,
            y,
        }));
    }
    Plot {
        title: format!(
            "{} x {} tokens, rank {}, {}",
            args.rows,
            args.tokens,
            args.rank,
            if args.nf4 { "nf4" } else { "dense" }
        ),
        x: "peak memory, GiB".to_owned(),
        y: "step, ms".to_owned(),
        line: ("smart".to_owned(), smart.collect()),
        points,
    }
}
