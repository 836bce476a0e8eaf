//! How bytes get from one process to another.

#[cfg(all(feature = "mpi", unix))]
mod mpi;
mod store;

#[cfg(all(feature = "mpi", unix))]
pub(crate) use mpi::MpiEngine;
pub(crate) use store::StoreEngine;

use std::fmt::Debug;

use crate::CommError;

/// Moves bytes in host memory between processes, and changes none.
///
/// Every rank makes the same calls in the same order, with lengths that all ranks know: a buffer is as long as what will
/// stand in it, so that no message can ask for memory. What is computed with the bytes is the caller's, the same for every
/// engine; so the results do not depend on which one moved them.
///
/// # Errors
/// Every call: another process ended, does not come in time, or sent another length. After an error the engine is of no
/// more use.
pub trait Engine: Debug + Send {
    /// Which process this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// `to[r]` goes to rank r, and `from[r]` is what rank r had for this one; its own part is copied.
    fn all_to_all(&mut self, to: &[&[u8]], from: &mut [Vec<u8>]) -> Result<(), CommError>;

    /// Everybody's `mine`, by rank.
    fn all_gather(&mut self, mine: &[u8], all: &mut [Vec<u8>]) -> Result<(), CommError>;

    /// `bytes` of rank `root` in every rank.
    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<(), CommError>;

    /// Goes on when all ranks have come here.
    fn barrier(&mut self) -> Result<(), CommError>;
}

/// One process, which has nobody to exchange with.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Engine for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_to_all(&mut self, to: &[&[u8]], from: &mut [Vec<u8>]) -> Result<(), CommError> {
        from[0].copy_from_slice(to[0]);
        Ok(())
    }

    fn all_gather(&mut self, mine: &[u8], all: &mut [Vec<u8>]) -> Result<(), CommError> {
        all[0].copy_from_slice(mine);
        Ok(())
    }

    fn broadcast(&mut self, _root: usize, _bytes: &mut [u8]) -> Result<(), CommError> {
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        Ok(())
    }
}

/// The others in the order in which each is the first for somebody, so that not all turn to rank 0 at once.
fn others(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    (1..size).map(move |step| (rank + step) % size)
}
