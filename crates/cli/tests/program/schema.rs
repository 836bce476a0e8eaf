//! `docs/json.md`, read as a schema, and what lines must be to fit it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

const PAGE: &str = include_str!("../../../../docs/json.md");

/// A key's type as the page writes it, and whether it may be absent.
#[derive(Debug)]
struct Key {
    kind: String,
    optional: bool,
}

/// The keys of each event and object.
#[derive(Debug)]
pub(crate) struct Schema {
    events: BTreeMap<String, Table>,
    objects: BTreeMap<String, Table>,
    seen: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Table {
    keys: BTreeMap<String, Key>,
    /// Other keys may follow.
    open: bool,
}

impl Schema {
    pub(crate) fn of_the_page() -> Self {
        let (mut events, mut objects) = (BTreeMap::new(), BTreeMap::new());
        for section in PAGE.split("\n### ").skip(1) {
            let (title, body) = section.split_once('\n').unwrap();
            let table = table(body);
            match title.strip_prefix("Object ") {
                Some(name) => objects.insert(unquoted(name), table),
                None => events.insert(unquoted(title), table),
            };
        }
        assert!(
            events.len() > 20 && objects.len() > 3,
            "the page was not understood"
        );
        Self {
            events,
            objects,
            seen: BTreeSet::new(),
        }
    }

    /// Every line of `text` is a line of the page.
    #[track_caller]
    pub(crate) fn check(&mut self, text: &str) {
        for line in text.lines() {
            let value: Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if let Err(problem) = self.fits(&value) {
                panic!("{problem}\n{line}");
            }
            let event = value["event"].as_str().unwrap();
            self.seen.insert(event.to_owned());
        }
    }

    /// Events of the page that no checked line had.
    pub(crate) fn unseen(&self) -> Vec<&str> {
        let unseen = self
            .events
            .keys()
            .filter(|event| !self.seen.contains(*event));
        unseen.map(String::as_str).collect()
    }

    fn fits(&self, line: &Value) -> Result<(), String> {
        let object = line.as_object().ok_or("not an object")?;
        let first: Vec<&String> = object.keys().take(2).collect();
        if first != ["event", "schema_version"] {
            return Err(format!("begins with {first:?}"));
        }
        if line["schema_version"] != 1 {
            return Err("another schema_version".to_owned());
        }
        let event = line["event"].as_str().ok_or("event is no string")?;
        let table = self
            .events
            .get(event)
            .ok_or(format!("event `{event}` is not on the page"))?;
        let keys = object.iter().skip(2);
        self.keys_fit(event, table, keys)
    }

    fn keys_fit<'a>(
        &self,
        name: &str,
        table: &Table,
        keys: impl Iterator<Item = (&'a String, &'a Value)>,
    ) -> Result<(), String> {
        let mut found = BTreeSet::new();
        for (key, value) in keys {
            found.insert(key.as_str());
            match table.keys.get(key) {
                Some(expected) if !self.is(value, &expected.kind) => {
                    return Err(format!("`{name}.{key}` is not {}: {value}", expected.kind));
                }
                None if !table.open => return Err(format!("`{name}.{key}` is not on the page")),
                _ => {}
            }
        }
        let missing = table
            .keys
            .iter()
            .find(|(key, expected)| !expected.optional && !found.contains(key.as_str()));
        missing.map_or(Ok(()), |(key, _)| Err(format!("`{name}.{key}` is missing")))
    }

    fn is(&self, value: &Value, kind: &str) -> bool {
        kind.split(" or ").any(|kind| match kind {
            "string" => value.is_string(),
            "integer" => value.is_u64() || value.is_i64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "object" => value.is_object(),
            "list" => value.is_array(),
            other => match other.strip_prefix("list of ") {
                Some(kind) => value
                    .as_array()
                    .is_some_and(|all| all.iter().all(|item| self.is(item, kind))),
                None => {
                    let table = self
                        .objects
                        .get(other)
                        .unwrap_or_else(|| panic!("type `{other}` is not on the page"));
                    let keys = value.as_object();
                    keys.is_some_and(|keys| self.keys_fit(other, table, keys.iter()).is_ok())
                }
            },
        })
    }
}

/// The rows of the first table.
fn table(body: &str) -> Table {
    let mut table = Table::default();
    for row in body.lines().filter(|line| line.starts_with("| ")).skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        if cells[0] == "…" {
            table.open = true;
            continue;
        }
        let kind = cells[1].trim_end_matches(" (optional)");
        let key = Key {
            kind: kind.to_owned(),
            optional: kind != cells[1],
        };
        table.keys.insert(unquoted(cells[0]), key);
    }
    table
}

fn unquoted(text: &str) -> String {
    text.trim().trim_matches('`').to_owned()
}
