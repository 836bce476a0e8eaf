//! What a run leaves in its output directory, and how a new one begins there.

use std::fs;
use std::path::{Path, PathBuf};

use backdraft_formats::{FormatError, HfDirWriter, PeftDir};
use backdraft_journal::{records, report_html, run_files, tensorboard};
use backdraft_recipe::Recipe;

use crate::checkpoint;
use crate::remove::{clear_folder, entries, remove_file, remove_if_empty};

/// Names of what a run leaves; the recipe last: while it is there, the directory is known to hold a
/// run.
const PARTS: [&str; 12] = [
    "checkpoints",
    "adapter",
    "model",
    tensorboard::DIRECTORY,
    run_files::SAMPLES,
    run_files::NOTE,
    run_files::SUMMARY,
    report_html::FILE,
    records::FILE,
    run_files::SKIPPED,
    run_files::TRACKER,
    "recipe.toml",
];

/// What an earlier run left in `output_dir`.
pub(crate) fn held(output_dir: &Path) -> Vec<PathBuf> {
    PARTS
        .iter()
        .map(|part| output_dir.join(part))
        .filter(|part| part.exists())
        .collect()
}

/// A recipe in `output_dir` that somebody wrote there, in whose place a run would put its copy. A copy lies beside
/// the run's note, or reads as this program writes recipes: without a comment, every key given.
pub(crate) fn users_recipe(output_dir: &Path) -> Option<PathBuf> {
    let path = output_dir.join("recipe.toml");
    let text = fs::read_to_string(&path).ok()?;
    let is_copy = || {
        let recipe = Recipe::from_stored(&text, output_dir);
        recipe
            .and_then(|recipe| recipe.to_toml())
            .is_ok_and(|copy| copy == text)
    };
    (!output_dir.join(run_files::NOTE).exists() && !is_copy()).then_some(path)
}

/// Removes what runs leave, and nothing else: whatever somebody put beside or between it stays.
///
/// # Errors
/// The system refuses.
pub(crate) fn clear(output_dir: &Path) -> Result<(), FormatError> {
    for part in held(output_dir) {
        let name = part.file_name().unwrap_or_default().to_string_lossy();
        if part.is_symlink() || part.is_file() {
            remove_file(&part)?;
        } else if name == "checkpoints" {
            clear_checkpoints(&part)?;
        } else if name == "adapter" {
            clear_folder(&part, PeftDir::is_ours)?;
        } else if name == "model" {
            clear_folder(&part, HfDirWriter::is_ours)?;
        } else if name == tensorboard::DIRECTORY {
            clear_folder(&part, tensorboard::is_ours)?;
        }
    }
    Ok(())
}

fn clear_checkpoints(directory: &Path) -> Result<(), FormatError> {
    for (path, _) in entries(directory)? {
        if checkpoint::is_one(&path) {
            checkpoint::remove(&path)?;
        }
    }
    remove_if_empty(directory)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(directory: &Path, names: &[&str]) {
        for name in names {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names = Vec::new();
        let mut pending = vec![directory.to_owned()];
        while let Some(folder) = pending.pop() {
            for (path, _) in entries(&folder).unwrap() {
                match path.is_dir() {
                    true => pending.push(path),
                    false => {
                        names.push(path.strip_prefix(directory).unwrap().display().to_string())
                    }
                }
            }
        }
        names.sort();
        names
    }

    const OURS: [&str; 20] = [
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/chat_template.jinja",
        "adapter/trained_over.json",
        "checkpoints/step-000002/adapter/adapter_config.json",
        "checkpoints/step-000002/manifest.json",
        "checkpoints/step-000004.set-aside-2/state.json",
        "checkpoints/step-000004/optimizer.safetensors",
        "checkpoints/step-000006/model/model.safetensors",
        "metrics.jsonl",
        "model/config.json",
        "model/model-00001-of-00002.safetensors",
        "recipe.toml",
        "report.html",
        "run.json",
        "samples.json",
        "skipped_rows.jsonl",
        "summary.json",
        "tensorboard/events.out.tfevents.1700000000.host.1.0",
        "tracker.json",
    ];

    #[test]
    fn nothing_is_left_of_a_run() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &OURS);
        clear(root.path()).unwrap();
        assert!(names(root.path()).is_empty());
        assert!(entries(root.path()).unwrap().is_empty());
    }

    #[test]
    fn what_somebody_put_between_stays() {
        let root = tempfile::tempdir().unwrap();
        let mine = [
            ".git/HEAD",
            "adapter/README.md",
            "adapter/old/adapter_model.safetensors",
            "checkpoints/best/model.safetensors",
            "checkpoints/notes.txt",
            "checkpoints/step-000002/notes.txt",
            "data/recipe.toml",
            "tensorboard/other-run/events.out.tfevents.1",
            "train.jsonl",
        ];
        write(root.path(), &OURS);
        write(root.path(), &mine);
        clear(root.path()).unwrap();
        let mut expected = mine.map(str::to_owned);
        expected[5] = "checkpoints/step-000002.set-aside/notes.txt".to_owned();
        expected.sort();
        assert_eq!(names(root.path()), expected);
        assert!(held(root.path()).iter().all(|part| part.is_dir()));
    }

    #[test]
    fn a_recipe_that_somebody_wrote_is_no_part_of_a_run() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("recipe.toml");
        assert_eq!(users_recipe(root.path()), None);
        let mine =
            "# mine\nmodel = \"org/name\"\noutput_dir = \".\"\n[data]\ntrain = \"train.jsonl\"\n";
        fs::write(&path, mine).unwrap();
        assert_eq!(users_recipe(root.path()), Some(path.clone()));
        // What is no recipe yet is somebody's as well.
        fs::write(&path, "model =").unwrap();
        assert_eq!(users_recipe(root.path()), Some(path.clone()));

        let copy = Recipe::from_toml(mine, root.path(), &[]).unwrap();
        fs::write(&path, copy.to_toml().unwrap()).unwrap();
        assert_eq!(users_recipe(root.path()), None);
        // Copies of other versions have other keys; the note tells whose they are.
        fs::write(&path, mine).unwrap();
        fs::write(root.path().join(run_files::NOTE), "{}").unwrap();
        assert_eq!(users_recipe(root.path()), None);
    }

    #[cfg(unix)]
    #[test]
    fn of_a_link_only_the_link_goes() {
        let root = tempfile::tempdir().unwrap();
        let (output, elsewhere) = (root.path().join("out"), root.path().join("elsewhere"));
        write(&elsewhere, &["adapter_config.json"]);
        fs::create_dir(&output).unwrap();
        std::os::unix::fs::symlink(&elsewhere, output.join("adapter")).unwrap();
        clear(&output).unwrap();
        assert!(entries(&output).unwrap().is_empty());
        assert_eq!(names(&elsewhere), ["adapter_config.json"]);
    }
}
