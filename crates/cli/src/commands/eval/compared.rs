//! Rows of answers to compare: judged as an objective does.

use backdraft_data::{Answers, RowSet};
use backdraft_lora::AdapterWeights;
use backdraft_model::CausalLm;
use backdraft_recipe::{
    DpoLoss, DpoLosses, ObjectiveKind, ObjectiveRecipe, Recipe, ReferenceStart,
};
use backdraft_train::deal::Deal;
use backdraft_train::evaluate::{Comparison, compare};
use backdraft_train::objective::Objective;

use super::ROWS_AT_A_TIME;
use crate::error::CliError;

/// How answers are judged, and against what.
pub(super) struct Judge {
    pub(super) recipe: ObjectiveRecipe,
    deal: Deal,
    reference: CausalLm,
}

/// What rows are to each other.
pub(super) fn compares(rows: &RowSet) -> bool {
    rows.iter().any(|row| row.answers != Answers::One)
}

impl Judge {
    /// As the recipe of the rows or of the run says; where neither compares answers, as dpo or kto do by default.
    pub(super) fn new(
        rows: &RowSet,
        said: ObjectiveRecipe,
        max_seq_length: usize,
        reference: CausalLm,
    ) -> Result<Self, CliError> {
        let has = |what: fn(&Answers) -> bool| rows.iter().any(|row| what(&row.answers));
        let judged = has(|answers| matches!(answers, Answers::Judged { .. }));
        if has(|answers| *answers == Answers::One) {
            return Err(CliError::user(
                "some rows have answers to compare, and others have one answer",
            )
            .hint("evaluate them apart"));
        }
        let recipe = match said {
            ObjectiveRecipe::Sft if judged => KTO,
            ObjectiveRecipe::Sft => DPO,
            said if said.scores() => {
                return Err(CliError::user(
                    "objective.kind = \"reward\" scores answers, and there is no reward model: neither an adapter of one nor a head \
                     (score.weight) in the model",
                )
                .hint("train one, or name its adapter with --adapter"));
            }
            said if judged && said.kind() != ObjectiveKind::Kto => {
                return Err(CliError::user(format!(
                    "objective.kind = \"{}\" compares pairs, and these rows are judged one by one",
                    said.kind()
                ))
                .hint("judge them as kto does: --set 'objective.kind=\"kto\"'"));
            }
            said => said,
        };
        let deal = Deal {
            objective: Objective::from(recipe),
            max_seq_length,
        };
        Ok(Self {
            recipe,
            deal,
            reference,
        })
    }

    /// What a model makes of the rows.
    pub(super) fn measure(&self, model: &CausalLm, rows: &RowSet) -> Result<Comparison, CliError> {
        let models = (model, &self.reference);
        Ok(compare(models, rows, (self.deal, ROWS_AT_A_TIME))?)
    }

    /// How, in words.
    pub(super) fn in_words(&self) -> String {
        let kind = self.recipe.kind();
        let beta = match self.recipe {
            ObjectiveRecipe::Sft | ObjectiveRecipe::Reward { .. } => return kind.to_string(),
            ObjectiveRecipe::Dpo { beta, .. }
            | ObjectiveRecipe::Orpo { beta }
            | ObjectiveRecipe::Simpo { beta, .. }
            | ObjectiveRecipe::Cpo { beta, .. }
            | ObjectiveRecipe::Kto { beta, .. } => beta,
        };
        format!("judged as {kind} does, beta = {beta}")
    }
}

const DPO: ObjectiveRecipe = ObjectiveRecipe::Dpo {
    beta: 0.1,
    losses: DpoLosses::one(DpoLoss::Sigmoid),
    label_smoothing: 0.0,
    sft_weight: 0.0,
    reference: ReferenceStart::Start,
    precompute_reference: false,
};

const KTO: ObjectiveRecipe = ObjectiveRecipe::Kto {
    beta: 0.1,
    desirable_weight: 1.0,
    undesirable_weight: 1.0,
    reference: ReferenceStart::Start,
};

/// What answers are compared with: the base, or the adapter that the recipe's run went on from.
pub(super) fn reference(base: &CausalLm, recipe: Option<&Recipe>) -> Result<CausalLm, CliError> {
    let start = recipe.filter(|recipe| recipe.compares_with_start());
    let Some(path) = start.and_then(|recipe| recipe.lora.adapter.as_deref()) else {
        return Ok(base.clone());
    };
    let adapter = AdapterWeights::read(path, &base.device()).map_err(CliError::library)?;
    base.clone()
        .with_adapter(&adapter)
        .map_err(CliError::library)
}

/// A model's line: that of a model which is its own reference says only what it does not owe to that.
pub(super) fn line(found: &Comparison, name: &str, is_reference: bool) -> String {
    let answers = &found.answers;
    let mut line = format!("{name:<14} ");
    if is_reference {
        let sides = [
            ("chosen", answers.logp_chosen),
            ("rejected", answers.logp_rejected),
        ];
        let sides = sides
            .into_iter()
            .filter_map(|(side, logp)| Some(format!("{} {side}", logp?)));
        let sides: Vec<String> = sides.collect();
        line += &format!("log-likelihoods {}", sides.join(", "));
        if let Some(entropy) = answers.entropy {
            line += &format!(", entropy {entropy}");
        }
    } else {
        line += &format!("loss {:.4}", found.loss);
        if let Some(error) = answers.loss.error {
            line += &format!(" ± {error:.4}");
        }
        line += &format!(", {answers}");
    }
    line + &format!("  nll {:.4}  tokens {}", found.good.nll, found.good.tokens)
}
