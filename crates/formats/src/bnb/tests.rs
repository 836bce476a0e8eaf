use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{Existing, HfDir, HfDirWriter};

const MAPS: BnbMaps<'static> = BnbMaps {
    nf4: &[0.5; 16],
    fp4: &[0.25; 16],
    signed: &[0.125; 256],
};
const NAME: &str = "model.layers.0.mlp.up_proj.weight";

/// A weight [3, 50]: three blocks of 64, the last one short.
fn weight(absmax: BnbAbsmax) -> BnbTensor<'static> {
    BnbTensor::FourBit(BnbFourBit {
        quant_type: BnbQuantType::Nf4,
        block_size: 64,
        dtype: Dtype::BF16,
        shape: [3, 50],
        packed: (0..75).collect(),
        absmax,
    })
}

fn single() -> BnbTensor<'static> {
    weight(BnbAbsmax::Single(vec![1.0, 2.0, 0.5]))
}

fn nested() -> BnbTensor<'static> {
    weight(BnbAbsmax::Nested {
        codes: vec![1, 200, 255],
        scales: vec![0.75],
        offset: 1.234_567_9,
    })
}

fn int8() -> BnbTensor<'static> {
    BnbTensor::Int8(BnbInt8 {
        shape: [3, 50],
        codes: (0..150).map(|i| if i == 0x80 { 0xFF } else { i }).collect(),
        absmax: vec![0.0, 1.0, 2.0],
    })
}

fn kind(tensor: &BnbTensor<'_>) -> BnbKind {
    match tensor {
        BnbTensor::Int8(_) => BnbKind::Int8,
        BnbTensor::FourBit(weight) => BnbKind::FourBit {
            quant_type: weight.quant_type,
            block_size: weight.block_size,
            nested: matches!(weight.absmax, BnbAbsmax::Nested { .. }),
        },
    }
}

type Parts = Vec<(TensorInfo, Vec<u8>)>;

fn parts(tensor: &BnbTensor<'_>) -> Parts {
    let info = TensorInfo::new(NAME, Dtype::BF16, [3, 50]);
    let layout = kind(tensor).layout(&info);
    let bytes = tensor.parts(Path::new("out"), NAME, MAPS).unwrap();
    let find = |info: &TensorInfo| {
        let (_, bytes) = bytes.iter().find(|(name, _)| *name == info.name).unwrap();
        bytes.to_vec()
    };
    layout
        .into_iter()
        .map(|info| (info.clone(), find(&info)))
        .collect()
}

fn write(path: &Path, kind: BnbKind, parts: &Parts) {
    let infos = parts.iter().map(|(info, _)| info.clone()).collect();
    let mut writer = HfDirWriter::create(path, infos, Existing::Replace).unwrap();
    let config = json!({
        "model_type": "llama",
        "quantization_config": BnbConfig::to_json(kind, Dtype::BF16, &["lm_head".to_owned()]),
    });
    writer
        .companion("config.json", config.to_string().as_bytes())
        .unwrap();
    for (info, bytes) in parts {
        writer.write(&info.name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn weights_survive_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    for tensor in [single(), nested(), int8()] {
        write(&path, kind(&tensor), &parts(&tensor));
        let model = HfDir::open(&path).unwrap();
        assert_eq!(model.tensor_names().collect::<Vec<_>>(), [NAME]);
        let expected: &[usize] = &[3, 50];
        assert_eq!(model.info(NAME).unwrap().shape, expected);
        assert_eq!(model.bnb_kind(NAME), Some(kind(&tensor)));
        assert_eq!(model.quantized(NAME, MAPS).unwrap(), Some(tensor));
        assert_eq!(model.quantization().unwrap().skip_modules, ["lm_head"]);
        let refused = model.read_f32(NAME).unwrap_err().to_string();
        assert!(
            refused.contains("this needs an unquantised model"),
            "{refused}"
        );
    }
}

/// What opening and reading the directory says after one part was changed.
fn refusal(tensor: &BnbTensor<'_>, change: impl FnOnce(&mut Parts)) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    let mut parts = parts(tensor);
    change(&mut parts);
    write(&path, kind(tensor), &parts);
    let read = HfDir::open(&path).and_then(|model| model.quantized(NAME, MAPS).map(|_| ()));
    let message = read.unwrap_err().to_string();
    message.split_once(": ").unwrap().1.to_owned()
}

fn part<'a>(parts: &'a mut Parts, suffix: &str) -> &'a mut (TensorInfo, Vec<u8>) {
    parts
        .iter_mut()
        .find(|(info, _)| info.name.ends_with(suffix))
        .unwrap()
}

fn set_state(parts: &mut Parts, state: &str) {
    let (info, bytes) = part(parts, "bitsandbytes__nf4");
    *bytes = state.as_bytes().to_vec();
    info.shape = vec![bytes.len()];
}

#[test]
fn wrong_lengths_are_refused() {
    let refused = refusal(&single(), |parts| {
        let (info, bytes) = part(parts, ".weight");
        (info.shape, *bytes) = (vec![74, 1], vec![0; 74]);
    });
    assert_eq!(
        refused,
        "model.layers.0.mlp.up_proj.weight is part of a quantised weight: expected codes for shape \
         [3, 50], two to a byte, found 74 bytes"
    );
    let refused = refusal(&single(), |parts| {
        let (info, bytes) = part(parts, ".absmax");
        (info.shape, *bytes) = (vec![2], vec![0; 8]);
    });
    assert!(
        refused.ends_with("expected 3 values of type F32, found F32 of shape [2]"),
        "{refused}"
    );
    let refused = refusal(&nested(), |parts| {
        let (info, bytes) = part(parts, ".nested_absmax");
        (info.shape, *bytes) = (vec![2], vec![0; 8]);
    });
    assert!(
        refused.ends_with("expected 1 values of type F32, found F32 of shape [2]"),
        "{refused}"
    );
    let refused = refusal(&int8(), |parts| {
        let (info, bytes) = part(parts, ".SCB");
        (info.shape, *bytes) = (vec![2], vec![0; 8]);
    });
    assert!(
        refused.ends_with("expected 3 values of type F32, found F32 of shape [2]"),
        "{refused}"
    );
}

#[test]
fn missing_parts_are_refused() {
    for suffix in [".absmax", ".quant_map", "bitsandbytes__nf4"] {
        let refused = refusal(&single(), |parts| {
            parts.retain(|(info, _)| !info.name.ends_with(suffix));
        });
        assert!(
            refused.ends_with("found no such tensor"),
            "{suffix}: {refused}"
        );
    }
    for suffix in [".nested_absmax", ".nested_quant_map"] {
        let refused = refusal(&nested(), |parts| {
            parts.retain(|(info, _)| !info.name.ends_with(suffix));
        });
        assert!(
            refused.ends_with("found no such tensor"),
            "{suffix}: {refused}"
        );
    }
}

#[test]
fn wrong_states_are_refused() {
    let state = |change: &str| {
        let state = r#"{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[3,50]}"#;
        let (from, to) = change.split_once(" -> ").unwrap();
        assert!(state.contains(from));
        let state = state.replace(from, to);
        refusal(&single(), |parts| set_state(parts, &state))
    };
    assert!(state("nf4 -> nf3").contains("unknown variant `nf3`"));
    assert!(state("nf4 -> fp4").ends_with("the quant_type of the tensor's own name, found fp4"));
    assert!(
        state("64 -> 63")
            .ends_with("expected a block size that is a power of two up to 4096, found 63")
    );
    assert!(state("64 -> 0").contains("found 0"));
    assert!(state("64 -> -1").contains("invalid value"));
    assert!(state("64 -> 1e99").contains("expected usize"));
    assert!(state("bfloat16 -> complex").ends_with("found complex"));
    assert!(state("[3,50] -> [3,50,1]").contains("trailing characters"));
    let huge = state("[3,50] -> [4611686018427387904,4611686018427387904]");
    assert!(huge.contains("codes for shape"), "{huge}");
    let offset = |value: &str| {
        let nested_state = format!(
            r#"{{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":[3,50],"nested_blocksize":256,"nested_offset":{value}}}"#
        );
        refusal(&nested(), |parts| set_state(parts, &nested_state))
    };
    assert!(
        offset("1e99").contains("number out of range"),
        "{}",
        offset("1e99")
    );
    assert!(offset("\"a\"").contains("invalid type"));
}

/// Depth and length of what is parsed are bounded before values are built.
#[test]
fn json_bombs_are_refused() {
    let deep = format!("{}{}", "[".repeat(8_000), "]".repeat(8_000));
    for place in ["", r#"{"quant_type":"#, r#"{"other":"#] {
        let bomb = format!("{place}{deep}");
        let refused = refusal(&single(), |parts| set_state(parts, &bomb));
        assert!(refused.contains("expected JSON"), "{place}: {refused}");
    }
    let wide = format!(r#"{{"shape":[{}3]}}"#, "3,".repeat(8_000));
    assert!(refusal(&single(), |parts| set_state(parts, &wide)).contains("trailing characters"));
    let long = " ".repeat(20_000);
    assert!(refusal(&single(), |parts| set_state(parts, &long)).ends_with("found 20000 bytes"));

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    write(&path, kind(&single()), &parts(&single()));
    let config = path.join("config.json");
    let deep = format!(r#"{{"quantization_config": {}"#, "[".repeat(1_000_000));
    std::fs::write(&config, deep).unwrap();
    let refused = HfDir::open(&path).unwrap_err();
    assert!(
        matches!(refused, crate::FormatError::Json { .. }),
        "{refused}"
    );
    // A file of holes: its length alone is looked at.
    let file = std::fs::File::create(&config).unwrap();
    file.set_len(1 << 40).unwrap();
    let refused = HfDir::open(&path).unwrap_err().to_string();
    assert!(
        refused.ends_with("1099511627776 bytes; a file of its kind has at most 33554432"),
        "{refused}"
    );
}

#[test]
fn codes_out_of_range_are_refused() {
    let refused = refusal(&int8(), |parts| part(parts, ".weight").1[7] = 0x80);
    assert!(
        refused.ends_with("expected codes from -127 to 127, found -128"),
        "{refused}"
    );
    let refused = refusal(&int8(), |parts| part(parts, ".weight_format").1[0] = 2);
    assert!(
        refused.ends_with("expected [0], rows one after another, found [2]"),
        "{refused}"
    );
}

#[test]
fn wrong_values_are_refused() {
    let refused = refusal(&single(), |parts| {
        part(parts, ".absmax").1[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    assert!(
        refused.ends_with("expected finite numbers, found NaN"),
        "{refused}"
    );
    for (tensor, suffix) in [
        (single(), ".absmax"),
        (nested(), ".nested_absmax"),
        (int8(), ".SCB"),
    ] {
        let refused = refusal(&tensor, |parts| {
            part(parts, suffix).1[..4].copy_from_slice(&(-1f32).to_le_bytes());
        });
        assert!(
            refused.ends_with("expected largest magnitudes, which are 0 or more, found -1"),
            "{suffix}: {refused}"
        );
    }
    let refused = refusal(&single(), |parts| {
        part(parts, ".quant_map").1[..4].copy_from_slice(&1f32.to_le_bytes());
    });
    assert!(refused.ends_with("expected the values that the type prescribes, found others"));
}

#[test]
fn other_methods_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    let refused = |config: serde_json::Value| {
        let config = json!({"model_type": "llama", "quantization_config": config});
        write(&path, BnbKind::Int8, &parts(&int8()));
        std::fs::write(path.join("config.json"), config.to_string()).unwrap();
        let message = HfDir::open(&path).unwrap_err().to_string();
        message.split_once(": ").unwrap().1.to_owned()
    };
    assert_eq!(
        refused(json!({"quant_method": "gptq", "bits": 4})),
        "`quantization_config.quant_method` should be \"bitsandbytes\" (or an unquantised checkpoint, or a \
         GGUF file), but is \"gptq\""
    );
    assert!(refused(json!({"quant_method": "bitsandbytes"})).contains("one of load_in_4bit"));
    assert!(refused(json!(7)).contains("should be an object, but is 7"));
    let skip =
        json!({"quant_method": "bitsandbytes", "load_in_8bit": true, "llm_int8_skip_modules": 3});
    assert!(refused(skip).contains("should be a list of module names, but is 3"));
}

/// Damage to one part of a weight.
#[derive(Debug, Clone)]
enum Damage {
    Remove,
    Resize(usize),
    Overwrite(usize, Vec<u8>),
    Retype(Dtype),
}

fn damage() -> impl Strategy<Value = Damage> {
    let types = [Dtype::U8, Dtype::I8, Dtype::F16, Dtype::F32, Dtype::I64];
    prop_oneof![
        1 => Just(Damage::Remove),
        2 => (0usize..700).prop_map(Damage::Resize),
        3 => (0usize..400, proptest::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Damage::Overwrite(at, bytes)),
        1 => proptest::sample::select(types.to_vec()).prop_map(Damage::Retype),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A directory with a damaged weight is refused, or what it holds fits its shape.
    #[test]
    fn damaged_weights_are_refused_or_whole(
        tensor in proptest::sample::select(vec![single(), nested(), int8()]),
        which in 0usize..6,
        damage in damage(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model");
        let mut parts = parts(&tensor);
        let which = which % parts.len();
        let (info, bytes) = &mut parts[which];
        match damage {
            Damage::Remove => drop(parts.remove(which)),
            Damage::Resize(length) => {
                let length = length / info.dtype.size() * info.dtype.size();
                bytes.resize(length, 1);
                info.shape = vec![length / info.dtype.size()];
            }
            Damage::Overwrite(at, new) => {
                let at = at % bytes.len();
                let end = (at + new.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&new[..end - at]);
            }
            Damage::Retype(dtype) => {
                info.shape = vec![bytes.len() / dtype.size()];
                info.dtype = dtype;
                bytes.truncate(info.shape[0] * dtype.size());
            }
        }
        write(&path, kind(&tensor), &parts);
        let Ok(model) = HfDir::open(&path) else { return Ok(()) };
        match model.quantized(NAME, MAPS) {
            Ok(Some(BnbTensor::FourBit(weight))) => {
                let values: usize = weight.shape.iter().product();
                prop_assert_eq!(weight.packed.len(), values.div_ceil(2));
                let blocks = values.div_ceil(weight.block_size);
                match weight.absmax {
                    BnbAbsmax::Single(absmax) => prop_assert_eq!(absmax.len(), blocks),
                    BnbAbsmax::Nested { codes, scales, offset } => {
                        prop_assert_eq!(codes.len(), blocks);
                        prop_assert_eq!(scales.len(), blocks.div_ceil(256));
                        prop_assert!(offset.is_finite());
                    }
                }
            }
            Ok(Some(BnbTensor::Int8(weight))) => {
                prop_assert_eq!(weight.codes.len(), weight.shape[0] * weight.shape[1]);
                prop_assert_eq!(weight.absmax.len(), weight.shape[0]);
                prop_assert!(!weight.codes.contains(&0x80));
            }
            // Without its state or its scales a weight is numbers like any other.
            Ok(None) | Err(_) => {}
        }
    }
}

#[test]
fn an_offset_that_json_cannot_hold_is_not_written() {
    let BnbTensor::FourBit(mut weight) = nested() else {
        unreachable!("its codes have 4 bits");
    };
    weight.absmax = BnbAbsmax::Nested {
        codes: vec![1, 200, 255],
        scales: vec![0.75],
        offset: f32::NAN,
    };
    let tensor = BnbTensor::FourBit(weight);
    let error = tensor.parts(Path::new("out"), NAME, MAPS).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("a nested_offset that is a finite number"),
        "{said}"
    );
}
