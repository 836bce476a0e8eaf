//! A Hugging Face directory as llama.cpp's converter writes it.

use serde_json::Value;

use super::super::super::testing::Builder;
use crate::checkpoint::ModelSource;

pub(super) fn builder(source: &ModelSource, architecture: &str) -> Builder {
    let config = source.config();
    let heads = config["num_attention_heads"].as_u64().unwrap();
    let head_dim = config["head_dim"].as_u64();
    let head_dim = head_dim.unwrap_or_else(|| config["hidden_size"].as_u64().unwrap() / heads);
    let mut builder = Builder::new().string("general.architecture", architecture);
    for (key, name) in [
        ("block_count", "num_hidden_layers"),
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.sliding_window", "sliding_window"),
        ("attention.sliding_window_pattern", "sliding_window_pattern"),
    ] {
        if let Some(value) = config[name].as_u64() {
            builder = builder.u32(&format!("{architecture}.{key}"), value as u32);
        }
    }
    if architecture != "gemma4" {
        let groups = config["num_key_value_heads"].as_u64().unwrap();
        builder = builder.u32(
            &format!("{architecture}.attention.head_count_kv"),
            groups as u32,
        );
    }
    for (key, name) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("rope.freq_base_swa", "rope_local_base_freq"),
    ] {
        if let Some(value) = config[name].as_f64() {
            builder = builder.f32(&format!("{architecture}.{key}"), value as f32);
        }
    }
    builder = match architecture {
        "gemma4" => gemma4_keys(builder, config),
        _ => builder
            .u32(
                &format!("{architecture}.attention.key_length"),
                head_dim as u32,
            )
            .u32(
                &format!("{architecture}.attention.value_length"),
                head_dim as u32,
            ),
    };
    builder = match architecture {
        "mistral3" => ministral_keys(builder, &config["rope_parameters"]),
        "qwen35" => qwen35_keys(builder, config),
        _ => builder,
    };
    let nested = &config["rope_parameters"];
    let theta = config["rope_theta"].as_f64();
    let theta = theta.or(nested["rope_theta"].as_f64());
    let theta = theta.or(nested["full_attention"]["rope_theta"].as_f64());
    let eps = config["rms_norm_eps"].as_f64().unwrap();
    builder = builder
        .f32(
            &format!("{architecture}.rope.freq_base"),
            theta.unwrap() as f32,
        )
        .f32(
            &format!("{architecture}.attention.layer_norm_rms_epsilon"),
            eps as f32,
        )
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    let part = config["partial_rotary_factor"].as_f64();
    if let Some(part) = part.or(nested["partial_rotary_factor"].as_f64()) {
        let turning = head_dim as f64 * part;
        builder = builder.u32(
            &format!("{architecture}.rope.dimension_count"),
            turning as u32,
        );
    }
    if let Some(original) = config["original_max_position_embeddings"].as_u64() {
        let key = format!("{architecture}.rope.scaling.original_context_length");
        builder = builder.u32(&key, original as u32);
    }
    for (name, key) in [("long", "long_factor"), ("short", "short_factor")] {
        if let Some(factors) = config["rope_scaling"][key].as_array() {
            let factors: Vec<f32> = factors.iter().map(|f| f.as_f64().unwrap() as f32).collect();
            let name = format!("rope_factors_{name}.weight");
            builder = builder.tensor(&name, &[factors.len() as u64], &factors);
        }
    }
    for name in source.tensor_names() {
        let shape = &source.tensor_info(name).unwrap().shape;
        let mut values = source.read_f32(name).unwrap();
        let rotary = name.contains("q_proj") || name.contains("k_proj");
        if rotary && ["llama", "mistral3", "granite", "smollm3"].contains(&architecture) {
            values = interleave(&values, shape[0], head_dim as usize);
        }
        if shifted(name, config) {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        if architecture == "qwen35" && name.contains("linear_attn") {
            values = value_heads_in_turn(name, &values, shape, config);
        }
        if name.ends_with("A_log") {
            values.iter_mut().for_each(|value| *value = -value.exp());
        }
        let shape: Vec<u64> = shape.iter().map(|&dim| dim as u64).collect();
        let shape = match name.ends_with("conv1d.weight") {
            true => vec![shape[0], shape[2]],
            false => shape,
        };
        builder = builder.tensor(&gguf_name(name, architecture), &shape, &values);
    }
    builder
}

/// What the converter writes of a Ministral 3's `rope_parameters`.
fn ministral_keys(builder: Builder, rope: &Value) -> Builder {
    let number = |name: &str| rope[name].as_f64().unwrap() as f32;
    let original = rope["original_max_position_embeddings"].as_u64().unwrap();
    builder
        .string("mistral3.rope.scaling.type", "yarn")
        .f32("mistral3.rope.scaling.factor", number("factor"))
        .f32("mistral3.rope.scaling.yarn_beta_fast", number("beta_fast"))
        .f32("mistral3.rope.scaling.yarn_beta_slow", number("beta_slow"))
        .f32(
            "mistral3.rope.scaling.yarn_log_multiplier",
            number("mscale_all_dim"),
        )
        .u32(
            "mistral3.rope.scaling.original_context_length",
            original as u32,
        )
        .f32(
            "mistral3.attention.temperature_scale",
            number("llama_4_scaling_beta"),
        )
}

/// What it writes of a Gemma 4's heads, windows and rotary embeddings.
fn gemma4_keys(builder: Builder, config: &Value) -> Builder {
    let size = |name: &str| config[name].as_u64().unwrap() as u32;
    let types = config["layer_types"].as_array().unwrap();
    let slides: Vec<bool> = types.iter().map(|it| it == "sliding_attention").collect();
    let counts: Vec<i32> = (slides.iter())
        .map(|slides| match slides {
            true => size("num_key_value_heads") as i32,
            false => size("num_global_key_value_heads") as i32,
        })
        .collect();
    let (full, local) = (size("global_head_dim"), size("head_dim"));
    let rope = &config["rope_parameters"];
    let part = rope["full_attention"]["partial_rotary_factor"].as_f64();
    let turned = (part.unwrap() * f64::from(full) / 2.0) as usize;
    let factors: Vec<f32> = (0..full as usize / 2)
        .map(|pair| if pair < turned { 1.0 } else { 1e30 })
        .collect();
    let local_theta = rope["sliding_attention"]["rope_theta"].as_f64().unwrap();
    let flags: Vec<Vec<u8>> = slides.iter().map(|&slides| vec![slides.into()]).collect();
    builder
        .u32("gemma4.attention.key_length", full)
        .u32("gemma4.attention.value_length", full)
        .u32("gemma4.attention.key_length_swa", local)
        .u32("gemma4.attention.value_length_swa", local)
        .u32("gemma4.rope.dimension_count", full)
        .u32("gemma4.rope.dimension_count_swa", local)
        .u32("gemma4.attention.shared_kv_layers", 0)
        .u32("gemma4.embedding_length_per_layer_input", 0)
        .i32s("gemma4.attention.head_count_kv", &counts)
        .list("gemma4.attention.sliding_window_pattern", 7, &flags)
        .f32("gemma4.rope.freq_base_swa", local_theta as f32)
        .tensor("rope_freqs.weight", &[factors.len() as u64], &factors)
}

/// What it writes of a Qwen 3.5's DeltaNets.
fn qwen35_keys(builder: Builder, config: &Value) -> Builder {
    let size = |name: &str| config[name].as_u64().unwrap() as u32;
    let heads = size("linear_num_value_heads");
    builder
        .u32("qwen35.ssm.conv_kernel", size("linear_conv_kernel_dim"))
        .u32("qwen35.ssm.state_size", size("linear_key_head_dim"))
        .u32("qwen35.ssm.group_count", size("linear_num_key_heads"))
        .u32("qwen35.ssm.time_step_rank", heads)
        .u32(
            "qwen35.ssm.inner_size",
            heads * size("linear_value_head_dim"),
        )
        .u32("qwen35.full_attention_interval", 4)
        .i32s("qwen35.rope.dimension_sections", &[2, 1, 1, 0])
}

/// Value heads by their place in their group first: head (group, place) comes to (place, group).
fn value_heads_in_turn(name: &str, values: &[f32], shape: &[usize], config: &Value) -> Vec<f32> {
    let size = |name: &str| config[name].as_u64().unwrap() as usize;
    let (keys, heads) = (size("linear_num_key_heads"), size("linear_num_value_heads"));
    let in_turn = |values: &[f32], width: usize| -> Vec<f32> {
        let head = |place: usize, group: usize| {
            let head = group * (heads / keys) + place;
            &values[head * width..(head + 1) * width]
        };
        let places = (0..heads / keys).flat_map(|place| (0..keys).map(move |key| (place, key)));
        places
            .flat_map(|(place, key)| head(place, key).to_vec())
            .collect()
    };
    let of_head = size("linear_value_head_dim");
    let columns = values.len() / shape[0];
    match name {
        name if name.ends_with("linear_attn.norm.weight") => values.to_vec(),
        name if name.contains("in_proj_qkv") || name.contains("conv1d") => {
            let before = 2 * keys * size("linear_key_head_dim") * columns;
            let behind = in_turn(&values[before..], of_head * columns);
            [&values[..before], &behind].concat()
        }
        name if name.contains("in_proj_z") => in_turn(values, of_head * columns),
        name if name.contains("out_proj") => {
            let rows = values.chunks(columns);
            rows.flat_map(|row| in_turn(row, of_head)).collect()
        }
        // One row, or one number, for each head.
        _ => in_turn(values, columns),
    }
}

/// Whether a file holds one more than the directory: norms that multiply by it.
pub(super) fn shifted(name: &str, config: &Value) -> bool {
    let model_type = config["model_type"].as_str().unwrap_or_default();
    let of_family = match model_type {
        "gemma2" | "gemma3_text" => true,
        "qwen3_5_text" => !name.contains("linear_attn"),
        _ => false,
    };
    of_family && name.ends_with("norm.weight")
}

fn gguf_name(name: &str, architecture: &str) -> String {
    let mut name = name.replace("model.layers.", "blk.");
    let post_attention = match architecture {
        "olmo2" | "gemma2" | "gemma3" | "gemma4" | "qwen35" => "post_attention_norm",
        _ => "ffn_norm",
    };
    if architecture == "glm4" {
        name = name.replace("post_self_attn_layernorm", "post_attention_norm");
    }
    for (from, to) in [
        ("linear_attn.in_proj_qkv", "attn_qkv"),
        ("linear_attn.in_proj_z", "attn_gate"),
        ("linear_attn.in_proj_b", "ssm_beta"),
        ("linear_attn.in_proj_a", "ssm_alpha"),
        ("linear_attn.conv1d", "ssm_conv1d"),
        ("linear_attn.norm", "ssm_norm"),
        ("linear_attn.out_proj", "ssm_out"),
        ("linear_attn.A_log", "ssm_a"),
        ("linear_attn.dt_bias", "ssm_dt.bias"),
        ("layer_scalar", "layer_output_scale.weight"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("post_mlp_layernorm", "post_ffw_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", post_attention),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
    ] {
        name = name.replace(from, to);
    }
    name
}

/// Within each head, row i and row i + d/2 side by side.
fn interleave(values: &[f32], rows: usize, head_dim: usize) -> Vec<f32> {
    let width = values.len() / rows;
    let row = |row: usize| &values[row * width..(row + 1) * width];
    let mut out = Vec::new();
    for head in 0..rows / head_dim {
        for pair in 0..head_dim / 2 {
            out.extend(row(head * head_dim + pair));
            out.extend(row(head * head_dim + pair + head_dim / 2));
        }
    }
    out
}
