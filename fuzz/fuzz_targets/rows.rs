//! Any bytes as rows of every format: no panic, whatever they say.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use backdraft_data::jsonl::{JsonlReader, parse_line};
use backdraft_data::supervise::supervise;
use backdraft_data::template::builtin::BuiltinTemplate;
use backdraft_data::{ChatTokenizer, Format, SpecialTokens, Supervision};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// Every byte is a token.
static TOKENIZER: LazyLock<ChatTokenizer> = LazyLock::new(|| {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 256;
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        let c = if printable(byte) {
            char::from(byte)
        } else {
            others += 1;
            char::from_u32(others - 1).unwrap()
        };
        vocab.insert(c.to_string(), json!(byte));
    }
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    let end = json!({"id": 256, "content": "<|im_end|>", "single_word": false, "lstrip": false,
                     "rstrip": false, "normalized": false, "special": true});
    let json = json!({"version": "1.0", "added_tokens": [end], "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    let special = SpecialTokens {
        eos_token: Some("<|im_end|>".into()),
        ..SpecialTokens::default()
    };
    let template = Some(BuiltinTemplate::Chatml.source());
    ChatTokenizer::new(json.to_string().as_bytes(), special, template).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let path = Path::new("x.jsonl");
    let mut reader = JsonlReader::new(path, bytes);
    while let Ok(Some(line)) = reader.next_line() {
        for format in Format::ALL {
            let Ok(record) = parse_line(path, &line, format) else {
                continue;
            };
            for supervision in [
                Supervision::Responses,
                Supervision::LastTurn,
                Supervision::Completion,
                Supervision::All,
            ] {
                if let Ok(row) = supervise(&record, &TOKENIZER, None, supervision) {
                    assert_eq!(row.input_ids.len(), row.labels.len());
                }
            }
        }
    }
});
