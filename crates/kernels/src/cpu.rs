//! f32 slices of Flex tensors, and the loops the CPU kernels share.

use std::mem::MaybeUninit;
use std::ops::Deref;

use burn::backend::Flex;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// The contiguous f32 values of a tensor on the Flex backend.
pub(crate) struct F32s(FlexTensor);

impl Deref for F32s {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let layout = self.0.layout();
        let start = layout.start_offset();
        &self.0.storage::<f32>()[start..start + layout.num_elements()]
    }
}

/// The values of `tensor`, or `None` where it is not f32 on the Flex backend (a tensor with autodiff
/// is not): then the reference takes over.
pub(crate) fn f32s<const D: usize>(tensor: &Tensor<D>) -> Option<F32s> {
    if tensor.dtype() != DType::F32 {
        return None;
    }
    let primitive = tensor.clone().try_into_primitive::<Flex>().ok()?;
    Some(F32s(primitive.to_contiguous()))
}

/// The contiguous values of an integer tensor on the Flex backend.
pub(crate) struct Ints<E>(FlexTensor, std::marker::PhantomData<E>);

impl<E: bytemuck::Pod + burn::tensor::Element> Deref for Ints<E> {
    type Target = [E];

    fn deref(&self) -> &[E] {
        let layout = self.0.layout();
        let start = layout.start_offset();
        &self.0.storage::<E>()[start..start + layout.num_elements()]
    }
}

/// The values of `tensor`, or `None` where it is not of type `E` on the Flex backend.
pub(crate) fn ints<E: bytemuck::Pod + burn::tensor::Element, const D: usize>(
    tensor: &Tensor<D, Int>,
) -> Option<Ints<E>> {
    if tensor.dtype() != E::dtype() {
        return None;
    }
    let primitive = tensor.clone().try_into_primitive::<Flex>().ok()?;
    Some(Ints(primitive.to_contiguous(), std::marker::PhantomData))
}

/// A Flex tensor that owns `values`.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(TensorData::new(values, shape)))
}

/// The values of `tensor` for in-place work; copied only when somebody else holds them.
pub(crate) fn into_vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    match tensor.into_data().try_into_vec() {
        Ok(values) => values,
        Err(error) => panic!("expected f32 values: {error:?}"),
    }
}

/// A vector of `rows × width` values that `write` fills row by row, in parallel.
///
/// `write` gets the row's number and must write all of its values; as with [`simd`], it must be marked
/// `#[inline(always)]`.
pub(crate) fn build_rows(
    rows: usize,
    width: usize,
    write: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(rows * width);
    if width > 0 {
        values.spare_capacity_mut()[..rows * width]
            .par_chunks_mut(width)
            .with_min_len(grain(width))
            .enumerate()
            .for_each(|(row, out)| {
                simd(
                    #[inline(always)]
                    || write(row, out),
                )
            });
    }
    #[expect(unsafe_code, reason = "the rows were just written")]
    // SAFETY: capacity is at least `rows * width`, and `write` has initialised each row.
    unsafe {
        values.set_len(rows * width);
    }
    values
}

/// Columns that a task sums, so that it reads whole lines of the cache.
const COLUMNS: usize = 64;

/// Sums over rows: `add` adds what a row has for a range of columns to their sums. Rows come in their order, whatever the
/// number of threads. As with [`simd`], `add` must be marked `#[inline(always)]`.
pub(crate) fn sum_columns(
    [rows, width]: [usize; 2],
    add: impl Fn(usize, std::ops::Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    sums.par_chunks_mut(COLUMNS)
        .enumerate()
        .for_each(|(part, sums)| {
            let start = part * COLUMNS;
            simd(
                #[inline(always)]
                || {
                    for row in 0..rows {
                        add(row, start..start + sums.len(), sums);
                    }
                },
            );
        });
    sums
}

/// Rows one task should take so that tasks of narrow rows still pay.
pub(crate) fn grain(width: usize) -> usize {
    (32 * 1024 / width.max(1)).max(1)
}

/// Runs `f` compiled for the widest vector unit of this processor.
///
/// A closure of more than a few lines must be marked `#[inline(always)]` where it is written: it is called once
/// for each kind of unit, so the compiler would rather make it a function, which knows of no unit.
#[inline(always)]
#[expect(
    clippy::redundant_closure,
    reason = "only a closure can be told to inline"
)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || f(),
    )
}

/// As [`simd`], but in registers of 256 bits even where there are wider ones: for comparisons, which compilers
/// turn into masks there, and additions under a mask that take more time than they save.
#[inline(always)]
#[expect(
    clippy::redundant_closure,
    reason = "only a closure can be told to inline"
)]
pub(crate) fn simd_256<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if let Some(registers) = pulp::x86::V3::try_new() {
        return registers.vectorize(
            #[inline(always)]
            || f(),
        );
    }
    f()
}

/// A buffer whose disjoint parts are written by several tasks.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub(crate) *mut f32);

#[expect(unsafe_code, reason = "tasks write disjoint parts")]
// SAFETY: every use writes only the part its task owns; the buffer outlives the parallel loop.
unsafe impl Send for Shared {}
#[expect(unsafe_code, reason = "tasks write disjoint parts")]
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `offset` must lie inside the buffer.
    #[expect(unsafe_code, reason = "tasks write disjoint parts")]
    pub(crate) unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: as promised by the caller.
        unsafe { self.0.add(offset) }
    }

    /// Writes `values` from `offset` on.
    ///
    /// # Safety
    /// They must lie inside the buffer, in the task's own part.
    #[expect(unsafe_code, reason = "tasks write disjoint parts")]
    pub(crate) unsafe fn write(&self, offset: usize, values: &[f32]) {
        // SAFETY: as promised by the caller; nothing else reads or writes that part.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset), values.len()) }
            .copy_from_slice(values);
    }

    /// Adds `values` to what is there from `offset` on.
    ///
    /// # Safety
    /// As [`write`](Self::write), and the part must be initialised.
    #[expect(unsafe_code, reason = "tasks write disjoint parts")]
    pub(crate) unsafe fn add(&self, offset: usize, values: &[f32]) {
        // SAFETY: as promised by the caller; nothing else reads or writes that part.
        let part = unsafe { std::slice::from_raw_parts_mut(self.at(offset), values.len()) };
        for (to, value) in part.iter_mut().zip(values) {
            *to += value;
        }
    }
}

const LANES: usize = 16;

/// Σ f(xᵢ, yᵢ) in a fixed order that a vector unit can follow.
#[inline(always)]
pub(crate) fn sum2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest: f32 = xs
        .remainder()
        .iter()
        .zip(ys.remainder())
        .map(|(&x, &y)| f(x, y))
        .sum();
    for (x, y) in xs.zip(ys) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0] + rest
}

/// Σ f(xᵢ), as [`sum2`].
#[inline(always)]
pub(crate) fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    sum2(x, x, |x, _| f(x))
}

/// The largest value, −∞ for none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks
        .remainder()
        .iter()
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    for x in chunks {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

/// The largest magnitude, 0 for none.
#[inline(always)]
pub(crate) fn max_abs(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks
        .remainder()
        .iter()
        .fold(0f32, |largest, x| largest.max(x.abs()));
    for x in chunks {
        for i in 0..LANES {
            let x = x[i].abs();
            lanes[i] = if x > lanes[i] { x } else { lanes[i] };
        }
    }
    lanes.into_iter().fold(rest, f32::max)
}

/// eˣ with a relative error below 2e-7, in a form that vectorises; arguments beyond ±87 saturate.
///
/// # Source
/// Range reduction by ln 2 in two parts and the minimax polynomial of Cephes' `expf`.
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the published coefficients")]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding 1.5·2²³ leaves the nearest integer in the low bits of the mantissa.
    const SHIFT: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_15e-4;
    p = p * r + 1.398_199_95e-3;
    p = p * r + 8.333_451_9e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_55e-1;
    p = p * r + 5.000_000_12e-1;
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    (p * r * r + r + 1.0) * power
}

/// 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// tanh(x), to the last places near 0 too, in a form that vectorises.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // Its series, where 1 − e^(−2x) would cancel.
    let squared = x * x;
    let mut p = 62.0 / 2835.0;
    p = p * squared - 17.0 / 315.0;
    p = p * squared + 2.0 / 15.0;
    p = p * squared - 1.0 / 3.0;
    let near = x + x * squared * p;
    let e = exp(-2.0 * x.abs());
    let far = ((1.0 - e) / (1.0 + e)).copysign(x);
    if x.abs() < 0.25 { near } else { far }
}

/// c·tanh(x / c).
#[inline(always)]
pub(crate) fn capped(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tanh_is_within_four_parts_in_ten_million() {
        let worst = (-20_000..=20_000)
            .map(|i| i as f32 / 1000.0)
            .filter(|x| *x != 0.0)
            .map(|x| ((f64::from(tanh(x)) - f64::from(x).tanh()) / f64::from(x).tanh()).abs())
            .fold(0.0, f64::max);
        assert!(worst < 4e-7, "worst relative error {worst:e}");
        assert_eq!(
            (tanh(0.0), tanh(-1e30), tanh(f32::INFINITY)),
            (0.0, -1.0, 1.0)
        );
    }

    #[test]
    fn exp_is_within_two_parts_in_ten_million() {
        let worst = (-86_000..=87_000)
            .map(|i| i as f32 / 1000.0)
            .map(|x| ((f64::from(exp(x)) - f64::from(x).exp()) / f64::from(x).exp()).abs())
            .fold(0.0, f64::max);
        assert!(worst < 2e-7, "worst relative error {worst:e}");
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn sums_and_maxima_cover_remainders() {
        let values: Vec<f32> = (1..=37).map(|i| i as f32).collect();
        assert_eq!(sum(&values, |x| x), 703.0);
        assert_eq!(max(&values), 37.0);
        assert_eq!(max(&[]), f32::NEG_INFINITY);
    }
}
