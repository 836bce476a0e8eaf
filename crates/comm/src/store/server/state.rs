//! What a store holds, and who waits for what.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use super::super::wire::{self, MAX_VALUE, Message, STOP_WAITING};

/// Bytes of all keys and values.
const LIMIT: usize = 4 << 30;

/// What an entry takes beside its bytes, roughly.
const ENTRY: usize = 128;

/// An answer: bytes, then the bytes of a value, which is shared and not copied.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) head: Vec<u8>,
    pub(super) value: Option<Arc<Vec<u8>>>,
}

impl Reply {
    pub(super) fn of(value: Arc<Vec<u8>>) -> Self {
        Self {
            head: Message::answer().number(value.len() as u64).done(),
            value: Some(value),
        }
    }
}

impl From<Message> for Reply {
    fn from(message: Message) -> Self {
        Self {
            head: message.done(),
            value: None,
        }
    }
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    answers: SyncSender<Reply>,
}

/// Keys with their values, connections, and what these wait for.
#[derive(Debug, Default)]
pub(super) struct State {
    values: HashMap<String, Arc<Vec<u8>>>,
    bytes: usize,
    connections: HashMap<u64, Connection>,
    /// By connection, the keys that are still missing.
    waiting: HashMap<u64, HashSet<String>>,
    /// Keys that speak for a connection when it has ended.
    wills: HashMap<String, u64>,
    stopped: bool,
}

impl State {
    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn connect(&mut self, id: u64, stream: TcpStream, answers: SyncSender<Reply>) {
        let connection = Connection { stream, answers };
        self.connections.insert(id, connection);
    }

    /// Forgets a connection that has ended, and lets its wills speak.
    pub(super) fn disconnect(&mut self, id: u64) {
        self.connections.remove(&id);
        self.waiting.remove(&id);
        if self.stopped {
            return;
        }
        let theirs = self.wills.iter().filter(|(_, owner)| **owner == id);
        let theirs: Vec<String> = theirs.map(|(key, _)| key.clone()).collect();
        for will in theirs {
            let value = self.get(&will);
            self.delete(&will);
            if let Some(heir) = heir(&will)
                && !self.values.contains_key(&heir)
            {
                // What was taken off before is put back, so there is room.
                let _ = self.put(heir, value);
            }
        }
    }

    /// Ends all connections; their wills are silent.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        for connection in self.connections.values() {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    fn put(&mut self, key: String, value: Arc<Vec<u8>>) -> io::Result<()> {
        let old = self.values.get(&key).map_or(0, |old| size(&key, old));
        let bytes = self.bytes - old + size(&key, &value);
        if bytes > LIMIT {
            return Err(wire::invalid("the store is full"));
        }
        self.bytes = bytes;
        self.wake(&key);
        self.values.insert(key, value);
        Ok(())
    }

    /// Tells those for whom `key` was the last that was missing.
    fn wake(&mut self, key: &str) {
        let connections = &self.connections;
        self.waiting.retain(|id, missing| {
            if !missing.remove(key) || !missing.is_empty() {
                return true;
            }
            if let Some(connection) = connections.get(id) {
                let answer = Message::answer().byte(STOP_WAITING);
                // Only a peer that asks without reading has no room for it.
                if connection.answers.try_send(answer.into()).is_err() {
                    let _ = connection.stream.shutdown(Shutdown::Both);
                }
            }
            false
        });
    }

    pub(super) fn set(&mut self, id: u64, key: String, value: Vec<u8>) -> io::Result<()> {
        if heir(&key).is_some() {
            self.wills.entry(key.clone()).or_insert(id);
        }
        self.put(key, Arc::new(value))
    }

    /// The value of `key`, empty if it is not there.
    pub(super) fn get(&self, key: &str) -> Arc<Vec<u8>> {
        self.values.get(key).cloned().unwrap_or_default()
    }

    pub(super) fn compare_set(
        &mut self,
        id: u64,
        key: String,
        expected: Vec<u8>,
        value: Vec<u8>,
    ) -> io::Result<Arc<Vec<u8>>> {
        let as_expected = match self.values.get(&key) {
            Some(held) if **held != expected => return Ok(Arc::clone(held)),
            Some(_) => true,
            None => expected.is_empty(),
        };
        if !as_expected {
            return Ok(Arc::new(expected));
        }
        self.set(id, key.clone(), value)?;
        Ok(self.get(&key))
    }

    pub(super) fn add(&mut self, id: u64, key: String, by: i64) -> io::Result<i64> {
        let held = match self.values.get(&key) {
            Some(held) => std::str::from_utf8(held)
                .ok()
                .and_then(|text| text.trim().parse::<i64>().ok())
                .ok_or_else(|| wire::invalid("adding to what is no number"))?,
            None => 0,
        };
        let sum = held
            .checked_add(by)
            .ok_or_else(|| wire::invalid("a sum over 64 bits"))?;
        self.set(id, key, sum.to_string().into_bytes())?;
        Ok(sum)
    }

    pub(super) fn append(&mut self, id: u64, key: String, value: &[u8]) -> io::Result<()> {
        let held = self.get(&key);
        if held.len() + value.len() > MAX_VALUE {
            return Err(wire::invalid("a value that has grown too long"));
        }
        self.set(id, key, [&held, value].concat())
    }

    pub(super) fn delete(&mut self, key: &str) -> bool {
        self.wills.remove(key);
        let Some(old) = self.values.remove(key) else {
            return false;
        };
        self.bytes -= size(key, &old);
        true
    }

    pub(super) fn count(&self) -> usize {
        self.values.len()
    }

    /// Those of `keys` that are not there.
    pub(super) fn missing(&self, keys: Vec<String>) -> HashSet<String> {
        keys.into_iter()
            .filter(|key| !self.values.contains_key(key))
            .collect()
    }

    /// Whether there is something to wait for.
    pub(super) fn wait(&mut self, id: u64, keys: Vec<String>) -> bool {
        let missing = self.missing(keys);
        let any = !missing.is_empty();
        if any {
            self.waiting.insert(id, missing);
        }
        any
    }

    pub(super) fn cancel(&mut self, id: u64) {
        self.waiting.remove(&id);
    }
}

fn size(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY
}

/// Where the value of a will goes: `RUN/failed` for `RUN/will/NAME`.
fn heir(key: &str) -> Option<String> {
    let (of, _) = key.rsplit_once('/')?;
    Some(format!("{}/failed", of.strip_suffix("/will")?))
}
