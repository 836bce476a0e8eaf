//! A run that trains an existing adapter further.

use std::collections::BTreeMap;
use std::path::Path;

use backdraft_arch::{ModelSpec, TokenTable};
use backdraft_formats::{LoraPair, PeftDir};
use backdraft_lora::{AdapterWeights, LoraConfig, TrainedOver};
use backdraft_model::LoadError;
use backdraft_recipe::Recipe;

use super::Run;
use super::frozen::FrozenStart;
use crate::error::TrainError;
use crate::trained_with::TrainedWith;

/// Refuses an adapter to go on from that does not fit the model, by the headers of its files.
///
/// # Errors
/// Files that cannot be read; [`TrainError::Adapter`], [`TrainError::AdapterModules`] and
/// [`TrainError::AdapterInOutput`].
pub(crate) fn check(
    recipe: &Recipe,
    config: &LoraConfig,
    spec: &ModelSpec,
) -> Result<(), TrainError> {
    let Some(path) = &recipe.lora.adapter else {
        return Ok(());
    };
    let [adapter, output] = [path, &recipe.output_dir].map(|it| it.canonicalize().ok());
    if adapter
        .zip(output)
        .is_some_and(|(adapter, output)| adapter.starts_with(output))
    {
        return Err(TrainError::AdapterInOutput { path: path.clone() });
    }
    let outline = PeftDir::outline(path)?;
    match (outline.config.scores(), spec.scores) {
        (true, false) => return Err(does_not_fit(path, LoadError::Scores)),
        (false, true) => return Err(does_not_fit(path, LoadError::NoScore)),
        (true, true) | (false, false) => {}
    }
    let modules = outline.modules.into_iter();
    let mut found: BTreeMap<_, _> = modules.map(|it| (it.module, (it.rank, it.dims))).collect();
    let other = |found, rank, module| TrainError::AdapterModules {
        path: path.clone(),
        found,
        rank,
        module,
    };
    let projections = spec.projections().map(|(layer, target)| {
        let expected = spec.layers[layer].shape(target);
        (target.path(layer), expected, config.adapts(layer, target))
    });
    let tables = TokenTable::adaptable(spec).map(|table| {
        let expected = table.adapter_dims(spec);
        (
            table.path().to_owned(),
            expected,
            config.adapts_table(table),
        )
    });
    for (module, expected, adapted) in projections.chain(tables) {
        match (adapted, found.remove(&module)) {
            (true, Some((rank, dims))) if dims != expected => {
                let [output, input] = dims;
                let actual = format!("[{rank}, {input}] and [{output}, {rank}]");
                let source = LoadError::Adapter {
                    module,
                    expected,
                    actual,
                };
                return Err(does_not_fit(path, source));
            }
            (true, Some((rank, _))) if rank == config.rank_of(&module) => {}
            (false, None) => {}
            (_, Some((rank, _))) => return Err(other("has factors", rank, module)),
            (true, None) => {
                let rank = config.rank_of(&module);
                return Err(other("lacks factors", rank, module));
            }
        }
    }
    match found.into_keys().next() {
        Some(module) => Err(does_not_fit(path, LoadError::AdapterModule { module })),
        None => Ok(()),
    }
}

fn does_not_fit(path: &Path, source: LoadError) -> TrainError {
    TrainError::Adapter {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

impl Run {
    /// Puts the adapter that the recipe goes on from, if there is one, in the place of the fresh one; what the user should
    /// hear of it.
    ///
    /// # Errors
    /// As [`check`], and factors that are no numbers.
    pub(super) fn start_from_adapter(&mut self) -> Result<Vec<String>, TrainError> {
        let Some(path) = &self.recipe.lora.adapter else {
            return Ok(Vec::new());
        };
        let spec = self.model.spec();
        let config = self.recipe.trained(spec)?;
        check(&self.recipe, &config, spec)?;
        let directory = PeftDir::read(path)?;
        let mut pairs = directory.tensors.iter();
        let broken = |pair: &&LoraPair| !pair.values().all(|value| value.is_finite());
        if let Some(pair) = pairs.find(broken) {
            return Err(TrainError::AdapterNotFinite {
                path: path.clone(),
                module: pair.module.clone(),
            });
        }
        let mut adapter = AdapterWeights::from_peft(&directory, &self.device);
        adapter.config = config;
        if self.recipe.compares_with_start() {
            self.start = Some(FrozenStart::new(&directory, &adapter));
        }
        let fitted = self.model.clone().with_adapter(&adapter);
        self.model = fitted.map_err(|source| does_not_fit(path, source))?;
        self.other_base(path)
    }

    /// In what the base differs from the one that an adapter was trained over, where that is noted.
    fn other_base(&self, path: &Path) -> Result<Vec<String>, TrainError> {
        let over = match TrainedWith::read(path)? {
            Some(with) => Some(with.over),
            None => TrainedOver::read(path)?,
        };
        let Some(over) = over else {
            return Ok(Vec::new());
        };
        let mut notes = Vec::new();
        if over.fingerprint != self.model_fingerprint {
            notes.push(format!(
                "the adapter was trained over {}, whose files differ from {}",
                over.model,
                self.source.path().display()
            ));
        }
        // Where bits are dealt out by measurement, another base is what was asked for.
        if over.quantization != self.loaded && !self.recipe.deals_bits() {
            let kept = |plan: &Option<backdraft_arch::QuantizationPlan>| match plan {
                Some(plan) => format!("{plan}"),
                None => "weights that are not quantized".to_owned(),
            };
            notes.push(format!(
                "the adapter was trained over {}, and goes on over {}: it has learned to make up for other errors",
                kept(&over.quantization),
                kept(&self.loaded)
            ));
        }
        Ok(notes)
    }
}
