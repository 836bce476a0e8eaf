use super::*;
use crate::conversation::Role;
use serde_json::json;

fn render(source: &str) -> Result<String, TemplateError> {
    let conversation = Conversation::new(vec![Message::new(Role::User, " Hi ")]);
    ChatTemplate::new(source, Some("<s>"), None)?.render(&conversation, true)
}

#[track_caller]
fn check(source: &str, expected: &str) {
    assert_eq!(render(source).unwrap(), expected);
}

#[test]
fn behaves_as_transformers_sets_jinja() {
    check("{% if true %}\n  x\n  {% endif %}\ny\n", "  x\ny");
    check(
        "{{ bos_token }}{{ messages[0].content.strip() }}|{{ messages[0]['role'].upper() }}",
        "<s>Hi|USER",
    );
    check(
        "{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "012",
    );
    check(
        "{{ none }} {{ true }} {{ nothing }}{{ eos_token is defined }}{{ tools is none }}",
        "None True FalseTrue",
    );
    check(
        "{{ '<b>&' }}{{ 'a' ~ 1 }}{{ messages[0].content[::-1] }}",
        "<b>&a1 iH ",
    );
    check(
        "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 2 %}{{ ns.n }}",
        "2",
    );
    check("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m('q') }}", "[q]");
    check(
        "{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}",
        "b1a2",
    );
    check(
        "{{ messages[0].get('name', 'none') }}{{ 'abc'.startswith('ab') }}",
        "noneTrue",
    );
    check("{% generation %}x{% endgeneration %}", "x");
}

#[test]
fn dumps_json_as_python_does() {
    let value = "{'b': [1, 2.5, 'é<\"'], 'a': none, 'e': [], 'o': {}}";
    check(
        &format!("{{{{ {value}|tojson }}}}"),
        r#"{"b": [1, 2.5, "é<\""], "a": null, "e": [], "o": {}}"#,
    );
    check(
        &format!(
            "{{{{ {value}|tojson(sort_keys=true, separators=(',', ':'), ensure_ascii=true) }}}}"
        ),
        r#"{"a":null,"b":[1,2.5,"\u00e9<\""],"e":[],"o":{}}"#,
    );
    check(
        &format!("{{{{ {value}|tojson(indent=2) }}}}"),
        "{\n  \"b\": [\n    1,\n    2.5,\n    \"é<\\\"\"\n  ],\n  \"a\": null,\n  \"e\": [],\n  \"o\": {}\n}",
    );
}

#[test]
fn dates_have_pythons_format_and_bad_ones_are_refused() {
    let text = render("{{ strftime_now('%d %b %Y') }}").unwrap();
    assert_eq!(text, chrono::Local::now().format("%d %b %Y").to_string());
    assert!(matches!(
        render("{{ strftime_now('%!') }}"),
        Err(TemplateError::Render { .. })
    ));
}

#[test]
fn the_templates_own_refusal_is_told_apart() {
    let error = render("{{ raise_exception('Roles must alternate') }}").unwrap_err();
    assert!(
        matches!(&error, TemplateError::Raised { message } if message == "Roles must alternate")
    );
    let nested = "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(nested), Err(TemplateError::Raised { message }) if message == "deep"));
}

#[test]
fn hostile_templates_end_in_an_error() {
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% include 'chat_template' %}",
        "{% include '/etc/passwd' %}",
        "{{ 'x' * 100000000000 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages[0].content.format('%999999999999s') }}{{ '%999999999999d' % 1 }}",
        "{{ 1 // 0 }}",
        "{{ [1, 2]|tojson(indent=99999999999999999999) }}",
        "{% if %}",
        "{{",
        "{% generation %}",
    ] {
        assert!(render(source).is_err(), "{source}");
    }
}

#[test]
fn output_has_a_limit() {
    let long = "y".repeat(1 << 16);
    let conversation = Conversation::new(vec![Message::new(Role::User, long)]);
    let source = "{% for i in range(2000) %}{{ messages[0].content }}{% endfor %}";
    let error = ChatTemplate::new(source, None, None)
        .unwrap()
        .render(&conversation, false);
    assert!(
        matches!(error, Err(TemplateError::TooLarge { .. })),
        "{error:?}"
    );
}

#[test]
fn extra_keys_reach_the_template() {
    let mut message = Message::new(Role::Assistant, "");
    message.extra.insert(
        "tool_calls".into(),
        json!([{"name": "f", "arguments": {"x": 1}}]),
    );
    let template = ChatTemplate::new(
        "{{ messages[0].tool_calls[0].arguments|tojson }}{{ tools[0] }}",
        None,
        None,
    );
    let tools = json!(["t"]);
    let text = template
        .unwrap()
        .render_messages(&[message], Some(&tools), false);
    assert_eq!(text.unwrap(), "{\"x\": 1}t");
}

#[test]
fn templates_see_all_special_tokens_by_name() {
    let mut tokens = NamedTokens::default();
    for (name, token) in [
        ("pad_token", "<pad>"),
        ("unk_token", "<unk>"),
        ("image_token", "<img>"),
    ] {
        tokens.set(name, Some(token.to_owned()));
    }
    let source = "{{ pad_token }}{{ unk_token }}{{ image_token }}{{ sep_token is defined }}";
    let template = ChatTemplate::with_tokens(source, tokens).unwrap();
    let chat = Conversation::new(vec![Message::new(Role::User, "a")]);
    assert_eq!(
        template.render(&chat, false).unwrap(),
        "<pad><unk><img>False"
    );
}

#[test]
fn null_keys_of_messages_are_absent_and_those_inside_stay() {
    let mut message = Message::new(Role::Assistant, "a");
    message.extra.insert("name".into(), Json::Null);
    message.extra.insert(
        "tool_calls".into(),
        json!([{"name": "f", "arguments": {"x": null}}]),
    );
    let source =
        "{{ 'name' in messages[0] }}{{ messages[0].name is defined }}{{ messages[0].tool_calls }}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    assert_eq!(
        template.render_messages(&[message], None, false).unwrap(),
        "FalseFalse[{'name': 'f', 'arguments': {'x': None}}]"
    );
}

#[test]
fn reasoning_is_there_under_both_names() {
    let source = "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    for (key, expected) in [
        ("reasoning_content", "r|r"),
        ("thinking", "r|r"),
        ("reasoning", "r|r"),
        ("thoughts", "|"),
    ] {
        let mut message = Message::new(Role::Assistant, "a");
        message.extra.insert(key.into(), "r".into());
        let text = template.render_messages(&[message], None, false).unwrap();
        assert_eq!(text, expected, "{key}");
    }
}

#[test]
fn a_template_that_is_at_fault_for_every_row_is_told_apart() {
    let broken = |source: &str| match render(source) {
        Err(TemplateError::Broken { source }) => source.to_string(),
        other => panic!("{source}: {other:?}"),
    };
    assert_eq!(
        broken("\n{{ helper(messages) }}"),
        "line 2: 'helper' is undefined"
    );
    assert_eq!(
        broken("{{ eos_token + 'x' }}"),
        "line 1: 'eos_token' is undefined"
    );
    assert!(matches!(
        render("{{ messages[0].name.x }}"),
        Err(TemplateError::Render { .. })
    ));
}
