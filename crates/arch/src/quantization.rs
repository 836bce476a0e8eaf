//! Which matrix is stored how.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::four_bit::FourBitFormat;

/// How a matrix is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "SchemeFields", into = "SchemeFields")]
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

/// A scheme as files have it: `format` is `nf4`, `fp4` or `int8`, the other fields belong to 4 bits.
#[derive(Serialize, Deserialize)]
struct SchemeFields {
    format: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    double_quant: Option<bool>,
}

impl From<Scheme> for SchemeFields {
    fn from(scheme: Scheme) -> Self {
        match scheme {
            Scheme::FourBit {
                format,
                block_size,
                double_quant,
            } => Self {
                format: format.name().to_owned(),
                block_size: Some(block_size),
                double_quant: Some(double_quant),
            },
            Scheme::Int8 => Self {
                format: "int8".to_owned(),
                block_size: None,
                double_quant: None,
            },
        }
    }
}

impl TryFrom<SchemeFields> for Scheme {
    type Error = String;

    fn try_from(fields: SchemeFields) -> Result<Self, String> {
        if fields.format == "int8" {
            return Ok(Self::Int8);
        }
        let mut formats = FourBitFormat::ALL.iter().copied();
        let format = formats.find(|format| format.name() == fields.format);
        match (format, fields.block_size, fields.double_quant) {
            (Some(format), Some(block_size), Some(double_quant)) => Ok(Self::FourBit {
                format,
                block_size,
                double_quant,
            }),
            (Some(_), _, _) => Err("`block_size` or `double_quant` is missing".to_owned()),
            (None, _, _) => Err(format!(
                "`format` should be \"nf4\", \"fp4\" or \"int8\", but is \"{}\"",
                fields.format
            )),
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuantizationPlan {
    /// How, where `schemes` does not say otherwise.
    #[serde(flatten)]
    pub scheme: Scheme,
    /// Modules that stay as they are: a path, its last component, or any run of components.
    pub skip_modules: Vec<String>,
    /// Modules with a scheme of their own, by their paths; `skip_modules` does not concern them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub schemes: BTreeMap<String, Scheme>,
}

impl QuantizationPlan {
    /// Everything by `scheme`; embeddings, norms and `lm_head` are never quantised.
    #[must_use]
    pub fn new(scheme: Scheme) -> Self {
        Self {
            scheme,
            skip_modules: vec!["lm_head".to_owned()],
            schemes: BTreeMap::new(),
        }
    }

    /// The plan with a scheme of its own for the module at `path`.
    #[must_use]
    pub fn with_scheme(mut self, path: impl Into<String>, scheme: Scheme) -> Self {
        self.schemes.insert(path.into(), scheme);
        self
    }

    /// How the weight of the module at `path` is stored; `None` where it stays as it is.
    #[must_use]
    pub fn scheme_for(&self, path: &str) -> Option<Scheme> {
        if let Some(&scheme) = self.schemes.get(path) {
            return Some(scheme);
        }
        let skipped = self.skip_modules.iter().any(|skip| matches(path, skip));
        (!skipped).then_some(self.scheme)
    }

    /// Every scheme that it uses.
    pub fn all_schemes(&self) -> impl Iterator<Item = Scheme> {
        std::iter::once(self.scheme).chain(self.schemes.values().copied())
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
            skip_modules: ["q_proj", "layers.1", "q_pro", "layers.2", "lm_head"]
                .map(str::to_owned)
                .to_vec(),
            ..QuantizationPlan::new(Scheme::NF4)
        };
        assert_eq!(plan.unmatched(&paths), ["q_pro", "layers.2"]);
    }

    #[test]
    fn a_matrix_may_have_a_scheme_of_its_own() {
        let [path, other] =
            ["q_proj", "k_proj"].map(|name| format!("model.layers.1.self_attn.{name}"));
        let mut plan = QuantizationPlan::new(Scheme::NF4).with_scheme(&path, Scheme::Int8);
        plan.skip_modules.push("layers.1".to_owned());
        assert_eq!(plan.scheme_for(&path), Some(Scheme::Int8));
        assert_eq!(plan.scheme_for(&other), None);
        assert_eq!(
            plan.scheme_for("model.layers.0.mlp.up_proj"),
            Some(Scheme::NF4)
        );
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(
            serde_json::from_str::<QuantizationPlan>(&text).unwrap(),
            plan
        );
    }

    #[test]
    fn plans_read_and_write_the_notes_of_earlier_versions() {
        let four_bit =
            r#"{"format":"nf4","block_size":64,"double_quant":true,"skip_modules":["lm_head"]}"#;
        let int8 = r#"{"format":"int8","skip_modules":["lm_head"]}"#;
        for (text, scheme) in [(four_bit, Scheme::NF4), (int8, Scheme::Int8)] {
            let plan = QuantizationPlan::new(scheme);
            assert_eq!(serde_json::to_string(&plan).unwrap(), text);
            assert_eq!(
                serde_json::from_str::<QuantizationPlan>(text).unwrap(),
                plan
            );
        }
        let unknown = r#"{"format":"nf9","skip_modules":[]}"#;
        let error = serde_json::from_str::<QuantizationPlan>(unknown).unwrap_err();
        assert!(error.to_string().contains("but is \"nf9\""), "{error}");
    }

    #[test]
    fn modules_are_skipped_by_whole_components() {
        let plan = |skip: &str| QuantizationPlan {
            skip_modules: vec![skip.to_owned()],
            ..QuantizationPlan::new(Scheme::NF4)
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
