//! Chat templates: Jinja as transformers sets it, in a sandbox.

pub mod builtin;
mod context;

use std::ops::Range;

use serde_json::{Map, Value as Json};

use crate::conversation::{Conversation, Message};
use crate::error::TemplateError;
use backdraft_jinja::{JinjaError, JinjaErrorKind, Limits, Template};
pub use context::NamedTokens;

/// Steps of work that one rendering may cost, 64 bytes of text being one: about a second.
const FUEL: u64 = 10_000_000;
/// The largest rendering, in bytes.
pub const MAX_RENDERED_BYTES: usize = 64 << 20;

/// A rendered text with the bytes of it that are marked, ascending.
pub type MarkedText = (String, Vec<Range<usize>>);

/// A compiled chat template.
///
/// A template is untrusted code: it sees no file, loads no other template, and stops at a limit
/// of work, recursion and output.
///
/// # Source
/// `transformers/utils/chat_template_utils.py`: `trim_blocks`, `lstrip_blocks`, loop controls,
/// `raise_exception`, `strftime_now`, `tojson` without HTML escapes, `{% generation %}`.
pub struct ChatTemplate {
    template: Template,
    source: String,
    tokens: NamedTokens,
    limits: Limits,
}

impl ChatTemplate {
    /// Compiles a template that sees these two special tokens.
    ///
    /// # Errors
    /// [`TemplateError::Parse`].
    pub fn new(
        source: &str,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Result<Self, TemplateError> {
        let mut tokens = NamedTokens::default();
        for (name, token) in [("bos_token", bos_token), ("eos_token", eos_token)] {
            tokens.set(name, token.map(str::to_owned));
        }
        Self::with_tokens(source, tokens)
    }

    /// Compiles a template that sees these special tokens.
    ///
    /// `strftime_now` tells the time of this call, so that every row of a run sees one date.
    ///
    /// # Errors
    /// [`TemplateError::Parse`].
    pub fn with_tokens(source: &str, tokens: NamedTokens) -> Result<Self, TemplateError> {
        Ok(Self {
            template: Template::parse(source).map_err(|source| TemplateError::Parse { source })?,
            source: source.to_owned(),
            tokens,
            limits: Limits {
                fuel: FUEL,
                max_bytes: MAX_RENDERED_BYTES,
                now: chrono::Local::now().naive_local(),
            },
        })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] when the template refuses the conversation,
    /// [`TemplateError::TooLarge`] and [`TemplateError::Endless`] at the limits,
    /// [`TemplateError::Broken`] when it is at fault for any conversation, and
    /// [`TemplateError::Render`] for anything else.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.render_messages(
            &conversation.messages,
            conversation.tools.as_ref(),
            add_generation_prompt,
        )
    }

    /// The Jinja text as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says by `{% generation %}` what the model writes.
    pub fn marks_answers(&self) -> bool {
        self.template.has_generation()
    }

    /// Renders a conversation and gives the bytes inside `{% generation %}` with it; `None` where
    /// they cannot be told, as in a template without that tag.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_marked(
        &self,
        conversation: &Conversation,
    ) -> Result<Option<MarkedText>, TemplateError> {
        if !self.marks_answers() {
            return Ok(None);
        }
        let context = self.context(&conversation.messages, conversation.tools.as_ref(), false);
        self.template
            .render_marked(&context, &self.limits)
            .map_err(render_error)
    }

    /// [`Self::render`] for a part of a conversation.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_messages(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let context = self.context(messages, tools, add_generation_prompt);
        self.template
            .render(&context, &self.limits)
            .map_err(render_error)
    }

    fn context(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Map<String, Json> {
        context::of(messages, tools, add_generation_prompt, &self.tokens)
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

fn render_error(error: Box<JinjaError>) -> TemplateError {
    match error.kind {
        JinjaErrorKind::Raised => TemplateError::Raised {
            message: error.message,
        },
        JinjaErrorKind::Fuel => TemplateError::Endless { limit: FUEL },
        JinjaErrorKind::Large => TemplateError::TooLarge {
            limit: MAX_RENDERED_BYTES,
        },
        JinjaErrorKind::Unknown => TemplateError::Broken { source: error },
        JinjaErrorKind::Syntax | JinjaErrorKind::Undefined | JinjaErrorKind::Runtime => {
            TemplateError::Render { source: error }
        }
    }
}

#[cfg(test)]
mod tests;
