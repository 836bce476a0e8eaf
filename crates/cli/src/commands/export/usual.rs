//! What a type usually costs, to compare one's own figure with.

use backdraft_formats::gguf::GgufFileType;

/// Mean KL divergence of the next token from the same model in 16 bits, in an 8B model; `None` where that is within
/// the error of its measurement, and for types without a published figure. Smaller models lose more.
///
/// # Units
/// Nats.
///
/// # Source
/// llama.cpp, `tools/perplexity/README.md`: Llama 3 8B over Wikitext-2, without importance matrices.
pub(super) const fn usual_kl(kind: GgufFileType) -> Option<f64> {
    match kind {
        GgufFileType::Q8_0 => Some(0.0014),
        GgufFileType::Q6_K => Some(0.0055),
        GgufFileType::Q5_K_M => Some(0.011),
        GgufFileType::Q5_K_S => Some(0.017),
        GgufFileType::Q5_1 => Some(0.018),
        GgufFileType::Q5_0 => Some(0.022),
        GgufFileType::Q4_K_M => Some(0.031),
        GgufFileType::Q4_K_S => Some(0.043),
        GgufFileType::Q4_0 | GgufFileType::Q4_1 => Some(0.072),
        GgufFileType::F32 | GgufFileType::F16 | GgufFileType::BF16 => None,
    }
}
