//! PyTorch's own store and launcher beside ours, where `BACKDRAFT_TORCH_PYTHON` names a Python that has torch.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use backdraft_comm::{BlockSums, Client, Fingerprints, Launcher, Server, Start, World};

/// What makes a process a rank.
const ROLE: &str = "BACKDRAFT_TORCH_TEST_ROLE";

const LIMIT: Duration = Duration::from_secs(60);

/// The program, or a word about why nothing is compared.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("BACKDRAFT_TORCH_PYTHON").map(PathBuf::from);
    if python.is_none() {
        println!("BACKDRAFT_TORCH_PYTHON is not set: nothing was compared with PyTorch");
    }
    python
}

/// The rank's part; in the parent, which has no role, there is nothing to do.
#[test]
fn rank() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let start = Start::from_env().unwrap();
    assert_eq!(start.launcher, Launcher::Torchrun);
    let world = World::join(&start, "here", LIMIT).unwrap();
    world
        .agree(&Fingerprints::new().with("data", "5f2c"))
        .unwrap();
    if role == "again" && start.run.ends_with("/0") && world.rank() == 1 {
        world.fail(Some(1), "as if a card had failed");
        std::process::exit(1);
    }
    let mut engine = world.store_engine().unwrap();
    let mut sums = BlockSums::new(world.rank(), world.size(), 4, 3);
    for block in sums.range() {
        sums.push(vec![block as f32; 3]);
    }
    match sums.finish(&mut *engine) {
        Ok(sum) => println!(
            "\n@rank {} of {} in {}: {sum:?}",
            world.rank(),
            world.size(),
            start.run
        ),
        Err(error) => {
            println!("\n@rank {}: {error}", world.rank());
            std::process::exit(1);
        }
    }
    world.leave().unwrap();
}

/// What the ranks say under torchrun, sorted.
fn torchrun(python: PathBuf, role: &str, more: &[&str]) -> Vec<String> {
    let ran = Command::new(python)
        .args(["-m", "torch.distributed.run", "--nproc-per-node", "2"])
        .args([
            "--rdzv-backend",
            "c10d",
            "--rdzv-endpoint",
            "localhost:0",
            "--rdzv-id",
            "job",
        ])
        .args(more)
        .arg("--no-python")
        .arg(std::env::current_exe().unwrap())
        .args(["rank", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    let said = text.lines().filter_map(|line| line.split_once('@'));
    let mut said: Vec<String> = said.map(|(_, said)| said.to_owned()).collect();
    said.sort();
    assert!(
        ran.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    said
}

#[test]
fn ranks_of_torchrun_meet_at_its_agents_store() {
    let Some(python) = python() else { return };
    let sum = |rank: usize, attempt: usize| {
        format!("rank {rank} of 2 in backdraft/job/{attempt}: [6.0, 6.0, 6.0]")
    };
    assert_eq!(
        torchrun(python.clone(), "once", &[]),
        [sum(0, 0), sum(1, 0)]
    );
    // The agent's store outlives the attempt that failed, and what was said in it.
    let said = torchrun(python, "again", &["--max-restarts", "1"]);
    let ended = "rank 0: rank 1 on here ended at step 1: as if a card had failed".to_owned();
    assert_eq!(said, [sum(0, 1), ended, sum(1, 1)]);
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
