//! What an adapter was trained with, noted beside it, so that nobody has to say it again.

use std::collections::BTreeMap;
use std::path::Path;

use backdraft_arch::QuantizationPlan;
use backdraft_data::{Format, Overlong, PromptTemplate, Supervision};
pub use backdraft_formats::adapter_in;
use backdraft_formats::{AdapterPrefix, Existing, FormatError, PeftDir};
use backdraft_lora::{ModelWriteOptions, TrainedOver};
use backdraft_recipe::{DType, DataFormat, Recipe};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Layout of the file.
const VERSION: u32 = 1;

/// What a prompt was put into while an adapter was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompting {
    /// The chat template: the model's own, or the one beside the adapter.
    ChatTemplate,
    /// The prompt template of the recipe.
    PromptTemplate,
    /// Nothing: the prompt stood there as it is.
    Nothing,
}

/// How rows were read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedRows {
    /// Their shape.
    pub format: DataFormat,
    /// Other names for the fields of the format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<BTreeMap<String, String>>,
    /// Tokens that counted in the loss.
    pub train_on: Supervision,
    /// What became of rows that were too long.
    pub overlong: Overlong,
    /// Longest row in tokens.
    pub max_seq_length: usize,
}

/// What an adapter was trained with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedWith {
    version: u32,
    /// The base.
    #[serde(flatten)]
    pub over: TrainedOver,
    /// Number format of the computation, as the recipe has it.
    pub dtype: DType,
    /// What prompts were put into.
    pub prompting: Prompting,
    /// Text around an alpaca row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<String>,
    /// How rows were read.
    pub rows: TrainedRows,
    /// Ids that end an answer.
    pub stop_token_ids: Vec<u32>,
}

impl TrainedWith {
    /// The file's name in an adapter's directory.
    pub const FILE: &str = "trained_with.json";

    /// The settings of a run over rows of these formats, whose tokenizer has a chat template or not.
    #[must_use]
    pub fn new(
        recipe: &Recipe,
        over: TrainedOver,
        (formats, has_chat_template): (&[Format], bool),
        stop_token_ids: &[u32],
    ) -> Self {
        let all = |wanted| !formats.is_empty() && formats.iter().all(|format| *format == wanted);
        let prompting = match &recipe.data.prompt_template {
            Some(_) if all(Format::Alpaca) => Prompting::PromptTemplate,
            None if all(Format::PromptCompletion) => Prompting::Nothing,
            // Texts and messages look alike from here: with a template, prompts are for chats.
            None if !has_chat_template
                && !formats.is_empty()
                && formats.iter().all(|format| format.compares()) =>
            {
                Prompting::Nothing
            }
            None if all(Format::Text) && !has_chat_template => Prompting::Nothing,
            _ => Prompting::ChatTemplate,
        };
        let data = &recipe.data;
        let sources = &data.train.0;
        // What every source says counts as said for all of them.
        let first = sources.first();
        let fields = first.and_then(|source| source.fields.clone());
        let same_fields = sources.iter().all(|source| source.fields == fields);
        let format = first.and_then(|source| source.format);
        let same_format = sources.iter().all(|source| source.format == format);
        Self {
            version: VERSION,
            over,
            dtype: recipe.dtype,
            prompting,
            prompt_template: data.prompt_template.clone(),
            rows: TrainedRows {
                format: format.filter(|_| same_format).unwrap_or(data.format),
                fields: (fields.filter(|_| same_fields)).or_else(|| data.fields.clone()),
                train_on: data.train_on,
                overlong: data.overlong,
                max_seq_length: recipe.max_seq_length,
            },
            stop_token_ids: stop_token_ids.to_vec(),
        }
    }

    /// The settings of a recipe, for rows that are read as its own; the base is not looked at.
    #[must_use]
    pub fn of_recipe(recipe: &Recipe) -> Self {
        let over = TrainedOver {
            model: recipe.model.clone(),
            fingerprint: String::new(),
            quantization: recipe.quantization_plan(),
        };
        Self::new(recipe, over, (&[], true), &[])
    }

    /// The file's contents.
    ///
    /// # Errors
    /// [`FormatError::Encode`] for text that has no form in JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, FormatError> {
        serde_json::to_vec_pretty(self).map_err(FormatError::encode(Self::FILE))
    }

    /// The settings noted in an adapter's directory; `None` for an adapter that was made elsewhere, or by an
    /// earlier version (see [`TrainedOver::read`]).
    ///
    /// # Errors
    /// A file that is malformed, or of a later version.
    pub fn read(directory: &Path) -> Result<Option<Self>, FormatError> {
        let path = directory.join(Self::FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FormatError::io(path, "read")(error)),
        };
        let json = |source| FormatError::Json {
            path: path.clone(),
            source,
        };
        let value: Value = serde_json::from_slice(&bytes).map_err(json)?;
        let wrong = |field: &str, expected, actual: String| FormatError::JsonField {
            path: path.clone(),
            field: field.to_owned(),
            expected,
            actual,
        };
        // First, since a later version may have other fields.
        match value.get("version") {
            Some(version) if *version == VERSION => {}
            other => {
                let actual = other.map_or_else(|| "missing".to_owned(), Value::to_string);
                return Err(wrong(
                    "version",
                    "1 (a newer backdraft reads others)",
                    actual,
                ));
            }
        }
        let noted: Self = serde_json::from_value(value).map_err(json)?;
        noted.over.check(&path)?;
        if noted.rows.max_seq_length < 2 {
            let actual = noted.rows.max_seq_length.to_string();
            return Err(wrong("rows.max_seq_length", "at least 2", actual));
        }
        match noted.prompt_template.as_deref().map(PromptTemplate::parse) {
            Some(Err(error)) => Err(wrong(
                "prompt_template",
                "a prompt template",
                error.to_string(),
            )),
            None if noted.prompting == Prompting::PromptTemplate => Err(wrong(
                "prompt_template",
                "a prompt template",
                "missing".to_owned(),
            )),
            _ => Ok(Some(noted)),
        }
    }
}

/// What lies beside the factors of an adapter, or the weights of a model: its settings, and the chat template and the tokenizer that its answers need
/// where the base has others; and what the factors are called.
#[derive(Clone, Debug)]
pub struct Companions {
    /// The settings of the run.
    pub noted: TrainedWith,
    /// The template of the prompts, where it is not the base's own.
    pub chat_template: Option<String>,
    /// The names of the factors.
    pub prefix: AdapterPrefix,
    /// The tokenizer's files, where it is not the base's own.
    pub tokenizer: Vec<(String, Vec<u8>)>,
}

impl Companions {
    /// The same over a base that is stored as `plan` says.
    #[must_use]
    pub fn over(&self, plan: Option<QuantizationPlan>) -> Self {
        let mut companions = self.clone();
        companions.noted.over.quantization = plan;
        companions
    }

    /// How a model is written whose own tensors are trained: with master weights, to go on from, or in the base's types.
    #[must_use]
    pub fn model(&self, master_weights: bool, existing: Existing) -> ModelWriteOptions<'_> {
        ModelWriteOptions {
            master_weights,
            chat_template: self.chat_template.as_deref(),
            stop_token_ids: &self.noted.stop_token_ids,
            existing,
        }
    }

    /// The files beside factors, by name.
    ///
    /// # Errors
    /// [`FormatError::Encode`] for text that has no form in JSON.
    pub fn files(&self) -> Result<Vec<(String, Vec<u8>)>, FormatError> {
        let settings = (TrainedWith::FILE.to_owned(), self.noted.to_json()?);
        let name = PeftDir::CHAT_TEMPLATE.to_owned();
        let template = self.chat_template.as_ref();
        let template = template.map(|template| (name, template.as_bytes().to_vec()));
        let tokenizer = self.tokenizer.iter().cloned();
        Ok(std::iter::once(settings)
            .chain(template)
            .chain(tokenizer)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(toml: &str, formats: &[Format], has_chat_template: bool) -> TrainedWith {
        let recipe = Recipe::from_toml(toml, Path::new("/r"), &[]).unwrap();
        let over = TrainedOver {
            model: recipe.model.clone(),
            fingerprint: "00".to_owned(),
            quantization: recipe.quantization_plan(),
        };
        TrainedWith::new(&recipe, over, (formats, has_chat_template), &[2, 7])
    }

    const ALPACA: &str = "model = \"a/b\"\nload_in_4bit = true\nmax_seq_length = 512\n[data]\n\
        train = [{ path = \"a.csv\", fields = { instruction = \"q\" } }]\n\
        format = \"alpaca\"\nprompt_template = \"{instruction}: {output}\"\n";

    #[test]
    fn settings_survive_a_file() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(TrainedWith::read(directory.path()).unwrap(), None);
        let noted = noted(ALPACA, &[Format::Alpaca], true);
        assert_eq!(noted.prompting, Prompting::PromptTemplate);
        assert_eq!(noted.rows.fields.as_ref().unwrap()["instruction"], "q");
        std::fs::write(
            directory.path().join(TrainedWith::FILE),
            noted.to_json().unwrap(),
        )
        .unwrap();
        let read = TrainedWith::read(directory.path()).unwrap().unwrap();
        assert_eq!(read, noted);
        assert!(read.over.quantization.is_some());
    }

    #[test]
    fn prompts_go_where_all_rows_went() {
        let plain = "model = \"a/b\"\n[data]\ntrain = \"a.jsonl\"\n";
        let prompting = |toml, formats: &[Format]| noted(toml, formats, true).prompting;
        let completion = Format::PromptCompletion;
        assert_eq!(prompting(plain, &[Format::Alpaca]), Prompting::ChatTemplate);
        assert_eq!(prompting(plain, &[completion]), Prompting::Nothing);
        let mixed = prompting(plain, &[completion, Format::Messages]);
        assert_eq!(mixed, Prompting::ChatTemplate);
        assert_eq!(prompting(plain, &[Format::Text]), Prompting::ChatTemplate);
        let base = noted(plain, &[Format::Text], false);
        assert_eq!(base.prompting, Prompting::Nothing);
    }

    #[test]
    fn broken_settings_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let good = noted(ALPACA, &[Format::Alpaca], true).to_json().unwrap();
        let good: Value = serde_json::from_slice(&good).unwrap();
        for (pointer, value, expected) in [
            ("/version", Value::from(2), "`version` should be 1"),
            ("/rows/max_seq_length", 1.into(), "`rows.max_seq_length`"),
            ("/prompt_template", "no".into(), "`prompt_template`"),
            ("/prompt_template", Value::Null, "`prompt_template`"),
            (
                "/quantization/block_size",
                3.into(),
                "`quantization.block_size`",
            ),
            ("/prompting", "loud".into(), "not valid JSON"),
            ("/stop_token_ids", (-1).into(), "not valid JSON"),
        ] {
            let mut broken = good.clone();
            *broken.pointer_mut(pointer).unwrap() = value;
            let path = directory.path().join(TrainedWith::FILE);
            std::fs::write(&path, broken.to_string()).unwrap();
            let error = TrainedWith::read(directory.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{pointer}: {error}");
            assert!(error.contains(TrainedWith::FILE), "{error}");
        }
    }
}
