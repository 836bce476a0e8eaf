//! The tiny reference checkpoints as GGUF files, written here as llama.cpp's converter would.

use backdraft_testkit::golden;
use serde_json::{Value, json};

use self::converter::{builder, shifted};
use super::super::testing::Builder;
use super::*;
use crate::checkpoint::ModelSource;

mod converter;

/// A Hugging Face directory, and what its file says.
struct Case {
    name: String,
    source: ModelSource,
    _folder: golden::Folder,
    architecture: &'static str,
    builder: Builder,
}

impl Case {
    /// Every tiny checkpoint of a supported architecture.
    fn all() -> Vec<Self> {
        let folders = golden::folders("tiny", "config.json");
        folders.into_iter().filter_map(Self::new).collect()
    }

    /// The first one of a `model_type`.
    fn of(model_type: &str) -> Option<Self> {
        let mut cases = Self::all().into_iter();
        cases.find(|case| case.source.config()["model_type"] == model_type)
    }

    fn new(folder: golden::Folder) -> Option<Self> {
        let source = ModelSource::open(&*folder).unwrap();
        let architecture = match source.config()["model_type"].as_str()? {
            "llama" | "mistral" => "llama",
            "ministral3" => "mistral3",
            "qwen2" => "qwen2",
            "qwen3" => "qwen3",
            "qwen3_5_text" => "qwen35",
            "granite" => "granite",
            "smollm3" => "smollm3",
            "olmo2" => "olmo2",
            "gemma2" => "gemma2",
            "gemma3_text" => "gemma3",
            "gemma4_text" => "gemma4",
            "phi3" => "phi3",
            "glm4" => "glm4",
            _ => return None,
        };
        Some(Self {
            name: folder.name(),
            builder: builder(&source, architecture),
            source,
            _folder: folder,
            architecture,
        })
    }

    fn open(&self) -> GgufModel {
        let (_root, path) = self.builder.write();
        GgufModel::open(path).unwrap_or_else(|e| panic!("{}: {:?}", self.name, e))
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }
}

/// The message of the one error that a file gives.
fn problem(builder: &Builder) -> String {
    let (_root, path) = builder.write();
    match GgufModel::open(path).unwrap_err() {
        FormatError::Gguf { source, .. } => source.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn golden_gguf_tensors_are_those_of_the_directory() {
    for case in Case::all() {
        let model = case.open();
        let mut names: Vec<_> = model.tensor_names().collect();
        let mut expected: Vec<_> = case.source.tensor_names().collect();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected, "{}", case.name);
        for name in names {
            let what = format!("{}, {name}", case.name);
            let (ours, theirs) = (model.info(name), case.source.tensor_info(name));
            assert_eq!(ours.unwrap().shape, theirs.unwrap().shape, "{what}");
            let mut values = case.source.read_f32(name).unwrap();
            if shifted(name, case.source.config()) {
                values.iter_mut().for_each(|w| *w = *w + 1.0 - 1.0);
            }
            if name.ends_with("A_log") {
                values.iter_mut().for_each(|a| *a = a.exp().ln());
            }
            assert!(model.read_f32(name).unwrap() == values, "{what}");
            assert!(
                model.raw(name).unwrap().to_f32().unwrap() == values,
                "{what}"
            );
        }
    }
}

#[test]
fn golden_gguf_config_is_that_of_the_directory() {
    // What a file does not hold, or says otherwise in the same sense.
    let apart = [
        "attention_dropout",
        "dtype",
        "embd_pdrop",
        "resid_pdrop",
        // All full where there is no window.
        "layer_types",
        // llama.cpp knows no list, but every fourth layer.
        "no_rope_layers",
        "initializer_range",
        "max_window_layers",
        "pad_token_id",
        // llama.cpp takes the size of heads.
        "query_pre_attn_scalar",
        "rope_parameters",
        "rope_scaling",
        // As a list of layers.
        "sliding_window_pattern",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        // Of embeddings that a dense Gemma 4 has not.
        "vocab_size_per_layer_input",
    ];
    for case in Case::all() {
        let (model, expected) = (case.open(), case.source.config().as_object().unwrap());
        let config = model.config();
        for (key, expected) in expected {
            let what = format!("{}, {key}: {}", case.name, config[key]);
            match key.as_str() {
                "rope_parameters" | "layer_types" if is_mixed(&case) => {
                    assert_eq!(&config[key], expected, "{what}");
                }
                key if apart.contains(&key) => {}
                // Without a window a Mistral is a Llama.
                "model_type" if expected == "mistral" && config["sliding_window"].is_null() => {
                    assert_eq!(config["model_type"], "llama", "{what}");
                }
                "architectures" => {
                    let class = match config["model_type"].as_str().unwrap() {
                        "llama" => "LlamaForCausalLM",
                        "mistral" => "MistralForCausalLM",
                        "ministral3" => "Ministral3ForCausalLM",
                        "qwen2" => "Qwen2ForCausalLM",
                        "granite" => "GraniteForCausalLM",
                        "smollm3" => "SmolLM3ForCausalLM",
                        "olmo2" => "Olmo2ForCausalLM",
                        "gemma2" => "Gemma2ForCausalLM",
                        "gemma3_text" => "Gemma3ForCausalLM",
                        "gemma4_text" => "Gemma4ForCausalLM",
                        "qwen3_5_text" => "Qwen3_5ForCausalLM",
                        "phi3" => "Phi3ForCausalLM",
                        "glm4" => "Glm4ForCausalLM",
                        _ => "Qwen3ForCausalLM",
                    };
                    assert_eq!(config["architectures"], json!([class]), "{what}");
                }
                "pretraining_tp" | "eos_token_id" if config[key] != *expected => {
                    // The file of this test has one end; a directory may name several.
                    assert!(key != "eos_token_id" || expected.is_array(), "{what}");
                }
                key => assert_eq!(&config[key], expected, "{what}"),
            }
        }
    }
}

/// Whether layers are of two kinds, which a file says of each.
fn is_mixed(case: &Case) -> bool {
    ["qwen35", "gemma4"].contains(&case.architecture)
}

/// What is said of windows, biases and head sizes is what transformers' config classes would say.
#[test]
fn golden_gguf_configs_of_the_families() {
    let config = |model_type| Some(Case::of(model_type)?.open().config().clone());
    if let Some(qwen2) = config("qwen2") {
        assert_eq!(qwen2["use_sliding_window"], false);
        assert_eq!(qwen2["sliding_window"], Value::Null);
        assert_eq!(qwen2.get("attention_bias"), None);
        assert_eq!(qwen2["tie_word_embeddings"], true);
    }
    if let Some(qwen3) = config("qwen3") {
        assert_eq!(qwen3["use_sliding_window"], false);
        assert_eq!(qwen3["attention_bias"], false);
        assert_eq!(qwen3["head_dim"], 32);
        assert_eq!(qwen3["rope_theta"], 1e6);
        assert_eq!(qwen3["rms_norm_eps"], 1e-6);
    }
    let sliding = Case::all().into_iter().find(|case| {
        let config = case.source.config();
        config["model_type"] == "mistral" && config["sliding_window"].is_number()
    });
    if let Some(case) = sliding {
        let model = case.open();
        assert_eq!(model.config()["model_type"], "mistral");
        assert_eq!(model.config()["sliding_window"], 7);
        assert_eq!(model.config().get("attention_bias"), None);
        let biased = case.builder.tensor("blk.0.attn_q.bias", &[64], &[0.0; 64]);
        let message = problem(&biased);
        assert!(message.contains("attn_q.bias does not belong"), "{message}");
    }
}

#[test]
fn golden_gguf_faults_of_the_families() {
    for case in Case::all() {
        let check = |builder: &Builder, expected: &str| {
            let message = problem(builder);
            assert!(message.contains(expected), "{}: {message}", case.name);
        };
        let file = case.builder.clone();
        let (first, last) = match case.architecture {
            "olmo2" => ("post_attention_norm", "post_ffw_norm"),
            "qwen35" => ("attn_norm", "post_attention_norm"),
            _ => ("attn_norm", "ffn_norm"),
        };
        for missing in [
            &format!("blk.1.{last}.weight"),
            "output_norm.weight",
            "token_embd.weight",
        ] {
            let expected = format!("tensor {missing} is missing");
            check(&file.clone().without_tensor(missing), &expected);
        }
        // Its lists of layers and heads of two sizes have a test of their own.
        if case.architecture == "gemma4" {
            continue;
        }
        let more = file.clone().without(&case.key("block_count"));
        let layers = case.source.config()["num_hidden_layers"].as_u64().unwrap();
        let more = more.u32(&case.key("block_count"), layers as u32 + 1);
        let expected = format!("tensor blk.{layers}.{first}.weight is missing");
        check(&more, &expected);
        let sizes = file.clone().without(&case.key("attention.key_length"));
        let sizes = sizes.without(&case.key("attention.value_length"));
        let sizes = sizes.without(&case.key("rope.dimension_count"));
        let odd = sizes
            .u32(&case.key("attention.key_length"), 12)
            .u32(&case.key("attention.value_length"), 12);
        check(&odd, " of 12)");
        let window = file.without(&case.key("attention.sliding_window"));
        let window = window.u32(&case.key("attention.sliding_window"), 9);
        match case.architecture {
            // With one they are Mistral's and OLMo 3's; Gemmas and Phis have one.
            "llama" | "olmo2" | "gemma2" | "gemma3" | "phi3" => {}
            _ => check(
                &window,
                "attention.sliding_window = 9, which is not supported",
            ),
        }
    }
}

#[test]
fn golden_gguf_longrope_of_phi() {
    let cases = Case::all().into_iter();
    for case in cases.filter(|case| case.source.config()["rope_scaling"]["long_factor"].is_array())
    {
        let model = case.open();
        let expected = &case.source.config()["rope_scaling"];
        let found = &model.config()["rope_scaling"];
        assert_eq!(found["rope_type"], "longrope");
        for key in ["short_factor", "long_factor"] {
            assert_eq!(found[key], expected[key]);
        }
        assert_eq!(found.get("attention_factor"), None);
        assert!(
            !model
                .tensor_names()
                .any(|name| name.starts_with("rope_factors"))
        );
        let factor = case
            .builder
            .clone()
            .f32("phi3.rope.scaling.attn_factor", 1.5);
        let (_root, path) = factor.write();
        let model = GgufModel::open(path).unwrap();
        assert_eq!(model.config()["rope_scaling"]["attention_factor"], 1.5);
        let file = case.builder.clone();
        let missing = problem(&file.clone().without_tensor("rope_factors_short.weight"));
        assert!(
            missing.contains("rope_factors_short.weight is missing"),
            "{missing}"
        );
        let odd = file.without("phi3.rope.dimension_count");
        let odd = problem(&odd.u32("phi3.rope.dimension_count", 14));
        assert!(odd.contains("[7]"), "{odd}");
    }
}

#[test]
fn golden_gguf_factors_of_granite() {
    let Some(case) = Case::of("granite") else {
        return;
    };
    let config = |builder: &Builder| {
        let (_root, path) = builder.write();
        GgufModel::open(path).unwrap().config().clone()
    };
    // llama.cpp takes an absent scale, and 0, for none; for the scores that is 1/√16.
    let plain = case.builder.clone().without("granite.attention.scale");
    let plain = plain.without("granite.embedding_scale");
    let plain = plain.without("granite.residual_scale");
    let plain = plain.f32("granite.residual_scale", 0.0);
    let found = config(&plain);
    assert_eq!(found["attention_multiplier"], 0.25);
    assert_eq!(found["embedding_multiplier"], 1.0);
    assert_eq!(found["residual_multiplier"], 1.0);
    let silent = problem(&case.builder.clone().without("granite.logit_scale"));
    assert!(
        silent.contains("granite.logit_scale is missing"),
        "{silent}"
    );
    let unturned = case.builder.clone();
    let unturned = problem(&unturned.bool("granite.rope.scaling.finetuned", false));
    let expected = "granite.rope.scaling.finetuned = false, which is not supported";
    assert!(unturned.contains(expected), "{unturned}");
}

#[test]
fn golden_gguf_windows_of_olmo3() {
    let Some(case) = Case::of("olmo2") else {
        return;
    };
    let key = "olmo2.attention.sliding_window_pattern";
    let sliding = case.builder.clone();
    let sliding = sliding.u32("olmo2.attention.sliding_window", 7);
    let types = |builder: &Builder| {
        let (_root, path) = builder.write();
        let model = GgufModel::open(path).unwrap();
        assert_eq!(model.config()["model_type"], "olmo3");
        assert_eq!(model.config()["sliding_window"], 7);
        let types = model.config()["layer_types"].as_array().unwrap().clone();
        types
            .iter()
            .map(|kind| kind == "full_attention")
            .collect::<Vec<_>>()
    };
    // Every fourth layer is full where nothing is said, and here are two.
    assert_eq!(types(&sliding), [false, false]);
    assert_eq!(types(&sliding.clone().u32(key, 2)), [false, true]);
    let flags = [vec![0], vec![1]];
    assert_eq!(types(&sliding.clone().list(key, 7, &flags)), [true, false]);
    let short = problem(&sliding.clone().list(key, 7, &flags[..1]));
    assert!(short.contains("a flag for each layer"), "{short}");
    // Its norms are of all heads together.
    let name = "blk.0.attn_q_norm.weight";
    let message = problem(&case.builder.clone().reshaped(name, &[16]));
    assert!(
        message.contains("the metadata needs 64 rows (4 heads of 16)"),
        "{message}"
    );
}

#[test]
fn golden_gguf_windows_of_gemma() {
    let types = |builder: &Builder| {
        let (_root, path) = builder.write();
        let config = GgufModel::open(path).unwrap().config().clone();
        let types = config["layer_types"].as_array().unwrap().iter();
        let full: Vec<_> = types.map(|kind| kind == "full_attention").collect();
        (config, full)
    };
    if let Some(case) = Case::of("gemma2") {
        let (config, full) = types(&case.builder);
        assert_eq!(full, [false, true, false]);
        assert_eq!(config["query_pre_attn_scalar"], 16);
        assert_eq!(config.get("hidden_act"), None);
        let silent = case
            .builder
            .clone()
            .without("gemma2.attn_logit_softcapping");
        let silent = silent.without("gemma2.attention.sliding_window");
        let (config, _) = types(&silent.without("gemma2.final_logit_softcapping"));
        // What llama.cpp takes.
        assert_eq!(config["attn_logit_softcapping"], 50.0);
        assert_eq!(config["final_logit_softcapping"], 30.0);
        assert_eq!(config["sliding_window"], 4096);
    }
    if let Some(case) = Case::of("gemma3_text") {
        let (config, full) = types(&case.builder);
        assert_eq!(full, [false, false, true]);
        assert_eq!(config["rope_local_base_freq"], 1e4);
        assert_eq!(config["rope_theta"], 1e6);
        let silent = case.builder.clone().without("gemma3.rope.freq_base_swa");
        let silent = silent.without("gemma3.attention.sliding_window_pattern");
        let (config, full) = types(&silent);
        assert_eq!(
            (config["rope_local_base_freq"].as_f64(), full),
            (Some(1e4), vec![false; 3])
        );
        let (_, full) = types(&silent.without("gemma3.attention.sliding_window"));
        assert_eq!(full, [true; 3]);
        let capped = case
            .builder
            .clone()
            .f32("gemma3.final_logit_softcapping", 30.0);
        let refused = problem(&capped);
        assert!(
            refused.contains("final_logit_softcapping = 30"),
            "{refused}"
        );
    }
}

#[test]
fn golden_gguf_faults_of_qwen2() {
    let Some(case) = Case::of("qwen2") else {
        return;
    };
    let check = |builder: Builder, expected: &str| {
        let message = problem(&builder);
        assert!(message.contains(expected), "{message}");
    };
    let file = || case.builder.clone();
    let bias = "blk.1.attn_v.bias";
    check(file().without_tensor(bias), "blk.1.attn_v.bias is missing");
    check(
        file().reshaped(bias, &[64]),
        "blk.1.attn_v.bias has shape [64], the metadata needs 32 rows (2 heads of 16)",
    );
    for strange in ["blk.0.attn_output.bias", "blk.0.attn_q_norm.weight"] {
        let expected = format!(
            "tensor {strange} does not belong to a model of the architecture \"qwen2\" with 2 layers"
        );
        check(file().tensor(strange, &[64], &[0.0; 64]), &expected);
    }
}

#[test]
fn golden_gguf_faults_of_qwen3() {
    let Some(case) = Case::of("qwen3") else {
        return;
    };
    let check = |builder: Builder, expected: &str| {
        let message = problem(&builder);
        assert!(message.contains(expected), "{message}");
    };
    let file = || case.builder.clone();
    let norm = "blk.0.attn_q_norm.weight";
    check(
        file().without_tensor(norm),
        "blk.0.attn_q_norm.weight is missing",
    );
    // The norm is of one head, not of all of them.
    check(
        file().reshaped(norm, &[128]),
        "blk.0.attn_q_norm.weight has shape [128], the metadata needs 32 rows (1 head of 32)",
    );
    check(
        file().tensor("blk.0.attn_q.bias", &[128], &[0.0; 128]),
        "tensor blk.0.attn_q.bias does not belong",
    );
    // Without its key, the size of a head would be hidden / heads.
    let guessed = file().without("qwen3.attention.key_length");
    check(guessed, "qwen3.attention.value_length = 32");
    let other = file()
        .without("general.architecture")
        .string("general.architecture", "qwen3moe");
    check(
        other,
        "its architecture is \"qwen3moe\"; supported are \"llama\" (Mistral's files too), \"mistral3\", \"qwen2\", \"qwen3\", \"qwen35\", \"granite\", \"smollm3\", \"olmo2\" (OLMo 3's files too), \"gemma2\", \"gemma3\", \"gemma4\", \"phi3\" and \"glm4\"",
    );
}

#[test]
fn golden_gguf_delta_nets_of_qwen35() {
    let Some(case) = Case::of("qwen3_5_text") else {
        return;
    };
    let file = || case.builder.clone();
    let types = |builder: Builder| {
        let (_root, path) = builder.write();
        let model = GgufModel::open(path).unwrap();
        model.config()["layer_types"].clone()
    };
    // Every fourth layer attends where nothing is said, and a list may say it too.
    let expected = &case.source.config()["layer_types"];
    let silent = file().without("qwen35.full_attention_interval");
    assert_eq!(&types(silent.clone()), expected);
    let flags = [vec![1], vec![1], vec![1], vec![0]];
    let listed = "qwen35.attention.recurrent_layers";
    assert_eq!(&types(silent.clone().list(listed, 7, &flags)), expected);
    // A layer behind the last, which predicts the token after the next.
    let further = file()
        .without("qwen35.block_count")
        .u32("qwen35.block_count", 5)
        .u32("qwen35.nextn_predict_layers", 1)
        .tensor("blk.4.attn_norm.weight", &[64], &[0.0; 64])
        .tensor("blk.4.nextn.eh_proj.weight", &[64, 128], &[0.0; 8192]);
    assert_eq!(&types(further), expected);

    let check = |builder: Builder, expected: &str| {
        let message = problem(&builder);
        assert!(message.contains(expected), "{message}");
    };
    check(
        silent.list(listed, 7, &flags[..2]),
        "attention.recurrent_layers should be a flag for each layer",
    );
    check(
        file().without_tensor("blk.1.ssm_a"),
        "blk.1.ssm_a is missing",
    );
    check(
        file().reshaped("blk.1.attn_gate.weight", &[32, 64]),
        "the metadata needs 64 rows (4 heads of 16)",
    );
    check(
        file().reshaped("blk.1.ssm_out.weight", &[64, 32]),
        "the metadata needs 64 columns",
    );
    check(
        file().reshaped("blk.3.attn_q.weight", &[64, 64]),
        "the metadata needs 128 rows (2 heads of 64)",
    );
    let inner = file().without("qwen35.ssm.inner_size");
    check(
        inner.u32("qwen35.ssm.inner_size", 32),
        "qwen35.ssm.inner_size should be ssm.time_step_rank × ssm.state_size, but is 32",
    );
    let heads = file().without("qwen35.ssm.group_count");
    check(
        heads.u32("qwen35.ssm.group_count", 3),
        "should be a multiple of ssm.group_count",
    );
    check(
        file().u32("qwen35.nextn_predict_layers", 4),
        "qwen35.nextn_predict_layers should be fewer layers than there are",
    );
}

#[test]
fn golden_gguf_heads_of_gemma4() {
    let Some(case) = Case::of("gemma4_text") else {
        return;
    };
    let file = || case.builder.clone();
    let check = |builder: Builder, expected: &str| {
        let message = problem(&builder);
        assert!(message.contains(expected), "{message}");
    };
    // E2B and E4B, by what only they have.
    let embedding = "gemma4.embedding_length_per_layer_input";
    let per_layer = file().without(embedding).u32(embedding, 256);
    check(
        per_layer,
        "gemma4.embedding_length_per_layer_input = 256, which is not supported",
    );
    check(
        file().u32("gemma4.expert_count", 128),
        "gemma4.expert_count = 128, which is not supported",
    );
    let counts = "gemma4.attention.head_count_kv";
    check(
        file().without(counts).i32s(counts, &[2, 1, 1, 1]),
        "attention.head_count_kv should be a number of heads for each layer",
    );
    check(
        file().without(counts).i32s(counts, &[2, 1]),
        "but is a list of 2",
    );
    let pattern = "gemma4.attention.sliding_window_pattern";
    let last = [vec![1], vec![0], vec![1], vec![1]];
    check(
        file()
            .without(pattern)
            .list(pattern, 7, &last)
            .without(counts)
            .i32s(counts, &[2, 1, 2, 2]),
        "a window in the last layer",
    );
    let value = "gemma4.attention.value_length_swa";
    check(
        file().without(value).u32(value, 32),
        "gemma4.attention.value_length_swa = 32, which is not supported",
    );
    check(
        file().without_tensor("rope_freqs.weight"),
        "rope_freqs.weight is missing",
    );
    let turned = |factors: &[f32]| {
        let without = file().without_tensor("rope_freqs.weight");
        without.tensor("rope_freqs.weight", &[factors.len() as u64], factors)
    };
    check(turned(&[1.0; 8]), "the metadata needs [16]");
    let mut factors = [1e30; 16];
    factors[..4].fill(1.0);
    factors[8] = 8.0;
    check(turned(&factors), "rope_freqs.weight = 8 behind 4 of 1");
    // One of two layers without a window has values of its own.
    check(
        file().tensor("blk.1.attn_v.weight", &[32, 64], &[0.0; 2048]),
        "beside values of their own, which is not supported",
    );
    check(
        file().without_tensor("blk.2.layer_output_scale.weight"),
        "blk.2.layer_output_scale.weight is missing",
    );
}
