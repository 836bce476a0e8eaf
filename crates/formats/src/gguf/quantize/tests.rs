use backdraft_testkit::golden;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::super::dequantize::dequantize;
use super::*;

#[test]
fn golden_quantised_bytes_are_those_of_llama_cpp() {
    for folder in golden::folders("gguf", "quantise.json") {
        let tensors = golden::Tensors::open(folder.join("quantise.safetensors"));
        let described: Value = golden::json(&folder.join("quantise.json"));
        let mut compared = 0;
        for (input, about) in described["inputs"].as_object().unwrap() {
            let values = tensors.f32(&format!("{input}.input"));
            // Where the reciprocal of a scale is infinite the reference's codes are whatever a conversion gave.
            let overflows = about["rows_where_the_reciprocal_of_a_scale_overflows"].as_array();
            for kind in GgmlType::ALL {
                let name = format!("{input}.{kind}");
                if !tensors.has(&name) {
                    continue;
                }
                let expected = tensors.bytes(&name);
                let mut actual = vec![0xaa; expected.len()];
                quantize(kind, &values, &mut actual);
                let row = expected.len() / about["rows"].as_u64().unwrap() as usize;
                for (i, (ours, theirs)) in actual.chunks(row).zip(expected.chunks(row)).enumerate()
                {
                    let loose = overflows.is_some_and(|rows| rows.contains(&i.into()));
                    assert!(loose || ours == theirs, "{name}, row {i}");
                }
                let mut decoded = vec![f32::NAN; values.len()];
                dequantize(kind, &actual, &mut decoded);
                let hash = Sha256::digest(bytemuck::cast_slice::<f32, u8>(&decoded));
                let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
                let expected = &about["dequantised"][kind.name()]["sha256_f32_le"];
                assert_eq!(expected, &hash, "{name}");
                compared += 1;
            }
        }
        assert_eq!(compared, 13 * 8);
    }
}

#[test]
fn halves_are_rounded_to_even() {
    let mut out = [0; 8];
    quantize(GgmlType::F16, &[2049.0, 2051.0, 65519.0, -0.0], &mut out);
    let halves: Vec<f32> = out
        .as_chunks()
        .0
        .iter()
        .map(|b| f16::from_le_bytes(*b).to_f32())
        .collect();
    assert_eq!(halves, [2048.0, 2052.0, 65504.0, 0.0]);
    assert_eq!(out[7], 0x80);
    quantize(GgmlType::BF16, &[257.0, 259.0, 1.0, -1.0], &mut out);
    let brain: Vec<f32> = out
        .as_chunks()
        .0
        .iter()
        .map(|b| bf16::from_le_bytes(*b).to_f32())
        .collect();
    assert_eq!(brain, [256.0, 260.0, 1.0, -1.0]);
}

#[test]
fn many_tasks_give_the_bytes_of_one() {
    let values: Vec<f32> = (0..TASK * 3 + 512)
        .map(|i| ((i * 7919) % 4001) as f32 / 2000.0 - 1.0)
        .collect();
    for kind in GgmlType::ALL {
        let mut parallel = vec![0; quantized_bytes(kind, values.len())];
        let mut serial = parallel.clone();
        quantize(kind, &values, &mut parallel);
        quantize_serial(kind, &values, &mut serial);
        assert!(parallel == serial, "{kind}");
    }
}
