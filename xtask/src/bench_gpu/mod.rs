//! Kernels on a GPU: each is checked against its reference first, then timed.

mod cases;
mod measure;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use backdraft_kernels::device;
use burn::tensor::{DType, Device};

use measure::{Bench, Row};

/// What to run, and where to put it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// `cuda`, `cuda:1` or `wgpu`.
    #[arg(long, default_value = "cuda")]
    device: String,
    /// bf16, f16 or f32.
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// Only kernels whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Small shapes, for a device in software.
    #[arg(long)]
    small: bool,
    /// Rows are added to this file, one JSON object a line.
    #[arg(long)]
    rows: Option<PathBuf>,
    /// The commit that the rows name; asked of git by default.
    #[arg(long)]
    commit: Option<String>,
}

/// Checks and times; prints a table at the end.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    let device = open(&options.device)?;
    let report = device::report(&device);
    println!("{report}");
    let dtype = match options.dtype.as_str() {
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        "f32" => DType::F32,
        other => anyhow::bail!("expected the dtype bf16, f16 or f32, found {other}"),
    };
    let mut bench = Bench::new(device, dtype, options.only.clone());
    cases::run(&mut bench, options.small);
    let commit = options.commit.clone().unwrap_or_else(commit);
    if let Some(path) = &options.rows {
        append(path, &bench.rows, &report, &commit)
            .with_context(|| format!("could not add rows to {}", path.display()))?;
    }
    print(&bench.rows);
    let wrong = bench.rows.iter().filter(|row| !row.right()).count();
    anyhow::ensure!(wrong == 0, "{wrong} kernels differ from their reference");
    Ok(())
}

fn open(name: &str) -> anyhow::Result<Device> {
    let (backend, index) = name.split_once(':').unwrap_or((name, "0"));
    let index = index
        .parse()
        .with_context(|| format!("expected a device such as cuda:0, found {name}"))?;
    Ok(match backend {
        "cuda" => device::cuda(index)?,
        "wgpu" => device::wgpu()?,
        _ => anyhow::bail!("expected the device cuda, cuda:1 or wgpu, found {name}"),
    })
}

fn append(
    path: &std::path::Path,
    rows: &[Row],
    report: &device::DeviceReport,
    commit: &str,
) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    for row in rows {
        let row = serde_json::json!({
            "bench": "gpu",
            "commit": commit,
            "device": report.name,
            "driver": report.driver,
            "op": row.op,
            "shape": row.shape,
            "dtype": row.dtype,
            "error": row.error,
            "milliseconds": row.milliseconds,
            "milliseconds_min": row.fastest,
            "milliseconds_max": row.slowest,
            "host_microseconds": row.host_microseconds,
            "gigabytes_per_second": row.gigabytes_per_second(),
            "teraflops_per_second": row.teraflops_per_second(),
        });
        writeln!(file, "{row}")?;
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
