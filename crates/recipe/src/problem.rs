//! What can be wrong with a recipe.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use crate::foreign::Foreign;

/// Why a recipe could not be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// The file could not be read.
    #[error("cannot read the recipe {}", path.display())]
    Read {
        /// The recipe file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file of another language, by its name.
    #[error("{} is {language}, and a recipe is TOML", path.display())]
    Language {
        /// The file.
        path: PathBuf,
        /// What it is.
        language: &'static str,
    },
    /// The recipe was read and is wrong; all problems are listed.
    #[error("{}", describe(path, problems))]
    Invalid {
        /// The recipe file.
        path: PathBuf,
        /// Everything that is wrong, in the order of the file.
        problems: Vec<Problem>,
    },
    /// The resolved recipe cannot be written as TOML.
    #[error("cannot write the recipe as TOML; is one of its paths not UTF-8?")]
    Encode {
        /// What the TOML writer said.
        source: toml::ser::Error,
    },
}

fn describe(path: &std::path::Path, problems: &[Problem]) -> String {
    let count = match problems.len() {
        1 => "one problem".to_owned(),
        n => format!("{n} problems"),
    };
    let list: String = problems
        .iter()
        .map(|problem| format!("\n  {problem}"))
        .collect();
    format!("{count} in the recipe {}:{list}", path.display())
}

/// One problem of a recipe, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the problem stands.
    pub place: Place,
    /// What it is.
    pub kind: ProblemKind,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Line(line) => write!(f, "line {line}: {}", self.kind),
            Place::Override(text) => write!(f, "--set {text}: {}", self.kind),
            Place::Recipe => self.kind.fmt(f),
        }
    }
}

/// Where a value or a problem stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the recipe file, counted from 1.
    Line(usize),
    /// A `section.key=value` given beside the file.
    Override(String),
    /// The recipe as a whole: something is missing.
    Recipe,
}

/// What is wrong, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProblemKind {
    /// The file is not TOML.
    #[error("not valid TOML: {message}")]
    Syntax {
        /// What the TOML parser said.
        message: String,
    },
    /// An override is not of the form `section.key=value`.
    #[error("an override is written section.key=value, for instance train.learning_rate=1e-4")]
    Override,
    /// A section that no recipe has.
    #[error("unknown section `[{section}]`{}", nearest.map_or(String::new(), |n| format!("; did you mean `[{n}]`?")))]
    UnknownSection {
        /// The section as written.
        section: String,
        /// The valid section nearest to it.
        nearest: Option<&'static str>,
    },
    /// A key that no recipe has.
    #[error("unknown key `{key}`{}", nearest.as_ref().map_or(String::new(), |n| format!("; did you mean `{n}`?")))]
    UnknownKey {
        /// The key as written.
        key: String,
        /// The valid key nearest to it.
        nearest: Option<String>,
    },
    /// A key that another trainer has.
    #[error("unknown key `{key}`; {}", said(*foreign, instead.as_deref()))]
    ForeignKey {
        /// The key as written.
        key: String,
        /// What it stands for here.
        foreign: Foreign,
        /// What to write instead, where its value has a counterpart or is refused by name.
        instead: Option<String>,
    },
    /// A section was given a value.
    #[error(
        "`{key}` is a section: write `[{key}]` on its own line and its keys below{}",
        example(key)
    )]
    Section {
        /// The section.
        key: String,
    },
    /// A key without a default is not given.
    #[error("`{key}` is missing: {meaning} For instance `{key} = {example}`")]
    Missing {
        /// The key.
        key: String,
        /// What the key means.
        meaning: &'static str,
        /// A value for it.
        example: &'static str,
    },
    /// A value of the wrong type or out of range.
    #[error("`{key}` takes {expected}, not {actual}")]
    Value {
        /// The key.
        key: String,
        /// What it takes.
        expected: &'static str,
        /// What was written.
        actual: String,
    },
    /// A path that leads to nothing.
    #[error("`{key}` is a path, and {}", no_path(path, written))]
    NoSuchPath {
        /// The key.
        key: String,
        /// What was written.
        written: String,
        /// Where that is.
        path: PathBuf,
    },
    /// An adapter that cannot be gone on from.
    #[error("`{key}`: {message}")]
    Adapter {
        /// The key.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A key that says otherwise than the adapter that is gone on from.
    #[error(
        "`{key} = {actual}`, but the adapter {} has {has}; its settings are taken over: take the key out",
        path.display()
    )]
    OtherThanAdapter {
        /// The key.
        key: String,
        /// What the recipe says.
        actual: String,
        /// What the adapter has.
        has: String,
        /// The adapter.
        path: PathBuf,
    },
    /// A name that is not one of the names a key takes.
    #[error("`{key}` takes {}, not {actual}{}", names(expected), nearest.as_ref().map_or(String::new(), |n| format!("; did you mean \"{n}\"?")))]
    Name {
        /// The key.
        key: String,
        /// The names it takes.
        expected: &'static [&'static str],
        /// What was written.
        actual: String,
        /// The name nearest to it.
        nearest: Option<String>,
    },
    /// A value that means something, but not to this version.
    #[error("`{key} = {actual}` is not supported: {instead}")]
    Unsupported {
        /// The key.
        key: String,
        /// What was written.
        actual: String,
        /// Why, and what to write instead.
        instead: &'static str,
    },
    /// Two keys that exclude each other.
    #[error("`{key}` does not go with {other}: {instead}")]
    Conflict {
        /// The key that is in the way.
        key: String,
        /// What it does not go with.
        other: String,
        /// What to write instead.
        instead: &'static str,
    },
}

fn no_path(path: &std::path::Path, written: &str) -> String {
    match (written.strip_prefix('~'), std::env::home_dir()) {
        (Some(rest), Some(home)) => {
            let whole = home.join(rest.trim_start_matches('/'));
            format!(
                "`~` is not expanded in a recipe: write the whole path, {}",
                whole.display()
            )
        }
        (Some(_), None) => "`~` is not expanded in a recipe: write the whole path".to_owned(),
        (None, _) => format!("{} does not exist", path.display()),
    }
}

/// What another trainer's name stands for here.
fn said(foreign: Foreign, instead: Option<&str>) -> String {
    match (foreign, instead) {
        (Foreign::Key(path) | Foreign::Like(path, _), Some(instead)) => {
            format!("here it is `{path}`: {instead}")
        }
        (Foreign::Key(path), None) => format!("here it is `{path}`"),
        (Foreign::Like(path, how), None) => format!("here it is `{path}`: {how}"),
        (Foreign::Always(why), _) => format!("always so here: {why}"),
        (Foreign::Command(what), _) => format!("not a key of a recipe: {what}"),
        (Foreign::NotYet(what), _) => format!("not supported yet: {what}"),
    }
}

fn example(section: &str) -> String {
    let first = crate::keys::KEYS
        .iter()
        .find(|key| key.section() == section);
    first.map_or(String::new(), |key| {
        format!(", for instance `{} = {}`", key.name(), key.example)
    })
}

fn names(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.as_slice() {
        [] => "nothing".to_owned(),
        [only] => format!("only {only}"),
        [init @ .., last] => format!("{} or {last}", init.join(", ")),
    }
}
