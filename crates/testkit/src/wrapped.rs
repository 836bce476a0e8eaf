//! A decoder as one part of a model with a tower beside it.

use std::fs;
use std::path::Path;

use backdraft_formats::dtype::Dtype;
use backdraft_formats::{Existing, HfDirWriter, ModelSource, TensorInfo};
use serde_json::{Value, json};

/// How the tensors of such a model are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// As files on the hub have them.
    Hub,
    /// As transformers 5 writes them.
    Transformers5,
}

impl Spelling {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Hub, Self::Transformers5];

    /// The name of a decoder's tensor.
    #[must_use]
    pub fn name(self, name: &str) -> String {
        match (self, name.strip_prefix("model.")) {
            (Self::Hub, _) => format!("language_model.{name}"),
            (Self::Transformers5, Some(inner)) => format!("model.language_model.{inner}"),
            (Self::Transformers5, None) => name.to_owned(),
        }
    }

    /// The tensors of the tower and of what leads from it to the decoder, and of a layer that predicts further tokens. A
    /// projection of the tower has the name of a decoder's.
    #[must_use]
    pub fn others(self) -> Vec<TensorInfo> {
        let before = match self {
            Self::Hub => "",
            Self::Transformers5 => "model.",
        };
        let info = |name: &str, dtype, shape: &[usize]| {
            TensorInfo::new(format!("{before}{name}"), dtype, shape)
        };
        vec![
            info(
                "multi_modal_projector.linear_1.weight",
                Dtype::BF16,
                &[6, 4],
            ),
            info(
                "vision_tower.transformer.layers.0.attention.q_proj.weight",
                Dtype::F16,
                &[64, 64],
            ),
            info(
                "vision_tower.transformer.layers.0.norm.weight",
                Dtype::F32,
                &[5],
            ),
            TensorInfo::new("mtp.layers.0.mlp.up_proj.weight", Dtype::BF16, [6, 4]),
        ]
    }
}

/// Bytes of a tower's tensor: small numbers, the same every time.
#[must_use]
pub fn other_bytes(info: &TensorInfo) -> Vec<u8> {
    let bytes = info.checked_bytes().unwrap_or(0);
    (0..bytes).map(|place| (place % 23) as u8).collect()
}

/// Writes the model in `decoder` into `out`, as one part of a model that calls itself `model_type`.
///
/// # Panics
/// If a file cannot be read or written.
pub fn wrap(decoder: &Path, out: &Path, model_type: &str, spelling: Spelling) {
    let write = || -> Result<(), Box<dyn std::error::Error>> {
        let source = ModelSource::open(decoder)?;
        let infos = source
            .tensor_names()
            .filter_map(|name| source.tensor_info(name));
        let infos: Vec<&TensorInfo> = infos.collect();
        let renamed = infos.iter().map(|info| TensorInfo {
            name: spelling.name(&info.name),
            ..(*info).clone()
        });
        let others = spelling.others();
        let all: Vec<TensorInfo> = renamed.chain(others.iter().cloned()).collect();
        let mut writer = HfDirWriter::create(out, all, Existing::Refuse)?;
        for (name, bytes) in source.companion_files()? {
            let bytes = match name.as_str() {
                "config.json" => config(source.config(), model_type).to_string().into_bytes(),
                _ => bytes,
            };
            writer.companion(&name, &bytes)?;
        }
        writer.companion("preprocessor_config.json", b"{\"image_size\": 4}")?;
        for info in infos {
            let bytes = &source.raw(&info.name)?.bytes;
            writer.write(&spelling.name(&info.name), bytes)?;
        }
        for info in &others {
            writer.write(&info.name, &other_bytes(info))?;
        }
        writer.finish()?;
        Ok(())
    };
    if let Err(error) = write() {
        panic!("{}: {error}", out.display());
    }
}

/// What a config says beside that of the decoder.
fn config(decoder: &Value, model_type: &str) -> Value {
    let mut text = decoder.clone();
    let mut whole = json!({
        "architectures": ["SomeForConditionalGeneration"], "model_type": model_type,
        "vision_config": {"hidden_size": 8, "model_type": "pixtral"},
    });
    if let Some(fields) = text.as_object_mut() {
        fields.remove("architectures");
        for key in ["bos_token_id", "dtype", "eos_token_id", "pad_token_id"] {
            if let Some(value) = fields.remove(key) {
                whole[key] = value;
            }
        }
    }
    whole["text_config"] = text;
    whole
}

/// What lies in `model.safetensors` under a name.
///
/// # Panics
/// If the file or the tensor cannot be read.
#[must_use]
pub fn stored_bytes(directory: &Path, name: &str) -> Vec<u8> {
    let read = || -> Result<Vec<u8>, Box<dyn std::error::Error>> {
        let path = directory.join("model.safetensors");
        fs::metadata(&path)?;
        let file = backdraft_formats::SafetensorsFile::open(path)?;
        Ok(file.raw(name)?.bytes.into_owned())
    };
    read().unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
}
