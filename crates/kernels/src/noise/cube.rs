//! One pass on a CubeCL device.

use burn::tensor::Tensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::RowNoise;
use crate::cube::{InPlace, argument, elem, elementwise, indices, into_floats, len, line, tensor};
use crate::uniform::cube::uniform;
use crate::uniform::halves;

/// `Err` hands `x` back when it is not on a CubeCL device.
pub(super) fn add(x: Tensor<2>, rows: &[RowNoise]) -> Result<Tensor<2>, Tensor<2>> {
    let width = x.dims()[1];
    let x = into_floats(x)?;
    if len(&x) == 0 {
        return Ok(tensor(x));
    }
    let line = line(x.dtype, width);
    let out = InPlace::over(&x, line, 0);
    let (count, dim) = elementwise(len(&x) / line);
    let client = x.client.clone();
    let numbers = |of: fn(&RowNoise) -> u32| {
        let numbers: Vec<u32> = rows.iter().map(of).collect();
        indices(&client, &numbers)
    };
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: both have as many vectors, and the kernel does not go beyond the last; each row has a key and a scale,
    // whose 32 bits are read as what they are.
    unsafe {
        kernel::launch_unchecked(
            &client,
            count,
            dim,
            line,
            argument(&x, line),
            out.argument,
            numbers(|row| halves(row.key)[0]),
            numbers(|row| halves(row.key)[1]),
            numbers(|row| row.scale.to_bits()),
            (width / line) as u32,
            elem(x.dtype),
        );
    }
    Ok(tensor(out.tensor))
}

#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    x: &[Vector<F, N>],
    out: &mut [Vector<F, N>],
    low: &[u32],
    high: &[u32],
    scales: &[f32],
    vectors: u32,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let row = i / vectors as usize;
        let first = ((i - row * vectors as usize) * N::value()) as u32;
        let mut noise = Vector::<f32, N>::empty();
        #[unroll]
        for lane in 0..N::value() {
            let uniform = uniform(first + lane as u32, low[row], high[row]);
            noise.insert(lane, 2.0f32 * uniform - 1.0f32);
        }
        let values = Vector::<f32, N>::cast_from(x[i]);
        out[i] = Vector::cast_from(values + noise * Vector::new(scales[row]));
    }
}
