//! Gradients of several processes, each on a device: every process gets one share of what the others have, adds it in a fixed
//! order, and all get back what came of it.
//!
//! Engines move bytes and add nothing ([`Group`]: NCCL). Which sums are added onto which is the caller's to say, the same in every
//! process; a number is added in that order wherever it is added, so bits depend neither on who moved it nor on how many
//! processes there are.
//!
//! ```text
//! message  m [length], one for each sum that a process has left
//! scratch  x [sums of all, share]      from each process its sums' part of this one's share
//! add      m₀[share] = x in the order of the pairs
//! gather   m₀ = every process's share
//! ```
//! A message goes in chunks, so that the scratch memory is bounded.

#[cfg(feature = "cube")]
mod cube;
mod error;
mod messages;
#[cfg(feature = "cuda")]
mod nccl;
#[cfg(not(feature = "cuda"))]
#[path = "no_nccl.rs"]
mod nccl;
pub mod reference;
mod shares;

use std::path::PathBuf;

use burn::tensor::{DType, Device, Tensor, TensorReadError};

use crate::device::lasting;
use crate::dispatch::on_device;
pub use error::NcclError;
pub use messages::Messages;
pub use nccl::{Group, found, unique_id};
pub use shares::padded;
use shares::{Chunk, chunks, largest_share};

/// The NCCL of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NcclLibrary {
    /// Such as `2.27.3`.
    pub version: String,
    /// Its file, where the system tells.
    pub path: Option<PathBuf>,
}

/// What processes of a group have in common before they know each other: one makes it, and all join with it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId(pub [u8; 128]);

impl std::fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UniqueId")
    }
}

/// Sums of some rows: for each pair in turn, the second is added onto the first; what then stands in row 0.
///
/// # Shapes
/// `rows` `[n, width]`, f32; result `[width]`.
///
/// # Panics
/// There is no row, or no such row.
pub fn add_rows(rows: &Tensor<2>, pairs: &[[usize; 2]]) -> Tensor<1> {
    let sum: Option<Tensor<1>> = on_device!(cube::add_rows(rows, pairs));
    sum.unwrap_or_else(|| reference::add_rows(rows, pairs))
}

/// A number that two buffers have alike where they hold the same bits, and hardly otherwise; computed on the device, in an order that
/// does not matter. `None` elsewhere than on a CubeCL device.
///
/// Waits for the device.
///
/// # Shapes
/// `values` `[n]`, f32.
///
/// # Errors
/// A device that failed.
#[cfg_attr(
    not(feature = "cube"),
    expect(unused_variables, reason = "there is no such device then")
)]
pub fn checksum(values: &Tensor<1>) -> Result<Option<u64>, TensorReadError> {
    let sums: Option<Result<Vec<u32>, TensorReadError>> = on_device!(cube::checksums(values));
    let sums = sums.transpose()?;
    Ok(sums.map(|sums| reference::folded(&sums)))
}

/// A sum over the processes of a group.
#[derive(Debug)]
pub struct GroupSum {
    group: Group,
    /// How many sums each process has left.
    sums: Vec<usize>,
    pairs: Vec<[usize; 2]>,
    /// Numbers of a message.
    length: usize,
    /// What comes from the others.
    scratch: Tensor<1>,
}

impl GroupSum {
    /// For messages of `length` numbers, [`padded`]; `sums` is how many each process of `group` has, and `pairs` how all of them are
    /// added, counted over all processes. Takes its memory once.
    ///
    /// # Panics
    /// The length is not padded; `sums` are not those of the group.
    pub fn new(
        group: Group,
        (sums, pairs): (Vec<usize>, Vec<[usize; 2]>),
        length: usize,
        device: &Device,
    ) -> Self {
        assert_eq!(length, padded(length), "numbers of a message");
        assert_eq!(sums.len(), group.size(), "sums of each process");
        let numbers = scratch_numbers(&sums, length);
        let scratch = lasting(device, (), |()| {
            Tensor::empty([numbers], (device, DType::F32))
        });
        Self {
            group,
            sums,
            pairs,
            length,
            scratch,
        }
    }

    /// Bytes that such a sum takes on each device.
    pub fn bytes(sums: &[usize], length: usize) -> u64 {
        scratch_numbers(sums, length) as u64 * 4
    }

    /// The sum of all sums of all processes, in the memory of this one's first. Every process calls this at the same time; what has
    /// failed on this device before leaves the others waiting, so messages are to be looked at first.
    ///
    /// # Shapes
    /// Each of `mine`, and the result: `[length]`, f32.
    ///
    /// # Panics
    /// Other sums than were announced.
    pub fn sum(&self, mine: Vec<Tensor<1>>) -> Tensor<1> {
        let (rank, size) = (self.group.rank(), self.group.size());
        assert_eq!(mine.len(), self.sums[rank], "sums of this process");
        for message in &mine {
            assert_eq!(message.dims(), [self.length], "a message");
        }
        for chunk in chunks(self.length, size) {
            self.group
                .sum_chunk(&chunk, (&self.sums, &self.pairs), &mine, &self.scratch);
        }
        let Some(first) = mine.into_iter().next() else {
            unreachable!("every process has a sum");
        };
        first
    }
}

fn scratch_numbers(sums: &[usize], length: usize) -> usize {
    sums.iter().sum::<usize>() * largest_share(length, sums.len())
}

/// What goes from one process to another of a chunk, or comes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only tested"))]
struct Piece {
    peer: usize,
    /// Which buffer it is of.
    buffer: usize,
    /// Its first number there, and how many.
    start: usize,
    count: usize,
}

/// The moves of a chunk. Buffers are those of the process's sums, then the scratch memory.
#[derive(Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only tested"))]
struct Moves {
    send: Vec<Piece>,
    receive: Vec<Piece>,
}

#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only tested"))]
impl Moves {
    /// To each process its share of every sum, into rows of the scratch memory, which are as long as this one's share.
    fn scatter(chunk: &Chunk, sums: &[usize], rank: usize) -> Self {
        let width = chunk.shares[rank].len();
        let send = chunk.shares.iter().enumerate().flat_map(|(peer, share)| {
            (0..sums[rank]).map(move |buffer| Piece {
                peer,
                buffer,
                start: share.start,
                count: share.len(),
            })
        });
        let from = sums.iter().enumerate();
        let from = from.flat_map(|(peer, sums)| std::iter::repeat_n(peer, *sums));
        let receive = from.enumerate().map(|(row, peer)| Piece {
            peer,
            buffer: sums[rank],
            start: row * width,
            count: width,
        });
        Self::of(send.collect(), receive.collect())
    }

    /// To each process this one's share of the first buffer, and theirs from them.
    fn gather(chunk: &Chunk, rank: usize) -> Self {
        let others = || (0..chunk.shares.len()).filter(move |peer| *peer != rank);
        let piece = |peer, of: usize| Piece {
            peer,
            buffer: 0,
            start: chunk.shares[of].start,
            count: chunk.shares[of].len(),
        };
        Self::of(
            others().map(|peer| piece(peer, rank)).collect(),
            others().map(|peer| piece(peer, peer)).collect(),
        )
    }

    /// What is empty is not moved.
    fn of(mut send: Vec<Piece>, mut receive: Vec<Piece>) -> Self {
        send.retain(|piece| piece.count > 0);
        receive.retain(|piece| piece.count > 0);
        Self { send, receive }
    }
}

#[cfg(test)]
mod tests;
