//! Blocks for tests.

use backdraft_arch::GgufBlock;

/// Random blocks whose largest values are of order 1.
pub(crate) fn blocks(kind: GgufBlock, count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64 ^ count as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u16
    };
    let mut bytes: Vec<u8> = (0..count * kind.bytes()).map(|_| next() as u8).collect();
    // 2ⁿ, of which the widest code times its scale makes a few units.
    let exponent = match kind {
        GgufBlock::Q4_0 | GgufBlock::Q4_1 => -3,
        GgufBlock::Q5_0 | GgufBlock::Q5_1 => -4,
        GgufBlock::Q8_0 => -6,
        GgufBlock::Q4_K => -9,
        GgufBlock::Q5_K => -10,
        GgufBlock::Q6_K => -11,
    };
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        for &at in kind.halves() {
            let bits = ((exponent + 15) as u16) << 10 | (next() & 1023);
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    bytes
}
