//! What several commands do first: find a model, load it, put an adapter on it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backdraft_data::{ChatTokenizer, DataOptions, Format, PromptTemplate, Supervision};
use backdraft_formats::hub::{DownloadProgress, HubOptions, resolve_model};
use backdraft_formats::{ModelSource, PeftDir};
use backdraft_kernels::device::{self, Choice};
use backdraft_lora::{AdapterWeights, TrainedOver};
use backdraft_model::Llama;
use backdraft_quant::QuantizationPlan;
use burn::tensor::Device;

use crate::args::{FormatArg, ModelArgs, QuantizationArg};
use crate::commands::Context;
use crate::error::CliError;
use crate::output::Output;

/// A model that is ready to compute.
pub(crate) struct Session {
    pub(crate) model: Llama,
    pub(crate) tokenizer: ChatTokenizer,
}

impl Session {
    /// Finds and loads a model, and its adapter where one is named.
    pub(crate) fn open(args: &ModelArgs, context: Context) -> Result<Self, CliError> {
        let output = context.output;
        let device = open_device(context.global.device.unwrap_or_default(), output)?;
        let dtype = args.dtype.unwrap_or_default().on(&device)?;
        let source = ModelSource::open(find_model(&args.model, output)?)?;
        let tokenizer = backdraft_train::run::tokenizer(&source)?;
        let note = trained_over(args.adapter.as_deref(), &source, output)?;
        let plan = plan(args.quantization, note.as_ref());
        if let Some(plan) = plan.as_ref().filter(|_| source.quantization().is_none()) {
            output.progress(format!(
                "the base's projections are kept in {}",
                plan.scheme
            ));
        }
        let mut model = Llama::load_as(&source, plan.as_ref(), (&device, dtype))?;
        if let Some(adapter) = &args.adapter {
            model = model.with_adapter(&AdapterWeights::read(adapter, &device)?)?;
        }
        Ok(Self { model, tokenizer })
    }
}

/// What the adapter was trained over; says so where that was another model.
pub(crate) fn trained_over(
    adapter: Option<&Path>,
    source: &ModelSource,
    output: Output,
) -> Result<Option<TrainedOver>, CliError> {
    let Some(note) = adapter.map(TrainedOver::read).transpose()?.flatten() else {
        return Ok(None);
    };
    if note.fingerprint != source.fingerprint()? {
        output.progress(format!(
            "warning: the adapter was trained over {}, whose files differ from {}",
            note.model,
            source.path().display()
        ));
    }
    Ok(Some(note))
}

/// How the base is to be kept: as asked for, else as the adapter was trained.
pub(crate) fn plan(
    asked: Option<QuantizationArg>,
    note: Option<&TrainedOver>,
) -> Option<QuantizationPlan> {
    match asked {
        Some(asked) => asked.plan(),
        None => Some(note?.quantization.as_ref()?.into()),
    }
}

/// Opens a device, and says what a GPU has.
pub(crate) fn open_device(choice: Choice, output: Output) -> Result<Device, CliError> {
    let device = choice.open().map_err(|error| {
        CliError::library(error).hint("--device cpu computes on the processor, in f32")
    })?;
    let report = device::report(&device);
    if report.memory.is_some() || !report.fast_paths.is_empty() {
        output.progress(report.to_string());
    }
    Ok(device)
}

/// Where a model lies, fetched from the hub if it must be.
pub(crate) fn find_model(name: &str, output: Output) -> Result<PathBuf, CliError> {
    let mut progress = downloads(output);
    Ok(resolve_model(name, &HubOptions::from_env(), &mut progress)?)
}

/// Tells the user of downloads.
pub(crate) fn downloads(output: Output) -> impl DownloadProgress {
    Downloads {
        output,
        file: String::new(),
        total: 0,
        done: 0,
        shown: Instant::now(),
    }
}

/// An adapter directory, checked.
pub(crate) fn read_adapter(path: &Path) -> Result<PeftDir, CliError> {
    Ok(PeftDir::read(path)?)
}

/// How rows of a file become tokens, from flags.
pub(crate) fn data_options(
    format: Format,
    prompt_template: Option<&str>,
    max_seq_length: usize,
) -> Result<DataOptions, CliError> {
    let template = prompt_template
        .map(PromptTemplate::parse)
        .transpose()
        .map_err(CliError::library)?;
    Ok(DataOptions {
        format,
        template,
        supervision: Supervision::default(),
        max_seq_length,
    })
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Messages => Self::Messages,
            FormatArg::Alpaca => Self::Alpaca,
            FormatArg::Text => Self::Text,
        }
    }
}

struct Downloads {
    output: Output,
    file: String,
    total: u64,
    done: u64,
    shown: Instant,
}

impl DownloadProgress for Downloads {
    fn start(&mut self, file: &str, bytes: u64) {
        (self.file, self.total, self.done) = (file.to_owned(), bytes, 0);
        self.output
            .progress(format!("fetching {file} ({:.1} MB)", bytes as f64 / 1e6));
    }

    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
        if self.shown.elapsed() > Duration::from_secs(2) {
            self.shown = Instant::now();
            let percent = 100.0 * self.done as f64 / self.total.max(1) as f64;
            self.output
                .progress(format!("  {} {percent:.0} %", self.file));
        }
    }

    fn finish(&mut self, _: &str) {}
}
