//! Element types, and conversion of raw little-endian bytes to and from `f32`.

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

#[cfg(target_endian = "big")]
compile_error!("tensor files are little-endian, and this crate reads them without swapping bytes");

/// Elements converted per parallel task: large enough to hide the scheduling, small enough for L2.
const CHUNK: usize = 1 << 16;

/// The type of one element, named as safetensors names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are the definition")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    F8E8M0,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    C64,
}

impl Dtype {
    /// Every supported type, widest first.
    pub const ALL: [Self; 17] = [
        Self::F64,
        Self::I64,
        Self::U64,
        Self::C64,
        Self::F32,
        Self::I32,
        Self::U32,
        Self::F16,
        Self::BF16,
        Self::I16,
        Self::U16,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::F8E8M0,
        Self::I8,
        Self::U8,
        Self::Bool,
    ];

    /// Bytes per element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F8E4M3 | Self::F8E5M2 | Self::F8E8M0 | Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }

    /// The spelling in a safetensors header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E8M0 => "F8_E8M0",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            Self::C64 => "C64",
        }
    }

    /// The type that a safetensors header calls `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Whether [`to_f32`] reads it.
    #[must_use]
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Little-endian elements of `dtype` as `f32`, in parallel; `None` unless [`Dtype::is_float`].
///
/// F16 and BF16 are exact; F64 is rounded to nearest. A trailing partial element is left out.
#[must_use]
pub fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    if dtype == Dtype::F32 {
        return Some(copy_to_vec(bytes));
    }
    let mut out = vec![0.0; bytes.len() / dtype.size().max(1)];
    to_f32_into(dtype, bytes, &mut out).then_some(out)
}

/// [`to_f32`] into memory that is there already: the first elements of `bytes`, as many as `out` holds.
/// `false`, with nothing written, unless [`Dtype::is_float`].
///
/// # Panics
/// If `bytes` are fewer.
pub fn to_f32_into(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> bool {
    if !dtype.is_float() {
        return false;
    }
    let bytes = &bytes[..out.len() * dtype.size()];
    match dtype {
        Dtype::F16 => widen(bytes, out, |half: &[f16], out| {
            half.convert_to_f32_slice(out);
        }),
        Dtype::BF16 => widen(bytes, out, |half: &[bf16], out| {
            half.convert_to_f32_slice(out);
        }),
        Dtype::F64 => widen(bytes, out, |wide: &[f64], out| {
            for (out, wide) in out.iter_mut().zip(wide) {
                *out = *wide as f32;
            }
        }),
        _ => bytemuck::cast_slice_mut(out).copy_from_slice(bytes),
    }
    true
}

/// Little-endian integers of `dtype` as `i64`; `None` for other types or a `u64` above `i64::MAX`.
#[must_use]
pub fn to_i64(dtype: Dtype, bytes: &[u8]) -> Option<Vec<i64>> {
    fn all<T: bytemuck::AnyBitPattern + bytemuck::NoUninit + Into<i64>>(bytes: &[u8]) -> Vec<i64> {
        copy_to_vec::<T>(bytes)
            .into_iter()
            .map(Into::into)
            .collect()
    }
    match dtype {
        Dtype::I64 => Some(copy_to_vec(bytes)),
        Dtype::I32 => Some(all::<i32>(bytes)),
        Dtype::I16 => Some(all::<i16>(bytes)),
        Dtype::I8 => Some(all::<i8>(bytes)),
        Dtype::U32 => Some(all::<u32>(bytes)),
        Dtype::U16 => Some(all::<u16>(bytes)),
        Dtype::U8 | Dtype::Bool => Some(all::<u8>(bytes)),
        Dtype::U64 => copy_to_vec::<u64>(bytes)
            .into_iter()
            .map(|value| i64::try_from(value).ok())
            .collect(),
        _ => None,
    }
}

/// `values` as little-endian bytes of [`Dtype::F32`].
#[must_use]
pub fn f32_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// `values` as little-endian bytes of `dtype`, rounded to nearest even; `None` unless
/// [`Dtype::is_float`].
#[must_use]
pub fn from_f32(dtype: Dtype, values: &[f32]) -> Option<Vec<u8>> {
    match dtype {
        Dtype::F32 => Some(f32_bytes(values)),
        Dtype::F16 => Some(narrow(values, |values, out: &mut [f16]| {
            out.convert_from_f32_slice(values);
        })),
        Dtype::BF16 => Some(narrow(values, |values, out: &mut [bf16]| {
            out.convert_from_f32_slice(values);
        })),
        Dtype::F64 => Some(narrow(values, |values, out: &mut [f64]| {
            for (out, value) in out.iter_mut().zip(values) {
                *out = f64::from(*value);
            }
        })),
        _ => None,
    }
}

/// Whole elements of possibly unaligned bytes.
fn copy_to_vec<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(bytes: &[u8]) -> Vec<T> {
    let whole = bytes.len() - bytes.len() % size_of::<T>();
    bytemuck::allocation::pod_collect_to_vec(&bytes[..whole])
}

fn widen<T: bytemuck::Pod + Send + Sync>(
    bytes: &[u8],
    out: &mut [f32],
    convert: impl Fn(&[T], &mut [f32]) + Sync,
) {
    out.par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(CHUNK * size_of::<T>()))
        .for_each(|(out, bytes)| match bytemuck::try_cast_slice(bytes) {
            Ok(values) => convert(values, out),
            Err(_) => convert(&copy_to_vec::<T>(bytes), out),
        });
}

fn narrow<T: bytemuck::Pod + Send>(
    values: &[f32],
    convert: impl Fn(&[f32], &mut [T]) + Sync,
) -> Vec<u8> {
    let mut out = vec![0_u8; values.len() * size_of::<T>()];
    out.par_chunks_mut(CHUNK * size_of::<T>())
        .zip(values.par_chunks(CHUNK))
        .for_each(|(out, values)| {
            let mut typed = vec![T::zeroed(); values.len()];
            convert(values, &mut typed);
            out.copy_from_slice(bytemuck::cast_slice(&typed));
        });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_round_trip() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("F4"), None);
    }

    #[test]
    fn unaligned_bytes_are_read() {
        let values = [1.0_f32, -2.5, 3.0e-8, f32::INFINITY];
        for dtype in [Dtype::F64, Dtype::F32, Dtype::BF16] {
            let mut bytes = vec![0];
            bytes.extend(from_f32(dtype, &values).unwrap());
            let read = to_f32(dtype, &bytes[1..]).unwrap();
            assert_eq!(read.len(), 4);
            assert_eq!(read[..2], values[..2]);
        }
    }

    #[test]
    fn chunk_edges_are_right() {
        for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1] {
            let values: Vec<f32> = (0..len).map(|i| (i % 251) as f32).collect();
            for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
                let bytes = from_f32(dtype, &values).unwrap();
                assert_eq!(bytes.len(), len * dtype.size());
                assert_eq!(to_f32(dtype, &bytes).unwrap(), values);
                let mut some = vec![-1.0; len / 2];
                assert!(to_f32_into(dtype, &bytes, &mut some));
                assert_eq!(some, values[..len / 2]);
            }
        }
    }

    #[test]
    fn integers_are_read() {
        assert_eq!(to_i64(Dtype::I8, &[255, 1]), Some(vec![-1, 1]));
        assert_eq!(to_i64(Dtype::U64, &[255; 8]), None);
        assert_eq!(to_i64(Dtype::F32, &[0; 4]), None);
        assert_eq!(to_f32(Dtype::U8, &[0; 4]), None);
        assert!(!to_f32_into(Dtype::I64, &[0; 8], &mut [0.0]));
    }

    proptest! {
        #[test]
        fn halves_match_the_scalar_conversion(bits: Vec<u16>) {
            let bytes: &[u8] = bytemuck::cast_slice(&bits);
            let wide = to_f32(Dtype::BF16, bytes).unwrap();
            for (wide, bits) in wide.iter().zip(&bits) {
                prop_assert_eq!(wide.to_bits(), bf16::from_bits(*bits).to_f32().to_bits());
            }
        }
    }
}
