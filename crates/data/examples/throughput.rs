//! How fast rows become packed batches, and in how much memory.
//!
//! ```text
//! cargo run --release -p backdraft-data --example throughput -- MODEL DATA [--cache FOLDER]
//!     [--max-seq-length N] [--tokenizer-to FOLDER]
//! ```
//!
//! `MODEL` is a GGUF file or a Hugging Face directory, `DATA` any source. Without `--cache` the rows
//! stay in memory. `--tokenizer-to` writes `tokenizer.json` and its configuration for
//! `throughput.py`, which does the same with Python's libraries.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::time::Instant;

use backdraft_data::format::detect::detect;
use backdraft_data::{
    Batching, ChatTokenizer, DataOptions, Loader, LoaderOptions, Source, SpecialTokens,
    Supervision, TokenRows, TokenizeOptions, tokenize, tokenize_cached,
};
use backdraft_formats::ModelSource;

/// The program's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error>;

struct Arguments {
    model: PathBuf,
    data: String,
    cache: Option<PathBuf>,
    tokenizer_to: Option<PathBuf>,
    max_seq_length: usize,
}

fn main() -> Result<(), Error> {
    let arguments = arguments()?;
    let tokenizer = tokenizer(&arguments)?;
    let source = Source::open(&arguments.data)?;
    let detected = detect(&source, &[], 0)?;
    println!("{}: {detected}", arguments.data);
    let options = TokenizeOptions::from(DataOptions {
        format: detected.format,
        template: None,
        supervision: Supervision::Responses,
        max_seq_length: arguments.max_seq_length,
    });
    let bytes = source.bytes();
    let sources = [source];
    let began = Instant::now();
    let (rows, outcome) = match &arguments.cache {
        None => {
            let mut rows = TokenRows::default();
            let outcome = tokenize(&sources, &options, &tokenizer, &mut rows, &mut |_| ())?;
            (rows, outcome)
        }
        Some(folder) => {
            let cached = tokenize_cached(&sources, &options, &tokenizer, folder, &mut |_| ())?;
            println!("cache {}", if cached.hit { "hit" } else { "made" });
            (cached.rows, cached.outcome)
        }
    };
    let tokenized = began.elapsed().as_secs_f64();
    let report = &outcome.report;
    println!(
        "tokenise  {tokenized:8.2} s  {:8.2} MB/s  {:9.0} rows/s  {:10.0} tokens/s",
        bytes as f64 / 1e6 / tokenized,
        report.rows as f64 / tokenized,
        report.tokens as f64 / tokenized,
    );
    let began = Instant::now();
    let loader = Loader::with_options(
        rows.lengths(),
        LoaderOptions {
            micro_batch_size: 1,
            grad_accumulation_steps: 1,
            seed: 42,
            shuffle: true,
            batching: Batching::Packed {
                max_seq_length: arguments.max_seq_length,
            },
            sources: Vec::new(),
        },
    )?;
    let packed = began.elapsed().as_secs_f64();
    let density = loader.density().unwrap_or_default();
    println!(
        "pack      {packed:8.2} s  {} rows in {} packs, density {:.4}, {} tokens wasted",
        density.rows,
        density.packs,
        density.density(),
        density.wasted(),
    );
    let both = tokenized + packed;
    println!(
        "both      {both:8.2} s  {:8.2} MB/s  {:9.0} rows/s",
        bytes as f64 / 1e6 / both,
        report.rows as f64 / both,
    );
    println!(
        "{} tokens, {} supervised",
        report.tokens, report.supervised_tokens
    );
    if let Some(peak) = peak_memory() {
        println!("peak memory {peak} MB");
    }
    Ok(())
}

fn arguments() -> Result<Arguments, Error> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or_else(|| format!("{what} is missing"));
    let mut parsed = Arguments {
        model: next("MODEL")?.into(),
        data: next("DATA")?,
        cache: None,
        tokenizer_to: None,
        max_seq_length: 2048,
    };
    while let Ok(flag) = next("a flag") {
        match flag.as_str() {
            "--cache" => parsed.cache = Some(next("FOLDER")?.into()),
            "--tokenizer-to" => parsed.tokenizer_to = Some(next("FOLDER")?.into()),
            "--max-seq-length" => parsed.max_seq_length = next("N")?.parse()?,
            other => return Err(format!("there is no {other}").into()),
        }
    }
    Ok(parsed)
}

fn tokenizer(arguments: &Arguments) -> Result<ChatTokenizer, Error> {
    let source = ModelSource::open(&arguments.model)?;
    let files = source.tokenizer()?;
    if let Some(folder) = &arguments.tokenizer_to {
        std::fs::create_dir_all(folder)?;
        for (name, bytes) in files.to_files() {
            std::fs::write(folder.join(name), bytes)?;
        }
    }
    let special = SpecialTokens {
        bos_token: files.bos_token,
        eos_token: files.eos_token,
        add_bos: files.add_bos_token,
        eos_token_ids: source.eos_token_ids()?,
    };
    Ok(ChatTokenizer::new(
        &files.tokenizer_json,
        special,
        files.chat_template.as_deref(),
    )?)
}

/// The most memory that the process has held, in MB of 10^6 bytes; Linux says it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024 / 1_000_000)
}
