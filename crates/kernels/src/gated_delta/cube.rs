//! On CubeCL devices, in chunks.
//!
//! [`prepare`] makes what a chunk's tokens are to each other, of all chunks at once, as N = (1 + D∘(K·Kᵀ)∘β)⁻¹·D∘(K·Kᵀ) below
//! the diagonal: with it U = β∘R is R = rest − N·(β∘rest), where rest = V − e^G∘X, and backwards dB = dU − Nᵀ·(β∘dU). [`scan`]
//! goes along the chunks with some columns of a state, forwards or with its gradient backwards. [`gradients`] makes the rest of
//! all chunks at once, from states and their gradients that the scans left.
//!
//! Most terms of dG in the [module above](super) cancel: it is dO·O − dV·V, and at a chunk's last token ⟨S, dS⟩ of the state
//! behind it. dβ is dB·R.
//!
//! No sum depends on what runs first, and none on where in a batch a document stands.

mod gates;
mod gradients;
mod prepare;
mod product;
mod scan;
mod step;

use backdraft_arch::sizes::DELTA_CHUNK as CHUNK;
use burn::tensor::{DType, Tensor};

use self::gates::LISTS;
use self::product::DOWN;
use super::{DeltaLayout, Operands};
use crate::cube::{CubeTensor, empty, floats, tensor};
use crate::runs::{Documents, Runs, runs};
use crate::segments::Segments;

/// Inner features of a panel where all chunks are computed at once, and what features are filled up to.
const PANEL: usize = 16;

/// Bytes of shared memory that a cube takes at most, so that several are on a multiprocessor.
const SHARED: usize = 48 << 10;

/// The heads, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    key_heads: usize,
    value_heads: usize,
    /// Features of a query or a key.
    key: usize,
    /// Features of a value.
    value: usize,
}

impl Shape {
    const fn of(layout: DeltaLayout) -> Self {
        Self {
            key_heads: layout.key_heads,
            value_heads: layout.value_heads,
            key: layout.key_dim,
            value: layout.value_dim,
        }
    }

    const fn key_padded(self) -> usize {
        self.key.next_multiple_of(PANEL)
    }

    const fn value_padded(self) -> usize {
        self.value.next_multiple_of(PANEL)
    }

    const fn key_width(self) -> usize {
        self.key_heads * self.key
    }

    const fn width(self) -> usize {
        2 * self.key_width() + self.value_heads * self.value
    }

    const fn group(self) -> usize {
        self.value_heads / self.key_heads
    }

    /// Values of a state.
    const fn state(self) -> usize {
        self.key * self.value
    }

    /// Values of a panel of keys' features or of tokens, the larger.
    const fn panel_values(self) -> usize {
        let outer = if self.key_padded() > CHUNK {
            self.key_padded()
        } else {
            CHUNK
        };
        PANEL * (outer + 1)
    }

    /// Bytes of shared memory of the largest kernel of [`gradients`].
    const fn shared(self) -> usize {
        let square = CHUNK * (CHUNK + 1);
        4 * (square + PANEL * (CHUNK + 1) + self.panel_values() + (LISTS + 2) * CHUNK)
    }
}

/// What a cube of [`scan`] has of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Columns {
    /// How many columns.
    columns: usize,
    /// Inner features of a panel.
    panel: usize,
}

impl Columns {
    /// As many as fit into `memory` bytes: first columns, then larger panels.
    fn new(shape: Shape, memory: usize) -> Option<Self> {
        let widest = if shape.value > 16 { 32 } else { 16 };
        let columns = [32, 16].into_iter().filter(|&columns| columns <= widest);
        let all = columns.flat_map(|columns| [64, 32, 16].map(|panel| Self { columns, panel }));
        let mut all = all.filter(|columns| shape.key_padded().is_multiple_of(columns.panel));
        all.find(|columns| columns.shared(shape) <= memory)
    }

    /// Units across, with four columns each.
    const fn across(self) -> usize {
        self.columns / 4
    }

    /// Values of the columns of a state.
    const fn state(self, shape: Shape) -> usize {
        shape.key_padded() * self.columns
    }

    /// Values of a panel.
    const fn panel_values(self, shape: Shape) -> usize {
        shape.panel_values() / PANEL * self.panel
    }

    /// Bytes of shared memory.
    const fn shared(self, shape: Shape) -> usize {
        let block = CHUNK * self.columns;
        4 * (self.state(shape) + block + self.panel_values(shape) + LISTS * CHUNK)
    }
}

/// Operands on a device.
struct Device {
    qkv: CubeTensor,
    beta: CubeTensor,
    decay: CubeTensor,
    shape: Shape,
    columns: Columns,
    runs: Runs,
}

impl Device {
    /// `None` elsewhere, and where a cube has too little shared memory or too few units.
    fn of(
        x: &Operands,
        segments: &Segments,
        layout: DeltaLayout,
        which: Documents,
    ) -> Option<Self> {
        let [qkv, beta, decay] = [floats(&x.qkv)?, floats(&x.beta)?, floats(&x.decay)?];
        if beta.dtype != DType::F32 || decay.dtype != DType::F32 {
            return None;
        }
        let shape = Shape::of(layout);
        let hardware = &qkv.client.properties().hardware;
        let memory = hardware.max_shared_memory_size;
        let fits = shape.shared() <= memory && DOWN * DOWN <= hardware.max_units_per_cube as usize;
        let columns = Columns::new(shape, memory.min(SHARED)).filter(|_| fits)?;
        Some(Self {
            runs: runs(segments, CHUNK, which, &qkv),
            qkv,
            beta,
            decay,
            shape,
            columns,
        })
    }

    /// Rows of the operands.
    fn tokens(&self) -> usize {
        self.qkv.meta.shape()[0]
    }

    /// A state for each run and value head, not yet written.
    fn states(&self) -> CubeTensor {
        let heads = self.runs.count * self.shape.value_heads;
        empty(&self.qkv, [heads, self.shape.state()], DType::F32)
    }

    /// A value for each token of a chunk, likewise.
    fn values(&self) -> CubeTensor {
        let heads = self.runs.count * self.shape.value_heads;
        empty(&self.qkv, [heads, CHUNK * self.shape.value], DType::F32)
    }

    /// As many values for each token as there are, in the type of the operands.
    fn result(&self) -> CubeTensor {
        let width = self.shape.value_heads * self.shape.value;
        empty(&self.qkv, [self.tokens(), width], self.qkv.dtype)
    }
}

pub(super) fn forward(x: &Operands, segments: &Segments, layout: DeltaLayout) -> Option<Tensor<2>> {
    let x = Device::of(x, segments, layout, Documents::All)?;
    let out = x.result();
    if x.runs.count > 0 {
        let prepared = prepare::prepare(&x);
        scan::forward(&x, &prepared, (None, None), &out);
    }
    Some(tensor(out))
}

/// `Err` hands the states back when something is not on a CubeCL device.
pub(super) fn forward_continuing(
    x: &Operands,
    segments: &Segments,
    layout: DeltaLayout,
    states: Vec<Tensor<2>>,
) -> Result<(Tensor<2>, Vec<Tensor<2>>), Vec<Tensor<2>>> {
    let x = Device::of(x, segments, layout, Documents::Others);
    // Documents without a token, and none beside them that have several, are not worth a launch.
    let Some(x) = x.filter(|x| x.runs.count > 0 || x.runs.document_count == 0) else {
        return Err(states);
    };
    let mut joined = states.clone();
    let joined = match joined.len() {
        0 => return Ok((tensor(x.result()), states)),
        1 => joined.swap_remove(0),
        _ => Tensor::cat(joined, 0),
    };
    let Some(start) = floats(&joined).filter(|start| start.dtype == DType::F32) else {
        return Err(states);
    };
    let (out, left) = (x.result(), empty(&start, joined.dims(), DType::F32));
    if x.runs.document_count > 0 {
        let prepared = prepare::prepare(&x);
        scan::forward(&x, &prepared, (Some(&start), Some(&left)), &out);
    }
    let ones = runs(segments, CHUNK, Documents::OfOneRow, &x.qkv);
    if ones.count > 0 {
        step::step(&x, &ones, (&start, &left), &out);
    }
    let (left, count): (Tensor<2>, _) = (tensor(left), states.len());
    let rows = left.dims()[0] / count;
    let left = (0..count).map(|i| left.clone().narrow(0, i * rows, rows));
    Ok((tensor(out), left.collect()))
}

pub(super) fn backward(
    d_out: &Tensor<2>,
    x: &Operands,
    segments: &Segments,
    layout: DeltaLayout,
) -> Option<Operands> {
    let d_out = floats(d_out)?;
    let d_qkv = x.qkv.dims();
    let x = Device::of(x, segments, layout, Documents::All)?;
    if d_out.dtype != x.qkv.dtype {
        return None;
    }
    let d_qkv = empty(&x.qkv, d_qkv, x.qkv.dtype);
    if x.runs.count == 0 {
        return Some(Operands {
            qkv: tensor(d_qkv),
            beta: tensor(x.beta),
            decay: tensor(x.decay),
        });
    }
    let prepared = prepare::prepare(&x);
    let before = scan::again(&x, &prepared);
    let behind = scan::backward(&x, &d_out, &prepared, &d_qkv);
    let scans = (&before, &behind);
    let read = gradients::of_queries_and_keys(&x, &d_out, &prepared, scans, &d_qkv);
    let [beta, decay] = gradients::of_gates(&x, &read, scans);
    Some(Operands {
        qkv: tensor(d_qkv),
        beta: tensor(beta),
        decay: tensor(decay),
    })
}
