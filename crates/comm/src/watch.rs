//! A thread that learns when another process ends.

use std::fmt;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Client, CommError, LastWords};

/// How often the store is asked whether it is still there.
const BEAT: Duration = Duration::from_secs(10);

/// How long a call that failed waits for the reason.
const REASON: Duration = Duration::from_secs(2);

type Told = Box<dyn Fn(&LastWords) + Send>;

#[derive(Default)]
struct Known {
    ended: Option<LastWords>,
    /// Whether this process is on its way out, so that nothing that ends is news.
    leaving: bool,
    /// Connections that wait in other threads, to be ended with the news.
    waiting: Vec<TcpStream>,
    told: Option<Told>,
}

/// What is known about the end of others, shared by all who wait for them.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<(Mutex<Known>, Condvar)>);

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.ended()).finish()
    }
}

impl Watch {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the key `failed` over `client`, which belongs to the thread from now on; `heard` is set when it has been
    /// read.
    pub(crate) fn start(
        &self,
        mut client: Client,
        failed: String,
        heard: String,
    ) -> Result<(), CommError> {
        self.attend(&client)?;
        let watch = self.clone();
        let watching = move || {
            let words = loop {
                match client.wait(std::slice::from_ref(&failed), BEAT) {
                    Ok(false) => {}
                    Ok(true) => {
                        let read = client.get(&failed).and_then(|bytes| {
                            client.set(&heard, b"1")?;
                            Ok(LastWords::from_bytes(&bytes))
                        });
                        break read.unwrap_or_else(|_| gone(client.address()));
                    }
                    Err(_) => break gone(client.address()),
                }
            };
            watch.tell(words);
        };
        thread::Builder::new()
            .name("watch".to_owned())
            .spawn(watching)
            .map_err(CommError::Thread)?;
        Ok(())
    }

    fn tell(&self, words: LastWords) {
        let mut known = self.known();
        if known.leaving {
            return;
        }
        known.ended = Some(words.clone());
        for stream in known.waiting.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let told = known.told.take();
        drop(known);
        self.0.1.notify_all();
        if let Some(told) = told {
            told(&words);
        }
    }

    /// Ends `client`'s waiting when another process has ended.
    pub(crate) fn attend(&self, client: &Client) -> Result<(), CommError> {
        let handle = client.handle()?;
        self.known().waiting.push(handle);
        Ok(())
    }

    /// Calls `told`, once, from the watching thread, or at once from here if it has happened.
    pub(crate) fn on_end(&self, told: Told) {
        let mut known = self.known();
        match known.ended.clone() {
            None => known.told = Some(told),
            Some(words) => {
                drop(known);
                told(&words);
            }
        }
    }

    /// What is known.
    pub(crate) fn ended(&self) -> Option<LastWords> {
        self.known().ended.clone()
    }

    /// From now on, ends are no news.
    pub(crate) fn leave(&self) {
        self.known().leaving = true;
    }

    /// Ends the thread, and every connection that was attended.
    pub(crate) fn close(&self) {
        let mut known = self.known();
        known.leaving = true;
        for stream in known.waiting.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The reason behind an error: a connection that ended may have ended with a process.
    pub(crate) fn explain(&self, error: CommError) -> CommError {
        let has_a_reason = matches!(
            error,
            CommError::Connection { .. } | CommError::Length { .. } | CommError::Mpi { .. }
        );
        if !has_a_reason {
            return error;
        }
        let until = Instant::now() + REASON;
        let mut known = self.known();
        while known.ended.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return error;
            }
            known = self
                .0
                .1
                .wait_timeout(known, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        known.ended.clone().map_or(error, CommError::Ended)
    }
}

fn gone(address: &str) -> LastWords {
    LastWords {
        rank: None,
        host: String::new(),
        step: None,
        message: format!(
            "the store at {address} is gone: rank 0 or the launcher, which keeps it, has ended without a word"
        ),
    }
}
