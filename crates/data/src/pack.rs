//! Which rows share a micro-batch.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::rng::SplitMix64;

/// How rows are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Batching {
    /// Rows in random order, end to end: nothing is padded.
    #[default]
    PaddingFree,
    /// Packs of rows that fill `max_seq_length` as well as they can, end to end.
    Packed {
        /// Tokens of a pack at most.
        max_seq_length: usize,
    },
    /// Rows of similar length together, as one does where rows are padded. For comparison: nothing
    /// here pads unless asked to.
    LengthGrouped,
}

/// Micro-batches that are sorted by length together.
const GROUP: usize = 50;

/// Puts rows into packs of at most `capacity` tokens: the longest first, each into the fullest pack
/// that still has room.
///
/// Packs come in the order in which they were begun, rows of a pack from long to short; rows of one
/// length keep their order. A row longer than `capacity` is a pack of its own.
///
/// # Source
/// Best fit decreasing: Johnson, Demers, Ullman, Garey, Graham: Worst-Case Performance Bounds for
/// Simple One-Dimensional Packing Algorithms, SIAM J. Comput. 3 (1974).
pub fn best_fit_decreasing(
    rows: &[usize],
    length: impl Fn(usize) -> usize,
    capacity: usize,
) -> Vec<Vec<usize>> {
    let mut sorted = rows.to_vec();
    sorted.sort_by_key(|row| Reverse(length(*row)));
    let mut packs: Vec<Vec<usize>> = Vec::new();
    // Packs by the room that is left; of several, the one begun last is filled first.
    let mut room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for row in sorted {
        let length = length(row);
        let fullest = room.range(length..).next().map(|(room, _)| *room);
        let (pack, left) = match fullest.and_then(|left| take(&mut room, left)) {
            Some((pack, left)) => (pack, left - length),
            None => {
                packs.push(Vec::new());
                (packs.len() - 1, capacity.saturating_sub(length))
            }
        };
        packs[pack].push(row);
        if left > 0 {
            room.entry(left).or_default().push(pack);
        }
    }
    packs
}

fn take(room: &mut BTreeMap<usize, Vec<usize>>, left: usize) -> Option<(usize, usize)> {
    let packs = room.get_mut(&left)?;
    let pack = packs.pop()?;
    if packs.is_empty() {
        room.remove(&left);
    }
    Some((pack, left))
}

/// Packs of an epoch in random order.
pub(crate) fn packs(
    rows: &[usize],
    lengths: &[u32],
    capacity: usize,
    rng: Option<&mut SplitMix64>,
) -> Vec<Vec<usize>> {
    let mut packs = best_fit_decreasing(rows, |row| lengths[row] as usize, capacity);
    match rng {
        Some(rng) => rng.shuffle(&mut packs),
        // Longest rows first would be no order of the file.
        None => packs.sort_by_key(|pack| pack.iter().min().copied()),
    }
    packs
}

/// Rows sorted by length within groups of micro-batches, and those in random order.
pub(crate) fn length_grouped(
    rows: &[usize],
    lengths: &[u32],
    micro_batch_size: usize,
    rng: Option<&mut SplitMix64>,
) -> Vec<usize> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for group in rows.chunks(micro_batch_size.saturating_mul(GROUP)) {
        let mut group = group.to_vec();
        group.sort_by_key(|row| Reverse(lengths[*row]));
        batches.extend(group.chunks(micro_batch_size).map(<[usize]>::to_vec));
    }
    if let Some(rng) = rng {
        // The only short one stays last, or it would shift all that follow.
        let full = rows.len() / micro_batch_size;
        rng.shuffle(&mut batches[..full]);
    }
    batches.concat()
}

/// What an epoch computes, and what of it is for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Density {
    /// Rows.
    pub rows: usize,
    /// Packs; without packing, rows.
    pub packs: usize,
    /// Micro-batches.
    pub micro_batches: usize,
    /// Tokens of all rows.
    pub tokens: u64,
    /// Places for tokens: full packs where rows are packed, rectangles where they are padded, the
    /// tokens themselves otherwise.
    pub places: u64,
}

impl Density {
    /// The share of places that hold a token, 0 to 1; 1 where there are none.
    pub fn density(&self) -> f64 {
        match self.places {
            0 => 1.0,
            places => self.tokens as f64 / places as f64,
        }
    }

    /// Places without a token.
    pub fn wasted(&self) -> u64 {
        self.places.saturating_sub(self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fills_the_fullest_pack_that_has_room() {
        let lengths = [5, 7, 5, 2, 4, 2, 5, 1, 12];
        let rows: Vec<usize> = (0..lengths.len()).collect();
        let packs = best_fit_decreasing(&rows, |row| lengths[row], 10);
        // 12 | 7 + 2 + 1 | 5 + 5 | 5 + 4 | 2
        let expected: [&[usize]; 5] = [&[8], &[1, 3, 7], &[0, 2], &[6, 4], &[5]];
        assert_eq!(packs, expected);
    }

    #[test]
    fn density_counts_places() {
        let density = Density {
            tokens: 75,
            places: 100,
            ..Density::default()
        };
        assert_eq!((density.density(), density.wasted()), (0.75, 25));
        assert_eq!(Density::default().density(), 1.0);
    }

    proptest! {
        #[test]
        fn packs_hold_every_row_once_within_capacity(lengths in proptest::collection::vec(0usize..50, 0..200), capacity in 1usize..60) {
            let rows: Vec<usize> = (0..lengths.len()).collect();
            let packs = best_fit_decreasing(&rows, |row| lengths[row], capacity);
            let mut all = packs.concat();
            all.sort_unstable();
            prop_assert_eq!(all, rows);
            let fill: Vec<usize> = packs.iter().map(|pack| pack.iter().map(|row| lengths[*row]).sum()).collect();
            for (pack, fill) in packs.iter().zip(&fill) {
                prop_assert!(*fill <= capacity || pack.len() == 1);
            }
            // No two packs could be one.
            let mut least = fill.clone();
            least.sort_unstable();
            if let [first, second, ..] = least.as_slice() {
                prop_assert!(first + second > capacity || *first == 0);
            }
        }
    }
}
