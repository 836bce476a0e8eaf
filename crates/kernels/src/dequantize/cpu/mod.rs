//! Panels of rows in f32 on the processor.

mod open;

use std::cell::Cell;
use std::ops::Range;

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::{f32s, simd, tensor};
use crate::gemm::Op;
use crate::gemm::cpu::{Shape, View, raw};
use crate::gemm::few_rows::{FEW_ROWS, product};

/// Values of a panel: 2 MiB, which stay in a core's second cache, and rows enough to keep the product busy.
const PANEL: usize = 1 << 19;
/// Values of one parallel task.
const TASK: usize = 1 << 15;

/// A matrix whose values can be written out from any point.
pub(super) trait Stored {
    /// Its values where they lie, or `None` on another device.
    type Open: Open;

    fn dims(&self) -> [usize; 2];
    fn open(&self) -> Option<Self::Open>;
}

/// The codes of a matrix in memory.
pub(super) trait Open: Sync {
    /// Writes the row-major values from number `start` on.
    fn fill(&self, start: usize, out: &mut [f32]);
}

fn fill(open: &impl Open, start: usize, out: &mut [f32]) {
    out.par_chunks_mut(TASK).enumerate().for_each(|(i, out)| {
        simd(
            #[inline(always)]
            || open.fill(start + i * TASK, out),
        )
    });
}

pub(super) fn dequantize(matrix: &impl Stored) -> Option<Tensor<2>> {
    let open = matrix.open()?;
    let dims = matrix.dims();
    let mut values = vec![0.0; dims[0] * dims[1]];
    fill(&open, 0, &mut values);
    Some(tensor(values, dims))
}

pub(super) fn rows(matrix: &impl Stored, rows: &[u32]) -> Option<Tensor<2>> {
    let open = matrix.open()?;
    let [_, width] = matrix.dims();
    let mut values = vec![0.0; rows.len() * width];
    for (&row, values) in rows.iter().zip(values.chunks_mut(width.max(1))) {
        open.fill(row as usize * width, values);
    }
    Some(tensor(values, [rows.len(), width]))
}

/// alpha · x · Wᵀ: each panel of W's rows makes as many columns of the result.
pub(super) fn matmul(x: &Tensor<2>, matrix: &impl Stored, alpha: f32) -> Option<Tensor<2>> {
    let (values, open) = (f32s(x)?, matrix.open()?);
    let [n, k] = matrix.dims();
    let m = checked(x, 1, k);
    let mut out: Vec<f32> = Vec::with_capacity(m * n);
    for_panels([n, k], &open, |rows, panel| {
        let shape = Shape {
            m,
            n: rows.len(),
            k,
        };
        if m <= FEW_ROWS {
            #[expect(unsafe_code, reason = "a buffer that is not written yet")]
            // SAFETY: as below.
            unsafe {
                let out = (out.as_mut_ptr().add(rows.start), n);
                product([m, rows.len(), k], out, false, &values, panel, alpha);
            }
            return;
        }
        let x = View::new(&values, k, Op::N);
        let panel = View::new(panel, k, Op::T);
        #[expect(unsafe_code, reason = "the gemm crate takes raw matrices")]
        // SAFETY: `out` has room for m rows of n values, and the panel's columns lie within a row; x and the
        // panel hold m·k and rows·k values. Every column belongs to one panel, so all of `out` is written.
        unsafe {
            let out = (out.as_mut_ptr().add(rows.start), n);
            raw(
                shape,
                out,
                false,
                x,
                panel,
                alpha,
                gemm::Parallelism::Rayon(0),
            );
        }
    });
    #[expect(unsafe_code, reason = "the panels have written all values")]
    // SAFETY: as above; with k = 0 the product writes zeros.
    unsafe {
        out.set_len(m * n);
    }
    Some(tensor(out, [m, n]))
}

/// alpha · dy · W: a sum over panels of W's rows.
pub(super) fn matmul_transposed(
    dy: &Tensor<2>,
    matrix: &impl Stored,
    alpha: f32,
) -> Option<Tensor<2>> {
    let (values, open) = (f32s(dy)?, matrix.open()?);
    let [n, k] = matrix.dims();
    let m = checked(dy, 0, n);
    let mut out = vec![0.0; m * k];
    for_panels([n, k], &open, |rows, panel| {
        let shape = Shape {
            m,
            n: k,
            k: rows.len(),
        };
        let dy = View::new(&values[rows.start.min(values.len())..], n, Op::N);
        let panel = View::new(panel, k, Op::N);
        #[expect(unsafe_code, reason = "the gemm crate takes raw matrices")]
        // SAFETY: `out` holds m rows of k values; dy's view holds m rows of the panel's columns at stride n, and
        // the panel rows·k values.
        unsafe {
            let out = (out.as_mut_ptr(), k);
            raw(
                shape,
                out,
                true,
                dy,
                panel,
                alpha,
                gemm::Parallelism::Rayon(0),
            );
        }
    });
    Some(tensor(out, [m, k]))
}

/// The rows of `x`, whose columns must match side `side` of the matrix.
fn checked(x: &Tensor<2>, side: usize, expected: usize) -> usize {
    let [m, columns] = x.dims();
    assert_eq!(
        columns, expected,
        "columns of the operand and side {side} of the matrix"
    );
    m
}

fn for_panels(
    [rows, width]: [usize; 2],
    open: &impl Open,
    mut with: impl FnMut(Range<usize>, &[f32]),
) {
    thread_local! {
        static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    if rows == 0 || width == 0 {
        return;
    }
    let height = (PANEL / width).clamp(16, rows.max(16));
    // Taken and put back: while this thread waits for others it may be given another product.
    let mut scratch = SCRATCH.take();
    for start in (0..rows).step_by(height) {
        let rows = start..(start + height).min(rows);
        let values = rows.len() * width;
        if scratch.len() < values {
            scratch.resize(values, 0.0);
        }
        fill(open, start * width, &mut scratch[..values]);
        with(rows, &scratch[..values]);
    }
    SCRATCH.set(scratch);
}
