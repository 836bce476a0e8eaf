//! Bits that are dealt out by measurement: as a number, or as what memory and time allow.

use backdraft_arch::{ModelSpec, QuantizationPlan};
use backdraft_plan::cost::CostModel;
use backdraft_plan::tensors::{MemoryModel, PassShape};
use backdraft_plan::{Planner, Setup};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::reader::Value;
use crate::{ByteSize, QuantizationRecipe, Recipe};

/// `quantization.bits`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bits {
    /// Mean bits of a quantised weight, scales included.
    Mean(f64),
    /// As many as cost little time in the memory that there is; [`Recipe::settle_bits`] puts a number in its place.
    Auto,
}

impl Default for Bits {
    fn default() -> Self {
        Self::Mean(4.5)
    }
}

const AUTO: &str = "auto";

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Mean(bits) => serializer.serialize_f64(*bits),
            Self::Auto => serializer.serialize_str(AUTO),
        }
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Name(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(bits) => Ok(Self::Mean(bits)),
            Written::Name(name) if name == AUTO => Ok(Self::Auto),
            Written::Name(name) => Err(D::Error::custom(format!("unknown bits {name:?}"))),
        }
    }
}

impl Value for Bits {
    const EXPECTED: &'static str = "a number such as 4.5, or \"auto\"";
}

/// The most time that more bits may cost under `bits = "auto"`, as a share of a step's.
pub const AUTO_TIME: f64 = 0.05;

/// What `auto` chooses from, between the least and the most that `formats` can make.
const STEPS: [f64; 14] = [
    3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 4.75, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0,
];

/// `quantization.base_memory` is less than the base takes in the smallest formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantization.base_memory = \"{asked}\": embeddings, norms and what is not quantized take {dense} bytes, and the projections \
     {least} bytes in the smallest of quantization.formats; raise it to {} MiB, or add a smaller format",
    (dense + least).div_ceil(1 << 20)
)]
pub struct BaseTooSmall {
    /// What the recipe says.
    pub asked: ByteSize,
    /// Bytes of what is not quantised.
    pub dense: u64,
    /// Bytes of the projections at least.
    pub least: u64,
}

impl QuantizationRecipe {
    /// The keys that have precision dealt out by measurement.
    pub(crate) fn dealing_keys(&self) -> impl Iterator<Item = &'static str> {
        let keys = [
            ("quantization.bits", self.bits.is_some()),
            ("quantization.base_memory", self.base_memory.is_some()),
        ];
        keys.into_iter()
            .filter_map(|(key, deals)| deals.then_some(key))
    }

    /// Whether precision is dealt out by measurement.
    #[must_use]
    pub const fn deals_bits(&self) -> bool {
        self.bits.is_some() || self.base_memory.is_some()
    }
}

impl Recipe {
    /// Whether precision is dealt out by measurement.
    #[must_use]
    pub const fn deals_bits(&self) -> bool {
        self.quantization.deals_bits()
    }

    /// Mean bits that are dealt out; `None` where none are, or where [`settle_bits`](Self::settle_bits) has yet to say how
    /// many.
    #[must_use]
    pub const fn mean_bits(&self) -> Option<f64> {
        match (self.quantization.bits, self.quantization.base_memory) {
            (Some(Bits::Mean(bits)), None) => Some(bits),
            _ => None,
        }
    }

    /// Whether bits are asked for and not a number yet.
    #[must_use]
    pub const fn has_open_bits(&self) -> bool {
        self.deals_bits() && self.mean_bits().is_none()
    }

    /// Puts a number in place of `bits = "auto"` and of `base_memory`.
    ///
    /// `"auto"` is the most bits, up to 8, under which a step over `pass` is predicted to take at most [`AUTO_TIME`] longer
    /// than under NF4's: what memory they take, the activations lack. Where NF4 does not fit, it is the most that fits.
    ///
    /// # Units
    /// `budget` bytes for everything in a step, base included.
    ///
    /// # Errors
    /// [`BaseTooSmall`].
    pub fn settle_bits(
        &mut self,
        spec: &ModelSpec,
        (memory, host): (MemoryModel, u64),
        (budget, cost): (u64, &CostModel),
        pass: Option<PassShape>,
    ) -> Result<(), BaseTooSmall> {
        if !self.has_open_bits() {
            return Ok(());
        }
        let setup = self.setup(spec.clone(), self.quantization_plan(), memory, host);
        let bits = match self.quantization.base_memory.take() {
            Some(asked) => self.bits_within(&setup, asked)?,
            None => {
                let pass = pass.unwrap_or_else(|| setup.pass());
                self.bits_in_time(spec, (memory, host), (budget, cost), pass)
            }
        };
        // Two decimals, downwards: what the recipe of the run says is what it got.
        self.quantization.bits = Some(Bits::Mean((bits * 100.0).floor() / 100.0));
        Ok(())
    }

    /// The least and the most bits that formats can make of projections, and how many values these have.
    fn range(&self, plan: &QuantizationPlan, spec: &ModelSpec) -> ([u64; 2], u64) {
        let formats = &self.quantization.formats;
        let (mut range, mut values) = ([0; 2], 0);
        for (layer, target) in spec.projections() {
            if plan.scheme_for(&target.path(layer)).is_none() {
                continue;
            }
            let dims = spec.layers[layer].shape(target);
            let sizes = formats
                .iter()
                .map(|&one| plan.scheme_of(one).num_bytes(dims) as u64);
            range[0] += sizes.clone().min().unwrap_or(0);
            range[1] += sizes.max().unwrap_or(0);
            values += (dims[0] * dims[1]) as u64;
        }
        (range, values)
    }

    /// Bytes of the projections in the smallest of `formats`, and how many values they have.
    #[must_use]
    pub fn least_bytes(&self, plan: &QuantizationPlan, spec: &ModelSpec) -> (u64, u64) {
        let ([least, _], values) = self.range(plan, spec);
        (least, values)
    }

    fn bits_within(&self, setup: &Setup, asked: ByteSize) -> Result<f64, BaseTooSmall> {
        let Some(plan) = &setup.quantization else {
            unreachable!("bits are dealt out over a quantised base");
        };
        let ([least, most], values) = self.range(plan, &setup.spec);
        let (_, stored) = plan.quantized(&setup.spec);
        let dense = setup.base_bytes() - stored;
        let room = asked.0.saturating_sub(dense);
        if room < least {
            return Err(BaseTooSmall {
                asked,
                dense,
                least,
            });
        }
        // Rounding down must not fall below what there is.
        let bits = |bytes: u64| 8.0 * bytes as f64 / values.max(1) as f64;
        Ok(bits(room.min(most)).max((bits(least) * 100.0).ceil() / 100.0))
    }

    fn bits_in_time(
        &self,
        spec: &ModelSpec,
        (memory, host): (MemoryModel, u64),
        (budget, cost): (u64, &CostModel),
        pass: PassShape,
    ) -> f64 {
        let Some(plan) = self.quantization_plan() else {
            unreachable!("bits are dealt out over a quantised base");
        };
        let ([least, most], values) = self.range(&plan, spec);
        let [least, most] = [least, most].map(|bytes| {
            // Upwards, so that rounding down leaves enough.
            (800.0 * bytes as f64 / values.max(1) as f64).ceil() / 100.0
        });
        let seconds = |bits: f64| {
            let mut trial = self.clone();
            trial.quantization.bits = Some(Bits::Mean(bits));
            trial.quantization.base_memory = None;
            let plan = trial.quantization_plan();
            let step = trial.setup(spec.clone(), plan, memory, host).step();
            let mut planner = Planner::new(step, self.activation_policy, budget, cost.clone());
            let planned = planner.plan(pass).ok()?;
            let fits = planned.prediction.peak.total() <= budget;
            fits.then_some(planned.prediction.seconds)
        };
        let nf4: f64 = if self.quantization.double_quant {
            4.13
        } else {
            4.5
        };
        let allowed = seconds(nf4.clamp(least, most)).map(|one| one * (1.0 + AUTO_TIME));
        let mut choices = vec![least];
        choices.extend(
            STEPS
                .into_iter()
                .filter(|bits| (least..=most).contains(bits)),
        );
        let fast = |bits: &&f64| {
            let seconds = seconds(**bits);
            seconds.is_some_and(|one| allowed.is_none_or(|allowed| one <= allowed))
        };
        choices.iter().rev().find(fast).copied().unwrap_or(least)
    }
}

#[cfg(test)]
mod tests {
    use backdraft_plan::cost::Roofline;

    use super::*;
    fn recipe_of(lines: &str) -> Recipe {
        let text = format!("model = \"org/name\"\ndata.train = \"rows.jsonl\"\n{lines}");
        Recipe::from_toml(&text, std::path::Path::new("/recipes"), &[]).unwrap()
    }

    fn eight_billion() -> ModelSpec {
        ModelSpec::from_hf(&serde_json::json!({
            "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131_072, "rope_theta": 500_000.0, "hidden_act": "silu",
        }))
        .unwrap()
    }

    fn settled(more: &str, budget: u64) -> Result<f64, BaseTooSmall> {
        let mut recipe = recipe_of(&format!("load_in_4bit = true\n{more}"));
        assert!(recipe.has_open_bits());
        let cost = CostModel::Roofline(Roofline::GPU);
        let memory = (MemoryModel::cube(2), 0);
        recipe.settle_bits(&eight_billion(), memory, (budget, &cost), None)?;
        Ok(recipe.mean_bits().unwrap())
    }

    #[test]
    fn auto_takes_what_memory_leaves_at_little_cost() {
        let auto = |gib: u64| settled("[quantization]\nbits = \"auto\"", gib << 30).unwrap();
        assert_eq!(auto(80), 8.0);
        let bits = [6, 7, 8, 9, 10, 12, 24].map(auto);
        assert!(bits.is_sorted(), "{bits:?}");
        // Less than NF4 needs: smaller formats.
        assert!(bits[0] < 4.13 && bits[6] > 4.5, "{bits:?}");
    }

    #[test]
    fn a_base_takes_the_memory_that_it_is_given() {
        let base = |size: &str| {
            settled(
                &format!("[quantization]\nbase_memory = \"{size}\""),
                u64::MAX,
            )
        };
        let bits = base("6GiB").unwrap();
        // The embedding is in the host's memory.
        let dense = 2 * (128_256 * 4096 + 65 * 4096) as u64;
        let values: u64 = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096 + 3 * 14336 * 4096);
        let exact = 8.0 * ((6 << 30) - dense) as f64 / values as f64;
        assert!(
            (exact - bits).abs() < 0.01 && bits <= exact,
            "{exact} {bits}"
        );
        // No more than the largest format takes.
        assert!((8.0..8.1).contains(&base("40GiB").unwrap()));
        let error = base("2GiB").unwrap_err().to_string();
        assert!(
            error.contains("base_memory = \"2GiB\"") && error.contains("MiB"),
            "{error}"
        );
    }

    #[test]
    fn bits_are_a_number_or_auto() {
        let bits = |text: &str| {
            recipe_of(&format!(
                "load_in_4bit = true\n[quantization]\nbits = {text}"
            ))
            .quantization
            .bits
        };
        assert_eq!(bits("5"), Some(Bits::Mean(5.0)));
        assert_eq!(bits("4.25"), Some(Bits::Mean(4.25)));
        assert_eq!(bits("\"auto\""), Some(Bits::Auto));
    }
}
