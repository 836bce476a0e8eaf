//! AdamW over the adapters, and the norm of all gradients.

mod bank;

use std::collections::HashMap;

pub use backdraft_arch::StatePrecision;
use backdraft_formats::dtype::f32_bytes;
use backdraft_formats::{Dtype, FormatError, SafetensorsFile, TensorInfo};
use backdraft_kernels::adamw::{self, AdamWParams, Moments};
use backdraft_kernels::adamw8bit::{
    self, BLOCK_SIZE, Guard, MIN_8BIT_SIZE, Moment8Bit, Moments8Bit,
};
use backdraft_kernels::device;
use backdraft_lora::{AdapterGrads, AdapterParam};
use backdraft_model::CausalLm;
use bank::Bank;
use burn::module::ParamId;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::loss_scale::LossScale;

/// AdamW's state: moments of every factor, and the number of updates.
#[derive(Clone, Debug)]
pub struct AdamW {
    params: AdamWParams,
    precision: StatePrecision,
    moments: HashMap<ParamId, State>,
    /// Takes the place of `moments` where everything lies in one buffer.
    bank: Option<Bank>,
    /// What the next update multiplies gradients with, where they lie in one buffer.
    factor: Option<Tensor<1>>,
    /// What the loss of the next step is multiplied by, if by anything.
    loss_scale: Option<LossScale>,
    steps: u64,
}

#[derive(Clone, Debug)]
enum State {
    /// Row by row, as gradients are.
    F32(Box<Moments<1>>),
    Bits8(Box<Moments8Bit>),
}

/// A tensor of the state as a checkpoint holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct StateTensor {
    /// Name, type and shape.
    pub info: TensorInfo,
    /// The values, little-endian.
    pub bytes: Vec<u8>,
}

impl AdamW {
    /// Before the first update.
    pub fn new(params: AdamWParams, precision: StatePrecision) -> Self {
        Self {
            params,
            precision,
            moments: HashMap::new(),
            bank: None,
            factor: None,
            loss_scale: None,
            steps: 0,
        }
    }

    /// Lays the factors, their gradients and moments end to end in memory, where the device has kernels for
    /// that: from then on norm and update are a launch each, whatever the number of factors, and `model`'s
    /// factors are views that change with every update.
    pub fn adopt(&mut self, model: &mut CausalLm) {
        let ids: Vec<ParamId> = model.trained_params().map(|(_, param)| param.id).collect();
        let states: Vec<Option<State>> = ids.iter().map(|id| self.moments.remove(id)).collect();
        let (device, precision) = (model.device(), self.precision);
        let bank = device::lasting(&device, &mut *model, |model| {
            Bank::new(model, precision, &states)
        });
        match bank {
            Some(bank) => self.bank = Some(bank),
            None => {
                let states = ids.into_iter().zip(states);
                self.moments = states
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
        self.factor = None;
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
            (None, None) => return (grads, norm),
        };
        if self.bank.is_some() {
            self.factor = Some(factor);
            return (grads, norm);
        }
        (multiply(grads, &factor), norm)
    }

    /// Updates done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Updates every factor that has a gradient in `grads`.
    pub fn step(&mut self, model: &mut CausalLm, grads: &AdapterGrads, lr: f64) {
        self.steps += 1;
        self.loss_scale = self.loss_scale.map(LossScale::after_update);
        if let Some(bank) = &self.bank {
            assert_eq!(grads.len(), bank.ids.len(), "a gradient for each factor");
            let factor = self.factor.take();
            let at = (lr, self.steps);
            bank.update(factor.as_ref(), at, &self.params);
            return;
        }
        for (_, _, adapter) in model.adapters_mut() {
            adapter.update(|AdapterParam { id, values, .. }| {
                let Some(grad) = grads.get(id) else {
                    return values;
                };
                let values = values.inner();
                let state = self.moments.remove(&id);
                let state = state.unwrap_or_else(|| State::zeros(&values, self.precision));
                let (values, state) =
                    state.step(values, grad, (lr, self.steps), &self.params, self.precision);
                self.moments.insert(id, state);
                values
            });
        }
    }

    /// Memory of the state as it is now.
    ///
    /// # Units
    /// Bytes.
    pub fn num_bytes(&self) -> usize {
        let bytes = |state: &State| match state {
            State::F32(moments) => 8 * moments.m.shape().num_elements(),
            State::Bits8(moments) => moments.num_bytes(),
        };
        match &self.bank {
            Some(bank) => bank.num_bytes(),
            None => self.moments.values().map(bytes).sum(),
        }
    }

    /// The moments under checkpoint names, such as
    /// `model.layers.0.mlp.up_proj.lora_A.weight.exp_avg`, in the order of the layers. Codes of 8 bits
    /// have their scales beside them, under `….absmax`.
    pub fn state(&self, model: &CausalLm) -> Vec<StateTensor> {
        let mut tensors = Vec::new();
        for (i, (path, param)) in model.trained_params().enumerate() {
            let name = format!("{path}.{}", param.file_name);
            let in_bank = self.bank.as_ref().filter(|_| self.steps > 0);
            let state = match in_bank {
                Some(bank) => Some(bank.state(i)),
                None => self.moments.get(&param.id).cloned(),
            };
            match state {
                None => {}
                Some(State::F32(moments)) => {
                    let tensor = |name, values| f32_tensor(name, &param.dims, values);
                    tensors.push(tensor(format!("{name}.exp_avg"), &moments.m));
                    tensors.push(tensor(format!("{name}.exp_avg_sq"), &moments.v));
                }
                Some(State::Bits8(moments)) => {
                    tensors.extend(codes(&format!("{name}.exp_avg"), &moments.m));
                    tensors.extend(codes(&format!("{name}.exp_avg_sq"), &moments.v));
                }
            }
        }
        tensors
    }

    /// The state that [`state`](Self::state) wrote after `steps` updates of this model's adapters.
    ///
    /// # Errors
    /// A moment that is missing or has another size; then nothing has changed.
    pub fn restore(
        &mut self,
        model: &CausalLm,
        file: &SafetensorsFile,
        steps: u64,
    ) -> Result<(), FormatError> {
        let mut moments = HashMap::new();
        if steps > 0 {
            for (path, param) in model.trained_params() {
                let name = format!("{path}.{}", param.file_name);
                moments.insert(param.id, State::read(file, &name, &param, self.precision)?);
            }
        }
        self.moments = moments;
        self.steps = steps;
        if let Some(bank) = &mut self.bank {
            let states: Vec<Option<State>> =
                bank.ids.iter().map(|id| self.moments.remove(id)).collect();
            bank.restore(&states);
        }
        Ok(())
    }
}

fn f32_tensor(name: String, dims: &[usize], values: &Tensor<1>) -> StateTensor {
    let values: Vec<f32> = values.clone().into_data().iter::<f32>().collect();
    StateTensor {
        info: TensorInfo::new(name, Dtype::F32, dims),
        bytes: f32_bytes(&values),
    }
}

fn codes(name: &str, moment: &Moment8Bit) -> [StateTensor; 2] {
    let bytes: Vec<u8> = moment.codes.clone().into_data().iter::<u8>().collect();
    let codes = StateTensor {
        info: TensorInfo::new(name, Dtype::U8, [bytes.len()]),
        bytes,
    };
    let absmax = format!("{name}.absmax");
    [
        codes,
        f32_tensor(absmax, &moment.absmax.dims(), &moment.absmax),
    ]
}

impl State {
    fn zeros(values: &Tensor<1>, precision: StatePrecision) -> Self {
        match precision {
            StatePrecision::Bits8(_) if values.dims()[0] >= MIN_8BIT_SIZE => {
                Self::Bits8(Box::new(Moments8Bit::zeros(values)))
            }
            StatePrecision::Bits8(_) | StatePrecision::F32 => {
                Self::F32(Box::new(Moments::zeros(values)))
            }
        }
    }

    fn step(
        self,
        param: Tensor<1>,
        grad: &Tensor<1>,
        at: (f64, u64),
        params: &AdamWParams,
        precision: StatePrecision,
    ) -> (Tensor<1>, Self) {
        let guard = match precision {
            StatePrecision::Bits8(guard) => guard,
            StatePrecision::F32 => Guard::default(),
        };
        match self {
            Self::F32(moments) => {
                let (param, moments) = adamw::step(param, grad, *moments, at, params);
                (param, Self::F32(Box::new(moments)))
            }
            Self::Bits8(moments) => {
                let (param, moments) = adamw8bit::step(param, grad, *moments, at, params, guard);
                (param, Self::Bits8(Box::new(moments)))
            }
        }
    }

    fn read(
        file: &SafetensorsFile,
        name: &str,
        param: &AdapterParam,
        precision: StatePrecision,
    ) -> Result<Self, FormatError> {
        let values = param.values.clone().inner();
        let device = values.device();
        let (m, v) = (format!("{name}.exp_avg"), format!("{name}.exp_avg_sq"));
        Ok(match Self::zeros(&values, precision) {
            Self::F32(_) => {
                let read = |name: &str| -> Result<Tensor<1>, FormatError> {
                    let values = floats(file, name, &param.dims)?;
                    let data = TensorData::new(values, [param.len()]);
                    Ok(Tensor::from_data(data, &device))
                };
                Self::F32(Box::new(Moments {
                    m: read(&m)?,
                    v: read(&v)?,
                }))
            }
            Self::Bits8(_) => {
                let values = param.len();
                Self::Bits8(Box::new(Moments8Bit {
                    m: read_codes(file, &m, values, &device)?,
                    v: read_codes(file, &v, values, &device)?,
                }))
            }
        })
    }
}

fn read_codes(
    file: &SafetensorsFile,
    name: &str,
    values: usize,
    device: &Device,
) -> Result<Moment8Bit, FormatError> {
    check(file, name, Dtype::U8, &[values])?;
    let bytes = file.raw(name)?.bytes.into_owned();
    let blocks = values.div_ceil(BLOCK_SIZE);
    let absmax = floats(file, &format!("{name}.absmax"), &[blocks])?;
    let codes = TensorData::new(bytes, [values]);
    Ok(Moment8Bit {
        codes: Tensor::<1, Int>::from_data(codes, (device, DType::U8)),
        absmax: Tensor::from_data(TensorData::new(absmax, [blocks]), device),
    })
}

fn floats(file: &SafetensorsFile, name: &str, shape: &[usize]) -> Result<Vec<f32>, FormatError> {
    check(file, name, Dtype::F32, shape)?;
    file.read_f32(name)
}

fn check(
    file: &SafetensorsFile,
    name: &str,
    dtype: Dtype,
    shape: &[usize],
) -> Result<(), FormatError> {
    let (path, tensor) = (file.path().to_owned(), name.to_owned());
    match file.info(name) {
        None => Err(FormatError::TensorMissing { path, tensor }),
        Some(info) if info.dtype != dtype => Err(FormatError::TensorDtype {
            path,
            tensor,
            expected: if dtype == Dtype::U8 { "U8" } else { "F32" },
            actual: info.dtype,
        }),
        Some(info) if info.shape != shape => Err(FormatError::TensorShape {
            path,
            tensor,
            expected: format!("{shape:?}"),
            actual: info.shape.clone(),
        }),
        Some(_) => Ok(()),
    }
}

/// The Euclidean norm of all gradients together, `[1]`; computed in the order of the layers, so that
/// it does not depend on how gradients are stored.
pub fn global_norm(model: &CausalLm, grads: &AdapterGrads) -> Tensor<1> {
    let squares: Vec<Tensor<1>> = model
        .trained_params()
        .filter_map(|(_, param)| grads.get(param.id))
        .map(|grad| grad.clone().square().sum())
        .collect();
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
