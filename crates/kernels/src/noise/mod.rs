//! Uniform noise on rows: yᵢⱼ = xᵢⱼ + scaleᵢ·uᵢⱼ, where uᵢⱼ in [−1, 1) follows from the row's key and j alone. A gradient
//! passes through as it is.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use burn::tensor::Tensor;

use crate::dispatch::on_device;

/// The noise of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowNoise {
    /// What it is drawn from; equal keys are equal noise.
    pub key: u64,
    /// Its largest magnitude.
    pub scale: f32,
}

/// `x` with noise on each row, written over it where nothing else holds it.
///
/// # Shapes
/// `x` and the result `[t, n]`, `rows` t of them.
///
/// # Panics
/// If there is not one noise for each row.
pub fn add(x: Tensor<2>, rows: &[RowNoise]) -> Tensor<2> {
    assert_eq!(x.dims()[0], rows.len(), "one noise for each row");
    cpu::add(x, rows)
        .or_else(|x| on_device!(cube::add(x, rows), or x))
        .unwrap_or_else(|x| reference::add(x, rows))
}

/// uᵢⱼ.
fn draw(key: u64, column: usize) -> f32 {
    2.0 * crate::uniform::uniform(key, column as u64) - 1.0
}
