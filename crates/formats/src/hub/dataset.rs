//! Data sets from the hub.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::error::HubError;
use super::fetch::Hub;
use super::name::HubName;
use super::options::HubOptions;
use super::{DownloadProgress, snapshot};

/// The split where none is named.
const TRAIN: &str = "train";
/// Kinds of files by preference: of several copies of the same rows one is taken.
const KINDS: [&[&str]; 4] = [
    &["parquet"],
    &["jsonl", "ndjson", "json"],
    &["csv", "tsv"],
    &["txt", "md"],
];

/// The files of a data set's split, in order.
///
/// `name` is `organisation/name`, optionally with `@revision`, and with `:split` or
/// `:config/split`; without it the split is `train`. Files belong to a split by the names of their
/// folders and themselves, as in Hugging Face's own library; where no name says a split, all are
/// `train`.
///
/// # Errors
/// [`HubError`]: nothing of that name, no permission, no files of that split, several
/// configurations, or the network.
pub fn resolve_dataset(
    name: &str,
    options: &HubOptions,
    progress: &mut dyn DownloadProgress,
) -> Result<Vec<PathBuf>, HubError> {
    let Some((hub_name, split)) = HubName::parse_dataset(name) else {
        return Err(HubError::NotADataset { name: name.into() });
    };
    let wanted = Wanted::new(&hub_name, split.unwrap_or(TRAIN));
    let cached = || {
        let snapshot = snapshot::noted(&options.cache, &hub_name)?;
        wanted.cached(&snapshot)
    };
    if options.offline {
        return cached().ok_or_else(|| HubError::Offline {
            name: name.into(),
            cache: options.cache.clone(),
        });
    }
    let hub = Hub::new(&hub_name, options)?;
    let listing = match hub.listing() {
        Ok(listing) => listing,
        Err(error @ HubError::Request { .. }) => {
            return match cached() {
                Some(paths) => {
                    progress.using_cache(&error);
                    Ok(paths)
                }
                None => Err(error),
            };
        }
        Err(error) => return Err(error),
    };
    let files: Vec<&str> = listing.siblings.iter().map(|f| &*f.rfilename).collect();
    let chosen = wanted.choose(&files)?;
    let commit = hub.api.repo(snapshot::repository(&hub_name, &listing.sha));
    let path = snapshot::snapshot_path(&options.cache, &hub_name, &listing.sha);
    for file in &chosen {
        hub.ensure(&commit, &path, file, progress)?;
    }
    hub.note_revision(&listing.sha)?;
    Ok(chosen.into_iter().map(|file| path.join(file)).collect())
}

/// What is asked for.
struct Wanted<'a> {
    name: &'a HubName,
    config: Option<&'a str>,
    split: &'a str,
}

impl<'a> Wanted<'a> {
    fn new(name: &'a HubName, split: &'a str) -> Self {
        let (config, split) = match split.rsplit_once('/') {
            Some((config, split)) => (Some(config), split),
            None => (None, split),
        };
        Self {
            name,
            config,
            split,
        }
    }

    /// The files of the split among all files of a repository, sorted.
    fn choose<'f>(&self, files: &[&'f str]) -> Result<Vec<&'f str>, HubError> {
        let sound: Vec<&str> = files
            .iter()
            .copied()
            .filter(|file| is_sound(file))
            .collect();
        let some = KINDS.iter().map(|kind| self.of_kind(&sound, kind));
        let Some(mut chosen) = some.into_iter().find(|files| !files.is_empty()) else {
            return Err(self.nothing(files, &sound));
        };
        if self.config.is_none() {
            let configs: BTreeSet<&str> =
                chosen.iter().filter_map(|file| config_of(file)).collect();
            if configs.len() > 1 {
                return Err(HubError::ManyConfigs {
                    name: self.name.to_string(),
                    configs: configs.into_iter().map(Into::into).collect(),
                    split: self.split.into(),
                });
            }
        }
        chosen.sort_unstable();
        Ok(chosen)
    }

    fn of_kind<'f>(&self, files: &[&'f str], kind: &[&str]) -> Vec<&'f str> {
        let of_config = |file: &&str| match self.config {
            Some(config) => file.split('/').any(|part| part == config),
            None => true,
        };
        let files = files.iter().copied().filter(|file| {
            of_config(file) && ending(file).is_some_and(|ending| kind.contains(&ending))
        });
        let files: Vec<&str> = files.collect();
        let says_a_split = files.iter().any(|file| split_of(file).is_some());
        let is_wanted = |file: &&str| match split_of(file) {
            Some(split) => split == canonical(self.split) || has_word(file, self.split),
            None => has_word(file, self.split) || !says_a_split && self.split == TRAIN,
        };
        files.into_iter().filter(is_wanted).collect()
    }

    fn nothing(&self, files: &[&str], sound: &[&str]) -> HubError {
        let splits: BTreeSet<&str> = sound
            .iter()
            .filter(|file| ending(file).is_some())
            .filter_map(|file| split_of(file))
            .collect();
        let script = files.iter().any(|file| file.ends_with(".py"));
        let found = if !splits.is_empty() {
            let splits: Vec<&str> = splits.into_iter().collect();
            format!("the splits {}", splits.join(", "))
        } else if script {
            "only a loading script, which would run code and is never fetched".to_owned()
        } else {
            format!(
                "{} files, none of them Parquet, JSON, CSV or text",
                files.len()
            )
        };
        HubError::NoSplit {
            name: self.name.to_string(),
            split: self.split.into(),
            found,
        }
    }

    /// The files of a snapshot in the cache, if all parts of the split are there.
    fn cached(&self, snapshot: &Path) -> Option<Vec<PathBuf>> {
        let mut files = Vec::new();
        list(snapshot, "", 0, &mut files);
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let chosen = self.choose(&files).ok()?;
        let whole = chosen.iter().all(|file| {
            parts(file).is_none_or(|count| {
                chosen
                    .iter()
                    .filter(|other| parts(other) == Some(count))
                    .count()
                    >= count
            })
        });
        whole.then(|| chosen.iter().map(|file| snapshot.join(file)).collect())
    }
}

fn list(root: &Path, inside: &str, depth: usize, files: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(root.join(inside)) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let path = match inside {
            "" => name,
            _ => format!("{inside}/{name}"),
        };
        if root.join(&path).is_file() {
            files.push(path);
        } else if depth < 8 {
            list(root, &path, depth + 1, files);
        }
    }
}

/// Whether a name from the hub may become a path.
fn is_sound(file: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', ':', '\0'])
    };
    file.len() <= 512 && file.split('/').all(plain)
}

/// The kind of a file of rows; compressed ones count by what is inside.
fn ending(file: &str) -> Option<&str> {
    let name = file.rsplit('/').next()?;
    // Not rows, though they end like them.
    if [
        "README.md",
        "dataset_info.json",
        "dataset_infos.json",
        "state.json",
    ]
    .contains(&name)
    {
        return None;
    }
    let name = name
        .strip_suffix(".gz")
        .or(name.strip_suffix(".zst"))
        .unwrap_or(name);
    let (_, ending) = name.rsplit_once('.')?;
    KINDS.concat().into_iter().find(|known| *known == ending)
}

/// The folder that stands for a configuration: one that is neither `data` nor a split.
fn config_of(file: &str) -> Option<&str> {
    let (folders, _) = file.rsplit_once('/')?;
    folders
        .split('/')
        .find(|part| *part != "data" && split_of(part).is_none())
}

/// The split that a path says, in one spelling.
fn split_of(file: &str) -> Option<&'static str> {
    words(file).find_map(|word| match canonical(word) {
        "train" => Some("train"),
        "validation" => Some("validation"),
        "test" => Some("test"),
        _ => None,
    })
}

fn has_word(file: &str, wanted: &str) -> bool {
    words(file).any(|word| word == wanted)
        || file.split('/').any(|part| {
            part.strip_prefix(wanted)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
        })
}

fn words(file: &str) -> impl Iterator<Item = &str> {
    file.split(|c: char| !c.is_ascii_alphanumeric())
}

fn canonical(word: &str) -> &str {
    match word {
        "train" | "training" => "train",
        "validation" | "valid" | "val" | "dev" => "validation",
        "test" | "testing" | "eval" | "evaluation" => "test",
        other => other,
    }
}

/// How many parts `train-00000-of-00003.parquet` says there are.
fn parts(file: &str) -> Option<usize> {
    let (_, rest) = file.rsplit_once("-of-")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: &str, files: &[&str], expected: &str) {
        let (name, split) = HubName::parse_dataset(spec).unwrap();
        let shown = match Wanted::new(&name, split.unwrap_or(TRAIN)).choose(files) {
            Ok(files) => files.join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn splits_are_told_by_names() {
        let usual = [
            ".gitattributes",
            "README.md",
            "data/test-00000-of-00001.parquet",
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
        ];
        check(
            "o/d",
            &usual,
            "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
        );
        check("o/d:test", &usual, "data/test-00000-of-00001.parquet");
        check("o/d@v1:eval", &usual, "data/test-00000-of-00001.parquet");
        check(
            "o/d:dev",
            &usual,
            "o/d has no data files of the split \"dev\"; found the splits test, train",
        );
        check(
            "o/d",
            &["rows.jsonl", "more.jsonl.gz"],
            "more.jsonl.gz rows.jsonl",
        );
        check(
            "o/d",
            &["train.csv", "train.jsonl", "valid.jsonl"],
            "train.jsonl",
        );
        check("o/d:validation", &["train.csv", "dev.csv"], "dev.csv");
        let sft = [
            "data/train_sft-00000-of-00001.parquet",
            "data/test_sft-00000-of-00001.parquet",
            "data/train_gen-00000-of-00001.parquet",
        ];
        check(
            "o/d:train_sft",
            &sft,
            "data/train_sft-00000-of-00001.parquet",
        );
    }

    #[test]
    fn configurations_must_be_named() {
        let files = [
            "main/train-00000-of-00001.parquet",
            "socratic/train-00000-of-00001.parquet",
        ];
        check(
            "o/d",
            &files,
            "o/d has the configurations main, socratic; name one, as in o/d:main/train",
        );
        check(
            "o/d:socratic/train",
            &files,
            "socratic/train-00000-of-00001.parquet",
        );
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        check(
            "o/d",
            &["d.py"],
            "o/d has no data files of the split \"train\"; found only a loading script, which would run code and is never fetched",
        );
        check(
            "o/d",
            &["a.bin", "README.md"],
            "o/d has no data files of the split \"train\"; found 2 files, none of them Parquet, JSON, CSV or text",
        );
        check(
            "o/d",
            &["../../x/train.jsonl", "/train.jsonl", "train\\..\\x.jsonl"],
            "o/d has no data files of the split \"train\"; found 3 files, none of them Parquet, JSON, CSV or text",
        );
        for name in ["o", "o/d:", "o/d:../x", "o/d:a//b", "../d", "o/d@:x"] {
            assert!(HubName::parse_dataset(name).is_none(), "{name}");
        }
    }
}
