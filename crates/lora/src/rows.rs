//! Rows of a projection: one of several that a family keeps in one matrix, with one adapter.

use std::ops::Range;

use backdraft_kernels::column_sums::column_sums;
use backdraft_kernels::lora_linear::{self, Branch, Factors, WantedFactors, backward_fused};
use backdraft_kernels::low_rank::Adapted;
use backdraft_quant::Weight;
use burn::tensor::Tensor;

use crate::adapter::Adapter;
use crate::dora::Decomposed;
use crate::gradients::AdapterGrads;
use crate::projection::{Projection, ProjectionSaved};

/// What a projection computes with some of its rows: those of W, of the bias and of B, and all of A.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    whole: &'a Projection,
    rows: Range<usize>,
    weight: Weight,
}

impl<'a> Rows<'a> {
    /// These rows of a projection.
    ///
    /// # Panics
    /// If there are not as many.
    #[must_use]
    pub fn of(whole: &'a Projection, rows: Range<usize>) -> Self {
        Self {
            weight: whole.weight().part(rows.clone()),
            whole,
            rows,
        }
    }

    /// Without autodiff, with what the backward pass needs; `xa` is x·Aᵀ of the whole projection, where there is an adapter.
    ///
    /// # Shapes
    /// `x` `[t, in]`, `xa` `[t, r]`, result `[t, rows]`.
    pub fn forward_saving(
        &self,
        x: &Tensor<2>,
        xa: Option<Tensor<2>>,
        dropout_seed: Option<u64>,
    ) -> (Tensor<2>, ProjectionSaved) {
        let (y, saved) = self.forward_adapted(x, xa, dropout_seed);
        (y.complete(), saved)
    }

    /// As [`forward_saving`](Self::forward_saving); the adapter's term waits where there is a kernel that adds it in
    /// passing.
    ///
    /// # Shapes
    /// As [`forward_saving`](Self::forward_saving).
    pub fn forward_adapted(
        &self,
        x: &Tensor<2>,
        xa: Option<Tensor<2>>,
        dropout_seed: Option<u64>,
    ) -> (Adapted, ProjectionSaved) {
        let factors = self.factors(x, dropout_seed);
        let weight = (&self.weight, self.whole.multiplier());
        let (y, xa, norms) = match self.decomposed(factors.as_ref(), None) {
            Some(decomposed) => {
                let (base, xa) = decomposed.forward(x, xa);
                (Adapted { base, term: None }, xa, Some(decomposed.norms()))
            }
            None => {
                let (y, xa) = lora_linear::forward_adapted(x, weight, factors.as_ref(), xa, None);
                (y, xa, None)
            }
        };
        let base = match self.whole.scaled_bias() {
            Some(bias) => y.base + bias.narrow(0, self.rows.start, self.rows.len()).unsqueeze(),
            None => y.base,
        };
        let saved = ProjectionSaved::of(xa, dropout_seed);
        (Adapted { base, ..y }, ProjectionSaved { norms, ..saved })
    }

    /// These rows with their gain, where they have one; `norms` are those of a forward pass.
    fn decomposed<'b>(
        &'b self,
        factors: Option<&'b Factors>,
        norms: Option<&Tensor<1>>,
    ) -> Option<Decomposed<'b>> {
        let (magnitude, factors) = self.whole.magnitude().zip(factors)?;
        let norms = norms.cloned().unwrap_or_else(|| {
            let unscaled = self.whole.unscaled(factors.a.dtype());
            let b = unscaled.b.narrow(0, self.rows.start, self.rows.len());
            magnitude.norms(&self.weight, self.rows.clone(), &Factors { b, ..unscaled })
        });
        let m = magnitude.vector.val().inner();
        let m = m.narrow(0, self.rows.start, self.rows.len());
        let weight = (&self.weight, self.whole.multiplier());
        Some(Decomposed::new(weight, factors, m, norms))
    }

    /// The backward pass of all rows of a projection, part by part in their order: adds the gradients of factors and of a
    /// trained weight and bias to `grads` and returns the input's, where it is `wanted`. Each `dy` is let go when it was used; the input may be absent where there is
    /// neither adapter nor trained weight.
    ///
    /// # Shapes
    /// `dy` `[t, rows]`, `x` and the result `[t, in]`.
    ///
    /// # Panics
    /// If there is an adapter or a trained weight, and no input.
    pub fn backward_together<const N: usize>(
        parts: [(Self, Tensor<2>, &ProjectionSaved); N],
        x: Option<&Tensor<2>>,
        grads: &mut AdapterGrads,
        wanted: bool,
    ) -> Option<Tensor<2>> {
        let adapter = parts[0].0.whole.adapter();
        assert!(
            x.is_some() || adapter.is_none(),
            "an adapter's gradient needs the input"
        );
        if let Some(bias) = parts[0].0.whole.trained_bias() {
            let alpha = parts[0].0.whole.multiplier();
            let sums = parts.each_ref().map(|(_, dy, _)| column_sums(dy));
            let sums = Tensor::cat(Vec::from(sums), 0);
            bias.add_grad(grads, sums.mul_scalar(alpha));
        }
        if let Some(weight) = parts[0].0.whole.trained_weight() {
            let Some(x) = x else {
                panic!("a trained weight's gradient needs the input");
            };
            let alpha = parts[0].0.whole.multiplier();
            let dy = Tensor::cat(Vec::from(parts.each_ref().map(|(_, dy, _)| dy.clone())), 1);
            weight.add_matrix_grad(grads, x, (alpha, &dy));
        }
        let factors =
            (parts.each_ref()).map(|(part, dy, saved)| part.factors(dy, saved.dropout_seed));
        let (mut added, mut magnitude) = (None::<Tensor<2>>, Vec::with_capacity(N));
        let mut each = factors.iter();
        let parts = parts.map(|(part, dy, saved)| {
            let factors = each.next().and_then(Option::as_ref);
            let Some(decomposed) = part.decomposed(factors, saved.norms.as_ref()) else {
                return (part, dy, saved);
            };
            if let (Some(x), Some(xa)) = (x, &saved.xa) {
                magnitude.push(decomposed.magnitude_gradient(&dy, x, xa));
            }
            let (dy, more) = decomposed.backward(dy, wanted);
            drop(decomposed);
            added = match (added.take(), more) {
                (Some(sum), Some(more)) => Some(sum + more),
                (sum, more) => sum.or(more),
            };
            (part, dy, saved)
        });
        let whole = parts[0].0.whole;
        if let (Some(m), false) = (whole.magnitude(), magnitude.is_empty()) {
            grads.add_vector(m.vector.id, Tensor::cat(magnitude, 0));
        }
        if let (Some(adapter), Some(x), true) = (adapter, x, grads.observes()) {
            let all = parts.iter().map(|(_, dy, _)| dy.clone()).collect();
            let alpha = parts[0].0.whole.multiplier();
            grads.observe(adapter.first_id(), x, (alpha, &Tensor::cat(all, 1)));
        }
        let slots = adapter.and_then(|adapter| match adapter {
            Adapter::Lora(lora) => lora.slots(grads),
        });
        let mut weights = Vec::with_capacity(N);
        let parts = parts.map(|(part, dy, saved)| {
            weights.push((part.weight, part.whole.multiplier()));
            (dy, saved, part.rows)
        });
        let mut place = 0;
        let branches = parts.map(|(dy, saved, rows)| {
            let (weight, alpha) = &weights[place];
            let adapter = factors[place].as_ref().zip(saved.xa.as_ref());
            place += 1;
            Branch {
                dy,
                weight: (weight, *alpha),
                adapter,
                factors: match &slots {
                    Some([a, b]) => {
                        WantedFactors::Into([a.clone(), b.rows(rows.start, rows.len())])
                    }
                    None => WantedFactors::New,
                },
            }
        });
        let (dx, factor_grads) = backward_fused(branches, x, wanted);
        if let (Some(Adapter::Lora(lora)), Some(factor_grads)) = (adapter, factor_grads) {
            lora.add_grads(grads, factor_grads);
        }
        match added {
            Some(added) => dx.map(|dx| dx + added),
            None => dx,
        }
    }

    /// A, and the rows of B.
    fn factors(&self, like: &Tensor<2>, dropout_seed: Option<u64>) -> Option<Factors> {
        let factors = self.whole.plain_factors(like, dropout_seed)?;
        let b = factors.b.narrow(0, self.rows.start, self.rows.len());
        Some(Factors { b, ..factors })
    }
}
