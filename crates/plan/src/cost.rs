//! From work to time: a roofline, or measured times of the present model on the present device.

use backdraft_arch::sizes::Speed;
use backdraft_arch::{KeepSet, Mixer, SavedTensor};
use serde::{Deserialize, Serialize};

use crate::tensors::{LayerShape, MemoryModel, PassShape, Work};

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
    /// Bytes of a base that come from the host's memory in a second.
    pub stream: f64,
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
        stream: 1e10,
    };
    /// A large data-centre GPU in bf16: 60 % of the 989 TFLOP/s and 80 % of the 3.35 TB/s on an H100's data
    /// sheet; 20 GB/s to the host, as over PCIe 4. Only ratios matter to a plan. A base comes at the 54 GB/s that were measured on such a
    /// card: one with half of that computes at less than half as well.
    pub const GPU: Self = Self {
        gemm: 6e14,
        attention: 3e14,
        bandwidth: 2.7e12,
        codes: 4e11,
        launch: 4e-6,
        host: 2e10,
        stream: 5.4e10,
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
    /// Whether its numbers can be times.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let time = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        self.seconds.len() == SavedTensor::ALL.len()
            && self.tokens > 0
            && self.pairs > 0
            && self.seconds.iter().all(|&seconds| time(seconds))
            && time(self.forward)
            && self
                .host
                .is_none_or(|speed| speed.bytes > 0.0 && speed.round_trip >= 0.0)
    }
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
        let line = self.roofline();
        self.measured_host().unwrap_or(Speed {
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
        let host = self.host();
        let copy = picoseconds(bytes as f64 / host.bytes);
        let forward = self.forward(layer, pass, memory);
        // What comes back shares its way with the layer's matrices.
        let backward = self.backward(layer, pass, memory);
        let backward = backward.saturating_sub(self.arrival(layer));
        let trips = picoseconds(tensors as f64 * host.round_trip);
        copy.saturating_sub(forward) + copy.saturating_sub(backward) + trips
    }

    /// Time of a layer's backward pass, without what it recomputes.
    ///
    /// # Units
    /// Picoseconds.
    #[must_use]
    pub fn backward(&self, layer: &LayerShape, pass: PassShape, memory: &MemoryModel) -> u64 {
        let seconds = |work| self.roofline().seconds(work);
        let ratio = seconds(layer.backward_work(pass, memory))
            / seconds(layer.forward_work(pass, memory)).max(f64::MIN_POSITIVE);
        (self.forward(layer, pass, memory) as f64 * ratio) as u64
    }

    /// Time in which a layer's matrices come to the device; 0 where they stay there.
    ///
    /// # Units
    /// Picoseconds.
    #[must_use]
    pub fn arrival(&self, layer: &LayerShape) -> u64 {
        picoseconds(layer.streamed as f64 / self.stream())
    }

    /// How fast a base comes from the host's memory.
    ///
    /// # Units
    /// Bytes in a second.
    #[must_use]
    pub fn stream(&self) -> f64 {
        let measured = self.measured_host();
        measured.map_or(self.roofline().stream, |speed| speed.bytes)
    }

    fn measured_host(&self) -> Option<Speed> {
        match self {
            Self::Measured(calibration, _) => calibration.host,
            Self::Roofline(_) => None,
        }
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
            // What was measured attends: of a DeltaNet, the mixer's own tensors are estimated.
            Self::Measured(_, roofline) if is_of_delta_net(layer, tensor) => {
                roofline.seconds(layer.work(tensor, pass, memory))
            }
            Self::Measured(calibration, _) => {
                let scale = match tensor {
                    SavedTensor::Attention => {
                        pass.pairs_seen(layer.window) as f64 / calibration.pairs as f64
                    }
                    _ => pass.tokens as f64 / calibration.tokens as f64,
                };
                calibration.seconds[tensor as usize] * scale
            }
        };
        picoseconds(seconds)
    }
}

/// Whether a tensor is one that a DeltaNet computes otherwise than attention.
fn is_of_delta_net(layer: &LayerShape, tensor: SavedTensor) -> bool {
    use SavedTensor as T;
    matches!(layer.mixer, Mixer::DeltaNet(_))
        && matches!(tensor, T::Query | T::Key | T::Value | T::Attention | T::Mid)
}

pub(crate) fn picoseconds(seconds: f64) -> u64 {
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
            stream: 1.0,
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
    fn measured_times_grow_with_tokens_and_pairs() {
        let calibration = Calibration {
            tokens: 4,
            pairs: 10,
            seconds: vec![0.5; SavedTensor::ALL.len()],
            forward: 3.5,
            host: None,
        };
        assert!(calibration.is_valid());
        let (layer, memory) = (crate::tests::layer(), &crate::tests::MEMORY);
        let cost = CostModel::Measured(calibration, Roofline::CPU);
        let pass = PassShape::of_sequences([4, 4]);
        let time = cost.rebuild(&layer, SavedTensor::Gate, pass, memory);
        assert_eq!(time, 1_000_000_000_000);
        // Twice as many tokens and pairs.
        assert_eq!(cost.forward(&layer, pass, memory), 7_000_000_000_000);
        // One sequence of both: 36 pairs.
        let pass = PassShape::of_sequences([8]);
        assert_eq!(cost.forward(&layer, pass, memory), 7_800_000_000_000);
    }
}
