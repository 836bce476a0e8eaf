//! A model, with an adapter folded in on the way, as GGUF files.

use backdraft_arch::{Family, Heads, LayerSpec, Mixer, ModelSpec, RopeScaling, TargetSet};
use backdraft_formats::gguf::{
    ExportSource, GgufDecoder, GgufDeltaNets, GgufExport, GgufExportError, GgufFactors,
    GgufFileType, GgufFiles, GgufGemma, GgufRope, WrittenFile,
};
use backdraft_formats::{FormatError, ModelSource, PeftDir};

use crate::merge::{Folded, MergeBase, MergeError, check_adapter, folded, own_head, unties};

/// What an export wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportReport {
    /// The files of each type; several where one was split.
    pub files: Vec<(GgufFileType, Vec<WrittenFile>)>,
    /// Weights that an adapter was added to.
    pub merged: usize,
    /// Those of them that are as they were: the adapter is zero there.
    pub unchanged: usize,
}

/// What a GGUF file says of a model.
///
/// # Errors
/// Something that GGUF files of its architecture cannot say.
pub fn gguf_decoder(spec: &ModelSpec) -> Result<GgufDecoder, FormatError> {
    let feature = |what, actual: String, hint| GgufExportError::Feature { what, actual, hint };
    let [first, ..] = &spec.layers[..] else {
        return Err(feature("the number of layers", "0".to_owned(), "there must be one").into());
    };
    let usual = match spec.family {
        Family::Gemma4 => (spec.layers.iter()).find(|layer| layer.sliding_window.is_some()),
        _ => None,
    };
    let usual = usual.unwrap_or(first);
    let windowless = full_layer(spec, usual);
    let delta_nets = delta_nets(spec)?;
    // Layers may differ in what is said of each.
    let expected = |layer: &LayerSpec| {
        let of_kind = windowless
            .as_ref()
            .filter(|_| layer.sliding_window.is_none());
        LayerSpec {
            heads: layer.heads,
            sliding_window: layer.sliding_window,
            mixer: match delta_nets {
                Some(_) => layer.mixer,
                None => usual.mixer,
            },
            ..of_kind.unwrap_or(usual).clone()
        }
    };
    if let Some(other) = spec.layers.iter().find(|layer| expected(layer) != **layer) {
        let hint = "all layers must be alike";
        return Err(feature("a layer", format!("{other:?}"), hint).into());
    }
    Ok(GgufDecoder {
        model_type: spec.family.model_type().to_owned(),
        context_length: spec.max_position_embeddings,
        embedding_length: spec.hidden_size,
        feed_forward_length: usual.intermediate_size,
        layers: spec.layers.len(),
        heads: usual.num_attention_heads,
        key_value_heads: usual.num_key_value_heads,
        head_dim: usual.head_dim,
        full_heads: windowless.map(|layer| (layer.head_dim, layer.num_key_value_heads)),
        rotary_dim: spec.rope.rotary_dim,
        vocab_size: spec.vocab_size,
        rms_norm_eps: spec.rms_norm_eps,
        rope_theta: spec.rope.theta,
        rope: rope(spec)?,
        sliding_window: spec.layers.iter().find_map(|layer| layer.sliding_window),
        full_layers: full(spec),
        unturned_layers: unturned(spec),
        factors: factors(spec, usual),
        gemma: gemma(spec, usual)?,
        query_scaling: query_scaling(spec)?,
        delta_nets,
    })
}

/// A Gemma 4's layer without a window: as one with a window, but for its heads.
fn full_layer(spec: &ModelSpec, usual: &LayerSpec) -> Option<LayerSpec> {
    let mut layers = spec.layers.iter();
    let full = layers.find(|layer| layer.sliding_window.is_none())?;
    (spec.family == Family::Gemma4).then(|| LayerSpec {
        head_dim: full.head_dim,
        num_key_value_heads: full.num_key_value_heads,
        values: full.values,
        ..usual.clone()
    })
}

/// The layers that are DeltaNets, which must be of one size.
fn delta_nets(spec: &ModelSpec) -> Result<Option<GgufDeltaNets>, GgufExportError> {
    let sizes = |layer: &LayerSpec| match layer.mixer {
        Mixer::DeltaNet(sizes) => Some(sizes),
        Mixer::Attention | Mixer::GatedAttention => None,
    };
    let Some(first) = spec.layers.iter().find_map(sizes) else {
        return Ok(None);
    };
    let biased = (spec.layers.iter()).find(|layer| layer.biases != TargetSet::NONE);
    if let Some(layer) = biased {
        return Err(GgufExportError::Feature {
            what: "the list of projections with a bias",
            actual: format!("{:?}", layer.biases),
            hint: "llama.cpp's Qwen 3.5 has none",
        });
    }
    if let Some(other) = spec.layers.iter().filter_map(sizes).find(|it| *it != first) {
        return Err(GgufExportError::Feature {
            what: "a layer's DeltaNet",
            actual: format!("{other:?}"),
            hint: "all must be alike",
        });
    }
    let layers = spec.layers.iter().enumerate();
    let attending = layers.filter(|(_, layer)| sizes(layer).is_none());
    Ok(Some(GgufDeltaNets {
        sizes: first,
        attending: attending.map(|(index, _)| index).collect(),
    }))
}

/// Layers without a window, where others have one.
fn full(spec: &ModelSpec) -> Vec<usize> {
    let full = |layer: &&LayerSpec| layer.sliding_window.is_none();
    if spec.layers.iter().all(|layer| full(&layer)) {
        return Vec::new();
    }
    let layers = spec.layers.iter().enumerate();
    let layers = layers.filter(|(_, layer)| full(layer));
    layers.map(|(index, _)| index).collect()
}

/// Layers without RoPE.
fn unturned(spec: &ModelSpec) -> Vec<usize> {
    let layers = spec.layers.iter().enumerate();
    let plain = layers.filter(|(_, layer)| layer.heads == Heads::Plain);
    plain.map(|(index, _)| index).collect()
}

/// What a Gemma has of its own.
fn gemma(spec: &ModelSpec, layer: &LayerSpec) -> Result<Option<GgufGemma>, GgufExportError> {
    let attention = match (spec.family, layer.attention_multiplier) {
        (Family::Gemma2 | Family::Gemma3 | Family::Gemma4, Some(attention)) => attention,
        _ => return Ok(None),
    };
    let local = spec.local_rope.as_ref();
    if let Some(scaled) = local.filter(|rope| rope.scaling != RopeScaling::Default) {
        return Err(GgufExportError::Feature {
            what: "the rotary scaling of layers with a window",
            actual: scaled.scaling.name().to_owned(),
            hint: "llama.cpp has none there",
        });
    }
    Ok(Some(GgufGemma {
        attention,
        scores_cap: layer.attention_softcap,
        logits_cap: spec.logits_softcap,
        local_theta: local.map(|rope| rope.theta),
    }))
}

/// The factors of a Granite, whose files say its own.
fn factors(spec: &ModelSpec, layer: &LayerSpec) -> Option<GgufFactors> {
    let granite = spec.family == Family::Granite;
    let attention = layer.attention_multiplier.filter(|_| granite);
    attention.map(|attention| GgufFactors {
        attention,
        embedding: spec.embedding_multiplier,
        residual: layer.residual_multiplier,
        logits: spec.logits_scaling,
    })
}

/// β of a Ministral 3, whose files have the original context of YaRN alone.
fn query_scaling(spec: &ModelSpec) -> Result<Option<f64>, GgufExportError> {
    let Some(scaling) = spec.query_scaling else {
        return Ok(None);
    };
    let original = match spec.rope.scaling {
        RopeScaling::Yarn {
            original_max_position_embeddings: original,
            ..
        } => Some(original),
        _ => None,
    };
    if original != Some(scaling.original_max_position_embeddings) {
        return Err(GgufExportError::Feature {
            what: "the original context of the factor on queries",
            actual: scaling.original_max_position_embeddings.to_string(),
            hint: "llama.cpp takes YaRN's",
        });
    }
    Ok(Some(scaling.beta))
}

/// In layers with a window llama.cpp has Gemma's own base, and in OLMo 3's no scaling.
fn check_local_rope(spec: &ModelSpec) -> Result<(), GgufExportError> {
    let windowed = spec
        .layers
        .iter()
        .any(|layer| layer.sliding_window.is_some());
    let scaled = spec.rope.scaling != RopeScaling::Default;
    let fine = match (spec.family, &spec.local_rope) {
        (Family::Gemma2 | Family::Gemma3 | Family::Gemma4, _) => true,
        (Family::Olmo3, None) => !(windowed && scaled),
        (Family::Olmo3, Some(local)) => {
            local.scaling == RopeScaling::Default && local.theta == spec.rope.theta
        }
        (_, local) => local.is_none(),
    };
    if fine {
        return Ok(());
    }
    let local = spec.local_rope.as_ref().unwrap_or(&spec.rope);
    Err(GgufExportError::Feature {
        what: "the RoPE of layers with a window",
        actual: format!("{}, theta {}", local.scaling.name(), local.theta),
        hint: "llama.cpp turns them by the same base without a scaling",
    })
}

fn rope(spec: &ModelSpec) -> Result<GgufRope, GgufExportError> {
    check_local_rope(spec)?;
    Ok(match &spec.rope.scaling {
        RopeScaling::Default => GgufRope::Default,
        RopeScaling::Linear { factor } => GgufRope::Linear { factor: *factor },
        RopeScaling::Factors(factors) => GgufRope::Factors(factors.clone()),
        RopeScaling::LongRope {
            short_factor,
            long_factor,
            original_max_position_embeddings: original,
            attention_factor,
        } => GgufRope::LongRope {
            short: short_factor.clone(),
            long: long_factor.clone(),
            original: *original,
            attention_factor: *attention_factor,
        },
        &RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => GgufRope::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original,
        },
        &RopeScaling::Proportional { pairs, factor } => match factor == 1.0 {
            true => GgufRope::Proportional { pairs },
            false => {
                return Err(GgufExportError::Feature {
                    what: "the factor of \"proportional\" rotary settings",
                    actual: factor.to_string(),
                    hint: "llama.cpp has none",
                });
            }
        },
        &RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast,
            beta_slow,
            truncate,
            attention_factor,
        } => {
            // llama.cpp derives the one and knows no other way to do the other.
            let usual = match spec.family {
                Family::Ministral3 => 1.0,
                _ => 0.1 * factor.max(1.0).ln() + 1.0,
            };
            if !truncate || (attention_factor - usual).abs() > 1e-6 {
                return Err(GgufExportError::Feature {
                    what: "YaRN's attention factor",
                    actual: format!("{attention_factor} (truncate: {truncate})"),
                    hint: "llama.cpp computes 0.1·ln(factor) + 1, for a Ministral 3 1, and truncates",
                });
            }
            GgufRope::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
            }
        }
    })
}

/// Writes every tensor of an export to the files that were started for it, with W + s·B·A in place of each adapted W. Sums
/// are not rounded to the base's type on the way.
///
/// # Errors
/// An adapter for another base, a file that cannot be read, a value that a type cannot hold, a full disk.
pub fn export(
    source: &ModelSource,
    base: MergeBase<'_>,
    adapter: Option<&PeftDir>,
    (plan, mut files): (&GgufExport, GgufFiles<'_>),
    mut progress: impl FnMut(usize, usize),
) -> Result<ExportReport, MergeError> {
    let mut head = None;
    if let Some(adapter) = adapter {
        check_adapter(source, adapter)?;
        if unties(source, adapter)? {
            head = own_head(source);
        }
    }
    let (mut merged, mut unchanged) = (0, 0);
    let all = plan.tensors().len();
    for (i, tensor) in plan.tensors().iter().enumerate() {
        let values = match &tensor.source {
            ExportSource::Values(values) => values.clone(),
            ExportSource::Tensor(name) => {
                let own = head.as_ref().filter(|head| head.name == *name);
                let Some(info) = source.tensor_info(name).or(own) else {
                    return Err(MergeError::Format(FormatError::TensorMissing {
                        path: source.path().to_owned(),
                        tensor: name.clone(),
                    }));
                };
                let Folded { before, sums, .. } = folded(source, base, adapter, info)?;
                source.release(name);
                merged += usize::from(sums.is_some());
                unchanged += usize::from(sums.as_ref() == Some(&before));
                sums.unwrap_or(before)
            }
        };
        files.write(values)?;
        progress(i + 1, all);
    }
    Ok(ExportReport {
        files: files.finish()?,
        merged,
        unchanged,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(change: serde_json::Value) -> ModelSpec {
        let mut config = json!({
            "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        });
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        ModelSpec::from_hf(&config).unwrap()
    }

    #[test]
    fn what_files_say_of_a_model() {
        let yarn = json!({"rope_type": "yarn", "factor": 4.0});
        let decoder = gguf_decoder(&spec(json!({"rope_scaling": yarn}))).unwrap();
        assert_eq!(
            (decoder.layers, decoder.heads, decoder.head_dim),
            (2, 4, 16)
        );
        let expected = GgufRope::Yarn {
            factor: 4.0,
            original: 64.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
        };
        assert_eq!(decoder.rope, expected);
        let llama3 = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        });
        let decoder = gguf_decoder(&spec(json!({"rope_scaling": llama3}))).unwrap();
        assert!(matches!(
            decoder.rope,
            GgufRope::Llama3 { original: 32.0, .. }
        ));
    }

    #[test]
    fn what_they_cannot_say_is_named() {
        let loud = json!({"rope_type": "yarn", "factor": 4.0, "attention_factor": 2.0});
        let error = gguf_decoder(&spec(json!({"rope_scaling": loud}))).unwrap_err();
        let FormatError::GgufExport { source } = error else {
            panic!("{error}");
        };
        let message = source.to_string();
        assert!(
            message.contains("YaRN's attention factor is 2"),
            "{message}"
        );
        let mut uneven = spec(json!({}));
        uneven.layers[1].intermediate_size = 64;
        assert!(gguf_decoder(&uneven).is_err());
    }

    #[test]
    fn ropes_that_llama_cpp_would_turn_otherwise_are_named() {
        let refused = |change| match gguf_decoder(&spec(change)).unwrap_err() {
            FormatError::GgufExport { source } => source.to_string(),
            other => panic!("{other}"),
        };
        let rope = json!({
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16,
            "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
        });
        let ministral = |rope| json!({"model_type": "ministral3", "rope_parameters": rope});
        let decoder = gguf_decoder(&spec(ministral(rope.clone()))).unwrap();
        assert_eq!(decoder.query_scaling, Some(0.1));
        let mut loud = rope.clone();
        loud["mscale"] = json!(0.5);
        let message = refused(ministral(loud));
        assert!(message.contains("YaRN's attention factor is"), "{message}");
        let mut plain = rope.clone();
        plain["rope_type"] = json!("default");
        let message = refused(ministral(plain));
        assert!(message.contains("the factor on queries is 16"), "{message}");

        let olmo =
            |rope| json!({"model_type": "olmo3", "num_hidden_layers": 4, "rope_parameters": rope});
        let yarn = json!({"rope_type": "yarn", "factor": 4.0});
        gguf_decoder(&spec(olmo(yarn.clone()))).unwrap();
        let everywhere = json!({"full_attention": yarn, "sliding_attention": yarn});
        let message = refused(olmo(everywhere));
        assert!(
            message.contains("the RoPE of layers with a window is yarn"),
            "{message}"
        );
        let other = json!({
            "full_attention": yarn, "sliding_attention": {"rope_type": "default", "rope_theta": 7.0},
        });
        let message = refused(olmo(other));
        assert!(
            message.contains("a window is default, theta 7"),
            "{message}"
        );
    }
}
