//! Rotary frequencies.

use std::f64::consts::TAU;

/// Rotary position embedding of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric progression of wavelengths.
    pub theta: f64,
    /// Features of a head.
    pub head_dim: usize,
    /// The first of them, an even number, turn; the others pass as they are.
    pub rotary_dim: usize,
    /// Which of those that turn belong together.
    pub pairs: RotaryPairs,
    /// How the frequencies were changed to reach longer sequences.
    pub scaling: RopeScaling,
}

/// How far a sequence reaches, where its length chooses the frequencies of all its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Within the original context, or no length makes a difference.
    Original,
    /// Beyond it.
    Beyond,
}

/// Two features that turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RotaryPairs {
    /// i and i + d/2, with d features that turn.
    Halves,
    /// 2i and 2i + 1.
    Neighbours,
}

/// Changes to the default frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None: fᵢ = θ^(−2i/d).
    Default,
    /// fᵢ / factor: positions interpolated.
    Linear {
        /// Stretch of the context.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by the factor, short ones kept, a ramp between.
    Llama3 {
        /// Stretch of the context.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length before stretching, in tokens.
        original_max_position_embeddings: f64,
    },
    /// YaRN (Peng et al. 2023, arXiv:2309.00071): by rotations over the original context.
    Yarn {
        /// Stretch of the context.
        factor: f64,
        /// Context length before stretching, in tokens.
        original_max_position_embeddings: f64,
        /// Dimensions with more rotations are kept.
        beta_fast: f64,
        /// Dimensions with fewer rotations are interpolated.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
    /// A divisor for each frequency, one list for sequences up to the original context and another for longer ones (Ding et
    /// al. 2024, arXiv:2402.13753).
    LongRope {
        /// For sequences of at most that many tokens.
        short_factor: Vec<f32>,
        /// For longer ones, at all of their positions.
        long_factor: Vec<f32>,
        /// Context length before stretching, in tokens.
        original_max_position_embeddings: f64,
        /// Factor on cosine and sine, whichever list counts.
        attention_factor: f64,
    },
    /// The first pairs of a head turn as pairs of the whole head do, fᵢ = θ^(−2i/d) / factor with all of its d features; the
    /// others stand still.
    Proportional {
        /// Pairs that turn.
        pairs: usize,
        /// Stretch of the context.
        factor: f64,
    },
    /// A divisor for each frequency, as GGUF files store Llama 3.1's.
    Factors(Vec<f32>),
}

/// A factor on turned queries that grows with the position in the sequence, floored to whole original contexts p:
/// 1 + β·ln(1 + p).
///
/// # Source
/// Llama 4's temperature of attention, as Ministral 3 has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScaling {
    /// β; 0 would leave queries as they are.
    pub beta: f64,
    /// Positions in which nothing is added, in tokens.
    pub original_max_position_embeddings: f64,
}

impl QueryScaling {
    /// The factor at a position.
    #[must_use]
    pub fn factor(&self, position: u32) -> f64 {
        let contexts = (f64::from(position) / self.original_max_position_embeddings).floor();
        1.0 + self.beta * contexts.ln_1p()
    }

    /// Whether sequences of so many tokens have any factor but 1.
    #[must_use]
    pub fn reaches(&self, tokens: usize) -> bool {
        tokens as f64 > self.original_max_position_embeddings
    }
}

impl RopeScaling {
    /// What `rope_type` calls it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Linear { .. } => "linear",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
            Self::LongRope { .. } => "longrope",
            Self::Proportional { .. } => "proportional",
            Self::Factors(_) => "factors of its own",
        }
    }
}

impl RopeConfig {
    /// fᵢ of sequences within the original context, `[d / 2]` with d features that turn, in radians for each position.
    pub fn inv_freq(&self) -> Vec<f32> {
        self.inv_freq_of(Reach::Original)
    }

    /// The same for sequences that reach so far.
    pub fn inv_freq_of(&self, reach: Reach) -> Vec<f32> {
        let half = self.rotary_dim / 2;
        (0..half).map(|i| self.scaled(i, reach) as f32).collect()
    }

    /// How far a sequence of so many tokens reaches.
    #[must_use]
    pub fn reach(&self, tokens: usize) -> Reach {
        match self.scaling {
            RopeScaling::LongRope {
                original_max_position_embeddings: original,
                ..
            } if tokens as f64 > original => Reach::Beyond,
            _ => Reach::Original,
        }
    }

    /// Factor that cosine and sine are multiplied by.
    pub fn attention_scaling(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            }
            | RopeScaling::LongRope {
                attention_factor, ..
            } => *attention_factor,
            _ => 1.0,
        }
    }

    /// Cosine and sine of each position's angles in a sequence that reaches so far, row by row.
    ///
    /// # Shapes
    /// `position_ids` `[t]`; both `[t, d / 2]`.
    pub fn cos_sin(&self, position_ids: &[u32], reach: Reach) -> (Vec<f32>, Vec<f32>) {
        let inv_freq = self.inv_freq_of(reach);
        let scaling = self.attention_scaling();
        // The angle is rounded to f32 first, as the reference implementation has it.
        let angles = position_ids.iter().flat_map(|&position| {
            inv_freq
                .iter()
                .map(move |&frequency| f64::from(position as f32 * frequency))
        });
        angles
            .map(|angle| {
                let (sin, cos) = angle.sin_cos();
                ((cos * scaling) as f32, (sin * scaling) as f32)
            })
            .unzip()
    }

    fn unscaled(&self, i: usize) -> f64 {
        self.theta.powf(-((2 * i) as f64) / self.rotary_dim as f64)
    }

    fn scaled(&self, i: usize, reach: Reach) -> f64 {
        let frequency = self.unscaled(i);
        match &self.scaling {
            RopeScaling::Default => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            &RopeScaling::Proportional { pairs, factor } => match i < pairs {
                true => frequency / factor,
                false => 0.0,
            },
            RopeScaling::Factors(factors) => frequency / f64::from(factors[i]),
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                ..
            } => {
                let factors = match reach {
                    Reach::Original => short_factor,
                    Reach::Beyond => long_factor,
                };
                frequency / f64::from(factors[i])
            }
            &RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => {
                let turns = original * frequency / TAU;
                let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                blend(frequency, factor, kept.clamp(0.0, 1.0))
            }
            &RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast,
                beta_slow,
                truncate,
                ..
            } => {
                let dimension = |rotations: f64| {
                    self.rotary_dim as f64 * (original / (rotations * TAU)).ln()
                        / (2.0 * self.theta.ln())
                };
                let (low, high) = (dimension(beta_fast), dimension(beta_slow));
                let (low, high) = if truncate {
                    (low.floor(), high.ceil())
                } else {
                    (low, high)
                };
                let (low, mut high) = (low.max(0.0), high.min(self.rotary_dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                blend(frequency, factor, 1.0 - interpolated)
            }
        }
    }
}

/// Between `frequency / factor` (kept = 0) and `frequency` (kept = 1).
fn blend(frequency: f64, factor: f64, kept: f64) -> f64 {
    frequency / factor * (1.0 - kept) + frequency * kept
}

/// LongRoPE's factor on cosine and sine: √(1 + ln(factor) / ln(original)).
#[must_use]
pub fn longrope_attention_factor(factor: f64, original: f64) -> f64 {
    if factor <= 1.0 || original <= 1.0 {
        1.0
    } else {
        (1.0 + factor.ln() / original.ln()).sqrt()
    }
}

/// YaRN's factor on cosine and sine: 0.1·mscale·ln(factor) + 1.
pub(crate) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 {
        1.0
    } else {
        0.1 * mscale * factor.ln() + 1.0
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::spec::ModelSpec;

    fn yarn(theta: f64, scaling: Value) -> super::RopeConfig {
        let mut config = json!({
            "model_type": "qwen2", "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4,
            "rope_theta": theta, "max_position_embeddings": 2048, "rope_scaling": scaling,
        });
        config["rope_scaling"]["rope_type"] = json!("yarn");
        ModelSpec::from_hf(&config).unwrap().rope
    }

    /// Expected values: transformers' formula in double precision.
    #[test]
    fn yarn_ramps_between_rotations() {
        let cut = json!({"factor": 4.0, "original_max_position_embeddings": 512});
        let exact = json!({
            "factor": 4.0, "original_max_position_embeddings": 512, "truncate": false,
        });
        // The factor is then what lies between the two lengths.
        let unsaid = json!({"factor": null, "original_max_position_embeddings": 512});
        let wide = json!({
            "factor": 8.0, "original_max_position_embeddings": 16, "truncate": false,
            "beta_fast": 16.0, "beta_slow": 0.5,
        });
        for (theta, scaling, expected) in [
            (
                1e6,
                &cut,
                [1.0, 0.133_370_95, 0.015_811_387, 0.001_405_853_3],
            ),
            (
                1e6,
                &unsaid,
                [1.0, 0.133_370_95, 0.015_811_387, 0.001_405_853_3],
            ),
            (
                1e6,
                &exact,
                [1.0, 0.147_340_88, 0.014_383_359, 0.001_405_853_3],
            ),
            (1e4, &wide, [1.0, 0.120_533_994, 0.0125, 0.003_952_847]),
        ] {
            let found = yarn(theta, scaling.clone()).inv_freq();
            for (found, expected) in found.into_iter().zip(expected) {
                assert!(
                    (found / expected - 1.0).abs() < 1e-6,
                    "{scaling}: {found}, {expected}"
                );
            }
        }
    }

    #[test]
    fn yarn_scales_what_turns() {
        for (change, expected) in [
            (json!({"factor": 4.0}), 1.138_629_436_111_989),
            (json!({"factor": 1.0}), 1.0),
            (json!({"factor": 4.0, "mscale": 1.0}), 1.138_629_436_111_989),
            (
                json!({"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0}),
                0.921_042_355_316_339_9,
            ),
            (
                json!({"factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0}),
                1.0,
            ),
            (json!({"factor": 4.0, "attention_factor": 0.5}), 0.5),
        ] {
            let found = yarn(1e4, change.clone()).attention_scaling();
            assert!((found - expected).abs() < 1e-12, "{change}: {found}");
        }
    }
}
