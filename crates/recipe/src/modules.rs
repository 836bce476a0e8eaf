//! Keys that name modules: which ones, and what some of them have of their own.

use std::collections::BTreeSet;

use backdraft_arch::{ModuleNames, ModulePattern, TargetModule, TokenTable};
use serde::{Deserialize, Deserializer};
use toml::de::DeValue;

use crate::raw::Entry;
use crate::reader::{Reader, Value};
use crate::support;

const TARGETS: &str = "lora.target_modules";
const EXCLUDED: &str = "lora.exclude_modules";
const NAMES_OR_PATTERN: &str = r#"a list of names, "all-linear", or a regular expression for whole paths (without look-around), such as '.*\.layers\.[0-3]\..*_proj'"#;

/// A projection or a table of tokens, or the end of the path of one.
#[derive(Debug, Default)]
struct TargetName(String);

impl Value for TargetName {
    const EXPECTED: &'static str = NAMES_OR_PATTERN;
    const NAMES: &'static [&'static str] = TargetModule::NAMES;
}

/// Whether a text is the name of something that can carry an adapter.
fn is_name(text: &str) -> bool {
    text.parse::<TargetModule>().is_ok() || TokenTable::of_name(text).is_some()
}

impl<'de> Deserialize<'de> for TargetName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if !name.contains('.') && TokenTable::of_name(&name).is_none() {
            name.parse::<TargetModule>()
                .map_err(serde::de::Error::custom)?;
        }
        Ok(Self(name))
    }
}

/// `lora.target_modules`.
pub(crate) fn targets(reader: &mut Reader<'_>) -> ModuleNames {
    if let Some(names) = text(reader, TARGETS) {
        return names;
    }
    if !reader.has(TARGETS) {
        return ModuleNames::AllLinear;
    }
    let before = reader.problem_count();
    let names: Vec<TargetName> = reader.list_as(TARGETS, NAMES_OR_PATTERN);
    let names: Vec<String> = names.into_iter().map(|name| name.0).collect();
    let distinct: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    if reader.problem_count() == before && (names.is_empty() || distinct.len() < names.len()) {
        reader.reject(TARGETS, "at least one projection, each once");
    }
    ModuleNames::List(names)
}

/// `lora.exclude_modules`.
pub(crate) fn excluded(reader: &mut Reader<'_>) -> Option<ModuleNames> {
    let expected = "a list of names, or a regular expression for whole paths (without look-around)";
    if !reader.has(EXCLUDED) {
        return None;
    }
    if let Some(names) = text(reader, EXCLUDED) {
        return Some(names);
    }
    let before = reader.problem_count();
    let names: Vec<String> = reader.list_as(EXCLUDED, expected);
    let named = !names.is_empty() && names.iter().all(|name| !name.is_empty());
    if reader.problem_count() == before && !named {
        reader.reject(EXCLUDED, expected);
    }
    Some(ModuleNames::List(names))
}

/// What a text in the place of a list means; `None` where there is no text.
fn text(reader: &mut Reader<'_>, key: &str) -> Option<ModuleNames> {
    let entry = reader.entry(key)?;
    let DeValue::String(text) = entry.value.get_ref() else {
        return None;
    };
    let text = text.to_string();
    let empty = || ModuleNames::List(Vec::new());
    if support::refusal(key, entry.value.get_ref()).is_some() {
        reader.decode::<String>(key, entry, NAMES_OR_PATTERN);
        return Some(empty());
    }
    // The pattern of whole paths that a name alone would be matches nothing.
    let names = ModuleNames::of_text(&text).filter(|_| !is_name(&text) && !text.is_empty());
    if names.is_none() {
        reader.reject(key, NAMES_OR_PATTERN);
    }
    Some(names.unwrap_or_else(empty))
}

/// A table of patterns and numbers, in the order of the file; empty where the key is left out.
pub(crate) fn pattern<T: Value + Copy>(
    reader: &mut Reader<'_>,
    key: &str,
    expected: &'static str,
    valid: impl Fn(&T) -> bool,
) -> ModulePattern<T> {
    let Some(entry) = reader.entry(key) else {
        return ModulePattern::default();
    };
    let DeValue::Table(table) = entry.value.into_inner() else {
        reader.reject(key, expected);
        return ModulePattern::default();
    };
    let mut entries: Vec<_> = table.into_iter().collect();
    // The reader of TOML sorts them by name.
    entries.sort_by_key(|(name, _)| name.span().start);
    let before = reader.problem_count();
    let mut values = Vec::new();
    for (name, value) in entries {
        let entry = Entry {
            value,
            text: entry.text.clone(),
            place: entry.place.clone(),
        };
        let value: T = reader.decode(key, entry, expected);
        if reader.problem_count() == before && !valid(&value) {
            reader.reject(key, expected);
        }
        values.push((name.get_ref().to_string(), value));
    }
    ModulePattern::new(values).unwrap_or_else(|_| {
        reader.reject(key, expected);
        ModulePattern::default()
    })
}
