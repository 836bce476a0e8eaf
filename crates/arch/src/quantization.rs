//! Which matrix is stored how.

use crate::four_bit::FourBitFormat;

/// How a matrix is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Blocks of 4-bit codes.
    FourBit {
        /// What the codes stand for.
        format: FourBitFormat,
        /// Values that share a scale: 64 or 128.
        block_size: usize,
        /// Whether the scales are quantised too.
        double_quant: bool,
    },
    /// Whole numbers of 8 bits, one scale for each row.
    Int8,
}

impl Scheme {
    /// NF4 in blocks of 64 with quantised scales: what QLoRA uses.
    pub const NF4: Self = Self::FourBit {
        format: FourBitFormat::Nf4,
        block_size: 64,
        double_quant: true,
    };

    /// Bytes of a matrix `[out, in]`.
    #[must_use]
    pub fn num_bytes(self, [out, input]: [usize; 2]) -> usize {
        match self {
            Self::FourBit {
                block_size,
                double_quant,
                ..
            } => {
                let blocks = (out * input).div_ceil(block_size);
                let scales = if double_quant {
                    blocks + 4 * blocks.div_ceil(256) + 4
                } else {
                    4 * blocks
                };
                (out * input).div_ceil(2) + scales
            }
            Self::Int8 => out * input + 4 * out,
        }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FourBit {
                format,
                block_size,
                double_quant,
            } => {
                let scales = if *double_quant { ", double" } else { "" };
                write!(f, "{} (blocks of {block_size}{scales})", format.name())
            }
            Self::Int8 => f.write_str("int8 (rows)"),
        }
    }
}

/// What a loader quantises: the projections of the decoder layers, except some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizationPlan {
    /// How.
    pub scheme: Scheme,
    /// Modules that stay as they are: a path, its last component, or any run of components.
    pub skip_modules: Vec<String>,
}

impl QuantizationPlan {
    /// Everything by `scheme`; embeddings, norms and `lm_head` are never quantised.
    #[must_use]
    pub fn new(scheme: Scheme) -> Self {
        Self {
            scheme,
            skip_modules: vec!["lm_head".to_owned()],
        }
    }

    /// How the weight of the module at `path` is stored; `None` where it stays as it is.
    #[must_use]
    pub fn scheme_for(&self, path: &str) -> Option<Scheme> {
        let skipped = self.skip_modules.iter().any(|skip| matches(path, skip));
        (!skipped).then_some(self.scheme)
    }

    /// Modules to skip that are none of `paths`.
    #[must_use]
    pub fn unmatched(&self, paths: &[String]) -> Vec<&str> {
        let skips = self.skip_modules.iter().map(String::as_str);
        skips
            .filter(|skip| !paths.iter().any(|path| matches(path, skip)))
            .collect()
    }
}

/// Whether `skip` is a run of whole components of `path`.
fn matches(path: &str, skip: &str) -> bool {
    !skip.is_empty() && format!(".{path}.").contains(&format!(".{skip}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_that_matches_nothing_is_told() {
        let paths = ["lm_head", "model.layers.1.self_attn.q_proj"].map(str::to_owned);
        let plan = QuantizationPlan {
            scheme: Scheme::NF4,
            skip_modules: ["q_proj", "layers.1", "q_pro", "layers.2", "lm_head"]
                .map(str::to_owned)
                .to_vec(),
        };
        assert_eq!(plan.unmatched(&paths), ["q_pro", "layers.2"]);
    }

    #[test]
    fn modules_are_skipped_by_whole_components() {
        let plan = |skip: &str| QuantizationPlan {
            scheme: Scheme::NF4,
            skip_modules: vec![skip.to_owned()],
        };
        let path = "model.layers.1.self_attn.q_proj";
        for skip in [path, "q_proj", "self_attn", "layers.1", "model"] {
            assert_eq!(plan(skip).scheme_for(path), None, "{skip}");
        }
        for skip in [
            "",
            "proj",
            "layers.11",
            "layers.1.self",
            "lm_head",
            "k_proj",
        ] {
            assert_eq!(plan(skip).scheme_for(path), Some(Scheme::NF4), "{skip}");
        }
    }

    #[test]
    fn sizes_are_those_of_the_parts() {
        // 64·64 values: 2048 bytes of codes and 64 scales.
        let single = Scheme::FourBit {
            format: FourBitFormat::Fp4,
            block_size: 64,
            double_quant: false,
        };
        assert_eq!(single.num_bytes([64, 64]), 2048 + 256);
        assert_eq!(Scheme::NF4.num_bytes([64, 64]), 2048 + 64 + 4 + 4);
        assert_eq!(Scheme::Int8.num_bytes([64, 64]), 4096 + 256);
    }
}
