//! A run's recipe as everybody may read it: without paths of this machine and without secrets.

use std::path::Path;

use toml::{Table, Value};

use super::token::looks_like_token;

/// Keys that say where something lies here, and nothing about the training.
const LOCAL: [&str; 1] = ["output_dir"];
/// Text of the user's that is no path, whatever it begins with.
const TEXTS: [&str; 1] = ["prompt_template"];
const SECRETS: [&str; 4] = ["token", "secret", "password", "api_key"];

/// The recipe, or nothing where it is none.
pub(super) fn public(recipe: &str) -> Option<String> {
    let mut table: Table = recipe.parse().ok()?;
    clean(&mut table);
    toml::to_string(&table).ok().filter(|text| !text.is_empty())
}

fn clean(table: &mut Table) {
    table.retain(|key, _| {
        let lower = key.to_ascii_lowercase();
        !LOCAL.contains(&key) && !SECRETS.contains(&&*lower)
    });
    for (key, value) in table.iter_mut() {
        if !TEXTS.contains(&key.as_str()) {
            clean_value(value);
        }
    }
}

fn clean_value(value: &mut Value) {
    match value {
        Value::String(text) if looks_like_token(text.as_bytes()) => *text = "(hidden)".to_owned(),
        Value::String(text) => *text = without_folders(text).to_owned(),
        Value::Array(values) => values.iter_mut().for_each(clean_value),
        Value::Table(table) => clean(table),
        _ => {}
    }
}

/// The last part of a path of this machine; hub ids and other text as they are.
pub(super) fn without_folders(text: &str) -> &str {
    let windows = text
        .get(1..3)
        .is_some_and(|colon| colon == ":\\" || colon == ":/");
    let local = Path::new(text).is_absolute()
        || windows
        || text.starts_with(['~', '\\'])
        || text.starts_with("./")
        || text.starts_with("../");
    if !local || text.contains('\n') {
        return text;
    }
    let mut parts = text.split(['/', '\\']).filter(|part| !part.is_empty());
    parts.next_back().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_this_machine_is_left() {
        let recipe = r#"
            model = "/home/me/models/base.gguf"
            output_dir = "/home/me/outputs"
            seed = 42
            [data]
            train = ["/home/me/rows.jsonl", "org/rows:train", { path = "C:\\rows\\more.csv", weight = 0.5 }]
            prompt_template = "/ask {instruction}"
            chat_template = "~/t.jinja"
            [other]
            token = "x"
            note = "hf_aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3aB3"
        "#;
        let expected = r#"
            model = "base.gguf"
            seed = 42
            [data]
            train = ["rows.jsonl", "org/rows:train", { path = "more.csv", weight = 0.5 }]
            prompt_template = "/ask {instruction}"
            chat_template = "t.jinja"
            [other]
            note = "(hidden)"
        "#;
        let public_table: Table = public(recipe).unwrap().parse().unwrap();
        assert_eq!(public_table, expected.parse::<Table>().unwrap());
        assert_eq!(public("model = "), None);
    }
}
