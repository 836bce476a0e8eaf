//! What each objective over preferences makes of a model: short runs of the program, and of another trainer over the same rows.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Makes pairs of right answers and the model's own wrong ones, trains by each objective, and asks held-out pairs.
#[derive(Args)]
pub(crate) struct PreferencesArgs {
    /// The program.
    #[arg(long, default_value = "target/release/backdraft")]
    program: PathBuf,
    /// The model: a directory, if a peer is to read it, or a .gguf file.
    #[arg(long)]
    model: PathBuf,
    /// Chat rows of one question and its right answer each.
    #[arg(long)]
    rows: PathBuf,
    /// Pairs to train on.
    #[arg(long, default_value_t = 160)]
    pairs: usize,
    /// Pairs held out.
    #[arg(long, default_value_t = 80)]
    held_out: usize,
    /// dpo, orpo, simpo, cpo or kto.
    #[arg(long, value_delimiter = ',', default_value = "dpo,orpo,simpo,kto")]
    objectives: Vec<String>,
    /// Seeds of order and adapters.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
    seeds: Vec<u64>,
    /// Learning rate.
    #[arg(long, default_value = "2e-4")]
    rate: String,
    /// Where both trainers compute, in f32: cpu, cuda, cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Another trainer's command, such as "python scripts/preferences_trl.py"; it gets --model, --kind, --rows, --seed, --rate,
    /// --device and --out, and writes a PEFT adapter there.
    #[arg(long)]
    peer: Option<String>,
    /// Where rows, runs and `results.jsonl` go; runs that stand there already are not repeated.
    #[arg(long)]
    out: PathBuf,
}

/// What an adapter is worth on the held-out rows.
#[derive(Clone, Serialize, Deserialize)]
struct Outcome {
    trainer: String,
    kind: String,
    seed: u64,
    /// Share of the held-out pairs whose right answer has the higher reward, of the base and with the adapter.
    accuracy: [Option<f64>; 2],
    /// Share of the held-out questions that are answered exactly.
    exact_match: [f64; 2],
    /// Of the whole run of the trainer, loading included.
    seconds: f64,
}

pub(crate) fn run(args: &PreferencesArgs) -> anyhow::Result<()> {
    fs::create_dir_all(&args.out)?;
    let files = Files::in_directory(&args.out);
    if !files.pairs.exists() {
        make_pairs(args, &files)?;
    }
    let results = args.out.join("results.jsonl");
    let known = fs::read_to_string(&results).unwrap_or_default();
    let known = known.lines().map(serde_json::from_str);
    let mut done: Vec<Outcome> = known.collect::<Result<_, _>>().context("results.jsonl")?;
    let trainers = std::iter::once("backdraft").chain(args.peer.as_ref().map(|_| "peer"));
    let trainers: Vec<&str> = trainers.collect();
    for &seed in &args.seeds {
        for kind in &args.objectives {
            for &trainer in &trainers {
                let is_done = |one: &Outcome| {
                    (one.trainer.as_str(), &one.kind, one.seed) == (trainer, kind, seed)
                };
                if done.iter().any(is_done) {
                    continue;
                }
                let outcome = train(args, &files, trainer, kind, seed)
                    .with_context(|| format!("{trainer}, {kind}, seed {seed}"))?;
                let line = serde_json::to_string(&outcome)?;
                println!("{line}");
                let mut log = fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&results)?;
                writeln!(log, "{line}")?;
                done.push(outcome);
            }
        }
    }
    print!("{}", table(&args.objectives, &trainers, &done));
    Ok(())
}

/// As the peer computes.
const F32: &str = "dtype=\"f32\"";

/// The rows of all runs.
struct Files {
    pairs: PathBuf,
    /// The same answers one by one.
    judged: PathBuf,
    held_out: PathBuf,
    /// The questions of the held-out pairs with their right answers.
    questions: PathBuf,
}

impl Files {
    fn in_directory(out: &Path) -> Self {
        let file = |name: &str| out.join(name);
        Self {
            pairs: file("pairs.jsonl"),
            judged: file("judged.jsonl"),
            held_out: file("held_out.jsonl"),
            questions: file("questions.jsonl"),
        }
    }
}

/// A pair is a row's answer, and what the model answers where that is something else.
fn make_pairs(args: &PreferencesArgs, files: &Files) -> anyhow::Result<()> {
    let wanted = args.pairs + args.held_out;
    let text = fs::read_to_string(&args.rows);
    let text = text.with_context(|| format!("cannot read {}", args.rows.display()))?;
    // Some answers will be right, or nothing.
    let asked: Vec<&str> = text.lines().take(wanted + wanted / 4).collect();
    let [questions, answers] = ["asked.jsonl", "answers.jsonl"].map(|name| args.out.join(name));
    fs::write(&questions, asked.join("\n") + "\n")?;
    let mut command = Command::new(&args.program);
    command.args(["eval", "--generate", "--max-new-tokens", "48", "--force"]);
    command.args(["--device", &args.device, "--set", F32]);
    command.arg("--model").arg(&args.model);
    command
        .arg("--data")
        .arg(&questions)
        .arg("--answers")
        .arg(&answers);
    output_of(&mut command)?;
    let answers = fs::read_to_string(&answers)?;
    let mut pairs = Vec::new();
    for (row, answer) in asked.iter().zip(answers.lines()) {
        let (row, answer): (Value, Value) =
            (serde_json::from_str(row)?, serde_json::from_str(answer)?);
        let (Some([prompt @ .., right]), Some(wrong)) = (
            row["messages"].as_array().map(Vec::as_slice),
            answer["base"].as_str(),
        ) else {
            bail!("{}: expected rows of messages", args.rows.display());
        };
        let wrong = wrong.trim();
        if !wrong.is_empty() && Some(wrong) != right["content"].as_str().map(str::trim) {
            pairs.push((
                row.clone(),
                prompt.to_vec(),
                right.clone(),
                wrong.to_owned(),
            ));
        }
    }
    ensure!(pairs.len() >= wanted, "{} pairs of {wanted}", pairs.len());
    let (train, rest) = pairs.split_at(args.pairs);
    let as_pair = |(_, prompt, right, wrong): &(Value, Vec<Value>, Value, String)| json!({"prompt": prompt, "chosen": [right], "rejected": [{"role": "assistant", "content": wrong}]});
    let lines = |rows: Vec<Value>| {
        rows.iter()
            .map(|row| format!("{row}\n"))
            .collect::<String>()
    };
    let held_out = &rest[..args.held_out];
    let judged = train.iter().map(as_pair).flat_map(|pair| {
        [("chosen", true), ("rejected", false)].map(|(which, label)| {
            json!({"prompt": pair["prompt"], "completion": pair[which], "label": label})
        })
    });
    fs::write(&files.judged, lines(judged.collect()))?;
    fs::write(
        &files.held_out,
        lines(held_out.iter().map(as_pair).collect()),
    )?;
    let questions = held_out.iter().map(|(row, ..)| row.clone()).collect();
    fs::write(&files.questions, lines(questions))?;
    // The last, since its being there says that all are.
    fs::write(&files.pairs, lines(train.iter().map(as_pair).collect()))?;
    Ok(())
}

/// Trains one adapter and asks it.
fn train(
    args: &PreferencesArgs,
    files: &Files,
    trainer: &str,
    kind: &str,
    seed: u64,
) -> anyhow::Result<Outcome> {
    let place = std::path::absolute(args.out.join(format!("{trainer}-{kind}-{seed}")))?;
    let rows = if kind == "kto" {
        &files.judged
    } else {
        &files.pairs
    };
    let rows = std::path::absolute(rows)?;
    let mut command = match args.peer.as_deref().filter(|_| trainer == "peer") {
        Some(peer) => {
            let mut words = peer.split_whitespace();
            let mut command = Command::new(words.next().context("--peer is empty")?);
            command
                .args(words)
                .args(["--kind", kind, "--rate", &args.rate])
                .args(["--device", &args.device]);
            command
                .arg("--model")
                .arg(&args.model)
                .arg("--rows")
                .arg(&rows);
            command
                .args(["--seed", &seed.to_string()])
                .arg("--out")
                .arg(&place);
            command
        }
        None => {
            let recipe = args.out.join(format!("{kind}.toml"));
            fs::write(&recipe, recipe_of(args, kind, &rows))?;
            let mut command = Command::new(&args.program);
            command
                .arg("train")
                .arg(&recipe)
                .args(["--plain", "--force"]);
            command.args(["--set", &format!("seed={seed}"), "--set", F32]);
            command.args(["--device", &args.device]);
            command.arg("--output-dir").arg(&place);
            command
        }
    };
    let began = Instant::now();
    output_of(&mut command)?;
    let seconds = began.elapsed().as_secs_f64();
    // KTO has no pairs of its own: they are judged as DPO judges them.
    let judge = if kind == "kto" { "dpo" } else { kind };
    let judged = format!("objective.kind=\"{judge}\"");
    let pairs = evaluation(args, &place, &files.held_out, &["--set", &judged])?;
    let answers = evaluation(args, &place, &files.questions, &["--generate"])?;
    let both = ["base", "adapter"];
    let exact = both.map(|of| answers[of]["exact_match"].as_f64());
    let [Some(before), Some(after)] = exact else {
        bail!("eval gives no exact_match: {answers}");
    };
    Ok(Outcome {
        trainer: trainer.to_owned(),
        kind: kind.to_owned(),
        seed,
        accuracy: both.map(|of| pairs[of]["answers"]["accuracy"]["mean"].as_f64()),
        exact_match: [before, after],
        seconds,
    })
}

/// The settings that the peer has too.
fn recipe_of(args: &PreferencesArgs, kind: &str, rows: &Path) -> String {
    let path = |path: &Path| {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        toml::Value::from(path.to_string_lossy().as_ref()).to_string()
    };
    let more = match kind {
        "simpo" => "beta = 2.0\ngamma = 0.5\n",
        _ => "beta = 0.1\n",
    };
    format!(
        "model = {}\nmax_seq_length = 512\n[lora]\nrank = 16\nalpha = 32\n[objective]\nkind = \"{kind}\"\n{more}[data]\ntrain = {}\n\
         [train]\nepochs = 1\nmicro_batch_size = 4\ngrad_accumulation_steps = 2\nlearning_rate = {}\nlr_scheduler = \"linear\"\n\
         warmup_ratio = 0.1\nweight_decay = 0.0\nsave_total_limit = 1\n",
        path(&args.model),
        path(rows),
        args.rate
    )
}

/// The `evaluation` record of `eval`.
fn evaluation(
    args: &PreferencesArgs,
    adapter: &Path,
    rows: &Path,
    more: &[&str],
) -> anyhow::Result<Value> {
    let mut command = Command::new(&args.program);
    command.args(["--json", "eval"]).args(more);
    command.args(["--device", &args.device, "--set", F32]);
    command
        .arg("--model")
        .arg(&args.model)
        .arg("--adapter")
        .arg(adapter);
    command.arg("--data").arg(rows);
    let text = output_of(&mut command)?;
    let records = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut found = records.filter(|record| record["adapter"].is_object());
    found
        .next()
        .with_context(|| format!("eval gives no evaluation: {text}"))
}

/// Runs a command that has to succeed.
fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} ended with {}: {said}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A row for each objective and trainer: mean and standard deviation over the seeds.
fn table(kinds: &[String], trainers: &[&str], outcomes: &[Outcome]) -> String {
    let mut text =
        "| objective | trainer | seeds | accuracy of held-out pairs | exact match | seconds |\n\
                    | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    for kind in kinds {
        for trainer in trainers {
            let of = outcomes
                .iter()
                .filter(|one| (&one.kind, one.trainer.as_str()) == (kind, trainer));
            let of: Vec<&Outcome> = of.collect();
            let spread = |value: &dyn Fn(&Outcome) -> Option<f64>| {
                let values: Vec<f64> = of.iter().filter_map(|one| value(one)).collect();
                let n = values.len() as f64;
                let mean = values.iter().sum::<f64>() / n;
                let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
                (mean, (squares / (n - 1.0)).sqrt())
            };
            let percent = |name: &dyn Fn(&Outcome) -> Option<f64>| {
                let (mean, deviation) = spread(name);
                format!("{:.1} ± {:.1} %", 100.0 * mean, 100.0 * deviation)
            };
            text += &format!(
                "| {kind} | {trainer} | {} | {} | {} | {:.0} |\n",
                of.len(),
                percent(&|one| one.accuracy[1]),
                percent(&|one| Some(one.exact_match[1])),
                spread(&|one| Some(one.seconds)).0
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_mean_and_deviation_over_seeds() {
        let outcome = |seed, accuracy, exact| Outcome {
            trainer: "backdraft".into(),
            kind: "dpo".into(),
            seed,
            accuracy: [None, Some(accuracy)],
            exact_match: [0.0, exact],
            seconds: 10.0 * seed as f64,
        };
        let outcomes = [
            outcome(1, 0.9, 0.1),
            outcome(2, 0.8, 0.1),
            outcome(3, 0.7, 0.1),
        ];
        let text = table(&["dpo".into()], &["backdraft"], &outcomes);
        let row = "| dpo | backdraft | 3 | 80.0 ± 10.0 % | 10.0 ± 0.0 % | 20 |";
        assert_eq!(text.lines().last(), Some(row));
    }
}
