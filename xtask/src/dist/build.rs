//! The program itself, by maturin, and what it says of itself.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::target::Target;
use super::{GLIBC, NOTICES, Release};

/// A file that is there as long as this is.
struct Scratch(PathBuf);

impl Scratch {
    fn write(path: PathBuf, text: &str) -> anyhow::Result<Self> {
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is made again each time.
        let _ = fs::remove_file(&self.0);
    }
}

/// Builds the wheel into the release's directory; returns where the program in it lies.
///
/// # Errors
/// maturin is not there, or the build fails.
pub(super) fn program(release: &Release, target: Target, notices: &str) -> anyhow::Result<PathBuf> {
    // `pyproject.toml` names it among the licences.
    let _notices = Scratch::write(release.root.join(NOTICES), notices)?;
    let target_dir = target_dir(&release.root);
    let mut maturin = Command::new("maturin");
    maturin
        .args([
            "build",
            "--locked",
            "--profile",
            "dist",
            "--target",
            target.triple(),
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .arg("--out")
        .arg(&release.out)
        .current_dir(&release.root)
        .env("CARGO_INCREMENTAL", "0")
        .env("SOURCE_DATE_EPOCH", release.epoch.to_string())
        .env("BACKDRAFT_COMMIT", &release.commit);
    if let Some(backend) = target.backend().filter(|_| !release.cpu) {
        maturin.args(["--features", backend]);
    }
    if target.is_linux() {
        maturin.args(["--zig", "--compatibility", &format!("manylinux_{GLIBC}")]);
    }
    let moved = moved(&release.root, &target_dir)?;
    let rust: Vec<String> = moved
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={from}={to}"))
        .collect();
    maturin
        .env("RUSTC_WRAPPER", release.root.join("packaging/rustc"))
        // Separated so that a path may hold spaces.
        .env("BACKDRAFT_RUSTC_ARGUMENTS", rust.join("\u{1f}"))
        // What the builder's own shell or settings say is not a release's.
        .env("CARGO_ENCODED_RUSTFLAGS", "");
    let c: Vec<String> = moved
        .iter()
        .map(|(from, to)| format!("-ffile-prefix-map={from}={to}"))
        .collect();
    for kind in ["CFLAGS", "CXXFLAGS"] {
        maturin.env(kind, c.join(" "));
    }
    let status = maturin.status().context(
        "maturin cannot be started; `pip install -r packaging/requirements.txt` brings it, in an environment of its own",
    )?;
    ensure!(status.success(), "maturin ended with {status}");
    let program = target_dir
        .join(target.triple())
        .join("dist")
        .join(target.program());
    ensure!(program.is_file(), "maturin left no {}", program.display());
    Ok(program)
}

/// Writes `completions/` and `man/` below `to`, by the program; where it does not run here, through cargo's runner for its target
/// if one is set (`CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=wine`), or else by one built for this machine.
pub(super) fn help(
    release: &Release,
    target: Target,
    program: &Path,
    to: &Path,
) -> anyhow::Result<()> {
    let backdraft = || {
        if target.is_here() {
            return Command::new(program);
        }
        if let Some(runner) = runner(target) {
            let mut words = runner.split_whitespace();
            let mut command = Command::new(words.next().unwrap_or_default());
            command.args(words).arg(program);
            return command;
        }
        let mut cargo = crate::ci::cargo();
        cargo.args([
            "run",
            "--release",
            "--quiet",
            "--locked",
            "--package",
            "backdraft-cli",
            "--",
        ]);
        cargo.current_dir(&release.root);
        cargo
    };
    let completions = to.join("completions");
    fs::create_dir(&completions)?;
    let shells = [
        ("bash", "backdraft.bash"),
        ("zsh", "_backdraft"),
        ("fish", "backdraft.fish"),
        ("powershell", "_backdraft.ps1"),
    ];
    for (shell, name) in shells {
        let output = backdraft().args(["completions", shell]).output()?;
        ensure!(
            output.status.success(),
            "backdraft completions {shell}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        fs::write(completions.join(name), output.stdout)?;
    }
    let output = backdraft()
        .arg("man")
        .arg("--out")
        .arg(to.join("man"))
        .output()?;
    if !output.status.success() {
        bail!("backdraft man: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// What cargo runs programs of a target with.
fn runner(target: Target) -> Option<String> {
    let triple = target.triple().to_uppercase().replace('-', "_");
    let runner = env::var(format!("CARGO_TARGET_{triple}_RUNNER")).ok()?;
    (!runner.trim().is_empty()).then_some(runner)
}

/// Where cargo builds.
fn target_dir(root: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// Folders of this machine, and what stands for them in the program.
fn moved(root: &Path, target_dir: &Path) -> anyhow::Result<Vec<(String, &'static str)>> {
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = || env::home_dir().map(|home| home.join(".cargo"));
    let cargo = cargo
        .or_else(home)
        .context("neither CARGO_HOME nor a home folder")?;
    let registry = cargo.join("registry").join("src");
    // One folder for each registry, whose name has a hash of its address.
    let mut moved = vec![(cargo, "/cargo")];
    let sources = fs::read_dir(registry).into_iter().flatten().flatten();
    moved.extend(sources.map(|entry| (entry.path(), "/registry")));
    moved.push((root.to_owned(), "/backdraft"));
    // The last that fits is taken: the target folder may lie in the workspace.
    moved.push((target_dir.to_owned(), "/target"));
    let text = |(path, to): (PathBuf, _)| {
        let path = path.to_str().context("a path that is not UTF-8")?;
        Ok((path.to_owned(), to))
    };
    moved.into_iter().map(text).collect()
}
