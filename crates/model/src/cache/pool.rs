//! Keys and values of all sequences, layer by layer.

use backdraft_arch::{LayerSpec, Mixer};
use backdraft_kernels::attention::HeadLayout;
use backdraft_kernels::paged_attention::{self, Places};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::pages::PAGE;
use super::states::{LayerStates, Slot};

/// Rows that a pool begins with.
const FIRST: usize = 16 * PAGE;

/// What one layer remembers of the sequences.
#[derive(Debug)]
pub(crate) enum LayerPool {
    /// Where it attends.
    KeysAndValues(Box<KeyValuePool>),
    /// Where it is a DeltaNet.
    States(LayerStates),
}

/// One layer's keys (rotated) and values: a row for each token of every page.
///
/// # Shapes
/// Both `[rows, kv·d]`.
#[derive(Debug)]
pub(crate) struct KeyValuePool {
    /// Absent before there is a row. Taken while it is written, so that it is written in place.
    sides: [Option<Tensor<2>>; 2],
    width: usize,
}

impl KeyValuePool {
    /// Writes the new tokens' keys and values, and lets their queries see their sequences.
    ///
    /// # Shapes
    /// `q` and the result `[t, h·d]`, `k` and `v` `[t, kv·d]`.
    pub(crate) fn attend(
        &mut self,
        [q, k, v]: [&Tensor<2>; 3],
        places: &Places,
        layout: HeadLayout,
    ) -> Tensor<2> {
        let [keys, values] = &mut self.sides;
        for (side, new) in [(&mut *keys, k), (&mut *values, v)] {
            let pool = side.take();
            *side = pool.map(|pool| paged_attention::write(pool, new.clone(), places));
        }
        match (keys, values) {
            (Some(keys), Some(values)) => {
                paged_attention::forward(q, [keys, values], places, layout)
            }
            _ => unreachable!("rows are reserved before they are written"),
        }
    }

    fn grow(&mut self, rows: usize, (device, dtype): (&Device, DType)) {
        for side in &mut self.sides {
            let had = side.as_ref().map_or(0, |pool| pool.dims()[0]);
            let more = Tensor::zeros([rows - had, self.width], (device, dtype));
            *side = Some(match side.take() {
                None => more,
                Some(pool) => Tensor::cat(vec![pool, more], 0),
            });
        }
    }

    fn copy(&mut self, from: &Tensor<1, Int>, to: &Places) {
        for side in &mut self.sides {
            *side = side.take().map(|pool| {
                let rows = pool.clone().select(0, from.clone());
                paged_attention::write(pool, rows, to)
            });
        }
    }
}

/// All layers' keys and values.
#[derive(Debug)]
pub(crate) struct Pool {
    layers: Vec<LayerPool>,
    rows: usize,
    device: Device,
    dtype: DType,
}

impl Pool {
    /// Of no sequence.
    pub(crate) fn new(layers: &[LayerSpec], device: &Device, dtype: DType) -> Self {
        let layers = layers.iter().map(|layer| match layer.mixer {
            Mixer::Attention | Mixer::GatedAttention => {
                LayerPool::KeysAndValues(Box::new(KeyValuePool {
                    sides: [None, None],
                    width: layer.num_key_value_heads * layer.head_dim,
                }))
            }
            Mixer::DeltaNet(sizes) => {
                LayerPool::States(LayerStates::new(sizes, (device.clone(), dtype)))
            }
        });
        Self {
            layers: layers.collect(),
            rows: 0,
            device: device.clone(),
            dtype,
        }
    }

    /// Makes room for so many pages, at least twice what there was: what is there is copied seldom.
    pub(crate) fn reserve(&mut self, pages: usize, limit: usize) {
        let needed = pages * PAGE;
        if needed <= self.rows {
            return;
        }
        self.rows = needed.max((2 * self.rows).clamp(FIRST, limit.saturating_mul(PAGE).max(FIRST)));
        let (rows, place) = (self.rows, (&self.device, self.dtype));
        for layer in keys_and_values(&mut self.layers) {
            layer.grow(rows, place);
        }
    }

    /// Layers, first to last.
    pub(crate) fn layers_mut(&mut self) -> impl Iterator<Item = &mut LayerPool> {
        self.layers.iter_mut()
    }

    /// Copies rows of all layers.
    pub(crate) fn copy(&mut self, [from, to]: [Vec<u32>; 2]) {
        if from.is_empty() {
            return;
        }
        let count = to.len();
        let from: Vec<i64> = from.into_iter().map(i64::from).collect();
        let from = Tensor::from_data(TensorData::new(from, [count]), &self.device);
        let to = Places::new(&[(to, count)], &self.device);
        for layer in keys_and_values(&mut self.layers) {
            layer.copy(&from, &to);
        }
    }

    /// Lets a sequence go on from where another is.
    pub(crate) fn fork(&mut self, from: Slot, to: Slot) {
        for layer in states(&mut self.layers) {
            layer.fork(from, to);
        }
    }

    /// Drops what a sequence has left.
    pub(crate) fn forget(&mut self, slot: Slot) {
        for layer in states(&mut self.layers) {
            layer.forget(slot);
        }
    }
}

fn keys_and_values(layers: &mut [LayerPool]) -> impl Iterator<Item = &mut KeyValuePool> {
    layers.iter_mut().filter_map(|layer| match layer {
        LayerPool::KeysAndValues(pool) => Some(&mut **pool),
        LayerPool::States(_) => None,
    })
}

fn states(layers: &mut [LayerPool]) -> impl Iterator<Item = &mut LayerStates> {
    layers.iter_mut().filter_map(|layer| match layer {
        LayerPool::States(states) => Some(states),
        LayerPool::KeysAndValues(_) => None,
    })
}
