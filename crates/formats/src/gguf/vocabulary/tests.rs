use backdraft_testkit::golden;
use serde_json::json;

use super::super::file::GgufFile;
use super::super::testing::Builder;
use super::super::tokenizer::tokenizer_files;
use super::super::writer::GgufWriter;
use super::*;
use crate::atomic::Existing;

/// The tokenizer of a file that has these metadata.
fn read(entries: &[Entry]) -> TokenizerFiles {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.gguf");
    let writer = GgufWriter::create(&path, entries, Vec::new(), None, Existing::Refuse).unwrap();
    writer.finish().unwrap();
    tokenizer_files(GgufFile::open(path).unwrap().metadata()).unwrap()
}

fn value(entries: &[Entry], key: &str) -> EntryValue {
    let found = entries
        .iter()
        .find(|entry| entry.key == format!("tokenizer.{key}"));
    found.unwrap_or_else(|| panic!("no {key}")).value.clone()
}

fn base(kind: &str) -> Builder {
    let tokens = [
        "<s>",
        "</s>",
        "<x>",
        "<unk>",
        "a",
        "b",
        "ab",
        "\u{2581}",
        "\u{2581}a",
        "<0x41>",
    ];
    Builder::new()
        .string("tokenizer.ggml.model", kind)
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s(
            "tokenizer.ggml.token_type",
            &[
                3,
                3,
                4,
                2,
                1,
                1,
                1,
                1,
                1,
                if kind == "gpt2" { 1 } else { 6 },
            ],
        )
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.eos_token_id", 1)
        .u32("tokenizer.ggml.unknown_token_id", 3)
        .string("tokenizer.chat_template", "{{ x }}")
}

fn files(builder: &Builder) -> TokenizerFiles {
    let (_root, path) = builder.write();
    tokenizer_files(GgufFile::open(path).unwrap().metadata()).unwrap()
}

#[test]
fn tokenizers_come_back_as_they_were() {
    let names = [
        "gpt-2",
        "smollm",
        "llama-bpe",
        "dbrx",
        "qwen2",
        "tekken",
        "gpt-4o",
        "glm4",
        "qwen35",
    ];
    let mut builders: Vec<Builder> = names
        .map(|pre| {
            base("gpt2")
                .string("tokenizer.ggml.pre", pre)
                .strings("tokenizer.ggml.merges", &["a b"])
        })
        .into();
    let scores = [0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -2.0, -9.0, -1.0, 0.0];
    for prefix in [true, false] {
        let llama = base("llama").f32s("tokenizer.ggml.scores", &scores);
        builders.push(llama.bool("tokenizer.ggml.add_space_prefix", prefix));
    }
    let gemma4 = base("gemma4").strings("tokenizer.ggml.merges", &["\u{2581} a", "a b"]);
    builders.push(gemma4);
    for builder in builders {
        let before = files(&builder);
        let options = VocabularyOptions {
            rows: 10,
            keeps_merges: builder.has("tokenizer.ggml.model", "gemma4"),
            ..VocabularyOptions::default()
        };
        let after = read(&vocabulary(&before, &options).unwrap());
        let json = |files: &TokenizerFiles| -> Value {
            serde_json::from_slice(&files.tokenizer_json).unwrap()
        };
        assert_eq!(json(&after), json(&before));
        assert_eq!(after.chat_template, before.chat_template);
        assert_eq!(after.eos_token, before.eos_token);
        assert_eq!(after.bos_token, before.bos_token);
    }
}

/// Files made from tiktoken's have the words that an expression finds and remove the rest, of which there is none.
#[test]
fn what_is_removed_between_words_is_nothing() {
    for (pre, name) in [
        ("gpt-4o", "gpt-4o"),
        ("chatglm-bpe", "dbrx"),
        ("tekken", "tekken"),
    ] {
        let builder = base("gpt2")
            .string("tokenizer.ggml.pre", pre)
            .strings("tokenizer.ggml.merges", &["a b"]);
        let mut files = files(&builder);
        let mut json: Value = serde_json::from_slice(&files.tokenizer_json).unwrap();
        let split = &mut json["pre_tokenizer"]["pretokenizers"][0];
        split["behavior"] = "Removed".into();
        let written = |json: &Value, files: &mut TokenizerFiles| {
            files.tokenizer_json = json.to_string().into_bytes();
            let options = VocabularyOptions {
                rows: 10,
                ..VocabularyOptions::default()
            };
            vocabulary(files, &options)
        };
        // Words removed, what lies between them kept: not the same.
        let error = written(&json, &mut files).unwrap_err();
        assert!(
            matches!(error, GgufExportError::PreTokenizer { .. }),
            "{error}"
        );
        json["pre_tokenizer"]["pretokenizers"][0]["invert"] = true.into();
        let entries = written(&json, &mut files).unwrap();
        assert_eq!(value(&entries, "ggml.pre"), EntryValue::Text(name.into()));
    }
}

/// Kinds by which llama.cpp decides what is text and what stops an answer.
#[test]
fn kinds_fillers_and_ends() {
    let mut before = files(
        &base("gpt2")
            .string("tokenizer.ggml.pre", "gpt-2")
            .strings("tokenizer.ggml.merges", &["a b"]),
    );
    before.declared_tokens = vec![crate::DeclaredToken {
        id: 11,
        content: "<|end|>".to_owned(),
        flags: Some(crate::DeclaredFlags {
            lstrip: false,
            rstrip: false,
            single_word: false,
            normalized: false,
            special: true,
        }),
    }];
    let options = VocabularyOptions {
        rows: 13,
        ends: &[1, 11],
        chat_template: Some("of the run"),
        keeps_merges: false,
    };
    let entries = vocabulary(&before, &options).unwrap();
    let EntryValue::Texts(tokens) = value(&entries, "ggml.tokens") else {
        panic!("no texts");
    };
    assert_eq!(tokens[9..], ["<0x41>", "[PAD10]", "<|end|>", "[PAD12]"]);
    let kinds = EntryValue::I32s(vec![3, 3, 4, 3, 1, 1, 1, 1, 1, 1, 5, 3, 5]);
    assert_eq!(value(&entries, "ggml.token_type"), kinds);
    assert_eq!(value(&entries, "ggml.eos_token_id"), EntryValue::U32(1));
    assert_eq!(value(&entries, "ggml.eot_token_id"), EntryValue::U32(11));
    assert_eq!(value(&entries, "chat_template"), "of the run".into());
}

#[test]
fn what_has_no_form_is_named() {
    let before = files(
        &base("gpt2")
            .string("tokenizer.ggml.pre", "gpt-2")
            .strings("tokenizer.ggml.merges", &["a b"]),
    );
    let message = |change: &dyn Fn(&mut Value), rows| {
        let mut files = before.clone();
        let mut json: Value = serde_json::from_slice(&files.tokenizer_json).unwrap();
        change(&mut json);
        files.tokenizer_json = json.to_string().into_bytes();
        let options = VocabularyOptions {
            rows,
            ..VocabularyOptions::default()
        };
        vocabulary(&files, &options).unwrap_err().to_string()
    };
    let few = message(&|_| {}, 9);
    assert_eq!(
        few,
        "the token \"<0x41>\" has the id 9, but the embedding has 9 rows"
    );
    let unigram = message(&|json| json["model"]["type"] = json!("Unigram"), 10);
    assert_eq!(
        unigram,
        "tokenizer.json: model.type should be \"BPE\", but is \"Unigram\""
    );
    let whitespace = message(
        &|json| json["pre_tokenizer"] = json!({"type": "Whitespace"}),
        10,
    );
    assert!(whitespace.contains("has no name for here"), "{whitespace}");
    let lower = message(
        &|json| json["normalizer"] = json!({"type": "Lowercase"}),
        10,
    );
    assert!(
        lower.contains("normalizer should be null or NFC"),
        "{lower}"
    );
    let twice = message(&|json| json["model"]["vocab"]["c"] = json!(4), 10);
    assert!(twice.contains("the id 4 has the two tokens"), "{twice}");
    let mut lost = before.clone();
    lost.eos_token = Some("<none>".to_owned());
    let lost = vocabulary(
        &lost,
        &VocabularyOptions {
            rows: 10,
            ..VocabularyOptions::default()
        },
    );
    let lost = lost.unwrap_err().to_string();
    assert_eq!(lost, "the eos_token \"<none>\" is not in the vocabulary");
}

/// Vocabularies of real models; `BACKDRAFT_TOKENIZERS` names a folder with them.
#[test]
#[allow(clippy::print_stdout, reason = "a test says what it left out")]
fn golden_tokenizers_are_written_for_llama_cpp() {
    let Some(folder) = std::env::var_os("BACKDRAFT_TOKENIZERS").map(std::path::PathBuf::from)
    else {
        return println!("nothing checked: BACKDRAFT_TOKENIZERS names no folder of tokenizers");
    };
    for name in ["llama2", "llama3_1", "qwen3", "tekken"] {
        let Some(path) = golden::part(&format!("misc/tokenizer_{name}.json")) else {
            continue;
        };
        let expected: Value = golden::json(&path);
        let Ok(tokenizer_json) = std::fs::read(folder.join(format!("{name}.json"))) else {
            println!("nothing checked for {name}");
            continue;
        };
        let before = TokenizerFiles {
            tokenizer_json,
            ..TokenizerFiles::default()
        };
        let options = VocabularyOptions {
            rows: 160_000,
            ..VocabularyOptions::default()
        };
        let after = read(&vocabulary(&before, &options).unwrap());
        let after = tokenizers::Tokenizer::from_bytes(after.tokenizer_json).unwrap();
        for case in expected["cases"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = after.encode(text, false).unwrap();
            assert_eq!(json!(ids.get_ids()), case["ids"], "{name}: {text:?}");
        }
    }
}
