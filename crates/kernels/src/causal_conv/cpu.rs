//! f32 on the processor: rows in parallel, some features at a time.

use std::mem::MaybeUninit;
use std::ops::Range;

use burn::tensor::Tensor;

use super::taps;
use crate::cpu::{F32s, build_rows, f32s, sigmoid, tensor};
use crate::segments::Segments;

/// Features that are summed at a time.
const LANE: usize = 256;

struct Conv {
    x: F32s,
    /// Tap by tap.
    weight: Vec<f32>,
    features: usize,
    taps: usize,
    /// Where each document begins, and the end of the last.
    starts: Vec<usize>,
}

impl Conv {
    fn of(x: &Tensor<2>, weight: &Tensor<1>, segments: &Segments) -> Option<Self> {
        let (features, taps) = (x.dims()[1], taps(x, weight));
        let by_feature = f32s(weight)?;
        let by_tap = (0..taps).flat_map(|tap| by_feature.iter().skip(tap).step_by(taps));
        let mut starts: Vec<usize> = segments.iter().map(|(rows, _)| rows.start).collect();
        starts.push(segments.queries());
        Some(Self {
            x: f32s(x)?,
            weight: by_tap.copied().collect(),
            features,
            taps,
            starts,
        })
    }

    /// Rows of the document of a row.
    fn document(&self, row: usize) -> Range<usize> {
        let next = self.starts.partition_point(|&start| start <= row);
        self.starts[next - 1]..self.starts[next]
    }

    /// Σ over the taps of some features of the rows that `row_of` names for each tap, where there is one.
    #[inline(always)]
    fn sum(
        &self,
        from: &[f32],
        features: Range<usize>,
        row_of: impl Fn(usize) -> Option<usize>,
    ) -> [f32; LANE] {
        let mut sum = [0f32; LANE];
        for tap in 0..self.taps {
            let Some(row) = row_of(tap) else { continue };
            let at = |start: usize| start + features.start..start + features.end;
            let x = &from[at(row * self.features)];
            let w = &self.weight[at(tap * self.features)];
            for ((sum, x), w) in sum.iter_mut().zip(x).zip(w) {
                *sum += x * w;
            }
        }
        sum
    }

    /// z of some features of a row.
    #[inline(always)]
    fn z(&self, row: usize, features: Range<usize>) -> [f32; LANE] {
        let first = self.document(row).start;
        self.sum(&self.x, features, |tap| {
            (row + tap + 1)
                .checked_sub(self.taps)
                .filter(|&from| from >= first)
        })
    }

    /// Every row, [`LANE`] features at a time.
    fn rows(
        &self,
        write: impl Fn(usize, Range<usize>, &mut [MaybeUninit<f32>]) + Sync,
    ) -> Vec<f32> {
        let rows = self.starts.last().copied().unwrap_or(0);
        build_rows(
            rows,
            self.features,
            #[inline(always)]
            |row, out| {
                for (i, out) in out.chunks_mut(LANE).enumerate() {
                    let features = i * LANE..i * LANE + out.len();
                    write(row, features, out);
                }
            },
        )
    }
}

pub(super) fn forward(x: &Tensor<2>, weight: &Tensor<1>, segments: &Segments) -> Option<Tensor<2>> {
    let conv = Conv::of(x, weight, segments)?;
    let y = conv.rows(
        #[inline(always)]
        |row, features, out| {
            let z = conv.z(row, features);
            for (out, z) in out.iter_mut().zip(z) {
                out.write(z * sigmoid(z));
            }
        },
    );
    Some(tensor(y, x.dims()))
}

/// `Err` hands `dy` back when something is not f32 on the CPU.
pub(super) fn backward(
    dy: Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    segments: &Segments,
) -> Result<Tensor<2>, Tensor<2>> {
    let (Some(conv), Some(values)) = (Conv::of(x, weight, segments), f32s(&dy)) else {
        return Err(dy);
    };
    let dz = conv.rows(
        #[inline(always)]
        |row, features, out| {
            let at = row * conv.features;
            let dy = &values[at + features.start..at + features.end];
            let z = conv.z(row, features);
            for ((out, z), dy) in out.iter_mut().zip(z).zip(dy) {
                let s = sigmoid(z);
                out.write(dy * s * (1.0 + z * (1.0 - s)));
            }
        },
    );
    drop((values, dy));
    let dx = conv.rows(
        #[inline(always)]
        |row, features, out| {
            let end = conv.document(row).end;
            let later = |tap| Some(row + conv.taps - 1 - tap).filter(|&to| to < end);
            let dx = conv.sum(&dz, features, later);
            for (out, dx) in out.iter_mut().zip(dx) {
                out.write(dx);
            }
        },
    );
    Ok(tensor(dx, x.dims()))
}
