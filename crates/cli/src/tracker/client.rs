//! Requests to a tracker's server, with limits of time.

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

/// How long a whole request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are read.
const LONGEST: u64 = 1 << 20;
/// Characters of what a server says that are shown.
const SHOWN: usize = 200;

/// Why a server did not take something.
#[derive(Debug)]
pub(super) struct Failure {
    what: String,
    /// Whether the same would be refused again.
    pub(super) is_final: bool,
    /// The status, where there was an answer.
    pub(super) status: Option<u16>,
}

impl Failure {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            is_final: true,
            status: None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Speaks JSON with one server.
pub(super) struct Client {
    agent: Agent,
    url: String,
    /// Headers that let it in; they are shown nowhere.
    headers: Vec<(&'static str, String)>,
}

impl Client {
    pub(super) fn new(url: &str, headers: Vec<(&'static str, String)>) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // What lets us in is for this server alone.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("backdraft/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.into(),
            url: url.to_owned(),
            headers,
        }
    }

    pub(super) fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, Failure> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        for (name, value) in query {
            request = request.query(*name, *value);
        }
        self.answer(path, request.call())
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let mut request = self.agent.post(format!("{}{path}", self.url));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.header("Content-Type", "application/json");
        self.answer(path, request.send(body.to_string().as_bytes()))
    }

    fn answer(
        &self,
        path: &str,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value, Failure> {
        let place = format!("{}{path}", self.url);
        let network = |error: &ureq::Error| Failure {
            what: format!("{place}: {error}"),
            is_final: false,
            status: None,
        };
        let mut answer = answer.map_err(|error| network(&error))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(LONGEST);
        let text = body.read_to_string().map_err(|error| network(&error))?;
        if !(200..300).contains(&status) {
            let said: String = text
                .chars()
                .filter(|c| !c.is_control())
                .take(SHOWN)
                .collect();
            return Err(Failure {
                what: format!("{place} answers {status}: {}", self.without_secrets(said)),
                is_final: !matches!(status, 408 | 429 | 500..),
                status: Some(status),
            });
        }
        if text.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).map_err(|_| {
            Failure::new(format!(
                "{place} does not answer in JSON: is it the server?"
            ))
        })
    }

    /// A server may repeat what it was sent.
    fn without_secrets(&self, mut text: String) -> String {
        for (_, value) in &self.headers {
            for part in value.split(' ').filter(|part| part.len() >= 4) {
                text = text.replace(part, "…");
            }
        }
        text
    }
}
