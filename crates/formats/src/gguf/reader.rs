//! A bounded cursor over the bytes of a GGUF file.

use super::error::GgufError;

/// Reads little-endian values and checks every length against the bytes that are left.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes left.
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let taken = usize::try_from(count)
            .ok()
            .and_then(|count| self.bytes.get(self.offset..)?.get(..count));
        match taken {
            Some(bytes) => {
                self.offset += bytes.len();
                Ok(bytes)
            }
            None => Err(GgufError::Truncated {
                what,
                offset: self.offset as u64,
                expected: count,
                actual: self.remaining() as u64,
            }),
        }
    }

    pub(super) fn array<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], GgufError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things of at least `size` bytes each, which must fit into the rest of the file.
    pub(super) fn count(&mut self, size: u64, what: &'static str) -> Result<u64, GgufError> {
        let actual = self.u64(what)?;
        let expected = self.remaining() as u64 / size;
        if actual > expected {
            return Err(GgufError::Count {
                what,
                expected,
                actual,
            });
        }
        Ok(actual)
    }

    /// A string's bytes: a `u64` length, then the text.
    pub(super) fn string_bytes(&mut self, what: &'static str) -> Result<&'a [u8], GgufError> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a str, GgufError> {
        let bytes = self.string_bytes(what)?;
        std::str::from_utf8(bytes).map_err(|source| GgufError::Utf8 {
            what: what.into(),
            source,
        })
    }
}
