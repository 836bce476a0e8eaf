//! `[tracker]`: a server that is told of the run as well.

use backdraft_arch::named;
use serde::Serialize;

use crate::reader::{Reader, Value};

named! {
    /// What a server speaks.
    TrackerKind {
        /// MLflow's REST interface.
        #[default]
        Mlflow = "mlflow",
        /// A Trackio server.
        Trackio = "trackio",
    }
}

impl Value for TrackerKind {
    const EXPECTED: &'static str = "a name in quotes";
    const NAMES: &'static [&'static str] = Self::NAMES;
}

/// `[tracker]`: where the numbers of a run are sent, beside its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrackerRecipe {
    /// What the server speaks.
    pub kind: TrackerKind,
    /// Its address, without a name, a password or a token in it.
    pub url: String,
    /// MLflow's experiment, or Trackio's project.
    pub experiment: String,
    /// The run; `None` is the name of the output directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_name: Option<String>,
}

const KIND: &str = "tracker.kind";
const URL: &str = "tracker.url";
const EXPERIMENT: &str = "tracker.experiment";
const RUN_NAME: &str = "tracker.run_name";

/// The tracker, where one is asked for.
pub(crate) fn tracker(reader: &mut Reader<'_>) -> Option<TrackerRecipe> {
    let kind: Option<TrackerKind> = reader.optional(KIND);
    let url: Option<String> = reader.optional(URL);
    let experiment: Option<String> = reader.optional(EXPERIMENT);
    let run_name: Option<String> = reader.optional(RUN_NAME);
    if let Some(url) = &url {
        let secret = url.contains(['@', '?', '#']);
        let host = ["http://", "https://"].into_iter();
        let host = host.filter_map(|scheme| url.strip_prefix(scheme));
        let named = host
            .into_iter()
            .any(|host| !host.is_empty() && !host.starts_with('/'));
        if secret || !named {
            reader.reject(
                URL,
                "an address such as \"http://127.0.0.1:5000\"; names, passwords and tokens come from the environment",
            );
        }
    }
    for (key, name) in [(EXPERIMENT, &experiment), (RUN_NAME, &run_name)] {
        if name.as_ref().is_some_and(|name| name.trim().is_empty()) {
            reader.reject(key, "a name that is not empty");
        }
    }
    let Some(kind) = kind else {
        for key in [URL, EXPERIMENT, RUN_NAME] {
            if reader.has(key) {
                let instead = "write kind = \"mlflow\" or \"trackio\", or take it out";
                reader.conflict(key, "a missing `tracker.kind`", instead);
            }
        }
        return None;
    };
    if url.is_none() {
        let instead = "write the address of its server, such as url = \"http://127.0.0.1:5000\"";
        reader.conflict(KIND, "a missing `tracker.url`", instead);
    }
    Some(TrackerRecipe {
        kind,
        url: url.unwrap_or_default().trim_end_matches('/').to_owned(),
        experiment: experiment.unwrap_or_else(|| "backdraft".to_owned()),
        run_name,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Recipe;

    fn read(tracker: &str) -> Result<Recipe, String> {
        let text = format!("model = \"a/b\"\n[data]\ntrain = \"t.jsonl\"\n[tracker]\n{tracker}\n");
        let found = Recipe::from_toml(&text, Path::new("/r"), &[]);
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn a_tracker_is_asked_for_and_has_no_secret() {
        assert_eq!(read("").unwrap().tracker, None);
        let recipe = read("kind = \"trackio\"\nurl = \"http://127.0.0.1:7860/\"").unwrap();
        let found = recipe.tracker.clone().unwrap();
        assert_eq!(
            (found.kind, found.url.as_str()),
            (TrackerKind::Trackio, "http://127.0.0.1:7860")
        );
        assert_eq!(
            (found.experiment.as_str(), found.run_name),
            ("backdraft", None)
        );
        let stored = recipe.to_toml().unwrap();
        assert_eq!(
            Recipe::from_stored(&stored, Path::new("/r")).unwrap(),
            recipe
        );
        for (tracker, part) in [
            ("kind = \"mlflow\"", "a missing `tracker.url`"),
            ("url = \"http://h\"", "a missing `tracker.kind`"),
            ("kind = \"wandb\"\nurl = \"http://h\"", "mlflow"),
            (
                "kind = \"mlflow\"\nurl = \"http://me:secret@h\"",
                "from the environment",
            ),
            (
                "kind = \"trackio\"\nurl = \"http://h/?write_token=x\"",
                "from the environment",
            ),
            ("kind = \"mlflow\"\nurl = \"h:5000\"", "an address"),
            (
                "kind = \"mlflow\"\nurl = \"http://h\"\nrun_name = \" \"",
                "not empty",
            ),
        ] {
            let found = read(tracker).unwrap_err();
            assert!(found.contains(part), "{tracker}: {found}");
        }
    }
}
