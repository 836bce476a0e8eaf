//! A prompt template as a chat template, for everything that only knows those.

use super::{Part, PromptTemplate};

impl PromptTemplate {
    /// Jinja text that renders a question and its answer as this template renders a row without `input`.
    ///
    /// Of several turns one stands behind the other; a system message stands in front, with a blank line
    /// behind it. `bos_token` is the token that plain text gets in front, if it gets one.
    pub fn to_chat_template(&self, bos_token: Option<&str>) -> String {
        let is_output = |part: &Part| *part == Part::Output;
        let output = self.parts.iter().position(is_output).unwrap_or(0);
        let (prompt, answer) = self.parts.split_at(output);
        let is_placeholder = |part: &Part| !matches!(part, Part::Literal(_));
        let asked = prompt.iter().rposition(is_placeholder).map_or(0, |i| i + 1);
        let (question, lead) = prompt.split_at(asked);
        let (lead, tail) = (literals(lead), literals(answer));
        let begins_with_bos = |bos: &str| literals(&question[..1.min(asked)]).starts_with(bos);
        let bos = match bos_token {
            Some(bos) if !begins_with_bos(bos) => "{{ bos_token }}",
            _ => "",
        };
        let question: Vec<String> = question
            .iter()
            .filter_map(|part| match part {
                Part::Literal(text) => Some(quoted(text)),
                Part::Instruction => Some("message['content']".to_owned()),
                Part::Input | Part::Output => None,
            })
            .collect();
        let (question, lead, tail) = (question.join(" + "), quoted(&lead), quoted(&tail));
        format!(
            "{bos}{{%- for message in messages -%}}\n\
             {{%- if message['role'] == 'user' -%}}\n\
             {{{{ {question} }}}}\n\
             {{%- elif message['role'] == 'assistant' -%}}\n\
             {{%- set answer = message['content'] + {tail} -%}}\n\
             {{{{ {lead} + answer }}}}{{%- if not answer.endswith(eos_token) -%}}{{{{ eos_token }}}}{{%- endif -%}}\n\
             {{%- elif message['role'] == 'system' -%}}\n\
             {{{{ message['content'] + '\\n\\n' }}}}\n\
             {{%- else -%}}\n\
             {{{{ raise_exception('this model was trained on questions and answers alone') }}}}\n\
             {{%- endif -%}}\n\
             {{%- endfor -%}}\n\
             {{%- if add_generation_prompt -%}}{{{{ {lead} }}}}{{%- endif -%}}\n"
        )
    }
}

/// The text of parts without placeholders.
fn literals(parts: &[Part]) -> String {
    let text = |part: &Part| match part {
        Part::Literal(text) => Some(text.clone()),
        Part::Instruction | Part::Input | Part::Output => None,
    };
    parts.iter().filter_map(text).collect()
}

/// A text as Jinja writes it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("'");
    for c in text.chars() {
        match c {
            '\\' => quoted.push_str("\\\\"),
            '\'' => quoted.push_str("\\'"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{Conversation, Instruction, Message, Role};
    use crate::template::ChatTemplate;

    /// Templates that are hard on quoting; the same ones were rendered by Jinja 3.1.
    const SOURCES: [&str; 9] = [
        "### Instruction:\n{instruction}\n\n### Response:\n{output}",
        "Below is a task.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}\n\n### End",
        "{instruction}{output}",
        "{instruction}\n{output}</s>",
        "it's {{% if x %}} {{{{ a }}}} {{# c #}} \"q\" \\n {instruction}\r\n\t→ {output}",
        "Q: {instruction} ({instruction})\nA: {output}\n",
        "  \n{instruction}  \n  {output}  \n",
        "<s>[INST] {instruction} [/INST] {output}",
        "{input}{instruction}é中{output}",
    ];

    fn chat(turns: &[(Role, &str)]) -> Conversation {
        let message = |(role, text): &(Role, &str)| Message::new(*role, *text);
        Conversation::new(turns.iter().map(message).collect())
    }

    #[test]
    fn renders_what_training_rendered() {
        for source in SOURCES {
            let template = PromptTemplate::parse(source).unwrap();
            for bos in [None, Some("<s>")] {
                let jinja = template.to_chat_template(bos);
                let jinja = ChatTemplate::new(&jinja, Some("<s>"), Some("</s>")).unwrap();
                for (question, answer) in
                    [("What's {x}?", "An\nanswer"), ("", ""), ("a\\n'", "b</s>")]
                {
                    let row = Instruction {
                        instruction: question.into(),
                        output: answer.into(),
                        ..Instruction::default()
                    };
                    let begin = bos
                        .filter(|bos| !source.starts_with(bos))
                        .unwrap_or_default();
                    let turns = [(Role::User, question), (Role::Assistant, answer)];
                    let whole = jinja.render(&chat(&turns), false).unwrap();
                    let trained = template.render(&row, "</s>").text;
                    assert_eq!(whole, format!("{begin}{trained}"), "{source}");
                    let prompt = jinja.render(&chat(&turns[..1]), true).unwrap();
                    assert_eq!(
                        prompt,
                        format!("{begin}{}", template.prompt(&row)),
                        "{source}"
                    );
                }
            }
        }
    }

    #[test]
    fn other_turns_are_kept_or_refused() {
        let template = PromptTemplate::parse("Q {instruction} A {output}").unwrap();
        let jinja = template.to_chat_template(None);
        let jinja = ChatTemplate::new(&jinja, None, Some("</s>")).unwrap();
        let turns = [
            (Role::System, "Be brief."),
            (Role::User, "one"),
            (Role::Assistant, "1"),
            (Role::User, "two"),
        ];
        assert_eq!(
            jinja.render(&chat(&turns), true).unwrap(),
            "Be brief.\n\nQ one A 1</s>Q two A "
        );
        let tool = chat(&[(Role::User, "one"), (Role::Tool, "x")]);
        let error = jinja.render(&tool, true).unwrap_err().to_string();
        assert!(error.contains("questions and answers alone"), "{error}");
    }
}
