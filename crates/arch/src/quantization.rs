//! Which matrix is stored how.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::four_bit::FourBitFormat;
use crate::gguf_block::GgufBlock;
use crate::named;
use crate::named::UnknownName;
use crate::nested::NestedFormat;
use crate::spec::{EMBEDDING, HEAD, ModelSpec};

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
    /// Blocks of codes whose cells nest in NF4's, with its scales.
    Nested {
        /// How many bits.
        format: NestedFormat,
        /// Values that share a scale: 64 or 128.
        block_size: usize,
        /// Whether the scales are quantised too.
        double_quant: bool,
    },
    /// Whole numbers of 8 bits, one scale for each row.
    Int8,
    /// The blocks that a GGUF file has the matrix in. They are taken as they are and made of nothing else.
    Gguf(GgufBlock),
}

impl Scheme {
    /// NF4 in blocks of 64 with quantised scales: what QLoRA uses.
    pub const NF4: Self = Self::four_bit(FourBitFormat::Nf4);

    /// One for each name, blocks of 64 with quantised scales.
    pub const ALL: [Self; 14] = [
        Self::NF4,
        Self::four_bit(FourBitFormat::Fp4),
        Self::nested(NestedFormat::Nf3),
        Self::nested(NestedFormat::Nf5),
        Self::nested(NestedFormat::Nf6),
        Self::Int8,
        Self::Gguf(GgufBlock::Q4_0),
        Self::Gguf(GgufBlock::Q4_1),
        Self::Gguf(GgufBlock::Q5_0),
        Self::Gguf(GgufBlock::Q5_1),
        Self::Gguf(GgufBlock::Q8_0),
        Self::Gguf(GgufBlock::Q4_K),
        Self::Gguf(GgufBlock::Q5_K),
        Self::Gguf(GgufBlock::Q6_K),
    ];

    /// Their names, in the same order.
    pub const NAMES: &'static [&'static str] = &{
        let mut names = [""; Self::ALL.len()];
        let mut at = 0;
        while at < names.len() {
            names[at] = Self::ALL[at].name();
            at += 1;
        }
        names
    };

    /// `format` in blocks of 64 with quantised scales.
    #[must_use]
    pub const fn four_bit(format: FourBitFormat) -> Self {
        Self::FourBit {
            format,
            block_size: 64,
            double_quant: true,
        }
    }

    /// `format` in blocks of 64 with quantised scales.
    #[must_use]
    pub const fn nested(format: NestedFormat) -> Self {
        Self::Nested {
            format,
            block_size: 64,
            double_quant: true,
        }
    }

    /// The same format with scales for blocks of `block_size` values, quantised or not; as it is where scales are laid out
    /// in one way only.
    #[must_use]
    pub const fn with_scales(self, block_size: usize, double_quant: bool) -> Self {
        match self {
            Self::FourBit { format, .. } => Self::FourBit {
                format,
                block_size,
                double_quant,
            },
            Self::Nested { format, .. } => Self::Nested {
                format,
                block_size,
                double_quant,
            },
            Self::Int8 | Self::Gguf(_) => self,
        }
    }

    /// The name of its format, as recipes have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FourBit { format, .. } => format.name(),
            Self::Nested { format, .. } => format.name(),
            Self::Int8 => "int8",
            Self::Gguf(kind) => kind.name(),
        }
    }

    /// Values of a block, and whether the scales are quantised too; `None` where the format leaves no choice.
    #[must_use]
    pub const fn blocks(self) -> Option<(usize, bool)> {
        match self {
            Self::FourBit {
                block_size,
                double_quant,
                ..
            }
            | Self::Nested {
                block_size,
                double_quant,
                ..
            } => Some((block_size, double_quant)),
            Self::Int8 | Self::Gguf(_) => None,
        }
    }

    /// Bytes of a matrix `[out, in]`.
    #[must_use]
    pub fn num_bytes(self, [out, input]: [usize; 2]) -> usize {
        let values = out * input;
        let codes = match self {
            Self::FourBit { .. } => values.div_ceil(2),
            Self::Nested { format, .. } => {
                let planes = format.planes().map(|bits| values.div_ceil(8 / bits));
                planes[0] + planes[1]
            }
            Self::Int8 => values,
            Self::Gguf(kind) => return values / kind.values() * kind.bytes(),
        };
        let scales = match self.blocks() {
            Some((block_size, double_quant)) => {
                let blocks = values.div_ceil(block_size);
                if double_quant {
                    blocks + 4 * blocks.div_ceil(256) + 4
                } else {
                    4 * blocks
                }
            }
            None => 4 * out,
        };
        codes + scales
    }
}

/// Gives blocks of 64 with quantised scales.
impl FromStr for Scheme {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        let mut all = Self::ALL.into_iter();
        all.find(|scheme| scheme.name() == name)
            .ok_or_else(|| UnknownName {
                expected: Self::NAMES,
                actual: name.to_owned(),
            })
    }
}

named! {
    /// What a matrix may get where precision is dealt out by measurement.
    Precision {
        /// 3.13 bits.
        Nf3 = "nf3",
        /// 4.13 bits.
        #[default]
        Nf4 = "nf4",
        /// 5.13 bits.
        Nf5 = "nf5",
        /// 6.13 bits.
        Nf6 = "nf6",
        /// 8 bits.
        Int8 = "int8",
    }
}

impl Precision {
    /// With scales as given; whole numbers have one for each row instead.
    #[must_use]
    pub const fn scheme(self, block_size: usize, double_quant: bool) -> Scheme {
        let format = match self {
            Self::Nf3 => NestedFormat::Nf3,
            Self::Nf5 => NestedFormat::Nf5,
            Self::Nf6 => NestedFormat::Nf6,
            Self::Nf4 => {
                return Scheme::FourBit {
                    format: FourBitFormat::Nf4,
                    block_size,
                    double_quant,
                };
            }
            Self::Int8 => return Scheme::Int8,
        };
        Scheme::Nested {
            format,
            block_size,
            double_quant,
        }
    }
}

/// A scheme as files have it: `format` is a name, the other fields belong to blocks.
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
        let blocks = scheme.blocks();
        Self {
            format: scheme.name().to_owned(),
            block_size: blocks.map(|(block_size, _)| block_size),
            double_quant: blocks.map(|(_, double_quant)| double_quant),
        }
    }
}

impl TryFrom<SchemeFields> for Scheme {
    type Error = String;

    fn try_from(fields: SchemeFields) -> Result<Self, String> {
        let scheme = fields.format.parse::<Self>().map_err(|error| {
            let names: Vec<_> = error
                .expected
                .iter()
                .map(|name| format!("{name:?}"))
                .collect();
            let (first, last) = names.split_at(names.len() - 1);
            let (first, last) = (first.join(", "), last.concat());
            format!(
                "`format` should be {first} or {last}, but is {:?}",
                error.actual
            )
        })?;
        match (scheme.blocks(), fields.block_size, fields.double_quant) {
            (None, ..) => Ok(scheme),
            (Some(_), Some(block_size), Some(double_quant)) => {
                Ok(scheme.with_scales(block_size, double_quant))
            }
            (Some(_), ..) => Err("`block_size` or `double_quant` is missing".to_owned()),
        }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.blocks() {
            Some((block_size, double_quant)) => {
                let scales = if double_quant { ", double" } else { "" };
                write!(f, "{} (blocks of {block_size}{scales})", self.name())
            }
            None => match self {
                Self::Gguf(kind) => write!(f, "{kind} (as in the file)"),
                _ => write!(f, "{} (rows)", self.name()),
            },
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

    /// The plan that keeps the blocks of a GGUF file: its matrices by path, `None` for one that has no blocks. The scheme is
    /// the one that most of them have; embedding and head always have one of their own. `None` if there is no block at all.
    #[must_use]
    pub fn of_blocks(matrices: &BTreeMap<String, Option<GgufBlock>>) -> Option<Self> {
        let count = |kind| {
            let kinds = matrices.values();
            kinds.filter(|other| **other == Some(kind)).count()
        };
        let kinds = GgufBlock::ALL.iter().copied();
        let most = kinds.max_by_key(|&kind| count(kind))?;
        if count(most) == 0 {
            return None;
        }
        let mut plan = Self {
            skip_modules: Vec::new(),
            ..Self::new(Scheme::Gguf(most))
        };
        for (path, kind) in matrices {
            match kind {
                None => plan.skip_modules.push(path.clone()),
                Some(kind) if *kind == most && path.ends_with("_proj") => {}
                Some(kind) => plan = plan.with_scheme(path, Scheme::Gguf(*kind)),
            }
        }
        Some(plan)
    }

    /// Whether it keeps what the file has, instead of quantising values.
    #[must_use]
    pub const fn keeps_blocks(&self) -> bool {
        matches!(self.scheme, Scheme::Gguf(_))
    }

    /// How the embedding or the head is stored, by the tensor's name; `None` where it is dense, as it is unless it has a
    /// scheme of its own.
    ///
    /// What the loss multiplies with, the head, is dense too where products dequantise matrices as a whole (`whole`): it
    /// would be dequantised for each chunk of tokens, with all activations beside it.
    #[must_use]
    pub fn scheme_for_table(&self, spec: &ModelSpec, name: &str, whole: bool) -> Option<Scheme> {
        let is_head = name == HEAD || spec.tie_word_embeddings;
        let path = name
            .strip_suffix(".weight")
            .filter(|_| !(whole && is_head))?;
        self.schemes.get(path).copied()
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

    /// Values that share a scale, and whether scales are quantised too; what nested codes have where everything else has
    /// none.
    #[must_use]
    pub fn blocks(&self) -> (usize, bool) {
        self.scheme.blocks().unwrap_or((64, true))
    }

    /// `precision` in blocks as the others have them.
    #[must_use]
    pub fn scheme_of(&self, precision: Precision) -> Scheme {
        let (block_size, double_quant) = self.blocks();
        precision.scheme(block_size, double_quant)
    }

    /// Every scheme that it uses.
    pub fn all_schemes(&self) -> impl Iterator<Item = Scheme> {
        std::iter::once(self.scheme).chain(self.schemes.values().copied())
    }

    /// The projections of a model that it quantises: how many values they have, and how many bytes they take.
    #[must_use]
    pub fn quantized(&self, spec: &ModelSpec) -> (u64, u64) {
        let each = spec.projections().filter_map(|(layer, target)| {
            let dims @ [out, input] = spec.layers[layer].shape(target);
            let scheme = self.scheme_for(&target.path(layer))?;
            Some(((out * input) as u64, scheme.num_bytes(dims) as u64))
        });
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
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

/// Whether a device that can read the rows of a model's embedding in the host's memory does so: its own memory has no use
/// for the others where the head is another matrix and the embedding is dense.
#[must_use]
pub fn embeds_on_host(spec: &ModelSpec, plan: Option<&QuantizationPlan>) -> bool {
    let scheme = plan.and_then(|plan| plan.scheme_for_table(spec, EMBEDDING, true));
    !spec.tie_word_embeddings && scheme.is_none()
}

/// `nf4 (blocks of 64, double)`, and what is kept otherwise: `, 44 in nf5, 14 in nf6`.
impl std::fmt::Display for QuantizationPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.scheme)?;
        let mut others: BTreeMap<&str, usize> = BTreeMap::new();
        for scheme in self
            .schemes
            .values()
            .filter(|scheme| **scheme != self.scheme)
        {
            *others.entry(scheme.name()).or_default() += 1;
        }
        for (name, count) in others {
            write!(f, ", {count} in {name}")?;
        }
        Ok(())
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
    fn a_plan_says_what_is_kept_otherwise() {
        let plan = QuantizationPlan::new(Scheme::NF4);
        assert_eq!(plan.to_string(), "nf4 (blocks of 64, double)");
        let nf5 = Scheme::nested(NestedFormat::Nf5);
        let plan = plan.with_scheme("a", nf5).with_scheme("b", nf5);
        let plan = plan.with_scheme("c", Scheme::Int8);
        let text = "nf4 (blocks of 64, double), 1 in int8, 2 in nf5";
        assert_eq!(plan.to_string(), text);
    }

    #[test]
    fn a_plan_of_blocks_is_what_the_file_has() {
        use GgufBlock::{Q4_K, Q6_K};
        let path = |layer, name| format!("model.layers.{layer}.mlp.{name}_proj");
        let matrices = BTreeMap::from([
            ("model.embed_tokens".to_owned(), Some(Q4_K)),
            (path(0, "up"), Some(Q4_K)),
            (path(0, "down"), Some(Q6_K)),
            (path(1, "up"), Some(Q4_K)),
            (path(1, "down"), None),
        ]);
        let plan = QuantizationPlan::of_blocks(&matrices).unwrap();
        for (path, kind) in &matrices {
            assert_eq!(plan.scheme_for(path), kind.map(Scheme::Gguf), "{path}");
        }
        assert!(plan.keeps_blocks() && !QuantizationPlan::new(Scheme::NF4).keeps_blocks());
        assert_eq!(plan.to_string(), "q4_k (as in the file), 1 in q6_k");
        let json = serde_json::to_string(&plan).unwrap();
        assert!(
            json.starts_with(r#"{"format":"q4_k","skip_modules":["#),
            "{json}"
        );
        assert_eq!(
            serde_json::from_str::<QuantizationPlan>(&json).unwrap(),
            plan
        );
        let dense = BTreeMap::from([(path(0, "up"), None)]);
        assert_eq!(QuantizationPlan::of_blocks(&dense), None);
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
    fn plans_read_and_write_notes() {
        let four_bit =
            r#"{"format":"nf4","block_size":64,"double_quant":true,"skip_modules":["lm_head"]}"#;
        let int8 = r#"{"format":"int8","skip_modules":["lm_head"]}"#;
        let nf6 =
            r#"{"format":"nf6","block_size":64,"double_quant":true,"skip_modules":["lm_head"]}"#;
        let known = [
            (four_bit, Scheme::NF4),
            (int8, Scheme::Int8),
            (nf6, Scheme::nested(NestedFormat::Nf6)),
        ];
        for (text, scheme) in known {
            let plan = QuantizationPlan::new(scheme);
            assert_eq!(serde_json::to_string(&plan).unwrap(), text);
            assert_eq!(
                serde_json::from_str::<QuantizationPlan>(text).unwrap(),
                plan
            );
        }
        let unknown = r#"{"format":"nf9","skip_modules":[]}"#;
        let error = serde_json::from_str::<QuantizationPlan>(unknown).unwrap_err();
        let expected = r#""nf6", "int8", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k" or "q6_k", but is "nf9""#;
        assert!(error.to_string().contains(expected), "{error}");
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
    fn every_format_is_a_scheme_by_its_name() {
        let formats = FourBitFormat::NAMES.iter().chain(NestedFormat::NAMES);
        let formats = formats.chain(&["int8"]).chain(GgufBlock::NAMES);
        assert!(formats.eq(Scheme::NAMES));
        for (scheme, name) in Scheme::ALL.into_iter().zip(Scheme::NAMES) {
            assert_eq!(name.parse(), Ok(scheme));
        }
        assert_eq!(Scheme::Int8.with_scales(128, false), Scheme::Int8);
    }

    #[test]
    fn sizes_are_those_of_the_parts() {
        // 64·64 values: 2048 bytes of codes and 64 scales.
        let single = Scheme::four_bit(FourBitFormat::Fp4).with_scales(64, false);
        assert_eq!(single.num_bytes([64, 64]), 2048 + 256);
        assert_eq!(Scheme::NF4.num_bytes([64, 64]), 2048 + 64 + 4 + 4);
        assert_eq!(Scheme::Int8.num_bytes([64, 64]), 4096 + 256);
        for (format, bytes) in [
            (NestedFormat::Nf3, 1024 + 512),
            (NestedFormat::Nf5, 2048 + 512),
            (NestedFormat::Nf6, 2048 + 1024),
        ] {
            let scheme = Scheme::nested(format);
            assert_eq!(scheme.num_bytes([64, 64]), bytes + 64 + 4 + 4, "{scheme}");
        }
        assert_eq!(Scheme::Gguf(GgufBlock::Q8_0).num_bytes([3, 64]), 6 * 34);
        assert_eq!(Scheme::Gguf(GgufBlock::Q6_K).num_bytes([3, 512]), 6 * 210);
    }
}
