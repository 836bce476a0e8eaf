//! Chat templates: Jinja as transformers sets it, in a sandbox.

pub mod builtin;
mod functions;
mod source;

use std::io::{self, Write};
use std::ops::Range;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use crate::conversation::{Conversation, Message};
use crate::error::TemplateError;
use functions::Raised;

const NAME: &str = "chat_template";
/// Instructions plus 64-byte blocks of text that one rendering may cost: about a second.
const FUEL: u64 = 10_000_000;
const RECURSION_LIMIT: usize = 200;
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
    environment: Environment<'static>,
    marks_answers: bool,
    source: String,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template; the tokens are what it sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError::Parse`].
    pub fn new(
        source: &str,
        bos_token: Option<&str>,
        eos_token: Option<&str>,
    ) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_debug(false);
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .keep_trailing_newline(false)
                .build()
                .map_err(|source| TemplateError::Parse { source })?,
        );
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        functions::add(&mut environment, chrono::Local::now().naive_local());
        functions::add_generation(&mut environment);
        let (rewritten, marks_answers) = source::with_generation_filters(source);
        environment
            .add_template_owned(NAME, rewritten)
            .map_err(|source| TemplateError::Parse { source })?;
        Ok(Self {
            environment,
            marks_answers,
            source: source.to_owned(),
            bos_token: bos_token.map(str::to_owned),
            eos_token: eos_token.map(str::to_owned),
        })
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// [`TemplateError::Raised`] when the template refuses the conversation,
    /// [`TemplateError::TooLarge`], and [`TemplateError::Render`] for anything else, fuel included.
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
        self.marks_answers
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
        if !self.marks_answers {
            return Ok(None);
        }
        let mut context = self.context(&conversation.messages, conversation.tools.as_ref(), false);
        context.insert(functions::MARKS.into(), true.into());
        Ok(functions::unmark(&self.render_context(context)?))
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
        self.render_context(self.context(messages, tools, add_generation_prompt))
    }

    fn render_context(&self, context: Map<String, Json>) -> Result<String, TemplateError> {
        let context = Value::from(Serde(Json::Object(context)));
        let mut output = Limited {
            bytes: Vec::new(),
            exceeded: false,
        };
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| template.render_captured_to(context, &mut output).map(drop));
        if output.exceeded {
            return Err(TemplateError::TooLarge {
                limit: MAX_RENDERED_BYTES,
            });
        }
        rendered.map_err(render_error)?;
        String::from_utf8(output.bytes).map_err(|error| TemplateError::Render {
            source: minijinja::Error::new(ErrorKind::BadSerialization, "not UTF-8")
                .with_source(error),
        })
    }

    fn context(
        &self,
        messages: &[Message],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Map<String, Json> {
        let messages: Vec<Json> = messages.iter().map(Message::to_json).collect();
        let mut context = Map::new();
        context.insert("messages".into(), messages.into());
        context.insert("tools".into(), tools.cloned().unwrap_or(Json::Null));
        context.insert("documents".into(), Json::Null);
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        // As in transformers, a token that the model lacks is undefined, not empty.
        for (key, token) in [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
        ] {
            if let Some(token) = token {
                context.insert(key.into(), token.as_str().into());
            }
        }
        context
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("bos_token", &self.bos_token)
            .field("eos_token", &self.eos_token)
            .finish_non_exhaustive()
    }
}

fn render_error(error: minijinja::Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(Raised(message)) = cause.downcast_ref::<Raised>() {
            return TemplateError::Raised {
                message: message.clone(),
            };
        }
        source = cause.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::Endless { limit: FUEL },
        _ => TemplateError::Render { source: error },
    }
}

struct Limited {
    bytes: Vec<u8>,
    exceeded: bool,
}

impl Write for Limited {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(chunk.len()) > MAX_RENDERED_BYTES {
            self.exceeded = true;
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
