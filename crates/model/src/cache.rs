//! Keys and values of tokens already seen, for several sequences at a time.

use backdraft_kernels::Segments;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// One layer's keys (rotated) and values, sequence after sequence.
///
/// # Shapes
/// Both `[Σ past, kv·d]`.
#[derive(Clone, Debug, Default)]
pub struct LayerCache(Option<(Tensor<2>, Tensor<2>)>);

impl LayerCache {
    /// Appends each sequence's new rows to its past ones and returns all; `segments` tells both
    /// apart.
    ///
    /// # Shapes
    /// `k`, `v` `[Σ new, kv·d]`; result `[Σ (past + new), kv·d]`.
    pub fn extend(
        &mut self,
        k: Tensor<2>,
        v: Tensor<2>,
        segments: &Segments,
    ) -> (Tensor<2>, Tensor<2>) {
        let all = match self.0.take() {
            None => (k, v),
            Some((past_k, past_v)) => (join(past_k, k, segments), join(past_v, v, segments)),
        };
        self.0 = Some(all.clone());
        all
    }

    fn select(&mut self, rows: &Tensor<1, Int>) {
        if let Some((k, v)) = self.0.take() {
            self.0 = Some((k.select(0, rows.clone()), v.select(0, rows.clone())));
        }
    }
}

fn join(past: Tensor<2>, new: Tensor<2>, segments: &Segments) -> Tensor<2> {
    let width = past.dims()[1];
    let mut start = 0;
    let mut pieces = Vec::with_capacity(2 * segments.len());
    for (queries, keys) in segments.iter() {
        let past_len = keys.len() - queries.len();
        pieces.push(past.clone().slice([start..start + past_len, 0..width]));
        pieces.push(new.clone().slice([queries, 0..width]));
        start += past_len;
    }
    Tensor::cat(pieces, 0)
}

/// The keys and values of some sequences in all layers.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    lengths: Vec<usize>,
}

impl KvCache {
    /// Empty, for `sequences` sequences in a model of `num_layers` layers.
    pub fn new(num_layers: usize, sequences: usize) -> Self {
        Self {
            layers: vec![LayerCache::default(); num_layers],
            lengths: vec![0; sequences],
        }
    }

    /// Tokens seen of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Layers, first to last.
    pub(crate) fn layers_mut(&mut self) -> impl Iterator<Item = &mut LayerCache> {
        self.layers.iter_mut()
    }

    /// Counts the new tokens of each sequence.
    pub(crate) fn advance(&mut self, segments: &Segments) {
        for (length, (_, keys)) in self.lengths.iter_mut().zip(segments.iter()) {
            *length = keys.len();
        }
    }

    /// Forgets the sequences for which `keep` is false.
    ///
    /// # Panics
    /// If there is not one entry for each sequence.
    pub fn retain(&mut self, keep: &[bool], device: &Device) {
        assert_eq!(
            keep.len(),
            self.lengths.len(),
            "one entry for each sequence"
        );
        let (mut rows, mut start) = (Vec::new(), 0);
        for (&length, &keep) in self.lengths.iter().zip(keep) {
            if keep {
                rows.extend(start..start + length as i64);
            }
            start += length as i64;
        }
        let count = rows.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), device);
        for layer in &mut self.layers {
            layer.select(&rows);
        }
        let mut keep = keep.iter();
        self.lengths.retain(|_| keep.next() == Some(&true));
    }
}
