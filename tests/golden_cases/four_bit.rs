//! Codes, scales and values as bitsandbytes has them.

use std::collections::BTreeMap;

use backdraft::burn::tensor::{DType, Device};
use backdraft::kernels::codebook::{DynamicMap, FourBitFormat};
use backdraft::kernels::dequantize::{self, FourBit, HostAbsmax};
use backdraft::kernels::quantize::{self, ByteBlocks, PackedBlocks};
use backdraft_testkit::golden::{self, Tensors};
use backdraft_testkit::tolerance::Tolerance;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::compare::values;
use super::place;

#[derive(Deserialize)]
struct FourBitCases {
    cases: BTreeMap<String, FourBitCase>,
    nf4_code: Vec<f32>,
    fp4_code: Vec<f32>,
    dynamic_map_signed_256: Vec<f32>,
}

#[derive(Deserialize)]
struct FourBitCase {
    shape: [usize; 2],
    dtype: String,
    variants: BTreeMap<String, Variant>,
}

#[derive(Deserialize)]
struct Variant {
    blocks: usize,
    sha256_f32_le_of_dequantised: String,
    nested_offset: Option<f32>,
}

/// The hash of values as little-endian f32.
pub(super) fn sha256(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    for value in values {
        hash.update(value.to_le_bytes());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// FP4 has two zeros, which stand for the same value.
fn folded(packed: &[u8], format: FourBitFormat) -> Vec<u8> {
    let fold = |code: u8| match (format, code) {
        (FourBitFormat::Fp4, 8) => 0,
        _ => code,
    };
    packed
        .iter()
        .flat_map(|byte| [fold(byte >> 4), fold(byte & 15)])
        .collect()
}

#[test]
fn golden_four_bit() {
    let Some(path) = golden::part("bitsandbytes/four_bit.json") else {
        return;
    };
    let cases: FourBitCases = golden::json(&path);
    let tensors = Tensors::open(path.with_extension("safetensors"));
    assert_eq!(FourBitFormat::Nf4.values()[..], cases.nf4_code);
    assert_eq!(FourBitFormat::Fp4.values()[..], cases.fp4_code);
    assert_eq!(
        DynamicMap::Signed.values()[..],
        cases.dynamic_map_signed_256
    );
    assert!(!cases.cases.is_empty());
    for (name, case) in &cases.cases {
        let input = tensors.f32(&format!("{name}.input"));
        assert_eq!(input.len(), case.shape[0] * case.shape[1]);
        for (variant, expected) in &case.variants {
            let what = format!("{name}.{variant}");
            check_variant(&what, variant, case, &input, expected, &tensors);
        }
    }
}

fn check_variant(
    what: &str,
    variant: &str,
    case: &FourBitCase,
    input: &[f32],
    expected: &Variant,
    tensors: &Tensors,
) {
    let format = match variant.split('_').next() {
        Some("nf4") => FourBitFormat::Nf4,
        Some("fp4") => FourBitFormat::Fp4,
        other => panic!("{what}: format {other:?}"),
    };
    let block_size = if variant.contains("_b64") { 64 } else { 128 };
    let PackedBlocks { packed, absmax } = quantize::four_bit(input, format, block_size);
    assert_eq!(absmax.len(), expected.blocks, "{what}");
    let absmax = match expected.nested_offset {
        None => {
            assert_eq!(absmax, tensors.f32(&format!("{what}.absmax")), "{what}");
            HostAbsmax::Single(absmax)
        }
        Some(offset) => {
            let ours = quantize::nested(&absmax);
            let ulps = ours.offset.to_bits().abs_diff(offset.to_bits());
            assert!(ulps <= 4, "{what}: offset {} and {offset}", ours.offset);
            let nested = quantize::nested_about(&absmax, offset);
            let codes = tensors.bytes(&format!("{what}.nested_absmax_u8"));
            assert_eq!(nested.blocks.codes, codes, "{what}");
            let scales = tensors.f32(&format!("{what}.nested_absmax_scale"));
            assert_eq!(nested.blocks.absmax, scales, "{what}");
            HostAbsmax::Double(nested)
        }
    };
    let single = what.trim_end_matches("_dq");
    let golden = tensors.bytes(&format!("{single}.packed"));
    assert_eq!(folded(&packed, format), folded(&golden, format), "{what}");
    let matrix = |device: &Device| {
        let (packed, absmax) = (packed.clone(), absmax.clone());
        FourBit::from_parts(format, block_size, case.shape, packed, absmax, device).unwrap()
    };
    let there = matrix(&place::device());
    let round_trip = format!("{what}.absmax_after_round_trip");
    if expected.nested_offset.is_some() {
        let scales = values(&dequantize::reference::absmax(there.absmax()));
        check_bits(&round_trip, &scales, &tensors.f32(&round_trip));
    }
    // A GPU may multiply a scale's code and add its offset in one instruction, with one rounding; where the two nearly
    // cancel, that is several bits.
    let exact = expected.nested_offset.is_none() || !place::on_gpu();
    let key = format!("{what}.dequantised");
    if tensors.has(&key) {
        let (dtype, last_bit) = match case.dtype.as_str() {
            "float32" => (DType::F32, 1e-5),
            "bfloat16" => (DType::BF16, 8e-3),
            "float16" => (DType::F16, 1e-3),
            other => panic!("{what}: type {other}"),
        };
        let typed: Vec<f32> = there.dequantize_as(dtype).into_data().iter().collect();
        let golden = tensors.f32(&key);
        if exact {
            check_bits(&key, &typed, &golden);
        } else {
            check_last_bits(&key, &typed, &golden, last_bit);
        }
    }
    let dense = values(&there.dequantize());
    let exactly = if exact {
        dense
    } else {
        let exactly = values(&matrix(&Device::flex()).dequantize());
        check_last_bits(what, &dense, &exactly, 1e-5);
        exactly
    };
    let hash = sha256(&exactly);
    assert_eq!(hash, expected.sha256_f32_le_of_dequantised, "{what}");
}

pub(super) fn check_last_bits(what: &str, actual: &[f32], expected: &[f32], allowed: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (&a, &b)) in actual.iter().zip(expected).enumerate() {
        let what = format!("{what}: value {i}");
        Tolerance::Relative(allowed).check_one(what, f64::from(a), f64::from(b));
    }
}

pub(super) fn check_bits(what: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, b)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(
            a.to_bits(),
            b.to_bits(),
            "{what}: value {i} is {a}, not {b}"
        );
    }
}

#[derive(Deserialize)]
struct EightBitCase {
    blocksize: usize,
    map: String,
}

#[test]
fn golden_eight_bit_blockwise() {
    let Some(path) = golden::part("bitsandbytes/eight_bit_blockwise.json") else {
        return;
    };
    let cases: BTreeMap<String, EightBitCase> = golden::json(&path);
    let tensors = Tensors::open(path.with_extension("safetensors"));
    assert_eq!(DynamicMap::Signed.values()[..], tensors.f32("map.signed"));
    assert_eq!(
        DynamicMap::Unsigned.values()[..],
        tensors.f32("map.unsigned")
    );
    assert!(!cases.is_empty());
    for (name, case) in cases {
        let map = match case.map.as_str() {
            "signed" => DynamicMap::Signed,
            "unsigned" => DynamicMap::Unsigned,
            other => panic!("{name}: map {other}"),
        };
        let input = tensors.f32(&format!("{name}.input"));
        let ByteBlocks { codes, absmax } = quantize::blockwise(&input, map, case.blocksize);
        assert_eq!(codes, tensors.bytes(&format!("{name}.codes")), "{name}");
        assert_eq!(absmax, tensors.f32(&format!("{name}.absmax")), "{name}");
        let restored = codes
            .iter()
            .enumerate()
            .map(|(i, &code)| map.values()[usize::from(code)] * absmax[i / case.blocksize]);
        let restored: Vec<f32> = restored.collect();
        assert_eq!(
            restored,
            tensors.f32(&format!("{name}.dequantised")),
            "{name}"
        );
    }
}
