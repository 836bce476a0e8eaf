//! A linear layer with a frozen weight and perhaps an adapter.

use backdraft_kernels::lora_linear::{self, FactorGrads, Wanted, WantedFactors, lora_linear};
use backdraft_quant::Weight;
use burn::module::Module;
use burn::tensor::Tensor;

use crate::adapter::LoraAdapter;
use crate::gradients::AdapterGrads;

/// y = x·Wᵀ + bias + s·(x·Aᵀ)·Bᵀ with W and bias frozen.
#[derive(Module, Debug)]
pub struct Projection {
    #[module(skip)]
    weight: Weight,
    #[module(skip)]
    bias: Option<Tensor<1>>,
    adapter: Option<LoraAdapter>,
}

/// What [`Projection::backward`] needs besides the layer's input.
#[derive(Clone, Debug, Default)]
pub struct ProjectionSaved {
    /// x·Aᵀ, where there is an adapter.
    xa: Option<Tensor<2>>,
    dropout_seed: Option<u64>,
}

impl Projection {
    /// Without adapter.
    ///
    /// # Shapes
    /// `weight` `[out, in]`, `bias` `[out]`.
    pub fn new(weight: Weight, bias: Option<Tensor<1>>) -> Self {
        Self {
            weight,
            bias,
            adapter: None,
        }
    }

    /// The same with `adapter` in place of the one it had.
    pub fn with_adapter(self, adapter: Option<LoraAdapter>) -> Self {
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
        self.bias.as_ref()
    }

    /// The frozen bias, to be replaced by one that is trained.
    pub fn bias_mut(&mut self) -> Option<&mut Tensor<1>> {
        self.bias.as_mut()
    }

    /// The adapter, if there is one.
    pub fn adapter(&self) -> Option<&LoraAdapter> {
        self.adapter.as_ref()
    }

    /// The adapter, to be changed.
    pub fn adapter_mut(&mut self) -> Option<&mut LoraAdapter> {
        self.adapter.as_mut()
    }

    /// The differentiable projection; with a seed, the adapter's input is dropped out.
    ///
    /// # Shapes
    /// `x` `[t, in]`, result `[t, out]`.
    pub fn forward(&self, x: Tensor<2>, dropout_seed: Option<u64>) -> Tensor<2> {
        let dtype = x.dtype();
        let factors = self
            .adapter
            .as_ref()
            .map(|a| a.factors(dtype, dropout_seed));
        let y = match self.weight.tracked() {
            Some(weight) => lora_linear::reference::forward(x, weight, factors.as_ref()),
            None => lora_linear(x, self.weight.clone(), factors),
        };
        self.add_bias(y)
    }

    /// The same without autodiff, with what the backward pass needs.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    pub fn forward_saving(
        &self,
        x: &Tensor<2>,
        dropout_seed: Option<u64>,
    ) -> (Tensor<2>, ProjectionSaved) {
        self.forward_adding(x, dropout_seed, None)
    }

    /// As [`forward_saving`](Self::forward_saving), added to `sum`: a residual stream.
    ///
    /// # Shapes
    /// `x` `[t, in]`, `sum` and the result `[t, out]`.
    pub fn forward_adding(
        &self,
        x: &Tensor<2>,
        dropout_seed: Option<u64>,
        sum: Option<Tensor<2>>,
    ) -> (Tensor<2>, ProjectionSaved) {
        let factors = self
            .adapter
            .as_ref()
            .map(|a| a.plain_factors(x.dtype(), dropout_seed));
        let (y, xa) = lora_linear::forward(x, &self.weight, factors.as_ref(), sum);
        (self.add_bias(y), ProjectionSaved { xa, dropout_seed })
    }

    /// What [`forward_saving`](Self::forward_saving) leaves for the backward pass, without the product with
    /// the frozen weight.
    ///
    /// # Shapes
    /// `x` `[t, in]`.
    pub fn saving(&self, x: &Tensor<2>, dropout_seed: Option<u64>) -> ProjectionSaved {
        let factors = self
            .adapter
            .as_ref()
            .map(|a| a.plain_factors(x.dtype(), dropout_seed));
        ProjectionSaved {
            xa: factors.map(|factors| factors.down(x)),
            dropout_seed,
        }
    }

    /// Adds the factors' gradients to `grads` and returns the input's, where it is `wanted`, with `sum`
    /// added: the gradient that reaches the input from elsewhere. The input may be absent where there is no
    /// adapter.
    ///
    /// # Shapes
    /// `dy` `[t, out]`, `x`, `sum` and the result `[t, in]`.
    ///
    /// # Panics
    /// If there is an adapter and no input.
    pub fn backward(
        &self,
        dy: &Tensor<2>,
        x: Option<&Tensor<2>>,
        saved: &ProjectionSaved,
        grads: &mut AdapterGrads,
        wanted: bool,
        sum: Option<Tensor<2>>,
    ) -> Option<Tensor<2>> {
        let factors = self
            .adapter
            .as_ref()
            .map(|a| a.plain_factors(dy.dtype(), saved.dropout_seed));
        let adapter = factors.as_ref().zip(saved.xa.as_ref());
        let slots = self.adapter.as_ref().and_then(|adapter| {
            let ids = [&adapter.lora_a, &adapter.lora_b].map(|factor| factor.id);
            Some([grads.slot(ids[0])?, grads.slot(ids[1])?])
        });
        let wanted = Wanted {
            input: wanted,
            factors: slots.map_or(WantedFactors::New, WantedFactors::Into),
        };
        // Without an adapter nobody looks at the input.
        let x = x.unwrap_or_else(|| {
            assert!(
                self.adapter.is_none(),
                "an adapter's gradient needs the input"
            );
            dy
        });
        let (dx, factor_grads) = lora_linear::backward(dy, x, &self.weight, adapter, wanted, sum);
        if let (Some(adapter), Some(FactorGrads { a, b })) = (&self.adapter, factor_grads) {
            grads.add(adapter.lora_a.id, a);
            grads.add(adapter.lora_b.id, b);
        }
        dx
    }

    fn add_bias(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => y + bias.clone().unsqueeze(),
            None => y,
        }
    }
}
