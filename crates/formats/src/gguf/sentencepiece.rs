//! SentencePiece BPE with byte fallback: `tokenizer.ggml.model = llama`, and with merges of its own `gemma4`.
//!
//! A SentencePiece model has scores instead of merges: the pair whose union scores highest is
//! joined first. The merges are rebuilt from them the way transformers converts such a model.
//!
//! # Source
//! `SentencePieceExtractor` and `LlamaConverter` in transformers' `convert_slow_tokenizer.py`; `tokenization_gemma.py`.

use serde_json::{Value, json};

use super::bpe;
use super::error::{GgufError, GgufTokenizerError};
use super::tokenizer::{SpecialTokens, TokenKind, Vocabulary, check_length};
use super::value::GgufMetadata;

/// What SentencePiece writes for a space.
const SPACE: &str = "\u{2581}";

/// The longest token, in bytes: rebuilding merges takes time in the square of it.
const MAX_TOKEN: usize = 1024;

pub(super) fn tokenizer_json(
    metadata: GgufMetadata<'_>,
    vocabulary: Vocabulary<'_>,
    special: &mut SpecialTokens,
) -> Result<Value, GgufTokenizerError> {
    let key = "tokenizer.ggml.scores";
    let scores = metadata
        .floats(key)?
        .ok_or_else(|| GgufError::KeyMissing { key: key.into() })?;
    check_length(key, vocabulary.tokens.len(), scores.len())?;
    let merges = merges(&vocabulary, &scores)?;
    // llama.cpp's defaults for this family; the metadata need not say.
    special.add_bos.get_or_insert(special.bos.is_some());
    let add_space_prefix = metadata
        .bool("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    Ok(json(vocabulary, special, &merges, add_space_prefix))
}

/// A vocabulary that has merges, Gemma 4's: no blank is put before a text, and BOS always is, as llama.cpp has it.
pub(super) fn tokenizer_json_of_merges(
    metadata: GgufMetadata<'_>,
    vocabulary: Vocabulary<'_>,
    special: &mut SpecialTokens,
) -> Result<Value, GgufTokenizerError> {
    let merges = bpe::merges(metadata, &vocabulary)?;
    special.add_bos = Some(special.bos.is_some());
    Ok(json(vocabulary, special, &merges, false))
}

fn json(
    vocabulary: Vocabulary<'_>,
    special: &SpecialTokens,
    merges: &[Value],
    add_space_prefix: bool,
) -> Value {
    let unknown = unknown_token(&vocabulary, special);
    let added: Vec<Value> = vocabulary
        .iter()
        .filter_map(|(id, token, kind)| {
            let special = matches!(kind, TokenKind::Control | TokenKind::Unknown);
            (special || stands_alone(token, kind))
                .then(|| Vocabulary::added_token(id, token, special))
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer(add_space_prefix),
        "pre_tokenizer": null,
        "post_processor": special.template(),
        "decoder": decoder(add_space_prefix),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.ids,
            "merges": merges,
        },
    })
}

fn unknown_token(vocabulary: &Vocabulary<'_>, special: &SpecialTokens) -> Option<String> {
    let by_id = special.unknown.as_ref().map(|(_, token)| token.clone());
    by_id.or_else(|| {
        vocabulary
            .iter()
            .find(|(_, _, kind)| *kind == TokenKind::Unknown)
            .map(|(_, token, _)| token.into())
    })
}

/// Whether a user-defined token is matched in the text as it is.
///
/// One with the mark for a space cannot be: spaces become marks only later. Merges lead to it.
fn stands_alone(token: &str, kind: TokenKind) -> bool {
    kind == TokenKind::UserDefined && !token.contains(SPACE)
}

fn normalizer(add_space_prefix: bool) -> Value {
    let mut steps = Vec::new();
    if add_space_prefix {
        steps.push(json!({"type": "Prepend", "prepend": SPACE}));
    }
    steps.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE}));
    json!({"type": "Sequence", "normalizers": steps})
}

fn decoder(add_space_prefix: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if add_space_prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

struct Merge<'a> {
    left: &'a str,
    right: &'a str,
    score: f64,
}

/// Every way to make a token of two others, best score first.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Result<Vec<Value>, GgufTokenizerError> {
    let mut merges = Vec::new();
    for ((id, token, kind), score) in vocabulary.iter().zip(scores) {
        if token.len() > MAX_TOKEN {
            return Err(GgufTokenizerError::TokenLength {
                id: id as u32,
                expected: MAX_TOKEN,
                actual: token.len(),
            });
        }
        // SentencePiece never joins text into a control, byte or unused token.
        let reachable = kind == TokenKind::Normal
            || kind == TokenKind::UserDefined && !stands_alone(token, kind);
        if reachable {
            merges.extend(splits(vocabulary, token, *score));
        }
    }
    // Equal scores stay in the order of ids, as in the published conversions of Llama 2.
    merges.sort_by(|a: &Merge<'_>, b| b.score.total_cmp(&a.score));
    let pairs = merges.iter().map(|merge| json!([merge.left, merge.right]));
    Ok(pairs.collect())
}

/// The ways to make one token, in the order of their parts' ids.
fn splits<'a>(vocabulary: &Vocabulary<'_>, token: &'a str, score: f64) -> Vec<Merge<'a>> {
    let id = |part: &str| vocabulary.ids.get(part)?.as_u64();
    let mut splits: Vec<_> = token
        .char_indices()
        .skip(1)
        .filter_map(|(at, _)| {
            let (left, right) = token.split_at(at);
            let order = (id(left)?, id(right)?);
            Some((order, Merge { left, right, score }))
        })
        .collect();
    splits.sort_by_key(|(order, _)| *order);
    splits.into_iter().map(|(_, merge)| merge).collect()
}
