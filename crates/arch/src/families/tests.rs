use serde_json::{Value, json};

use crate::families::Family;
use crate::mixer::{DeltaNetSpec, Mixer};
use crate::ops::{Activation, Heads, NormPlaces, NormScale, ValueHeads};
use crate::rope::{QueryScaling, Reach, RopeConfig, RopeScaling, RotaryPairs};
use crate::spec::{LayerSpec, ModelSpec};
use crate::target::TargetModule as M;

fn spec(change: Value) -> Result<ModelSpec, String> {
    let mut config = json!({
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2,
    });
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelSpec::from_hf(&config).map_err(|error| error.to_string())
}

fn windows(change: Value) -> Vec<Option<usize>> {
    let layers = spec(change).unwrap().layers;
    layers.iter().map(|layer| layer.sliding_window).collect()
}

fn biased(layer: &LayerSpec) -> Vec<M> {
    let all = M::USUAL.into_iter();
    all.filter(|&target| layer.biases.contains(target))
        .collect()
}

#[test]
fn llama_has_biases_where_flags_say_so() {
    let plain = spec(json!({"model_type": "llama"})).unwrap();
    assert_eq!(biased(&plain.layers[0]), []);
    let all = json!({"model_type": "llama", "attention_bias": true, "mlp_bias": true});
    assert_eq!(biased(&spec(all).unwrap().layers[2]), M::USUAL);
}

#[test]
fn mistral_has_a_window_unless_it_is_null() {
    let with = |window| windows(json!({"model_type": "mistral", "sliding_window": window}));
    assert_eq!(with(json!(7)), [Some(7); 3]);
    assert_eq!(with(Value::Null), [None; 3]);
    assert_eq!(windows(json!({"model_type": "mistral"})), [Some(4096); 3]);
    assert_eq!(
        spec(json!({"model_type": "mistral", "attention_bias": true})),
        Err("`attention_bias` is true, which is not supported: expected false".to_owned())
    );
}

#[test]
fn qwen2_has_biases_whatever_flags_say() {
    let spec = spec(json!({"model_type": "qwen2", "attention_bias": false})).unwrap();
    assert_eq!(biased(&spec.layers[0]), [M::QProj, M::KProj, M::VProj]);
}

#[test]
fn windows_of_qwen_are_off_until_they_are_used() {
    let of = |mut change: Value| {
        change["model_type"] = json!("qwen2");
        change["sliding_window"] = json!(7);
        windows(change)
    };
    assert_eq!(of(json!({"max_window_layers": 1})), [None; 3]);
    let used = json!({"use_sliding_window": true, "max_window_layers": 1});
    assert_eq!(of(used), [None, Some(7), Some(7)]);
    let by_type = json!({
        "use_sliding_window": true,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    });
    assert_eq!(of(by_type), [Some(7), None, Some(7)]);
    let short = json!({
        "model_type": "qwen3", "use_sliding_window": true, "sliding_window": 7,
        "layer_types": ["sliding_attention"],
    });
    assert_eq!(
        spec(short),
        Err(
            "`layer_types` should be \"full_attention\" or \"sliding_attention\" for each layer, found \
             [\"sliding_attention\"]"
                .to_owned()
        )
    );
}

#[test]
fn qwen3_norms_heads_of_their_own_size() {
    let spec = spec(json!({"model_type": "qwen3"})).unwrap();
    let layer = &spec.layers[0];
    assert_eq!((layer.head_dim, layer.heads), (128, Heads::NormedTurned));
    assert_eq!(layer.shape(M::QProj), [512, 64]);
    assert_eq!(layer.shape(M::OProj), [64, 512]);
    let names: Vec<_> = layer.tensors(1).map(|tensor| tensor.name).collect();
    assert!(names.contains(&"model.layers.1.self_attn.q_norm.weight".to_owned()));
    assert!(names.contains(&"model.layers.1.self_attn.k_norm.weight".to_owned()));
}

#[test]
fn qwen3_5_attends_in_every_fourth_layer() {
    let hybrid = |mut change: Value| {
        change["model_type"] = json!("qwen3_5_text");
        change["num_hidden_layers"] = json!(5);
        spec(change)
    };
    let absent = hybrid(json!({})).unwrap();
    let sizes = DeltaNetSpec {
        num_key_heads: 16,
        num_value_heads: 32,
        key_head_dim: 128,
        value_head_dim: 128,
        conv_kernel_dim: 4,
    };
    let (delta, attends) = (Mixer::DeltaNet(sizes), Mixer::GatedAttention);
    let mixers =
        |spec: &ModelSpec| -> Vec<Mixer> { spec.layers.iter().map(|layer| layer.mixer).collect() };
    assert_eq!(mixers(&absent), [delta, delta, delta, attends, delta]);
    assert_eq!((absent.rope.head_dim, absent.rope.rotary_dim), (256, 64));
    assert_eq!(absent.norm_scale, NormScale::OnePlusWeight);
    let [first, .., fourth, _] = &absent.layers[..] else {
        unreachable!()
    };
    assert_eq!(first.shape(M::InProjQkv), [8192, 64]);
    assert_eq!(first.shape(M::OutProj), [64, 4096]);
    // A query and its gate for each head.
    assert_eq!(fourth.shape(M::QProj), [2 * 4 * 256, 64]);
    let shapes: Vec<_> = first.tensors(1).map(|it| (it.name, it.shape)).collect();
    let conv = "model.layers.1.linear_attn.conv1d.weight".to_owned();
    assert!(shapes.contains(&(conv, vec![8192, 1, 4])));
    assert!(!shapes.iter().any(|(name, _)| name.contains("self_attn")));
    let types = ["full_attention", "linear_attention", "linear_attention"];
    let told = spec(json!({"model_type": "qwen3_5_text", "layer_types": types})).unwrap();
    assert_eq!(mixers(&told), [attends, delta, delta]);
    let refused = |change, message: &str| {
        let error = hybrid(change).unwrap_err();
        assert!(error.contains(message), "{error}");
    };
    refused(
        json!({"attn_output_gate": false}),
        "`attn_output_gate` is false",
    );
    refused(json!({"sliding_window": 7}), "`sliding_window` is 7");
    refused(json!({"layer_types": types}), "`layer_types` should be");
    refused(
        json!({"linear_num_key_heads": 3}),
        "a multiple of linear_num_key_heads = 3",
    );
}

#[test]
fn granite_multiplies_what_its_keys_say() {
    let plain = spec(json!({"model_type": "granite"})).unwrap();
    assert_eq!(
        (plain.embedding_multiplier, plain.logits_scaling),
        (1.0, 1.0)
    );
    // Not 1/√head_dim: transformers takes the key as it is, and 1 without it.
    assert_eq!(plain.layers[0].attention_multiplier, Some(1.0));
    let all = spec(json!({
        "model_type": "granite", "embedding_multiplier": 12.0, "logits_scaling": 8,
        "attention_multiplier": 0.015625, "residual_multiplier": 0.22, "mlp_bias": true,
    }));
    let all = all.unwrap();
    assert_eq!((all.embedding_multiplier, all.logits_scaling), (12.0, 8.0));
    for layer in &all.layers {
        assert_eq!(layer.attention_multiplier, Some(0.015625));
        assert_eq!(layer.residual_multiplier, 0.22);
        assert_eq!(biased(layer), [M::GateProj, M::UpProj, M::DownProj]);
    }
    let zero = spec(json!({"model_type": "granite", "logits_scaling": 0.0}));
    let expected = "`logits_scaling` should be a finite number above 0, found 0.0";
    assert_eq!(zero, Err(expected.to_owned()));
}

#[test]
fn some_layers_of_smollm3_see_no_positions() {
    let of = |mut change: Value| {
        change["model_type"] = json!("smollm3");
        change["num_hidden_layers"] = json!(8);
        spec(change)
    };
    let unturned = |change: Value| -> Vec<usize> {
        let layers = of(change).unwrap().layers.into_iter().enumerate();
        let plain = layers.filter(|(_, layer)| layer.heads == Heads::Plain);
        plain.map(|(index, _)| index).collect()
    };
    assert_eq!(unturned(json!({})), [3, 7]);
    assert_eq!(unturned(json!({"no_rope_layer_interval": 3})), [2, 5]);
    let listed = json!([1, 0, 1, 1, 1, 1, 0, 1]);
    assert_eq!(unturned(json!({"no_rope_layers": listed})), [1, 6]);
    let short = of(json!({"no_rope_layers": [1, 0]}));
    let expected = "`no_rope_layers` should be a 0 or a 1 for each layer, found [1,0]";
    assert_eq!(short, Err(expected.to_owned()));
    let sliding = of(json!({"use_sliding_window": true, "sliding_window": 9})).unwrap();
    let windows = sliding.layers.iter().map(|layer| layer.sliding_window);
    let (none, some) = (None, Some(9));
    let expected = [none, none, none, some, none, none, none, some];
    assert_eq!(windows.collect::<Vec<_>>(), expected);
    let plain = of(json!({})).unwrap();
    assert!(plain.tie_word_embeddings);
    assert_eq!(plain.rope.theta, 2e6);
}

#[test]
fn olmo_norms_after_attention_and_mlp() {
    let two = spec(json!({"model_type": "olmo2"})).unwrap();
    let layer = &two.layers[0];
    assert_eq!(layer.heads, Heads::NormedTogetherTurned);
    let norms: Vec<_> = layer
        .tensors(1)
        .filter(|tensor| tensor.shape.len() == 1)
        .collect();
    let norms: Vec<_> = norms
        .iter()
        .map(|it| (it.name.as_str(), it.num_values()))
        .collect();
    let expected = [
        ("model.layers.1.post_attention_layernorm.weight", 64),
        ("model.layers.1.post_feedforward_layernorm.weight", 64),
        ("model.layers.1.self_attn.q_norm.weight", 64),
        ("model.layers.1.self_attn.k_norm.weight", 32),
    ];
    assert_eq!(norms, expected);
    assert_eq!(two.rms_norm_eps, 1e-5);
    let of = |mut change: Value| {
        change["model_type"] = json!("olmo3");
        change["num_hidden_layers"] = json!(5);
        change
    };
    let (none, some) = (None, Some(4096));
    assert_eq!(windows(of(json!({}))), [some, some, some, none, some]);
    assert_eq!(windows(of(json!({"sliding_window": null}))), [none; 5]);
    assert_eq!(spec(of(json!({}))).unwrap().rope.theta, 5e5);
    let yarn = json!({"rope_type": "yarn", "factor": 8.0, "rope_theta": 3e5});
    let default = json!({"rope_type": "default", "rope_theta": 3e5});
    let ropes = |change| {
        let spec = spec(of(change)).unwrap();
        let name = |rope: &RopeConfig| (rope.scaling.name(), rope.theta);
        (name(&spec.rope), spec.local_rope.as_ref().map(name))
    };
    // Layers with a window are turned without it, in every spelling.
    let (full, local) = (("yarn", 3e5), Some(("default", 3e5)));
    for change in [
        json!({"rope_scaling": {"rope_type": "yarn", "factor": 8.0}, "rope_theta": 3e5}),
        json!({"rope_parameters": yarn}),
        json!({"rope_parameters": {"full_attention": yarn, "sliding_attention": default}}),
    ] {
        assert_eq!(ropes(change), (full, local));
    }
    let unscaled = json!({"full_attention": default, "sliding_attention": default});
    assert_eq!(
        ropes(json!({"rope_parameters": unscaled})),
        (("default", 3e5), None)
    );
    let without = json!({"rope_parameters": yarn, "sliding_window": null});
    assert_eq!(ropes(without), (full, None));
}

#[test]
fn ministral_has_windows_by_type_and_3_scales_queries() {
    let of = |model_type: &str, mut change: Value| {
        change["model_type"] = json!(model_type);
        change
    };
    let types = json!(["full_attention", "sliding_attention"]);
    for (change, expected) in [
        (json!({}), [Some(4096); 2]),
        (
            json!({"sliding_window": 7, "layer_types": types}),
            [None, Some(7)],
        ),
        (
            json!({"sliding_window": null, "layer_types": types}),
            [None; 2],
        ),
    ] {
        let mut change = of("ministral", change);
        change["num_hidden_layers"] = json!(2);
        assert_eq!(windows(change), expected);
    }
    let three = |change| spec(of("ministral3", change)).unwrap();
    let silent = three(json!({}));
    let scaling = silent.query_scaling.unwrap();
    assert_eq!(
        (silent.rope.scaling.name(), silent.rope.theta),
        ("yarn", 1e6)
    );
    assert_eq!(silent.rope.attention_scaling(), 1.0);
    assert_eq!(scaling.factor(16_383), 1.0);
    assert!(!scaling.reaches(16_384) && scaling.reaches(16_385));
    assert!((scaling.factor(40_000) - (1.0 + 0.1 * 3f64.ln())).abs() < 1e-12);
    let rope = json!({"rope_type": "yarn", "factor": 8.0, "llama_4_scaling_beta": 0.2,
        "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0});
    let said = three(json!({"rope_parameters": rope}));
    let expected = QueryScaling {
        beta: 0.2,
        original_max_position_embeddings: 16.0,
    };
    assert_eq!(said.query_scaling, Some(expected));
    let plain = three(json!({"rope_parameters": {"rope_type": "default"}, "sliding_window": 5}));
    assert_eq!(plain.query_scaling, None);
    assert_eq!(plain.layers[0].sliding_window, Some(5));
    let unsaid = json!({"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}});
    assert_eq!(
        spec(of("ministral3", unsaid)),
        Err("`original_max_position_embeddings` is missing".to_owned())
    );
}

#[test]
fn gemma_2_caps_scores_and_logits() {
    let of = |mut change: Value| {
        change["model_type"] = json!("gemma2");
        spec(change)
    };
    let plain = of(json!({})).unwrap();
    assert_eq!(plain.norm_scale, NormScale::OnePlusWeight);
    assert_eq!(
        (plain.embedding_multiplier, plain.logits_softcap),
        (8.0, Some(30.0))
    );
    assert!(plain.rounds_embedding_multiplier && plain.tie_word_embeddings);
    assert_eq!(plain.local_rope, None);
    for layer in &plain.layers {
        assert_eq!((layer.head_dim, layer.heads), (256, Heads::Turned));
        assert_eq!(layer.norm_places, NormPlaces::Around);
        assert_eq!(layer.activation, Activation::GeluTanh);
        assert_eq!(layer.attention_multiplier, Some(1.0 / 16.0));
        assert_eq!(layer.attention_softcap, Some(50.0));
    }
    let windows_of = |spec: &ModelSpec| -> Vec<_> {
        let layers = spec.layers.iter();
        layers.map(|layer| layer.sliding_window).collect()
    };
    let (none, some) = (None, Some(4096));
    assert_eq!(windows_of(&plain), [some, none, some]);
    let names = plain.layers[0].tensors(1).take(4);
    let names: Vec<_> = names.map(|tensor| tensor.name).collect();
    let expected = [
        "input",
        "post_attention",
        "pre_feedforward",
        "post_feedforward",
    ]
    .map(|name| format!("model.layers.1.{name}_layernorm.weight"));
    assert_eq!(names, expected);
    let uncapped = of(json!({
        "final_logit_softcapping": null, "attn_logit_softcapping": null, "query_pre_attn_scalar": 64,
        "sliding_window": 7, "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    }));
    let uncapped = uncapped.unwrap();
    assert_eq!(uncapped.logits_softcap, None);
    assert_eq!(uncapped.layers[0].attention_softcap, None);
    assert_eq!(uncapped.layers[0].attention_multiplier, Some(0.125));
    assert_eq!(windows_of(&uncapped), [none, Some(7), none]);
    assert_eq!(
        of(json!({"sliding_window": null})),
        Err("`sliding_window` is missing".to_owned())
    );
    assert_eq!(
        of(json!({"hidden_activation": "gelu", "hidden_act": "silu"})),
        Err(
            "`hidden_activation` is \"gelu\", which is not supported: expected \"gelu_pytorch_tanh\""
                .to_owned()
        )
    );
    assert!(of(json!({"hidden_act": "gelu_pytorch_tanh"})).is_ok());
}

/// As dense Gemma 4 models have it: sizes of their own for layers without a window.
fn gemma_4(change: Value) -> Result<ModelSpec, String> {
    let mut config = json!({
        "model_type": "gemma4_text", "num_hidden_layers": 7, "head_dim": 16, "global_head_dim": 32,
        "num_global_key_value_heads": 1, "attention_k_eq_v": true, "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 30.0,
    });
    for (key, value) in change.as_object().unwrap() {
        config[key] = value.clone();
    }
    spec(config)
}

#[test]
fn gemma_4_has_other_heads_where_there_is_no_window() {
    let plain = gemma_4(json!({})).unwrap();
    let (first, full) = (&plain.layers[0], &plain.layers[5]);
    let windows: Vec<_> = plain.layers.iter().map(|it| it.sliding_window).collect();
    // The last has none, whatever the pattern.
    let slides = Some(512);
    assert_eq!(
        windows,
        [slides, slides, slides, slides, slides, None, None]
    );
    let heads = |layer: &LayerSpec| (layer.head_dim, layer.num_key_value_heads, layer.values);
    assert_eq!(heads(first), (16, 2, ValueHeads::Normed));
    assert_eq!(heads(full), (32, 1, ValueHeads::NormedKeys));
    assert_eq!(
        (first.norm_places, first.activation, first.heads),
        (
            NormPlaces::Around,
            Activation::GeluTanh,
            Heads::NormedTurned
        )
    );
    assert_eq!(
        (first.attention_multiplier, first.attention_softcap),
        (Some(1.0), None)
    );
    assert_eq!(plain.norm_scale, NormScale::Weight);
    assert_eq!(
        (plain.embedding_multiplier, plain.logits_softcap),
        (8.0, Some(30.0))
    );
    assert!(plain.rounds_embedding_multiplier && plain.tie_word_embeddings);
    let names: Vec<_> = full.tensors(5).map(|tensor| tensor.name).collect();
    assert!(names.contains(&"model.layers.5.layer_scalar".to_owned()));
    assert!(!names.iter().any(|name| name.contains("v_proj")));
    let modules: Vec<_> = full.modules().collect();
    assert_eq!(modules[..3], [M::QProj, M::KProj, M::OProj]);
    assert_eq!(first.modules().count(), 7);
    assert_eq!(full.shape(M::OProj), [64, 128]);

    // Four of sixteen pairs turn, by the frequencies of whole heads.
    let (rope, local) = (&plain.rope, plain.local_rope.as_ref().unwrap());
    assert_eq!((rope.theta, rope.head_dim, rope.rotary_dim), (1e6, 32, 32));
    assert_eq!((local.theta, local.head_dim), (1e4, 16));
    let frequencies = rope.inv_freq();
    let expected = (1e6f64).powf(-6.0 / 32.0) as f32;
    assert_eq!(frequencies[3], expected);
    assert_eq!(frequencies[4..], [0.0; 12]);

    let own = json!({"attention_k_eq_v": false});
    let own = gemma_4(own).unwrap();
    assert_eq!(heads(&own.layers[6]), (32, 2, ValueHeads::Normed));
    let absent = json!({"global_head_dim": null, "head_dim": null});
    assert_eq!(gemma_4(absent).unwrap().layers[6].head_dim, 512);
}

#[test]
fn gemma_4_is_read_as_transformers_writes_it() {
    let types = ["full_attention", "sliding_attention"];
    let types: Vec<_> = types.into_iter().cycle().take(7).collect();
    let ropes = json!({
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0, "rope_theta": 1e5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    });
    let own = json!({"head_dim": 32, "num_key_value_heads": 1});
    let by_layer = json!({
        "layer_types": types, "rope_parameters": ropes, "global_head_dim": null, "sliding_window": 9,
        "per_layer_config": {"00": own, "02": own, "04": own, "06": own},
    });
    let found = gemma_4(by_layer.clone()).unwrap();
    let by_keys = json!({"layer_types": types, "rope_parameters": ropes, "sliding_window": 9});
    assert_eq!(found, gemma_4(by_keys).unwrap());
    let scaling = RopeScaling::Proportional {
        pairs: 8,
        factor: 2.0,
    };
    assert_eq!((found.rope.theta, &found.rope.scaling), (1e5, &scaling));
    assert_eq!(found.local_rope.unwrap().theta, 2e4);
    let mut uneven = by_layer.clone();
    uneven["per_layer_config"]["02"]["head_dim"] = json!(64);
    let error = gemma_4(uneven).unwrap_err();
    assert!(
        error.contains("differ otherwise than by windows"),
        "{error}"
    );
    let mut other = by_layer.clone();
    other["per_layer_config"]["02"]["intermediate_size"] = json!(64);
    let error = gemma_4(other).unwrap_err();
    assert!(error.contains("`intermediate_size` of layer 02"), "{error}");
    let mut beyond = by_layer.clone();
    beyond["per_layer_config"]["7"] = own.clone();
    let error = gemma_4(beyond).unwrap_err();
    assert!(error.starts_with("`per_layer_config` should be"), "{error}");
    let mut half = by_layer;
    half["rope_parameters"] = json!({"full_attention": {"rope_type": "default"}});
    assert_eq!(
        gemma_4(half),
        Err("`sliding_attention` is missing".to_owned())
    );
    let mut much = json!({"rope_parameters": ropes, "layer_types": types});
    much["rope_parameters"]["full_attention"]["partial_rotary_factor"] = json!(1.5);
    let error = gemma_4(much).unwrap_err();
    assert!(
        error.starts_with("`partial_rotary_factor` should be"),
        "{error}"
    );
}

/// The decoder of a model that reads images and sound calls itself otherwise, and leaves other things out.
#[test]
fn the_decoder_of_a_unified_gemma_4_is_one() {
    let unified = json!({
        "model_type": "gemma4_unified_text", "hidden_size_per_layer_input": null,
        "use_bidirectional_attention": "vision",
    });
    let found = gemma_4(unified).unwrap();
    assert_eq!(found.family, Family::Gemma4);
    assert_eq!(found.layers[0].sliding_window, Some(1024));
    assert_eq!(found.max_position_embeddings, 262_144);
    let sizes = json!({
        "model_type": "gemma4_unified_text", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "attention_k_eq_v": true, "num_global_key_value_heads": 1,
    });
    let whole = json!({"model_type": "gemma4_unified", "text_config": sizes});
    let spec = ModelSpec::from_hf(&whole).unwrap();
    assert_eq!((spec.family, spec.vocab_size), (Family::Gemma4, 262_144));
    let heads: Vec<_> = spec.layers.iter().map(|layer| layer.head_dim).collect();
    assert_eq!(heads, [256, 512]);
}

#[test]
fn what_other_gemma_4_models_have_is_refused_by_name() {
    for (change, expected) in [
        (
            json!({"hidden_size_per_layer_input": 256}),
            "`hidden_size_per_layer_input` is 256, which is not supported: expected 0: embeddings for each layer (E2B, E4B) \
             are not supported, dense models (12B, 31B) are",
        ),
        (
            json!({"hidden_size_per_layer_input": null}),
            "`hidden_size_per_layer_input` is absent, which is 256, which is not supported: expected 0: embeddings for each \
             layer (E2B, E4B) are not supported, dense models (12B, 31B) are",
        ),
        (
            json!({"num_kv_shared_layers": 2}),
            "`num_kv_shared_layers` is 2, which is not supported: expected 0: each layer has keys and values of its own",
        ),
        (
            json!({"enable_moe_block": true}),
            "`enable_moe_block` is true, which is not supported: expected false: experts (26B-A4B) are not supported, dense \
             models (12B, 31B) are",
        ),
        (
            json!({"use_bidirectional_attention": "all"}),
            "`use_bidirectional_attention` is \"all\", which is not supported: expected null or \"vision\"",
        ),
        (
            json!({"hidden_activation": "silu"}),
            "`hidden_activation` is \"silu\", which is not supported: expected \"gelu_pytorch_tanh\"",
        ),
    ] {
        assert_eq!(gemma_4(change), Err(expected.to_owned()));
    }
}

#[test]
fn gemma_3_turns_layers_with_windows_by_their_own_angles() {
    let of = |mut change: Value| {
        change["model_type"] = json!("gemma3_text");
        change["num_hidden_layers"] = json!(7);
        spec(change)
    };
    let plain = of(json!({})).unwrap();
    assert_eq!(plain.layers[0].heads, Heads::NormedTurned);
    assert_eq!((plain.logits_softcap, plain.rope.theta), (None, 1e6));
    let full: Vec<_> = (plain.layers.iter().enumerate())
        .filter(|(_, layer)| layer.sliding_window.is_none())
        .map(|(index, _)| index)
        .collect();
    assert_eq!(full, [5]);
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let old = of(json!({
        "rope_theta": 2e6, "rope_local_base_freq": 2e4, "rope_scaling": linear.clone(),
        "sliding_window_pattern": 3,
    }));
    let old = old.unwrap();
    let local = old.local_rope.clone().unwrap();
    assert_eq!((old.rope.theta, local.theta), (2e6, 2e4));
    assert_eq!(local.scaling, RopeScaling::Default);
    let mut full = linear;
    full["rope_theta"] = json!(2e6);
    let types = ["sliding_attention", "sliding_attention", "full_attention"];
    let types: Vec<_> = types.into_iter().cycle().take(7).collect();
    let new = of(json!({
        "layer_types": types,
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    }));
    assert_eq!(new.unwrap(), old);
    assert_eq!(
        of(json!({"attn_logit_softcapping": 50.0})),
        Err(
            "`attn_logit_softcapping` is 50.0, which is not supported: expected null (scores of a Gemma 3 have no cap)"
                .to_owned()
        )
    );
    assert_eq!(
        of(json!({"use_bidirectional_attention": true})),
        Err(
            "`use_bidirectional_attention` is true, which is not supported: expected false"
                .to_owned()
        )
    );
}

#[test]
fn phi_3_has_q_k_and_v_in_one_matrix() {
    let of = |mut change: Value| {
        change["model_type"] = json!("phi3");
        spec(change)
    };
    let plain = of(json!({})).unwrap();
    let layer = &plain.layers[0];
    let modules: Vec<_> = layer.modules().collect();
    assert_eq!(modules, [M::QkvProj, M::OProj, M::GateUpProj, M::DownProj]);
    assert_eq!(
        plain.targets(),
        [M::OProj, M::DownProj, M::QkvProj, M::GateUpProj]
    );
    assert_eq!(layer.shape(M::QkvProj), [128, 64]);
    let rows = [M::QProj, M::KProj, M::VProj].map(|part| layer.rows_of(part));
    assert_eq!(rows, [0..64, 64..96, 96..128]);
    assert_eq!(
        (layer.rows_of(M::UpProj), layer.rows_of(M::OProj)),
        (128..256, 0..64)
    );
    assert_eq!((layer.sliding_window, plain.rope.rotary_dim), (None, 16));
    assert_eq!(
        (plain.max_position_embeddings, plain.rms_norm_eps),
        (4096, 1e-5)
    );
    let adapters: usize = [128 + 64, 64 + 64, 256 + 64, 64 + 128].iter().sum();
    assert_eq!(layer.adapter_params(2), 2 * adapters);
    assert_eq!(
        of(json!({"sliding_window": 9})).unwrap().layers[2].sliding_window,
        Some(9)
    );
    for (change, expected) in [
        (json!({"attention_bias": true}), "`attention_bias` is true"),
        (json!({"resid_pdrop": 0.1}), "`resid_pdrop` is 0.1"),
        (
            json!({"partial_rotary_factor": 0.7}),
            "`partial_rotary_factor` should be a part of the head",
        ),
        (
            json!({"partial_rotary_factor": 1.5}),
            "`partial_rotary_factor` should be",
        ),
    ] {
        let error = of(change).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn phi_4_mini_turns_a_part_of_each_head_by_longrope() {
    let of = |kind: &str, change: Value| {
        let mut config = json!({
            "model_type": "phi3", "partial_rotary_factor": 0.75, "max_position_embeddings": 512,
            "original_max_position_embeddings": 32,
            "rope_scaling": {"type": kind, "short_factor": [1, 1, 1, 1, 1, 1], "long_factor": [1, 2, 3, 4, 5, 6]},
        });
        for (key, value) in change.as_object().unwrap() {
            config["rope_scaling"][key] = value.clone();
        }
        spec(config)
    };
    let rope = of("longrope", json!({})).unwrap().rope;
    assert_eq!(
        (rope.head_dim, rope.rotary_dim, rope.pairs),
        (16, 12, RotaryPairs::Halves)
    );
    assert!((rope.attention_scaling() - 1.8f64.sqrt()).abs() < 1e-12);
    assert_eq!(
        (rope.reach(32), rope.reach(33)),
        (Reach::Original, Reach::Beyond)
    );
    let [short, long] = [Reach::Original, Reach::Beyond].map(|reach| rope.inv_freq_of(reach));
    for (i, (short, long)) in short.iter().zip(&long).enumerate() {
        assert!((short / long - (i + 1) as f32).abs() < 1e-5);
    }
    for older in ["su", "yarn"] {
        assert_eq!(of(older, json!({})).unwrap().rope, rope);
    }
    let said = of("longrope", json!({"attention_factor": 1.25}))
        .unwrap()
        .rope;
    assert_eq!(said.attention_scaling(), 1.25);
    assert_eq!(
        of("longrope", json!({"short_factor": [1, 1]})),
        Err(
            "`short_factor` = 2 does not fit: expected one factor for each of 6 frequencies"
                .to_owned()
        )
    );
    assert_eq!(
        of("longrope", json!({"long_factor": null})),
        Err("`long_factor` is missing".to_owned())
    );
}

#[test]
fn glm_4_turns_neighbours_in_half_of_each_head() {
    let of = |mut change: Value| {
        change["model_type"] = json!("glm4");
        change["head_dim"] = json!(16);
        spec(change)
    };
    let glm = of(json!({"attention_bias": true})).unwrap();
    let layer = &glm.layers[0];
    assert_eq!(biased(layer), [M::QProj, M::KProj, M::VProj]);
    assert_eq!(
        (glm.rope.rotary_dim, glm.rope.pairs),
        (8, RotaryPairs::Neighbours)
    );
    assert_eq!(layer.norm_places, NormPlaces::Around);
    let names: Vec<_> = layer.tensors(0).map(|tensor| tensor.name).collect();
    for name in [
        "input_layernorm.weight",
        "post_self_attn_layernorm.weight",
        "post_attention_layernorm.weight",
        "post_mlp_layernorm.weight",
        "mlp.gate_up_proj.weight",
        "self_attn.v_proj.bias",
    ] {
        assert!(names.contains(&format!("model.layers.0.{name}")), "{name}");
    }
    assert_eq!(names.len(), 4 + 6 + 3);
    assert_eq!(biased(&of(json!({})).unwrap().layers[0]), []);
    let error = of(json!({"sliding_window": 9})).unwrap_err();
    assert!(error.starts_with("`sliding_window` is 9"), "{error}");
}

#[test]
fn absent_keys_stand_for_what_transformers_takes() {
    let without = |family| {
        let heads = json!({"model_type": family, "num_attention_heads": 32, "hidden_size": 64});
        let mut config = json!({
            "vocab_size": 256, "intermediate_size": 128, "num_hidden_layers": 1,
        });
        for (key, value) in heads.as_object().unwrap() {
            config[key] = value.clone();
        }
        let spec = ModelSpec::from_hf(&config).unwrap();
        let layer = &spec.layers[0];
        (layer.num_key_value_heads, layer.head_dim)
    };
    assert_eq!(without("llama"), (32, 2));
    assert_eq!(without("mistral"), (8, 2));
    assert_eq!(without("qwen2"), (32, 2));
    assert_eq!(without("qwen3"), (32, 128));
    assert_eq!(without("granite"), (32, 2));
    assert_eq!(without("smollm3"), (4, 2));
    assert_eq!(without("gemma2"), (4, 256));
    assert_eq!(without("gemma3_text"), (4, 256));
    assert_eq!(without("phi3"), (32, 2));
    assert_eq!(without("glm4"), (2, 128));
}
