//! Rules of the tree that no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What each crate may use. `ARCHITECTURE.md` draws the same.
const EDGES: [(&str, &[&str]); 17] = [
    ("allocator", &[]),
    ("arch", &[]),
    ("comm", &[]),
    ("kernels", &["arch"]),
    ("formats", &["arch"]),
    ("quant", &["kernels", "arch"]),
    ("lora", &["quant", "kernels", "formats", "arch"]),
    ("model", &["lora", "quant", "kernels", "formats", "arch"]),
    ("jinja", &[]),
    ("data", &["formats", "jinja"]),
    ("plan", &["arch"]),
    ("recipe", &["plan", "data", "formats", "arch"]),
    ("journal", &["recipe", "plan", "data", "formats", "arch"]),
    (
        "train",
        &[
            "model", "lora", "quant", "kernels", "journal", "recipe", "plan", "data", "formats",
            "arch", "comm",
        ],
    ),
    ("serve", &["model", "data"]),
    (
        "cli",
        &[
            "serve",
            "train",
            "model",
            "lora",
            "quant",
            "kernels",
            "journal",
            "recipe",
            "plan",
            "data",
            "formats",
            "arch",
            "allocator",
            "comm",
        ],
    ),
    ("testkit", &["formats", "arch"]),
];

/// The block of `ARCHITECTURE.md` that draws the edges.
#[test]
fn the_drawing_of_crates_is_the_list() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(" ─▶"));
    let drawn: BTreeMap<&str, Vec<&str>> = lines
        .filter(|(from, _)| !from.contains(['`', '─', '.']))
        .map(|(from, to)| (from.trim(), to.split_whitespace().collect()))
        .collect();
    let listed: BTreeMap<&str, Vec<&str>> = EDGES
        .into_iter()
        .map(|(from, to)| (from, to.to_vec()))
        .collect();
    assert_eq!(drawn, listed);
}

fn manifests() -> BTreeMap<String, toml::Table> {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    std::fs::read_dir(&crates)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = std::fs::read_to_string(path.join("Cargo.toml")).unwrap();
            (name, toml::from_str(&text).unwrap())
        })
        .collect()
}

fn ours(manifest: &toml::Table) -> Vec<String> {
    let dependencies = manifest.get("dependencies").and_then(toml::Value::as_table);
    let names = dependencies.into_iter().flat_map(toml::Table::keys);
    names
        .filter_map(|name| name.strip_prefix("backdraft-").map(str::to_owned))
        .collect()
}

#[test]
fn crates_use_what_the_list_says() {
    let listed: BTreeMap<_, _> = EDGES.into_iter().collect();
    let manifests = manifests();
    assert!(manifests.keys().eq(listed.keys()), "crates of the list");
    for (from, manifest) in manifests {
        for to in ours(&manifest) {
            assert!(
                listed[&*from].contains(&&*to),
                "{from} must not depend on {to}"
            );
        }
    }
}

/// What a manifest asks for under these headings.
fn dependencies<'a>(
    manifest: &'a toml::Table,
    headings: &'a [&str],
) -> impl Iterator<Item = &'a str> {
    let tables = headings.iter().filter_map(|name| manifest.get(*name));
    let tables = tables.filter_map(toml::Value::as_table);
    tables.flat_map(toml::Table::keys).map(String::as_str)
}

/// Every crate that the tests of `name` bring, by way of our own crates.
fn brought(name: &str, manifests: &BTreeMap<String, toml::Table>) -> BTreeSet<String> {
    let own: &[&str] = &["dependencies", "dev-dependencies", "build-dependencies"];
    let mut next: Vec<String> = dependencies(&manifests[name], own)
        .map(str::to_owned)
        .collect();
    let mut seen = BTreeSet::new();
    while let Some(found) = next.pop() {
        let inner = found
            .strip_prefix("backdraft-")
            .and_then(|name| manifests.get(name));
        if seen.insert(found.clone())
            && let Some(manifest) = inner
        {
            let below = dependencies(manifest, &["dependencies", "build-dependencies"]);
            next.extend(below.map(str::to_owned));
        }
    }
    seen
}

/// What a recipe may say, a plan and a report are tested without compiling a tensor library.
#[test]
fn recipe_plan_and_journal_bring_no_tensors() {
    let manifests = manifests();
    assert!(brought("train", &manifests).contains("burn"));
    for name in [
        "arch", "comm", "plan", "recipe", "journal", "data", "formats",
    ] {
        for found in brought(name, &manifests) {
            let tensors = ["burn", "cubecl", "backdraft-kernels"];
            let brings = tensors.iter().any(|tensors| found.starts_with(tensors));
            assert!(!brings, "{name} must not bring {found}");
        }
    }
}

/// `allocator` sets options of a C library, `comm` calls Open MPI's, and the program's `main.rs` does what may only be done while it has one thread.
#[test]
fn few_places_allow_unsafe_code() {
    let allowed = ["kernels", "formats", "allocator", "comm"];
    for name in manifests()
        .keys()
        .filter(|name| !allowed.contains(&name.as_str()))
    {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../crates")
            .join(name)
            .join("src");
        for file in walk(&source) {
            let text = std::fs::read_to_string(&file).unwrap();
            let is_main = file.ends_with("cli/src/main.rs");
            assert!(is_main || !text.contains("unsafe {"), "{}", file.display());
        }
    }
}

fn walk(directory: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}
