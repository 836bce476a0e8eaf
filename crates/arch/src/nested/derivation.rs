//! Where the values of nested codes come from.
//!
//! A block of 64 independent normal values has the largest magnitude a. Restored by its code's value t, in units of a, a
//! value a·x is off by a·(x − t): the sum of squares is least where t = E\[a²x | cell\] / E\[a² | cell\]. Given a, one
//! of the 64 values is −a or a itself, and the others are normal between the two. `cargo xtask codebook` prints the
//! result, which is written down in `tables.rs`.

use super::{NestedFormat, edges};

/// Values of a block.
const BLOCK: i32 = 64;

/// Beyond it a largest magnitude of 64 does not occur: less than once in 10¹⁶ blocks.
const LARGEST: f64 = 9.0;

/// Intervals of a that are integrated over one by one.
const PANELS: usize = 120;

/// Points of an interval.
const POINTS: usize = 16;

/// The mean of each cell, nothing pinned.
#[must_use]
pub fn means(format: NestedFormat) -> Vec<f64> {
    let moments = moments();
    let cells = moments.chunks(1 << format.shift());
    cells
        .map(|parts| {
            let sum = |i: usize| parts.iter().map(|part| part[i]).sum::<f64>();
            sum(1) / sum(0)
        })
        .collect()
}

/// The value of each code: means, but for those that are pinned.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "tables are in f32")]
pub fn table(format: NestedFormat) -> Vec<f32> {
    let mut values: Vec<f32> = means(format).iter().map(|&mean| mean as f32).collect();
    for (code, value) in format.pinned() {
        values[code] = value;
    }
    values
}

/// E\[a²; cell\] and E\[a²x; cell\] of the 64 cells of 6 bits.
fn moments() -> Vec<[f64; 2]> {
    let (edges, rule) = (edges(), gauss_legendre());
    let mut moments = vec![[0.0; 2]; edges.len() - 1];
    let mut atom = 0.0;
    let width = LARGEST / PANELS as f64;
    for panel in 0..PANELS {
        let start = panel as f64 * width;
        for (a, weight) in on(rule, start, start + width) {
            let cells = edges.windows(2).map(|cell| {
                let (low, high) = (a * cell[0], a * cell[1]);
                let points = on(rule, low, high).into_iter();
                let mass: f64 = points.map(|(x, weight)| weight * density(x)).sum();
                [mass, density(low) - density(high)]
            });
            let cells: Vec<[f64; 2]> = cells.collect();
            let inside: f64 = cells.iter().map(|cell| cell[0]).sum();
            // The density of a, with one of the 64 taken off the power for a value that is not the largest.
            let largest = weight * 2.0 * density(a) * a * a;
            let other = largest * f64::from(BLOCK - 1) * inside.powi(BLOCK - 2);
            for (moment, [mass, first]) in moments.iter_mut().zip(cells) {
                moment[0] += other * mass;
                moment[1] += other * first / a;
            }
            atom += largest * inside.powi(BLOCK - 1) / 2.0;
        }
    }
    let last = moments.len() - 1;
    for (cell, end) in [(0, -1.0), (last, 1.0)] {
        moments[cell][0] += atom;
        moments[cell][1] += atom * end;
    }
    moments
}

/// The normal density.
fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}

/// The rule's points and weights between two ends.
fn on(rule: [(f64, f64); POINTS], low: f64, high: f64) -> [(f64, f64); POINTS] {
    let (middle, half) = ((low + high) / 2.0, (high - low) / 2.0);
    rule.map(|(x, weight)| (middle + half * x, half * weight))
}

/// Points and weights between −1 and 1: the zeros of a Legendre polynomial, by Newton's method.
fn gauss_legendre() -> [(f64, f64); POINTS] {
    let degree = POINTS as f64;
    std::array::from_fn(|i| {
        let mut x = (std::f64::consts::PI * (i as f64 + 0.75) / (degree + 0.5)).cos();
        let mut slope = 0.0;
        for _ in 0..20 {
            let (mut before, mut value) = (1.0, x);
            for k in 2..=POINTS {
                let k = k as f64;
                (before, value) = (
                    value,
                    ((2.0 * k - 1.0) * x * value - (k - 1.0) * before) / k,
                );
            }
            slope = degree * (x * value - before) / (x * x - 1.0);
            x -= value / slope;
        }
        (x, 2.0 / ((1.0 - x * x) * slope * slope))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_integrates_polynomials_exactly() {
        let rule = gauss_legendre();
        for power in [0, 2, 10, 30] {
            let integral: f64 = rule.iter().map(|(x, weight)| weight * x.powi(power)).sum();
            assert!(
                (integral - 2.0 / f64::from(power + 1)).abs() < 1e-14,
                "x^{power}"
            );
        }
    }

    #[test]
    fn the_tables_are_what_the_formula_gives() {
        for &format in NestedFormat::ALL {
            for (code, (given, &written)) in table(format).iter().zip(format.values()).enumerate() {
                assert!(
                    (given - written).abs() < 1e-7,
                    "{format} {code}: {given}, not {written}"
                );
            }
        }
    }
}
