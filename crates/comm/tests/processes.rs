//! Processes that are killed: this program starts itself again as the ranks.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use backdraft_comm::{BlockSums, Launch, Server, Start, World};

/// What makes a process a rank: how it behaves.
const ROLE: &str = "BACKDRAFT_COMM_TEST_ROLE";

/// How soon all have to have ended.
const SOON: Duration = Duration::from_secs(5);

/// A rank's line stands apart from those of the test harness.
fn say(text: &str) {
    println!("\n@{text}");
    std::io::stdout().flush().unwrap();
}

/// The child's part; in the parent, which has no role, there is nothing to do.
#[test]
fn rank() {
    let Ok(role) = env::var(ROLE) else { return };
    let mut start = Start::from_env().unwrap();
    let server = (role == "keeps").then(|| Server::listen("127.0.0.1", 0).unwrap());
    if let (Some(server), Some(at)) = (&server, &mut start.meeting) {
        at.port = server.port();
        say(&format!("port {}", at.port));
    }
    let world = World::join(&start, "here", Duration::from_secs(30)).unwrap();
    world.on_end(|words| say(&format!("heard {words}")));
    match (role.as_str(), world.rank()) {
        ("done", _) => return world.leave().unwrap(),
        ("fails", 1) => {
            world.fail(Some(7), "row 3 of rows.jsonl is damaged");
            std::process::exit(1);
        }
        ("panics", 1) => std::process::exit(101),
        _ => {}
    }
    let mut engine = world.store_engine().unwrap();
    for step in 1.. {
        let noted = world.at_step(step);
        if step == 3 {
            say("third");
        }
        if role == "busy" && step == 3 {
            say("busy");
            // Computes, and asks nobody.
            std::thread::sleep(Duration::from_secs(60));
        }
        let mut sums = BlockSums::new(world.rank(), world.size(), 4, 1000);
        for block in sums.range() {
            sums.push(vec![block as f32; 1000]);
        }
        match noted.and_then(|()| sums.finish(&mut *engine)) {
            Ok(sum) => assert!(sum.iter().all(|x| *x == 6.0)),
            Err(error) => return say(&format!("ended {error}")),
        }
        if step == 3 {
            say("stepping");
        }
    }
}

/// What a parent says of three ranks that behave as `role`.
fn launched(role: &str) -> Result<(), String> {
    let launch = Launch::start(3, |_| {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["rank", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    });
    launch.unwrap().wait().map_err(|error| error.to_string())
}

#[test]
fn a_parent_says_why_its_processes_ended() {
    assert_eq!(launched("done"), Ok(()));
    let began = Instant::now();
    assert_eq!(
        launched("fails"),
        Err("rank 1 on here ended at step 7: row 3 of rows.jsonl is damaged".to_owned())
    );
    // The store notices before the parent does, or the parent speaks for it.
    let error = launched("panics").unwrap_err();
    assert!(error.starts_with("rank 1 on "), "{error}");
    assert!(began.elapsed() < 2 * SOON, "{:?}", began.elapsed());
}

#[test]
fn a_parent_that_ends_takes_its_processes_along() {
    let mut launch = Launch::start(2, |_| {
        let mut command = Command::new("sleep");
        command.arg("600");
        command
    })
    .unwrap();
    let id = launch.children()[1].id();
    assert!(launch.children()[1].try_wait().unwrap().is_none());
    drop(launch);
    let signal = Command::new("kill")
        .args(["-0", &id.to_string()])
        .stderr(Stdio::null())
        .status();
    assert!(!signal.unwrap().success(), "process {id} still runs");
    let error = Launch::start(2, |_| Command::new("/no/such/program")).unwrap_err();
    assert_eq!(error.to_string(), "cannot start /no/such/program as rank 0");
}

struct Rank {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Rank {
    fn start(role: &str, rank: usize, size: usize, port: u16) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["rank", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", size.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string())
            .env("TORCHELASTIC_USE_AGENT_STORE", "True")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The rest of the next line that begins with `word`.
    fn line(&mut self, word: &str) -> String {
        for line in self.lines.by_ref().lines() {
            let line = line.unwrap();
            if let Some(said) = line.strip_prefix('@')
                && let Some(rest) = said.strip_prefix(word)
            {
                return rest.trim().to_owned();
            }
        }
        panic!("the rank ended before it said {word:?}");
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_rank_that_is_killed_ends_all_with_its_reason() {
    let server = Server::listen("127.0.0.1", 0).unwrap();
    let roles = ["steps", "steps", "busy", "steps"];
    let mut ranks: Vec<Rank> = (0..4)
        .map(|rank| Rank::start(roles[rank], rank, 4, server.port()))
        .collect();
    ranks[2].line("busy");
    ranks[1].line("third");
    ranks[1].child.kill().unwrap();
    let killed = Instant::now();
    let step =
        "rank 1 on here ended at step 3: without a word: it was killed, or its machine is gone";
    // Two wait in an exchange, the third computes.
    for rank in [0, 3] {
        assert_eq!(ranks[rank].line("ended"), step);
        ranks[rank].child.wait().unwrap();
    }
    assert_eq!(ranks[2].line("heard"), step);
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
}

#[test]
fn the_rank_that_keeps_the_store_is_missed_too() {
    let mut first = Rank::start("keeps", 0, 2, 1);
    let port = first.line("port").parse().unwrap();
    let mut second = Rank::start("steps", 1, 2, port);
    second.line("stepping");
    first.child.kill().unwrap();
    let killed = Instant::now();
    assert_eq!(
        second.line("ended"),
        format!(
            "the store at 127.0.0.1:{port} is gone: rank 0 or the launcher, which keeps it, has ended without a word"
        )
    );
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
}
