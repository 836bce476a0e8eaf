//! `lora.adapter`: an adapter to go on from, whose settings take the place of what the recipe leaves out.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Display;
use std::path::PathBuf;

use backdraft_arch::spec::SCORE_MODULE;
use backdraft_arch::{LoraConfig, ModuleNames, ModulePattern};
use backdraft_formats::{PeftDir, PeftOutline, TargetModules, adapter_in};

use crate::LoraRecipe;
use crate::bases::{Bases, Origin};
use crate::problem::ProblemKind;
use crate::reader::Reader;

const KEY: &str = "lora.adapter";

/// Directory of the adapter that the key leads to, where the recipe has it.
pub(crate) fn directory(reader: &mut Reader<'_>, bases: &Bases<'_>) -> Option<PathBuf> {
    let before = reader.problem_count();
    let name: String = reader.optional(KEY)?;
    if reader.problem_count() > before {
        return None;
    }
    if name.is_empty() {
        reader.reject(KEY, "a path");
        return None;
    }
    Some(adapter_in(&bases.of(&reader.place(KEY)).join(name)))
}

/// `lora` with the settings of its adapter, which what the recipe says must not contradict.
pub(crate) fn taken_over(reader: &mut Reader<'_>, lora: LoraRecipe, origin: Origin) -> LoraRecipe {
    let Some(path) = lora.adapter.clone().filter(|_| origin == Origin::User) else {
        return lora;
    };
    let outline = match PeftDir::outline(&path) {
        Ok(outline) => outline,
        Err(error) => {
            let message = match path.is_dir() || !path.exists() {
                true => error.to_string(),
                false => format!(
                    "{} is a file, not the directory of an adapter",
                    path.display()
                ),
            };
            let causes = std::iter::successors(error.source(), |&cause| cause.source());
            let message = causes.fold(message, |message, cause| format!("{message}: {cause}"));
            let key = KEY.to_owned();
            reader.report(reader.place(KEY), ProblemKind::Adapter { key, message });
            return lora;
        }
    };
    let config = &outline.config;
    if !config.trainable_tokens.is_empty() {
        let message = format!(
            "{} has rows of tokens (trainable_token_indices), which are not trained further; merge it, and train what that \
             gives",
            path.display()
        );
        let key = KEY.to_owned();
        reader.report(reader.place(KEY), ProblemKind::Adapter { key, message });
        return lora;
    }
    let modules: Vec<String> = outline.modules.iter().map(|it| it.module.clone()).collect();
    let mut check = Check {
        reader,
        path: path.clone(),
    };
    check.same("rank", "r", &lora.rank, &config.r);
    check.same("alpha", "lora_alpha", &lora.alpha, &config.lora_alpha);
    check.same(
        "use_rslora",
        "use_rslora",
        &lora.use_rslora,
        &config.use_rslora,
    );
    check.same("use_dora", "use_dora", &lora.use_dora, &config.use_dora);
    check.same("bias", "bias", &lora.bias, &config.bias);
    // A tied head is saved with the embedding, under that name.
    let is_apart = |name: &&String| !(config.ensure_weight_tying && "lm_head".ends_with(&***name));
    let list =
        |names: &[String]| format!("{:?}", names.iter().filter(is_apart).collect::<Vec<_>>());
    // That of a reward model goes without saying: its objective trains it.
    let saved = config.modules_to_save.iter();
    let modules_to_save: Vec<String> = saved
        .filter(|name| *name != SCORE_MODULE)
        .cloned()
        .collect();
    let (said, has) = (list(&lora.modules_to_save), list(&modules_to_save));
    check.same("modules_to_save", "modules_to_save", &said, &has);
    let ranks = config.rank_pattern.clone().that_match(&modules);
    let alphas = config.alpha_pattern.clone().that_match(&modules);
    // PEFT sorts patterns when it saves them: what counts is what the modules get.
    if !alike(&lora.rank_pattern, &ranks, &modules, config.r) {
        check.same("rank_pattern", "rank_pattern", &lora.rank_pattern, &ranks);
    }
    if !alike(&lora.alpha_pattern, &alphas, &modules, config.lora_alpha) {
        check.same(
            "alpha_pattern",
            "alpha_pattern",
            &lora.alpha_pattern,
            &alphas,
        );
    }
    let (targets, layers) = words(&outline, &modules);
    if !as_written(&config.target_modules, &lora.target_modules) {
        check.same(
            "target_modules",
            "target_modules",
            &lora.target_modules,
            &targets,
        );
    }
    let in_order = |layers: &Option<Vec<usize>>| {
        let layers: BTreeSet<usize> = layers.iter().flatten().copied().collect();
        format!("{layers:?}").replace('{', "[").replace('}', "]")
    };
    let (said, has) = (in_order(&lora.layers_to_transform), in_order(&layers));
    check.same("layers_to_transform", "layers_to_transform", &said, &has);
    if let Some(names) = &lora.exclude_modules
        && let Some(module) = modules.iter().find(|module| names.matches(module))
    {
        check.other("exclude_modules", names, format!("factors of {module}"));
    }
    let dropout = match check.reader.has("lora.dropout") {
        true => lora.dropout,
        false => config.lora_dropout,
    };
    LoraRecipe {
        rank: config.r,
        alpha: config.lora_alpha,
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        bias: config.bias,
        modules_to_save,
        dropout,
        target_modules: targets,
        exclude_modules: None,
        layers_to_transform: layers,
        rank_pattern: ranks,
        alpha_pattern: alphas,
        ..lora
    }
}

/// Holds what the recipe says against the adapter.
struct Check<'r, 'a> {
    reader: &'r mut Reader<'a>,
    path: PathBuf,
}

impl Check<'_, '_> {
    /// Notes a key of `[lora]` that says otherwise than a field of the adapter.
    fn same<T: PartialEq + Display>(&mut self, key: &str, field: &str, said: &T, has: &T) {
        if said != has {
            self.other(key, said, format!("{field} = {has}"));
        }
    }

    /// Notes that a key, if the recipe has it, does not go with what the adapter `has`.
    fn other(&mut self, key: &str, said: &impl Display, has: String) {
        let key = format!("lora.{key}");
        if self.reader.has(&key) {
            let problem = ProblemKind::OtherThanAdapter {
                actual: said.to_string(),
                has,
                path: self.path.clone(),
                key: key.clone(),
            };
            self.reader.report(self.reader.place(&key), problem);
        }
    }
}

/// Whether both patterns give every module the same, `common` where none matches.
fn alike<T: Copy + PartialEq>(
    a: &ModulePattern<T>,
    b: &ModulePattern<T>,
    modules: &[String],
    common: T,
) -> bool {
    let of = |pattern: &ModulePattern<T>, module| pattern.get(module).unwrap_or(common);
    modules.iter().all(|module| of(a, module) == of(b, module))
}

/// Whether a recipe names the modules with the words of `adapter_config.json`.
fn as_written(config: &TargetModules, said: &ModuleNames) -> bool {
    let config = match config {
        TargetModules::Names(names) => Some(ModuleNames::List(names.clone())),
        TargetModules::Pattern(text) => ModuleNames::of_text(text),
    };
    config.as_ref() == Some(said)
}

/// Which modules the adapter has, in as few words as that takes: `target_modules` and `layers_to_transform`.
fn words(outline: &PeftOutline, modules: &[String]) -> (ModuleNames, Option<Vec<usize>>) {
    let config = LoraConfig {
        layers_to_transform: outline.config.layers_to_transform.clone(),
        ..LoraConfig::default()
    };
    let num_layers = outline.config.num_layers(modules.iter());
    let config = config.with_modules(modules.iter().cloned().collect(), num_layers);
    (
        ModuleNames::List(config.module_names()),
        config.layers_to_transform,
    )
}

#[cfg(test)]
mod tests;
