//! Where a quickstart goes: a new directory, or the one of a quickstart that was stopped.

use std::fs;
use std::path::{Path, PathBuf};

use super::QuickstartArgs;
use crate::error::CliError;

/// Directory where none is named.
const STANDARD: &str = "backdraft-quickstart";
/// Directories that are tried where none is named.
const TRIES: usize = 1000;
/// The recipe: a quickstart's first sign.
pub(super) const RECIPE: &str = "recipe.toml";
/// The answers before and after: a quickstart's last file.
pub(super) const ANSWERS: &str = "answers.jsonl";

/// The directory of a quickstart, an absolute path, and what it held before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Nothing.
    New(PathBuf),
    /// The same quickstart, which was stopped.
    Unfinished(PathBuf),
    /// Something that `--force` replaces.
    Replaced(PathBuf),
}

impl Place {
    pub(super) fn directory(&self) -> &Path {
        match self {
            Self::New(path) | Self::Unfinished(path) | Self::Replaced(path) => path,
        }
    }

    /// What the user should know of it.
    pub(super) fn note(&self) -> Option<String> {
        let shown = self.directory().display();
        match self {
            Self::New(path) if path.ends_with(STANDARD) => None,
            Self::New(_) => Some(format!("in {shown} (--output-dir names another directory)")),
            Self::Unfinished(_) => Some(format!("resuming the quickstart in {shown}")),
            Self::Replaced(_) => Some(format!("replacing the quickstart in {shown}")),
        }
    }
}

/// Finds it; `recipe` is the text of this quickstart's recipe in a directory.
///
/// A quickstart with the same recipe that has not finished is resumed. Else an empty or new directory is taken: the
/// one that is named, or the first of the standard names that is free.
pub(super) fn find(
    args: &QuickstartArgs,
    recipe: impl Fn(&Path) -> String,
) -> Result<Place, CliError> {
    let absolute = |path: &Path| {
        std::path::absolute(path)
            .map_err(|error| CliError::user("cannot find the working directory").because(error))
    };
    if let Some(named) = &args.output_dir {
        let directory = absolute(named)?;
        return look(&directory, args.force, &recipe).ok_or_else(|| taken(&directory, args.force));
    }
    for number in 1..=TRIES {
        let name = match number {
            1 => STANDARD.to_owned(),
            number => format!("{STANDARD}-{number}"),
        };
        if let Some(place) = look(&absolute(Path::new(&name))?, args.force, &recipe) {
            return Ok(place);
        }
    }
    Err(taken(&absolute(Path::new(STANDARD))?, args.force))
}

/// What a directory is to this quickstart; `None` where it is taken.
fn look(directory: &Path, force: bool, recipe: impl Fn(&Path) -> String) -> Option<Place> {
    let here = directory.to_owned();
    let empty = match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => fs::symlink_metadata(directory).is_err(),
    };
    if empty {
        return Some(Place::New(here));
    }
    if force {
        return users_file(directory)
            .is_none()
            .then_some(Place::Replaced(here));
    }
    let same =
        fs::read_to_string(directory.join(RECIPE)).is_ok_and(|text| text == recipe(directory));
    (same && !directory.join(ANSWERS).exists()).then_some(Place::Unfinished(here))
}

/// What a quickstart would write over where none has been: its recipe names the command that made it.
fn users_file(directory: &Path) -> Option<PathBuf> {
    let is_ours = fs::read_to_string(directory.join(RECIPE))
        .is_ok_and(|text| text.starts_with("# backdraft train "));
    let named = [RECIPE, super::TRAIN, super::TEST, ANSWERS, super::RUN];
    let mut held = named.iter().map(|name| directory.join(name));
    held.find(|path| !is_ours && fs::symlink_metadata(path).is_ok())
}

fn taken(directory: &Path, force: bool) -> CliError {
    let shown = directory.display();
    if let Some(file) = users_file(directory) {
        let what = match force {
            true => format!(
                "{} was not made by quickstart and is not replaced",
                file.display()
            ),
            false => format!("{shown} is not empty"),
        };
        return CliError::user(what).hint("choose another --output-dir");
    }
    let what = match directory.join(ANSWERS).exists() {
        true => format!("{shown} holds a quickstart that has finished"),
        false => format!("{shown} is not empty"),
    };
    CliError::user(what)
        .hint("choose another --output-dir, or add --force to replace the quickstart in this one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::DeviceArgs;
    use crate::error::Look;

    fn args(output_dir: Option<PathBuf>, force: bool) -> QuickstartArgs {
        QuickstartArgs {
            output_dir,
            model: None,
            max_steps: None,
            seed: 42,
            force,
            plain: false,
            device: DeviceArgs::default(),
        }
    }

    #[test]
    fn a_stopped_one_is_resumed_and_a_finished_one_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("trial");
        let find = |force, recipe: &str| {
            find(&args(Some(directory.clone()), force), |_| recipe.to_owned())
        };
        assert_eq!(find(false, "a").unwrap(), Place::New(directory.clone()));
        fs::create_dir(&directory).unwrap();
        assert_eq!(find(false, "a").unwrap(), Place::New(directory.clone()));
        let recipe = "# backdraft train a\n";
        fs::write(directory.join(RECIPE), recipe).unwrap();
        assert_eq!(
            find(false, recipe).unwrap(),
            Place::Unfinished(directory.clone())
        );
        // Other flags make another quickstart.
        let said = find(false, "b").unwrap_err().render(Look::Plain);
        assert!(
            said.contains("is not empty") && said.contains("--output-dir"),
            "{said}"
        );
        fs::write(directory.join(ANSWERS), "").unwrap();
        let said = find(false, recipe).unwrap_err().render(Look::Plain);
        assert!(
            said.contains("has finished") && said.contains("--output-dir"),
            "{said}"
        );
        assert_eq!(find(true, "b").unwrap(), Place::Replaced(directory.clone()));
    }

    #[test]
    fn what_no_quickstart_made_is_not_replaced() {
        for name in [
            "train.jsonl",
            "test.jsonl",
            "recipe.toml",
            "answers.jsonl",
            "run/adapter",
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "mine").unwrap();
            let asked = args(Some(root.path().to_owned()), true);
            let said = find(&asked, |_| String::new())
                .unwrap_err()
                .render(Look::Plain);
            assert!(
                said.contains("was not made by quickstart"),
                "{name}: {said}"
            );
            assert!(!said.contains("--force"), "{name}: {said}");
        }
        // Beside something else a quickstart has room.
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("notes.md"), "mine").unwrap();
        let asked = args(Some(root.path().to_owned()), true);
        let place = find(&asked, |_| String::new()).unwrap();
        assert_eq!(place, Place::Replaced(root.path().to_owned()));
    }

    #[test]
    fn a_file_of_that_name_is_no_place() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("trial");
        fs::write(&file, "mine").unwrap();
        assert!(find(&args(Some(file), false), |_| String::new()).is_err());
    }
}
