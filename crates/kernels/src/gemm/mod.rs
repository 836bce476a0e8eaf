//! Matrix products with the transposes, scale and accumulation a training step needs.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cublaslt;
#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod few_rows;
pub mod reference;
mod tracked;

pub use tracked::linear;

use burn::tensor::{DType, Tensor};

use crate::dispatch::on_cuda;

/// How an operand enters the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// As it lies in memory.
    N,
    /// Transposed.
    T,
}

#[cfg(feature = "cuda")]
impl Op {
    fn flipped(self) -> Self {
        match self {
            Self::N => Self::T,
            Self::T => Self::N,
        }
    }
}

/// `alpha · op(a) · op(b) + c`; `c` is written over, or a copy of it where something else holds it.
///
/// Products of f16 or bf16 are summed in f32 (on CUDA by cuBLASLt, where it is installed; its f32 products
/// are exact f32, those of Burn's kernels, which take over without it, round the factors to TF32), and rounded to the dtype of `c`, or that of the factors
/// where there is none: an f32 `c` takes up gradients of half-precision activations without loss.
///
/// # Shapes
/// `op(a)` `[m, k]`, `op(b)` `[k, n]`, `c` and the result `[m, n]`.
///
/// # Panics
/// If the shapes do not fit, or the factors are of different dtypes.
pub fn gemm(
    (op_a, a): (Op, &Tensor<2>),
    (op_b, b): (Op, &Tensor<2>),
    alpha: f32,
    c: Option<Tensor<2>>,
) -> Tensor<2> {
    check((op_a, a), (op_b, b), c.as_ref());
    cpu::gemm((op_a, a), (op_b, b), alpha, c)
        .or_else(|c| on_cuda!(cuda::gemm((op_a, a), (op_b, b), alpha, c), or c))
        .unwrap_or_else(|c| reference::gemm((op_a, a), (op_b, b), alpha, c))
}

/// As [`gemm`](fn@gemm) into new memory, whoever holds `c`: for a residual stream, which is needed again.
///
/// cuBLASLt may round a sum in place otherwise than one beside it. Which of them a product is must therefore be said
/// where it is called: who holds a tensor depends on what a run keeps, and for moments on what the device's thread is at.
///
/// # Shapes
/// As [`gemm`](fn@gemm).
///
/// # Panics
/// As [`gemm`](fn@gemm).
pub fn gemm_beside(
    (op_a, a): (Op, &Tensor<2>),
    (op_b, b): (Op, &Tensor<2>),
    alpha: f32,
    c: &Tensor<2>,
) -> Tensor<2> {
    check((op_a, a), (op_b, b), Some(c));
    let done: Result<Tensor<2>, ()> =
        on_cuda!(cuda::gemm_beside((op_a, a), (op_b, b), alpha, c), or());
    done.unwrap_or_else(|()| gemm((op_a, a), (op_b, b), alpha, Some(c.clone())))
}

fn check((op_a, a): (Op, &Tensor<2>), (op_b, b): (Op, &Tensor<2>), c: Option<&Tensor<2>>) {
    let [m, k] = oriented(op_a, a.dims());
    let [k_b, n] = oriented(op_b, b.dims());
    assert_eq!(
        k,
        k_b,
        "inner sizes of {:?}{op_a:?} and {:?}{op_b:?}",
        a.dims(),
        b.dims()
    );
    assert_eq!(a.dtype(), b.dtype(), "dtypes of the factors");
    if let Some(c) = c {
        assert_eq!(c.dims(), [m, n], "shape of the accumulator");
    }
}

/// `alpha · op(a) · op(b)` in f32, whatever the factors are: gradients of parameters.
///
/// # Shapes
/// As [`gemm`](fn@gemm).
pub fn gemm_f32((op_a, a): (Op, &Tensor<2>), (op_b, b): (Op, &Tensor<2>), alpha: f32) -> Tensor<2> {
    if a.dtype() == DType::F32 {
        return gemm((op_a, a), (op_b, b), alpha, None);
    }
    match on_cuda!(cuda::gemm_f32((op_a, a), (op_b, b), alpha), or()) {
        Ok(c) => c,
        Err(()) => {
            let [a, b] = [a, b].map(|x| x.clone().cast(DType::F32));
            gemm((op_a, &a), (op_b, &b), alpha, None)
        }
    }
}

/// Where a product goes: a view of a [`Flat`](crate::flat::Flat) buffer in f32, and whether it is added to
/// what is there.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The view.
    pub view: Tensor<2>,
    /// Whether to add.
    pub accumulate: bool,
}

impl Slot {
    /// Overwrites it, whoever else holds its memory.
    ///
    /// # Panics
    /// If values are of another shape, or elsewhere than on a CubeCL device.
    pub fn write(&self, values: &Tensor<2>) {
        assert_eq!(self.view.dims(), values.dims(), "shape of the slot");
        crate::views::overwrite(values, &self.view);
    }

    /// Where the product's rows from `start` on go.
    ///
    /// # Panics
    /// Elsewhere than on a CubeCL device, where there are no such buffers.
    #[must_use]
    pub fn rows(&self, start: usize, count: usize) -> Self {
        let view = crate::views::rows(&self.view, start, count);
        let accumulate = self.accumulate;
        Self {
            view: view.unwrap_or_else(|| unreachable!("a flat buffer is on a CubeCL device")),
            accumulate,
        }
    }
}

/// `alpha · op(a) · op(b)` into a slot, whoever else holds its memory.
///
/// # Shapes
/// As [`gemm`](fn@gemm).
///
/// # Panics
/// If the slot has another shape.
pub fn gemm_into(
    (op_a, a): (Op, &Tensor<2>),
    (op_b, b): (Op, &Tensor<2>),
    alpha: f32,
    slot: &Slot,
) {
    let ([m, _], [_, n]) = (oriented(op_a, a.dims()), oriented(op_b, b.dims()));
    assert_eq!(slot.view.dims(), [m, n], "shape of the slot");
    let done: Result<(), ()> = on_cuda!(cuda::gemm_into((op_a, a), (op_b, b), alpha, slot), or());
    if done.is_err() {
        let product = gemm_f32((op_a, a), (op_b, b), alpha);
        let sum = if slot.accumulate {
            slot.view.clone() + product
        } else {
            product
        };
        crate::views::overwrite(&sum, &slot.view);
    }
}

/// `x · wᵀ`: a linear layer whose weight lies as checkpoints store it.
///
/// # Shapes
/// `x` `[t, in]`, `w` `[out, in]`, result `[t, out]`.
pub fn nt(x: &Tensor<2>, w: &Tensor<2>) -> Tensor<2> {
    gemm((Op::N, x), (Op::T, w), 1.0, None)
}

/// `alpha` times [`nt`], and `sum` where there is one, [beside](gemm_beside) it.
///
/// # Shapes
/// As [`nt`]; `sum` `[t, out]`.
pub(crate) fn project(
    x: &Tensor<2>,
    w: &Tensor<2>,
    alpha: f32,
    sum: Option<&Tensor<2>>,
) -> Tensor<2> {
    match sum {
        Some(sum) => gemm_beside((Op::N, x), (Op::T, w), alpha, sum),
        None => gemm((Op::N, x), (Op::T, w), alpha, None),
    }
}

/// `x · w`.
///
/// # Shapes
/// `x` `[t, out]`, `w` `[out, in]`, result `[t, in]`.
pub fn nn(x: &Tensor<2>, w: &Tensor<2>) -> Tensor<2> {
    gemm((Op::N, x), (Op::N, w), 1.0, None)
}

/// `xᵀ · y`, a sum over tokens.
///
/// # Shapes
/// `x` `[t, m]`, `y` `[t, n]`, result `[m, n]`.
pub fn tn(x: &Tensor<2>, y: &Tensor<2>) -> Tensor<2> {
    gemm((Op::T, x), (Op::N, y), 1.0, None)
}

fn oriented(op: Op, [rows, columns]: [usize; 2]) -> [usize; 2] {
    match op {
        Op::N => [rows, columns],
        Op::T => [columns, rows],
    }
}
