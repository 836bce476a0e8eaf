//! `combine`: several adapters as one.

use std::path::{Path, PathBuf};

use backdraft_arch::QuantizationPlan;
use backdraft_formats::{Existing, PeftDir, PeftWriteOptions};
use backdraft_lora::{Combination, CombineOptions, MajoritySign, TrainedOver, combine};
use backdraft_train::trained_with::TrainedWith;
use clap::Args;
use clap::builder::TypedValueParser;

use crate::args::choice::choice;
use crate::commands::{self, Context};
use crate::error::CliError;
use crate::noted::NotedAdapter;
use crate::output::Output;
use crate::plain::count;

/// Combine several adapters of one base into one, as PEFT's add_weighted_adapter does
///
/// The result is a PEFT directory, which `generate`, `serve`, `merge` and `train --adapter` take like any other. A module
/// that only some of the adapters have is made of those. The same adapters and settings give the same bytes.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft combine outputs-a outputs-b --out both
  backdraft combine outputs-a outputs-b --weights 0.7,0.3 --combination-type linear --out both
  backdraft combine a b c --combination-type ties --density 0.2 --out three")]
pub(crate) struct CombineArgs {
    /// PEFT adapter directories, or the output directories of runs
    #[arg(value_name = "DIR", required = true)]
    pub(crate) adapters: Vec<PathBuf>,

    /// Directory to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    /// What each adapter counts, in their order; may be negative [default: 1 for each]
    #[arg(
        long,
        value_name = "W,W,…",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub(crate) weights: Vec<f64>,

    /// How they become one
    #[arg(long, value_parser = combination(), value_name = "TYPE", default_value = "svd")]
    pub(crate) combination_type: Combination,

    /// Share of the values that stay, above 0 and at most 1; for ties, dare and magnitude_prune
    #[arg(long, value_name = "SHARE")]
    pub(crate) density: Option<f64>,

    /// Which sign prevails; for ties and dare_ties
    #[arg(long, value_parser = majority_sign(), value_name = "METHOD", default_value = "total")]
    pub(crate) majority_sign_method: MajoritySign,

    /// Rank of the result; for svd [default: the largest of the adapters' ranks]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) svd_rank: Option<u32>,

    /// Seed of the values that are chosen by chance; for dare
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub(crate) seed: u64,

    /// Replace the output directory if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

fn combination() -> impl TypedValueParser<Value = Combination> {
    choice(Combination::ALL, Combination::name, |it| match it {
        Combination::Svd => "Weighted sum of their products, the nearest of a rank",
        Combination::Linear => "Weighted sums of A and of B; ranks must be the same",
        Combination::Cat => "Factors one behind the other: the exact sum, ranks add up",
        Combination::Ties => "As linear, the largest values of the sign that prevails",
        Combination::DareLinear => "As linear, values chosen by chance",
        Combination::DareTies => "As linear, values chosen by chance, of the sign that prevails",
        Combination::MagnitudePrune => "As linear, the largest values",
    })
}

fn majority_sign() -> impl TypedValueParser<Value = MajoritySign> {
    choice(MajoritySign::ALL, MajoritySign::name, |it| match it {
        MajoritySign::Total => "That of the sum of the values",
        MajoritySign::Frequency => "That of most values",
    })
}

pub(crate) fn run(args: &CombineArgs, context: Context) -> Result<(), CliError> {
    let output = context.output;
    let found = args.adapters.iter();
    let noted: Vec<NotedAdapter> = found
        .map(|path| NotedAdapter::find(path, output))
        .collect::<Result<_, _>>()?;
    let paths: Vec<&Path> = noted.iter().map(|adapter| &*adapter.path).collect();
    commands::keep_inputs(&args.out, &paths)?;
    let adapters = paths.iter().map(PeftDir::read);
    let adapters: Vec<PeftDir> = adapters.collect::<Result<_, _>>()?;
    let options = CombineOptions {
        combination: args.combination_type,
        weights: match args.weights.is_empty() {
            true => vec![1.0; adapters.len()],
            false => args.weights.clone(),
        },
        density: args.density,
        majority_sign: args.majority_sign_method,
        svd_rank: args.svd_rank.map(|rank| rank as usize),
        seed: args.seed,
    };
    let (config, tensors) = combine(&adapters, &options).map_err(CliError::library)?;
    let write = PeftWriteOptions {
        existing: match args.force {
            true => Existing::Replace,
            false => Existing::Refuse,
        },
        companions: companions(&noted, output)?,
        prefix: adapters[0].prefix,
        ..PeftWriteOptions::default()
    };
    PeftDir::write(&args.out, &config, &tensors, &write)?;
    output.record(
        "combined",
        &serde_json::json!({
            "out": args.out, "adapters": paths, "weights": options.weights,
            "combination_type": options.combination.name(), "rank": config.r, "modules": tensors.len(),
        }),
    )?;
    let weights: Vec<String> = options.weights.iter().map(ToString::to_string).collect();
    output.line(format!(
        "Wrote {}: {} with an adapter of rank {} ({}, weights {})",
        args.out.display(),
        count(tensors.len() as u64, "module"),
        config.r,
        options.combination,
        weights.join(" and ")
    ))
}

/// What lies beside the adapters, where all say the same; the user hears where they do not.
fn companions(noted: &[NotedAdapter], output: Output) -> Result<Vec<(String, Vec<u8>)>, CliError> {
    let mut files = Vec::new();
    let templates = noted.iter().map(|it| PeftDir::chat_template(&it.path));
    let templates: Vec<Option<String>> = templates.collect::<Result<_, _>>()?;
    let with: Vec<Option<&TrainedWith>> = noted.iter().map(|it| it.with.as_ref()).collect();
    let over: Vec<Option<&TrainedOver>> = noted.iter().map(NotedAdapter::over).collect();
    let template = same(&templates);
    match template {
        Some(Some(template)) => {
            let name = PeftDir::CHAT_TEMPLATE.to_owned();
            files.push((name, template.as_bytes().to_vec()));
        }
        Some(None) => {}
        None => output.warn(
            "the adapters were trained with different chat templates, and the result has none: name one with --chat-template",
        ),
    }
    match (same(&with), same(&over)) {
        (Some(Some(with)), _) if template.is_some() => {
            files.push((TrainedWith::FILE.to_owned(), with.to_json()?));
        }
        (_, Some(Some(over))) => {
            let note = serde_json::to_vec_pretty(over);
            let note = note.map_err(backdraft_formats::FormatError::encode(TrainedOver::FILE))?;
            files.push((TrainedOver::FILE.to_owned(), note));
            output.warn("the adapters were trained with different settings: prompts are put into the model's own template");
        }
        (_, Some(None)) => {}
        (_, None) => output.warn(differences(&over)),
    }
    Ok(files)
}

/// What all have in common.
fn same<T: PartialEq>(all: &[T]) -> Option<&T> {
    let first = all.first()?;
    all.iter().all(|other| other == first).then_some(first)
}

/// In what the bases of adapters differ.
fn differences(over: &[Option<&TrainedOver>]) -> String {
    let kept = |plan: &Option<QuantizationPlan>| match plan {
        Some(plan) => plan.to_string(),
        None => "not quantized".to_owned(),
    };
    let bases: Vec<String> = over
        .iter()
        .map(|over| match over {
            Some(over) => format!("{} ({})", over.model, kept(&over.quantization)),
            None => "a base of which nothing is noted".to_owned(),
        })
        .collect();
    format!(
        "the adapters were trained over different bases, and the result notes none: {}",
        bases.join(", ")
    )
}
