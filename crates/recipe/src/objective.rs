//! `[objective]`: what a run minimises.

use backdraft_arch::{AdapterStart, named};
use serde::Serialize;

use crate::dpo_losses::{DpoLosses, dpo_losses};
use crate::reader::{Reader, Value};
use crate::{LoraRecipe, QuantizationRecipe};

named! {
    /// Kinds of objectives.
    ObjectiveKind {
        /// Mean nll of the supervised tokens.
        #[default]
        Sft = "sft",
        /// Pairs, against a reference.
        Dpo = "dpo",
        /// Pairs by their odds, beside the nll of the chosen text.
        Orpo = "orpo",
        /// Pairs by their mean log-likelihoods, with a margin.
        Simpo = "simpo",
        /// Pairs by their log-likelihoods, beside the nll of the chosen answers.
        Cpo = "cpo",
        /// Single answers that are good or bad, against a reference.
        Kto = "kto",
        /// Pairs, by what a head with one row makes of them.
        Reward = "reward",
    }
}

named! {
    /// What answers are compared with.
    ReferenceStart {
        /// The model that training begins with: the base with `lora.adapter`, kept as it is, where there is one.
        #[default]
        Start = "start",
        /// The base alone.
        Base = "base",
    }
}

impl Value for ObjectiveKind {
    const EXPECTED: &'static str = "a name in quotes";
    const NAMES: &'static [&'static str] = Self::NAMES;
}

impl Value for ReferenceStart {
    const EXPECTED: &'static str = "a name in quotes";
    const NAMES: &'static [&'static str] = Self::NAMES;
}

/// What a run minimises. Only the options of its kind are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ObjectiveRecipe {
    /// Mean nll of the supervised tokens.
    #[default]
    Sft,
    /// Direct preference optimisation.
    Dpo {
        /// How far from the reference, above 0.
        beta: f64,
        /// The losses of a pair.
        #[serde(flatten)]
        losses: DpoLosses,
        /// Share of pairs that are the wrong way round, in `[0, 0.5)`.
        label_smoothing: f64,
        /// Weight of the mean nll of the chosen answers.
        sft_weight: f64,
        /// What answers are compared with.
        reference: ReferenceStart,
        /// Whether the reference's log-likelihoods are computed once, before the first step.
        precompute_reference: bool,
    },
    /// Odds-ratio preference optimisation.
    Orpo {
        /// Weight of the odds ratio, above 0.
        beta: f64,
    },
    /// Simple preference optimisation.
    Simpo {
        /// Scale of the margin, above 0.
        beta: f64,
        /// The margin itself.
        gamma: f64,
        /// Share of pairs that are the wrong way round, in `[0, 0.5)`.
        label_smoothing: f64,
        /// Weight of the mean nll of the chosen answers.
        sft_weight: f64,
    },
    /// Contrastive preference optimisation.
    Cpo {
        /// Scale of the margin, above 0.
        beta: f64,
        /// Share of pairs that are the wrong way round, in `[0, 0.5)`.
        label_smoothing: f64,
        /// Weight of the mean nll of the chosen answers.
        sft_weight: f64,
    },
    /// Kahneman–Tversky optimisation.
    Kto {
        /// How far from the reference, above 0.
        beta: f64,
        /// Weight of desirable answers.
        desirable_weight: f64,
        /// Weight of undesirable ones.
        undesirable_weight: f64,
        /// What answers are compared with.
        reference: ReferenceStart,
    },
    /// A reward model: a head with one row scores answers, and pairs are compared as by Bradley and Terry.
    Reward {
        /// The margin that a pair should have.
        gamma: f64,
        /// Weight of the squared sum of a pair's scores, which keeps them around 0.
        center_rewards_coefficient: f64,
    },
}

impl ObjectiveRecipe {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> ObjectiveKind {
        match self {
            Self::Sft => ObjectiveKind::Sft,
            Self::Dpo { .. } => ObjectiveKind::Dpo,
            Self::Orpo { .. } => ObjectiveKind::Orpo,
            Self::Simpo { .. } => ObjectiveKind::Simpo,
            Self::Cpo { .. } => ObjectiveKind::Cpo,
            Self::Kto { .. } => ObjectiveKind::Kto,
            Self::Reward { .. } => ObjectiveKind::Reward,
        }
    }

    /// What answers are compared with, where they are compared with those of another model.
    #[must_use]
    pub const fn reference(&self) -> Option<ReferenceStart> {
        match self {
            Self::Dpo { reference, .. } | Self::Kto { reference, .. } => Some(*reference),
            Self::Sft
            | Self::Orpo { .. }
            | Self::Simpo { .. }
            | Self::Cpo { .. }
            | Self::Reward { .. } => None,
        }
    }

    /// Whether a head scores answers, in place of one that predicts tokens.
    #[must_use]
    pub const fn scores(&self) -> bool {
        matches!(self, Self::Reward { .. })
    }

    /// Whether what the reference says of all answers is computed once, before the first step.
    #[must_use]
    pub const fn precomputes_reference(&self) -> bool {
        matches!(
            self,
            Self::Dpo {
                precompute_reference: true,
                ..
            }
        )
    }
}

pub(crate) fn objective(
    reader: &mut Reader<'_>,
    quantization: &QuantizationRecipe,
    lora: &LoraRecipe,
) -> ObjectiveRecipe {
    use ObjectiveKind as K;

    let kind: ObjectiveKind = reader.value("objective.kind");
    let pairs: &[K] = &[K::Dpo, K::Simpo, K::Cpo];
    let beta_default = if kind == K::Simpo { 2.0 } else { 0.1 };
    let sft_default = if kind == K::Cpo { 1.0 } else { 0.0 };
    let scaled: &[K] = &[K::Dpo, K::Orpo, K::Simpo, K::Cpo, K::Kto];
    let beta = option(reader, kind, "beta", scaled, beta_default, ABOVE);
    let (losses, listed) = losses(reader, kind);
    let label_smoothing = option(reader, kind, "label_smoothing", pairs, 0.0, BELOW_HALF);
    if kind == K::Dpo && label_smoothing != 0.0 && !losses.iter().any(|(loss, _)| loss.smooths()) {
        let instead = "only \"sigmoid\" and \"robust\" smooth labels; take one of the two out";
        let names: Vec<String> = losses
            .iter()
            .map(|(loss, _)| format!("\"{loss}\""))
            .collect();
        reader.conflict(
            "objective.label_smoothing",
            format!("loss = {}", names.join(", ")),
            instead,
        );
    }
    let sft_weight = option(reader, kind, "sft_weight", pairs, sft_default, NOT_NEGATIVE);
    if listed.is_some() && reader.has("objective.sft_weight") {
        let instead = "both weigh the mean loss of the chosen answers; take one of the two out";
        reader.conflict("objective.sft_weight", "\"sft\" in objective.loss", instead);
    }
    let sft_weight = listed.unwrap_or(sft_weight);
    let gamma_default = if kind == K::Simpo { 0.5 } else { 0.0 };
    let with_gamma: &[K] = &[K::Simpo, K::Reward];
    let gamma = option(
        reader,
        kind,
        "gamma",
        with_gamma,
        gamma_default,
        NOT_NEGATIVE,
    );
    let center = "center_rewards_coefficient";
    let center = option(reader, kind, center, &[K::Reward], 0.0, NOT_NEGATIVE);
    let [desirable_weight, undesirable_weight] = ["desirable_weight", "undesirable_weight"]
        .map(|name| option(reader, kind, name, &[K::Kto], 1.0, NOT_NEGATIVE));
    let reference = reference(reader, kind);
    let precompute_reference = precompute(reader, kind);
    let objective = match kind {
        K::Sft => ObjectiveRecipe::Sft,
        K::Dpo => ObjectiveRecipe::Dpo {
            beta,
            losses,
            label_smoothing,
            sft_weight,
            reference,
            precompute_reference,
        },
        K::Orpo => ObjectiveRecipe::Orpo { beta },
        K::Simpo => ObjectiveRecipe::Simpo {
            beta,
            gamma,
            label_smoothing,
            sft_weight,
        },
        K::Cpo => ObjectiveRecipe::Cpo {
            beta,
            label_smoothing,
            sft_weight,
        },
        K::Kto => ObjectiveRecipe::Kto {
            beta,
            desirable_weight,
            undesirable_weight,
            reference,
        },
        K::Reward => ObjectiveRecipe::Reward {
            gamma,
            center_rewards_coefficient: center,
        },
    };
    if objective.scores() {
        without_tokens(reader, quantization, lora);
    }
    if objective.reference().is_some() {
        stays(reader, kind, quantization, lora);
    }
    objective
}

/// What answers are compared with, which kinds without a reference refuse.
fn reference(reader: &mut Reader<'_>, kind: ObjectiveKind) -> ReferenceStart {
    const KEY: &str = "objective.reference";
    let reference = reader.optional(KEY).unwrap_or_default();
    if !matches!(kind, ObjectiveKind::Dpo | ObjectiveKind::Kto) && reader.has(KEY) {
        refuse(reader, KEY, kind);
    }
    reference
}

/// Whether log-likelihoods are computed before: only of pairs, whose answers alone are asked for.
fn precompute(reader: &mut Reader<'_>, kind: ObjectiveKind) -> bool {
    const KEY: &str = "objective.precompute_reference";
    let precompute = reader.optional(KEY).unwrap_or_default();
    if kind == ObjectiveKind::Kto && precompute {
        let instead = "kto also asks the reference about prompts with the answers of other rows of the step, which no row tells before; take it out";
        reader.conflict(KEY, format!("objective.kind = \"{kind}\""), instead);
    } else if !matches!(kind, ObjectiveKind::Dpo | ObjectiveKind::Kto) && reader.has(KEY) {
        refuse(reader, KEY, kind);
    }
    precompute
}

/// Refuses what takes a part of the reference's weights, or moves them.
fn stays(
    reader: &mut Reader<'_>,
    kind: ObjectiveKind,
    quantization: &QuantizationRecipe,
    lora: &LoraRecipe,
) {
    let other = format!("objective.kind = \"{kind}\"");
    if lora.init != AdapterStart::Default {
        let instead = "the reference is the base without a fresh adapter, which has to start at zero; write init = \"default\"";
        reader.conflict("lora.init", &*other, instead);
    }
    if quantization.deals_bits() && quantization.adapt_at.iter().any(|share| *share > 0.0) {
        let instead = "the reference is the base, which must not change in the middle of a run; write adapt_at = [0.0]";
        reader.conflict("quantization.adapt_at", &*other, instead);
    }
}

/// Refuses what goes by the probabilities of tokens, or trains a table of them, where a head scores texts.
fn without_tokens(reader: &mut Reader<'_>, quantization: &QuantizationRecipe, lora: &LoraRecipe) {
    const OTHER: &str = "objective.kind = \"reward\"";
    if lora.init != AdapterStart::Default {
        let instead = "a reward model's adapters start at zero; write init = \"default\"";
        reader.conflict("lora.init", OTHER, instead);
    }
    for key in quantization.dealing_keys() {
        let instead = "bits are dealt out by the probabilities of tokens, and a reward model has none; take it out";
        reader.conflict(key, OTHER, instead);
    }
    if !lora.trainable_tokens.is_empty() {
        let instead = "a reward model's adapter has no rows of tokens; train the tokens first, merge, and go on from that";
        reader.conflict("lora.trainable_tokens", OTHER, instead);
    }
}

/// Losses of dpo, which other kinds refuse, and the weight of `sft` among them.
fn losses(reader: &mut Reader<'_>, kind: ObjectiveKind) -> (DpoLosses, Option<f64>) {
    let found = dpo_losses(reader);
    if kind == ObjectiveKind::Dpo {
        return found;
    }
    for key in ["objective.loss", "objective.loss_weights"] {
        if reader.has(key) {
            refuse(reader, key, kind);
        }
    }
    (DpoLosses::default(), None)
}

type Range = (&'static str, fn(&f64) -> bool);

const ABOVE: Range = ("a number above 0", |x| *x > 0.0 && x.is_finite());
const NOT_NEGATIVE: Range = ("a number, 0 or more", |x| *x >= 0.0 && x.is_finite());
const BELOW_HALF: Range = ("a number from 0 to below 0.5", |x| (0.0..0.5).contains(x));

/// An option of some kinds, which others refuse.
fn option(
    reader: &mut Reader<'_>,
    kind: ObjectiveKind,
    name: &str,
    kinds: &[ObjectiveKind],
    default: f64,
    (expected, valid): Range,
) -> f64 {
    let key = format!("objective.{name}");
    if !kinds.contains(&kind) {
        let _: Option<f64> = reader.optional(&key);
        if reader.has(&key) {
            refuse(reader, &key, kind);
        }
        return default;
    }
    if !reader.has(&key) {
        return default;
    }
    reader.checked(&key, expected, valid)
}

fn refuse(reader: &mut Reader<'_>, key: &str, kind: ObjectiveKind) {
    let instead = "it belongs to another kind; take it out, or write the kind that you mean";
    reader.conflict(key, format!("objective.kind = \"{kind}\""), instead);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{DpoLoss, Recipe};

    const SMALLEST: &str = "model = \"a/b\"\n[data]\ntrain = \"t.jsonl\"\n";

    fn read(overrides: &[&str]) -> Result<Recipe, String> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        Recipe::from_toml(SMALLEST, Path::new("/r"), &overrides).map_err(|error| error.to_string())
    }

    fn of(overrides: &[&str]) -> ObjectiveRecipe {
        read(overrides).unwrap().objective
    }

    #[test]
    fn each_kind_has_its_defaults_and_comes_back() {
        assert_eq!(of(&[]), ObjectiveRecipe::Sft);
        assert_eq!(
            of(&["objective.kind=\"dpo\""]),
            ObjectiveRecipe::Dpo {
                beta: 0.1,
                losses: DpoLosses::default(),
                label_smoothing: 0.0,
                sft_weight: 0.0,
                reference: ReferenceStart::Start,
                precompute_reference: false,
            }
        );
        assert_eq!(
            of(&["objective.kind=\"simpo\"", "objective.gamma=1.5"]),
            ObjectiveRecipe::Simpo {
                beta: 2.0,
                gamma: 1.5,
                label_smoothing: 0.0,
                sft_weight: 0.0
            }
        );
        assert_eq!(
            of(&["objective.kind=\"cpo\""]),
            ObjectiveRecipe::Cpo {
                beta: 0.1,
                label_smoothing: 0.0,
                sft_weight: 1.0
            }
        );
        for kind in ObjectiveKind::ALL {
            let recipe = read(&[&format!("objective.kind=\"{kind}\"")]).unwrap();
            assert_eq!(recipe.objective.kind(), *kind);
            let text = recipe.to_toml().unwrap();
            assert_eq!(Recipe::from_stored(&text, Path::new("/r")).unwrap(), recipe);
        }
    }

    #[test]
    fn an_option_of_another_kind_is_refused() {
        let message = |overrides: &[&str]| read(overrides).unwrap_err();
        for option in [
            "objective.beta=0.1",
            "objective.loss=\"ipo\"",
            "objective.loss_weights=[1.0]",
            "objective.sft_weight=1",
            "objective.reference=\"base\"",
            "objective.precompute_reference=false",
            "objective.center_rewards_coefficient=0.01",
        ] {
            let message = message(&[option]);
            assert!(message.contains("objective.kind = \"sft\""), "{message}");
        }
        let found = message(&["objective.kind=\"orpo\"", "objective.gamma=1"]);
        assert!(found.contains("objective.kind = \"orpo\""), "{found}");
        let found = message(&["objective.kind=\"dpo\"", "objective.label_smoothing=0.5"]);
        assert!(found.contains("a number from 0 to below 0.5"), "{found}");
        let smoothed = [
            "objective.kind=\"dpo\"",
            "objective.loss=\"ipo\"",
            "objective.label_smoothing=0.1",
        ];
        let found = message(&smoothed);
        assert!(found.contains("only \"sigmoid\" and \"robust\""), "{found}");
        let found = message(&["objective.kind=\"dpo\"", "objective.loss=\"sigmoid_nrm\""]);
        assert!(found.contains("sigmoid_norm"), "{found}");
    }

    #[test]
    fn a_reward_model_predicts_no_tokens() {
        let reward = |more: &[&str]| read(&[&["objective.kind=\"reward\""], more].concat());
        assert_eq!(
            reward(&["objective.center_rewards_coefficient=0.01"])
                .unwrap()
                .objective,
            ObjectiveRecipe::Reward {
                gamma: 0.0,
                center_rewards_coefficient: 0.01
            }
        );
        for (option, part) in [
            ("objective.beta=0.1", "objective.kind = \"reward\""),
            ("lora.init=\"pissa\"", "init = \"default\""),
            (
                "lora.modules_to_save=[\"embed_tokens\"]",
                "the head that scores is trained whole",
            ),
            ("train.optimizer=\"muon\"", "optimizer = \"adamw\""),
            ("train.sample_rows=4", "generates no answers"),
            ("tokens.add=[\"<tool>\"]", "train the tokens first"),
        ] {
            let found = reward(&[option]).unwrap_err();
            assert!(found.contains(part), "{option}: {found}");
        }
        let bits = ["load_in_4bit=true", "quantization.bits=4.5"];
        let found = reward(&bits).unwrap_err();
        assert!(found.contains("a reward model has none"), "{found}");
        assert_eq!(reward(&[]).unwrap().train.sample_rows, 0);
        assert!(reward(&["lora.modules_to_save=[\"norm\"]"]).is_ok());
    }

    #[test]
    fn losses_of_a_list_are_summed() {
        let weighted = |text: &[&str]| {
            let all = [&["objective.kind=\"dpo\""], text].concat();
            let recipe = read(&all).unwrap();
            let stored = recipe.to_toml().unwrap();
            assert_eq!(
                Recipe::from_stored(&stored, Path::new("/r")).unwrap(),
                recipe
            );
            match recipe.objective {
                ObjectiveRecipe::Dpo {
                    losses, sft_weight, ..
                } => (losses, sft_weight, stored),
                other => panic!("{other:?}"),
            }
        };
        let list = "objective.loss=[\"apo_zero\", \"sft\", \"sigmoid\"]";
        let weights = "objective.loss_weights=[0.5, 0.1, 2]";
        let (found, sft, stored) = weighted(&[list, weights]);
        let expected = [(DpoLoss::Sigmoid, 2.0), (DpoLoss::ApoZero, 0.5)];
        assert_eq!(found.iter().collect::<Vec<_>>(), expected);
        assert_eq!((found.are_several(), sft), (true, 0.1));
        assert!(stored.contains("loss_weights = [2.0, 0.5]"), "{stored}");
        // TRL's default, and the same in other words.
        let (found, sft, _) = weighted(&["objective.loss=[\"sigmoid\", \"sft\"]"]);
        let one = weighted(&["objective.sft_weight=1.0"]);
        assert_eq!((found, sft), (one.0, one.1));
        assert!(one.2.contains("loss = \"sigmoid\"\n"), "{}", one.2);
        let (found, ..) = weighted(&["objective.loss=\"ipo\"", "objective.loss_weights=[0.5]"]);
        assert_eq!(found.iter().collect::<Vec<_>>(), [(DpoLoss::Ipo, 0.5)]);

        let refused = |text: &[&str], part: &str| {
            let found = read(&[&["objective.kind=\"dpo\""], text].concat()).unwrap_err();
            assert!(found.contains(part), "{found}");
        };
        refused(
            &[list, "objective.sft_weight=0.1"],
            "\"sft\" in objective.loss",
        );
        refused(
            &[list, "objective.loss_weights=[1, 2]"],
            "for each of objective.loss",
        );
        refused(
            &[list, "objective.loss_weights=[1, 0, 2]"],
            "a number above 0",
        );
        refused(
            &["objective.loss_weights=[1, 2]"],
            "for each of objective.loss",
        );
        for twice in ["[\"ipo\", \"ipo\"]", "[\"sft\"]", "[]"] {
            refused(
                &[&format!("objective.loss={twice}")],
                "at least one loss of pairs",
            );
        }
        refused(&["objective.loss=[\"sigmoid\", \"sf\"]"], "sft");
        let smoothed = [
            "objective.loss=[\"ipo\", \"hinge\"]",
            "objective.label_smoothing=0.1",
        ];
        refused(&smoothed, "loss = \"ipo\", \"hinge\"");
    }

    #[test]
    fn a_reference_that_does_not_stay_is_refused() {
        let message = |overrides: &[&str]| read(overrides).unwrap_err();
        for kind in ["dpo", "kto"] {
            let kind = format!("objective.kind=\"{kind}\"");
            let precompute = [&*kind, "objective.precompute_reference=true"];
            match kind.contains("dpo") {
                true => assert!(of(&precompute).precomputes_reference()),
                false => {
                    assert!(message(&precompute).contains("prompts with the answers of other"))
                }
            }
            let found = message(&[&kind, "lora.init=\"pissa\""]);
            assert!(found.contains("init = \"default\""), "{found}");
            let base = of(&[&kind, "objective.reference=\"base\""]);
            assert_eq!(base.reference(), Some(ReferenceStart::Base));
            assert_eq!(of(&[&kind]).reference(), Some(ReferenceStart::Start));
            let found = message(&[
                &kind,
                "load_in_4bit=true",
                "quantization.bits=4.5",
                "quantization.adapt_at=[0.0, 0.5]",
            ]);
            assert!(found.contains("adapt_at = [0.0]"), "{found}");
        }
        assert!(read(&["objective.kind=\"orpo\"", "lora.init=\"pissa\""]).is_ok());
    }
}
