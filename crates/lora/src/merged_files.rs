//! The files beside the weights of a merged model.

use backdraft_formats::{FormatError, ModelSource, PeftDir};
use serde_json::{Map, Value};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Where processors kept a template, for one file less than now.
const OLD_TEMPLATE: &str = "chat_template.json";

/// The base's files, with the chat template that the adapter was trained with in each place where one may
/// stand, and generation that ends where answers ended in training.
pub(crate) fn merged_files(
    source: &ModelSource,
    chat_template: Option<&str>,
    stop_token_ids: &[u32],
) -> Result<Vec<(String, Vec<u8>)>, FormatError> {
    let mut files = source.companion_files()?;
    for (name, bytes) in &mut files {
        if name == CONFIG {
            *bytes = without_quantization(source.whole_config());
        }
    }
    if let Some(template) = chat_template {
        files.retain(|(name, _)| name != PeftDir::CHAT_TEMPLATE && name != OLD_TEMPLATE);
        change(&mut files, TOKENIZER_CONFIG, |config| {
            config.insert("chat_template".to_owned(), template.into());
        });
        files.push((PeftDir::CHAT_TEMPLATE.to_owned(), template.into()));
    }
    let mut ends = source.eos_token_ids()?;
    let known = ends.len();
    for id in stop_token_ids {
        if !ends.contains(id) {
            ends.push(*id);
        }
    }
    if ends.len() > known {
        if !files.iter().any(|(name, _)| name == GENERATION_CONFIG) {
            files.push((GENERATION_CONFIG.to_owned(), generation_config(source)));
        }
        change(&mut files, GENERATION_CONFIG, |config| {
            config.insert("eos_token_id".to_owned(), ends.into());
        });
    }
    Ok(files)
}

/// Says in the config that the head is no more the embedding.
pub(crate) fn untie(files: &mut [(String, Vec<u8>)]) {
    change(files, CONFIG, |config| {
        config.insert("tie_word_embeddings".to_owned(), false.into());
    });
}

/// Changes a JSON object; a file that is none, or is not there, stays so.
fn change(
    files: &mut [(String, Vec<u8>)],
    name: &str,
    change: impl FnOnce(&mut Map<String, Value>),
) {
    let file = files.iter_mut().find(|(file, _)| file == name);
    if let Some((_, bytes)) = file
        && let Ok(mut config) = serde_json::from_slice::<Map<String, Value>>(bytes)
    {
        change(&mut config);
        *bytes = format!("{:#}\n", Value::Object(config)).into_bytes();
    }
}

/// What transformers would take from a config without a `generation_config.json` beside it.
fn generation_config(source: &ModelSource) -> Vec<u8> {
    let keys = ["bos_token_id", "pad_token_id"];
    let of_config = |key: &str| Some((key.to_owned(), source.config().get(key)?.clone()));
    let config: Map<String, Value> = keys.into_iter().filter_map(of_config).collect();
    Value::Object(config).to_string().into_bytes()
}

/// The config of a model whose weights are numbers again.
fn without_quantization(config: &Value) -> Vec<u8> {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.remove("quantization_config");
    }
    format!("{config:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use backdraft_formats::{Dtype, Existing, SafetensorsWriter, TensorInfo};
    use serde_json::json;

    use super::*;

    fn model(files: &[(&str, Value)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, value) in files {
            fs::write(root.path().join(name), value.to_string()).unwrap();
        }
        let path = root.path().join("model.safetensors");
        let infos = [TensorInfo::new("a", Dtype::U8, [1])];
        let mut writer = SafetensorsWriter::create(path, infos, Existing::Refuse).unwrap();
        writer.write("a", &[1]).unwrap();
        writer.finish().unwrap();
        root
    }

    fn merged(
        root: &tempfile::TempDir,
        template: Option<&str>,
        stops: &[u32],
    ) -> Map<String, Value> {
        let source = ModelSource::open(root.path()).unwrap();
        let files = merged_files(&source, template, stops).unwrap();
        let names: std::collections::HashSet<_> = files.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), files.len());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let value =
            |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or_else(|_| text(bytes).into());
        files
            .iter()
            .map(|(name, bytes)| (name.clone(), value(bytes)))
            .collect()
    }

    #[test]
    fn a_template_of_the_adapters_stands_wherever_one_may() {
        let root = model(&[
            (CONFIG, json!({"eos_token_id": 2})),
            (
                TOKENIZER_CONFIG,
                json!({"eos_token": "</s>", "chat_template": "old"}),
            ),
            (OLD_TEMPLATE, json!({"chat_template": "old"})),
            (PeftDir::CHAT_TEMPLATE, json!("old")),
        ]);
        let files = merged(&root, Some("new {{ x }}"), &[2]);
        assert_eq!(files[PeftDir::CHAT_TEMPLATE], "new {{ x }}");
        assert_eq!(files[TOKENIZER_CONFIG]["chat_template"], "new {{ x }}");
        assert_eq!(files[TOKENIZER_CONFIG]["eos_token"], "</s>");
        assert!(!files.contains_key(OLD_TEMPLATE));
        assert!(!files.contains_key(GENERATION_CONFIG));
        let kept = merged(&root, None, &[]);
        assert_eq!(kept[TOKENIZER_CONFIG]["chat_template"], "old");
        assert!(kept.contains_key(OLD_TEMPLATE));
    }

    #[test]
    fn generation_ends_where_answers_ended() {
        let config = json!({"eos_token_id": 2, "bos_token_id": 1, "quantization_config": null});
        let alone = model(&[(CONFIG, config.clone())]);
        let files = merged(&alone, None, &[7, 2]);
        let expected = json!({"bos_token_id": 1, "eos_token_id": [2, 7]});
        assert_eq!(files[GENERATION_CONFIG], expected);
        assert_eq!(files[CONFIG], json!({"eos_token_id": 2, "bos_token_id": 1}));
        let generation = json!({"temperature": 0.6, "eos_token_id": [3]});
        let beside = model(&[(CONFIG, config), (GENERATION_CONFIG, generation.clone())]);
        let files = merged(&beside, None, &[7]);
        assert_eq!(
            files[GENERATION_CONFIG],
            json!({"temperature": 0.6, "eos_token_id": [3, 7]})
        );
        assert_eq!(merged(&beside, None, &[3])[GENERATION_CONFIG], generation);
    }
}
