//! Codes in memory, and the values they stand for.

use backdraft_arch::GgufBlock;

use super::{Open, Stored};
use crate::bits::{get, unpack};
use crate::codebook::DynamicMap;
use crate::cpu::{F32s, Ints, f32s, ints};
use crate::dequantize::{Absmax, BlockFormat, Blocks, GgufBlocks, Int8Rows};
use crate::quantize::NESTED_BLOCK_SIZE;

impl<F: BlockFormat> Stored for Blocks<F> {
    type Open = OpenBlocks;

    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn open(&self) -> Option<OpenBlocks> {
        let scales = match &self.absmax {
            Absmax::Single(absmax) => Scales::Single(f32s(absmax)?),
            Absmax::Double {
                codes,
                scales,
                offset,
            } => Scales::Double(ints(codes)?, f32s(scales)?, *offset),
        };
        let high = ints(&self.planes[0])?;
        let codes = match self.format.pairs() {
            Some(pairs) => Codes::Bytes {
                pairs,
                packed: high,
            },
            None => {
                let mut table = [0.0; 64];
                let values = self.format.values();
                table[..values.len()].copy_from_slice(values);
                Codes::Planes(Box::new(Planes {
                    table,
                    widths: self.format.planes(),
                    planes: [high, ints(self.planes.get(1)?)?],
                }))
            }
        };
        Some(OpenBlocks {
            block_size: self.block_size,
            codes,
            scales,
        })
    }
}

pub(crate) struct OpenBlocks {
    block_size: usize,
    codes: Codes,
    scales: Scales,
}

enum Codes {
    /// Two codes to a byte, and what each byte stands for.
    Bytes {
        pairs: &'static [[f32; 2]; 256],
        packed: Ints<u8>,
    },
    Planes(Box<Planes>),
}

enum Scales {
    Single(F32s),
    Double(Ints<u8>, F32s, f32),
}

impl Scales {
    #[inline(always)]
    fn get(&self, block: usize) -> f32 {
        match self {
            Self::Single(absmax) => absmax[block],
            Self::Double(codes, scales, offset) => {
                let value = DynamicMap::Signed.values()[usize::from(codes[block])];
                value * scales[block / NESTED_BLOCK_SIZE] + offset
            }
        }
    }
}

impl Open for OpenBlocks {
    #[inline(always)]
    fn fill(&self, start: usize, out: &mut [f32]) {
        match &self.codes {
            Codes::Bytes { pairs, packed } => self.by_blocks(
                start,
                out,
                #[inline(always)]
                |at, scale, out| fill_pairs(pairs, packed, at, scale, out),
            ),
            Codes::Planes(planes) => match planes.widths {
                [2, 1] => self.fill_planes::<2, 1>(planes, start, out),
                [4, 1] => self.fill_planes::<4, 1>(planes, start, out),
                [4, 2] => self.fill_planes::<4, 2>(planes, start, out),
                other => unreachable!("no format keeps codes in {other:?} bits"),
            },
        }
    }
}

impl OpenBlocks {
    /// `write` gets the part of each block: its first value's number, the scale, and where to.
    #[inline(always)]
    fn by_blocks(&self, start: usize, out: &mut [f32], write: impl Fn(usize, f32, &mut [f32])) {
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let block = at / self.block_size;
            let end = (block + 1) * self.block_size;
            let (part, others) = rest.split_at_mut(rest.len().min(end - at));
            write(at, self.scales.get(block), part);
            at = end;
            rest = others;
        }
    }

    #[inline(always)]
    fn fill_planes<const HIGH: usize, const LOW: usize>(
        &self,
        planes: &Planes,
        start: usize,
        out: &mut [f32],
    ) {
        self.by_blocks(
            start,
            out,
            #[inline(always)]
            |at, scale, out| planes.part::<HIGH, LOW>(at, scale, out),
        );
    }
}

/// Values of one block.
#[inline(always)]
fn fill_pairs(pairs: &[[f32; 2]; 256], packed: &[u8], at: usize, scale: f32, mut out: &mut [f32]) {
    let mut byte = at / 2;
    if at % 2 == 1 {
        // A row of odd width may begin in the low half of a byte.
        let Some((first, others)) = out.split_first_mut() else {
            return;
        };
        *first = pairs[usize::from(packed[byte])][1] * scale;
        byte += 1;
        out = others;
    }
    let packed = &packed[byte..byte + out.len().div_ceil(2)];
    let mut both = out.chunks_exact_mut(2);
    for (out, &byte) in (&mut both).zip(packed) {
        let [first, second] = pairs[usize::from(byte)];
        out[0] = first * scale;
        out[1] = second * scale;
    }
    if let ([last], Some(&byte)) = (both.into_remainder(), packed.last()) {
        *last = pairs[usize::from(byte)][0] * scale;
    }
}

/// Codes in two arrays.
struct Planes {
    /// What codes stand for, and zeros.
    table: [f32; 64],
    widths: [usize; 2],
    planes: [Ints<u8>; 2],
}

impl Planes {
    /// Values of one block: those between whole bytes of both arrays one by one, the others eight at a time.
    #[inline(always)]
    fn part<const HIGH: usize, const LOW: usize>(&self, at: usize, scale: f32, out: &mut [f32]) {
        let [high, low] = self.planes.each_ref().map(|plane| &**plane);
        let one = |i: usize| {
            let code = get(high, HIGH, i) << LOW | get(low, LOW, i);
            self.table[usize::from(code & 63)] * scale
        };
        let before = (at.next_multiple_of(8) - at).min(out.len());
        let (first, out) = out.split_at_mut(before);
        for (i, out) in first.iter_mut().enumerate() {
            *out = one(at + i);
        }
        let group = (at + before) / 8;
        let (whole, rest) = out.as_chunks_mut::<8>();
        let (high, _) = high[(group * HIGH).min(high.len())..].as_chunks::<HIGH>();
        let (low, _) = low[(group * LOW).min(low.len())..].as_chunks::<LOW>();
        let behind = (group + whole.len()) * 8;
        for ((out, &high), &low) in whole.iter_mut().zip(high).zip(low) {
            let codes = unpack(high) << LOW | unpack(low);
            for (out, code) in out.iter_mut().zip(codes.to_be_bytes()) {
                *out = self.table[usize::from(code & 63)] * scale;
            }
        }
        for (i, out) in rest.iter_mut().enumerate() {
            *out = one(behind + i);
        }
    }
}

impl Stored for Int8Rows {
    type Open = OpenInt8;

    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn open(&self) -> Option<OpenInt8> {
        Some(OpenInt8 {
            width: self.dims[1],
            codes: ints(&self.codes)?,
            absmax: f32s(&self.absmax)?,
        })
    }
}

pub(crate) struct OpenInt8 {
    width: usize,
    codes: Ints<i8>,
    absmax: F32s,
}

impl Open for OpenInt8 {
    #[inline(always)]
    fn fill(&self, start: usize, out: &mut [f32]) {
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let row = at / self.width;
            let end = (row + 1) * self.width;
            let (part, others) = rest.split_at_mut(rest.len().min(end - at));
            let step = self.absmax[row] / 127.0;
            let codes = &self.codes[at..at + part.len()];
            for (out, &code) in part.iter_mut().zip(codes) {
                *out = f32::from(code) * step;
            }
            at = end;
            rest = others;
        }
    }
}

impl Stored for GgufBlocks {
    type Open = OpenGguf;

    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn open(&self) -> Option<OpenGguf> {
        Some(OpenGguf {
            kind: self.kind,
            bytes: ints(&self.bytes)?,
        })
    }
}

pub(crate) struct OpenGguf {
    kind: GgufBlock,
    bytes: Ints<u8>,
}

impl Open for OpenGguf {
    /// Panels and their tasks begin with rows, or a multiple of every block behind them.
    #[inline(always)]
    fn fill(&self, start: usize, out: &mut [f32]) {
        debug_assert!(start.is_multiple_of(self.kind.values()), "value {start}");
        let first = start / self.kind.values() * self.kind.bytes();
        self.kind.unpack(&self.bytes[first..], out);
    }
}
