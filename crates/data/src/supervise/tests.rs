use super::*;
use crate::conversation::{Message, Role};
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
