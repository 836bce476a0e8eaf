//! Matrices that stay in the host's memory and come to their device for the time of a layer.

use std::ops::Range;
use std::sync::Arc;

use backdraft_kernels::dequantize::Tensors;
use backdraft_kernels::offload::slots::{Block, Part, PinError, Slots};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::weight::Weight;

/// A matrix whose tensors are parts of a [`Block`]. Each use of it reads them from the block's slot, so that nothing of it outlives
/// the op that it is for.
#[derive(Clone, Debug)]
pub struct Streamed {
    block: Arc<Block>,
    parts: Arc<[Part]>,
    /// The matrix without its tensors.
    form: Arc<Weight>,
    dims: [usize; 2],
    /// Of the whole matrix.
    bytes: usize,
    /// What of it this is.
    rows: Option<Range<usize>>,
}

/// Puts matrices that are on the processor into a block of their own, in place.
///
/// # Errors
/// Memory that cannot be pinned.
pub fn stream(weights: Vec<&mut Weight>, slots: &Slots) -> Result<(), PinError> {
    let mut tensors = Vec::new();
    let mut forms = Vec::with_capacity(weights.len());
    for weight in &weights {
        let begin = tensors.len();
        let form = without_tensors((**weight).clone(), &mut tensors);
        forms.push((form, begin..tensors.len()));
    }
    let (block, parts) = slots.block(&tensors)?;
    let block = Arc::new(block);
    for (weight, (form, range)) in weights.into_iter().zip(forms) {
        let (dims, bytes) = (weight.dims(), weight.num_bytes());
        *weight = Weight::Streamed(Streamed {
            block: block.clone(),
            parts: parts[range].into(),
            form: Arc::new(form),
            dims,
            bytes,
            rows: None,
        });
    }
    Ok(())
}

/// A matrix with empty tensors in place of its own, which go to `tensors`.
fn without_tensors(weight: Weight, tensors: &mut Vec<TensorData>) -> Weight {
    match weight {
        Weight::Dense(tensor) => {
            let (device, dtype) = (tensor.device(), tensor.dtype());
            let values = tensor.shape().num_elements();
            tensors.push(tensor.reshape([values]).into_data());
            Weight::Dense(Tensor::empty([0, 0], (&device, dtype)))
        }
        Weight::Host(_) | Weight::Streamed(_) => unreachable!("it is on the processor"),
        codes => codes.over(&mut Taken(tensors)),
    }
}

struct Taken<'a>(&'a mut Vec<TensorData>);

impl Tensors for Taken<'_> {
    fn codes(&mut self, codes: Tensor<1, Int>) -> Tensor<1, Int> {
        let (device, dtype) = (codes.device(), codes.dtype());
        self.0.push(codes.into_data());
        Tensor::empty([0], (&device, dtype))
    }

    fn scales(&mut self, scales: Tensor<1>) -> Tensor<1> {
        let (device, dtype) = (scales.device(), scales.dtype());
        self.0.push(scales.into_data());
        Tensor::empty([0], (&device, dtype))
    }
}

/// Tensors in a block's slot.
struct InSlot<'a> {
    block: &'a Block,
    parts: std::slice::Iter<'a, Part>,
}

impl InSlot<'_> {
    fn next(&mut self) -> Part {
        let part = self.parts.next();
        *part.unwrap_or_else(|| unreachable!("a part for each tensor"))
    }
}

impl Tensors for InSlot<'_> {
    fn codes(&mut self, _: Tensor<1, Int>) -> Tensor<1, Int> {
        let part = self.next();
        self.block.ints(part)
    }

    fn scales(&mut self, _: Tensor<1>) -> Tensor<1> {
        let part = self.next();
        self.block.floats(part)
    }
}

impl Streamed {
    /// The block that it comes with.
    #[must_use]
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// The device that it comes to.
    #[must_use]
    pub fn device(&self) -> &Device {
        self.block.slots().device()
    }

    /// `[out, in]`.
    #[must_use]
    pub fn dims(&self) -> [usize; 2] {
        let [out, input] = self.dims;
        [self.rows.as_ref().map_or(out, Range::len), input]
    }

    /// Memory of the host that it takes; of some rows, their share.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        match &self.rows {
            None => self.bytes,
            Some(rows) => self.bytes / self.dims[0].max(1) * rows.len(),
        }
    }

    /// The matrix without its tensors, which tells how it is stored.
    pub(crate) fn form(&self) -> &Weight {
        &self.form
    }

    /// The matrix in its slot, for an op that is issued before another block is read.
    #[must_use]
    pub fn here(&self) -> Weight {
        let mut tensors = InSlot {
            block: &self.block,
            parts: self.parts.iter(),
        };
        let whole = match &*self.form {
            Weight::Dense(_) => {
                let values = self.block.floats(tensors.next());
                Weight::Dense(values.reshape(self.dims))
            }
            codes => codes.clone().over(&mut tensors),
        };
        match &self.rows {
            None => whole,
            Some(rows) => whole.part(rows.clone()),
        }
    }

    /// Some of its rows.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        let start = self.rows.as_ref().map_or(0, |all| all.start);
        Self {
            rows: Some(start + rows.start..start + rows.end),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests;
