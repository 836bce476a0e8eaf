//! From work to time: a roofline, or measured times of the present model on the present device.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backdraft_arch::sizes::Speed;
use backdraft_arch::{KeepSet, SavedTensor};
use backdraft_formats::{Existing, FormatError, write_file};
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::offload;
use backdraft_model::{CausalLm, Tokens};
use burn::tensor::{ExecutionError, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::tensors::{LayerShape, MemoryModel, PassShape, Work};
use crate::optimizer::{AdamW, StatePrecision};

/// Speeds of a device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// Floating-point operations of matrix products in a second.
    pub gemm: f64,
    /// Those of attention.
    pub attention: f64,
    /// Bytes moved in a second.
    pub bandwidth: f64,
    /// Bytes of codes dequantised in a second.
    pub codes: f64,
    /// Seconds of a launch.
    pub launch: f64,
    /// Bytes that go to the host's memory, or come back, in a second.
    pub host: f64,
}

impl Roofline {
    /// A core complex of today: what two cores with AVX-512 reach on f32 products.
    pub const CPU: Self = Self {
        gemm: 3e11,
        attention: 1e11,
        bandwidth: 1e10,
        codes: 1e9,
        launch: 1e-6,
        host: 1e10,
    };
    /// A large data-centre GPU in bf16: 60 % of the 989 TFLOP/s and 80 % of the 3.35 TB/s on an H100's data
    /// sheet; 20 GB/s to the host, as over PCIe 4. Only ratios matter to a plan.
    pub const GPU: Self = Self {
        gemm: 6e14,
        attention: 3e14,
        bandwidth: 2.7e12,
        codes: 4e11,
        launch: 4e-6,
        host: 2e10,
    };

    /// How long work takes.
    ///
    /// # Units
    /// Seconds.
    #[must_use]
    pub fn seconds(&self, work: Work) -> f64 {
        let products = work.gemm as f64 / self.gemm + work.attention as f64 / self.attention;
        let moves = work.bytes as f64 / self.bandwidth;
        products.max(moves) + work.codes as f64 / self.codes + work.ops as f64 * self.launch
    }
}

/// Seconds of passes that are waited for once.
const ENOUGH: f64 = 0.02;

/// Measured times of the tensors of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Tokens of the measured pass.
    pub tokens: u64,
    /// Its pairs of a query and a key.
    pub pairs: u64,
    /// Seconds of each tensor, in the order of [`SavedTensor::ALL`].
    pub seconds: Vec<f64>,
    /// Seconds of the layer's forward pass as training runs it, `down_proj` included. Not the sum of its parts: products
    /// serve several adapters, and ops take what follows with them.
    pub forward: f64,
    /// How fast tensors go to the host's memory; `None` where none go.
    pub host: Option<Speed>,
}

impl Calibration {
    /// Runs one layer forwards over sequences of these lengths: three times waiting after each op, of whose times the
    /// shortest count, and some times without, since waiting costs more than a small op on a GPU: what all take together
    /// is the time of those. Then as training runs it.
    ///
    /// # Errors
    /// A device that failed.
    ///
    /// # Panics
    /// If the model has no layer.
    pub fn measure(model: &CausalLm, lengths: &[usize]) -> Result<Self, ExecutionError> {
        let model = &as_trained(model);
        let Some(layer) = model.layers.last() else {
            panic!("a model without layers has none to measure");
        };
        let rows: Vec<Vec<u32>> = lengths.iter().map(|&length| vec![0; length]).collect();
        let sample = Tokens::from_sequences(&rows);
        let context = &model.context(&sample, None);
        let h = &model.embed(&sample.input_ids).inner();
        let pass = PassShape::of_sequences(lengths.iter().copied());
        let mut seconds = vec![f64::INFINITY; SavedTensor::ALL.len()];
        let mut failed = None;
        for _ in 0..3 {
            // Whatever was launched before must not count.
            wait(h)?;
            let mut began = Instant::now();
            let mut round = vec![0.0; SavedTensor::ALL.len()];
            layer.visit_saved(h.clone(), context, &mut |tensor, value| {
                if let Err(error) = wait(value) {
                    failed.get_or_insert(error);
                }
                round[tensor as usize] += began.elapsed().as_secs_f64();
                began = Instant::now();
            });
            for (shortest, this) in seconds.iter_mut().zip(round) {
                *shortest = f64::min(*shortest, this);
            }
        }
        let apart: f64 = seconds.iter().sum();
        let rounds = (ENOUGH / apart).clamp(1.0, 16.0) as u32;
        let time = |run: &dyn Fn()| {
            let mut shortest = f64::INFINITY;
            for _ in 0..5 {
                wait(h)?;
                let began = Instant::now();
                (0..rounds).for_each(|_| run());
                wait(h)?;
                shortest = shortest.min(began.elapsed().as_secs_f64() / f64::from(rounds));
            }
            Ok(shortest)
        };
        let together = time(&|| layer.visit_saved(h.clone(), context, &mut |_, _| ()))?;
        let forward = time(&|| drop(layer.forward_saving(h.clone(), context, KeepSet::NONE)))?;
        for seconds in &mut seconds {
            *seconds *= (together / apart).min(1.0);
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(Self {
                tokens: pass.tokens,
                pairs: pass.pairs,
                seconds,
                forward,
                host: offload::measure(&h.device())?,
            }),
        }
    }

    /// What is kept from an earlier run; `None` where there is nothing that can be used.
    #[must_use]
    pub fn cached(dir: &Path, key: &CalibrationKey) -> Option<Self> {
        let text = fs::read(key.path(dir)).ok()?;
        let calibration: Self = serde_json::from_slice(&text).ok()?;
        let whole = calibration.seconds.len() == SavedTensor::ALL.len()
            && calibration.tokens > 0
            && calibration.pairs > 0
            && calibration
                .seconds
                .iter()
                .all(|seconds| seconds.is_finite() && *seconds >= 0.0)
            && calibration.forward.is_finite()
            && calibration.forward >= 0.0
            && calibration
                .host
                .is_none_or(|speed| speed.bytes > 0.0 && speed.round_trip >= 0.0);
        whole.then_some(calibration)
    }

    /// Keeps it for the next run.
    ///
    /// # Errors
    /// The system refuses; a run goes on without.
    pub fn store(&self, dir: &Path, key: &CalibrationKey) -> Result<(), FormatError> {
        fs::create_dir_all(dir).map_err(FormatError::io(dir, "create"))?;
        let text = serde_json::to_vec(self).unwrap_or_default();
        write_file(key.path(dir), &text, Existing::Replace)
    }
}

/// What a calibration is valid for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CalibrationKey {
    /// The device as it names itself.
    pub device: String,
    /// The layer.
    pub layer: LayerShape,
    /// How memory is laid out, and with it the number format.
    pub memory: MemoryModel,
    /// Tokens, rounded up to a power of two.
    pub tokens: u64,
}

impl CalibrationKey {
    fn path(&self, dir: &Path) -> PathBuf {
        let digest = Sha256::digest(format!("{self:?}").as_bytes());
        let name: String = digest[..12]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        dir.join(format!("{name}.json"))
    }
}

/// The last layer, with its factors where an optimiser lays them: one product serves several adapters there.
fn as_trained(model: &CausalLm) -> CausalLm {
    let mut model = model.clone();
    let before = model.layers.len().saturating_sub(1);
    model.layers.drain(..before);
    let constants = AdamWParams {
        beta1: 0.0,
        beta2: 0.0,
        epsilon: 0.0,
        weight_decay: 0.0,
    };
    AdamW::new(constants, StatePrecision::F32).adopt(&mut model);
    model
}

/// Until the device has done everything. (Reading a value of `tensor` waits for what wrote it only.)
fn wait(tensor: &Tensor<2>) -> Result<(), ExecutionError> {
    tensor.device().sync()
}

/// How long the tensors of a layer take.
#[derive(Clone, Debug, PartialEq)]
pub enum CostModel {
    /// From the work and the speeds of a device.
    Roofline(Roofline),
    /// From measured times, scaled by tokens, attention's by pairs; a device's speeds for all else.
    Measured(Calibration, Roofline),
}

impl CostModel {
    /// The device's speeds.
    #[must_use]
    pub fn roofline(&self) -> &Roofline {
        match self {
            Self::Roofline(roofline) | Self::Measured(_, roofline) => roofline,
        }
    }

    /// How fast tensors go to the host's memory and come back.
    #[must_use]
    pub fn host(&self) -> Speed {
        let measured = match self {
            Self::Measured(calibration, _) => calibration.host,
            Self::Roofline(_) => None,
        };
        let line = self.roofline();
        measured.unwrap_or(Speed {
            bytes: line.host,
            round_trip: 4.0 * line.launch,
        })
    }

    /// Time of a layer's whole forward pass.
    ///
    /// # Units
    /// Picoseconds.
    #[must_use]
    pub fn forward(&self, layer: &LayerShape, pass: PassShape, memory: &MemoryModel) -> u64 {
        if let Self::Measured(calibration, _) = self {
            let attention = calibration.seconds[SavedTensor::Attention as usize];
            let others = (calibration.forward - attention).max(0.0);
            return self.rebuild(layer, SavedTensor::Attention, pass, memory)
                + picoseconds(others * pass.tokens as f64 / calibration.tokens as f64);
        }
        let tensors: u64 = KeepSet::ALL
            .iter()
            .map(|tensor| self.rebuild(layer, tensor, pass, memory))
            .sum();
        let whole = layer.forward_work(pass, memory);
        let parts = layer.rebuilding(KeepSet::ALL, pass, memory);
        let down = Work {
            gemm: whole.gemm - parts.gemm,
            bytes: whole.bytes - parts.bytes,
            codes: whole.codes - parts.codes,
            ops: whole.ops - parts.ops,
            attention: 0,
        };
        tensors + picoseconds(self.roofline().seconds(down))
    }

    /// Time that copies of `bytes` to the host and back add to a layer: what the next layer's forward pass and its
    /// backward pass do not hide, and what each of `tensors` takes whatever its size.
    ///
    /// # Units
    /// Picoseconds.
    #[must_use]
    pub fn offload(
        &self,
        layer: &LayerShape,
        (bytes, tensors): (u64, usize),
        pass: PassShape,
        memory: &MemoryModel,
    ) -> u64 {
        if bytes == 0 {
            return 0;
        }
        let line = self.roofline();
        let host = self.host();
        let copy = picoseconds(bytes as f64 / host.bytes);
        let forward = self.forward(layer, pass, memory);
        let seconds = |work| line.seconds(work);
        let ratio = seconds(layer.backward_work(pass, memory))
            / seconds(layer.forward_work(pass, memory)).max(f64::MIN_POSITIVE);
        let backward = (forward as f64 * ratio) as u64;
        let trips = picoseconds(tensors as f64 * host.round_trip);
        copy.saturating_sub(forward) + copy.saturating_sub(backward) + trips
    }

    /// Time to rebuild one tensor.
    ///
    /// # Units
    /// Picoseconds, which can be added without rounding.
    #[must_use]
    pub fn rebuild(
        &self,
        layer: &LayerShape,
        tensor: SavedTensor,
        pass: PassShape,
        memory: &MemoryModel,
    ) -> u64 {
        let seconds = match self {
            Self::Roofline(roofline) => roofline.seconds(layer.work(tensor, pass, memory)),
            Self::Measured(calibration, _) => {
                let scale = match tensor {
                    SavedTensor::Attention => pass.pairs as f64 / calibration.pairs as f64,
                    _ => pass.tokens as f64 / calibration.tokens as f64,
                };
                calibration.seconds[tensor as usize] * scale
            }
        };
        picoseconds(seconds)
    }
}

pub(super) fn picoseconds(seconds: f64) -> u64 {
    (seconds * 1e12).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_products_and_memory_counts() {
        let line = Roofline {
            gemm: 10.0,
            attention: 5.0,
            bandwidth: 100.0,
            codes: 1.0,
            launch: 0.5,
            host: 1.0,
        };
        let work = Work {
            gemm: 10,
            attention: 5,
            bytes: 100,
            codes: 0,
            ops: 2,
        };
        assert_eq!(line.seconds(work), 3.0);
        let work = Work {
            bytes: 1000,
            ..work
        };
        assert_eq!(line.seconds(work), 11.0);
    }

    #[test]
    fn a_calibration_is_found_again_under_its_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let calibration = Calibration {
            tokens: 4,
            pairs: 10,
            seconds: vec![0.5; SavedTensor::ALL.len()],
            forward: 3.5,
            host: None,
        };
        let layer = super::super::tests::layer();
        let key = CalibrationKey {
            device: "here".to_owned(),
            layer,
            memory: super::super::tests::MEMORY,
            tokens: 4,
        };
        assert_eq!(Calibration::cached(dir.path(), &key), None);
        calibration.store(dir.path(), &key).unwrap();
        assert_eq!(
            Calibration::cached(dir.path(), &key),
            Some(calibration.clone())
        );
        let other = CalibrationKey {
            tokens: 8,
            ..key.clone()
        };
        assert_eq!(Calibration::cached(dir.path(), &other), None);
        // A damaged file counts as none.
        fs::write(key.path(dir.path()), b"{\"tokens\":0}").unwrap();
        assert_eq!(Calibration::cached(dir.path(), &key), None);
        let cost = CostModel::Measured(calibration, Roofline::CPU);
        let pass = PassShape::of_sequences([4, 4]);
        let time = cost.rebuild(
            &layer,
            SavedTensor::Gate,
            pass,
            &super::super::tests::MEMORY,
        );
        assert_eq!(time, 1_000_000_000_000);
        // Twice as many tokens and pairs.
        let memory = &super::super::tests::MEMORY;
        assert_eq!(cost.forward(&layer, pass, memory), 7_000_000_000_000);
        // One sequence of both: 36 pairs.
        let pass = PassShape::of_sequences([8]);
        assert_eq!(cost.forward(&layer, pass, memory), 7_800_000_000_000);
    }
}
