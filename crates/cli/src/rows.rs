//! Rows that the command line names: read as the adapter's run read its own, unless flags say otherwise.

use backdraft_data::{ChatTokenizer, DataError, Format, Outcome, RowSet, TokenizeOptions};
use backdraft_recipe::{DataFormat, Recipe};
use backdraft_train::data::{self, DataSources, FoundSource};
use backdraft_train::trained_with::{TrainedRows, TrainedWith};
use clap::Args;

use crate::args::choice;
use crate::error::CliError;
use crate::output::Output;
use crate::session::{self, quote};

/// How rows are read.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RowFlags {
    /// Shape of the rows [default: as in training, else detected]
    #[arg(long, value_parser = choice::format())]
    pub(crate) format: Option<DataFormat>,

    /// Other names for the fields of the format, such as instruction=question,output=answer
    #[arg(long, value_name = "OURS=YOURS,…", value_delimiter = ',', value_parser = field)]
    pub(crate) fields: Vec<(String, String)>,

    /// Prompt template for alpaca rows, as in a recipe [default: as in training]
    #[arg(long, value_name = "TEMPLATE")]
    pub(crate) prompt_template: Option<String>,

    /// Skip up to this many bad rows [same as --set data.skip_bad_rows=N]
    #[arg(long, value_name = "N")]
    pub(crate) skip_bad_rows: Option<u64>,

    /// Override a key of the recipe that the rows are read by; repeatable
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

fn field(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((ours, yours)) if !ours.trim().is_empty() && !yours.trim().is_empty() => {
            Ok((ours.trim().to_owned(), yours.trim().to_owned()))
        }
        _ => Err("expected OURS=YOURS, such as instruction=question".to_owned()),
    }
}

impl RowFlags {
    /// Whether `--set` names this key.
    pub(crate) fn sets(&self, key: &str) -> bool {
        let name = |set: &String| {
            set.split_once('=')
                .is_some_and(|(name, _)| name.trim() == key)
        };
        self.set.iter().any(name)
    }

    /// What the flags say, as overrides of a recipe; those of `--set` first.
    pub(crate) fn overrides(&self) -> Vec<String> {
        let format = self.format.map(DataFormat::name);
        let format = format.map(|format| format!("data.format={}", quote(format)));
        let template = self.prompt_template.as_deref();
        let template = template.map(|text| format!("data.prompt_template={}", quote(text)));
        let fields =
            (!self.fields.is_empty()).then(|| fields_override(self.fields.iter().cloned()));
        let skip = self.skip_bad_rows;
        let skip = skip.map(|rows| format!("data.skip_bad_rows={rows}"));
        let set = self.set.iter().cloned();
        let flags = format.into_iter().chain(fields).chain(template).chain(skip);
        set.chain(flags).collect()
    }

    /// What a run noted, as overrides of a recipe, where no flag says otherwise.
    fn noted(&self, rows: &TrainedRows) -> Vec<String> {
        let set = |key: &str, value: String| {
            let key = format!("data.{key}");
            (!self.sets(&key)).then(|| format!("{key}={value}"))
        };
        let length = format!("max_seq_length={}", rows.max_seq_length);
        let mut overrides = vec![length];
        overrides.extend(set("overlong", quote(rows.overlong.name())));
        let other_format =
            self.format.is_some_and(|format| format != rows.format) || self.sets("data.format");
        if other_format {
            return overrides;
        }
        overrides.extend(set("format", quote(rows.format.name())));
        overrides.extend(set("train_on", quote(rows.train_on.name())));
        if let Some(fields) = rows.fields.as_ref().filter(|_| self.fields.is_empty()) {
            let fields = fields_override(fields.clone());
            overrides.extend((!self.sets("data.fields")).then_some(fields));
        }
        overrides
    }
}

fn fields_override(fields: impl IntoIterator<Item = (String, String)>) -> String {
    let table: toml::Table = fields
        .into_iter()
        .map(|(ours, yours)| (ours, toml::Value::String(yours)))
        .collect();
    format!("data.fields={}", toml::Value::Table(table))
}

/// Rows, and how to read them.
pub(crate) struct Rows {
    pub(crate) recipe: Recipe,
    sources: Vec<FoundSource>,
    /// The format that the run's own rows have, where these are read by it because nobody said otherwise.
    format_of_run: Option<Format>,
}

impl Rows {
    /// Rows at `path`, which flags and the adapter's notes say how to read.
    pub(crate) fn named(
        path: &str,
        model: &str,
        flags: &RowFlags,
        noted: Option<&TrainedWith>,
        others: Vec<String>,
        output: Output,
    ) -> Result<Self, CliError> {
        let mut overrides = noted.map_or_else(Vec::new, |noted| flags.noted(&noted.rows));
        let format_of_run = noted
            .filter(|_| flags.format.is_none() && !flags.sets("data.format"))
            .and_then(|noted| noted.rows.format.known());
        overrides.extend(flags.overrides());
        overrides.extend(others);
        let overrides = overrides.into_iter().map(|set| {
            let (key, value) = set.split_once('=').unwrap_or((&set, ""));
            (key.to_owned(), value.to_owned())
        });
        let mut recipe = session::recipe_for(path, model, overrides)?;
        let chosen = recipe.data.prompt_template.is_some()
            || recipe.data.chat_template.is_some()
            || flags.sets("data.prompt_template");
        let noted = noted.and_then(|noted| noted.prompt_template.clone());
        let sources = session::find_data(&recipe.data, output)?.train;
        // Chats go through the chat template, whatever alpaca rows were put into.
        if !chosen && sources.iter().any(is_alpaca) {
            recipe.data.prompt_template = noted;
        }
        Ok(Self {
            recipe,
            sources,
            format_of_run,
        })
    }

    /// The rows that a recipe holds out in files of their own; `None` where it holds out none, or a share.
    pub(crate) fn held_out(recipe: &Recipe, output: Output) -> Result<Option<Self>, CliError> {
        let DataSources { eval, .. } = session::find_data(&recipe.data, output)?;
        Ok(eval.map(|sources| Self {
            recipe: recipe.clone(),
            sources,
            format_of_run: None,
        }))
    }

    /// The further sets that a recipe holds out, by name.
    pub(crate) fn sets(recipe: &Recipe, output: Output) -> Result<Vec<(String, Self)>, CliError> {
        let sets = session::find_data(&recipe.data, output)?.eval_sets;
        let rows = |sources| Self {
            recipe: recipe.clone(),
            sources,
            format_of_run: None,
        };
        Ok((sets.into_iter())
            .map(|(name, sources)| (name, rows(sources)))
            .collect())
    }

    /// Where the rows come from, as the options of one source after the other.
    pub(crate) fn sources(&self) -> Vec<backdraft_data::Source> {
        data::plain(&self.sources)
    }

    /// How rows become tokens.
    pub(crate) fn options(&self) -> Result<TokenizeOptions, CliError> {
        Ok(data::tokenize_options(&self.recipe)?)
    }

    /// Tokenises all of them, into memory.
    pub(crate) fn load(
        &self,
        tokenizer: &ChatTokenizer,
        output: Output,
    ) -> Result<(RowSet, Outcome), CliError> {
        let loaded = session::load_sources(&self.sources(), &self.options()?, tokenizer, output);
        loaded.map_err(|error| match (&error, self.format_of_run) {
            (DataError::Field { .. } | DataError::TooManyBadRows { .. }, Some(format)) => {
                CliError::library(error).hint(format!(
                    "they are read as \"{format}\", like the run's own rows; --format says what they are (--format auto looks at them)"
                ))
            }
            _ => error.into(),
        })
    }

    /// How they are read, in words.
    pub(crate) fn in_words(&self) -> String {
        let mut words: Vec<String> = self
            .sources
            .iter()
            .map(|found| found.format.clone())
            .collect();
        words.dedup();
        let mut words = words.join(", ");
        if let Some(fields) = &self.recipe.data.fields {
            let fields = fields.iter().map(|(ours, yours)| format!("{ours}={yours}"));
            words += &format!(", fields {}", fields.collect::<Vec<_>>().join(","));
        }
        if self.recipe.data.prompt_template.is_some() && self.sources.iter().any(is_alpaca) {
            words += ", with the prompt template";
        }
        format!("{words}, up to {} tokens", self.recipe.max_seq_length)
    }
}

fn is_alpaca(found: &FoundSource) -> bool {
    let rows = found.source.rows.as_ref();
    rows.is_some_and(|rows| rows.format == Format::Alpaca)
}
