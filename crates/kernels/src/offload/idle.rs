//! Memory of the host that waits to be used again.

use std::collections::BTreeMap;

/// Pieces by size. A pass rarely has the sizes of the one before it, so a piece serves for anything from half its size
/// up, and what is too small makes room for what is pinned in its place: no more pieces stay than were in use at a time,
/// and as many for each halving of sizes.
#[derive(Debug)]
pub(super) struct Idle<T> {
    by_size: BTreeMap<usize, Vec<T>>,
}

impl<T> Default for Idle<T> {
    fn default() -> Self {
        Self {
            by_size: BTreeMap::new(),
        }
    }
}

impl<T> Idle<T> {
    pub(super) fn put(&mut self, size: usize, piece: T) {
        self.by_size.entry(size).or_default().push(piece);
    }

    /// The smallest piece that `size` fits into, if it fills half of it.
    pub(super) fn take(&mut self, size: usize) -> Option<T> {
        let fit = self.by_size.range(size..=size.saturating_mul(2)).next();
        let fit = *fit?.0;
        self.remove(fit)
    }

    /// The largest piece that is too small for `size`, but not for half of it: another takes its place.
    pub(super) fn outgrown(&mut self, size: usize) -> Option<T> {
        let outgrown = self.by_size.range(size / 2..size).next_back();
        let outgrown = *outgrown?.0;
        self.remove(outgrown)
    }

    /// All of them.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(&mut self.by_size).into_values().flatten()
    }

    fn remove(&mut self, size: usize) -> Option<T> {
        let pieces = self.by_size.get_mut(&size)?;
        let piece = pieces.pop();
        if pieces.is_empty() {
            self.by_size.remove(&size);
        }
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pass of three tensors: pieces are pinned where none is idle.
    fn pass(idle: &mut Idle<usize>, held: &mut usize, tokens: usize) {
        let sizes = [64, 64, 224].map(|width| width * tokens);
        let pieces = sizes.map(|size| {
            idle.take(size).unwrap_or_else(|| {
                if let Some(old) = idle.outgrown(size) {
                    *held -= old;
                }
                *held += size;
                size
            })
        });
        for (piece, size) in pieces.into_iter().zip(sizes) {
            assert!((size..=2 * size).contains(&piece));
            idle.put(piece, piece);
        }
    }

    #[test]
    fn passes_of_many_lengths_hold_what_the_longest_needs_for_each_halving() {
        let (mut idle, mut held) = (Idle::default(), 0);
        let longest = 352 * 1024;
        for round in 0..4 {
            for step in 0..512 {
                pass(&mut idle, &mut held, 512 + (step * (197 + round)) % 513);
            }
        }
        assert!(held <= 2 * longest, "{held} of {longest}");
        for tokens in [1024, 700, 600, 1000, 512] {
            let before = held;
            pass(&mut idle, &mut held, tokens);
            assert_eq!(held, before, "{tokens}");
        }
        let left: usize = idle.drain().sum();
        assert_eq!(left, held);
        assert_eq!(idle.take(1), None);
    }

    #[test]
    fn the_smallest_that_fits_is_taken_and_none_that_is_far_too_large() {
        let mut idle = Idle::default();
        for size in [10, 30, 14, 100] {
            idle.put(size, size);
        }
        assert_eq!(idle.take(11), Some(14));
        assert_eq!(idle.take(11), None);
        assert_eq!(idle.outgrown(11), Some(10));
        assert_eq!(idle.outgrown(11), None);
        assert_eq!(idle.take(100), Some(100));
    }
}
