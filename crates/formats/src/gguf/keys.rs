//! The names of a decoder's metadata keys, typed access to them, and the sizes that they say.

use backdraft_arch::DeltaNetSpec;

use super::architectures::Architecture;
use super::error::GgufError;
use super::value::GgufMetadata;

/// The sizes that the tensors' rows depend on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) layers: u64,
    pub(super) heads: usize,
    pub(super) key_value_heads: usize,
    pub(super) head_dim: usize,
    /// Features of a head that turn.
    pub(super) rotary_dim: usize,
    /// Features of a head and key–value heads of layers without a window, where they have others.
    pub(super) full: Option<(usize, usize)>,
    /// Those of DeltaNets, where some layers are.
    pub(super) delta: Option<DeltaNetSpec>,
}

/// The names of metadata keys, and typed access to them.
pub(super) struct Keys<'a> {
    pub(super) metadata: GgufMetadata<'a>,
    pub(super) architecture: Architecture,
}

impl Keys<'_> {
    /// A key with the architecture before it.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name())
    }

    pub(super) fn positive(&self, key: &str) -> Result<Option<u64>, GgufError> {
        let key = self.full(key);
        match self.metadata.unsigned(&key)? {
            Some(value) if value == 0 || value > u64::from(u32::MAX) => Err(GgufError::KeyValue {
                key,
                expected: "a number from 1 to 2^32",
                actual: value.to_string(),
            }),
            value => Ok(value),
        }
    }

    pub(super) fn required(&self, key: &str) -> Result<u64, GgufError> {
        self.positive(key)?.ok_or_else(|| GgufError::KeyMissing {
            key: self.full(key),
        })
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        let key = self.full(key);
        match self.metadata.f64(&key)? {
            Some(value) if !value.is_finite() => Err(GgufError::KeyValue {
                key,
                expected: "a finite number",
                actual: value.to_string(),
            }),
            // 1e-5 was stored in single precision, and should be 1e-5 again.
            value => Ok(value.map(|value| (value as f32).to_string().parse().unwrap_or(value))),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.metadata.str(&self.full(key))
    }

    pub(super) fn refuse_unless(
        &self,
        key: &str,
        fine: impl Fn(f64) -> bool,
    ) -> Result<(), GgufError> {
        match self.number(key)? {
            Some(value) if !fine(value) => Err(self.feature(key, value)),
            _ => Ok(()),
        }
    }

    pub(super) fn feature(&self, key: &str, value: impl ToString) -> GgufError {
        GgufError::Feature {
            key: self.full(key),
            actual: value.to_string(),
        }
    }
}
