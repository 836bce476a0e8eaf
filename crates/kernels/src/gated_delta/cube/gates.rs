//! The numbers of each token of a chunk in shared memory.

use backdraft_arch::sizes::DELTA_CHUNK as CHUNK;
use cubecl::prelude::*;

use super::Shape;
use crate::runs::RUN;

/// Lists of numbers, one behind the other.
pub(super) const LISTS: usize = 6;
/// Where each begins: β; G; 1 / length of each key; √key times less of each query; e^G; e^(G_c − G) times the key's.
pub(super) const BETA: usize = 0;
pub(super) const TOTAL: usize = CHUNK;
pub(super) const KEY: usize = 2 * CHUNK;
pub(super) const QUERY: usize = 3 * CHUNK;
pub(super) const GROWN: usize = 4 * CHUNK;
pub(super) const FADING: usize = 5 * CHUNK;

/// Those of the tokens of run `run`; β, and with it what is written, is zero behind the last. To be followed by a `sync_cube`.
///
/// # Shapes
/// `beta` and `totals` `[t, value_heads]`, `norms` `[t, 2, key_heads]`, `to` `[LISTS, CHUNK]`.
#[cube]
pub(super) fn load_gates(
    beta: &[f32],
    totals: &[f32],
    norms: &[f32],
    runs: &[u32],
    run: usize,
    head: usize,
    to: &mut [f32],
    #[comptime] shape: Shape,
) {
    let first = runs[run * RUN] as usize;
    let end = runs[run * RUN + 1] as usize;
    let last = totals[(end - 1) * comptime!(shape.value_heads) + head];
    let key_head = head / comptime!(shape.group());
    let mut i = UNIT_POS as usize;
    while i < CHUNK {
        let row = min(first + i, end - 1);
        let at = row * comptime!(shape.value_heads) + head;
        let norm = row * comptime!(2 * shape.key_heads) + key_head;
        let total = totals[at];
        let key = norms[norm + comptime!(shape.key_heads)];
        to[i] = select(first + i < end, beta[at], 0.0f32);
        to[TOTAL + i] = total;
        to[KEY + i] = key;
        to[QUERY + i] = norms[norm];
        to[GROWN + i] = total.exp();
        to[FADING + i] = (last - total).exp() * key;
        i += CUBE_DIM as usize;
    }
}
