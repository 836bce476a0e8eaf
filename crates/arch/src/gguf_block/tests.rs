use super::*;

/// Pseudo-random bytes.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A block of ones as codes, with every number in half precision 1.
fn ones(kind: GgufBlock) -> Vec<u8> {
    let mut block = vec![0x11; kind.bytes()];
    for &at in kind.halves() {
        block[at..at + 2].copy_from_slice(&0x3c00u16.to_le_bytes());
    }
    block
}

#[test]
fn blocks_of_ones_are_what_their_layout_says() {
    let first = |kind: GgufBlock| {
        let mut out = vec![f32::NAN; kind.values()];
        kind.unpack(&ones(kind), &mut out);
        assert!(out.iter().all(|value| value.is_finite()), "{kind}");
        out[0]
    };
    assert_eq!(first(GgufBlock::Q4_0), 1.0 - 8.0);
    assert_eq!(first(GgufBlock::Q4_1), 1.0 + 1.0);
    // The lowest of the fifth bits is set.
    assert_eq!(first(GgufBlock::Q5_0), 17.0 - 16.0);
    assert_eq!(first(GgufBlock::Q5_1), 17.0 + 1.0);
    assert_eq!(first(GgufBlock::Q8_0), 17.0);
    // Scale and minimum 17.
    assert_eq!(first(GgufBlock::Q4_K), 17.0 - 17.0);
    assert_eq!(first(GgufBlock::Q5_K), 17.0 * 17.0 - 17.0);
    assert_eq!(first(GgufBlock::Q6_K), 17.0 * (17.0 - 32.0));
}

#[test]
fn whole_blocks_only_are_written() {
    for &kind in GgufBlock::ALL {
        let bytes = noise(2 * kind.bytes() + 1);
        let mut out = vec![0.5; 3 * kind.values() - 1];
        kind.unpack(&bytes, &mut out);
        assert!(out[2 * kind.values()..].iter().all(|&value| value == 0.5));
        // The second block alone is what it was behind the first.
        let mut second = vec![0.0; kind.values()];
        kind.unpack(&bytes[kind.bytes()..], &mut second);
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&out[kind.values()..2 * kind.values()]), bits(&second));
    }
}

#[test]
fn what_is_not_finite_shows_in_the_halves() {
    for &kind in GgufBlock::ALL {
        let blocks = 64;
        let mut bytes = noise(blocks * kind.bytes());
        for block in bytes.chunks_exact_mut(kind.bytes()) {
            for &at in kind.halves() {
                // The largest finite numbers, of either sign.
                block[at + 1] = (block[at + 1] & 0x80) | 0x7b;
            }
        }
        let mut out = vec![0.0; blocks * kind.values()];
        let mut agree = |bytes: &[u8], expected: bool| {
            kind.unpack(bytes, &mut out);
            assert_eq!(
                out.iter().all(|value| value.is_finite()),
                expected,
                "{kind}"
            );
            assert_eq!(kind.all_finite(bytes), expected, "{kind}");
        };
        agree(&bytes, true);
        for &at in kind.halves() {
            for high in [0x7c, 0xfe] {
                let mut damaged = bytes.clone();
                let last = (blocks - 1) * kind.bytes();
                damaged[last + at..last + at + 2].copy_from_slice(&[1, high]);
                agree(&damaged, false);
            }
        }
    }
}
