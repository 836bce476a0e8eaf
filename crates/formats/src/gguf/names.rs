//! Tensor names of a decoder: GGUF's and Hugging Face's.

use super::architectures::Architecture;

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
const LAYER: [(&str, &str, Rows); 18] = [
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
    let (module, parameter) = rest.rsplit_once('.')?;
    if !architecture.has_parameter(module, parameter) {
        return None;
    }
    let (_, module, rows) = *LAYER
        .iter()
        .find(|(ours, theirs, _)| *ours == module && architecture.is_same(ours, theirs))?;
    Some((format!("model.layers.{number}.{module}.{parameter}"), rows))
}

/// The tensors without which a model of `layers` layers is none. A head may be the embedding.
pub(super) fn required(layers: u64, architecture: Architecture) -> impl Iterator<Item = String> {
    let layer = move |number| {
        let parameters = architecture.layer_parameters();
        parameters.map(move |(module, parameter)| format!("blk.{number}.{module}.{parameter}"))
    };
    ["token_embd.weight", "output_norm.weight"]
        .map(str::to_owned)
        .into_iter()
        .chain((0..layers).flat_map(layer))
}

/// The row of the file that holds row `row` in Hugging Face's order.
///
/// A head's rows are `(pair, half)` in the file and `(half, pair)` in Hugging Face's, for rotary
/// embeddings that pair element `i` with element `i + head_dim / 2`.
pub(super) fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let pairs = head_dim / 2;
    head * head_dim + within % pairs * 2 + within / pairs
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
            Gemma2, Gemma3, Glm4, Granite, Llama, Mistral, Olmo2, Olmo3, Phi3, Qwen2, Qwen3,
            SmolLm3,
        };
        let every = [
            Llama, Mistral, Qwen2, Qwen3, Granite, SmolLm3, Olmo2, Olmo3, Gemma2, Gemma3, Phi3,
            Glm4,
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
        let normed = [Qwen3, Olmo2, Olmo3, Gemma3];
        assert_eq!(with("blk.0.attn_q_norm.weight"), normed);
        assert_eq!(with("blk.0.attn_k_norm.weight"), normed);
        let after = [Olmo2, Olmo3, Gemma2, Gemma3, Glm4];
        assert_eq!(with("blk.0.post_ffw_norm.weight"), after);
        assert_eq!(with("blk.0.post_attention_norm.weight"), after);
        assert_eq!(with("blk.0.ffn_norm.weight").len(), 10);
        assert_eq!(with("blk.0.attn_q_norm.bias"), []);
        assert_eq!(with(ROPE_FREQS), [Llama, Mistral, Granite]);
        assert_eq!(with(LONG_FACTORS), [Phi3]);
        assert_eq!(with("blk.0.attn_qkv.weight"), [Phi3]);
        assert_eq!(with("blk.0.ffn_gate.weight").len(), 10);
        let up = |it| hugging_face_name("blk.0.ffn_up.weight", 1, it).unwrap().0;
        assert!(up(Phi3).contains("gate_up_proj") && up(Llama).contains("mlp.up_proj"));
        assert_eq!(required(2, Qwen2).count(), 2 + 2 * (9 + 3));
        assert_eq!(required(2, Qwen3).count(), 2 + 2 * (9 + 2));
        let pre = |it| hugging_face_name("blk.0.ffn_norm.weight", 1, it).unwrap().0;
        assert!(pre(Gemma2).contains("pre_feedforward") && pre(Llama).contains("post_attention"));
        for architecture in every {
            for name in required(2, architecture) {
                let (theirs, rows) = hugging_face_name(&name, 2, architecture).unwrap();
                assert_eq!(gguf_name(&theirs, architecture), Some((name, rows)));
            }
        }
    }

    #[test]
    fn rows_are_drawn_apart_within_heads() {
        let rows: Vec<_> = (0..12).map(|row| interleaved_row(row, 6)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
