//! `generate`: text from a prompt, or a chat.

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use backdraft_data::{Conversation, DataError, Message, Role, TemplateError};
use backdraft_model::generate::{GenerateConfig, SamplingConfig};
use clap::Args;

use crate::args::{ModelArgs, SamplingArgs, TemplateArgs};
use crate::commands::{Context, chat};
use crate::error::CliError;
use crate::output::Output;
use crate::session::Session;

/// Generate text from a prompt, or chat
///
/// In a chat, /exit, an empty line or the end of input ends it; Ctrl-C stops an answer, or the program where no answer
/// is being written.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft generate --model HuggingFaceTB/SmolLM2-135M-Instruct \"What is the capital of France?\"
  backdraft generate --model model.gguf --temperature 0.7 --top-p 0.9 \"Tell a story\"
  backdraft generate --model model.gguf --adapter outputs/adapter --chat
  backdraft generate --model model.gguf --prompt-file question.txt")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// The user's message; - reads it from standard input
    #[arg(value_name = "PROMPT", required_unless_present_any = ["chat", "prompt_file"])]
    pub(crate) prompt: Option<String>,

    /// Read the message from a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompt_file: Option<PathBuf>,

    /// Chat with the model line by line
    #[arg(long, conflicts_with = "raw")]
    pub(crate) chat: bool,

    /// Use the prompt as it is, without the chat template
    #[arg(long)]
    pub(crate) raw: bool,

    /// System message
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,

    #[command(flatten)]
    pub(crate) template: TemplateArgs,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

pub(crate) fn run(args: &GenerateArgs, context: Context) -> Result<(), CliError> {
    let prompt = prompt(args)?;
    let session = Session::open(&args.model, context)?.with_template(&args.template)?;
    let config = config(&args.sampling, &session);
    if args.chat {
        return chat::chat(&session, system(args), prompt, &config, context.output);
    }
    let prompt = prompt.as_deref().unwrap_or_default();
    let ids = if args.raw || session.plain_prompts && args.system.is_none() {
        let ids = session
            .tokenizer
            .encode_text(prompt)
            .map_err(CliError::boxed)?
            .ids;
        session.tokenizer.check_ids(&ids)?;
        ids
    } else {
        let mut messages = system(args);
        messages.push(Message::new(Role::User, prompt));
        let raw = "--raw continues the prompt as it is; ";
        encode(&session, messages, raw)?
    };
    let answer = answer(
        &session,
        &ids,
        &config,
        context.output,
        &AtomicBool::new(false),
    )?;
    context.output.line("")?;
    context
        .output
        .record("answer", &answer.to_json(Some(prompt)))
}

/// A conversation, ready for the model to answer; `otherwise` is what else helps a model that has no chat template.
pub(crate) fn encode(
    session: &Session,
    messages: Vec<Message>,
    otherwise: &str,
) -> Result<Vec<u32>, CliError> {
    let tools = None;
    let encoded = session
        .tokenizer
        .encode_chat(&Conversation { messages, tools });
    encoded.map_err(|error| match error {
        DataError::Template(TemplateError::Missing) => {
            CliError::user("the model has no chat template, as is usual for base models").hint(
                format!(
                    "{otherwise}--chat-template NAME answers it as a chat (`backdraft init --templates` lists names)"
                ),
            )
        }
        error => error.into(),
    })
}

/// The prompt from the command line, standard input or a file.
fn prompt(args: &GenerateArgs) -> Result<Option<String>, CliError> {
    let text = match (&args.prompt, &args.prompt_file) {
        (Some(prompt), _) if prompt == "-" && args.chat => {
            return Err(CliError::usage(
                "a chat reads standard input itself: leave - out",
            ));
        }
        (Some(prompt), _) if prompt == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| {
                    CliError::user("cannot read the prompt from standard input").because(error)
                })?;
            text
        }
        (Some(prompt), _) => return Ok(Some(prompt.clone())),
        (None, Some(path)) => std::fs::read_to_string(path).map_err(|error| {
            CliError::user(format!("cannot read {}", path.display())).because(error)
        })?,
        (None, None) => return Ok(None),
    };
    // The line end that editors and `echo` leave is not meant.
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| {
        text.strip_suffix('\r').unwrap_or(text)
    });
    if text.trim().is_empty() {
        return Err(CliError::user("the prompt is empty"));
    }
    Ok(Some(text.to_owned()))
}

fn system(args: &GenerateArgs) -> Vec<Message> {
    args.system
        .iter()
        .map(|text| Message::new(Role::System, text))
        .collect()
}

fn config(sampling: &SamplingArgs, session: &Session) -> GenerateConfig {
    GenerateConfig {
        max_new_tokens: sampling.max_new_tokens,
        stop_ids: session.tokenizer.eos_token_ids().to_vec(),
        sampling: SamplingConfig {
            temperature: sampling.temperature as f32,
            top_k: sampling.top_k.map(|k| k as usize),
            top_p: sampling.top_p.map(|p| p as f32),
            seed: sampling.seed,
        },
    }
}

/// What a model has written.
pub(crate) struct Answer {
    pub(crate) text: String,
    ids: Vec<u32>,
    seconds: f64,
}

impl Answer {
    pub(crate) fn to_json(&self, prompt: Option<&str>) -> serde_json::Value {
        serde_json::json!({
            "prompt": prompt,
            "text": self.text,
            "ids": self.ids,
            "seconds": self.seconds,
            "tokens_per_second": self.ids.len() as f64 / self.seconds.max(1e-9),
        })
    }
}

/// Continues `ids`, showing the text as it comes, until its end or until `stopped` is set.
pub(crate) fn answer(
    session: &Session,
    ids: &[u32],
    config: &GenerateConfig,
    output: Output,
    stopped: &AtomicBool,
) -> Result<Answer, CliError> {
    let vocabulary = session.model.spec().vocab_size;
    if ids.is_empty() || ids.iter().any(|&id| id as usize >= vocabulary) {
        return Err(CliError::user(format!(
            "the prompt has {} tokens, of which every id must be below {vocabulary}",
            ids.len()
        )));
    }
    let longest = session.model.spec().max_position_embeddings;
    if ids.len() >= longest {
        return Err(CliError::user(format!(
            "the prompt has {} tokens, but the model takes {longest} at most",
            ids.len()
        )));
    }
    let mut config = config.clone();
    config.max_new_tokens = config.max_new_tokens.min(longest - ids.len());
    let began = Instant::now();
    let mut stream = session.tokenizer.stream(true);
    let mut text = String::new();
    let mut failure = None;
    let mut generated = session.model.generate(&[ids], &config, |_, id| {
        let piece = stream.push(id).map_err(CliError::boxed);
        let shown = piece.and_then(|piece| {
            text.push_str(&piece);
            output.stream(&piece)
        });
        failure = shown.err();
        failure.is_none() && !output.is_closed() && !stopped.load(Ordering::Relaxed)
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let rest = stream.finish().map_err(CliError::boxed)?;
    output.stream(&rest)?;
    text.push_str(&rest);
    Ok(Answer {
        text,
        ids: generated.remove(0),
        seconds: began.elapsed().as_secs_f64(),
    })
}
