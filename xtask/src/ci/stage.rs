//! The stages, cheap ones first.

use anyhow::{Context, bail};

use super::{cargo, deny, here};

/// A check with a name.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    /// Part of a run without names. The others are parts of `test`, or need what few machines have.
    pub(crate) by_default: bool,
    pub(crate) run: fn() -> anyhow::Result<Outcome>,
}

/// What became of a stage that did not fail.
pub(crate) enum Outcome {
    Passed,
    /// Nothing was checked, for this reason.
    Skipped(String),
}

const RELEASE: [&str; 2] = ["--release", "--workspace"];
/// Tests that start the program or train whole runs.
const PROCESS: [&str; 6] = [
    "program",
    "control",
    "kill",
    "loss_scale",
    "processes",
    "ranks",
];
const GPU: &str = "backdraft-cli/cuda,backdraft-cli/wgpu,backdraft-cli/mpi,xtask/cuda";

pub(crate) const STAGES: &[Stage] = &[
    Stage {
        name: "fmt",
        what: "rustfmt's layout",
        by_default: true,
        run: || cargo_does(&["fmt", "--all", "--check"], &[]),
    },
    Stage {
        name: "tidy",
        what: "rules of the tree: edges between crates, where unsafe code stands",
        by_default: true,
        run: || cargo_does(&["test", "--release", "--quiet", "-p", "xtask"], &[]),
    },
    Stage {
        name: "typos",
        what: "spelling, by typos (_typos.toml)",
        by_default: true,
        run: here::typos,
    },
    Stage {
        name: "deny",
        what: "licences, banned crates and sources of dependencies, offline (deny.toml)",
        by_default: true,
        run: deny::check,
    },
    Stage {
        name: "clippy",
        what: "clippy on the program, tests, examples and benchmarks; warnings are errors",
        by_default: true,
        run: || clippy("xtask/bench"),
    },
    Stage {
        name: "clippy-gpu",
        what: "the same with the code for CUDA, WebGPU and MPI",
        by_default: true,
        run: || clippy(GPU),
    },
    Stage {
        name: "doc",
        what: "rustdoc; a broken link is an error",
        by_default: true,
        run: || {
            let args = [&["doc"], &RELEASE[..], &["--no-deps"]].concat();
            cargo_does(&args, &[("RUSTDOCFLAGS", "-D warnings")])
        },
    },
    Stage {
        name: "facade",
        what: "the library without its default features, and examples/embed.rs on it",
        by_default: true,
        run: || {
            let args = "check --release -p backdraft --no-default-features --example embed";
            let args: Vec<&str> = args.split(' ').collect();
            cargo_does(&args, &[])
        },
    },
    Stage {
        name: "test",
        what: "all tests: the README's test command",
        by_default: true,
        run: || test(&[]),
    },
    Stage {
        name: "unit",
        what: "of `test`: tests beside the code, one binary for each crate",
        by_default: false,
        run: || test(&["--lib", "--bins"]),
    },
    Stage {
        name: "golden",
        what: "of `test`: values that the Python stack made",
        by_default: false,
        run: || test(&["golden"]),
    },
    Stage {
        name: "process",
        what: "of `test`: runs of the program and of whole trainings, killed ones too",
        by_default: false,
        run: || test(&PROCESS.map(|name| ["--test", name]).concat()),
    },
    Stage {
        name: "doctest",
        what: "of `test`: examples in the documentation",
        by_default: false,
        run: || test(&["--doc"]),
    },
    Stage {
        name: "mpi",
        what: "ranks that Open MPI's mpirun starts, their sums and runs to the bit",
        by_default: true,
        run: mpi,
    },
    Stage {
        name: "parity-wgpu",
        what: "every kernel against its reference, through WebGPU (a software device will do)",
        by_default: true,
        run: || parity("wgpu"),
    },
    Stage {
        name: "parity-cuda",
        what: "the same on an NVIDIA GPU, in f32, f16 and bf16",
        by_default: false,
        run: || parity("cuda"),
    },
];

/// Runs cargo from the folder of the workspace.
fn cargo_does(args: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<Outcome> {
    println!("   cargo {}", args.join(" "));
    let mut command = cargo();
    command.args(args).envs(environment.iter().copied());
    let status = command.status().context("cargo")?;
    if !status.success() {
        bail!("cargo {} ended with {status}", args.join(" "));
    }
    Ok(Outcome::Passed)
}

fn clippy(features: &str) -> anyhow::Result<Outcome> {
    let rest = [
        "--all-targets",
        "--features",
        features,
        "--",
        "-D",
        "warnings",
    ];
    cargo_does(&[&["clippy"], &RELEASE[..], &rest].concat(), &[])
}

fn test(which: &[&str]) -> anyhow::Result<Outcome> {
    cargo_does(&[&["test"], &RELEASE[..], which].concat(), &[])
}

/// Tests of the exchange between ranks; without `mpirun` they would check nothing.
fn mpi() -> anyhow::Result<Outcome> {
    if let Some(missing) = here::no_mpirun() {
        return Ok(Outcome::Skipped(missing));
    }
    let sums = ["-p", "backdraft-comm", "--features", "mpi", "--test", "mpi"];
    cargo_does(&[&["test", "--release"], &sums[..]].concat(), &[])?;
    test(&[
        "--features",
        "backdraft-cli/mpi",
        "--test",
        "ranks",
        "mpirun",
    ])
}

/// The parity tests of the kernels on one kind of device; a device that is not there fails them.
fn parity(device: &str) -> anyhow::Result<Outcome> {
    if let Some(missing) = here::missing(device) {
        return Ok(Outcome::Skipped(missing));
    }
    let kernels = ["-p", "backdraft-kernels", "--lib", "--features", device];
    let args = [&["test", "--release"], &kernels[..], &["parity"]].concat();
    // Vulkan's loader wants the folder, but nothing in it.
    let runtime = std::env::var("XDG_RUNTIME_DIR").unwrap_or_else(|_| "/tmp".to_owned());
    let environment = [("BACKDRAFT_PARITY", device), ("XDG_RUNTIME_DIR", &*runtime)];
    cargo_does(&args, &environment)
}
