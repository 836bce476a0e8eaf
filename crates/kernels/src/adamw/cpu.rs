//! f32 in place on the CPU.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{AdamWParams, Moments};
use crate::cpu::{f32s, into_vec, simd, tensor};

const CHUNK: usize = 1 << 14;

/// `Err` hands parameter and moments back when something is not f32 on the CPU.
pub(super) fn step<const D: usize>(
    param: Tensor<D>,
    grad: &Tensor<D>,
    moments: Moments<D>,
    (lr, t): (f64, u64),
    p: &AdamWParams,
) -> Result<(Tensor<D>, Moments<D>), (Tensor<D>, Moments<D>)> {
    let on_cpu = |x: &Tensor<D>| f32s(x).is_some();
    let (true, true, true, Some(grad)) = (
        on_cpu(&param),
        on_cpu(&moments.m),
        on_cpu(&moments.v),
        f32s(grad),
    ) else {
        return Err((param, moments));
    };
    let shape = param.dims();
    let (mut w, mut m, mut v) = (into_vec(param), into_vec(moments.m), into_vec(moments.v));
    let (correction1, correction2) = (1.0 - p.beta1.powf(t as f64), 1.0 - p.beta2.powf(t as f64));
    let decay = (1.0 - lr * p.weight_decay) as f32;
    let step_size = (lr / correction1) as f32;
    let root = (1.0 / correction2.sqrt()) as f32;
    let epsilon = p.epsilon as f32;
    let (b1, b2) = (p.beta1 as f32, p.beta2 as f32);
    let (c1, c2) = ((1.0 - p.beta1) as f32, (1.0 - p.beta2) as f32);
    (
        w.par_chunks_mut(CHUNK),
        m.par_chunks_mut(CHUNK),
        v.par_chunks_mut(CHUNK),
        grad.par_chunks(CHUNK),
    )
        .into_par_iter()
        .for_each(|(w, m, v, g)| {
            simd(
                #[inline(always)]
                || {
                    for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
                        *m = b1 * *m + c1 * g;
                        *v = b2 * *v + c2 * g * g;
                        *w = *w * decay - step_size * (*m / (v.sqrt() * root + epsilon));
                    }
                },
            );
        });
    Ok((
        tensor(w, shape),
        Moments {
            m: tensor(m, shape),
            v: tensor(v, shape),
        },
    ))
}
