//! A linear layer with a frozen weight and perhaps an adapter.

use std::ops::Range;

use backdraft_kernels::dora;
use backdraft_kernels::frozen_matrix::FrozenMatrix;
use backdraft_kernels::lora_linear::{self, Branch, Factors, WantedFactors, lora_linear};
use backdraft_kernels::low_rank::Adapted;
use backdraft_quant::{Frozen, Weight};
use burn::module::Module;
use burn::tensor::{DType, Tensor};

use crate::adapter::Adapter;
use crate::dora::{Decomposed, Magnitude};
use crate::gradients::AdapterGrads;
use crate::whole::TrainedTensor;

/// y = α·(x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ) with W and bias frozen; α is 1 unless a family multiplies what a branch adds to the
/// residual stream. Where the lengths of rows are trained, each output but its bias has a [gain](backdraft_kernels::dora).
#[derive(Module, Debug)]
pub struct Projection {
    weight: Frozen<Weight>,
    bias: Option<Frozen<Tensor<1>>>,
    /// What is trained in place of the weight.
    trained_weight: Option<TrainedTensor>,
    /// What is trained in place of the bias.
    trained_bias: Option<TrainedTensor>,
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
    /// Lengths of the rows, where they are trained.
    pub(crate) norms: Option<Tensor<1>>,
}

/// What [`Projection::backward_ahead`] leaves for when the input is there.
#[derive(Debug)]
pub struct Ahead {
    factor_a: Option<lora_linear::Ahead>,
    /// The gradient of the output, where somebody asked for [`Statistics`](crate::Statistics).
    seen: Option<Tensor<2>>,
    /// The same, and what the forward pass left, where the lengths of rows are trained.
    magnitude: Option<(Tensor<2>, ProjectionSaved)>,
    /// The gradient of the output, where the weight is trained.
    weight: Option<Tensor<2>>,
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
            trained_weight: None,
            trained_bias: None,
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
        let adapter = adapter.map(|adapter| adapter.over(&self.weight));
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

    /// The frozen bias, `[out]`, whatever is trained in its place.
    pub fn bias(&self) -> Option<&Tensor<1>> {
        self.bias.as_deref()
    }

    /// What is trained in place of the weight, which then has its values.
    pub fn trained_weight(&self) -> Option<&TrainedTensor> {
        self.trained_weight.as_ref()
    }

    /// The same, to be changed, set or taken away.
    pub fn trained_weight_mut(&mut self) -> &mut Option<TrainedTensor> {
        &mut self.trained_weight
    }

    /// What is trained in place of the bias.
    pub fn trained_bias(&self) -> Option<&TrainedTensor> {
        self.trained_bias.as_ref()
    }

    /// The same, to be changed, set or taken away.
    pub fn trained_bias_mut(&mut self) -> &mut Option<TrainedTensor> {
        &mut self.trained_bias
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
        if let (Some(magnitude), Some(factors)) = (self.magnitude(), &factors) {
            let (weight, factors) = (self.weight().clone(), factors.clone());
            let norms = magnitude.norms(&weight, 0..weight.dims()[0], &self.unscaled(dtype));
            let weight = (weight, self.multiplier);
            let y = dora::dora_linear(x, weight, factors, &norms, magnitude.vector.val());
            return self.add_tracked_bias(y);
        }
        let trained = self.trained_weight.as_ref();
        let trained = trained.and_then(|weight| weight.tracked_matrix().tracked());
        let y = match trained.or_else(|| self.weight.tracked()) {
            Some(weight) => {
                let weight = (weight, self.multiplier);
                lora_linear::reference::forward(x, weight, factors.as_ref())
            }
            None => lora_linear(x, (self.weight().clone(), self.multiplier), factors),
        };
        self.add_tracked_bias(y)
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
        if self.magnitude().is_some() {
            let (base, saved) = self.forward_from(x, xa, dropout_seed, None);
            return (Adapted { base, term: None }, saved);
        }
        let factors = self.plain_factors(x, dropout_seed);
        let (y, xa) = lora_linear::forward_adapted(x, self.factored(), factors.as_ref(), xa, None);
        let base = self.add_bias(y.base);
        (Adapted { base, ..y }, ProjectionSaved::of(xa, dropout_seed))
    }

    fn forward_from(
        &self,
        x: &Tensor<2>,
        xa: Option<Tensor<2>>,
        dropout_seed: Option<u64>,
        sum: Option<&Tensor<2>>,
    ) -> (Tensor<2>, ProjectionSaved) {
        let factors = self.plain_factors(x, dropout_seed);
        if let Some(decomposed) = self.decomposed(factors.as_ref(), None) {
            let (y, xa) = decomposed.forward(x, xa);
            let norms = Some(decomposed.norms());
            let y = add_sum(self.add_bias(y), sum);
            let saved = ProjectionSaved::of(xa, dropout_seed);
            return (y, ProjectionSaved { norms, ..saved });
        }
        let (y, xa) = lora_linear::forward(x, self.factored(), factors.as_ref(), xa, sum);
        (self.add_bias(y), ProjectionSaved::of(xa, dropout_seed))
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
        if parts.iter().any(|(_, part)| part.magnitude().is_some()) {
            return Self::forward_parts_with_gains(parts, x, sum);
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
            factors.term(&cut(x)).add_to(y)
        });
        first.add_bias(Tensor::cat(pieces.collect(), 0))
    }

    /// As [`forward_parts`](Self::forward_parts) where some parts have gains: `sum` comes after those, and with the product
    /// elsewhere, as it does where a part is alone.
    fn forward_parts_with_gains(
        parts: &[(Range<usize>, &Self)],
        x: &Tensor<2>,
        sum: Option<&Tensor<2>>,
    ) -> Tensor<2> {
        let first = parts[0].1;
        let product = |sum| first.weight.matmul_add(x, first.multiplier, sum);
        let whole = product(None);
        let plain = parts.iter().any(|(_, part)| part.magnitude().is_none());
        let with_sum = sum.filter(|_| plain).map(|sum| product(Some(sum)));
        let with_sum = with_sum.unwrap_or_else(|| whole.clone());
        let pieces = parts.iter().map(|(rows, part)| {
            let cut = |t: &Tensor<2>| t.clone().narrow(0, rows.start, rows.len());
            let (factors, x) = (part.plain_factors(x, None), cut(x));
            if let Some(decomposed) = part.decomposed(factors.as_ref(), None) {
                let y = part.add_bias(decomposed.forward_over(&x, cut(&whole)));
                return add_sum(y, sum.map(cut).as_ref());
            }
            let y = cut(&with_sum);
            part.add_bias(match factors {
                Some(factors) => factors.term(&x).add_to(y),
                None => y,
            })
        });
        Tensor::cat(pieces.collect(), 0)
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

    /// A, B and s without α, as the lengths of rows take them.
    pub(crate) fn unscaled(&self, dtype: DType) -> Factors {
        match &self.adapter {
            Some(Adapter::Lora(lora)) => lora.plain_factors(dtype, None),
            None => unreachable!("lengths are an adapter's"),
        }
    }

    /// The lengths of rows, where they are trained.
    pub(crate) fn magnitude(&self) -> Option<&Magnitude> {
        match &self.adapter {
            Some(Adapter::Lora(lora)) => lora.magnitude.as_ref(),
            None => None,
        }
    }

    /// The projection with its gain, where it has one; `norms` are those of a forward pass.
    fn decomposed<'a>(
        &'a self,
        factors: Option<&'a Factors>,
        norms: Option<&Tensor<1>>,
    ) -> Option<Decomposed<'a>> {
        let (magnitude, factors) = self.magnitude().zip(factors)?;
        let norms = norms.cloned().unwrap_or_else(|| {
            let rows = 0..self.weight.dims()[0];
            magnitude.norms(&self.weight, rows, &self.unscaled(factors.a.dtype()))
        });
        let m = magnitude.vector.val().inner();
        Some(Decomposed::new(self.factored(), factors, m, norms))
    }

    /// The way of a gradient back through the gain, where there is one: the gradient of m goes to `grads`; what dropout adds to the
    /// gradient of the input, where that is `wanted`, to `added`.
    fn back_through_gain(
        &self,
        dy: Tensor<2>,
        x: Option<&Tensor<2>>,
        (factors, saved): (Option<&Factors>, &ProjectionSaved),
        grads: &mut AdapterGrads,
        (wanted, added): (bool, &mut Option<Tensor<2>>),
    ) -> Tensor<2> {
        let Some(decomposed) = self.decomposed(factors, saved.norms.as_ref()) else {
            return dy;
        };
        if let (Some(x), Some(xa), Some(m)) = (x, &saved.xa, self.magnitude()) {
            let grad = decomposed.magnitude_gradient(&dy, x, xa);
            grads.add_vector(m.vector.id, grad);
        }
        let (dy, more) = decomposed.backward(dy, wanted);
        *added = match (added.take(), more) {
            (Some(sum), Some(more)) => Some(sum + more),
            (sum, more) => sum.or(more),
        };
        dy
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

    /// Adds the gradients of factors and of a trained weight and bias to `grads` and returns the input's, where it is `wanted`.
    /// The input may be absent where there is neither adapter nor trained weight.
    ///
    /// # Shapes
    /// `dy` `[t, out]`, `x` and the result `[t, in]`.
    ///
    /// # Panics
    /// If there is an adapter or a trained weight, and no input.
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
    /// If one has an adapter or a trained weight, and there is no input.
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
    /// If one has an adapter or a trained weight, and there is no input.
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
        let mut added = None;
        let branches = branches.map(|(projection, dy, saved)| {
            let factors = each.next().and_then(Option::as_ref);
            projection.add_bias_grad(&dy, grads);
            projection.add_weight_grad(&dy, x, grads);
            let adding = (wanted, &mut added);
            let dy = projection.back_through_gain(dy, x, (factors, saved), grads, adding);
            if let (Some(adapter), Some(x)) = (&projection.adapter, x) {
                grads.observe(adapter.first_id(), x, (projection.multiplier, &dy));
            }
            projection.branch(dy, factors, saved, grads)
        });
        let (dx, factor_grads) = lora_linear::backward_together(branches, x, wanted);
        for (adapter, factor_grads) in adapters.into_iter().zip(factor_grads) {
            if let (Some(Adapter::Lora(lora)), Some(factor_grads)) = (adapter, factor_grads) {
                lora.add_grads(grads, factor_grads);
            }
        }
        dx.map(|dx| with_added(dx, added))
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
        self.add_bias_grad(&dy, grads);
        let factors = self.plain_factors(&dy, saved.dropout_seed);
        let magnitude = self.magnitude().map(|_| (dy.clone(), saved.clone()));
        let weight = self.trained_weight.as_ref().map(|_| dy.clone());
        let (mut added, factors) = (None, factors.as_ref());
        let dy = self.back_through_gain(dy, None, (factors, saved), grads, (true, &mut added));
        let seen = (grads.observes()).then(|| dy.clone());
        let branch = self.branch(dy, factors, saved, grads);
        let (dx, factor_a) = lora_linear::backward_ahead(branch);
        let ahead = Ahead {
            factor_a,
            seen,
            magnitude,
            weight,
        };
        (with_added(dx, added), ahead)
    }

    /// The rest of [`backward_ahead`](Self::backward_ahead): the gradient of the adapter's A, or of a trained weight, goes to
    /// `grads`.
    ///
    /// # Shapes
    /// `x` `[t, in]`.
    pub fn finish(&self, ahead: Ahead, x: &Tensor<2>, grads: &mut AdapterGrads) {
        if let Some(dy) = &ahead.weight {
            self.add_weight_grad(dy, Some(x), grads);
        }
        let Some(adapter) = &self.adapter else {
            return;
        };
        if let Some(dy) = &ahead.seen {
            grads.observe(adapter.first_id(), x, (self.multiplier, dy));
        }
        if let Some((dy, saved)) = ahead.magnitude {
            let factors = self.plain_factors(x, saved.dropout_seed);
            let decomposed = self.decomposed(factors.as_ref(), saved.norms.as_ref());
            if let (Some(decomposed), Some(xa), Some(m)) = (decomposed, &saved.xa, self.magnitude())
            {
                let grad = decomposed.magnitude_gradient(&dy, x, xa);
                grads.add_vector(m.vector.id, grad);
            }
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

    /// The gradient of a trained weight, from that of the output and the input.
    fn add_weight_grad(&self, dy: &Tensor<2>, x: Option<&Tensor<2>>, grads: &mut AdapterGrads) {
        if let Some(weight) = &self.trained_weight {
            let Some(x) = x else {
                panic!("a trained weight's gradient needs the input");
            };
            weight.add_matrix_grad(grads, x, (self.multiplier, dy));
        }
    }

    fn add_bias_grad(&self, dy: &Tensor<2>, grads: &mut AdapterGrads) {
        if let Some(bias) = &self.trained_bias {
            bias.add_bias_grad(grads, dy, self.multiplier);
        }
    }

    fn add_bias(&self, y: Tensor<2>) -> Tensor<2> {
        match self.scaled_bias() {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    /// As [`add_bias`](Self::add_bias), tracked by autodiff where the bias is.
    fn add_tracked_bias(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.trained_bias {
            Some(bias) => y + self.times_alpha(bias.tracked()).unsqueeze(),
            None => self.add_bias(y),
        }
    }

    /// The bias times α.
    pub(crate) fn scaled_bias(&self) -> Option<Tensor<1>> {
        let bias = match &self.trained_bias {
            Some(bias) => bias.now(),
            None => self.bias()?,
        };
        Some(self.times_alpha(bias.clone()))
    }

    fn times_alpha(&self, bias: Tensor<1>) -> Tensor<1> {
        match self.multiplier {
            1.0 => bias,
            multiplier => bias.mul_scalar(multiplier),
        }
    }
}

impl ProjectionSaved {
    pub(crate) const fn of(xa: Option<Tensor<2>>, dropout_seed: Option<u64>) -> Self {
        Self {
            xa,
            dropout_seed,
            norms: None,
        }
    }
}

/// `y` and a residual stream, where there is one.
fn add_sum(y: Tensor<2>, sum: Option<&Tensor<2>>) -> Tensor<2> {
    match sum {
        Some(sum) => y + sum.clone(),
        None => y,
    }
}

/// The gradient of an input with what dropout adds to it under a gain.
fn with_added(dx: Adapted, added: Option<Tensor<2>>) -> Adapted {
    match added {
        Some(added) => Adapted {
            base: dx.complete() + added,
            term: None,
        },
        None => dx,
    }
}
