//! Tensor names of a Llama: GGUF's and Hugging Face's.

/// What has to happen to a tensor's rows on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// They stay where they are.
    AsTheyAre,
    /// The rotary pairs of each query head are interleaved, and have to be drawn apart.
    QueryHeads,
    /// The same for key heads.
    KeyHeads,
}

/// The factors by which Llama 3.1 divides its rotary frequencies; no Hugging Face model has them.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// The Hugging Face name of a tensor, and what has to happen to its rows; `None` if a Llama of
/// `layers` layers has no such tensor.
pub(super) fn hugging_face_name(name: &str, layers: u64) -> Option<(String, Rows)> {
    let top = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        ROPE_FREQS => ROPE_FREQS,
        _ => return layer_name(name, layers),
    };
    Some((top.into(), Rows::AsTheyAre))
}

fn layer_name(name: &str, layers: u64) -> Option<(String, Rows)> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let number: u64 = layer.parse().ok().filter(|number| *number < layers)?;
    // "007" and "+7" would give two names to one layer.
    if number.to_string() != layer {
        return None;
    }
    let (module, parameter) = rest.rsplit_once('.')?;
    let (module, rows) = match module {
        "attn_q" => ("self_attn.q_proj", Rows::QueryHeads),
        "attn_k" => ("self_attn.k_proj", Rows::KeyHeads),
        "attn_v" => ("self_attn.v_proj", Rows::AsTheyAre),
        "attn_output" => ("self_attn.o_proj", Rows::AsTheyAre),
        "ffn_gate" => ("mlp.gate_proj", Rows::AsTheyAre),
        "ffn_up" => ("mlp.up_proj", Rows::AsTheyAre),
        "ffn_down" => ("mlp.down_proj", Rows::AsTheyAre),
        "attn_norm" => ("input_layernorm", Rows::AsTheyAre),
        "ffn_norm" => ("post_attention_layernorm", Rows::AsTheyAre),
        _ => return None,
    };
    let has_bias = !module.ends_with("norm");
    match parameter {
        "weight" => {}
        "bias" if has_bias => {}
        _ => return None,
    }
    Some((format!("model.layers.{number}.{module}.{parameter}"), rows))
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
        let map = |name| hugging_face_name(name, 8);
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
    fn rows_are_drawn_apart_within_heads() {
        let rows: Vec<_> = (0..12).map(|row| interleaved_row(row, 6)).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
