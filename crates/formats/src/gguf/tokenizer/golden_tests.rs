//! Tokenizers of real models, written as llama.cpp's converter would, against the ids of the reference values.
//!
//! The vocabularies are not kept here: `BACKDRAFT_TOKENIZERS` names a folder with them.
#![allow(clippy::print_stdout, reason = "a test says what it left out")]

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use backdraft_testkit::golden;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::file::GgufFile;
use super::super::testing::Builder;
use super::tests::{ids, tokenizer};
use super::tokenizer_files;

/// A reference's name, how a GGUF file splits its texts (`None` for SentencePiece), and whether the file says that no
/// BOS is added.
const MODELS: [(&str, Option<&str>, bool); 4] = [
    ("llama2", None, false),
    ("llama3_1", Some("llama-bpe"), false),
    ("qwen3", Some("qwen2"), true),
    ("tekken", Some("tekken"), false),
];

#[test]
fn golden_tokenizers_through_gguf() {
    let Some(folder) = std::env::var_os("BACKDRAFT_TOKENIZERS").map(PathBuf::from) else {
        return println!("nothing checked: BACKDRAFT_TOKENIZERS names no folder of tokenizers");
    };
    for (name, pre, without_bos) in MODELS {
        let Some(path) = golden::part(&format!("misc/tokenizer_{name}.json")) else {
            continue;
        };
        let expected: Value = golden::json(&path);
        let bytes = match std::fs::read(folder.join(format!("{name}.json"))) {
            Ok(bytes) => bytes,
            Err(error) => {
                println!("nothing checked for {name}: {error}");
                continue;
            }
        };
        let hash: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(expected["tokenizer_json_sha256"], hash, "{name}");
        let json: Value = serde_json::from_slice(&bytes).unwrap();
        let mut builder = builder(&json, pre);
        if without_bos {
            builder = builder.bool("tokenizer.ggml.add_bos_token", false);
        }
        check(name, &builder, &expected);
    }
}

fn check(name: &str, builder: &Builder, expected: &Value) {
    let tokenizer = tokenizer(builder);
    let cases = expected["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let wanted = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        assert_eq!(ids(&tokenizer, text), wanted("ids"), "{name}: {text:?}");
        let with_special = tokenizer.encode(text, true).unwrap();
        let wanted_with_special = wanted("ids_with_special");
        assert_eq!(
            with_special.get_ids(),
            wanted_with_special,
            "{name}: {text:?}"
        );
        let decoded = tokenizer.decode(&wanted("ids"), false).unwrap();
        assert_eq!(decoded, case["decoded"], "{name}: {text:?}");
    }
}

/// The metadata that stands for a `tokenizer.json`.
fn builder(json: &Value, pre: Option<&str>) -> Builder {
    let mut tokens: BTreeMap<u64, (&str, i32)> = BTreeMap::new();
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        let byte = pre.is_none() && token.starts_with("<0x") && token.len() == 6;
        tokens.insert(id.as_u64().unwrap(), (token, if byte { 6 } else { 1 }));
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let content = added["content"].as_str().unwrap();
        let kind = match (content, added["special"].as_bool()) {
            ("<unk>", _) => 2,
            (_, Some(true)) => 3,
            _ => 4,
        };
        tokens.insert(added["id"].as_u64().unwrap(), (content, kind));
    }
    assert!(tokens.keys().copied().eq(0..tokens.len() as u64), "a gap");
    let names: Vec<&str> = tokens.values().map(|(token, _)| *token).collect();
    let kinds: Vec<i32> = tokens.values().map(|(_, kind)| *kind).collect();
    let bos = ["<s>", "<|begin_of_text|>", "<|endoftext|>"];
    let bos = names.iter().position(|token| bos.contains(token)).unwrap();
    let builder = Builder::new()
        .strings("tokenizer.ggml.tokens", &names)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .u32("tokenizer.ggml.bos_token_id", bos as u32);
    let merges = json["model"]["merges"].as_array().unwrap().iter();
    let merges: Vec<String> = merges
        .map(|merge| match merge {
            Value::String(merge) => merge.clone(),
            pair => format!("{} {}", text(&pair[0]), text(&pair[1])),
        })
        .collect();
    let Some(pre) = pre else {
        let scores = scores(&names, &merges);
        return builder
            .string("tokenizer.ggml.model", "llama")
            .f32s("tokenizer.ggml.scores", &scores);
    };
    let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
    builder
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", pre)
        .strings("tokenizer.ggml.merges", &merges)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Scores that join in the order of the merges: the earlier a merge, the better the score of what it makes.
fn scores(tokens: &[&str], merges: &[String]) -> Vec<f32> {
    let mut ranks = HashMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        ranks.entry(merge.replace(' ', "")).or_insert(rank);
    }
    let scores = tokens.iter();
    let scores = scores.map(|token| match ranks.get(*token) {
        Some(rank) => -(*rank as f32),
        None => f32::MIN,
    });
    scores.collect()
}

/// llama.cpp's own vocabularies, with texts and its ids of them: the folder `models` of its sources.
#[test]
fn golden_vocabularies_of_llama_cpp() {
    let Some(folder) = std::env::var_os("BACKDRAFT_VOCABULARIES").map(PathBuf::from) else {
        return println!("nothing checked: BACKDRAFT_VOCABULARIES names no folder of vocabularies");
    };
    for name in ["gpt-2", "llama-bpe", "qwen2", "refact", "starcoder"] {
        let path = folder.join(format!("ggml-vocab-{name}.gguf"));
        let file = GgufFile::open(&path).unwrap();
        let files = tokenizer_files(file.metadata()).unwrap();
        let tokenizer = tokenizers::Tokenizer::from_bytes(&files.tokenizer_json).unwrap();
        let beside = |ending: &str| std::fs::read_to_string(path.with_extension(ending)).unwrap();
        let (texts, expected) = (beside("gguf.inp"), beside("gguf.out"));
        let texts = texts.split("\n__ggml_vocab_test__\n");
        let mut count = 0;
        for (text, line) in texts.zip(expected.lines()) {
            let wanted: Vec<u32> = line
                .split_whitespace()
                .map(|id| id.parse().unwrap())
                .collect();
            assert_eq!(ids(&tokenizer, text), wanted, "{name}: {text:?}");
            count += 1;
        }
        assert!(count > 30, "{name}: {count} texts");
    }
}
