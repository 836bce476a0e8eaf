//! `Modelfile`: how Ollama runs an exported model.

use std::fmt::Write;
use std::path::Path;

use backdraft_data::{ChatTokenizer, Conversation, Message, Role};

/// Stands for a message while a template's own texts are found.
const MARKS: [&str; 4] = ["⟦first⟧", "⟦second⟧", "⟦third⟧", "⟦fourth⟧"];

/// A whole model: its file, what its prompts are put into, what ends its answers.
pub(super) fn of_model(file: &Path, tokenizer: &ChatTokenizer) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut text = format!("FROM ./{name}\n");
    // Writing to a string cannot fail.
    match Frame::of(tokenizer) {
        Some(frame) => {
            let _ = writeln!(text, "TEMPLATE \"\"\"{}\"\"\"", frame.go());
            if let Some(system) = frame.default_system(tokenizer) {
                let _ = writeln!(text, "SYSTEM \"\"\"{system}\"\"\"");
            }
        }
        None => text.push_str(
            "# The chat template has no short form; Ollama uses the one in the file where it knows it.\n",
        ),
    }
    for end in tokenizer.turn_ends() {
        let _ = writeln!(text, "PARAMETER stop {end:?}");
    }
    text
}

/// An adapter over its base.
pub(super) fn of_adapter(base: &Path, file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    format!("FROM {}\nADAPTER ./{name}\n", base.display())
}

/// The texts around messages, where a template has no more than those.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    system: [String; 2],
    user: [String; 2],
    answer: [String; 2],
}

impl Frame {
    /// Reads them off renderings with marks for messages; `None` if a longer chat is not put together of them.
    fn of(tokenizer: &ChatTokenizer) -> Option<Self> {
        let [system, user, answer, again] = MARKS;
        let turns = [
            (Role::System, system),
            (Role::User, user),
            (Role::Assistant, answer),
            (Role::User, again),
        ];
        let whole = render(tokenizer, &turns, true)?;
        let (before_system, rest) = whole.split_once(system)?;
        let (before_user, rest) = rest.split_once(user)?;
        let (before_answer, rest) = rest.split_once(answer)?;
        let (before_again, before_next) = rest.split_once(again)?;
        // What precedes an answer is the same at the end and within; what follows it ends where the next user's text begins.
        let ended = render(tokenizer, &turns[..3], false)?;
        let (_, after_answer) = ended.split_once(answer)?;
        let user_head = before_again.strip_prefix(after_answer)?;
        let after_system = before_user.strip_suffix(user_head)?;
        if before_answer != before_next {
            return None;
        }
        let frame = Self {
            system: [before_system.to_owned(), after_system.to_owned()],
            user: [user_head.to_owned(), String::new()],
            answer: [before_answer.to_owned(), after_answer.to_owned()],
        };
        let literal = frame.texts().concat();
        let plain = !literal.contains("{{") && !literal.contains("\"\"\"");
        plain.then_some(frame)
    }

    /// The system prompt that the template writes where a chat has none.
    fn default_system(&self, tokenizer: &ChatTokenizer) -> Option<String> {
        let alone = render(tokenizer, &[(Role::User, MARKS[1])], true)?;
        let (before, _) = alone.split_once(MARKS[1])?;
        let [head, tail] = &self.system;
        let system = before.strip_suffix(self.user[0].as_str())?;
        let system = system
            .strip_prefix(head.as_str())?
            .strip_suffix(tail.as_str())?;
        (!system.is_empty() && !system.contains("\"\"\"")).then(|| system.to_owned())
    }

    fn texts(&self) -> [&str; 6] {
        let [a, b] = &self.system;
        let [c, d] = &self.user;
        let [e, f] = &self.answer;
        [a, b, c, d, e, f]
    }

    /// The frame as a template of Go's.
    fn go(&self) -> String {
        let [
            before_system,
            after_system,
            before_user,
            after_user,
            before,
            after,
        ] = self.texts();
        format!(
            "{{{{ if .System }}}}{before_system}{{{{ .System }}}}{after_system}{{{{ end }}}}\
             {{{{ if .Prompt }}}}{before_user}{{{{ .Prompt }}}}{after_user}{before}{{{{ end }}}}\
             {{{{ .Response }}}}{after}"
        )
    }
}

/// A rendered chat, without the first token, which Ollama puts there itself.
fn render(tokenizer: &ChatTokenizer, turns: &[(Role, &str)], prompt: bool) -> Option<String> {
    let turns = turns.iter().map(|(role, text)| Message::new(*role, *text));
    let chat = Conversation::new(turns.collect());
    let text = tokenizer.template()?.render(&chat, prompt).ok()?;
    let bos = tokenizer.bos_token().filter(|_| tokenizer.add_bos());
    Some(match bos.and_then(|bos| text.strip_prefix(bos)) {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use backdraft_data::SpecialTokens;
    use insta::assert_snapshot;
    use serde_json::json;

    use super::*;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn tokenizer(template: &str) -> ChatTokenizer {
        let words = json!({"<|im_start|>": 0, "<|im_end|>": 1, "a": 2});
        let added = |id: u32, content: &str| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        };
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [added(0, "<|im_start|>"), added(1, "<|im_end|>")],
            "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": {"type": "BPE", "vocab": words, "merges": []},
        });
        let json = json.to_string();
        let special = SpecialTokens {
            eos_token: Some("<|im_end|>".to_owned()),
            ..SpecialTokens::default()
        };
        ChatTokenizer::new(json.as_bytes(), special, Some(template)).unwrap()
    }

    #[test]
    fn a_simple_template_becomes_one_of_ollamas() {
        let default = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}";
        let template = format!("{default}{CHATML}");
        assert_snapshot!(of_model(Path::new("gguf/x-q8_0.gguf"), &tokenizer(&template)), @r#"
        FROM ./x-q8_0.gguf
        TEMPLATE """{{ if .System }}<|im_start|>system
        {{ .System }}<|im_end|>
        {{ end }}{{ if .Prompt }}<|im_start|>user
        {{ .Prompt }}<|im_end|>
        <|im_start|>assistant
        {{ end }}{{ .Response }}<|im_end|>
        """
        SYSTEM """Be kind."""
        PARAMETER stop "<|im_end|>"
        "#);
    }

    #[test]
    fn one_that_looks_at_more_than_the_messages_does_not() {
        let counted = CHATML.replace("{{ m.role }}", "{{ m.role }}{{ loop.index }}");
        let text = of_model(Path::new("x.gguf"), &tokenizer(&counted));
        assert!(
            text.starts_with("FROM ./x.gguf\n# The chat template has no short form"),
            "{text}"
        );
    }

    #[test]
    fn an_adapter_stands_over_its_base() {
        let text = of_adapter(Path::new("/models/base"), Path::new("gguf/x-lora.gguf"));
        assert_eq!(text, "FROM /models/base\nADAPTER ./x-lora.gguf\n");
    }
}
