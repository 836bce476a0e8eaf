//! Files that name the base by a path of this machine, which means nothing elsewhere and is nobody else's business.

use std::fs;
use std::path::Path;

use backdraft_formats::hub::push::PushFile;
use serde_json::{Map, Value};

use super::files::Choice;
use crate::provenance::is_hub_id;

/// Files and the key under which they name the base.
const NAMES: [(&str, &str); 4] = [
    ("adapter_config.json", "base_model_name_or_path"),
    ("trained_with.json", "model"),
    ("trained_over.json", "model"),
    ("config.json", "_name_or_path"),
];

/// A file that names the base by a path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) file: &'static str,
    /// What it says.
    pub(super) path: String,
}

/// Puts the base's hub id in the place of paths; without one only says where they are.
pub(super) fn rename(choice: &mut Choice, directory: &Path, base: Option<&str>) -> Vec<Named> {
    let mut named = Vec::new();
    for (name, key) in NAMES {
        let Some(file) = choice.files.iter_mut().find(|file| file.name == name) else {
            continue;
        };
        let Some(mut object) = object(&directory.join(name)) else {
            continue;
        };
        let Some(path) = object.get(key).and_then(Value::as_str).map(str::to_owned) else {
            continue;
        };
        if path.is_empty() || is_hub_id(&path) {
            continue;
        }
        if let Some(base) = base {
            object.insert(key.to_owned(), base.into());
            let text = format!("{:#}\n", Value::Object(object));
            *file = PushFile::of_bytes(name, text.into_bytes());
        }
        named.push(Named { file: name, path });
    }
    named
}

fn object(path: &Path) -> Option<Map<String, Value>> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// What an adapter's or a model's files say that the base is.
pub(super) fn said(directory: &Path) -> Option<String> {
    NAMES.into_iter().find_map(|(name, key)| {
        let object = object(&directory.join(name))?;
        let said = object.get(key)?.as_str()?;
        (!said.is_empty()).then(|| said.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::super::files::Rules;
    use super::*;

    #[test]
    fn paths_give_way_to_the_id() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(root.path().join(name), text).unwrap();
        write(
            "adapter_config.json",
            r#"{"r": 8, "base_model_name_or_path": "/home/me/model"}"#,
        );
        write(
            "trained_with.json",
            r#"{"model": "org/base", "version": 1}"#,
        );
        let choice = || Choice::of(root.path(), &Rules::default()).unwrap();
        assert_eq!(said(root.path()).as_deref(), Some("/home/me/model"));
        let path = "/home/me/model".to_owned();
        let named = [Named {
            file: "adapter_config.json",
            path,
        }];

        let mut unchanged = choice();
        assert_eq!(rename(&mut unchanged, root.path(), None), named);
        assert_eq!(unchanged.files, choice().files);

        let mut changed = choice();
        assert_eq!(rename(&mut changed, root.path(), Some("org/base")), named);
        let text = "{\n  \"r\": 8,\n  \"base_model_name_or_path\": \"org/base\"\n}\n";
        let expected = PushFile::of_bytes("adapter_config.json", text.into());
        assert_eq!(changed.files[0], expected);
        assert_eq!(changed.files[1], choice().files[1]);
    }
}
