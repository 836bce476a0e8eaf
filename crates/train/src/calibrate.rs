//! How long the tensors of a layer take, measured on the model and device at hand, and kept for the next run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backdraft_arch::{KeepSet, SavedTensor, StatePrecision};
use backdraft_formats::{Existing, FormatError, write_file};
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::offload;
use backdraft_model::layers::DecoderLayer;
use backdraft_model::{CausalLm, Tokens};
use backdraft_plan::cost::Calibration;
use backdraft_plan::tensors::{LayerShape, MemoryModel, PassShape};
use burn::tensor::{ExecutionError, Tensor};
use sha2::{Digest, Sha256};

use crate::optimizer::Optimizer;

/// Seconds of passes that are waited for once.
const ENOUGH: f64 = 0.02;

/// Runs one layer forwards over sequences of these lengths: three times waiting after each op, of whose times the
/// shortest count, and some times without, since waiting costs more than a small op on a GPU: what all take together
/// is the time of those. Then as training runs it.
///
/// # Errors
/// A device that failed.
///
/// # Panics
/// If the model has no layer.
pub fn measure(model: &CausalLm, lengths: &[usize]) -> Result<Calibration, ExecutionError> {
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
            if let Some(tensor) = tensor {
                round[tensor as usize] += began.elapsed().as_secs_f64();
            }
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
        None => Ok(Calibration {
            tokens: pass.tokens,
            pairs: pass.pairs_seen(layer.window().map(|w| w as u64)),
            seconds,
            forward,
            host: offload::measure(&h.device())?,
        }),
    }
}

/// The last layer that has every tensor of one that attends, or the last of all, with its factors where an optimiser lays them: one
/// product serves several adapters there.
fn as_trained(model: &CausalLm) -> CausalLm {
    let mut model = model.clone();
    let last = model.layers.iter().rposition(DecoderLayer::has_value);
    let last = last.unwrap_or_else(|| model.layers.len().saturating_sub(1));
    model.layers.truncate(last + 1);
    model.layers.drain(..last);
    let constants = AdamWParams {
        beta1: 0.0,
        beta2: 0.0,
        epsilon: 0.0,
        weight_decay: 0.0,
    };
    Optimizer::adamw(constants, StatePrecision::F32).adopt(&mut model);
    model
}

/// Until the device has done everything. (Reading a value of `tensor` waits for what wrote it only.)
fn wait(tensor: &Tensor<2>) -> Result<(), ExecutionError> {
    tensor.device().sync()
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

/// What is kept from an earlier run; `None` where there is nothing that can be used.
#[must_use]
pub fn cached(dir: &Path, key: &CalibrationKey) -> Option<Calibration> {
    let text = fs::read(key.path(dir)).ok()?;
    let calibration: Calibration = serde_json::from_slice(&text).ok()?;
    calibration.is_valid().then_some(calibration)
}

/// Keeps measured times for the next run.
///
/// # Errors
/// The system refuses; a run goes on without.
pub fn store(dir: &Path, key: &CalibrationKey, times: &Calibration) -> Result<(), FormatError> {
    fs::create_dir_all(dir).map_err(FormatError::io(dir, "create"))?;
    let path = key.path(dir);
    let text = serde_json::to_vec(times).map_err(FormatError::encode(&path))?;
    write_file(path, &text, Existing::Replace)
}

#[cfg(test)]
mod tests {
    use backdraft_arch::{Heads, InputGrad, Mixer, Norm, NormPlaces, TargetModule, ValueHeads};
    use backdraft_plan::tensors::{ProjectionShape, Rows};

    use super::*;

    #[test]
    fn times_are_found_again_under_their_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let times = Calibration {
            tokens: 4,
            pairs: 10,
            seconds: vec![0.5; SavedTensor::ALL.len()],
            forward: 3.5,
            host: None,
        };
        let projection = ProjectionShape {
            out: 8,
            input: 8,
            rank: 2,
            scaling: 1,
            dropout: false,
            dora: false,
            quantized: false,
            weight_bytes: 256,
            rows: Rows::All,
            bias: false,
            weight: false,
        };
        let key = CalibrationKey {
            device: "here".to_owned(),
            layer: LayerShape {
                hidden: 8,
                query_heads: 2,
                key_value_heads: 2,
                mixer: Mixer::Attention,
                heads: Heads::Turned,
                values: ValueHeads::Plain,
                norm_places: NormPlaces::Before,
                window: None,
                scaled: false,
                projections: [projection; TargetModule::ALL.len()],
                norms: [0; Norm::ALL.len()],
                input_grad: InputGrad::Needed,
                streamed: 0,
            },
            memory: MemoryModel::cube(2),
            tokens: 4,
        };
        assert_eq!(cached(dir.path(), &key), None);
        store(dir.path(), &key, &times).unwrap();
        assert_eq!(cached(dir.path(), &key), Some(times));
        let other = CalibrationKey {
            tokens: 8,
            ..key.clone()
        };
        assert_eq!(cached(dir.path(), &other), None);
        // A damaged file counts as none.
        fs::write(key.path(dir.path()), b"{\"tokens\":0}").unwrap();
        assert_eq!(cached(dir.path(), &key), None);
    }
}
