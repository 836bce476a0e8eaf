//! The kernels on a GPU: each is checked against its reference first, then timed; a table comes last.
//!
//! ```text
//! cargo bench -p backdraft-kernels --features cuda --bench gpu -- [--device cuda:0|wgpu] [--dtype bf16|f16|f32]
//!     [--only NAME] [--small] [--rows FILE] [--commit ID]
//! ```
//! `--rows` adds one JSON object for each kernel to a file.

#![expect(clippy::print_stdout, reason = "a command-line program")]

mod cases;
mod measure;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use backdraft_kernels::device::{self, DeviceReport};
use burn::tensor::{DType, Device};

use measure::{Bench, Row};

type Error = Box<dyn std::error::Error>;

/// What to run, and where to put it.
struct Options {
    device: String,
    dtype: DType,
    only: String,
    small: bool,
    rows: Option<PathBuf>,
    commit: Option<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Error> {
        let mut options = Self {
            device: "cuda".to_owned(),
            dtype: DType::BF16,
            only: String::new(),
            small: false,
            rows: None,
            commit: None,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("expected a value after {argument}"))
            };
            match argument.as_str() {
                "--device" => options.device = value()?,
                "--dtype" => options.dtype = dtype(&value()?)?,
                "--only" => options.only = value()?,
                "--small" => options.small = true,
                "--rows" => options.rows = Some(value()?.into()),
                "--commit" => options.commit = Some(value()?),
                // Cargo's own.
                "--bench" => {}
                _ => return Err(format!("found an unknown argument: {argument}").into()),
            }
        }
        Ok(options)
    }
}

fn dtype(name: &str) -> Result<DType, Error> {
    match name {
        "bf16" => Ok(DType::BF16),
        "f16" => Ok(DType::F16),
        "f32" => Ok(DType::F32),
        _ => Err(format!("expected the dtype bf16, f16 or f32, found {name}").into()),
    }
}

fn main() -> ExitCode {
    match Options::parse(std::env::args().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Checks and times; prints a table at the end.
fn run(options: Options) -> Result<(), Error> {
    let device = open(&options.device)?;
    let report = device::report(&device);
    println!("{report}");
    let mut bench = Bench::new(device, options.dtype, options.only);
    cases::run(&mut bench, options.small);
    let commit = options.commit.unwrap_or_else(commit);
    if let Some(path) = &options.rows {
        append(path, &bench.rows, &report, &commit)
            .map_err(|error| format!("could not add rows to {}: {error}", path.display()))?;
    }
    print(&bench.rows);
    let wrong = bench.rows.iter().filter(|row| !row.right()).count();
    if wrong > 0 {
        return Err(format!("{wrong} kernels differ from their reference").into());
    }
    Ok(())
}

fn open(name: &str) -> Result<Device, Error> {
    let (backend, index) = name.split_once(':').unwrap_or((name, "0"));
    let index = index
        .parse()
        .map_err(|_| format!("expected a device such as cuda:0, found {name}"))?;
    match backend {
        "cuda" => Ok(device::cuda(index)?),
        "wgpu" => Ok(device::wgpu()?),
        _ => Err(format!("expected the device cuda, cuda:1 or wgpu, found {name}").into()),
    }
}

fn append(path: &Path, rows: &[Row], report: &DeviceReport, commit: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let number = |value: Option<f64>| value.map_or("null".to_owned(), |v| format!("{v:.1}"));
    for row in rows {
        // Names hold no quotes and numbers are finite, as `time` sees to.
        writeln!(
            file,
            concat!(
                r#"{{"bench":"gpu","commit":"{}","device":"{}","driver":"{}","op":"{}","#,
                r#""shape":"{}","dtype":"{}","error":{:e},"milliseconds":{:.5},"#,
                r#""milliseconds_min":{:.5},"milliseconds_max":{:.5},"host_microseconds":{:.2},"#,
                r#""gigabytes_per_second":{},"teraflops_per_second":{}}}"#,
            ),
            commit,
            report.name,
            report.driver.as_deref().unwrap_or(""),
            row.op,
            row.shape,
            row.dtype,
            row.error.min(f64::MAX),
            row.milliseconds,
            row.fastest,
            row.slowest,
            row.host_microseconds,
            number(row.gigabytes_per_second()),
            number(row.teraflops_per_second()),
        )?;
    }
    Ok(())
}

fn print(rows: &[Row]) {
    println!(
        "{:<22} {:<26} {:<5} {:>9} {:>9} {:>8} {:>8} {:>9}",
        "op", "shape", "dtype", "error", "ms", "GB/s", "TFLOP/s", "host µs"
    );
    for row in rows {
        let number = |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.0}"));
        println!(
            "{:<22} {:<26} {:<5} {:>9.1e} {:>9.4} {:>8} {:>8} {:>9.1}{}",
            row.op,
            row.shape,
            row.dtype,
            row.error,
            row.milliseconds,
            number(row.gigabytes_per_second()),
            number(row.teraflops_per_second()),
            row.host_microseconds,
            if row.right() { "" } else { "  WRONG" },
        );
    }
}

fn commit() -> String {
    let output = std::process::Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output();
    match output {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
