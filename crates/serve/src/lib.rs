//! An OpenAI-compatible server of a base model and its adapters.
//!
//! ```text
//! connection ─guard─▶ route ─request─▶ Job ─queue─▶ engine thread: Decoder ─▶ pieces of text ─▶ answer or SSE
//! ```
//!
//! | module | noun |
//! |---|---|
//! | [`Server`] | a bound port, and the loop that accepts connections |
//! | [`Settings`] | limits, key, address |
//! | [`Engine`] | the thread that owns the models and continues all requests together |
//! | `job`, `stop` | a request as the engine sees it; text that ends before a stop string |
//! | `fields`, `chat`, `completions`, `options` | what a client may ask, read and checked |
//! | `answer`, `tool_calls` | what it is answered |
//! | `guard`, `connection` | who may ask; how long a connection may keep silent |
//!
//! Requests are untrusted: nothing in them makes the server panic, and what would change an answer and cannot be done is
//! refused by name. `docs/serving.md` says what is understood.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod answer;
mod api_error;
mod chat;
mod completions;
mod connection;
mod engine;
mod error;
mod fields;
mod guard;
mod job;
mod models;
mod options;
mod page;
mod routes;
mod server;
mod settings;
mod stop;
mod stream;
mod tool_calls;

pub use engine::Engine;
pub use error::ServeError;
pub use models::{Model, Prompting};
pub use server::Server;
pub use settings::Settings;
