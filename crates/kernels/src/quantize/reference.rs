//! Quantisation value by value, as its definition reads.

use super::{ByteBlocks, PackedBlocks, Scale};
use crate::codebook::{DynamicMap, FourBitFormat, NestedFormat, THRESHOLDS, ZERO};

/// 4-bit codes: for each value every table entry is tried.
pub fn four_bit(values: &[f32], format: FourBitFormat, block_size: usize) -> PackedBlocks {
    let order = format.ascending();
    let table: Vec<f32> = order
        .iter()
        .map(|&code| format.values()[usize::from(code)])
        .collect();
    let code = |x: f32| order[nearest(x, &table)];
    let mut absmax = Vec::new();
    let mut codes = Vec::with_capacity(values.len() + 1);
    for block in values.chunks(block_size) {
        let largest = largest(block);
        let scale = Scale::of(largest);
        absmax.push(largest);
        codes.extend(block.iter().map(|&x| code(scale.apply(x))));
    }
    if !codes.len().is_multiple_of(2) {
        codes.push(code(0.0));
    }
    let packed = codes.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    PackedBlocks { packed, absmax }
}

/// 8-bit codes: for each value every entry of the map is tried.
pub fn blockwise(values: &[f32], map: DynamicMap, block_size: usize) -> ByteBlocks {
    let mut blocks = ByteBlocks::default();
    for block in values.chunks(block_size) {
        let largest = largest(block);
        let scale = Scale::of(largest);
        blocks.absmax.push(largest);
        let codes = block.iter().map(|&x| nearest(scale.apply(x), map.values()));
        blocks.codes.extend(codes.map(|code| code as u8));
    }
    blocks
}

/// Codes of 6 bits: for each value every threshold is tried.
pub fn nested_codes(values: &[f32], block_size: usize) -> ByteBlocks {
    let mut blocks = ByteBlocks::default();
    for block in values.chunks(block_size) {
        let largest = largest(block);
        let scale = Scale::of(largest);
        blocks.absmax.push(largest);
        let below = |x: f32| THRESHOLDS.iter().filter(move |&&threshold| threshold < x);
        let codes = block.iter().map(|&x| below(scale.apply(x)).count());
        blocks.codes.extend(codes.map(|code| code as u8));
    }
    blocks
}

/// Planes of codes of 6 bits, code by code. Where nibbles are left over they are the code of zero.
pub fn planes(codes: &[u8], format: NestedFormat) -> [Vec<u8>; 2] {
    let [high, low] = format.planes();
    let zero = if high == 4 { ZERO >> 2 } else { 0 };
    let pack = |bits: usize, below: usize, fill: u8| {
        let part = |code: Option<&u8>| code.map_or(fill, |code| code >> below & ((1 << bits) - 1));
        let bytes = codes.chunks(8 / bits);
        let byte =
            |codes: &[u8]| (0..8 / bits).fold(0, |byte, i| byte << bits | part(codes.get(i)));
        bytes.map(byte).collect()
    };
    let shift = format.shift();
    [pack(high, shift + low, zero), pack(low, shift, 0)]
}

fn largest(block: &[f32]) -> f32 {
    block
        .iter()
        .fold(0.0, |largest, x| f32::max(largest, x.abs()))
}

/// The entry of an ascending table nearest to `x`; of two equally near ones the lower.
fn nearest(x: f32, table: &[f32]) -> usize {
    table
        .windows(2)
        .take_while(|pair| x > (pair[0] + pair[1]) / 2.0)
        .count()
}
