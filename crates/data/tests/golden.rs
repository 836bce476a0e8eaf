//! Chat templates and tokenizers against transformers and tokenizers in Python.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::PathBuf;

use backdraft_data::{ChatTemplate, ChatTokenizer, Conversation, Format, Record, SpecialTokens};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

fn golden(file: &str) -> Option<Value> {
    let default = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden"));
    let path = std::env::var_os("BACKDRAFT_GOLDEN")
        .map_or_else(default, PathBuf::from)
        .join(file);
    match std::fs::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap()),
        Err(error) => {
            eprintln!("nothing checked: {}: {error}", path.display());
            None
        }
    }
}

fn conversation(messages: &Value) -> Conversation {
    match Format::Messages
        .read(json!({"messages": messages}))
        .unwrap()
    {
        Record::Conversation(conversation) => conversation,
        other => panic!("{other:?}"),
    }
}

#[test]
fn golden_chat_templates() {
    let Some(templates) = golden("misc/chat_templates.json") else {
        return;
    };
    for template in templates.as_array().unwrap() {
        let name = &template["name"];
        let compiled = ChatTemplate::new(
            template["template"].as_str().unwrap(),
            template["bos_token"].as_str(),
            template["eos_token"].as_str(),
        )
        .unwrap();
        for case in template["cases"].as_array().unwrap() {
            let conversation = Conversation {
                tools: case.get("tools").cloned(),
                ..conversation(&case["messages"])
            };
            let rendered = compiled.render(
                &conversation,
                case["add_generation_prompt"].as_bool().unwrap(),
            );
            match case["rendered"].as_str() {
                Some(expected) => assert_eq!(rendered.unwrap(), expected, "{name}: {case}"),
                None => assert!(rendered.is_err(), "{name}: {case}"),
            }
        }
    }
}

#[test]
fn golden_smollm2_prompts() {
    let (Some(gguf), Some(reference)) = (
        golden("smollm2/gguf.json"),
        golden("smollm2/reference.json"),
    ) else {
        return;
    };
    let source = gguf["metadata"]["tokenizer.chat_template"]
        .as_str()
        .unwrap();
    let template = ChatTemplate::new(source, Some("<|im_start|>"), Some("<|im_end|>")).unwrap();
    for prompt in reference["prompts"].as_array().unwrap() {
        let rendered = template
            .render(&conversation(&prompt["messages"]), true)
            .unwrap();
        assert_eq!(rendered, prompt["rendered"].as_str().unwrap());
    }
}

#[test]
fn golden_tokenizers() {
    let Some(folder) = std::env::var_os("BACKDRAFT_TOKENIZERS").map(PathBuf::from) else {
        eprintln!(
            "nothing checked: BACKDRAFT_TOKENIZERS names no folder with llama2.json, llama3_1.json, qwen3.json, tekken.json"
        );
        return;
    };
    for name in ["llama2", "llama3_1", "qwen3", "tekken"] {
        let Some(expected) = golden(&format!("misc/tokenizer_{name}.json")) else {
            continue;
        };
        match std::fs::read(folder.join(format!("{name}.json"))) {
            Ok(bytes) => check_tokenizer(name, &bytes, &expected),
            Err(error) => eprintln!("nothing checked for {name}: {error}"),
        }
    }
}

fn check_tokenizer(name: &str, bytes: &[u8], expected: &Value) {
    let hash: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if hash != expected["tokenizer_json_sha256"] {
        eprintln!("nothing checked for {name}: the file's SHA-256 is {hash}");
        return;
    }
    let cases = expected["cases"].as_array().unwrap();
    let ids = |case: &Value, key: &str| -> Vec<u32> {
        serde_json::from_value(case[key].clone()).unwrap()
    };
    let plain = ChatTokenizer::new(bytes, SpecialTokens::default(), None).unwrap();
    let bos_token = ids(&cases[0], "ids_with_special")
        .first()
        .and_then(|id| plain.id_to_token(*id));
    let special = SpecialTokens {
        bos_token,
        ..SpecialTokens::default()
    };
    let tokenizer = ChatTokenizer::new(bytes, special, None).unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let encoded = tokenizer.encode_rendered(text).unwrap();
        assert_eq!(encoded.ids, ids(case, "ids"), "{name}: {text:?}");
        assert_eq!(
            tokenizer.encode_text(text).unwrap().ids,
            ids(case, "ids_with_special"),
            "{name}: {text:?}"
        );
        assert_eq!(
            tokenizer.decode(&encoded.ids, false).unwrap(),
            case["decoded"],
            "{name}: {text:?}"
        );
        let mut stream = tokenizer.stream(false);
        let mut streamed: String = encoded
            .ids
            .iter()
            .map(|id| stream.push(*id).unwrap())
            .collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, case["decoded"], "{name}: {text:?}");
    }
}
