//! A case under `tiny/`: a checkpoint with its reference values.

use backdraft::data::Batch;
use backdraft::formats::ModelSource;
use backdraft::model::CausalLm;
use backdraft::train::step::MicroBatch;
use backdraft_testkit::golden::{self, Folder, Tensors};
use serde_json::{Map, Value};

use super::place;
use super::support;

/// A case, and its model.
pub(super) struct TinyCase {
    pub(super) name: String,
    pub(super) path: Folder,
    pub(super) golden: Map<String, Value>,
    pub(super) tensors: Tensors,
    pub(super) model: CausalLm,
}

impl TinyCase {
    /// Every supported case; the others are refused as they should be.
    pub(super) fn all() -> Vec<Self> {
        let folders = golden::folders("tiny", "config.json");
        folders.into_iter().filter_map(Self::open).collect()
    }

    pub(super) fn open(path: Folder) -> Option<Self> {
        let name = path.name();
        let source = ModelSource::open(&*path).unwrap_or_else(|e| panic!("{name}: {e}"));
        let model = match CausalLm::load(&source, &place::device()) {
            Ok(model) => model,
            Err(error) => {
                support::check_load_refusal(&name, source.config(), &error);
                return None;
            }
        };
        let feature = support::unsupported_feature(source.config());
        assert_eq!(
            feature, None,
            "{name}: loaded, but should have been refused"
        );
        Some(Self {
            name,
            golden: golden::json(&path.join("golden.json")),
            tensors: Tensors::open(path.join("golden.safetensors")),
            path,
            model,
        })
    }

    /// A number of `golden.json`.
    #[track_caller]
    pub(super) fn number(&self, key: &str) -> f64 {
        let value = self.golden.get(key).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("{}: no number {key}", self.name))
    }

    /// The rows of the batch without padding.
    pub(super) fn plain_rows(&self) -> Vec<Vec<u32>> {
        let [_, width] = self.tensors.shape("plain.input_ids");
        let ids = self.tensors.i64("plain.input_ids");
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        ids.chunks(width).map(<[u32]>::to_vec).collect()
    }

    /// The batch without padding; every token is a label.
    pub(super) fn plain(&self) -> MicroBatch {
        let [rows, _] = self.tensors.shape("plain.input_ids");
        let ids = self.tensors.i64("plain.input_ids");
        let mask = vec![1; ids.len()];
        Batch::from_rectangular(rows, &ids, &mask, &ids)
            .unwrap()
            .into()
    }

    /// The batch with padding, which is cut away.
    pub(super) fn padded(&self) -> MicroBatch {
        let [rows, _] = self.tensors.shape("padded.input_ids");
        let [ids, mask, labels] = ["input_ids", "attention_mask", "labels"]
            .map(|name| self.tensors.i64(&format!("padded.{name}")));
        Batch::from_rectangular(rows, &ids, &mask, &labels)
            .unwrap()
            .into()
    }
}
