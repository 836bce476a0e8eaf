//! Which files of a directory are sent: those of a model. Everything else is named, and left out unless asked for;
//! what looks like a secret is never sent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use backdraft_formats::FormatError;
use backdraft_formats::hub::push::PushFile;
use glob::Pattern;

use super::token::holds_token;
use super::verdict::{HIDDEN, OTHER, OUTSIDE, Verdict, folder_apart, verdict};
use crate::error::CliError;

/// Folders in folders that are looked into.
const DEPTH: usize = 12;
/// The longest file that is searched for access tokens: they hide in settings and notes, not in weights.
const SEARCHED: u64 = 4 << 20;

/// What the command line says of files.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// Sent although they are no part of a model.
    pub(super) include: Vec<Pattern>,
    /// Not sent.
    pub(super) exclude: Vec<Pattern>,
}

/// What is sent of a directory, and what not.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) files: Vec<PushFile>,
    pub(super) left_out: Vec<LeftOut>,
}

/// A file or a folder of files that stays here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// A folder's ends in `/`.
    pub(super) name: String,
    pub(super) why: &'static str,
}

impl Choice {
    /// Looks at a directory.
    ///
    /// # Errors
    /// It cannot be read; a file that would be sent holds an access token.
    pub(super) fn of(directory: &Path, rules: &Rules) -> Result<Self, CliError> {
        let root = directory.canonicalize();
        let root = root.map_err(FormatError::io(directory, "read"))?;
        let mut walk = Walk {
            root: &root,
            rules,
            files: BTreeMap::new(),
            left_out: BTreeMap::new(),
        };
        walk.folder("", None, 0)?;
        let Walk {
            files, left_out, ..
        } = walk;
        for (name, (path, bytes)) in &files {
            if *bytes <= SEARCHED && holds_token(path)? {
                return Err(CliError::user(format!(
                    "{name} holds what looks like an access token of the hub; nothing was sent"
                ))
                .hint("remove it, and revoke the token if the file was anywhere else; or leave the file out with --exclude"));
            }
        }
        let files = files.into_iter();
        Ok(Self {
            files: files
                .map(|(name, (path, bytes))| PushFile::of_path(name, path, bytes))
                .collect(),
            left_out: left_out
                .into_iter()
                .map(|(name, why)| LeftOut { name, why })
                .collect(),
        })
    }

    /// Whether a file of this name is sent.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file.name == name)
    }

    /// The names that end so.
    pub(super) fn ending<'a>(&'a self, end: &'a str) -> impl Iterator<Item = &'a PushFile> {
        self.files
            .iter()
            .filter(move |file| file.name.to_ascii_lowercase().ends_with(end))
    }
}

struct Walk<'a> {
    root: &'a Path,
    rules: &'a Rules,
    files: BTreeMap<String, (PathBuf, u64)>,
    left_out: BTreeMap<String, &'static str>,
}

impl Walk<'_> {
    /// Looks into a folder; `apart` is a folder around it that is left out as a whole, and why.
    fn folder(
        &mut self,
        inside: &str,
        apart: Option<(&str, &'static str)>,
        depth: usize,
    ) -> Result<(), CliError> {
        let path = self.root.join(inside);
        let entries = fs::read_dir(&path).map_err(FormatError::io(&path, "read"))?;
        for entry in entries {
            let entry = entry.map_err(FormatError::io(&path, "read"))?;
            let Ok(name) = entry.file_name().into_string() else {
                let shown = entry.file_name().to_string_lossy().into_owned();
                self.left_out.insert(shown, "its name is no text");
                continue;
            };
            let name = match inside {
                "" => name,
                _ => format!("{inside}/{name}"),
            };
            let kind = entry
                .file_type()
                .map_err(FormatError::io(entry.path(), "read"))?;
            if kind.is_dir() {
                self.inner(&name, apart, depth)?;
            } else {
                self.file(name, apart)?;
            }
        }
        Ok(())
    }

    fn inner(
        &mut self,
        name: &str,
        apart: Option<(&str, &'static str)>,
        depth: usize,
    ) -> Result<(), CliError> {
        let last = name.rsplit('/').next().unwrap_or_default();
        if last.starts_with('.') || depth >= DEPTH {
            let why = if last.starts_with('.') { HIDDEN } else { OTHER };
            self.left_out.insert(format!("{name}/"), why);
            return Ok(());
        }
        let own = folder_apart(last).map(|why| (name, why));
        self.folder(name, apart.or(own), depth + 1)
    }

    fn file(&mut self, name: String, apart: Option<(&str, &'static str)>) -> Result<(), CliError> {
        let path = self.root.join(&name);
        let included = self
            .rules
            .include
            .iter()
            .any(|pattern| pattern.matches(&name));
        let verdict = match (verdict(&name), apart) {
            (Verdict::Sent, Some((_, why))) => Verdict::Apart(why),
            (verdict, _) => verdict,
        };
        match verdict {
            Verdict::Never(why) => {
                self.left_out.insert(name, why);
                return Ok(());
            }
            Verdict::Apart(why) if !included => {
                // A folder that is left out is named once.
                let (shown, why) = match apart {
                    Some((folder, why)) => (format!("{folder}/"), why),
                    None => (name, why),
                };
                self.left_out.insert(shown, why);
                return Ok(());
            }
            _ => {}
        }
        if self
            .rules
            .exclude
            .iter()
            .any(|pattern| pattern.matches(&name))
        {
            self.left_out.insert(name, "excluded");
            return Ok(());
        }
        // What a link leads to must be in here, and a file.
        let real = path.canonicalize();
        let real = real.ok().filter(|real| real.starts_with(self.root));
        let Some(real) = real else {
            self.left_out.insert(name, OUTSIDE);
            return Ok(());
        };
        let inner = real
            .strip_prefix(self.root)
            .unwrap_or(&real)
            .to_string_lossy();
        if matches!(
            super::verdict::verdict(&inner.replace('\\', "/")),
            Verdict::Never(_)
        ) {
            self.left_out
                .insert(name, "a link to a file that is never sent");
            return Ok(());
        }
        let data = fs::metadata(&real).map_err(FormatError::io(&real, "read"))?;
        if data.is_file() {
            self.files.insert(name, (real, data.len()));
        } else {
            self.left_out.insert(name, "no plain file");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::{CACHE, OF_RUN, PICKLE, ROWS, SECRET, STATE};
    use super::*;

    fn directory(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        root
    }

    fn chosen(root: &Path, rules: &Rules) -> (Vec<String>, Vec<(String, &'static str)>) {
        let choice = Choice::of(root, rules).unwrap();
        let files = choice.files.into_iter().map(|file| file.name).collect();
        let left = choice
            .left_out
            .into_iter()
            .map(|left| (left.name, left.why));
        (files, left.collect())
    }

    fn patterns(patterns: &[&str]) -> Vec<Pattern> {
        patterns
            .iter()
            .map(|pattern| Pattern::new(pattern).unwrap())
            .collect()
    }

    const MIXED: [&str; 20] = [
        ".env",
        ".git/HEAD",
        "LICENSE",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoints/step-000010/adapter/adapter_model.safetensors",
        "checkpoints/step-000010/optimizer.safetensors",
        "hf_token.txt",
        "me.pem",
        "metrics.jsonl",
        "notes.txt",
        "onnx/.cache/x",
        "onnx/model.onnx",
        "optimizer.safetensors",
        "prod.env",
        "pytorch_model.bin",
        "tokens.json",
        "train.jsonl",
        "x.safetensors.part",
    ];

    #[test]
    fn only_a_models_files_are_sent() {
        let root = directory(&MIXED);
        let (files, left) = chosen(root.path(), &Rules::default());
        let sent = [
            "LICENSE",
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
        ];
        assert_eq!(files, sent);
        let why = |wanted: &str| left.iter().find(|(name, _)| name == wanted).unwrap().1;
        for (name, expected) in [
            (".env", HIDDEN),
            (".git/", HIDDEN),
            ("checkpoints/", STATE),
            ("hf_token.txt", SECRET),
            ("me.pem", SECRET),
            ("metrics.jsonl", OF_RUN),
            ("notes.txt", OTHER),
            ("onnx/.cache/", HIDDEN),
            ("onnx/model.onnx", OTHER),
            ("optimizer.safetensors", STATE),
            ("prod.env", SECRET),
            ("pytorch_model.bin", PICKLE),
            ("tokens.json", SECRET),
            ("train.jsonl", ROWS),
            ("x.safetensors.part", CACHE),
        ] {
            assert_eq!(why(name), expected, "{name}");
        }
        assert_eq!(left.len(), 15);
    }

    #[test]
    fn what_is_named_is_sent_but_for_secrets() {
        let root = directory(&MIXED);
        let rules = Rules {
            include: patterns(&["**/*", "*"]),
            exclude: patterns(&["LICENSE"]),
        };
        let (files, left) = chosen(root.path(), &rules);
        assert!(
            files.contains(&"train.jsonl".to_owned()) && !files.contains(&"LICENSE".to_owned())
        );
        assert!(files.contains(&"checkpoints/step-000010/optimizer.safetensors".to_owned()));
        let left: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
        let never = [
            ".env",
            ".git/",
            "LICENSE",
            "hf_token.txt",
            "me.pem",
            "onnx/.cache/",
            "prod.env",
            "tokens.json",
        ];
        assert_eq!(left, never);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_inside_only() {
        use std::os::unix::fs::symlink;

        let other = directory(&["secret.safetensors", "folder/model.safetensors"]);
        let root = directory(&["blobs/a.safetensors", ".env"]);
        let link = |to: &Path, name: &str| symlink(to, root.path().join(name)).unwrap();
        link(Path::new("blobs/a.safetensors"), "model.safetensors");
        link(&other.path().join("secret.safetensors"), "out.safetensors");
        link(&other.path().join("folder"), "folder");
        link(Path::new("nowhere"), "gone.safetensors");
        link(Path::new(".env"), "config.json");
        link(Path::new("."), "loop.gguf");
        let (files, left) = chosen(root.path(), &Rules::default());
        assert_eq!(files, ["blobs/a.safetensors", "model.safetensors"]);
        let names: Vec<&str> = left.iter().map(|(name, _)| name.as_str()).collect();
        let stay = [
            ".env",
            "config.json",
            "folder",
            "gone.safetensors",
            "loop.gguf",
            "out.safetensors",
        ];
        assert_eq!(names, stay);
    }

    #[test]
    fn a_file_with_a_token_stops_everything() {
        let root = directory(&["config.json"]);
        let path = root.path().join("config.json");
        let token = format!("hf_{}", "aB3".repeat(12));
        fs::write(&path, format!("{{\"token\": \"{token}\"}}")).unwrap();
        let error = Choice::of(root.path(), &Rules::default()).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("config.json holds what looks like an access token")
        );
        assert!(!error.to_string().contains(&token));
    }
}
