//! The tokenizer of a GGUF base, taken over as its file has it.

use super::entry::{Entry, EntryValue};
use super::error::GgufError;
use super::export_error::GgufExportError;
use super::value::{GgufMetadata, GgufValue, ValueType};
use super::vocabulary::{VocabularyOptions, ends};

/// Keys that are written anew.
const REPLACED: [&str; 3] = [
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
];
const TEMPLATE: &str = "tokenizer.chat_template";

/// The metadata of a tokenizer that a GGUF file holds, with the ends of answers and the template that `options` name.
///
/// # Errors
/// A value of a type that no such key has.
pub fn base_vocabulary(
    metadata: GgufMetadata<'_>,
    options: &VocabularyOptions<'_>,
) -> Result<Vec<Entry>, GgufExportError> {
    let mut entries = Vec::new();
    for (key, value) in metadata.iter() {
        let template = options.chat_template.is_some() && key.starts_with(TEMPLATE);
        if key.starts_with("tokenizer.") && !REPLACED.contains(&key) && !template {
            entries.push(Entry::new(key, written(metadata, key, value)?));
        }
    }
    let eos = metadata.unsigned("tokenizer.ggml.eos_token_id")?;
    entries.extend(ends(eos.map(|id| id as u32), options.ends));
    if let Some(template) = options.chat_template {
        entries.push(Entry::new(TEMPLATE, template));
    }
    Ok(entries)
}

fn written(
    metadata: GgufMetadata<'_>,
    key: &str,
    value: &GgufValue,
) -> Result<EntryValue, GgufError> {
    let odd = || GgufError::KeyValue {
        key: key.to_owned(),
        expected: "a text, a number of 32 bits, a boolean, or a list of them",
        actual: value.to_string(),
    };
    Ok(match value {
        GgufValue::Unsigned(value) => EntryValue::U32(u32::try_from(*value).map_err(|_| odd())?),
        GgufValue::Signed(value) => EntryValue::I32(i32::try_from(*value).map_err(|_| odd())?),
        GgufValue::F32(value) => EntryValue::F32(*value),
        GgufValue::Bool(value) => EntryValue::Bool(*value),
        GgufValue::String(value) => EntryValue::Text(value.clone()),
        GgufValue::F64(_) => return Err(odd()),
        GgufValue::Array(array) => match array.element_type() {
            ValueType::String => {
                let texts = metadata.strings(key)?.unwrap_or_default();
                EntryValue::Texts(texts.into_iter().map(str::to_owned).collect())
            }
            ValueType::F32 => {
                let numbers = metadata.floats(key)?.unwrap_or_default();
                EntryValue::F32s(numbers.into_iter().map(|number| number as f32).collect())
            }
            _ => {
                let numbers = metadata.integers(key)?.unwrap_or_default();
                let number = |number| i32::try_from(number).map_err(|_| odd());
                EntryValue::I32s(numbers.into_iter().map(number).collect::<Result<_, _>>()?)
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::file::GgufFile;
    use super::super::testing::Builder;
    use super::*;

    #[test]
    fn all_but_ends_and_template_is_as_it_was() {
        let base = Builder::new()
            .string("general.architecture", "llama")
            .string("tokenizer.ggml.pre", "llama-bpe")
            .strings("tokenizer.ggml.tokens", &["a", "b"])
            .i32s("tokenizer.ggml.token_type", &[1, 3])
            .f32s("tokenizer.ggml.scores", &[0.5, -1.0])
            .u32("tokenizer.ggml.bos_token_id", 1)
            .u32("tokenizer.ggml.eos_token_id", 0)
            .bool("tokenizer.ggml.add_bos_token", true)
            .string("tokenizer.chat_template", "old");
        let (_root, path) = base.write();
        let file = GgufFile::open(path).unwrap();
        let options = VocabularyOptions {
            rows: 2,
            ends: &[0, 1],
            chat_template: Some("new"),
            keeps_merges: false,
        };
        let texts = EntryValue::Texts(vec!["a".to_owned(), "b".to_owned()]);
        let kinds = EntryValue::I32s(vec![1, 3]);
        let expected = [
            Entry::new("tokenizer.ggml.pre", "llama-bpe"),
            Entry::new("tokenizer.ggml.tokens", texts),
            Entry::new("tokenizer.ggml.token_type", kinds),
            Entry::new("tokenizer.ggml.scores", EntryValue::F32s(vec![0.5, -1.0])),
            Entry::new("tokenizer.ggml.bos_token_id", 1),
            Entry::new("tokenizer.ggml.add_bos_token", true),
            Entry::new("tokenizer.ggml.eos_token_id", 0),
            Entry::new("tokenizer.ggml.eot_token_id", 1),
            Entry::new("tokenizer.chat_template", "new"),
        ];
        assert_eq!(
            base_vocabulary(file.metadata(), &options).unwrap(),
            expected
        );
    }
}
