use std::path::{Path, PathBuf};

use backdraft_formats::{Dtype, Existing, HfDirWriter, TensorInfo};
use backdraft_quant::{FourBitFormat, NestedFormat, Scheme};
use serde_json::{Value, json};

use super::*;
use crate::causal_lm::BaseTensor;
use crate::quantize::{QuantizeError, quantize};

/// A small untied model in f32, in two shards.
fn source() -> ModelSource {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tiny/llama-untied"
    );
    ModelSource::open(path).unwrap()
}

fn schemes() -> Vec<Scheme> {
    let mut schemes = vec![Scheme::Int8];
    for format in [FourBitFormat::Nf4, FourBitFormat::Fp4] {
        for (block_size, double_quant) in [(64, false), (64, true), (128, false), (128, true)] {
            schemes.push(Scheme::FourBit {
                format,
                block_size,
                double_quant,
            });
        }
    }
    schemes
}

fn plan(scheme: Scheme, skip: &[&str]) -> QuantizationPlan {
    let mut plan = QuantizationPlan::new(scheme);
    plan.skip_modules
        .extend(skip.iter().map(|&name| name.to_owned()));
    plan
}

/// Name, scheme and bits of every matrix.
fn matrices(model: &mut CausalLm) -> Vec<(String, Option<Scheme>, Vec<u32>)> {
    let mut matrices = Vec::new();
    model.visit_base_mut(|name, tensor| {
        if let BaseTensor::Matrix(weight) = tensor {
            let values = weight.dequantize().into_data();
            let bits = values.iter::<f32>().map(f32::to_bits).collect();
            matrices.push((name.to_owned(), weight.scheme(), bits));
        }
    });
    matrices
}

/// Writes the model in codes.
fn written(directory: &Path, plan: &QuantizationPlan) -> PathBuf {
    let path = directory.join("model");
    quantize(&source(), plan, &path, Existing::Replace, |_, _| ()).unwrap();
    path
}

fn load(path: &Path, plan: Option<&QuantizationPlan>) -> Result<CausalLm, LoadError> {
    let source = ModelSource::open(path)?;
    CausalLm::load_quantized(&source, plan, &Device::flex())
}

#[test]
fn what_is_written_in_codes_reads_as_what_is_quantised_on_the_way() {
    let directory = tempfile::tempdir().unwrap();
    for scheme in schemes() {
        for skip in [&[][..], &["down_proj", "layers.1"]] {
            let plan = plan(scheme, skip);
            let mut quantised =
                CausalLm::load_quantized(&source(), Some(&plan), &Device::flex()).unwrap();
            let quantised = matrices(&mut quantised);
            let path = written(directory.path(), &plan);
            assert_eq!(quantised, matrices(&mut load(&path, None).unwrap()));
            assert_eq!(quantised, matrices(&mut load(&path, Some(&plan)).unwrap()));
            let in_codes = quantised.iter().filter(|matrix| matrix.1.is_some()).count();
            assert_eq!(in_codes, if skip.is_empty() { 14 } else { 6 });
        }
    }
}

#[test]
fn modules_that_are_left_out_are_listed_in_full() {
    let directory = tempfile::tempdir().unwrap();
    let path = written(
        directory.path(),
        &plan(Scheme::NF4, &["self_attn", "layers.1.mlp.up_proj"]),
    );
    let config = std::fs::read(path.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let mut expected = vec!["lm_head".to_owned()];
    for layer in 0..2 {
        for target in ["k_proj", "o_proj", "q_proj", "v_proj"] {
            expected.push(format!("model.layers.{layer}.self_attn.{target}"));
        }
    }
    expected.push("model.layers.1.mlp.up_proj".to_owned());
    let mut listed: Vec<String> =
        serde_json::from_value(config["quantization_config"]["llm_int8_skip_modules"].clone())
            .unwrap();
    expected.sort();
    listed.sort();
    assert_eq!(listed, expected);
}

#[test]
fn codes_that_nobody_asked_for_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = written(directory.path(), &plan(Scheme::NF4, &[]));
    let refusal = |plan: Option<&QuantizationPlan>| {
        let message = load(&path, plan).unwrap_err().to_string();
        message.replace(&path.display().to_string(), "DIR")
    };
    assert_eq!(
        refusal(Some(&plan(Scheme::Int8, &[]))),
        "DIR is stored in nf4 (blocks of 64, double) and cannot be kept in int8 (rows); ask for no \
         quantisation to use it as it is"
    );
    let first = "DIR: `model.layers.0.mlp.down_proj` is in codes, but ";
    assert_eq!(
        refusal(Some(&plan(Scheme::NF4, &["down_proj"]))),
        format!("{first}the list of modules to skip that was given says that it is not quantised")
    );
    let file = path.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    config["quantization_config"]["llm_int8_skip_modules"] = json!(["down_proj"]);
    std::fs::write(&file, config.to_string()).unwrap();
    assert_eq!(
        refusal(None),
        format!(
            "{first}`quantization_config.llm_int8_skip_modules` in config.json says that it is not quantised"
        )
    );
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    let source = source();
    let infos: Vec<_> = source
        .tensor_names()
        .map(|name| source.tensor_info(name).unwrap().clone())
        .collect();
    let spoiled = "model.layers.1.mlp.gate_proj.weight";
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let mut writer =
            backdraft_formats::HfDirWriter::create(&path, infos.clone(), Existing::Replace)
                .unwrap();
        writer
            .companion("config.json", source.config().to_string().as_bytes())
            .unwrap();
        for info in &infos {
            let mut bytes = source.raw(&info.name).unwrap().bytes.into_owned();
            if info.name == spoiled {
                let end = bytes.len();
                bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
            }
            writer.write(&info.name, &bytes).unwrap();
        }
        writer.finish().unwrap();
        for plan in [None, Some(plan(Scheme::NF4, &[]))] {
            let refused = load(&path, plan.as_ref()).unwrap_err().to_string();
            assert!(refused.contains(spoiled), "{refused}");
            assert!(refused.ends_with("is not finite"), "{refused}");
        }
    }
}

/// bitsandbytes has one kind of codes in a directory, and none of 6 bits: what a plan has in other schemes is written
/// as the values that it was trained over.
#[test]
fn matrices_with_a_scheme_of_their_own_are_written_as_values() {
    let directory = tempfile::tempdir().unwrap();
    let nf6 = Scheme::nested(NestedFormat::Nf6);
    let paths = ["0.mlp.up_proj", "1.self_attn.q_proj"].map(|it| format!("model.layers.{it}"));
    let plan = plan(Scheme::NF4, &["layers.1"])
        .with_scheme(&paths[0], nf6)
        .with_scheme(&paths[1], Scheme::Int8);
    let mut quantised = CausalLm::load_quantized(&source(), Some(&plan), &Device::flex()).unwrap();
    let quantised = matrices(&mut quantised);
    let of_its_own = |name: &str| paths.iter().any(|path| name.starts_with(path.as_str()));
    let own = quantised.iter().filter(|(name, ..)| of_its_own(name));
    let own: Vec<_> = own.map(|(_, scheme, _)| *scheme).collect();
    assert_eq!(own, [Some(nf6), Some(Scheme::Int8)]);
    let path = written(directory.path(), &plan);
    let read = matrices(&mut load(&path, None).unwrap());
    for ((name, scheme, bits), (again, stored, found)) in quantised.iter().zip(&read) {
        assert_eq!((name, bits), (again, found), "{name}");
        let expected = scheme.filter(|_| !of_its_own(name));
        assert_eq!(*stored, expected, "{name}");
    }
    let plan = QuantizationPlan::new(nf6);
    let path = directory.path().join("other");
    let refused = quantize(&source(), &plan, &path, Existing::Refuse, |_, _| ()).unwrap_err();
    assert!(matches!(refused, QuantizeError::Unknown { scheme } if scheme == nf6));
}

#[test]
fn matrices_that_are_read_ahead_are_those_that_are_read_alone() {
    let source = source();
    let spec = spec(&source).unwrap();
    let nf4 = plan(Scheme::NF4, &["up_proj"]);
    for plan in [None, Some(&nf4)] {
        let wanted = in_order(&spec, plan, &Device::flex());
        let names: Vec<String> = wanted.iter().map(|matrix| matrix.name.clone()).collect();
        let read = |with_readers: bool| {
            let ahead = Ahead::new(&source, DType::F32, wanted.clone());
            ahead.beside(with_readers, |ahead| {
                let read = names.iter().map(|name| {
                    let weight = ahead.take(name).unwrap().put_on(&Device::flex()).unwrap();
                    (weight.scheme(), weight.dequantize().into_data())
                });
                read.collect::<Vec<_>>()
            })
        };
        assert_eq!(names.len(), 16);
        assert_eq!(read(true), read(false));
    }
}

/// The first error in the order of the model is told, whoever met with another one before; whoever stops stops all.
#[test]
fn readers_stop_at_the_first_error() {
    let source = source();
    let spec = spec(&source).unwrap();
    let mut wanted = in_order(&spec, None, &Device::flex());
    for i in [3, 5] {
        wanted[i].name = format!("missing.{i}");
    }
    let names: Vec<String> = wanted.iter().map(|matrix| matrix.name.clone()).collect();
    for with_readers in [false, true] {
        let ahead = Ahead::new(&source, DType::F32, wanted.clone());
        let result = ahead.beside(with_readers, |ahead| {
            names.iter().try_for_each(|name| ahead.take(name).map(drop))
        });
        let error = result.unwrap_err().to_string();
        assert!(error.contains("missing.3"), "{error}");
    }
}

/// A checkpoint as transformers writes one for sequence classification: `score`, of so many rows, in place of a head for tokens.
fn scored(directory: &Path, rows: usize) -> PathBuf {
    let (source, path) = (source(), directory.join(format!("scored-{rows}")));
    let names: Vec<&str> = source.tensor_names().filter(|name| *name != HEAD).collect();
    let infos = names
        .iter()
        .map(|name| source.tensor_info(name).unwrap().clone());
    let score = TensorInfo::new(SCORE.to_owned(), Dtype::F32, vec![rows, 64]);
    let infos: Vec<TensorInfo> = infos.chain([score]).collect();
    let mut writer = HfDirWriter::create(&path, infos, Existing::Refuse).unwrap();
    let config = serde_json::to_vec(source.config()).unwrap();
    writer.companion("config.json", &config).unwrap();
    for name in names {
        let bytes = source.raw(name).unwrap().bytes;
        writer.write(name, &bytes).unwrap();
    }
    let values = (0..64 * rows).flat_map(|i| (i as f32 * 0.01).to_le_bytes());
    writer.write(SCORE, &values.collect::<Vec<_>>()).unwrap();
    writer.finish().unwrap();
    path
}

fn score(source: &ModelSource, seed: u64) -> Vec<f32> {
    let place = (&Device::flex(), DType::F32);
    let mut model = CausalLm::load_to_score(source, None, place, (BaseHome::Device, seed)).unwrap();
    let heads = matrices(&mut model)
        .into_iter()
        .filter(|(name, ..)| name == SCORE);
    let [(_, None, bits)] = &heads.collect::<Vec<_>>()[..] else {
        panic!("one head, dense");
    };
    bits.iter().map(|bits| f32::from_bits(*bits)).collect()
}

#[test]
fn a_head_that_scores_is_read_or_drawn() {
    let expected: Vec<f32> = (0..64).map(|i| i as f32 * 0.01).collect();
    let directory = tempfile::tempdir().unwrap();
    let path = scored(directory.path(), 1);
    let classifier = ModelSource::open(&path).unwrap();
    assert_eq!(score(&classifier, 1), expected);
    let refused = CausalLm::load(&classifier, &Device::flex()).unwrap_err();
    assert!(
        refused.to_string().contains("`lm_head.weight` is missing"),
        "{refused}"
    );

    let source = source();
    assert_eq!(score(&source, 1), score(&source, 1));
    assert_ne!(score(&source, 1), score(&source, 2));

    let path = scored(directory.path(), 2);
    let several = ModelSource::open(&path).unwrap();
    let place = (&Device::flex(), DType::F32);
    let refused =
        CausalLm::load_to_score(&several, None, place, (BaseHome::Device, 1)).unwrap_err();
    let message = refused.to_string();
    assert!(
        message.contains("shape [2, 64]") && message.contains("[1, 64]"),
        "{message}"
    );
}
