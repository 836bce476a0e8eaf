//! AdamW over the adapters, and the norm of all gradients.

use std::collections::HashMap;

use backdraft_kernels::adamw::{self, AdamWParams, Moments};
use backdraft_lora::AdapterGrads;
use backdraft_model::Llama;
use burn::module::ParamId;
use burn::tensor::Tensor;

/// AdamW's state: moments of every factor, and the number of updates.
#[derive(Clone, Debug)]
pub struct AdamW {
    params: AdamWParams,
    moments: HashMap<ParamId, Moments<2>>,
    steps: u64,
}

impl AdamW {
    /// Before the first update.
    pub fn new(params: AdamWParams) -> Self {
        Self {
            params,
            moments: HashMap::new(),
            steps: 0,
        }
    }

    /// Updates done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates every factor that has a gradient in `grads`.
    pub fn step(&mut self, model: &mut Llama, grads: &AdapterGrads, lr: f64) {
        self.steps += 1;
        for (_, _, adapter) in model.adapters_mut() {
            adapter.update(|id, param| {
                let Some(grad) = grads.get(id) else {
                    return param;
                };
                let param = param.inner();
                let moments = self.moments.remove(&id);
                let moments = moments.unwrap_or_else(|| Moments::zeros(&param));
                let (param, moments) =
                    adamw::step(param, grad, moments, (lr, self.steps), &self.params);
                self.moments.insert(id, moments);
                param
            });
        }
    }

    /// The moments under checkpoint names, such as
    /// `model.layers.0.mlp.up_proj.lora_A.weight.exp_avg`, in the order of the layers.
    pub fn state(&self, model: &Llama) -> Vec<(String, Tensor<2>)> {
        let mut state = Vec::new();
        for (layer, target, adapter) in model.adapters() {
            let factors = [("lora_A", adapter.lora_a.id), ("lora_B", adapter.lora_b.id)];
            for (factor, id) in factors {
                if let Some(moments) = self.moments.get(&id) {
                    let name = format!("{}.{factor}.weight", target.path(layer));
                    state.push((format!("{name}.exp_avg"), moments.m.clone()));
                    state.push((format!("{name}.exp_avg_sq"), moments.v.clone()));
                }
            }
        }
        state
    }
}

/// The Euclidean norm of all gradients together, `[1]`; computed in the order of the layers, so that
/// it does not depend on how gradients are stored.
pub fn global_norm(model: &Llama, grads: &AdapterGrads) -> Tensor<1> {
    let ids = model
        .adapters()
        .flat_map(|(_, _, a)| [a.lora_a.id, a.lora_b.id]);
    let squares: Vec<Tensor<1>> = ids
        .filter_map(|id| grads.get(id))
        .map(|grad| grad.clone().square().sum())
        .collect();
    assert!(!squares.is_empty(), "a model with adapters has gradients");
    Tensor::cat(squares, 0).sum().sqrt()
}

/// Scales `grads` so that their global norm is at most `max_norm`, as `clip_grad_norm_` does.
pub fn clip(grads: AdapterGrads, norm: &Tensor<1>, max_norm: f64) -> AdapterGrads {
    let factor = (norm.clone() + 1e-6)
        .recip()
        .mul_scalar(max_norm)
        .clamp_max(1.0);
    grads.map(|grad| grad * factor.clone().unsqueeze())
}
