//! What `--version` tells: which build this is, and what it finds on this machine.

use backdraft_arch::DeviceChoice;
use backdraft_kernels::device::{self, DeviceReport};
use serde_json::json;

use crate::error::CliError;
use crate::output::Output;
use crate::plain::{count, lines};
use crate::session::cache_dir;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that was built, where that is known.
const COMMIT: Option<&str> = option_env!("BACKDRAFT_COMMIT");
const TARGET: &str = env!("BACKDRAFT_TARGET");

/// The first line: `backdraft 0.1.0 (commit 0123456789, x86_64-unknown-linux-gnu)`.
pub(crate) fn build() -> String {
    let commit = COMMIT.map_or_else(
        || "commit unknown".to_owned(),
        |commit| format!("commit {commit}"),
    );
    format!("backdraft {VERSION} ({commit}, {TARGET})")
}

/// Backends that this build has.
fn backends() -> Vec<&'static str> {
    let built = [
        ("cpu", true),
        ("cuda", cfg!(feature = "cuda")),
        ("wgpu", cfg!(feature = "wgpu")),
    ];
    built
        .into_iter()
        .filter_map(|(name, built)| built.then_some(name))
        .collect()
}

/// The GPU that `auto` or `wgpu` would open, or why there is none.
pub(crate) fn gpu() -> Result<DeviceReport, String> {
    if cfg!(not(any(feature = "cuda", feature = "wgpu"))) {
        return Err("this build has no GPU backend: build with --features cuda or wgpu".to_owned());
    }
    let choices = [
        (cfg!(feature = "cuda"), DeviceChoice::Cuda(0)),
        (cfg!(feature = "wgpu"), DeviceChoice::Wgpu),
    ];
    let mut reasons = Vec::new();
    for (_, choice) in choices.into_iter().filter(|(built, _)| *built) {
        match device::open(choice) {
            Ok(device) => return Ok(device::report(&device)),
            Err(error) => reasons.push(error.to_string()),
        }
    }
    Err(reasons.join("; "))
}

/// Tells it.
pub(crate) fn show(output: Output) -> Result<(), CliError> {
    crate::find_libraries();
    let (gpu, cache) = (gpu().map(|found| found.to_string()), cache_dir());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    output.record(
        "version",
        &json!({
            "version": VERSION,
            "commit": COMMIT,
            "target": TARGET,
            "backends": backends(),
            "gpu": gpu.as_ref().ok(),
            "no_gpu_because": gpu.as_ref().err(),
            "threads": threads,
            "cache": cache,
        }),
    )?;
    output.line(build())?;
    let rows = [
        ("backends", backends().join(", ")),
        (
            "gpu",
            gpu.unwrap_or_else(|reason| format!("none ({reason})")),
        ),
        ("cpu", count(threads as u64, "thread")),
        (
            "cache",
            cache.map_or_else(
                || "none (neither XDG_CACHE_HOME nor HOME is set)".to_owned(),
                |path| path.display().to_string(),
            ),
        ),
    ];
    output.line(lines(&rows).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_named() {
        let text = build();
        assert!(
            text.starts_with(&format!("backdraft {VERSION} (commit ")),
            "{text}"
        );
        assert!(text.ends_with(&format!("{TARGET})")), "{text}");
        assert_eq!(backends()[0], "cpu");
    }

    #[test]
    fn a_build_without_a_gpu_says_how_to_get_one() {
        if backends() == ["cpu"] {
            assert!(gpu().unwrap_err().contains("--features cuda"));
        }
    }
}
