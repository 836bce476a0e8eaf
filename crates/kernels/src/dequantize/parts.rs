//! Some rows of a matrix of codes, as a matrix of codes in the same memory.

use std::ops::Range;

use super::{Absmax, BlockFormat, Blocks, GgufBlocks, Int8Rows, reference};
use crate::quantize::NESTED_BLOCK_SIZE;

impl<F: BlockFormat> Blocks<F> {
    /// The matrix of these rows; `None` where they do not begin and end with blocks.
    ///
    /// # Panics
    /// If there are not as many rows.
    pub fn part(&self, rows: Range<usize>) -> Option<Self> {
        let [out, input] = self.dims;
        let dims = [check(out, &rows), input];
        let (start, values) = (rows.start * input, dims[0] * input);
        let (end, size) = (start + values, self.block_size);
        if !start.is_multiple_of(size) || !(end.is_multiple_of(size) || rows.end == out) {
            return None;
        }
        let planes = self.planes.iter().zip(self.format.planes());
        let planes = planes.map(|(plane, bits)| {
            let per_byte = 8 / bits;
            let bytes = values.div_ceil(per_byte);
            plane.clone().narrow(0, start / per_byte, bytes)
        });
        Some(Self {
            dims,
            planes: planes.collect(),
            absmax: self.absmax.part(start / size..end.div_ceil(size)),
            ..self.clone()
        })
    }
}

impl Absmax {
    /// The scales of these blocks: as f32 where they do not begin with a scale of scales.
    fn part(&self, blocks: Range<usize>) -> Self {
        let (start, count) = (blocks.start, blocks.len());
        match self {
            Self::Double {
                codes,
                scales,
                offset,
            } if start.is_multiple_of(NESTED_BLOCK_SIZE) => Self::Double {
                codes: codes.clone().narrow(0, start, count),
                scales: scales.clone().narrow(
                    0,
                    start / NESTED_BLOCK_SIZE,
                    count.div_ceil(NESTED_BLOCK_SIZE),
                ),
                offset: *offset,
            },
            _ => Self::Single(reference::absmax(self).narrow(0, start, count)),
        }
    }
}

impl Int8Rows {
    /// The matrix of these rows.
    ///
    /// # Panics
    /// If there are not as many rows.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let [out, input] = self.dims;
        let count = check(out, &rows);
        let codes = self.codes.clone();
        Self {
            dims: [count, input],
            codes: codes.narrow(0, rows.start * input, count * input),
            absmax: self.absmax.clone().narrow(0, rows.start, count),
        }
    }
}

impl GgufBlocks {
    /// The matrix of these rows.
    ///
    /// # Panics
    /// If there are not as many rows.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let [out, input] = self.dims;
        let count = check(out, &rows);
        let row = input / self.kind.values() * self.kind.bytes();
        let bytes = self.bytes.clone();
        Self {
            dims: [count, input],
            bytes: bytes.narrow(0, rows.start * row, count * row),
            ..self.clone()
        }
    }
}

/// The number of rows.
fn check(out: usize, rows: &Range<usize>) -> usize {
    assert!(rows.end <= out, "rows {rows:?} of a matrix with {out} rows");
    rows.len()
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::super::{FourBit, HostAbsmax};
    use super::*;
    use crate::codebook::FourBitFormat;
    use crate::quantize;

    fn values(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| (i as f32 * 0.37).sin() * (1.0 + (i / 64) as f32))
            .collect()
    }

    fn bits(tensor: burn::tensor::Tensor<2>) -> Vec<u32> {
        tensor.into_data().iter::<f32>().map(f32::to_bits).collect()
    }

    #[test]
    fn rows_in_the_same_memory_have_the_same_values() {
        let device = Device::flex();
        let [out, input] = [600, 64];
        let all = values(out * input);
        for double in [false, true] {
            let blocks = quantize::four_bit(&all, FourBitFormat::Nf4, 64);
            let absmax = match double {
                true => HostAbsmax::Double(quantize::nested(&blocks.absmax)),
                false => HostAbsmax::Single(blocks.absmax),
            };
            let matrix = FourBit::from_parts(
                FourBitFormat::Nf4,
                64,
                [out, input],
                blocks.packed,
                absmax,
                &device,
            );
            let matrix = matrix.unwrap();
            // The second begins within a block of scales.
            for rows in [0..256, 100..300, 256..600, 599..600] {
                let part = matrix.part(rows.clone()).unwrap();
                let expected = matrix.dequantize().narrow(0, rows.start, rows.len());
                assert_eq!(part.dims(), [rows.len(), input]);
                assert_eq!(
                    bits(part.dequantize()),
                    bits(expected),
                    "{rows:?}, {double}"
                );
            }
        }
        let (codes, scales) = quantize::int8_rows(&all, input);
        let matrix = Int8Rows::from_parts([out, input], codes, scales, &device).unwrap();
        let expected = matrix.dequantize().narrow(0, 7, 90);
        assert_eq!(bits(matrix.part(7..97).dequantize()), bits(expected));
    }

    #[test]
    fn rows_that_begin_within_a_block_have_no_part() {
        let blocks = quantize::four_bit(&values(3 * 32), FourBitFormat::Nf4, 64);
        let absmax = HostAbsmax::Single(blocks.absmax);
        let matrix = FourBit::from_parts(
            FourBitFormat::Nf4,
            64,
            [3, 32],
            blocks.packed,
            absmax,
            &Device::flex(),
        );
        let matrix = matrix.unwrap();
        assert!(matrix.part(1..3).is_none() && matrix.part(0..1).is_none());
        assert!(matrix.part(0..2).is_some() && matrix.part(2..3).is_some());
    }
}
