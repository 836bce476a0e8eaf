//! `[[train.groups]]`: modules whose factors learn at rates of their own.

use backdraft_arch::ModulePattern;
use serde::Serialize;
use toml::de::{DeTable, DeValue};

use crate::problem::{Place, ProblemKind};
use crate::raw::Entry;
use crate::reader::Reader;
use crate::unknown::closest;

/// Modules, and how their factors learn.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupRecipe {
    /// A name, an end of a path or a regular expression for one, as in `lora.rank_pattern`.
    #[serde(rename = "match")]
    pub modules: String,
    /// Highest learning rate, above 0; `None` is that of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// Decoupled weight decay; `None` is that of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// The key.
pub const GROUPS: &str = "train.groups";
const EXPECTED: &str =
    r#"[[train.groups]] tables, each with match = "…" and learning_rate or weight_decay, or both"#;
const MATCH: &str = "a name, an end of a path or a regular expression (without look-around), such as \"q_proj\" or 'layers\\.[0-3]\\..*'";
const RATE: &str = "a number above 0";
const DECAY: &str = "a number, 0 or more";
const NAMES: [&str; 3] = ["match", "learning_rate", "weight_decay"];

pub(crate) fn groups(reader: &mut Reader<'_>) -> Vec<GroupRecipe> {
    let Some(Entry { value, place, .. }) = reader.entry(GROUPS) else {
        return Vec::new();
    };
    let DeValue::Array(items) = value.into_inner() else {
        reader.reject(GROUPS, EXPECTED);
        return Vec::new();
    };
    let mut groups = Vec::new();
    for (i, item) in items.into_iter().enumerate() {
        match item.into_inner() {
            DeValue::Table(table) => groups.push(group(reader, i + 1, table, &place)),
            _ => reader.reject(GROUPS, EXPECTED),
        }
    }
    groups
}

/// Group `number`, counted from 1.
fn group(reader: &mut Reader<'_>, number: usize, table: DeTable<'_>, place: &Place) -> GroupRecipe {
    let mut group = GroupRecipe {
        modules: String::new(),
        learning_rate: None,
        weight_decay: None,
    };
    for (name, value) in table {
        let name = name.into_inner().into_owned();
        let key = format!("{GROUPS}[{number}].{name}");
        let text = match value.get_ref() {
            DeValue::String(text) => format!("\"{text}\""),
            DeValue::Integer(number) => number.as_str().to_owned(),
            DeValue::Float(number) => number.as_str().to_owned(),
            _ => "this".to_owned(),
        };
        let place = place.clone();
        let entry = Entry {
            value,
            text: text.clone(),
            place: place.clone(),
        };
        let before = reader.problem_count();
        let (expected, valid) = match name.as_str() {
            "match" => {
                group.modules = reader.decode(&key, entry, MATCH);
                let compiled = ModulePattern::new([(group.modules.clone(), ())]);
                (MATCH, compiled.is_ok() && !group.modules.is_empty())
            }
            "learning_rate" => {
                let rate: f64 = reader.decode(&key, entry, RATE);
                group.learning_rate = Some(rate);
                (RATE, rate > 0.0 && rate.is_finite())
            }
            "weight_decay" => {
                let decay: f64 = reader.decode(&key, entry, DECAY);
                group.weight_decay = Some(decay);
                (DECAY, decay >= 0.0 && decay.is_finite())
            }
            _ => {
                let names = NAMES.iter().map(|known| (*known, *known));
                let nearest = closest(&name, names);
                let nearest = nearest.map(|near| format!("{GROUPS}[{number}].{near}"));
                reader.report(place, ProblemKind::UnknownKey { key, nearest });
                continue;
            }
        };
        if !valid && reader.problem_count() == before {
            let actual = text;
            let kind = ProblemKind::Value {
                key,
                expected,
                actual,
            };
            reader.report(place, kind);
        }
    }
    let missing = match (&group.modules, group.learning_rate, group.weight_decay) {
        (modules, ..) if modules.is_empty() => Some((
            "match",
            "The modules of the group, as in lora.rank_pattern.",
            "\"q_proj\"",
        )),
        (_, None, None) => Some((
            "learning_rate",
            "The group's learning rate, or its weight_decay: without either it would be as all others.",
            "1e-4",
        )),
        _ => None,
    };
    if let Some((name, meaning, example)) = missing {
        let key = format!("{GROUPS}[{number}].{name}");
        let kind = ProblemKind::Missing {
            key,
            meaning,
            example,
        };
        reader.report_once(place.clone(), kind);
    }
    group
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::Recipe;

    const SMALLEST: &str = "model = \"a/b\"\n[data]\ntrain = \"t.jsonl\"\n";

    fn read(rest: &str) -> Result<Recipe, String> {
        let text = format!("{SMALLEST}{rest}");
        Recipe::from_toml(&text, Path::new("/r"), &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_group_counts_and_a_recipe_comes_back() {
        let recipe = read(
            "[[train.groups]]\nmatch = 'layers\\.[01]\\..*'\nlearning_rate = 1e-5\n\
             [[train.groups]]\nmatch = \"q_proj\"\nweight_decay = 0\nlearning_rate = 1e-3\n",
        )
        .unwrap();
        let rates = recipe.train.group_rates();
        let of = |path: &str| rates.get(path);
        assert_eq!(
            of("model.layers.1.self_attn.q_proj"),
            Some((Some(1e-5), None))
        );
        let second = Some((Some(1e-3), Some(0.0)));
        assert_eq!(of("model.layers.2.self_attn.q_proj"), second);
        assert_eq!(of("model.layers.2.self_attn.k_proj"), None);
        let text = recipe.to_toml().unwrap();
        assert_eq!(Recipe::from_stored(&text, Path::new("/r")).unwrap(), recipe);
        let other = read("").unwrap();
        let differences = other.differences(&recipe).unwrap();
        assert_eq!(differences[0].key, "train.groups");
    }

    #[test]
    fn every_problem_names_its_group_and_line() {
        let found = read(
            "[[train.groups]]\nmatch = \"q_proj\"\nlr = 1\n[[train.groups]]\nmatch = \"(\"\nweight_decay = -1\n",
        )
        .unwrap_err();
        for part in [
            "line 4",
            "train.groups[1].lr",
            "train.groups[1].learning_rate",
            "train.groups[2].match",
            "train.groups[2].weight_decay",
            "a number, 0 or more",
        ] {
            assert!(found.contains(part), "{part}: {found}");
        }
        assert!(
            read("[train]\ngroups = 3\n")
                .unwrap_err()
                .contains("[[train.groups]]")
        );
        let found = read("[[train.groups]]\nlearning_rate = 1\n").unwrap_err();
        assert!(found.contains("train.groups[1].match"), "{found}");
    }
}
