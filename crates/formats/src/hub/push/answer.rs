//! What the hub or its storage answers.

use std::time::Duration;

use serde_json::Value;
use ureq::Body;
use ureq::http::Response;

use super::error::PushError;

/// The longest answer that is read: the list of a repository's files.
const LONGEST_ANSWER: u64 = 64 << 20;
/// How much of what the hub says about a failure is passed on.
const LONGEST_MESSAGE: usize = 400;

/// An answer, whatever its status.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) etag: Option<String>,
    pub(super) location: Option<String>,
    text: String,
    attempts: u32,
}

impl Answer {
    /// Reads an answer, the `attempts`th; with the pause in seconds that it asks for.
    pub(super) fn read(
        mut response: Response<Body>,
        attempts: u32,
        token: &str,
    ) -> Result<(Self, Option<Duration>), ureq::Error> {
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        let pause = header("retry-after").and_then(|seconds| seconds.trim().parse().ok());
        // Every answer has it; only this one is about it.
        let limit = header("ratelimit").filter(|_| response.status() == 429);
        let pause = pause.or_else(|| limit.as_deref().and_then(reset));
        let mut answer = Self {
            status: response.status().as_u16(),
            etag: header("etag"),
            location: header("location"),
            text: String::new(),
            attempts,
        };
        let message = header("x-error-message");
        let body = response.body_mut().with_config().limit(LONGEST_ANSWER);
        answer.text = body.lossy_utf8(true).read_to_string()?;
        if let Some(message) = message {
            // As the hub says it in either place.
            if answer.status >= 300 && answer.message(token).is_none() {
                answer.text = serde_json::json!({ "error": message }).to_string();
            }
        }
        Ok((answer, pause.map(Duration::from_secs)))
    }

    /// The error of an answer that is none of the wanted kind.
    pub(super) fn refusal(&self, what: &str, url: &str, token: &str) -> PushError {
        PushError::Refused {
            status: self.status,
            what: what.to_owned(),
            place: origin(url).to_owned(),
            attempts: self.attempts,
            message: self.message(token),
        }
    }

    pub(super) const fn is_success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }

    /// The text as JSON.
    pub(super) fn json(&self, what: &str, url: &str) -> Result<Value, PushError> {
        serde_json::from_str(&self.text).map_err(|error| PushError::Answer {
            what: what.to_owned(),
            place: origin(url).to_owned(),
            problem: format!("not JSON ({error})"),
        })
    }

    /// What the hub says of a failure, fit for a terminal; the token is cut out should it be repeated there.
    fn message(&self, token: &str) -> Option<String> {
        let value: Value = serde_json::from_str(&self.text).ok()?;
        let said = ["error", "message"].map(|key| value[key].as_str());
        let said = said.into_iter().flatten().next()?;
        let said = said.replace(token, "(hidden)");
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let said: String = said.chars().map(plain).take(LONGEST_MESSAGE).collect();
        let said = said.trim().to_owned();
        (!said.is_empty()).then_some(said)
    }
}

/// Scheme and host of an address: what may be shown of one that carries a signature.
pub(super) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']);
    &url[..end.map_or(url.len(), |end| start + end)]
}

/// Seconds after which a rate limit starts anew: `t` of `"api";r=0;t=12`.
fn reset(limit: &str) -> Option<u64> {
    let mut fields = limit.split(';');
    fields.find_map(|field| field.trim().strip_prefix("t=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_without_their_signatures() {
        let signed = "https://storage.example/bucket/x?X-Amz-Signature=secret";
        assert_eq!(origin(signed), "https://storage.example");
        assert_eq!(origin("http://127.0.0.1:80"), "http://127.0.0.1:80");
        assert_eq!(origin("http://a.b?x"), "http://a.b");
        assert_ne!(
            origin("https://hub.example.evil/x"),
            origin("https://hub.example")
        );
    }

    #[test]
    fn rate_limits_say_when_they_end() {
        assert_eq!(reset("\"api\";r=0;t=12"), Some(12));
        assert_eq!(reset("\"api\";r=0"), None);
    }
}
