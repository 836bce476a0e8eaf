//! Codes that nest in NF4's.

use std::collections::BTreeMap;

use backdraft::arch::nested::derivation;
use backdraft::burn::tensor::Device;
use backdraft::kernels::codebook::{FourBitFormat, NestedFormat, THRESHOLDS};
use backdraft::kernels::dequantize::{HostAbsmax, Nested};
use backdraft::kernels::quantize::{self, ByteBlocks};
use backdraft_testkit::golden::{self, Tensors};
use backdraft_testkit::tolerance::Tolerance;
use serde::Deserialize;

use super::compare::values;
use super::four_bit::{check_bits, check_last_bits, sha256};
use super::place;

const BLOCK: usize = 64;

#[derive(Deserialize)]
struct NestedCases {
    formats: BTreeMap<String, Table>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Table {
    table: Vec<f32>,
    table_float64: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    dequantised: BTreeMap<String, Dequantised>,
}

#[derive(Deserialize)]
struct Dequantised {
    sha256_f32_le: String,
    sum_of_squared_errors: f64,
}

/// The inputs, which are those of the four-bit cases.
struct Inputs {
    shapes: BTreeMap<String, [usize; 2]>,
    tensors: Tensors,
}

fn inputs() -> Option<Inputs> {
    #[derive(Deserialize)]
    struct FourBitCases {
        cases: BTreeMap<String, Shape>,
    }
    #[derive(Deserialize)]
    struct Shape {
        shape: [usize; 2],
    }
    let path = golden::part("bitsandbytes/four_bit.json")?;
    let FourBitCases { cases } = golden::json(&path);
    let shapes = cases.into_iter().map(|(name, case)| (name, case.shape));
    Some(Inputs {
        shapes: shapes.collect(),
        tensors: Tensors::open(path.with_extension("safetensors")),
    })
}

#[test]
fn golden_nested() {
    let Some((folder, inputs)) = golden::folder_with("adaptive", "nested.json").zip(inputs())
    else {
        println!("nothing checked: no nested codes, or not their inputs");
        return;
    };
    let cases: NestedCases = golden::json(&folder.join("nested.json"));
    let tensors = Tensors::open(folder.join("nested.safetensors"));
    for (name, shift) in [("nf3", 3), ("nf4", 2), ("nf5", 1), ("nf6", 0)] {
        let ours = THRESHOLDS.iter().skip((1 << shift) - 1);
        let ours: Vec<f32> = ours.step_by(1 << shift).copied().collect();
        assert_eq!(ours, tensors.f32(&format!("thresholds.{name}")), "{name}");
    }
    for &format in NestedFormat::ALL {
        check_table(format, &cases.formats[format.name()]);
    }
    assert!(!cases.cases.is_empty());
    for (name, case) in &cases.cases {
        check_case(name, case, &cases.formats, (&tensors, &inputs));
    }
}

/// As computed the table is theirs; pinned values are ours.
fn check_table(format: NestedFormat, golden: &Table) {
    let means = derivation::means(format);
    assert_eq!(means.len(), golden.table_float64.len());
    for (code, (&ours, &theirs)) in means.iter().zip(&golden.table_float64).enumerate() {
        Tolerance::Absolute(1e-6).check_one(format!("{format} {code}"), ours, theirs);
    }
    let pinned = format.pinned();
    for (code, (&ours, &theirs)) in format.values().iter().zip(&golden.table).enumerate() {
        match pinned.iter().find(|(at, _)| *at == code) {
            Some((_, value)) => assert_eq!(ours, *value, "{format} {code}"),
            None => assert_eq!(ours, theirs, "{format} {code}"),
        }
    }
}

fn check_case(
    name: &str,
    case: &Case,
    tables: &BTreeMap<String, Table>,
    (tensors, inputs): (&Tensors, &Inputs),
) {
    let input = inputs.tensors.f32(&format!("{name}.input"));
    let ByteBlocks { codes, absmax } = quantize::nested_codes(&input, BLOCK);
    let four_bit = quantize::four_bit(&input, FourBitFormat::Nf4, BLOCK);
    assert_eq!(absmax, four_bit.absmax, "{name}");
    for (format, arrays) in [
        (NestedFormat::Nf3, ["nf3.high2", "nf3.low1"]),
        (NestedFormat::Nf5, ["nibbles", "nf5.plane1"]),
        (NestedFormat::Nf6, ["nibbles", "nf6.plane2"]),
    ] {
        let planes = quantize::planes(&codes, format);
        for (plane, array) in planes.iter().zip(arrays) {
            let what = format!("{name}.{array}");
            assert_eq!(plane, &tensors.bytes(&what), "{what}");
        }
        if format != NestedFormat::Nf3 {
            assert_eq!(planes[0], four_bit.packed, "{name}");
        }
        let round_trip = format!("{name}.nf4_b64_dq.absmax_after_round_trip");
        for (kind, scales) in [
            ("single", absmax.clone()),
            ("double", inputs.tensors.f32(&round_trip)),
        ] {
            let what = format!("{name}.{format}.{kind}");
            let golden = &case.dequantised[&format!("{format}.{kind}")];
            let restored = |table: &[f32]| -> Vec<f32> {
                let codes = codes.iter().enumerate();
                let value = |(i, &code): (usize, &u8)| {
                    table[usize::from(code) >> format.shift()] * scales[i / BLOCK]
                };
                codes.map(value).collect()
            };
            let means = restored(&tables[format.name()].table);
            assert_eq!(sha256(&means), golden.sha256_f32_le, "{what}");
            let key = format!("{what}.dequantised");
            if tensors.has(&key) {
                check_bits(&key, &means, &tensors.f32(&key));
            }
            let pinned = restored(format.values());
            check_pinned(&what, &input, &pinned, golden, case);
            // The scales after a round trip are given as they are: what quantises them is tested elsewhere.
            let matrix = |device: &Device| {
                let (planes, dims) = (planes.clone(), inputs.shapes[name]);
                let absmax = HostAbsmax::Single(scales.clone());
                Nested::from_parts(format, BLOCK, dims, planes, absmax, device).unwrap()
            };
            let there = values(&matrix(&place::device()).dequantize());
            if place::on_gpu() {
                check_last_bits(&what, &there, &pinned, 1e-5);
            } else {
                check_bits(&what, &there, &pinned);
            }
        }
    }
}

/// What pinning is for: zeros stay zeros, and a block that one value dominates is not worse than with fewer bits. In
/// normal blocks it costs little.
fn check_pinned(what: &str, input: &[f32], pinned: &[f32], golden: &Dequantised, case: &Case) {
    for (x, y) in input.iter().zip(pinned) {
        assert!(*x != 0.0 || *y == 0.0, "{what}: zero became {y}");
    }
    let squares = input.iter().zip(pinned);
    let error: f64 = squares
        .map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2))
        .sum();
    let nf4 = case.dequantised["nf4.double"].sum_of_squared_errors;
    let most = match what {
        "outliers_16x128.nf6.double" => nf4,
        "outliers_16x128.nf5.double" => 2.0 * nf4,
        "outliers_16x128.nf5.single" | "outliers_16x128.nf6.single" => {
            golden.sum_of_squared_errors / 10.0
        }
        "normal_32x64.nf5.single"
        | "normal_32x64.nf6.single"
        | "weights_144x192.nf5.single"
        | "weights_144x192.nf6.single" => 1.1 * golden.sum_of_squared_errors,
        _ => return,
    };
    assert!(
        error <= most,
        "{what}: squared error {error}, at most {most}"
    );
}
