//! Where the adapter, or the trained model, lies that a path leads to.

use std::path::{Path, PathBuf};

/// Where the adapter lies that a path leads to: an adapter's directory itself, the output directory of a
/// run, or one of its checkpoints. The path itself where there is none.
#[must_use]
pub fn adapter_in(path: &Path) -> PathBuf {
    let is_adapter = |path: &Path| path.join("adapter_config.json").is_file();
    let inner = path.join("adapter");
    if !is_adapter(path) && is_adapter(&inner) {
        return inner;
    }
    if is_adapter(path) {
        return path.to_owned();
    }
    // A run that was stopped before its end.
    newest_checkpoint(path)
        .map(|path| path.join("adapter"))
        .filter(|newest| is_adapter(newest))
        .unwrap_or_else(|| path.to_owned())
}

/// The model of a run that trained the base's own tensors: that of its output directory, of its newest checkpoint, or of the
/// checkpoint that `path` is.
#[must_use]
pub fn trained_model_in(path: &Path) -> Option<PathBuf> {
    let newest = newest_checkpoint(path);
    let places = [Some(path.to_owned()), newest].into_iter().flatten();
    let mut models = places.map(|place| place.join("model"));
    let is_run = ["metrics.jsonl", "state.json"]
        .iter()
        .any(|file| path.join(file).is_file());
    models.find(|model| is_run && model.join("config.json").is_file())
}

fn newest_checkpoint(path: &Path) -> Option<PathBuf> {
    let checkpoints = path.join("checkpoints").read_dir().into_iter().flatten();
    let step = |path: &Path| {
        let step = path.file_name()?.to_str()?.strip_prefix("step-")?;
        step.parse::<usize>().ok()
    };
    let paths = checkpoints.filter_map(|entry| Some(entry.ok()?.path()));
    let newest = paths.filter_map(|path| Some((step(&path)?, path))).max();
    newest.map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_taken_for_its_adapter() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join("adapter_config.json"), "{}").unwrap();
            path
        };
        let newest = make("stopped/checkpoints/step-000020/adapter");
        make("stopped/checkpoints/step-000010/adapter");
        let finished = make("run/adapter");
        make("run/checkpoints/step-000010/adapter");
        let at = |path: &str| adapter_in(&root.path().join(path));
        assert_eq!(at("stopped"), newest);
        assert_eq!(at("stopped/checkpoints/step-000020"), newest);
        assert_eq!(at("run"), finished);
        assert_eq!(at("run/adapter"), finished);
        assert_eq!(at("none"), root.path().join("none"));
    }

    #[test]
    fn a_model_is_that_of_a_run() {
        let root = tempfile::tempdir().unwrap();
        let make = |path: &str, file: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(file), "{}").unwrap();
            path
        };
        make("project/model", "config.json");
        make("project", "recipe.toml");
        make("run", "metrics.jsonl");
        let checkpoint = make("run/checkpoints/step-000010/model", "config.json");
        make("run/checkpoints/step-000010", "state.json");
        let at = |path: &str| trained_model_in(&root.path().join(path));
        assert_eq!(at("project"), None);
        assert_eq!(at("run"), Some(checkpoint.clone()));
        assert_eq!(at("run/checkpoints/step-000010"), Some(checkpoint));
        let finished = make("run/model", "config.json");
        assert_eq!(at("run"), Some(finished));
    }
}
