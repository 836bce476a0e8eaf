//! Processes that train together: who is who, a meeting place, bytes exchanged, sums in a fixed order.
//!
//! | module | noun |
//! | --- | --- |
//! | `start` | [`Start`]: rank, size and meeting place, from what torchrun, `srun`, `mpirun` or Kubernetes set |
//! | `launch` | [`Launch`]: the parent of all processes on one machine |
//! | [`store`] | [`Client`] and [`Server`] of PyTorch's TCPStore |
//! | `world` | [`World`]: all processes of a run; what they must have alike; how one learns of another's end |
//! | `fingerprints` | [`Fingerprints`]: what is compared before training |
//! | `last_words`, `watch` | [`LastWords`]: why a process ended; the thread that hears of it |
//! | `engine` | [`Engine`]: bytes from rank to rank; through the store, through Open MPI (feature `mpi`), or nowhere for one process |
//! | `blocks` | [`BlockSums`]: gradients added in an order that does not depend on the number of ranks; [`Tree`], [`Additions`]: that order |
//! | `row` | [`Row`]: what ranks tell each other after a step, and the [`Decision`] that all make from it |
//!
//! There are no tensors here, no configuration and no output. Engines move bytes and never add: NCCL's and MPI's sums
//! depend on topology and version, ours on the number of blocks alone.
//!
//! A run joins a [`World`] before it loads its model, [agrees](World::agree)
//! on recipe, rows and base, takes [its blocks](blocks_of) of each step's micro-batches as they are [dealt](deal), and
//! every rank applies the same [sum](BlockSums::finish).
//!
//! ```
//! use std::time::Duration;
//! use backdraft_comm::{BlockSums, Fingerprints, Start, World};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let start = Start::from_env()?;
//! let world = World::join(&start, "node-a", Duration::from_secs(600))?;
//! world.agree(&Fingerprints::new().with("recipe", "5f2c"))?;
//!
//! let mut engine = world.store_engine()?;
//! let mut sums = BlockSums::new(world.rank(), world.size(), 4, 2);
//! for block in sums.range() {
//!     sums.push(vec![block as f32, 1.0]);
//! }
//! assert_eq!(sums.finish(&mut *engine)?, [6.0, 4.0]);
//! world.leave()?;
//! # Ok(())
//! # }
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod blocks;
mod engine;
mod error;
mod fingerprints;
mod last_words;
mod launch;
mod row;
mod start;
pub mod store;
mod watch;
mod world;

pub use blocks::{Additions, BlockSums, Tree, blocks_of, deal};
pub use engine::{Alone, Engine};
pub use error::{CommError, StartError};
pub use fingerprints::Fingerprints;
pub use last_words::LastWords;
pub use launch::Launch;
pub use row::{Decision, Row};
pub use start::{Launcher, Meeting, Start};
pub use store::{Client, Server};
pub use world::World;
