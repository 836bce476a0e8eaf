//! `f32` to blocks of quantised weights, with the bytes of ggml's reference.
//!
//! Products and sums are rounded to `f32` one at a time and in the reference's order; a fused multiply-add would give other
//! codes. Rows are independent, so they are shared among the cores.
//!
//! # Source
//! `quantize_row_*_ref` in <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>, for the arithmetic; block layouts as
//! in `dequantize.rs`.

mod lanes;
mod scale;
mod six_bit;
mod with_minimum;

use half::{bf16, f16};
use rayon::prelude::*;

use self::scale::put_half;
use super::ggml_type::GgmlType;

/// Elements per parallel task: a multiple of every block.
const TASK: usize = 1 << 13;

/// The bytes that `elements` values take, which must be whole blocks.
#[must_use]
pub fn quantized_bytes(kind: GgmlType, elements: usize) -> usize {
    elements / kind.block_elements() * kind.block_bytes()
}

/// Encodes whole blocks, in parallel. Values must be finite.
///
/// Bytes of `out` beyond the blocks in `values` keep their value, as do those of values that fill no block.
pub fn quantize(kind: GgmlType, values: &[f32], out: &mut [u8]) {
    let task_bytes = quantized_bytes(kind, TASK);
    values
        .par_chunks(TASK)
        .zip(out.par_chunks_mut(task_bytes))
        .for_each(|(values, out)| quantize_serial(kind, values, out));
}

fn quantize_serial(kind: GgmlType, values: &[f32], out: &mut [u8]) {
    match kind {
        GgmlType::F32 => blocks(values, out, |x: &[f32; 1], o| *o = x[0].to_le_bytes()),
        GgmlType::F16 => blocks(values, out, |x: &[f32; 1], o| {
            *o = f16::from_f32(x[0]).to_le_bytes();
        }),
        GgmlType::BF16 => blocks(values, out, |x: &[f32; 1], o| {
            *o = bf16::from_f32(x[0]).to_le_bytes();
        }),
        GgmlType::Q4_0 => blocks(values, out, q4_0),
        GgmlType::Q4_1 => blocks(values, out, q4_1),
        GgmlType::Q5_0 => blocks(values, out, q5_0),
        GgmlType::Q5_1 => blocks(values, out, q5_1),
        GgmlType::Q8_0 => blocks(values, out, q8_0),
        GgmlType::Q4_K => blocks(values, out, with_minimum::q4_k),
        GgmlType::Q5_K => blocks(values, out, with_minimum::q5_k),
        GgmlType::Q6_K => blocks(values, out, six_bit::q6_k),
    }
}

fn blocks<const N: usize, const B: usize>(
    values: &[f32],
    out: &mut [u8],
    encode: impl Fn(&[f32; N], &mut [u8; B]),
) {
    let (values, _) = values.as_chunks();
    let (out, _) = out.as_chunks_mut();
    for (values, block) in values.iter().zip(out) {
        encode(values, block);
    }
}

/// 1 / `scale`, or 0 for a block of zeros.
fn inverse(scale: f32) -> f32 {
    match scale == 0.0 {
        true => 0.0,
        false => 1.0 / scale,
    }
}

/// The integer part, as the processors of the reference convert it: what does not fit becomes 0 in the low byte.
fn truncate(value: f32) -> i8 {
    match value.abs() < 2_147_483_648.0 {
        true => value as i32 as i8,
        false => 0,
    }
}

/// The value that is largest without its sign, the first of several.
fn largest(values: &[f32; 32]) -> f32 {
    let mut largest = 0.0f32;
    for &value in values {
        if value.abs() > largest.abs() {
            largest = value;
        }
    }
    largest
}

fn range(values: &[f32; 32]) -> (f32, f32) {
    let (mut min, mut max) = (f32::MAX, -f32::MAX);
    for &value in values {
        if value < min {
            min = value;
        }
        if value > max {
            max = value;
        }
    }
    (min, max)
}

/// The low four bits of codes, those of the first 16 elements in low nibbles.
fn put_nibbles(out: &mut [u8], codes: &[u8; 32]) {
    for (j, out) in out.iter_mut().enumerate() {
        *out = (codes[j] & 15) | (codes[j + 16] & 15) << 4;
    }
}

/// The fifth bits of codes.
fn put_fifth_bits(out: &mut [u8], codes: &[u8; 32]) {
    let bits = |(j, code): (usize, &u8)| u32::from((code >> 4) & 1) << j;
    let bits: u32 = codes.iter().enumerate().map(bits).sum();
    out.copy_from_slice(&bits.to_le_bytes());
}

fn q4_0(x: &[f32; 32], block: &mut [u8; 18]) {
    let d = largest(x) / -8.0;
    let id = inverse(d);
    put_half(block, 0, d);
    put_nibbles(
        &mut block[2..],
        &x.map(|x| truncate(x * id + 8.5).min(15) as u8),
    );
}

fn q4_1(x: &[f32; 32], block: &mut [u8; 20]) {
    let (min, max) = range(x);
    let d = (max - min) / 15.0;
    let id = inverse(d);
    put_half(block, 0, d);
    put_half(block, 2, min);
    put_nibbles(
        &mut block[4..],
        &x.map(|x| truncate((x - min) * id + 0.5).min(15) as u8),
    );
}

fn q5_0(x: &[f32; 32], block: &mut [u8; 22]) {
    let d = largest(x) / -16.0;
    let id = inverse(d);
    put_half(block, 0, d);
    let codes = x.map(|x| truncate(x * id + 16.5).min(31) as u8);
    put_fifth_bits(&mut block[2..6], &codes);
    put_nibbles(&mut block[6..], &codes);
}

fn q5_1(x: &[f32; 32], block: &mut [u8; 24]) {
    let (min, max) = range(x);
    let d = (max - min) / 31.0;
    let id = inverse(d);
    put_half(block, 0, d);
    put_half(block, 2, min);
    let codes = x.map(|x| truncate((x - min) * id + 0.5) as u8);
    put_fifth_bits(&mut block[4..8], &codes);
    put_nibbles(&mut block[8..], &codes);
}

fn q8_0(x: &[f32; 32], block: &mut [u8; 34]) {
    let d = largest(x).abs() / 127.0;
    let id = inverse(d);
    put_half(block, 0, d);
    for (out, x) in block[2..].iter_mut().zip(x) {
        // Halves away from zero.
        *out = truncate((x * id).round()) as u8;
    }
}

#[cfg(test)]
mod tests;
