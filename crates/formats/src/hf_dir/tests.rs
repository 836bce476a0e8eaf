use super::*;
use crate::dtype::Dtype;
use crate::{Existing, SafetensorsWriter};

struct Case(tempfile::TempDir);

impl Case {
    fn new() -> Self {
        let case = Self(tempfile::tempdir().unwrap());
        case.write(CONFIG, r#"{"model_type": "llama"}"#)
    }

    fn write(self, name: &str, text: &str) -> Self {
        fs::write(self.0.path().join(name), text).unwrap();
        self
    }

    fn tensors(self, name: &str, tensors: &[&str]) -> Self {
        let infos = tensors.iter().map(|t| TensorInfo::new(*t, Dtype::U8, [1]));
        let path = self.0.path().join(name);
        let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse).unwrap();
        for tensor in tensors {
            writer.write(tensor, &[7]).unwrap();
        }
        writer.finish().unwrap();
        self
    }

    fn index(self, map: &[(&str, &str)]) -> Self {
        let map: BTreeMap<_, _> = map.iter().copied().collect();
        let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
        self.write(INDEX, &index.to_string())
    }

    fn open(&self) -> Result<HfDir> {
        HfDir::open(self.0.path())
    }
}

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

#[test]
fn single_file() {
    let case = Case::new().tensors(WEIGHTS, &["a", "b"]);
    let directory = case.open().unwrap();
    assert_eq!(directory.tensor_names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(*directory.raw("b").unwrap().bytes, [7]);
    assert!(matches!(
        directory.read_f32("a").unwrap_err(),
        FormatError::TensorDtype {
            actual: Dtype::U8,
            ..
        }
    ));
    assert!(matches!(
        directory.raw("c").unwrap_err(),
        FormatError::TensorMissing { .. }
    ));
}

#[test]
fn shards() {
    let case = Case::new()
        .tensors(FIRST, &["a"])
        .tensors(SECOND, &["b", "unlisted"])
        .index(&[("a", FIRST), ("b", SECOND)]);
    let directory = case.open().unwrap();
    let names: Vec<_> = directory.tensor_names().collect();
    assert_eq!(names, ["a", "b", "unlisted"]);
    assert_eq!(*directory.raw("unlisted").unwrap().bytes, [7]);
    assert_eq!(directory.shards().len(), 2);
    let twice = Case::new()
        .tensors(FIRST, &["a", "unlisted"])
        .tensors(SECOND, &["b", "unlisted"])
        .index(&[("a", FIRST), ("b", SECOND)]);
    assert!(matches!(
        twice.open().unwrap_err(),
        FormatError::ShardDuplicate { tensor, .. } if tensor == "unlisted"
    ));
}

#[test]
fn a_decoder_alone_has_the_names_of_the_language_model() {
    let bare = ["embed_tokens.weight", "layers.0.x.weight", "norm.weight"];
    let full = [
        "model.embed_tokens.weight",
        "model.layers.0.x.weight",
        "lm_head.weight",
        "model.norm.weight",
    ];
    let case = Case::new().tensors(WEIGHTS, &[&bare[..], &["lm_head.weight"]].concat());
    let directory = case.open().unwrap();
    assert_eq!(directory.tensor_names().collect::<Vec<_>>(), full);
    assert_eq!(*directory.raw(full[1]).unwrap().bytes, [7]);
    assert_eq!(directory.info(full[3]).unwrap().name, full[3]);
    assert!(directory.info(bare[0]).is_none());
    // Where some names have the prefix, others are not theirs.
    let mixed = Case::new().tensors(WEIGHTS, &[bare[0], full[3]]);
    let names: Vec<_> = mixed
        .open()
        .unwrap()
        .tensor_names()
        .map(str::to_owned)
        .collect();
    assert_eq!(names, [bare[0], full[3]]);
}

#[test]
fn index_that_disagrees_with_its_shards() {
    let missing = Case::new().index(&[("a", FIRST)]);
    assert!(matches!(
        missing.open().unwrap_err(),
        FormatError::ShardMissing { shard, tensors: 1, .. } if shard == FIRST
    ));
    let lacking = Case::new().tensors(FIRST, &["b"]).index(&[("a", FIRST)]);
    assert!(matches!(
        lacking.open().unwrap_err(),
        FormatError::ShardTensorMissing { tensor, .. } if tensor == "a"
    ));
    let twice = Case::new()
        .tensors(FIRST, &["a"])
        .tensors(SECOND, &["a", "b"])
        .index(&[("a", FIRST), ("b", SECOND)]);
    assert!(matches!(
        twice.open().unwrap_err(),
        FormatError::ShardDuplicate { tensor, .. } if tensor == "a"
    ));
}

#[test]
fn shards_stay_beside_their_index() {
    for shard in [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/x.safetensors",
        "a\\x.safetensors",
        "C:x.safetensors",
        "..",
        "",
        "./x.safetensors",
        "model.bin",
        "x.safetensors/",
    ] {
        let case = Case::new().index(&[("a", shard)]);
        let error = case.open().unwrap_err();
        assert!(
            matches!(error, FormatError::ShardName { .. }),
            "{shard}: {error}"
        );
    }
}

#[test]
fn what_is_not_a_model_is_named() {
    let cases = [
        (Case::new(), "neither model.safetensors"),
        (
            Case::new().write("pytorch_model.bin", ""),
            "pickle (pytorch_model.bin)",
        ),
        (
            Case::new().write("consolidated.00.pth", ""),
            "pickle (consolidated.00.pth)",
        ),
        (Case::new().write(CONFIG, "{"), "not valid JSON"),
        (Case::new().write(CONFIG, "[]"), "should be an object"),
    ];
    for (case, expected) in cases {
        let error = case.open().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let root = tempfile::tempdir().unwrap();
    let error = |path: &Path| HfDir::open(path).unwrap_err().to_string();
    assert!(error(&root.path().join("no")).ends_with("does not exist"));
    assert!(error(root.path()).contains("without config.json"));
    fs::write(root.path().join("m.gguf"), "").unwrap();
    assert!(error(root.path()).contains("with m.gguf"));
    assert!(error(&root.path().join("m.gguf")).contains("a file of another kind"));
    fs::write(root.path().join("adapter_config.json"), "").unwrap();
    assert!(error(root.path()).contains("--adapter"));
}
