//! Weight-decomposed adapters: the trained lengths of a projection's rows, and what they do in a pass.
//!
//! A pass is LoRA's own with a gain on each output, see [`dora`]; the gain m / n follows from the factors of the moment. Of a
//! weight only the squared lengths of its rows are kept. The backward pass computes the output before the gain once more for
//! dm, rather than keep it: that is half as much again of the products with W, and no memory between the passes.

use std::ops::Range;

use backdraft_kernels::dora;
use backdraft_kernels::dropout::Dropout;
use backdraft_kernels::lora_linear::{self, Factors};
use backdraft_quant::{Frozen, Weight};
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorReadError};

use crate::param::{AdapterParam, Stored};

const M: [&str; 2] = ["lora_magnitude_vector"; 2];

/// The trained lengths of a projection's rows.
#[derive(Module, Debug)]
pub struct Magnitude {
    /// m `[out]`.
    pub vector: Param<Tensor<1>>,
    /// Squared lengths of the weight's rows, where the adapter is on a projection.
    squares: Option<Frozen<Tensor<1>>>,
    /// n, as long as the factors are what they were when the adapter came onto its projection.
    norms: Option<Frozen<Tensor<1>>>,
}

impl Magnitude {
    /// Given lengths.
    ///
    /// # Shapes
    /// `[out]`.
    pub fn new(vector: Tensor<1>) -> Self {
        Self {
            vector: Param::from_tensor(vector),
            squares: None,
            norms: None,
        }
    }

    /// The lengths that the rows of a weight have; of a weight in codes, those that the codes stand for.
    pub fn of(weight: &Weight) -> Self {
        Self::new(weight.row_squares().sqrt())
    }

    /// The same lengths elsewhere, over no weight yet.
    pub(crate) fn moved(&self, device: &Device) -> Self {
        Self::new(self.vector.val().inner().to_device(device))
    }

    /// The same over a weight, with factors whose s is without α.
    #[must_use]
    pub(crate) fn over(mut self, weight: &Weight, factors: &Factors) -> Self {
        let squares = weight.row_squares();
        self.norms = Some(Frozen(dora::row_norms(weight, &squares, factors)));
        self.squares = Some(Frozen(squares));
        self
    }

    pub(crate) fn param(&self) -> AdapterParam {
        AdapterParam::of(M, &self.vector)
    }

    pub(crate) fn update(&mut self, update: impl FnOnce(AdapterParam) -> Tensor<1>) {
        let id = self.vector.id;
        self.vector = (self.vector.clone()).map(|m| update(AdapterParam::new(M, id, m)));
        self.norms = None;
    }

    pub(crate) fn store_in(&mut self, place: impl FnOnce(ParamId) -> Option<Stored>) {
        let Some(Stored { values, .. }) = place(self.vector.id) else {
            return;
        };
        let [_, out] = values.dims();
        self.vector = self.vector.clone().map(|_| values.reshape([out]));
        self.norms = None;
    }

    /// n of these rows of `weight`, which are those of the factors; without autodiff.
    ///
    /// # Panics
    /// If the adapter is on no projection.
    pub(crate) fn norms(
        &self,
        weight: &Weight,
        rows: Range<usize>,
        factors: &Factors,
    ) -> Tensor<1> {
        let cut = |all: &Tensor<1>| all.clone().narrow(0, rows.start, rows.len());
        if let Some(Frozen(norms)) = &self.norms {
            return cut(norms);
        }
        match &self.squares {
            Some(Frozen(squares)) => dora::row_norms(weight, &cut(squares), factors),
            None => panic!("the magnitudes of an adapter that is on no projection"),
        }
    }

    /// Whether m is what the weight's rows have. Reads it from the device.
    pub(crate) fn changes_nothing(&self) -> Result<bool, TensorReadError> {
        let Some(Frozen(squares)) = &self.squares else {
            return Ok(false);
        };
        let start = squares.clone().sqrt().try_into_data()?;
        let now = self.vector.val().inner().try_into_data()?;
        Ok(start.iter::<f32>().eq(now.iter::<f32>()))
    }
}

/// A projection, or some of its rows, with its factors and their gain.
#[derive(Debug)]
pub(crate) struct Decomposed<'a> {
    /// W and α.
    weight: (&'a Weight, f32),
    /// α is in their s.
    factors: &'a Factors,
    norms: Tensor<1>,
    gain: Tensor<1>,
}

impl<'a> Decomposed<'a> {
    pub(crate) fn new(
        weight: (&'a Weight, f32),
        factors: &'a Factors,
        magnitude: Tensor<1>,
        norms: Tensor<1>,
    ) -> Self {
        Self {
            weight,
            factors,
            gain: magnitude / norms.clone(),
            norms,
        }
    }

    pub(crate) fn norms(&self) -> Tensor<1> {
        self.norms.clone()
    }

    /// The output without the bias, and x·Aᵀ.
    ///
    /// # Shapes
    /// `x` `[t, in]`, result `[t, out]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor<2>,
        xa: Option<Tensor<2>>,
    ) -> (Tensor<2>, Option<Tensor<2>>) {
        let (y, xa) = lora_linear::forward(x, self.weight, Some(self.factors), xa, None);
        let y = dora::scale_columns(y, &self.gain);
        let y = match self.factors.dropout {
            Some(dropout) => y + dora::dropped(x, self.weight, &self.gain, dropout),
            None => y,
        };
        (y, xa)
    }

    /// The output without the bias from x·Wᵀ·α, without dropout.
    ///
    /// # Shapes
    /// `x` `[t, in]`, `product` and the result `[t, out]`.
    pub(crate) fn forward_over(&self, x: &Tensor<2>, product: Tensor<2>) -> Tensor<2> {
        let term = self.factors.clone().term(x);
        dora::scale_columns(term.add_to(product), &self.gain)
    }

    /// dm.
    ///
    /// # Shapes
    /// `dy` `[t, out]`, `x` `[t, in]`, `xa` `[t, r]`, result `[out]`.
    pub(crate) fn magnitude_gradient(
        &self,
        dy: &Tensor<2>,
        x: &Tensor<2>,
        xa: &Tensor<2>,
    ) -> Tensor<1> {
        let seen = self.seen(x);
        // x·Aᵀ is there, so that nothing is dropped out a second time.
        let (factors, xa) = (Some(self.factors), Some(xa.clone()));
        let (z, _) = lora_linear::forward(&seen, self.weight, factors, xa, None);
        dora::column_products(dy, &z) / self.norms.clone()
    }

    /// What LoRA's own backward pass takes in place of `dy`, and what dropout adds to the gradient of the input that comes of
    /// it, where that is wanted.
    ///
    /// # Shapes
    /// `dy` and the first result `[t, out]`, the second `[t, in]`.
    pub(crate) fn backward(&self, dy: Tensor<2>, wanted: bool) -> (Tensor<2>, Option<Tensor<2>>) {
        let dropout = self.factors.dropout.filter(|_| wanted);
        let added = dropout.map(|dropout: Dropout| {
            dora::dropped_backward(dy.clone(), self.weight, &self.gain, dropout)
        });
        (dora::scale_columns(dy, &self.gain), added)
    }

    /// The input as the adapter sees it.
    fn seen(&self, x: &Tensor<2>) -> Tensor<2> {
        match self.factors.dropout {
            Some(dropout) => dropout.apply(x.clone()),
            None => x.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
