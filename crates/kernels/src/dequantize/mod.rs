//! Matrices kept in codes: their values, and products with them.
//!
//! The products never hold the whole matrix in f32: on the processor a panel of rows is dequantised into
//! a buffer that each thread keeps, multiplied with, and written over by the next. On a CubeCL device codes in blocks
//! are multiplied with up to eight rows as they are (`cube/few_rows.rs`, `cube/gguf_few_rows.rs`), with more after the
//! whole matrix was dequantised into the operands' type.

mod absmax;
mod blocks;
mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
mod gguf;
mod int8;
mod parts;
pub mod reference;

pub use absmax::{Absmax, HostAbsmax};
pub use blocks::{BlockFormat, Blocks, FourBit, Nested};
pub use gguf::GgufBlocks;
pub use int8::Int8Rows;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::gemm::{self, Op};

/// Why parts do not make a matrix of codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, found {actual}")]
pub struct PartsError {
    /// The part.
    pub what: &'static str,
    /// Its length, or the values it may have.
    pub expected: String,
    /// What was given.
    pub actual: String,
}

/// Takes the tensors of a matrix one after the other, always in the same order, and gives those of another: the same elsewhere.
pub trait Tensors {
    /// Codes, or bytes of blocks.
    fn codes(&mut self, codes: Tensor<1, Int>) -> Tensor<1, Int>;

    /// Scales.
    fn scales(&mut self, scales: Tensor<1>) -> Tensor<1>;
}

/// Moves them.
struct To<'a>(&'a Device);

impl Tensors for To<'_> {
    fn codes(&mut self, codes: Tensor<1, Int>) -> Tensor<1, Int> {
        codes.to_device(self.0)
    }

    fn scales(&mut self, scales: Tensor<1>) -> Tensor<1> {
        scales.to_device(self.0)
    }
}

/// Refuses a part of another length.
fn check(what: &'static str, expected: usize, actual: usize) -> Result<(), PartsError> {
    if expected == actual {
        return Ok(());
    }
    Err(PartsError {
        what,
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}

/// The number of values of a matrix.
fn count(dims: [usize; 2]) -> Result<usize, PartsError> {
    dims[0].checked_mul(dims[1]).ok_or_else(|| PartsError {
        what: "values",
        expected: "fewer than memory has room for".to_owned(),
        actual: format!("{dims:?}"),
    })
}

fn floats(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// # Panics
/// If a number is not below `out`.
fn check_rows([out, _]: [usize; 2], rows: &[u32]) {
    if let Some(row) = rows.iter().find(|&&row| row as usize >= out) {
        panic!("row {row} of a matrix with {out} rows");
    }
}

fn select(values: Tensor<2>, rows: &[u32]) -> Tensor<2> {
    let index: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
    let index = TensorData::new(index, [rows.len()]);
    let index = Tensor::<1, Int>::from_data(index, &values.device());
    values.select(0, index)
}

/// α · x · Wᵀ, and `sum` where there is one: on the processor in panels.
fn matmul_add(
    matrix: &impl cpu::Stored,
    x: &Tensor<2>,
    alpha: f32,
    sum: Option<&Tensor<2>>,
    elsewhere: impl FnOnce() -> Tensor<2>,
) -> Tensor<2> {
    match (cpu::matmul(x, matrix, alpha), sum) {
        (Some(product), Some(sum)) => sum.clone() + product,
        (Some(product), None) => product,
        (None, _) => elsewhere(),
    }
}

/// α · dy · W, added to `sum` where there is one: on the processor in panels, elsewhere with `values` in the type of dy.
fn matmul_transposed_add(
    matrix: &impl cpu::Stored,
    dy: &Tensor<2>,
    alpha: f32,
    sum: Option<Tensor<2>>,
    values: impl FnOnce() -> Tensor<2>,
) -> Tensor<2> {
    match (cpu::matmul_transposed(dy, matrix, alpha), sum) {
        (Some(product), Some(sum)) => sum + product,
        (Some(product), None) => product,
        (None, sum) => gemm::gemm((Op::N, dy), (Op::N, &values()), alpha, sum),
    }
}

/// α · x · Wᵀ of a few rows, and `sum` where there is one. `kernel` adds to its product, but knows no α.
#[cfg(feature = "cube")]
fn few_rows(
    alpha: f32,
    sum: Option<&Tensor<2>>,
    kernel: impl FnOnce(Option<&Tensor<2>>) -> Option<Tensor<2>>,
) -> Option<Tensor<2>> {
    if alpha == 1.0 {
        return kernel(sum);
    }
    let product = kernel(None)?;
    let dtype = product.dtype();
    let product = product.cast(DType::F32).mul_scalar(alpha);
    let sum = match sum {
        Some(sum) => sum.clone().cast(DType::F32) + product,
        None => product,
    };
    Some(sum.cast(dtype))
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
