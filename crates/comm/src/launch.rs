//! The parent of a run's processes on one machine.

use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Client, CommError, LastWords, Server};

/// How long the others have to end by themselves when one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// Between looks at the children.
const LOOK: Duration = Duration::from_millis(20);

/// Processes on this machine that meet at a store of ours, on loopback. Dropped, it ends those that still run.
///
/// Each child finds torchrun's variables, so that it need not know who started it.
#[derive(Debug)]
pub struct Launch {
    server: Server,
    run: String,
    children: Vec<Child>,
}

impl Launch {
    /// Starts `size` processes; `command` makes that of a rank, to which the variables are added.
    ///
    /// # Errors
    /// No port on loopback; a process cannot be started, and those before it are ended.
    pub fn start(size: usize, command: impl Fn(usize) -> Command) -> Result<Self, CommError> {
        let server = Server::listen("127.0.0.1", 0)?;
        let id = std::process::id().to_string();
        let mut launch = Self {
            run: format!("backdraft/{id}/0"),
            server,
            children: Vec::with_capacity(size),
        };
        for rank in 0..size {
            let mut command = command(rank);
            command
                .env("RANK", rank.to_string())
                .env("LOCAL_RANK", rank.to_string())
                .env("WORLD_SIZE", size.to_string())
                .env("LOCAL_WORLD_SIZE", size.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", launch.server.port().to_string())
                .env("TORCHELASTIC_USE_AGENT_STORE", "True")
                .env("TORCHELASTIC_RUN_ID", &id)
                .env("TORCHELASTIC_RESTART_COUNT", "0");
            let child = command.spawn().map_err(|source| CommError::Start {
                program: command.get_program().to_string_lossy().into_owned(),
                rank,
                source,
            })?;
            launch.children.push(child);
        }
        Ok(launch)
    }

    /// The processes, by rank.
    pub fn children(&mut self) -> &mut [Child] {
        &mut self.children
    }

    /// Waits until all have ended. When one fails, the others hear of it, and have 5 s to end.
    ///
    /// # Errors
    /// [`CommError::Ended`] with the words of the process that failed first, or what is to be said for it.
    pub fn wait(mut self) -> Result<(), CommError> {
        loop {
            let mut running = false;
            for rank in 0..self.children.len() {
                match self.children[rank].try_wait() {
                    Ok(None) => running = true,
                    Ok(Some(status)) if status.success() => {}
                    Ok(Some(status)) => return Err(self.failed(rank, &how(status))),
                    Err(error) => return Err(self.failed(rank, &error.to_string())),
                }
            }
            if !running {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
    }

    /// Speaks for `rank` if nobody has spoken, and waits for the others.
    fn failed(&mut self, rank: usize, how: &str) -> CommError {
        let words = LastWords {
            rank: Some(rank),
            host: "this machine".to_owned(),
            step: None,
            message: how.to_owned(),
        };
        let words = self.told(&words).unwrap_or(words);
        let until = Instant::now() + GRACE;
        while Instant::now() < until
            && self
                .children
                .iter_mut()
                .any(|child| matches!(child.try_wait(), Ok(None)))
        {
            thread::sleep(LOOK);
        }
        CommError::Ended(words)
    }

    /// What the others are told: `words`, or what was said before.
    fn told(&self, words: &LastWords) -> Option<LastWords> {
        let port = self.server.port();
        let mut client = Client::connect("127.0.0.1", port, Duration::from_secs(1)).ok()?;
        let key = format!("{}/failed", self.run);
        let held = client.compare_set(&key, b"", &words.to_bytes()).ok()?;
        Some(LastWords::from_bytes(&held))
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// How a process ended.
fn how(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("with exit code {code}, and said nothing to the others"),
        // On Unix, with the signal's number and name.
        None => format!("without a word: {status}"),
    }
}
