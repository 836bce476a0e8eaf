//! Which gradients a rank computes, and the order in which all are added.
//!
//! A step's gradient is the sum of B *blocks*, and floating-point sums depend on their order. So the order is fixed by B
//! alone: a tree over the blocks, whoever computes them. With
//!
//! ```text
//! sum(a, b) = block a                          if b = a + 1
//!             sum(a, a + 2^k) + sum(a + 2^k, b)    otherwise, 2^k the largest power of two below b - a
//! ```
//!
//! the gradient is `sum(0, B)`. A rank has consecutive blocks and adds what it has whole subtrees of; the rest is added
//! when those of all ranks have met. Adding is the same for every number, so each rank adds one share of the numbers.
//!
//! # Source
//! The shape of the tree is that of RFC 6962, 2.1 (Merkle trees over any number of leaves).

mod tree;

use std::ops::Range;

use crate::{CommError, Engine};
use tree::remaining;
pub use tree::{Additions, Tree};

/// Blocks `rank` of `size` computes, of `blocks`: consecutive, and as many as any other rank has, or one less.
///
/// # Panics
/// `rank` is not below `size`.
pub fn blocks_of(rank: usize, size: usize, blocks: usize) -> Range<usize> {
    assert!(rank < size, "rank {rank} of {size}");
    share(rank, size, blocks)
}

/// The micro-batches of each block, of a step with these `costs`: the dearest first, to the block that has least so far, so
/// that ranks have about the same to do. Within a block they stand in their own order. A function of the step alone.
///
/// # Panics
/// There are no blocks.
pub fn deal(costs: &[u64], blocks: usize) -> Vec<Vec<usize>> {
    let mut dearest: Vec<usize> = (0..costs.len()).collect();
    dearest.sort_by_key(|&i| std::cmp::Reverse(costs[i]));
    let mut dealt = vec![(0_u64, Vec::new()); blocks];
    for i in dearest {
        let lightest = dealt.iter_mut().min_by_key(|(cost, of)| (*cost, of.len()));
        let Some((cost, of)) = lightest else {
            panic!("a step has at least one block");
        };
        *cost = cost.saturating_add(costs[i]);
        of.push(i);
    }
    let sorted = dealt.into_iter().map(|(_, mut of)| {
        of.sort_unstable();
        of
    });
    sorted.collect()
}

/// The `part`-th of `parts` shares of `0..whole`.
fn share(part: usize, parts: usize, whole: usize) -> Range<usize> {
    let edge = |part: usize| (part as u128 * whole as u128 / parts as u128) as usize;
    edge(part)..edge(part + 1)
}

/// The blocks that one rank has computed so far, added where the tree allows.
///
/// Of n blocks that begin at a multiple of a power of two of at least n, as those of 1, 2, 4, … ranks do where `blocks` is
/// a power of two, at most log₂ n + 1 sums are kept at a time, and 1 remains.
#[derive(Clone, Debug)]
pub struct BlockSums {
    blocks: usize,
    range: Range<usize>,
    next: usize,
    length: usize,
    tree: Tree<Vec<f32>>,
}

impl BlockSums {
    /// For rank `rank` of `size`, with gradients of `length` numbers.
    ///
    /// # Panics
    /// There are no blocks, or `rank` is not below `size`.
    pub fn new(rank: usize, size: usize, blocks: usize, length: usize) -> Self {
        assert!(blocks > 0, "a step has at least one block");
        let range = blocks_of(rank, size, blocks);
        Self {
            blocks,
            next: range.start,
            range,
            length,
            tree: Tree::default(),
        }
    }

    /// The same where this rank has computed all of its blocks and added them where the tree allows: `sums` from left to right, as
    /// [`Tree::into_sums`] gives them.
    ///
    /// # Panics
    /// As [`new`](Self::new); other sums than the tree leaves.
    pub fn of_sums(
        (rank, size): (usize, usize),
        blocks: usize,
        length: usize,
        sums: Vec<Vec<f32>>,
    ) -> Self {
        let mut all = Self::new(rank, size, blocks, length);
        let places = remaining(all.range());
        assert_eq!(sums.len(), places.len(), "sums of {:?}", all.range);
        for (place, sum) in places.into_iter().zip(sums) {
            assert_eq!(sum.len(), length, "numbers of a gradient");
            all.tree.push(place, sum, added);
        }
        all.next = all.range.end;
        all
    }

    /// The blocks that are this rank's.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The gradient of this rank's next block.
    ///
    /// # Shapes
    /// `gradient` is `[length]`.
    ///
    /// # Panics
    /// All blocks of this rank are there already, or the length is another.
    pub fn push(&mut self, gradient: Vec<f32>) {
        assert!(
            self.next < self.range.end,
            "more blocks than {:?}",
            self.range
        );
        assert_eq!(gradient.len(), self.length, "numbers of a gradient");
        self.tree.push((self.next, 1), gradient, added);
        self.next += 1;
    }

    /// The sum of all blocks of all ranks, the same bits in each of them and for every number of ranks.
    ///
    /// Moves 2 · (n − 1) / n of a gradient in and out of each of n ranks, where each has one sum left.
    ///
    /// # Errors
    /// The engine's.
    ///
    /// # Panics
    /// A block of this rank is missing.
    pub fn finish(self, engine: &mut dyn Engine) -> Result<Vec<f32>, CommError> {
        assert_eq!(self.next, self.range.end, "blocks of {:?}", self.range);
        let (rank, size) = (engine.rank(), engine.size());
        if size == 1 {
            return Ok(self.folded());
        }
        let shares: Vec<Range<usize>> = (0..size).map(|r| share(r, size, self.length)).collect();
        let mine = shares[rank].clone();

        // Each rank gets its share of all that the others have.
        let to: Vec<Vec<u8>> = shares.iter().map(|share| self.bytes_of(share)).collect();
        let to: Vec<&[u8]> = to.iter().map(Vec::as_slice).collect();
        let theirs: Vec<Vec<(usize, usize)>> = (0..size)
            .map(|r| remaining(blocks_of(r, size, self.blocks)))
            .collect();
        let room = |nodes: &Vec<_>| vec![0; nodes.len() * mine.len() * 4];
        let mut from: Vec<Vec<u8>> = theirs.iter().map(room).collect();
        engine.all_to_all(&to, &mut from)?;

        let mut tree = Tree::default();
        for (places, bytes) in theirs.iter().zip(&from) {
            for (i, &place) in places.iter().enumerate() {
                let width = mine.len() * 4;
                let sum = numbers(&bytes[i * width..(i + 1) * width]);
                tree.push(place, sum, added);
            }
        }
        let summed = tree.folded(added);
        let summed = bytes(&summed.unwrap_or_else(|| vec![0.0; mine.len()]));

        let mut all: Vec<Vec<u8>> = shares
            .iter()
            .map(|share| vec![0; share.len() * 4])
            .collect();
        engine.all_gather(&summed, &mut all)?;
        Ok(all.iter().flat_map(|bytes| numbers(bytes)).collect())
    }

    /// One share of every node, one after the other.
    fn bytes_of(&self, share: &Range<usize>) -> Vec<u8> {
        let parts = self.tree.sums().map(|sum| bytes(&sum[share.clone()]));
        parts.collect::<Vec<_>>().concat()
    }

    fn folded(self) -> Vec<f32> {
        let length = self.length;
        let sum = self.tree.folded(added);
        sum.unwrap_or_else(|| vec![0.0; length])
    }
}

fn added(mut left: Vec<f32>, right: Vec<f32>) -> Vec<f32> {
    for (left, right) in left.iter_mut().zip(&right) {
        *left += right;
    }
    left
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; numbers.len() * 4];
    for (part, number) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
        *part = number.to_le_bytes();
    }
    bytes
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    let (parts, _) = bytes.as_chunks::<4>();
    parts.iter().map(|part| f32::from_le_bytes(*part)).collect()
}

#[cfg(test)]
mod tests;
