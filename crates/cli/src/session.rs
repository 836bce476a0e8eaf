//! What several commands do first: find a model, load it, put an adapter on it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backdraft_data::{ChatTokenizer, LoadProgress, Outcome, RowSet};
use backdraft_formats::hub::{DownloadProgress, HubOptions, resolve_dataset, resolve_model};
use backdraft_formats::{ModelSource, PeftDir};
use backdraft_kernels::device::{self, Choice};
use backdraft_lora::{AdapterWeights, TrainedOver};
use backdraft_model::Llama;
use backdraft_quant::QuantizationPlan;
use backdraft_train::data::{self, DataSources};
use backdraft_train::recipe::{DataRecipe, Recipe};
use burn::tensor::Device;

use crate::args::{ModelArgs, QuantizationArg};
use crate::commands::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::plain::{clock, count};

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
        let tokenizer = tokenizer(&source, args.adapter.as_deref())?;
        let note = trained_over(args.adapter.as_deref(), &source, output)?;
        let plan = plan(args.quantization, note.as_ref());
        if let Some(plan) = plan.as_ref().filter(|_| source.quantization().is_none()) {
            output.progress(format!("quantizing the base to {}", plan.scheme));
        }
        let mut model = Llama::load_as(&source, plan.as_ref(), (&device, dtype))?;
        if let Some(adapter) = &args.adapter {
            model = model.with_adapter(&AdapterWeights::read(adapter, &device)?)?;
        }
        Ok(Self { model, tokenizer })
    }
}

/// A model's tokenizer, with the chat template that the adapter was trained with.
pub(crate) fn tokenizer(
    source: &ModelSource,
    adapter: Option<&Path>,
) -> Result<ChatTokenizer, CliError> {
    let tokenizer = backdraft_train::run::tokenizer(source)?;
    match adapter.map(PeftDir::chat_template).transpose()?.flatten() {
        Some(template) => Ok(tokenizer.with_template(&template)?),
        None => Ok(tokenizer),
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
        output.warn(format!(
            "the adapter was trained over {}, whose files differ from {}",
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

/// `backdraft` in the user's cache directory; `None` where there is none.
pub(crate) fn cache_dir() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    variable("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".cache")))
        .map(|cache| cache.join("backdraft"))
}

/// Where a model lies, fetched from the hub if it must be.
pub(crate) fn find_model(name: &str, output: Output) -> Result<PathBuf, CliError> {
    let mut progress = downloads(output);
    Ok(resolve_model(name, &HubOptions::from_env(), &mut progress)?)
}

/// Tells the user of downloads.
pub(crate) fn downloads(output: Output) -> impl DownloadProgress {
    Downloads::new(output)
}

/// An adapter directory, checked.
pub(crate) fn read_adapter(path: &Path) -> Result<PeftDir, CliError> {
    Ok(PeftDir::read(path)?)
}

/// Finds the rows of a recipe, fetched from the hub where they must be.
pub(crate) fn find_data(recipe: &DataRecipe, output: Output) -> Result<DataSources, CliError> {
    let mut progress = Downloads::new(output);
    let mut fetch = |name: &str| {
        resolve_dataset(name, &HubOptions::from_env(), &mut progress).map_err(Into::into)
    };
    Ok(DataSources::find(recipe, &mut fetch)?)
}

/// A recipe for rows that the command line names: the same keys, the same checks.
pub(crate) fn recipe_for(
    rows: &str,
    model: &str,
    others: impl IntoIterator<Item = (impl std::fmt::Display, String)>,
) -> Result<Recipe, CliError> {
    let mut overrides = vec![
        format!("model={}", quote(model)),
        format!("data.train={}", quote(rows)),
    ];
    overrides.extend(
        others
            .into_iter()
            .map(|(key, value)| format!("{key}={value}")),
    );
    let directory = std::env::current_dir()
        .map_err(|error| CliError::user("cannot find the working directory").because(error))?;
    Ok(Recipe::from_toml("", &directory, &overrides)?)
}

/// A TOML string.
pub(crate) fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Tokenises rows that the command line names, into memory.
pub(crate) fn load_rows(
    recipe: &Recipe,
    tokenizer: &ChatTokenizer,
    output: Output,
) -> Result<(RowSet, Outcome), CliError> {
    let sources = data::plain(&find_data(&recipe.data, output)?.train);
    let options = data::tokenize_options(recipe)?;
    let mut shown = Loading::new(output);
    let mut progress = |progress| shown.show(progress);
    Ok(RowSet::load(&sources, &options, tokenizer, &mut progress)?)
}

/// Shows how far reading rows has come.
pub(crate) struct Loading {
    output: Output,
    shown: Instant,
}

impl Loading {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            shown: Instant::now(),
        }
    }

    /// A line every two seconds.
    pub(crate) fn show(&mut self, progress: LoadProgress) {
        if self.shown.elapsed() > Duration::from_secs(2) {
            self.shown = Instant::now();
            self.output.progress(loading_line(progress));
        }
    }
}

fn loading_line(progress: LoadProgress) -> String {
    let percent = 100.0 * progress.bytes as f64 / progress.total_bytes.max(1) as f64;
    let rows = match progress.rows {
        0 => String::new(),
        rows => format!(
            ", {}, {:.0} rows/s",
            count(rows as u64, "row"),
            progress.rows_per_second()
        ),
    };
    format!(
        "  {} {percent:.0} %{rows}, {:.1} MB/s, {} left",
        if progress.rows == 0 {
            "reading"
        } else {
            "tokenising"
        },
        progress.bytes_per_second() / 1e6,
        progress.time_left().map_or_else(|| "?".to_owned(), clock)
    )
}

struct Downloads {
    output: Output,
    file: String,
    total: u64,
    done: u64,
    shown: Instant,
}

impl Downloads {
    fn new(output: Output) -> Self {
        Self {
            output,
            file: String::new(),
            total: 0,
            done: 0,
            shown: Instant::now(),
        }
    }
}

impl DownloadProgress for Downloads {
    fn start(&mut self, file: &str, bytes: u64) {
        (self.file, self.total, self.done) = (file.to_owned(), bytes, 0);
        self.output
            .progress(format!("downloading {file} ({:.1} MB)", bytes as f64 / 1e6));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_rows_shows_rate_and_time_left() {
        let progress = LoadProgress {
            rows: 12_345,
            bytes: 25_000_000,
            total_bytes: 100_000_000,
            elapsed: Duration::from_secs(5),
        };
        assert_eq!(
            loading_line(progress),
            "  tokenising 25 %, 12,345 rows, 2469 rows/s, 5.0 MB/s, 0:00:15 left"
        );
        let first = LoadProgress {
            rows: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
            ..progress
        };
        assert_eq!(loading_line(first), "  reading 0 %, 0.0 MB/s, ? left");
    }
}
