//! `x · Wᵀ` of few rows on the processor, as dot products.
//!
//! Both operands lie along k, so nothing is packed: each row of W is read once and multiplied with every row of x. A
//! value is summed over k in an order that depends on k alone, so a row of x gets the same bits whatever rows stand
//! beside it: what a sequence is answered does not depend on who else is in the batch.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::cpu::simd;

/// Rows of x up to which this is the product; with more, packing pays.
pub(crate) const FEW_ROWS: usize = 64;

/// Values of W that a task should read at least.
const GRAIN: usize = 1 << 14;
/// k up to which the transposed W is multiplied row by row: the dot products of an adapter's second factor are too short.
const SHORT: usize = 32;

/// `out = alpha·x·wᵀ (+ out)`; a row of `out` begins `stride` values behind the one before it.
///
/// # Safety
/// `out` must be valid for `m` rows of `n` values at that stride, written already where it is added to; only they are
/// written.
///
/// # Panics
/// If `x` or `w` has fewer than m·k or n·k values.
#[expect(unsafe_code, reason = "tasks write disjoint columns of one buffer")]
pub(crate) unsafe fn product(
    [m, n, k]: [usize; 3],
    (out, stride): (*mut f32, usize),
    accumulate: bool,
    x: &[f32],
    w: &[f32],
    alpha: f32,
) {
    let (x, w) = (&x[..m * k], &w[..n * k]);
    let out = Out {
        start: out,
        stride,
        accumulate,
        alpha,
    };
    if k <= SHORT {
        return short([m, n, k], out, x, w);
    }
    let columns = (GRAIN / k).max(4).next_multiple_of(4);
    let task = |first: usize| {
        pulp::Arch::new().dispatch(Columns {
            sizes: [m, k],
            x,
            w,
            columns: first..(first + columns).min(n),
            out,
        });
    };
    match n <= columns {
        true => task(0),
        false => (0..n.div_ceil(columns))
            .into_par_iter()
            .for_each(|i| task(i * columns)),
    }
}

/// Where values go.
#[derive(Clone, Copy)]
struct Out {
    start: *mut f32,
    stride: usize,
    accumulate: bool,
    alpha: f32,
}

#[expect(unsafe_code, reason = "tasks write disjoint columns")]
// SAFETY: every task writes only its own columns; the buffer outlives the parallel loop.
unsafe impl Send for Out {}
#[expect(unsafe_code, reason = "tasks write disjoint columns")]
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// # Safety
    /// (i, j) must lie inside the buffer, in a column of the caller's own.
    #[inline(always)]
    #[expect(unsafe_code, reason = "tasks write disjoint columns")]
    unsafe fn put(self, (i, j): (usize, usize), value: f32) {
        // SAFETY: as promised by the caller.
        unsafe {
            let at = self.start.add(i * self.stride + j);
            let before = if self.accumulate { at.read() } else { 0.0 };
            at.write(before + self.alpha * value);
        }
    }
}

/// Some columns of the result.
struct Columns<'a> {
    /// m and k.
    sizes: [usize; 2],
    x: &'a [f32],
    w: &'a [f32],
    columns: Range<usize>,
    out: Out,
}

impl WithSimd for Columns<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let mut j = self.columns.start;
        while j + 4 <= self.columns.end {
            self.rows::<S, 4>(simd, j);
            j += 4;
        }
        while j < self.columns.end {
            self.rows::<S, 1>(simd, j);
            j += 1;
        }
    }
}

impl Columns<'_> {
    #[inline(always)]
    fn rows<S: Simd, const N: usize>(&self, simd: S, j: usize) {
        let [m, _] = self.sizes;
        let mut i = 0;
        while i + 3 <= m {
            self.tile::<S, 3, N>(simd, i, j);
            i += 3;
        }
        while i < m {
            self.tile::<S, 1, N>(simd, i, j);
            i += 1;
        }
    }

    /// M rows of x times N rows of W.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const N: usize>(&self, simd: S, i: usize, j: usize) {
        let [_, k] = self.sizes;
        let mut x: [(&[S::f32s], &[f32]); M] = [(&[], &[]); M];
        for (row, x) in x.iter_mut().enumerate() {
            *x = S::as_simd_f32s(&self.x[(i + row) * k..(i + row + 1) * k]);
        }
        let mut w: [(&[S::f32s], &[f32]); N] = [(&[], &[]); N];
        for (row, w) in w.iter_mut().enumerate() {
            *w = S::as_simd_f32s(&self.w[(j + row) * k..(j + row + 1) * k]);
        }
        let whole = x[0].0.len();
        for x in &mut x {
            x.0 = &x.0[..whole];
        }
        for w in &mut w {
            w.0 = &w.0[..whole];
        }
        let mut sums = [[simd.splat_f32s(0.0); N]; M];
        for at in 0..whole {
            for (sums, x) in sums.iter_mut().zip(&x) {
                let x = x.0[at];
                for (sum, w) in sums.iter_mut().zip(&w) {
                    *sum = simd.mul_add_e_f32s(x, w.0[at], *sum);
                }
            }
        }
        if !x[0].1.is_empty() {
            for (sums, x) in sums.iter_mut().zip(&x) {
                let x = simd.partial_load_f32s(x.1);
                for (sum, w) in sums.iter_mut().zip(&w) {
                    *sum = simd.mul_add_e_f32s(x, simd.partial_load_f32s(w.1), *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (column, sum) in sums.iter().enumerate() {
                #[expect(unsafe_code, reason = "tasks write disjoint columns")]
                // SAFETY: i + row < m and j + column lies in this task's columns.
                unsafe {
                    let value = simd.reduce_sum_f32s(*sum);
                    self.out.put((i + row, j + column), value);
                }
            }
        }
    }
}

/// The product for a short k: wᵀ once, then a sum of its rows for each row of x.
fn short([m, n, k]: [usize; 3], out: Out, x: &[f32], w: &[f32]) {
    let mut transposed = vec![0f32; n * k];
    for (j, row) in w.chunks(k.max(1)).enumerate() {
        for (l, &value) in row.iter().enumerate() {
            transposed[l * n + j] = value;
        }
    }
    let mut sums = vec![0f32; n];
    for i in 0..m {
        sums.fill(0.0);
        simd(
            #[inline(always)]
            || {
                for l in 0..k {
                    let factor = x[i * k + l];
                    for (sum, &w) in sums.iter_mut().zip(&transposed[l * n..(l + 1) * n]) {
                        *sum += factor * w;
                    }
                }
            },
        );
        for (j, &sum) in sums.iter().enumerate() {
            #[expect(unsafe_code, reason = "the caller's buffer")]
            // SAFETY: i < m and j < n.
            unsafe {
                out.put((i, j), sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tensor};
    use proptest::prelude::*;

    use crate::gemm::{self, Op};

    fn random(shape: [usize; 2]) -> Tensor<2> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    fn bits(x: &Tensor<2>) -> Vec<u32> {
        let values = x.clone().into_data().try_into_vec::<f32>().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_row_does_not_depend_on_the_rows_beside_it(
            (m, n, k) in (2usize..=64, 1usize..70, 1usize..300),
            sum in any::<bool>(),
        ) {
            let (x, w, c) = (random([m, k]), random([n, k]), random([m, n]));
            let all = gemm::gemm((Op::N, &x), (Op::T, &w), 0.5, sum.then(|| c.clone()));
            let expected = gemm::reference::gemm((Op::N, &x), (Op::T, &w), 0.5, sum.then(|| c.clone()));
            let error = (all.clone() - expected).abs().max().into_scalar::<f32>();
            prop_assert!(error < 1e-4, "{error}");
            for i in [0, m / 2, m - 1] {
                let row = |t: &Tensor<2>| t.clone().narrow(0, i, 1);
                let alone = gemm::gemm((Op::N, &row(&x)), (Op::T, &w), 0.5, sum.then(|| row(&c)));
                prop_assert_eq!(bits(&alone), bits(&row(&all)));
            }
        }
    }
}
