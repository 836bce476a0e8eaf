//! Tensor names of a decoder: GGUF's and Hugging Face's.

use backdraft_arch::DeltaNetSpec;

use super::architectures::{Architecture, LayerKind, SCALAR};
use super::order::{Arrangement, Order};

/// What a tensor's rows are, or the elements of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// Nothing that has to do with heads.
    Features,
    /// Those of every query head.
    QueryHeads,
    /// Those of every key head.
    KeyHeads,
    /// Those of every value head.
    ValueHeads,
    /// Those of every query, key and value head, one behind the other.
    AllHeads,
    /// A value for each query of a head, or of all heads that are normed together.
    QueryNorm,
    /// The same for keys.
    KeyNorm,
    /// Those of a DeltaNet's query heads, then of its key heads, then of its value heads.
    DeltaInputs,
    /// Those of a DeltaNet's value heads.
    DeltaValues,
    /// One for each value head.
    DeltaHeads,
    /// A value for each feature of a value head.
    DeltaNorm,
    /// Nothing that has to do with heads; columns are those of a DeltaNet's value heads.
    DeltaColumns,
}

impl Rows {
    /// The order in which a file of an architecture has them, with heads of `head_dim` and a DeltaNet of these sizes;
    /// `None` where it is Hugging Face's.
    pub(super) fn arrangement(
        self,
        architecture: Architecture,
        head_dim: usize,
        delta: Option<DeltaNetSpec>,
    ) -> Option<Arrangement> {
        let tiled = |before: usize, head_dim: usize| Order::of_values(delta?, before, head_dim);
        let values = delta.map_or(0, |sizes| sizes.value_head_dim);
        match self {
            Self::QueryHeads | Self::KeyHeads if architecture.interleaved() => {
                Some(Arrangement::Rows(Order::Pairs { head_dim }))
            }
            Self::DeltaInputs => {
                let before = delta.map_or(0, |sizes| sizes.conv_width() - sizes.value_width());
                tiled(before, values).map(Arrangement::Rows)
            }
            Self::DeltaValues => tiled(0, values).map(Arrangement::Rows),
            Self::DeltaHeads => tiled(0, 1).map(Arrangement::Rows),
            Self::DeltaColumns => tiled(0, values).map(Arrangement::Columns),
            Self::Features
            | Self::QueryHeads
            | Self::KeyHeads
            | Self::ValueHeads
            | Self::AllHeads
            | Self::QueryNorm
            | Self::KeyNorm
            | Self::DeltaNorm => None,
        }
    }
}

/// The factors by which Llama 3.1 divides its rotary frequencies; no Hugging Face model has them.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// The factors by which LongRoPE divides them, in sequences beyond the original context and in others: lists of the config.
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";
pub(super) const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// Tensors outside the layers, by GGUF's and Hugging Face's names.
const TOP: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Modules of a layer, by GGUF's and Hugging Face's names.
const LAYER: [(&str, &str, Rows); 25] = [
    ("attn_q", "self_attn.q_proj", Rows::QueryHeads),
    ("attn_k", "self_attn.k_proj", Rows::KeyHeads),
    ("attn_v", "self_attn.v_proj", Rows::ValueHeads),
    ("attn_qkv", "self_attn.qkv_proj", Rows::AllHeads),
    ("attn_output", "self_attn.o_proj", Rows::Features),
    ("attn_q_norm", "self_attn.q_norm", Rows::QueryNorm),
    ("attn_k_norm", "self_attn.k_norm", Rows::KeyNorm),
    ("ffn_gate", "mlp.gate_proj", Rows::Features),
    ("ffn_up", "mlp.up_proj", Rows::Features),
    // Gate and up, where they are one.
    ("ffn_up", "mlp.gate_up_proj", Rows::Features),
    ("ffn_down", "mlp.down_proj", Rows::Features),
    ("attn_norm", "input_layernorm", Rows::Features),
    // The same name for a norm before the MLP, and for one after attention: see `Architecture::is_same`.
    ("ffn_norm", "post_attention_layernorm", Rows::Features),
    ("ffn_norm", "pre_feedforward_layernorm", Rows::Features),
    (
        "post_attention_norm",
        "post_attention_layernorm",
        Rows::Features,
    ),
    (
        "post_attention_norm",
        "post_self_attn_layernorm",
        Rows::Features,
    ),
    (
        "post_ffw_norm",
        "post_feedforward_layernorm",
        Rows::Features,
    ),
    ("post_ffw_norm", "post_mlp_layernorm", Rows::Features),
    ("attn_qkv", "linear_attn.in_proj_qkv", Rows::DeltaInputs),
    ("attn_gate", "linear_attn.in_proj_z", Rows::DeltaValues),
    ("ssm_beta", "linear_attn.in_proj_b", Rows::DeltaHeads),
    ("ssm_alpha", "linear_attn.in_proj_a", Rows::DeltaHeads),
    ("ssm_conv1d", "linear_attn.conv1d", Rows::DeltaInputs),
    ("ssm_norm", "linear_attn.norm", Rows::DeltaNorm),
    ("ssm_out", "linear_attn.out_proj", Rows::DeltaColumns),
];

/// Tensors of a layer that are no parameter of a module in one of the two.
const BARE: [(&str, &str, Rows); 3] = [
    ("ssm_a", "linear_attn.A_log", Rows::DeltaHeads),
    ("ssm_dt.bias", "linear_attn.dt_bias", Rows::DeltaHeads),
    (SCALAR, "layer_scalar", Rows::Features),
];

/// The Hugging Face name of a tensor, and what its rows are; `None` if a model of `layers` layers has no such tensor in
/// this architecture.
pub(super) fn hugging_face_name(
    name: &str,
    layers: u64,
    architecture: Architecture,
) -> Option<(String, Rows)> {
    if name == ROPE_FREQS && architecture.rope_factors() {
        return Some((ROPE_FREQS.into(), Rows::Features));
    }
    if [LONG_FACTORS, SHORT_FACTORS].contains(&name) && architecture.long_rope_factors() {
        return Some((name.into(), Rows::Features));
    }
    match TOP.iter().find(|(ours, _)| *ours == name) {
        Some((_, theirs)) => Some(((*theirs).into(), Rows::Features)),
        None => layer_name(name, layers, architecture),
    }
}

/// The inverse: GGUF's name of a tensor that Hugging Face has under `name`, and what its rows are.
pub(super) fn gguf_name(name: &str, architecture: Architecture) -> Option<(String, Rows)> {
    if let Some((ours, _)) = TOP.iter().find(|(_, theirs)| *theirs == name) {
        return Some(((*ours).into(), Rows::Features));
    }
    let (number, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let number: u64 = number.parse().ok()?;
    let mut bare = BARE.into_iter();
    if let Some((ours, _, rows)) =
        bare.find(|(ours, theirs, _)| *theirs == rest && architecture.has_bare(ours))
    {
        return Some((format!("blk.{number}.{ours}"), rows));
    }
    let (module, parameter) = rest.rsplit_once('.')?;
    let (ours, _, rows) = *LAYER.iter().find(|(ours, theirs, _)| {
        *theirs == module
            && architecture.is_same(ours, theirs)
            && architecture.has_parameter(ours, parameter)
    })?;
    Some((format!("blk.{number}.{ours}.{parameter}"), rows))
}

fn layer_name(name: &str, layers: u64, architecture: Architecture) -> Option<(String, Rows)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let number: u64 = layer.parse().ok().filter(|number| *number < layers)?;
    // "007" and "+7" would give two names to one layer.
    if number.to_string() != layer {
        return None;
    }
    let mut bare = BARE.into_iter();
    if let Some((_, theirs, rows)) =
        bare.find(|(ours, _, _)| *ours == rest && architecture.has_bare(ours))
    {
        return Some((format!("model.layers.{number}.{theirs}"), rows));
    }
    let (module, parameter) = rest.rsplit_once('.')?;
    if !architecture.has_parameter(module, parameter) {
        return None;
    }
    let (_, module, rows) = *LAYER
        .iter()
        .find(|(ours, theirs, _)| *ours == module && architecture.is_same(ours, theirs))?;
    Some((format!("model.layers.{number}.{module}.{parameter}"), rows))
}

/// The tensors without which a model of these layers is none. A head may be the embedding.
pub(super) fn required(
    layers: &[LayerKind],
    architecture: Architecture,
) -> impl Iterator<Item = String> {
    let layer = move |(number, kind): (usize, &LayerKind)| {
        let tensors = architecture.layer_tensors(*kind).into_iter();
        tensors.map(move |tensor| format!("blk.{number}.{tensor}"))
    };
    ["token_embd.weight", "output_norm.weight"]
        .map(str::to_owned)
        .into_iter()
        .chain(layers.iter().enumerate().flat_map(layer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_layer() {
        let map = |name| hugging_face_name(name, 8, Architecture::Llama);
        assert_eq!(
            map("blk.7.attn_q.weight"),
            Some((
                "model.layers.7.self_attn.q_proj.weight".into(),
                Rows::QueryHeads
            ))
        );
        assert_eq!(
            map("blk.0.ffn_norm.weight").unwrap().0,
            "model.layers.0.post_attention_layernorm.weight"
        );
        for unknown in [
            "blk.8.attn_q.weight",
            "blk.07.attn_q.weight",
            "blk.+7.attn_q.weight",
            "blk.7.attn_q_norm.weight",
            "blk.7.attn_norm.bias",
            "blk.7.ffn_gate_inp.weight",
            "blk.7.attn_q.scale",
            "v.blk.7.attn_q.weight",
            "",
        ] {
            assert_eq!(map(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn what_only_some_architectures_have() {
        use Architecture::{
            Gemma2, Gemma3, Gemma4, Glm4, Granite, Llama, Mistral, Olmo2, Olmo3, Phi3, Qwen2,
            Qwen3, Qwen35, SmolLm3,
        };
        let every = [
            Llama, Mistral, Qwen2, Qwen3, Qwen35, Granite, SmolLm3, Olmo2, Olmo3, Gemma2, Gemma3,
            Gemma4, Phi3, Glm4,
        ];
        let with = |name: &str| {
            let all = every.into_iter();
            all.filter(|it| hugging_face_name(name, 1, *it).is_some())
                .collect::<Vec<_>>()
        };
        let biased = [Llama, Qwen2, Granite, SmolLm3, Glm4];
        assert_eq!(with("blk.0.attn_q.bias"), biased);
        assert_eq!(with("blk.0.attn_v.bias"), biased);
        assert_eq!(with("blk.0.attn_output.bias"), [Llama, Granite, SmolLm3]);
        assert_eq!(with("blk.0.ffn_up.bias"), [Llama, Granite, SmolLm3]);
        let normed = [Qwen3, Qwen35, Olmo2, Olmo3, Gemma3, Gemma4];
        assert_eq!(with("blk.0.attn_q_norm.weight"), normed);
        assert_eq!(with("blk.0.attn_k_norm.weight"), normed);
        let after = [Olmo2, Olmo3, Gemma2, Gemma3, Gemma4, Glm4];
        assert_eq!(with("blk.0.post_ffw_norm.weight"), after);
        let after = [Qwen35, Olmo2, Olmo3, Gemma2, Gemma3, Gemma4, Glm4];
        assert_eq!(with("blk.0.post_attention_norm.weight"), after);
        assert_eq!(with("blk.0.ffn_norm.weight").len(), 11);
        assert_eq!(with("blk.0.attn_q_norm.bias"), []);
        assert_eq!(with(ROPE_FREQS), [Llama, Mistral, Granite, Gemma4]);
        assert_eq!(with("blk.0.ssm_a"), [Qwen35]);
        assert_eq!(with("blk.0.ssm_dt.bias"), [Qwen35]);
        assert_eq!(with("blk.0.layer_output_scale.weight"), [Gemma4]);
        assert_eq!(with(LONG_FACTORS), [Phi3]);
        assert_eq!(with("blk.0.attn_qkv.weight"), [Qwen35, Phi3]);
        assert_eq!(with("blk.0.ffn_gate.weight").len(), 12);
        let up = |it| hugging_face_name("blk.0.ffn_up.weight", 1, it).unwrap().0;
        assert!(up(Phi3).contains("gate_up_proj") && up(Llama).contains("mlp.up_proj"));
        let usual = [LayerKind::Usual; 2];
        assert_eq!(required(&usual, Qwen2).count(), 2 + 2 * (9 + 3));
        assert_eq!(required(&usual, Qwen3).count(), 2 + 2 * (9 + 2));
        let mixed = [LayerKind::Usual, LayerKind::DeltaNet];
        assert_eq!(required(&mixed, Qwen35).count(), 2 + (9 + 2) + 14);
        let mixed = [LayerKind::Usual, LayerKind::ValuesAreKeys];
        assert_eq!(required(&mixed, Gemma4).count(), 2 + (13 + 1) + 13);
        let pre = |it| hugging_face_name("blk.0.ffn_norm.weight", 1, it).unwrap().0;
        assert!(pre(Gemma2).contains("pre_feedforward") && pre(Llama).contains("post_attention"));
        for architecture in every {
            let layers = match architecture {
                Qwen35 => mixed_kinds(LayerKind::DeltaNet),
                Gemma4 => mixed_kinds(LayerKind::ValuesAreKeys),
                _ => usual,
            };
            for name in required(&layers, architecture) {
                let (theirs, rows) = hugging_face_name(&name, 2, architecture).unwrap();
                assert_eq!(gguf_name(&theirs, architecture), Some((name, rows)));
            }
        }
    }

    fn mixed_kinds(other: LayerKind) -> [LayerKind; 2] {
        [LayerKind::Usual, other]
    }
}
