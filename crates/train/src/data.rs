//! From the `[data]` of a recipe to rows of tokens, checked on the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backdraft_data::format::detect::detect;
use backdraft_data::source::Spool;
use backdraft_data::{
    ChatTokenizer, DataOptions, DataReport, Density, FieldMap, Format, LoadProgress, Loader,
    LoaderOptions, NamedTokens, Outcome, PromptTemplate, RowCounts, RowSet, SkippedRow, Source,
    SpecialTokens, TokenizeOptions, count_seen, split_fraction, tokenize_cached,
};
use backdraft_formats::{Existing, FormatError, ModelSource, write_file};
use backdraft_recipe::{
    CacheRecipe, ChatTemplateRecipe, DataRecipe, EvalRecipe, ObjectiveKind, Recipe, RowBatching,
    SourceRecipe,
};
use serde::Serialize;

use crate::error::{FetchError, TrainError};
use crate::mixing::shares;

/// The tokenizer of a model.
///
/// # Errors
/// No tokenizer, or one that cannot be read.
pub fn tokenizer(source: &ModelSource) -> Result<ChatTokenizer, TrainError> {
    let files = source.tokenizer()?;
    let mut others = NamedTokens::default();
    others.set("pad_token", files.pad_token);
    others.set("unk_token", files.unk_token);
    for (name, token) in files.other_tokens {
        others.set(&name, Some(token));
    }
    let special = SpecialTokens {
        others,
        bos_token: files.bos_token,
        eos_token: files.eos_token,
        add_bos: files.add_bos_token,
        eos_token_ids: source.eos_token_ids()?,
    };
    let tokenizer = ChatTokenizer::new(
        &files.tokenizer_json,
        special,
        files.chat_template.as_deref(),
    )
    .and_then(|tokenizer| tokenizer.with_declared_tokens(&files.declared_tokens))
    .map_err(data_error(source.path()))?;
    let tokenizer = match embedding_rows(source) {
        Some(rows) => tokenizer.with_embedding_rows(rows),
        None => tokenizer,
    };
    match &files.tool_use_template {
        Some(template) => tokenizer
            .with_tool_use_template(template)
            .map_err(data_error(source.path())),
        None => Ok(tokenizer),
    }
}

/// Rows of a model's embedding, by its file or else by its config.
fn embedding_rows(source: &ModelSource) -> Option<usize> {
    let tensor = source.tensor_info("model.embed_tokens.weight");
    let rows = tensor.and_then(|info| info.shape.first().copied());
    rows.or_else(|| usize::try_from(source.config()["vocab_size"].as_u64()?).ok())
}

/// As a run says it: with the file, where `source` does not name it.
pub(crate) fn data_error(
    path: &Path,
) -> impl FnOnce(backdraft_data::DataError) -> TrainError + use<> {
    let path = path.to_owned();
    move |source| {
        use backdraft_data::{DataError, TemplateError};
        // A matter of model and recipe, not of the rows.
        if let DataError::Template(
            error @ (TemplateError::Missing | TemplateError::Broken { .. }),
        ) = source
        {
            return TrainError::Template(error);
        }
        let source = Box::new(source);
        match source.names_its_file() {
            true => TrainError::Rows(source),
            false => TrainError::Data { path, source },
        }
    }
}

/// The files of the sources of a recipe.
#[derive(Clone, Debug)]
pub struct DataSources {
    /// Rows to learn from.
    pub train: Vec<FoundSource>,
    /// Rows held out, where they are no share of the others.
    pub eval: Option<Vec<FoundSource>>,
    /// Further rows held out, each set under its name.
    pub eval_sets: Vec<(String, Vec<FoundSource>)>,
}

/// A source whose format is known.
#[derive(Clone, Debug)]
pub struct FoundSource {
    /// Its files, with their format.
    pub source: Source,
    /// How the format is known, such as `format "text" (the first 64 rows have text)`.
    pub format: String,
}

impl DataSources {
    /// Finds the files of all sources and says what their rows are.
    ///
    /// `fetch` gives the files of a hub data set by its name.
    ///
    /// # Errors
    /// A source that is not there, or whose format is not clear.
    pub fn find(
        recipe: &DataRecipe,
        fetch: &mut dyn FnMut(&str) -> Result<Vec<PathBuf>, FetchError>,
    ) -> Result<Self, TrainError> {
        let mut find = |sources: &[SourceRecipe]| -> Result<Vec<FoundSource>, TrainError> {
            let found = sources.iter().map(|source| find(source, recipe, fetch));
            found.collect()
        };
        let train = find(&recipe.train.0)?;
        let is_alpaca = |found: &FoundSource| {
            let rows = found.source.rows.as_ref();
            rows.is_some_and(|rows| rows.format == Format::Alpaca)
        };
        if recipe.prompt_template.is_some() && !train.iter().any(is_alpaca) {
            return Err(TrainError::NoAlpaca {
                found: train.iter().map(|found| found.format.clone()).collect(),
            });
        }
        let eval = match &recipe.eval {
            Some(EvalRecipe::Sources(sources)) => Some(find(&sources.0)?),
            Some(EvalRecipe::Fraction(_)) | None => None,
        };
        let sets = recipe.eval_sets.iter();
        let sets = sets.map(|(name, sources)| Ok((name.clone(), find(&sources.0)?)));
        let eval_sets = sets.collect::<Result<_, TrainError>>()?;
        Ok(Self {
            train,
            eval,
            eval_sets,
        })
    }

    /// All sources, those of rows held out too.
    pub fn all(&self) -> impl Iterator<Item = &FoundSource> {
        let sets = self.eval_sets.iter().flat_map(|(_, sources)| sources);
        let eval = self.eval.iter().flatten();
        self.train.iter().chain(eval).chain(sets)
    }
}

fn find(
    recipe: &SourceRecipe,
    data: &DataRecipe,
    fetch: &mut dyn FnMut(&str) -> Result<Vec<PathBuf>, FetchError>,
) -> Result<FoundSource, TrainError> {
    let error = || data_error(Path::new(&recipe.path));
    let source = if recipe.is_hub() {
        let files = fetch(&recipe.path).map_err(|source| TrainError::Fetch {
            name: recipe.path.clone(),
            source,
        })?;
        Source::from_paths(&recipe.path, &files)
    } else {
        Source::open(&recipe.path)
    };
    let source = source
        .and_then(|source| source.with_weight(recipe.weight))
        .map_err(error())?;
    let names = recipe.fields.as_ref().or(data.fields.as_ref());
    let names: Vec<(&str, &str)> = names
        .into_iter()
        .flatten()
        .map(|(ours, theirs)| (&**ours, &**theirs))
        .collect();
    let (format, said) = match recipe.format.unwrap_or(data.format).known() {
        Some(format) => (format, format!("format \"{format}\"")),
        None => {
            let detected = detect(&source, &names, data.skip_bad_rows).map_err(error())?;
            (detected.format, detected.to_string())
        }
    };
    let fields = FieldMap::new(format, names).map_err(error())?;
    Ok(FoundSource {
        source: source.with_rows(format, fields),
        format: said,
    })
}

/// The model's tokenizer, with the recipe's chat template where it names one.
///
/// # Errors
/// No tokenizer, or a template that cannot be read.
pub fn tokenizer_of(recipe: &DataRecipe, model: &ModelSource) -> Result<ChatTokenizer, TrainError> {
    let tokenizer = tokenizer(model)?;
    let path = match &recipe.chat_template {
        Some(ChatTemplateRecipe::File(path)) => path,
        Some(ChatTemplateRecipe::Builtin(_)) | None => model.path(),
    };
    match chat_template(recipe)? {
        Some(template) => tokenizer.with_template(&template).map_err(data_error(path)),
        None => Ok(tokenizer),
    }
}

/// The Jinja text of the recipe's own chat template.
///
/// # Errors
/// A file that cannot be read.
pub fn chat_template(recipe: &DataRecipe) -> Result<Option<String>, TrainError> {
    Ok(match &recipe.chat_template {
        None => None,
        Some(ChatTemplateRecipe::Builtin(template)) => Some(template.source().to_owned()),
        Some(ChatTemplateRecipe::File(path)) => {
            let text = std::fs::read_to_string(path);
            Some(text.map_err(|source| TrainError::ChatTemplate {
                path: path.clone(),
                source,
            })?)
        }
    })
}

/// How rows become tokens, from a recipe; formats are the sources' own.
///
/// # Errors
/// A prompt template that cannot be read.
pub fn tokenize_options(recipe: &Recipe) -> Result<TokenizeOptions, TrainError> {
    let data = &recipe.data;
    let template = data.prompt_template.as_deref().map(PromptTemplate::parse);
    let options = DataOptions {
        format: data.format.known().unwrap_or(Format::Messages),
        template: template.transpose().map_err(TrainError::PromptTemplate)?,
        supervision: data.train_on,
        max_seq_length: recipe.max_seq_length,
    };
    Ok(TokenizeOptions {
        overlong: data.overlong,
        skip_bad_rows: data.skip_bad_rows,
        ..options.into()
    })
}

/// Rows held out beside those of `data.eval`.
#[derive(Clone, Debug)]
pub struct EvalSet {
    /// What the recipe calls them.
    pub name: String,
    /// The rows.
    pub rows: RowSet,
}

/// Rows of tokens, ready for a run. Clones share them.
#[derive(Clone, Debug)]
pub struct RunData {
    /// Reads and writes their tokens.
    pub tokenizer: Arc<ChatTokenizer>,
    /// Rows to learn from.
    pub train: RowSet,
    /// Rows held out.
    pub eval: Option<RowSet>,
    /// Further rows held out.
    pub eval_sets: Vec<EvalSet>,
    /// Deals out the rows to learn from, from the beginning.
    pub loader: Loader,
    /// The format of each source of rows to learn from.
    pub formats: Vec<Format>,
    /// What was found.
    pub check: DataCheck,
}

impl RunData {
    /// Fingerprints of the further rows held out, by name.
    #[must_use]
    pub fn set_fingerprints(&self) -> BTreeMap<String, String> {
        let sets = self.eval_sets.iter();
        sets.map(|set| (set.name.clone(), set.rows.fingerprint()))
            .collect()
    }

    /// The same rows, dealt out as another recipe says, which [`reads_the_same`].
    ///
    /// # Errors
    /// Options that cannot work together.
    pub fn dealt_as(&self, recipe: &Recipe) -> Result<Self, TrainError> {
        let rows: Vec<usize> = self
            .loader
            .options()
            .sources
            .iter()
            .map(|it| it.rows)
            .collect();
        let mut data = self.clone();
        data.loader = loader(recipe, &self.train, &rows)?;
        data.check.note_visits(&data.loader);
        data.check.density = data.loader.density().unwrap_or_default();
        Ok(data)
    }

    /// What became of the rows held out, with the lengths of a share of the others.
    pub fn eval_report(&self) -> Option<DataReport> {
        let mut report = self.check.eval_report()?;
        if report.longest == 0 {
            for length in self.eval.iter().flat_map(RowSet::lengths) {
                report.longest = report.longest.max(length as usize);
                report.lengths.add(length as usize);
            }
        }
        Some(report)
    }
}

/// Whether two recipes have the same rows as the same tokens, the same of them held out.
#[must_use]
pub fn reads_the_same(one: &Recipe, other: &Recipe) -> bool {
    let holds_a_share = matches!(one.data.eval, Some(EvalRecipe::Fraction(_)));
    one.model == other.model
        && one.tokens.add == other.tokens.add
        && one.data == other.data
        && one.max_seq_length == other.max_seq_length
        && one.objective.kind() == other.objective.kind()
        // The seed chooses the share.
        && (one.seed == other.seed || !holds_a_share)
}

/// What a look at all rows found.
#[derive(Clone, Debug, Serialize)]
pub struct DataCheck {
    /// Each source of rows to learn from.
    pub sources: Vec<SourceCheck>,
    /// What became of the training sources' rows, those of an evaluation share included.
    pub train: Outcome,
    /// Rows to learn from.
    pub train_rows: RowCounts,
    /// Each source of rows held out.
    pub eval_sources: Vec<SourceCheck>,
    /// What became of the rows held out, where they have sources of their own.
    pub eval: Option<Outcome>,
    /// Rows held out.
    pub eval_rows: Option<RowCounts>,
    /// Rows held out that are also learned from.
    pub eval_rows_seen: usize,
    /// Further rows held out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub eval_sets: Vec<EvalSetCheck>,
    /// How rows are put together in the first epoch.
    pub batching: RowBatching,
    /// What a first epoch computes, and what of it is for nothing.
    pub density: Density,
    /// Texts that the chat template writes for special tokens that the model lacks.
    pub foreign_markers: Vec<String>,
    /// Whether the chat template ends answers in a token that the model has.
    pub template_ends_turns: bool,
    /// Token files of this check, where there is a cache.
    pub cache: Vec<CacheUse>,
}

/// Rows held out beside those of `data.eval`.
#[derive(Clone, Debug, Serialize)]
pub struct EvalSetCheck {
    /// What the recipe calls them.
    pub name: String,
    /// Their sources.
    pub sources: Vec<SourceCheck>,
    /// What became of their rows.
    pub outcome: Outcome,
    /// Rows held out.
    pub rows: RowCounts,
    /// Those that are also learned from.
    pub rows_seen: usize,
}

/// A source and what it holds.
#[derive(Clone, Debug, Serialize)]
pub struct SourceCheck {
    /// The source as the recipe names it.
    pub name: String,
    /// Its files.
    pub files: usize,
    /// How its format is known.
    pub format: String,
    /// Rows kept of it.
    pub rows: usize,
    /// How often an epoch visits each of them.
    pub weight: f64,
    /// Rows that an epoch visits, one that it visits twice counted twice.
    pub rows_per_epoch: usize,
}

/// A file of tokenised rows.
#[derive(Clone, Debug, Serialize)]
pub struct CacheUse {
    /// The file.
    pub path: PathBuf,
    /// Whether it was there already.
    pub hit: bool,
    /// Why it could not be used: the rows are in a temporary file or in memory.
    pub problem: Option<String>,
}

impl DataCheck {
    /// Whether nothing was found that training is likely to go wrong on.
    pub fn is_sound(&self) -> bool {
        (self.template_ends_turns || self.foreign_markers.is_empty())
            && self.outcomes().all(|outcome| outcome.findings.is_sound())
    }

    /// Rows that were passed over.
    pub fn skipped(&self) -> impl Iterator<Item = &SkippedRow> {
        self.outcomes().flat_map(|outcome| &outcome.skipped)
    }

    /// What is not read of the files, such as columns that no row can hold.
    pub fn notes(&self) -> impl Iterator<Item = &String> {
        self.outcomes().flat_map(|outcome| &outcome.notes)
    }

    /// Writes the rows that were passed over as JSON lines; no file where there are none.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write_skipped(&self, path: &Path) -> Result<bool, TrainError> {
        let mut lines = Vec::new();
        for row in self.skipped() {
            serde_json::to_writer(&mut lines, row).map_err(FormatError::encode(path))?;
            lines.push(b'\n');
        }
        if !lines.is_empty() {
            write_file(path, &lines, Existing::Replace)?;
        }
        Ok(!lines.is_empty())
    }

    /// Says of each source to learn from how often an epoch visits its rows.
    fn note_visits(&mut self, loader: &Loader) {
        for (source, share) in self.sources.iter_mut().zip(&loader.options().sources) {
            source.weight = share.weight;
            source.rows_per_epoch = share.visits();
        }
    }

    /// What became of the rows to learn from.
    pub fn train_report(&self) -> DataReport {
        let mut report = self.train.report.clone();
        report.kept = self.train_rows.rows;
        report.tokens = self.train_rows.tokens;
        report.supervised_tokens = self.train_rows.supervised_tokens;
        report
    }

    /// What became of the rows held out; a share of the others has no losses of its own.
    pub fn eval_report(&self) -> Option<DataReport> {
        let counts = self.eval_rows?;
        let mut report = match &self.eval {
            Some(outcome) => outcome.report.clone(),
            None => DataReport::default(),
        };
        report.rows = report.rows.max(counts.rows);
        report.kept = counts.rows;
        report.tokens = counts.tokens;
        report.supervised_tokens = counts.supervised_tokens;
        Some(report)
    }

    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        let sets = self.eval_sets.iter().map(|set| &set.outcome);
        std::iter::once(&self.train).chain(&self.eval).chain(sets)
    }
}

/// Tokenises all rows of a recipe, or takes them from the cache, and looks at them.
///
/// # Errors
/// Anything that would keep the rows from being trained on.
pub fn load(
    recipe: &Recipe,
    sources: &DataSources,
    tokenizer: ChatTokenizer,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<RunData, TrainError> {
    fits_objective(recipe, sources.all())?;
    let options = tokenize_options(recipe)?;
    let mut cache = Vec::new();
    let mut load = |found: &[FoundSource]| -> Result<(RowSet, Outcome), TrainError> {
        let sources = plain(found);
        let name = sources.first().map(|source| source.spec.clone());
        let error = data_error(Path::new(&name.unwrap_or_default()));
        let Some(folder) = cache_folder(&recipe.data.cache) else {
            return RowSet::load(&sources, &options, &tokenizer, progress).map_err(error);
        };
        let cached =
            tokenize_cached(&sources, &options, &tokenizer, &folder, progress).map_err(error)?;
        cache.push(CacheUse {
            path: cached.path,
            hit: cached.hit,
            problem: cached.problem.map(|problem| problem.with_causes()),
        });
        Ok((RowSet::new(cached.rows, &sources), cached.outcome))
    };
    let (all, outcome) = load(&sources.train)?;
    let (train, eval, eval_outcome) = match (&sources.eval, &recipe.data.eval) {
        (Some(sources), _) => {
            let (eval, outcome) = load(sources)?;
            (all, Some(eval), Some(outcome))
        }
        (None, Some(EvalRecipe::Fraction(share))) => {
            let split = split_fraction(&all.keys(), *share, recipe.seed)
                .map_err(data_error(Path::new("data.eval")))?;
            (all.choose(split.train), Some(all.choose(split.eval)), None)
        }
        (None, _) => (all, None, None),
    };
    let mut eval_sets = Vec::new();
    let mut set_checks = Vec::new();
    for (name, sources) in &sources.eval_sets {
        let (rows, outcome) = load(sources)?;
        set_checks.push(EvalSetCheck {
            name: name.clone(),
            sources: described(sources, &outcome),
            rows: rows.counts(),
            rows_seen: count_seen(&train.keys(), &rows.keys()),
            outcome,
        });
        let name = name.clone();
        eval_sets.push(EvalSet { name, rows });
    }
    uses_margins(
        recipe.objective.kind(),
        std::iter::once(&outcome)
            .chain(&eval_outcome)
            .chain(set_checks.iter().map(|set| &set.outcome)),
    )?;
    let rows = train.source_rows(&plain(&sources.train)).into_iter();
    let rows: Vec<usize> = rows.map(|(rows, _)| rows).collect();
    let loader = loader(recipe, &train, &rows)?;
    let uses_template = sources
        .train
        .iter()
        .any(|found| needs_chat_template(found, recipe));
    let mut check = DataCheck {
        sources: described(&sources.train, &outcome),
        train_rows: match sources.eval.is_none() && eval.is_some() {
            true => train.counts(),
            false => counts(&outcome),
        },
        eval_sources: match (&sources.eval, &eval_outcome) {
            (Some(sources), Some(outcome)) => described(sources, outcome),
            _ => Vec::new(),
        },
        train: outcome,
        eval: eval_outcome,
        eval_rows: eval.as_ref().map(RowSet::counts),
        eval_rows_seen: eval
            .as_ref()
            .map_or(0, |eval| count_seen(&train.keys(), &eval.keys())),
        eval_sets: set_checks,
        batching: recipe.data.batching,
        density: loader.density().unwrap_or_default(),
        foreign_markers: match uses_template {
            true => tokenizer.foreign_markers().to_vec(),
            false => Vec::new(),
        },
        template_ends_turns: tokenizer.end_of_turn().is_some(),
        cache,
    };
    check.note_visits(&loader);
    Ok(RunData {
        tokenizer: Arc::new(tokenizer),
        train,
        eval,
        eval_sets,
        loader,
        formats: (sources.train.iter())
            .filter_map(|found| Some(found.source.rows.as_ref()?.format))
            .collect(),
        check,
    })
}

/// Refuses rows that the objective cannot learn from.
fn fits_objective<'a>(
    recipe: &Recipe,
    sources: impl Iterator<Item = &'a FoundSource>,
) -> Result<(), TrainError> {
    let kind = recipe.objective.kind();
    let fits = |format: Format| match kind {
        ObjectiveKind::Sft => !format.compares(),
        ObjectiveKind::Dpo
        | ObjectiveKind::Orpo
        | ObjectiveKind::Simpo
        | ObjectiveKind::Cpo
        | ObjectiveKind::Reward => format == Format::Preference,
        ObjectiveKind::Kto => format.compares(),
    };
    for found in sources {
        if found
            .source
            .rows
            .as_ref()
            .is_some_and(|rows| !fits(rows.format))
        {
            return Err(TrainError::Objective {
                kind,
                source_name: found.source.spec.clone(),
                found: found.format.clone(),
            });
        }
    }
    Ok(())
}

/// Refuses margins that the objective does not ask for.
fn uses_margins<'a>(
    kind: ObjectiveKind,
    outcomes: impl Iterator<Item = &'a Outcome>,
) -> Result<(), TrainError> {
    let pairs = outcomes.filter_map(|outcome| outcome.report.comparisons.margins);
    match pairs.map(|margins| margins.pairs).sum() {
        0 => Ok(()),
        _ if kind == ObjectiveKind::Reward => Ok(()),
        pairs => Err(TrainError::UnusedMargins { kind, pairs }),
    }
}

/// The pipes among the sources of a recipe, each read to its end. While these are held, whoever opens
/// a pipe again finds the same rows; one that cannot be read is left to whoever opens it.
pub fn pipes(recipe: &DataRecipe) -> Vec<Arc<Spool>> {
    let held_out = match &recipe.eval {
        Some(EvalRecipe::Sources(sources)) => sources.0.as_slice(),
        Some(EvalRecipe::Fraction(_)) | None => &[],
    };
    let sets = recipe.eval_sets.values().flat_map(|sources| &sources.0);
    let sources = recipe.train.0.iter().chain(held_out).chain(sets);
    sources
        .filter(|source| !source.is_hub())
        .filter_map(|source| Source::hold_pipe(&source.path))
        .collect()
}

/// Reads all rows of a recipe, however many cannot be used: what is wrong with them is in
/// [`Outcome::broken`].
///
/// # Errors
/// A prompt template that cannot be read, options that cannot work together.
pub fn survey(
    recipe: &Recipe,
    sources: &DataSources,
    tokenizer: &ChatTokenizer,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Outcome, TrainError> {
    let options = tokenize_options(recipe)?;
    let sources: Vec<FoundSource> = sources.all().cloned().collect();
    backdraft_data::survey(&plain(&sources), &options, tokenizer, progress)
        .map_err(data_error(Path::new("data")))
}

/// Reads, tokenises and checks the rows of a recipe whose sources are all files.
///
/// # Errors
/// As [`DataSources::find`], [`tokenizer_of`] and [`load`]; a hub data set is not fetched.
pub fn read(
    recipe: &Recipe,
    model: &ModelSource,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<RunData, TrainError> {
    let mut fetch = |_: &str| Err("only files are read here; fetch it first".into());
    let sources = DataSources::find(&recipe.data, &mut fetch)?;
    load(
        recipe,
        &sources,
        tokenizer_of(&recipe.data, model)?,
        progress,
    )
}

/// The sources alone.
pub fn plain(found: &[FoundSource]) -> Vec<Source> {
    found.iter().map(|found| found.source.clone()).collect()
}

fn described(sources: &[FoundSource], outcome: &Outcome) -> Vec<SourceCheck> {
    let rows = outcome.source_rows.iter();
    let describe = |(found, rows): (&FoundSource, &usize)| SourceCheck {
        name: found.source.spec.clone(),
        files: found.source.files.len(),
        format: found.format.clone(),
        rows: *rows,
        weight: found.source.weight,
        rows_per_epoch: *rows,
    };
    sources.iter().zip(rows).map(describe).collect()
}

fn counts(outcome: &Outcome) -> RowCounts {
    RowCounts {
        rows: outcome.report.kept,
        tokens: outcome.report.tokens,
        supervised_tokens: outcome.report.supervised_tokens,
    }
}

fn needs_chat_template(found: &FoundSource, recipe: &Recipe) -> bool {
    match found.source.rows.as_ref().map(|rows| rows.format) {
        Some(Format::Messages | Format::Sharegpt) => true,
        Some(Format::Alpaca) => recipe.data.prompt_template.is_none(),
        // Its rows may be chats; what they lack is found row by row.
        Some(Format::PromptCompletion | Format::Text | Format::Preference | Format::Unpaired)
        | None => false,
    }
}

fn loader(recipe: &Recipe, train: &RowSet, rows: &[usize]) -> Result<Loader, TrainError> {
    let error = || data_error(Path::new("data"));
    let sources = shares(recipe, rows).map_err(error())?;
    let options = LoaderOptions {
        micro_batch_size: recipe.train.micro_batch_size,
        grad_accumulation_steps: recipe.train.grad_accumulation_steps,
        seed: recipe.seed,
        shuffle: true,
        batching: recipe.batching(),
        sources,
    };
    Loader::with_options(train.lengths(), options).map_err(error())
}

/// Where tokenised rows are kept: `backdraft/tokens` under `XDG_CACHE_HOME` or `~/.cache`; `None`
/// in memory.
pub fn cache_folder(cache: &CacheRecipe) -> Option<PathBuf> {
    match cache {
        CacheRecipe::Off => None,
        CacheRecipe::Folder(folder) => Some(folder.clone()),
        CacheRecipe::Auto => {
            let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| Some(Path::new(&set("HOME")?).join(".cache")))?;
            Some(cache.join("backdraft/tokens"))
        }
    }
}
