//! The variable `loop`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::ast::For;
use super::value::{Seq, Undefined, Value, lock};

/// Where a loop is.
#[derive(Debug)]
pub(super) struct LoopContext {
    items: Arc<Seq>,
    index0: AtomicUsize,
    depth0: usize,
    changed: Mutex<Option<Value>>,
    /// The loop itself and the scope around it, if it may be called.
    pub(super) recursive: Option<(Arc<For>, usize)>,
}

impl LoopContext {
    pub(super) fn new(
        items: Arc<Seq>,
        depth0: usize,
        recursive: Option<(Arc<For>, usize)>,
    ) -> Self {
        Self {
            items,
            index0: AtomicUsize::new(0),
            depth0,
            changed: Mutex::new(None),
            recursive,
        }
    }

    pub(super) fn go_to(&self, index0: usize) {
        self.index0.store(index0, Ordering::Relaxed);
    }

    pub(super) fn index0(&self) -> usize {
        self.index0.load(Ordering::Relaxed)
    }

    pub(super) fn length(&self) -> usize {
        self.items.len()
    }

    pub(super) fn depth0(&self) -> usize {
        self.depth0
    }

    pub(super) fn depth_of_items(&self) -> u32 {
        self.items.depth()
    }

    /// Remembers a value; whether it is another one than the last.
    pub(super) fn change(&self, value: Value, is_same: impl FnOnce(&Value) -> bool) -> bool {
        let mut last = lock(&self.changed);
        if last.as_ref().is_some_and(is_same) {
            return false;
        }
        *last = Some(value);
        true
    }

    pub(super) fn attribute(&self, name: &str) -> Option<Value> {
        let index0 = self.index0();
        let length = self.length();
        Some(match name {
            "index0" => index0.into(),
            "index" => (index0 + 1).into(),
            "revindex0" => Value::Int(length as i128 - index0 as i128 - 1),
            "revindex" => Value::Int(length as i128 - index0 as i128),
            "first" => (index0 == 0).into(),
            "last" => (index0 + 1 >= length).into(),
            "length" => length.into(),
            "depth0" => self.depth0.into(),
            "depth" => (self.depth0 + 1).into(),
            "previtem" => index0
                .checked_sub(1)
                .and_then(|before| self.items.get(before).cloned())
                .unwrap_or(Value::Undefined(Undefined::Because(
                    "there is no previous item",
                ))),
            "nextitem" => self
                .items
                .get(index0 + 1)
                .cloned()
                .unwrap_or(Value::Undefined(Undefined::Because(
                    "there is no next item",
                ))),
            _ => return None,
        })
    }
}
