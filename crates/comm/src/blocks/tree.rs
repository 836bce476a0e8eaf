//! The order in which blocks are added, whatever stands for them: numbers on the host, tensors on a device, or rows of a kernel.

use std::ops::Range;

/// Sums of neighbouring blocks. Two are added as soon as they are the two sides of a sum of the tree.
#[derive(Clone, Debug)]
pub struct Tree<S> {
    nodes: Vec<Node<S>>,
}

/// The sum of blocks `first..first + count`, where `count` is a power of two that divides `first`.
#[derive(Clone, Debug)]
struct Node<S> {
    first: usize,
    count: usize,
    sum: S,
}

impl<S> Default for Tree<S> {
    fn default() -> Self {
        Self { nodes: Vec::new() }
    }
}

impl<S> Tree<S> {
    /// Takes the sum of `count` blocks from `first` on, the neighbours to the right of what is there; `add` gets left and right.
    pub fn push(&mut self, (first, count): (usize, usize), sum: S, mut add: impl FnMut(S, S) -> S) {
        let mut next = Node { first, count, sum };
        let merges =
            |last: &mut Node<S>, count| last.count == count && last.first.is_multiple_of(2 * count);
        while let Some(last) = self.nodes.pop_if(|last| merges(last, next.count)) {
            next = Node {
                first: last.first,
                count: last.count + next.count,
                sum: add(last.sum, next.sum),
            };
        }
        self.nodes.push(next);
    }

    /// What cannot be added before more is there, from left to right.
    pub fn sums(&self) -> impl Iterator<Item = &S> {
        self.nodes.iter().map(|node| &node.sum)
    }

    /// The same, given up.
    pub fn into_sums(self) -> Vec<S> {
        self.nodes.into_iter().map(|node| node.sum).collect()
    }

    /// The sum of all; `None` where there is nothing. What remains when no two neighbours are alike any more is added from the right:
    /// the right side of a sum is the smaller one.
    pub fn folded(self, mut add: impl FnMut(S, S) -> S) -> Option<S> {
        let mut from_right = self.nodes.into_iter().rev().map(|node| node.sum);
        let last = from_right.next()?;
        Some(from_right.fold(last, |right, left| add(left, right)))
    }
}

/// First block and count of each sum that remains of `range`.
pub(super) fn remaining(range: Range<usize>) -> Vec<(usize, usize)> {
    let mut tree = Tree::default();
    for block in range {
        tree.push((block, 1), (), |(), ()| ());
    }
    let nodes = tree.nodes.into_iter();
    nodes.map(|node| (node.first, node.count)).collect()
}

/// How the sums that all ranks have left become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Additions {
    /// How many sums each rank has left, by rank.
    pub sums: Vec<usize>,
    /// Which are added, in this order, the second onto the first; counted over all ranks. What comes of all stands in the first.
    pub pairs: Vec<[usize; 2]>,
}

impl Additions {
    /// Of `blocks` blocks that `size` ranks have added as far as each can.
    pub fn of(size: usize, blocks: usize) -> Self {
        let places = (0..size).map(|rank| remaining(super::blocks_of(rank, size, blocks)));
        let places: Vec<_> = places.collect();
        let sums = places.iter().map(Vec::len).collect();
        let mut pairs = Vec::new();
        let mut add = |left, right| {
            pairs.push([left, right]);
            left
        };
        let mut tree = Tree::default();
        for (i, place) in places.into_iter().flatten().enumerate() {
            tree.push(place, i, &mut add);
        }
        tree.folded(&mut add);
        Self { sums, pairs }
    }
}
