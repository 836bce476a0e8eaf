//! One pass in place on a CubeCL device.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{AdamWParams, Moments};
use crate::cube::{
    InPlace, argument, elem, elementwise, floats, into_floats, len, line, on_cube, tensor,
};

/// `Err` hands parameter and moments back when something is not on a CubeCL device.
pub(super) fn step<const D: usize>(
    param: Tensor<D>,
    grad: &Tensor<D>,
    moments: Moments<D>,
    (lr, t): (f64, u64),
    p: &AdamWParams,
) -> Result<(Tensor<D>, Moments<D>), (Tensor<D>, Moments<D>)> {
    let f32s = |x: &Tensor<D>| on_cube(x) && x.dtype() == DType::F32;
    let (true, true, true, Some(grad)) = (
        on_cube(&param),
        f32s(&moments.m),
        f32s(&moments.v),
        floats(grad),
    ) else {
        return Err((param, moments));
    };
    let [w, m, v] = [param, moments.m, moments.v].map(|x| match into_floats(x) {
        Ok(x) => x,
        Err(_) => unreachable!("it was just found on the device"),
    });
    // The widest operand decides: its vectors must not exceed 16 bytes.
    let line = line(DType::F32, len(&w));
    let (count, dim) = elementwise(len(&w) / line);
    if len(&w) == 0 {
        let moments = Moments {
            m: tensor(m),
            v: tensor(v),
        };
        return Ok((tensor(w), moments));
    }
    let outs = [(&w, 0), (&m, 1), (&v, 2)].map(|(x, i)| InPlace::over(x, line, i));
    let ins = [&w, &m, &v, &grad].map(|x| argument(x, line));
    let dtypes = [elem(w.dtype), elem(grad.dtype)];
    let client = w.client.clone();
    let constants = constants((lr, t), p);
    let [w_in, m_in, v_in, g] = ins;
    let [w_out, m_out, v_out] = outs;
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: all have as many vectors, and the kernel does not go beyond the last.
    unsafe {
        kernel::launch_unchecked(
            &client,
            count,
            dim,
            line,
            w_in,
            m_in,
            v_in,
            g,
            w_out.argument,
            m_out.argument,
            v_out.argument,
            constants,
            dtypes,
        );
    }
    let moments = Moments {
        m: tensor(m_out.tensor),
        v: tensor(v_out.tensor),
    };
    Ok((tensor(w_out.tensor), moments))
}

/// What an update multiplies with.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(crate) struct Constants {
    pub(crate) beta1: f32,
    pub(crate) rest1: f32,
    pub(crate) beta2: f32,
    pub(crate) rest2: f32,
    pub(crate) decay: f32,
    pub(crate) step_size: f32,
    pub(crate) root: f32,
    pub(crate) epsilon: f32,
}

/// The constants of update `t`, counted from 1.
pub(crate) fn constants((lr, t): (f64, u64), p: &AdamWParams) -> ConstantsLaunch {
    let (correction1, correction2) = (1.0 - p.beta1.powf(t as f64), 1.0 - p.beta2.powf(t as f64));
    ConstantsLaunch::new(
        p.beta1 as f32,
        (1.0 - p.beta1) as f32,
        p.beta2 as f32,
        (1.0 - p.beta2) as f32,
        (1.0 - lr * p.weight_decay) as f32,
        (lr / correction1) as f32,
        (1.0 / correction2.sqrt()) as f32,
        p.epsilon as f32,
    )
}

#[cube(launch_unchecked)]
fn kernel<P: Float, G: Float, N: Size>(
    w_in: &[Vector<P, N>],
    m_in: &[Vector<f32, N>],
    v_in: &[Vector<f32, N>],
    grad: &[Vector<G, N>],
    w_out: &mut [Vector<P, N>],
    m_out: &mut [Vector<f32, N>],
    v_out: &mut [Vector<f32, N>],
    c: &Constants,
    #[define(P, G)] _dtypes: [ElemType; 2],
) {
    let i = ABSOLUTE_POS;
    if i < w_out.len() {
        let g = Vector::<f32, N>::cast_from(grad[i]);
        let w = Vector::<f32, N>::cast_from(w_in[i]);
        let m = m_in[i] * Vector::new(c.beta1) + g * Vector::new(c.rest1);
        let v = v_in[i] * Vector::new(c.beta2) + g * g * Vector::new(c.rest2);
        let denominator = v.sqrt() * Vector::new(c.root) + Vector::new(c.epsilon);
        let w = w * Vector::new(c.decay) - m / denominator * Vector::new(c.step_size);
        w_out[i] = Vector::cast_from(w);
        m_out[i] = m;
        v_out[i] = v;
    }
}
