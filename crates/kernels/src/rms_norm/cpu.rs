//! f32 rows on the CPU: one pass for the statistic, one for the values.

use std::ops::Deref;

use backdraft_arch::NormScale;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::Gain;
use crate::cpu::{F32s, build_rows, f32s, simd, sum, sum_columns, sum2, tensor};

/// What rows are multiplied by.
pub(crate) enum Factors {
    /// The weight.
    Weight(F32s),
    /// 1 + the weight.
    Sum(Vec<f32>),
}

impl Deref for Factors {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Weight(weight) => weight,
            Self::Sum(sum) => sum,
        }
    }
}

impl Factors {
    pub(crate) fn of(gain: Gain<'_>) -> Option<Self> {
        let weight = f32s(gain.weight)?;
        Some(match gain.scale {
            NormScale::Weight => Self::Weight(weight),
            NormScale::OnePlusWeight => Self::Sum(weight.iter().map(|w| 1.0 + w).collect()),
        })
    }
}

pub(super) fn forward(x: &Tensor<2>, gain: Gain<'_>, eps: f64) -> Option<(Tensor<2>, Tensor<1>)> {
    let [rows, width] = x.dims();
    let (x, w) = (f32s(x)?, Factors::of(gain)?);
    let (x, w): (&[f32], &[f32]) = (&x, &w);
    let row = |i: usize| &x[i * width..(i + 1) * width];
    let rstd: Vec<f32> = (0..rows)
        .into_par_iter()
        .with_min_len(crate::cpu::grain(width))
        .map(|i| {
            let squares = simd(
                #[inline(always)]
                || sum(row(i), |x| x * x),
            );
            (1.0 / (f64::from(squares) / width as f64 + eps).sqrt()) as f32
        })
        .collect();
    let y = build_rows(
        rows,
        width,
        #[inline(always)]
        |i, out| {
            let r = rstd[i];
            for ((out, &x), &w) in out.iter_mut().zip(row(i)).zip(w) {
                out.write(x * r * w);
            }
        },
    );
    Some((tensor(y, [rows, width]), tensor(rstd, [rows])))
}

pub(super) fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    gain: Gain<'_>,
    rstd: &Tensor<1>,
) -> Option<Tensor<2>> {
    let [rows, width] = x.dims();
    let (dy, x, w, rstd) = (f32s(dy)?, f32s(x)?, Factors::of(gain)?, f32s(rstd)?);
    let (dy, x, w, rstd): (&[f32], &[f32], &[f32], &[f32]) = (&dy, &x, &w, &rstd);
    let dx = build_rows(
        rows,
        width,
        #[inline(always)]
        |i, out| {
            let span = i * width..(i + 1) * width;
            let (dy, x, r) = (&dy[span.clone()], &x[span], rstd[i]);
            let mut dot = 0.0;
            for ((dy, x), w) in dy.chunks(1024).zip(x.chunks(1024)).zip(w.chunks(1024)) {
                let mut scaled = [0f32; 1024];
                for ((s, &dy), &w) in scaled.iter_mut().zip(dy).zip(w) {
                    *s = dy * w;
                }
                dot += sum2(&scaled[..x.len()], x, |s, x| s * x);
            }
            let c = dot * r * r / width as f32;
            for (((out, &dy), &x), &w) in out.iter_mut().zip(dy).zip(x).zip(w) {
                out.write(r * (dy * w - x * c));
            }
        },
    );
    Some(tensor(dx, [rows, width]))
}

pub(super) fn backward_weight(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    rstd: &Tensor<1>,
) -> Option<Tensor<1>> {
    let [rows, width] = x.dims();
    let (dy, x, rstd) = (f32s(dy)?, f32s(x)?, f32s(rstd)?);
    let (dy, x, rstd): (&[f32], &[f32], &[f32]) = (&dy, &x, &rstd);
    let sums = sum_columns(
        [rows, width],
        #[inline(always)]
        |row, columns, sums| {
            let span = row * width + columns.start..row * width + columns.end;
            let r = rstd[row];
            let pairs = dy[span.clone()].iter().zip(&x[span]);
            for (sum, (dy, x)) in sums.iter_mut().zip(pairs) {
                *sum += dy * (x * r);
            }
        },
    );
    Some(tensor(sums, [width]))
}
