//! The work of the attention kernels on CubeCL devices: tiles of rows of one document.
//!
//! A tile is five numbers, `[first, end, other_first, other_end, shift]`: its rows, the rows of its
//! document on the other side, and how far a query's position among the keys is ahead of its row. Query
//! `r` sees key `c` if `c <= r + shift`. Long tiles come first, so that short ones fill the gaps at the end.

use std::cell::RefCell;
use std::collections::HashMap;

use burn_cubecl::CubeDevice;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::cube::CubeTensor;
use crate::segments::Segments;

/// Numbers of a tile.
pub(super) const FIELDS: usize = 5;

/// A score that no softmax notices.
pub(super) const NEVER: f32 = -1.0e30;

/// The first key that a tile's first query sees.
#[cube]
pub(super) fn first_seen(first: u32, shift: u32, keys_first: u32, #[comptime] window: u32) -> u32 {
    let mut seen = keys_first;
    if comptime!(window > 0) {
        let end = first + shift + 1u32;
        if end > keys_first + window {
            seen = end - window;
        }
    }
    seen
}

/// Whose rows a tile has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Queries,
    Keys,
}

/// Tiles in device memory.
#[derive(Clone, Debug)]
pub(super) struct Tiles {
    handle: Handle,
    pub(super) count: usize,
}

impl Tiles {
    #[expect(unsafe_code, reason = "CubeCL takes lengths on trust")]
    pub(super) fn argument(&self) -> BufferArg {
        // SAFETY: so many numbers were written.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.count * FIELDS) }
    }
}

thread_local! {
    /// Every layer of a pass works on the same tiles.
    static WRITTEN: RefCell<HashMap<(CubeDevice, Side, usize, Segments), Tiles>> = RefCell::default();
}

/// Micro-batches whose tiles are kept.
const KEPT: usize = 64;

/// Tiles of at most `rows` rows, beside `like`.
pub(super) fn tiles(segments: &Segments, side: Side, rows: usize, like: &CubeTensor) -> Tiles {
    WRITTEN.with_borrow_mut(|written| {
        let key = (like.device.clone(), side, rows, segments.clone());
        if let Some(tiles) = written.get(&key) {
            return tiles.clone();
        }
        if written.len() >= KEPT {
            written.clear();
        }
        let numbers = cut(segments, side, rows);
        let bytes: Vec<u8> = numbers
            .iter()
            .flatten()
            .flat_map(|x| x.to_ne_bytes())
            .collect();
        let tiles = Tiles {
            handle: like.client.create_from_slice(&bytes),
            count: numbers.len(),
        };
        written.insert(key, tiles.clone());
        tiles
    })
}

/// Lets this thread's tiles go.
pub(crate) fn forget() {
    WRITTEN.with_borrow_mut(HashMap::clear);
}

fn cut(segments: &Segments, side: Side, rows: usize) -> Vec<[u32; FIELDS]> {
    let mut tiles = Vec::new();
    for (queries, keys) in segments.iter() {
        let past = keys.len() - queries.len();
        let shift = (keys.start + past - queries.start) as u32;
        let (own, other) = match side {
            Side::Queries => (queries, keys),
            Side::Keys => (keys, queries),
        };
        for first in own.clone().step_by(rows) {
            let end = (first + rows).min(own.end);
            let tile = [first, end, other.start, other.end].map(|row| row as u32);
            tiles.push([tile[0], tile[1], tile[2], tile[3], shift]);
        }
    }
    // The work of a tile: pairs of rows that see each other, without the sliding window.
    tiles.sort_by_key(|&[first, end, other_first, other_end, shift]| {
        let others = match side {
            Side::Queries => (end + shift).min(other_end) - other_first,
            Side::Keys => other_end - first.saturating_sub(shift).min(other_end).max(other_first),
        };
        std::cmp::Reverse(u64::from(others) * u64::from(end - first))
    });
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_each_row_once_and_long_ones_come_first() {
        let segments = Segments::from_cumulative(&[0, 5, 6, 38]);
        for side in [Side::Queries, Side::Keys] {
            let tiles = cut(&segments, side, 16);
            let mut rows: Vec<u32> = tiles.iter().flat_map(|t| t[0]..t[1]).collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..38).collect::<Vec<_>>());
            assert!(tiles.iter().all(|t| t[2] <= t[0] && t[1] <= t[3]));
        }
        assert_eq!(cut(&segments, Side::Queries, 16)[0], [22, 38, 6, 38, 0]);
        assert_eq!(cut(&segments, Side::Keys, 16)[0], [6, 22, 6, 38, 0]);
    }

    #[test]
    fn with_a_cache_queries_are_the_last_positions() {
        let segments = Segments::continuing([(7, 2), (0, 3)]);
        let tiles = cut(&segments, Side::Queries, 16);
        assert_eq!(tiles, [[0, 2, 0, 9, 7], [2, 5, 9, 12, 7]]);
    }
}
