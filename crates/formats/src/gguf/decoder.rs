//! What metadata say of a decoder's architecture.

use backdraft_arch::DeltaNetSpec;

use super::architectures::{
    ATTENTION_INTERVAL, ATTENTION_SCALE, Architecture, CONV_KERNEL, EMBEDDING_SCALE, GROUP_COUNT,
    INNER_SIZE, LOCAL_BASE, LOCAL_KEY_LENGTH, LOCAL_ROTARY, LOCAL_THETA, LOCAL_VALUE_LENGTH,
    LOGIT_SCALE, LOGITS_CAP, PER_LAYER_EMBEDDING, RESIDUAL_SCALE, ROPE_SECTIONS, SCORES_CAP,
    SHARED_LAYERS, SLIDING_WINDOW, SLIDING_WINDOW_PATTERN, STATE_SIZE, TEMPERATURE, TIME_STEP_RANK,
    UNTURNED_INTERVAL, YARN_LOG,
};
use super::config::{ATTENTION_FACTOR, ORIGINAL_CONTEXT};
use super::entry::{Entry, EntryValue};
use super::export_error::GgufExportError;
use super::names::{LONG_FACTORS, ROPE_FREQS, SHORT_FACTORS};
use super::rope_freqs::Llama3Scaling;
use super::{gemma4, qwen35};

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
    /// Key–value heads; of layers with a window, where others have another number.
    pub key_value_heads: usize,
    /// Features of a head; of layers with a window, where others have other ones.
    pub head_dim: usize,
    /// Features of a head and key–value heads of layers without a window, where these are others.
    pub full_heads: Option<(usize, usize)>,
    /// The first features of a head, which turn; of layers without a window, where heads differ.
    pub rotary_dim: usize,
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
    /// What a Gemma has of its own.
    pub gemma: Option<GgufGemma>,
    /// What the logarithm of a query's position is multiplied by: β of a Ministral 3.
    pub query_scaling: Option<f64>,
    /// The layers that are DeltaNets, where some are.
    pub delta_nets: Option<GgufDeltaNets>,
}

/// Layers that are DeltaNets.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufDeltaNets {
    /// Their sizes.
    pub sizes: DeltaNetSpec,
    /// The layers that are none, but attend.
    pub attending: Vec<usize>,
}

/// What a Gemma computes with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GgufGemma {
    /// Factor on attention's scores.
    pub attention: f64,
    /// The cap of scores.
    pub scores_cap: Option<f64>,
    /// The cap of logits.
    pub logits_cap: Option<f64>,
    /// The rotary base of layers with a window, where it is another.
    pub local_theta: Option<f64>,
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
    /// A divisor for each frequency, in sequences within the original context and in longer ones.
    LongRope {
        /// Within it.
        short: Vec<f32>,
        /// Beyond it.
        long: Vec<f32>,
        /// Context length before stretching.
        original: f64,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
    /// The first pairs of a head turn as pairs of the whole head do, the others stand still.
    Proportional {
        /// Pairs that turn.
        pairs: usize,
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
            (Some(_), Architecture::Mistral | Architecture::Phi3)
                if self.full_layers.is_empty() => {}
            (Some(_), Architecture::Gemma4) => {}
            (Some(_), Architecture::Gemma2 | Architecture::Gemma3) => {
                if self.full_interval(architecture).is_none() {
                    return Err(GgufExportError::Feature {
                        what: "the list of layers without a window",
                        actual: format!("{:?}", self.full_layers),
                        hint: "llama.cpp has none in every so many layers of a Gemma",
                    });
                }
            }
            (Some(_), Architecture::Olmo3) => {
                if self.full_layers != self.every(architecture.full_interval()) {
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
        match architecture {
            Architecture::Gemma2 | Architecture::Gemma3 => self.check_gemma(architecture)?,
            Architecture::Gemma4 => self.check_gemma4()?,
            Architecture::Qwen35 => {
                self.attention_interval()?;
            }
            _ => {}
        }
        if architecture.is_strict() && self.heads * self.head_dim != self.embedding_length {
            return Err(GgufExportError::Feature {
                what: "the size of heads",
                actual: self.head_dim.to_string(),
                hint: "llama.cpp takes that of an OLMo for hidden size / heads",
            });
        }
        let head_dim = self
            .full_heads
            .map_or(self.head_dim, |(head_dim, _)| head_dim);
        if self.rotary_dim != head_dim && !architecture.turns_in_part() {
            return Err(GgufExportError::Feature {
                what: "the features of a head that turn",
                actual: self.rotary_dim.to_string(),
                hint: "llama.cpp turns a part of each head in phi3, glm4 and qwen35",
            });
        }
        if matches!(self.rope, GgufRope::LongRope { .. }) && !architecture.long_rope_factors() {
            return Err(GgufExportError::Feature {
                what: "the rotary scaling",
                actual: "longrope".to_owned(),
                hint: "phi3 has it",
            });
        }
        if self.rope_factors().is_some() && !architecture.rope_factors() {
            return Err(GgufExportError::Feature {
                what: "the rotary scaling",
                actual: "one factor for each frequency".to_owned(),
                hint: "llama, mistral, granite and gemma4 have it",
            });
        }
        Ok(architecture)
    }

    /// Refuses what llama.cpp would compute otherwise.
    fn check_gemma(&self, architecture: Architecture) -> Result<(), GgufExportError> {
        let feature = |what, actual, hint| Err(GgufExportError::Feature { what, actual, hint });
        let Some(gemma) = self.gemma else {
            let hint = "a Gemma has one";
            return feature(
                "the scale of attention's scores",
                "not said".to_owned(),
                hint,
            );
        };
        let per_head = self.embedding_length / self.heads.max(1);
        let divisor = architecture.score_divisor(self.layers, self.head_dim, per_head);
        let expected = (divisor as f64).powf(-0.5);
        if (gemma.attention / expected - 1.0).abs() > 1e-6 {
            let scalar = gemma.attention.powi(-2);
            let hint = "llama.cpp takes head_dim for query_pre_attn_scalar, in models of 27B hidden size / heads";
            let actual = format!("{scalar:.3}^-0.5 where {divisor}^-0.5 is taken");
            return feature("the scale of attention's scores", actual, hint);
        }
        let is_2 = architecture == Architecture::Gemma2;
        if gemma.scores_cap.is_some() != is_2 || gemma.logits_cap.is_some() != is_2 {
            let actual = format!("{:?} and {:?}", gemma.scores_cap, gemma.logits_cap);
            let hint = "llama.cpp has both in a Gemma 2 and neither in a Gemma 3";
            return feature("the caps of scores and logits", actual, hint);
        }
        if is_2 && self.sliding_window.is_none() {
            let hint = "llama.cpp has one in every other layer of a Gemma 2";
            return feature("the sliding window", "none".to_owned(), hint);
        }
        Ok(())
    }

    /// Refuses what llama.cpp would compute otherwise.
    fn check_gemma4(&self) -> Result<(), GgufExportError> {
        let feature = |what, actual, hint| Err(GgufExportError::Feature { what, actual, hint });
        if self.gemma.and_then(|gemma| gemma.local_theta).is_none() {
            let hint = "a Gemma 4's file says it; a layer without a window alone has none";
            return feature("the RoPE of layers with a window", "none".to_owned(), hint);
        }
        match &self.rope {
            GgufRope::Proportional { .. } => Ok(()),
            other => {
                let hint = "llama.cpp turns the first pairs of a Gemma 4's heads: \"proportional\"";
                feature(
                    "the RoPE of layers without a window",
                    format!("{other:?}"),
                    hint,
                )
            }
        }
    }

    /// Of how many layers the last attends, where the others are DeltaNets; refuses what llama.cpp has no word for.
    fn attention_interval(&self) -> Result<usize, GgufExportError> {
        let feature = |what, actual, hint| Err(GgufExportError::Feature { what, actual, hint });
        let Some(delta) = &self.delta_nets else {
            let hint = "a Qwen 3.5's file says their sizes";
            return feature("the number of DeltaNets", "0".to_owned(), hint);
        };
        let [keys, values] = [delta.sizes.key_head_dim, delta.sizes.value_head_dim];
        if keys != values {
            let actual = format!("{keys} for keys and {values} for values");
            let hint = "llama.cpp has DeltaNets with heads of one size";
            return feature("the size of a DeltaNet's heads", actual, hint);
        }
        let mut intervals = 1..=self.layers + 1;
        match intervals.find(|&interval| delta.attending == self.every(interval)) {
            Some(interval) => Ok(interval),
            None => {
                let hint = "llama.cpp has one in every so many layers of a Qwen 3.5";
                let actual = format!("{:?}", delta.attending);
                feature("the list of layers that attend", actual, hint)
            }
        }
    }

    /// Of how many layers the last has no window.
    fn full_interval(&self, architecture: Architecture) -> Option<usize> {
        let usual = std::iter::once(architecture.full_interval());
        let mut intervals = usual.chain(1..=self.layers + 1);
        intervals.find(|&interval| self.full_layers == self.every(interval))
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
        match self.full_heads {
            None => {
                count("attention.head_count_kv", self.key_value_heads);
                count("attention.key_length", self.head_dim);
                count("attention.value_length", self.head_dim);
            }
            // What has no ending is of layers without a window.
            Some((head_dim, _)) => {
                count("attention.key_length", head_dim);
                count("attention.value_length", head_dim);
                count(LOCAL_KEY_LENGTH, self.head_dim);
                count(LOCAL_VALUE_LENGTH, self.head_dim);
                count(LOCAL_ROTARY, self.head_dim);
                count(PER_LAYER_EMBEDDING, 0);
                count(SHARED_LAYERS, 0);
            }
        }
        count("rope.dimension_count", self.rotary_dim);
        if let (Some(delta), Ok(interval)) = (&self.delta_nets, self.attention_interval()) {
            count(CONV_KERNEL, delta.sizes.conv_kernel_dim);
            count(STATE_SIZE, delta.sizes.key_head_dim);
            count(GROUP_COUNT, delta.sizes.num_key_heads);
            count(TIME_STEP_RANK, delta.sizes.num_value_heads);
            count(INNER_SIZE, delta.sizes.value_width());
            count(ATTENTION_INTERVAL, interval);
        }
        match self.sliding_window {
            Some(window) => count(SLIDING_WINDOW, window),
            // By that llama.cpp's converter tells Phi 4 from Phi 3.
            None if architecture == Architecture::Phi3 => count(SLIDING_WINDOW, 0),
            None => {}
        }
        if architecture == Architecture::Phi3 {
            let original = match &self.rope {
                GgufRope::LongRope { original, .. } => *original as usize,
                _ => self.context_length,
            };
            count(ORIGINAL_CONTEXT, original);
        }
        if let Some((_, full)) = self.full_heads {
            let of = |layer| match self.full_layers.contains(&layer) {
                true => full as i32,
                false => self.key_value_heads as i32,
            };
            let counts = EntryValue::I32s((0..self.layers).map(of).collect());
            entries.push(Entry::new(
                format!("{name}.attention.head_count_kv"),
                counts,
            ));
        }
        if architecture == Architecture::Qwen35 {
            let [time, height, width] = qwen35::sections(self.rotary_dim / 2);
            let sections = [time, height, width, 0].map(|pairs| pairs as i32);
            let key = format!("{name}.{ROPE_SECTIONS}");
            entries.push(Entry::new(key, EntryValue::I32s(sections.into())));
        }
        let flagged = matches!(architecture, Architecture::Olmo3 | Architecture::Gemma4);
        if self.sliding_window.is_some() && flagged {
            let flags = (0..self.layers).map(|layer| !self.full_layers.contains(&layer));
            let key = format!("{name}.{SLIDING_WINDOW_PATTERN}");
            entries.push(Entry::new(key, EntryValue::Bools(flags.collect())));
        }
        if self.sliding_window.is_some()
            && matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3)
            && let Some(interval) = self.full_interval(architecture)
            && interval != architecture.full_interval()
        {
            let key = format!("{name}.{SLIDING_WINDOW_PATTERN}");
            entries.push(Entry::new(key, interval as u32));
        }
        let mut number = |key: &str, value: f64| {
            entries.push(Entry::new(format!("{name}.{key}"), value as f32));
        };
        if let Some(gemma) = self.gemma {
            let usual = |theta: &f64| *theta == LOCAL_THETA && architecture != Architecture::Gemma4;
            let local = gemma.local_theta.filter(|theta| !usual(theta));
            let keys = [
                (SCORES_CAP, gemma.scores_cap),
                (LOGITS_CAP, gemma.logits_cap),
                (LOCAL_BASE, local),
            ];
            for (key, value) in keys {
                if let Some(value) = value {
                    number(key, value);
                }
            }
        }
        number("attention.layer_norm_rms_epsilon", self.rms_norm_eps);
        number("rope.freq_base", self.rope_theta);
        if let Some(factors) = self.factors {
            number(ATTENTION_SCALE, factors.attention);
            number(EMBEDDING_SCALE, factors.embedding);
            number(RESIDUAL_SCALE, factors.residual);
            number(LOGIT_SCALE, factors.logits);
        }
        if let Some(beta) = self.query_scaling {
            number(TEMPERATURE, beta);
        }
        let scaling = match &self.rope {
            GgufRope::Default
            | GgufRope::Llama3 { .. }
            | GgufRope::Proportional { .. }
            | GgufRope::Factors(_) => return entries,
            // The type is in the tensors' names.
            GgufRope::LongRope {
                attention_factor, ..
            } => {
                number(ATTENTION_FACTOR, *attention_factor);
                return entries;
            }
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
                if architecture == Architecture::Ministral3 {
                    // No factor on cosine and sine.
                    number(YARN_LOG, 1.0);
                }
                let key = format!("{name}.{ORIGINAL_CONTEXT}");
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
            GgufRope::Proportional { pairs } => Some(gemma4::rope_factors(*pairs, self.rotary_dim)),
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
                let factors = scaling.factors(self.rope_theta, self.rotary_dim / 2);
                Some(factors.map(|factor| factor as f32).collect())
            }
            GgufRope::Default
            | GgufRope::Linear { .. }
            | GgufRope::Yarn { .. }
            | GgufRope::LongRope { .. } => None,
        }
    }

    /// The tensors of divisors that are written.
    pub(super) fn factor_tensors(&self) -> Vec<(&'static str, Vec<f32>)> {
        if let GgufRope::LongRope { short, long, .. } = &self.rope {
            return vec![(LONG_FACTORS, long.clone()), (SHORT_FACTORS, short.clone())];
        }
        let factors = self.rope_factors().into_iter();
        factors.map(|factors| (ROPE_FREQS, factors)).collect()
    }
}
