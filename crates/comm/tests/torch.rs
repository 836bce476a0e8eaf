//! PyTorch's own store and launcher beside ours, where `BACKDRAFT_TORCH_PYTHON` names a Python that has torch.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use backdraft_comm::{Client, Server};

const LIMIT: Duration = Duration::from_secs(60);

/// The program, or a word about why nothing is compared.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("BACKDRAFT_TORCH_PYTHON").map(PathBuf::from);
    if python.is_none() {
        println!("BACKDRAFT_TORCH_PYTHON is not set: nothing was compared with PyTorch");
    }
    python
}

fn script(python: PathBuf) -> Command {
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torch_store.py"));
    command
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

#[test]
fn torchs_client_and_our_server() {
    let Some(python) = python() else { return };
    let server = Server::listen("127.0.0.1", 0).unwrap();
    for backend in ["libuv", "legacy"] {
        let said = script(python.clone())
            .args(["client", backend, &server.port().to_string()])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(
            said.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&said.stderr)
        );
    }
}

#[test]
fn our_client_and_torchs_server() {
    let Some(python) = python() else { return };
    for backend in ["libuv", "legacy"] {
        let mut child = script(python.clone())
            .args(["server", backend])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port = line.trim().parse().unwrap();
        all_calls(port);
        // Closes its input, at which it ends.
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
}

fn all_calls(port: u16) {
    let mut one = Client::connect("127.0.0.1", port, LIMIT).unwrap();
    let mut two = Client::connect("127.0.0.1", port, LIMIT).unwrap();
    let before = one.num_keys().unwrap();
    one.set("k", b"vv").unwrap();
    assert_eq!(one.get("k").unwrap(), b"vv");
    assert_eq!(one.add("n", 5).unwrap(), 5);
    assert_eq!(one.add("n", -7).unwrap(), -2);
    assert_eq!(two.get("n").unwrap(), b"-2");
    assert!(two.check(&keys(&["k", "n"])).unwrap());
    assert!(!two.check(&keys(&["k", "no"])).unwrap());
    assert_eq!(two.compare_set("c", b"", b"new").unwrap(), b"new");
    assert_eq!(two.compare_set("c", b"", b"other").unwrap(), b"new");
    assert_eq!(two.compare_set("c", b"new", b"third").unwrap(), b"third");
    two.append("k", b"ww").unwrap();
    assert_eq!(two.get("k").unwrap(), b"vvww");
    assert_eq!(two.num_keys().unwrap(), before + 3);
    assert!(two.delete("k").unwrap());
    assert!(!two.delete("k").unwrap());
    assert!(!two.wait(&keys(&["k"]), Duration::from_millis(100)).unwrap());
    let waiting = std::thread::spawn(move || two.wait(&keys(&["k", "late"]), LIMIT).unwrap());
    one.set("k", b"").unwrap();
    one.set("late", &vec![7; 4 << 20]).unwrap();
    assert!(waiting.join().unwrap());
    assert_eq!(one.get("late").unwrap(), vec![7; 4 << 20]);
}
