//! One pass on a CubeCL device.

use backdraft_arch::Activation;
use burn::tensor::Tensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{GELU, Gradients};
use crate::cube::{
    CubeTensor, InPlace, argument, elem, elementwise, empty, floats, into_floats, len, line,
    sigmoid, tensor,
};

pub(super) fn forward(
    gate: &Tensor<2>,
    up: &Tensor<2>,
    activation: Activation,
) -> Option<Tensor<2>> {
    let shape = gate.dims();
    let (gate, up) = (floats(gate)?, floats(up)?);
    if gate.dtype != up.dtype {
        return None;
    }
    let (dtype, line) = (gate.dtype, line(gate.dtype, len(&gate)));
    let y = empty(&gate, shape, dtype);
    let (count, dim) = elementwise(len(&y) / line);
    if len(&y) > 0 {
        let arguments = [&gate, &up, &y].map(|x| argument(x, line));
        let [gate, up, out] = arguments;
        let client = &y.client;
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: all three have as many vectors, and the kernel does not go beyond the last.
        unsafe {
            forward_kernel::launch_unchecked(
                client,
                count,
                dim,
                line,
                gate,
                up,
                out,
                activation,
                elem(dtype),
            );
        }
    }
    Some(tensor(y))
}

/// `Err` hands everything back where there is no kernel.
pub(super) fn backward(
    dy: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
    wanted: bool,
) -> Result<Gradients, (Tensor<2>, Tensor<2>, Tensor<2>)> {
    let all = [&dy, &gate, &up];
    let dtype = gate.dtype();
    if all
        .iter()
        .any(|x| x.dtype() != dtype || floats(x).is_none())
    {
        return Err((dy, gate, up));
    }
    let (Ok(dy), Ok(gate), Ok(up)) = (into_floats(dy), into_floats(gate), into_floats(up)) else {
        unreachable!("all are floats of the device");
    };
    let line = line(dtype, len(&gate));
    let [product, dgate, dup] = places(&[&dy, &gate, &up], line, wanted);
    let (count, dim) = elementwise(len(&gate) / line);
    if len(&gate) > 0 {
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: all have as many vectors, and the kernel does not go beyond the last; where it writes over what it
        // reads, each unit has read its place before it writes there.
        unsafe {
            backward_kernel::launch_unchecked(
                &gate.client,
                count,
                dim,
                line,
                argument(&dy, line),
                argument(&gate, line),
                argument(&up, line),
                product.argument,
                dgate.argument,
                dup.argument,
                activation,
                wanted,
                elem(dtype),
            );
        }
    }
    Ok(Gradients {
        gate: tensor(dgate.tensor),
        up: tensor(dup.tensor),
        product: wanted.then(|| tensor(product.tensor)),
    })
}

/// Where a backward pass over dy, gate and up, the kernel's first buffers, writes the product and the gradients of gate and up.
pub(super) fn places(all: &[&CubeTensor; 3], line: usize, wanted: bool) -> [InPlace; 3] {
    let [dy, gate, up] = *all;
    let product = match wanted {
        true => InPlace::over(dy, line, 0),
        false => InPlace::unused(dy, line, 0),
    };
    [
        product,
        InPlace::over(gate, line, 1),
        InPlace::over(up, line, 2),
    ]
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    y: &mut [Vector<F, N>],
    #[comptime] activation: Activation,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < y.len() {
        let g = Vector::<f32, N>::cast_from(gate[i]);
        let u = Vector::<f32, N>::cast_from(up[i]);
        y[i] = Vector::cast_from(activated::<N>(g, activation) * u);
    }
}

/// The gate after its activation.
#[cube]
pub(super) fn activated<N: Size>(
    g: Vector<f32, N>,
    #[comptime] activation: Activation,
) -> Vector<f32, N> {
    if comptime!(activation == Activation::GeluTanh) {
        g * sigmoid(gelu::<N>(g))
    } else {
        g * sigmoid(g)
    }
}

/// z of GELU.
#[cube]
fn gelu<N: Size>(g: Vector<f32, N>) -> Vector<f32, N> {
    let scale = Vector::<f32, N>::new(comptime!(GELU[0]));
    let cubed = Vector::<f32, N>::new(comptime!(GELU[1]));
    scale * (g + cubed * g * g * g)
}

#[cube(launch_unchecked)]
fn backward_kernel<F: Float, N: Size>(
    dy: &[Vector<F, N>],
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    product: &mut [Vector<F, N>],
    dgate: &mut [Vector<F, N>],
    dup: &mut [Vector<F, N>],
    #[comptime] activation: Activation,
    #[comptime] wanted: bool,
    #[define(F)] _dtype: ElemType,
) {
    let i = ABSOLUTE_POS;
    if i < dgate.len() {
        let d = Vector::<f32, N>::cast_from(dy[i]);
        let g = Vector::<f32, N>::cast_from(gate[i]);
        let u = Vector::<f32, N>::cast_from(up[i]);
        let (dg, du) = gradients::<N>(d, g, u, activation);
        dgate[i] = Vector::cast_from(dg);
        dup[i] = Vector::cast_from(du);
        if wanted {
            product[i] = Vector::cast_from(activated::<N>(g, activation) * u);
        }
    }
}

#[cube]
pub(super) fn gradients<N: Size>(
    d: Vector<f32, N>,
    g: Vector<f32, N>,
    u: Vector<f32, N>,
    #[comptime] activation: Activation,
) -> (Vector<f32, N>, Vector<f32, N>) {
    let one = Vector::<f32, N>::new(1.0f32);
    if comptime!(activation == Activation::GeluTanh) {
        let s = sigmoid(gelu::<N>(g));
        let scale = Vector::<f32, N>::new(comptime!(GELU[0]));
        let squared = Vector::<f32, N>::new(comptime!(3.0f32 * GELU[1]));
        let dz = scale * (one + squared * g * g);
        (d * u * s * (one + g * (one - s) * dz), d * g * s)
    } else {
        let s = sigmoid(g);
        (d * u * s * (one + g * (one - s)), d * g * s)
    }
}
