//! Sequences together against each alone.

use backdraft_arch::{QuantizationPlan, Scheme};
use backdraft_formats::{ModelSource, TokenTable};
use backdraft_lora::LoraConfig;
use burn::tensor::{DType, Device, Tensor};

use super::*;
use crate::decode::SamplingConfig;

fn base(plan: Option<&QuantizationPlan>) -> CausalLm {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/golden/tiny/llama31-untied"
    );
    let source = ModelSource::open(path).unwrap();
    CausalLm::load_as(&source, plan, (&Device::flex(), DType::F32)).unwrap()
}

/// One that keeps states beside keys and values.
fn hybrid() -> CausalLm {
    golden("qwen3_5_text")
}

/// One whose layers keep heads of two sizes, some within a window.
fn two_sizes() -> CausalLm {
    golden("gemma4_text")
}

fn golden(name: &str) -> CausalLm {
    let folders = backdraft_testkit::golden::folders("tiny", "config.json");
    let mut folders = folders.into_iter();
    let folder = folders.find(|folder| folder.name() == name).unwrap();
    CausalLm::load(&ModelSource::open(&*folder).unwrap(), &Device::flex()).unwrap()
}

/// With adapters that change much; every third also the lengths of rows.
fn adapted(model: &CausalLm, seed: u64) -> CausalLm {
    adapted_at(model, seed, &[])
}

/// The same with adapters on tables of tokens.
fn adapted_at(model: &CausalLm, seed: u64, tables: &[TokenTable]) -> CausalLm {
    let config = LoraConfig {
        use_dora: seed.is_multiple_of(3) && tables.is_empty(),
        target_tables: tables.to_vec(),
        ..LoraConfig::default()
    };
    let mut model = model.clone().with_lora(&config, seed).unwrap();
    for (_, adapter) in model.table_adapters_mut() {
        adapter.update(|param| param.values + 0.02 * (1 + seed) as f32);
    }
    for (_, _, adapter) in model.adapters_mut() {
        adapter.update(|param| param.values + 0.05 + seed as f32 / 50.0);
    }
    model
}

fn limits(sequences: usize, tokens: usize) -> DecodeLimits {
    DecodeLimits::on(&Device::flex(), sequences, tokens)
}

/// A prompt of its own for each number, of a length of its own.
fn prompt(number: usize) -> Vec<u32> {
    let length = [1, 70, 3, 150, 31, 64, 65, 9][number % 8];
    (0..length)
        .map(|i| ((i * 37 + number * 11) % 250) as u32)
        .collect()
}

fn request(number: usize, model: usize) -> DecodeRequest {
    DecodeRequest {
        model,
        prompt: prompt(number),
        samples: 1,
        config: GenerateConfig {
            max_new_tokens: 12 + number,
            stop_ids: vec![7],
            sampling: SamplingConfig {
                temperature: if number.is_multiple_of(2) { 0.0 } else { 1.5 },
                seed: number as u64,
                ..SamplingConfig::default()
            },
        },
        logprobs: Some(2),
    }
}

/// What becomes of each request; they begin `apart` steps after one another.
fn run(models: &[CausalLm], requests: &[DecodeRequest], apart: usize) -> Vec<Vec<Sampled>> {
    let mut decoder = Decoder::new(models.to_vec(), limits(64, 1 << 20));
    let mut names = Vec::new();
    let mut outputs = vec![Vec::new(); requests.len()];
    let mut steps = 0;
    while names.len() < requests.len() || !decoder.is_empty() {
        while names.len() < requests.len() && steps >= names.len() * apart {
            names.extend(decoder.admit(requests[names.len()].clone()).unwrap());
        }
        steps += 1;
        for sampled in decoder.step() {
            let number = names.iter().position(|id| *id == sampled.sequence).unwrap();
            outputs[number].push(sampled);
        }
    }
    assert_eq!(decoder.cached_tokens(), 0, "all memory is given back");
    outputs
}

fn same(together: &[Sampled], alone: &[Sampled]) {
    let what = |all: &[Sampled]| {
        let parts = all.iter().map(|s| (s.token, s.likely.clone(), s.finish));
        parts.collect::<Vec<_>>()
    };
    assert_eq!(what(together), what(alone));
}

/// To the last bit: log-probabilities are compared as they are.
#[test]
fn a_sequence_does_not_depend_on_who_else_is_there() {
    let nf4 = QuantizationPlan::new(Scheme::NF4);
    for base in [base(None), base(Some(&nf4)), hybrid(), two_sizes()] {
        let models = [0, 1, 2, 3].map(|seed| match seed {
            0 => base.clone(),
            seed => adapted(&base, seed),
        });
        let requests: Vec<_> = (0..9).map(|number| request(number, number % 4)).collect();
        let alone: Vec<_> = (requests.iter())
            .map(|request| run(&models, std::slice::from_ref(request), 0).remove(0))
            .collect();
        for apart in [0, 1, 3] {
            for (together, alone) in run(&models, &requests, apart).iter().zip(&alone) {
                same(together, alone);
            }
        }
        let first = |number: usize, model| {
            let all = run(&models, &[request(number, model)], 0).remove(0);
            all.iter().map(|sampled| sampled.token).collect::<Vec<_>>()
        };
        assert_ne!(first(0, 0), first(0, 1), "an adapter changes answers");
    }
}

/// As above, where some models have adapters on their embedding or their head, of a base where the two are one too.
#[test]
fn a_sequence_does_not_depend_on_adapters_of_tables_beside_it() {
    let tables = TokenTable::ALL;
    for base in [base(None), golden("llama-tied"), golden("qwen3_5_text")] {
        let models = [
            base.clone(),
            adapted_at(&base, 1, &tables),
            adapted_at(&base, 2, &tables[..1]),
            adapted_at(&base, 3, &tables[1..]),
            adapted(&base, 4),
        ];
        let requests: Vec<_> = (0..10).map(|number| request(number, number % 5)).collect();
        let alone: Vec<_> = (requests.iter())
            .map(|request| run(&models, std::slice::from_ref(request), 0).remove(0))
            .collect();
        for apart in [0, 1, 3] {
            for (together, alone) in run(&models, &requests, apart).iter().zip(&alone) {
                same(together, alone);
            }
        }
        // Nor on there being other models.
        let request = request(0, 1);
        let single = DecodeRequest {
            model: 0,
            ..request.clone()
        };
        let of_one = run(&models[1..2], &[single], 0).remove(0);
        same(&run(&models, &[request], 0).remove(0), &of_one);
    }
}

/// Without a cache: every token from a pass over all that stands before it.
#[test]
fn the_pool_gives_what_a_pass_over_everything_gives() {
    let models = [base(None), adapted(&base(None), 3), hybrid(), two_sizes()];
    for model in models {
        let mut ids = prompt(1);
        let greedy = GenerateConfig {
            max_new_tokens: 40,
            ..GenerateConfig::default()
        };
        let answer = model.generate(&[&ids], &greedy, |_, _| true).remove(0);
        for token in answer {
            let tokens = crate::Tokens::from_sequences(&[&ids]);
            let hidden = model.forward_hidden(&tokens, None).inner();
            let logits = model.logits(hidden.narrow(0, ids.len() - 1, 1)).into_data();
            let logits = logits.try_into_vec::<f32>().unwrap();
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert!(best - logits[token as usize] < 1e-4);
            ids.push(token);
        }
    }
}

#[test]
fn samples_of_a_prompt_are_what_they_are_alone() {
    for (number, base) in
        [1, 3, 5, 3]
            .into_iter()
            .zip([base(None), base(None), base(None), hybrid()])
    {
        let models = [base];
        let mut decoder = Decoder::new(models.to_vec(), limits(8, 1 << 16));
        let several = DecodeRequest {
            samples: 4,
            ..request(number, 0)
        };
        let ids = decoder.admit(several.clone()).unwrap();
        let mut outputs = vec![Vec::new(); 4];
        while !decoder.is_empty() {
            for sampled in decoder.step() {
                let place = ids.iter().position(|id| *id == sampled.sequence).unwrap();
                outputs[place].push(sampled);
            }
        }
        assert_ne!(outputs[0][0].sequence, outputs[1][0].sequence);
        for (i, output) in outputs.iter().enumerate() {
            let mut one = request(number, 0);
            one.config.sampling.seed += i as u64;
            same(output, &run(&models, &[one], 0)[0]);
        }
        assert_eq!(decoder.cached_tokens(), 0);
    }
}

#[test]
fn a_decoder_says_what_it_has_no_room_for() {
    let mut decoder = Decoder::new(vec![base(None)], limits(2, 256));
    let long = |max_new_tokens| {
        let mut request = request(1, 0);
        request.config.max_new_tokens = max_new_tokens;
        request
    };
    let error = decoder.admit(long(400)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tokens in the cache: 256 at most, and this needs 480"
    );
    let three = DecodeRequest {
        samples: 3,
        ..request(0, 0)
    };
    assert!(matches!(
        decoder.admit(three),
        Err(AdmitError::TooLarge { actual: 3, .. })
    ));
    let first = decoder.admit(long(60)).unwrap()[0];
    assert_eq!(decoder.admit(long(60)), Err(AdmitError::Full));
    decoder.step();
    assert!(decoder.cached_tokens() > 0);
    decoder.remove(first);
    decoder.remove(first);
    assert_eq!((decoder.cached_tokens(), decoder.len()), (0, 0));
    assert!(decoder.admit(long(60)).is_ok());
}

/// One of several samples may be removed while their prompt is still being read.
#[test]
fn a_sample_can_be_removed_at_any_time() {
    let models = [base(None)];
    let mut decoder = Decoder::new(models.to_vec(), limits(8, 1 << 16));
    let several = DecodeRequest {
        samples: 3,
        ..request(3, 0)
    };
    let ids = decoder.admit(several).unwrap();
    decoder.step();
    decoder.remove(ids[0]);
    let mut left = Vec::new();
    while !decoder.is_empty() {
        for sampled in decoder.step() {
            match sampled.sequence == ids[2] {
                true => left.push(sampled),
                false => decoder.remove(ids[1]),
            }
        }
    }
    let mut one = request(3, 0);
    one.config.sampling.seed += 2;
    same(&left, &run(&models, &[one], 0)[0]);
    assert_eq!(decoder.cached_tokens(), 0);
}

#[test]
fn a_model_that_trains_everything_can_be_asked() {
    let mut model = base(None);
    let expected = model.generate(&[prompt(2)], &request(2, 0).config, |_, _| true);
    model.visit_base_mut(|_, tensor| {
        if let BaseTensor::Matrix(weight) = tensor {
            let tracked: Tensor<2> = weight.dequantize().autodiff().require_grad();
            *weight = backdraft_quant::Weight::Dense(tracked);
        }
    });
    let answer = model.generate(&[prompt(2)], &request(2, 0).config, |_, _| true);
    assert_eq!(answer, expected);
}
