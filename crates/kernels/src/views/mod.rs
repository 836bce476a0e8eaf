//! Matrices that share their memory with others: several parts of one buffer, or rows of one matrix.

#[cfg(feature = "cube")]
pub(crate) mod cube;

use burn::tensor::Tensor;

use crate::dispatch::on_device;

/// Writes `values` into the memory of `view`, whoever else holds it.
pub(crate) fn overwrite(values: &Tensor<2>, view: &Tensor<2>) {
    let done: Option<()> = on_device!(cube::copy(values, view));
    let _ = (values, view);
    assert!(
        done.is_some(),
        "a view of a flat buffer is on a CubeCL device"
    );
}

/// One matrix of the rows of all `parts`, in their memory: where they lie one behind the other in one
/// [`Flat`](crate::flat::Flat) buffer. `None` elsewhere.
///
/// # Shapes
/// Each `[n, k]`, result `[Σ n, k]`.
pub(crate) fn stacked(parts: &[&Tensor<2>]) -> Option<Tensor<2>> {
    let _ = parts;
    on_device!(cube::stacked(parts))
}

/// Memory for a matrix by rows, not yet written, beside `like`, which is on a CubeCL device.
pub(crate) fn unwritten(dims: [usize; 2], like: &Tensor<2>) -> Tensor<2> {
    let there: Option<Tensor<2>> = on_device!(cube::unwritten(dims, like));
    let _ = (dims, like);
    there.unwrap_or_else(|| unreachable!("it is where the factors are"))
}

/// Rows from `start` on, in the memory of `x`: what is written to one is in the other. `None` elsewhere than on a
/// CubeCL device.
///
/// # Shapes
/// `x` `[m, k]`, result `[n, k]`.
pub(crate) fn rows(x: &Tensor<2>, start: usize, n: usize) -> Option<Tensor<2>> {
    let _ = (x, start, n);
    on_device!(cube::rows(x, start, n))
}
