//! Checking and timing one kernel.

use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Tensor};

/// Input sets that calls go through in turn, so that none finds its input in a cache.
pub(super) const SETS: usize = 3;
/// Timed batches.
const BATCHES: usize = 11;
/// What a batch should take, in seconds.
const BATCH_SECONDS: f64 = 0.01;

/// What a call does at least.
#[derive(Clone, Copy, Default)]
pub(super) struct Work {
    /// Bytes that must move, each once.
    pub(super) bytes: f64,
    /// Floating-point operations.
    pub(super) flops: f64,
}

/// One kernel's figures.
pub(super) struct Row {
    pub(super) op: String,
    pub(super) shape: String,
    pub(super) dtype: &'static str,
    /// ‖result − reference‖ / ‖reference‖, the worst of all results.
    pub(super) error: f64,
    pub(super) milliseconds: f64,
    pub(super) fastest: f64,
    pub(super) slowest: f64,
    /// What a call costs the host.
    pub(super) host_microseconds: f64,
    work: Work,
    allowed: f64,
}

impl Row {
    pub(super) fn right(&self) -> bool {
        self.error <= self.allowed
    }

    pub(super) fn gigabytes_per_second(&self) -> Option<f64> {
        (self.work.bytes > 0.0).then(|| self.work.bytes / self.milliseconds / 1e6)
    }

    pub(super) fn teraflops_per_second(&self) -> Option<f64> {
        (self.work.flops > 0.0).then(|| self.work.flops / self.milliseconds / 1e9)
    }
}

/// Where kernels run, and what was found so far.
pub(super) struct Bench {
    pub(super) device: Device,
    pub(super) dtype: DType,
    pub(super) rows: Vec<Row>,
    only: String,
}

impl Bench {
    pub(super) fn new(device: Device, dtype: DType, only: String) -> Self {
        Self {
            device,
            dtype,
            rows: Vec::new(),
            only,
        }
    }

    /// Whether to run `op`.
    pub(super) fn wants(&self, op: &str) -> bool {
        op.contains(&self.only)
    }

    /// Bytes of a value.
    pub(super) fn size(&self) -> f64 {
        self.dtype.size() as f64
    }

    /// Normal values of the bench's dtype.
    pub(super) fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        self.random_f32(shape).cast(self.dtype)
    }

    /// Normal values in f32.
    pub(super) fn random_f32<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::random(shape, normal, (&self.device, DType::F32))
    }

    /// [`SETS`] inputs.
    pub(super) fn sets<const D: usize>(&self, shape: [usize; D]) -> Vec<Tensor<D>> {
        (0..SETS).map(|_| self.random(shape)).collect()
    }

    /// Adds a row: `error` was found by the caller, `call` gets the number of an input set.
    pub(super) fn time<R>(
        &mut self,
        (op, shape): (&str, String),
        work: Work,
        error: f64,
        mut call: impl FnMut(usize) -> R,
    ) {
        // Warm-up: compilation, plans, pools.
        for i in 0..2 * SETS {
            drop(call(i % SETS));
        }
        self.sync();
        let began = Instant::now();
        drop(call(0));
        self.sync();
        let once = began.elapsed().as_secs_f64();
        let calls = (BATCH_SECONDS / once).clamp(2.0, 200.0) as usize;
        let (mut times, mut host) = (Vec::new(), Vec::new());
        for _ in 0..BATCHES {
            let began = Instant::now();
            for i in 0..calls {
                drop(call(i % SETS));
            }
            host.push(began.elapsed().as_secs_f64() / calls as f64 * 1e6);
            self.sync();
            times.push(began.elapsed().as_secs_f64() / calls as f64 * 1e3);
        }
        times.sort_by(f64::total_cmp);
        host.sort_by(f64::total_cmp);
        let row = Row {
            op: op.to_owned(),
            shape,
            dtype: self.dtype.name(),
            error,
            milliseconds: times[BATCHES / 2],
            fastest: times[0],
            slowest: times[BATCHES - 1],
            host_microseconds: host[BATCHES / 2],
            work,
            allowed: if self.dtype == DType::F32 { 1e-5 } else { 1e-2 },
        };
        println!(
            "{op} {} error {:.1e}: {:.4} ms",
            row.shape, row.error, row.milliseconds
        );
        self.rows.push(row);
    }

    fn sync(&self) {
        if let Err(error) = self.device.sync() {
            println!("the device failed: {error:?}");
        }
    }
}

/// ‖actual − expected‖ / ‖expected‖ on the host in f64.
pub(super) fn distance<const D: usize>(actual: Tensor<D>, expected: Tensor<D>) -> f64 {
    let values = |x: Tensor<D>| -> Vec<f32> {
        let data = x.into_data().convert_dtype(DType::F32);
        data.iter::<f32>().collect()
    };
    relative(&values(actual), &values(expected))
}

/// The same of slices; infinite where lengths differ or a value is none.
pub(super) fn relative(actual: &[f32], expected: &[f32]) -> f64 {
    let (mut off, mut norm) = (0f64, 0f64);
    for (&a, &e) in actual.iter().zip(expected) {
        off += f64::from(a - e).powi(2);
        norm += f64::from(e).powi(2);
    }
    let error = (off / norm).sqrt();
    if actual.len() != expected.len() || error.is_nan() {
        return f64::INFINITY;
    }
    error
}
