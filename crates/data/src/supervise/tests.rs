use super::*;
use crate::conversation::{Completion, Message, Role};
use crate::tokenizer::tests::{BOS, CHATML, END, EOS, SPACE_B, START, tokenizer};

const X: i64 = IGNORE_INDEX;
const EOS_L: i64 = EOS as i64;
const END_L: i64 = END as i64;

fn chat(turns: &[(Role, &str)]) -> Record {
    let messages = turns
        .iter()
        .map(|(role, content)| Message::new(*role, *content))
        .collect();
    Record::Conversation(Conversation::new(messages))
}

fn row(instruction: &str, input: &str, output: &str) -> Record {
    let [instruction, input, output] = [instruction, input, output].map(str::to_owned);
    Record::Instruction(Instruction {
        instruction,
        input,
        output,
        ..Instruction::default()
    })
}

#[track_caller]
fn check(template: &str, record: &Record, ids: &[u32], labels: &[i64]) {
    let tokenizer = tokenizer(Some(template));
    let responses = supervise(record, &tokenizer, None, Supervision::Responses).unwrap();
    assert_eq!(responses.input_ids, ids);
    assert_eq!(responses.labels, labels);
    let all = supervise(record, &tokenizer, None, Supervision::All).unwrap();
    assert_eq!(all.input_ids, ids);
    assert!(
        all.labels
            .iter()
            .zip(ids)
            .all(|(label, id)| *label == i64::from(*id))
    );
}

#[track_caller]
fn check_prompt(template: &str, record: &Record, ids: &[u32], labels: &[i64]) {
    let template = PromptTemplate::parse(template).unwrap();
    let tokenizer = tokenizer(None);
    let responses = supervise(record, &tokenizer, Some(&template), Supervision::Responses).unwrap();
    assert_eq!(responses.input_ids, ids);
    assert_eq!(responses.labels, labels);
    let all = supervise(record, &tokenizer, Some(&template), Supervision::All).unwrap();
    assert!(
        all.labels
            .iter()
            .zip(ids)
            .all(|(label, id)| *label == i64::from(*id))
    );
}

use Role::{Assistant, System, User};

#[test]
fn one_turn_trains_the_answer_and_its_end_but_not_the_line_break() {
    check(
        CHATML,
        &chat(&[(User, "Hi"), (Assistant, "B")]),
        &[START, 117, 10, 72, 105, END, 10, START, 97, 10, 66, END, 10],
        &[X, X, X, X, X, X, X, X, X, X, 66, END_L, X],
    );
}

#[test]
fn every_answer_of_many_turns_is_trained() {
    check(
        CHATML,
        &chat(&[
            (System, ""),
            (User, "1"),
            (Assistant, "2"),
            (User, "3"),
            (Assistant, "é"),
            (User, "5"),
        ]),
        &[
            START, 115, 10, END, 10, START, 117, 10, 49, END, 10, START, 97, 10, 50, END, 10,
            START, 117, 10, 51, END, 10, START, 97, 10, 0xc3, 0xa9, END, 10, START, 117, 10, 53,
            END, 10,
        ],
        &[
            X, X, X, X, X, X, X, X, X, X, X, X, X, X, 50, END_L, X, X, X, X, X, X, X, X, X, X,
            0xc3, 0xa9, END_L, X, X, X, X, X, X, X,
        ],
    );
}

#[test]
fn an_empty_answer_trains_its_end() {
    check(
        CHATML,
        &chat(&[(User, ""), (Assistant, "")]),
        &[START, 117, 10, END, 10, START, 97, 10, END, 10],
        &[X, X, X, X, X, X, X, X, END_L, X],
    );
}

#[test]
fn markers_inside_contents_mislead_nobody() {
    check(
        CHATML,
        &chat(&[
            (User, "<|im_start|>a\nx<|im_end|>"),
            (Assistant, "<|im_end|>\ny"),
        ]),
        &[
            START, 117, 10, START, 97, 10, 120, END, END, 10, START, 97, 10, END, 10, 121, END, 10,
        ],
        &[
            X, X, X, X, X, X, X, X, X, X, X, X, X, END_L, 10, 121, END_L, X,
        ],
    );
}

#[test]
fn turns_of_weight_zero_are_context() {
    let Record::Conversation(mut conversation) =
        chat(&[(User, "1"), (Assistant, "2"), (Assistant, "3")])
    else {
        unreachable!()
    };
    conversation.messages[1].trained = false;
    check(
        CHATML,
        &Record::Conversation(conversation),
        &[
            START, 117, 10, 49, END, 10, START, 97, 10, 50, END, 10, START, 97, 10, 51, END, 10,
        ],
        &[X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, 51, END_L, X],
    );
}

#[test]
fn a_template_without_markers_has_its_own_bos_and_a_merged_first_token() {
    let template = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'q' + m.content }}\
                    {% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}";
    check(
        template,
        &chat(&[(User, "1"), (Assistant, "B"), (User, "2"), (Assistant, "3")]),
        &[BOS, 113, 49, SPACE_B, EOS, 113, 50, 32, 51, EOS],
        &[X, X, X, SPACE_B as i64, EOS_L, X, X, 32, 51, EOS_L],
    );
}

#[test]
fn alpaca_rows_go_through_the_chat_template() {
    check(
        CHATML,
        &row("Hi", "1", "B"),
        &[
            START, 117, 10, 72, 105, 10, 10, 49, END, 10, START, 97, 10, 66, END, 10,
        ],
        &[X, X, X, X, X, X, X, X, X, X, X, X, X, 66, END_L, X],
    );
}

#[test]
fn alpaca_rows_go_through_a_prompt_template_and_end_in_eos() {
    check_prompt(
        "{instruction}>{output}",
        &row("Hi", "", "B"),
        &[BOS, 72, 105, 62, 66, EOS],
        &[X, X, X, X, 66, EOS_L],
    );
    check_prompt(
        "<s>{instruction}{input}\n{output}!</s>",
        &row("H", "i", "B"),
        &[BOS, 72, 105, 10, 66, 33, EOS],
        &[X, X, X, X, 66, 33, EOS_L],
    );
    // A token that begins in the prompt and ends in the answer is part of the answer.
    check_prompt(
        "{instruction} {output}",
        &row("H", "", "B"),
        &[BOS, 72, SPACE_B, EOS],
        &[X, X, SPACE_B as i64, EOS_L],
    );
    check_prompt(
        "{instruction}>{output}",
        &row("H", "", ""),
        &[BOS, 72, 62, EOS],
        &[X, X, X, EOS_L],
    );
}

#[test]
fn a_prompt_template_must_show_the_input() {
    let template = PromptTemplate::parse("{instruction}{output}").unwrap();
    let error = supervise(
        &row("a", "b", "c"),
        &tokenizer(None),
        Some(&template),
        Supervision::All,
    );
    assert!(matches!(error, Err(RowError::UnusedInput)));
}

#[test]
fn text_rows_are_trained_whole_between_one_bos_and_one_eos() {
    for text in ["Hi", "<s>Hi", "Hi</s>", "<s>Hi</s>"] {
        for supervision in [Supervision::Responses, Supervision::All] {
            let row = supervise(
                &Record::Text(text.into()),
                &tokenizer(None),
                None,
                supervision,
            )
            .unwrap();
            assert_eq!(row.input_ids, [BOS, 72, 105, EOS]);
            assert_eq!(row.labels, [BOS as i64, 72, 105, EOS_L]);
        }
    }
}

#[test]
fn a_template_that_looks_ahead_is_still_located() {
    // Only the last answer shows its thoughts, and the number of messages comes first.
    let template = "{{ messages|length }}{% for m in messages %}{{ m.role[0] }}\
         {%- if m.role == 'assistant' and loop.last %}!{% endif %}{{ m.content | trim }}<|im_end|>\n{% endfor %}";
    check(
        template,
        &chat(&[
            (User, "x"),
            (Assistant, " y "),
            (User, "z"),
            (Assistant, "\nB"),
        ]),
        &[
            52, 117, 120, END, 10, 97, 121, END, 10, 117, 122, END, 10, 97, 33, 66, END, 10,
        ],
        &[
            X, X, X, X, X, X, 121, END_L, X, X, X, X, X, X, X, 66, END_L, X,
        ],
    );
}

#[test]
fn thoughts_that_a_template_removes_from_earlier_turns_are_not_trained_there() {
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role[0] + '\n' }}\
         {%- if m.role == 'assistant' and not loop.last %}{{ m.content.split('/t')[-1] }}{% else %}{{ m.content }}\
         {%- endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>a\n' }}{% endif %}";
    check(
        template,
        &chat(&[
            (User, "1"),
            (Assistant, "th/t2"),
            (User, "3"),
            (Assistant, "t/t4"),
        ]),
        &[
            START, 117, 10, 49, END, 10, START, 97, 10, 50, END, 10, START, 117, 10, 51, END, 10,
            START, 97, 10, 116, 47, 116, 52, END, 10,
        ],
        &[
            X, X, X, X, X, X, X, X, X, 50, END_L, X, X, X, X, X, X, X, X, X, X, 116, 47, 116, 52,
            END_L, X,
        ],
    );
}

#[test]
fn a_template_that_refuses_parts_is_located_by_the_whole() {
    let template = "{% if messages|length != 4 %}{{ raise_exception('four turns') }}{% endif %}\
         {% for m in messages %}{{ m.role[0] + m.content + eos_token }}{% endfor %}";
    check(
        template,
        &chat(&[(User, "1"), (Assistant, "2"), (User, "3"), (Assistant, "4")]),
        &[117, 49, EOS, 97, 50, EOS, 117, 51, EOS, 97, 52, EOS],
        &[X, X, X, X, 50, EOS_L, X, X, X, X, 52, EOS_L],
    );
}

#[test]
fn a_template_that_rewrites_answers_is_an_error_and_not_a_guess() {
    for body in [
        "m.content[::-1]",
        "m.content + m.content",
        "'?' + m.content|length|string",
        "m.content[:1]",
    ] {
        let template = format!(
            "{{{{ messages|length }}}}{{% for m in messages %}}{{{{ {body} }}}}|{{% endfor %}}"
        );
        let tokenizer = tokenizer(Some(&template));
        let record = chat(&[(User, "question"), (Assistant, "answer")]);
        let error = supervise(&record, &tokenizer, None, Supervision::Responses);
        assert!(
            matches!(
                error,
                Err(RowError::Span(SpanError::Unstable { message: 1 }))
            ),
            "{body}: {error:?}"
        );
        assert!(supervise(&record, &tokenizer, None, Supervision::All).is_ok());
    }
}

#[test]
fn a_template_without_an_end_is_trained_and_counted() {
    let template = "{% for m in messages %}{{ m.role[0] + ':' + m.content + '\n' }}{% endfor %}\
                    {% if add_generation_prompt %}a:{% endif %}";
    let row = supervise(
        &chat(&[(User, "1"), (Assistant, "2")]),
        &tokenizer(Some(template)),
        None,
        Supervision::Responses,
    )
    .unwrap();
    assert_eq!(row.input_ids, [117, 58, 49, 10, 97, 58, 50, 10]);
    assert_eq!(row.labels, [X, X, X, X, X, X, 50, 10]);
    assert_eq!(row.open_turns, 1);
}

#[test]
fn a_chat_needs_a_template() {
    let error = supervise(
        &chat(&[(User, "1")]),
        &tokenizer(None),
        None,
        Supervision::All,
    );
    assert!(matches!(
        error,
        Err(RowError::Template(TemplateError::Missing))
    ));
}

#[track_caller]
fn labelled(
    record: &Record,
    template: Option<&str>,
    supervision: Supervision,
    ids: &[u32],
    labels: &[i64],
) {
    let row = supervise(record, &tokenizer(template), None, supervision).unwrap();
    assert_eq!(row.input_ids, ids);
    assert_eq!(row.labels, labels);
}

const TWO_TURNS: [u32; 25] = [
    START, 117, 10, 49, END, 10, START, 97, 10, 50, END, 10, START, 117, 10, 51, END, 10, START,
    97, 10, 52, END, 10, 10,
];

#[test]
fn only_the_last_turn_is_trained_where_that_is_asked() {
    let ids = &TWO_TURNS[..24];
    let mut labels = vec![X; 24];
    (labels[21], labels[22]) = (52, END_L);
    let turns = [(User, "1"), (Assistant, "2"), (User, "3"), (Assistant, "4")];
    labelled(
        &chat(&turns),
        Some(CHATML),
        Supervision::LastTurn,
        ids,
        &labels,
    );
    // A last turn of weight 0 leaves nothing, not the turn before it.
    let Record::Conversation(mut conversation) = chat(&turns) else {
        unreachable!()
    };
    conversation.messages[3].trained = false;
    let record = Record::Conversation(conversation);
    labelled(&record, Some(CHATML), Supervision::LastTurn, ids, &[X; 24]);
}

#[test]
fn prompt_and_completion_are_texts_one_behind_the_other() {
    let row = |prompt: &str, completion: &str| {
        Record::Completion(Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        })
    };
    for supervision in [
        Supervision::Responses,
        Supervision::LastTurn,
        Supervision::Completion,
    ] {
        let ids = [BOS, 113, 58, SPACE_B, EOS];
        // The space begins in the prompt and ends in the completion.
        let labels = [X, X, X, SPACE_B as i64, EOS_L];
        labelled(&row("q: ", "B"), None, supervision, &ids, &labels);
        labelled(&row("<s>q: ", "B</s>"), None, supervision, &ids, &labels);
        labelled(
            &row("q", ""),
            None,
            supervision,
            &[BOS, 113, EOS],
            &[X, X, EOS_L],
        );
    }
    let (ids, labels) = ([BOS, 113, 66, EOS], [BOS as i64, 113, 66, EOS_L]);
    labelled(&row("q", "B"), None, Supervision::All, &ids, &labels);
}

#[test]
fn a_completion_of_messages_is_trained_whole_or_by_its_answers() {
    let Record::Conversation(mut conversation) =
        chat(&[(User, "1"), (Assistant, "2"), (User, "3"), (Assistant, "4")])
    else {
        unreachable!()
    };
    conversation.messages[1].trained = false;
    let record = |prompt_messages| Record::Chat {
        chat: conversation.clone(),
        prompt_messages,
    };
    let ids = &TWO_TURNS[..24];
    let with = |trained: std::ops::Range<usize>| -> Vec<i64> {
        let label = |(at, id): (usize, &u32)| {
            if trained.contains(&at) {
                i64::from(*id)
            } else {
                X
            }
        };
        ids.iter().enumerate().map(label).collect()
    };
    let check = |prompt_messages, supervision, trained| {
        let labels = with(trained);
        labelled(
            &record(prompt_messages),
            Some(CHATML),
            supervision,
            ids,
            &labels,
        );
    };
    check(3, Supervision::Responses, 21..23);
    check(3, Supervision::Completion, 21..23);
    // From the user's second turn on, its marker included.
    check(2, Supervision::Completion, 12..23);
    check(1, Supervision::Completion, 9..23);
    check(1, Supervision::LastTurn, 21..23);
    check(1, Supervision::All, 0..24);
}

#[test]
fn alpaca_rows_have_a_completion_and_chats_have_none() {
    let mut labels = [X; 13];
    (labels[10], labels[11]) = (66, END_L);
    let ids = [START, 117, 10, 72, 105, END, 10, START, 97, 10, 66, END, 10];
    labelled(
        &row("Hi", "", "B"),
        Some(CHATML),
        Supervision::Completion,
        &ids,
        &labels,
    );
    let error = supervise(
        &chat(&[(User, "1"), (Assistant, "2")]),
        &tokenizer(Some(CHATML)),
        None,
        Supervision::Completion,
    );
    assert!(matches!(error, Err(RowError::NoCompletion)));
}

#[test]
fn generation_tags_say_what_is_trained() {
    // The mark takes in what prefixes would not: the role's line. The end token stands behind it.
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ 'a:' + m.content }}{% endgeneration %}\
                    {{ eos_token }}{% else %}{{ 'u:' + m.content + '\n' }}{% endif %}{% endfor %}";
    let turns = [(User, "1"), (Assistant, "2"), (User, "3"), (Assistant, "4")];
    let ids = [
        117, 58, 49, 10, 97, 58, 50, EOS, 117, 58, 51, 10, 97, 58, 52, EOS,
    ];
    let mut labels = [X; 16];
    labels[4..8].copy_from_slice(&[97, 58, 50, EOS_L]);
    labels[12..16].copy_from_slice(&[97, 58, 52, EOS_L]);
    labelled(
        &chat(&turns),
        Some(template),
        Supervision::Responses,
        &ids,
        &labels,
    );
    labels[4..8].fill(X);
    labelled(
        &chat(&turns),
        Some(template),
        Supervision::LastTurn,
        &ids,
        &labels,
    );
    // An end token inside the mark, with a line break behind it: trained as the template says.
    let inside = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token + '\n' }}{% endgeneration %}\
                  {% else %}{{ m.content }}{% endif %}{% endfor %}";
    let turns = [(User, "1"), (Assistant, "2")];
    let labels = [X, 50, EOS_L, 10];
    labelled(
        &chat(&turns),
        Some(inside),
        Supervision::Responses,
        &[49, 50, EOS, 10],
        &labels,
    );
    // A mark around every turn says nothing about answers: they are found as without it.
    let every = "{% for m in messages %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% endfor %}";
    let labels = [X, X, 50, EOS_L];
    labelled(
        &chat(&turns),
        Some(every),
        Supervision::Responses,
        &[49, EOS, 50, EOS],
        &labels,
    );
}

#[test]
fn tools_and_calls_reach_the_template_and_calls_are_trained() {
    let template = "{% if tools %}{{ tools|length }}\n{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role[0] + '\n' + m.content }}\
                    {% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments|tojson }}{% endfor %}{{ '<|im_end|>\n' }}\
                    {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>a\n' }}{% endif %}";
    let row = serde_json::json!({
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "7"},
            {"role": "assistant", "content": "B"},
        ],
        "tools": [{"name": "f"}],
    });
    let record = crate::format::Format::Messages.read(row).unwrap();
    let call = b"f{\"x\": 1}".map(u32::from);
    let ids = [
        &[49, 10, START, 117, 10, 113, END, 10, START, 97, 10],
        call.as_slice(),
        &[
            END, 10, START, 116, 10, 55, END, 10, START, 97, 10, 66, END, 10,
        ],
    ]
    .concat();
    let mut labels = vec![X; ids.len()];
    for at in 11..11 + call.len() + 1 {
        labels[at] = i64::from(ids[at]);
    }
    let last = ids.len() - 3;
    (labels[last], labels[last + 1]) = (66, END_L);
    labelled(
        &record,
        Some(template),
        Supervision::Responses,
        &ids,
        &labels,
    );
    let second = tokenizer(Some(CHATML))
        .with_tool_use_template(template)
        .unwrap();
    let with_tools = supervise(&record, &second, None, Supervision::Responses).unwrap();
    assert_eq!(with_tools.labels, labels);
    let without = supervise(&chat(&[(User, "1")]), &second, None, Supervision::All).unwrap();
    assert_eq!(without.input_ids, TWO_TURNS[..6]);
}

#[test]
fn sharegpt_rows_are_conversations() {
    let row = serde_json::json!({"conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]});
    let record = crate::format::Format::Sharegpt.read(row).unwrap();
    let mut labels = [X; 12];
    (labels[9], labels[10]) = (50, END_L);
    labelled(
        &record,
        Some(CHATML),
        Supervision::Responses,
        &TWO_TURNS[..12],
        &labels,
    );
}

#[test]
fn built_in_templates_end_turns_in_tokens_and_never_double_bos() {
    use crate::template::builtin::BuiltinTemplate;
    for template in BuiltinTemplate::ALL {
        let tokenizer = tokenizer(None).with_template(template.source()).unwrap();
        let record = chat(&[(User, "1"), (Assistant, "2"), (User, "3"), (Assistant, "4")]);
        let row = supervise(&record, &tokenizer, None, Supervision::Responses).unwrap();
        let bos = row.input_ids.iter().filter(|id| **id == BOS).count();
        // Llama 2 begins every exchange with one.
        let expected = match template {
            BuiltinTemplate::Llama2 => 2,
            BuiltinTemplate::Chatml | BuiltinTemplate::Phi3 | BuiltinTemplate::Zephyr => 0,
            _ => 1,
        };
        assert_eq!(bos, expected, "{template}");
        let trained: Vec<i64> = row
            .labels
            .iter()
            .copied()
            .filter(|label| *label != X)
            .collect();
        let end = match template {
            BuiltinTemplate::Chatml => Some(END_L),
            // Their end tokens are not in this vocabulary.
            BuiltinTemplate::Llama3 | BuiltinTemplate::Gemma | BuiltinTemplate::Phi3 => None,
            _ => Some(EOS_L),
        };
        assert_eq!(
            row.open_turns,
            if end.is_some() { 0 } else { 2 },
            "{template}"
        );
        if let Some(end) = end {
            assert_eq!(
                trained.iter().filter(|id| **id == end).count(),
                2,
                "{template}"
            );
        }
        assert!(trained.contains(&50) && trained.contains(&52), "{template}");
    }
    let gemma = tokenizer(None)
        .with_template(BuiltinTemplate::Gemma.source())
        .unwrap();
    assert_eq!(
        gemma.foreign_markers(),
        ["<start_of_turn>", "<end_of_turn>"]
    );
    // As plain text on purpose, the system prompt's too.
    let zephyr = tokenizer(None)
        .with_template(BuiltinTemplate::Zephyr.source())
        .unwrap();
    assert_eq!(
        zephyr.foreign_markers(),
        ["<|system|>", "<|user|>", "<|assistant|>"]
    );
}

proptest::proptest! {
    #[test]
    fn spans_of_many_answers_are_those_of_each(
        contents in proptest::collection::vec("(<\\|im_end\\|>|<\\|im_start\\|>|[ab\u{e9} \n]){0,6}", 2..8), weights: u8, trims: bool,
    ) {
        let template = if trims { CHATML.replace("m.content", "m.content|trim") } else { CHATML.to_owned() };
        let tokenizer = tokenizer(Some(&template));
        let messages = contents.iter().enumerate().map(|(at, content)| {
            let role = if at % 2 == 0 { User } else { Assistant };
            let mut message = Message::new(role, content.as_str());
            message.trained &= weights >> at & 1 == 0;
            message
        });
        let chat = Conversation::new(messages.collect());
        let template = tokenizer.template().unwrap();
        let known = ends(&tokenizer);
        proptest::prop_assert_eq!(known.generation_prompt, Some("<|im_start|>a\n"));
        let unknown = Ends { generation_prompt: None, ..known };
        let text = template.render(&chat, false).unwrap();
        let marked = marks::everywhere(template, &chat, &text);
        proptest::prop_assert!(marked.is_some());
        let fast = spans::locate(template, &chat, (&text, marked.as_ref()), known, Chosen::Trained);
        let slow = spans::locate(template, &chat, (&text, None), unknown, Chosen::Trained);
        proptest::prop_assert_eq!(fast.unwrap(), slow.unwrap());
    }
}

#[test]
fn recipes_and_files_call_what_is_trained_the_same() {
    let all = [
        Supervision::Responses,
        Supervision::LastTurn,
        Supervision::Completion,
        Supervision::All,
    ];
    for (supervision, &name) in all.into_iter().zip(Supervision::NAMES) {
        assert_eq!(supervision.name(), name);
        assert_eq!(serde_json::to_value(supervision).unwrap(), name);
        assert_eq!(
            serde_json::from_value::<Supervision>(name.into()).unwrap(),
            supervision
        );
    }
    let all: Supervision = serde_json::from_value("all".into()).unwrap();
    assert_eq!(all, Supervision::All);
}
