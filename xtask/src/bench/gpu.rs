//! LoRA steps of a random model on a CUDA device.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use backdraft_arch::{BaseHome, KeepSet, ModelSpec, NestedFormat, OffloadSet};
use backdraft_formats::ModelSource;
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::adamw8bit::Guard;
use backdraft_kernels::device;
use backdraft_lora::LoraConfig;
use backdraft_model::CausalLm;
use backdraft_plan::{ActivationPlan, Segment};
use backdraft_quant::{QuantizationPlan, Scheme};
use backdraft_train::optimizer::{self, StatePrecision};
use backdraft_train::ranks::{Blocks, Ranks};
use burn::tensor::{DType, Device, Tensor, TensorData};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::card::{Load, Watch};
use super::random_model;
use super::sample::{Objective, Sample};

#[derive(Args)]
pub(crate) struct GpuArgs {
    /// A directory that `random-model` wrote.
    #[arg(long)]
    model: PathBuf,
    /// How the base is kept.
    #[arg(long, value_enum, default_value = "nf4")]
    base: Base,
    /// Where the matrices of the base's layers stay: device, or host, from which each layer comes when it is computed.
    #[arg(long, default_value = "device")]
    base_home: BaseHome,
    /// Which type activations have.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    /// Sequences × tokens; may be given again.
    #[arg(long = "batch", value_name = "BxS", default_value = "2x2048", value_parser = parse_batch)]
    batches: Vec<[usize; 2]>,
    /// What layers keep for the backward pass.
    #[arg(long, value_enum, default_value = "lean")]
    keep: Keep,
    /// Timed steps.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Train the length of each weight's rows too.
    #[arg(long)]
    dora: bool,
    /// What is minimized. For dpo sequences are pairs, one after the other, whose first half is the prompt.
    #[arg(long, value_enum, default_value = "sft")]
    objective: Objective,
    #[arg(long, value_enum, default_value = "adamw8bit")]
    optimizer: Optimizer,
    #[arg(long, default_value_t = 2e-4)]
    learning_rate: f64,
    /// Largest norm of the gradients; 0 leaves them.
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f64,
    /// Exchange the gradients through NCCL, of this process with itself, as a run of several does.
    #[arg(long)]
    exchange: bool,
    /// Print the loss of every step.
    #[arg(long)]
    trace: bool,
    /// The stream that token ids come from.
    #[arg(long, default_value = "bench")]
    stream: String,
    /// `cuda:N`, or `cpu` to try the program.
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// What is being measured, for the record.
    #[arg(long, default_value = "")]
    commit: String,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Base {
    Nf4,
    Nf4Double,
    /// Some 4.5 bits: of each nine projections two in nf5, of each twelve one in nf6, the others in nf4.
    Mixed,
    Dense,
}

impl Base {
    /// How a model of that shape is kept.
    pub(crate) fn plan(self, spec: &ModelSpec) -> Option<QuantizationPlan> {
        match self {
            Self::Dense => None,
            Self::Nf4 => Some(QuantizationPlan::new(Scheme::NF4.with_scales(64, false))),
            Self::Nf4Double => Some(QuantizationPlan::new(Scheme::NF4)),
            Self::Mixed => {
                let plan = QuantizationPlan::new(Scheme::NF4);
                let projections = spec.projections().enumerate();
                Some(projections.fold(plan, |plan, (i, (layer, target))| {
                    let format = match i {
                        _ if i % 12 == 3 => NestedFormat::Nf6,
                        _ if i % 9 == 1 || i % 9 == 5 => NestedFormat::Nf5,
                        _ => return plan,
                    };
                    plan.with_scheme(target.path(layer), Scheme::nested(format))
                }))
            }
        }
    }

    /// As an argument.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Keep {
    /// Everything that the backward pass uses.
    All,
    /// All but what one pass over memory rebuilds: normed inputs.
    Lean,
    /// The input of each layer.
    Inputs,
}

impl Keep {
    fn plan(self, layers: usize) -> ActivationPlan {
        match self {
            Self::All => ActivationPlan::keep_all(layers),
            Self::Lean => ActivationPlan {
                segments: vec![Segment::Stored(KeepSet::COSTLY, OffloadSet::NONE); layers],
            },
            Self::Inputs => ActivationPlan::recompute_all(layers),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Optimizer {
    Adamw,
    Adamw8bit,
}

impl From<Dtype> for DType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

pub(crate) fn parse_batch(text: &str) -> Result<[usize; 2], String> {
    let (batch, length) = text.split_once('x').ok_or("expected, say, 2x2048")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text} is no number"));
    Ok([number(batch)?, number(length)?])
}

pub(crate) fn run(args: &GpuArgs) -> anyhow::Result<()> {
    let device = match args.device.strip_prefix("cuda:") {
        Some(index) => device::cuda(index.parse().context("cuda:N takes a number")?)?,
        None if args.device == "cpu" => Device::flex(),
        None => bail!("--device {}: expected cuda:N or cpu", args.device),
    };
    println!("{}", device::report(&device));
    let began = Instant::now();
    let source = ModelSource::open(&args.model)?;
    let plan = args.base.plan(&backdraft_model::spec(&source)?);
    let dtype = DType::from(args.dtype);
    let model = CausalLm::load_to_train(&source, plan.as_ref(), (&device, dtype), args.base_home)?;
    let lora = LoraConfig {
        use_dora: args.dora,
        ..LoraConfig::default()
    };
    let model = with_streams(model.with_lora(&lora, 42)?);
    device.sync()?;
    println!(
        "loaded in {:.1} s, {}",
        began.elapsed().as_secs_f64(),
        memory(&device)
    );
    for &batch in &args.batches {
        measure(args, model.clone(), batch)?;
    }
    Ok(())
}

/// A from streams of numbers named by layer and projection.
fn with_streams(mut model: CausalLm) -> CausalLm {
    for (layer, target, adapter) in model.adapters_mut() {
        let path = target.path(layer);
        adapter.update(|param| {
            if param.name != "lora_a" {
                return param.values;
            }
            let [rank, input] = param.matrix_dims();
            let name = format!("lora_A/{}", path.trim_start_matches("model."));
            let bound = (1.0 / (input as f64).sqrt()) as f32;
            let values = random_model::uniform(&name, rank * input, bound);
            let data = TensorData::new(values, [param.len()]);
            Tensor::from_data(data, (&param.values.device(), DType::F32))
        });
    }
    model
}

fn measure(args: &GpuArgs, mut model: CausalLm, batch: [usize; 2]) -> anyhow::Result<()> {
    let device = model.device();
    let vocabulary = model.spec().vocab_size;
    let documents = random_model::tokens(&args.stream, batch, vocabulary);
    let sample = Sample::new(&documents, args.objective)?;
    let params = AdamWParams {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: args.weight_decay,
    };
    let precision = match args.optimizer {
        Optimizer::Adamw => StatePrecision::F32,
        Optimizer::Adamw8bit => StatePrecision::Bits8(Guard::On),
    };
    let mut optimizer = optimizer::Optimizer::adamw(params, precision);
    optimizer.adopt(&mut model);
    let blocks = match args.exchange {
        true => Some(alone(&device)?.of(&optimizer, &device)),
        false => None,
    };
    let plan = args.keep.plan(model.num_backward_layers());
    let (mut times, mut submits) = (Vec::new(), Vec::new());
    const WARM: usize = 2;
    let index = args.device.strip_prefix("cuda:");
    let index = index.and_then(|index| index.parse().ok());
    let mut watch = None;
    let mut last_loss = f64::NAN;
    for step in 0..args.steps + WARM {
        if step == WARM {
            watch = index.map(Watch::start);
        }
        let began = Instant::now();
        let mut grads = optimizer.grads();
        let loss = sample.pass(&model, &plan, &mut grads);
        let (grads, loss) = match &blocks {
            Some(blocks) => {
                let exchanged = blocks.exchange(&model, grads, loss);
                exchanged.context("the exchange failed")?
            }
            None => (grads, loss),
        };
        let (grads, norm) = optimizer.clip(&model, grads, args.max_grad_norm);
        optimizer.step(&mut model, &grads, args.learning_rate);
        let submitted = began.elapsed().as_secs_f64();
        let loss = loss.try_into_scalar::<f64>()?;
        device.sync()?;
        let seconds = began.elapsed().as_secs_f64();
        last_loss = loss;
        if args.trace || step == 0 {
            let norm = norm.try_into_scalar::<f64>()?;
            println!(
                "step {}: loss {loss:.6}, gradient norm {norm:.6}, {seconds:.3} s",
                step + 1
            );
        }
        if step >= WARM {
            times.push(1e3 * seconds);
            submits.push(1e3 * submitted);
        }
    }
    let load = watch.and_then(Watch::finish);
    times.sort_by(f64::total_cmp);
    submits.sort_by(f64::total_cmp);
    let (median, submit) = (times[times.len() / 2], submits[submits.len() / 2]);
    let count = batch[0] * batch[1];
    println!(
        "{:?} on the {} {:?} keep {:?} {}x{}: {median:.1} ms ({:.1} to {:.1}), {:.0} tokens/s, host {submit:.1} ms; {}; {}",
        args.base,
        args.base_home,
        args.dtype,
        args.keep,
        batch[0],
        batch[1],
        times[0],
        times[times.len() - 1],
        1e3 * count as f64 / median,
        memory(&device),
        Load::describe(load),
    );
    println!(
        "{}",
        json!({
            "model": args.model, "base": format!("{:?}", args.base), "base_home": args.base_home, "dtype": format!("{:?}", args.dtype), "keep": format!("{:?}", args.keep), "dora": args.dora, "exchange": args.exchange, "objective": format!("{:?}", args.objective),
            "batch": batch[0], "length": batch[1], "milliseconds": median, "last_loss": last_loss, "fastest": times[0],
            "slowest": times[times.len() - 1], "tokens_per_second": 1e3 * count as f64 / median,
            "host_milliseconds": submit, "held_bytes": usage(&device).map(|(_, held)| held),
            "load": Load::to_json(load), "device": device::report(&device).name, "commit": args.commit,
        })
    );
    Ok(())
}

/// One block, and one process that exchanges with itself.
fn alone(device: &Device) -> anyhow::Result<Blocks> {
    let ranks = Ranks::alone()?;
    let carriage = ranks.connect(device, "nothing")?;
    println!("{carriage}");
    anyhow::ensure!(carriage.through.starts_with("NCCL"), "no NCCL to measure");
    Ok(Blocks::new(1, ranks))
}

/// Bytes in use and held, empty pages and libraries included.
fn usage(device: &Device) -> Option<(u64, u64)> {
    let used = device.memory_pool_usage()?.bytes_in_use;
    Some((used, device::held(device)?))
}

fn memory(device: &Device) -> String {
    match usage(device) {
        None => "memory unknown".to_owned(),
        Some((used, held)) => format!(
            "{:.2} GiB in use, {:.2} GiB held",
            used as f64 / f64::from(1 << 30),
            held as f64 / f64::from(1 << 30)
        ),
    }
}
