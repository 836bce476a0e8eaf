//! Which projections are adapted, and how.

use std::collections::{BTreeMap, BTreeSet};

use crate::named;
use crate::spec::ModelSpec;
use crate::target::{TargetModule, UnknownTarget};
use crate::token_table::TokenTable;
use crate::trainable::Trainable;

named! {
    /// Where the factors start.
    AdapterStart {
        /// A as Kaiming, B zero: training begins at the base model.
        #[default]
        Default = "default",
        /// The product nearest to what quantization took: LoftQ's first round, its scale divided out.
        Loftq = "loftq",
        /// The same, weighed by what the rows show: QERA's diagonal form, on both sides.
        Qera = "qera",
        /// The largest part of the weights themselves, which the base gives up: PiSSA.
        Pissa = "pissa",
        /// Both drawn, from directions that are orthogonal to each other, so that B·A is zero.
        Orthogonal = "orthogonal",
    }
}

impl AdapterStart {
    /// Whether the factors give back what quantisation took.
    #[must_use]
    pub const fn gives_back(self) -> bool {
        matches!(self, Self::Loftq | Self::Qera)
    }
}

named! {
    /// Biases of the base that are trained.
    Bias {
        /// None.
        #[default]
        None = "none",
        /// Those of all projections that have one.
        All = "all",
        /// Those of adapted projections.
        LoraOnly = "lora_only",
    }
}

/// Low-rank adaptation of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// r, the inner size of the factors.
    pub rank: usize,
    /// α; the adapter's output is scaled by α/r, or α/√r with `use_rslora`.
    pub alpha: f64,
    /// Probability that an input of the adapter is dropped while training.
    pub dropout: f64,
    /// Scale by α/√r (Kalajdzievski 2023, arXiv:2312.03732).
    pub use_rslora: bool,
    /// Train the length of each row of W + s·B·A as well (Liu et al. 2024, arXiv:2402.09353).
    pub use_dora: bool,
    /// How fresh factors are drawn; what gives back or takes over a part of the base comes after that.
    pub start: AdapterStart,
    /// The adapted projections.
    pub target_modules: Vec<TargetModule>,
    /// The adapted tables of tokens.
    pub target_tables: Vec<TokenTable>,
    /// The adapted layers, all where absent.
    pub layers_to_transform: Option<Vec<usize>>,
    /// The adapted modules among those by their paths, where not all of them are.
    pub modules: Option<BTreeSet<String>>,
    /// r of modules that have another one, by their paths.
    pub rank_pattern: BTreeMap<String, usize>,
    /// α of modules that have another one, by their paths.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Biases of the base that are trained beside the factors.
    pub bias: Bias,
    /// Modules of the base that are trained whole beside the factors: those whose paths end in one of these texts.
    pub modules_to_save: Vec<String>,
    /// Whether an embedding that is trained whole is the head too.
    pub ensure_weight_tying: bool,
    /// What of the base is trained in place of adapters, where that is so.
    pub trainable: Trainable,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            start: AdapterStart::Default,
            target_modules: TargetModule::USUAL.to_vec(),
            target_tables: Vec::new(),
            layers_to_transform: None,
            modules: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            bias: Bias::None,
            modules_to_save: Vec::new(),
            ensure_weight_tying: false,
            trainable: Trainable::Adapter,
        }
    }
}

impl LoraConfig {
    /// s in y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ.
    pub fn scaling(&self) -> f64 {
        self.scaling_by(self.rank, self.alpha)
    }

    /// r of the module at `path`.
    pub fn rank_of(&self, path: &str) -> usize {
        self.rank_pattern.get(path).copied().unwrap_or(self.rank)
    }

    /// As [`scaling`](Self::scaling), for the module at `path`, whose factors are of `rank`.
    pub fn scaling_of(&self, path: &str, rank: usize) -> f64 {
        let alpha = self.alpha_pattern.get(path).copied();
        self.scaling_by(rank, alpha.unwrap_or(self.alpha))
    }

    fn scaling_by(&self, rank: usize, alpha: f64) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Whether projection `target` of layer `layer` is adapted.
    pub fn adapts(&self, layer: usize, target: TargetModule) -> bool {
        self.target_modules.contains(&target)
            && self
                .layers_to_transform
                .as_ref()
                .is_none_or(|layers| layers.contains(&layer))
            && self
                .modules
                .as_ref()
                .is_none_or(|modules| modules.contains(&target.path(layer)))
    }

    /// Whether a table of tokens is adapted.
    #[must_use]
    pub fn adapts_table(&self, table: TokenTable) -> bool {
        self.target_tables.contains(&table)
    }

    /// The paths of the adapted modules of a model of that shape: projections in the order of layers, then tables.
    #[must_use]
    pub fn adapted(&self, spec: &ModelSpec) -> Vec<String> {
        let projections = spec.projections();
        let projections = projections.filter(|(layer, target)| self.adapts(*layer, *target));
        let projections = projections.map(|(layer, target)| target.path(layer));
        let tables = TokenTable::adaptable(spec).filter(|table| self.adapts_table(*table));
        projections
            .chain(tables.map(|table| table.path().to_owned()))
            .collect()
    }

    /// What PEFT calls `target_modules`: names of projections and tables, or paths where those do not say it.
    #[must_use]
    pub fn module_names(&self) -> Vec<String> {
        let mut names: Vec<String> = match &self.modules {
            Some(modules) => modules.iter().cloned().collect(),
            None => (self.target_modules.iter())
                .map(|target| target.name().to_owned())
                .collect(),
        };
        // Where layers are chosen, a name alone is one in a layer.
        let by_path = self.layers_to_transform.is_some() || self.modules.is_some();
        let name = |table: &TokenTable| match by_path {
            true => table.path(),
            false => table.name(),
        };
        names.extend(
            self.target_tables
                .iter()
                .map(|table| name(table).to_owned()),
        );
        names
    }

    /// The same for just these modules of a model of `num_layers` layers, given by their paths, in as few words as that
    /// takes: projections and layers, or the paths.
    #[must_use]
    pub fn with_modules(self, mut modules: BTreeSet<String>, num_layers: usize) -> Self {
        let tables = TokenTable::ALL.into_iter();
        let target_tables = tables
            .filter(|table| modules.remove(table.path()))
            .collect();
        let places: BTreeSet<(usize, TargetModule)> =
            modules.iter().filter_map(|path| place(path)).collect();
        let layers: BTreeSet<usize> = places.iter().map(|(layer, _)| *layer).collect();
        let targets = |target: &TargetModule| places.iter().any(|(_, other)| other == target);
        let target_modules: Vec<_> = TargetModule::ALL.into_iter().filter(targets).collect();
        let all_layers = layers.iter().copied().eq(0..num_layers);
        let said = self.layers_to_transform;
        let said = said.filter(|said| layers == said.iter().copied().collect());
        let whole = places.len() == target_modules.len() * layers.len()
            && places.len() == modules.len()
            && (all_layers || said.is_some() || modules.is_empty());
        Self {
            target_modules,
            target_tables,
            layers_to_transform: said.filter(|_| whole),
            modules: (!whole).then_some(modules),
            ..self
        }
    }

    /// Checks the values against a model of `num_layers` layers.
    ///
    /// # Errors
    /// A rank of zero, a dropout outside [0, 1), no target, a layer that does not exist, or what adapters of tables do not have.
    pub fn validate(&self, num_layers: usize) -> Result<(), LoraConfigError> {
        if self.rank == 0 {
            return Err(LoraConfigError::ZeroRank);
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(LoraConfigError::Dropout {
                actual: self.dropout,
            });
        }
        let layers = self.layers_to_transform.as_deref();
        let targets = self.target_modules.len() + self.target_tables.len();
        let none = targets == 0 && !self.trainable.is_full();
        if let Some(table) = self.target_tables.first() {
            let refused = [
                (self.use_dora, "lora.use_dora = true".to_owned()),
                (
                    self.start != AdapterStart::Default,
                    format!("lora.init = \"{}\"", self.start.name()),
                ),
            ];
            if let Some((_, setting)) = refused.into_iter().find(|(is_set, _)| *is_set) {
                return Err(LoraConfigError::NotOnTables {
                    module: table.name(),
                    setting,
                });
            }
        }
        if none || layers.is_some_and(<[usize]>::is_empty) {
            return Err(LoraConfigError::NoTarget);
        }
        match layers
            .into_iter()
            .flatten()
            .find(|&&layer| layer >= num_layers)
        {
            Some(&layer) => Err(LoraConfigError::NoSuchLayer { layer, num_layers }),
            None => Ok(()),
        }
    }
}

/// Layer and projection of a path.
pub(crate) fn place(path: &str) -> Option<(usize, TargetModule)> {
    let target = path.rsplit('.').next()?.parse::<TargetModule>().ok()?;
    let layer = path.strip_prefix("model.layers.")?.split('.').next()?;
    let layer = layer.parse().ok()?;
    (target.path(layer) == path).then_some((layer, target))
}

/// What is wrong with a [`LoraConfig`].
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum LoraConfigError {
    /// The rank is zero.
    #[error("the rank of an adapter must be at least 1, found 0")]
    ZeroRank,
    /// The dropout is no probability below one.
    #[error("dropout must be at least 0 and below 1, found {actual}")]
    Dropout {
        /// The value found.
        actual: f64,
    },
    /// Nothing would be trained.
    #[error("no projection is adapted: name at least one target module and one layer")]
    NoTarget,
    /// A layer that the model lacks.
    #[error("layer {layer} is to be adapted, but the model has layers 0 to {}", num_layers - 1)]
    NoSuchLayer {
        /// The layer asked for.
        layer: usize,
        /// How many there are.
        num_layers: usize,
    },
    /// A setting that adapters of tables do not have.
    #[error(
        "lora.target_modules takes {module}, whose adapter cannot have {setting}: take {module} out of the list, or the setting"
    )]
    NotOnTables {
        /// The table.
        module: &'static str,
        /// The setting, as a recipe has it.
        setting: String,
    },
    /// A table that is adapted, and has tensors or rows that are trained too.
    #[error(
        "lora.target_modules takes {module}, which {key} trains too: one of the two is to be taken out"
    )]
    TrainedTwice {
        /// The table.
        module: &'static str,
        /// What trains it too.
        key: &'static str,
    },
    /// A name or a pattern that means no module.
    #[error(
        "{key}: `{name}` matches none of the {}; near it are {}",
        match *key {
            "lora.modules_to_save" => "modules that can be trained whole",
            key if key == crate::trainable::KEY || key.ends_with("_modules") => "model's modules",
            _ => "adapted modules",
        },
        nearest.join(", ")
    )]
    NoMatch {
        /// The key.
        key: &'static str,
        /// What was written.
        name: String,
        /// Names that look like it.
        nearest: Vec<String>,
    },
    /// A pattern that takes more than projections.
    #[error(
        "lora.target_modules = {pattern} takes `{module}` too, which cannot carry an adapter; let it match projections, embed_tokens \
         and lm_head alone, or name the module in lora.exclude_modules"
    )]
    NotAdaptable {
        /// What was written.
        pattern: String,
        /// The module.
        module: String,
    },
    /// A part of the base that is not trained whole.
    #[error(
        "{key} = {asked:?} takes `{module}` too, which this version does not train: norms, embed_tokens and lm_head are trained \
         whole, and biases of projections; adapters go on projections"
    )]
    NotWhole {
        /// The key.
        key: &'static str,
        /// What was written.
        asked: String,
        /// The module, or the tensor.
        module: String,
    },
    /// A tensor that is to be trained in place of adapters, and cannot.
    #[error(
        "trainable = {asked} takes `{tensor}` too, whose gradient this version does not have: it trains projections, norms, \
         biases of projections, embed_tokens and lm_head; name those by patterns, such as trainable = [\".*_proj\", \
         \"embed_tokens\"]"
    )]
    NoGradient {
        /// What was written.
        asked: String,
        /// The tensor.
        tensor: String,
    },
    /// There are no such biases.
    #[error(
        "lora.bias = \"{}\": {} has a bias; leave lora.bias out",
        bias.name(),
        if *bias == Bias::All { "no projection of the model" } else { "none of the adapted projections" }
    )]
    NoBias {
        /// What was written.
        bias: Bias,
    },
    /// A module that cannot be adapted.
    #[error(transparent)]
    UnknownTarget(#[from] UnknownTarget),
}
