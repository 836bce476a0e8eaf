//! Q6_K: sixteen sub-blocks of 16, each with a scale in 8 bits.

use super::lanes::{Codes, Lanes, map, nearest, transposed};
use super::scale::put_half;

/// Below this a sub-block counts as zeros.
const NOTHING: f32 = 1e-15;

pub(super) fn q6_k(x: &[f32; 256], block: &mut [u8; 210]) {
    let halves = [transposed::<16>(&x[..128]), transposed::<16>(&x[128..])];
    let found = halves.each_ref().map(search);
    let mut max_scale = 0.0f32;
    for scale in found.iter().flat_map(|(scales, _)| scales) {
        if scale.abs() > max_scale.abs() {
            max_scale = *scale;
        }
    }
    if max_scale.abs() < NOTHING {
        block.fill(0);
        return;
    }
    let to_scale = -128.0 / max_scale;
    let d = put_half(block, 208, 1.0 / to_scale);
    let mut all = [0u8; 256];
    for (half, (scales, mut codes)) in found.into_iter().enumerate() {
        let scales = scales.map(|scale| nearest(to_scale * scale).min(127) as i8);
        for (j, scale) in scales.iter().enumerate() {
            block[192 + half * 8 + j] = *scale as u8;
        }
        let scales = scales.map(|scale| d * f32::from(scale));
        for (codes, x) in codes.iter_mut().zip(&halves[half]) {
            for j in 0..8 {
                if scales[j] != 0.0 {
                    codes[j] = nearest(x[j] / scales[j]).clamp(-32, 31) + 32;
                }
            }
        }
        for (i, codes) in codes.iter().enumerate() {
            for (j, code) in codes.iter().enumerate() {
                all[half * 128 + j * 16 + i] = *code as u8;
            }
        }
    }
    pack(&all, block);
}

/// Each half of 128: nibbles of the four quarters, two to a byte, and their upper bits, four to a byte.
fn pack(codes: &[u8; 256], block: &mut [u8; 210]) {
    for half in 0..2 {
        for l in 0..32 {
            let [a, b, c, d] = [0, 1, 2, 3].map(|quarter| codes[half * 128 + quarter * 32 + l]);
            block[half * 64 + l] = (a & 15) | (c & 15) << 4;
            block[half * 64 + 32 + l] = (b & 15) | (d & 15) << 4;
            block[128 + half * 32 + l] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
        }
    }
}

/// For eight sub-blocks the scale, of those that are tried, with the least error, each value weighted by its square; and codes
/// from 0 to 63.
fn search(x: &[Lanes; 16]) -> (Lanes, [Codes; 16]) {
    let mut max = [0.0f32; 8];
    for x in x {
        for j in 0..8 {
            max[j] = if x[j].abs() > max[j].abs() {
                x[j]
            } else {
                max[j]
            };
        }
    }
    let nothing = max.map(|max| max.abs() < NOTHING);
    let first = Try::new(x, &map(|j| -32.0 / max[j]));
    let mut codes = first.codes;
    let mut scale: Lanes = map(|j| match first.squares[j] == 0.0 {
        true => 0.0,
        false => first.products[j] / first.squares[j],
    });
    let mut best: Lanes = map(|j| scale[j] * first.products[j]);
    for step in (-9i8..=9).filter(|step| *step != 0) {
        let numerator = -(32.0 + 0.1 * f32::from(step));
        let tried = Try::new(x, &map(|j| numerator / max[j]));
        let mut better = [false; 8];
        for j in 0..8 {
            let (products, squares) = (tried.products[j], tried.squares[j]);
            better[j] = squares > 0.0 && products * products > best[j] * squares;
            let ratio = products / squares;
            scale[j] = if better[j] { ratio } else { scale[j] };
            best[j] = if better[j] { ratio * products } else { best[j] };
        }
        for (kept, codes) in codes.iter_mut().zip(&tried.codes) {
            for j in 0..8 {
                kept[j] = if better[j] { codes[j] } else { kept[j] };
            }
        }
    }
    for codes in &mut codes {
        for j in 0..8 {
            // From zero upwards; all zero where there is nothing.
            codes[j] = if nothing[j] { 0 } else { codes[j] + 32 };
        }
    }
    (map(|j| if nothing[j] { 0.0 } else { scale[j] }), codes)
}

/// Codes for one scale, and the sums that judge it.
struct Try {
    codes: [Codes; 16],
    products: Lanes,
    squares: Lanes,
}

impl Try {
    fn new(x: &[Lanes; 16], inverse: &Lanes) -> Self {
        let mut codes = [[0; 8]; 16];
        let (mut products, mut squares) = ([0.0; 8], [0.0; 8]);
        for (codes, x) in codes.iter_mut().zip(x) {
            for j in 0..8 {
                codes[j] = nearest(inverse[j] * x[j]).clamp(-32, 31);
                let (code, weight) = (codes[j] as f32, x[j] * x[j]);
                products[j] += weight * x[j] * code;
                squares[j] += weight * code * code;
            }
        }
        Self {
            codes,
            products,
            squares,
        }
    }
}
