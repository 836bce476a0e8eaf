//! The optimiser over the adapters, and the norm of all gradients.

mod bank;
mod mean;
mod rates;
mod rule;
mod state;

use std::collections::{HashMap, HashSet};

pub use backdraft_arch::StatePrecision;
use backdraft_formats::{FormatError, SafetensorsFile, TensorInfo};
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::uniform::bits;
use backdraft_kernels::{device, stochastic_round};
use backdraft_lora::{AdapterGrads, AdapterParam, AdapterWeights};
use backdraft_model::CausalLm;
use bank::Bank;
use burn::module::ParamId;
use burn::tensor::{DType, Tensor, TensorData, TensorReadError};
use mean::Mean;
pub use rates::{Rate, Rates};
pub use rule::{Rule, StackedRule};
use state::{State, f32_tensor, floats};

use crate::loss_scale::LossScale;

/// A rule, what it keeps of every factor, and the number of updates.
#[derive(Clone, Debug)]
pub struct Optimizer {
    rule: Rule,
    rates: Rates,
    kept: HashMap<ParamId, State>,
    /// Takes the place of `kept` where everything lies in one buffer.
    bank: Option<Bank>,
    /// What is evaluated and saved in the place of the trained factors, where a mean of them is asked for.
    mean: Option<Mean>,
    /// What the next update multiplies gradients with, where they lie in one buffer.
    factor: Option<Tensor<1>>,
    /// What the loss of the next step is multiplied by, if by anything.
    loss_scale: Option<LossScale>,
    /// What updates are rounded to bf16 by, where factors have no more.
    rounding: Option<u64>,
    steps: u64,
}

/// A tensor of the state as a checkpoint holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// Name, type and shape.
    pub info: TensorInfo,
    /// The values, little-endian.
    pub bytes: Vec<u8>,
}

impl Optimizer {
    /// AdamW before the first update.
    pub fn adamw(params: AdamWParams, precision: StatePrecision) -> Self {
        Self::new(Rule::AdamW(params, precision))
    }

    /// Before the first update.
    pub fn new(rule: Rule) -> Self {
        Self {
            rule,
            rates: Rates::default(),
            kept: HashMap::new(),
            bank: None,
            mean: None,
            factor: None,
            loss_scale: None,
            rounding: None,
            steps: 0,
        }
    }

    /// Factors learn at different rates.
    #[must_use]
    pub fn with_rates(self, rates: Rates) -> Self {
        Self { rates, ..self }
    }

    /// Keeps a running mean of the factors, in which the past has the share `decay`, and which is what is evaluated and saved;
    /// `None` keeps none.
    ///
    /// # Panics
    /// With a rule that learns a mean by itself.
    #[must_use]
    pub fn with_mean(self, decay: Option<f64>) -> Self {
        let one = decay.is_none() || self.rule.averaging().is_none();
        assert!(one, "a mean of what is a mean already");
        Self {
            mean: decay.map(Mean::new),
            ..self
        }
    }

    /// Rounds every update to bf16, up or down by chance: what an update adds is there in the mean, however small. The draws follow
    /// from the seed, the number of the update and the place of the value.
    #[must_use]
    pub fn with_rounding(self, seed: Option<u64>) -> Self {
        Self {
            rounding: seed,
            ..self
        }
    }

    /// Whether another adapter than the trained one is evaluated and saved.
    fn saves_another(&self) -> bool {
        self.mean.is_some() || self.rule.averaging().is_some()
    }

    /// Lays the factors, their gradients and moments end to end in memory, where the device has kernels for
    /// that: from then on norm and update are a launch each for all factors that learn alike, and `model`'s
    /// factors are views that change with every update.
    ///
    /// Factors that are rounded to bf16 stay apart.
    pub fn adopt(&mut self, model: &mut CausalLm) {
        if self.rounding.is_some() {
            return;
        }
        let ids: Vec<ParamId> = model.trained_params().map(|(_, param)| param.id).collect();
        let states: Vec<Option<State>> = ids.iter().map(|id| self.kept.remove(id)).collect();
        let (device, rule, rates) = (model.device(), self.rule, &self.rates);
        let mean = self.mean.as_ref();
        let bank = device::lasting(&device, &mut *model, |model| {
            Bank::new(model, (rule, rates), (&states, mean))
        });
        match bank {
            Some(bank) => {
                self.bank = Some(bank);
                self.mean = self.mean.take().map(|mean| Mean::new(mean.decay));
            }
            None => {
                let states = ids.into_iter().zip(states);
                self.kept = states
                    .filter_map(|(id, state)| Some((id, state?)))
                    .collect();
            }
        }
    }

    /// For the gradients of one step.
    pub fn grads(&self) -> AdapterGrads {
        match &self.bank {
            Some(bank) => AdapterGrads::within(bank.grads()),
            None => AdapterGrads::new(),
        }
    }

    /// The buffers that gradients are written into, where there are such.
    pub(crate) fn gradient_buffers(&self) -> Option<Vec<Tensor<1>>> {
        let bank = self.bank.as_ref()?;
        Some(bank.gradient_buffers().collect())
    }

    /// A number that two processes have alike where their trained factors are the same bits; `None` where these are not in buffers.
    ///
    /// # Errors
    /// A device that failed.
    pub(crate) fn checksum(&self) -> Result<Option<u64>, TensorReadError> {
        match &self.bank {
            Some(bank) => bank.checksum(),
            None => Ok(None),
        }
    }

    /// Takes gradients of a loss that is multiplied by the scale; `None` takes the loss as it is.
    pub fn scale_loss(&mut self, scale: Option<LossScale>) {
        self.loss_scale = scale;
    }

    /// What the loss of the next step has to be multiplied by, if by anything.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }

    /// The Euclidean norm of all gradients together, `[1]`, and the gradients scaled so that it is at most
    /// `max_norm`, as `clip_grad_norm_` does; 0 leaves them. The loss scale is divided out of both. Gradients in
    /// one buffer are scaled when they are used.
    pub fn clip(
        &mut self,
        model: &CausalLm,
        grads: AdapterGrads,
        max_norm: f64,
    ) -> (AdapterGrads, Tensor<1>) {
        let norm = match &self.bank {
            Some(bank) => bank.norm(),
            None => global_norm(model, &grads),
        };
        let (norm, factor) = self.factor_for(norm, max_norm);
        self.factor = None;
        let Some(factor) = factor else {
            return (grads, norm);
        };
        if self.bank.is_some() {
            self.factor = Some(factor);
            return (grads, norm);
        }
        (multiply(grads, &factor), norm)
    }

    /// The global norm of gradients of the loss as it is, and what they are multiplied by, if by anything, of the norm of those
    /// that a pass gave.
    fn factor_for(&self, norm: Tensor<1>, max_norm: f64) -> (Tensor<1>, Option<Tensor<1>>) {
        let unscale = self.loss_scale.map(|scale| 1.0 / scale.factor());
        let norm = match unscale {
            Some(unscale) => norm.mul_scalar(unscale),
            None => norm,
        };
        let factor = match (
            (max_norm > 0.0).then(|| clip_factor(&norm, max_norm)),
            unscale,
        ) {
            (Some(factor), Some(unscale)) => factor.mul_scalar(unscale),
            (Some(factor), None) => factor,
            (None, Some(unscale)) => norm.ones_like().mul_scalar(unscale),
            (None, None) => return (norm, None),
        };
        (norm, Some(factor))
    }

    /// As [`clip`](Self::clip), of gradients of which only the norm is there: they are scaled when they come a second time, to
    /// [`update`](Self::update).
    pub(crate) fn clip_later(&mut self, norm: Tensor<1>, max_norm: f64) -> Tensor<1> {
        let (norm, factor) = self.factor_for(norm, max_norm);
        self.factor = factor;
        norm
    }

    /// Updates done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Counts an update, of which [`update`](Self::update) makes the parts.
    pub(crate) fn begin(&mut self) {
        self.steps += 1;
        self.loss_scale = self.loss_scale.map(LossScale::after_update);
    }

    /// Ends an update that was made in parts.
    pub(crate) fn end(&mut self) {
        self.factor = None;
    }

    /// The part of the present update that `grads` are for, tensors of the base that are trained, with what
    /// [`clip_later`](Self::clip_later) found.
    ///
    /// # Panics
    /// Where everything lies in one buffer.
    pub(crate) fn update(
        &mut self,
        model: &mut CausalLm,
        grads: AdapterGrads,
        (lr, rates): (f64, &HashMap<ParamId, (usize, Rate)>),
    ) {
        assert!(self.bank.is_none(), "tensors that are updated one by one");
        let grads = match &self.factor {
            Some(factor) => multiply(grads, factor),
            None => grads,
        };
        let ids: HashSet<ParamId> = grads.ids().collect();
        model.update_whole(
            |id| ids.contains(&id),
            |param| {
                let of = rates.get(&param.id).copied().unwrap_or_default();
                self.updated(param, &grads, (lr, of))
            },
        );
    }

    /// The number of each factor, and its rate.
    pub(crate) fn rates_of(&self, model: &CausalLm) -> HashMap<ParamId, (usize, Rate)> {
        let params = model.trained_params().map(|(_, param)| param.id);
        let rates = self.rates.of_model(model).into_iter().enumerate();
        params.zip(rates).collect()
    }

    /// The next values of a factor; those that it has where it has no gradient.
    fn updated(
        &mut self,
        param: AdapterParam,
        grads: &AdapterGrads,
        (lr, (number, rate)): (f64, (usize, Rate)),
    ) -> Tensor<1> {
        let Some(grad) = grads.get(param.id) else {
            return param.values;
        };
        let param = AdapterParam {
            values: param.values.inner().cast(DType::F32),
            ..param
        };
        let state = self.kept.remove(&param.id);
        let state = state.unwrap_or_else(|| State::zeros(&param, self.rule));
        let (at, dims) = ((lr * rate.share, self.steps), param.matrix_dims());
        let of = (param.values, dims);
        let (values, state) = state.step(of, grad, at, (self.rule, rate));
        self.kept.insert(param.id, state);
        let values = match self.rounding {
            None => values,
            Some(seed) => {
                let seed = bits(bits(seed, self.steps), number as u64);
                stochastic_round::to_bf16(values.reshape(dims), seed).flatten(0, 1)
            }
        };
        if let Some(mean) = &mut self.mean {
            mean.update(param.id, &values);
        }
        values
    }

    /// Updates every factor that has a gradient in `grads`.
    pub fn step(&mut self, model: &mut CausalLm, grads: &AdapterGrads, lr: f64) {
        self.begin();
        if let Some(bank) = &mut self.bank {
            assert_eq!(grads.len(), bank.ids.len(), "a gradient for each factor");
            bank.update(self.factor.take().as_ref(), (lr, self.steps));
            if let Some(mean) = &self.mean {
                bank.update_means(mean.decay, self.steps);
            }
            return;
        }
        // In the order of the factors.
        let mut rates = self.rates.of_model(model).into_iter().enumerate();
        model.update_trained(|param| {
            let of = rates.next().unwrap_or_default();
            self.updated(param, grads, (lr, of))
        });
    }

    /// The adapter as it is evaluated and saved, where that is another than the one that is trained: a running mean of it.
    pub fn averaged(&self, model: &CausalLm) -> Option<AdapterWeights> {
        if self.steps == 0 || !self.saves_another() {
            return None;
        }
        let mut adapter = model.adapter()?;
        let mut average = |param: AdapterParam| {
            if let Some(mean) = self.mean_of(param.id) {
                return mean;
            }
            let Some(rule) = self.rule.averaging() else {
                unreachable!("a mean of each factor after an update");
            };
            let Some(State::Stacked(kept)) = self.state_of(param.id) else {
                unreachable!("a state of each factor after an update");
            };
            let [rows, columns] = param.matrix_dims();
            let values = param.values.inner().reshape([1, rows, columns]);
            match rule.averaged(values, &kept) {
                Some(averaged) => averaged.flatten(0, 2),
                None => unreachable!("a rule that averages"),
            }
        };
        for of_module in adapter.adapters.values_mut() {
            of_module.update(&mut average);
        }
        for tokens in &mut adapter.tokens {
            tokens.update(&mut average);
        }
        for tensor in adapter.whole.values_mut() {
            tensor.update((false, false), average);
        }
        Some(adapter)
    }

    fn state_of(&self, id: ParamId) -> Option<State> {
        match &self.bank {
            Some(bank) if self.steps > 0 => bank.place_of(id).map(|i| bank.state(i)),
            Some(_) | None => self.kept.get(&id).cloned(),
        }
    }

    fn mean_of(&self, id: ParamId) -> Option<Tensor<1>> {
        match (&self.mean, &self.bank) {
            (Some(_), Some(bank)) => bank.place_of(id).and_then(|i| bank.mean(i)),
            (Some(mean), None) => mean.get(id).cloned(),
            (None, _) => None,
        }
    }

    /// Memory of the state as it is now.
    ///
    /// # Units
    /// Bytes.
    pub fn num_bytes(&self) -> usize {
        match &self.bank {
            Some(bank) => bank.num_bytes(),
            None => {
                let kept: usize = self.kept.values().map(State::num_bytes).sum();
                kept + self.mean.as_ref().map_or(0, Mean::num_bytes)
            }
        }
    }

    /// What is kept under checkpoint names, such as
    /// `model.layers.0.mlp.up_proj.lora_A.weight.exp_avg`, in the order of the layers. Codes of 8 bits
    /// have their scales beside them, under `….absmax`; where another adapter than the trained one is saved, the trained
    /// factors are here, under `….trained`.
    pub fn state(&self, model: &CausalLm) -> Vec<StateTensor> {
        let mut tensors = Vec::new();
        for (path, param) in model.trained_params() {
            let name = format!("{path}.{}", param.file_name);
            let state = self.state_of(param.id);
            tensors.extend(
                state
                    .iter()
                    .flat_map(|state| state.tensors(&name, &param, self.rule)),
            );
            if state.is_some() && self.saves_another() {
                tensors.push(f32_tensor(
                    trained(&name),
                    &param.dims,
                    &param.values.inner(),
                ));
            }
        }
        tensors
    }

    /// The state that [`state`](Self::state) wrote after `steps` updates of this model's adapters, which become the trained
    /// ones where others were saved.
    ///
    /// # Errors
    /// A tensor that is missing or has another size; then nothing has changed.
    pub fn restore(
        &mut self,
        model: &mut CausalLm,
        file: &SafetensorsFile,
        steps: u64,
    ) -> Result<(), FormatError> {
        let mut kept = HashMap::new();
        let mut values = HashMap::new();
        if steps > 0 {
            for (path, param) in model.trained_params() {
                let name = format!("{path}.{}", param.file_name);
                kept.insert(param.id, State::read(file, &name, &param, self.rule)?);
                if self.saves_another() {
                    let read = floats(file, &trained(&name), &param.dims)?;
                    values.insert(param.id, TensorData::new(read, [param.len()]));
                }
            }
        }
        if !values.is_empty() {
            let mean = &mut self.mean;
            model.update_trained(|param| {
                let Some(trained) = values.remove(&param.id) else {
                    return param.values;
                };
                let saved = param.values.inner();
                let device = saved.device();
                if let Some(mean) = mean {
                    mean.set(param.id, saved);
                }
                Tensor::from_data(trained, &device)
            });
        }
        self.kept = kept;
        self.steps = steps;
        if self.bank.take().is_some() {
            self.adopt(model);
        }
        Ok(())
    }
}

/// The name of a factor as it is trained.
fn trained(name: &str) -> String {
    format!("{name}.trained")
}

/// The Euclidean norm of all gradients together, `[1]`; computed in the order of the layers, so that
/// it does not depend on how gradients are stored.
pub fn global_norm(model: &CausalLm, grads: &AdapterGrads) -> Tensor<1> {
    norm_of_squares(model, |id| grads.get(id).map(square))
}

/// Σ g² of a gradient, `[1]`.
pub(crate) fn square(grad: &Tensor<1>) -> Tensor<1> {
    grad.clone().square().sum()
}

/// The Euclidean norm, `[1]`, of gradients of which [`square`]s are known.
pub(crate) fn norm_of_squares(
    model: &CausalLm,
    square: impl Fn(ParamId) -> Option<Tensor<1>>,
) -> Tensor<1> {
    let params = model.trained_params();
    let squares: Vec<Tensor<1>> = params.filter_map(|(_, param)| square(param.id)).collect();
    assert!(!squares.is_empty(), "a model with adapters has gradients");
    Tensor::cat(squares, 0).sum().sqrt()
}

/// Scales `grads` so that their global norm is at most `max_norm`, as `clip_grad_norm_` does.
pub fn clip(grads: AdapterGrads, norm: &Tensor<1>, max_norm: f64) -> AdapterGrads {
    multiply(grads, &clip_factor(norm, max_norm))
}

fn multiply(grads: AdapterGrads, factor: &Tensor<1>) -> AdapterGrads {
    grads.map(|grad| grad * factor.clone())
}

fn clip_factor(norm: &Tensor<1>, max_norm: f64) -> Tensor<1> {
    (norm.clone() + 1e-6)
        .recip()
        .mul_scalar(max_norm)
        .clamp_max(1.0)
}

#[cfg(test)]
mod tests;
