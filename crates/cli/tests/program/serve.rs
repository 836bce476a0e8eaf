//! `serve`, as a client and a service manager meet it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use backdraft_testkit::tiny;
use serde_json::Value;

use super::{backdraft, fails, says};

/// A server on any port, and the line that says where.
pub(crate) struct Serving {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub(crate) line: String,
}

impl Serving {
    pub(crate) fn start(directory: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_backdraft"))
            .current_dir(directory)
            .args(["serve", "--json", "--port", "0"])
            .args(arguments)
            .env("HF_HUB_OFFLINE", "1")
            .env_remove("BACKDRAFT_API_KEY")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        Self {
            child,
            stdout,
            line,
        }
    }

    fn ask(&self, request: &str, body: &str) -> String {
        let about: Value = serde_json::from_str(&self.line).unwrap();
        let address = about["address"]
            .as_str()
            .unwrap()
            .strip_prefix("http://")
            .unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "{request} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Ends it as a service manager does; it must end well and have said nothing more.
    pub(crate) fn end(mut self) {
        let pid = self.child.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(killed.success());
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(rest, "");
    }
}

#[cfg(unix)]
#[test]
fn a_server_answers_until_it_is_told_to_end() {
    let directory = tempfile::tempdir().unwrap();
    let d = directory.path();
    tiny::model(&d.join("model"));
    let server = Serving::start(d, &["--model", "model", "--chat-template", "chatml"]);
    let about: Value = serde_json::from_str(&server.line).unwrap();
    assert_eq!(about["models"][0], "model");
    let body = r#"{"model": "model", "prompt": "w5 w6", "max_tokens": 3, "temperature": 0}"#;
    let answer = server.ask("POST /v1/completions", body);
    assert!(answer.contains("\"completion_tokens\":3"), "{answer}");
    let generated = backdraft(
        d,
        &[
            "generate",
            "--model",
            "model",
            "--raw",
            "--max-new-tokens",
            "3",
            "w5 w6",
        ],
    );
    let text = String::from_utf8(generated.stdout).unwrap();
    assert!(
        answer.contains(&format!("\"text\":\"{}\"", text.trim_end())),
        "{answer} {text}"
    );
    server.end();
}

#[test]
fn a_server_without_a_key_is_for_this_machine() {
    let directory = tempfile::tempdir().unwrap();
    let d = directory.path();
    let said = fails(
        d,
        &["serve", "--model", "m", "--host", "0.0.0.0", "--port", "0"],
        1,
    );
    says(
        &said,
        &[
            "can be reached from other machines, and no API key is set",
            "BACKDRAFT_API_KEY",
            "--without-key",
        ],
    );
    let said = fails(d, &["serve", "--model", "m", "--cache-memory", "0"], 2);
    says(&said, &["expected a number above 0"]);
}
