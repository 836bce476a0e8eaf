//! Quantisation value by value, as its definition reads.

use super::{ByteBlocks, PackedBlocks, Scale};
use crate::codebook::{DynamicMap, FourBitFormat};

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
