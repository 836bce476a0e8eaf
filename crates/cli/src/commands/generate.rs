//! `generate`: let a model write.

use std::time::Instant;

use backdraft_data::{Conversation, Message, Role};
use backdraft_model::generate::{GenerateConfig, SamplingConfig};
use clap::Args;

use crate::args::{ModelArgs, SamplingArgs};
use crate::commands::Context;
use crate::error::CliError;
use crate::output::Output;
use crate::session::Session;

/// Let a model, with or without an adapter, answer a prompt
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft generate --model HuggingFaceTB/SmolLM2-135M-Instruct \"What is the capital of France?\"
  backdraft generate --model model.gguf --temperature 0.7 --top-p 0.9 \"Tell a story\"
  backdraft generate --model model.gguf --adapter outputs/adapter --chat")]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// What to say to the model
    #[arg(value_name = "PROMPT", required_unless_present = "chat")]
    pub(crate) prompt: Option<String>,

    /// Talk to the model line by line
    #[arg(long, conflicts_with = "raw")]
    pub(crate) chat: bool,

    /// Give the prompt to the model as it is, without its chat template
    #[arg(long)]
    pub(crate) raw: bool,

    /// System message before the prompt
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

pub(crate) fn run(args: &GenerateArgs, context: Context) -> Result<(), CliError> {
    let session = Session::open(&args.model, context)?;
    let config = config(&args.sampling, &session);
    if args.chat {
        return chat(&session, args, config, context);
    }
    let prompt = args.prompt.as_deref().unwrap_or_default();
    let ids = if args.raw {
        session
            .tokenizer
            .encode_text(prompt)
            .map_err(CliError::boxed)?
            .ids
    } else {
        let mut messages = system(args);
        messages.push(Message::new(Role::User, prompt));
        session.tokenizer.encode_chat(&Conversation {
            messages,
            tools: None,
        })?
    };
    let answer = answer(&session, &ids, &config, context.output)?;
    context.output.line("")?;
    context.output.record(&serde_json::json!({
        "prompt": prompt,
        "text": answer.text,
        "ids": answer.ids,
        "seconds": answer.seconds,
        "tokens_per_second": answer.ids.len() as f64 / answer.seconds.max(1e-9),
    }))
}

fn chat(
    session: &Session,
    args: &GenerateArgs,
    config: GenerateConfig,
    context: Context,
) -> Result<(), CliError> {
    let output = context.output;
    output.progress("An empty line or the end of the input ends the chat.");
    let mut messages = system(args);
    let mut next = args.prompt.clone();
    loop {
        let line = match next.take() {
            Some(line) => line,
            None => {
                output.stream("> ")?;
                let mut line = String::new();
                std::io::stdin()
                    .read_line(&mut line)
                    .map_err(|error| CliError::user("cannot read the input").because(error))?;
                line
            }
        };
        if line.trim().is_empty() {
            return Ok(());
        }
        messages.push(Message::new(Role::User, line.trim()));
        let chat = Conversation {
            messages: messages.clone(),
            tools: None,
        };
        let ids = session.tokenizer.encode_chat(&chat)?;
        let answer = answer(session, &ids, &config, output)?;
        output.line("")?;
        output.record(&serde_json::json!({ "text": answer.text, "ids": answer.ids }))?;
        messages.push(Message::new(Role::Assistant, answer.text));
    }
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

struct Answer {
    text: String,
    ids: Vec<u32>,
    seconds: f64,
}

/// Continues `ids`, showing the text as it comes.
fn answer(
    session: &Session,
    ids: &[u32],
    config: &GenerateConfig,
    output: Output,
) -> Result<Answer, CliError> {
    let vocabulary = session.model.config().vocab_size;
    if ids.is_empty() || ids.iter().any(|&id| id as usize >= vocabulary) {
        return Err(CliError::user(format!(
            "the prompt has {} tokens, of which every id must be below {vocabulary}",
            ids.len()
        )));
    }
    let longest = session.model.config().max_position_embeddings;
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
        failure.is_none()
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
