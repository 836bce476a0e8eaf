//! What chats and completions have in common: model, length, sampling, stops.

use std::hash::{BuildHasher, RandomState};

use backdraft_model::decode::SamplingConfig;
use serde_json::{Value, json};

use crate::api_error::ApiError;
use crate::fields::{Fields, expected};

/// Stop strings of a request, at most.
const MAX_STOPS: usize = 16;
/// Bytes of a stop string, at most.
const MAX_STOP_BYTES: usize = 1024;
/// Choices of a request, at most.
const MAX_CHOICES: i64 = 128;

/// Fields that change no answer of this server.
const IGNORED: [&str; 9] = [
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "prediction",
];

/// What chats and completions have in common.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) model: String,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// Choices for each prompt.
    pub(crate) n: usize,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) stops: Vec<String>,
    pub(crate) sampling: SamplingConfig,
}

impl Options {
    /// `max_tokens` goes by other names in some requests; the first that is there counts.
    pub(crate) fn read(fields: &mut Fields, max_tokens: &[&str]) -> Result<Self, ApiError> {
        let Some(model) = fields.string("model")? else {
            return Err(ApiError::field(
                "model",
                "`model` is missing: name one of GET /v1/models",
            ));
        };
        let mut most = None;
        for key in max_tokens {
            let found = fields.integer(key, 1, i64::from(u32::MAX))?;
            most = most.or(found.map(|count| count as usize));
        }
        let temperature = fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0);
        let top_p = fields.number("top_p", 0.0, 1.0)?;
        let top_k = fields.integer("top_k", -1, i64::from(u32::MAX))?;
        let seed = match fields.take("seed") {
            None => RandomState::new().hash_one(0),
            Some(value) => match (value.as_i64(), value.as_u64()) {
                (Some(seed), _) => seed as u64,
                (None, Some(seed)) => seed,
                (None, None) => return Err(expected("seed", "a whole number of 64 bits", &value)),
            },
        };
        let options = Self {
            model,
            stream: fields.boolean("stream")?.unwrap_or(false),
            include_usage: include_usage(fields)?,
            n: fields.integer("n", 1, MAX_CHOICES)?.unwrap_or(1) as usize,
            max_tokens: most,
            stops: stops(fields)?,
            sampling: SamplingConfig {
                temperature: temperature as f32,
                top_k: top_k.filter(|k| *k > 0).map(|k| k as usize),
                top_p: top_p.filter(|p| *p < 1.0).map(|p| p as f32),
                seed,
            },
        };
        fields.ignore(&IGNORED);
        fields.neutral("presence_penalty", &[json!(0)])?;
        fields.neutral("frequency_penalty", &[json!(0)])?;
        fields.neutral("repetition_penalty", &[json!(1)])?;
        fields.neutral("min_p", &[json!(0)])?;
        fields.neutral("logit_bias", &[json!({})])?;
        Ok(options)
    }
}

fn include_usage(fields: &mut Fields) -> Result<bool, ApiError> {
    let Some(options) = fields.take("stream_options") else {
        return Ok(false);
    };
    match &options {
        Value::Object(map) => Ok(map
            .get("include_usage")
            .and_then(Value::as_bool)
            .unwrap_or(false)),
        other => Err(expected("stream_options", "an object", other)),
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(stops)) => stops,
        Some(stop) => vec![stop],
    };
    let refused = || {
        let message = format!(
            "`stop` must be a string, or a list of up to {MAX_STOPS}, of 1 to {MAX_STOP_BYTES} bytes each"
        );
        ApiError::field("stop", message)
    };
    if stops.len() > MAX_STOPS {
        return Err(refused());
    }
    let read = |stop: Value| match stop {
        Value::String(stop) if (1..=MAX_STOP_BYTES).contains(&stop.len()) => Ok(stop),
        _ => Err(refused()),
    };
    stops.into_iter().map(read).collect()
}
