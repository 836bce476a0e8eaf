//! Prompt templates of a recipe: text with placeholders, ending in EOS.

mod chat_template;

use std::ops::Range;

use crate::conversation::Instruction;
use crate::error::TemplateError;

const PLACEHOLDERS: &str = "{instruction}, {input} or {output} ({{ and }} are literal braces)";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Instruction,
    Input,
    Output,
}

/// A prompt template such as `"### Instruction:\n{instruction}\n\n### Response:\n{output}"`.
///
/// `{instruction}` and `{output}` must occur (`{output}` once), `{input}` may; `{{` and `}}` stand
/// for literal braces. EOS follows the output, so that a tuned model stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTemplate {
    source: String,
    parts: Vec<Part>,
}

/// A rendered row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenderedPrompt {
    /// The whole text, ending in EOS.
    pub text: String,
    /// Bytes of the text that the model is to write: output, what follows it, EOS.
    pub answer: Range<usize>,
}

impl PromptTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`TemplateError::Prompt`] names the byte and what is allowed there.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        let parts = parse_parts(source)?;
        let count = |part: &Part| parts.iter().filter(|other| *other == part).count();
        let required = |ok: bool, expected: &'static str, found: usize| match ok {
            true => Ok(()),
            false => Err(TemplateError::Prompt {
                at: source.len(),
                expected,
                found: format!("{found} of them"),
            }),
        };
        let (instructions, outputs) = (count(&Part::Instruction), count(&Part::Output));
        required(outputs == 1, "{output} exactly once", outputs)?;
        required(
            instructions >= 1,
            "{instruction} at least once",
            instructions,
        )?;
        let output = parts
            .iter()
            .position(|part| *part == Part::Output)
            .unwrap_or(0);
        if let Some(part) = parts[output + 1..]
            .iter()
            .find(|part| !matches!(part, Part::Literal(_)))
        {
            return Err(TemplateError::Prompt {
                at: source.len(),
                expected: "nothing but text after {output}",
                found: format!("{part:?}").to_lowercase(),
            });
        }
        Ok(Self {
            source: source.to_owned(),
            parts,
        })
    }

    /// The template as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template shows a row's `input`.
    pub fn uses_input(&self) -> bool {
        self.parts.contains(&Part::Input)
    }

    /// Renders a training row; `eos_token` is appended unless the text already ends in it.
    pub fn render(&self, row: &Instruction, eos_token: &str) -> RenderedPrompt {
        let mut text = self.prompt(row);
        let start = text.len();
        text.push_str(&row.output);
        for part in self.parts.iter().skip_while(|part| **part != Part::Output) {
            if let Part::Literal(literal) = part {
                text.push_str(literal);
            }
        }
        if !text[start..].ends_with(eos_token) {
            text.push_str(eos_token);
        }
        let answer = start..text.len();
        RenderedPrompt { text, answer }
    }

    /// The text before the output: what generation starts from.
    pub fn prompt(&self, row: &Instruction) -> String {
        let mut text = String::new();
        for part in self.parts.iter().take_while(|part| **part != Part::Output) {
            text.push_str(match part {
                Part::Literal(literal) => literal,
                Part::Instruction => &row.instruction,
                Part::Input => &row.input,
                Part::Output => "",
            });
        }
        text
    }
}

fn parse_parts(source: &str) -> Result<Vec<Part>, TemplateError> {
    let error = |at, expected, found: &str| {
        Err(TemplateError::Prompt {
            at,
            expected,
            found: format!("`{found}`"),
        })
    };
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut at = 0;
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        if rest.starts_with("{{") || rest.starts_with("}}") {
            literal.push(c);
            at += 2;
        } else if c == '}' {
            return error(at, "`}}` for a literal brace", "}");
        } else if c == '{' {
            let Some(length) = rest.find('}') else {
                return error(at, PLACEHOLDERS, &rest.chars().take(20).collect::<String>());
            };
            let part = match &rest[1..length] {
                "instruction" => Part::Instruction,
                "input" => Part::Input,
                "output" => Part::Output,
                _ => return error(at, PLACEHOLDERS, &rest[..=length]),
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(part);
            at += length + 1;
        } else {
            literal.push(c);
            at += c.len_utf8();
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(instruction: &str, input: &str, output: &str) -> Instruction {
        Instruction {
            instruction: instruction.into(),
            input: input.into(),
            output: output.into(),
            ..Instruction::default()
        }
    }

    #[track_caller]
    fn check(template: &str, row: &Instruction, text: &str, answer: &str) {
        let rendered = PromptTemplate::parse(template).unwrap().render(row, "</s>");
        assert_eq!(rendered.text, text);
        assert_eq!(&rendered.text[rendered.answer], answer);
    }

    #[test]
    fn fills_placeholders_and_ends_in_one_eos() {
        let add = row("Add {x}", "1 2", "3");
        check(
            "I: {instruction}\n{input}\nO: {output}",
            &add,
            "I: Add {x}\n1 2\nO: 3</s>",
            "3</s>",
        );
        check("{instruction}{output}</s>", &add, "Add {x}3</s>", "3</s>");
        check(
            "{{{instruction}}} {output}\n",
            &add,
            "{Add {x}} 3\n</s>",
            "3\n</s>",
        );
        check(
            "é{instruction}中{output}",
            &row("", "", "ü"),
            "é中ü</s>",
            "ü</s>",
        );
        check(
            "{instruction}{output}",
            &row("q", "", "a</s>"),
            "qa</s>",
            "a</s>",
        );
        check(
            "{instruction}</s>{output}",
            &row("q", "", ""),
            "q</s></s>",
            "</s>",
        );
    }

    #[test]
    fn refuses_what_it_cannot_fill() {
        let message = |source| PromptTemplate::parse(source).unwrap_err().to_string();
        assert_eq!(
            message("{instruction} {context}{output}"),
            "prompt template, byte 14: expected {instruction}, {input} or {output} ({{ and }} are literal \
             braces), found `{context}`"
        );
        assert_eq!(
            message("x } {output}"),
            "prompt template, byte 2: expected `}}` for a literal brace, found `}`"
        );
        assert_eq!(
            message("{instruction} only"),
            "prompt template, byte 18: expected {output} exactly once, found 0 of them"
        );
        assert!(message("{output}").contains("{instruction} at least once"));
        assert!(
            message("{instruction}{output}{input}")
                .contains("nothing but text after {output}, found input")
        );
        assert!(message("{instruction").contains("found `{instruction`"));
    }

    proptest! {
        #[test]
        fn any_template_is_refused_or_renders_its_output(source in "[a-z{}é]{0,20}(\\{instruction\\})?[a-z{}]{0,6}(\\{output\\})?[{}x]{0,4}") {
            if let Ok(template) = PromptTemplate::parse(&source) {
                let rendered = template.render(&row("I", "", "the output"), "</s>");
                prop_assert!(rendered.text[rendered.answer.clone()].starts_with("the output"));
                prop_assert_eq!(rendered.answer.end, rendered.text.len());
                prop_assert!(rendered.text.ends_with("</s>"));
            }
        }
    }
}
