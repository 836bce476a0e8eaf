//! What adaptive precision is worth: many short runs of the program, arm beside arm, paired by seed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use backdraft_arch::{QuantizationPlan, Scheme};
use clap::Args;
use serde::{Deserialize, Serialize};

/// Trains a model under several plans of precision and starts, and compares the loss of held-out rows.
#[derive(Args)]
pub(crate) struct PrecisionArgs {
    /// The program.
    #[arg(long, default_value = "target/release/backdraft")]
    program: PathBuf,
    /// The model: a directory or a .gguf file, not quantised by bitsandbytes.
    #[arg(long)]
    model: PathBuf,
    /// Chat rows to train on.
    #[arg(long)]
    train: PathBuf,
    /// How many of them; all by default.
    #[arg(long)]
    rows: Option<usize>,
    /// Held-out rows; repeatable.
    #[arg(long, required = true)]
    test: Vec<PathBuf>,
    /// Learning rates.
    #[arg(long, value_delimiter = ',', default_value = "5e-4,1e-3")]
    rates: Vec<String>,
    /// Seeds of order and adapters.
    #[arg(long, value_delimiter = ',', default_value = "42,1,2,3")]
    seeds: Vec<u64>,
    /// Arms, by the names that `--list` shows.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "bf16,nf4,bits,nf4-qera,bits-qera"
    )]
    arms: Vec<String>,
    /// Mean bits of the arms that deal them out.
    #[arg(long, default_value = "4.5")]
    bits: String,
    /// Runs at a time.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Also answer so many of the held-out rows after each run, and count the answers that match exactly.
    #[arg(long)]
    answers: Option<u64>,
    /// Where runs, logs and `results.jsonl` go; runs that stand there already are not repeated.
    #[arg(long)]
    out: PathBuf,
    /// No run is started after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Show the arms.
    #[arg(long)]
    list: bool,
}

/// How an arm trains: keys over the recipe, and the plan that its base begins with.
struct Arm {
    name: &'static str,
    keys: &'static [&'static str],
    plan: Option<Deal>,
}

/// A plan made from the measured one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Deal {
    /// As measured.
    Measured,
    /// Its formats dealt anew among matrices of the same shape, by the seed.
    Random,
    /// Its formats turned round among matrices of the same shape: who had most gets least.
    Wrong,
}

/// `BITS` stands for the bits of the command line.
const ARMS: [Arm; 16] = [
    arm("bf16", &[]),
    arm("full", &["trainable=\"all\""]),
    arm("bf16-pissa", &["lora.init=\"pissa\""]),
    arm("nf4", &[NF4]),
    arm("nf4-loftq", &[NF4, "lora.init=\"loftq\""]),
    arm("nf4-qera", &[NF4, QERA]),
    arm("bits", &[NF4, BITS]),
    arm("bits-qera", &[NF4, BITS, QERA]),
    arm(
        "bits-later",
        &[NF4, BITS, "quantization.adapt_at=[0.0,0.1,0.3]"],
    ),
    arm(
        "bits-int8",
        &[NF4, BITS, "quantization.formats=[\"nf4\",\"int8\"]"],
    ),
    with_plan("plan", &[NF4], Deal::Measured),
    with_plan("plan-qera", &[NF4, QERA], Deal::Measured),
    with_plan("random", &[NF4], Deal::Random),
    with_plan("wrong", &[NF4], Deal::Wrong),
    with_plan(
        "wrong-later",
        &[NF4, BITS, "quantization.adapt_at=[0.1]"],
        Deal::Wrong,
    ),
    with_plan(
        "wrong-twice",
        &[NF4, BITS, "quantization.adapt_at=[0.05,0.2]"],
        Deal::Wrong,
    ),
];
const NF4: &str = "load_in_4bit=true";
const BITS: &str = "quantization.bits=BITS";
const QERA: &str = "lora.init=\"qera\"";

const fn arm(name: &'static str, keys: &'static [&'static str]) -> Arm {
    Arm {
        name,
        keys,
        plan: None,
    }
}

const fn with_plan(name: &'static str, keys: &'static [&'static str], plan: Deal) -> Arm {
    Arm {
        name,
        keys,
        plan: Some(plan),
    }
}

/// A run that came to its end.
#[derive(Clone, Serialize, Deserialize)]
struct Outcome {
    arm: String,
    rate: String,
    seed: u64,
    /// Mean nll of the held-out rows after the last step, nats.
    nll: f64,
    /// Share of the answers that match exactly, where they were asked for.
    #[serde(default)]
    exact_match: Option<f64>,
    seconds: f64,
    /// `precision` of its summary.
    precision: serde_json::Value,
}

pub(crate) fn run(args: &PrecisionArgs) -> anyhow::Result<()> {
    if args.list {
        for arm in &ARMS {
            println!("{:<12} {}", arm.name, arm.keys.join(" "));
        }
        return Ok(());
    }
    fs::create_dir_all(&args.out)?;
    let results = args.out.join("results.jsonl");
    let known = fs::read_to_string(&results).unwrap_or_default();
    let mut done: Vec<Outcome> = known
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let mut jobs = Vec::new();
    // Seed by seed, so that whatever time allows is paired.
    for &seed in &args.seeds {
        for rate in &args.rates {
            for name in &args.arms {
                let Some(arm) = ARMS.iter().find(|arm| arm.name == name) else {
                    bail!("no arm {name:?}; --list shows them");
                };
                let is_done = |one: &Outcome| (&one.arm, &one.rate, one.seed) == (name, rate, seed);
                if !done.iter().any(is_done) {
                    jobs.push((arm, rate, seed));
                }
            }
        }
    }
    let recipe = write_recipe(args)?;
    let measured = match jobs.iter().any(|(arm, ..)| arm.plan.is_some()) {
        true => Some(measured_plan(args, &recipe)?),
        false => None,
    };
    let began = Instant::now();
    let limit = args.seconds.map(Duration::from_secs);
    let queue = Mutex::new(jobs.into_iter());
    let log = Mutex::new(
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&results)?,
    );
    let fresh = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    if limit.is_some_and(|limit| began.elapsed() > limit) {
                        return;
                    }
                    let next = queue.lock().ok().and_then(|mut queue| queue.next());
                    let Some((arm, rate, seed)) = next else {
                        return;
                    };
                    match train(args, &recipe, measured.as_ref(), (arm, rate, seed)) {
                        Ok(outcome) => {
                            let line = serde_json::to_string(&outcome).unwrap_or_default();
                            if let Ok(mut log) = log.lock() {
                                let _ = writeln!(log, "{line}");
                            }
                            if let Ok(mut fresh) = fresh.lock() {
                                fresh.push(outcome);
                            }
                        }
                        Err(error) => println!("{} {rate} seed {seed}: {error:#}", arm.name),
                    }
                }
            });
        }
    });
    done.extend(fresh.into_inner().unwrap_or_default());
    print!("{}", table(args, &done));
    Ok(())
}

/// The recipe that all arms share.
fn write_recipe(args: &PrecisionArgs) -> anyhow::Result<PathBuf> {
    let rows = fs::read_to_string(&args.train)
        .with_context(|| format!("cannot read {}", args.train.display()))?;
    let kept: Vec<&str> = rows.lines().take(args.rows.unwrap_or(usize::MAX)).collect();
    let train = args.out.join("train.jsonl");
    fs::write(&train, kept.join("\n") + "\n")?;
    let mut held_out = String::new();
    for path in &args.test {
        let text = fs::read_to_string(path);
        held_out += &text.with_context(|| format!("cannot read {}", path.display()))?;
    }
    let test = args.out.join("test.jsonl");
    fs::write(&test, held_out)?;
    let absolute = |path: &Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        toml::Value::from(path.to_string_lossy().as_ref()).to_string()
    };
    let recipe = args.out.join("recipe.toml");
    fs::write(
        &recipe,
        format!(
            "model = {}\n[data]\ntrain = {}\neval = {}\n[train]\nepochs = 1\nmicro_batch_size = 8\n\
             grad_accumulation_steps = 1\nsave_total_limit = 1\nsample_rows = 0\n",
            absolute(&args.model),
            absolute(&train),
            absolute(&test)
        ),
    )?;
    Ok(recipe)
}

fn program(args: &PrecisionArgs) -> Command {
    let mut command = Command::new(&args.program);
    command.stdin(Stdio::null());
    command
}

fn measured_plan(args: &PrecisionArgs, recipe: &Path) -> anyhow::Result<QuantizationPlan> {
    let path = args.out.join("measured.json");
    if !path.exists() {
        let output = program(args)
            .arg("plan")
            .arg(recipe)
            .args(["--measure", "--set", NF4, "--set"])
            .arg(BITS.replace("BITS", &args.bits))
            .arg("--write")
            .arg(&path)
            .output()?;
        println!("{}", String::from_utf8_lossy(&output.stdout));
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok(serde_json::from_slice(&fs::read(&path)?)?)
}

/// Trains one arm.
fn train(
    args: &PrecisionArgs,
    recipe: &Path,
    measured: Option<&QuantizationPlan>,
    (arm, rate, seed): (&Arm, &str, u64),
) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let name = format!("{}-{rate}-{seed}", arm.name);
    let place = args.out.join(&name);
    let mut command = program(args);
    command
        .arg("train")
        .arg(recipe)
        .args(["--plain", "--force"]);
    command.arg("--output-dir").arg(&place);
    let mut keys: Vec<String> = vec![
        format!("train.learning_rate={rate}"),
        format!("seed={seed}"),
    ];
    keys.extend(arm.keys.iter().map(|key| key.replace("BITS", &args.bits)));
    if let (Some(deal), Some(measured)) = (arm.plan, measured) {
        let plan = args.out.join(format!("{name}.json"));
        fs::write(&plan, serde_json::to_vec(&dealt(measured, deal, seed))?)?;
        let plan = std::path::absolute(plan)?;
        let plan = toml::Value::from(plan.to_string_lossy().as_ref());
        keys.push(format!("quantization.plan={plan}"));
    }
    for key in keys {
        command.arg("--set").arg(key);
    }
    let log = fs::File::create(args.out.join(format!("{name}.log")))?;
    let status = command.stdout(log.try_clone()?).stderr(log).status()?;
    if !status.success() {
        bail!("it ended with {status}; see {name}.log");
    }
    let summary: serde_json::Value =
        serde_json::from_slice(&fs::read(place.join("summary.json"))?)?;
    let nll = summary["best_eval_loss"].as_f64();
    let nll = nll.context("its summary has no best_eval_loss")?;
    let exact_match = match args.answers {
        Some(count) => Some(exact_match(args, &place, count)?),
        None => None,
    };
    // Adapters and checkpoints of hundreds of runs would fill the disk.
    fs::remove_dir_all(&place)?;
    Ok(Outcome {
        arm: arm.name.to_owned(),
        rate: rate.to_owned(),
        seed,
        nll,
        exact_match,
        seconds: began.elapsed().as_secs_f64(),
        precision: summary["precision"].clone(),
    })
}

/// The share of the first `count` held-out rows that the adapter of a run answers exactly.
fn exact_match(args: &PrecisionArgs, run: &Path, count: u64) -> anyhow::Result<f64> {
    let output = program(args)
        .args(["--json", "eval", "--generate", "--adapter"])
        .arg(run)
        .arg("--data")
        .arg(args.out.join("test.jsonl"))
        .args(["--limit", &count.to_string()])
        .output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|line| line["adapter"]["exact_match"].as_f64());
    found.context("eval gives no exact_match")
}

/// The measured plan as an arm has it. Shapes are told by the projection's name.
fn dealt(measured: &QuantizationPlan, deal: Deal, seed: u64) -> QuantizationPlan {
    let mut plan = measured.clone();
    if deal == Deal::Measured {
        return plan;
    }
    let mut kinds: BTreeMap<&str, Vec<(String, Scheme)>> = BTreeMap::new();
    let layers = measured.schemes.keys().filter_map(|path| {
        let mut parts = path.split('.');
        parts.find_map(|part| part.parse::<usize>().ok())
    });
    let layers = layers.max().map_or(0, |last| last + 1);
    for target in backdraft_arch::TargetModule::ALL {
        for layer in 0..layers {
            let path = target.path(layer);
            if let Some(scheme) = measured.scheme_for(&path) {
                kinds.entry(target.name()).or_default().push((path, scheme));
            }
        }
    }
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    plan.schemes.clear();
    for mut matrices in kinds.into_values() {
        let size = |scheme: &Scheme| scheme.num_bytes([64, 64]);
        let mut schemes: Vec<Scheme> = matrices.iter().map(|(_, scheme)| *scheme).collect();
        match deal {
            Deal::Random => schemes.sort_by_cached_key(|_| random()),
            Deal::Wrong => {
                matrices.sort_by_key(|(_, scheme)| size(scheme));
                schemes.sort_by_key(|scheme| std::cmp::Reverse(size(scheme)));
            }
            Deal::Measured => {}
        }
        for ((path, _), scheme) in matrices.into_iter().zip(schemes) {
            if scheme != plan.scheme {
                plan.schemes.insert(path, scheme);
            }
        }
    }
    plan
}

/// A row for each arm, a column for each rate: mean nll; ρ, the share of the gap between bf16 and NF4 that is closed, with
/// its 95 % interval over seeds; and how much the worst seed is better than its own NF4 run.
fn table(args: &PrecisionArgs, outcomes: &[Outcome]) -> String {
    let find = |arm: &str, rate: &str, seed: u64| {
        let mut all = outcomes.iter();
        all.find(|one| one.arm == arm && one.rate == rate && one.seed == seed)
            .map(|one| one.nll)
    };
    let mut text = format!(
        "| arm | {} |\n| --- |{}\n",
        args.rates.join(" | "),
        " --- |".repeat(args.rates.len())
    );
    for arm in &args.arms {
        text += &format!("| {arm} |");
        for rate in &args.rates {
            let seeds = args.seeds.iter().copied();
            let of: Vec<(u64, f64)> = seeds
                .filter_map(|seed| Some((seed, find(arm, rate, seed)?)))
                .collect();
            if of.is_empty() {
                text += " – |";
                continue;
            }
            let mean = of.iter().map(|(_, nll)| nll).sum::<f64>() / of.len() as f64;
            let paired: Vec<(f64, f64)> = (of.iter())
                .filter_map(|&(seed, nll)| {
                    let [low, high] = [find("bf16", rate, seed)?, find("nf4", rate, seed)?];
                    Some(((high - nll) / (high - low), high - nll))
                })
                .collect();
            text += &format!(" {mean:.4} (n {}", of.len());
            let matches: Vec<f64> = (outcomes.iter())
                .filter(|one| (&one.arm, &one.rate) == (arm, rate))
                .filter_map(|one| one.exact_match)
                .collect();
            if !matches.is_empty() {
                let mean = matches.iter().sum::<f64>() / matches.len() as f64;
                text += &format!("; exact {:.1} %", 100.0 * mean);
            }
            if arm != "bf16" && arm != "nf4" && !paired.is_empty() {
                let shares: Vec<f64> = paired.iter().map(|(share, _)| *share).collect();
                let worst = paired
                    .iter()
                    .map(|(_, gain)| *gain)
                    .fold(f64::INFINITY, f64::min);
                let (mean, half) = interval(&shares);
                text += &format!("; ρ {mean:.2} ± {half:.2}; worst seed {:+.4}", -worst);
            }
            text += ") |";
        }
        text += "\n";
    }
    text
}

/// Mean and half the 95 % t-interval.
fn interval(values: &[f64]) -> (f64, f64) {
    /// Quantiles at 97.5 % for 1, 2, … degrees of freedom.
    const T: [f64; 15] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131,
    ];
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, f64::NAN);
    }
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let t = T.get(values.len() - 2).copied().unwrap_or(1.96);
    (mean, t * (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use backdraft_arch::{NestedFormat, TargetModule};

    use super::*;

    fn plan() -> QuantizationPlan {
        let mut plan = QuantizationPlan::new(Scheme::NF4);
        for layer in 0..6 {
            let format = if layer < 2 {
                NestedFormat::Nf6
            } else {
                NestedFormat::Nf5
            };
            plan = plan.with_scheme(TargetModule::QProj.path(layer), Scheme::nested(format));
        }
        plan
    }

    #[test]
    fn other_deals_take_the_same_bytes() {
        let formats = |plan: &QuantizationPlan| {
            let mut all: Vec<&str> = (0..6)
                .filter_map(|layer| Some(plan.scheme_for(&TargetModule::QProj.path(layer))?.name()))
                .collect();
            all.sort_unstable();
            all
        };
        for deal in [Deal::Measured, Deal::Random, Deal::Wrong] {
            assert_eq!(formats(&dealt(&plan(), deal, 3)), formats(&plan()));
        }
        let wrong = dealt(&plan(), Deal::Wrong, 3);
        let first = wrong.scheme_for(&TargetModule::QProj.path(0));
        assert_eq!(first.map(Scheme::name), Some("nf5"));
        assert_eq!(
            dealt(&plan(), Deal::Random, 3),
            dealt(&plan(), Deal::Random, 3)
        );
    }

    #[test]
    fn an_interval_is_students() {
        let (mean, half) = interval(&[1.0, 2.0, 3.0]);
        assert_eq!(mean, 2.0);
        assert!((half - 4.303 / 3f64.sqrt()).abs() < 1e-9);
    }
}
