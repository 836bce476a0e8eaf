//! What several commands do first: find a model, load it, put an adapter on it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backdraft_arch::spec::SCORE;
use backdraft_arch::{BaseHome, DeviceChoice};
use backdraft_data::{
    BuiltinTemplate, ChatTokenizer, DataError, LoadProgress, Outcome, PromptTemplate, RowSet,
    Source, TokenizeOptions,
};
use backdraft_formats::hub::{
    DownloadProgress, HubOptions, resolve_config, resolve_dataset, resolve_model,
};
use backdraft_formats::{FormatError, ModelSource, PeftDir};
use backdraft_kernels::device;
use backdraft_lora::AdapterWeights;
use backdraft_lora::base::MatrixError;
use backdraft_model::{CausalLm, LoadError, ModelSpec};
use backdraft_quant::QuantizationPlan;
use backdraft_recipe::{DataRecipe, Recipe};
use backdraft_train::data::{self, DataSources};
use backdraft_train::device::dtype_on;
use backdraft_train::run;
use backdraft_train::tokens;
use backdraft_train::trained_with::Prompting;
use burn::tensor::{DType, Device};
use serde_json::Value;

use crate::args::choice::QuantizationArg;
use crate::args::{ModelArgs, TemplateArgs};
use crate::commands::Context;
use crate::error::CliError;
use crate::noted::{self, NotedAdapter};
use crate::output::Output;
use crate::plain::{clock, count};

/// A model that is ready to compute.
pub(crate) struct Session {
    pub(crate) model: CausalLm,
    pub(crate) tokenizer: ChatTokenizer,
    pub(crate) adapter: Option<NotedAdapter>,
    /// The model's files.
    pub(crate) source: ModelSource,
    /// Whether prompts were trained on as they are, without a template.
    pub(crate) plain_prompts: bool,
}

impl Session {
    /// Finds and loads a model that predicts tokens, and its adapter where one is named.
    pub(crate) fn open(args: &ModelArgs, context: Context) -> Result<Self, CliError> {
        Self::of(args, None, false, context)
    }

    /// As [`open`](Self::open), or a model that scores answers; without an adapter or a flag that says it, the base is kept as
    /// `recipe` has it.
    pub(crate) fn open_to_judge(
        args: &ModelArgs,
        recipe: Option<&Recipe>,
        context: Context,
    ) -> Result<Self, CliError> {
        Self::of(args, recipe, true, context)
    }

    /// Whether the model's own files have a head that scores answers.
    pub(crate) fn scores_alone(&self) -> bool {
        self.source.tensor_info(SCORE).is_some()
    }

    fn of(
        args: &ModelArgs,
        recipe: Option<&Recipe>,
        scoring: bool,
        context: Context,
    ) -> Result<Self, CliError> {
        let mut chosen = match scoring {
            true => Chosen::find_any(args, context)?,
            false => Chosen::find(args, context)?,
        };
        if let (Some(recipe), None, None) = (recipe, args.quantization, &chosen.adapter) {
            chosen.plan = run::quantization(recipe, &chosen.source)?;
        }
        // A missing tokenizer should be heard of before the weights are read.
        let tokenizer = chosen.tokenizer()?;
        if let Some(adapter) = &chosen.adapter {
            let prompting = adapter.prompting_in_words();
            context.output.progress(format!("prompting: {prompting}"));
        }
        let model = chosen.load(args, context)?;
        let prompting = chosen.adapter.as_ref().map(NotedAdapter::prompting);
        Ok(Self {
            model,
            tokenizer,
            plain_prompts: prompting == Some(Prompting::Nothing),
            adapter: chosen.adapter,
            source: chosen.source,
        })
    }

    /// The same with the template that flags name.
    pub(crate) fn with_template(mut self, args: &TemplateArgs) -> Result<Self, CliError> {
        let tokenizer = &self.tokenizer;
        let source = if let Some(template) = &args.prompt_template {
            let template = PromptTemplate::parse(template).map_err(CliError::library)?;
            let bos = tokenizer.bos_token().filter(|_| tokenizer.add_bos());
            template.to_chat_template(bos)
        } else if let Some(name) = &args.chat_template {
            template_source(name)?
        } else {
            return Ok(self);
        };
        self.plain_prompts = false;
        self.tokenizer = self.tokenizer.with_template(&source)?;
        Ok(self)
    }
}

/// The text of a chat template: a built-in one by its name, else a file.
pub(crate) fn template_source(name: &str) -> Result<String, CliError> {
    match BuiltinTemplate::from_name(name) {
        Some(builtin) => Ok(builtin.source().to_owned()),
        None => std::fs::read_to_string(name).map_err(|error| {
            CliError::user(format!("cannot read the chat template {name}"))
                .because(error)
                .hint("`backdraft init --templates` lists the built-in ones")
        }),
    }
}

/// A model and an adapter, found and not loaded yet.
pub(crate) struct Chosen {
    pub(crate) adapter: Option<NotedAdapter>,
    /// The adapter's files.
    pub(crate) factors: Option<PeftDir>,
    pub(crate) source: ModelSource,
    /// How the base is kept where neither a flag nor an adapter says it.
    plan: Option<QuantizationPlan>,
}

impl Chosen {
    /// As [`find`](Self::find), or a model that scores answers.
    fn find_any(args: &ModelArgs, context: Context) -> Result<Self, CliError> {
        let adapter = args.adapter.as_deref();
        Self::any(args.model.as_deref(), adapter, context.output)
    }

    /// The model that is named, else the one that the adapter was trained over; one that predicts tokens.
    pub(crate) fn find(args: &ModelArgs, context: Context) -> Result<Self, CliError> {
        let adapter = args.adapter.as_deref();
        Self::of(args.model.as_deref(), adapter, context.output)
    }

    /// As [`find`](Self::find).
    pub(crate) fn of(
        model: Option<&str>,
        adapter: Option<&Path>,
        output: Output,
    ) -> Result<Self, CliError> {
        let chosen = Self::any(model, adapter, output)?;
        match chosen.scores() {
            false => Ok(chosen),
            true => {
                let path = match &chosen.adapter {
                    Some(adapter) => &adapter.path,
                    None => chosen.source.path(),
                };
                Err(CliError::user(format!(
                    "{} is a reward model: its head (score.weight) scores answers, and predicts no tokens",
                    path.display()
                ))
                .hint("`backdraft eval` tells the rewards of rows (--answers FILE writes each of them)"))
            }
        }
    }

    /// Whether the head scores answers: that of the adapter, or of the model's own files.
    fn scores(&self) -> bool {
        let trained = self.factors.as_ref().map(|factors| factors.config.scores());
        trained == Some(true) || self.source.tensor_info(SCORE).is_some()
    }

    fn any(model: Option<&str>, adapter: Option<&Path>, output: Output) -> Result<Self, CliError> {
        let adapter = adapter.map(|path| NotedAdapter::find(path, output));
        let adapter = adapter.transpose()?;
        let known = match (model, &adapter) {
            (Some(model), _) => Some(model.to_owned()),
            (None, Some(adapter)) => adapter.model()?,
            (None, None) => None,
        };
        let Some(name) = known else {
            let unknown = match adapter {
                Some(_) => "nothing beside the adapter says which model it is for",
                None => "no model is named",
            };
            return Err(CliError::usage(unknown)
                .hint("--model takes a directory, a .gguf file or a hub id (org/name)"));
        };
        if model.is_none() {
            output.progress(format!(
                "the model that the adapter was trained over: {name}"
            ));
        }
        let mut source = open_model(&name, output)?;
        let mut factors = None;
        if let Some(adapter) = &adapter {
            let read = PeftDir::read(&adapter.path)?;
            source = source.with_tokens_of(&read)?;
            adapter.check_base(&source, output)?;
            backdraft_lora::check_adapter(&source, &read)?;
            factors = Some(read);
        }
        Ok(Self {
            adapter,
            factors,
            source,
            plan: None,
        })
    }

    /// The tokenizer, as the adapter was trained with it.
    pub(crate) fn tokenizer(&self) -> Result<ChatTokenizer, CliError> {
        let tokenizer = backdraft_train::data::tokenizer(&self.source)?;
        match &self.adapter {
            Some(adapter) => adapter.tokenizer(tokenizer),
            None => Ok(tokenizer),
        }
    }

    /// Reads the weights.
    pub(crate) fn load(&self, args: &ModelArgs, context: Context) -> Result<CausalLm, CliError> {
        let model = self.load_base(args.quantization, args.dtype, context)?;
        match &self.factors {
            Some(factors) => {
                let factors = AdapterWeights::from_peft(factors, &model.device());
                Ok(model.with_adapter(&factors)?)
            }
            None => Ok(model),
        }
    }

    /// Reads the weights of the base alone, kept as the adapter was trained where nothing else is asked for.
    pub(crate) fn load_base(
        &self,
        quantization: Option<QuantizationArg>,
        dtype: Option<backdraft_recipe::DType>,
        context: Context,
    ) -> Result<CausalLm, CliError> {
        let output = context.output;
        let device = open_device(context.global.device.unwrap_or_default(), output)?;
        let dtype = self.dtype(dtype, &device)?;
        let plan = match (quantization, &self.adapter) {
            (None, None) => self.plan.clone(),
            (asked, adapter) => noted::plan(asked, adapter.as_ref(), &self.source)?,
        };
        if let Some(plan) = (plan.as_ref()).filter(|_| self.source.quantization().is_none()) {
            output.progress(match plan.keeps_blocks() {
                true => format!("keeping the base in its blocks: {plan}"),
                false => format!("quantizing the base to {plan}"),
            });
        }
        let place = (&device, dtype);
        Ok(match self.scores() {
            // What the adapter does not have stands in the files.
            true => {
                CausalLm::load_to_score(&self.source, plan.as_ref(), place, (BaseHome::Device, 0))?
            }
            false => CausalLm::load_as(&self.source, plan.as_ref(), place)?,
        })
    }

    /// The type asked for, else that of training where the device computes in it.
    fn dtype(
        &self,
        asked: Option<backdraft_recipe::DType>,
        device: &Device,
    ) -> Result<DType, CliError> {
        let with = self
            .adapter
            .as_ref()
            .and_then(|adapter| adapter.with.as_ref());
        if let (None, Some(with)) = (asked, with)
            && let Ok(dtype) = dtype_on(with.dtype, device)
        {
            return Ok(dtype);
        }
        Ok(dtype_on(asked.unwrap_or_default(), device)?)
    }
}

/// Finds and opens a model; says so where its files contradict each other and it can be used all the same.
pub(crate) fn open_model(name: &str, output: Output) -> Result<ModelSource, CliError> {
    let source = ModelSource::open(find_model(name, output)?)?;
    if source.has_untied_head() {
        output.warn(format!(
            "{} ties the head to the embedding, but lm_head.weight differs from it; the head of the file is used",
            source.config_path().display()
        ));
    }
    Ok(source)
}

/// As [`open_model`], the model of a recipe, with the tokens that it adds.
pub(crate) fn open_trained(recipe: &Recipe, output: Output) -> Result<ModelSource, CliError> {
    let source = open_model(&recipe.model, output)?;
    Ok(tokens::with_tokens(source, recipe)?)
}

/// Opens a device, and says what a GPU has.
pub(crate) fn open_device(choice: DeviceChoice, output: Output) -> Result<Device, CliError> {
    let device = device::open(choice).map_err(|error| {
        CliError::library(error).hint("--device cpu computes on the processor, in f32")
    })?;
    let report = device::report(&device);
    if report.memory.is_some() || !report.fast_paths.is_empty() {
        output.progress(report.to_string());
        if let Some(places) = report.places() {
            output.progress(places);
        }
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

/// The shape of a model.
pub(crate) struct Shape {
    pub(crate) spec: ModelSpec,
    /// Whether its files hold codes already.
    pub(crate) quantized: bool,
    /// The model itself, where all of it is here: a `.gguf` file.
    source: Option<ModelSource>,
    path: PathBuf,
}

impl Shape {
    /// How a recipe has the base kept.
    pub(crate) fn plan(&self, recipe: &Recipe) -> Result<Option<QuantizationPlan>, CliError> {
        match &self.source {
            Some(source) => Ok(run::quantization(recipe, source)?),
            None if recipe.quantization.keep_blocks => {
                let path = self.path.clone();
                Err(LoadError::from(MatrixError::NoBlocks { path }).into())
            }
            None => Ok(recipe.quantization_plan()),
        }
    }
}

/// A model's shape from `config.json` or the header of a `.gguf` file; of a model of the hub nothing else is fetched.
pub(crate) fn shape(name: &str, output: Output) -> Result<Shape, CliError> {
    let mut progress = downloads(output);
    let path = resolve_config(name, &HubOptions::from_env(), &mut progress)?;
    if path.is_file() {
        let source = ModelSource::open(path)?;
        return Ok(Shape {
            spec: backdraft_model::spec(&source)?,
            quantized: source.quantization().is_some(),
            path: source.path().to_owned(),
            source: Some(source),
        });
    }
    let config = path.join("config.json");
    let text = std::fs::read(&config).map_err(FormatError::io(&config, "read"))?;
    let value: Value = serde_json::from_slice(&text).map_err(|error| unreadable(&config, error))?;
    Ok(Shape {
        spec: ModelSpec::from_hf(&value).map_err(|error| unreadable(&config, error))?,
        quantized: value.get("quantization_config").is_some(),
        source: None,
        path,
    })
}

fn unreadable(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> CliError {
    CliError::user(format!("{} does not describe a model", path.display())).because(error)
}

/// Tells the user of downloads.
pub(crate) fn downloads(output: Output) -> impl DownloadProgress {
    Downloads::new(output)
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
    Ok(load_sources(&sources, &options, tokenizer, output)?)
}

/// Tokenises rows of sources that were found, into memory.
pub(crate) fn load_sources(
    sources: &[Source],
    options: &TokenizeOptions,
    tokenizer: &ChatTokenizer,
    output: Output,
) -> Result<(RowSet, Outcome), DataError> {
    let mut shown = Loading::new(output);
    let mut progress = |progress| shown.show(progress);
    RowSet::load(sources, options, tokenizer, &mut progress)
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
