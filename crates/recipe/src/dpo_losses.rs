//! `objective.loss` and `objective.loss_weights`: losses of DPO, one or several that are summed.

use backdraft_arch::named;
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::de::DeValue;

use crate::reader::{Reader, Value};

named! {
    /// Losses of DPO.
    DpoLoss {
        /// −ln σ(β(Δc − Δr)).
        #[default]
        Sigmoid = "sigmoid",
        /// The same of means over tokens.
        SigmoidNorm = "sigmoid_norm",
        /// A square around a margin of 1 / (2β), of means over tokens.
        Ipo = "ipo",
        /// max(0, 1 − β(Δc − Δr)).
        Hinge = "hinge",
        /// The sigmoid loss made free of the bias that flipped labels give it.
        Robust = "robust",
        /// Raises the chosen answer and lowers the rejected one.
        ApoZero = "apo_zero",
        /// Lowers both, the rejected one more.
        ApoDown = "apo_down",
        /// Noise-contrastive.
        NcaPair = "nca_pair",
    }
}

impl DpoLoss {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether labels can be smoothed.
    #[must_use]
    pub const fn smooths(self) -> bool {
        matches!(self, Self::Sigmoid | Self::Robust)
    }
}

impl Value for DpoLoss {
    const EXPECTED: &'static str = "a name in quotes";
    const NAMES: &'static [&'static str] = Self::NAMES;
}

/// Losses of a pair that are summed, and what each counts. They have the order of [`DpoLoss::ALL`], so that the order in
/// which a recipe names them changes no bit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DpoLosses {
    /// 0 where a loss is absent.
    weights: [f64; DpoLoss::COUNT],
}

impl Default for DpoLosses {
    fn default() -> Self {
        Self::one(DpoLoss::default())
    }
}

impl DpoLosses {
    /// One loss, as it is.
    #[must_use]
    pub const fn one(loss: DpoLoss) -> Self {
        let mut weights = [0.0; DpoLoss::COUNT];
        weights[loss as usize] = 1.0;
        Self { weights }
    }

    /// Several, each with what it counts.
    #[must_use]
    pub fn weighted(losses: impl IntoIterator<Item = (DpoLoss, f64)>) -> Self {
        let mut weights = [0.0; DpoLoss::COUNT];
        for (loss, weight) in losses {
            weights[loss as usize] = weight;
        }
        Self { weights }
    }

    /// The losses, and what each counts.
    pub fn iter(self) -> impl Iterator<Item = (DpoLoss, f64)> {
        let all = DpoLoss::ALL.iter().copied().zip(self.weights);
        all.filter(|(_, weight)| *weight != 0.0)
    }

    /// Whether there are several.
    #[must_use]
    pub fn are_several(self) -> bool {
        self.iter().count() > 1
    }
}

/// As a recipe has them: `loss`, and `loss_weights` where it is not one loss that counts 1.
impl Serialize for DpoLosses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (losses, weights): (Vec<DpoLoss>, Vec<f64>) = self.iter().unzip();
        let mut fields = serializer.serialize_struct("DpoLosses", 2)?;
        match losses.as_slice() {
            [one] if weights == [1.0] => fields.serialize_field("loss", one)?,
            several => {
                fields.serialize_field("loss", several)?;
                fields.serialize_field("loss_weights", &weights)?;
            }
        }
        fields.end()
    }
}

/// A loss of a list, or the nll of the chosen answers, which TRL names among them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Term {
    Pairs(DpoLoss),
    Sft,
}

impl Default for Term {
    fn default() -> Self {
        Self::Pairs(DpoLoss::default())
    }
}

impl Term {
    const SFT: &'static str = "sft";
    const NAMES: [&'static str; DpoLoss::COUNT + 1] = {
        let mut names = [Self::SFT; DpoLoss::COUNT + 1];
        let (all, _) = names.split_at_mut(DpoLoss::COUNT);
        all.copy_from_slice(DpoLoss::NAMES);
        names
    };
}

impl<'de> Deserialize<'de> for Term {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name == Self::SFT {
            return Ok(Self::Sft);
        }
        let loss = name.parse().map_err(serde::de::Error::custom)?;
        Ok(Self::Pairs(loss))
    }
}

impl Value for Term {
    const EXPECTED: &'static str = LIST;
    const NAMES: &'static [&'static str] = &Self::NAMES;
}

const LOSS: &str = "objective.loss";
const WEIGHTS: &str = "objective.loss_weights";
const LIST: &str = "a name in quotes, or a list of at least one loss of pairs, each once, such as [\"sigmoid\", \"sft\"]";

/// The losses of pairs, and the weight of `sft` where the list has it.
pub(crate) fn dpo_losses(reader: &mut Reader<'_>) -> (DpoLosses, Option<f64>) {
    let before = reader.problem_count();
    let terms = terms(reader);
    let weights = reader.optional::<Vec<f64>>(WEIGHTS);
    if reader.problem_count() > before {
        return (DpoLosses::default(), None);
    }
    let weights = weights.unwrap_or_else(|| vec![1.0; terms.len()]);
    let valid = weights
        .iter()
        .all(|weight| *weight > 0.0 && weight.is_finite());
    if weights.len() != terms.len() || !valid {
        reader.reject(WEIGHTS, "a number above 0 for each of objective.loss");
        return (DpoLosses::default(), None);
    }
    let all = || terms.iter().copied().zip(weights.iter().copied());
    let losses = all().filter_map(|(term, weight)| match term {
        Term::Pairs(loss) => Some((loss, weight)),
        Term::Sft => None,
    });
    let sft = all().find(|(term, _)| *term == Term::Sft);
    (DpoLosses::weighted(losses), sft.map(|(_, weight)| weight))
}

fn terms(reader: &mut Reader<'_>) -> Vec<Term> {
    let is_list = match reader.entry(LOSS) {
        None => return vec![Term::default()],
        Some(entry) => matches!(entry.value.get_ref(), DeValue::Array(_)),
    };
    if !is_list {
        let loss: Option<DpoLoss> = reader.optional(LOSS);
        return loss.map(Term::Pairs).into_iter().collect();
    }
    let before = reader.problem_count();
    let terms: Vec<Term> = reader.list_as(LOSS, LIST);
    let twice = (1..terms.len()).any(|i| terms[..i].contains(&terms[i]));
    let pairs = terms.iter().any(|term| *term != Term::Sft);
    if reader.problem_count() == before && (twice || !pairs) {
        reader.reject(LOSS, LIST);
    }
    terms
}
