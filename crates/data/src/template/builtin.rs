//! Chat templates that a recipe can name, for models that come without one.

/// A template by name, written after the published description of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuiltinTemplate {
    /// OpenAI's ChatML, as Qwen and SmolLM2 use it.
    Chatml,
    /// Llama 2 Chat.
    Llama2,
    /// Llama 3 Instruct.
    Llama3,
    /// Mistral Instruct, first versions.
    Mistral,
    /// Gemma and Gemma 2 Instruct.
    Gemma,
    /// Phi 3 Instruct.
    Phi3,
    /// Zephyr.
    Zephyr,
    /// Stanford Alpaca, for conversations.
    Alpaca,
    /// Vicuna 1.1 and later.
    Vicuna,
}

impl BuiltinTemplate {
    /// Every template, in the order in which they are listed.
    pub const ALL: [Self; 9] = [
        Self::Chatml,
        Self::Llama3,
        Self::Llama2,
        Self::Mistral,
        Self::Gemma,
        Self::Phi3,
        Self::Zephyr,
        Self::Alpaca,
        Self::Vicuna,
    ];

    /// The name used in recipes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chatml => "chatml",
            Self::Llama2 => "llama2",
            Self::Llama3 => "llama3",
            Self::Mistral => "mistral",
            Self::Gemma => "gemma",
            Self::Phi3 => "phi3",
            Self::Zephyr => "zephyr",
            Self::Alpaca => "alpaca",
            Self::Vicuna => "vicuna",
        }
    }

    /// The template with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|template| template.as_str() == name)
    }

    /// How a turn looks, on one line.
    pub fn summary(self) -> &'static str {
        match self {
            Self::Chatml => "<|im_start|>user … <|im_end|>",
            Self::Llama2 => "[INST] … [/INST] … EOS",
            Self::Llama3 => "<|start_header_id|>user<|end_header_id|> … <|eot_id|>",
            Self::Mistral => "[INST] … [/INST] … EOS, one BOS",
            Self::Gemma => "<start_of_turn>user … <end_of_turn>",
            Self::Phi3 => "<|user|> … <|end|>",
            Self::Zephyr => "<|user|> … EOS",
            Self::Alpaca => "### Instruction: … ### Response: … EOS; no special tokens needed",
            Self::Vicuna => "USER: … ASSISTANT: … EOS; no special tokens needed",
        }
    }

    /// The Jinja text.
    pub fn source(self) -> &'static str {
        match self {
            Self::Chatml => include_str!("builtin/chatml.jinja"),
            Self::Llama2 => include_str!("builtin/llama2.jinja"),
            Self::Llama3 => include_str!("builtin/llama3.jinja"),
            Self::Mistral => include_str!("builtin/mistral.jinja"),
            Self::Gemma => include_str!("builtin/gemma.jinja"),
            Self::Phi3 => include_str!("builtin/phi3.jinja"),
            Self::Zephyr => include_str!("builtin/zephyr.jinja"),
            Self::Alpaca => include_str!("builtin/alpaca.jinja"),
            Self::Vicuna => include_str!("builtin/vicuna.jinja"),
        }
    }
}

impl std::fmt::Display for BuiltinTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::{Conversation, Message, Role};
    use crate::template::ChatTemplate;

    fn render(template: BuiltinTemplate, turns: &[(Role, &str)], prompt: bool) -> String {
        let messages = turns
            .iter()
            .map(|(role, text)| Message::new(*role, *text))
            .collect();
        ChatTemplate::new(template.source(), Some("<s>"), Some("</s>"))
            .unwrap()
            .render(&Conversation::new(messages), prompt)
            .unwrap()
    }

    use Role::{Assistant, System, User};
    const CHAT: [(Role, &str); 4] = [(System, "S"), (User, "a"), (Assistant, "b"), (User, "c")];

    /// The layouts as their authors describe them, written out by hand.
    #[test]
    fn render_as_published() {
        let cases = [
            (
                BuiltinTemplate::Chatml,
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n\
                 <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
            ),
            (
                BuiltinTemplate::Llama3,
                "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n\
                 a<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|><|start_header_id|>user\
                 <|end_header_id|>\n\nc<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            (
                BuiltinTemplate::Llama2,
                "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]",
            ),
            (
                BuiltinTemplate::Mistral,
                "<s>[INST] S\n\na [/INST] b</s>[INST] c [/INST]",
            ),
            (
                BuiltinTemplate::Gemma,
                "<s><start_of_turn>user\nS\n\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n\
                 <start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n",
            ),
            (
                BuiltinTemplate::Phi3,
                "<|system|>\nS<|end|>\n<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n",
            ),
            (
                BuiltinTemplate::Zephyr,
                "<|system|>\nS</s>\n<|user|>\na</s>\n<|assistant|>\nb</s>\n<|user|>\nc</s>\n<|assistant|>\n",
            ),
            (
                BuiltinTemplate::Alpaca,
                "<s>S\n\n### Instruction:\na\n\n### Response:\nb</s>\n\n### Instruction:\nc\n\n### Response:\n",
            ),
            (
                BuiltinTemplate::Vicuna,
                "<s>S USER: a ASSISTANT: b</s> USER: c ASSISTANT:",
            ),
        ];
        assert_eq!(cases.len(), BuiltinTemplate::ALL.len());
        for (template, expected) in cases {
            assert_eq!(render(template, &CHAT, true), expected, "{template}");
            assert_eq!(
                BuiltinTemplate::from_name(template.as_str()),
                Some(template)
            );
        }
    }

    #[test]
    fn one_turn_without_a_system_prompt() {
        let turn = [(User, "a"), (Assistant, "b")];
        let rendered = |template| render(template, &turn, false);
        assert_eq!(
            rendered(BuiltinTemplate::Alpaca),
            "<s>Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\na\n\n### Response:\nb</s>\n\n"
        );
        assert_eq!(
            rendered(BuiltinTemplate::Gemma),
            "<s><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
        );
        assert_eq!(
            rendered(BuiltinTemplate::Mistral),
            "<s>[INST] a [/INST] b</s>"
        );
        assert_eq!(
            rendered(BuiltinTemplate::Llama2),
            "<s>[INST] a [/INST] b </s>"
        );
    }

    #[test]
    fn say_what_they_cannot_render() {
        let error = |template: BuiltinTemplate, eos, turns: &[(Role, &str)]| {
            let messages = turns.iter().map(|(role, text)| Message::new(*role, *text));
            ChatTemplate::new(template.source(), Some("<s>"), eos)
                .unwrap()
                .render(&Conversation::new(messages.collect()), false)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error(BuiltinTemplate::Gemma, None, &[(User, "a"), (User, "b")]),
            "the chat template refuses the conversation: the template gemma needs user and assistant turns by \
             turns, beginning with the user"
        );
        assert_eq!(
            error(BuiltinTemplate::Zephyr, None, &CHAT),
            "the chat template refuses the conversation: the template zephyr needs a model with an EOS token"
        );
    }
}
