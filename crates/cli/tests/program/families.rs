//! Every family through the program: trained, asked, merged, quantised.

use backdraft_arch::Family;
use backdraft_testkit::random_model::RandomModel;
use backdraft_testkit::tiny;

use super::*;

/// What is peculiar about a model is what `inspect` says of it.
fn peculiar(family: Family) -> Vec<(&'static str, Value)> {
    match family {
        Family::Granite => vec![
            ("embedding_multiplier", 12.0.into()),
            ("attention_multiplier", 0.3.into()),
            ("residual_multiplier", 0.22.into()),
            ("logits_scaling", 0.4.into()),
        ],
        Family::Qwen35 => vec![
            ("layers_with_delta_net", 3.into()),
            ("linear_num_value_heads", 4.into()),
        ],
        Family::SmolLm3 => vec![("layers_without_rope", 1.into())],
        Family::Ministral => vec![
            ("sliding_window", 9.into()),
            ("layers_with_window", 2.into()),
        ],
        Family::Ministral3 => vec![("llama_4_scaling_beta", 0.1.into())],
        Family::Gemma2 => vec![
            ("sliding_window", 9.into()),
            ("layers_with_window", 2.into()),
            ("attn_logit_softcapping", 0.5.into()),
            ("final_logit_softcapping", 3.0.into()),
        ],
        Family::Gemma3 => vec![
            ("sliding_window", 9.into()),
            ("layers_with_window", 4.into()),
            ("rope_local_base_freq", 1e4.into()),
        ],
        Family::Gemma4 => vec![
            ("sliding_window", 9.into()),
            ("layers_with_window", 2.into()),
            ("head_dim", 16.into()),
            ("global_head_dim", 32.into()),
            ("num_global_key_value_heads", 1.into()),
            ("layers_without_v_proj", 2.into()),
            ("rotary_dim", 8.into()),
            ("final_logit_softcapping", 3.0.into()),
        ],
        Family::Phi3 => vec![("sliding_window", 9.into()), ("rotary_dim", 12.into())],
        Family::Glm4 => vec![
            ("rotary_dim", 8.into()),
            ("rotary_pairs", "neighbours".into()),
        ],
        Family::Olmo3 | Family::Mistral => vec![("sliding_window", 9.into())],
        _ => Vec::new(),
    }
}

#[test]
fn every_family_is_trained_asked_merged_and_quantised() {
    for family in Family::ALL {
        let directory = tempfile::tempdir().unwrap();
        let d = directory.path();
        let recipe = tiny::project(d, "max_steps = 3\n");
        if family == Family::Phi3 {
            let text = fs::read_to_string(&recipe).unwrap();
            fs::write(&recipe, text.replace("\"q_proj\"", "\"qkv_proj\"")).unwrap();
        }
        fs::remove_dir_all(d.join("model")).unwrap();
        let windowed = matches!(
            family,
            Family::Mistral
                | Family::Ministral
                | Family::Olmo3
                | Family::Gemma2
                | Family::Gemma3
                | Family::Gemma4
                | Family::Phi3
        );
        let shape = RandomModel {
            family,
            window: windowed.then_some(9),
            hidden: 64,
            intermediate: 96,
            layers: 4,
            heads: 4,
            kv_heads: 2,
            vocab: 256,
        };
        shape.write(&d.join("model"));
        let seen = succeeds(d, &["inspect", "model"]);
        assert_eq!(seen["model_type"], family.model_type());
        for (key, value) in peculiar(family) {
            assert_eq!(seen[key], value, "{family:?}, {key}");
        }
        succeeds(d, &["plan", "recipe.toml"]);
        succeeds(d, &["train", "recipe.toml"]);
        let rest = ["--raw", "--max-new-tokens", "3", "w5 w6"];
        succeeds(d, &[&["generate", "--adapter", "out"], &rest[..]].concat());
        let merged = succeeds(d, &["merge", "--adapter", "out", "--out", "merged"]);
        // The adapter is on `q_proj` (a Phi's `qkv_proj`) and `down_proj` of a layer; a DeltaNet has no `q_proj`.
        let adapted = if family == Family::Qwen35 { 1 } else { 2 };
        assert_eq!(merged["merged"], adapted, "{family:?}");
        let quantised = ["quantize", "--model", "merged", "--out", "quantised"];
        succeeds(d, &quantised);
        let seen = succeeds(d, &["inspect", "quantised"]);
        assert_eq!(seen["model_type"], family.model_type());
        succeeds(
            d,
            &[&["generate", "--model", "quantised"], &rest[..]].concat(),
        );
    }
}
