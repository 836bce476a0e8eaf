//! Codes of a few bits in bytes: eight at a time, the first in the highest bits.

/// The last `BITS` bits of each of eight bytes, side by side.
#[inline(always)]
pub(crate) fn pack<const BITS: usize>(bytes: u64) -> [u8; BITS] {
    let singles = bytes & lowest(BITS, 8);
    let pairs = (singles | singles >> (8 - BITS)) & lowest(2 * BITS, 16);
    let fours = (pairs | pairs >> (16 - 2 * BITS)) & lowest(4 * BITS, 32);
    let eight = fours | fours >> (32 - 4 * BITS);
    let mut packed = [0; BITS];
    packed.copy_from_slice(&eight.to_be_bytes()[8 - BITS..]);
    packed
}

/// Eight codes of `BITS` bits, a byte each.
#[inline(always)]
pub(crate) fn unpack<const BITS: usize>(packed: [u8; BITS]) -> u64 {
    let mut bytes = [0; 8];
    bytes[8 - BITS..].copy_from_slice(&packed);
    let eight = u64::from_be_bytes(bytes);
    let fours = (eight | eight << (32 - 4 * BITS)) & lowest(4 * BITS, 32);
    let pairs = (fours | fours << (16 - 2 * BITS)) & lowest(2 * BITS, 16);
    (pairs | pairs << (8 - BITS)) & lowest(BITS, 8)
}

/// The lowest `count` bits of every `width`.
#[inline(always)]
const fn lowest(count: usize, width: usize) -> u64 {
    u64::MAX / (u64::MAX >> (64 - width)) * ((1 << count) - 1)
}

/// Code `i` of an array.
#[inline(always)]
pub(crate) fn get(packed: &[u8], bits: usize, i: usize) -> u8 {
    let per_byte = 8 / bits;
    let behind = (per_byte - 1 - i % per_byte) * bits;
    packed[i / per_byte] >> behind & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check<const BITS: usize>(codes: [u8; 8]) {
        let codes = codes.map(|code| code & ((1 << BITS) - 1));
        let packed = pack::<BITS>(u64::from_be_bytes(codes));
        assert_eq!(unpack(packed).to_be_bytes(), codes);
        for (i, code) in codes.into_iter().enumerate() {
            assert_eq!(get(&packed, BITS, i), code);
        }
    }

    proptest! {
        #[test]
        fn codes_are_found_again(codes: [u8; 8]) {
            check::<1>(codes);
            check::<2>(codes);
            check::<4>(codes);
        }
    }
}
