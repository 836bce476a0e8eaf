//! Several adapters as one, without a base: on the host, the same bits every time.
//!
//! # Source
//! `add_weighted_adapter` of PEFT 0.21 and the papers behind it: Yadav et al. 2023, arXiv:2306.01708 (TIES); Yu et al.
//! 2023, arXiv:2311.03099 (DARE). Three things are as they were meant there: the result's scale is 1 also where the first
//! adapter has `use_rslora`; a module whose rank is not the result's keeps its scale of 1; and one direction of a
//! singular pair is chosen, so that the same adapters give the same bits everywhere.

mod prune;
mod svd;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use backdraft_arch::{LoraConfig, ModulePattern, named};
use backdraft_formats::{AdapterTensors, LoraPair, PeftConfig, PeftDir};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use prune::Pruning;

named! {
    /// How adapters become one, by PEFT's names.
    Combination {
        /// The singular value decomposition of the weighted sum of their products: the nearest of a rank.
        #[default]
        Svd = "svd",
        /// Weighted sums of A and of B.
        Linear = "linear",
        /// Their factors one behind the other: the weighted sum of their products, of the sum of their ranks.
        Cat = "cat",
        /// The largest values of each factor, and of those the ones whose sign prevails: TIES.
        Ties = "ties",
        /// As linear, of values chosen by chance: DARE.
        DareLinear = "dare_linear",
        /// Values chosen by chance, and of those the ones whose sign prevails.
        DareTies = "dare_ties",
        /// As linear, of the largest values of each factor.
        MagnitudePrune = "magnitude_prune",
    }
}

impl Combination {
    /// Whether it leaves out values, so that a density says how many stay.
    #[must_use]
    pub const fn prunes(self) -> bool {
        !matches!(self, Self::Svd | Self::Linear | Self::Cat)
    }

    /// Whether values of a sign that does not prevail are left out.
    #[must_use]
    pub const fn elects_signs(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies)
    }

    /// Whether chance has a part in it.
    #[must_use]
    pub const fn draws(self) -> bool {
        matches!(self, Self::DareLinear | Self::DareTies)
    }
}

named! {
    /// Which sign prevails.
    MajoritySign {
        /// That of the sum.
        #[default]
        Total = "total",
        /// That of most values.
        Frequency = "frequency",
    }
}

/// How to make one adapter of several.
#[derive(Clone, Debug, PartialEq)]
pub struct CombineOptions {
    /// The method.
    pub combination: Combination,
    /// What each adapter counts, one for each; may be negative.
    pub weights: Vec<f64>,
    /// Share of the values that stay, above 0 and at most 1; only where some are left out.
    pub density: Option<f64>,
    /// Which sign prevails, where one does.
    pub majority_sign: MajoritySign,
    /// Rank of a decomposition; the largest of the adapters' where absent.
    pub svd_rank: Option<usize>,
    /// Of the values that are chosen by chance.
    pub seed: u64,
}

/// Why adapters cannot become one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CombineError {
    /// There is none, or not one weight for each.
    #[error("{adapters} adapters and {weights} weights: give one weight for each adapter")]
    Weights {
        /// How many adapters.
        adapters: usize,
        /// How many weights.
        weights: usize,
    },
    /// A weight that is no number.
    #[error("a weight must be a finite number, found {actual}")]
    Weight {
        /// The weight.
        actual: f64,
    },
    /// A method that leaves out values was not told how many, or told something impossible.
    #[error("{combination} takes a density above 0 and at most 1, the share of values that stay; found {}", actual.map_or("none".to_owned(), |it| it.to_string()))]
    Density {
        /// The method.
        combination: Combination,
        /// What was given.
        actual: Option<f64>,
    },
    /// A density or a rank for a method that has none.
    #[error("{combination} has no {option}")]
    Option {
        /// The method.
        combination: Combination,
        /// What was given.
        option: &'static str,
    },
    /// Factors whose ranks differ, for a method that adds them value by value.
    #[error(
        "{combination} adds factors of the same rank: those of `{module}` are of {expected} in {}, of {actual} in {}; cat \
         and svd take any",
        first.display(), path.display()
    )]
    Rank {
        /// The method.
        combination: Combination,
        /// The module, or what all modules have in common.
        module: String,
        /// Rank in the first adapter.
        expected: usize,
        /// Another rank.
        actual: usize,
        /// The first adapter.
        first: PathBuf,
        /// The adapter of another rank.
        path: PathBuf,
    },
    /// A module that is of one shape in one adapter and of another in the next.
    #[error(
        "the adapters are of different bases: the weight of `{module}` is {expected:?} in {}, {actual:?} in {}",
        first.display(), path.display()
    )]
    Shape {
        /// The module.
        module: String,
        /// Outputs and inputs in the first adapter that has it.
        expected: [usize; 2],
        /// Those of another.
        actual: [usize; 2],
        /// The first adapter that has it.
        first: PathBuf,
        /// The other.
        path: PathBuf,
    },
    /// An adapter of a model that scores texts.
    #[error(
        "{}: the adapter is of a reward model, whose head (score.weight) has no sum with another's, and which cannot be merged either; \
         train one reward model on the rows of all of them",
        path.display()
    )]
    Scores {
        /// The adapter.
        path: PathBuf,
    },
    /// An adapter with rows of tokens.
    #[error(
        "{}: its trained tokens (trainable_token_indices) cannot be combined with another adapter; merge it into its base first",
        path.display()
    )]
    Tokens {
        /// The adapter.
        path: PathBuf,
    },
    /// An adapter with whole tensors of the base.
    #[error(
        "{}: its whole tensors (modules_to_save, bias) cannot be combined with another adapter; merge it into its base first",
        path.display()
    )]
    Whole {
        /// The adapter.
        path: PathBuf,
    },
    /// An adapter that trains the lengths of rows.
    #[error(
        "{}: it is a DoRA adapter (use_dora), whose lengths of rows have no sum with another's; merge it into its base \
         first",
        path.display()
    )]
    Lengths {
        /// The adapter.
        path: PathBuf,
    },
    /// A factor that is no number.
    #[error("{}: the factors of `{module}` hold NaN or infinity", path.display())]
    NotFinite {
        /// The adapter.
        path: PathBuf,
        /// The module.
        module: String,
    },
}

/// One adapter's factors of a module, and what they count.
struct Part<'a> {
    pair: &'a LoraPair,
    weight: f64,
    scaling: f64,
}

/// Makes one adapter of several: of every module that one of them has, from those that have it.
///
/// # Errors
/// Options that do not fit each other or the adapters; adapters of different bases; values that are no numbers.
pub fn combine(
    adapters: &[PeftDir],
    options: &CombineOptions,
) -> Result<(PeftConfig, AdapterTensors), CombineError> {
    check_options(adapters.len(), options)?;
    if let Some(adapter) = adapters.iter().find(|adapter| adapter.config.scores()) {
        let path = adapter.path.clone();
        return Err(CombineError::Scores { path });
    }
    let mut all = adapters.iter();
    if let Some(adapter) = all.find(|adapter| !adapter.tensors.tokens().is_empty()) {
        let path = adapter.path.clone();
        return Err(CombineError::Tokens { path });
    }
    let mut all = adapters.iter();
    if let Some(adapter) = all.find(|adapter| adapter.tensors.whole().len() > 0) {
        let path = adapter.path.clone();
        return Err(CombineError::Whole { path });
    }
    if let Some(adapter) = adapters.iter().find(|adapter| adapter.config.use_dora) {
        let path = adapter.path.clone();
        return Err(CombineError::Lengths { path });
    }
    let modules = modules(adapters, options)?;
    let rank = common_rank(adapters, options)?;
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let combined = modules.values().map(|parts| match options.combination {
        Combination::Cat => cat(parts, rank),
        Combination::Svd => svd::decompose(parts, rank),
        _ => by_value(parts, options, &mut rng),
    });
    let tensors: AdapterTensors = combined.collect();
    Ok((config(adapters, rank, &tensors), tensors))
}

fn check_options(adapters: usize, options: &CombineOptions) -> Result<(), CombineError> {
    let combination = options.combination;
    let weights = options.weights.len();
    if adapters == 0 || weights != adapters {
        return Err(CombineError::Weights { adapters, weights });
    }
    if let Some(&actual) = options.weights.iter().find(|weight| !weight.is_finite()) {
        return Err(CombineError::Weight { actual });
    }
    let actual = options.density;
    let fits = actual.is_some_and(|density| density > 0.0 && density <= 1.0);
    if combination.prunes() && !fits {
        return Err(CombineError::Density {
            combination,
            actual,
        });
    }
    let unused = [
        (actual.is_some() && !combination.prunes(), "density"),
        (
            options.svd_rank.is_some() && combination != Combination::Svd,
            "svd_rank",
        ),
    ];
    match unused.into_iter().find(|(unused, _)| *unused) {
        Some((_, option)) => Err(CombineError::Option {
            combination,
            option,
        }),
        None => Ok(()),
    }
}

/// The parts of every module, in the order of the adapters.
fn modules<'a>(
    adapters: &'a [PeftDir],
    options: &CombineOptions,
) -> Result<BTreeMap<&'a str, Vec<Part<'a>>>, CombineError> {
    let mut modules: BTreeMap<&str, Vec<Part<'_>>> = BTreeMap::new();
    let by_value = !matches!(options.combination, Combination::Cat | Combination::Svd);
    for (adapter, &weight) in adapters.iter().zip(&options.weights) {
        for pair in adapter.tensors.iter() {
            let module = pair.module.clone();
            let path = adapter.path.clone();
            if !(pair.lora_a.iter().chain(&pair.lora_b)).all(|value| value.is_finite()) {
                return Err(CombineError::NotFinite { path, module });
            }
            let parts = modules.entry(&pair.module).or_default();
            let first = parts.first().map(|part| part.pair);
            // Whoever has it first, for the error.
            let owner = || {
                let mut owners = adapters.iter();
                let owner = owners.find(|it| it.tensors.get(&pair.module).is_some());
                owner.map_or_else(PathBuf::new, |it| it.path.clone())
            };
            let dims = |pair: &LoraPair| [pair.out_features, pair.in_features];
            if let Some(first) = first.filter(|first| dims(first) != dims(pair)) {
                return Err(CombineError::Shape {
                    module,
                    expected: dims(first),
                    actual: dims(pair),
                    first: owner(),
                    path,
                });
            }
            if let Some(first) = first.filter(|first| by_value && first.rank() != pair.rank()) {
                return Err(CombineError::Rank {
                    combination: options.combination,
                    module,
                    expected: first.rank(),
                    actual: pair.rank(),
                    first: owner(),
                    path,
                });
            }
            parts.push(Part {
                pair,
                weight,
                scaling: adapter.config.scaling_of(&pair.module),
            });
        }
    }
    Ok(modules)
}

/// The rank of the result: of methods that work value by value that of all, of the others what there is room for.
fn common_rank(adapters: &[PeftDir], options: &CombineOptions) -> Result<usize, CombineError> {
    let largest = |adapter: &PeftDir| {
        let ranks = adapter.tensors.iter().map(LoraPair::rank);
        ranks.max().unwrap_or(adapter.config.r)
    };
    let ranks: Vec<usize> = adapters.iter().map(largest).collect();
    let most = ranks.iter().copied().max().unwrap_or(1);
    match options.combination {
        Combination::Cat => Ok(ranks.iter().sum()),
        Combination::Svd => Ok(options.svd_rank.unwrap_or(most).max(1)),
        combination => match ranks.iter().position(|rank| *rank != ranks[0]) {
            None => Ok(most),
            Some(at) => Err(CombineError::Rank {
                combination,
                module: "the largest modules".to_owned(),
                expected: ranks[0],
                actual: ranks[at],
                first: adapters[0].path.clone(),
                path: adapters[at].path.clone(),
            }),
        },
    }
}

/// Factors one behind the other, filled up with zeros to `rank`; weight and scale go into A.
fn cat(parts: &[Part<'_>], rank: usize) -> LoraPair {
    let LoraPair {
        module,
        in_features,
        out_features,
        ..
    } = parts[0].pair;
    let scaled = parts.iter().flat_map(|part| {
        let (weight, scaling) = (part.weight as f32, part.scaling as f32);
        part.pair.lora_a.iter().map(move |a| a * weight * scaling)
    });
    let mut lora_a: Vec<f32> = scaled.collect();
    lora_a.resize(rank * in_features, 0.0);
    let mut lora_b = Vec::with_capacity(rank * out_features);
    for row in 0..*out_features {
        for part in parts {
            let rank = part.pair.rank();
            lora_b.extend_from_slice(&part.pair.lora_b[row * rank..(row + 1) * rank]);
        }
        lora_b.resize((row + 1) * rank, 0.0);
    }
    LoraPair {
        module: module.clone(),
        in_features: *in_features,
        out_features: *out_features,
        lora_a,
        lora_b,
        magnitude: None,
    }
}

/// A and B apart, value by value. Each counts with the root of weight times scale, whose sign goes with A.
fn by_value(parts: &[Part<'_>], options: &CombineOptions, rng: &mut ChaCha8Rng) -> LoraPair {
    let factor = |part: &Part<'_>| part.weight * part.scaling;
    let of_b: Vec<f32> = parts
        .iter()
        .map(|part| factor(part).abs().sqrt() as f32)
        .collect();
    let of_a: Vec<f32> = parts
        .iter()
        .zip(&of_b)
        .map(|(part, root)| if factor(part) >= 0.0 { *root } else { -root })
        .collect();
    let mut sum = |values: Vec<&[f32]>, weights: &[f32]| {
        let pruning = Pruning {
            combination: options.combination,
            density: options.density.unwrap_or(1.0),
            majority_sign: options.majority_sign,
        };
        pruning.weighted_sum(&values, weights, rng)
    };
    let lora_a = sum(
        parts.iter().map(|part| &part.pair.lora_a[..]).collect(),
        &of_a,
    );
    let lora_b = sum(
        parts.iter().map(|part| &part.pair.lora_b[..]).collect(),
        &of_b,
    );
    LoraPair {
        lora_a,
        lora_b,
        ..parts[0].pair.clone()
    }
}

/// What the result is: everything of scale 1.
fn config(adapters: &[PeftDir], rank: usize, tensors: &AdapterTensors) -> PeftConfig {
    let configs = || adapters.iter().map(|adapter| &adapter.config);
    let modules: BTreeSet<String> = tensors.iter().map(|pair| pair.module.clone()).collect();
    let layers = |config: &PeftConfig| config.num_layers(modules.iter());
    let num_layers = configs().map(layers).min().unwrap_or(0);
    let first = configs()
        .next()
        .and_then(|it| it.layers_to_transform.clone());
    let same = configs().all(|config| config.layers_to_transform == first);
    let lora = LoraConfig {
        layers_to_transform: first.filter(|_| same),
        ..LoraConfig::default()
    };
    let lora = lora.with_modules(modules, num_layers);
    let mut config = PeftConfig::new(rank, rank as f64, lora.module_names());
    config.layers_to_transform = lora.layers_to_transform;
    let base = configs()
        .next()
        .and_then(|it| it.base_model_name_or_path.clone());
    let same = configs().all(|it| it.base_model_name_or_path == base);
    config.base_model_name_or_path = base.filter(|_| same);
    config.lora_dropout = configs().next().map_or(0.0, |it| it.lora_dropout);
    let others = || {
        let others = tensors.iter().filter(|pair| pair.rank() != rank);
        others.map(|pair| (pair.module.clone(), pair.rank()))
    };
    config.rank_pattern = ModulePattern::of_modules(others());
    let alphas = others().map(|(module, rank)| (module, rank as f64));
    config.alpha_pattern = ModulePattern::of_modules(alphas);
    config
}

#[cfg(test)]
mod tests;
