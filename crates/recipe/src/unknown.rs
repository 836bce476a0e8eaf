//! What to say of a key or a name that no recipe has.

use toml::de::DeValue;

use crate::foreign::{FOREIGN, Foreign, SWITCHES};
use crate::keys::{KEYS, SCHEDULER, SCHEDULER_OPTIONS, SECTIONS, find};
use crate::problem::ProblemKind;
use crate::{Recipe, support};

/// What a name of another trainer stands for here.
#[must_use]
pub fn foreign(unknown: &str) -> Option<Foreign> {
    let unknown = normal(unknown);
    let name = last(&unknown);
    // The options of a schedule are a world of their own.
    let option = unknown.strip_prefix(SCHEDULER);
    if option.is_some_and(|option| option.starts_with('.')) {
        return None;
    }
    listed(&unknown)
        .or_else(|| covering(&unknown))
        .or_else(|| listed(name).filter(|_| own(name).is_none()))
}

/// The valid key that an unknown one most likely stands for: the same name in its own section, the name that
/// another trainer has for it, or one that a slip of the keys makes of it.
#[must_use]
pub fn nearest(unknown: &str) -> Option<String> {
    let unknown = normal(unknown);
    match foreign(&unknown) {
        Some(Foreign::Key(path) | Foreign::Like(path, _)) => Some(path.to_owned()),
        Some(_) => None,
        None => own(last(&unknown))
            .map(str::to_owned)
            .or_else(|| misspelt(&unknown)),
    }
}

/// The problem with a key that nobody read; `text` is its value as written.
pub(crate) fn problem(key: String, value: &DeValue<'_>, text: &str) -> ProblemKind {
    if SECTIONS.contains(&key.as_str()) {
        return ProblemKind::Section { key };
    }
    if let Some(foreign) = foreign(&key) {
        let instead = match foreign {
            Foreign::Key(_) | Foreign::Like(..) if switched(&key, value).is_some() => {
                switched(&key, value).map(str::to_owned)
            }
            Foreign::Key(path) => translated(path, value, text),
            // A name may be the same; a number means something else.
            Foreign::Like(path, _) => match value {
                DeValue::String(_) => translated(path, value, text),
                _ => support::refusal(path, value).map(str::to_owned),
            },
            _ => None,
        };
        return ProblemKind::ForeignKey {
            key,
            foreign,
            instead,
        };
    }
    if matches!(value, DeValue::Table(_)) && find(&key).is_none() {
        let sections = SECTIONS.iter().map(|section| (*section, *section));
        return ProblemKind::UnknownSection {
            nearest: closest(&key, sections),
            section: key,
        };
    }
    ProblemKind::UnknownKey {
        nearest: nearest(&key),
        key,
    }
}

/// Whether a table that is no section of a recipe is to be read key by key, since another trainer has it.
pub(crate) fn is_section_of_others<'a>(
    path: &str,
    mut names: impl Iterator<Item = &'a str>,
) -> bool {
    // torchtune describes the model in a table.
    if find(path).is_some() && path != "model" {
        return false;
    }
    let sections = SECTIONS.iter().map(|section| (*section, ()));
    covering(&format!("{path}.")).is_none()
        && closest(path, sections).is_none()
        && names.any(|name| foreign(&format!("{path}.{name}")).is_some() || own(name).is_some())
}

/// How the same value is written under `path`, where that is a value it takes or one that is refused by name.
fn translated(path: &str, value: &DeValue<'_>, text: &str) -> Option<String> {
    if matches!(value, DeValue::Table(_)) || text.is_empty() {
        return None;
    }
    if let Some(instead) = support::refusal(path, value) {
        return Some(instead.to_owned());
    }
    let assignment = format!("{path} = {text}");
    let smallest = "model = \"org/name\"\n[data]\ntrain = \"rows.jsonl\"\neval = 0.1\n";
    let read = Recipe::from_toml(
        smallest,
        std::path::Path::new("/"),
        std::slice::from_ref(&assignment),
    );
    read.is_ok().then(|| format!("write `{assignment}`"))
}

/// What to write for a switch that is on or off.
fn switched(key: &str, value: &DeValue<'_>) -> Option<&'static str> {
    let key = normal(key);
    let known = |names: &str| names.split_whitespace().any(|known| known == last(&key));
    let (_, on, off) = SWITCHES.iter().find(|(names, ..)| known(names))?;
    match value {
        DeValue::Boolean(true) => Some(on),
        DeValue::Boolean(false) => Some(off),
        _ => None,
    }
}

/// The meaning of exactly this name.
fn listed(name: &str) -> Option<Foreign> {
    let entry = FOREIGN
        .iter()
        .find(|(_, names)| names.split_whitespace().any(|known| known == name));
    entry.map(|(meaning, _)| *meaning)
}

/// The meaning of a section of another trainer that covers all its keys.
fn covering(unknown: &str) -> Option<Foreign> {
    let (section, _) = unknown.split_once('.')?;
    if SECTIONS.contains(&section) {
        return None;
    }
    listed(section).filter(|meaning| !matches!(meaning, Foreign::Key(_) | Foreign::Like(..)))
}

/// The path of the key of that name.
fn own(name: &str) -> Option<&'static str> {
    KEYS.iter()
        .find(|key| key.name() == name)
        .map(|key| key.path)
}

/// As Python spells names: flags have dashes.
fn normal(name: &str) -> String {
    name.trim_start_matches('-').replace('-', "_")
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// A key of the same section that differs by a slip of the keys, else one of another section.
fn misspelt(unknown: &str) -> Option<String> {
    let (section, name) = unknown.rsplit_once('.').unwrap_or(("", unknown));
    if section == SCHEDULER {
        let options = SCHEDULER_OPTIONS.iter();
        return closest(
            name,
            options.map(|option| (*option, format!("{SCHEDULER}.{option}"))),
        );
    }
    let keys = |same_section: bool| {
        KEYS.iter()
            .filter(move |key| (key.section() == section) == same_section)
            .map(|key| (key.name(), key.path.to_owned()))
    };
    closest(name, keys(true)).or_else(|| closest(name, keys(false)))
}

/// Letters of a name for each slip that is forgiven in it. In a name of fewer letters only their order may be
/// wrong: too much else lies one letter away from it.
const LETTERS_PER_SLIP: usize = 5;
/// A slip more makes another word.
const SLIPS: usize = 3;

/// The second half of the pair whose first half is `unknown` but for a slip of the keys.
pub(crate) fn closest<T>(
    unknown: &str,
    options: impl Iterator<Item = (&'static str, T)>,
) -> Option<T> {
    let sorted = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    let letters = sorted(unknown);
    let forgiven = |name: &str| match letters.len() / LETTERS_PER_SLIP {
        0 => usize::from(letters.len() > 3 && letters == sorted(name)),
        slips => slips.min(SLIPS),
    };
    options
        .map(|(name, proposed)| {
            let slips = strsim::damerau_levenshtein(unknown, name);
            (slips, slips <= forgiven(name), proposed)
        })
        .filter(|(_, near, _)| *near)
        .min_by_key(|(slips, ..)| *slips)
        .map(|(.., proposed)| proposed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names() -> impl Iterator<Item = (&'static str, Foreign)> {
        let entries = FOREIGN.iter();
        entries.flat_map(|(meaning, names)| names.split_whitespace().map(|name| (name, *meaning)))
    }

    #[test]
    fn the_table_is_consistent() {
        let mut seen = BTreeSet::new();
        for (name, meaning) in names() {
            assert!(seen.insert(name), "{name} is there twice");
            assert!(
                find(name).is_none() && own(name).is_none(),
                "{name} is ours"
            );
            assert_eq!(normal(name), name);
            assert_eq!(foreign(name), Some(meaning), "{name}");
            if let Foreign::Key(path) | Foreign::Like(path, _) = meaning {
                assert!(find(path).is_some(), "{name}: {path} is no key");
            }
        }
        assert!(seen.len() > 1000, "{}", seen.len());
    }

    #[test]
    fn no_name_is_taken_for_a_key_of_another_meaning() {
        for (name, meaning) in names() {
            let expected = match meaning {
                Foreign::Key(path) | Foreign::Like(path, _) => Some(path.to_owned()),
                _ => None,
            };
            assert_eq!(nearest(name), expected, "{name}");
            for section in SECTIONS.iter().filter(|_| !name.contains('.')) {
                let inside = format!("{section}.{name}");
                assert_eq!(foreign(&inside), Some(meaning), "{inside}");
            }
        }
    }

    #[test]
    fn a_switch_means_what_its_name_says() {
        for (name, on, off) in [
            ("data.assistant_only_loss", "responses", "everything"),
            ("train.completion_only_loss", "completion", "everything"),
            ("mask_prompt", "responses", "everything"),
            ("train_on_inputs", "everything", "responses"),
            ("dataset.train_on_input", "everything", "responses"),
            ("mask_history", "last_turn", "responses"),
            ("padding_free", "padding-free", "padded"),
            ("disable_gradient_checkpointing", "keep-all", "smart"),
            ("train.fp16", "f16", "take it out"),
            ("train.bf16", "bf16", "take it out"),
            ("group_by_length", "padded", "take it out"),
        ] {
            for (value, expected) in [(true, on), (false, off)] {
                let told = problem(name.to_owned(), &DeValue::Boolean(value), "").to_string();
                assert!(told.contains(expected), "{name} = {value}: {told}");
            }
        }
        for (names, ..) in SWITCHES {
            for name in names.split_whitespace() {
                assert!(
                    matches!(foreign(name), Some(Foreign::Key(_) | Foreign::Like(..))),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn slips_of_the_keys_are_forgiven() {
        for (unknown, meant) in [
            ("train.learning_rat", "train.learning_rate"),
            ("learning_rate", "train.learning_rate"),
            ("--learning-rate", "train.learning_rate"),
            ("lerning_rate", "train.learning_rate"),
            ("train.eval_setps", "train.eval_steps"),
            ("train.max_stops", "train.max_steps"),
            ("lora.target_module", "lora.target_modules"),
            ("sede", "seed"),
            ("modle", "model"),
            ("data.trian", "data.train"),
            (
                "train.lr_scheduler.min_lr_rat",
                "train.lr_scheduler.min_lr_rate",
            ),
        ] {
            assert_eq!(nearest(unknown).as_deref(), Some(meant), "{unknown}");
        }
    }

    #[test]
    fn other_words_are_not_guessed_at() {
        for unknown in [
            "train.lr_scheduler.patience",
            "lora.use_lora2",
            "lora.blas",
            "lora.rang",
            "rll",
            "mode",
            "alphabet",
            "band",
            "data.evict",
            "train.best_steps",
            "output_directory",
        ] {
            assert_eq!(nearest(unknown), None, "{unknown}");
        }
    }
}
