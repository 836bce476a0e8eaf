//! `plan`: what a recipe needs in memory, and what it recomputes, before anything is loaded.

pub(crate) mod measure;

use std::path::PathBuf;

use backdraft_arch::{BaseHome, SavedTensor};
use backdraft_plan::cost::{CostModel, Roofline};
use backdraft_plan::memory::{host_room, usable};
use backdraft_plan::plan::Fate;
use backdraft_plan::tensors::{MemoryModel, PassShape};
use backdraft_plan::{
    ActivationPlan, ActivationPolicy, Peak, Prediction, Setup, Shortage, StepShape,
};
use backdraft_recipe::no_effect::NoEffect;
use backdraft_recipe::{ByteSize, DType, Length, Recipe};
use backdraft_train::preflight;
use backdraft_train::run::Start;
use clap::Args;
use clap::builder::TypedValueParser;
use serde_json::{Value, json};

use crate::args::choice::choice;
use crate::commands::Context;
use crate::error::CliError;
use crate::session;

/// Show how much memory a recipe needs and what it recomputes, without loading the weights; or what precision costs
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft plan recipe.toml
  backdraft plan recipe.toml --device-memory 24GiB --sweep
  backdraft plan recipe.toml --set lora.rank=64 --json
  backdraft plan recipe.toml --measure --write precision.json")]
pub(crate) struct PlanArgs {
    /// The recipe; `backdraft init` writes one
    #[arg(value_name = "RECIPE")]
    pub(crate) recipe: PathBuf,

    /// Override a key of the recipe for this plan; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,

    /// Plan for a GPU with this much memory, which this machine need not have
    #[arg(long, value_name = "SIZE")]
    pub(crate) device_memory: Option<ByteSize>,

    /// Data type of the activations [default: bf16 with --device-memory, else f32]
    #[arg(long, value_parser = dtype(), value_name = "FORMAT")]
    pub(crate) dtype: Option<DType>,

    /// Also show plans for eight memory budgets, from the smallest that works to one that keeps everything
    #[arg(long)]
    pub(crate) sweep: bool,

    /// Read the weights and some training rows, and show what precision costs: KL by bits, and who gets how many
    #[arg(long, conflicts_with_all = ["device_memory", "dtype", "sweep"])]
    pub(crate) measure: bool,

    /// Write the measured plan to a file, which quantization.plan takes
    #[arg(long, value_name = "FILE", requires = "measure")]
    pub(crate) write: Option<PathBuf>,

    /// Replace that file if it exists
    #[arg(long, requires = "write")]
    pub(crate) force: bool,
}

/// Reads the data type of the activations.
fn dtype() -> impl TypedValueParser<Value = DType> {
    let known = [DType::F32, DType::Bf16, DType::F16];
    choice(&known, DType::name, |dtype| match dtype {
        DType::Auto => "As the recipe says",
        DType::F32 => "Single precision",
        DType::Bf16 => "bfloat16",
        DType::F16 => "Half precision",
    })
}

/// Sizes of memory that people have.
const CARDS: [u64; 6] = [8, 12, 16, 24, 48, 80];
/// Budgets of a sweep.
const SWEEP: u64 = 8;

pub(crate) fn run(args: &PlanArgs, context: Context) -> Result<(), CliError> {
    let mut recipe = Recipe::load(&args.recipe, &args.set)?;
    if args.measure {
        return measure::run(args, recipe, context);
    }
    let shape = session::shape(&recipe.model, context.output)?;
    let mut spec = shape.spec.clone();
    // As if there were no row to spare.
    spec.vocab_size += recipe.tokens.add.len();
    if let Length::MaxSteps(steps) = recipe.train.length
        && let Some(found) = NoEffect::of_schedule(&recipe.train.schedule(steps))
    {
        context.output.warn(found.to_string());
    }
    preflight::shape(&recipe, &spec)?;
    preflight::adapter(&recipe, &spec, &Start::New { force: false })?;
    let half = args.dtype.is_some_and(|dtype| dtype != DType::F32);
    let on_gpu = args.device_memory.is_some() || half || recipe.base == BaseHome::Host;
    let dtype = args.dtype.unwrap_or(match recipe.dtype {
        DType::Auto | DType::Bf16 if on_gpu => DType::Bf16,
        DType::F16 if on_gpu => DType::F16,
        _ => DType::F32,
    });
    let element = if dtype == DType::F32 { 4 } else { 2 };
    let (memory, host) = if on_gpu {
        (MemoryModel::cube(element), host_room())
    } else {
        (MemoryModel::cpu(), 0)
    };
    let line = if on_gpu { Roofline::GPU } else { Roofline::CPU };
    let cost = CostModel::Roofline(line);
    let budget = budget(args, &recipe);
    let limit = (budget.unwrap_or(u64::MAX >> 1), &cost);
    recipe
        .settle_bits(&spec, (memory, host), limit, None)
        .map_err(CliError::library)?;
    let quantization = shape.plan(&recipe)?;
    let setup = recipe.setup(spec, quantization, memory, host);
    let setup = setup.before_loading();
    let plans = Plans::new(args, &recipe, setup, (budget, cost));
    let found = plans.to_json();
    context.output.record("plan", &found)?;
    context.output.line(plans.to_text(dtype))?;
    Ok(())
}

/// What a step may use; `None` where nobody said.
fn budget(args: &PlanArgs, recipe: &Recipe) -> Option<u64> {
    let given = recipe.memory_budget.map(|ByteSize(bytes)| bytes);
    let device = args.device_memory.map(|ByteSize(bytes)| usable(bytes));
    match (given, device) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Everything that the command shows.
struct Plans {
    setup: Setup,
    step: StepShape,
    pass: PassShape,
    cost: CostModel,
    policy: ActivationPolicy,
    /// What a step may use; `None` where nobody said.
    budget: Option<u64>,
    sweep: bool,
    accumulation: usize,
    /// Mean bits that will be dealt out among the projections.
    bits: Option<f64>,
    /// For each size of memory the largest micro-batch and the longest sequence.
    cards: Vec<(u64, Option<usize>, Option<usize>)>,
}

impl Plans {
    fn new(
        args: &PlanArgs,
        recipe: &Recipe,
        setup: Setup,
        (budget, cost): (Option<u64>, CostModel),
    ) -> Self {
        Self {
            step: setup.step(),
            pass: setup.pass(),
            cost,
            policy: recipe.activation_policy,
            budget,
            sweep: args.sweep,
            accumulation: recipe.train.grad_accumulation_steps,
            bits: recipe.mean_bits(),
            cards: cards(&setup),
            setup,
        }
    }

    fn predict(&self, plan: &ActivationPlan) -> Prediction {
        self.step.predict(plan, self.pass, &self.cost)
    }

    fn smart(&self, budget: u64) -> Result<(ActivationPlan, Prediction), Shortage> {
        let plan = self.step.solve(budget, self.pass, &self.cost)?;
        let prediction = self.predict(&plan);
        Ok((plan, prediction))
    }

    /// The plan of the recipe.
    fn chosen(&self) -> Result<(ActivationPlan, Prediction), Shortage> {
        match self.policy.fixed(self.step.layers.len()) {
            Some(plan) => {
                let prediction = self.predict(&plan);
                Ok((plan, prediction))
            }
            None => self.smart(self.budget.unwrap_or(u64::MAX >> 1)),
        }
    }

    /// Each policy with its prediction; `smart` within the budget and where `recompute-all` has its peak.
    fn policies(&self) -> Vec<(String, Option<Prediction>)> {
        let layers = self.step.layers.len();
        let mut rows = Vec::new();
        for policy in ActivationPolicy::ALL {
            match policy.fixed(layers) {
                Some(plan) => rows.push((policy.to_string(), Some(self.predict(&plan)))),
                None => {
                    if let Some(budget) = self.budget {
                        let smart = self.smart(budget).ok().map(|(_, prediction)| prediction);
                        rows.push((format!("smart in {}", gib(budget)), smart));
                    }
                }
            }
        }
        let all = self.predict(&ActivationPlan::recompute_all(layers));
        let same = self.smart(all.peak.total()).ok();
        let same = same.map(|(_, prediction)| prediction);
        rows.push(("smart at recompute-all's peak".to_owned(), same));
        rows
    }

    fn sweep(&self) -> Vec<(u64, Prediction)> {
        let most = self
            .predict(&ActivationPlan::keep_all(self.step.layers.len()))
            .peak
            .total();
        let least = self.step.least_peak(self.pass);
        let budgets = (0..SWEEP).map(|i| least + (most - least) / (SWEEP - 1) * i);
        budgets
            .chain([most])
            .filter_map(|budget| Some((budget, self.smart(budget).ok()?.1)))
            .take(SWEEP as usize)
            .collect()
    }

    fn to_json(&self) -> Value {
        let layers = self.step.layers.len();
        let (chosen, problem) = match self.chosen() {
            Ok((plan, prediction)) => (Some((plan, prediction)), None),
            Err(shortage) => (None, Some(shortage)),
        };
        let advice = problem.map(|shortage| self.setup.advice(shortage));
        let policies: Vec<Value> = self
            .policies()
            .into_iter()
            .map(|(name, prediction)| json!({ "policy": name, "prediction": prediction }))
            .collect();
        let cards: Vec<Value> = self
            .cards
            .iter()
            .map(|(card, rows, tokens)| {
                json!({ "memory": card << 30, "largest_micro_batch": rows, "longest_sequence": tokens })
            })
            .collect();
        let sweep = self.sweep.then(|| {
            let row = |(budget, prediction): (u64, Prediction)| json!({ "budget": budget, "prediction": prediction });
            self.sweep().into_iter().map(row).collect::<Vec<_>>()
        });
        json!({
            "policy": self.policy.name(),
            "budget": self.budget,
            "host_memory": self.setup.host_bytes(),
            "hiding_tokens": self.step.hiding_tokens(self.pass, &self.cost),
            "needed_at_least": problem.map(|shortage| shortage.needed),
            "advice": advice,
            "layers": layers,
            "plan": chosen.as_ref().map(|(plan, _)| plan),
            "prediction": chosen.as_ref().map(|(_, prediction)| prediction),
            "policies": policies,
            "sweep": sweep,
            "fits": cards,
        })
    }

    fn to_text(&self, dtype: DType) -> String {
        let setup = &self.setup;
        let mut text = format!(
            "step      {} x {} tokens, {}; {}, base {}\n",
            setup.micro_batch_size,
            setup.max_seq_length,
            match self.accumulation {
                1 => "1 micro-batch".to_owned(),
                passes => format!("{passes} micro-batches"),
            },
            dtype,
            match &setup.quantization {
                Some(plan) => match self.bits {
                    Some(bits) => format!("{bits} bits dealt out by measurement"),
                    None => plan.to_string(),
                },
                None => "not quantized".to_owned(),
            }
        );
        match self.budget {
            Some(budget) => text += &format!("budget    {}\n", gib(budget)),
            None => text += "budget    unlimited (set memory_budget or --device-memory)\n",
        }
        match self.chosen() {
            Ok((plan, prediction)) => {
                let full = setup.lora.trainable.is_full();
                text += &peak_lines(&prediction.peak, full);
                if full {
                    text += "all gradients of a step are kept: they are clipped together, and passes add up\n";
                }
                text += &format!(
                    "recompute {} of {} per micro-batch, {:.1} % of its time\n",
                    flops(prediction.recompute_flops),
                    flops(prediction.flops + prediction.recompute_flops),
                    100.0 * prediction.recompute_share()
                );
                if prediction.offloaded > 0 {
                    let host = gib(prediction.offloaded);
                    text += &format!("offload   {host} to host memory and back\n");
                }
                text += &self.host_base(&prediction);
                text += "\n";
                text += &format!(
                    "{} (█ kept, ▒ offloaded to the host, · recomputed), layers {} to {}:\n",
                    self.policy,
                    setup.spec.layers.len() - self.step.layers.len(),
                    setup.spec.layers.len() - 1
                );
                text += &chart(&plan, &self.step);
            }
            Err(shortage) => {
                text += &format!(
                    "does not fit: a step needs at least {}\n",
                    gib(shortage.needed)
                );
                for advice in setup.advice(shortage) {
                    text += &format!("  would help: {advice}\n");
                }
            }
        }
        text += &self.policy_table();
        if self.sweep {
            text += &self.sweep_table();
        }
        text += &self.card_table();
        text.trim_end().to_owned()
    }

    /// What a base costs that stays in the host's memory.
    fn host_base(&self, prediction: &Prediction) -> String {
        if self.setup.home == BaseHome::Device {
            return String::new();
        }
        let held = gib(self.setup.host_bytes());
        let streamed = gib(prediction.streamed);
        let speed = self.cost.stream() / 1e9;
        let hidden = match prediction.stream_seconds {
            0.0 => "hidden by computing".to_owned(),
            exposed => {
                let share = 100.0 * exposed / prediction.seconds.max(f64::MIN_POSITIVE);
                let enough = match self.step.hiding_tokens(self.pass, &self.cost) {
                    Some(tokens) => format!("hidden from {tokens} tokens per micro-batch on"),
                    None => "never hidden".to_owned(),
                };
                format!("{share:.1} % of its time, {enough}")
            }
        };
        format!(
            "layers    {held} in host memory; {streamed} come from there per micro-batch at {speed:.0} GB/s, {hidden}\n"
        )
    }

    fn policy_table(&self) -> String {
        let mut text = format!(
            "\n{:<30} {:>10} {:>14} {:>10}\n",
            "policy", "peak", "recompute", "of time"
        );
        for (name, prediction) in self.policies() {
            text += &match prediction {
                Some(prediction) => format!(
                    "{name:<30} {:>10} {:>14} {:>8.1} %\n",
                    gib(prediction.peak.total()),
                    flops(prediction.recompute_flops),
                    100.0 * prediction.recompute_share()
                ),
                None => format!("{name:<30} does not fit\n"),
            };
        }
        text
    }

    fn sweep_table(&self) -> String {
        let mut text = format!(
            "\n{:<10} {:>10} {:>14} {:>10} {:>15}\n",
            "budget", "peak", "recompute", "of time", "per micro-batch"
        );
        for (budget, prediction) in self.sweep() {
            text += &format!(
                "{:<10} {:>10} {:>14} {:>8.1} % {:>12.1} ms\n",
                gib(budget),
                gib(prediction.peak.total()),
                flops(prediction.recompute_flops),
                100.0 * prediction.recompute_share(),
                1e3 * prediction.seconds
            );
        }
        text
    }

    fn card_table(&self) -> String {
        let setup = &self.setup;
        let mut text = format!(
            "\n{:<10} {:>30} {:>30}\n",
            "memory",
            format!("micro-batch at {} tokens", setup.max_seq_length),
            format!("tokens at micro-batch {}", setup.micro_batch_size)
        );
        let or_none = |number: Option<usize>| number.map_or("none".to_owned(), |n| n.to_string());
        for &(card, rows, tokens) in &self.cards {
            text += &format!(
                "{:<10} {:>30} {:>30}\n",
                format!("{card} GiB"),
                or_none(rows),
                or_none(tokens)
            );
        }
        text
    }
}

fn cards(setup: &Setup) -> Vec<(u64, Option<usize>, Option<usize>)> {
    let fits = |&card: &u64| {
        let budget = usable(card << 30);
        let rows = setup.largest_micro_batch(budget);
        (card, rows, setup.longest_sequence(budget))
    };
    CARDS.iter().map(fits).collect()
}

fn peak_lines(peak: &Peak, full: bool) -> String {
    let mut text = format!("peak      {} in {}\n", gib(peak.total()), peak.moment);
    for (name, bytes) in [
        ("base", peak.base),
        (if full { "trained" } else { "adapters" }, peak.adapters),
        ("gradients", peak.gradients),
        ("optimizer", peak.optimizer),
        ("kept", peak.kept),
        ("working", peak.working),
        ("workspace", peak.workspace),
        ("fragments", peak.unfilled),
    ] {
        // Only where tensors share pages.
        if name == "fragments" && bytes == 0 {
            continue;
        }
        text += &format!("  {name:<10} {:>10}\n", gib(bytes));
    }
    text
}

/// A strip for each tensor, a column for each layer.
fn chart(plan: &ActivationPlan, step: &StepShape) -> String {
    let uses: Vec<_> = step.layers.iter().map(|layer| layer.uses()).collect();
    let mut text = String::new();
    let inputs: String = plan
        .kept()
        .zip(plan.away())
        .map(|(kept, away)| match kept {
            Some(_) if away.input => Fate::Offload.letter(),
            Some(_) => Fate::Keep.letter(),
            None => Fate::Recompute.letter(),
        })
        .collect();
    text += &format!("  {:<13} {inputs}\n", "input");
    let there = |tensor| uses.iter().any(|used| used.contains(tensor));
    for tensor in SavedTensor::ALL {
        // Most families have none.
        if tensor == SavedTensor::Down && !there(tensor) {
            continue;
        }
        let strip: String = plan
            .fates(tensor, &uses)
            .into_iter()
            .map(Fate::letter)
            .collect();
        text += &format!("  {:<13} {strip}\n", tensor.name());
    }
    text
}

pub(crate) fn gib(bytes: u64) -> String {
    let gib = bytes as f64 / f64::from(1u32 << 30);
    if gib < 0.1 {
        format!("{:.1} MiB", gib * 1024.0)
    } else {
        format!("{gib:.2} GiB")
    }
}

fn flops(count: u64) -> String {
    let count = count as f64;
    if count >= 1e12 {
        format!("{:.2} TFLOP", count / 1e12)
    } else {
        format!("{:.2} GFLOP", count / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use std::fs;

    use backdraft_arch::ModelSpec;

    use super::*;

    const RECIPE: &str = "model = \"MODEL\"\nload_in_4bit = true\nmax_seq_length = 2048\n[data]\n\
        train = \"rows.jsonl\"\n[train]\nmicro_batch_size = 2\ngrad_accumulation_steps = 1\noptimizer = \"adamw_8bit\"\n";

    /// Llama-3.1-8B's shape.
    const CONFIG: &str = r#"{
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": false
    }"#;

    /// Layers of Llama-3.1-70B, a quarter of them.
    const LARGE: &str = r#"{
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 20,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": false
    }"#;

    fn plans(device_memory: Option<&str>, dtype: Option<DType>, host: u64) -> String {
        plans_of(CONFIG, device_memory, dtype, (host, BaseHome::Device, 2))
    }

    fn plans_of(
        config: &str,
        device_memory: Option<&str>,
        dtype: Option<DType>,
        (host, home, rows): (u64, BaseHome, usize),
    ) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        let text = RECIPE.replace("MODEL", dir.path().to_str().unwrap());
        let recipe_path = dir.path().join("recipe.toml");
        fs::write(&recipe_path, text).unwrap();
        let args = PlanArgs {
            recipe: recipe_path,
            set: Vec::new(),
            device_memory: device_memory.map(|size| size.parse().unwrap()),
            dtype,
            sweep: true,
            measure: false,
            write: None,
            force: false,
        };
        let recipe = Recipe::load(&args.recipe, &[]).unwrap();
        let value: Value = serde_json::from_str(config).unwrap();
        let spec = ModelSpec::from_hf(&value).unwrap();
        let setup = Setup {
            lora: recipe.trained(&spec).unwrap(),
            spec,
            tokens: 0,
            quantization: recipe.quantization_plan(),
            base: None,
            dense_element: 2,
            memory: MemoryModel::cube(2),
            optimizer: recipe.kept_state(),
            micro_batch_size: rows,
            max_seq_length: 2048,
            texts_per_row: 1,
            grad_accumulation_steps: 1,
            releases: false,
            masters: true,
            host,
            home,
        };
        let limits = (budget(&args, &recipe), CostModel::Roofline(Roofline::GPU));
        let plans = Plans::new(&args, &recipe, setup, limits);
        let json = plans.to_json();
        assert_eq!(json["sweep"].as_array().unwrap().len(), SWEEP as usize);
        plans.to_text(DType::Bf16)
    }

    #[test]
    fn what_does_not_fit_may_wait_in_the_hosts_memory() {
        let text = plans(Some("8GiB"), None, 64 << 30);
        let plan = text.split("\n\npolicy").next().unwrap();
        assert_snapshot!(plan, @r"
        step      2 x 2048 tokens, 1 micro-batch; bf16, base nf4 (blocks of 64, double)
        budget    7.50 GiB
        peak      7.29 GiB in layer 31 backwards
          base         4.33 GiB
          adapters     0.23 GiB
          gradients    0.16 GiB
          optimizer    81.2 MiB
          kept         1.64 GiB
          working      0.58 GiB
          workspace    66.0 MiB
          fragments    0.21 GiB
        recompute 31.73 TFLOP of 163.20 TFLOP per micro-batch, 20.0 % of its time
        offload   1.94 GiB to host memory and back

        smart (█ kept, ▒ offloaded to the host, · recomputed), layers 0 to 31:
          input         ████████████████████████████████
          input_normed  ································
          query         ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒█
          key           ████████████████████████████████
          value         █·██████████████████████████████
          attention     ································
          mid           ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒█
          post_normed   ································
          gate          █······························█
          up            ·······························█
        ");
    }

    #[test]
    fn a_plan_for_a_small_card_as_a_whole() {
        assert_snapshot!(plans(Some("12GiB"), None, 0), @r"
        step      2 x 2048 tokens, 1 micro-batch; bf16, base nf4 (blocks of 64, double)
        budget    11.25 GiB
        peak      11.25 GiB in layer 31 backwards
          base         4.33 GiB
          adapters     0.23 GiB
          gradients    0.16 GiB
          optimizer    81.2 MiB
          kept         5.58 GiB
          working      0.58 GiB
          workspace    66.0 MiB
          fragments    0.22 GiB
        recompute 22.58 TFLOP of 154.05 TFLOP per micro-batch, 15.3 % of its time

        smart (█ kept, ▒ offloaded to the host, · recomputed), layers 0 to 31:
          input         ████████████████████████████████
          input_normed  ································
          query         ████████████████████████████████
          key           ████████████████████████████████
          value         █··█████████████████████████████
          attention     ································
          mid           ████████████████████████████████
          post_normed   ································
          gate          █·····················██████████
          up            █·····················██████████

        policy                               peak      recompute    of time
        smart in 11.25 GiB              11.25 GiB    22.58 TFLOP     15.3 %
        keep-all                        19.38 GiB     0.00 GFLOP      0.0 %
        recompute-all                    6.63 GiB    59.72 TFLOP     31.2 %
        sqrt                             7.95 GiB    59.72 TFLOP     31.2 %
        smart at recompute-all's peak    6.63 GiB    43.76 TFLOP     25.3 %

        budget           peak      recompute    of time per micro-batch
        5.97 GiB     5.97 GiB   103.97 TFLOP     44.3 %        465.4 ms
        7.89 GiB     7.73 GiB    37.99 TFLOP     22.7 %        335.2 ms
        9.80 GiB     9.71 GiB    29.55 TFLOP     18.8 %        319.1 ms
        11.72 GiB   11.68 GiB    21.37 TFLOP     14.7 %        304.0 ms
        13.63 GiB   13.44 GiB    13.15 TFLOP     10.2 %        288.8 ms
        15.55 GiB   15.42 GiB     4.58 TFLOP      5.0 %        273.0 ms
        17.46 GiB   17.40 GiB     0.00 GFLOP      0.6 %        260.9 ms
        19.38 GiB   19.16 GiB     0.00 GFLOP      0.1 %        259.4 ms

        memory         micro-batch at 2048 tokens        tokens at micro-batch 2
        8 GiB                                   5                           5430
        12 GiB                                 12                          13257
        16 GiB                                 20                          21065
        24 GiB                                 35                          36662
        48 GiB                                 81                          83474
        80 GiB                                142                         131072
        ");
    }

    #[test]
    fn a_base_in_host_memory_fits_a_small_card() {
        let plan = |home, rows| {
            let text = plans_of(LARGE, Some("8GiB"), None, (0, home, rows));
            text.split("\n\n").next().unwrap().to_owned()
        };
        let resident = plan(BaseHome::Device, 2);
        assert!(resident.contains("does not fit"), "{resident}");
        let helps = "would help: base to \"host\", which takes 8.22 GiB of host memory";
        assert!(resident.contains(helps), "{resident}");
        let of = |text: String| {
            let line = text.lines().find(|line| line.starts_with("layers "));
            line.map(str::to_owned)
        };
        assert_eq!(
            of(plan(BaseHome::Host, 2)).as_deref(),
            Some(
                "layers    8.22 GiB in host memory; 16.44 GiB come from there per micro-batch at 54 GB/s, hidden by computing"
            )
        );
        let few = of(plan(BaseHome::Host, 1)).unwrap_or_default();
        assert!(few.contains("% of its time, hidden from "), "{few}");
    }

    #[test]
    fn a_card_that_is_too_small_is_told_what_helps() {
        let text = plans(Some("6GiB"), None, 0);
        let head: Vec<&str> = text.lines().take(7).collect();
        assert_snapshot!(head.join("\n"), @r#"
        step      2 x 2048 tokens, 1 micro-batch; bf16, base nf4 (blocks of 64, double)
        budget    5.50 GiB
        does not fit: a step needs at least 5.97 GiB
          would help: max_seq_length from 2048 to 969
          would help: base to "host", which takes 3.35 GiB of host memory

        policy                               peak      recompute    of time
        "#);
    }
}
