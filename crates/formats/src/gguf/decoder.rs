//! What metadata say of a decoder's architecture.

use super::architectures::{
    ATTENTION_SCALE, Architecture, EMBEDDING_SCALE, FULL_INTERVAL, LOGIT_SCALE, RESIDUAL_SCALE,
    SLIDING_WINDOW, SLIDING_WINDOW_PATTERN, UNTURNED_INTERVAL,
};
use super::entry::{Entry, EntryValue};
use super::export_error::GgufExportError;
use super::rope_freqs::Llama3Scaling;

/// A decoder to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufDecoder {
    /// Hugging Face's `model_type`.
    pub model_type: String,
    /// The longest sequence that it was made for, in tokens.
    pub context_length: usize,
    /// Features of the residual stream.
    pub embedding_length: usize,
    /// Features inside the MLP.
    pub feed_forward_length: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key–value heads.
    pub key_value_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary wavelengths.
    pub rope_theta: f64,
    /// How they were changed to reach longer sequences.
    pub rope: GgufRope,
    /// Keys that a query sees; all before it where absent.
    pub sliding_window: Option<usize>,
    /// Layers without the window that others have.
    pub full_layers: Vec<usize>,
    /// Layers whose heads are not turned.
    pub unturned_layers: Vec<usize>,
    /// Granite's factors; without them those of other families, whose files do not say them.
    pub factors: Option<GgufFactors>,
}

/// Factors that a decoder computes with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GgufFactors {
    /// On attention's scores.
    pub attention: f64,
    /// On embeddings.
    pub embedding: f64,
    /// On what a branch adds to the residual stream.
    pub residual: f64,
    /// Logits are divided by it.
    pub logits: f64,
}

/// Changes to the rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufRope {
    /// None.
    Default,
    /// Positions divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1's.
    Llama3 {
        /// Stretch of the context.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before stretching.
        original: f64,
    },
    /// YaRN.
    Yarn {
        /// Stretch of the context.
        factor: f64,
        /// Context length before stretching.
        original: f64,
        /// Dimensions with more rotations are kept.
        beta_fast: f64,
        /// Dimensions with fewer rotations are interpolated.
        beta_slow: f64,
    },
    /// A divisor for each frequency.
    Factors(Vec<f32>),
}

impl GgufDecoder {
    pub(super) fn architecture(&self) -> Result<Architecture, GgufExportError> {
        let known = Architecture::of_model_type(&self.model_type);
        let architecture = known.ok_or_else(|| GgufExportError::Family {
            actual: self.model_type.clone(),
        })?;
        match (self.sliding_window, architecture) {
            (None, _) => {}
            (Some(_), Architecture::Mistral) if self.full_layers.is_empty() => {}
            (Some(_), Architecture::Olmo3) => {
                if self.full_layers != self.every(FULL_INTERVAL) {
                    return Err(GgufExportError::Feature {
                        what: "the list of layers without a window",
                        actual: format!("{:?}", self.full_layers),
                        hint: "llama.cpp has none in every fourth layer of an OLMo 3",
                    });
                }
            }
            (Some(window), _) => {
                return Err(GgufExportError::Feature {
                    what: "the sliding window",
                    actual: window.to_string(),
                    hint: "export it without a window only if no text will be longer",
                });
            }
        }
        let unturned: Vec<usize> = match architecture {
            Architecture::SmolLm3 => self.every(UNTURNED_INTERVAL),
            _ => Vec::new(),
        };
        if self.unturned_layers != unturned {
            return Err(GgufExportError::Feature {
                what: "the list of layers without RoPE",
                actual: format!("{:?}", self.unturned_layers),
                hint: "llama.cpp leaves it out in every fourth layer of a SmolLM 3, and in no other model",
            });
        }
        if architecture.is_strict() && self.heads * self.head_dim != self.embedding_length {
            return Err(GgufExportError::Feature {
                what: "the size of heads",
                actual: self.head_dim.to_string(),
                hint: "llama.cpp takes that of an OLMo for hidden size / heads",
            });
        }
        if self.rope_factors().is_some() && !architecture.rope_factors() {
            return Err(GgufExportError::Feature {
                what: "the rotary scaling",
                actual: "one factor for each frequency".to_owned(),
                hint: "llama, mistral and granite have it",
            });
        }
        Ok(architecture)
    }

    /// The last of so many layers, and of the next so many.
    fn every(&self, interval: usize) -> Vec<usize> {
        (interval - 1..self.layers).step_by(interval).collect()
    }

    /// The keys below the architecture's name.
    pub(super) fn entries(&self, architecture: Architecture) -> Vec<Entry> {
        let name = architecture.name();
        let mut entries = Vec::new();
        let mut count = |key: &str, value: usize| {
            entries.push(Entry::new(format!("{name}.{key}"), value as u32));
        };
        count("vocab_size", self.vocab_size);
        count("context_length", self.context_length);
        count("embedding_length", self.embedding_length);
        count("block_count", self.layers);
        count("feed_forward_length", self.feed_forward_length);
        count("attention.head_count", self.heads);
        count("attention.head_count_kv", self.key_value_heads);
        count("attention.key_length", self.head_dim);
        count("attention.value_length", self.head_dim);
        count("rope.dimension_count", self.head_dim);
        if let Some(window) = self.sliding_window {
            count(SLIDING_WINDOW, window);
        }
        if self.sliding_window.is_some() && architecture == Architecture::Olmo3 {
            let flags = (0..self.layers).map(|layer| !self.full_layers.contains(&layer));
            let key = format!("{name}.{SLIDING_WINDOW_PATTERN}");
            entries.push(Entry::new(key, EntryValue::Bools(flags.collect())));
        }
        let mut number = |key: &str, value: f64| {
            entries.push(Entry::new(format!("{name}.{key}"), value as f32));
        };
        number("attention.layer_norm_rms_epsilon", self.rms_norm_eps);
        number("rope.freq_base", self.rope_theta);
        if let Some(factors) = self.factors {
            number(ATTENTION_SCALE, factors.attention);
            number(EMBEDDING_SCALE, factors.embedding);
            number(RESIDUAL_SCALE, factors.residual);
            number(LOGIT_SCALE, factors.logits);
        }
        let scaling = match &self.rope {
            GgufRope::Default | GgufRope::Llama3 { .. } | GgufRope::Factors(_) => return entries,
            GgufRope::Linear { factor } => {
                number("rope.scaling.factor", *factor);
                "linear"
            }
            GgufRope::Yarn {
                factor,
                original,
                beta_fast,
                beta_slow,
            } => {
                number("rope.scaling.factor", *factor);
                number("rope.scaling.yarn_beta_fast", *beta_fast);
                number("rope.scaling.yarn_beta_slow", *beta_slow);
                let key = format!("{name}.rope.scaling.original_context_length");
                entries.push(Entry::new(key, *original as u32));
                "yarn"
            }
        };
        entries.push(Entry::new(format!("{name}.rope.scaling.type"), scaling));
        entries
    }

    /// The divisor of each rotary frequency, where those are written as a tensor.
    pub(super) fn rope_factors(&self) -> Option<Vec<f32>> {
        match &self.rope {
            GgufRope::Factors(factors) => Some(factors.clone()),
            &GgufRope::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original,
            } => {
                let scaling = Llama3Scaling {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings: original as u64,
                };
                let factors = scaling.factors(self.rope_theta, self.head_dim / 2);
                Some(factors.map(|factor| factor as f32).collect())
            }
            GgufRope::Default | GgufRope::Linear { .. } | GgufRope::Yarn { .. } => None,
        }
    }
}
