//! What a step measures, and burn-train's metrics over it. The only place that reads tensors back to
//! the host while training.

use std::sync::Arc;

use backdraft_plan::StepFailure;
use burn::backend::ExecutionError;
use burn::tensor::{Device, Tensor, TensorReadError};
use burn::train::ItemLazy;
use burn::train::logger::MetricLogger;
use burn::train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn::train::metric::{
    Adaptor, Metric, MetricAttributes, MetricDefinition, MetricMetadata, MetricName, Numeric,
    NumericAttributes, NumericEntry, SerializedEntry,
};

use crate::loader::Step;

/// What one optimiser step left behind, still on the device.
#[derive(Clone, Debug)]
pub struct StepOutput {
    nll: Tensor<1>,
    grad_norm: Tensor<1>,
    supervised_tokens: usize,
    tokens: usize,
    lr: f64,
    seconds: f64,
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
            tokens: step.tokens,
            lr: 0.0,
            seconds: f64::NAN,
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

    /// With the learning rate that was used.
    pub fn with_learning_rate(self, lr: f64) -> Self {
        Self { lr, ..self }
    }

    /// With the time that the step took.
    ///
    /// # Units
    /// Seconds.
    pub fn with_seconds(self, seconds: f64) -> Self {
        Self { seconds, ..self }
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
            learning_rate: self.lr,
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
    /// Learning rate of the update.
    pub learning_rate: f64,
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

/// What burn-train's metrics read.
#[derive(Clone, Copy, Debug)]
pub struct Readings {
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
    tokens_per_second: f64,
    tokens: f64,
}

impl Adaptor<Readings> for StepOutput {
    fn adapt(&self) -> Readings {
        let read = self.read();
        Readings {
            loss: read.as_ref().map_or(f64::NAN, |m| m.loss),
            grad_norm: read.as_ref().map_or(f64::NAN, |m| m.grad_norm),
            learning_rate: self.lr,
            tokens_per_second: self.tokens as f64 / self.seconds,
            tokens: self.supervised_tokens as f64,
        }
    }
}

impl Adaptor<Readings> for EvalOutput {
    fn adapt(&self) -> Readings {
        let (sum, tokens) = self.read().unwrap_or((f64::NAN, 1));
        let tokens = tokens as f64;
        Readings {
            loss: sum / tokens,
            grad_norm: f64::NAN,
            learning_rate: f64::NAN,
            tokens_per_second: f64::NAN,
            tokens,
        }
    }
}

/// One of the numbers, as burn-train plots it.
#[derive(Clone, Debug)]
pub struct RunMetric {
    number: Number,
    last: f64,
    sum: f64,
    weight: f64,
}

#[derive(Clone, Copy, Debug)]
enum Number {
    Loss,
    Perplexity,
    GradNorm,
    LearningRate,
    TokensPerSecond,
}

impl RunMetric {
    /// Mean nll of supervised tokens, nats.
    pub fn loss() -> Self {
        Self::new(Number::Loss)
    }

    /// exp(loss).
    pub fn perplexity() -> Self {
        Self::new(Number::Perplexity)
    }

    /// Global norm of the gradients before clipping.
    pub fn grad_norm() -> Self {
        Self::new(Number::GradNorm)
    }

    /// Learning rate.
    pub fn learning_rate() -> Self {
        Self::new(Number::LearningRate)
    }

    /// Tokens computed in a second, supervised or not.
    pub fn tokens_per_second() -> Self {
        Self::new(Number::TokensPerSecond)
    }

    fn new(number: Number) -> Self {
        Self {
            number,
            last: 0.0,
            sum: 0.0,
            weight: 0.0,
        }
    }

    fn mean(&self) -> f64 {
        let mean = if self.weight > 0.0 {
            self.sum / self.weight
        } else {
            self.last
        };
        self.shown(mean)
    }

    /// Perplexity is averaged as a loss and raised at the end.
    fn shown(&self, value: f64) -> f64 {
        match self.number {
            Number::Perplexity => value.exp(),
            _ => value,
        }
    }

    fn entry(&self, value: f64) -> SerializedEntry {
        let formatted = format!("epoch {:.4} - step {value:.4e}", self.mean());
        SerializedEntry::new(formatted, NumericEntry::Value(value).serialize())
    }
}

impl Metric for RunMetric {
    type Input = Readings;

    fn name(&self) -> MetricName {
        Arc::new(
            match self.number {
                Number::Loss => "Loss",
                Number::Perplexity => "Perplexity",
                Number::GradNorm => "Gradient norm",
                Number::LearningRate => "Learning rate",
                Number::TokensPerSecond => "Tokens per second",
            }
            .to_owned(),
        )
    }

    fn attributes(&self) -> MetricAttributes {
        NumericAttributes {
            unit: None,
            higher_is_better: false,
        }
        .into()
    }

    fn update(
        &mut self,
        readings: &Readings,
        _: &MetricMetadata,
    ) -> Result<SerializedEntry, TensorReadError> {
        self.last = match self.number {
            Number::Loss | Number::Perplexity => readings.loss,
            Number::GradNorm => readings.grad_norm,
            Number::LearningRate => readings.learning_rate,
            Number::TokensPerSecond => readings.tokens_per_second,
        };
        self.sum += self.last * readings.tokens;
        self.weight += readings.tokens;
        Ok(self.entry(self.shown(self.last)))
    }

    fn compute(&mut self) -> Result<SerializedEntry, TensorReadError> {
        Ok(self.entry(self.mean()))
    }

    fn clear(&mut self) {
        *self = Self::new(self.number);
    }
}

impl Numeric for RunMetric {
    fn value(&self) -> Option<NumericEntry> {
        Some(NumericEntry::Value(self.shown(self.last)))
    }

    fn running_value(&self) -> Option<NumericEntry> {
        Some(NumericEntry::Value(self.mean()))
    }

    fn final_value(&self) -> NumericEntry {
        NumericEntry::Value(self.mean())
    }
}

/// In place of burn-train's metric files: `metrics.jsonl` has the numbers, and a full disk is an
/// error there instead of a panic.
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
