//! Points while a run goes on.

use std::collections::BTreeSet;
use std::time::Instant;

use backdraft_arch::{ModelSpec, QuantizationPlan};
use backdraft_journal::adaptation::{AdaptationReport, PrecisionReport};
use backdraft_model::CausalLm;

use super::judge::{Look, Verdict};
use super::moves::store_as;
use super::point::Adaptation;
use super::table::{Dealt, Prices, Table};
use crate::error::TrainError;

/// A point that predicts less gain than this share of the present price moves nothing.
const WORTH: f64 = 0.03;

/// Plans that a point tries, each with half the moves of the one before.
const TRIES: usize = 3;

impl Adaptation {
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
        self.deal_anew(model, step, WORTH)
    }

    /// As [`later`](Self::later), where a gain of less than the share `worth` of the present price is worth no move.
    fn deal_anew(
        &mut self,
        model: &mut CausalLm,
        step: usize,
        worth: f64,
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
        let from = table.cost(&self.plan, &prices);
        let found = self.try_moves(model, (&table, &prices), &from, worth);
        self.table = Some(table);
        Ok(found?.map(|(precision, verdicts)| {
            self.report(step, (Some(precision), None), verdicts, Some(&probe), began)
        }))
    }

    /// A point where a run goes on with other bits or formats than those of its checkpoint at `step`, whose base is
    /// stored as `saved` says: it goes on from there where that fits, else from what the model was loaded in, which does. There
    /// is always a report, since what is stored may be another thing than before.
    ///
    /// # Errors
    /// As [`later`](Self::later).
    pub fn refit(
        &mut self,
        model: &mut CausalLm,
        saved: &QuantizationPlan,
        step: usize,
    ) -> Result<Option<AdaptationReport>, TrainError> {
        let spec = model.spec().clone();
        let budget = self.budget(&spec).unwrap_or(u64::MAX);
        let known = saved.all_schemes().all(|scheme| self.may_deal(scheme));
        if known && saved.quantized(&spec).1 <= budget {
            self.restore(model, saved)?;
        }
        self.deal_anew(model, step, 0.0)
    }

    fn try_moves(
        &mut self,
        model: &mut CausalLm,
        (table, prices): (&Table, &Prices),
        from: &Dealt,
        worth: f64,
    ) -> Result<Option<(PrecisionReport, [Verdict; 2])>, TrainError> {
        let spec = model.spec().clone();
        let dealt = self.dealt(table, &spec, from, prices, None)?;
        if from.price - dealt.price < worth * from.price {
            return Ok(None);
        }
        self.try_plan(model, &spec, (table, prices), (from, dealt))
            .map(Some)
    }

    /// Tries `dealt`, then halves of its moves, until the nll of the rows kept for it does not rise.
    fn try_plan(
        &mut self,
        model: &mut CausalLm,
        spec: &ModelSpec,
        (table, prices): (&Table, &Prices),
        (from, mut dealt): (&Dealt, Dealt),
    ) -> Result<(PrecisionReport, [Verdict; 2]), TrainError> {
        let passes = self.rows.verification.clone();
        let look = Look::alone(&passes);
        let before = look.at(model)?;
        if dealt.plan == from.plan {
            let precision = self.settle(spec, (from, &dealt), (true, 1));
            return Ok((precision, [before, before]));
        }
        let mut tries = 0;
        loop {
            tries += 1;
            store_as(model, &dealt.plan, &self.source)?;
            let after = look.at(model)?;
            if after.nll <= before.nll && dealt.price < from.price {
                let precision = self.settle(spec, (from, &dealt), (true, tries));
                return Ok((precision, [before, after]));
            }
            store_as(model, &from.plan, &self.source)?;
            let gains = table.gains(&from.plan, &dealt.plan, prices);
            let paths = gains.iter().map(|(path, _)| path.clone());
            let half: BTreeSet<String> = paths.take(gains.len() / 2).collect();
            let fewer = match tries < TRIES && !half.is_empty() {
                true => self.dealt(table, spec, from, prices, Some(&half)).ok(),
                false => None,
            };
            match fewer {
                Some(fewer) if fewer.plan != from.plan => dealt = fewer,
                _ => {
                    let precision = self.settle(spec, (from, &dealt), (false, tries));
                    return Ok((precision, [before, before]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use backdraft_arch::{AdapterStart, Precision};
    use backdraft_formats::ModelSource;
    use backdraft_recipe::Recipe;
    use backdraft_testkit::tiny;
    use burn::tensor::Device;

    use super::*;
    use crate::adapt::CalibrationRows;
    use crate::data;

    /// Every value of every projection and adapter, as bits.
    fn bits(model: &CausalLm) -> Vec<u32> {
        let mut all = Vec::new();
        for layer in &model.layers {
            for target in layer.modules() {
                let weight = layer.projection(target).weight().dequantize();
                all.extend(weight.into_data().iter::<f32>().map(f32::to_bits));
            }
        }
        for (.., adapter) in model.adapters() {
            for param in adapter.params() {
                all.extend(param.values.into_data().iter::<f32>().map(f32::to_bits));
            }
        }
        all
    }

    /// A plan that the prices praise and the rows do not: tried, halved, and taken back to the last bit.
    #[test]
    fn harmful_moves_are_taken_back_bit_for_bit() {
        let root = tempfile::tempdir().unwrap();
        let path = tiny::project(root.path(), "max_steps = 4\n");
        // Nothing is better than nf6 everywhere, so no half of any moves is.
        let set = [
            "load_in_4bit=true",
            "quantization.bits=6.2",
            "quantization.formats=['nf3', 'nf6']",
        ];
        let recipe = Recipe::load(&path, &set.map(str::to_owned)).unwrap();
        let source = Arc::new(ModelSource::open(std::path::Path::new(&recipe.model)).unwrap());
        let data = data::read(&recipe, &source, &mut |_| ()).unwrap();
        let rows = CalibrationRows::choose(&data.train, data.loader.clone(), 200, 64).unwrap();
        let nf6 = Precision::Nf6.scheme(64, true);
        let good = QuantizationPlan::new(nf6);
        let device = Device::flex();
        let dtype = burn::tensor::DType::F32;
        let model = CausalLm::load_as(&source, Some(&good), (&device, dtype)).unwrap();
        let lora = recipe.trained(model.spec()).unwrap();
        let mut model = model.with_lora(&lora, 1).unwrap();
        let mut adaptation = Adaptation::of(&recipe, &source, rows, &good).unwrap();
        assert_eq!(adaptation.init, AdapterStart::Default);
        let probe = adaptation.probe(&model, 1).unwrap();
        let spec = model.spec().clone();
        let formats = adaptation.precisions.clone();
        let (table, prices) = Table::measure(&source, &spec, &good, &formats, &probe).unwrap();
        // These weights know nothing, so fewer bits may happen to help: a projection is looked for that they harm.
        let passes = adaptation.rows.verification.clone();
        let look = Look::alone(&passes);
        let before = look.at(&model).unwrap().nll;
        let nf3 = Precision::Nf3.scheme(64, true);
        let moved = |(layer, target): (usize, backdraft_arch::TargetModule)| {
            good.clone().with_scheme(target.path(layer), nf3)
        };
        let harmful = spec.projections().map(moved).find(|plan| {
            store_as(&mut model, plan, &source).unwrap();
            look.at(&model).unwrap().nll > before
        });
        store_as(&mut model, &good, &source).unwrap();
        let mut forced = table.cost(&harmful.unwrap(), &prices);
        forced.price = 0.0;
        let (from, kept) = (table.cost(&good, &prices), bits(&model));
        let done = adaptation.try_plan(&mut model, &spec, (&table, &prices), (&from, forced));
        let (report, [was, is]) = done.unwrap();
        assert!(!report.accepted && !report.moves.is_empty(), "{report:?}");
        assert_eq!((was, adaptation.plan()), (is, &good));
        assert!(bits(&model) == kept, "something is not as it was");
    }
}
