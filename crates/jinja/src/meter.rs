//! How much work and memory a rendering may still cost.

use std::cell::Cell;

use super::error::{JinjaError, JinjaErrorKind, Result};

/// The largest text, in bytes.
pub(super) const MAX_TEXT: usize = 64 << 20;

/// Steps of work, and text of which 64 bytes cost as much as a step.
pub(super) struct Meter {
    fuel: Cell<u64>,
}

impl Meter {
    pub(super) fn new(fuel: u64) -> Self {
        Self {
            fuel: Cell::new(fuel),
        }
    }

    /// Pays for steps, before they are done.
    pub(super) fn steps(&self, steps: usize) -> Result<()> {
        match self.fuel.get().checked_sub(steps as u64) {
            Some(left) => {
                self.fuel.set(left);
                Ok(())
            }
            None => {
                self.fuel.set(0);
                Err(JinjaError::new(JinjaErrorKind::Fuel, "too much work"))
            }
        }
    }

    /// Pays for bytes of text, before they are allocated.
    pub(super) fn bytes(&self, bytes: usize) -> Result<()> {
        if bytes > MAX_TEXT {
            return Err(JinjaError::new(
                JinjaErrorKind::Large,
                "a text is too large",
            ));
        }
        self.steps(bytes / 64)
    }

    /// Pays for bytes that a text grows by.
    pub(super) fn grow(&self, length: usize, added: usize) -> Result<()> {
        match length.saturating_add(added) > MAX_TEXT {
            true => self.bytes(usize::MAX),
            false => self.bytes(added),
        }
    }
}
