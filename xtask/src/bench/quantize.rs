//! Quantisation and reading on the processor.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backdraft_formats::dtype::{from_f32, to_f32_into};
use backdraft_formats::{Dtype, ModelSource};
use backdraft_kernels::codebook::{FourBitFormat, NestedFormat};
use backdraft_kernels::quantize::{four_bit, int8_rows, nested_codes, planes, reference};
use backdraft_model::CausalLm;
use backdraft_plan::memory::{peak_resident, resident};
use backdraft_quant::{QuantizationPlan, Scheme};
use burn::tensor::Device;

const ROWS: usize = 1024;
const WIDTH: usize = 4096;
/// Timed runs of each case.
const RUNS: usize = 200;
/// Values that are widened at a time.
const PIECE: usize = 1 << 18;

/// Throughput of each format: value by value, in vector registers on one core, and on all of them.
pub(crate) fn throughput() -> anyhow::Result<()> {
    let values: Vec<f32> = (0..ROWS * WIDTH)
        .map(|i| ((i as f32 * 0.618_034).fract() - 0.5) * ((i % 97) as f32 + 1.0) * 1e-3)
        .collect();
    let bf16 = from_f32(Dtype::BF16, &values).unwrap_or_default();
    let one_core = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    println!(
        "GB/s of input, best (median) of {RUNS} runs; {} threads\n\n\
         | format | input | value by value | vectors, one core | vectors, all cores |\n\
         | --- | --- | ---: | ---: | ---: |",
        rayon::current_num_threads()
    );
    for format in [FourBitFormat::Nf4, FourBitFormat::Fp4] {
        let plain = || drop(black_box(reference::four_bit(&values, format, 64)));
        let tuned = || drop(black_box(four_bit(&values, format, 64)));
        let widened = || {
            pieces(&bf16, |values| {
                drop(black_box(four_bit(values, format, 64)))
            })
        };
        row((format.name(), "f32"), 4, Some(&plain), (&one_core, &tuned));
        row((format.name(), "bf16"), 2, None, (&one_core, &widened));
    }
    for &format in NestedFormat::ALL {
        let nested = |values: &[f32]| {
            let blocks = nested_codes(values, 64);
            drop(black_box((planes(&blocks.codes, format), blocks.absmax)));
        };
        let plain = || {
            let codes = reference::nested_codes(&values, 64).codes;
            drop(black_box(reference::planes(&codes, format)));
        };
        let tuned = || nested(&values);
        let widened = || pieces(&bf16, nested);
        row((format.name(), "f32"), 4, Some(&plain), (&one_core, &tuned));
        row((format.name(), "bf16"), 2, None, (&one_core, &widened));
    }
    let tuned = || drop(black_box(int8_rows(&values, WIDTH)));
    let widened = || pieces(&bf16, |values| drop(black_box(int8_rows(values, WIDTH))));
    row(("int8", "f32"), 4, None, (&one_core, &tuned));
    row(("int8", "bf16"), 2, None, (&one_core, &widened));
    Ok(())
}

/// Widens and quantises as a loader does: a piece at a time.
fn pieces(bf16: &[u8], quantise: impl Fn(&[f32])) {
    let mut buffer = vec![0.0; PIECE];
    for piece in bf16.chunks(2 * PIECE) {
        let values = &mut buffer[..piece.len() / 2];
        to_f32_into(Dtype::BF16, piece, values);
        quantise(values);
    }
}

fn row(
    (format, input): (&str, &str),
    bytes_per_value: usize,
    plain: Option<&dyn Fn()>,
    (one_core, tuned): (&rayon::ThreadPool, &(dyn Fn() + Sync)),
) {
    let plain = plain.map_or("–".to_owned(), |plain| rate(bytes_per_value, plain));
    let single = one_core.install(|| rate(bytes_per_value, tuned));
    let all = rate(bytes_per_value, tuned);
    println!("| {format} | {input} | {plain} | {single} | {all} |");
}

/// Gigabytes of input a second: the best run and the median one, after one to warm up.
fn rate(bytes_per_value: usize, run: impl Fn()) -> String {
    run();
    let mut seconds: Vec<f64> = (0..RUNS)
        .map(|_| {
            let began = Instant::now();
            run();
            began.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    let gb = (ROWS * WIDTH * bytes_per_value) as f64 / 1e9;
    format!("{:.2} ({:.2})", gb / seconds[0], gb / seconds[RUNS / 2])
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
    let mut model = CausalLm::load_quantized(&source, Some(&plan), &Device::flex())?;
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
        "read {} in {seconds:.1} s, {:.2} GB/s; peak resident {}, quantised model {} + its two largest tensors in \
         the file {} = {}",
        gb(sizes.iter().sum()),
        sizes.iter().sum::<usize>() as f64 / seconds / 1e9,
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
