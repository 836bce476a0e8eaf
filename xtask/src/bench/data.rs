//! Rows of a file to packs of tokens: speed, memory, and the same work in Python.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use backdraft_data::rng::SplitMix64;
use backdraft_data::{
    Batching, ChatTokenizer, DataOptions, Format, Loader, LoaderOptions, Source, Supervision,
    TokenizeOptions, tokenize_cached,
};
use backdraft_formats::ModelSource;
use backdraft_plan::memory::peak_resident;
use backdraft_train::data::tokenizer;
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cpu::default_model;

#[derive(Args)]
pub(crate) struct DataArgs {
    /// Whose tokenizer and chat template: a directory or a .gguf file; by default where
    /// `quickstart` keeps it.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Chat rows to repeat, each time with another number in the first message; without it, rows
    /// of one to four turns are made of common words.
    #[arg(long)]
    rows: Option<PathBuf>,
    /// Megabytes of the file that is made and read.
    #[arg(long, default_value_t = 200)]
    megabytes: u64,
    /// Tokens of a pack, and of a row at most.
    #[arg(long, default_value_t = 2048)]
    max_seq_length: usize,
    /// Runs, of which the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// A Python with `xtask/peers/requirements.txt`: does the same after each run.
    #[arg(long)]
    python: Option<PathBuf>,
    /// A folder for the file and the cache, which are deleted afterwards.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// What a run gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Measured {
    tokenize_seconds: f64,
    pack_seconds: f64,
    rows: usize,
    tokens: u64,
    supervised_tokens: u64,
    packs: usize,
    /// The most memory resident at a time; of Python, in its largest process.
    peak_bytes: u64,
}

impl Measured {
    fn seconds(&self) -> f64 {
        self.tokenize_seconds + self.pack_seconds
    }

    fn counts(&self) -> [u64; 3] {
        [self.rows as u64, self.tokens, self.supervised_tokens]
    }
}

/// Prints the median of each side, and how many times faster ours is.
pub(crate) fn run(args: &DataArgs) -> anyhow::Result<()> {
    let model = args.model.clone().or_else(default_model);
    let model = ModelSource::open(model.context("name the model with --model")?)?;
    let folder = match &args.folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    }?;
    for (name, bytes) in model.tokenizer()?.to_files() {
        fs::write(folder.path().join(name), bytes)?;
    }
    let path = folder.path().join("rows.jsonl");
    let mut file = BufWriter::new(File::create(&path)?);
    let bytes = args.megabytes * 1_000_000;
    match &args.rows {
        Some(rows) => repeat(rows, bytes, &mut file)?,
        None => invent(bytes, &mut file)?,
    }
    file.flush()?;
    drop(file);
    let tokenizer = tokenizer(&model)?;
    let bytes = fs::metadata(&path)?.len();
    let watch = Watch::start();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..args.runs {
        ours.push(measure(&tokenizer, &path, args)?);
        if let Some(python) = &args.python {
            theirs.push(peer(python, folder.path(), &path, args)?);
        }
    }
    for (ours, theirs) in ours.iter().zip(&theirs) {
        ensure!(
            ours.counts() == theirs.counts(),
            "not the same work: {ours:?} here, {theirs:?} there"
        );
    }
    let ours = median(ours).context("no runs")?;
    show("backdraft", bytes, &ours);
    println!(
        "of the peak {:.0} MB were anonymous memory and {:.0} MB pages of files at their own peaks",
        watch.anonymous.load(Ordering::Relaxed) as f64 / 1e6,
        watch.of_files.load(Ordering::Relaxed) as f64 / 1e6,
    );
    if let Some(theirs) = median(theirs) {
        show("datasets + transformers", bytes, &theirs);
        println!("{:.2} times as fast", theirs.seconds() / ours.seconds());
    }
    Ok(())
}

fn measure(tokenizer: &ChatTokenizer, path: &Path, args: &DataArgs) -> anyhow::Result<Measured> {
    let options = TokenizeOptions::from(DataOptions {
        format: Format::Messages,
        template: None,
        supervision: Supervision::Responses,
        max_seq_length: args.max_seq_length,
    });
    // As in Python, nothing of an earlier run is used.
    let cache = tempfile::tempdir_in(path.parent().unwrap_or(path))?;
    let began = Instant::now();
    let sources = [Source::from_file(path)];
    let cached = tokenize_cached(&sources, &options, tokenizer, cache.path(), &mut |_| ())?;
    let tokenized = began.elapsed();
    let loader = Loader::with_options(
        cached.rows.lengths(),
        LoaderOptions {
            micro_batch_size: 1,
            grad_accumulation_steps: 1,
            seed: 42,
            shuffle: true,
            batching: Batching::Packed {
                max_seq_length: args.max_seq_length,
            },
            sources: Vec::new(),
        },
    )?;
    let packed = began.elapsed();
    let report = &cached.outcome.report;
    let density = loader.density().unwrap_or_default();
    println!(
        "{} packs, density {:.4}, {} tokens wasted",
        density.packs,
        density.density(),
        density.wasted()
    );
    Ok(Measured {
        tokenize_seconds: tokenized.as_secs_f64(),
        pack_seconds: (packed - tokenized).as_secs_f64(),
        rows: report.rows,
        tokens: report.tokens,
        supervised_tokens: report.supervised_tokens,
        packs: density.packs,
        peak_bytes: peak_resident().unwrap_or(0) as u64,
    })
}

fn peer(python: &Path, tokenizer: &Path, rows: &Path, args: &DataArgs) -> anyhow::Result<Measured> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/data.py");
    let output = Command::new(python)
        .arg(script)
        .args([tokenizer, rows])
        .arg(args.max_seq_length.to_string())
        .arg(rayon::current_num_threads().to_string())
        .output()
        .with_context(|| format!("cannot start {}", python.display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "data.py failed:\n{errors}");
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().context("data.py printed nothing")?;
    Ok(serde_json::from_str(line)?)
}

fn median(mut runs: Vec<Measured>) -> Option<Measured> {
    runs.sort_by(|a, b| a.seconds().total_cmp(&b.seconds()));
    let middle = runs.len() / 2;
    runs.into_iter().nth(middle)
}

fn show(name: &str, bytes: u64, run: &Measured) {
    println!(
        "{name:<24} {:>7.2} s, {:.2} s of them packing  {:>6.2} MB/s  {:>7.0} rows/s  {:>9.0} tokens/s  peak {:.0} MB\n{}",
        run.seconds(),
        run.pack_seconds,
        bytes as f64 / 1e6 / run.seconds(),
        run.rows as f64 / run.seconds(),
        run.tokens as f64 / run.seconds(),
        run.peak_bytes as f64 / 1e6,
        json!({"program": name, "bytes": bytes, "threads": rayon::current_num_threads(), "run": run}),
    );
}

/// The rows of a file over and over, different each time.
fn repeat(rows: &Path, bytes: u64, to: &mut impl Write) -> anyhow::Result<()> {
    let mut written = 0;
    for round in 0.. {
        let before = written;
        for line in BufReader::new(File::open(rows)?).lines() {
            let mut row: serde_json::Value = serde_json::from_str(&line?)?;
            let content = &mut row["messages"][0]["content"];
            let text = content.as_str().context("rows of `messages` are needed")?;
            *content = format!("{text} ({round})").into();
            let line = format!("{row}\n");
            to.write_all(line.as_bytes())?;
            written += line.len() as u64;
            if written >= bytes {
                return Ok(());
            }
        }
        ensure!(written > before, "{} has no rows", rows.display());
    }
    Ok(())
}

/// Rows of one to four turns.
fn invent(bytes: u64, to: &mut impl Write) -> anyhow::Result<()> {
    let mut rng = SplitMix64::stream(42, 0);
    let mut written = 0;
    while written < bytes {
        let mut messages = Vec::new();
        for _ in 0..rng.below(4) + 1 {
            let (question, answer) = (sentence(&mut rng, 40), sentence(&mut rng, 120));
            messages.push(json!({"role": "user", "content": question}));
            messages.push(json!({"role": "assistant", "content": answer}));
        }
        let line = format!("{}\n", json!({"messages": messages}));
        to.write_all(line.as_bytes())?;
        written += line.len() as u64;
    }
    Ok(())
}

/// Up to `longest` words, now and then a number, and names that no other row has.
fn sentence(rng: &mut SplitMix64, longest: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let length = rng.below(longest - 2) + 3;
    let mut word = |at: usize| match at % 23 {
        7 => rng.below(100_000).to_string(),
        15 => (0..rng.below(6) + 4)
            .map(|_| char::from(b'a' + rng.below(26) as u8))
            .collect(),
        _ => (*rng.pick(&words)).to_owned(),
    };
    let mut text = word(0);
    for at in 1..length {
        text.push(' ');
        text.push_str(&word(at));
    }
    text.push('.');
    text
}

const WORDS: &str = "the of and to in is that it was for on are as with his they be at one have this from or had by \
    word but what some we can out other were all there when up use your how said an each she which do their time if \
    will way about many then them write would like so these her long make thing see him two has look more day could \
    go come did number sound no most people my over know water than call first who may down side been now find any \
    new work part take get place made live where after back little only round man year came show every good me give \
    our under name very through just form sentence great think say help low line differ turn cause much mean before \
    move right boy old too same tell does set three want air well also play small end put home read hand port large \
    spell add even land here must big high such follow act why ask men change went light kind off need house picture \
    try us again animal point mother world near build self earth father function parameter compile gradient über café";

/// Looks at the process's memory while it works.
struct Watch {
    anonymous: Arc<AtomicU64>,
    of_files: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl Watch {
    fn start() -> Self {
        let watch = Self {
            anonymous: Arc::default(),
            of_files: Arc::default(),
            done: Arc::default(),
        };
        let (anonymous, of_files) = (watch.anonymous.clone(), watch.of_files.clone());
        let done = watch.done.clone();
        thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
                anonymous.fetch_max(kib(&status, "RssAnon:"), Ordering::Relaxed);
                of_files.fetch_max(kib(&status, "RssFile:"), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(50));
            }
        });
        watch
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// A line of `/proc/self/status`, in bytes.
fn kib(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.unwrap_or(0) * 1024
}
