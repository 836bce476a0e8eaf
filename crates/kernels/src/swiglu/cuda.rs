//! One pass that adds the adapters' terms on its way.

use backdraft_arch::Activation;
use burn::tensor::Tensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::Gradients;
use super::cube::{activated, gradients, places};
use crate::cube::{InPlace, argument, elem, empty, into_floats, tensor};
use crate::low_rank::Adapted;
use crate::low_rank::cuda::{
    BLOCKS, Form, LINE, Term, cubes, left_words, own_columns, own_row, place,
    product as product_of, right_words, row_of,
};

/// Gate and up, complete and in their places, and the product; `Err` hands everything back where there is no kernel.
pub(super) fn forward(
    gate: Adapted,
    up: Adapted,
    activation: Activation,
) -> Result<[Tensor<2>; 3], (Adapted, Adapted)> {
    let (dims, dtype) = (gate.base.dims(), gate.base.dtype());
    let of = |x: &Adapted| Term::of(x.term.as_ref()?, dims, dtype);
    let same = up.base.dims() == dims && up.base.dtype() == dtype;
    let (Some(gate_term), Some(up_term)) = (of(&gate), of(&up)) else {
        return Err((gate, up));
    };
    if !same || gate_term.form != up_term.form {
        return Err((gate, up));
    }
    let (Ok(gate), Ok(up)) = (into_floats(gate.base), into_floats(up.base)) else {
        unreachable!("terms are of tensors on the device");
    };
    let (gate_out, up_out) = (InPlace::over(&gate, LINE, 0), InPlace::over(&up, LINE, 1));
    let y = empty(&gate, dims, dtype);
    let (count, dim) = cubes(dims);
    let ([gate_left, gate_right], [up_left, up_right]) =
        (gate_term.arguments(), up_term.arguments());
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: all have the same rows and columns; terms too, as `Term::of` checked, and a warp goes beyond neither.
    unsafe {
        forward_kernel::launch_unchecked(
            &y.client,
            count,
            dim,
            LINE,
            argument(&gate, LINE),
            argument(&up, LINE),
            gate_left,
            gate_right,
            up_left,
            up_right,
            gate_out.argument,
            up_out.argument,
            argument(&y, LINE),
            gate_term.scaling,
            up_term.scaling,
            dims[0] as u32,
            dims[1] as u32,
            gate_term.form,
            activation,
            elem(dtype),
        );
    }
    Ok([tensor(gate_out.tensor), tensor(up_out.tensor), tensor(y)])
}

/// `Err` hands everything back where there is no term, or no kernel for it.
pub(super) fn backward(
    dy: Adapted,
    gate: Tensor<2>,
    up: Tensor<2>,
    activation: Activation,
    wanted: bool,
) -> Result<Gradients, (Adapted, Tensor<2>, Tensor<2>)> {
    let (dims, dtype) = (dy.base.dims(), dy.base.dtype());
    let term = (dy.term.as_ref()).and_then(|term| Term::of(term, dims, dtype));
    let same = |x: &Tensor<2>| x.dims() == dims && x.dtype() == dtype;
    let Some(term) = term.filter(|_| same(&gate) && same(&up)) else {
        return Err((dy, gate, up));
    };
    let (Ok(dy), Ok(gate), Ok(up)) = (into_floats(dy.base), into_floats(gate), into_floats(up))
    else {
        unreachable!("a term is of tensors on the device");
    };
    let [product, dgate, dup] = places(&[&dy, &gate, &up], LINE, wanted);
    let (count, dim) = cubes(dims);
    let [left, right] = term.arguments();
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: as in `forward`.
    unsafe {
        backward_kernel::launch_unchecked(
            &gate.client,
            count,
            dim,
            LINE,
            argument(&dy, LINE),
            argument(&gate, LINE),
            argument(&up, LINE),
            left,
            right,
            product.argument,
            dgate.argument,
            dup.argument,
            term.scaling,
            dims[0] as u32,
            dims[1] as u32,
            term.form,
            activation,
            wanted,
            elem(dtype),
        );
    }
    Ok(Gradients {
        gate: tensor(dgate.tensor),
        up: tensor(dup.tensor),
        product: wanted.then(|| tensor(product.tensor)),
    })
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, N: Size>(
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    gate_left: &[u32],
    gate_right: &[u32],
    up_left: &[u32],
    up_right: &[u32],
    gate_out: &mut [Vector<F, N>],
    up_out: &mut [Vector<F, N>],
    y: &mut [Vector<F, N>],
    gate_scaling: f32,
    up_scaling: f32,
    rows: u32,
    columns: u32,
    #[comptime] form: Form,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: ElemType,
) {
    let first_column = own_columns();
    if first_column < columns {
        let size!(A) = comptime!(form.left_words());
        let size!(B) = comptime!(form.right_words());
        let gate_b = right_words::<B>(gate_right, first_column, columns, form);
        let up_b = right_words::<B>(up_right, first_column, columns, form);
        let mut gates = Array::<Vector<F, N>>::new(comptime!(2 * BLOCKS));
        let mut ups = Array::<Vector<F, N>>::new(comptime!(2 * BLOCKS));
        #[unroll]
        for i in 0..comptime!(2 * BLOCKS) {
            let place = place(own_row(i), first_column, rows, columns);
            gates[i] = gate[place];
            ups[i] = up[place];
        }
        #[unroll]
        for block in 0..BLOCKS {
            let row = own_row(2 * block);
            let gate_a = left_words::<A>(gate_left, row, rows, form);
            let up_a = left_words::<A>(up_left, row, rows, form);
            let gate_term = product_of::<A, B>(gate_a, gate_b, form);
            let up_term = product_of::<A, B>(up_a, up_b, form);
            #[unroll]
            for half in 0..2usize {
                let row = own_row(2 * block + half);
                let g = Vector::<f32, N>::cast_from(gates[2 * block + half])
                    + row_of::<N>(gate_term, half) * Vector::new(gate_scaling);
                let u = Vector::<f32, N>::cast_from(ups[2 * block + half])
                    + row_of::<N>(up_term, half) * Vector::new(up_scaling);
                // What the backward pass reads is what the product is made of.
                let g_rounded = Vector::<F, N>::cast_from(g);
                let u_rounded = Vector::<F, N>::cast_from(u);
                let g = Vector::<f32, N>::cast_from(g_rounded);
                let u = Vector::<f32, N>::cast_from(u_rounded);
                if row < rows {
                    let place = place(row, first_column, rows, columns);
                    gate_out[place] = g_rounded;
                    up_out[place] = u_rounded;
                    y[place] = Vector::cast_from(activated::<N>(g, activation) * u);
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn backward_kernel<F: Float, N: Size>(
    dy: &[Vector<F, N>],
    gate: &[Vector<F, N>],
    up: &[Vector<F, N>],
    left: &[u32],
    right: &[u32],
    product: &mut [Vector<F, N>],
    dgate: &mut [Vector<F, N>],
    dup: &mut [Vector<F, N>],
    scaling: f32,
    rows: u32,
    columns: u32,
    #[comptime] form: Form,
    #[comptime] activation: Activation,
    #[comptime] wanted: bool,
    #[define(F)] _dtype: ElemType,
) {
    let first_column = own_columns();
    if first_column < columns {
        let size!(A) = comptime!(form.left_words());
        let size!(B) = comptime!(form.right_words());
        let b = right_words::<B>(right, first_column, columns, form);
        let mut dys = Array::<Vector<F, N>>::new(comptime!(2 * BLOCKS));
        let mut gates = Array::<Vector<F, N>>::new(comptime!(2 * BLOCKS));
        let mut ups = Array::<Vector<F, N>>::new(comptime!(2 * BLOCKS));
        #[unroll]
        for i in 0..comptime!(2 * BLOCKS) {
            let place = place(own_row(i), first_column, rows, columns);
            dys[i] = dy[place];
            gates[i] = gate[place];
            ups[i] = up[place];
        }
        #[unroll]
        for block in 0..BLOCKS {
            let row = own_row(2 * block);
            let a = left_words::<A>(left, row, rows, form);
            let term = product_of::<A, B>(a, b, form);
            #[unroll]
            for half in 0..2usize {
                let row = own_row(2 * block + half);
                let d = Vector::<f32, N>::cast_from(dys[2 * block + half])
                    + row_of::<N>(term, half) * Vector::new(scaling);
                let g = Vector::<f32, N>::cast_from(gates[2 * block + half]);
                let u = Vector::<f32, N>::cast_from(ups[2 * block + half]);
                let (dg, du) = gradients::<N>(d, g, u, activation);
                if row < rows {
                    let place = place(row, first_column, rows, columns);
                    dgate[place] = Vector::cast_from(dg);
                    dup[place] = Vector::cast_from(du);
                    if wanted {
                        product[place] = Vector::cast_from(activated::<N>(g, activation) * u);
                    }
                }
            }
        }
    }
}
