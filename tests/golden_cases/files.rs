//! Every family through every kind of file: what comes out of them computes what went in.

use std::path::Path;

use backdraft::arch::Family;
use backdraft::burn::tensor::Device;
use backdraft::formats::gguf::{GgufExport, GgufFileType, GgufFiles, write_gguf_adapter};
use backdraft::formats::{Existing, ModelSource, PeftDir, PeftWriteOptions};
use backdraft::lora::{AdapterWeights, MergeBase, export, gguf_decoder, merge};
use backdraft::model::{CausalLm, Tokens, quantize};
use backdraft::quant::{QuantizationPlan, Scheme};
use backdraft_testkit::random_model::RandomModel;
use backdraft_testkit::tolerance::{TINY_LOGITS, TINY_LOSS};

use super::compare::{scalar, values};
use super::lora_entry::LoraCase;
use super::support::chain;
use super::tiny_case::TinyCase;

pub(super) fn load(path: &Path) -> CausalLm {
    let source = ModelSource::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    CausalLm::load(&source, &Device::flex()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(super) fn logits(model: &CausalLm, rows: &[Vec<u32>]) -> Vec<f32> {
    values(&model.logits(model.forward_hidden(&Tokens::from_sequences(rows), None)))
}

/// A model as a GGUF file in f32, with an adapter in its weights where one is given; `Err` is why GGUF has no form for it.
pub(super) fn exported(
    source: &ModelSource,
    adapter: Option<&PeftDir>,
    path: &Path,
) -> Result<CausalLm, String> {
    let spec = backdraft::model::spec(source).unwrap();
    let decoder = gguf_decoder(&spec).map_err(|error| chain(&error))?;
    let tensors: Vec<_> = spec.tensors().collect();
    let tensors = tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()));
    let plan = GgufExport::new(&decoder, &[], Vec::new(), tensors);
    let plan = plan.map_err(|error| chain(&error))?;
    let targets = [(GgufFileType::F32, path.to_owned())];
    let files = GgufFiles::create(&plan, targets, None, Existing::Refuse).unwrap();
    export(
        source,
        MergeBase::Original,
        adapter,
        (&plan, files),
        |_, _| (),
    )
    .unwrap();
    Ok(load(path))
}

/// What llama.cpp computes otherwise is refused by its name: it leaves RoPE out in every fourth layer of a SmolLM 3,
/// takes the size of heads for a Gemma's `query_pre_attn_scalar`, and knows no window in some layers of a Mistral.
pub(super) fn has_no_gguf(case: &TinyCase) -> Option<&'static str> {
    let spec = case.model.spec();
    let layer = &spec.layers[0];
    let usual = (layer.head_dim as f64).powf(-0.5);
    match spec.family {
        Family::SmolLm3 if spec.layers.len() < 4 => Some("layers without RoPE is [1]"),
        Family::Gemma2 | Family::Gemma3 if layer.attention_multiplier != Some(usual) => {
            Some("the scale of attention's scores is")
        }
        Family::Ministral => Some("the sliding window is"),
        _ => None,
    }
}

#[test]
fn golden_tiny_gguf_files() {
    for case in TinyCase::all() {
        let root = tempfile::tempdir().unwrap();
        let source = ModelSource::open(&*case.path).unwrap();
        match exported(&source, None, &root.path().join("x.gguf")) {
            Ok(model) => {
                assert_eq!(has_no_gguf(&case), None, "{}", case.name);
                let found = logits(&model, &case.plain_rows());
                TINY_LOGITS.check(&case.name, &found, &case.tensors.f32("plain.logits"));
            }
            Err(error) => {
                let why = has_no_gguf(&case);
                assert!(
                    why.is_some_and(|why| error.contains(why)),
                    "{}: {error}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn golden_tiny_adapters_and_merged_files() {
    for case in TinyCase::all() {
        let source = ModelSource::open(&*case.path).unwrap();
        let batch = case.plain();
        for LoraCase {
            name, entry, model, ..
        } in LoraCase::all(&case)
        {
            let root = tempfile::tempdir().unwrap();
            let (rows, path) = (case.plain_rows(), root.path().join("adapter"));
            let adapter = model.adapter().unwrap();
            adapter
                .write(&path, "base", &PeftWriteOptions::default())
                .unwrap();
            let read = AdapterWeights::read(&path, &Device::flex()).unwrap();
            let again = load(&case.path).with_adapter(&read).unwrap();
            TINY_LOGITS.check(&name, &logits(&again, &rows), &logits(&model, &rows));

            let adapter = PeftDir::read(&path).unwrap();
            let out = root.path().join("merged");
            let base = MergeBase::Original;
            merge(
                &source,
                base,
                &adapter,
                &[],
                &out,
                Existing::Refuse,
                |_, _| (),
            )
            .unwrap();
            let mut merged = vec![load(&out)];
            if has_no_gguf(&case).is_none() {
                let path = root.path().join("merged.gguf");
                merged.push(exported(&source, Some(&adapter), &path).unwrap());
                let decoder = gguf_decoder(case.model.spec()).unwrap();
                let path = root.path().join("adapter.gguf");
                write_gguf_adapter(&adapter, &decoder, &[], path, Existing::Refuse).unwrap();
            }
            for model in merged {
                let nll = scalar(&model.nll(&batch.tokens, &batch.targets).mean());
                TINY_LOSS.check_one(&name, nll, entry.merged_weights_plain_loss);
            }
        }
    }
}

/// A directory in bitsandbytes' codes computes what quantising on the way computes, to the bit.
#[test]
fn golden_tiny_quantised_directories() {
    for case in TinyCase::all() {
        let root = tempfile::tempdir().unwrap();
        let source = ModelSource::open(&*case.path).unwrap();
        for (name, scheme) in [("nf4", Scheme::NF4), ("int8", Scheme::Int8)] {
            let plan = QuantizationPlan::new(scheme);
            let out = root.path().join(name);
            quantize(&source, &plan, &out, Existing::Refuse, |_, _| ()).unwrap();
            let rows = case.plain_rows();
            let model = CausalLm::load_quantized(&source, Some(&plan), &Device::flex()).unwrap();
            let (found, expected) = (logits(&load(&out), &rows), logits(&model, &rows));
            assert!(found == expected, "{}, {name}", case.name);
        }
    }
}

/// Layers that differ, in the one pattern that llama.cpp has for each family.
#[test]
fn layers_that_differ_go_through_gguf() {
    for (family, window) in [
        (Family::SmolLm3, None),
        (Family::Olmo3, Some(5)),
        (Family::Gemma2, Some(5)),
        (Family::Gemma3, Some(5)),
        (Family::Gemma4, Some(5)),
        (Family::Qwen35, None),
        (Family::Phi3, Some(5)),
        (Family::Glm4, None),
    ] {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("model");
        let shape = RandomModel {
            family,
            window,
            hidden: 64,
            intermediate: 96,
            layers: 9,
            heads: 4,
            kv_heads: 2,
            vocab: 64,
        };
        shape.write(&path);
        // SmolLM 3 has windows where it is told to; here it is not.
        let source = ModelSource::open(&path).unwrap();
        let model = exported(&source, None, &root.path().join("x.gguf")).unwrap();
        let spec = load(&path).spec().clone();
        assert_eq!(model.spec().layers, spec.layers, "{family:?}");
        assert_eq!(model.spec().rope, spec.rope, "{family:?}");
        assert_eq!(model.spec().local_rope, spec.local_rope, "{family:?}");
        assert_eq!(
            model.spec().logits_softcap,
            spec.logits_softcap,
            "{family:?}"
        );
        let rows = vec![(0..40).collect(), (3..20).rev().collect()];
        let expected = logits(&load(&path), &rows);
        TINY_LOGITS.check(format!("{family:?}"), &logits(&model, &rows), &expected);
    }
}
