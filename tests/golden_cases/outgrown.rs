//! Texts that are continued beyond the original context of LongRoPE.

use backdraft::model::generate::GenerateConfig;
use backdraft::model::{CausalLm, Tokens};

use super::compare::values;
use super::lora_entry::LoraCase;
use super::tiny_case::TinyCase;

/// Every token is the likeliest after a pass over all that stands before it, whatever else is continued with it.
#[track_caller]
fn check(name: &str, model: &CausalLm, prompts: &[&[u32]]) {
    let greedy = GenerateConfig {
        max_new_tokens: 24,
        ..GenerateConfig::default()
    };
    let answers = model.generate(prompts, &greedy, |_, _| true);
    for (prompt, answer) in prompts.iter().zip(answers) {
        let mut ids = prompt.to_vec();
        assert_eq!(answer.len(), 24, "{name}");
        for token in answer {
            let hidden = model.forward_hidden(&Tokens::from_sequences(&[&ids]), None);
            let logits = values(&model.logits(hidden.narrow(0, ids.len() - 1, 1)));
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let chosen = logits[token as usize];
            assert!(best - chosen < 1e-4, "{name}, after {} tokens", ids.len());
            ids.push(token);
        }
    }
}

#[test]
fn golden_tiny_continued_beyond_the_original_context() {
    for case in TinyCase::all() {
        if case.model.spec().rope.scaling.name() != "longrope" {
            continue;
        }
        let rows = case.plain_rows();
        // One that outgrows 32 tokens, one that stays below, one that is above from the start.
        let prompts = [&rows[0][..20], &rows[0][..4], &rows[1][..40]];
        check(&case.name, &case.model, &prompts);
        for LoraCase { name, model, .. } in LoraCase::all(&case) {
            check(&name, &model, &prompts);
        }
    }
}
