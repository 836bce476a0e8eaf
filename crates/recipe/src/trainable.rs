//! `trainable`: adapters, or tensors of the base in their place.

use std::collections::BTreeSet;

use backdraft_arch::Trainable;
use backdraft_arch::trainable::KEY;
use toml::de::DeValue;

use crate::QuantizationRecipe;
use crate::keys::KEYS;
use crate::names::Optimizer;
use crate::objective::ObjectiveRecipe;
use crate::reader::Reader;
use crate::support;

const EXPECTED: &str = r#""adapter", "all", or a list of names, ends of paths or regular expressions (without look-around), such as ["norm", 'layers\.[0-3]']"#;
const RATIO: &str = "train.loraplus_lr_ratio";

/// What the key says.
pub(crate) fn trainable(reader: &mut Reader<'_>) -> Trainable {
    let Some(entry) = reader.entry(KEY) else {
        return Trainable::default();
    };
    if support::refusal(KEY, entry.value.get_ref()).is_some() {
        reader.decode::<String>(KEY, entry, EXPECTED);
        return Trainable::default();
    }
    if let DeValue::String(text) = entry.value.get_ref() {
        return match &**text {
            "adapter" => Trainable::Adapter,
            "all" => Trainable::All,
            _ => {
                reader.reject(KEY, EXPECTED);
                Trainable::default()
            }
        };
    }
    let before = reader.problem_count();
    let patterns: Vec<String> = reader.list_as(KEY, EXPECTED);
    let distinct: BTreeSet<&String> = patterns.iter().collect();
    let sound = !distinct.contains(&String::new()) && distinct.len() == patterns.len();
    let compiled = (!patterns.is_empty() && sound).then(|| Trainable::modules(patterns));
    match compiled {
        Some(Ok(trainable)) => trainable,
        _ => {
            if reader.problem_count() == before {
                reader.reject(KEY, EXPECTED);
            }
            Trainable::default()
        }
    }
}

/// What does not go together with training the base itself.
pub(crate) fn check(
    reader: &mut Reader<'_>,
    trainable: &Trainable,
    (load_in_4bit, load_in_8bit): (bool, bool),
    quantization: &QuantizationRecipe,
    (objective, optimizer, ratio): (&ObjectiveRecipe, Optimizer, f64),
) {
    if !trainable.is_full() {
        return;
    }
    let other = || format!("trainable = {trainable}");
    for key in KEYS.iter().filter(|key| key.section() == "lora") {
        if reader.has(key.path) {
            let instead = "no adapter is made there; take one of the two out";
            reader.conflict(key.path, other(), instead);
        }
    }
    for (key, quantizes) in [
        ("load_in_4bit", load_in_4bit),
        ("load_in_8bit", load_in_8bit),
        ("quantization.keep_blocks", quantization.keep_blocks),
    ] {
        if quantizes {
            let instead = "codes cannot be trained; take this key out, or train adapters over codes with trainable = \"adapter\"";
            reader.conflict(key, other(), instead);
        }
    }
    if objective.reference().is_some() {
        let kind = format!("objective.kind = \"{}\"", objective.kind());
        let instead = "answers are compared with a base that would not be there any more; train adapters, or take an objective without a \
                       reference: orpo, simpo or cpo";
        reader.conflict(KEY, kind, instead);
    }
    if objective.scores() {
        let instead =
            "a reward model is written as an adapter with its head; write trainable = \"adapter\"";
        reader.conflict(KEY, "objective.kind = \"reward\"", instead);
    }
    if optimizer == Optimizer::Muon {
        let instead = "Muon makes updates of matrices that project orthogonal, and norms, biases and tables of tokens do not; \
                       write optimizer = \"adamw\"";
        reader.conflict(KEY, "optimizer = \"muon\"", instead);
    }
    if ratio != 1.0 {
        let instead = "LoRA+ sets the factors of adapters apart; take one of the two out";
        reader.conflict(RATIO, other(), instead);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use backdraft_arch::Trainable;

    use crate::Recipe;

    fn read(rest: &str) -> Result<Recipe, String> {
        let text = format!("model = \"a/b\"\ndata.train = \"t.jsonl\"\n{rest}");
        Recipe::from_toml(&text, Path::new("/r"), &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_recipe_comes_back_without_a_part_about_adapters() {
        for (said, expected) in [
            ("trainable = \"all\"\n", Trainable::All),
            (
                "trainable = [\"norm\", 'layers\\.1']\n",
                Trainable::modules(["norm".to_owned(), "layers\\.1".to_owned()]).unwrap(),
            ),
        ] {
            let recipe = read(said).unwrap();
            assert_eq!(recipe.trainable, expected);
            let text = recipe.to_toml().unwrap();
            assert!(!text.contains("[lora]"), "{text}");
            assert_eq!(Recipe::from_stored(&text, Path::new("/r")).unwrap(), recipe);
            // A user may train by the copy of a run.
            assert_eq!(
                Recipe::from_toml(&text, Path::new("/r"), &[]).unwrap(),
                recipe
            );
        }
        let adapter = read("trainable = \"adapter\"\n").unwrap();
        assert_eq!(adapter, read("").unwrap());
        assert!(adapter.to_toml().unwrap().contains("[lora]"));
        let all = read("trainable = \"all\"\n").unwrap();
        assert!(
            adapter
                .differences(&all)
                .unwrap()
                .iter()
                .any(|it| it.key == "trainable")
        );
    }

    #[test]
    fn what_does_not_go_with_it_is_refused_by_name() {
        for (more, expected) in [
            ("lora.rank = 8\n", "lora.rank"),
            ("load_in_4bit = true\n", "load_in_4bit"),
            (
                "quantization.keep_blocks = true\n",
                "quantization.keep_blocks",
            ),
            ("objective.kind = \"dpo\"\n", "orpo, simpo or cpo"),
            ("objective.kind = \"reward\"\n", "trainable = \"adapter\""),
            ("train.optimizer = \"muon\"\n", "orthogonal"),
            ("train.loraplus_lr_ratio = 16\n", "train.loraplus_lr_ratio"),
        ] {
            let refused = read(&format!("trainable = \"all\"\n{more}")).unwrap_err();
            assert!(refused.contains(expected), "{more}: {refused}");
        }
        for value in [
            "\"everything\"",
            "[]",
            "[\"\"]",
            "[\"norm\", \"norm\"]",
            "[\"(\"]",
            "3",
        ] {
            let refused = read(&format!("trainable = {value}\n")).unwrap_err();
            assert!(refused.contains("trainable"), "{value}: {refused}");
        }
        assert!(
            read("trainable = true\n")
                .unwrap_err()
                .contains("trainable = \"all\"")
        );
    }
}
