//! What this machine has of what the stages need.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::stage::Outcome;

/// One line for each thing that not every machine has, and what is not checked without it.
pub(crate) fn lines() -> Vec<String> {
    let smollm2 = variable("BACKDRAFT_SMOLLM2").or_else(|| {
        let model = "backdraft/models/SmolLM2-135M-Instruct.Q4_1.gguf";
        Some(cache()?.join(model))
    });
    let there = |path: Option<PathBuf>| path.is_some_and(|path| path.exists());
    let say = |have: bool, what: &str, without: &str| {
        if have {
            format!("there:   {what}")
        } else {
            format!("missing: {what}; {without}")
        }
    };
    vec![
        say(
            there(smollm2),
            "SmolLM2's weights",
            "its golden tests check nothing (.ci/prepare fetches them)",
        ),
        say(
            there(variable("BACKDRAFT_TEMPLATES")),
            "public chat templates (BACKDRAFT_TEMPLATES)",
            "their test checks nothing (.ci/prepare fetches them)",
        ),
        say(
            there(variable("BACKDRAFT_TOKENIZERS")),
            "other models' tokenizers (BACKDRAFT_TOKENIZERS)",
            "their golden token ids are not compared",
        ),
        say(runs("typos"), "typos", "typos is skipped"),
        say(
            missing("wgpu").is_none(),
            "a Vulkan device",
            "parity-wgpu is skipped",
        ),
        say(
            missing("cuda").is_none(),
            "an NVIDIA GPU",
            "parity-cuda is skipped",
        ),
    ]
}

/// Why the kernels cannot run on this kind of device here; `None` where they can.
pub(crate) fn missing(device: &str) -> Option<String> {
    if device == "cuda" {
        let there = Path::new("/dev/nvidiactl").exists();
        return (!there).then(|| "no NVIDIA GPU: there is no /dev/nvidiactl".to_owned());
    }
    let folder = Path::new("/usr/share/vulkan/icd.d");
    let mut installed = folder.read_dir().into_iter().flatten();
    let there = variable("VK_ICD_FILENAMES").is_some() || installed.next().is_some();
    (!there).then(|| {
        "no Vulkan: install mesa-vulkan-drivers and libvulkan1, whose llvmpipe needs no GPU"
            .to_owned()
    })
}

/// Why no ranks can be started by MPI here; `None` where they can.
pub(crate) fn no_mpirun() -> Option<String> {
    (!runs("mpirun")).then(|| "no mpirun: install openmpi-bin".to_owned())
}

/// Spelling, where the program that knows it is installed.
pub(crate) fn typos() -> anyhow::Result<Outcome> {
    if !runs("typos") {
        return Ok(Outcome::Skipped(
            "typos is not installed: cargo install typos-cli, or pip install typos".to_owned(),
        ));
    }
    let status = Command::new("typos").status().context("typos")?;
    if !status.success() {
        bail!("typos ended with {status}; words that are right belong into _typos.toml");
    }
    Ok(Outcome::Passed)
}

fn runs(program: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn cache() -> Option<PathBuf> {
    variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}
