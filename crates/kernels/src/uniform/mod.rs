//! Random numbers that are a function of a seed and a place, so that nothing has to be kept of them.
//!
//! # Source
//! SplitMix64: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".

#[cfg(feature = "cube")]
pub(crate) mod cube;

/// What a place is multiplied by before its seed is added: the sequence runs through all 64-bit numbers.
const WEYL: u64 = 0x9E37_79B9_7F4A_7C15;
/// The finaliser's two factors.
const MIX: [u64; 2] = [0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB];

/// 64 bits, for place `index` of the sequence that `seed` begins.
pub fn bits(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(WEYL));
    z = (z ^ (z >> 30)).wrapping_mul(MIX[0]);
    z = (z ^ (z >> 27)).wrapping_mul(MIX[1]);
    z ^ (z >> 31)
}

/// In [0, 1), of the upper 24 of [`bits`], which f32 holds exactly.
pub(crate) fn uniform(seed: u64, index: u64) -> f32 {
    (bits(seed, index) >> 40) as f32 / (1u64 << 24) as f32
}

/// The low and the high one.
#[cfg(feature = "cube")]
pub(crate) const fn halves(number: u64) -> [u32; 2] {
    [number as u32, (number >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs for seed 1234567 of the authors' own program.
    #[test]
    fn the_sequence_is_the_published_one() {
        let found: Vec<u64> = (0..3).map(|i| bits(1_234_567, i)).collect();
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(found, expected);
    }
}
