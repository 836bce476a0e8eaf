//! What each precision would cost a matrix, from one pass over its values.

use backdraft_arch::{FourBitFormat, NestedFormat, Precision, Scheme};
use backdraft_kernels::codebook::DynamicMap;
use backdraft_kernels::quantize::{self, NESTED_BLOCK_SIZE};
use rayon::prelude::*;

/// Rows that one thread takes at a time; fixed, so that sums have the same bits with any number of threads.
const ROWS: usize = 32;

/// Squared errors E² = (W − Q)² of a matrix in one precision.
#[derive(Clone, Debug, PartialEq)]
pub struct SquaredErrors {
    /// In which.
    pub precision: Precision,
    /// Σ γ·d²·E² with the sensitivities that were given.
    pub weighed: f64,
    /// Sums over columns, `[out]`.
    rows: Vec<f32>,
    /// Sums over rows, `[in]`.
    columns: Vec<f32>,
    /// Σ E².
    pub total: f64,
}

impl SquaredErrors {
    /// Σ γ·d²·E² for other sensitivities, as if E² were the product of its sums by row and by column: without the matrix.
    ///
    /// # Shapes
    /// `outputs` (γ) `[out]`, `inputs` (d²) `[in]`.
    #[must_use]
    pub fn weighed_by(&self, outputs: &[f32], inputs: &[f32]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
            products.sum()
        };
        if self.total > 0.0 {
            dot(outputs, &self.rows) * dot(inputs, &self.columns) / self.total
        } else {
            0.0
        }
    }
}

/// The errors of a matrix in each of `precisions`, weighed by what was measured.
///
/// # Shapes
/// `values` row-major `[out, in]`, `outputs` (γ) `[out]`, `inputs` (d²) `[in]`.
///
/// # Panics
/// If the shapes do not fit each other.
#[must_use]
pub fn squared_errors(
    values: &[f32],
    (outputs, inputs): (&[f32], &[f32]),
    precisions: &[Precision],
    (block_size, double_quant): (usize, bool),
) -> Vec<SquaredErrors> {
    let width = inputs.len();
    assert_eq!(values.len(), outputs.len() * width, "values of a matrix");
    let codes = Codes::of(values, block_size, double_quant);
    let each = precisions.iter().map(|&precision| {
        let parts: Vec<Part> = (0..outputs.len().div_ceil(ROWS))
            .into_par_iter()
            .map(|part| {
                let rows = part * ROWS..((part + 1) * ROWS).min(outputs.len());
                let mut sums = Part::new(width);
                let mut squares = vec![0.0_f32; width];
                for row in rows {
                    let values = &values[row * width..(row + 1) * width];
                    codes.squares(precision, values, row * width, &mut squares);
                    sums.add(&squares, inputs, outputs[row]);
                }
                sums
            })
            .collect();
        let mut all = Part::new(width);
        for part in parts {
            all.weighed += part.weighed;
            all.rows.extend(part.rows);
            for (sum, more) in all.columns.iter_mut().zip(part.columns) {
                *sum += more;
            }
        }
        SquaredErrors {
            precision,
            weighed: all.weighed,
            total: all.rows.iter().map(|&sum| f64::from(sum)).sum(),
            rows: all.rows,
            columns: all.columns.into_iter().map(|sum| sum as f32).collect(),
        }
    });
    each.collect()
}

/// Sums over some rows.
struct Part {
    weighed: f64,
    rows: Vec<f32>,
    columns: Vec<f64>,
}

impl Part {
    fn new(width: usize) -> Self {
        Self {
            weighed: 0.0,
            rows: Vec::new(),
            columns: vec![0.0; width],
        }
    }

    fn add(&mut self, squares: &[f32], inputs: &[f32], output: f32) {
        let (mut sum, mut weighed) = (0.0, 0.0);
        for ((&square, &input), column) in squares.iter().zip(inputs).zip(&mut self.columns) {
            let square = f64::from(square);
            sum += square;
            weighed += square * f64::from(input);
            *column += square;
        }
        self.weighed += weighed * f64::from(output);
        self.rows.push(sum as f32);
    }
}

/// Codes that all formats of blocks come from, and the scales as they will be stored.
struct Codes {
    codes: Vec<u8>,
    scales: Vec<f32>,
    block_size: usize,
}

impl Codes {
    fn of(values: &[f32], block_size: usize, double_quant: bool) -> Self {
        let blocks = quantize::nested_codes(values, block_size);
        let scales = if double_quant {
            let nested = quantize::nested(&blocks.absmax);
            let map = DynamicMap::Signed.values();
            let codes = nested.blocks.codes.iter().enumerate();
            let scale = |(i, &code): (usize, &u8)| {
                let scale = nested.blocks.absmax[i / NESTED_BLOCK_SIZE];
                map[usize::from(code)] * scale + nested.offset
            };
            codes.map(scale).collect()
        } else {
            blocks.absmax
        };
        Self {
            codes: blocks.codes,
            scales,
            block_size,
        }
    }

    /// (W − Q)² of a row that begins at `start`.
    fn squares(&self, precision: Precision, values: &[f32], start: usize, squares: &mut [f32]) {
        let (table, shift) = match precision.scheme(self.block_size, true) {
            Scheme::Nested { format, .. } => (format.values(), format.shift()),
            Scheme::FourBit { .. } => (&FourBitFormat::Nf4.values()[..], NF4_SHIFT),
            Scheme::Int8 => return int8_squares(values, squares),
            Scheme::Gguf(_) => unreachable!("no precision is that of a file's blocks"),
        };
        let mut at = start;
        let mut done = 0;
        while done < values.len() {
            let block = at / self.block_size;
            let count = ((block + 1) * self.block_size - at).min(values.len() - done);
            let scale = self.scales[block];
            let codes = &self.codes[at..at + count];
            let part = done..done + count;
            for ((square, &value), &code) in squares[part.clone()]
                .iter_mut()
                .zip(&values[part])
                .zip(codes)
            {
                let error = value - table[usize::from(code >> shift)] * scale;
                *square = error * error;
            }
            at += count;
            done += count;
        }
    }
}

/// From a code of 6 bits to NF4's.
const NF4_SHIFT: usize = NestedFormat::Nf6.bits() - 4;

fn int8_squares(values: &[f32], squares: &mut [f32]) {
    let (codes, scales) = quantize::int8_rows(values, values.len());
    let unit = scales.first().map_or(0.0, |absmax| absmax / 127.0);
    for ((square, &value), code) in squares.iter_mut().zip(values).zip(codes) {
        let error = value - f32::from(code) * unit;
        *square = error * error;
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tensor};

    use super::*;
    use crate::Weight;

    /// Against the weights themselves: quantised, dequantised, subtracted.
    #[test]
    fn errors_are_those_of_the_stored_weights() {
        let device = Device::flex();
        // Blocks run across the ends of rows.
        let (out, input) = (70, 100);
        let values = Tensor::<2>::random([out, input], Distribution::Normal(0.0, 1.0), &device);
        let values: Vec<f32> = values.into_data().iter::<f32>().collect();
        let outputs: Vec<f32> = (0..out).map(|i| 1.0 + i as f32).collect();
        let inputs: Vec<f32> = (0..input).map(|j| (j % 9) as f32).collect();
        for double_quant in [false, true] {
            let found = squared_errors(
                &values,
                (&outputs, &inputs),
                Precision::ALL,
                (64, double_quant),
            );
            for errors in found {
                let scheme = errors.precision.scheme(64, double_quant);
                let weight = Weight::quantize(&values, [out, input], scheme, &device);
                let stored: Vec<f32> = weight.dequantize().into_data().iter::<f32>().collect();
                let (mut total, mut weighed) = (0.0, 0.0);
                for (i, (w, q)) in values.iter().zip(stored).enumerate() {
                    let square = f64::from(w - q).powi(2);
                    total += square;
                    weighed += square * f64::from(outputs[i / input] * inputs[i % input]);
                }
                let close = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-5;
                assert!(
                    close(errors.total, total),
                    "{scheme}: {} {total}",
                    errors.total
                );
                assert!(close(errors.weighed, weighed), "{scheme}");
                // Errors of random values are nearly a product of their sums.
                let sketched = errors.weighed_by(&outputs, &inputs);
                assert!(
                    (sketched / weighed - 1.0).abs() < 0.05,
                    "{scheme}: {sketched} {weighed}"
                );
            }
        }
    }

    #[test]
    fn a_matrix_of_zeros_has_no_error() {
        let found = squared_errors(
            &[0.0; 128],
            (&[1.0; 2], &[1.0; 64]),
            Precision::ALL,
            (64, true),
        );
        for errors in found {
            assert_eq!(
                (errors.total, errors.weighed),
                (0.0, 0.0),
                "{}",
                errors.precision
            );
            assert_eq!(errors.weighed_by(&[1.0; 2], &[1.0; 64]), 0.0);
        }
    }
}
