//! Which numbers of a message go together, and who adds which of them.

use std::ops::Range;

/// Numbers that kernels read at once: shares begin and end between such.
const VECTOR: usize = 4;

/// The most numbers of a chunk: 128 MiB.
const CHUNK: usize = 32 << 20;

/// The length of a message of so many numbers: a multiple of four.
pub fn padded(length: usize) -> usize {
    length.next_multiple_of(VECTOR)
}

/// Part of a message, and the share of it that each process adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) shares: Vec<Range<usize>>,
}

/// The chunks of a message for `size` processes.
pub(super) fn chunks(length: usize, size: usize) -> impl Iterator<Item = Chunk> {
    of_at_most(CHUNK, length, size)
}

/// The same with so many numbers at most, a multiple of four.
pub(super) fn of_at_most(most: usize, length: usize, size: usize) -> impl Iterator<Item = Chunk> {
    (0..length).step_by(most).map(move |start| {
        let vectors = (length - start).min(most) / VECTOR;
        let edge = |rank: usize| start + rank * vectors / size * VECTOR;
        Chunk {
            shares: (0..size).map(|rank| edge(rank)..edge(rank + 1)).collect(),
        }
    })
}

/// Numbers of the largest share of any chunk.
pub(super) fn largest_share(length: usize, size: usize) -> usize {
    (length.min(CHUNK) / VECTOR).div_ceil(size) * VECTOR
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{VECTOR, chunks, largest_share, of_at_most, padded};

    proptest! {
        #[test]
        fn shares_are_the_message(length in 0..500_usize, size in 1..9_usize, most in 1..40_usize) {
            let length = padded(length);
            let mut end = 0;
            for chunk in of_at_most(most * VECTOR, length, size) {
                prop_assert_eq!(chunk.shares.len(), size);
                for share in chunk.shares {
                    prop_assert_eq!(share.start, end);
                    prop_assert!(share.len().is_multiple_of(VECTOR));
                    end = share.end;
                }
            }
            prop_assert_eq!(end, length);
            // These are one chunk.
            let whole = chunks(length, size).flat_map(|chunk| chunk.shares);
            let widest = whole.map(|share| share.len()).max().unwrap_or(0);
            prop_assert!(widest <= largest_share(length, size));
        }
    }
}
