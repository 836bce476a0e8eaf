//! What reaches the model of rows with tools, reasoning and system prompts, and what of it is trained,
//! under templates of the kinds that models have.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::findings::{Finding, examine};
use crate::format::Format;
use crate::tokenizer::tests::{CHATML, tokenizer};

/// Hermes and Qwen 2.5: tools in the system prompt, calls as JSON between tags.
const HERMES: &str = "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}\
    {% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content %}{{ m.content }}{% endif %}\
    {% for c in m.tool_calls or [] %}{% set f = c.function or c %}{{ '\n<tool_call>\n{\"name\": \"' + f.name + '\", \"arguments\": ' + f.arguments | tojson + '}\n</tool_call>' }}{% endfor %}\
    {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Llama 3.1: one call, no content beside it, ids of neither.
const ONE_CALL: &str = "{{ bos_token }}{% for m in messages %}{% if not (m.role == 'tool' or 'tool_calls' in m) %}\
    {{ '<|im_start|>' + m.role + '\n\n' + m.content | trim + '<|im_end|>' }}{% elif 'tool_calls' in m %}\
    {{ '<|im_start|>assistant\n\n' }}{{ '{\"name\": \"' + m.tool_calls[0].function.name + '\", \"parameters\": ' }}{{ m.tool_calls[0].function.arguments | tojson }}{{ '}<|im_end|>' }}\
    {% else %}{{ '<|im_start|>ipython\n\n' + m.content | tojson + '<|im_end|>' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}";

/// Mistral v3: tools before the last user turn only, a system prompt inside it, no generation prompt.
const TOOLS_LAST: &str = "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}\
    {% set users = turns | selectattr('role', 'equalto', 'user') | list %}{% for m in turns %}\
    {% if m.role == 'user' %}{% if tools and m == users[-1] %}{{ '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}\
    {% if system is defined and m == users[-1] %}{{ '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}\
    {% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}{% set out = c.function | tojson %}{{ out[:-1] }}\
    {% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}{{ ', \"id\": \"' + c.id + '\"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' + eos_token }}\
    {% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}{% else %}{{ '[TOOL_RESULTS] {\"content\": ' + m.content | string + ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}{% endif %}{% endfor %}";

/// Qwen 3: thoughts of the turns behind the last question only, a result may look like one.
const THINKS: &str = "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' and not (m.content.startswith('<r>') and m.content.endswith('</r>')) %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}\
    {% for m in messages %}{% set content = m.content if m.content is string else '' %}{% if m.role == 'assistant' %}{% set thought = '' %}\
    {% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}{% elif '</think>' in content %}{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}\
    {{ '<|im_start|>assistant\n' }}{% if loop.index0 > ns.last and (loop.last or thought) %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{% else %}{{ content }}{% endif %}\
    {% for c in m.tool_calls or [] %}{{ '\n<tool_call>' + c.function.name }}{% for k in c.function.arguments %}{{ '<k>' + k + '</k><v>' + c.function.arguments[k] | string + '</v>' }}{% endfor %}{{ '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}\
    {% else %}{{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

pub(super) struct Row {
    pub(super) text: String,
    pub(super) trained: Vec<String>,
    pub(super) unseen: Vec<Unseen>,
    findings: Vec<Finding>,
}

fn messages(row: Value) -> Record {
    Format::Messages.read(row).unwrap()
}

#[track_caller]
pub(super) fn row(template: &str, row: Value) -> Row {
    let (record, tokenizer) = (messages(row), tokenizer(Some(template)));
    let row = supervise(&record, &tokenizer, None, Supervision::Responses).unwrap();
    let mut trained: Vec<Range<usize>> = Vec::new();
    for ((start, end), label) in row.offsets.iter().zip(&row.labels) {
        match trained.last_mut() {
            _ if *label == IGNORE_INDEX => {}
            Some(last) if last.end >= *start => last.end = *end,
            _ => trained.push(*start..*end),
        }
    }
    let trained = trained.into_iter().map(|span| row.text[span].to_owned());
    Row {
        trained: trained.collect(),
        unseen: row.unseen.iter().copied().collect(),
        findings: examine(&record, &row, &tokenizer),
        text: row.text,
    }
}

fn call(name: &str, arguments: Value) -> Value {
    json!({"id": "abcdefghi", "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// A question with tools, two calls, two results and an answer, and a second question.
fn with_tools() -> Value {
    json!({
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": null, "tool_calls": [call("w", json!({"city": "Paris"}))]},
            {"role": "tool", "content": "sunny", "name": "w", "tool_call_id": "abcdefghi"},
            {"role": "assistant", "content": "Sunny. "},
            {"role": "user", "content": "Thanks"},
            {"role": "assistant", "content": "Bye"},
        ],
        "tools": [{"type": "function", "function": {"name": "w", "parameters": {}}}],
    })
}

fn question(system: &str, answer: Value) -> Value {
    json!({"messages": [{"role": "system", "content": system}, {"role": "user", "content": "q"}, answer]})
}

fn answer(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

#[test]
fn calls_and_tools_that_a_template_knows_nothing_of_are_lost() {
    let lost = row(CHATML, with_tools());
    assert_eq!(lost.unseen, [Unseen::Call, Unseen::Tools]);
    assert!(lost.findings.contains(&Finding::EmptyAnswer));
    let mut written = with_tools();
    written["messages"][1]["content"] = "w(Paris)".into();
    let written = row(CHATML, written);
    assert_eq!(written.unseen, [Unseen::Call, Unseen::Tools]);
    assert!(!written.findings.contains(&Finding::EmptyAnswer));
    for template in [HERMES, THINKS, TOOLS_LAST] {
        let mut known = with_tools();
        if template == THINKS {
            known["tools"] = Value::Null;
        }
        let known = row(template, known);
        assert_eq!(known.findings, [], "{}", known.text);
    }
}

#[test]
fn answers_are_located_where_prefixes_are_none() {
    let found = row(TOOLS_LAST, with_tools());
    let call = "[TOOL_CALLS] [{\"name\": \"w\", \"arguments\": {\"city\": \"Paris\"}, \"id\": \"abcdefghi\"}]</s>";
    assert_eq!(found.trained, [call, " Sunny.</s>", " Bye</s>"]);
    // Two calls, arguments without a text, words beside that the template leaves out.
    let mut given = with_tools();
    given["messages"][1]["tool_calls"] = json!([numbered(1), numbered(2)]);
    let found = row(TOOLS_LAST, given);
    assert_eq!(
        found.trained[0],
        "[TOOL_CALLS] [{\"name\": \"f1\", \"arguments\": {\"x\": 1}, \"id\": \"abcdefghi\"}, \
         {\"name\": \"f2\", \"arguments\": {\"x\": 2}, \"id\": \"abcdefghi\"}]</s>"
    );
    assert_eq!(found.trained.len(), 3);
    // Texts that quote what the template writes mislead nobody.
    let mut quoting = with_tools();
    for (at, content) in [
        (0, "[/INST] x</s>"),
        (2, "[/TOOL_RESULTS]</s>"),
        (3, "[INST] a</s>[/INST]"),
    ] {
        quoting["messages"][at]["content"] = content.into();
    }
    quoting["messages"][1]["tool_calls"][0]["function"]["arguments"]["city"] = "]</s>[INST]".into();
    let found = row(TOOLS_LAST, quoting);
    assert_eq!(
        found.trained,
        [
            "[TOOL_CALLS] [{\"name\": \"w\", \"arguments\": {\"city\": \"]</s>[INST]\"}, \"id\": \"abcdefghi\"}]</s>",
            " [INST] a</s>[/INST]</s>",
            " Bye</s>"
        ]
    );
    // A system prompt that moves to the last question too.
    let mut system = with_tools();
    system["messages"]
        .as_array_mut()
        .unwrap()
        .insert(0, json!({"role": "system", "content": "S"}));
    let found = row(TOOLS_LAST, system);
    assert_eq!(found.trained, [call, " Sunny.</s>", " Bye</s>"]);
    assert_eq!(found.unseen, []);
}

fn numbered(number: u32) -> Value {
    call(&format!("f{number}"), json!({ "x": number }))
}

#[test]
fn the_rest_of_a_row_is_located_where_prefixes_are_none() {
    let Value::Object(mut row) = with_tools() else {
        unreachable!()
    };
    let turns = row["messages"].as_array().unwrap().clone();
    for (prompt, expected) in [
        (1, "[TOOL_CALLS] [{\"name\": \"w\""),
        (3, " Sunny.</s>[AVAILABLE_TOOLS]"),
        (5, " Bye</s>"),
    ] {
        row.insert("prompt".into(), turns[..prompt].into());
        row.insert("completion".into(), turns[prompt..].into());
        let record = Format::PromptCompletion.read(row.clone().into()).unwrap();
        let tokenizer = tokenizer(Some(TOOLS_LAST));
        let row = supervise(&record, &tokenizer, None, Supervision::Completion).unwrap();
        let first = row
            .labels
            .iter()
            .position(|label| *label != IGNORE_INDEX)
            .unwrap();
        let rest = &row.text[row.offsets[first].0..];
        assert!(rest.starts_with(expected), "{rest}");
        assert!(
            row.labels[first..]
                .iter()
                .all(|label| *label != IGNORE_INDEX)
        );
    }
}

#[test]
fn what_stands_beside_a_call_and_further_calls_may_be_lost() {
    let mut both = with_tools();
    both["messages"][1]["content"] = "Let me look.".into();
    let found = row(ONE_CALL, both);
    assert_eq!(found.unseen, [Unseen::Answer, Unseen::Tools]);
    let mut two = with_tools();
    two["tools"] = Value::Null;
    two["messages"][1]["tool_calls"] = json!([numbered(1), numbered(2)]);
    let found = row(ONE_CALL, two);
    assert_eq!(found.unseen, [Unseen::Call]);
    assert_eq!(
        found.trained[0],
        "{\"name\": \"f1\", \"parameters\": {\"x\": 1}}<|im_end|>"
    );
    // A template that shows names and no arguments.
    let named = HERMES.replace("f.arguments | tojson", "'{}'");
    assert_eq!(row(&named, with_tools()).unseen, [Unseen::Arguments]);
    let mut nothing = with_tools();
    nothing["messages"][1]["tool_calls"][0]["function"]["arguments"] = json!({});
    assert_eq!(row(&named, nothing).unseen, []);
    // One that takes the first argument.
    let first = HERMES.replace(
        "f.arguments | tojson",
        "(f.arguments.values() | list)[0] | tojson",
    );
    let mut many = with_tools();
    many["messages"][1]["tool_calls"][0]["function"]["arguments"]["unit"] = "C".into();
    assert_eq!(row(&first, many).unseen, [Unseen::Arguments]);
}

#[test]
fn arguments_are_found_however_they_are_written() {
    let arguments =
        json!({"city": "Zürich \"ü\"\n", "days": [1, 2], "deep": {"b": ["x y"], "a": " "}});
    for written in [
        "f.arguments | tojson",
        "f.arguments | tojson(indent=2)",
        "f.arguments | tojson(ensure_ascii=true, separators=(',', ':'))",
        "f.arguments | tojson(sort_keys=true)",
        "(f.arguments.city + f.arguments.deep.b[0]) | upper",
    ] {
        let template = HERMES.replace("f.arguments | tojson", written);
        let mut given = with_tools();
        given["messages"][1]["tool_calls"] = json!([call("w", arguments.clone())]);
        let found = row(&template, given);
        assert_eq!(found.unseen, [], "{written}: {}", found.text);
        assert_eq!(found.trained.len(), 3, "{written}");
        assert!(
            found.trained[0].ends_with("</tool_call><|im_end|>"),
            "{written}"
        );
    }
}

#[test]
fn reasoning_reaches_templates_under_any_name() {
    for key in ["reasoning_content", "thinking", "reasoning"] {
        let mut turn = answer("4");
        turn[key] = "two and two".into();
        for read in ["reasoning_content", "thinking", "reasoning"] {
            let template = THINKS.replace("reasoning_content", read);
            let found = row(&template, question("S", turn.clone()));
            assert_eq!(
                found.trained,
                ["<think>\ntwo and two\n</think>\n\n4<|im_end|>"],
                "{key} {read}"
            );
            assert_eq!(found.findings, []);
        }
        let lost = row(CHATML, question("S", turn));
        assert_eq!(lost.unseen, [Unseen::Reasoning]);
    }
    // A turn that only thinks says nothing.
    let only = json!({"role": "assistant", "reasoning": "hm"});
    let found = row(THINKS, question("S", only));
    assert_eq!(found.findings, [Finding::EmptyAnswer]);
}

#[test]
fn thoughts_inside_the_content_are_not_lost_in_silence() {
    // DeepSeek's distilled models: what stands before the last tag is cut, in every turn.
    let cuts = "{% for m in messages %}{% set content = m.content.split('</think>')[-1] %}\
        {{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let turns = |content: &str| {
        json!({"messages": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": content},
            {"role": "user", "content": "2"},
            {"role": "assistant", "content": "<think>\nsecond\n</think>\n\nd"},
        ]})
    };
    let thinking = turns("<think>\nfirst\n</think>\n\nb");
    assert_eq!(row(cuts, thinking.clone()).unseen, [Unseen::Thought]);
    // Of the earlier turn only, as it is shown where it is the last one.
    let found = row(THINKS, thinking.clone());
    assert_eq!(found.findings, [Finding::EarlierReasoning]);
    assert_eq!(row(CHATML, thinking).findings, []);
    // A tag without a thought has nothing to lose, and the opening tag may be the template's.
    assert_eq!(row(THINKS, turns("<think>\n\n</think>\n\nb")).findings, []);
    let headless =
        json!({"messages": [{"role": "user", "content": "1"}, answer("first</think>b")]});
    assert_eq!(row(cuts, headless.clone()).unseen, [Unseen::Thought]);
    assert_eq!(row(THINKS, headless).findings, []);
}

#[test]
fn reasoning_of_earlier_turns_may_be_left_out_on_purpose() {
    let turns = |reasoning: &str, content: &str| {
        json!({"messages": [
            {"role": "user", "content": "1"},
            {"role": "assistant", "content": content, "reasoning_content": reasoning},
            {"role": "user", "content": "2"},
            {"role": "assistant", "content": "d", "reasoning_content": "c"},
        ]})
    };
    let found = row(THINKS, turns("a", "b"));
    assert_eq!(found.findings, [Finding::EarlierReasoning]);
    assert_eq!(
        found.trained,
        ["b<|im_end|>", "<think>\nc\n</think>\n\nd<|im_end|>"]
    );
    // The same inside the content: what follows the thought is there.
    let mut inside = turns("", "<think>\na\n</think>\n\nb");
    inside["messages"][1]["reasoning_content"] = Value::Null;
    let found = row(THINKS, inside);
    assert_eq!(found.findings, []);
    assert_eq!(found.trained[0], "b<|im_end|>");
    // A template that never shows it.
    let never = THINKS.replace(
        "'<think>\n' + thought.strip('\n') + '\n</think>\n\n' + ",
        "",
    );
    assert_ne!(never, THINKS);
    assert_eq!(row(&never, turns("a", "b")).unseen, [Unseen::Reasoning]);
    // Results that look like tags, which the template asks about.
    let mut results = turns("a", "b");
    results["messages"][2]["content"] = "<r>7</r>".into();
    let found = row(THINKS, results);
    assert_eq!(found.findings, []);
    assert_eq!(
        found.trained,
        [
            "<think>\na\n</think>\n\nb<|im_end|>",
            "<think>\nc\n</think>\n\nd<|im_end|>"
        ]
    );
}

#[test]
fn turns_are_located_where_the_generation_prompt_opens_a_thought() {
    let (before, prompt) = THINKS.rsplit_once("'<|im_start|>assistant\n'").unwrap();
    for opened in ["<think>\n\n", "<think>\n\n</think>\n\n", "<think>\n"] {
        let template = format!("{before}'<|im_start|>assistant\n{opened}'{prompt}");
        let mut thought = answer("4");
        thought["thinking"] = "two and two".into();
        let inside = answer("<think>\ntwo and two\n</think>\n\n4");
        for turn in [thought, inside] {
            let found = row(&template, question("S", turn));
            // What the generation prompt writes is not learned.
            assert_eq!(
                found.trained,
                ["two and two\n</think>\n\n4<|im_end|>"],
                "{opened:?}"
            );
            assert_eq!(found.unseen, []);
        }
        // A tag that begins as the thought's does.
        let turn = json!({"role": "assistant", "content": "", "tool_calls": [numbered(1)]});
        let given = json!({"messages": [
            {"role": "user", "content": "1"}, turn, {"role": "user", "content": "2"}, answer("b"),
        ]});
        let found = row(&template, given);
        assert_eq!(
            found.trained[0],
            "\n<tool_call>f1<k>x</k><v>1</v></tool_call><|im_end|>"
        );
    }
}

#[test]
fn results_that_a_template_writes_into_the_answer_are_not_trained() {
    // The second answer takes the result of the first's call into it.
    let template = "{% for m in messages %}{% if m.role == 'tool' %}{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}\
        {% for c in m.tool_calls or [] %}{{ c.function.name + '(' + c.function.arguments | tojson + ')' }}{% endfor %}\
        {% if m.tool_calls %}{{ messages[loop.index0 + 1].content }}{% endif %}{{ m.content or '' }}{{ '<|im_end|>\n' }}\
        {% else %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let mut given = with_tools();
    given["messages"][1]["content"] = "So.".into();
    let tokenizer = tokenizer(Some(template));
    let error = supervise(&messages(given), &tokenizer, None, Supervision::Responses);
    assert!(
        matches!(
            error,
            Err(RowError::Span(SpanError::Unstable { message: 1 }))
        ),
        "{error:?}"
    );
}

#[test]
fn a_turn_without_a_text_is_located_too() {
    // EOS at the end of the conversation keeps prefixes from being any; the call is lost.
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}";
    let found = row(template, with_tools());
    assert_eq!(found.unseen, [Unseen::Call, Unseen::Tools]);
    assert_eq!(
        found.trained,
        ["<|im_end|>", "Sunny. <|im_end|>", "Bye<|im_end|>"]
    );
    assert!(found.findings.contains(&Finding::EmptyAnswer));
}

#[test]
fn contents_that_are_dropped_or_cut_are_named() {
    let turn = |body: &str| {
        format!(
            "{{% for m in messages %}}{body}{{% endfor %}}{{% if add_generation_prompt %}}{{{{ '<|im_start|>a\n' }}}}{{% endif %}}"
        )
    };
    let whole = "{{ '<|im_start|>' + m.role[0] + '\n' + m.content + '<|im_end|>\n' }}";
    let unless = |role: &str| {
        turn(&format!(
            "{{% if m.role != '{role}' %}}{whole}{{% endif %}}"
        ))
    };
    // As long as the answer, and a part of it: a search would find it.
    let given = || question("q", answer("a q answer"));
    assert_eq!(row(&unless("system"), given()).unseen, [Unseen::System]);
    assert_eq!(row(&unless("user"), given()).unseen, [Unseen::User]);
    assert_eq!(row(&unless("nobody"), given()).unseen, []);
    let cut = turn(&whole.replace("m.content", "m.content[:4]"));
    assert_eq!(row(&cut, given()).unseen, [Unseen::Answer]);
    for kept in [
        "m.content | trim",
        "m.content.strip()",
        "m.content | replace('answer', 'reply')",
        "m.content | upper",
        "m.content.split('</think>')[-1]",
        "m.content.split(' ') | join(' ')",
        "m.content | tojson",
    ] {
        let template = turn(&whole.replace("m.content", kept));
        assert_eq!(row(&template, given()).unseen, [], "{kept}");
    }
    // A template that is picky about what it is given is asked for less.
    let picky = turn(&format!(
        "{{% if m.role == 'user' and m.content != 'q' %}}{{{{ raise_exception('q') }}}}{{% endif %}}{whole}"
    ));
    let found = row(&picky, given());
    assert_eq!(found.unseen, []);
    assert_eq!(found.trained, ["a q answer<|im_end|>"]);
    // Of a long conversation it is asked whether the text is there.
    let mut long = given();
    for number in 0..40 {
        let turns = [
            json!({"role": "user", "content": "q"}),
            answer(&number.to_string()),
        ];
        long["messages"].as_array_mut().unwrap().extend(turns);
    }
    let found = row(&picky, long);
    assert_eq!(found.unseen, []);
    assert_eq!(found.trained.len(), 41);
}

#[test]
fn marks_in_a_row_are_no_marks() {
    let text = "\u{fdd0}\u{fde0}\u{fde0}\u{fde0}\u{fde0}a\u{fdd1}";
    let found = row(CHATML, question("S", answer(text)));
    assert_eq!(found.trained, [format!("{text}<|im_end|>")]);
    assert_eq!(found.unseen, []);
}

#[test]
fn a_turn_without_content_is_absent_and_else_empty() {
    // Absent: the template may ask for it.
    let asks = HERMES.replace("{% if m.content %}", "{% if m.content is defined %}");
    let found = row(&asks, with_tools());
    assert!(found.trained[0].starts_with("\n<tool_call>"));
    assert_eq!(found.unseen, []);
    // A template that puts up with no absent content gets an empty one.
    let needs = HERMES.replace(
        "{% if m.content %}{{ m.content }}{% endif %}",
        "{{ '' + m.content }}",
    );
    assert_ne!(needs, HERMES);
    assert_eq!(row(&needs, with_tools()).text, found.text);
}

#[test]
fn alpaca_rows_train_every_answer_and_name_what_a_prompt_template_drops() {
    let row = json!({"instruction": "c", "output": "d", "system": "S", "history": [["a", "b"]]});
    let record = Format::Alpaca.read(row).unwrap();
    let tokenizer = tokenizer(Some(CHATML));
    let trained = |supervision| {
        let row = supervise(&record, &tokenizer, None, supervision).unwrap();
        assert_eq!(row.unseen, BTreeSet::new());
        let labels = row.labels.iter().filter(|label| **label != IGNORE_INDEX);
        labels.count()
    };
    assert_eq!(trained(Supervision::Responses), 4);
    assert_eq!(trained(Supervision::LastTurn), 2);
    assert_eq!(trained(Supervision::Completion), 2);
    let template = PromptTemplate::parse("{instruction}{output}").unwrap();
    let error = supervise(&record, &tokenizer, Some(&template), Supervision::Responses);
    assert!(matches!(error, Err(RowError::NoPlace { field: "system" })));
}
