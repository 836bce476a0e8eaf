//! What precision would cost a model, without a run: for `plan --measure` and `quantize --bits`.

use std::sync::Arc;

use backdraft_arch::{ModelSpec, Precision, QuantizationPlan};
use backdraft_formats::ModelSource;
use backdraft_journal::adaptation::PrecisionReport;
use backdraft_model::CausalLm;
use burn::tensor::TensorReadError;

use super::judge::Look;
use super::moves::store_as;
use super::point::told;
use super::probe::probe;
use super::rows::CalibrationRows;
use super::table::{Dealt, Prices, Table};
use crate::error::TrainError;

/// Prices of every projection of a model in every format, by one measurement.
pub struct Survey {
    source: Arc<ModelSource>,
    spec: ModelSpec,
    rows: CalibrationRows,
    table: Table,
    prices: Prices,
    uniform: Dealt,
    tokens: usize,
}

/// A plan, and what it is predicted to cost.
#[derive(Clone, Debug)]
pub struct Offer {
    /// How each projection is stored.
    pub plan: QuantizationPlan,
    /// Its figures; `predicted` has the price of the uniform plan first.
    pub report: PrecisionReport,
}

impl Survey {
    /// Measures `model`, whose base is stored as `uniform` says, on `rows`.
    ///
    /// # Errors
    /// A file that cannot be read, a device that failed.
    pub fn measure(
        source: &Arc<ModelSource>,
        model: &CausalLm,
        uniform: &QuantizationPlan,
        (rows, formats): (CalibrationRows, &[Precision]),
        seed: u64,
    ) -> Result<Self, TrainError> {
        let spec = model.spec().clone();
        let found = probe(model, &rows.statistics, seed);
        let found = found.map_err(|error: TensorReadError| TrainError::Device {
            step: 0,
            message: error.to_string(),
        })?;
        let (table, prices) = Table::measure(source, &spec, uniform, formats, &found)?;
        Ok(Self {
            source: source.clone(),
            uniform: table.cost(uniform, &prices),
            tokens: found.tokens,
            spec,
            rows,
            table,
            prices,
        })
    }

    /// Supervised tokens that were measured.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.tokens
    }

    /// Every projection in one format.
    #[must_use]
    pub fn uniform(&self) -> Offer {
        self.offer(self.uniform.clone())
    }

    /// What a plan is predicted to cost, nats of KL per supervised token.
    #[must_use]
    pub fn price(&self, plan: &QuantizationPlan) -> f64 {
        self.table.cost(plan, &self.prices).price
    }

    /// The plan that costs least at `bits` in the mean; `None` where the smallest formats take more.
    #[must_use]
    pub fn deal(&self, bits: f64) -> Option<Offer> {
        let (prices, budget) = (&self.prices, self.budget(bits));
        let dealt = self.table.deal(&self.uniform.plan, prices, budget, None);
        dealt.map(|dealt| self.offer(dealt))
    }

    /// The projections that are worth most at `bits` in the mean if they are not quantised at all, where they take
    /// `element` bytes a value; `None` where the others take more.
    #[must_use]
    pub fn skip(&self, bits: f64, element: u64) -> Option<Offer> {
        let (prices, budget) = (&self.prices, self.budget(bits));
        let dealt = self.table.skip(&self.uniform.plan, prices, budget, element);
        dealt.map(|dealt| self.offer(dealt))
    }

    /// How far a model is from its unquantised weights under each of some plans, on rows kept for it: KL in nats a
    /// supervised token. `model` is stored as the last of them afterwards.
    ///
    /// # Errors
    /// A file that cannot be read, a device that failed.
    pub fn check(
        &self,
        model: &mut CausalLm,
        plans: &[&QuantizationPlan],
    ) -> Result<Vec<f64>, TrainError> {
        let look = Look::with_reference(&self.source, model, &self.rows.verification)?;
        let mut found = Vec::with_capacity(plans.len());
        for plan in plans {
            store_as(model, plan, &self.source)?;
            found.push(look.at(model)?.kl.unwrap_or(f64::NAN));
        }
        Ok(found)
    }

    fn budget(&self, bits: f64) -> u64 {
        let (values, _) = self.uniform.plan.quantized(&self.spec);
        backdraft_recipe::bytes_of(bits, values)
    }

    fn offer(&self, dealt: Dealt) -> Offer {
        Offer {
            report: told(&self.spec, (&self.uniform, &dealt), (true, 1)),
            plan: dealt.plan,
        }
    }
}
