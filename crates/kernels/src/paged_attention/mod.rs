//! [`attention`] of new tokens over keys and values that lie in a pool of rows, anywhere in it.
//!
//! Sequences that are continued together begin and end at different times. Their keys and values therefore lie in rows
//! of one pool for each layer; [`Places`] says which rows are whose. New rows are written where they belong, so that a
//! step writes what is new and nothing else, and sequences that begin alike may read the same rows.
//!
//! # Source
//! Kwon et al. 2023, arXiv:2309.06180 (pages of keys and values).

mod cpu;
pub mod reference;

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::attention::{self, HeadLayout, Qkv};
use crate::segments::Segments;

/// The rows of a pool that some sequences have.
#[derive(Clone, Debug)]
pub struct Places {
    segments: Segments,
    /// Rows of all keys, sequence after sequence.
    rows: Vec<u32>,
    /// Of these, the rows of the new tokens.
    new: Vec<u32>,
    rows_there: Tensor<1, Int>,
    new_there: Tensor<1, Int>,
}

impl Places {
    /// From the rows of each sequence's keys, new ones included, and how many of them are new: the last.
    ///
    /// # Panics
    /// If a sequence has fewer rows than new tokens.
    pub fn new(sequences: &[(Vec<u32>, usize)], device: &Device) -> Self {
        let (mut rows, mut new) = (Vec::new(), Vec::new());
        for (all, count) in sequences {
            rows.extend_from_slice(all);
            new.extend_from_slice(&all[all.len() - count..]);
        }
        let lengths = sequences.iter().map(|(all, new)| (all.len() - new, *new));
        Self {
            segments: Segments::continuing(lengths),
            rows_there: index(&rows, device),
            new_there: index(&new, device),
            rows,
            new,
        }
    }

    /// Where the sequences begin and end.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }
}

fn index(rows: &[u32], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// Puts the keys or values of new tokens where they belong; in place where nothing else holds the pool.
///
/// # Shapes
/// `pool` and the result `[rows, kv·d]`, `new` `[t, kv·d]`.
///
/// # Panics
/// If there is not one row for each new token, or the pool has no such row.
pub fn write(pool: Tensor<2>, new: Tensor<2>, places: &Places) -> Tensor<2> {
    let ([rows, width], t) = (pool.dims(), places.new.len());
    assert_eq!(new.dims(), [t, width], "new keys or values");
    if let Some(row) = places.new.iter().find(|&&row| row as usize >= rows) {
        panic!("row {row} of a pool of {rows}");
    }
    cpu::write(pool, &new, &places.new).unwrap_or_else(|pool| {
        let index = places.new_there.clone();
        pool.select_assign(0, index, new, IndexingUpdateOp::Assign)
    })
}

/// What new tokens see of their sequences, themselves included: as [`attention::forward`] over each sequence's rows.
///
/// # Shapes
/// `q` `[t, h·d]`, `k` and `v` `[rows, kv·d]`, result `[t, h·d]`.
///
/// # Panics
/// If the shapes disagree with `layout` or `places`.
pub fn forward(
    q: &Tensor<2>,
    [k, v]: [&Tensor<2>; 2],
    places: &Places,
    layout: HeadLayout,
) -> Tensor<2> {
    let t = places.segments.queries();
    assert_eq!(q.dims(), [t, layout.heads * layout.head_dim], "queries");
    let width = layout.kv_heads * layout.head_dim;
    assert_eq!([k.dims()[1], v.dims()[1]], [width; 2], "width of the pool");
    cpu::forward(q, [k, v], places, layout).unwrap_or_else(|| {
        attention::forward(&gathered(q, [k, v], places), &places.segments, layout).0
    })
}

/// Each sequence's rows one behind the other.
fn gathered(q: &Tensor<2>, pool: [&Tensor<2>; 2], places: &Places) -> Qkv {
    let [k, v] = pool.map(|pool| pool.clone().select(0, places.rows_there.clone()));
    Qkv { q: q.clone(), k, v }
}
