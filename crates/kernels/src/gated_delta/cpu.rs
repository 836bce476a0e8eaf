//! f32 on the processor, chunk after chunk: a task for each document and value head; backwards for each document and key
//! head, which sums over the value heads that share it.

use std::ops::Range;

use backdraft_arch::sizes::DELTA_CHUNK as CHUNK;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::chunk::{Chunk, ChunkGrads, Source};
use super::{DeltaLayout, Operands};
use crate::cpu::{F32s, Shared, f32s, into_vec, tensor};
use crate::segments::Segments;

/// The operands, where they are f32 on the processor.
struct Values {
    qkv: F32s,
    beta: F32s,
    decay: F32s,
    layout: DeltaLayout,
}

impl Values {
    fn of(x: &Operands, layout: DeltaLayout) -> Option<Self> {
        Some(Self {
            qkv: f32s(&x.qkv)?,
            beta: f32s(&x.beta)?,
            decay: f32s(&x.decay)?,
            layout,
        })
    }

    fn source(&self) -> Source<'_> {
        Source {
            qkv: &self.qkv,
            beta: &self.beta,
            decay: &self.decay,
            layout: self.layout,
        }
    }
}

pub(super) fn forward(x: &Operands, segments: &Segments, layout: DeltaLayout) -> Option<Tensor<2>> {
    let values = Values::of(x, layout)?;
    let size = layout.key_dim * layout.value_dim;
    let mut out = vec![0f32; segments.queries() * layout.value_width()];
    let to = Shared(out.as_mut_ptr());
    tasks(segments, layout.value_heads)
        .into_par_iter()
        .for_each(|(rows, head)| {
            let mut state = vec![0f32; size];
            run(&values.source(), head, rows, &mut state, to);
        });
    Some(tensor(out, [segments.queries(), layout.value_width()]))
}

/// `Err` hands the states back when something is not f32 on the CPU.
pub(super) fn forward_continuing(
    x: &Operands,
    segments: &Segments,
    layout: DeltaLayout,
    states: Vec<Tensor<2>>,
) -> Result<(Tensor<2>, Vec<Tensor<2>>), Vec<Tensor<2>>> {
    let values = match Values::of(x, layout) {
        Some(values) if states.iter().all(|state| f32s(state).is_some()) => values,
        _ => return Err(states),
    };
    let mut states: Vec<Vec<f32>> = states.into_iter().map(into_vec).collect();
    let size = layout.key_dim * layout.value_dim;
    let mut out = vec![0f32; segments.queries() * layout.value_width()];
    let to = Shared(out.as_mut_ptr());
    let documents: Vec<_> = segments.iter().map(|(rows, _)| rows).collect();
    (states.par_iter_mut().zip(documents)).for_each(|(state, rows)| {
        let heads = state.par_chunks_exact_mut(size).enumerate();
        heads.for_each(|(head, state)| run(&values.source(), head, rows.clone(), state, to));
    });
    let shape = [layout.value_heads * layout.key_dim, layout.value_dim];
    let states = states.into_iter().map(|state| tensor(state, shape));
    let out = tensor(out, [segments.queries(), layout.value_width()]);
    Ok((out, states.collect()))
}

/// One value head of one document, from `state`, which is left as it is behind the last token.
fn run(source: &Source<'_>, head: usize, rows: Range<usize>, state: &mut [f32], out: Shared) {
    let (value, width) = (source.layout.value_dim, source.layout.value_width());
    let mut chunk = Chunk::default();
    for rows in chunks(rows) {
        chunk.load(source, head, rows.clone(), state);
        let values = chunk.output(state);
        for (row, values) in rows.zip(values.chunks_exact(value)) {
            #[expect(unsafe_code, reason = "tasks write disjoint columns of one buffer")]
            // SAFETY: the buffer has a row of `width` values for each token, and this task alone writes its head's columns
            // of its document's rows.
            unsafe {
                out.write(row * width + head * value, values);
            }
        }
        chunk.advance(state);
    }
}

pub(super) fn backward(
    d_out: &Tensor<2>,
    x: &Operands,
    segments: &Segments,
    layout: DeltaLayout,
) -> Option<Operands> {
    let (values, d_out) = (Values::of(x, layout)?, f32s(d_out)?);
    let (t, heads) = (segments.queries(), layout.value_heads);
    let mut qkv = vec![0f32; t * layout.width()];
    let (mut beta, mut decay) = (vec![0f32; t * heads], vec![0f32; t * heads]);
    let to = [&mut qkv, &mut beta, &mut decay].map(|buffer| Shared(buffer.as_mut_ptr()));
    tasks(segments, layout.key_heads)
        .into_par_iter()
        .for_each(|(rows, key_head)| {
            for head in key_head * layout.group()..(key_head + 1) * layout.group() {
                run_backward(&values.source(), head, rows.clone(), &d_out, to);
            }
        });
    Some(Operands {
        qkv: tensor(qkv, [t, layout.width()]),
        beta: tensor(beta, [t, heads]),
        decay: tensor(decay, [t, heads]),
    })
}

/// One value head of one document; gradients are added to `to`: of queries, keys and values, β and g.
fn run_backward(
    source: &Source<'_>,
    head: usize,
    rows: Range<usize>,
    d_out: &[f32],
    [d_qkv, d_beta, d_decay]: [Shared; 3],
) {
    let layout = source.layout;
    let (value, size) = (layout.value_dim, layout.key_dim * layout.value_dim);
    let mut chunk = Chunk::default();
    // The state before each chunk.
    let mut states = vec![0f32; size * rows.len().div_ceil(CHUNK)];
    for (i, rows) in chunks(rows.clone()).enumerate().skip(1) {
        let (before, behind) = states.split_at_mut(i * size);
        let (before, behind) = (&before[(i - 1) * size..], &mut behind[..size]);
        let earlier = rows.start - CHUNK..rows.start;
        chunk.load(source, head, earlier, before);
        behind.copy_from_slice(before);
        chunk.advance(behind);
    }
    let (mut d_state, mut grads) = (vec![0f32; size], ChunkGrads::default());
    let mut d = Vec::new();
    let [q, k, v] = source.columns(head);
    let all: Vec<_> = chunks(rows).collect();
    for (rows, s0) in all.into_iter().zip(states.chunks_exact(size)).rev() {
        d.clear();
        for row in rows.clone() {
            d.extend_from_slice(&d_out[row * layout.value_width() + head * value..][..value]);
        }
        chunk.load(source, head, rows.clone(), s0);
        chunk.backward(&d, s0, &mut d_state, &mut grads);
        for (i, row) in rows.enumerate() {
            let (start, at) = (row * layout.width(), row * layout.value_heads + head);
            let key = layout.key_dim;
            let part = |features: usize| i * features..(i + 1) * features;
            #[expect(unsafe_code, reason = "tasks write disjoint columns of one buffer")]
            // SAFETY: the buffers have a row for each token; this task alone writes the columns of its key head, and of the
            // value heads that share it, in its document's rows.
            unsafe {
                d_qkv.add(start + q, &grads.q[part(key)]);
                d_qkv.add(start + k, &grads.k[part(key)]);
                d_qkv.add(start + v, &grads.v[part(value)]);
                d_beta.write(at, &grads.beta[i..=i]);
                d_decay.write(at, &grads.decay[i..=i]);
            }
        }
    }
}

fn chunks(rows: Range<usize>) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator {
    let end = rows.end;
    let starts = rows.step_by(CHUNK);
    starts.map(move |start| start..(start + CHUNK).min(end))
}

/// Rows and head of every task.
fn tasks(segments: &Segments, heads: usize) -> Vec<(Range<usize>, usize)> {
    segments
        .iter()
        .flat_map(|(rows, _)| (0..heads).map(move |head| (rows.clone(), head)))
        .collect()
}
