//! What all points share: the run's request, measuring, dealing out, and what a report says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use backdraft_arch::{AdapterStart, ModelSpec, Precision, QuantizationPlan, Scheme};
use backdraft_formats::ModelSource;
use backdraft_journal::adaptation::{AdaptationReport, Move, PrecisionReport, StartReport};
use backdraft_model::CausalLm;
use backdraft_recipe::{Recipe, bytes_of};
use burn::tensor::TensorReadError;

use super::judge::Verdict;
use super::moves::store_as;
use super::probe::{Probe, probe};
use super::rows::CalibrationRows;
use super::table::{Dealt, Prices, Table};
use crate::error::TrainError;

/// Adaptive precision of one run.
#[derive(Debug)]
pub struct Adaptation {
    pub(super) source: Arc<ModelSource>,
    pub(super) rows: CalibrationRows,
    /// Mean bits, where precision is dealt out.
    bits: Option<f64>,
    pub(super) precisions: Vec<Precision>,
    pub(super) init: AdapterStart,
    /// Shares of the run.
    at: Vec<f64>,
    /// Whether a file says how the base is stored at the beginning.
    is_given: bool,
    pub(super) seed: u64,
    /// How the base is stored now.
    pub(super) plan: QuantizationPlan,
    /// Errors of every projection, once they were measured.
    pub(super) table: Option<Table>,
}

impl Adaptation {
    /// What `recipe` asks for, over a base that is stored as `plan` says; `None` where it asks for one precision and adapters
    /// that start at zero.
    #[must_use]
    pub fn of(
        recipe: &Recipe,
        source: &Arc<ModelSource>,
        rows: CalibrationRows,
        plan: &QuantizationPlan,
    ) -> Option<Self> {
        let quantization = &recipe.quantization;
        Self::is_asked(recipe).then(|| Self {
            source: source.clone(),
            rows,
            bits: recipe.mean_bits(),
            precisions: quantization.formats.clone(),
            init: recipe.lora.init,
            at: quantization.adapt_at.clone(),
            is_given: quantization.plan.is_some(),
            seed: recipe.seed,
            plan: plan.clone(),
            table: None,
        })
    }

    /// Whether `recipe` asks for anything of this.
    #[must_use]
    pub fn is_asked(recipe: &Recipe) -> bool {
        recipe.deals_bits() || recipe.quantization.plan.is_some() || recipe.lora.init.gives_back()
    }

    /// Whether precision is dealt out before the first step.
    pub(super) fn deals_first(&self) -> bool {
        self.bits.is_some() && !self.is_given && self.at.first() == Some(&0.0)
    }

    /// Whether a point may leave a projection in `scheme`.
    pub(super) fn may_deal(&self, scheme: Scheme) -> bool {
        let mut precisions = self.precisions.iter();
        precisions.any(|&one| self.plan.scheme_of(one) == scheme)
    }

    /// How the base is stored now.
    #[must_use]
    pub fn plan(&self) -> &QuantizationPlan {
        &self.plan
    }

    /// Whether a point stands after `step` of `total` steps.
    #[must_use]
    pub fn is_due(&self, step: usize, total: usize) -> bool {
        let after = |share: &f64| (share * total as f64).ceil() as usize;
        self.bits.is_some() && step > 0 && self.at.iter().any(|share| after(share) == step)
    }

    /// Stores the base as `plan` says: that of a checkpoint.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn restore(
        &mut self,
        model: &mut CausalLm,
        plan: &QuantizationPlan,
    ) -> Result<(), TrainError> {
        store_as(model, plan, &self.source)?;
        self.plan = plan.clone();
        Ok(())
    }

    pub(super) fn budget(&self, spec: &ModelSpec) -> Option<u64> {
        let (values, _) = self.plan.quantized(spec);
        self.bits.map(|bits| bytes_of(bits, values))
    }

    /// Bytes by which later points may let the base grow.
    #[must_use]
    pub fn room(&self, spec: &ModelSpec) -> u64 {
        let later = self.at.iter().any(|&share| share > 0.0);
        let budget = self.budget(spec).filter(|_| later);
        let (_, stored) = self.plan.quantized(spec);
        budget.map_or(0, |budget| budget.saturating_sub(stored))
    }

    pub(super) fn probe(&self, model: &CausalLm, step: usize) -> Result<Probe, TrainError> {
        let seed = self.seed ^ (step as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let found = probe(model, &self.rows.statistics, seed);
        found.map_err(|error: TensorReadError| TrainError::Device {
            step,
            message: error.to_string(),
        })
    }

    pub(super) fn dealt(
        &self,
        table: &Table,
        spec: &ModelSpec,
        from: &Dealt,
        prices: &Prices,
        among: Option<&BTreeSet<String>>,
    ) -> Result<Dealt, TrainError> {
        let budget = self.budget(spec).unwrap_or(from.bytes);
        let dealt = table.deal(&from.plan, prices, budget, among);
        dealt.ok_or_else(|| TrainError::TooFewBits {
            bits: self.bits.unwrap_or_default(),
            formats: self.precisions.clone(),
        })
    }

    /// Notes which plan is in force, and what became of it.
    pub(super) fn settle(
        &mut self,
        spec: &ModelSpec,
        (from, dealt): (&Dealt, &Dealt),
        (accepted, tries): (bool, usize),
    ) -> PrecisionReport {
        let now = if accepted { dealt } else { from };
        self.plan = now.plan.clone();
        told(spec, (from, dealt), (accepted, tries))
    }

    pub(super) fn report(
        &self,
        step: usize,
        (precision, start): (Option<PrecisionReport>, Option<StartReport>),
        verdicts: [Verdict; 2],
        probe: Option<&Probe>,
        began: Instant,
    ) -> AdaptationReport {
        let [before, after] = verdicts;
        AdaptationReport {
            step,
            precision,
            start,
            nll: [before.nll, after.nll],
            kl: before.kl.zip(after.kl).map(<[f64; 2]>::from),
            verification_tokens: CalibrationRows::tokens(&self.rows.verification),
            calibration_tokens: probe.map_or(0, |probe| probe.tokens),
            seconds: began.elapsed().as_secs_f64(),
        }
    }
}

/// What became of a plan that was dealt out where another was in force.
pub(super) fn told(
    spec: &ModelSpec,
    (from, dealt): (&Dealt, &Dealt),
    (accepted, tries): (bool, usize),
) -> PrecisionReport {
    let now = if accepted { dealt } else { from };
    let mut shares: BTreeMap<String, f64> = BTreeMap::new();
    let mut by_layer: BTreeMap<String, String> = BTreeMap::new();
    let mut moves = Vec::new();
    let mut values = 0.0;
    for (layer, target) in spec.projections() {
        let path = target.path(layer);
        let [old, new] = [from, dealt].map(|d| d.plan.scheme_for(&path));
        let scheme = now.plan.scheme_for(&path);
        let strip = by_layer.entry(target.name().to_owned()).or_default();
        strip.push(digit(scheme));
        if old.is_none() {
            continue;
        }
        let name = |scheme: Option<Scheme>| scheme.map_or("unquantized", Scheme::name).to_owned();
        if old != new {
            moves.push(Move {
                module: path,
                from: name(old),
                to: name(new),
            });
        }
        let [out, input] = spec.layers[layer].shape(target);
        values += (out * input) as f64;
        *shares.entry(name(scheme)).or_default() += (out * input) as f64;
    }
    shares.values_mut().for_each(|share| *share /= values);
    PrecisionReport {
        accepted,
        tries,
        bits: 8.0 * now.bytes as f64 / values,
        bytes: now.bytes,
        predicted: [from.price, dealt.price],
        shares,
        by_layer,
        moves,
    }
}

/// Bits of a scheme without its scales; `-` where nothing is quantised, `g` for a file's own blocks.
fn digit(scheme: Option<Scheme>) -> char {
    match scheme {
        None => '-',
        Some(Scheme::FourBit { .. }) => '4',
        Some(Scheme::Nested { format, .. }) => {
            char::from_digit(format.bits() as u32, 10).unwrap_or('?')
        }
        Some(Scheme::Int8) => '8',
        Some(Scheme::Gguf(_)) => 'g',
    }
}
