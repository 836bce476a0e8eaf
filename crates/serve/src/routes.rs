//! The addresses of the server, and how a request becomes jobs and an answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{Response, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use backdraft_model::decode::{DecodeRequest, GenerateConfig};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;

use crate::answer::{Answer, Head, Kind};
use crate::api_error::{ApiError, failure, json_response};
use crate::chat::Chat;
use crate::completions::{Completion, DEFAULT_MAX_TOKENS};
use crate::engine::{Engine, Rejected};
use crate::guard::{Guard, guard};
use crate::job::Job;
use crate::models::Served;
use crate::options::Options;
use crate::page::page;
use crate::settings::Settings;
use crate::stream;

/// What handlers share.
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) settings: Settings,
    pub(crate) guard: Guard,
    /// Set when the server has been told to end.
    pub(crate) ending: AtomicBool,
    started: u64,
    requests: AtomicU64,
}

impl App {
    pub(crate) fn new(engine: Engine, settings: Settings, guard: Guard) -> Self {
        Self {
            engine,
            settings,
            guard,
            ending: AtomicBool::new(false),
            started: now(),
            requests: AtomicU64::new(0),
        }
    }

    /// The model that goes by a name, with its number.
    fn find(&self, name: &str) -> Result<(usize, &Served), ApiError> {
        let served = self.engine.served();
        let found = served
            .iter()
            .enumerate()
            .find(|(_, model)| model.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = served.iter().map(|model| model.name.as_str()).collect();
            let shown: String = name.chars().take(100).collect();
            let message = format!("there is no model `{shown}` here, but {}", names.join(", "));
            ApiError {
                status: StatusCode::NOT_FOUND,
                ..ApiError::field("model", message).coded("model_not_found")
            }
        })
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completion))
        .fallback(|| async {
            ApiError::new(
                StatusCode::NOT_FOUND,
                "not_found",
                "there is nothing at this address",
            )
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this address is not asked in this way",
            )
        })
        .layer(from_fn_with_state(app.guard.clone(), guard))
        .with_state(app)
}

async fn health(State(app): State<Arc<App>>) -> Response<Body> {
    let load = app.engine.load();
    json_response(&json!({
        "status": "ok", "running": load.running, "waiting": load.waiting, "cached_tokens": load.cached_tokens,
        "tokens": load.tokens, "needs_key": app.guard.wants_key(),
    }))
}

fn model_json(app: &App, served: &Served) -> Value {
    let base = &app.engine.served()[0].name;
    let parent = (served.name != *base).then_some(base);
    json!({
        "id": served.name, "object": "model", "created": app.started, "owned_by": "backdraft", "parent": parent,
        "max_model_len": served.context,
    })
}

async fn models(State(app): State<Arc<App>>) -> Response<Body> {
    let models = app
        .engine
        .served()
        .iter()
        .map(|served| model_json(&app, served));
    json_response(&json!({ "object": "list", "data": models.collect::<Vec<_>>() }))
}

async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let (_, served) = app.find(&name)?;
    Ok(json_response(&model_json(&app, served)))
}

/// What a request asks, ready for the engine.
struct Asked {
    kind: Kind,
    model: usize,
    options: Options,
    logprobs: Option<usize>,
    tools: bool,
    prompts: Vec<Vec<u32>>,
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response<Body>, ApiError> {
    let body = body(&app, request).await?;
    let read = move |app: &App| -> Result<Asked, ApiError> {
        let chat = Chat::read(&body)?;
        let (model, served) = app.find(&chat.options.model)?;
        Ok(Asked {
            kind: Kind::Chat,
            model,
            logprobs: chat.logprobs,
            tools: chat.has_tools(),
            prompts: vec![chat.encode(served)?],
            options: chat.options,
        })
    };
    answer(app, read).await
}

async fn completion(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let body = body(&app, request).await?;
    let read = move |app: &App| -> Result<Asked, ApiError> {
        let completion = Completion::read(&body)?;
        let (model, served) = app.find(&completion.options.model)?;
        Ok(Asked {
            kind: Kind::Completion,
            model,
            logprobs: completion.logprobs,
            tools: false,
            prompts: completion.encode(served)?,
            options: completion.options,
        })
    };
    answer(app, read).await
}

async fn body(app: &App, request: Request) -> Result<Vec<u8>, ApiError> {
    let limit = app.settings.max_body;
    let too_large = || {
        let message = format!("the body has more than the {limit} bytes that this server takes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let told = request.headers().get(header::CONTENT_LENGTH);
    let told = told.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if told.is_some_and(|told| told > limit as u64) {
        let rest = drain(request.into_body(), 16 * limit);
        // What is left unread would reset the connection before the client has read why.
        let _ = tokio::time::timeout(app.settings.patience, rest).await;
        return Err(too_large());
    }
    let read = to_bytes(request.into_body(), limit);
    match tokio::time::timeout(app.settings.patience, read).await {
        Ok(Ok(bytes)) => Ok(bytes.to_vec()),
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            "the body did not arrive in time",
        )),
    }
}

/// Reads a body and forgets it, up to a limit.
async fn drain(mut body: Body, limit: usize) {
    let mut seen = 0;
    while seen < limit {
        match poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            Some(Ok(frame)) => seen += frame.data_ref().map_or(0, |data| data.len()),
            Some(Err(_)) | None => return,
        }
    }
}

async fn answer(
    app: Arc<App>,
    read: impl FnOnce(&App) -> Result<Asked, ApiError> + Send + 'static,
) -> Result<Response<Body>, ApiError> {
    if app.ending.load(Ordering::Relaxed) {
        return Err(ApiError::stopped());
    }
    let deadline = Instant::now() + app.settings.timeout;
    // Templates and tokenizers may take a second over a long text.
    let theirs = app.clone();
    let asked = tokio::task::spawn_blocking(move || read(&theirs)).await;
    let asked = asked.map_err(|error| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal_error",
            error.to_string(),
        )
    })??;
    let max_new_tokens = max_new_tokens(&app, &asked)?;
    let (to, mut events) = unbounded_channel();
    let n = asked.options.n;
    let jobs: Vec<Job> = (asked.prompts.iter().enumerate())
        .map(|(i, prompt)| Job {
            request: DecodeRequest {
                model: asked.model,
                prompt: prompt.clone(),
                samples: n,
                config: GenerateConfig {
                    max_new_tokens: max_new_tokens[i],
                    stop_ids: app.engine.served()[asked.model]
                        .tokenizer
                        .eos_token_ids()
                        .to_vec(),
                    sampling: asked.options.sampling.clone(),
                },
                logprobs: asked.logprobs,
            },
            stops: asked.options.stops.clone(),
            first_choice: i * n,
            deadline,
            to: to.clone(),
        })
        .collect();
    drop(to);
    check_memory(&app, &jobs)?;
    app.engine.submit(jobs).map_err(|rejected| match rejected {
        Rejected::Stopped => ApiError::stopped(),
        Rejected::QueueFull => ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "queue_full",
            format!(
                "{} requests wait already: try again later",
                app.settings.queue
            ),
        ),
    })?;
    let number = app.requests.fetch_add(1, Ordering::Relaxed);
    let head = Head {
        kind: asked.kind,
        id: format!("{:x}-{number:x}", app.started),
        created: now(),
        model: asked.options.model,
    };
    let prompt_tokens = asked.prompts.iter().map(Vec::len).sum();
    let choices = asked.prompts.len() * n;
    let mut answer = Answer::new(
        head,
        (prompt_tokens, choices),
        asked.tools,
        asked.logprobs.is_some(),
    );
    let timeout = app.settings.timeout.as_secs();
    if asked.options.stream {
        let usage = asked.options.include_usage;
        return Ok(stream::response(answer, events, usage, timeout));
    }
    while !answer.is_complete() {
        let event = events.recv().await;
        if let Some(error) = failure(event.as_ref(), timeout) {
            return Err(error);
        }
        if let Some(event) = event {
            answer.take(event);
        }
    }
    Ok(json_response(&answer.to_json()))
}

/// New tokens of each prompt, at most.
fn max_new_tokens(app: &App, asked: &Asked) -> Result<Vec<usize>, ApiError> {
    let context = app.engine.served()[asked.model].context;
    let default = match asked.kind {
        Kind::Chat => app.settings.default_max_tokens,
        Kind::Completion => DEFAULT_MAX_TOKENS,
    };
    let param = match asked.kind {
        Kind::Chat => "messages",
        Kind::Completion => "prompt",
    };
    let of = |prompt: &Vec<u32>| {
        let left = context.saturating_sub(prompt.len());
        match asked.options.max_tokens {
            None if left > 0 => Ok(default.min(left)),
            Some(wanted) if wanted <= left => Ok(wanted),
            wanted => {
                let more = wanted.map_or_else(String::new, |wanted| {
                    format!(" and {wanted} more are asked for")
                });
                let message = format!(
                    "the model takes {context} tokens, but the prompt has {}{more}",
                    prompt.len()
                );
                Err(ApiError::field(param, message).coded("context_length_exceeded"))
            }
        }
    };
    asked.prompts.iter().map(of).collect()
}

/// Refuses what can never be taken on.
fn check_memory(app: &App, jobs: &[Job]) -> Result<(), ApiError> {
    for job in jobs {
        let (n, most) = (job.request.samples, app.settings.max_batch);
        if n > most {
            let message = format!("`n` is {n}, but the server continues {most} texts at a time");
            return Err(ApiError::field("n", message));
        }
        let (needed, there) = (job.request.cached_tokens(), app.settings.cached_tokens);
        if needed > there {
            let message = format!(
                "prompt and answer need a cache of {needed} tokens, but the server has {there}: ask for fewer \
                 `max_tokens` or a smaller `n`"
            );
            return Err(ApiError::field("max_tokens", message).coded("cache_exceeded"));
        }
    }
    Ok(())
}
