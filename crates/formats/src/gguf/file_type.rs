//! What a whole file is stored as: one type, or a mixture by layer.

use super::ggml_type::GgmlType;

/// How a model is written, by llama.cpp's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(
    missing_docs,
    non_camel_case_types,
    reason = "the names are those of llama.cpp"
)]
pub enum GgufFileType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q4_K_M,
    Q4_K_S,
    Q5_1,
    Q5_0,
    Q4_1,
    Q4_0,
}

impl GgufFileType {
    /// Every type, the largest files first.
    pub const ALL: [Self; 13] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q6_K,
        Self::Q5_K_M,
        Self::Q5_K_S,
        Self::Q4_K_M,
        Self::Q4_K_S,
        Self::Q5_1,
        Self::Q5_0,
        Self::Q4_1,
        Self::Q4_0,
    ];

    /// The number in `general.file_type`.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q4_K_S => 14,
            Self::Q4_K_M => 15,
            Self::Q5_K_S => 16,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// The name on a command line and in a file's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q6_K => "q6_k",
            Self::Q5_K_M => "q5_k_m",
            Self::Q5_K_S => "q5_k_s",
            Self::Q4_K_M => "q4_k_m",
            Self::Q4_K_S => "q4_k_s",
            Self::Q5_1 => "q5_1",
            Self::Q5_0 => "q5_0",
            Self::Q4_1 => "q4_1",
            Self::Q4_0 => "q4_0",
        }
    }

    /// The type of a matrix that no rule singles out.
    const fn common(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::BF16 => GgmlType::BF16,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q6_K => GgmlType::Q6_K,
            Self::Q5_K_M | Self::Q5_K_S => GgmlType::Q5_K,
            Self::Q4_K_M | Self::Q4_K_S => GgmlType::Q4_K,
            Self::Q5_1 => GgmlType::Q5_1,
            Self::Q5_0 => GgmlType::Q5_0,
            Self::Q4_1 => GgmlType::Q4_1,
            Self::Q4_0 => GgmlType::Q4_0,
        }
    }

    /// The type of one tensor: that of the mixture, or its stand-in where blocks do not divide the rows.
    ///
    /// # Source
    /// The choices of `llama_model_quantize`, for models without experts and without an importance matrix.
    pub(super) fn of_tensor(self, tensor: &str, shape: &[usize], model: &Mixture) -> GgmlType {
        let width = match *shape {
            [_, width] if !tensor.ends_with(".ssm_conv1d.weight") => width,
            _ => return GgmlType::F32,
        };
        let kind = match self {
            Self::F32 | Self::F16 | Self::BF16 => return self.common(),
            _ if model.is_head(tensor) => match self {
                Self::Q8_0 => GgmlType::Q8_0,
                _ => GgmlType::Q6_K,
            },
            _ => match layer(tensor) {
                Some((layer, "attn_v" | "attn_qkv")) => self.of_values(layer, model),
                Some((layer, "ffn_down")) => self.of_down(layer, model.layers),
                _ => self.common(),
            },
        };
        fitting(kind, width)
    }

    fn of_values(self, layer: usize, model: &Mixture) -> GgmlType {
        // llama.cpp counts matrices of values, not layers.
        let (layer, layers) = model.place_of_values(layer);
        match self {
            Self::Q4_K_M | Self::Q5_K_M if is_important(layer, layers) => GgmlType::Q6_K,
            Self::Q4_K_S if layer < 4 => GgmlType::Q5_K,
            // Eight heads share these values, so more bits cost little.
            Self::Q4_K_M | Self::Q4_K_S if model.is_70b => GgmlType::Q5_K,
            _ => self.common(),
        }
    }

    fn of_down(self, layer: usize, layers: usize) -> GgmlType {
        match self {
            Self::Q4_K_M | Self::Q5_K_M if is_important(layer, layers) => GgmlType::Q6_K,
            Self::Q4_K_S if layer < layers / 8 => GgmlType::Q5_K,
            _ => self.common(),
        }
    }
}

/// What the choice of types asks about a model.
#[derive(Debug, Clone)]
pub(super) struct Mixture {
    pub(super) layers: usize,
    /// The layers that have a matrix of values, in order.
    pub(super) values: Vec<usize>,
    /// Whether the embedding is the head.
    pub(super) tied: bool,
    /// 80 layers of grouped heads: what llama.cpp takes for a model of 70 billion weights.
    pub(super) is_70b: bool,
}

impl Mixture {
    /// The place of a layer among those with a matrix of values, and how many these are.
    fn place_of_values(&self, layer: usize) -> (usize, usize) {
        let before = self.values.iter().filter(|&&other| other < layer);
        (before.count(), self.values.len())
    }

    fn is_head(&self, tensor: &str) -> bool {
        match self.tied {
            true => tensor == "token_embd.weight",
            false => tensor == "output.weight",
        }
    }
}

/// The layer whose matrix of values a tensor is.
pub(super) fn value_layer(tensor: &str) -> Option<usize> {
    let (layer, module) = layer(tensor)?;
    ["attn_v", "attn_qkv"].contains(&module).then_some(layer)
}

/// `blk.3.attn_v.weight`: layer 3, `attn_v`.
fn layer(tensor: &str) -> Option<(usize, &str)> {
    let (layer, rest) = tensor.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest.strip_suffix(".weight")?))
}

/// The first and the last eighth of the layers, and every third between.
fn is_important(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The type itself, or what stands in for it in rows of `width`.
fn fitting(kind: GgmlType, width: usize) -> GgmlType {
    let fits = |kind: GgmlType| width.is_multiple_of(kind.block_elements());
    let narrow = match kind {
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q6_K => GgmlType::Q8_0,
        other => other,
    };
    match (fits(kind), fits(narrow)) {
        (true, _) => kind,
        (false, true) => narrow,
        (false, false) => GgmlType::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn important(layers: usize) -> Vec<usize> {
        let all = 0..layers;
        all.filter(|layer| is_important(*layer, layers)).collect()
    }

    #[test]
    fn layers_with_more_bits() {
        assert_eq!(important(4), [2, 3]);
        assert_eq!(important(16), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(important(22), [0, 1, 4, 7, 10, 13, 16, 19, 20, 21]);
        let of_28 = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27];
        assert_eq!(important(28), of_28);
    }

    /// SmolLM2-135M, as llama.cpp quantises it.
    #[test]
    fn narrow_rows_have_stand_ins() {
        let model = Mixture {
            layers: 30,
            values: (0..30).collect(),
            tied: true,
            is_70b: false,
        };
        let kind = |tensor, width| GgufFileType::Q4_K_M.of_tensor(tensor, &[576, width], &model);
        assert_eq!(kind("token_embd.weight", 576), GgmlType::Q8_0);
        assert_eq!(kind("blk.3.attn_q.weight", 576), GgmlType::Q5_0);
        assert_eq!(kind("blk.0.attn_v.weight", 576), GgmlType::Q8_0);
        assert_eq!(kind("blk.3.attn_v.weight", 576), GgmlType::Q5_0);
        assert_eq!(kind("blk.0.ffn_down.weight", 1536), GgmlType::Q6_K);
        assert_eq!(kind("blk.3.ffn_down.weight", 1536), GgmlType::Q4_K);
        assert_eq!(kind("blk.3.ffn_down.weight", 20), GgmlType::F16);
        let norm = GgufFileType::Q4_K_M.of_tensor("blk.0.attn_norm.weight", &[576], &model);
        assert_eq!(norm, GgmlType::F32);
        let taps = GgufFileType::F16.of_tensor("blk.0.ssm_conv1d.weight", &[576, 4], &model);
        assert_eq!(taps, GgmlType::F32);
    }

    /// Layers whose values are their keys are passed over.
    #[test]
    fn matrices_of_values_are_counted() {
        let model = Mixture {
            layers: 12,
            values: (0..12).filter(|layer| layer % 3 != 2).collect(),
            tied: true,
            is_70b: false,
        };
        let kind = |layer| {
            let tensor = format!("blk.{layer}.attn_v.weight");
            GgufFileType::Q4_K_M.of_tensor(&tensor, &[256, 256], &model)
        };
        let important: Vec<_> = (model.values.iter().copied())
            .filter(|&layer| kind(layer) == GgmlType::Q6_K)
            .collect();
        // Of eight, the first, every third behind it, and the last.
        assert_eq!(important, [0, 4, 9, 10]);
    }

    #[test]
    fn grouped_values_of_70b() {
        let model = Mixture {
            layers: 80,
            values: (0..80).collect(),
            tied: false,
            is_70b: true,
        };
        let kind = |layer| {
            let tensor = format!("blk.{layer}.attn_v.weight");
            GgufFileType::Q4_K_M.of_tensor(&tensor, &[1024, 8192], &model)
        };
        assert_eq!(kind(0), GgmlType::Q6_K);
        assert_eq!(kind(11), GgmlType::Q5_K);
    }
}
