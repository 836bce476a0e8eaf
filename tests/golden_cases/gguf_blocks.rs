//! Blocks of GGUF files as weights: their values, and models that stay in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use backdraft::arch::{BaseHome, Family, GgufBlock};
use backdraft::burn::tensor::{Tensor, TensorData};
use backdraft::data::Batch;
use backdraft::formats::gguf::{GgufExport, GgufFileType, GgufFiles};
use backdraft::formats::{Existing, ModelSource};
use backdraft::kernels::adamw::AdamWParams;
use backdraft::kernels::dequantize::GgufBlocks;
use backdraft::lora::base::{MatrixError, blocks_plan};
use backdraft::lora::{
    Adapter, AdapterGrads, AdapterWeights, LoraAdapter, LoraConfig, MergeBase, export, gguf_decoder,
};
use backdraft::model::{BaseTensor, CausalLm, LoadError};
use backdraft::plan::ActivationPlan;
use backdraft::quant::{QuantizationPlan, Scheme, Weight};
use backdraft::train::optimizer::{Optimizer, StatePrecision};
use backdraft::train::step::{MicroBatch, forward_backward};
use backdraft_testkit::golden::{self, Tensors};
use backdraft_testkit::random_model::RandomModel;
use backdraft_testkit::tolerance::{TINY_GRADIENT, TINY_LOSS};

use super::compare::{by_name, scalar, values};
use super::four_bit::{check_bits, check_last_bits};
use super::place;

#[test]
fn golden_gguf_blocks_are_kept_and_dequantised() {
    let Some(path) = golden::part("misc/gguf_blocks.safetensors") else {
        return;
    };
    let tensors = Tensors::open(path);
    let mut checked = 0;
    for &kind in GgufBlock::ALL {
        let suffix = format!(".{}.raw", kind.name().to_uppercase());
        for name in tensors.names().filter(|name| name.ends_with(&suffix)) {
            let what = name.strip_suffix(".raw").unwrap();
            let expected = tensors.f32(&format!("{what}.dequantised"));
            let bytes = tensors.bytes(name);
            let dims = [expected.len() / kind.values(), kind.values()];
            let matrix = GgufBlocks::from_parts(kind, dims, bytes, &place::device()).unwrap();
            let actual = values(&matrix.dequantize());
            if place::on_gpu() {
                check_last_bits(what, &actual, &expected, 1e-5);
            } else {
                check_bits(what, &actual, &expected);
            }
            checked += 1;
        }
    }
    assert!(checked > 0);
}

const SHAPE: RandomModel = RandomModel {
    family: Family::Llama,
    window: None,
    hidden: 256,
    intermediate: 512,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    vocab: 96,
};

/// A random model as a file of each type that has blocks.
fn files(directory: &Path) -> Vec<(GgufFileType, PathBuf)> {
    let random = directory.join("random");
    SHAPE.write(&random);
    let source = ModelSource::open(random).unwrap();
    let spec = backdraft::model::check(&source).unwrap();
    let tensors: Vec<_> = spec.tensors().collect();
    let tensors = tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()));
    let decoder = gguf_decoder(&spec).unwrap();
    let plan = GgufExport::new(&decoder, &[], Vec::new(), tensors).unwrap();
    let plain = [GgufFileType::F32, GgufFileType::F16, GgufFileType::BF16];
    let kinds = GgufFileType::ALL.into_iter();
    let kinds = kinds.filter(|kind| !plain[1..].contains(kind));
    let targets: Vec<(GgufFileType, PathBuf)> = kinds
        .map(|kind| (kind, directory.join(format!("{}.gguf", kind.name()))))
        .collect();
    let files = GgufFiles::create(&plan, targets.clone(), None, Existing::Refuse).unwrap();
    export(
        &source,
        MergeBase::Original,
        None,
        (&plan, files),
        |_, _| (),
    )
    .unwrap();
    targets
}

fn load(source: &ModelSource, plan: Option<&QuantizationPlan>) -> CausalLm {
    CausalLm::load_quantized(source, plan, &place::device()).unwrap()
}

/// Rows whose every token is a label.
fn batch() -> MicroBatch {
    let ids: Vec<i64> = (0..60).map(|i| 2 + (i * 37 + i * i * 11) % 94).collect();
    let batch = Batch::from_rectangular(3, &ids, &vec![1; ids.len()], &ids);
    batch.unwrap().into()
}

/// An adapter whose factors are both there already, so that both have gradients.
fn adapter(model: &CausalLm) -> AdapterWeights {
    let config = LoraConfig {
        rank: 4,
        ..LoraConfig::default()
    };
    let factor = |dims: [usize; 2], phase: f32| {
        let values = (0..dims[0] * dims[1]).map(|i| 0.05 * (i as f32 * 0.71 + phase).sin());
        let data = TensorData::new(values.collect::<Vec<f32>>(), dims);
        Tensor::<2>::from_data(data, &place::device())
    };
    let mut adapters = BTreeMap::new();
    for (i, layer) in model.layers.iter().enumerate() {
        for &target in &config.target_modules {
            let [out, input] = layer.projection(target).weight().dims();
            let (a, b) = (
                factor([config.rank, input], 0.3),
                factor([out, config.rank], 1.1),
            );
            let lora = LoraAdapter::from_factors(&config, a, b);
            adapters.insert(target.path(i), Adapter::Lora(lora));
        }
    }
    AdapterWeights {
        config,
        adapters,
        tokens: Vec::new(),
        whole: Default::default(),
    }
}

/// Three steps of LoRA: the loss of each, and the first gradients.
fn trained(base: CausalLm) -> (Vec<f64>, Vec<(String, Vec<f32>)>) {
    let adapter = adapter(&base);
    let mut model = base.with_adapter(&adapter).unwrap();
    let params = AdamWParams {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
    };
    let mut optimizer = Optimizer::adamw(params, StatePrecision::F32);
    let (batch, mut losses, mut first) = (batch(), Vec::new(), None);
    for _ in 0..3 {
        let mut grads = AdapterGrads::new();
        let scale = 1.0 / batch.targets.len() as f32;
        let plan = ActivationPlan::keep_all(model.num_backward_layers());
        let nll = forward_backward(&model, &batch, scale, None, &plan, &mut grads);
        losses.push(scalar(&nll) * f64::from(scale));
        first.get_or_insert_with(|| by_name(&model, &grads));
        optimizer.step(&mut model, &grads, 1e-3);
    }
    (losses, first.unwrap())
}

/// Every file type: what is kept has the values of what is dequantised, and trains alike.
#[test]
fn a_base_in_its_own_blocks_trains_as_the_dequantised_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut seen: Vec<GgufBlock> = Vec::new();
    for (kind, path) in files(directory.path()) {
        let source = ModelSource::open(&path).unwrap();
        let planned = blocks_plan(&source);
        if kind == GgufFileType::F32 {
            assert!(matches!(planned, Err(MatrixError::NoBlocks { .. })));
            continue;
        }
        let plan = planned.unwrap();
        let what = kind.name();
        let [mut kept, mut dense] = [Some(&plan), None].map(|plan| load(&source, plan));
        let mut bytes = 0;
        let mut expected = Vec::new();
        dense.visit_base_mut(|_, tensor| {
            if let BaseTensor::Matrix(weight) = tensor {
                expected.push(values(&weight.dequantize()));
            }
        });
        let mut expected = expected.into_iter();
        kept.visit_base_mut(|name, tensor| match tensor {
            BaseTensor::Matrix(weight) => {
                let path = name.strip_suffix(".weight").unwrap();
                // The head is dense where products dequantise matrices as a whole.
                if !(place::on_gpu() && path == "model.embed_tokens") {
                    assert!(matches!(weight, Weight::Gguf(_)), "{what}: {name}");
                    assert_eq!(weight.scheme(), plan.scheme_for(path), "{what}: {name}");
                    let Some(Scheme::Gguf(block)) = weight.scheme() else {
                        unreachable!("a weight in blocks has another scheme")
                    };
                    assert_eq!(source.block_kind(name), Some(block));
                    let scheme = weight.scheme().unwrap();
                    assert_eq!(weight.num_bytes(), scheme.num_bytes(weight.dims()));
                    seen.push(block);
                }
                bytes += weight.num_bytes();
                let actual = values(&weight.dequantize());
                check_last_bits(
                    &format!("{what}: {name}"),
                    &actual,
                    &expected.next().unwrap(),
                    if place::on_gpu() { 1e-5 } else { 0.0 },
                );
            }
            BaseTensor::Vector(vector) => bytes += 4 * vector.dims()[0],
        });
        let setup = setup(&kept, &plan);
        assert_eq!(setup.base_bytes(), bytes as u64, "{what}: planned bytes");
        let ((losses, grads), (expected, expected_grads)) = (trained(kept), trained(dense));
        for (step, (loss, expected)) in losses.into_iter().zip(expected).enumerate() {
            TINY_LOSS.check_one(format!("{what}: loss {step}"), loss, expected);
        }
        assert_eq!(grads.len(), expected_grads.len());
        for ((name, grad), (other, expected)) in grads.iter().zip(&expected_grads) {
            assert_eq!(name, other);
            TINY_GRADIENT.check(format!("{what}: {name}"), grad, expected);
        }
    }
    for kind in GgufBlock::ALL {
        assert!(seen.contains(kind), "no file has {kind}");
    }
}

/// What the planner counts.
fn setup(model: &CausalLm, plan: &QuantizationPlan) -> backdraft::plan::Setup {
    use backdraft::plan::tensors::MemoryModel;
    backdraft::plan::Setup {
        spec: model.spec().clone(),
        lora: LoraConfig::default(),
        tokens: 0,
        quantization: Some(plan.clone()),
        base: None,
        dense_element: 4,
        memory: match place::on_gpu() {
            true => MemoryModel::cube(4),
            false => MemoryModel::cpu(),
        },
        optimizer: StatePrecision::F32.into(),
        micro_batch_size: 1,
        max_seq_length: 32,
        texts_per_row: 1,
        grad_accumulation_steps: 1,
        releases: false,
        masters: true,
        host: 0,
        home: BaseHome::Device,
    }
}

#[test]
fn blocks_of_another_file_and_damaged_ones_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let files = files(directory.path());
    let path = |kind| &files.iter().find(|(other, _)| *other == kind).unwrap().1;
    let source = |kind| ModelSource::open(path(kind)).unwrap();
    let refusal = |source: &ModelSource, plan: &QuantizationPlan| {
        let refused = CausalLm::load_quantized(source, Some(plan), &place::device());
        match refused {
            Err(LoadError::Matrix(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let plan = blocks_plan(&source(GgufFileType::Q4_K_M)).unwrap();
    let said = refusal(&source(GgufFileType::Q8_0), &plan);
    assert!(
        said.contains("is in Q8_0, not in the file's own blocks of q"),
        "{said}"
    );
    let directory_source = ModelSource::open(directory.path().join("random")).unwrap();
    let said = refusal(&directory_source, &plan);
    assert!(said.contains("is in F32, not in"), "{said}");
    let said = blocks_plan(&directory_source).unwrap_err().to_string();
    assert!(said.contains("holds no blocks to keep"), "{said}");

    // A scale that is not a number, in the first block of a projection.
    let q8_0 = source(GgufFileType::Q8_0);
    let ModelSource::Gguf(model) = &q8_0 else {
        unreachable!("a .gguf file is another source")
    };
    let tensor = model.file().tensor("blk.1.ffn_up.weight").unwrap();
    let mut bytes = std::fs::read(path(GgufFileType::Q8_0)).unwrap();
    bytes[tensor.range.start..tensor.range.start + 2].copy_from_slice(&[0, 0x7e]);
    let damaged = directory.path().join("damaged.gguf");
    std::fs::write(&damaged, bytes).unwrap();
    let damaged = ModelSource::open(damaged).unwrap();
    let said = refusal(&damaged, &blocks_plan(&damaged).unwrap());
    let expected = "`model.layers.1.mlp.up_proj.weight` holds a value that is not finite";
    assert!(said.contains(expected), "{said}");
}
