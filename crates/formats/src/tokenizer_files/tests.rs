use super::*;

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(root.path().join(name), text).unwrap();
    }
    root
}

fn read(files: &[(&str, &str)]) -> Result<TokenizerFiles> {
    let root = directory(files);
    TokenizerFiles::read(root.path())
}

#[test]
fn tokens_as_texts_or_objects() {
    let config = r#"{
        "bos_token": {"content": "<s>", "lstrip": false},
        "eos_token": "</s>",
        "pad_token": null,
        "add_bos_token": true,
        "sep_token": {"content": "<sep>"},
        "image_token": "<image>",
        "cls_token": null,
        "extra_special_tokens": {"audio_token": "<audio>"},
        "chat_template": "{{ text }}"
    }"#;
    let specials =
        r#"{"bos_token": "ignored", "unk_token": {"content": "<unk>"}, "mask_token": "<mask>"}"#;
    let files = read(&[
        (TOKENIZER, "{}"),
        (TOKENIZER_CONFIG, config),
        (SPECIAL_TOKENS, specials),
    ]);
    let expected = TokenizerFiles {
        tokenizer_json: b"{}".to_vec(),
        chat_template: Some("{{ text }}".into()),
        tool_use_template: None,
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        unk_token: Some("<unk>".into()),
        other_tokens: [
            ("sep_token", "<sep>"),
            ("image_token", "<image>"),
            ("audio_token", "<audio>"),
            ("mask_token", "<mask>"),
        ]
        .map(|(name, token)| (name.to_owned(), token.to_owned()))
        .into(),
        add_bos_token: Some(true),
        ..TokenizerFiles::default()
    };
    assert_eq!(files.unwrap(), expected);
    // What is written is read again.
    let written: Vec<_> = expected
        .to_files()
        .into_iter()
        .map(|(name, bytes)| (name, String::from_utf8(bytes).unwrap()))
        .collect();
    let written: Vec<_> = written
        .iter()
        .map(|(name, text)| (*name, &**text))
        .collect();
    assert_eq!(read(&written).unwrap(), expected);
}

#[test]
fn chat_templates_in_all_their_places() {
    let template = |config: &str| {
        read(&[(TOKENIZER, "{}"), (TOKENIZER_CONFIG, config)])
            .unwrap()
            .chat_template
    };
    let list = r#"{"chat_template": [
        {"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}
    ]}"#;
    assert_eq!(template(list).as_deref(), Some("D"));
    let only = r#"{"chat_template": [{"name": "rag", "template": "R"}]}"#;
    assert_eq!(template(only).as_deref(), Some("R"));
    assert_eq!(template("{}"), None);
    let both = read(&[
        (TOKENIZER, "{}"),
        (TOKENIZER_CONFIG, list),
        (CHAT_TEMPLATE, "J\n"),
    ]);
    let both = both.unwrap();
    assert_eq!(both.chat_template.as_deref(), Some("J\n"));
    assert_eq!(both.tool_use_template, None);
    let files = read(&[(TOKENIZER, "{}"), (TOKENIZER_CONFIG, list)]).unwrap();
    assert_eq!(files.tool_use_template.as_deref(), Some("T"));
    let written: Vec<_> = files.to_files();
    let text = |(name, bytes): &(&'static str, Vec<u8>)| {
        (*name, String::from_utf8(bytes.clone()).unwrap())
    };
    let written: Vec<_> = written.iter().map(text).collect();
    let written: Vec<_> = written
        .iter()
        .map(|(name, text)| (*name, &**text))
        .collect();
    assert_eq!(read(&written).unwrap(), files);
}

#[test]
fn broken_files_are_named() {
    let message = |files: &[(&str, &str)]| read(files).unwrap_err().to_string();
    assert!(message(&[]).contains("tokenizer.json"));
    for config in [
        "[]",
        "{",
        r#"{"bos_token": 1}"#,
        r#"{"add_bos_token": "yes"}"#,
        r#"{"chat_template": 3}"#,
    ] {
        let message = message(&[(TOKENIZER, "{}"), (TOKENIZER_CONFIG, config)]);
        assert!(message.contains(TOKENIZER_CONFIG), "{message}");
    }
}

#[test]
fn tokens_that_other_files_declare_are_read_by_their_ids() {
    let config = r#"{"added_tokens_decoder": {
        "12": {"content": "<b>", "lstrip": true, "normalized": true, "special": true},
        "3": {"content": "<a>"}}}"#;
    let legacy = ("added_tokens.json", r#"{"<c>": 5, "<d>": 4}"#);
    let read = |files: &[(&str, &str)]| read(&[&[("tokenizer.json", "{}")], files].concat());
    let texts = |files: &[(&str, &str)]| {
        let tokens = read(files).unwrap().declared_tokens;
        let tokens = tokens.into_iter();
        tokens
            .map(|token| (token.id, token.content))
            .collect::<Vec<_>>()
    };
    let (a, b) = ((3, "<a>".to_owned()), (12, "<b>".to_owned()));
    assert_eq!(texts(&[("tokenizer_config.json", config), legacy]), [a, b]);
    let (c, d) = ((5, "<c>".to_owned()), (4, "<d>".to_owned()));
    assert_eq!(texts(&[legacy]), [d, c]);
    let tokens = read(&[("tokenizer_config.json", config)])
        .unwrap()
        .declared_tokens;
    let flags = |index: usize| tokens[index].flags.unwrap();
    assert!(flags(0).normalized && !flags(0).special);
    assert!(flags(1).lstrip && flags(1).normalized && flags(1).special);
    for wrong in [
        r#"{"added_tokens_decoder": []}"#,
        r#"{"added_tokens_decoder": {"x": {"content": "<a>"}}}"#,
        r#"{"added_tokens_decoder": {"1": "<a>"}}"#,
    ] {
        let error = read(&[("tokenizer_config.json", wrong)]).unwrap_err();
        assert!(
            error.to_string().contains("added_tokens_decoder"),
            "{error}"
        );
    }
}
