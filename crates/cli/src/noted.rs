//! An adapter and what its run noted beside it, so that it need not be said again.

use std::path::{Path, PathBuf};

use backdraft_data::ChatTokenizer;
use backdraft_formats::{FormatError, ModelSource, PeftDir, trained_model_in};
use backdraft_lora::TrainedOver;
use backdraft_quant::QuantizationPlan;
use backdraft_train::trained_with::{Prompting, TrainedWith, adapter_in};

use crate::args::choice::QuantizationArg;
use crate::error::CliError;
use crate::output::Output;

/// An adapter's directory and its notes.
#[derive(Debug)]
pub(crate) struct NotedAdapter {
    /// The adapter itself, also where the directory of its run was named.
    pub(crate) path: PathBuf,
    /// What it was trained with; `None` for one that was made elsewhere, or by an earlier version.
    pub(crate) with: Option<TrainedWith>,
    over: Option<TrainedOver>,
}

impl NotedAdapter {
    /// The adapter that `path` leads to: its own directory, a run's, or a checkpoint's.
    pub(crate) fn find(path: &Path, output: Output) -> Result<Self, CliError> {
        let found = adapter_in(path);
        if found != path {
            output.progress(format!("the adapter of that run: {}", found.display()));
        }
        if !found.join("adapter_config.json").is_file() {
            return Err(no_adapter(path));
        }
        let with = TrainedWith::read(&found)?;
        let over = match &with {
            Some(with) => Some(with.over.clone()),
            None => TrainedOver::read(&found)?,
        };
        Ok(Self {
            path: found,
            with,
            over,
        })
    }

    /// The model that it was trained over, where that is known.
    pub(crate) fn model(&self) -> Result<Option<String>, CliError> {
        if let Some(over) = &self.over {
            return Ok(Some(over.model.clone()));
        }
        Ok(PeftDir::read(&self.path)?.config.base_model_name_or_path)
    }

    /// Says so where the adapter was trained over other files.
    pub(crate) fn check_base(&self, source: &ModelSource, output: Output) -> Result<(), CliError> {
        if let Some(over) = &self.over
            && over.fingerprint != source.fingerprint()?
        {
            output.warn(format!(
                "the adapter was trained over {}, whose files differ from {}",
                over.model,
                source.path().display()
            ));
        }
        Ok(())
    }

    /// What it was trained over, where that is noted.
    pub(crate) const fn over(&self) -> Option<&TrainedOver> {
        self.over.as_ref()
    }

    /// Whether anything says how the base was quantised.
    pub(crate) const fn knows_base(&self) -> bool {
        self.over.is_some()
    }

    /// How the base was quantised.
    pub(crate) fn plan(&self) -> Option<QuantizationPlan> {
        self.over.as_ref()?.quantization.clone()
    }

    /// The model's tokenizer with the chat template and the ends of answers that the adapter was trained
    /// with.
    pub(crate) fn tokenizer(&self, tokenizer: ChatTokenizer) -> Result<ChatTokenizer, CliError> {
        let tokenizer = match PeftDir::chat_template(&self.path)? {
            Some(template) => tokenizer.with_template(&template)?,
            None => tokenizer,
        };
        Ok(match &self.with {
            Some(with) => tokenizer.with_stop_ids(&with.stop_token_ids),
            None => tokenizer,
        })
    }

    /// What prompts were put into.
    pub(crate) fn prompting(&self) -> Prompting {
        let with = self.with.as_ref();
        with.map_or(Prompting::ChatTemplate, |with| with.prompting)
    }

    /// What prompts are put into, in words.
    pub(crate) fn prompting_in_words(&self) -> &'static str {
        match self.prompting() {
            Prompting::PromptTemplate => "the prompt template it was trained with",
            Prompting::Nothing => "prompts as they are, without a template",
            Prompting::ChatTemplate => match self.path.join(PeftDir::CHAT_TEMPLATE).is_file() {
                true => "the chat template it was trained with",
                false => "the model's chat template",
            },
        }
    }
}

/// How the base is to be kept: as asked for, else as the adapter was trained.
pub(crate) fn plan(
    asked: Option<QuantizationArg>,
    adapter: Option<&NotedAdapter>,
    source: &ModelSource,
) -> Result<Option<QuantizationPlan>, CliError> {
    match asked {
        Some(asked) => asked.plan(source),
        None => Ok(adapter.and_then(NotedAdapter::plan)),
    }
}

/// Why a path leads to no adapter, and what to name instead.
fn no_adapter(path: &Path) -> CliError {
    if !path.exists() {
        return FormatError::NotFound {
            path: path.to_owned(),
        }
        .into();
    }
    let shown = path.display();
    if path.is_file() {
        return CliError::user(format!(
            "{shown} is a file, not the directory of an adapter"
        ))
        .hint("name the directory that holds adapter_config.json");
    }
    if let Some(model) = trained_model_in(path) {
        let model = model.to_string_lossy();
        let named = crate::shell::quote(&model);
        return CliError::user(format!(
            "{shown} holds no adapter, and there is nothing to merge: the run there trained the model itself, {model}"
        ))
        .hint(format!("name it as the model: --model {named}"));
    }
    let error = CliError::user(format!(
        "{shown} holds no adapter: neither adapter_config.json nor adapter/adapter_config.json is there"
    ));
    if path.join("metrics.jsonl").is_file() {
        let resume = crate::shell::CommandLine::new("train").flag("--resume", path);
        return error.hint(format!(
            "the run there has not saved an adapter yet; `{resume}` continues it"
        ));
    }
    match last_checkpoint(path) {
        Some(checkpoint) => error.hint(format!(
            "another trainer left checkpoints there; name one, such as --adapter {}",
            crate::shell::quote(&checkpoint.to_string_lossy())
        )),
        None => error.hint("name a PEFT adapter's directory, or the output directory of a run"),
    }
}

/// The newest adapter among the checkpoints that another trainer left in a directory.
fn last_checkpoint(path: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(path).ok()?.flatten();
    let step = |path: &PathBuf| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("checkpoint-")?.parse::<u64>().ok()
    };
    entries
        .map(|entry| entry.path())
        .filter(|path| path.join("adapter_config.json").is_file())
        .max_by_key(step)
}
