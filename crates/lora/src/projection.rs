//! A linear layer with a frozen weight and perhaps an adapter.

use std::ops::Range;

use backdraft_kernels::frozen_matrix::FrozenMatrix;
use backdraft_kernels::lora_linear::{self, Branch, Factors, WantedFactors, lora_linear};
use backdraft_kernels::low_rank::{Adapted, LowRank};
use backdraft_quant::{Frozen, Weight};
use burn::module::Module;
use burn::tensor::Tensor;

use crate::adapter::Adapter;
use crate::gradients::AdapterGrads;

/// y = α·(x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ) with W and bias frozen; α is 1 unless a family multiplies what a branch adds to the
/// residual stream.
#[derive(Module, Debug)]
pub struct Projection {
    weight: Frozen<Weight>,
    bias: Option<Frozen<Tensor<1>>>,
    adapter: Option<Adapter>,
    #[module(skip)]
    multiplier: f32,
}

/// What [`Projection::backward`] needs besides the layer's input.
#[derive(Clone, Debug, Default)]
pub struct ProjectionSaved {
    /// x·Aᵀ, where there is an adapter.
    pub(crate) xa: Option<Tensor<2>>,
    pub(crate) dropout_seed: Option<u64>,
}

/// What [`Projection::backward_ahead`] leaves for when the input is there.
#[derive(Debug)]
pub struct Ahead {
    factor_a: Option<lora_linear::Ahead>,
    /// The gradient of the output, where somebody asked for [`Statistics`](crate::Statistics).
    seen: Option<Tensor<2>>,
}

impl Projection {
    /// Without adapter.
    ///
    /// # Shapes
    /// `weight` `[out, in]`, `bias` `[out]`.
    pub fn new(weight: Weight, bias: Option<Tensor<1>>) -> Self {
        Self {
            weight: Frozen(weight),
            bias: bias.map(Frozen),
            adapter: None,
            multiplier: 1.0,
        }
    }

    /// The same with α = `multiplier`.
    #[must_use]
    pub fn times(self, multiplier: f32) -> Self {
        Self { multiplier, ..self }
    }

    /// The same with `adapter` in place of the one it had.
    pub fn with_adapter(self, adapter: Option<Adapter>) -> Self {
        Self { adapter, ..self }
    }

    /// The frozen weight, `[out, in]`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The frozen weight, to be replaced: by a quantised one, or by one that is trained.
    pub fn weight_mut(&mut self) -> &mut Weight {
        &mut self.weight
    }

    /// The frozen bias, `[out]`.
    pub fn bias(&self) -> Option<&Tensor<1>> {
        self.bias.as_deref()
    }

    /// The frozen bias, to be replaced by one that is trained.
    pub fn bias_mut(&mut self) -> Option<&mut Tensor<1>> {
        self.bias.as_deref_mut()
    }

    /// The adapter, if there is one.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The adapter, to be changed.
    pub fn adapter_mut(&mut self) -> Option<&mut Adapter> {
        self.adapter.as_mut()
    }

    /// The differentiable projection; with a seed, the adapter's input is dropped out.
    ///
    /// # Shapes
    /// `x` `[t, in]`, result `[t, out]`.
    pub fn forward(&self, x: Tensor<2>, dropout_seed: Option<u64>) -> Tensor<2> {
        let dtype = x.dtype();
        let factors = self.adapter.as_ref().map(|adapter| match adapter {
            Adapter::Lora(lora) => self.scaled(lora.factors(dtype, dropout_seed)),
        });
        let y = match self.weight.tracked() {
            Some(weight) => {
                let weight = (weight, self.multiplier);
                lora_linear::reference::forward(x, weight, factors.as_ref())
            }
            None => lora_linear(x, (self.weight().clone(), self.multiplier), factors),
        };
        self.add_bias(y)
    }

    /// The same without autodiff, with what the backward pass needs. `xa` is x·Aᵀ, where
    /// [`down_together`](Self::down_together) has made it.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward); `xa` `[t, r]`.
    pub fn forward_saving(
        &self,
        x: &Tensor<2>,
        xa: Option<Tensor<2>>,
        dropout_seed: Option<u64>,
    ) -> (Tensor<2>, ProjectionSaved) {
        self.forward_from(x, xa, dropout_seed, None)
    }

    /// As [`forward_saving`](Self::forward_saving), and `sum`, a residual stream, where there is one.
    ///
    /// # Shapes
    /// `x` `[t, in]`, `sum` and the result `[t, out]`.
    pub fn forward_adding(
        &self,
        x: &Tensor<2>,
        dropout_seed: Option<u64>,
        sum: Option<&Tensor<2>>,
    ) -> (Tensor<2>, ProjectionSaved) {
        self.forward_from(x, None, dropout_seed, sum)
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
        let factors = self.plain_factors(x, dropout_seed);
        let (y, xa) = lora_linear::forward_adapted(x, self.factored(), factors.as_ref(), xa, None);
        let base = self.add_bias(y.base);
        (Adapted { base, ..y }, ProjectionSaved { xa, dropout_seed })
    }

    fn forward_from(
        &self,
        x: &Tensor<2>,
        xa: Option<Tensor<2>>,
        dropout_seed: Option<u64>,
        sum: Option<&Tensor<2>>,
    ) -> (Tensor<2>, ProjectionSaved) {
        let factors = self.plain_factors(x, dropout_seed);
        let (y, xa) = lora_linear::forward(x, self.factored(), factors.as_ref(), xa, sum);
        (self.add_bias(y), ProjectionSaved { xa, dropout_seed })
    }

    /// Without autodiff, over rows of one batch that belong to different adapters of one base: each part names its rows
    /// and the projection whose adapter they go through. The weight is that of the first, and is read once for all rows.
    /// `sum` is added where there is one.
    ///
    /// # Shapes
    /// `x` `[t, in]`, `sum` and the result `[t, out]`; the parts follow one another from 0 to t.
    pub fn forward_parts(
        parts: &[(Range<usize>, &Self)],
        x: &Tensor<2>,
        sum: Option<&Tensor<2>>,
    ) -> Tensor<2> {
        let first = parts[0].1;
        if parts.len() == 1 {
            return first.forward_from(x, None, None, sum).0;
        }
        let y = first.weight.matmul_add(x, first.multiplier, sum);
        if parts.iter().all(|(_, part)| part.adapter.is_none()) {
            return first.add_bias(y);
        }
        let pieces = parts.iter().map(|(rows, part)| {
            let cut = |t: &Tensor<2>| t.clone().narrow(0, rows.start, rows.len());
            let y = cut(&y);
            let Some(factors) = part.plain_factors(x, None) else {
                return y;
            };
            let term = LowRank {
                left: factors.down(&cut(x)),
                right: factors.b,
                scaling: factors.scaling,
            };
            term.add_to(y)
        });
        first.add_bias(Tensor::cat(pieces.collect(), 0))
    }

    /// x·Aᵀ of several projections of the same input in one product, where their factors lie together in one
    /// buffer, as an optimiser on a GPU has them; elsewhere `None`, and each projection computes its own.
    ///
    /// # Shapes
    /// `x` `[t, in]`, results `[t, r]`.
    pub fn down_together<const N: usize>(
        projections: [&Self; N],
        x: &Tensor<2>,
        dropout_seeds: [Option<u64>; N],
    ) -> Option<[Tensor<2>; N]> {
        let factors: [_; N] =
            std::array::from_fn(|i| projections[i].plain_factors(x, dropout_seeds[i]));
        let all = lora_linear::down_together(x, &factors.each_ref().map(Option::as_ref))?;
        all.try_into().ok()
    }

    /// x·Aᵀ, where there is an adapter: what all rows of a projection share.
    ///
    /// # Shapes
    /// `x` `[t, in]`, result `[t, r]`.
    pub fn down(&self, x: &Tensor<2>, dropout_seed: Option<u64>) -> Option<Tensor<2>> {
        Some(self.plain_factors(x, dropout_seed)?.down(x))
    }

    pub(crate) fn plain_factors(
        &self,
        like: &Tensor<2>,
        dropout_seed: Option<u64>,
    ) -> Option<Factors> {
        self.adapter.as_ref().map(|adapter| match adapter {
            Adapter::Lora(lora) => self.scaled(lora.plain_factors(like.dtype(), dropout_seed)),
        })
    }

    /// With α in s.
    fn scaled(&self, factors: Factors) -> Factors {
        Factors {
            scaling: factors.scaling * self.multiplier,
            ..factors
        }
    }

    /// α.
    pub(crate) const fn multiplier(&self) -> f32 {
        self.multiplier
    }

    /// W and α.
    fn factored(&self) -> (&Weight, f32) {
        (&self.weight, self.multiplier)
    }

    /// Adds the factors' gradients to `grads` and returns the input's, where it is `wanted`. The input may be absent
    /// where there is no adapter.
    ///
    /// # Shapes
    /// `dy` `[t, out]`, `x` and the result `[t, in]`.
    ///
    /// # Panics
    /// If there is an adapter and no input.
    pub fn backward(
        &self,
        dy: Tensor<2>,
        x: Option<&Tensor<2>>,
        saved: &ProjectionSaved,
        grads: &mut AdapterGrads,
        wanted: bool,
    ) -> Option<Tensor<2>> {
        Self::backward_together([(self, dy, saved)], x, grads, wanted)
    }

    /// [`backward`](Self::backward) of several projections of the same input: the sum of their gradients of it. Each
    /// `dy` is let go when it was used.
    ///
    /// # Shapes
    /// As [`backward`](Self::backward).
    ///
    /// # Panics
    /// If one has an adapter and there is no input.
    pub fn backward_together<const N: usize>(
        branches: [(&Self, Tensor<2>, &ProjectionSaved); N],
        x: Option<&Tensor<2>>,
        grads: &mut AdapterGrads,
        wanted: bool,
    ) -> Option<Tensor<2>> {
        Self::backward_adapted(branches, x, grads, wanted).map(Adapted::complete)
    }

    /// As [`backward_together`](Self::backward_together); what the adapters add waits where there is a kernel that
    /// adds it in passing.
    ///
    /// # Shapes
    /// As [`backward`](Self::backward).
    ///
    /// # Panics
    /// If one has an adapter and there is no input.
    pub fn backward_adapted<const N: usize>(
        branches: [(&Self, Tensor<2>, &ProjectionSaved); N],
        x: Option<&Tensor<2>>,
        grads: &mut AdapterGrads,
        wanted: bool,
    ) -> Option<Adapted> {
        let adapters = branches.each_ref().map(|(p, ..)| p.adapter.as_ref());
        let factors = branches
            .each_ref()
            .map(|(p, dy, saved)| p.plain_factors(dy, saved.dropout_seed));
        assert!(
            x.is_some() || adapters.iter().all(Option::is_none),
            "an adapter's gradient needs the input"
        );
        let mut each = factors.iter();
        let branches = branches.map(|(projection, dy, saved)| {
            if let (Some(adapter), Some(x)) = (&projection.adapter, x) {
                grads.observe(adapter.first_id(), x, (projection.multiplier, &dy));
            }
            let factors = each.next().and_then(Option::as_ref);
            projection.branch(dy, factors, saved, grads)
        });
        let (dx, factor_grads) = lora_linear::backward_together(branches, x, wanted);
        for (adapter, factor_grads) in adapters.into_iter().zip(factor_grads) {
            if let (Some(Adapter::Lora(lora)), Some(factor_grads)) = (adapter, factor_grads) {
                lora.add_grads(grads, factor_grads);
            }
        }
        dx
    }

    /// As [`backward`](Self::backward) before the input is there: its gradient, and what is still to be done with it.
    ///
    /// # Shapes
    /// As [`backward`](Self::backward).
    pub fn backward_ahead(
        &self,
        dy: Tensor<2>,
        saved: &ProjectionSaved,
        grads: &mut AdapterGrads,
    ) -> (Adapted, Ahead) {
        let factors = self.plain_factors(&dy, saved.dropout_seed);
        let seen = (grads.observes()).then(|| dy.clone());
        let branch = self.branch(dy, factors.as_ref(), saved, grads);
        let (dx, factor_a) = lora_linear::backward_ahead(branch);
        (dx, Ahead { factor_a, seen })
    }

    /// The rest of [`backward_ahead`](Self::backward_ahead): the gradient of the adapter's A goes to `grads`.
    ///
    /// # Shapes
    /// `x` `[t, in]`.
    pub fn finish(&self, ahead: Ahead, x: &Tensor<2>, grads: &mut AdapterGrads) {
        let Some(adapter) = &self.adapter else {
            return;
        };
        if let Some(dy) = &ahead.seen {
            grads.observe(adapter.first_id(), x, (self.multiplier, dy));
        }
        if let Some(factor_grads) = ahead.factor_a.and_then(|factor_a| factor_a.finish(x)) {
            match adapter {
                Adapter::Lora(lora) => lora.add_grads(grads, factor_grads),
            }
        }
    }

    fn branch<'a>(
        &'a self,
        dy: Tensor<2>,
        factors: Option<&'a Factors>,
        saved: &'a ProjectionSaved,
        grads: &mut AdapterGrads,
    ) -> Branch<'a, Weight> {
        let slots = self.adapter.as_ref().and_then(|adapter| match adapter {
            Adapter::Lora(lora) => lora.slots(grads),
        });
        Branch {
            dy,
            weight: self.factored(),
            adapter: factors.zip(saved.xa.as_ref()),
            factors: slots.map_or(WantedFactors::New, WantedFactors::Into),
        }
    }

    fn add_bias(&self, y: Tensor<2>) -> Tensor<2> {
        match self.scaled_bias() {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    /// The bias times α.
    pub(crate) fn scaled_bias(&self) -> Option<Tensor<1>> {
        let Frozen(bias) = self.bias.as_ref()?;
        Some(match self.multiplier {
            1.0 => bias.clone(),
            multiplier => bias.clone().mul_scalar(multiplier),
        })
    }
}
