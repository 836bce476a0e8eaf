//! A tokenizer as metadata.

mod tokens;

use serde_json::Value;

use self::tokens::{Tokens, shortened, tokenizer_error};
use super::bpe::pre_tokenizer_name;
use super::entry::{Entry, EntryValue};
use super::export_error::GgufExportError;
use crate::tokenizer_files::TokenizerFiles;

/// What is written of a tokenizer besides its files.
#[derive(Debug, Clone, Default)]
pub struct VocabularyOptions<'a> {
    /// Rows of the embedding: ids without a token get one that is never used.
    pub rows: usize,
    /// The ids that end an answer, as training taught it and the config says.
    pub ends: &'a [u32],
    /// The chat template in place of the files' own.
    pub chat_template: Option<&'a str>,
    /// Whether a vocabulary of SentencePiece's kind keeps its merges, as Gemma 4's does, in place of scores.
    pub keeps_merges: bool,
}

/// The metadata of a tokenizer that is a `tokenizer.json`.
///
/// # Source
/// The keys that llama.cpp's `llama-vocab.cpp` reads.
///
/// # Errors
/// A kind of tokenizer that llama.cpp has no form for, or a vocabulary that does not fit the embedding.
pub fn vocabulary(
    files: &TokenizerFiles,
    options: &VocabularyOptions<'_>,
) -> Result<Vec<Entry>, GgufExportError> {
    let json: Value = serde_json::from_slice(&files.tokenizer_json)
        .map_err(|error| tokenizer_error("the file", "JSON", &error.to_string().into()))?;
    let model = &json["model"];
    if !matches!(model["type"].as_str(), None | Some("BPE")) {
        return Err(tokenizer_error("model.type", "\"BPE\"", &model["type"]));
    }
    let mut tokens = Tokens::read(&json, files, options.rows)?;
    let merges = merges(model)?;
    let mut entries = Vec::new();
    if model["byte_fallback"] == true && options.keeps_merges {
        if has_space_prefix(&json) {
            let expected = "one that puts no blank before a text";
            return Err(tokenizer_error("normalizer", expected, &json["normalizer"]));
        }
        entries.push(Entry::new("tokenizer.ggml.model", "gemma4"));
        tokens.name_bytes(None);
        entries.extend(tokens.entries());
        entries.push(merge_entry(&merges));
        entries.push(Entry::new("tokenizer.ggml.add_space_prefix", false));
    } else if model["byte_fallback"] == true {
        entries.push(Entry::new("tokenizer.ggml.model", "llama"));
        entries.push(Entry::new("tokenizer.ggml.pre", "default"));
        tokens.name_bytes(model["unk_token"].as_str());
        let scores = tokens.scores(&merges);
        entries.extend(tokens.entries());
        let scores = EntryValue::F32s(scores);
        entries.push(Entry::new("tokenizer.ggml.scores", scores));
        let prefix = has_space_prefix(&json);
        entries.push(Entry::new("tokenizer.ggml.add_space_prefix", prefix));
    } else {
        check_normalizer(&json["normalizer"])?;
        let pre = &json["pre_tokenizer"];
        let whole = model["ignore_merges"] == true;
        let name = pre_tokenizer_name(pre, whole).ok_or_else(|| GgufExportError::PreTokenizer {
            actual: shortened(pre),
        })?;
        entries.push(Entry::new("tokenizer.ggml.model", "gpt2"));
        entries.push(Entry::new("tokenizer.ggml.pre", name));
        entries.extend(tokens.entries());
        entries.push(merge_entry(&merges));
    }
    entries.extend(special_tokens(files, &tokens)?);
    let eos = files.eos_token.as_ref();
    let eos = eos.map(|token| tokens.special("eos_token", token));
    entries.extend(ends(eos.transpose()?, options.ends));
    let add_bos = files
        .add_bos_token
        .unwrap_or_else(|| adds_bos(&json, files));
    entries.push(Entry::new("tokenizer.ggml.add_bos_token", add_bos));
    let add_eos = files.add_eos_token.unwrap_or(false);
    entries.push(Entry::new("tokenizer.ggml.add_eos_token", add_eos));
    entries.extend(templates(options.chat_template, files));
    Ok(entries)
}

fn merge_entry(merges: &[[&str; 2]]) -> Entry {
    let merges = merges.iter().map(|[left, right]| format!("{left} {right}"));
    let merges = EntryValue::Texts(merges.collect());
    Entry::new("tokenizer.ggml.merges", merges)
}

/// The ids that end a generation: the tokenizer's own, then one that training taught, then one more.
pub(super) fn ends(eos: Option<u32>, ends: &[u32]) -> Vec<Entry> {
    let mut ids: Vec<u32> = eos.into_iter().collect();
    for id in ends {
        if !ids.contains(id) {
            ids.push(*id);
        }
    }
    let keys = ["eos", "eot", "eom"].into_iter();
    keys.zip(ids)
        .map(|(key, id)| Entry::new(format!("tokenizer.ggml.{key}_token_id"), id))
        .collect()
}

fn templates(of_run: Option<&str>, files: &TokenizerFiles) -> Vec<Entry> {
    let mut entries = Vec::new();
    if let Some(template) = of_run.or(files.chat_template.as_deref()) {
        entries.push(Entry::new("tokenizer.chat_template", template));
    }
    if let Some(template) = files
        .tool_use_template
        .as_deref()
        .filter(|_| of_run.is_none())
    {
        let names = EntryValue::Texts(vec!["tool_use".to_owned()]);
        entries.push(Entry::new("tokenizer.chat_templates", names));
        entries.push(Entry::new("tokenizer.chat_template.tool_use", template));
    }
    entries
}

fn pair(merge: &Value) -> Option<[&str; 2]> {
    match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| [left, right]),
        Value::Array(pair) => match &pair[..] {
            [Value::String(left), Value::String(right)] => Some([left, right]),
            _ => None,
        },
        _ => None,
    }
}

/// The merges, which files of both ages have as `"a b"` or `["a", "b"]`.
fn merges(model: &Value) -> Result<Vec<[&str; 2]>, GgufExportError> {
    let Some(merges) = model["merges"].as_array() else {
        return Err(tokenizer_error("model.merges", "a list", &model["merges"]));
    };
    let fine = |[left, right]: &[&str; 2]| !left.contains(' ') && !right.contains(' ');
    merges
        .iter()
        .map(|merge| {
            let pair = pair(merge).filter(fine);
            pair.ok_or_else(|| tokenizer_error("model.merges", "pairs without blanks", merge))
        })
        .collect()
}

fn special_tokens(files: &TokenizerFiles, tokens: &Tokens) -> Result<Vec<Entry>, GgufExportError> {
    let named = [
        ("bos_token", "bos", &files.bos_token),
        ("unk_token", "unknown", &files.unk_token),
        ("pad_token", "padding", &files.pad_token),
    ];
    let mut entries = Vec::new();
    for (name, key, token) in named {
        let Some(token) = token else {
            continue;
        };
        let id = tokens.special(name, token)?;
        entries.push(Entry::new(format!("tokenizer.ggml.{key}_token_id"), id));
    }
    Ok(entries)
}

/// Whether the post-processor puts the first token of texts.
fn adds_bos(json: &Value, files: &TokenizerFiles) -> bool {
    let Some(bos) = &files.bos_token else {
        return false;
    };
    let post = &json["post_processor"];
    let one = std::slice::from_ref(post);
    let mut steps = post["processors"]
        .as_array()
        .map_or(one, Vec::as_slice)
        .iter();
    steps.any(|step| step["single"][0]["SpecialToken"]["id"] == bos.as_str())
}

/// Whether a text begins with a blank of its own.
fn has_space_prefix(json: &Value) -> bool {
    let steps = |value: &Value, key: &str| match value[key].as_array() {
        Some(steps) => steps.clone(),
        None => vec![value.clone()],
    };
    let prepends = steps(&json["normalizer"], "normalizers")
        .iter()
        .any(|step| step["type"] == "Prepend");
    let meta = |step: &Value| {
        let scheme = step["prepend_scheme"].as_str();
        step["type"] == "Metaspace"
            && scheme.map_or(step["add_prefix_space"] != false, |scheme| {
                scheme != "never"
            })
    };
    prepends
        || steps(&json["pre_tokenizer"], "pretokenizers")
            .iter()
            .any(meta)
}

fn check_normalizer(normalizer: &Value) -> Result<(), GgufExportError> {
    if normalizer.is_null() || normalizer["type"] == "NFC" {
        return Ok(());
    }
    let empty = normalizer["normalizers"].as_array();
    match empty.is_some_and(Vec::is_empty) {
        true => Ok(()),
        false => Err(tokenizer_error("normalizer", "null or NFC", normalizer)),
    }
}

#[cfg(test)]
mod tests;
