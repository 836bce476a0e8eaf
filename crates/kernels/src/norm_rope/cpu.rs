//! f32 heads on the CPU, or groups of them: one pass for the statistics, one for the values.

use backdraft_arch::RotaryPairs;
use backdraft_arch::sizes::SUMMED_GROUPS;
use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::{F32s, build_rows, f32s, grain, into_vec, simd, sum, sum2, tensor};
use crate::rms_norm::Gain;
use crate::rms_norm::cpu::Factors;
use crate::rope::RotaryTables;

/// Operands of either pass.
struct Heads {
    x: F32s,
    weight: Factors,
    cos: F32s,
    sin: F32s,
    /// Groups of heads of a token.
    groups: usize,
    /// Features of a group: those that are normed together.
    normed: usize,
    /// Features of a head.
    head_dim: usize,
    /// Half of those that turn.
    half: usize,
    rows: usize,
}

impl Heads {
    fn of(x: &Tensor<2>, gain: Gain<'_>, tables: &RotaryTables) -> Option<Self> {
        let ([t, width], [normed]) = (x.dims(), gain.weight.dims());
        let halves = tables.pairs == RotaryPairs::Halves;
        halves.then_some(())?;
        Some(Self {
            x: f32s(x)?,
            weight: Factors::of(gain)?,
            cos: f32s(&tables.cos)?,
            sin: f32s(&tables.sin)?,
            groups: width / normed,
            normed,
            head_dim: tables.head_dim,
            half: tables.cos.dims()[1],
            rows: t * width / normed,
        })
    }

    /// Cosines and sines of row `i`, which is a group of token `i / groups`.
    #[inline(always)]
    fn angles(&self, i: usize) -> (&[f32], &[f32]) {
        let half = self.half;
        let start = i / self.groups * half;
        let (cos, sin): (&[f32], &[f32]) = (&self.cos, &self.sin);
        (&cos[start..start + half], &sin[start..start + half])
    }

    #[inline(always)]
    fn row(&self, i: usize) -> &[f32] {
        let x: &[f32] = &self.x;
        &x[i * self.normed..(i + 1) * self.normed]
    }

    #[inline(always)]
    fn rstd(&self, x: &[f32], eps: f64) -> f32 {
        let squares = sum(x, |x| x * x);
        (1.0 / (f64::from(squares) / self.normed as f64 + eps).sqrt()) as f32
    }
}

/// The first and the second features of a head's pairs, and those that pass.
#[inline(always)]
fn parts(head: &[f32], half: usize) -> [&[f32]; 3] {
    let (first, others) = head.split_at(half);
    let (second, passing) = others.split_at(half);
    [first, second, passing]
}

pub(super) fn forward(
    x: &Tensor<2>,
    gain: Gain<'_>,
    eps: f64,
    tables: &RotaryTables,
) -> Option<Tensor<2>> {
    let o = Heads::of(x, gain, tables)?;
    let (half, d) = (o.half, o.head_dim);
    let y = build_rows(
        o.rows,
        o.normed,
        #[inline(always)]
        |i, out| {
            let (x, (cos, sin)) = (o.row(i), o.angles(i));
            let r = o.rstd(x, eps);
            let heads = x.chunks_exact(d).zip(o.weight.chunks_exact(d));
            for ((x, w), out) in heads.zip(out.chunks_exact_mut(d)) {
                let ([x1, x2, x3], [w1, w2, w3]) = (parts(x, half), parts(w, half));
                let (out1, out2) = out.split_at_mut(half);
                let (out2, out3) = out2.split_at_mut(half);
                for j in 0..half {
                    let (a, b) = (x1[j] * r * w1[j], x2[j] * r * w2[j]);
                    out1[j].write(a * cos[j] - b * sin[j]);
                    out2[j].write(b * cos[j] + a * sin[j]);
                }
                for ((out, x), w) in out3.iter_mut().zip(x3).zip(w3) {
                    out.write(x * r * w);
                }
            }
        },
    );
    Some(tensor(y, x.dims()))
}

/// `Err` hands `dy` back when something is not f32 on the CPU.
pub(super) fn backward(
    dy: Tensor<2>,
    x: &Tensor<2>,
    gain: Gain<'_>,
    eps: f64,
    tables: &RotaryTables,
) -> Result<Tensor<2>, Tensor<2>> {
    let (Some(o), Some(_)) = (Heads::of(x, gain, tables), f32s(&dy)) else {
        return Err(dy);
    };
    let (half, d) = (o.half, o.head_dim);
    let mut values = into_vec(dy);
    values
        .par_chunks_exact_mut(o.normed)
        .with_min_len(grain(o.normed))
        .enumerate()
        .for_each_init(
            || vec![0f32; o.normed],
            |scaled, (i, values)| {
                simd(
                    #[inline(always)]
                    || {
                        let (x, (cos, sin)) = (o.row(i), o.angles(i));
                        let heads = values.chunks_exact(d).zip(o.weight.chunks_exact(d));
                        for ((dy, w), scaled) in heads.zip(scaled.chunks_exact_mut(d)) {
                            let ([dy1, dy2, dy3], [w1, w2, w3]) = (parts(dy, half), parts(w, half));
                            let (g1, g2) = scaled.split_at_mut(half);
                            let (g2, g3) = g2.split_at_mut(half);
                            for j in 0..half {
                                g1[j] = (dy1[j] * cos[j] + dy2[j] * sin[j]) * w1[j];
                                g2[j] = (dy2[j] * cos[j] - dy1[j] * sin[j]) * w2[j];
                            }
                            for ((g, dy), w) in g3.iter_mut().zip(dy3).zip(w3) {
                                *g = dy * w;
                            }
                        }
                        let r = o.rstd(x, eps);
                        let c = sum2(scaled, x, |g, x| g * x) * r * r / o.normed as f32;
                        for ((out, &g), &x) in values.iter_mut().zip(&*scaled).zip(x) {
                            *out = r * (g - x * c);
                        }
                    },
                );
            },
        );
    Ok(tensor(values, x.dims()))
}

pub(super) fn backward_weight(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    normed: usize,
    eps: f64,
    tables: &RotaryTables,
) -> Option<Tensor<1>> {
    let ones = Tensor::ones([normed], &x.device());
    let o = Heads::of(x, Gain::from(&ones), tables)?;
    let dy = f32s(dy)?;
    let dy: &[f32] = &dy;
    let (half, d) = (o.half, o.head_dim);
    let mut parts = vec![0f32; o.rows.div_ceil(SUMMED_GROUPS).max(1) * normed];
    parts
        .par_chunks_mut(normed)
        .enumerate()
        .for_each(|(part, sums)| {
            simd(
                #[inline(always)]
                || {
                    for i in part * SUMMED_GROUPS..((part + 1) * SUMMED_GROUPS).min(o.rows) {
                        let (x, (cos, sin)) = (o.row(i), o.angles(i));
                        let r = o.rstd(x, eps);
                        let dy = dy[i * normed..(i + 1) * normed].chunks_exact(d);
                        let heads = dy.zip(x.chunks_exact(d)).zip(sums.chunks_exact_mut(d));
                        for ((dy, x), sums) in heads {
                            let ([dy1, dy2, dy3], [x1, x2, x3]) =
                                (self::parts(dy, half), self::parts(x, half));
                            let (s1, s2) = sums.split_at_mut(half);
                            let (s2, s3) = s2.split_at_mut(half);
                            for j in 0..half {
                                s1[j] += (dy1[j] * cos[j] + dy2[j] * sin[j]) * (x1[j] * r);
                                s2[j] += (dy2[j] * cos[j] - dy1[j] * sin[j]) * (x2[j] * r);
                            }
                            for ((sum, dy), x) in s3.iter_mut().zip(dy3).zip(x3) {
                                *sum += dy * (x * r);
                            }
                        }
                    }
                },
            );
        });
    let (first, others) = parts.split_at_mut(normed);
    for part in others.chunks_exact(normed) {
        for (sum, value) in first.iter_mut().zip(part) {
            *sum += value;
        }
    }
    parts.truncate(normed);
    Some(tensor(parts, [normed]))
}
