//! The point before the first step.

use std::time::Instant;

use backdraft_arch::AdapterStart;
use backdraft_journal::adaptation::{AdaptationReport, PrecisionReport, StartReport};
use backdraft_model::CausalLm;

use super::judge::{Look, Verdict};
use super::moves::store_as;
use super::point::Adaptation;
use super::probe::Probe;
use super::starts;
use super::table::Table;
use crate::error::TrainError;

impl Adaptation {
    /// Deals out precision over a base that is stored in one, and starts the adapters; `None` where neither is asked for
    /// here. Each is kept only if the model comes nearer to its unquantised weights.
    ///
    /// # Errors
    /// A file that cannot be read, a device that failed, or bits that no format fits.
    pub fn begin(&mut self, model: &mut CausalLm) -> Result<Option<AdaptationReport>, TrainError> {
        let began = Instant::now();
        let (deals, starts) = (self.deals_first(), self.init.gives_back());
        if !deals && !starts {
            return Ok(None);
        }
        let probe = match deals || self.init == AdapterStart::Qera {
            true => Some(self.probe(model, 0)?),
            false => None,
        };
        let passes = self.rows.verification.clone();
        let look = Look::with_reference(&self.source, model, &passes)?;
        let before = look.at(model)?;
        let mut now = before;
        let mut precision = None;
        if let Some(probe) = probe.as_ref().filter(|_| deals) {
            precision = Some(self.deal_first(model, probe, &look, &mut now)?);
        }
        let mut start = None;
        if starts {
            start = Some(self.start(model, probe.as_ref(), &look, &mut now)?);
        }
        let found = (precision, start);
        Ok(Some(self.report(
            0,
            found,
            [before, now],
            probe.as_ref(),
            began,
        )))
    }

    /// Deals out precision; `now` is how the model was before, and is afterwards.
    fn deal_first(
        &mut self,
        model: &mut CausalLm,
        probe: &Probe,
        look: &Look<'_>,
        now: &mut Verdict,
    ) -> Result<PrecisionReport, TrainError> {
        let spec = model.spec().clone();
        let (table, prices) =
            Table::measure(&self.source, &spec, &self.plan, &self.precisions, probe)?;
        let from = table.cost(&self.plan, &prices);
        let dealt = self.dealt(&table, &spec, &from, &prices, None)?;
        store_as(model, &dealt.plan, &self.source)?;
        let moved = look.at(model)?;
        // Where one format is all that fits, nothing has moved, and nothing is worse.
        let accepted = dealt.plan == from.plan || moved.kl < now.kl;
        if accepted {
            *now = moved;
        } else {
            store_as(model, &from.plan, &self.source)?;
        }
        self.table = Some(table);
        Ok(self.settle(&spec, (&from, &dealt), (accepted, 1)))
    }

    /// Starts the adapters; `now` as above.
    fn start(
        &self,
        model: &mut CausalLm,
        probe: Option<&Probe>,
        look: &Look<'_>,
        now: &mut Verdict,
    ) -> Result<StartReport, TrainError> {
        let kept = starts::kept(model);
        let adapters = starts::start(model, &self.source, self.init, probe, self.seed)?;
        let started = look.at(model)?;
        let accepted = started.kl < now.kl;
        let kl = [*now, started].map(|verdict| verdict.kl.unwrap_or(f64::NAN));
        if accepted {
            *now = started;
        } else {
            starts::restore(model, &kept);
        }
        Ok(StartReport {
            init: self.init.name().to_owned(),
            accepted,
            adapters,
            kl,
        })
    }
}
