//! `adapter_config.json`: what a LoRA adapter is.

use std::path::Path;

use backdraft_arch::spec::SCORE_MODULE;
use backdraft_arch::{Bias, ModulePattern};
use serde_json::{Map, Value, json};

use crate::error::{FormatError, Result};
use crate::json;
use crate::peft_tokens::{BadTokens, TrainableTokens};

/// What PEFT puts before a module's name.
pub(crate) const PREFIX: &str = "base_model.model.";

/// The version of PEFT whose keys are written.
const PEFT_VERSION: &str = "0.21.2";

/// Why an `adapter_config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeftConfigError {
    /// A field that must be there.
    #[error("the field `{field}` is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// An adapter of mlx-lm, whose files are others.
    #[error(
        "it is an adapter of mlx-lm, not of PEFT; `mlx_lm.fuse` merges it into its base, which is read as a model"
    )]
    MlxLm,
    /// A field of the wrong type or range.
    #[error("`{field}` should be {expected}, but is {actual}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What would be accepted.
        expected: &'static str,
        /// The value found, shortened.
        actual: String,
    },
    /// Adapters of two tables that are one.
    #[error(
        "the adapter of {module} has `ensure_weight_tying` = true, which makes one adapter of the embedding's and the head's, and \
         is not supported; without it each is trained by itself"
    )]
    TiedAdapters {
        /// The table.
        module: &'static str,
    },
    /// A feature that is switched on and not supported.
    #[error("the adapter uses `{field}` = {actual}, which is not supported")]
    Feature {
        /// The field.
        field: String,
        /// Its value, shortened.
        actual: String,
    },
}

/// Which modules carry an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Names: each module whose name is one of them, or ends in a dot and one of them.
    Names(Vec<String>),
    /// A Python regular expression for whole module names, or `all-linear`.
    ///
    /// It is kept as it is, and not evaluated: the tensors of an adapter say which modules it has.
    Pattern(String),
}

impl TargetModules {
    /// Whether a module is meant; `None` where only the tensors can tell.
    #[must_use]
    pub fn includes(&self, module: &str) -> Option<bool> {
        // A path in full may lack what the module's name has in front, or have more of it.
        let ends = |whole: &str, end: &str| {
            let before = whole.strip_suffix(end);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        match self {
            Self::Pattern(_) => None,
            Self::Names(names) => {
                let named = |name: &String| ends(module, name) || ends(name, module);
                Some(names.iter().any(named))
            }
        }
    }
}

/// A LoRA adapter's hyper-parameters, under PEFT's names.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftConfig {
    /// The base model: a hub id or a path.
    pub base_model_name_or_path: Option<String>,
    /// The base model's revision.
    pub revision: Option<String>,
    /// The rank.
    pub r: usize,
    /// The numerator of the scaling: `lora_alpha / r`, or `lora_alpha / sqrt(r)` with rsLoRA.
    pub lora_alpha: f64,
    /// The probability with which an input element is dropped in training.
    pub lora_dropout: f64,
    /// Whether the scaling divides by `sqrt(r)`.
    pub use_rslora: bool,
    /// Whether the lengths of rows are trained: DoRA.
    pub use_dora: bool,
    /// Which modules carry an adapter.
    pub target_modules: TargetModules,
    /// Whether modules are left out by name.
    pub excludes: bool,
    /// Which layers carry an adapter; all if `None`.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Modules of another rank.
    pub rank_pattern: ModulePattern<usize>,
    /// Modules with another numerator of the scaling.
    pub alpha_pattern: ModulePattern<f64>,
    /// Tokens whose rows of the embedding, or of the head, are trained.
    pub trainable_tokens: TrainableTokens,
    /// Biases of the base that are trained.
    pub bias: Bias,
    /// Modules that are trained whole: those whose names end in one of these texts.
    pub modules_to_save: Vec<String>,
    /// Whether a saved embedding is the head too.
    pub ensure_weight_tying: bool,
}

impl PeftConfig {
    /// An adapter of rank `r` on the named modules, without dropout.
    pub fn new(
        r: usize,
        lora_alpha: f64,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        Self {
            base_model_name_or_path: None,
            revision: None,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            target_modules: TargetModules::Names(names.into_iter().map(Into::into).collect()),
            excludes: false,
            layers_to_transform: None,
            rank_pattern: ModulePattern::default(),
            alpha_pattern: ModulePattern::default(),
            trainable_tokens: TrainableTokens::default(),
            bias: Bias::None,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
        }
    }

    /// Whether the adapter is one of a model that scores texts: its head is trained whole.
    #[must_use]
    pub fn scores(&self) -> bool {
        self.modules_to_save.iter().any(|name| name == SCORE_MODULE)
    }

    /// Whether a module is trained whole.
    #[must_use]
    pub fn saves(&self, module: &str) -> bool {
        let mut names = self.modules_to_save.iter();
        names.any(|name| module.ends_with(name.as_str()))
    }

    /// What the product `B · A` is multiplied by, in modules that no pattern matches.
    #[must_use]
    pub fn scaling(&self) -> f64 {
        self.scaling_by(self.r, self.lora_alpha)
    }

    /// The rank of a module's adapter.
    #[must_use]
    pub fn rank_of(&self, module: &str) -> usize {
        self.rank_pattern.get(module).unwrap_or(self.r)
    }

    /// What a module's product `B · A` is multiplied by.
    #[must_use]
    pub fn scaling_of(&self, module: &str) -> f64 {
        let alpha = self.alpha_pattern.get(module);
        self.scaling_by(self.rank_of(module), alpha.unwrap_or(self.lora_alpha))
    }

    fn scaling_by(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// The layers of a model all of whose layers have an adapter, going by the names of the adapted modules; 0 where
    /// the configuration says other than by names which those are.
    pub fn num_layers<'a>(&self, modules: impl Iterator<Item = &'a String>) -> usize {
        if !matches!(self.target_modules, TargetModules::Names(_)) || self.excludes {
            return 0;
        }
        let layer = |module: &String| {
            let layer = module.strip_prefix("model.layers.")?.split('.').next()?;
            layer.parse::<usize>().ok()
        };
        modules.filter_map(layer).max().map_or(0, |last| last + 1)
    }

    /// Reads a file, and refuses every feature that is switched on and not supported.
    ///
    /// # Errors
    /// [`FormatError::PeftConfig`] with the field's name.
    pub fn read(path: &Path) -> Result<Self> {
        let value: Value = json::read(path)?;
        let Value::Object(fields) = value else {
            return Err(json::field_error(
                path,
                "(the whole file)",
                "an object",
                &value,
            ));
        };
        Self::from_fields(&fields).map_err(|source| FormatError::PeftConfig {
            path: path.into(),
            source,
        })
    }

    fn from_fields(fields: &Map<String, Value>) -> Result<Self, PeftConfigError> {
        refuse_features(fields)?;
        let field = Fields(fields);
        // PEFT's defaults, where an old or a hand-written file leaves them out.
        let r = match fields.get("r") {
            None => 8.0,
            Some(_) => field.number("r", RANK, is_rank)?,
        };
        let alpha = match fields.get("lora_alpha") {
            None => 8.0,
            Some(_) => field.number("lora_alpha", "a finite number", f64::is_finite)?,
        };
        let dropout = match fields.get("lora_dropout") {
            None | Some(Value::Null) => 0.0,
            Some(_) => field.number("lora_dropout", "a number from 0 to 1", |p| {
                (0.0..=1.0).contains(&p)
            })?,
        };
        Ok(Self {
            base_model_name_or_path: field.text("base_model_name_or_path")?,
            revision: field.text("revision")?,
            r: r as usize,
            lora_alpha: alpha,
            lora_dropout: dropout,
            use_rslora: field.flag("use_rslora")?,
            use_dora: field.flag("use_dora")?,
            target_modules: field.target_modules()?,
            excludes: fields
                .get("exclude_modules")
                .is_some_and(|value| !is_inactive(value)),
            layers_to_transform: field.layers_to_transform()?,
            rank_pattern: field.pattern("rank_pattern", is_rank, |rank| rank as usize)?,
            alpha_pattern: field.pattern("alpha_pattern", f64::is_finite, |alpha| alpha)?,
            trainable_tokens: field.trainable_tokens()?,
            bias: field.bias()?,
            modules_to_save: field.modules_to_save()?,
            ensure_weight_tying: field.flag("ensure_weight_tying")?,
        })
    }

    /// The file's content: every key that PEFT writes, sorted as PEFT sorts them.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let number = |alpha: f64| match alpha.fract() == 0.0 && alpha.abs() < 1e15 {
            true => json!(alpha as i64),
            false => json!(alpha),
        };
        let ranks: Map<_, _> = (self.rank_pattern.iter())
            .map(|(key, rank)| (key.to_owned(), json!(rank)))
            .collect();
        let alphas: Map<_, _> = (self.alpha_pattern.iter())
            .map(|(key, alpha)| (key.to_owned(), number(alpha)))
            .collect();
        let target_modules = match &self.target_modules {
            TargetModules::Names(names) => json!(names),
            TargetModules::Pattern(pattern) => json!(pattern),
        };
        let modules_to_save = match &self.modules_to_save[..] {
            [] => Value::Null,
            names => json!(names),
        };
        json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": alphas,
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": self.bias.name(),
            "corda_config": null,
            "ensure_weight_tying": self.ensure_weight_tying,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "kasa_config": null,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": self.layers_to_transform,
            "loftq_config": {},
            "lora_alpha": number(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "lora_ga_config": null,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": modules_to_save,
            "monteclora_config": null,
            "peft_type": "LORA",
            "peft_version": PEFT_VERSION,
            "qalora_group_size": 16,
            "r": self.r,
            "rank_pattern": ranks,
            "revision": self.revision,
            "target_modules": target_modules,
            "target_parameters": null,
            "task_type": if self.scores() { SCORING } else { "CAUSAL_LM" },
            "trainable_token_indices": self.trainable_tokens.to_json(),
            "use_bdlora": null,
            "use_dora": self.use_dora,
            "use_qalora": false,
            "use_rslora": self.use_rslora,
            "velora_config": null,
        })
    }
}

/// Fields that are understood here, or say nothing about an adapter that is already trained.
const UNDERSTOOD: [&str; 25] = [
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
];

/// The task of a model that scores texts.
const SCORING: &str = "SEQ_CLS";
/// What PEFT also names for that task, whatever the model calls its head.
const CLASSIFIER: &str = "classifier";

/// What a rank must be.
const RANK: &str = "a whole number of at least 1";

fn is_rank(number: f64) -> bool {
    number >= 1.0 && number.fract() == 0.0 && number <= f64::from(u32::MAX)
}

/// Initialisations that leave the base model as it is.
const HARMLESS_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

fn refuse_features(fields: &Map<String, Value>) -> Result<(), PeftConfigError> {
    match fields.get("peft_type") {
        None if fields.contains_key("lora_parameters") || fields.contains_key("lora_layers") => {
            return Err(PeftConfigError::MlxLm);
        }
        None => return Err(PeftConfigError::Missing { field: "peft_type" }),
        Some(kind) if kind == "LORA" => {}
        Some(_) => return refuse(fields, "peft_type"),
    }
    for (field, value) in fields {
        let supported = match field.as_str() {
            "task_type" => match value {
                // Of a head that has another name nothing is known.
                value if value == SCORING => names_score(fields),
                _ => value == "CAUSAL_LM" || is_inactive(value),
            },
            // PiSSA and its like change the base model when the adapter is loaded.
            "init_lora_weights" => match value {
                Value::String(init) => HARMLESS_INITS.contains(&init.as_str()),
                _ => true,
            },
            known if UNDERSTOOD.contains(&known) => true,
            _ => is_inactive(value),
        };
        if !supported {
            return refuse(fields, field);
        }
    }
    Ok(())
}

fn refuse(fields: &Map<String, Value>, field: &str) -> Result<(), PeftConfigError> {
    Err(PeftConfigError::Feature {
        field: field.into(),
        actual: fields.get(field).map(json::shorten).unwrap_or_default(),
    })
}

/// Whether a file names the head that scores texts.
fn names_score(fields: &Map<String, Value>) -> bool {
    let names = fields.get("modules_to_save").and_then(Value::as_array);
    names.is_some_and(|names| names.iter().any(|name| name == SCORE_MODULE))
}

/// Whether a value says "not used".
fn is_inactive(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// Typed access to the fields.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn invalid<T>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<T, PeftConfigError> {
        match self.0.get(field) {
            None => Err(PeftConfigError::Missing { field }),
            Some(value) => Err(PeftConfigError::Invalid {
                field,
                expected,
                actual: json::shorten(value),
            }),
        }
    }

    fn number(
        &self,
        field: &'static str,
        expected: &'static str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<f64, PeftConfigError> {
        match self.0.get(field).and_then(Value::as_f64) {
            Some(number) if accept(number) => Ok(number),
            _ => self.invalid(field, expected),
        }
    }

    fn text(&self, field: &'static str) -> Result<Option<String>, PeftConfigError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => self.invalid(field, "a text"),
        }
    }

    fn flag(&self, field: &'static str) -> Result<bool, PeftConfigError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => self.invalid(field, "true or false"),
        }
    }

    fn pattern<T: Copy>(
        &self,
        field: &'static str,
        accept: impl Fn(f64) -> bool,
        value: impl Fn(f64) -> T,
    ) -> Result<ModulePattern<T>, PeftConfigError> {
        let entries = match self.0.get(field) {
            None | Some(Value::Null) => return Ok(ModulePattern::default()),
            Some(Value::Object(entries)) => entries,
            Some(_) => return self.invalid(field, "an object"),
        };
        let mut values = Vec::new();
        for (key, number) in entries {
            match number.as_f64().filter(|number| accept(*number)) {
                Some(number) => values.push((key.clone(), value(number))),
                None => return self.invalid(field, "an object of modules and their numbers"),
            }
        }
        ModulePattern::new(values).map_err(|actual| PeftConfigError::Feature {
            field: field.into(),
            actual: format!("the pattern {actual:?}"),
        })
    }

    fn target_modules(&self) -> Result<TargetModules, PeftConfigError> {
        let field = "target_modules";
        let expected = "a list of names, or a pattern";
        match self.0.get(field) {
            Some(Value::String(pattern)) => Ok(TargetModules::Pattern(pattern.clone())),
            Some(Value::Array(names)) => {
                let names: Option<_> = (names.iter())
                    .map(|name| name.as_str().map(Into::into))
                    .collect();
                match names {
                    Some(names) => Ok(TargetModules::Names(names)),
                    None => self.invalid(field, expected),
                }
            }
            _ => self.invalid(field, expected),
        }
    }

    fn bias(&self) -> Result<Bias, PeftConfigError> {
        match self.0.get("bias") {
            Some(Value::String(name)) => match name.parse() {
                Ok(bias) => Ok(bias),
                Err(_) => self.invalid("bias", "\"none\", \"all\" or \"lora_only\""),
            },
            None => Ok(Bias::None),
            Some(value) if is_inactive(value) => Ok(Bias::None),
            Some(_) => self.invalid("bias", "\"none\", \"all\" or \"lora_only\""),
        }
    }

    fn modules_to_save(&self) -> Result<Vec<String>, PeftConfigError> {
        let field = "modules_to_save";
        let name = |name: &Value| {
            let name = name.as_str().filter(|name| !name.is_empty())?;
            Some(name.to_owned())
        };
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(names)) => match names.iter().map(name).collect::<Option<_>>() {
                Some(names) => Ok(self.of_task(names)),
                None => self.invalid(field, "a list of names"),
            },
            Some(_) => self.invalid(field, "a list of names"),
        }
    }

    /// The names without those that PEFT adds for a task.
    fn of_task(&self, names: Vec<String>) -> Vec<String> {
        if self.0.get("task_type").is_none_or(|task| task != SCORING) {
            return names;
        }
        let mut left: Vec<String> = Vec::new();
        for name in names {
            if name != CLASSIFIER && !left.contains(&name) {
                left.push(name);
            }
        }
        left
    }

    fn trainable_tokens(&self) -> Result<TrainableTokens, PeftConfigError> {
        let field = "trainable_token_indices";
        let value = self.0.get(field).unwrap_or(&Value::Null);
        TrainableTokens::read(value).map_err(|bad| match bad {
            BadTokens::List(actual) => PeftConfigError::Invalid {
                field,
                expected: "a list of token ids, or lists of them for embed_tokens and lm_head",
                actual,
            },
            BadTokens::Module(module) => PeftConfigError::Feature {
                field: field.to_owned(),
                actual: format!("rows of {module}"),
            },
        })
    }

    fn layers_to_transform(&self) -> Result<Option<Vec<usize>>, PeftConfigError> {
        let field = "layers_to_transform";
        let layer = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        let layers = match self.0.get(field) {
            None | Some(Value::Null) => return Ok(None),
            // To PEFT an empty list is none.
            Some(Value::Array(layers)) if layers.is_empty() => return Ok(None),
            Some(Value::Array(layers)) => layers.iter().map(layer).collect(),
            Some(one) => layer(one).map(|layer| vec![layer]),
        };
        match layers {
            Some(layers) => Ok(Some(layers)),
            None => self.invalid(field, "a layer's number, or a list of them"),
        }
    }
}
