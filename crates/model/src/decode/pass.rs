//! One pass of some tokens of several sequences through the model.

use std::ops::Range;

use backdraft_kernels::paged_attention::Places;
use burn::tensor::{DType, Tensor};

use crate::cache::{Pool, Slot};
use crate::causal_lm::{CausalLm, index};
use crate::layers::DecoderLayer;
use crate::tokens::Tokens;

/// New tokens of one sequence.
pub(super) struct Chunk {
    /// The model of [`forward`]'s list.
    pub(super) model: usize,
    pub(super) ids: Vec<u32>,
    /// Rows of the pool of all its tokens, the new ones last.
    pub(super) rows: Vec<u32>,
    /// Tokens of the sequence, with those that are still to be read.
    pub(super) length: usize,
    /// What its states go by.
    pub(super) slot: Slot,
}

/// Logits after the last token of each of the chunks that `wanted` names, ascending.
///
/// `models` are one base with different adapters; chunks of the same model follow one another.
///
/// # Shapes
/// A row for each of `wanted`; `None` where none is wanted.
pub(super) fn forward(
    models: &[CausalLm],
    chunks: Vec<Chunk>,
    wanted: &[usize],
    pool: &mut Pool,
) -> Option<Logits> {
    let base = &models[0];
    let past: Vec<usize> = (chunks.iter())
        .map(|chunk| chunk.rows.len() - chunk.ids.len())
        .collect();
    let ids: Vec<&[u32]> = chunks.iter().map(|chunk| &*chunk.ids).collect();
    let lengths = chunks.iter().map(|chunk| chunk.length).collect();
    let tokens = Tokens::continuing(&ids, &past, lengths);
    let model_of: Vec<usize> = chunks.iter().map(|chunk| chunk.model).collect();
    let parts = runs(chunks.iter().map(|chunk| (chunk.ids.len(), chunk.model)));
    let context = base.context(&tokens, None);
    let mut h = by_model(models, &parts, |model, rows| {
        model.embed(&tokens.input_ids[rows])
    });
    let slots: Vec<Slot> = chunks.iter().map(|chunk| chunk.slot).collect();
    let sequences: Vec<_> = (chunks.into_iter())
        .map(|chunk| (chunk.rows, chunk.ids.len()))
        .collect();
    let places = Places::new(&sequences, &base.device());
    for (i, pool) in pool.layers_mut().enumerate() {
        let layers: Vec<(Range<usize>, &DecoderLayer)> = parts
            .iter()
            .map(|(rows, model)| (rows.clone(), &models[*model].layers[i]))
            .collect();
        // The next token begins with the first layer again.
        base.layers[i].enter(base.layers.get(i + 1).or(base.layers.first()));
        h = DecoderLayer::forward_cached(&layers, h, &context, (pool, &places, &slots));
    }
    let ends = tokens
        .segments
        .iter()
        .map(|(queries, _)| queries.end as u32 - 1);
    let ends = ends.zip(&model_of).enumerate();
    let ends = ends.filter(|(chunk, _)| wanted.contains(chunk));
    let (last, model_of): (Vec<u32>, Vec<usize>) =
        ends.map(|(_, (end, model))| (end, *model)).unzip();
    if last.is_empty() {
        return None;
    }
    let last = h.select(0, index(&last, &base.device()));
    let normed = base.norm().forward_saving(&last).0;
    let parts = runs(model_of.into_iter().map(|model| (1, model)));
    let logits = by_model(models, &parts, |model, rows| {
        model.logits(normed.clone().narrow(0, rows.start, rows.len()))
    });
    Some(Logits::read(logits))
}

/// Rows of each model, of so many rows of one after the other.
fn runs(rows: impl IntoIterator<Item = (usize, usize)>) -> Vec<(Range<usize>, usize)> {
    let mut parts: Vec<(Range<usize>, usize)> = Vec::new();
    let mut end = 0;
    for (count, of) in rows {
        let start = end;
        end += count;
        match parts.last_mut() {
            Some((rows, model)) if *model == of => rows.end = end,
            _ => parts.push((start..end, of)),
        }
    }
    parts
}

/// What each model makes of its rows with its tables of tokens; the first one of all rows where these have no adapters.
fn by_model(
    models: &[CausalLm],
    parts: &[(Range<usize>, usize)],
    of: impl Fn(&CausalLm, Range<usize>) -> Tensor<2>,
) -> Tensor<2> {
    let adapted = |(_, model): &(_, usize)| models[*model].table_adapters().next().is_some();
    if !parts.iter().any(adapted) {
        let rows = parts.iter().map(|(rows, _)| rows.len()).sum();
        return of(&models[0], 0..rows);
    }
    let pieces = parts
        .iter()
        .map(|(rows, model)| of(&models[*model], rows.clone()));
    Tensor::cat(pieces.collect(), 0)
}

/// Rows of logits on the host.
pub(super) struct Logits {
    values: Vec<f32>,
    width: usize,
}

impl Logits {
    fn read(logits: Tensor<2>) -> Self {
        let [_, width] = logits.dims();
        let values = logits.into_data().convert_dtype(DType::F32);
        let values = values
            .try_into_vec()
            .unwrap_or_else(|error| unreachable!("converted to f32: {error:?}"));
        Self { values, width }
    }

    /// Each row, `[v]`.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks(self.width)
    }
}
