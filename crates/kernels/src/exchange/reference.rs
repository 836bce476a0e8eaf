//! The same in plain tensors and plain Rust.

use burn::tensor::Tensor;

/// The oracle of [`super::add_rows`].
pub fn add_rows(rows: &Tensor<2>, pairs: &[[usize; 2]]) -> Tensor<1> {
    let [n, width] = rows.dims();
    let row = |i| rows.clone().narrow(0, i, 1).reshape([width]);
    let mut sums: Vec<Tensor<1>> = (0..n).map(row).collect();
    for &[onto, from] in pairs {
        sums[onto] = sums[onto].clone() + sums[from].clone();
    }
    sums.swap_remove(0)
}

/// The oracle of [`super::checksum`].
pub fn checksum(values: &[f32]) -> u64 {
    let sums = values
        .iter()
        .enumerate()
        .fold([0_u32; 2], |sums, (i, value)| {
            let of = mixed(value.to_bits(), i as u32);
            [sums[0].wrapping_add(of[0]), sums[1].wrapping_add(of[1])]
        });
    folded(&sums)
}

/// Sums of [`mixed`] numbers, one of each kind after the other, as one number.
pub(super) fn folded(sums: &[u32]) -> u64 {
    let (pairs, _) = sums.as_chunks::<2>();
    let add =
        |sums: [u32; 2], of: &[u32; 2]| [sums[0].wrapping_add(of[0]), sums[1].wrapping_add(of[1])];
    let [high, low] = pairs.iter().fold([0; 2], add);
    u64::from(high) << 32 | u64::from(low)
}

/// Multipliers of the two sums: odd numbers of MurmurHash3 and xxHash.
pub(super) const FACTORS: [u32; 4] = [0x9E37_79B1, 0x85EB_CA6B, 0x85EB_CA77, 0xC2B2_AE35];

/// What the bits at a place add to each sum.
fn mixed(bits: u32, place: u32) -> [u32; 2] {
    let mix = |place_factor: u32, factor: u32| {
        let mut x = bits ^ place.wrapping_add(1).wrapping_mul(place_factor);
        x = (x ^ (x >> 16)).wrapping_mul(factor);
        x ^ (x >> 13)
    };
    [mix(FACTORS[0], FACTORS[1]), mix(FACTORS[2], FACTORS[3])]
}
