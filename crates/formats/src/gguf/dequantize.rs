//! Blocks of quantised weights to `f32`.
//!
//! Every product and sum is rounded to `f32` in the order of ggml's reference, so the values are
//! the same to the bit.
//!
//! # Source
//! `dequantize_row_*` in <https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>; block
//! layouts in `ggml-common.h`.

use half::{bf16, f16};
use rayon::prelude::*;

use super::ggml_type::GgmlType;

/// Elements per parallel task: a multiple of every block.
const TASK: usize = 1 << 15;

/// Decodes whole blocks into `out`, in parallel.
///
/// Elements of `out` beyond the blocks in `bytes` keep their value.
pub fn dequantize(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    let task_bytes = TASK / kind.block_elements() * kind.block_bytes();
    out.par_chunks_mut(TASK)
        .zip(bytes.par_chunks(task_bytes))
        .for_each(|(out, bytes)| dequantize_serial(kind, bytes, out));
}

/// Decodes whole blocks into `out` on this thread.
pub(super) fn dequantize_serial(kind: GgmlType, bytes: &[u8], out: &mut [f32]) {
    match kind {
        GgmlType::F32 => blocks(bytes, out, |b: &[u8; 4], o: &mut [f32; 1]| {
            o[0] = f32::from_le_bytes(*b);
        }),
        GgmlType::F16 => blocks(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| {
            o[0] = f16::from_le_bytes(*b).to_f32();
        }),
        GgmlType::BF16 => blocks(bytes, out, |b: &[u8; 2], o: &mut [f32; 1]| {
            o[0] = bf16::from_le_bytes(*b).to_f32();
        }),
        GgmlType::Q4_0 => blocks(bytes, out, q4_0),
        GgmlType::Q4_1 => blocks(bytes, out, q4_1),
        GgmlType::Q5_0 => blocks(bytes, out, q5_0),
        GgmlType::Q5_1 => blocks(bytes, out, q5_1),
        GgmlType::Q8_0 => blocks(bytes, out, q8_0),
        GgmlType::Q4_K => blocks(bytes, out, q4_k),
        GgmlType::Q5_K => blocks(bytes, out, q5_k),
        GgmlType::Q6_K => blocks(bytes, out, q6_k),
    }
}

fn blocks<const B: usize, const N: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (bytes, _) = bytes.as_chunks();
    let (out, _) = out.as_chunks_mut();
    for (block, out) in bytes.iter().zip(out) {
        decode(block, out);
    }
}

/// The half-precision number at byte `at` of a block.
fn half_at<const B: usize>(block: &[u8; B], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

// Blocks of 32: a scale, for some a minimum, for some the fifth bits, then 16 bytes of nibbles.
// Low nibbles are the first 16 elements.

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, &q) in block[2..].iter().enumerate() {
        out[j] = (i32::from(q & 15) - 8) as f32 * d;
        out[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, &q) in block[4..].iter().enumerate() {
        out[j] = f32::from(q & 15) * d + m;
        out[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// Bit `j` of the fifth bits that begin at byte `at`, as 16 or 0.
fn fifth_bit<const B: usize>(block: &[u8; B], at: usize, j: usize) -> u8 {
    ((block[at + j / 8] >> (j % 8)) & 1) << 4
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, &q) in block[6..].iter().enumerate() {
        let low = (q & 15) | fifth_bit(block, 2, j);
        let high = (q >> 4) | fifth_bit(block, 2, j + 16);
        out[j] = (i32::from(low) - 16) as f32 * d;
        out[j + 16] = (i32::from(high) - 16) as f32 * d;
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, &q) in block[8..].iter().enumerate() {
        let low = (q & 15) | fifth_bit(block, 4, j);
        let high = (q >> 4) | fifth_bit(block, 4, j + 16);
        out[j] = f32::from(low) * d + m;
        out[j + 16] = f32::from(high) * d + m;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (out, &q) in out.iter_mut().zip(&block[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

// Blocks of 256: 8 sub-blocks of 32 with 6-bit scales and minimums, or 16 of 16 with 8-bit scales.

/// The 6-bit scale and minimum of sub-block `j`, packed into the 12 bytes from byte 4.
fn scale_min<const B: usize>(block: &[u8; B], j: usize) -> (f32, f32) {
    let s = &block[4..16];
    let (scale, min) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (
            (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4),
            (s[j + 4] >> 4) | ((s[j] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(min))
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for j in 0..8 {
        let (scale, min) = scale_min(block, j);
        let (scale, min) = (d * scale, dmin * min);
        // Two sub-blocks share 32 bytes: the even one has the low nibbles.
        let quants = &block[16 + j / 2 * 32..][..32];
        for (out, &q) in out[j * 32..][..32].iter_mut().zip(quants) {
            *out = scale * f32::from((q >> (j % 2 * 4)) & 15) - min;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let fifth = &block[16..48];
    for j in 0..8 {
        let (scale, min) = scale_min(block, j);
        let (scale, min) = (d * scale, dmin * min);
        let quants = &block[48 + j / 2 * 32..][..32];
        for (l, out) in out[j * 32..][..32].iter_mut().enumerate() {
            // Bit j of byte l is the fifth bit of element l of sub-block j.
            let q = ((quants[l] >> (j % 2 * 4)) & 15) | (((fifth[l] >> j) & 1) << 4);
            *out = scale * f32::from(q) - min;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    let scales = &block[192..208];
    for (i, out) in out.iter_mut().enumerate() {
        // Each half of 128 elements: 64 bytes of nibbles, 32 bytes of bit pairs; the four
        // quarters of 32 elements take low nibbles (0, 1) then high nibbles (2, 3).
        let (half, quarter, l) = (i / 128, i / 32 % 4, i % 32);
        let low = block[half * 64 + quarter % 2 * 32 + l];
        let low = (low >> (quarter / 2 * 4)) & 15;
        let high = (block[128 + half * 32 + l] >> (quarter * 2)) & 3;
        let q = i32::from(low | (high << 4)) - 32;
        *out = d * f32::from(scales[i / 16] as i8) * q as f32;
    }
}
