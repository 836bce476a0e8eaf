//! Jinja 3.1 as transformers sets it, on Python's types.
//!
//! Chat templates are written against Python: they call its strings' methods, print its floats and
//! lists, and rely on what its sandbox refuses. A template that renders one byte differently here
//! trains another model, so this follows `jinja2` and CPython in all that a template can see, and
//! `crates/jinja/tests` holds it to what those two answer.
//!
//! | module | noun |
//! |---|---|
//! | `lexer`, `literal`, `parser`, `ast` | source, tokens, tree |
//! | `value`, `dict`, `repr`, `compare`, `arithmetic`, `iterate`, `attribute` | Python's types |
//! | `percent`, `spec`, `braces` | `'%d' % x`, `format(x, '>8')`, `'{}'.format(x)` |
//! | `render`, `evaluate`, `scope`, `call`, `loop_context`, `functions` | running the tree |
//! | `methods`, `filters`, `is_tests`, `json`, `html`, `unicode` | what templates call |
//! | `meter` | the limits of work and memory |
//!
//! # Source
//! Jinja 3.1.6 (`lexer.py`, `parser.py`, `compiler.py`, `runtime.py`, `filters.py`, `tests.py`,
//! `sandbox.py`), transformers' `chat_template_utils.py`, the documentation of Python 3.

#![cfg_attr(test, allow(clippy::print_stdout, clippy::unwrap_used))]

mod args;
mod arithmetic;
mod ast;
mod attribute;
mod braces;
mod call;
mod compare;
mod dict;
mod error;
mod evaluate;
mod filters;
mod functions;
mod html;
mod is_tests;
mod iterate;
mod json;
mod lexer;
mod literal;
mod loop_context;
mod meter;
mod methods;
mod parser;
mod percent;
mod render;
mod repr;
mod scope;
mod spec;
mod unicode;
mod value;

use std::ops::Range;

use chrono::NaiveDateTime;
use serde_json::{Map, Value as Json};

pub use error::{JinjaError, JinjaErrorKind};
use parser::Parsed;
use render::Renderer;

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    parsed: Parsed,
}

/// What a rendering may cost, and what it sees of the world.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Steps of work, of which 64 bytes of text cost one.
    pub fuel: u64,
    /// The largest output in bytes.
    pub max_bytes: usize,
    /// What `strftime_now` tells.
    pub now: NaiveDateTime,
}

/// A rendering, and the bytes of it that `{% generation %}` holds.
pub type Marked = (String, Vec<Range<usize>>);

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// What Jinja's parser refuses, and constructs that are refused by name.
    pub fn parse(source: &str) -> Result<Self, Box<JinjaError>> {
        Ok(Self {
            parsed: parser::parse(source)?,
        })
    }

    /// Whether there is a `{% generation %}`.
    #[must_use]
    pub fn has_generation(&self) -> bool {
        self.parsed.has_generation
    }

    /// Renders with these variables.
    ///
    /// # Errors
    /// What transformers' sandbox raises, and more work or text than `limits` allow.
    pub fn render(
        &self,
        context: &Map<String, Json>,
        limits: &Limits,
    ) -> Result<String, Box<JinjaError>> {
        Renderer::new(&self.parsed, limits, false).template(&self.parsed.body, context)
    }

    /// Renders with these variables and tells which bytes `{% generation %}` holds; `None` where
    /// that cannot be told, as where a filter took a mark away.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_marked(
        &self,
        context: &Map<String, Json>,
        limits: &Limits,
    ) -> Result<Option<Marked>, Box<JinjaError>> {
        let marked =
            Renderer::new(&self.parsed, limits, true).template(&self.parsed.body, context)?;
        Ok(render::unmark(&marked))
    }
}

#[cfg(test)]
mod tests;
