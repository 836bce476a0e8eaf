//! Requests, with their repetitions.

use std::cell::RefCell;
use std::io::{self, Read};
use std::thread;
use std::time::Duration;

use ureq::http::Response;
use ureq::{Agent, Body, SendBody};

use super::answer::{Answer, origin};
use super::error::PushError;
use super::file::PushFile;
use super::options::PushOptions;
use super::progress::UploadProgress;

/// How often a request is made that might succeed the next time.
const ATTEMPTS: u32 = 5;
/// The longest pause between two.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long the hub may take to begin its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The slowest line on which a body is still waited for.
///
/// # Units
/// Bytes per second.
const SLOWEST: u64 = 8 << 10;

/// A connection to the hub and its storage.
pub(super) struct Client<'a> {
    agent: Agent,
    pub(super) options: &'a PushOptions,
    progress: RefCell<&'a mut dyn UploadProgress>,
}

/// Which failures are worth another attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Any that may pass: asking twice does no harm.
    Always,
    /// Those after which nothing has been done.
    IfNothingDone,
}

/// Why an attempt had no answer.
enum Failure {
    Network(ureq::Error),
    File(PushError),
}

impl<'a> Client<'a> {
    pub(super) fn new(options: &'a PushOptions, progress: &'a mut dyn UploadProgress) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirection is an answer: what is sent goes where it was addressed, or nowhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .user_agent(concat!("backdraft/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.into(),
            options,
            progress: RefCell::new(progress),
        }
    }

    /// Tells whoever watches.
    pub(super) fn tell(&self, tell: impl FnOnce(&mut dyn UploadProgress)) {
        tell(&mut **self.progress.borrow_mut());
    }

    /// Asks the hub for something.
    pub(super) fn get(&self, what: &str, path: &str) -> Result<Answer, PushError> {
        let url = format!("{}{path}", self.options.endpoint);
        self.repeated(what, &url, Repeat::Always, || {
            let request = self.agent.get(&url);
            let request = request.header("Authorization", self.bearer());
            request.call().map_err(Failure::Network)
        })
    }

    /// Sends the hub JSON, or lines of it.
    pub(super) fn post(
        &self,
        what: &str,
        path: &str,
        (kind, body): (&str, &[u8]),
        repeat: Repeat,
    ) -> Result<Answer, PushError> {
        let url = format!("{}{path}", self.options.endpoint);
        self.post_to(what, &url, (kind, body), repeat)
    }

    /// The same to a whole address; the token goes along only where that is the hub's.
    pub(super) fn post_to(
        &self,
        what: &str,
        url: &str,
        (kind, body): (&str, &[u8]),
        repeat: Repeat,
    ) -> Result<Answer, PushError> {
        self.check_scheme(what, url)?;
        let is_hub = origin(url) == origin(&self.options.endpoint);
        self.repeated(what, url, repeat, || {
            let mut request = self.agent.post(url).header("Content-Type", kind);
            if is_hub {
                request = request.header("Authorization", self.bearer());
            }
            if kind == LFS {
                request = request.header("Accept", kind);
            }
            request.send(body).map_err(Failure::Network)
        })
    }

    /// Puts a part of a file into storage, with the headers that the hub asked for; the token stays here.
    pub(super) fn put(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        (file, from, length): (&PushFile, u64, u64),
    ) -> Result<Answer, PushError> {
        self.check_scheme(&file.name, url)?;
        let patience = ANSWER_TIMEOUT + Duration::from_secs(length / SLOWEST);
        self.repeated(&file.name, url, Repeat::Always, || {
            if from == 0 {
                self.tell(|progress| progress.start(&file.name, file.bytes));
            }
            let mut counted = Counted {
                inner: file.open(from, length).map_err(Failure::File)?,
                client: self,
                left: length,
                failed: None,
            };
            let mut request = self.agent.put(url).header("Content-Length", length);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let request = request.config().timeout_send_body(Some(patience)).build();
            let sent = request.send(SendBody::from_reader(&mut counted));
            match (counted.failed, counted.left) {
                (Some(error), _) => Err(Failure::File(file.unreadable(error))),
                // The reader ended before the file should.
                (None, left) if left > 0 && sent.is_err() && file_is_shorter(file) => {
                    Err(Failure::File(PushError::Changed {
                        path: file.path().to_owned(),
                        expected: file.bytes,
                        actual: file.bytes - left,
                    }))
                }
                _ => sent.map_err(Failure::Network),
            }
        })
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.options.token)
    }

    /// A hub over TLS must not send files elsewhere without.
    fn check_scheme(&self, what: &str, url: &str) -> Result<(), PushError> {
        let secure = |url: &str| url.starts_with("https://");
        let known = secure(url) || url.starts_with("http://");
        if known && (secure(url) || !secure(&self.options.endpoint)) {
            return Ok(());
        }
        Err(PushError::Answer {
            what: what.to_owned(),
            place: self.options.endpoint.clone(),
            problem: "an address without https".to_owned(),
        })
    }

    fn repeated(
        &self,
        what: &str,
        url: &str,
        repeat: Repeat,
        mut attempt: impl FnMut() -> Result<Response<Body>, Failure>,
    ) -> Result<Answer, PushError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            let failed = match attempt() {
                Ok(response) => match Answer::read(response, attempts, &self.options.token) {
                    Ok((answer, pause)) if worth(answer.status, repeat) && attempts < ATTEMPTS => {
                        let asked = pause.unwrap_or_default();
                        if asked > LONGEST_PAUSE {
                            return Ok(answer);
                        }
                        Some(asked)
                    }
                    Ok((answer, _)) => return Ok(answer),
                    Err(error) => self.network(what, url, error, (repeat, attempts))?,
                },
                Err(Failure::File(error)) => return Err(error),
                Err(Failure::Network(error)) => {
                    self.network(what, url, error, (repeat, attempts))?
                }
            };
            let usual = self.options.pause * 2_u32.pow(attempts - 1);
            let pause = usual.max(failed.unwrap_or_default()).min(LONGEST_PAUSE);
            self.tell(|progress| progress.again(what, pause.as_secs_f64()));
            thread::sleep(pause);
        }
    }

    /// Whether a failure of the network is worth another attempt; else the error.
    fn network(
        &self,
        what: &str,
        url: &str,
        error: ureq::Error,
        (repeat, attempts): (Repeat, u32),
    ) -> Result<Option<Duration>, PushError> {
        let passes = matches!(
            error,
            ureq::Error::Io(_)
                | ureq::Error::Timeout(_)
                | ureq::Error::Protocol(_)
                | ureq::Error::ConnectionFailed
                | ureq::Error::HostNotFound
                | ureq::Error::BodyStalled
        );
        if passes && repeat == Repeat::Always && attempts < ATTEMPTS {
            return Ok(None);
        }
        Err(PushError::Network {
            what: what.to_owned(),
            place: origin(url).to_owned(),
            attempts,
            source: error.into(),
        })
    }
}

/// The content type of large files' requests.
pub(super) const LFS: &str = "application/vnd.git-lfs+json";
/// The content type of other requests.
pub(super) const JSON: &str = "application/json";
/// The content type of a commit.
pub(super) const LINES: &str = "application/x-ndjson";

const fn worth(status: u16, repeat: Repeat) -> bool {
    match repeat {
        Repeat::Always => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
        Repeat::IfNothingDone => matches!(status, 429 | 503),
    }
}

fn file_is_shorter(file: &PushFile) -> bool {
    std::fs::metadata(file.path()).is_ok_and(|now| now.len() < file.bytes)
}

/// A body that counts, and knows its own failures from the network's.
struct Counted<'a, 'c> {
    inner: Box<dyn Read + 'a>,
    client: &'a Client<'c>,
    left: u64,
    failed: Option<io::Error>,
}

impl Read for Counted<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(count) => {
                self.left = self.left.saturating_sub(count as u64);
                self.client.tell(|progress| progress.advance(count as u64));
                Ok(count)
            }
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(copy)
            }
        }
    }
}
