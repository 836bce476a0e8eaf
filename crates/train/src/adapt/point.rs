//! A point: measure, deal out, move, look, and keep or take back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use backdraft_arch::{AdapterStart, ModelSpec, Precision, QuantizationPlan};
use backdraft_formats::ModelSource;
use backdraft_journal::adaptation::{AdaptationReport, Move, PrecisionReport, StartReport};
use backdraft_model::CausalLm;
use backdraft_recipe::{Recipe, bytes_of};
use burn::tensor::TensorReadError;

use super::judge::{Verdict, judge, reference};
use super::moves::store_as;
use super::probe::{Probe, probe};
use super::rows::CalibrationRows;
use super::starts;
use super::table::{Dealt, Prices, Table};
use crate::error::TrainError;

/// A point that predicts less gain than this share of the present price moves nothing.
const WORTH: f64 = 0.03;

/// Plans that a later point tries, each with half the moves of the one before.
const TRIES: usize = 3;

/// Adaptive precision of one run.
#[derive(Debug)]
pub struct Adaptation {
    source: Arc<ModelSource>,
    rows: CalibrationRows,
    /// Mean bits, where precision is dealt out.
    bits: Option<f64>,
    precisions: Vec<Precision>,
    init: AdapterStart,
    /// Shares of the run.
    at: Vec<f64>,
    seed: u64,
    /// How the base is stored now.
    plan: QuantizationPlan,
    /// Errors of every projection, once they were measured.
    table: Option<Table>,
}

impl Adaptation {
    /// What `recipe` asks for; `None` where it asks for one precision and adapters that start at zero.
    #[must_use]
    pub fn of(recipe: &Recipe, source: &Arc<ModelSource>, rows: CalibrationRows) -> Option<Self> {
        let plan = recipe.quantization_plan()?;
        let quantization = &recipe.quantization;
        Self::is_asked(recipe).then(|| Self {
            source: source.clone(),
            rows,
            bits: quantization.bits,
            precisions: quantization.formats.clone(),
            init: recipe.lora.init,
            at: quantization.adapt_at.clone(),
            seed: recipe.seed,
            plan,
            table: None,
        })
    }

    /// Whether `recipe` asks for anything of this.
    #[must_use]
    pub fn is_asked(recipe: &Recipe) -> bool {
        recipe.quantization.bits.is_some() || recipe.lora.init != AdapterStart::Default
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

    fn budget(&self, spec: &ModelSpec) -> Option<u64> {
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

    /// The point before the first step: deals out precision over a base that is stored in one, and starts the adapters.
    ///
    /// # Errors
    /// A file that cannot be read, a device that failed, or bits that no format fits.
    pub fn begin(&mut self, model: &mut CausalLm) -> Result<AdaptationReport, TrainError> {
        let began = Instant::now();
        let deals = self.bits.is_some() && self.at.first() == Some(&0.0);
        let probe = match deals || self.init == AdapterStart::Qera {
            true => Some(self.probe(model, 0)?),
            false => None,
        };
        let rows = self.rows.clone();
        let passes = &rows.verification;
        let reference = reference(&self.source, model, passes)?;
        let judged = |model: &CausalLm| judge(model, passes, Some(&reference));
        let before = judged(model)?;
        let mut now = before;
        let mut precision = None;
        if let (true, Some(probe)) = (deals, &probe) {
            let spec = model.spec();
            let (table, prices) =
                Table::measure(&self.source, spec, &self.plan, &self.precisions, probe)?;
            let from = table.cost(&self.plan, &prices);
            let dealt = self.dealt(&table, spec, &from, &prices, None)?;
            store_as(model, &dealt.plan, &self.source)?;
            let moved = judged(model)?;
            // Where one format is all that fits, nothing has moved, and nothing is worse.
            let accepted = dealt.plan == from.plan || moved.kl < now.kl;
            if accepted {
                now = moved;
            } else {
                store_as(model, &from.plan, &self.source)?;
            }
            precision = Some(self.settle(model.spec(), (&from, &dealt), (accepted, 1)));
            self.table = Some(table);
        }
        let mut start = None;
        if self.init != AdapterStart::Default {
            let kept = starts::kept(model);
            let seed = self.seed;
            let adapters = starts::start(model, &self.source, self.init, probe.as_ref(), seed)?;
            let started = judged(model)?;
            let accepted = started.kl < now.kl;
            start = Some(StartReport {
                init: self.init.name().to_owned(),
                accepted,
                adapters,
                kl: [now, started].map(|verdict| verdict.kl.unwrap_or(f64::NAN)),
            });
            if accepted {
                now = started;
            } else {
                starts::restore(model, &kept);
            }
        }
        let verdicts = [before, now];
        Ok(self.report(0, (precision, start), verdicts, probe.as_ref(), began))
    }

    /// A point after `step` steps: everything is measured and dealt out anew. What raises the nll of the rows that it is
    /// judged by is tried again with half the moves, and at last taken back; B stays as it is. `None` where there is nothing
    /// worth a move.
    ///
    /// # Errors
    /// A file that cannot be read, a device that failed; what was moved may be moved then.
    pub fn later(
        &mut self,
        model: &mut CausalLm,
        step: usize,
    ) -> Result<Option<AdaptationReport>, TrainError> {
        let began = Instant::now();
        let probe = self.probe(model, step)?;
        let table = match self.table.take() {
            Some(table) => table,
            // The first point of a process that resumed.
            None => {
                let spec = model.spec();
                Table::measure(&self.source, spec, &self.plan, &self.precisions, &probe)?.0
            }
        };
        // By sketches, whether the table was made just now or not: the same bits after a resume.
        let prices = table.priced(&probe);
        let found = self.try_moves(model, &table, &prices);
        self.table = Some(table);
        Ok(found?.map(|(precision, verdicts)| {
            self.report(step, (Some(precision), None), verdicts, Some(&probe), began)
        }))
    }

    fn try_moves(
        &mut self,
        model: &mut CausalLm,
        table: &Table,
        prices: &Prices,
    ) -> Result<Option<(PrecisionReport, [Verdict; 2])>, TrainError> {
        let spec = model.spec().clone();
        let from = table.cost(&self.plan, prices);
        let mut dealt = self.dealt(table, &spec, &from, prices, None)?;
        if from.price - dealt.price < WORTH * from.price {
            return Ok(None);
        }
        let passes = &self.rows.verification;
        let before = judge(model, passes, None)?;
        let mut tries = 0;
        loop {
            tries += 1;
            store_as(model, &dealt.plan, &self.source)?;
            let after = judge(model, passes, None)?;
            if after.nll <= before.nll && dealt.price < from.price {
                let precision = self.settle(&spec, (&from, &dealt), (true, tries));
                return Ok(Some((precision, [before, after])));
            }
            store_as(model, &from.plan, &self.source)?;
            let gains = table.gains(&from.plan, &dealt.plan, prices);
            let paths = gains.iter().map(|(path, _)| path.clone());
            let half: BTreeSet<String> = paths.take(gains.len() / 2).collect();
            let fewer = match tries < TRIES && !half.is_empty() {
                true => self.dealt(table, &spec, &from, prices, Some(&half)).ok(),
                false => None,
            };
            match fewer {
                Some(fewer) if fewer.plan != from.plan => dealt = fewer,
                _ => {
                    let precision = self.settle(&spec, (&from, &dealt), (false, tries));
                    return Ok(Some((precision, [before, before])));
                }
            }
        }
    }

    fn probe(&self, model: &CausalLm, step: usize) -> Result<Probe, TrainError> {
        let seed = self.seed ^ (step as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let found = probe(model, &self.rows.statistics, seed);
        found.map_err(|error: TensorReadError| TrainError::Device {
            step,
            message: error.to_string(),
        })
    }

    fn dealt(
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
    fn settle(
        &mut self,
        spec: &ModelSpec,
        (from, dealt): (&Dealt, &Dealt),
        (accepted, tries): (bool, usize),
    ) -> PrecisionReport {
        let now = if accepted { dealt } else { from };
        self.plan = now.plan.clone();
        let mut shares: BTreeMap<String, f64> = BTreeMap::new();
        let mut moves = Vec::new();
        let mut values = 0.0;
        for (layer, target) in spec.projections() {
            let path = target.path(layer);
            let Some(scheme) = now.plan.scheme_for(&path) else {
                continue;
            };
            let [out, input] = spec.layers[layer].shape(target);
            values += (out * input) as f64;
            *shares.entry(scheme.name().to_owned()).or_default() += (out * input) as f64;
            let [old, new] = [from, dealt].map(|d| d.plan.scheme_for(&path));
            if let (Some(old), Some(new)) = (old, new)
                && old != new
            {
                moves.push(Move {
                    module: path,
                    from: old.name().to_owned(),
                    to: new.name().to_owned(),
                });
            }
        }
        shares.values_mut().for_each(|share| *share /= values);
        PrecisionReport {
            accepted,
            tries,
            bits: 8.0 * now.bytes as f64 / values,
            bytes: now.bytes,
            predicted: [from.price, dealt.price],
            shares,
            moves,
        }
    }

    fn report(
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
