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
fn tables_of_tokens_are_targets_where_they_are_named() {
    use TokenTable::{Embedding, Head};
    let text = |text: &str| targets(ModuleNames::of_text(text).unwrap());
    let cases = [
        (
            targets(list("q_proj embed_tokens lm_head")),
            &[Embedding, Head][..],
            3,
        ),
        (targets(list("q_proj lm_head")), &[Head], 3),
        (targets(list("lm_head")), &[Head], 0),
        (text(".*(q_proj|lm_head)"), &[Head], 3),
        (text(r"model\.embed_tokens"), &[Embedding], 0),
        (targets(ModuleNames::AllLinear), &[], 21),
        (
            LoraTargets {
                exclude_modules: Some(list("lm_head")),
                ..text(".*(q_proj|lm_head|embed_tokens)")
            },
            &[Embedding],
            3,
        ),
        (
            LoraTargets {
                layers_to_transform: Some(vec![1]),
                ..targets(list("q_proj model.embed_tokens lm_head"))
            },
            &[Embedding, Head],
            1,
        ),
    ];
    for (targets, tables, projections) in cases {
        let config = resolved(&targets).unwrap();
        assert_eq!(config.target_tables, tables, "{targets:?}");
        assert_eq!(adapted(&config).len(), projections, "{targets:?}");
        assert_eq!(config.adapted(&spec()).len(), projections + tables.len());
        // What a file says of it means the same again.
        let again = LoraTargets {
            layers_to_transform: config.layers_to_transform.clone(),
            ..self::targets(ModuleNames::List(config.module_names()))
        };
        assert_eq!(resolved(&again).unwrap(), config);
        let paths = config.adapted(&spec()).into_iter().collect();
        let layers = config.layers_to_transform.clone();
        let of_paths = LoraConfig {
            layers_to_transform: layers,
            ..LoraConfig::default()
        };
        let of_paths = of_paths.with_modules(paths, 3);
        assert_eq!(of_paths.target_tables, config.target_tables);
        assert_eq!(adapted(&of_paths), adapted(&config));
    }
    let ranks = LoraTargets {
        rank_pattern: pattern(&[("lm_head", 2)]),
        alpha_pattern: pattern(&[("embed_tokens", 20.0)]),
        ..targets(list("q_proj embed_tokens lm_head"))
    };
    let config = resolved(&ranks).unwrap();
    assert_eq!(
        (
            config.rank_of("lm_head"),
            config.rank_of("model.embed_tokens")
        ),
        (2, 4)
    );
    assert_eq!(config.scaling_of("model.embed_tokens", 4), 5.0);
}

#[test]
fn what_adapters_of_tables_do_not_have_is_refused() {
    let refused = |change: LoraConfig| {
        let targets = targets(list("q_proj lm_head"));
        targets.resolve(&spec(), change).unwrap_err().to_string()
    };
    let plain = LoraConfig::default;
    let dora = refused(LoraConfig {
        use_dora: true,
        ..plain()
    });
    assert!(
        dora.contains("lm_head, whose adapter cannot have lora.use_dora = true"),
        "{dora}"
    );
    let pissa = refused(LoraConfig {
        start: crate::AdapterStart::Pissa,
        ..plain()
    });
    assert!(pissa.contains("lora.init = \"pissa\""), "{pissa}");
    let twice = refused(LoraConfig {
        modules_to_save: vec!["lm_head".to_owned()],
        ..plain()
    });
    assert!(
        twice.contains("lm_head, which lora.modules_to_save trains too"),
        "{twice}"
    );
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
        (
            text(".*(q_proj|norm)"),
            "takes `model.layers.0.input_layernorm` too",
        ),
        (
            LoraTargets {
                layers_to_transform: Some(vec![1]),
                ..targets(list("q_proj embed_tokens"))
            },
            "`embed_tokens in layers_to_transform` matches none of the model's modules; near it are model.embed_tokens",
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
