//! Matrices that several threads read ahead of the one that builds the model: files, codes and copies to the device
//! overlap.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use backdraft_formats::ModelSource;
use backdraft_lora::base::{MatrixError, ReadMatrix};
use backdraft_quant::Scheme;
use burn::tensor::DType;

/// Threads that read for a device with memory of its own. More do not help: quantising is parallel by itself.
const READERS: usize = 4;

/// A matrix that will be asked for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) dims: [usize; 2],
    pub(super) scheme: Option<Scheme>,
}

impl Wanted {
    fn read<'s>(
        &self,
        source: &'s ModelSource,
        dtype: DType,
    ) -> Result<ReadMatrix<'s>, MatrixError> {
        ReadMatrix::read(source, &self.name, self.dims, self.scheme, dtype)
    }
}

/// Matrices in the order in which they will be asked for; no more of them are in memory at a time than there are readers.
pub(super) struct Ahead<'s> {
    source: &'s ModelSource,
    dtype: DType,
    wanted: Vec<Wanted>,
    state: Mutex<State<'s>>,
    changed: Condvar,
}

struct State<'s> {
    /// What was read and not taken, by number.
    read: Vec<Option<Result<ReadMatrix<'s>, MatrixError>>>,
    /// The next to be read, and the next to be taken.
    next: usize,
    taken: usize,
    readers: usize,
    /// Nobody takes any more, or a reader has panicked.
    stopped: bool,
}

impl<'s> Ahead<'s> {
    pub(super) fn new(source: &'s ModelSource, dtype: DType, wanted: Vec<Wanted>) -> Self {
        let read = wanted.iter().map(|_| None).collect();
        Self {
            source,
            dtype,
            wanted,
            state: Mutex::new(State {
                read,
                next: 0,
                taken: 0,
                readers: 0,
                stopped: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Runs `build`, which [`take`](Self::take)s, beside the readers; without readers it reads by itself.
    pub(super) fn beside<T>(&self, ahead: bool, build: impl FnOnce(&Self) -> T) -> T {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let readers = if ahead { READERS.min(cores) } else { 0 };
        self.state().readers = readers;
        std::thread::scope(|scope| {
            for _ in 0..readers {
                scope.spawn(|| self.read_all());
            }
            // Also when `build` fails, or panics.
            let _stop = Stop(self);
            build(self)
        })
    }

    /// The next matrix.
    ///
    /// # Errors
    /// What reading it met with.
    ///
    /// # Panics
    /// If another one was announced.
    pub(super) fn take(&self, name: &str) -> Result<ReadMatrix<'s>, MatrixError> {
        let mut state = self.state();
        let number = state.taken;
        let wanted = &self.wanted[number];
        assert_eq!(wanted.name, name, "matrices are taken in their order");
        state.taken += 1;
        if state.readers == 0 {
            drop(state);
            return wanted.read(self.source, self.dtype);
        }
        loop {
            if let Some(read) = state.read[number].take() {
                drop(state);
                self.changed.notify_all();
                return read;
            }
            assert!(!state.stopped, "a thread that reads a model has panicked");
            state = self.wait(state);
        }
    }

    fn read_all(&self) {
        while let Some(number) = self.claim() {
            let stop = Stop(self);
            let read = self.wanted[number].read(self.source, self.dtype);
            std::mem::forget(stop);
            self.state().read[number] = Some(read);
            self.changed.notify_all();
        }
    }

    /// The number of the next matrix to read, once there is room for it.
    fn claim(&self) -> Option<usize> {
        let mut state = self.state();
        while !state.stopped && state.next >= state.taken + state.readers {
            state = self.wait(state);
        }
        let number = state.next;
        if state.stopped || number == self.wanted.len() {
            return None;
        }
        state.next += 1;
        Some(number)
    }

    fn state(&self) -> MutexGuard<'_, State<'s>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'g>(&self, state: MutexGuard<'g, State<'s>>) -> MutexGuard<'g, State<'s>> {
        let waited = self.changed.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops everybody when it is dropped.
struct Stop<'a, 's>(&'a Ahead<'s>);

impl Drop for Stop<'_, '_> {
    fn drop(&mut self) {
        self.0.state().stopped = true;
        self.0.changed.notify_all();
    }
}
