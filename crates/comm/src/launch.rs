//! The parent of a run's processes on one machine.

use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Client, CommError, LastWords, Server};

/// How long the others have to end by themselves when one has failed.
const GRACE: Duration = Duration::from_secs(5);

/// The variable that says which process started the ranks of this machine.
pub(crate) const PARENT: &str = "BACKDRAFT_PARENT";

/// The key that asks ranks to stop.
pub(crate) const STOP: &str = "stop";

/// Between looks at the children.
const LOOK: Duration = Duration::from_millis(20);

/// Processes on this machine that meet at a store of ours, on loopback. Dropped, it ends those that still run.
///
/// Each child finds torchrun's variables, and `BACKDRAFT_PARENT`, by which it knows that it was not torchrun.
#[derive(Debug)]
pub struct Launch {
    server: Server,
    run: String,
    children: Vec<Child>,
    /// An exit code that is no failure, beside 0.
    accepted: Option<i32>,
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
            accepted: None,
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
                .env("TORCHELASTIC_RESTART_COUNT", "0")
                .env(PARENT, &id);
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

    /// The same, to which a process that ends with `code` has not failed.
    #[must_use]
    pub fn accepting(mut self, code: i32) -> Self {
        self.accepted = Some(code);
        self
    }

    /// Waits until all have ended. When one fails, the others hear of it, and have 5 s to end.
    ///
    /// # Errors
    /// [`CommError::Ended`] with the words of the process that failed first, or what is to be said for it.
    pub fn wait(mut self) -> Result<(), CommError> {
        while !self.have_ended()? {
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Whether all have ended; waits for nobody, unless one has failed: then as [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn have_ended(&mut self) -> Result<bool, CommError> {
        let mut running = false;
        for rank in 0..self.children.len() {
            match self.children[rank].try_wait() {
                Ok(None) => running = true,
                Ok(Some(status)) if status.success() => {}
                Ok(Some(status)) if self.accepted.is_some() && status.code() == self.accepted => {}
                Ok(Some(status)) => return Err(self.failed(rank, &how(status))),
                Err(error) => return Err(self.failed(rank, &error.to_string())),
            }
        }
        Ok(!running)
    }

    /// Asks all to stop after their present step, which [`World::asked_to_stop`](crate::World::asked_to_stop) tells them.
    ///
    /// # Errors
    /// The store does not answer.
    pub fn ask_to_stop(&self) -> Result<(), CommError> {
        let key = format!("{}/{STOP}", self.run);
        let mut client = self.client()?;
        client.set(&key, b"1")?;
        // Setting is not answered: this is.
        client.check(&[key]).map(drop)
    }

    /// Whether rank 0 has noted a step ([`World::at_step`](crate::World::at_step)).
    ///
    /// # Errors
    /// The store does not answer.
    pub fn has_begun(&self) -> Result<bool, CommError> {
        let key = format!("{}/will/0", self.run);
        let mut client = self.client()?;
        if !client.check(std::slice::from_ref(&key))? {
            return Ok(false);
        }
        Ok(LastWords::from_bytes(&client.get(&key)?).step.is_some())
    }

    fn client(&self) -> Result<Client, CommError> {
        Client::connect("127.0.0.1", self.server.port(), Duration::from_secs(1))
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
        let mut client = self.client().ok()?;
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
