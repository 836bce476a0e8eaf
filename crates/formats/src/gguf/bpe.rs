//! Byte-level BPE (`tokenizer.ggml.model = gpt2`).

use serde_json::{Value, json};

use super::error::{GgufError, GgufTokenizerError};
use super::tokenizer::{SpecialTokens, TokenKind, Vocabulary};
use super::value::GgufMetadata;

/// How text is split before merging, by the names that `tokenizer.ggml.pre` gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    /// The GPT-2 expression.
    Gpt2,
    /// Every digit alone, then the GPT-2 expression.
    SmolLm,
    /// Llama 3: digits in groups of three; a piece that is a token is not merged.
    Llama3,
    /// As Llama 3, but every piece is merged: DBRX's and GLM 4's.
    Dbrx,
    /// Qwen 2: digits alone, text in NFC.
    Qwen2,
    /// Qwen 3.5: as Qwen 2, with marks among the letters.
    Qwen35,
    /// Mistral's from Nemo on: words by the case of their letters, digits alone; a piece that is a token is not merged.
    Tekken,
    /// GPT-4o's, which Phi 4-mini has: words by the case of their letters, with what an apostrophe shortens; digits in groups of
    /// three.
    Gpt4o,
    /// What llama.cpp does with a file that says `default`.
    LlamaCppDefault,
}

const KNOWN: &str = "smollm, llama-bpe, qwen2, qwen35, tekken, gpt-2, gpt-4o, chatglm-bpe, dbrx, other names of the same (such as deepseek-r1-qwen), and default";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Each expression splits the pieces that the one before it left.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

impl PreTokenizer {
    /// llama.cpp has a name for every published vocabulary; several stand for the same splitting.
    fn from_name(name: Option<&str>) -> Result<Self, GgufTokenizerError> {
        match name {
            Some("gpt-2" | "a.x-4.0" | "mellum" | "trillion") => Ok(Self::Gpt2),
            Some("smollm" | "minerva-7b" | "refact" | "starcoder") => Ok(Self::SmolLm),
            Some("llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "midm-2.0" | "pixtral") => {
                Ok(Self::Llama3)
            }
            Some("dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4") => Ok(Self::Dbrx),
            Some("qwen2" | "deepseek-r1-qwen" | "kormo" | "megrez") => Ok(Self::Qwen2),
            Some("qwen35") => Ok(Self::Qwen35),
            Some("tekken") => Ok(Self::Tekken),
            Some("gpt-4o" | "llama4" | "kanana2" | "talkie") => Ok(Self::Gpt4o),
            Some("default") => Ok(Self::LlamaCppDefault),
            other => Err(GgufTokenizerError::PreTokenizer {
                actual: other.unwrap_or_default().into(),
                expected: KNOWN,
            }),
        }
    }

    /// Every one that a file may have, with the name that is written.
    const WRITTEN: [(Self, &str); 8] = [
        (Self::Gpt2, "gpt-2"),
        (Self::SmolLm, "smollm"),
        (Self::Llama3, "llama-bpe"),
        (Self::Dbrx, "dbrx"),
        (Self::Qwen2, "qwen2"),
        (Self::Qwen35, "qwen35"),
        (Self::Tekken, "tekken"),
        (Self::Gpt4o, "gpt-4o"),
    ];

    fn json(self) -> Value {
        let mut steps = match self {
            Self::Gpt2 => vec![],
            Self::SmolLm => vec![json!({"type": "Digits", "individual_digits": true})],
            Self::Llama3 | Self::Dbrx => vec![split(LLAMA3)],
            Self::Qwen2 => vec![split(QWEN2)],
            Self::Qwen35 => vec![split(QWEN35)],
            Self::Tekken => vec![split(TEKKEN)],
            Self::Gpt4o => vec![split(GPT4O)],
            Self::LlamaCppDefault => DEFAULT.map(split).to_vec(),
        };
        // The byte-level step brings the GPT-2 expression along.
        let gpt2_regex = matches!(self, Self::Gpt2 | Self::SmolLm);
        steps.push(byte_level(false, true, gpt2_regex));
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    /// Whether a piece that is a token stays whole, and whether a text begins with BOS where the metadata does not say:
    /// llama.cpp's defaults, the same for both.
    const fn takes_whole_tokens(self) -> bool {
        match self {
            Self::Llama3 | Self::Tekken => true,
            Self::Gpt2
            | Self::SmolLm
            | Self::Dbrx
            | Self::Qwen2
            | Self::Qwen35
            | Self::Gpt4o
            | Self::LlamaCppDefault => false,
        }
    }

    fn normalizer(self) -> Value {
        match self {
            Self::Qwen2 | Self::Qwen35 => json!({"type": "NFC"}),
            _ => Value::Null,
        }
    }
}

/// What `tokenizer.ggml.pre` calls the `pre_tokenizer` of a `tokenizer.json`, of whose pieces those that are tokens are
/// merged or not; `None` for one that has no name here.
pub(super) fn pre_tokenizer_name(
    pre_tokenizer: &Value,
    ignore_merges: bool,
) -> Option<&'static str> {
    let wanted = essence(pre_tokenizer);
    let written = PreTokenizer::WRITTEN.into_iter();
    let alike = written.filter(|(known, _)| essence(&known.json()) == wanted);
    // Where there is one name only it is taken: most vocabularies have all pieces as results of merges.
    let mut alike: Vec<_> = alike.collect();
    alike.sort_by_key(|(known, _)| known.takes_whole_tokens() != ignore_merges);
    alike.first().map(|(_, name)| *name)
}

/// The steps of a pre-tokenizer, each with only what changes ids; defaults filled in.
fn essence(pre_tokenizer: &Value) -> Vec<Value> {
    let one = std::slice::from_ref(pre_tokenizer);
    let steps = pre_tokenizer["pretokenizers"].as_array();
    let steps = steps.map_or(one, Vec::as_slice).iter();
    let flag = |step: &Value, key: &str| step[key].as_bool();
    steps
        .map(|step| match step["type"].as_str() {
            Some("ByteLevel") => json!([
                "ByteLevel",
                flag(step, "add_prefix_space").unwrap_or(true),
                flag(step, "use_regex").unwrap_or(true),
            ]),
            Some("Digits") => json!(["Digits", flag(step, "individual_digits").unwrap_or(false)]),
            Some("Split") => {
                let invert = flag(step, "invert").unwrap_or(false);
                let removes_rest = step["behavior"] == "Removed" && invert;
                // What an expression leaves over goes: those that are known leave nothing.
                let behavior = if removes_rest {
                    "Isolated".into()
                } else {
                    step["behavior"].clone()
                };
                json!(["Split", step["pattern"], behavior, invert && !removes_rest])
            }
            _ => step.clone(),
        })
        .collect()
}

fn split(expression: &str) -> Value {
    json!({
        "type": "Split",
        "pattern": {"Regex": expression},
        "behavior": "Isolated",
        "invert": false,
    })
}

fn byte_level(add_prefix_space: bool, trim_offsets: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": use_regex,
    })
}

pub(super) fn tokenizer_json(
    metadata: GgufMetadata<'_>,
    vocabulary: Vocabulary<'_>,
    special: &mut SpecialTokens,
) -> Result<Value, GgufTokenizerError> {
    let pre = PreTokenizer::from_name(metadata.str("tokenizer.ggml.pre")?)?;
    if pre.takes_whole_tokens() {
        special.add_bos.get_or_insert(special.bos.is_some());
    }
    let merges = merges(metadata, &vocabulary)?;
    let added: Vec<Value> = vocabulary
        .iter()
        .filter_map(|(id, token, kind)| match kind {
            TokenKind::Control | TokenKind::Unknown => {
                Some(Vocabulary::added_token(id, token, true))
            }
            TokenKind::UserDefined => Some(Vocabulary::added_token(id, token, false)),
            TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => None,
        })
        .collect();
    let byte_level_offsets = byte_level(true, false, true);
    let post_processor = match special.template() {
        Some(template) => json!({
            "type": "Sequence",
            "processors": [byte_level_offsets, template],
        }),
        None => byte_level_offsets,
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": pre.normalizer(),
        "pre_tokenizer": pre.json(),
        "post_processor": post_processor,
        "decoder": byte_level(true, true, true),
        "model": {
            "type": "BPE",
            "dropout": null,
            // A byte without a token vanishes, as in every byte-level BPE of this kind.
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.takes_whole_tokens(),
            "vocab": vocabulary.ids,
            "merges": merges,
        },
    }))
}

/// The merges as pairs, each checked against the vocabulary.
pub(super) fn merges(
    metadata: GgufMetadata<'_>,
    vocabulary: &Vocabulary<'_>,
) -> Result<Vec<Value>, GgufTokenizerError> {
    let key = "tokenizer.ggml.merges";
    let merges = metadata
        .strings(key)?
        .ok_or_else(|| GgufError::KeyMissing { key: key.into() })?;
    let mut out = Vec::with_capacity(merges.len());
    for (index, merge) in merges.into_iter().enumerate() {
        let pair = merge
            .split_once(' ')
            .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '));
        let Some((left, right)) = pair else {
            return Err(GgufTokenizerError::Merge {
                index,
                actual: merge.into(),
            });
        };
        for token in [left, right, &format!("{left}{right}")] {
            if !vocabulary.ids.contains_key(token) {
                return Err(GgufTokenizerError::MergeToken {
                    index,
                    token: token.into(),
                });
            }
        }
        out.push(json!([left, right]));
    }
    Ok(out)
}
