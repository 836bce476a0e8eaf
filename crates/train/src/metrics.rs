//! What a step and an evaluation leave on the device. The only place that reads tensors back to the host while
//! training.

use backdraft_plan::StepFailure;
use burn::backend::ExecutionError;
use burn::tensor::{Device, Tensor, TensorReadError};
use burn::train::ItemLazy;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{MetricDefinition, NumericEntry};

use crate::loader::Step;

/// What one optimiser step left behind, still on the device.
#[derive(Clone, Debug)]
pub struct StepOutput {
    nll: Tensor<1>,
    grad_norm: Tensor<1>,
    supervised_tokens: usize,
    failure: Option<StepFailure>,
}

impl StepOutput {
    /// Σ nll and gradient norm (before clipping) of `step`.
    ///
    /// # Shapes
    /// Both `[1]`.
    pub fn new(step: &Step, nll: Tensor<1>, grad_norm: Tensor<1>) -> Self {
        Self {
            nll,
            grad_norm,
            supervised_tokens: step.supervised_tokens(),
            failure: None,
        }
    }

    /// A step that was not computed for want of memory.
    pub fn failed(step: &Step, failure: StepFailure, device: &Device) -> Self {
        let nothing = || Tensor::from_floats([f32::NAN], device);
        Self {
            failure: Some(failure),
            ..Self::new(step, nothing(), nothing())
        }
    }

    /// Why the step was not computed, if it was not.
    pub fn failure(&self) -> Option<StepFailure> {
        self.failure
    }

    /// Waits for the device and reads the numbers.
    ///
    /// # Errors
    /// A device that failed.
    pub fn read(&self) -> Result<StepMetrics, TensorReadError> {
        let nll = self.nll.clone().try_into_scalar::<f64>()?;
        Ok(StepMetrics {
            loss: nll / self.supervised_tokens as f64,
            grad_norm: self.grad_norm.clone().try_into_scalar::<f64>()?,
        })
    }
}

/// The numbers of one optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMetrics {
    /// Mean nll of the step's supervised tokens, nats.
    pub loss: f64,
    /// Global norm of the gradients before clipping.
    pub grad_norm: f64,
}

impl StepMetrics {
    /// Whether loss and gradient are numbers.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }

    /// Whether only the gradient is no number.
    pub fn overflows(&self) -> bool {
        self.loss.is_finite() && !self.grad_norm.is_finite()
    }
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

/// Nll of each supervised token of an evaluation batch.
#[derive(Clone, Debug)]
pub struct EvalOutput {
    nll: Tensor<1>,
}

impl EvalOutput {
    /// # Shapes
    /// `nll` `[n]`.
    pub fn new(nll: Tensor<1>) -> Self {
        Self { nll }
    }

    /// Σ nll in nats, and the number of tokens.
    ///
    /// # Errors
    /// A device that failed.
    pub fn read(&self) -> Result<(f64, usize), TensorReadError> {
        let values = self.nll.clone().try_into_data()?;
        let sum = values.iter::<f64>().sum();
        Ok((sum, values.num_elements()))
    }
}

impl ItemLazy for EvalOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

/// In place of burn-train's metric files: no metric is registered with its learner, `metrics.jsonl` has the numbers,
/// and a full disk is an error there instead of a panic.
#[derive(Clone, Copy, Debug)]
pub struct NoFiles;

impl MetricLogger for NoFiles {
    fn log(&mut self, _: MetricsUpdate, _: usize, _: &Split) {}

    fn read_numeric(&mut self, _: &str, _: usize, _: &Split) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _: EpochSummary) {}
}
