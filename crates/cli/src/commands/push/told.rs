//! What is said of a push: before, while it goes on, after.

use std::time::{Duration, Instant};

use backdraft_formats::hub::HubName;
use backdraft_formats::hub::push::{PushFile, Pushed, Remote, RemoteFile, UploadProgress};
use serde_json::{Value, json};

use super::files::Choice;
use crate::error::CliError;
use crate::output::Output;
use crate::plain::count;

/// Time between two lines about the same file.
const PAUSE: Duration = Duration::from_secs(5);

/// A push as it is told.
pub(super) struct Told<'a> {
    pub(super) name: &'a HubName,
    pub(super) choice: &'a Choice,
    /// The card, where it was made.
    pub(super) card: Option<&'a str>,
    pub(super) public: bool,
}

impl Told<'_> {
    pub(super) fn bytes(&self) -> u64 {
        self.choice.files.iter().map(|file| file.bytes).sum()
    }

    /// The commit's message where none is given.
    pub(super) fn message(&self) -> String {
        let files = count(self.choice.files.len() as u64, "file");
        format!(
            "Upload {files} with backdraft {}",
            env!("CARGO_PKG_VERSION")
        )
    }

    /// Every file with its size, and what it replaces.
    pub(super) fn list(&self, remote: Option<&Remote>, output: Output) -> Result<(), CliError> {
        let widest = self.choice.files.iter().map(|file| size(file.bytes).len());
        let widest = widest.max().unwrap_or_default();
        for file in &self.choice.files {
            let replaced = match replaced(file, remote) {
                Some(RemoteFile {
                    bytes: Some(bytes), ..
                }) => format!("  (replaces {})", size(*bytes)),
                Some(_) => "  (replaces one)".to_owned(),
                None => String::new(),
            };
            output.line(format!(
                "{:>widest$}  {}{replaced}",
                size(file.bytes),
                file.name
            ))?;
        }
        for left in &self.choice.left_out {
            output.line(format!("not sent: {} ({})", left.name, left.why))?;
        }
        Ok(())
    }

    pub(super) fn question(&self, remote: Option<&Remote>) -> String {
        let files = count(self.choice.files.len() as u64, "file");
        let public = remote.map_or(self.public, |remote| !remote.private);
        let visibility = if public {
            "PUBLIC: everybody can read it"
        } else {
            "private"
        };
        let new = if remote.is_none() { "new, " } else { "" };
        format!(
            "Send {files}, {}, to {} ({new}{visibility})?",
            size(self.bytes()),
            self.name
        )
    }

    pub(super) fn dry_run(&self, output: Output) -> Result<(), CliError> {
        output.record("pushed", &self.record(None, None))?;
        self.list(None, output)?;
        let visibility = if self.public { "public" } else { "private" };
        output.line(format!(
            "Nothing was sent. {}, {} would go to {} ({visibility} if it is new).",
            count(self.choice.files.len() as u64, "file"),
            size(self.bytes()),
            self.name
        ))?;
        match self.card {
            Some(card) => output.line(format!(
                "\nREADME.md, which would be sent with them:\n\n{card}"
            )),
            None => output.line("README.md would be sent as it is."),
        }
    }

    pub(super) fn done(
        &self,
        pushed: &Pushed,
        remote: Option<&Remote>,
        output: Output,
    ) -> Result<(), CliError> {
        for name in &pushed.ignored {
            output.warn(format!(
                "the repository's .gitignore keeps {name} out: it was not sent"
            ));
        }
        output.record("pushed", &self.record(Some(pushed), remote))?;
        let sent = self.choice.files.len() - pushed.ignored.len();
        let present = match pushed.present {
            0 => String::new(),
            present => format!(", {present} of which the hub had already"),
        };
        output.line(format!(
            "Sent {}{present} to {}",
            count(sent as u64, "file"),
            pushed.commit_url.as_deref().unwrap_or(&pushed.url)
        ))
    }

    fn record(&self, pushed: Option<&Pushed>, remote: Option<&Remote>) -> Value {
        let files = self.choice.files.iter().map(|file| {
            let replaces = replaced(file, remote).is_some();
            json!({"name": file.name, "bytes": file.bytes, "replaces": replaces})
        });
        let left_out = self.choice.left_out.iter();
        let left_out = left_out.map(|left| json!({"name": left.name, "why": left.why}));
        let private = remote.map_or(!self.public, |remote| remote.private);
        json!({
            "repository": self.name.repository(),
            "revision": self.name.revision(),
            "private": private,
            "dry_run": pushed.is_none(),
            "files": files.collect::<Vec<_>>(),
            "left_out": left_out.collect::<Vec<_>>(),
            "bytes": self.bytes(),
            "card": self.card,
            "created": pushed.map(|pushed| pushed.created),
            "present": pushed.map(|pushed| pushed.present),
            "ignored": pushed.map(|pushed| &pushed.ignored),
            "url": pushed.map(|pushed| &pushed.url),
            "commit": pushed.and_then(|pushed| pushed.commit.as_ref()),
            "commit_url": pushed.and_then(|pushed| pushed.commit_url.as_ref()),
        })
    }
}

fn replaced<'r>(file: &PushFile, remote: Option<&'r Remote>) -> Option<&'r RemoteFile> {
    remote?.files.iter().find(|there| there.name == file.name)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        10_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Lines while files are sent.
pub(super) struct Upload {
    output: Output,
    all: u64,
    file: (u64, u64),
    began: Instant,
    said: Instant,
}

impl Upload {
    pub(super) fn new(output: Output, all: u64) -> Self {
        let now = Instant::now();
        Self {
            output,
            all,
            file: (0, 0),
            began: now,
            said: now,
        }
    }
}

impl UploadProgress for Upload {
    fn start(&mut self, file: &str, bytes: u64) {
        self.file = (0, bytes);
        (self.began, self.said) = (Instant::now(), Instant::now());
        self.output.progress(format!(
            "sending {file}, {} of {}",
            size(bytes),
            size(self.all)
        ));
    }

    fn advance(&mut self, bytes: u64) {
        self.file.0 += bytes;
        if self.said.elapsed() < PAUSE {
            return;
        }
        self.said = Instant::now();
        let (sent, whole) = self.file;
        let rate = sent as f64 / self.began.elapsed().as_secs_f64();
        self.output.progress(format!(
            "  {} of {}, {:.1} MB/s",
            size(sent),
            size(whole),
            rate / 1e6
        ));
    }

    fn present(&mut self, file: &str) {
        self.output
            .progress(format!("{file} is on the hub already"));
    }

    fn again(&mut self, what: &str, seconds: f64) {
        self.output.progress(format!(
            "that failed and is tried again in {seconds:.0} s: {what}"
        ));
    }
}
