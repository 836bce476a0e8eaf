use serde_json::json;

use super::*;

fn spec() -> ModelSpec {
    ModelSpec::from_hf(&json!({
        "model_type": "llama", "hidden_act": "silu", "vocab_size": 64, "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "tie_word_embeddings": false,
    }))
    .unwrap()
}

fn list(names: &str) -> ModuleNames {
    ModuleNames::List(names.split(' ').map(str::to_owned).collect())
}

fn targets(target_modules: ModuleNames) -> LoraTargets {
    LoraTargets {
        target_modules,
        exclude_modules: None,
        layers_to_transform: None,
        rank_pattern: ModulePattern::default(),
        alpha_pattern: ModulePattern::default(),
    }
}

fn pattern<T: Copy>(entries: &[(&str, T)]) -> ModulePattern<T> {
    let entries = entries
        .iter()
        .map(|(key, value)| ((*key).to_owned(), *value));
    ModulePattern::new(entries).unwrap()
}

fn resolved(targets: &LoraTargets) -> Result<LoraConfig, String> {
    let config = LoraConfig {
        rank: 4,
        alpha: 8.0,
        ..LoraConfig::default()
    };
    let resolved = targets.resolve(&spec(), config);
    resolved.map_err(|error| error.to_string())
}

/// Layer and projection of every adapted module.
fn adapted(config: &LoraConfig) -> Vec<String> {
    let projections = spec().projections();
    let adapted = projections.filter(|(layer, target)| config.adapts(*layer, *target));
    let name = |(layer, target): (usize, TargetModule)| format!("{layer}.{target}");
    adapted.map(name).collect()
}

#[test]
fn names_of_projections_stay_as_they_are() {
    let config = resolved(&targets(list("up_proj q_proj"))).unwrap();
    assert_eq!(
        config.target_modules,
        [TargetModule::UpProj, TargetModule::QProj]
    );
    assert_eq!((config.modules, config.layers_to_transform), (None, None));
}

#[test]
fn modules_are_chosen_as_by_peft() {
    let text = |text: &str| ModuleNames::of_text(text).unwrap();
    let in_layer = |target: ModuleNames| LoraTargets {
        layers_to_transform: Some(vec![1]),
        ..targets(target)
    };
    let without = |target: ModuleNames, excluded: ModuleNames| LoraTargets {
        exclude_modules: Some(excluded),
        ..targets(target)
    };
    let cases = [
        (
            targets(text(
                r".*layers\.0\..*(k_proj|gate_proj)|.*layers\.1\..*o_proj",
            )),
            "0.k_proj 0.gate_proj 1.o_proj",
        ),
        (
            in_layer(list("q_proj model.layers.2.mlp.up_proj")),
            "1.q_proj 2.up_proj",
        ),
        (targets(list("layers.1.self_attn.v_proj")), "1.v_proj"),
        (
            without(
                list("q_proj v_proj"),
                list("layers.0.self_attn.q_proj v_proj"),
            ),
            "1.q_proj 2.q_proj",
        ),
        (
            without(
                ModuleNames::AllLinear,
                text(r".*\.mlp\..*|.*layers\.[12].*"),
            ),
            "0.q_proj 0.k_proj 0.v_proj 0.o_proj",
        ),
    ];
    for (targets, expected) in cases {
        let config = resolved(&targets).unwrap();
        assert_eq!(adapted(&config).join(" "), expected);
    }
    let all = resolved(&targets(ModuleNames::AllLinear)).unwrap();
    assert_eq!(all.target_modules, TargetModule::USUAL);
    assert_eq!(all.modules, None);
    // In few words where few do.
    let middle = resolved(&in_layer(text(".*q_proj"))).unwrap();
    assert_eq!(middle.layers_to_transform, Some(vec![1]));
    assert_eq!(middle.modules, None);
}

#[test]
fn the_first_pattern_that_matches_gives_rank_and_alpha() {
    let targets = LoraTargets {
        rank_pattern: pattern(&[("q_proj", 2), (r"layers\.1\..*", 7), ("v_proj", 4)]),
        alpha_pattern: pattern(&[("^model.layers.0.self_attn.v_proj", 20.0), ("q_proj", 3.0)]),
        ..targets(list("q_proj v_proj"))
    };
    let config = resolved(&targets).unwrap();
    let of = |layer: usize, target: TargetModule| {
        let path = target.path(layer);
        let rank = config.rank_of(&path);
        (rank, config.scaling_of(&path, rank))
    };
    assert_eq!(of(0, TargetModule::QProj), (2, 1.5));
    assert_eq!(of(1, TargetModule::QProj), (2, 1.5));
    assert_eq!(of(0, TargetModule::VProj), (4, 5.0));
    assert_eq!(of(1, TargetModule::VProj), (7, 8.0 / 7.0));
    assert_eq!(config.rank_pattern.len(), 4, "{:?}", config.rank_pattern);
}

#[test]
fn what_means_nothing_or_too_much_is_refused() {
    let text = |text: &str| targets(ModuleNames::of_text(text).unwrap());
    let cases = [
        (
            targets(list("q_proj self_attn.qproj")),
            "lora.target_modules: `self_attn.qproj` matches none of the model's modules; near it are self_attn.q_proj, ",
        ),
        (
            text("nothing"),
            "lora.target_modules: `nothing` matches none",
        ),
        (
            text(r".*\.layers\.0\..*"),
            "takes `model.layers.0.input_layernorm` too",
        ),
        (text(".*(q_proj|lm_head)"), "takes `lm_head` too"),
        (
            targets(list("q_proj model.embed_tokens")),
            "takes `model.embed_tokens` too",
        ),
        (
            LoraTargets {
                exclude_modules: Some(list("layer.0")),
                ..targets(list("q_proj"))
            },
            "lora.exclude_modules: `layer.0` matches none of the model's modules",
        ),
        (
            LoraTargets {
                rank_pattern: pattern(&[("v_proj", 2)]),
                ..targets(list("q_proj"))
            },
            "lora.rank_pattern: `v_proj` matches none of the adapted modules; near it are ",
        ),
        (
            LoraTargets {
                exclude_modules: Some(list("q_proj")),
                ..targets(list("q_proj"))
            },
            "no projection is adapted",
        ),
        (
            LoraTargets {
                layers_to_transform: Some(vec![3]),
                ..targets(list("q_proj"))
            },
            "layer 3 is to be adapted",
        ),
    ];
    for (targets, expected) in cases {
        let error = resolved(&targets).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
