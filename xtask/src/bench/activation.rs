//! Step time against memory budget: fixed policies, and `smart` at budgets between them.
//!
//! On the processor every case runs in a process of its own, this same program started again, because its allocator
//! does not give back what an earlier case had. A GPU's does, and reading a model takes longer than the steps.
//!
//! Every case trains the same adapters on the same rows, and all must end with the same bits.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use backdraft_arch::BaseHome;
use backdraft_formats::ModelSource;
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::adamw8bit::Guard;
use backdraft_kernels::device;
use backdraft_lora::LoraConfig;
use backdraft_model::CausalLm;
use backdraft_plan::cost::CostModel;
use backdraft_plan::memory;
use backdraft_plan::{ActivationPlan, Prediction, Setup};
use backdraft_quant::QuantizationPlan;
use backdraft_train::calibrate;
use backdraft_train::device::DeviceFacts;
use backdraft_train::optimizer::{Optimizer, StatePrecision};
use burn::tensor::{DType, Device};
use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::card::{Load, Watch};
use super::gpu::{Base, parse_batch};
use super::sample::{Objective, Sample};
use crate::plot::{Plot, Point};

/// What is measured.
#[derive(Debug, Clone, Args)]
pub(crate) struct ActivationArgs {
    /// The model: a directory or a .gguf file; `cargo xtask random-model` writes one.
    #[arg(long)]
    model: PathBuf,
    /// How the base is kept.
    #[arg(long, value_enum, default_value = "nf4")]
    base: Base,
    /// Where the matrices of the base's layers stay: device or host.
    #[arg(long, default_value = "device")]
    base_home: BaseHome,
    /// Sequences × tokens; may be given again.
    #[arg(long = "batch", value_name = "BxS", default_value = "2x512", value_parser = parse_batch)]
    batches: Vec<[usize; 2]>,
    /// What a step minimizes.
    #[arg(long, value_enum, default_value = "sft")]
    objective: Objective,
    /// Columns of the adapters.
    #[arg(long, default_value_t = 16)]
    rank: usize,
    /// Budgets of `smart`, from the least that any plan takes to keep-all's peak; recompute-all's peak is one more.
    #[arg(long, default_value_t = 8)]
    budgets: u64,
    /// Timed steps of each case, after two that are not.
    #[arg(long, default_value_t = 8)]
    steps: usize,
    /// cpu, where everything is f32, or cuda, where it is bf16.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Directory for `activation-BxS.json` and `.svg`.
    #[arg(long)]
    out: PathBuf,
    /// Further budgets of `smart`, in GiB.
    #[arg(long, value_delimiter = ',')]
    at: Vec<f64>,
    /// Let nothing wait in the host's memory.
    #[arg(long)]
    no_offload: bool,
    /// A point of another program to draw beside, as `2x2048:GIB:MILLISECONDS:NAME`; may be given again.
    #[arg(long, value_parser = parse_beside)]
    beside: Vec<Beside>,
    /// What is being measured, for the record.
    #[arg(long, default_value = "")]
    commit: String,
    /// Internal: measure this one case and print it.
    #[arg(long, hide = true)]
    case: Option<String>,
}

/// Steps that are not timed.
const WARM: usize = 2;

/// What another program took for a batch.
#[derive(Clone, Debug, PartialEq)]
struct Beside {
    batch: [usize; 2],
    gib: f64,
    milliseconds: f64,
    name: String,
}

fn parse_beside(text: &str) -> Result<Beside, String> {
    let expected = || format!("expected, say, 2x2048:6.95:394.1:Unsloth, not {text}");
    let [batch, gib, milliseconds, name] =
        <[&str; 4]>::try_from(text.splitn(4, ':').collect::<Vec<_>>()).map_err(|_| expected())?;
    Ok(Beside {
        batch: parse_batch(batch)?,
        gib: gib.parse().map_err(|_| expected())?,
        milliseconds: milliseconds.parse().map_err(|_| expected())?,
        name: name.to_owned(),
    })
}

/// Measures, prints a table and a JSON object for each row, and writes both files of each batch.
pub(crate) fn run(args: &ActivationArgs) -> anyhow::Result<()> {
    if let Some(case) = &args.case {
        let [batch] = args.batches[..] else {
            bail!("one case is of one batch");
        };
        println!("{}", Bench::load(args)?.measure(args, batch, case)?);
        return Ok(());
    }
    let bench = (args.device != "cpu")
        .then(|| Bench::load(args))
        .transpose()?;
    for &batch in &args.batches {
        let measure = |case: &str| match &bench {
            Some(bench) => bench.measure(args, batch, case),
            None => child(args, batch, case),
        };
        measure_batch(args, batch, measure)?;
    }
    Ok(())
}

fn measure_batch(
    args: &ActivationArgs,
    batch @ [rows, tokens]: [usize; 2],
    measure: impl Fn(&str) -> anyhow::Result<Value>,
) -> anyhow::Result<()> {
    println!("{rows}x{tokens}:");
    let mut cases = vec![measure("recompute-all")?];
    show(&cases[0]);
    let keep = measure("keep-all")?;
    let peak = |row: &Value| {
        row["predicted_peak"]
            .as_u64()
            .context("a case without a peak")
    };
    let least = cases[0]["least_peak"].as_u64().context("no least peak")?;
    let (all, most) = (peak(&cases[0])?, peak(&keep)?);
    let gaps = args.budgets.saturating_sub(1).max(1);
    let even = (0..args.budgets).map(|i| least + (most - least) * i / gaps);
    let named = args
        .at
        .iter()
        .map(|gib| (gib * f64::from(1u32 << 30)) as u64);
    let mut budgets: Vec<u64> = even.chain([all]).chain(named).collect();
    budgets.sort_unstable();
    budgets.dedup();
    for budget in budgets {
        let row = measure(&budget.to_string())?;
        show(&row);
        cases.push(row);
    }
    show(&keep);
    cases.push(keep);
    let result = |row: &Value| (row["losses"].clone(), row["factors"].clone());
    if let Some(other) = cases.iter().find(|row| result(row) != result(&cases[0])) {
        bail!("losses or factors differ: {other}");
    }
    println!(
        "{} losses and the factors after them are the same in all {} cases",
        args.steps + WARM,
        cases.len()
    );
    std::fs::create_dir_all(&args.out)?;
    let file = args.out.join(format!("activation-{rows}x{tokens}.svg"));
    let text = serde_json::to_string_pretty(&cases)?;
    std::fs::write(file.with_extension("json"), text)?;
    std::fs::write(&file, plot(args, batch, &cases).to_svg())?;
    println!("wrote {}", file.display());
    Ok(())
}

fn show(row: &Value) {
    let gib = |key: &str| row[key].as_f64().unwrap_or(f64::NAN) / f64::from(1u32 << 30);
    println!(
        "{:<16} {:>9.1} ms  peak {:>6.2} GiB, predicted {:>6.2}  recomputed {:>8.3} TFLOP  {}\n{row}",
        row["case"].as_str().unwrap_or_default(),
        row["milliseconds"].as_f64().unwrap_or(f64::NAN),
        gib("measured_peak"),
        gib("predicted_peak"),
        row["recompute_flops"].as_f64().unwrap_or(f64::NAN) / 1e12,
        row["load"],
    );
}

/// The same program again, for one case.
fn child(args: &ActivationArgs, [rows, tokens]: [usize; 2], case: &str) -> anyhow::Result<Value> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "activation", "--case", case]);
    command
        .arg("--model")
        .arg(&args.model)
        .arg("--out")
        .arg(&args.out);
    for (flag, value) in [
        ("--device", args.device.clone()),
        ("--base", args.base.name()),
        ("--base-home", args.base_home.to_string()),
        (
            "--objective",
            format!("{:?}", args.objective).to_lowercase(),
        ),
        ("--batch", format!("{rows}x{tokens}")),
        ("--rank", args.rank.to_string()),
        ("--steps", args.steps.to_string()),
        ("--commit", args.commit.clone()),
    ] {
        command.args([flag, &value]);
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

/// A base model on its device.
struct Bench {
    model: CausalLm,
    device: Device,
    quantization: Option<QuantizationPlan>,
    lora: LoraConfig,
    /// Bytes of the device's pages so far.
    page: Cell<u64>,
}

impl Bench {
    fn load(args: &ActivationArgs) -> anyhow::Result<Self> {
        let (device, dtype) = match args.device.as_str() {
            "cpu" => (Device::flex(), DType::F32),
            "cuda" => (device::cuda(0)?, DType::BF16),
            other => bail!("--device takes cpu or cuda, not {other}"),
        };
        println!("{}", device::report(&device));
        let source = ModelSource::open(&args.model)?;
        let quantization = args.base.plan(&backdraft_model::spec(&source)?);
        let model = CausalLm::load_to_train(
            &source,
            quantization.as_ref(),
            (&device, dtype),
            args.base_home,
        )?;
        Ok(Self {
            model,
            device,
            quantization,
            lora: LoraConfig {
                rank: args.rank,
                ..LoraConfig::default()
            },
            page: Cell::new(0),
        })
    }

    /// One case: `recompute-all`, `keep-all`, or a budget of `smart` in bytes.
    fn measure(
        &self,
        args: &ActivationArgs,
        [rows, tokens]: [usize; 2],
        case: &str,
    ) -> anyhow::Result<Value> {
        let mut model = self.model.clone().with_lora(&self.lora, 42)?;
        let element = model.dtype().size() as u64;
        let facts = DeviceFacts::of(&self.device, element);
        let bytes = model.device_bytes();
        let setup = Setup {
            spec: model.spec().clone(),
            lora: self.lora.clone(),
            tokens: 0,
            quantization: self.quantization.clone(),
            base: Some(bytes as u64),
            dense_element: element,
            memory: facts.memory,
            optimizer: StatePrecision::Bits8(Guard::On).into(),
            micro_batch_size: rows,
            max_seq_length: tokens,
            texts_per_row: 1,
            grad_accumulation_steps: 1,
            releases: false,
            masters: true,
            host: if args.no_offload { 0 } else { facts.host },
            home: args.base_home,
        };
        let (mut step, pass) = (setup.step(), setup.pass());
        // Pages stay as large as those of the batch before.
        step.page = self.page.get().max(step.page);
        self.page.set(step.page);
        device::size_pages(&self.device, step.page);
        let calibration = calibrate::measure(&model, &step.sample(pass))?;
        let measured = json!({
            "tensors_milliseconds": calibration.seconds.iter().map(|s| 1e3 * s).collect::<Vec<_>>(),
            "forward_milliseconds": 1e3 * calibration.forward,
            "bytes_per_second_to_host": calibration.host.map(|host| host.bytes),
            "round_trip_milliseconds": calibration.host.map(|host| host.round_trip * 1e3),
        });
        let cost = CostModel::Measured(calibration, facts.roofline);
        let layers = step.layers.len();
        let plan = match case {
            "recompute-all" => ActivationPlan::recompute_all(layers),
            "keep-all" => ActivationPlan::keep_all(layers),
            budget => step
                .solve(budget.parse()?, pass, &cost)
                .map_err(|shortage| anyhow::anyhow!("{shortage:?}"))?,
        };
        let prediction = step.predict(&plan, pass, &cost);
        let steps = Steps::run(args, model, [rows, tokens], &plan)?;
        let least = step.least_peak(pass);
        let mut row = self.row(args, case, &plan, (prediction, least), &steps);
        row["calibration"] = measured;
        Ok(row)
    }

    fn row(
        &self,
        args: &ActivationArgs,
        case: &str,
        plan: &ActivationPlan,
        (prediction, least): (Prediction, u64),
        steps: &Steps,
    ) -> Value {
        let budget: Option<u64> = case.parse().ok();
        let seconds = &steps.seconds;
        json!({
            "case": if budget.is_some() { "smart" } else { case },
            "budget": budget,
            "milliseconds": 1e3 * seconds[seconds.len() / 2],
            "milliseconds_min": 1e3 * seconds[0],
            "milliseconds_max": 1e3 * seconds[seconds.len() - 1],
            "measured_peak": steps.peak,
            "predicted_peak": prediction.peak.total(),
            "least_peak": least,
            "load": Load::to_json(steps.load),
            "predicted": prediction.peak,
            "page": self.page.get(),
            "recompute_flops": prediction.recompute_flops,
            "flops": prediction.flops,
            "offloaded": prediction.offloaded,
            "base_home": args.base_home,
            "streamed": prediction.streamed,
            "stream_milliseconds": 1e3 * prediction.stream_seconds,
            "recompute_milliseconds": 1e3 * prediction.recompute_seconds,
            "losses": steps.losses,
            "factors": steps.factors,
            "plan": plan,
            "device": device::report(&self.device).name,
            "commit": args.commit,
        })
    }
}

/// What came of some steps.
struct Steps {
    /// Of the timed ones, sorted.
    seconds: Vec<f64>,
    /// The most memory, in bytes.
    peak: Option<u64>,
    /// Of every step.
    losses: Vec<f64>,
    /// A digest of the factors after the last step.
    factors: String,
    /// While the timed steps ran.
    load: Option<Load>,
}

impl Steps {
    fn run(
        args: &ActivationArgs,
        mut model: CausalLm,
        batch: [usize; 2],
        plan: &ActivationPlan,
    ) -> anyhow::Result<Self> {
        let device = model.device();
        let documents = documents(batch, model.spec().vocab_size as u32);
        let sample = Sample::new(&documents, args.objective)?;
        let params = AdamWParams {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.01,
        };
        let mut optimizer = Optimizer::adamw(params, StatePrecision::Bits8(Guard::On));
        optimizer.adopt(&mut model);
        device.memory_cleanup();
        memory::forget_peak();
        let (mut seconds, mut losses) = (Vec::new(), Vec::new());
        let mut watch = None;
        for i in 0..args.steps + WARM {
            if i == WARM && args.device == "cuda" {
                watch = Some(Watch::start(0));
            }
            let began = Instant::now();
            let mut grads = optimizer.grads();
            let loss = sample.pass(&model, plan, &mut grads);
            let (grads, _) = optimizer.clip(&model, grads, 1.0);
            optimizer.step(&mut model, &grads, 2e-4);
            losses.push(loss.try_into_scalar::<f64>()?);
            device.sync()?;
            if i >= WARM {
                seconds.push(began.elapsed().as_secs_f64());
            }
        }
        let load = watch.and_then(Watch::finish);
        seconds.sort_by(f64::total_cmp);
        // The allocator keeps what it had.
        let peak =
            device::held(&device).or_else(|| memory::peak_resident().map(|bytes| bytes as u64));
        let mut digest = Sha256::new();
        for (_, param) in model.trained_params() {
            digest.update(param.values.inner().try_into_data()?.as_bytes());
        }
        let digest = digest.finalize();
        let factors = digest[..8].iter().map(|byte| format!("{byte:02x}"));
        Ok(Self {
            seconds,
            peak,
            losses,
            factors: factors.collect(),
            load,
        })
    }
}

fn documents([rows, tokens]: [usize; 2], vocabulary: u32) -> Vec<Vec<u32>> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    (0..rows)
        .map(|_| (0..tokens).map(|_| next()).collect())
        .collect()
}

fn plot(args: &ActivationArgs, [sequences, tokens]: [usize; 2], rows: &[Value]) -> Plot {
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
    let beside = args
        .beside
        .iter()
        .filter(|known| known.batch == [sequences, tokens]);
    points.extend(beside.map(|known| Point {
        name: known.name.clone(),
        x: known.gib,
        y: known.milliseconds,
    }));
    Plot {
        title: format!(
            "{sequences} x {tokens} tokens, rank {}, {}",
            args.rank,
            args.base.name()
        ),
        x: "peak memory, GiB".to_owned(),
        y: "step, ms".to_owned(),
        line: ("smart".to_owned(), smart.collect()),
        points,
    }
}
