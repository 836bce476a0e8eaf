//! The side that asks.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::wire::{
    self, MAGIC, MAX_KEY, MAX_VALUE, Message, NOT_READY, Query, READY, STOP_WAITING, WAIT_CANCELED,
};
use crate::CommError;

/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(100);

/// How long an answer may take that waits for nobody.
const ANSWER: Duration = Duration::from_secs(30);

/// One connection to a store, ours or PyTorch's.
///
/// An answer that does not come in 30 s (waiting excepted) is an error, and so is every call after it: the connection has
/// lost its place.
///
/// # Errors
/// All calls: the connection ended, or what came is no answer to the question; keys over [`MAX_KEY`] or values over
/// [`MAX_VALUE`] bytes.
#[derive(Debug)]
pub struct Client {
    stream: Deadlined,
    address: String,
    /// Set from the first byte of a query to the last of its answer: whatever ends in between leaves it set.
    lost: bool,
}

/// A stream whose reads end at a given moment, however slowly bytes drip.
#[derive(Debug)]
struct Deadlined {
    stream: TcpStream,
    until: Instant,
}

impl Read for Deadlined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let read = self.stream.read(buffer);
        // What a time-out is called differs between systems.
        read.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

impl Client {
    /// Connects to `host:port`, trying again until `timeout` has gone by, since the store may start after us.
    ///
    /// # Errors
    /// Nobody listens there in time, or who does is no TCPStore.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self, CommError> {
        let address = format!("{host}:{port}");
        let start = Instant::now();
        let until = start + timeout;
        loop {
            let error = match reach(host, port, until) {
                Ok(stream) => return Self::greet(stream, address, until),
                Err(error) => error,
            };
            if Instant::now() + PAUSE >= until {
                return Err(CommError::Unreachable {
                    address,
                    waited: start.elapsed(),
                    source: error,
                });
            }
            thread::sleep(PAUSE);
        }
    }

    /// Says the magic number, and sees whether a ping comes back.
    fn greet(stream: TcpStream, address: String, until: Instant) -> Result<Self, CommError> {
        let mut client = Self {
            stream: Deadlined { stream, until },
            address,
            lost: false,
        };
        let nonce = std::process::id();
        let hello = Message::query(Query::Validate)
            .short(MAGIC)
            .byte(Query::Ping as u8)
            .short(nonce);
        // A store answers at once, whatever else it waits for; a listener of another kind may say nothing.
        client.stream.until = until.min(Instant::now() + ANSWER);
        let answer = client
            .stream
            .stream
            .write_all(&hello.done())
            .and_then(|()| wire::read_short(&mut client.stream));
        match answer {
            Ok(found) if found == nonce => Ok(client),
            Ok(found) => Err(CommError::NotAStore {
                address: client.address,
                found: format!("it answered {found:#010x} to a ping of {nonce:#010x}"),
            }),
            Err(error) => Err(CommError::NotAStore {
                address: client.address,
                found: format!("a ping was not answered: {error}"),
            }),
        }
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Another handle to the connection, to end it from another thread.
    ///
    /// # Errors
    /// The system has no more handles.
    pub(crate) fn handle(&self) -> Result<TcpStream, CommError> {
        self.stream
            .stream
            .try_clone()
            .map_err(|source| self.ended("setting up", source))
    }

    fn ended(&self, doing: &str, source: io::Error) -> CommError {
        match source.kind() {
            io::ErrorKind::InvalidData => CommError::Protocol {
                address: self.address.clone(),
                doing: doing.to_owned(),
                found: source.to_string(),
            },
            _ => CommError::Connection {
                address: self.address.clone(),
                doing: doing.to_owned(),
                source,
            },
        }
    }

    /// Sends `message` and reads its answer.
    fn ask<T>(
        &mut self,
        doing: &str,
        message: Message,
        read: impl FnOnce(&mut Deadlined) -> io::Result<T>,
    ) -> Result<T, CommError> {
        if self.lost {
            let lost = io::Error::other("an earlier call was not answered");
            return Err(self.ended(doing, lost));
        }
        self.lost = true;
        self.stream.until = Instant::now() + ANSWER;
        let bytes = message.done();
        let answer = self
            .stream
            .stream
            .write_all(&bytes)
            .and_then(|()| read(&mut self.stream));
        match answer {
            Ok(answer) => {
                self.lost = false;
                Ok(answer)
            }
            Err(error) => Err(self.ended(doing, error)),
        }
    }

    /// `key` has `value` from now on.
    pub fn set(&mut self, key: &str, value: &[u8]) -> Result<(), CommError> {
        fits_key(key)?;
        fits_value(value.len())?;
        let message = Message::query(Query::Set)
            .bytes(key.as_bytes())
            .bytes(value);
        self.ask(&format!("setting {key}"), message, |_| Ok(()))
    }

    /// The value of `key`, which must be there: [`Client::wait`] first. Of a missing key some stores say that it is
    /// empty, others end the connection.
    pub fn get(&mut self, key: &str) -> Result<Vec<u8>, CommError> {
        fits_key(key)?;
        let message = Message::query(Query::Get).bytes(key.as_bytes());
        self.ask(&format!("reading {key}"), message, |from| {
            wire::read_bytes(from, MAX_VALUE)
        })
    }

    /// Adds `by` to the number that `key` has as text, 0 if it is not there, and returns the sum.
    pub fn add(&mut self, key: &str, by: i64) -> Result<i64, CommError> {
        fits_key(key)?;
        let message = Message::query(Query::Add)
            .bytes(key.as_bytes())
            .number(by as u64);
        self.ask(&format!("adding to {key}"), message, |from| {
            Ok(wire::read_number(from)? as i64)
        })
    }

    /// Whether all of `keys` are there.
    pub fn check(&mut self, keys: &[String]) -> Result<bool, CommError> {
        fit_keys(keys)?;
        let message = Message::query(Query::Check).keys(keys);
        self.ask("looking for keys", message, |from| {
            match wire::read_byte(from)? {
                READY => Ok(true),
                NOT_READY => Ok(false),
                other => Err(wire::invalid(format!("the byte {other}"))),
            }
        })
    }

    /// Sets `key` to `value` where it has `expected`, or is missing and `expected` is empty. Returns what `key` has
    /// then; where it is missing and `expected` is not empty, `expected`.
    pub fn compare_set(
        &mut self,
        key: &str,
        expected: &[u8],
        value: &[u8],
    ) -> Result<Vec<u8>, CommError> {
        fits_key(key)?;
        fits_value(expected.len())?;
        fits_value(value.len())?;
        let message = Message::query(Query::CompareSet)
            .bytes(key.as_bytes())
            .bytes(expected)
            .bytes(value);
        self.ask(&format!("claiming {key}"), message, |from| {
            wire::read_bytes(from, MAX_VALUE)
        })
    }

    /// Removes `key`, and says whether it was there.
    pub fn delete(&mut self, key: &str) -> Result<bool, CommError> {
        fits_key(key)?;
        let message = Message::query(Query::DeleteKey).bytes(key.as_bytes());
        self.ask(&format!("deleting {key}"), message, |from| {
            Ok(wire::read_number(from)? == 1)
        })
    }

    /// Puts `value` behind what `key` has.
    pub fn append(&mut self, key: &str, value: &[u8]) -> Result<(), CommError> {
        fits_key(key)?;
        fits_value(value.len())?;
        let message = Message::query(Query::Append)
            .bytes(key.as_bytes())
            .bytes(value);
        self.ask(&format!("appending to {key}"), message, |_| Ok(()))
    }

    /// How many keys there are.
    pub fn num_keys(&mut self) -> Result<u64, CommError> {
        self.ask("counting keys", Message::query(Query::GetNumKeys), |from| {
            wire::read_number(from)
        })
    }

    /// Waits until all of `keys` are there, or `timeout` has gone by: `false`.
    pub fn wait(&mut self, keys: &[String], timeout: Duration) -> Result<bool, CommError> {
        fit_keys(keys)?;
        let doing = "waiting for keys";
        let message = Message::query(Query::Wait).keys(keys);
        let until = Instant::now() + timeout;
        let come = self.ask(doing, message, |from| {
            from.until = until;
            match wire::read_byte(from) {
                Ok(STOP_WAITING) => Ok(true),
                Ok(other) => Err(wire::invalid(format!("the byte {other}"))),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
                Err(error) => Err(error),
            }
        })?;
        if come {
            return Ok(true);
        }
        // The keys may come at this very moment: then both answers are under way.
        self.ask(
            doing,
            Message::query(Query::CancelWait),
            |from| match wire::read_byte(from)? {
                WAIT_CANCELED => Ok(false),
                STOP_WAITING if wire::read_byte(from)? == WAIT_CANCELED => Ok(true),
                other => Err(wire::invalid(format!("the byte {other}"))),
            },
        )
    }
}

/// Tries every address that `host` has.
fn reach(host: &str, port: u16, until: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(ANSWER))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn fits_key(key: &str) -> Result<(), CommError> {
    fits("a key", key.len(), MAX_KEY)
}

fn fit_keys(keys: &[String]) -> Result<(), CommError> {
    fits("a list of keys", keys.len(), wire::MAX_KEYS)?;
    keys.iter().try_for_each(|key| fits_key(key))
}

fn fits_value(length: usize) -> Result<(), CommError> {
    fits("a value", length, MAX_VALUE)
}

fn fits(what: &'static str, length: usize, limit: usize) -> Result<(), CommError> {
    if length > limit {
        return Err(CommError::TooLong {
            what,
            length,
            limit,
        });
    }
    Ok(())
}
