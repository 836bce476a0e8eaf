//! Tells the program which commit and target it is built from; without git it is built all the same.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=BACKDRAFT_COMMIT");
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=BACKDRAFT_TARGET={target}");
    let given = std::env::var("BACKDRAFT_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    if let Some(commit) = given.or_else(packaged).or_else(checked_out) {
        println!("cargo::rustc-env=BACKDRAFT_COMMIT={commit}");
    }
}

/// The commit that `cargo package` noted beside the manifest.
fn packaged() -> Option<String> {
    let note = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let after = note.split_once("\"sha1\"")?.1;
    let hash = after.split('"').nth(1)?;
    (hash.len() >= 10 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| hash[..10].to_owned())
}

/// The commit of this repository's work tree.
fn checked_out() -> Option<String> {
    // A repository that merely contains these sources has another commit.
    let root = git(&["rev-parse", "--show-toplevel"])?;
    let here = Path::new("../..").canonicalize().ok()?;
    if Path::new(&root).canonicalize().ok()? != here {
        return None;
    }
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) =
            git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists())
        {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=10", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
