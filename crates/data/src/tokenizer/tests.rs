//! A byte-level tokenizer made here: ids 0 to 255 are bytes, then one merge and four special tokens.

use super::*;
use serde_json::json;

pub(crate) const SPACE_B: u32 = 256;
pub(crate) const BOS: u32 = 257;
pub(crate) const EOS: u32 = 258;
pub(crate) const START: u32 = 259;
pub(crate) const END: u32 = 260;

/// `<|im_start|>u\nHi<|im_end|>\n`: ChatML with one-letter roles.
pub(crate) const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role[0] + '\n' + m.content + '<|im_end|>\n' }}\
     {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>a\n' }}{% endif %}";

/// GPT-2's alphabet: printable bytes stand for themselves, the others for characters from U+0100.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + rank).unwrap()
}

pub(crate) fn tokenizer_json(adds_bos: bool) -> Vec<u8> {
    let mut vocab: serde_json::Map<_, _> = (0..=255u8)
        .map(|byte| (byte_char(byte).to_string(), json!(byte)))
        .collect();
    vocab.insert("ĠB".into(), json!(SPACE_B));
    let special = [
        (BOS, "<s>"),
        (EOS, "</s>"),
        (START, "<|im_start|>"),
        (END, "<|im_end|>"),
    ];
    let added: Vec<_> = special
        .iter()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let bos = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": if adds_bos { bos } else { bytes.clone() },
        "decoder": bytes,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "ignore_merges": false, "vocab": vocab, "merges": ["Ġ B"]},
    })
    .to_string()
    .into_bytes()
}

pub(crate) fn special() -> SpecialTokens {
    SpecialTokens {
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        add_bos: None,
        eos_token_ids: vec![EOS],
        ..SpecialTokens::default()
    }
}

/// The tokenizer above; its file adds a BOS to plain text.
pub(crate) fn tokenizer(template: Option<&str>) -> ChatTokenizer {
    ChatTokenizer::new(&tokenizer_json(true), special(), template).unwrap()
}

#[test]
fn encodes_with_byte_offsets_and_ignores_the_files_truncation_and_padding() {
    let encoded = tokenizer(None).encode_rendered("<s>aé B\n").unwrap();
    assert_eq!(encoded.ids, [BOS, 97, 0xc3, 0xa9, SPACE_B, 10]);
    assert_eq!(
        encoded.offsets,
        [(0, 3), (3, 4), (4, 6), (4, 6), (6, 8), (8, 9)]
    );
}

#[test]
fn offsets_are_not_trimmed_by_the_files_post_processor() {
    let tokenizer = ChatTokenizer::new(&tokenizer_json(false), special(), None).unwrap();
    assert_eq!(
        tokenizer.encode_rendered("a B").unwrap().offsets,
        [(0, 1), (1, 3)]
    );
}

#[test]
fn bos_is_added_once_where_the_model_wants_it() {
    let ids = |adds_bos, add_bos, text: &str| {
        let special = SpecialTokens {
            add_bos,
            ..special()
        };
        let tokenizer = ChatTokenizer::new(&tokenizer_json(adds_bos), special, None).unwrap();
        tokenizer.encode_text(text).unwrap().ids
    };
    assert_eq!(ids(true, None, "a"), [BOS, 97]);
    assert_eq!(ids(false, None, "a"), [97]);
    assert_eq!(ids(true, Some(false), "a"), [97]);
    assert_eq!(ids(false, Some(true), "a"), [BOS, 97]);
    assert_eq!(ids(true, None, "<s>a"), [BOS, 97]);
    assert_eq!(ids(true, None, ""), [BOS]);
    assert_eq!(ids(false, None, "<s>a"), [BOS, 97]);
}

#[test]
fn finds_how_a_turn_ends() {
    let chatml = tokenizer(Some(CHATML));
    let end = EndOfTurn {
        token: "<|im_end|>".into(),
        token_id: END,
        tail: "<|im_end|>\n".into(),
        length: 10,
    };
    assert_eq!(chatml.end_of_turn(), Some(&end));
    assert_eq!(chatml.eos_token_ids(), [EOS, END]);

    let eos = tokenizer(Some(
        "{% for m in messages %}{{ m.content + ' ' + eos_token }}{% endfor %}",
    ));
    let end = EndOfTurn {
        token: "</s>".into(),
        token_id: EOS,
        tail: " </s>".into(),
        length: 5,
    };
    assert_eq!(eos.end_of_turn(), Some(&end));
    assert_eq!(eos.eos_token_ids(), [EOS]);

    assert_eq!(
        tokenizer(Some("{% for m in messages %}{{ m.content }}\n{% endfor %}")).end_of_turn(),
        None
    );
    assert_eq!(
        tokenizer(Some("{{ raise_exception('no') }}")).end_of_turn(),
        None
    );
    assert_eq!(tokenizer(None).end_of_turn(), None);
}

/// The tokenizer whose `<|im_start|>` and `<|im_end|>` are added tokens that are not special, with
/// one more of that kind.
fn plain_tokens(template: &str) -> ChatTokenizer {
    let mut json: serde_json::Value = serde_json::from_slice(&tokenizer_json(true)).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    let mut another = added[3].clone();
    another["id"] = json!(END + 1);
    another["content"] = json!("</answer>");
    added.push(another);
    for token in &mut added[2..] {
        token["special"] = json!(false);
    }
    ChatTokenizer::new(json.to_string().as_bytes(), special(), Some(template)).unwrap()
}

#[test]
fn any_added_token_may_end_a_turn() {
    let turn = "{{ '<|im_start|>' + m.role + '\n' + m.content }}";
    let each = |behind: &str, at_the_end: &str| {
        let template = format!(
            "{{% for m in messages %}}{turn}{behind}{{% endfor %}}{{% if add_generation_prompt %}}\
             {{{{ '<|im_start|>assistant\n' }}}}{{% else %}}{at_the_end}{{% endif %}}"
        );
        let tokenizer = plain_tokens(&template);
        let end = tokenizer
            .end_of_turn()
            .map(|end| (end.token.clone(), end.length));
        (end, tokenizer.eos_token_ids().to_vec())
    };
    let end = |token: &str, length| Some((token.to_owned(), length));
    let im_end = end("<|im_end|>", 10);
    assert_eq!(each("<|im_end|>\n", ""), (im_end.clone(), vec![EOS, END]));
    // EOS ends the conversation only.
    assert_eq!(
        each("<|im_end|>\n", "{{ eos_token }}"),
        (im_end.clone(), vec![EOS, END])
    );
    // A token that closes the answer, and one that ends the turn.
    assert_eq!(
        each("</answer><|im_end|>\n", ""),
        (end("<|im_end|>", 19), vec![EOS, END])
    );
    // No end but that of the conversation, whose EOS is special.
    assert_eq!(each("\n", "{{ eos_token }}"), (end("</s>", 5), vec![EOS]));
    // An end that the next turn writes.
    let between = "{% if not loop.last %}<|im_end|>{% endif %}";
    assert_eq!(each(between, ""), (im_end, vec![EOS, END]));
    // What begins a turn ends none.
    assert_eq!(each("\n", ""), (None, vec![EOS]));
    assert_eq!(each("\n", "<|im_start|>"), (None, vec![EOS]));
}

#[test]
fn turns_of_several_kinds_end_in_several_tokens() {
    // The last answer ends in EOS, those before it in another token, calls in a third.
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.content }}{% if m.tool_calls %}\
                    {{ m.tool_calls[0].function.arguments | tojson + '</answer>' }}\
                    {% elif m.role == 'assistant' and loop.last %}{{ eos_token }}{% else %}<|im_end|>{% endif %}{% endfor %}";
    let tokenizer = plain_tokens(template);
    assert_eq!(tokenizer.end_of_turn().unwrap().token, "</s>");
    // Generation is after the last answer.
    assert_eq!(tokenizer.eos_token_ids(), [EOS, END + 1]);
    assert_eq!(tokenizer.turn_ends(), ["</s>", "</answer>", "<|im_end|>"]);
    // A template that wants a system prompt is asked with one.
    let picky = format!(
        "{{% if messages[0].role != 'system' %}}{{{{ raise_exception('no') }}}}{{% endif %}}{CHATML}"
    );
    assert_eq!(
        plain_tokens(&picky).end_of_turn().unwrap().token,
        "<|im_end|>"
    );
    // BOS and EOS may be one token.
    let same = SpecialTokens {
        bos_token: Some("</s>".into()),
        ..special()
    };
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role + ':' + m.content }}\
                    {% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}";
    let same = ChatTokenizer::new(&tokenizer_json(true), same, Some(template)).unwrap();
    assert_eq!(same.end_of_turn().unwrap().token, "</s>");
}

#[test]
fn tokens_without_an_embedding_are_refused() {
    let tokenizer = tokenizer(Some(CHATML)).with_embedding_rows(END as usize);
    let chat = Conversation::new(vec![Message::new(Role::User, "Hi")]);
    assert_eq!(
        tokenizer.encode_chat(&chat).unwrap_err().to_string(),
        "the token \"<|im_end|>\" has id 260, but the model's embedding has 260 rows (ids 0 to 259); take \
         the token out of the text or the template, or use the tokenizer that belongs to the model"
    );
    let fits = |rows| super::tests::tokenizer(Some(CHATML)).with_embedding_rows(rows);
    assert!(fits(END as usize + 1).encode_chat(&chat).is_ok());
    // Rows that were tokenised for another embedding are not taken from a cache.
    let whole = super::tests::tokenizer(Some(CHATML)).fingerprint();
    assert_eq!(fits(END as usize + 1).fingerprint(), whole);
    assert_ne!(fits(END as usize).fingerprint(), whole);
}

#[test]
fn refuses_tokens_and_files_that_do_not_fit() {
    let new = |json: &[u8], special| {
        ChatTokenizer::new(json, special, None)
            .unwrap_err()
            .to_string()
    };
    let wrong = SpecialTokens {
        eos_token: Some("<eos>".into()),
        ..special()
    };
    assert_eq!(
        new(&tokenizer_json(true), wrong),
        "the eos token `<eos>` is not in the tokenizer's vocabulary; the tokenizer and its configuration \
         belong to different models"
    );
    let no_bos = SpecialTokens {
        bos_token: None,
        add_bos: Some(true),
        ..special()
    };
    assert_eq!(
        new(&tokenizer_json(true), no_bos),
        "add_bos_token: expected a bos_token to add, found no bos_token"
    );
    assert_eq!(
        new(b"{}", special()),
        "cannot read the tokenizer: parsing tokenizer.json"
    );
    assert_eq!(
        new(b"\xff", special()),
        "cannot read the tokenizer: parsing tokenizer.json"
    );
}

#[test]
fn chats_need_a_template_and_get_the_generation_prompt() {
    let chat = Conversation::new(vec![Message::new(Role::User, "Hi")]);
    let ids = tokenizer(Some(CHATML)).encode_chat(&chat).unwrap();
    assert_eq!(ids, [START, 117, 10, 72, 105, END, 10, START, 97, 10]);
    assert!(matches!(
        tokenizer(None).encode_chat(&chat),
        Err(DataError::Template(crate::error::TemplateError::Missing))
    ));
}

#[test]
fn streams_whole_characters_only() {
    let tokenizer = tokenizer(None);
    let text = "é中🦀 B";
    let ids = tokenizer.encode_rendered(text).unwrap().ids;
    let mut stream = tokenizer.stream(true);
    let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(pieces, ["", "é", "", "", "中", "", "", "", "🦀", " B"]);
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn streams_give_back_what_never_became_a_character() {
    let tokenizer = tokenizer(None);
    let mut stream = tokenizer.stream(false);
    assert_eq!(stream.push(97).unwrap(), "a");
    assert_eq!(stream.push(0xf0).unwrap(), "");
    assert_eq!(stream.push(98).unwrap(), "\u{fffd}b");
    assert_eq!(stream.push(END).unwrap(), "<|im_end|>");
    assert_eq!(stream.push(0xc3).unwrap(), "");
    assert_eq!(stream.finish().unwrap(), "\u{fffd}");

    let mut silent = tokenizer.stream(true);
    assert_eq!(silent.push(END).unwrap(), "");
    assert_eq!(silent.push(97).unwrap(), "a");
}
