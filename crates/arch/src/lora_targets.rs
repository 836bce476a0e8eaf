//! Who gets which adapter, as PEFT's configuration says it, and what that means for a model.

use std::collections::{BTreeMap, BTreeSet};

use crate::lora::{LoraConfig, LoraConfigError};
use crate::module_names::ModuleNames;
use crate::module_pattern::ModulePattern;
use crate::spec::ModelSpec;
use crate::target::TargetModule;
use crate::token_table::TokenTable;

/// Which modules carry an adapter, and which of them one of another rank or α.
///
/// # Source
/// PEFT 0.21: a module is adapted if `exclude_modules` does not mean it, `target_modules` does, and it is in one of
/// `layers_to_transform` or a list names its whole path. The first pattern that matches a module gives its rank, and,
/// looked up apart, its α.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraTargets {
    /// The modules.
    pub target_modules: ModuleNames,
    /// Those that are left out, whatever else names them.
    pub exclude_modules: Option<ModuleNames>,
    /// Layers, counted from 0; all where absent.
    pub layers_to_transform: Option<Vec<usize>>,
    /// r of the modules that a pattern matches.
    pub rank_pattern: ModulePattern<usize>,
    /// α of the modules that a pattern matches.
    pub alpha_pattern: ModulePattern<f64>,
}

impl LoraTargets {
    /// `config` for a model of that shape, with its modules, and their ranks and αs.
    ///
    /// # Errors
    /// A name or a pattern that means no module, or one that means a module that cannot carry an adapter, a layer that the
    /// model lacks, and what [`LoraConfig::validate`] finds.
    pub fn resolve(
        &self,
        spec: &ModelSpec,
        config: LoraConfig,
    ) -> Result<LoraConfig, LoraConfigError> {
        let num_layers = spec.layers.len();
        let config = LoraConfig {
            layers_to_transform: self.layers_to_transform.clone(),
            ..config
        };
        let mut config = match self.projections(spec) {
            Some(target_modules) => LoraConfig {
                target_modules,
                ..config
            },
            None => config.with_modules(self.modules(spec)?, num_layers),
        };
        config.target_tables = self.tables(spec)?;
        config.validate(num_layers)?;
        config = config.with_whole(spec)?;
        if self.rank_pattern.is_empty() && self.alpha_pattern.is_empty() {
            return Ok(config);
        }
        let adapted = config.adapted(spec);
        all_match(
            "lora.rank_pattern",
            self.rank_pattern.unmatched(&adapted),
            &adapted,
        )?;
        all_match(
            "lora.alpha_pattern",
            self.alpha_pattern.unmatched(&adapted),
            &adapted,
        )?;
        config.rank_pattern = others(&self.rank_pattern, &adapted, config.rank);
        config.alpha_pattern = others(&self.alpha_pattern, &adapted, config.alpha);
        match config.rank_pattern.values().any(|rank| *rank == 0) {
            true => Err(LoraConfigError::ZeroRank),
            false => Ok(config),
        }
    }

    /// The tables of tokens that are adapted. A list of every linear layer has none: the head is not meant by it.
    ///
    /// # Errors
    /// Less than its path of a table, where layers are chosen: it is in none.
    fn tables(&self, spec: &ModelSpec) -> Result<Vec<TokenTable>, LoraConfigError> {
        let names = &self.target_modules;
        if *names == ModuleNames::AllLinear {
            return Ok(Vec::new());
        }
        let excluded = |path: &str| {
            let excluded = self.exclude_modules.as_ref();
            excluded.is_some_and(|names| names.matches(path))
        };
        let meant = |table: &TokenTable| names.matches(table.path()) && !excluded(table.path());
        let tables: Vec<_> = TokenTable::adaptable(spec).filter(meant).collect();
        let in_layer = |table: &&TokenTable| !names.names_whole(table.path());
        match tables.iter().find(in_layer) {
            Some(table) if self.layers_to_transform.is_some() => Err(LoraConfigError::NoMatch {
                key: "lora.target_modules",
                name: format!("{} in layers_to_transform", table.name()),
                nearest: vec![table.path().to_owned()],
            }),
            _ => Ok(tables),
        }
    }

    /// The projections, where nothing but names that the model has is said.
    fn projections(&self, spec: &ModelSpec) -> Option<Vec<TargetModule>> {
        let ModuleNames::List(names) = &self.target_modules else {
            return None;
        };
        let table = |name: &&String| {
            let mut tables = TokenTable::adaptable(spec);
            TokenTable::of_name(name).is_some_and(|it| tables.any(|table| table == it))
        };
        let names = names.iter().filter(|name| !table(name));
        let targets: Option<Vec<TargetModule>> = names.map(|name| name.parse().ok()).collect();
        let has = |target: &TargetModule| spec.projections().any(|(_, other)| other == *target);
        targets.filter(|targets| self.exclude_modules.is_none() && targets.iter().all(has))
    }

    /// The adapted projections by path.
    fn modules(&self, spec: &ModelSpec) -> Result<BTreeSet<String>, LoraConfigError> {
        let projections: Vec<(usize, String)> = (spec.projections())
            .map(|(layer, target)| (layer, target.path(layer)))
            .collect();
        let tables = TokenTable::adaptable(spec).map(|table| table.path().to_owned());
        let paths = projections.iter().map(|(_, path)| path.clone());
        let paths: Vec<String> = paths.chain(tables).collect();
        let others = others_of(spec, &paths);
        let all: Vec<String> = paths.iter().chain(&others).cloned().collect();
        all_match(
            "lora.target_modules",
            self.target_modules.unmatched(&all),
            &paths,
        )?;
        let excluded = self.exclude_modules.as_ref();
        if let Some(excluded) = excluded {
            all_match("lora.exclude_modules", excluded.unmatched(&all), &paths)?;
        }
        let is_excluded = |path: &str| excluded.is_some_and(|names| names.matches(path));
        // The list of every linear layer has none but these.
        let others = match self.target_modules {
            ModuleNames::AllLinear => Vec::new(),
            _ => others,
        };
        let mut unfit = others.into_iter();
        if let Some(module) =
            unfit.find(|path| self.target_modules.matches(path) && !is_excluded(path))
        {
            return Err(LoraConfigError::NotAdaptable {
                pattern: self.target_modules.to_string(),
                module,
            });
        }
        let in_layers = |layer: &usize, path: &str| {
            let layers = self.layers_to_transform.as_ref();
            layers.is_none_or(|layers| layers.contains(layer))
                || self.target_modules.names_whole(path)
        };
        let adapted = projections.into_iter().filter(|(layer, path)| {
            self.target_modules.matches(path) && !is_excluded(path) && in_layers(layer, path)
        });
        Ok(adapted.map(|(_, path)| path).collect())
    }
}

/// Refuses a pattern of `key` that matches none of the modules that `config` trains in a model of that shape.
///
/// # Errors
/// [`LoraConfigError::NoMatch`].
pub fn match_adapted<T: Copy>(
    key: &'static str,
    pattern: &ModulePattern<T>,
    config: &LoraConfig,
    spec: &ModelSpec,
) -> Result<(), LoraConfigError> {
    let whole = config.whole(spec).into_iter().filter_map(|tensor| {
        let (module, _) = tensor.name.rsplit_once('.')?;
        Some(module.to_owned())
    });
    let trained: Vec<String> = config.adapted(spec).into_iter().chain(whole).collect();
    all_match(key, pattern.unmatched(&trained), &trained)
}

/// Modules of the model, and what holds modules, that cannot carry an adapter.
fn others_of(spec: &ModelSpec, adaptable: &[String]) -> Vec<String> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for tensor in spec.tensors() {
        let mut name = tensor.name.as_str();
        while let Some((before, _)) = name.rsplit_once('.') {
            name = before;
            names.insert(name.to_owned());
        }
    }
    for path in adaptable {
        names.remove(path);
    }
    names.into_iter().collect()
}

/// What a pattern says of each of `modules`, where that is not `common`.
fn others<T: Copy + PartialEq>(
    pattern: &ModulePattern<T>,
    modules: &[String],
    common: T,
) -> BTreeMap<String, T> {
    let found = modules
        .iter()
        .filter_map(|module| Some((module.clone(), pattern.get(module)?)));
    found.filter(|(_, value)| *value != common).collect()
}

/// Refuses the first of `unmatched`.
fn all_match<'a>(
    key: &'static str,
    unmatched: impl IntoIterator<Item = &'a str>,
    modules: &[String],
) -> Result<(), LoraConfigError> {
    match unmatched.into_iter().next() {
        None => Ok(()),
        Some(name) => Err(LoraConfigError::NoMatch {
            key,
            name: name.to_owned(),
            nearest: nearest(name, modules),
        }),
    }
}

/// Ends of paths that look like `name`, the most alike first; at most three.
pub(crate) fn nearest(name: &str, modules: &[String]) -> Vec<String> {
    let parts = name.split('.').count();
    let mut ends: BTreeSet<&str> = BTreeSet::new();
    for module in modules {
        // As many parts as the name has, and the last one alone.
        for count in [1, parts] {
            let dots = module.rmatch_indices('.').map(|(at, _)| at + 1);
            let start = dots.chain([0]).nth(count - 1).unwrap_or(0);
            ends.insert(&module[start..]);
        }
    }
    let likeness = |end: &str| (strsim::jaro_winkler(name, end) * 1e6) as u64;
    let mut ends: Vec<&str> = ends.into_iter().collect();
    ends.sort_by_key(|end| std::cmp::Reverse(likeness(end)));
    ends.into_iter().take(3).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
