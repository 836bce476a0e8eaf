//! Q4_K and Q5_K: eight sub-blocks of 32, each with a scale and a minimum in 6 bits.

use super::lanes::{Codes, Lanes, map, nearest, transposed};
use super::scale::put_half;

/// What a search for scales tries: `steps` + 1 denominators from `largest code + first` in steps of 0.1.
#[derive(Clone, Copy)]
struct Search {
    max_code: i32,
    first: f32,
    steps: u8,
}

/// Scales, minimums (negated) and codes of eight sub-blocks.
struct Found {
    scales: Lanes,
    minimums: Lanes,
    codes: [Codes; 32],
}

pub(super) fn q4_k(x: &[f32; 256], block: &mut [u8; 144]) {
    let search = Search {
        max_code: 15,
        first: -1.0,
        steps: 20,
    };
    let codes = scales_and_codes(x, search, block);
    for pair in 0..4 {
        for (l, codes) in codes.iter().enumerate() {
            let (low, high) = (codes[pair * 2] as u8, codes[pair * 2 + 1] as u8);
            block[16 + pair * 32 + l] = low | high << 4;
        }
    }
}

pub(super) fn q5_k(x: &[f32; 256], block: &mut [u8; 176]) {
    let search = Search {
        max_code: 31,
        first: -0.5,
        steps: 15,
    };
    let codes = scales_and_codes(x, search, block);
    for (l, codes) in codes.iter().enumerate() {
        let fifth = |(j, code): (usize, &i32)| (((code >> 4) & 1) << j) as u8;
        block[16 + l] = codes.iter().enumerate().map(fifth).sum();
        for pair in 0..4 {
            let (low, high) = (codes[pair * 2] as u8 & 15, codes[pair * 2 + 1] as u8 & 15);
            block[48 + pair * 32 + l] = low | high << 4;
        }
    }
}

/// Writes the first 16 bytes of a block, scales and minimums; gives the codes over what they became.
fn scales_and_codes<const B: usize>(
    x: &[f32; 256],
    search: Search,
    block: &mut [u8; B],
) -> [Codes; 32] {
    let x = transposed::<32>(x);
    let Found {
        scales,
        minimums,
        mut codes,
    } = search.run(&x);
    let greatest = |values: &Lanes| {
        values
            .iter()
            .fold(0.0f32, |a, &b| if b > a { b } else { a })
    };
    let (max_scale, max_minimum) = (greatest(&scales), greatest(&minimums));
    let inverse = |max: f32| if max > 0.0 { 63.0 / max } else { 0.0 };
    let (to_scale, to_minimum) = (inverse(max_scale), inverse(max_minimum));
    // Truncated to a byte before it is held to six bits, as the reference does.
    let six_bits = |value: f32| (nearest(value) as u8).min(63);
    let scale_codes = scales.map(|scale| six_bits(to_scale * scale));
    let minimum_codes = minimums.map(|minimum| six_bits(to_minimum * minimum));
    put_six_bits(&mut block[4..16], scale_codes, minimum_codes);
    let d = put_half(block, 0, max_scale / 63.0);
    let d_minimum = put_half(block, 2, max_minimum / 63.0);
    let scales: Lanes = map(|j| d * f32::from(scale_codes[j]));
    let minimums: Lanes = map(|j| d_minimum * f32::from(minimum_codes[j]));
    for (codes, x) in codes.iter_mut().zip(&x) {
        for j in 0..8 {
            // A sub-block whose scale is rounded to zero keeps the codes of the search.
            if scales[j] != 0.0 {
                let code = nearest((x[j] + minimums[j]) / scales[j]);
                codes[j] = code.clamp(0, search.max_code);
            }
        }
    }
    codes
}

/// Eight scales and eight minimums of six bits in twelve bytes.
fn put_six_bits(out: &mut [u8], scales: [u8; 8], minimums: [u8; 8]) {
    for j in 0..4 {
        out[j] = scales[j] | (scales[j + 4] >> 4) << 6;
        out[j + 4] = minimums[j] | (minimums[j + 4] >> 4) << 6;
        out[j + 8] = (scales[j + 4] & 15) | (minimums[j + 4] & 15) << 4;
    }
}

/// Sums over the elements of each sub-block.
struct Sums {
    /// Of weights times codes, codes squared, codes times values.
    codes: Lanes,
    squares: Lanes,
    products: Lanes,
}

impl Search {
    /// The scale and minimum with the least weighted squared error among those that it tries.
    fn run(self, x: &[Lanes; 32]) -> Found {
        let weights = weights(x);
        let (mut min, mut max) = (x[0], x[0]);
        let mut sum_w = weights[0];
        let mut sum_x: Lanes = map(|j| weights[0][j] * x[0][j]);
        for (x, w) in x.iter().zip(&weights).skip(1) {
            for j in 0..8 {
                min[j] = if x[j] < min[j] { x[j] } else { min[j] };
                max[j] = if x[j] > max[j] { x[j] } else { max[j] };
                sum_w[j] += w[j];
                sum_x[j] += w[j] * x[j];
            }
        }
        let min: Lanes = map(|j| if min[j] > 0.0 { 0.0 } else { min[j] });
        let flat: [bool; 8] = std::array::from_fn(|j| max[j] == min[j]);
        let limit = self.max_code as f32;
        let inverse: Lanes = map(|j| limit / (max[j] - min[j]));
        let scale: Lanes = map(|j| 1.0 / inverse[j]);
        let codes = self.codes(x, &inverse, &min);
        let mut best = Best {
            errors: errors(x, &weights, &codes, &scale, &min),
            scale,
            min,
            codes,
        };
        for step in 0..=self.steps {
            let steps = self.first + 0.1 * f32::from(step) + limit;
            // A better minimum moves the range that is tried next.
            let inverse: Lanes = map(|j| steps / (max[j] - best.min[j]));
            let codes = self.codes(x, &inverse, &best.min);
            let sums = sums(x, &weights, &codes);
            let (scale, min, sound) = fit(&sums, &sum_w, &sum_x);
            let errors = errors(x, &weights, &codes, &scale, &min);
            let better = std::array::from_fn(|j| sound[j] && errors[j] < best.errors[j]);
            best.take(better, scale, min, errors, &codes);
        }
        let mut codes = best.codes;
        for codes in &mut codes {
            for j in 0..8 {
                codes[j] = if flat[j] { 0 } else { codes[j] };
            }
        }
        Found {
            scales: map(|j| if flat[j] { 0.0 } else { best.scale[j] }),
            minimums: map(|j| if flat[j] { -min[j] } else { -best.min[j] }),
            codes,
        }
    }

    fn codes(self, x: &[Lanes; 32], inverse: &Lanes, min: &Lanes) -> [Codes; 32] {
        let mut codes = [[0; 8]; 32];
        for (codes, x) in codes.iter_mut().zip(x) {
            for j in 0..8 {
                codes[j] = nearest(inverse[j] * (x[j] - min[j])).clamp(0, self.max_code);
            }
        }
        codes
    }
}

struct Best {
    errors: Lanes,
    scale: Lanes,
    min: Lanes,
    codes: [Codes; 32],
}

impl Best {
    fn take(
        &mut self,
        better: [bool; 8],
        scale: Lanes,
        min: Lanes,
        errors: Lanes,
        codes: &[Codes; 32],
    ) {
        if better == [false; 8] {
            return;
        }
        for j in 0..8 {
            if better[j] {
                (self.errors[j], self.scale[j], self.min[j]) = (errors[j], scale[j], min[j]);
            }
        }
        for (kept, codes) in self.codes.iter_mut().zip(codes) {
            for j in 0..8 {
                kept[j] = if better[j] { codes[j] } else { kept[j] };
            }
        }
    }
}

/// The root mean square of a sub-block, plus each value without its sign.
fn weights(x: &[Lanes; 32]) -> [Lanes; 32] {
    let mut squares = [0.0; 8];
    for x in x {
        for j in 0..8 {
            squares[j] += x[j] * x[j];
        }
    }
    let average = squares.map(|sum: f32| (sum / 32.0).sqrt());
    x.map(|x| map(|j| average[j] + x[j].abs()))
}

fn sums(x: &[Lanes; 32], weights: &[Lanes; 32], codes: &[Codes; 32]) -> Sums {
    let (mut sum, mut squares, mut products) = ([0.0; 8], [0.0; 8], [0.0; 8]);
    for ((x, w), codes) in x.iter().zip(weights).zip(codes) {
        for j in 0..8 {
            let code = codes[j] as f32;
            let weighted = w[j] * code;
            sum[j] += weighted;
            squares[j] += weighted * code;
            products[j] += weighted * x[j];
        }
    }
    Sums {
        codes: sum,
        squares,
        products,
    }
}

/// Least squares of scale and minimum for given codes, and whether there is a solution.
fn fit(sums: &Sums, sum_w: &Lanes, sum_x: &Lanes) -> (Lanes, Lanes, [bool; 8]) {
    let (mut scale, mut min, mut sound) = ([0.0; 8], [0.0; 8], [false; 8]);
    for j in 0..8 {
        let (l, l2, xl) = (sums.codes[j], sums.squares[j], sums.products[j]);
        let determinant = sum_w[j] * l2 - l * l;
        let free_scale = (sum_w[j] * xl - sum_x[j] * l) / determinant;
        let free_min = (l2 * sum_x[j] - l * xl) / determinant;
        // A minimum is never above zero.
        let above = free_min > 0.0;
        scale[j] = if above { xl / l2 } else { free_scale };
        min[j] = if above { 0.0 } else { free_min };
        sound[j] = determinant > 0.0;
    }
    (scale, min, sound)
}

fn errors(
    x: &[Lanes; 32],
    weights: &[Lanes; 32],
    codes: &[Codes; 32],
    scale: &Lanes,
    min: &Lanes,
) -> Lanes {
    let mut errors = [0.0; 8];
    for ((x, w), codes) in x.iter().zip(weights).zip(codes) {
        for j in 0..8 {
            let difference = scale[j] * codes[j] as f32 + min[j] - x[j];
            errors[j] += w[j] * (difference * difference);
        }
    }
    errors
}
