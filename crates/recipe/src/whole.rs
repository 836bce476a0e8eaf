//! `lora.bias` and `lora.modules_to_save`: what of the base is trained whole beside adapters.

use std::collections::BTreeSet;

use backdraft_arch::Bias;

use crate::LoraRecipe;
use crate::names::Optimizer;
use crate::objective::ObjectiveRecipe;
use crate::reader::Reader;

const BIAS: &str = "lora.bias";
const MODULES: &str = "lora.modules_to_save";
/// Modules that are tables of tokens.
const TABLES: [&str; 2] = ["model.embed_tokens", "lm_head"];

/// Ends of paths, each once.
pub(crate) fn modules(reader: &mut Reader<'_>) -> Vec<String> {
    let before = reader.problem_count();
    let Some(names) = reader.optional::<Vec<String>>(MODULES) else {
        return Vec::new();
    };
    let distinct: BTreeSet<&String> = names.iter().collect();
    let sound = !distinct.contains(&String::new()) && distinct.len() == names.len();
    if reader.problem_count() == before && (names.is_empty() || !sound) {
        reader.reject(
            MODULES,
            "names of modules, at least one, each once; leave it out for none",
        );
    }
    names
}

/// Whether a name means a table of tokens.
fn is_table(name: &str) -> bool {
    TABLES.iter().any(|table| table.ends_with(name))
}

/// What does not go together.
pub(crate) fn check(
    reader: &mut Reader<'_>,
    lora: &LoraRecipe,
    objective: &ObjectiveRecipe,
    optimizer: Optimizer,
) {
    let trained = [
        (BIAS, lora.bias != Bias::None),
        (MODULES, !lora.modules_to_save.is_empty()),
        ("objective.kind", objective.scores()),
    ];
    for (key, _) in trained.into_iter().filter(|(_, trained)| *trained) {
        if optimizer == Optimizer::Muon {
            let instead = "Muon makes updates of matrices that project orthogonal, and norms, biases and tables of tokens do not; \
                           write optimizer = \"adamw\"";
            reader.conflict(key, "optimizer = \"muon\"", instead);
        }
    }
    let tables = lora.modules_to_save.iter().any(|name| is_table(name));
    if tables && objective.scores() {
        let instead = "the head that scores is trained whole anyway, and tables of tokens are not trained with it; take it out";
        reader.conflict(MODULES, "objective.kind = \"reward\"", instead);
    }
    if tables && objective.reference().is_some() {
        let other = format!("objective.kind = \"{}\"", objective.kind());
        let instead = "the reference would read the trained table; train the table first, merge, and go on from that";
        reader.conflict(MODULES, other, instead);
    }
    if tables && !lora.trainable_tokens.is_empty() {
        let instead =
            "a table that is trained whole has every row in it; take lora.trainable_tokens out";
        reader.conflict("lora.trainable_tokens", "`lora.modules_to_save`", instead);
    }
}
