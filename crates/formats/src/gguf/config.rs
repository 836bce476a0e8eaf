//! The metadata of a decoder as a Hugging Face `config.json`.

use backdraft_arch::rope::longrope_attention_factor;
use serde_json::{Map, Value, json};

use super::architectures::{
    ATTENTION_SCALE, Architecture, EMBEDDING_SCALE, LOGIT_SCALE, RESIDUAL_SCALE, TEMPERATURE,
    TEMPERATURE_LENGTH, YARN_LOG,
};
use super::error::GgufError;
use super::file::GgufFile;
use super::keys::{Keys, Sizes};
use super::names::{LONG_FACTORS, SHORT_FACTORS};
use super::value::GgufMetadata;
use super::{gemma4, qwen35};

/// The metadata key of the context length before stretching, below the name, and that of the factor on cosine and sine.
pub(super) const ORIGINAL_CONTEXT: &str = "rope.scaling.original_context_length";
pub(super) const ATTENTION_FACTOR: &str = "rope.scaling.attn_factor";

/// Keys below the architecture's name that are understood here; any other that is set is refused.
const KNOWN: [&str; 23] = [
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    ATTENTION_FACTOR,
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    ORIGINAL_CONTEXT,
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "tensor_data_layout",
    "vocab_size",
];

/// The architecture, if every active feature is one that the model code knows.
pub(super) fn architecture(metadata: GgufMetadata<'_>) -> Result<Architecture, GgufError> {
    let architecture = Architecture::of(metadata)?;
    match metadata.str("general.type")? {
        None | Some("model") => {}
        Some(actual) => {
            return Err(GgufError::Feature {
                key: "general.type".into(),
                actual: actual.into(),
            });
        }
    }
    let keys = Keys {
        metadata,
        architecture,
    };
    let prefix = keys.full("");
    for (key, value) in metadata.iter() {
        let known = key
            .strip_prefix(&prefix)
            .is_none_or(|key| KNOWN.contains(&key) || architecture.has_key(key));
        if !known && !value.is_inactive() {
            return Err(GgufError::Feature {
                key: key.into(),
                actual: value.to_string(),
            });
        }
    }
    // Without it, llama.cpp turns no head of a Granite.
    let turned = (architecture == Architecture::Granite).then_some("rope.scaling.finetuned");
    for key in ["attention.causal"].into_iter().chain(turned) {
        if metadata.bool(&keys.full(key))? == Some(false) {
            return Err(keys.feature(key, false));
        }
    }
    Ok(architecture)
}

/// Head counts and sizes.
pub(super) fn sizes(
    metadata: GgufMetadata<'_>,
    architecture: Architecture,
) -> Result<Sizes, GgufError> {
    let keys = Keys {
        metadata,
        architecture,
    };
    let heads = keys.required("attention.head_count")?;
    if architecture == Architecture::Gemma4 {
        let [local, full] = gemma4::heads(&keys, heads)?;
        return Ok(Sizes {
            layers: keys.required("block_count")?,
            heads: heads as usize,
            key_value_heads: local.1,
            head_dim: local.0,
            rotary_dim: local.0,
            full: Some(full),
            delta: None,
        });
    }
    let hidden = keys.required("embedding_length")?;
    let head_dim = match keys.positive("attention.key_length")? {
        Some(length) => length,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(GgufError::KeyValue {
                key: keys.full("attention.head_count"),
                expected: "a divisor of the embedding length, or a key length beside it",
                actual: heads.to_string(),
            });
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(keys.feature("attention.key_length", head_dim));
    }
    let key = "attention.value_length";
    if let Some(other) = keys.positive(key)?.filter(|other| *other != head_dim) {
        return Err(keys.feature(key, other));
    }
    let key = "rope.dimension_count";
    let rotary_dim = keys.positive(key)?.unwrap_or(head_dim);
    let fits = match architecture.turns_in_part() {
        true => rotary_dim <= head_dim && rotary_dim.is_multiple_of(2),
        false => rotary_dim == head_dim,
    };
    if !fits {
        return Err(keys.feature(key, rotary_dim));
    }
    let key_value_heads = keys.positive("attention.head_count_kv")?.unwrap_or(heads);
    let (further, delta) = match architecture {
        Architecture::Qwen35 => {
            let delta = qwen35::delta_net(&keys)?;
            (qwen35::further_layers(&keys)?, Some(delta))
        }
        _ => (0, None),
    };
    // Checked by `positive` to fit 32 bits.
    Ok(Sizes {
        layers: keys.required("block_count")? - further,
        heads: heads as usize,
        key_value_heads: key_value_heads as usize,
        head_dim: head_dim as usize,
        rotary_dim: rotary_dim as usize,
        full: None,
        delta,
    })
}

/// The `config.json` that transformers would have written.
pub(super) fn config(
    file: &GgufFile,
    sizes: Sizes,
    architecture: Architecture,
) -> Result<Value, GgufError> {
    let keys = Keys {
        metadata: file.metadata(),
        architecture,
    };
    let hidden_size = keys.required("embedding_length")?;
    let mut config = architecture.config(file)?;
    let scaling = rope_scaling(&keys, file, sizes)?;
    let of_family = match architecture {
        Architecture::Gemma4 if !scaling.is_null() => {
            return Err(keys.feature("rope.scaling.factor", scaling));
        }
        Architecture::Gemma4 => gemma4::config(file, &keys, sizes)?,
        Architecture::Qwen35 => qwen35::config(&keys, sizes, scaling.clone())?,
        _ => Map::new(),
    };
    let (act, query) = match architecture {
        Architecture::Gemma4 => (None, None),
        Architecture::Gemma2 | Architecture::Gemma3 => {
            let per_head = hidden_size as usize / sizes.heads;
            let layers = sizes.layers as usize;
            let divisor = architecture.score_divisor(layers, sizes.head_dim, per_head);
            (None, Some(("query_pre_attn_scalar", json!(divisor))))
        }
        _ => (Some(("hidden_act", json!("silu"))), None),
    };
    let common = json!({
        "head_dim": sizes.head_dim,
        "hidden_size": hidden_size,
        "intermediate_size": keys.required("feed_forward_length")?,
        "max_position_embeddings": keys.required("context_length")?,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.key_value_heads,
        "rms_norm_eps": rms_norm_eps(&keys)?,
        "rope_scaling": match (scaling, architecture) {
            // To transformers a Ministral 3 without a word has YaRN.
            (Value::Null, Architecture::Ministral3) => json!({"rope_type": "default"}),
            (scaling, _) => scaling,
        },
        "rope_theta": keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        "tie_word_embeddings": file.tensor("output.weight").is_none(),
        "torch_dtype": "float32",
        "vocab_size": vocab_size(file, &keys, hidden_size)?,
    });
    if let (Value::Object(config), Value::Object(common)) = (&mut config, common) {
        config.extend(common);
        if !of_family.is_empty() {
            // All of it is in `rope_parameters`.
            config.retain(|key, _| !["rope_scaling", "rope_theta"].contains(&key.as_str()));
            config.extend(of_family);
        }
        let of_family = act.into_iter().chain(query);
        config.extend(of_family.map(|(key, value)| (key.to_owned(), value)));
        if architecture == Architecture::Granite {
            config.extend(granite_factors(&keys, sizes)?);
        }
        if architecture.turns_in_part() && architecture != Architecture::Qwen35 {
            let factor = sizes.rotary_dim as f64 / sizes.head_dim as f64;
            config.insert("partial_rotary_factor".into(), json!(factor));
        }
        if architecture == Architecture::Phi3
            && let Some(original) = keys.positive(ORIGINAL_CONTEXT)?
        {
            let key = "original_max_position_embeddings";
            config.insert(key.into(), json!(original));
        }
        config.sort_keys();
        special_tokens(keys.metadata, config)?;
    }
    Ok(config)
}

/// Granite's factors; 0 stands for none, for the scores 1/√head_dim.
fn granite_factors(keys: &Keys<'_>, sizes: Sizes) -> Result<Map<String, Value>, GgufError> {
    let factor = |key| Ok(keys.number(key)?.filter(|factor| *factor != 0.0));
    let logits = factor(LOGIT_SCALE)?.ok_or_else(|| GgufError::KeyMissing {
        key: keys.full(LOGIT_SCALE),
    })?;
    let scores = (sizes.head_dim as f64).sqrt().recip();
    let factors = [
        (
            "attention_multiplier",
            factor(ATTENTION_SCALE)?.unwrap_or(scores),
        ),
        (
            "embedding_multiplier",
            factor(EMBEDDING_SCALE)?.unwrap_or(1.0),
        ),
        (
            "residual_multiplier",
            factor(RESIDUAL_SCALE)?.unwrap_or(1.0),
        ),
        ("logits_scaling", logits),
    ];
    let factors = factors.into_iter();
    Ok(factors
        .map(|(key, factor)| (key.into(), json!(factor)))
        .collect())
}

fn rms_norm_eps(keys: &Keys<'_>) -> Result<f64, GgufError> {
    let key = "attention.layer_norm_rms_epsilon";
    keys.number(key)?.ok_or_else(|| GgufError::KeyMissing {
        key: keys.full(key),
    })
}

/// The rows of the embedding; the metadata need not say.
fn vocab_size(file: &GgufFile, keys: &Keys<'_>, hidden_size: u64) -> Result<u64, GgufError> {
    let name = "token_embd.weight";
    let embedding = file.tensor(name).ok_or_else(|| GgufError::TensorMissing {
        tensor: name.into(),
    })?;
    let claimed = keys.positive("vocab_size")?;
    match embedding.shape[..] {
        [rows, columns]
            if columns as u64 == hidden_size && claimed.is_none_or(|n| n == rows as u64) =>
        {
            Ok(rows as u64)
        }
        _ => Err(GgufError::TensorShape {
            tensor: name.into(),
            expected: match claimed {
                Some(rows) => format!("[{rows}, {hidden_size}]"),
                None => format!("[vocabulary, {hidden_size}]"),
            },
            actual: embedding.shape.clone(),
        }),
    }
}

/// LongRoPE's lists, which are tensors, and its factor on cosine and sine.
fn longrope(keys: &Keys<'_>, file: &GgufFile, sizes: Sizes) -> Result<Option<Value>, GgufError> {
    if ![LONG_FACTORS, SHORT_FACTORS]
        .iter()
        .any(|name| file.tensor(name).is_some())
    {
        return Ok(None);
    }
    let list = |name: &str| {
        let missing = || GgufError::TensorMissing {
            tensor: name.into(),
        };
        let tensor = file.tensor(name).ok_or_else(missing)?;
        let half = sizes.rotary_dim / 2;
        if tensor.elements() != half {
            return Err(GgufError::TensorShape {
                tensor: name.into(),
                expected: format!("[{half}]"),
                actual: tensor.shape.clone(),
            });
        }
        // As they were before they were stored in single precision.
        let exact = |value: &f32| value.to_string().parse().unwrap_or(f64::from(*value));
        Ok(file
            .read_f32(tensor)
            .iter()
            .map(exact)
            .collect::<Vec<f64>>())
    };
    let mut scaling = Map::new();
    scaling.insert("rope_type".into(), json!("longrope"));
    scaling.insert("long_factor".into(), json!(list(LONG_FACTORS)?));
    scaling.insert("short_factor".into(), json!(list(SHORT_FACTORS)?));
    let original = keys.positive(ORIGINAL_CONTEXT)?;
    let context = keys.required("context_length")? as f64;
    let usual = original.map(|original| {
        let original = original as f64;
        longrope_attention_factor(context / original, original) as f32
    });
    let said = keys.number(ATTENTION_FACTOR)?;
    // What transformers computes where nothing is said is not said.
    if let Some(factor) = said.filter(|said| *said != 0.0 && Some(*said as f32) != usual) {
        scaling.insert("attention_factor".into(), json!(factor));
    }
    Ok(Some(Value::Object(scaling)))
}

fn rope_scaling(keys: &Keys<'_>, file: &GgufFile, sizes: Sizes) -> Result<Value, GgufError> {
    if keys.architecture.long_rope_factors()
        && let Some(scaling) = longrope(keys, file, sizes)?
    {
        return Ok(scaling);
    }
    keys.refuse_unless(ATTENTION_FACTOR, |v| v == 1.0 || v == 0.0)?;
    keys.refuse_unless("rope.scaling.yarn_ext_factor", |v| v == 1.0 || v < 0.0)?;
    let old = keys.number("rope.scale_linear")?;
    let factor = keys.number("rope.scaling.factor")?.or(old);
    let factor = factor.filter(|factor| *factor != 0.0);
    let original = keys.positive(ORIGINAL_CONTEXT)?;
    let kind = keys.text("rope.scaling.type")?;
    if keys.architecture == Architecture::Ministral3 && kind != Some("yarn") {
        keys.refuse_unless(TEMPERATURE, |beta| beta == 0.0)?;
    }
    match (kind, factor) {
        // A factor alone means linear scaling.
        (None | Some("linear"), None) => Ok(Value::Null),
        (None | Some("linear"), Some(1.0)) => Ok(Value::Null),
        (None | Some("linear"), Some(factor)) => Ok(json!({
            "rope_type": "linear",
            "factor": factor,
        })),
        (Some("none"), _) => Ok(Value::Null),
        (Some("yarn"), factor) => {
            let mut scaling = Map::new();
            scaling.insert("rope_type".into(), json!("yarn"));
            scaling.insert("factor".into(), json!(factor.unwrap_or(1.0)));
            if let Some(original) = original {
                scaling.insert("original_max_position_embeddings".into(), json!(original));
            }
            for (key, name) in [
                ("rope.scaling.yarn_beta_fast", "beta_fast"),
                ("rope.scaling.yarn_beta_slow", "beta_slow"),
            ] {
                if let Some(value) = keys.number(key)? {
                    scaling.insert(name.into(), json!(value));
                }
            }
            if keys.architecture == Architecture::Ministral3 {
                scaling.extend(ministral_scaling(keys, original)?);
            }
            Ok(Value::Object(scaling))
        }
        (Some(other), _) => Err(keys.feature("rope.scaling.type", format!("{other:?}"))),
    }
}

/// What a Ministral 3 adds to its YaRN, and to its queries.
fn ministral_scaling(
    keys: &Keys<'_>,
    original: Option<u64>,
) -> Result<Map<String, Value>, GgufError> {
    let mut scaling = Map::new();
    if let Some(all_dim) = keys.number(YARN_LOG)?.filter(|all_dim| *all_dim != 0.0) {
        scaling.insert("mscale".into(), json!(1.0));
        scaling.insert("mscale_all_dim".into(), json!(all_dim));
    }
    if let Some(beta) = keys.number(TEMPERATURE)?.filter(|beta| *beta != 0.0) {
        if original.is_none() {
            let key = keys.full("rope.scaling.original_context_length");
            return Err(GgufError::KeyMissing { key });
        }
        scaling.insert("llama_4_scaling_beta".into(), json!(beta));
    }
    let length = keys.positive(TEMPERATURE_LENGTH)?;
    match length.filter(|length| original != Some(*length)) {
        Some(length) => Err(keys.feature(TEMPERATURE_LENGTH, length)),
        None => Ok(scaling),
    }
}

/// Special token ids; the end of a turn also ends generation, so `eos_token_id` may be a list.
fn special_tokens(
    metadata: GgufMetadata<'_>,
    config: &mut Map<String, Value>,
) -> Result<(), GgufError> {
    let id = |name| metadata.unsigned(&format!("tokenizer.ggml.{name}_token_id"));
    if let Some(bos) = id("bos")? {
        config.insert("bos_token_id".into(), json!(bos));
    }
    if let Some(pad) = id("padding")? {
        config.insert("pad_token_id".into(), json!(pad));
    }
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(id(name)?.filter(|id| !ends.contains(id)));
    }
    match ends[..] {
        [] => {}
        [eos] => {
            config.insert("eos_token_id".into(), json!(eos));
        }
        _ => {
            config.insert("eos_token_id".into(), json!(ends));
        }
    }
    Ok(())
}
