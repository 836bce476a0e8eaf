//! `doctor`: what this machine has for training, what it lacks, and what helps.

use std::path::Path;

use backdraft_formats::free_bytes;
use backdraft_formats::hub::{HubOptions, reach};
use backdraft_kernels::device;
use backdraft_plan::memory::{MemoryWatch, SystemMemory};
use backdraft_train::preflight;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use crate::about;
use crate::commands::Context;
use crate::error::CliError;
use crate::plain::{count, lines};
use crate::session::cache_dir;

/// Room that a model of some size and its rows need.
const LITTLE_ROOM: u64 = 10 << 30;
/// Memory below which even a small model has none.
const LITTLE_MEMORY: u64 = 2 << 30;

/// Tell what this machine has for training, what it lacks, and what helps
///
/// Looks at the processor, the memory, GPUs with their driver and libraries, the folders that are written to and the hub,
/// which is asked for its address and nothing else. Exit code 1 where something is broken.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft doctor
  backdraft doctor --json")]
pub(crate) struct DoctorArgs {}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Ok,
    /// It works, and could be better.
    Note,
    /// It does not work.
    Broken,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Finding {
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// What helps.
    advice: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            found: found.into(),
            advice: None,
        }
    }

    fn with(self, state: State, advice: impl Into<String>) -> Self {
        Self {
            state,
            advice: Some(advice.into()),
            ..self
        }
    }
}

pub(crate) fn run(context: Context) -> Result<(), CliError> {
    let mut findings = vec![Finding::ok("build", about::build()), processor(), memory()];
    findings.extend(gpu());
    findings.extend(cache_dir().map(|cache| folder("cache", &cache)));
    let options = HubOptions::from_env();
    findings.push(folder("models", &options.cache));
    findings.extend(hub(&options));
    let broken = findings.iter().filter(|one| one.state == State::Broken);
    let broken = broken.count();
    let output = context.output;
    output.record("doctor", &json!({ "findings": findings }))?;
    let rows: Vec<(&str, String)> = findings.iter().map(row).collect();
    output.line(lines(&rows).trim_end())?;
    match broken {
        0 => Ok(()),
        _ => Err(CliError::user(format!(
            "{} broken",
            count(broken as u64, "thing")
        ))),
    }
}

fn row(finding: &Finding) -> (&str, String) {
    let before = match finding.state {
        State::Ok => "",
        State::Note => "note: ",
        State::Broken => "BROKEN: ",
    };
    let advice = finding.advice.as_ref();
    let advice = advice.map_or_else(String::new, |advice| format!("; {advice}"));
    (finding.name, format!("{before}{}{advice}", finding.found))
}

/// Instructions that products are made with, widest first.
fn vectors() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    return match () {
        () if is_x86_feature_detected!("avx512f") => Some("AVX-512"),
        () if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => Some("AVX2"),
        () => None,
    };
    #[cfg(target_arch = "aarch64")]
    return Some("NEON");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    None
}

fn processor() -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = count(threads as u64, "thread");
    match vectors() {
        Some(vectors) => Finding::ok("processor", format!("{threads}, {vectors}")),
        None => Finding::ok("processor", format!("{threads}, neither AVX2 nor AVX-512"))
            .with(State::Note, "products will be several times slower"),
    }
}

fn memory() -> Finding {
    match SystemMemory.obtainable() {
        None => Finding::ok("memory", "the system does not say"),
        Some(bytes) => {
            let found = Finding::ok("memory", format!("{} free", gib(bytes)));
            match bytes < LITTLE_MEMORY {
                true => found.with(State::Note, "the smallest models need 2 GiB"),
                false => found,
            }
        }
    }
}

/// The GPU, where its libraries lie, and each of its slower paths. A driver without the libraries beside it is broken; no
/// GPU is none.
fn gpu() -> Vec<Finding> {
    let report = match about::gpu() {
        Ok(report) => report,
        Err(reason) => {
            let state = match device::has_driver() {
                true => State::Broken,
                false => State::Note,
            };
            let found = Finding::ok("gpu", reason);
            return vec![found.with(state, "training on the processor works")];
        }
    };
    let mut findings = vec![Finding::ok("gpu", report.to_string())];
    findings.extend(report.places().map(|places| Finding::ok("gpu", places)));
    for path in &report.fast_paths {
        if let Some(reason) = &path.missing {
            let found = Finding::ok("gpu", format!("{} is off", path.name));
            findings.push(found.with(State::Note, reason.clone()));
        }
    }
    findings
}

/// A folder that is written to, or what is there of the way to it.
fn folder(name: &'static str, path: &Path) -> Finding {
    let there = preflight::existing(path);
    let shown = path.display();
    if let Err(error) = there.and_then(preflight::writable) {
        let advice = match name {
            "cache" => "set XDG_CACHE_HOME to another",
            _ => "set HF_HOME to another",
        };
        let found = Finding::ok(name, format!("{shown} cannot be written ({error})"));
        return found.with(State::Broken, advice);
    }
    match preflight::existing(path).ok().and_then(free_bytes) {
        None => Finding::ok(name, shown.to_string()),
        Some(bytes) => {
            let found = Finding::ok(name, format!("{shown}, {} free", gib(bytes)));
            match bytes < LITTLE_ROOM {
                true => found.with(State::Note, "a model of 8B takes 16 GiB"),
                false => found,
            }
        }
    }
}

fn hub(options: &HubOptions) -> Vec<Finding> {
    let local = "name models by their folder or .gguf file, or have them in the cache";
    let found = if options.offline {
        let found = Finding::ok("hub", "not asked: HF_HUB_OFFLINE is set");
        found.with(State::Note, local)
    } else {
        match reach(options) {
            Ok(time) => {
                let took = time.as_millis();
                Finding::ok("hub", format!("{} answers in {took} ms", options.endpoint))
            }
            Err(error) => {
                let found = format!("{} does not answer ({error})", options.endpoint);
                let advice = format!("{local}; HF_HUB_OFFLINE=1 saves the wait");
                Finding::ok("hub", found).with(State::Note, advice)
            }
        }
    };
    let token = match options.token {
        Some(_) => Finding::ok("token", "set"),
        None => Finding::ok("token", "none").with(
            State::Note,
            "models with a licence to accept, private ones and push need HF_TOKEN",
        ),
    };
    vec![found, token]
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_made_is_broken() {
        let root = tempfile::tempdir().unwrap();
        let fine = folder("cache", &root.path().join("a/b"));
        assert_ne!(fine.state, State::Broken);
        assert!(!root.path().join("a").exists());
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        let broken = folder("models", &file.join("hub"));
        assert_eq!(broken.state, State::Broken);
        let (_, text) = row(&broken);
        assert!(
            text.starts_with("BROKEN: ") && text.ends_with("; set HF_HOME to another"),
            "{text}"
        );
    }

    #[test]
    fn an_offline_hub_is_not_asked() {
        let options = HubOptions {
            cache: "cache".into(),
            endpoint: "http://127.0.0.1:1".to_owned(),
            token: Some("secret".to_owned()),
            offline: true,
        };
        let found = hub(&options);
        assert_eq!((found[0].state, found[1].state), (State::Note, State::Ok));
        assert!(!format!("{found:?}").contains("secret"));
        let asked = hub(&HubOptions {
            offline: false,
            ..options
        });
        assert!(asked[0].found.contains("does not answer"), "{asked:?}");
    }
}
