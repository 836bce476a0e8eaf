//! Quantisation and reading on the processor.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backdraft_formats::dtype::{from_f32, to_f32};
use backdraft_formats::{Dtype, ModelSource};
use backdraft_kernels::codebook::FourBitFormat;
use backdraft_kernels::quantize::{four_bit, int8_rows, reference};
use backdraft_model::Llama;
use backdraft_quant::{QuantizationPlan, Scheme};
use backdraft_train::memory::{peak_resident, resident};
use burn::tensor::Device;

const ROWS: usize = 4096;
const WIDTH: usize = 4096;

/// Throughput of each format: value by value, and as it is done.
pub(crate) fn throughput() {
    let values: Vec<f32> = (0..ROWS * WIDTH)
        .map(|i| ((i as f32 * 0.618_034).fract() - 0.5) * ((i % 97) as f32 + 1.0) * 1e-3)
        .collect();
    let bf16 = from_f32(Dtype::BF16, &values).unwrap_or_default();
    println!("| format | input | value by value | tuned |\n| --- | --- | ---: | ---: |");
    for format in [FourBitFormat::Nf4, FourBitFormat::Fp4] {
        let plain = gb_per_second(4, || {
            drop(black_box(reference::four_bit(&values, format, 64)))
        });
        let tuned = gb_per_second(4, || drop(black_box(four_bit(&values, format, 64))));
        row(format.name(), "f32", Some(plain), tuned);
        let tuned = gb_per_second(2, || {
            let values = to_f32(Dtype::BF16, &bf16).unwrap_or_default();
            drop(black_box(four_bit(&values, format, 64)));
        });
        row(format.name(), "bf16", None, tuned);
    }
    let tuned = gb_per_second(4, || drop(black_box(int8_rows(&values, WIDTH))));
    row("int8", "f32", None, tuned);
}

fn row(format: &str, input: &str, plain: Option<f64>, tuned: f64) {
    let plain = plain.map_or("–".to_owned(), |plain| format!("{plain:.3} GB/s"));
    println!("| {format} | {input} | {plain} | {tuned:.2} GB/s |");
}

/// Gigabytes of input a second, the median of seven runs after one to warm up.
fn gb_per_second(bytes_per_value: usize, run: impl Fn()) -> f64 {
    run();
    let mut seconds: Vec<f64> = (0..7)
        .map(|_| {
            let began = Instant::now();
            run();
            began.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    (ROWS * WIDTH * bytes_per_value) as f64 / seconds[3] / 1e9
}

/// Reads a model into NF4 and prints the process's memory over time.
pub(crate) fn load(path: &Path) -> anyhow::Result<()> {
    let source = ModelSource::open(path)?;
    let mut sizes: Vec<usize> = source
        .tensor_names()
        .filter_map(|name| source.tensor_info(name)?.checked_bytes())
        .collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let began = Instant::now();
    let done = Arc::new(AtomicBool::new(false));
    let watcher = thread::spawn({
        let done = done.clone();
        move || {
            let mut next = 0.0;
            while !done.load(Ordering::Relaxed) {
                let seconds = began.elapsed().as_secs_f64();
                if seconds >= next {
                    println!("{seconds:6.1} s  resident {}", gb(resident().unwrap_or(0)));
                    next = seconds + 2.0;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
    });
    let plan = QuantizationPlan::new(Scheme::NF4);
    let mut model = Llama::load_quantized(&source, Some(&plan), &Device::flex())?;
    let seconds = began.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    if watcher.join().is_err() {
        anyhow::bail!("the watcher failed");
    }
    for share in model.stored() {
        println!(
            "{}: {} tensors, {:.1} M weights, {:.3} bits each, {}",
            share.stored_as,
            share.tensors,
            share.params as f64 / 1e6,
            share.bits_per_weight(),
            gb(share.bytes)
        );
    }
    let quantized: usize = model.stored().iter().map(|share| share.bytes).sum();
    let largest: usize = sizes.iter().take(2).sum();
    println!(
        "read in {seconds:.1} s; peak resident {}, quantised model {} + its two largest tensors in the file {} = {}",
        gb(peak_resident().unwrap_or(0)),
        gb(quantized),
        gb(largest),
        gb(quantized + largest)
    );
    Ok(())
}

fn gb(bytes: usize) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
