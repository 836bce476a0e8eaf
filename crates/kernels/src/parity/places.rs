//! Where ops are tested, and how closely results must agree there.

use std::cell::Cell;
use std::sync::OnceLock;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::device;

/// A device and a dtype.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) device: Device,
    pub(super) dtype: DType,
    name: &'static str,
    /// As [`tolerance`] says.
    tolerance: f32,
    /// Whether it is llvmpipe, which leaves a shader's loops without a word after 65,535 turns in all
    /// (`LP_MAX_TGSI_LOOP_ITERATIONS` of Mesa).
    pub(super) ends_loops: bool,
}

impl Place {
    /// Flex in f32, where the CPU kernels are.
    pub(super) fn cpu() -> Self {
        Self {
            device: Device::flex(),
            dtype: DType::F32,
            name: "flex",
            tolerance: tolerance("flex", DType::F32),
            ends_loops: false,
        }
    }

    /// Whether it is not the processor.
    pub(super) fn is_gpu(&self) -> bool {
        self.name != "flex"
    }

    /// Whether it is an NVIDIA card.
    #[cfg(feature = "cuda")]
    pub(super) fn is_cuda(&self) -> bool {
        self.name == "cuda"
    }

    /// `x` there.
    pub(super) fn put<const D: usize>(&self, x: &Tensor<D>) -> Tensor<D> {
        let data = x.clone().inner().into_data().convert_dtype(self.dtype);
        Tensor::from_data(data, (&self.device, self.dtype))
    }

    /// `x` there, in f32.
    pub(super) fn put_f32<const D: usize>(&self, x: &Tensor<D>) -> Tensor<D> {
        let data = x.clone().inner().into_data();
        Tensor::from_data(data, (&self.device, DType::F32))
    }

    /// `x` with the precision it has there, in f32 on the processor.
    pub(super) fn round<const D: usize>(&self, x: &Tensor<D>) -> Tensor<D> {
        let data = x.clone().into_data().convert_dtype(self.dtype);
        Tensor::from_data(data.convert_dtype(DType::F32), &Device::flex())
    }

    /// Every difference, relative to the largest expected value; inputs are of order 1, so values that
    /// cancel to nothing are compared with 0.1.
    #[track_caller]
    pub(super) fn assert_close<const D: usize>(
        &self,
        what: &str,
        actual: Tensor<D>,
        expected: Tensor<D>,
    ) {
        let place = format!("{} {}", self.name, self.dtype.name());
        assert_eq!(actual.dims(), expected.dims(), "{place}: {what}: shape");
        let [actual, expected] = [actual, expected].map(|x| {
            let data = x.inner().into_data().convert_dtype(DType::F32);
            data.try_into_vec::<f32>().unwrap()
        });
        let largest = expected.iter().fold(0.1f32, |m, x| m.max(x.abs()));
        for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
            let error = (a - e).abs() / largest;
            assert!(
                error <= self.tolerance,
                "{place}: {what}[{i}]: {a} instead of {e} (largest {largest})"
            );
        }
    }
}

/// Every device of this build that is there, with each dtype it computes in. What is missing is said, and an
/// error if `BACKDRAFT_PARITY` names it.
pub(super) fn places() -> &'static [Place] {
    static PLACES: OnceLock<Vec<Place>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let half = [DType::F32, DType::F16];
        let all = [DType::F32, DType::F16, DType::BF16];
        let on = |device: Device, dtypes: &[DType], name| {
            let ends_loops = device::report(&device).to_string().contains("llvmpipe");
            let places = dtypes.iter().map(move |&dtype| Place {
                device: device.clone(),
                dtype,
                name,
                tolerance: tolerance(name, dtype),
                ends_loops,
            });
            places.collect::<Vec<_>>()
        };
        let mut places = on(Device::flex(), &all, "flex");
        // WebGPU's language has no bf16.
        for (device, dtypes, name) in [
            (device::wgpu(), &half[..], "wgpu"),
            (device::cuda(0), &all[..], "cuda"),
        ] {
            match device {
                Ok(device) => {
                    say(&format!("parity on {}", device::report(&device)));
                    places.extend(on(device, dtypes, name));
                }
                Err(error) => {
                    let wanted = std::env::var("BACKDRAFT_PARITY").is_ok_and(|it| it == name);
                    assert!(!wanted, "no parity on {name}: {error}");
                    say(&format!("no parity on {name}: {error}"));
                }
            }
        }
        places
    })
}

/// How far results may be from exact ones, relative to the largest: a few roundings.
fn tolerance(name: &str, dtype: DType) -> f32 {
    match (dtype, name) {
        (DType::F16, _) => 4e-3,
        (DType::BF16, _) => 3e-2,
        (_, "flex") => 2e-5,
        _ => 1e-4,
    }
}

#[expect(clippy::print_stderr, reason = "what a test leaves out is said")]
pub(super) fn say(line: &str) {
    eprintln!("{line}");
}

thread_local! {
    /// Draws so far. A test has a thread of its own, so it sees the same values whatever runs beside it.
    static DRAWN: Cell<u64> = const { Cell::new(0) };
}

/// From 0 to below 1: splitmix64 of the number of draws.
fn uniform() -> f64 {
    let n = DRAWN.get() + 1;
    DRAWN.set(n);
    let mut z = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// Values of a normal distribution, by Box and Muller.
pub(super) fn normal(count: usize) -> Vec<f32> {
    let value = || {
        let length = (-2.0 * (1.0 - uniform()).ln()).sqrt();
        (length * (std::f64::consts::TAU * uniform()).cos()) as f32
    };
    std::iter::repeat_with(value).take(count).collect()
}

/// Values of a normal distribution, f32 on the processor.
pub(crate) fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let values = normal(shape.iter().product());
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// As a leaf whose gradient is recorded.
fn leaf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    x.autodiff().require_grad()
}

/// Compares `op` everywhere with `reference` on the processor in f32, on the same rounded inputs: output,
/// and each input's gradient under one random cotangent.
#[track_caller]
pub(super) fn compare<const N: usize>(
    inputs: [Tensor<2>; N],
    op: impl Fn(&Place, [Tensor<2>; N]) -> Tensor<2>,
    reference: impl Fn(&Place, [Tensor<2>; N]) -> Tensor<2>,
) {
    for place in places() {
        compare_at(place, &inputs, &op, &reference);
    }
}

/// [`compare`] at one place.
#[track_caller]
pub(super) fn compare_at<const N: usize>(
    place: &Place,
    inputs: &[Tensor<2>; N],
    op: impl Fn(&Place, [Tensor<2>; N]) -> Tensor<2>,
    reference: impl Fn(&Place, [Tensor<2>; N]) -> Tensor<2>,
) {
    let ours = inputs.each_ref().map(|x| leaf(place.put(x)));
    let theirs = inputs.each_ref().map(|x| leaf(place.round(x)));
    let y = op(place, ours.clone());
    let expected = reference(place, theirs.clone());
    place.assert_close("output", y.clone(), expected.clone());
    let dy = random(expected.dims());
    let dtype = y.dtype();
    let ours_dy = place.put(&dy).cast(dtype);
    let grads = (y * ours_dy).sum().backward();
    let expected_grads = (expected * place.round(&dy)).sum().backward();
    for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        place.assert_close(
            &format!("gradient of input {i}"),
            a.grad(&grads).unwrap(),
            b.grad(&expected_grads).unwrap(),
        );
    }
}
