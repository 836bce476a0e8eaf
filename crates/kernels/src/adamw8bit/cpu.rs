//! f32 in place on the processor, one block after the other: moments are f32 only within a block.

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;

use super::{BLOCK_SIZE, Guard, Moment8Bit, Moments8Bit};
use crate::adamw::AdamWParams;
use crate::codebook::{DynamicMap, bytes};
use crate::cpu::{f32s, into_vec, ints, simd, tensor};
use crate::quantize::encode;

/// Constants of one update, rounded as [`adamw`](crate::adamw) rounds them.
struct Update {
    decay: f32,
    step_size: f32,
    root: f32,
    epsilon: f32,
    beta1: (f32, f32),
    beta2: (f32, f32),
}

/// Parameters, codes and scales of one block.
struct Block<'a> {
    param: &'a mut [f32],
    grad: &'a [f32],
    m: (&'a mut [u8], &'a mut f32),
    v: (&'a mut [u8], &'a mut f32),
}

/// `Err` hands parameter and moments back when something is not f32 on the processor.
pub(super) fn step<const D: usize>(
    param: Tensor<D>,
    grad: &Tensor<D>,
    moments: Moments8Bit,
    (lr, t): (f64, u64),
    p: &AdamWParams,
    guard: Guard,
) -> Result<(Tensor<D>, Moments8Bit), (Tensor<D>, Moments8Bit)> {
    let on_cpu = |moment: &Moment8Bit| {
        ints::<u8, 1>(&moment.codes).is_some() && f32s(&moment.absmax).is_some()
    };
    let ours = f32s(&param).is_some() && on_cpu(&moments.m) && on_cpu(&moments.v);
    let (true, Some(grad)) = (ours, f32s(grad)) else {
        return Err((param, moments));
    };
    let (shape, device) = (param.dims(), param.device());
    let (correction1, correction2) = (1.0 - p.beta1.powf(t as f64), 1.0 - p.beta2.powf(t as f64));
    let update = Update {
        decay: (1.0 - lr * p.weight_decay) as f32,
        step_size: (lr / correction1) as f32,
        root: (1.0 / correction2.sqrt()) as f32,
        epsilon: p.epsilon as f32,
        beta1: (p.beta1 as f32, (1.0 - p.beta1) as f32),
        beta2: (p.beta2 as f32, (1.0 - p.beta2) as f32),
    };
    let mut param = into_vec(param);
    let (mut m_codes, mut m_absmax) = (codes(moments.m.codes), into_vec(moments.m.absmax));
    let (mut v_codes, mut v_absmax) = (codes(moments.v.codes), into_vec(moments.v.absmax));
    (
        param.par_chunks_mut(BLOCK_SIZE),
        grad.par_chunks(BLOCK_SIZE),
        m_codes.par_chunks_mut(BLOCK_SIZE).zip(&mut m_absmax),
        v_codes.par_chunks_mut(BLOCK_SIZE).zip(&mut v_absmax),
    )
        .into_par_iter()
        .with_min_len(16)
        .for_each(|(param, grad, m, v)| {
            simd(
                #[inline(always)]
                || update.block(Block { param, grad, m, v }, guard),
            )
        });
    let moment = |codes, absmax: Vec<f32>| {
        let blocks = [absmax.len()];
        Moment8Bit {
            codes: bytes(codes, &device),
            absmax: tensor(absmax, blocks),
        }
    };
    let moments = Moments8Bit {
        m: moment(m_codes, m_absmax),
        v: moment(v_codes, v_absmax),
    };
    Ok((tensor(param, shape), moments))
}

impl Update {
    #[inline(always)]
    fn block(&self, block: Block<'_>, guard: Guard) {
        let (m_map, v_map) = (DynamicMap::Signed.values(), DynamicMap::Unsigned.values());
        let n = block.param.len();
        let (mut m, mut v) = ([0f32; BLOCK_SIZE], [0f32; BLOCK_SIZE]);
        let (m, v) = (&mut m[..n], &mut v[..n]);
        let (m_codes, m_absmax) = block.m;
        let (v_codes, v_absmax) = block.v;
        for i in 0..n {
            m[i] = m_map[usize::from(m_codes[i])] * *m_absmax;
            v[i] = v_map[usize::from(v_codes[i])] * *v_absmax;
        }
        for (((w, &g), m), v) in block
            .param
            .iter_mut()
            .zip(block.grad)
            .zip(&mut *m)
            .zip(&mut *v)
        {
            *m = self.beta1.0 * *m + self.beta1.1 * g;
            *v = self.beta2.0 * *v + self.beta2.1 * g * g;
            *w = *w * self.decay - self.step_size * (*m / (v.sqrt() * self.root + self.epsilon));
        }
        *m_absmax = encode(m, DynamicMap::Signed, m_codes);
        *v_absmax = encode(v, DynamicMap::Unsigned, v_codes);
        if guard == Guard::On {
            for (code, &v) in v_codes.iter_mut().zip(&*v) {
                *code += u8::from(*code == 0 && v > 0.0);
            }
        }
    }
}

fn codes(tensor: Tensor<1, Int>) -> Vec<u8> {
    let data: TensorData = tensor.into_data();
    match data.try_into_vec() {
        Ok(codes) => codes,
        Err(error) => panic!("expected codes of 8 bits: {error:?}"),
    }
}
