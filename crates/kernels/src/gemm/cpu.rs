//! [`gemm`](super::gemm) through the `gemm` crate, in place where possible.

use burn::tensor::Tensor;

use super::few_rows::{FEW_ROWS, product};
use super::{Op, oriented};
use crate::cpu::{f32s, into_vec, tensor};

/// `Err` hands `c` back when an operand is not f32 on the CPU.
pub(super) fn gemm(
    (op_a, a): (Op, &Tensor<2>),
    (op_b, b): (Op, &Tensor<2>),
    alpha: f32,
    c: Option<Tensor<2>>,
) -> Result<Tensor<2>, Option<Tensor<2>>> {
    let c_is_ours = c.as_ref().is_none_or(|c| f32s(c).is_some());
    let (Some(a_values), Some(b_values), true) = (f32s(a), f32s(b), c_is_ours) else {
        return Err(c);
    };
    let [m, k] = oriented(op_a, a.dims());
    let [_, n] = oriented(op_b, b.dims());
    let (mut out, accumulate) = match c {
        Some(c) => (into_vec(c), true),
        None => (Vec::with_capacity(m * n), false),
    };
    if (op_a, op_b) == (Op::N, Op::T) && m <= FEW_ROWS {
        #[expect(unsafe_code, reason = "a buffer that is not written yet")]
        // SAFETY: `out` has room for m·n values, row-major, all of which are written; it holds them already where they
        // are added to.
        unsafe {
            let to = (out.as_mut_ptr(), n);
            product([m, n, k], to, accumulate, &a_values, &b_values, alpha);
            out.set_len(m * n);
        }
        return Ok(tensor(out, [m, n]));
    }
    let a_view = View::new(&a_values, a.dims()[1], op_a);
    let b_view = View::new(&b_values, b.dims()[1], op_b);
    let threads = if m * n * k < 1 << 16 {
        gemm::Parallelism::None
    } else {
        gemm::Parallelism::Rayon(0)
    };
    #[expect(unsafe_code, reason = "the gemm crate takes raw matrices")]
    // SAFETY: `out` has room for m·n values, row-major; a and b hold m·k and k·n values at the strides
    // given, checked by the caller. Without accumulation every element of `out` is written.
    unsafe {
        raw(
            Shape { m, n, k },
            (out.as_mut_ptr(), n),
            accumulate,
            a_view,
            b_view,
            alpha,
            threads,
        );
        out.set_len(m * n);
    }
    Ok(tensor(out, [m, n]))
}

/// Sizes of a product.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
}

/// A matrix inside a slice: value (i, j) lies at `i·rows + j·columns`.
#[derive(Clone, Copy)]
pub(crate) struct View {
    start: *const f32,
    rows: usize,
    columns: usize,
}

impl View {
    /// Row-major values with `stride` between rows, oriented by `op`.
    pub(crate) fn new(values: &[f32], stride: usize, op: Op) -> Self {
        let (rows, columns) = match op {
            Op::N => (stride, 1),
            Op::T => (1, stride),
        };
        Self {
            start: values.as_ptr(),
            rows,
            columns,
        }
    }
}

/// `c = alpha·a·b (+ c)` on raw row-major `c` with the given row stride.
///
/// # Safety
/// All three must be valid for the sizes in `shape`; `c` must not overlap `a` or `b`.
#[expect(unsafe_code, reason = "the gemm crate takes raw matrices")]
pub(crate) unsafe fn raw(
    Shape { m, n, k }: Shape,
    (c, c_stride): (*mut f32, usize),
    accumulate: bool,
    a: View,
    b: View,
    alpha: f32,
    threads: gemm::Parallelism,
) {
    let beta = if accumulate { 1.0 } else { 0.0 };
    // SAFETY: as promised by the caller.
    unsafe {
        // The crate computes `alpha·dst + beta·lhs·rhs`.
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            c_stride as isize,
            accumulate,
            a.start,
            a.columns as isize,
            a.rows as isize,
            b.start,
            b.columns as isize,
            b.rows as isize,
            beta,
            alpha,
            false,
            false,
            false,
            threads,
        );
    }
}
