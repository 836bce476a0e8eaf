//! The command line: global flags, the commands, and flags that several commands share.

pub(crate) mod choice;

use std::path::PathBuf;

use backdraft_arch::DeviceChoice;
use backdraft_recipe::DType;
use clap::{Args, Parser, Subcommand};

use choice::QuantizationArg;

use crate::commands::{
    combine, completions, data, devices, doctor, eval, export, generate, init, inspect, man, merge,
    plan, push, quantize, quickstart, report, score, serve, train, tune, watch,
};

/// Fine-tune Llama, Mistral, Qwen, Gemma, Granite, SmolLM and OLMo models from one program.
#[derive(Debug, Parser)]
#[command(
    name = "backdraft",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  backdraft quickstart\n  backdraft init recipe.toml\n  backdraft train recipe.toml"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,

    // Before the command too, as before any of those that compute.
    #[arg(long, hide = true)]
    pub(crate) device: Option<DeviceChoice>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct Global {
    /// Print results and errors as JSON, one object per line (described in docs/json.md)
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,

    /// What `--device` said, wherever it stood.
    #[arg(skip)]
    pub(crate) device: Option<DeviceChoice>,
}

/// The device, for commands that compute.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda, cuda:N or wgpu [default: the recipe's device, else auto]
    #[arg(long)]
    pub(crate) device: Option<DeviceChoice>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Train(train::TrainArgs),
    Tune(tune::TuneArgs),
    Data(data::DataArgs),
    Plan(plan::PlanArgs),
    Watch(watch::WatchArgs),
    Report(report::ReportArgs),
    Generate(generate::GenerateArgs),
    Eval(eval::EvalArgs),
    Score(score::ScoreArgs),
    Serve(serve::ServeArgs),
    Merge(merge::MergeArgs),
    Combine(combine::CombineArgs),
    Quantize(quantize::QuantizeArgs),
    Export(export::ExportArgs),
    Push(push::PushArgs),
    Inspect(inspect::InspectArgs),
    Init(init::InitArgs),
    Quickstart(quickstart::QuickstartArgs),
    Devices(devices::DevicesArgs),
    Doctor(doctor::DoctorArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

impl Command {
    /// Whether it opens a device, asked for or not.
    pub(crate) const fn may_compute(&self) -> bool {
        let unasked = matches!(
            self,
            Self::Plan(_) | Self::Merge(_) | Self::Quantize(_) | Self::Doctor(_)
        );
        unasked || self.device().is_some()
    }

    /// What `--device` said behind the command; `None` for a command that does not compute.
    pub(crate) const fn device(&self) -> Option<Option<DeviceChoice>> {
        match self {
            Self::Train(args) => Some(args.device.device),
            Self::Tune(args) => Some(args.device.device),
            Self::Generate(args) => Some(args.model.device.device),
            Self::Eval(args) => Some(args.model.device.device),
            Self::Score(args) => Some(args.model.device.device),
            Self::Serve(args) => Some(args.device.device),
            Self::Export(args) => Some(args.device.device),
            Self::Quickstart(args) => Some(args.device.device),
            Self::Devices(args) => Some(args.device.device),
            Self::Data(_)
            | Self::Plan(_)
            | Self::Watch(_)
            | Self::Report(_)
            | Self::Merge(_)
            | Self::Combine(_)
            | Self::Push(_)
            | Self::Quantize(_)
            | Self::Inspect(_)
            | Self::Init(_)
            | Self::Doctor(_)
            | Self::Completions(_)
            | Self::Man(_) => None,
        }
    }
}

/// A model, with or without an adapter.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// Directory, .gguf file, or hub id (org/name) [default: the model that the adapter was trained over]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,

    /// PEFT adapter to apply: its directory, or the output directory of a run
    #[arg(long, value_name = "DIR")]
    pub(crate) adapter: Option<PathBuf>,

    /// Quantize the linear layers on load [default: as the adapter was trained, else as in the files]
    #[arg(long, value_parser = choice::quantization(), value_name = "FORMAT")]
    pub(crate) quantization: Option<QuantizationArg>,

    /// Data type to compute in [default: auto, bf16 or f16 on tensor cores, else f32]
    #[arg(long, value_parser = choice::dtype(), value_name = "DTYPE")]
    pub(crate) dtype: Option<DType>,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// What prompts are put into, where it is not what the adapter was trained with.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TemplateArgs {
    /// Built-in chat template, or a .jinja file [default: as the adapter was trained, else the model's own]
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "raw")]
    pub(crate) chat_template: Option<String>,

    /// Prompt template, as in a recipe [default: as the adapter was trained]
    #[arg(long, value_name = "TEMPLATE", conflicts_with_all = ["raw", "chat_template"])]
    pub(crate) prompt_template: Option<String>,
}

/// How the next token is chosen.
#[derive(Debug, Clone, Args)]
pub(crate) struct SamplingArgs {
    /// Maximum new tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_new_tokens: usize,

    /// Sampling temperature; 0 is greedy decoding
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true, value_parser = non_negative)]
    pub(crate) temperature: f64,

    /// Sample from the K most likely tokens
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) top_k: Option<u32>,

    /// Sample from the most likely tokens whose probabilities add up to P
    #[arg(long, value_name = "P", value_parser = probability)]
    pub(crate) top_p: Option<f64>,

    /// Random seed for sampling
    #[arg(long, value_name = "SEED", default_value_t = 42)]
    pub(crate) seed: u64,
}

fn non_negative(text: &str) -> Result<f64, String> {
    number(text, |value| value >= 0.0, "a number, 0 or more")
}

/// Reads a number above 0.
pub(crate) fn positive(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0, "a number above 0")
}

fn probability(text: &str) -> Result<f64, String> {
    number(
        text,
        |value| value > 0.0 && value <= 1.0,
        "a number above 0, at most 1",
    )
}

fn number(text: &str, valid: impl Fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if f64::is_finite(value) && valid(value) => Ok(value),
        _ => Err(format!("expected {expected}")),
    }
}

#[cfg(test)]
mod tests;
