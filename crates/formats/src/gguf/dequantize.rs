//! Stored elements to `f32`; what blocks stand for says [`GgufBlock`](backdraft_arch::GgufBlock).

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
    match (kind.block(), kind) {
        (Some(block), _) => block.unpack(bytes, out),
        (None, GgmlType::F16) => each(bytes, out, |half| f16::from_le_bytes(half).to_f32()),
        (None, GgmlType::BF16) => each(bytes, out, |half| bf16::from_le_bytes(half).to_f32()),
        (None, _) => each(bytes, out, f32::from_le_bytes),
    }
}

fn each<const B: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; B]) -> f32) {
    let (bytes, _) = bytes.as_chunks();
    for (&bytes, out) in bytes.iter().zip(out) {
        *out = decode(bytes);
    }
}
