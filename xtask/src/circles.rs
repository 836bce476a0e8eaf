//! Files of a crate import one another in one direction, so that each can be read after what it uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates that are not looked at: `cli`'s commands share one list of flags, which names them all; `jinja` is an
/// interpreter, whose values are made of what computes on them.
const APART: [&str; 2] = ["cli", "jinja"];

/// Circles that stay: each is one thing in several files.
const CIRCLES: [(&str, &[&str]); 14] = [
    // The order of ops, the part of it that is a DeltaNet, and the trait of who executes them.
    ("arch", &["delta_net", "layer", "ops"]),
    // A family describes its part of the model that it is a field of.
    ("arch", &["config", "families", "spec"]),
    // Rows that cannot be used, as the pipeline finds and lists them.
    ("data", &["broken", "pipeline"]),
    // A file, the stream of its bytes, and its first bytes, which say how to read it.
    ("data", &["source/file", "source/head", "source/stream"]),
    // The reader of rows dispatches on the kind of file; those of each kind give its type.
    (
        "data",
        &[
            "source/csv_rows",
            "source/parquet_rows",
            "source/parquet_schema",
            "source/rows",
        ],
    ),
    // An error enum wraps the errors of parts that use the crate's result.
    (
        "formats",
        &[
            "error",
            "json",
            "mapped",
            "peft_config",
            "peft_tokens",
            "safetensors_file",
        ],
    ),
    ("formats", &["gguf/error", "gguf/reader", "gguf/value"]),
    // The tokenizer dispatches on its kind; each kind uses the vocabulary.
    (
        "formats",
        &["gguf/bpe", "gguf/sentencepiece", "gguf/tokenizer"],
    ),
    // A curve is a shape with noise, whose size follows the shape.
    (
        "journal",
        &["diagnosis/corpus/noise", "diagnosis/corpus/shape"],
    ),
    // A line of the records is a report; who resumes is told the records so far.
    ("journal", &["records", "report"]),
    // The peak of a step and the pages that it takes.
    ("plan", &["pages", "predict"]),
    // A layer run on sizes, and its shapes.
    ("plan", &["size_ops", "tensors"]),
    // A weight may be one that is streamed, which is another weight while it is in its slot.
    ("quant", &["streamed", "weight"]),
    // A folder of values and the cases in it.
    ("testkit", &["folder", "golden"]),
];

#[test]
fn files_of_a_crate_import_in_one_direction() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(crates).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !APART.contains(&name.as_str()) {
            let circles = circles(&imports(&modules(&path.join("src"))));
            found.extend(circles.into_iter().map(|circle| (name.clone(), circle)));
        }
    }
    let listed = CIRCLES.map(|(name, files)| {
        let files: Vec<String> = files.iter().map(ToString::to_string).collect();
        (name.to_owned(), files)
    });
    assert_eq!(found, BTreeSet::from(listed), "circles of files, by crate");
}

/// A file by the path of its module, such as `source/rows`, and its text without tests.
type Modules = BTreeMap<String, String>;

/// The files below `source` that are built without `cfg(test)`.
fn modules(source: &Path) -> Modules {
    let mut files = Vec::new();
    walk(source, &mut files);
    let mut modules = Modules::new();
    let mut tests = BTreeSet::new();
    for file in files {
        let relative = file.strip_prefix(source).unwrap().with_extension("");
        let name = relative.to_string_lossy().replace('\\', "/");
        let name = name.strip_suffix("/mod").unwrap_or(&name).to_owned();
        let name = match name.as_str() {
            "lib" | "main" => String::new(),
            _ => name,
        };
        let text = without_tests(&fs::read_to_string(&file).unwrap(), &name, &mut tests);
        modules.insert(name, text);
    }
    let is_test = |name: &str| {
        let mut whole = tests.iter();
        whole.any(|test: &String| name == test || name.starts_with(&format!("{test}/")))
    };
    modules.retain(|name, _| !is_test(name));
    modules
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            files.push(path);
        }
    }
}

/// The text up to its inline module of tests; modules of tests in files of their own are noted.
fn without_tests(text: &str, module: &str, tests: &mut BTreeSet<String>) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line == "#[cfg(test)]"
            && let Some(name) = lines.peek().and_then(|line| module_name(line))
        {
            if lines.peek().is_some_and(|line| line.ends_with('{')) {
                break;
            }
            tests.insert(join(module, &name));
        }
        kept.push_str(line);
        kept.push('\n');
    }
    kept
}

/// The name that `mod name;` or `pub mod name {` declares.
fn module_name(line: &str) -> Option<String> {
    let (before, name) = line.split_once("mod ")?;
    let declares = before.is_empty() || before.starts_with("pub");
    declares.then(|| name.trim_end_matches([';', '{', ' ']).to_owned())
}

fn join(module: &str, name: &str) -> String {
    match module {
        "" => name.to_owned(),
        _ => format!("{module}/{name}"),
    }
}

/// Which files each file imports from; a module and what lies below it count as one.
fn imports(modules: &Modules) -> BTreeMap<&str, BTreeSet<&str>> {
    let below = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}/"));
    let mut imports = BTreeMap::new();
    for (module, text) in modules {
        let paths = uses(text)
            .into_iter()
            .filter_map(|path| absolute(module, &path));
        let files = paths.filter_map(|path| file_of(&path, modules));
        let others = files.filter(|&to| {
            !to.is_empty()
                && !module.is_empty()
                && to != module
                && !below(to, module)
                && !below(module, to)
        });
        imports.insert(module.as_str(), others.collect());
    }
    imports
}

/// Every path that the text imports from its own crate, one for each leaf of its trees.
fn uses(text: &str) -> Vec<String> {
    let mut paths = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("use ") {
        let line = rest[..at].rsplit('\n').next().unwrap_or_default();
        rest = &rest[at + 4..];
        let begins = line.trim().is_empty() || line.trim().starts_with("pub");
        let own = ["crate::", "super::", "self::"];
        if begins
            && own.iter().any(|root| rest.starts_with(root))
            && let Some((tree, _)) = rest.split_once(';')
        {
            // A name given with `as` hides nothing then.
            let tree = tree.replace(" as ", "::");
            let tree: String = tree.split_whitespace().collect();
            leaves("", &tree, &mut paths);
        }
    }
    paths
}

/// The leaves of `a::{b, c::{d}}` under `prefix`.
fn leaves(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let (mut depth, mut start) = (0, 0);
    let mut parts = Vec::new();
    for (at, letter) in tree.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        match part.split_once('{') {
            Some((head, inner)) => {
                let inner = inner.strip_suffix('}').unwrap_or(inner);
                leaves(&format!("{prefix}{head}"), inner, paths);
            }
            None => paths.push(format!("{prefix}{part}")),
        }
    }
}

/// The path from the crate's root, `/` between names.
fn absolute(module: &str, path: &str) -> Option<String> {
    let mut base: Vec<&str> = module.split('/').filter(|name| !name.is_empty()).collect();
    let mut names = path.split("::").peekable();
    match names.next()? {
        "crate" => base.clear(),
        "super" => {
            base.pop();
        }
        _ => {}
    }
    while names.next_if_eq(&"super").is_some() {
        base.pop();
    }
    base.extend(names);
    Some(base.join("/"))
}

/// The file that holds what a path leads to.
fn file_of<'a>(path: &str, modules: &'a Modules) -> Option<&'a str> {
    let mut path = path;
    loop {
        if let Some((name, _)) = modules.get_key_value(path) {
            return Some(name);
        }
        path = path.rsplit_once('/').map_or("", |(outer, _)| outer);
    }
}

/// Files that reach one another, in sets.
fn circles(imports: &BTreeMap<&str, BTreeSet<&str>>) -> BTreeSet<Vec<String>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> = imports
        .keys()
        .map(|&from| {
            let mut seen = BTreeSet::new();
            let mut next = vec![from];
            while let Some(file) = next.pop() {
                let new = imports[file].iter().filter(|&&to| seen.insert(to));
                next.extend(new);
            }
            (from, seen)
        })
        .collect();
    let together = |&from: &&str| {
        let mutual = reached[from]
            .iter()
            .filter(|&&to| reached[to].contains(from));
        let circle: Vec<String> = mutual.map(ToString::to_string).collect();
        (circle.len() > 1).then_some(circle)
    };
    reached.keys().filter_map(together).collect()
}

#[test]
fn a_circle_is_found_by_way_of_trees_and_parents() {
    let mut tests = BTreeSet::new();
    let text = "#[cfg(test)]\nmod odd;\nuse crate::b::{self, c::{D, E}};\n#[cfg(test)]\nmod tests {\nuse crate::z::Z;\n}\n";
    let kept = without_tests(text, "a", &mut tests);
    assert_eq!(tests, BTreeSet::from(["a/odd".to_owned()]));
    assert_eq!(
        uses(&kept),
        ["crate::b::self", "crate::b::c::D", "crate::b::c::E"]
    );
    let modules = BTreeMap::from([
        ("a".to_owned(), kept),
        ("b".to_owned(), "pub use self::c::D;\n".to_owned()),
        ("b/c".to_owned(), "use super::super::a::A;\n".to_owned()),
        ("d".to_owned(), "use super::a as other;\n".to_owned()),
    ]);
    let expected = vec!["a".to_owned(), "b/c".to_owned()];
    assert_eq!(circles(&imports(&modules)), BTreeSet::from([expected]));
}
