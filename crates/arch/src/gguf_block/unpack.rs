//! Blocks to values.

use half::f16;

use super::GgufBlock;

impl GgufBlock {
    /// Writes the values of whole blocks; elements of `out` beyond the blocks in `bytes` keep their value.
    ///
    /// Inlined wherever it is called, so that a caller decides which vector units it is compiled for.
    #[inline(always)]
    pub fn unpack(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::Q4_0 => blocks(bytes, out, q4_0),
            Self::Q4_1 => blocks(bytes, out, q4_1),
            Self::Q5_0 => blocks(bytes, out, q5_0),
            Self::Q5_1 => blocks(bytes, out, q5_1),
            Self::Q8_0 => blocks(bytes, out, q8_0),
            Self::Q4_K => blocks(bytes, out, q4_k),
            Self::Q5_K => blocks(bytes, out, q5_k),
            Self::Q6_K => blocks(bytes, out, q6_k),
        }
    }
}

#[inline(always)]
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
#[inline(always)]
fn half_at<const B: usize>(block: &[u8; B], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// A part of a block whose length the compiler knows.
#[inline(always)]
fn part<const N: usize, const B: usize>(block: &[u8; B], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&block[at..at + N]);
    part
}

// Blocks of 32: a scale, for some a minimum, for some the fifth bits, then 16 bytes of nibbles.
// Low nibbles are the first 16 values.

#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (j, q) in part::<16, 18>(block, 2).into_iter().enumerate() {
        out[j] = (i32::from(q & 15) - 8) as f32 * d;
        out[j + 16] = (i32::from(q >> 4) - 8) as f32 * d;
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (j, q) in part::<16, 20>(block, 4).into_iter().enumerate() {
        out[j] = f32::from(q & 15) * d + m;
        out[j + 16] = f32::from(q >> 4) * d + m;
    }
}

/// The fifth bits of 32 values, the first in the lowest bit.
#[inline(always)]
fn fifth_bits<const B: usize>(block: &[u8; B], at: usize) -> u32 {
    u32::from_le_bytes(part(block, at))
}

/// Bit `j`, as 16 or 0.
#[inline(always)]
fn fifth(bits: u32, j: usize) -> u8 {
    ((bits >> j & 1) << 4) as u8
}

#[inline(always)]
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let (d, bits) = (half_at(block, 0), fifth_bits(block, 2));
    for (j, q) in part::<16, 22>(block, 6).into_iter().enumerate() {
        let (low, high) = ((q & 15) | fifth(bits, j), (q >> 4) | fifth(bits, j + 16));
        out[j] = (i32::from(low) - 16) as f32 * d;
        out[j + 16] = (i32::from(high) - 16) as f32 * d;
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m, bits) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4));
    for (j, q) in part::<16, 24>(block, 8).into_iter().enumerate() {
        let (low, high) = ((q & 15) | fifth(bits, j), (q >> 4) | fifth(bits, j + 16));
        out[j] = f32::from(low) * d + m;
        out[j + 16] = f32::from(high) * d + m;
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (out, q) in out.iter_mut().zip(part::<32, 34>(block, 2)) {
        *out = f32::from(q as i8) * d;
    }
}

// Blocks of 256: 8 sub-blocks of 32 with 6-bit scales and minimums, or 16 of 16 with 8-bit scales.

/// The 6-bit scale and minimum of sub-block `j`, packed into the 12 bytes from byte 4.
#[inline(always)]
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

#[inline(always)]
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(block, j);
        let (scale, min) = (d * scale, dmin * min);
        // Two sub-blocks share 32 bytes: the even one has the low nibbles.
        let quants = part::<32, 144>(block, 16 + j / 2 * 32);
        for (out, q) in out.iter_mut().zip(quants) {
            *out = scale * f32::from((q >> (j % 2 * 4)) & 15) - min;
        }
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let highs = part::<32, 176>(block, 16);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(block, j);
        let (scale, min) = (d * scale, dmin * min);
        let quants = part::<32, 176>(block, 48 + j / 2 * 32);
        for ((out, q), high) in out.iter_mut().zip(quants).zip(highs) {
            // Bit j of byte l is the fifth bit of value l of sub-block j.
            let q = ((q >> (j % 2 * 4)) & 15) | (((high >> j) & 1) << 4);
            *out = scale * f32::from(q) - min;
        }
    }
}

#[inline(always)]
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    let scales = part::<16, 210>(block, 192);
    for (i, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[i] as i8);
        // Each half of 128 values: 64 bytes of nibbles, 32 bytes of bit pairs; the four quarters of 32 values take low
        // nibbles (0, 1), then high nibbles (2, 3).
        let (half, quarter, start) = (i / 8, i / 2 % 4, i % 2 * 16);
        let lows = part::<16, 210>(block, half * 64 + quarter % 2 * 32 + start);
        let highs = part::<16, 210>(block, 128 + half * 32 + start);
        for ((out, low), high) in out.iter_mut().zip(lows).zip(highs) {
            let low = (low >> (quarter / 2 * 4)) & 15;
            let high = (high >> (quarter * 2)) & 3;
            *out = scale * (i32::from(low | (high << 4)) - 32) as f32;
        }
    }
}
