//! Python's dictionary: keys in the order in which they came.

use super::compare;
use super::error::{Result, fail};
use super::value::Value;

/// Keys and values. Templates' dictionaries are small, so a key is found by looking at each.
#[derive(Clone, Debug, Default)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    depth: u32,
}

impl Dict {
    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        match key.as_str() {
            Some(key) => self.get_str(key),
            None => self.position(key).map(|index| &self.entries[index].1),
        }
    }

    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        self.entries
            .iter()
            .find(|(name, _)| name.as_str() == Some(key))
            .map(|(_, value)| value)
    }

    fn position(&self, key: &Value) -> Option<usize> {
        self.entries
            .iter()
            .position(|(name, _)| compare::same_key(name, key))
    }

    /// Sets a key, as `d[key] = value` does.
    pub(super) fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        if !key.is_hashable() {
            fail!("unhashable type: '{}'", key.type_name());
        }
        self.depth = super::value::deeper(self.depth, [&key, &value])?;
        match self.position(&key) {
            Some(index) => self.entries[index].1 = value,
            None => self.entries.push((key, value)),
        }
        Ok(())
    }

    /// Adds a key that is known to be new.
    pub(super) fn push(&mut self, key: Value, value: Value) -> Result<()> {
        self.depth = super::value::deeper(self.depth, [&value])?;
        self.entries.push((key, value));
        Ok(())
    }

    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Value, &Value)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    pub(super) fn keys(&self) -> impl DoubleEndedIterator<Item = &Value> {
        self.entries.iter().map(|(key, _)| key)
    }

    /// The entry at a place in the order.
    pub(super) fn entry(&self, index: usize) -> Option<(&Value, &Value)> {
        self.entries.get(index).map(|(key, value)| (key, value))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn depth(&self) -> u32 {
        self.depth
    }
}
