//! The order in which rows are seen, counted in optimiser steps.

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::rng::SplitMix64;

/// Where a loader stands; together with the loader's arguments it determines all that follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Epochs finished.
    pub epoch: u64,
    /// Rows of this epoch seen, always at a step's end and below the number of rows.
    pub cursor: usize,
}

/// Deals out row numbers.
///
/// Each epoch visits every row once, in an order that depends on seed and epoch only. A step has
/// up to `grad_accumulation_steps` micro-batches of up to `micro_batch_size` rows; the last step of
/// an epoch takes what is left.
#[derive(Clone, Debug)]
pub struct Loader {
    rows: usize,
    micro_batch_size: usize,
    grad_accumulation_steps: usize,
    seed: u64,
    shuffle: bool,
    state: LoaderState,
    /// The order of `state.epoch`.
    order: Vec<usize>,
}

impl Loader {
    /// A loader at the beginning of epoch 0.
    ///
    /// # Errors
    /// [`DataError::Option`] if there are no rows or a size is 0.
    pub fn new(
        rows: usize,
        micro_batch_size: usize,
        grad_accumulation_steps: usize,
        seed: u64,
        shuffle: bool,
    ) -> Result<Self, DataError> {
        for (option, value) in [
            ("rows", rows),
            ("micro_batch_size", micro_batch_size),
            ("grad_accumulation_steps", grad_accumulation_steps),
        ] {
            if value == 0 {
                let (expected, actual) = ("at least 1".to_owned(), "0".to_owned());
                return Err(DataError::Option {
                    option,
                    expected,
                    actual,
                });
            }
        }
        let mut loader = Self {
            rows,
            micro_batch_size,
            grad_accumulation_steps,
            seed,
            shuffle,
            state: LoaderState::default(),
            order: Vec::new(),
        };
        loader.order = loader.order_of(0);
        Ok(loader)
    }

    /// The next optimiser step: its micro-batches of row numbers, none of them empty.
    pub fn next_step(&mut self) -> Vec<Vec<usize>> {
        let start = self.state.cursor;
        let end = start.saturating_add(self.rows_per_step()).min(self.rows);
        let step = self.order[start..end]
            .chunks(self.micro_batch_size)
            .map(<[usize]>::to_vec)
            .collect();
        if end == self.rows {
            self.enter(LoaderState {
                epoch: self.state.epoch + 1,
                cursor: 0,
            });
        } else {
            self.state.cursor = end;
        }
        step
    }

    /// Where the loader stands: what the next step will be.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Goes to a saved place.
    ///
    /// # Errors
    /// [`DataError::LoaderState`] if no step of this loader ends there.
    pub fn restore(&mut self, state: LoaderState) -> Result<(), DataError> {
        if state.cursor >= self.rows || !state.cursor.is_multiple_of(self.rows_per_step()) {
            return Err(DataError::LoaderState {
                expected: format!(
                    "a cursor that is a multiple of {} rows and below {}",
                    self.rows_per_step(),
                    self.rows
                ),
                actual: format!("cursor {} in epoch {}", state.cursor, state.epoch),
            });
        }
        self.enter(state);
        Ok(())
    }

    /// Rows of a full step.
    pub fn rows_per_step(&self) -> usize {
        self.micro_batch_size
            .saturating_mul(self.grad_accumulation_steps)
    }

    /// Optimiser steps of an epoch, the last partial one included.
    pub fn steps_per_epoch(&self) -> usize {
        self.rows.div_ceil(self.rows_per_step())
    }

    /// Optimiser steps done.
    pub fn steps_done(&self) -> u64 {
        let inside = (self.state.cursor / self.rows_per_step()) as u64;
        self.state
            .epoch
            .saturating_mul(self.steps_per_epoch() as u64)
            .saturating_add(inside)
    }

    fn enter(&mut self, state: LoaderState) {
        if state.epoch != self.state.epoch {
            self.order = self.order_of(state.epoch);
        }
        self.state = state;
    }

    fn order_of(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.rows).collect();
        if self.shuffle {
            SplitMix64::stream(self.seed, epoch).shuffle(&mut order);
        }
        order
    }
}

#[cfg(test)]
mod tests;
