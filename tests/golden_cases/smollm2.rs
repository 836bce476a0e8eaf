//! SmolLM2: tokens, chats, logits, hidden states, likelihoods, greedy tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use backdraft::data::{ChatTokenizer, Conversation, Message, Role};
use backdraft::formats::ModelSource;
use backdraft::model::generate::GenerateConfig;
use backdraft::model::{BaseTensor, CausalLm, Targets, Tokens};
use backdraft::quant::{FourBitFormat, Scheme, Weight};
use backdraft::train::data;
use backdraft_testkit::golden;
use backdraft_testkit::smollm2;
use backdraft_testkit::tolerance::{
    SMOLLM2_LOGITS, SMOLLM2_MEAN_NLL, SMOLLM2_QLORA, SMOLLM2_TOKEN_NLL, Tolerance,
};
use serde::Deserialize;

use super::compare::{norm, values};
use super::four_bit::sha256;
use super::place;

/// The model, read once for all tests.
pub(super) struct Smollm2 {
    pub(super) model: CausalLm,
    pub(super) tokenizer: ChatTokenizer,
}

/// The model with a file of reference values; `None` where one of them is missing.
pub(super) fn load(file: &str) -> Option<(&'static Smollm2, PathBuf)> {
    static LOADED: OnceLock<Option<Smollm2>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let path = smollm2::find()
            .inspect_err(|reason| println!("nothing is tested: {reason}"))
            .ok()?;
        let source = ModelSource::open(path).unwrap();
        Some(Smollm2 {
            model: CausalLm::load(&source, &place::device()).unwrap(),
            tokenizer: data::tokenizer(&source).unwrap(),
        })
    });
    Some((loaded.as_ref()?, golden::part(&format!("smollm2/{file}"))?))
}

/// The logits after the last of these tokens.
pub(super) fn last_logits(model: &CausalLm, ids: &[u32]) -> Vec<f32> {
    let hidden = model.forward_hidden(&Tokens::from_sequences(&[ids]), None);
    let [tokens, width] = hidden.dims();
    values(&model.logits(hidden.slice([tokens - 1..tokens, 0..width])))
}

/// The ids of the largest logits, largest first.
pub(super) fn top(logits: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
    ids.truncate(count);
    ids
}

/// The logits of these ids.
pub(super) fn at(logits: &[f32], ids: &[u32]) -> Vec<f32> {
    ids.iter().map(|&id| logits[id as usize]).collect()
}

#[derive(Deserialize)]
struct Texts {
    cases: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    decoded_keep_special: String,
    decoded_skip_special: String,
}

#[test]
fn golden_smollm2_token_ids() {
    let Some((Smollm2 { tokenizer, .. }, path)) = load("tokenizer.json") else {
        return;
    };
    let texts: Texts = golden::json(&path);
    assert!(!texts.cases.is_empty());
    for case in texts.cases {
        let text = &case.text;
        // No BOS is added to this model's texts.
        assert_eq!(
            tokenizer.encode_text(text).unwrap().ids,
            case.ids,
            "{text:?}"
        );
        let decode = |skip| tokenizer.decode(&case.ids, skip).unwrap();
        assert_eq!(decode(false), case.decoded_keep_special, "{text:?}");
        assert_eq!(decode(true), case.decoded_skip_special, "{text:?}");
    }
}

/// The part of `reference.json` that needs no quantised weights.
#[derive(Deserialize)]
struct Reference {
    prompts: Vec<Prompt>,
    nll: Nll,
}

#[derive(Deserialize)]
struct Prompt {
    messages: Vec<Turn>,
    rendered: String,
    ids: Vec<u32>,
    top5_ids: Vec<u32>,
    top5_logits: Vec<f32>,
    logsumexp: f64,
    logits_mean: f64,
    logits_l2: f64,
    logits_first16: Vec<f32>,
    greedy40_ids: Vec<u32>,
    greedy40_text: String,
    greedy_stops_at_im_end: Option<usize>,
    hidden_last_position: Vec<Hidden>,
}

#[derive(Deserialize)]
struct Turn {
    role: String,
    content: String,
}

#[derive(Deserialize)]
struct Hidden {
    after: String,
    l2: f64,
    first8: Vec<f32>,
}

#[derive(Deserialize)]
struct Nll {
    ids: Vec<u32>,
    mean_nll: f64,
    perplexity: f64,
    per_token_nll: Vec<f32>,
}

fn prompts(path: &Path) -> Vec<Prompt> {
    let reference: Reference = golden::json(path);
    assert!(
        !reference.prompts.is_empty(),
        "{}: no prompt",
        path.display()
    );
    reference.prompts
}

/// The ids of the first prompt.
pub(super) fn first_prompt() -> Option<Vec<u32>> {
    let path = golden::part("smollm2/reference.json")?;
    Some(prompts(&path).swap_remove(0).ids)
}

#[test]
fn golden_smollm2_chats() {
    let Some((Smollm2 { tokenizer, .. }, path)) = load("reference.json") else {
        return;
    };
    for prompt in prompts(&path) {
        let turn =
            |turn: &Turn| Message::new(Role::from_name(&turn.role).unwrap(), turn.content.as_str());
        let chat = Conversation::new(prompt.messages.iter().map(turn).collect());
        let rendered = tokenizer.template().unwrap().render(&chat, true).unwrap();
        assert_eq!(rendered, prompt.rendered);
        assert_eq!(tokenizer.encode_chat(&chat).unwrap(), prompt.ids);
    }
}

#[test]
fn golden_smollm2_logits() {
    let Some((Smollm2 { model, .. }, path)) = load("reference.json") else {
        return;
    };
    for (i, prompt) in prompts(&path).iter().enumerate() {
        let what = |value| format!("prompt {i}, {value}");
        let logits = last_logits(model, &prompt.ids);
        assert_eq!(
            top(&logits, prompt.top5_ids.len()),
            prompt.top5_ids,
            "prompt {i}"
        );
        let top = at(&logits, &prompt.top5_ids);
        SMOLLM2_LOGITS.check(what("top"), &top, &prompt.top5_logits);
        let first = &logits[..prompt.logits_first16.len()];
        SMOLLM2_LOGITS.check(what("first"), first, &prompt.logits_first16);

        let wide = || logits.iter().copied().map(f64::from);
        let largest = wide().fold(f64::NEG_INFINITY, f64::max);
        let exp_sum: f64 = wide().map(|logit| (logit - largest).exp()).sum();
        SMOLLM2_LOGITS.check_one(
            what("log-sum-exp"),
            largest + exp_sum.ln(),
            prompt.logsumexp,
        );
        let mean = wide().sum::<f64>() / logits.len() as f64;
        SMOLLM2_LOGITS.check_one(what("mean"), mean, prompt.logits_mean);
        Tolerance::Relative(1e-5).check_one(what("norm"), norm(&logits), prompt.logits_l2);
    }
}

#[test]
fn golden_smollm2_hidden_states() {
    let Some((Smollm2 { model, .. }, path)) = load("reference.json") else {
        return;
    };
    for (i, prompt) in prompts(&path).iter().enumerate() {
        let mut states = model.hidden_states(&Tokens::from_sequences(&[&prompt.ids]));
        let last = states.pop().unwrap();
        states.push(model.norm().forward(last));
        assert_eq!(
            states.len(),
            prompt.hidden_last_position.len(),
            "prompt {i}"
        );
        for (state, expected) in states.iter().zip(&prompt.hidden_last_position) {
            let what = format!("prompt {i}, after {}", expected.after);
            let [tokens, width] = state.dims();
            let state = values(&state.clone().slice([tokens - 1..tokens, 0..width]));
            let first = &state[..expected.first8.len()];
            SMOLLM2_LOGITS.check(&what, first, &expected.first8);
            Tolerance::Relative(1e-5).check_one(&what, norm(&state), expected.l2);
        }
    }
}

#[test]
fn golden_smollm2_nll() {
    let Some((Smollm2 { model, .. }, path)) = load("reference.json") else {
        return;
    };
    let Reference { nll: expected, .. } = golden::json(&path);
    let tokens = Tokens::from_sequences(&[&expected.ids]);
    let labels: Vec<i64> = expected.ids.iter().copied().map(i64::from).collect();
    let targets = Targets::from_labels(&tokens.segments, &labels);
    let nll = values(&model.nll(&tokens, &targets));
    SMOLLM2_TOKEN_NLL.check("single tokens", &nll, &expected.per_token_nll);
    let mean = nll.iter().copied().map(f64::from).sum::<f64>() / nll.len() as f64;
    SMOLLM2_MEAN_NLL.check_one("mean", mean, expected.mean_nll);
    Tolerance::Relative(1e-5).check_one("perplexity", mean.exp(), expected.perplexity);
}

/// What `reference.json` says of the model with its projections quantised.
#[derive(Deserialize)]
struct Quantised {
    nll: Nll,
    nll_after_weight_quantisation: BTreeMap<String, QuantisedNll>,
}

#[derive(Deserialize)]
struct QuantisedNll {
    mean_nll: f64,
    perplexity: f64,
    sha256_f32_le_of_dequantised: BTreeMap<String, String>,
}

/// The scheme that a name such as `nf4_b64_double_quant` stands for.
pub(super) fn scheme(name: &str) -> Scheme {
    let format = match name.get(..3) {
        Some("nf4") => FourBitFormat::Nf4,
        Some("fp4") => FourBitFormat::Fp4,
        _ => panic!("no scheme is called {name}"),
    };
    Scheme::FourBit {
        format,
        block_size: if name.contains("b128") { 128 } else { 64 },
        double_quant: name.ends_with("double_quant"),
    }
}

/// The model with its projections quantised, as a loader leaves it.
pub(super) fn quantised(model: &CausalLm, scheme: Scheme) -> CausalLm {
    let mut model = model.clone();
    let device = model.device();
    model.visit_base_mut(|name, tensor| {
        if let (true, BaseTensor::Matrix(weight)) = (name.ends_with("_proj.weight"), tensor) {
            let dense = values(&weight.dequantize());
            *weight = Weight::quantize(&dense, weight.dims(), scheme, &device);
        }
    });
    model
}

#[test]
fn golden_smollm2_quantised_nll() {
    let Some((Smollm2 { model, .. }, path)) = load("reference.json") else {
        return;
    };
    let expected: Quantised = golden::json(&path);
    let tokens = Tokens::from_sequences(&[&expected.nll.ids]);
    let labels: Vec<i64> = expected.nll.ids.iter().copied().map(i64::from).collect();
    let targets = Targets::from_labels(&tokens.segments, &labels);
    assert!(!expected.nll_after_weight_quantisation.is_empty());
    for (name, expected) in expected.nll_after_weight_quantisation {
        let scheme = scheme(&name);
        let mut model = quantised(model, scheme);
        let mut compared = 0;
        model.visit_base_mut(|tensor, weight| {
            let module = tensor.trim_end_matches(".weight");
            let hash = expected.sha256_f32_le_of_dequantised.get(module);
            if let (Some(hash), BaseTensor::Matrix(weight)) = (hash, weight) {
                assert_eq!(weight.scheme(), Some(scheme), "{name} {tensor}");
                let actual = sha256(&values(&weight.dequantize()));
                // The mean of the scales, rounded in another order, may be off in its last bit.
                let exact = !name.ends_with("double_quant");
                assert!(!exact || actual == *hash, "{name} {tensor}");
                compared += 1;
            }
        });
        assert_eq!(compared, expected.sha256_f32_le_of_dequantised.len());
        let nll = values(&model.nll(&tokens, &targets));
        let mean = nll.iter().copied().map(f64::from).sum::<f64>() / nll.len() as f64;
        // One nested code on an edge moves the last digits.
        let [allowed_mean, allowed_perplexity] = if name.ends_with("double_quant") {
            [SMOLLM2_QLORA, SMOLLM2_QLORA]
        } else {
            [SMOLLM2_MEAN_NLL, Tolerance::Relative(1e-5)]
        };
        allowed_mean.check_one(&name, mean, expected.mean_nll);
        allowed_perplexity.check_one(&name, mean.exp(), expected.perplexity);
    }
}

#[test]
fn golden_smollm2_greedy() {
    let Some((Smollm2 { model, tokenizer }, path)) = load("reference.json") else {
        return;
    };
    let prompts = prompts(&path);
    let ids: Vec<_> = prompts.iter().map(|prompt| &prompt.ids).collect();
    let longest = prompts.iter().map(|prompt| prompt.greedy40_ids.len()).max();
    let config = GenerateConfig {
        max_new_tokens: longest.unwrap(),
        ..GenerateConfig::default()
    };
    let outputs = model.generate(&ids, &config, |_, _| true);
    for (i, (output, prompt)) in outputs.iter().zip(&prompts).enumerate() {
        assert_eq!(output, &prompt.greedy40_ids, "prompt {i}");
        let text = tokenizer.decode(output, false).unwrap();
        assert_eq!(text, prompt.greedy40_text, "prompt {i}");
    }
    let stopping = GenerateConfig {
        stop_ids: tokenizer.eos_token_ids().to_vec(),
        ..config
    };
    let outputs = model.generate(&ids, &stopping, |_, _| true);
    for (i, (output, prompt)) in outputs.iter().zip(&prompts).enumerate() {
        let stop = prompt.greedy_stops_at_im_end;
        let length = stop.map_or(prompt.greedy40_ids.len(), |at| at + 1);
        assert_eq!(
            output,
            &prompt.greedy40_ids[..length],
            "prompt {i}, stopping"
        );
    }
}
