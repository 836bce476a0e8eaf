//! The model as a module of Burn's.

use backdraft_arch::{QuantizationPlan, Scheme};
use backdraft_formats::ModelSource;
use backdraft_kernels::device;
use burn::module::{Module, ModuleVisitor, Param};

use super::*;

fn base(plan: Option<&QuantizationPlan>) -> CausalLm {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tiny/llama-untied"
    );
    let source = ModelSource::open(path).unwrap();
    CausalLm::load_as(&source, plan, (&Device::flex(), DType::F32)).unwrap()
}

/// With adapters that change something.
fn adapted(plan: Option<&QuantizationPlan>, seed: u64) -> CausalLm {
    let mut model = base(plan).with_lora(&LoraConfig::default(), seed).unwrap();
    for (_, _, adapter) in model.adapters_mut() {
        adapter.update(|param| param.values + 0.01);
    }
    model
}

fn trained(model: &CausalLm) -> Vec<Vec<f32>> {
    let values = model.trained_params().map(|(_, param)| {
        let values = param.values.inner().into_data();
        values.try_into_vec().unwrap()
    });
    values.collect()
}

fn logits(model: &CausalLm) -> Vec<f32> {
    let tokens = Tokens::from_sequences(&[[1, 5, 9, 2, 7], [3, 4, 8, 6, 1]]);
    let logits = model.logits(model.forward_hidden(&tokens, None));
    logits.inner().into_data().try_into_vec().unwrap()
}

#[derive(Default)]
struct Seen(usize);

impl ModuleVisitor for Seen {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 += param.val().shape().num_elements();
    }
}

#[test]
fn only_adapters_are_parameters() {
    let visited = |model: &CausalLm| {
        let mut seen = Seen::default();
        model.visit(&mut seen);
        assert_eq!(seen.0, model.num_params());
        seen.0
    };
    assert_eq!(visited(&base(None)), 0);
    let model = adapted(None, 1);
    assert!(model.num_trained() > 0);
    assert_eq!(visited(&model), model.num_trained());
}

#[test]
fn a_base_model_has_a_device_and_moves_as_any_module() {
    let flex = Device::flex();
    let model = base(None);
    assert_eq!(model.devices(), std::slice::from_ref(&flex));
    let expected = logits(&model);
    assert_eq!(logits(&model.clone().to_device(&flex)), expected);
    assert_eq!(logits(&model.fork(&flex)), expected);
}

/// Every tensor has to be moved, or an op meets operands of two devices.
#[test]
fn a_model_moved_to_a_gpu_computes_there() {
    let nf4 = QuantizationPlan::new(Scheme::NF4);
    for gpu in [device::wgpu(), device::cuda(0)].into_iter().flatten() {
        for plan in [None, Some(&nf4)] {
            let model = adapted(plan, 1);
            let expected = logits(&model);
            for moved in [model.clone().to_device(&gpu), model.clone().fork(&gpu)] {
                assert_eq!(moved.devices(), std::slice::from_ref(&gpu));
                assert_eq!(moved.device(), gpu);
                for (a, b) in logits(&moved).iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-3, "{a} on a GPU, {b} here");
                }
            }
        }
    }
}

#[test]
fn a_record_has_the_adapters_and_nothing_else() {
    let trained_model = adapted(None, 1);
    let expected = logits(&trained_model);
    let record = trained_model.clone().into_record();
    let fresh = base(None).with_lora(&LoraConfig::default(), 2).unwrap();
    assert_ne!(trained(&fresh), trained(&trained_model));
    let loaded = fresh.load_record(record);
    assert_eq!(trained(&loaded), trained(&trained_model));
    assert_eq!(logits(&loaded), expected);

    let nothing = base(None).into_record();
    assert_eq!(
        logits(&base(None).load_record(nothing)),
        logits(&base(None))
    );
}
