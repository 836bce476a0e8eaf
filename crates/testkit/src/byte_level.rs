//! A tokenizer of bytes.

use serde_json::{Map, Value, json};

/// `tokenizer.json` of a byte-level BPE without merges: `<unk>`, `<s>`, `</s>`, then the visible characters of ASCII, the blank
/// and the line break.
#[must_use]
pub fn tokenizer() -> Value {
    let special = ["<unk>", "<s>", "</s>"];
    let bytes = ('!'..='~').chain(['\u{120}', '\u{10a}']);
    let tokens = special.map(str::to_owned).into_iter();
    let tokens = tokens.chain(bytes.map(String::from)).enumerate();
    let vocabulary: Map<String, Value> = tokens.map(|(id, token)| (token, id.into())).collect();
    let added = special.map(|token| {
        json!({
            "id": vocabulary[token], "content": token, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true,
        })
    });
    let byte_level = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": byte_level(false), "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
}
