//! `train.early_stopping_metric`: which evaluation is the best one.

use backdraft_arch::named;

use crate::ObjectiveRecipe;
use crate::reader::{Reader, Value};

named! {
    /// Numbers of an evaluation that tell which one is the best.
    EvalMetric {
        /// What is minimised.
        #[default]
        Loss = "loss",
        /// Nll beside a comparison.
        Nll = "nll",
        /// Share of pairs the right way round.
        Accuracy = "accuracy",
        /// Reward of chosen answers less that of rejected ones.
        Margin = "margin",
        /// Reward of chosen answers.
        RewardChosen = "reward_chosen",
        /// Reward of rejected answers.
        RewardRejected = "reward_rejected",
        /// Log-likelihood of chosen answers.
        LogpChosen = "logp_chosen",
        /// Log-likelihood of rejected answers.
        LogpRejected = "logp_rejected",
        /// Entropy of the next token.
        Entropy = "entropy",
        /// Divergence from the reference.
        Kl = "kl",
    }
}

impl Value for EvalMetric {
    const EXPECTED: &'static str = "a name in quotes";
    const NAMES: &'static [&'static str] = Self::NAMES;
}

impl EvalMetric {
    /// Whether it is [`Loss`](Self::Loss).
    #[must_use]
    pub fn is_loss(&self) -> bool {
        *self == Self::Loss
    }

    /// Whether more of it is better.
    #[must_use]
    pub const fn higher_is_better(self) -> bool {
        match self {
            Self::Accuracy | Self::Margin | Self::RewardChosen | Self::LogpChosen => true,
            Self::Loss
            | Self::Nll
            | Self::RewardRejected
            | Self::LogpRejected
            | Self::Entropy
            | Self::Kl => false,
        }
    }

    /// Whether evaluations under an objective have it.
    fn is_of(self, objective: &ObjectiveRecipe) -> bool {
        use ObjectiveRecipe as O;
        match (self, objective) {
            (Self::Loss, _) => true,
            (_, O::Sft) => false,
            (Self::Nll, O::Orpo { .. }) => true,
            (
                Self::Nll,
                O::Dpo { sft_weight, .. } | O::Simpo { sft_weight, .. } | O::Cpo { sft_weight, .. },
            ) => *sft_weight > 0.0,
            (Self::Nll, O::Kto { .. }) => false,
            (
                Self::Nll | Self::LogpChosen | Self::LogpRejected | Self::Entropy,
                O::Reward { .. },
            ) => false,
            (Self::Accuracy, O::Kto { .. }) => false,
            (Self::Kl, objective) => matches!(objective, O::Kto { .. }),
            _ => true,
        }
    }
}

/// The metric, which the evaluations of the objective have.
pub(crate) fn eval_metric(reader: &mut Reader<'_>, objective: &ObjectiveRecipe) -> EvalMetric {
    const KEY: &str = "train.early_stopping_metric";
    let metric: EvalMetric = reader.value(KEY);
    if reader.has(KEY) && !reader.has("data.eval") {
        let instead = "name the file to evaluate in [data], or take it out";
        reader.conflict(KEY, "a missing `data.eval`", instead);
    } else if !metric.is_of(objective) {
        let other = match metric {
            EvalMetric::Nll
                if !matches!(
                    objective,
                    ObjectiveRecipe::Sft | ObjectiveRecipe::Reward { .. }
                ) =>
            {
                format!(
                    "objective.kind = \"{}\" without sft_weight",
                    objective.kind()
                )
            }
            _ => format!("objective.kind = \"{}\"", objective.kind()),
        };
        let instead = "its evaluations have no such number; take it out, or name another one";
        reader.conflict(KEY, other, instead);
    }
    metric
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Recipe;

    fn read(objective: &str, metric: &str, eval: &str) -> Result<Recipe, String> {
        let text = format!(
            "model = \"a/b\"\n[objective]\n{objective}\n[data]\ntrain = \"t.jsonl\"\n{eval}\n\
             [train]\nearly_stopping_metric = \"{metric}\"\n"
        );
        let found = Recipe::from_toml(&text, Path::new("/r"), &[]);
        found.map_err(|error| error.to_string())
    }

    #[test]
    fn a_metric_is_one_of_the_evaluation() {
        const EVAL: &str = "eval = \"e.jsonl\"";
        let dpo = "kind = \"dpo\"\nsft_weight = 0.1";
        for metric in EvalMetric::ALL {
            let fits = !matches!(metric, EvalMetric::Kl);
            let found = read(dpo, metric.name(), EVAL);
            assert_eq!(found.is_ok(), fits, "{metric}: {found:?}");
            let Ok(recipe) = found else { continue };
            assert_eq!(recipe.train.early_stopping_metric, *metric);
            let text = recipe.to_toml().unwrap();
            assert_eq!(Recipe::from_stored(&text, Path::new("/r")).unwrap(), recipe);
        }
        let refused = |objective, metric, eval, part: &str| {
            let found = read(objective, metric, eval).unwrap_err();
            assert!(found.contains(part), "{found}");
        };
        refused("kind = \"dpo\"", "nll", EVAL, "without sft_weight");
        refused("kind = \"kto\"", "accuracy", EVAL, "no such number");
        for metric in EvalMetric::ALL {
            use EvalMetric as M;
            let scores = [
                M::Loss,
                M::Accuracy,
                M::Margin,
                M::RewardChosen,
                M::RewardRejected,
            ];
            let found = read("kind = \"reward\"", metric.name(), EVAL);
            assert_eq!(
                found.is_ok(),
                scores.contains(metric),
                "{metric}: {found:?}"
            );
        }
        refused("", "margin", EVAL, "objective.kind = \"sft\"");
        refused(dpo, "accuracy", "", "a missing `data.eval`");
        refused(dpo, "accuracies", EVAL, "accuracy");
        assert!(read("kind = \"kto\"", "kl", EVAL).is_ok());
        assert!(EvalMetric::Margin.higher_is_better() && !EvalMetric::Loss.higher_is_better());
    }
}
