//! f32 on the CPU. A sequence with one new token reads its rows where they lie, one task for each key–value head, whose
//! query heads share each row that is read; the rows of one with more are gathered for the product of blocks.

use std::ops::Range;

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::Places;
use crate::attention::{self, HeadLayout, Qkv};
use crate::cpu::{exp, f32s, into_vec, max, simd, sum, sum2, tensor};
use crate::segments::Segments;

/// `Err` hands the pool back where it is not f32 on the CPU.
pub(super) fn write(
    pool: Tensor<2>,
    new: &Tensor<2>,
    rows: &[u32],
) -> Result<Tensor<2>, Tensor<2>> {
    let (true, Some(new)) = (f32s(&pool).is_some(), f32s(new)) else {
        return Err(pool);
    };
    let dims = pool.dims();
    let mut values = into_vec(pool);
    let width = dims[1];
    for (&row, new) in rows.iter().zip(new.chunks(width.max(1))) {
        let start = row as usize * width;
        values[start..start + width].copy_from_slice(new);
    }
    Ok(tensor(values, dims))
}

pub(super) fn forward(
    q: &Tensor<2>,
    [k, v]: [&Tensor<2>; 2],
    places: &Places,
    layout: HeadLayout,
) -> Option<Tensor<2>> {
    let (q_values, k_values, v_values) = (f32s(q)?, f32s(k)?, f32s(v)?);
    let (q_width, width) = (
        layout.heads * layout.head_dim,
        layout.kv_heads * layout.head_dim,
    );
    let mut out = vec![0f32; places.segments.queries() * q_width];
    let (ones, others): (Vec<_>, Vec<_>) =
        places.segments.iter().partition(|(new, _)| new.len() == 1);
    let tasks: Vec<(usize, Range<usize>, usize)> = ones
        .into_iter()
        .flat_map(|(new, keys)| {
            (0..layout.kv_heads).map(move |head| (new.start, keys.clone(), head))
        })
        .collect();
    let heads: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|(query, keys, head)| {
            let start = query * q_width + head * layout.group() * layout.head_dim;
            let one = One {
                query: &q_values[start..start + layout.group() * layout.head_dim],
                rows: seen(&places.rows[keys.clone()], layout.window),
                k: &k_values,
                v: &v_values,
                width,
                column: head * layout.head_dim,
            };
            one.attend(layout)
        })
        .collect();
    for ((query, _, head), values) in tasks.iter().zip(heads) {
        let start = query * q_width + head * values.len();
        out[start..start + values.len()].copy_from_slice(&values);
    }
    if !others.is_empty() {
        let several = Several {
            places,
            documents: &others,
        };
        let qkv = Qkv {
            q: several.queries(&q_values, q_width),
            k: several.keys(&k_values, width),
            v: several.keys(&v_values, width),
        };
        let (part, _) = attention::forward(&qkv, &several.segments(), layout);
        let part = f32s(&part)?;
        let mut part = part.chunks(q_width);
        for row in others.iter().flat_map(|(new, _)| new.clone()) {
            let values = part.next()?;
            out[row * q_width..(row + 1) * q_width].copy_from_slice(values);
        }
    }
    Some(tensor(out, [places.segments.queries(), q_width]))
}

/// The last rows, as many as the window has.
fn seen(rows: &[u32], window: Option<usize>) -> &[u32] {
    let first = window.map_or(0, |window| rows.len().saturating_sub(window));
    &rows[first..]
}

/// One new token and one key–value head.
struct One<'a> {
    /// The query heads that share the key–value head, `[group, d]`.
    query: &'a [f32],
    rows: &'a [u32],
    k: &'a [f32],
    v: &'a [f32],
    /// Values of a row of the pool.
    width: usize,
    /// Where the head begins in it.
    column: usize,
}

impl One<'_> {
    /// `[group, d]`.
    fn attend(&self, layout: HeadLayout) -> Vec<f32> {
        let mut scores = vec![0f32; layout.group() * self.rows.len()];
        let mut out = vec![0f32; self.query.len()];
        simd(
            #[inline(always)]
            || self.fill(layout, &mut scores, &mut out),
        );
        out
    }

    #[inline(always)]
    fn fill(&self, layout: HeadLayout, scores: &mut [f32], out: &mut [f32]) {
        let (d, keys) = (layout.head_dim, self.rows.len());
        let at = |row: u32| row as usize * self.width + self.column;
        for (i, &row) in self.rows.iter().enumerate() {
            let key = &self.k[at(row)..at(row) + d];
            for (head, query) in self.query.chunks(d).enumerate() {
                let score = layout.scale * sum2(query, key, |a, b| a * b);
                scores[head * keys + i] = match layout.softcap {
                    None => score,
                    Some(cap) => cap * (score / cap).tanh(),
                };
            }
        }
        for scores in scores.chunks_mut(keys) {
            let top = max(scores);
            for score in scores.iter_mut() {
                *score = exp(*score - top);
            }
            let total = 1.0 / sum(scores, |p| p);
            for score in scores.iter_mut() {
                *score *= total;
            }
        }
        for (i, &row) in self.rows.iter().enumerate() {
            let value = &self.v[at(row)..at(row) + d];
            for (head, out) in out.chunks_mut(d).enumerate() {
                let p = scores[head * keys + i];
                for (out, value) in out.iter_mut().zip(value) {
                    *out += p * value;
                }
            }
        }
    }
}

/// Sequences with several new tokens each, or with none.
struct Several<'a> {
    places: &'a Places,
    /// New tokens and keys of each.
    documents: &'a [(Range<usize>, Range<usize>)],
}

impl Several<'_> {
    fn segments(&self) -> Segments {
        let lengths =
            |(new, keys): &(Range<usize>, Range<usize>)| (keys.len() - new.len(), new.len());
        Segments::continuing(self.documents.iter().map(lengths))
    }

    fn queries(&self, q: &[f32], width: usize) -> Tensor<2> {
        let rows = self.documents.iter().flat_map(|(new, _)| new.clone());
        gather(q, rows, width)
    }

    fn keys(&self, pool: &[f32], width: usize) -> Tensor<2> {
        let keys = self.documents.iter().flat_map(|(_, keys)| keys.clone());
        gather(pool, keys.map(|key| self.places.rows[key] as usize), width)
    }
}

fn gather(values: &[f32], rows: impl Iterator<Item = usize>, width: usize) -> Tensor<2> {
    let mut gathered = Vec::new();
    let mut count = 0;
    for row in rows {
        gathered.extend_from_slice(&values[row * width..(row + 1) * width]);
        count += 1;
    }
    tensor(gathered, [count, width])
}
