//! The bytes of the protocol.
//!
//! A query is a code, then its arguments; numbers are little-endian, a text is its length in 8 bytes and itself. There is
//! no frame around it, so a side that loses its place has lost the connection.
//!
//! # Source
//! PyTorch `torch/csrc/distributed/c10d/TCPStoreBackend.hpp` (codes), `TCPStoreLibUvBackend.cpp` (limits), and what
//! torch 2.15.0 sends (`tests.rs`).

use std::io::{self, Read};

/// Follows [`Query::Validate`], before anything else.
pub(super) const MAGIC: u32 = 0x3C85_F7CE;

/// The longest key, in bytes.
pub const MAX_KEY: usize = 8 * 1024;

/// The longest value, in bytes.
pub const MAX_VALUE: usize = 8 * 1024 * 1024;

/// The most keys of one query.
pub(super) const MAX_KEYS: usize = 128 * 1024;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Query {
    Validate = 0,
    Set = 1,
    CompareSet = 2,
    Get = 3,
    Add = 4,
    Check = 5,
    Wait = 6,
    GetNumKeys = 7,
    DeleteKey = 8,
    Append = 9,
    MultiGet = 10,
    MultiSet = 11,
    CancelWait = 12,
    Ping = 13,
}

impl Query {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Validate,
            1 => Self::Set,
            2 => Self::CompareSet,
            3 => Self::Get,
            4 => Self::Add,
            5 => Self::Check,
            6 => Self::Wait,
            7 => Self::GetNumKeys,
            8 => Self::DeleteKey,
            9 => Self::Append,
            10 => Self::MultiGet,
            11 => Self::MultiSet,
            12 => Self::CancelWait,
            13 => Self::Ping,
            _ => return None,
        })
    }
}

/// Answers to [`Query::Check`].
pub(super) const READY: u8 = 0;
pub(super) const NOT_READY: u8 = 1;

/// Answers to [`Query::Wait`] and [`Query::CancelWait`].
pub(super) const STOP_WAITING: u8 = 0;
pub(super) const WAIT_CANCELED: u8 = 1;

/// A query, or an answer, as it goes out.
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn query(query: Query) -> Self {
        Self(vec![query as u8])
    }

    pub(super) fn answer() -> Self {
        Self(Vec::new())
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn short(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let mut message = self.number(bytes.len() as u64);
        message.0.extend_from_slice(bytes);
        message
    }

    pub(super) fn keys<K: AsRef<str>>(self, keys: &[K]) -> Self {
        let message = self.number(keys.len() as u64);
        keys.iter().fold(message, |message, key| {
            message.bytes(key.as_ref().as_bytes())
        })
    }

    pub(super) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// What came that must not.
pub(super) fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

pub(super) fn read_byte(from: &mut impl Read) -> io::Result<u8> {
    let mut bytes = [0];
    from.read_exact(&mut bytes)?;
    Ok(bytes[0])
}

pub(super) fn read_short(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

pub(super) fn read_number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Bytes behind their length, which may lie: room is made for what has come, not for what was said.
pub(super) fn read_bytes(from: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let said = read_number(from)?;
    if said > limit as u64 {
        return Err(invalid(format!("a length of {said}, over {limit}")));
    }
    let mut bytes = Vec::new();
    from.take(said).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != said {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// Keys are any bytes to PyTorch; ours are text, and so are all that its Python makes.
pub(super) fn read_key(from: &mut impl Read) -> io::Result<String> {
    String::from_utf8(read_bytes(from, MAX_KEY)?).map_err(|_| invalid("a key that is not UTF-8"))
}

pub(super) fn read_count(from: &mut impl Read) -> io::Result<usize> {
    let said = read_number(from)?;
    if said > MAX_KEYS as u64 {
        return Err(invalid(format!("{said} keys in a query, over {MAX_KEYS}")));
    }
    Ok(said as usize)
}
