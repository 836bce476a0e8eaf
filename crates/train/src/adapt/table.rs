//! What each format would cost each projection, and which gets what.

use std::collections::BTreeSet;

use backdraft_arch::{ModelSpec, Precision, QuantizationPlan, Scheme};
use backdraft_formats::ModelSource;
use backdraft_lora::base::read_values;
use backdraft_plan::allocation::{Allocation, Candidate, allocate};
use backdraft_quant::{SquaredErrors, squared_errors};

use super::probe::Probe;
use crate::error::TrainError;

/// One projection that may move.
#[derive(Clone, Debug)]
struct Row {
    path: String,
    dims: [usize; 2],
    /// Its place among all projections.
    place: usize,
    errors: Vec<SquaredErrors>,
}

/// The errors of all projections in all formats. They are a function of the model's file: made once, and priced anew at
/// every point.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    rows: Vec<Row>,
    /// What each of the choices is.
    schemes: Vec<Scheme>,
}

/// What a point decided.
#[derive(Clone, Debug)]
pub(crate) struct Dealt {
    pub(crate) plan: QuantizationPlan,
    /// Sum of the prices, nats of KL per supervised token.
    pub(crate) price: f64,
    /// Bytes of the projections that the plan quantises.
    pub(crate) bytes: u64,
}

/// Prices by projection and format, nats of KL per supervised token.
pub(crate) type Prices = Vec<Vec<f64>>;

impl Table {
    /// Reads every projection that `plan` quantises, one at a time; the prices by what `probe` found are exact.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn measure(
        source: &ModelSource,
        spec: &ModelSpec,
        plan: &QuantizationPlan,
        precisions: &[Precision],
        probe: &Probe,
    ) -> Result<(Self, Prices), TrainError> {
        let mut rows = Vec::new();
        for (place, (layer, target)) in spec.projections().enumerate() {
            let path = target.path(layer);
            if plan.scheme_for(&path).is_none() {
                continue;
            }
            let name = format!("{path}.weight");
            let values = read_values(source, &name).map_err(|e| TrainError::Load(e.into()))?;
            source.release(&name);
            let seen = &probe.projections[place];
            let sensitivity = (&seen.outputs[..], &seen.inputs[..]);
            rows.push(Row {
                path,
                dims: spec.layers[layer].shape(target),
                place,
                errors: squared_errors(&values, sensitivity, precisions, plan.blocks()),
            });
        }
        let table = Self {
            rows,
            schemes: precisions.iter().map(|&one| plan.scheme_of(one)).collect(),
        };
        let share = 0.5 / probe.tokens.max(1) as f64;
        let of_row = |row: &Row| row.errors.iter().map(|e| e.weighed * share).collect();
        let prices = table.rows.iter().map(of_row).collect();
        Ok((table, prices))
    }

    /// Prices by what another probe found, without the file.
    pub(crate) fn priced(&self, probe: &Probe) -> Prices {
        let share = 0.5 / probe.tokens.max(1) as f64;
        let of_row = |row: &Row| {
            let seen = &probe.projections[row.place];
            let weighed = |e: &SquaredErrors| e.weighed_by(&seen.outputs, &seen.inputs);
            row.errors.iter().map(|e| weighed(e) * share).collect()
        };
        self.rows.iter().map(of_row).collect()
    }

    /// The price of a projection as `plan` stores it.
    fn price(&self, plan: &QuantizationPlan, row: &Row, prices: &[f64]) -> f64 {
        let scheme = plan.scheme_for(&row.path);
        let choice = (self.schemes.iter()).position(|&choice| Some(choice) == scheme);
        choice.map_or(0.0, |choice| prices[choice])
    }

    /// What a plan costs.
    pub(crate) fn cost(&self, plan: &QuantizationPlan, prices: &Prices) -> Dealt {
        let (mut price, mut bytes) = (0.0, 0);
        for (row, prices) in self.rows.iter().zip(prices) {
            let scheme = plan.scheme_for(&row.path);
            price += self.price(plan, row, prices);
            bytes += scheme.map_or(0, |scheme| scheme.num_bytes(row.dims) as u64);
        }
        Dealt {
            plan: plan.clone(),
            price,
            bytes,
        }
    }

    /// The cheapest plan within `budget` bytes that differs from `now` in no projection but those `among` names, where it
    /// names any; `None` where nothing fits.
    pub(crate) fn deal(
        &self,
        now: &QuantizationPlan,
        prices: &Prices,
        budget: u64,
        among: Option<&BTreeSet<String>>,
    ) -> Option<Dealt> {
        let candidates = self.rows.iter().zip(prices).map(|(row, prices)| {
            let fixed = among.is_some_and(|among| !among.contains(&row.path));
            let kept = now.scheme_for(&row.path);
            let all = prices.iter().enumerate().map(|(choice, &price)| {
                let scheme = self.schemes[choice];
                let bytes = scheme.num_bytes(row.dims) as u64;
                (Some(scheme), Candidate { bytes, price })
            });
            all.filter(|(scheme, _)| !fixed || *scheme == kept)
                .collect()
        });
        self.cheapest(now, candidates.collect(), budget)
    }

    /// The cheapest plan within `budget` bytes whose projections are in the scheme of `now` or not quantised at all, where
    /// they take `element` bytes a value: which to skip. `None` where nothing fits.
    pub(crate) fn skip(
        &self,
        now: &QuantizationPlan,
        prices: &Prices,
        budget: u64,
        element: u64,
    ) -> Option<Dealt> {
        let candidates = self.rows.iter().zip(prices).map(|(row, prices)| {
            let bytes = now.scheme.num_bytes(row.dims) as u64;
            let price = self.price(now, row, prices);
            let dense = (row.dims[0] * row.dims[1]) as u64 * element;
            let dense = Candidate {
                bytes: dense,
                price: 0.0,
            };
            vec![
                (Some(now.scheme), Candidate { bytes, price }),
                (None, dense),
            ]
        });
        self.cheapest(now, candidates.collect(), budget)
    }

    fn cheapest(
        &self,
        now: &QuantizationPlan,
        candidates: Vec<Vec<(Option<Scheme>, Candidate)>>,
        budget: u64,
    ) -> Option<Dealt> {
        let matrices: Vec<Vec<Candidate>> = candidates
            .iter()
            .map(|of| of.iter().map(|&(_, candidate)| candidate).collect())
            .collect();
        if matrices.iter().any(Vec::is_empty) {
            return None;
        }
        let Allocation {
            choice,
            bytes,
            price,
            ..
        } = allocate(&matrices, budget)?;
        let mut plan = QuantizationPlan {
            schemes: Default::default(),
            ..now.clone()
        };
        for ((row, candidates), choice) in self.rows.iter().zip(&candidates).zip(choice) {
            match candidates[choice].0 {
                Some(scheme) if scheme == plan.scheme => {}
                Some(scheme) => {
                    plan.schemes.insert(row.path.clone(), scheme);
                }
                None => plan.skip_modules.push(row.path.clone()),
            }
        }
        Some(Dealt { plan, price, bytes })
    }

    /// By how much each projection that two plans store differently becomes cheaper, most first.
    pub(crate) fn gains(
        &self,
        from: &QuantizationPlan,
        to: &QuantizationPlan,
        prices: &Prices,
    ) -> Vec<(String, f64)> {
        let differ = self
            .rows
            .iter()
            .zip(prices)
            .filter(|(row, _)| from.scheme_for(&row.path) != to.scheme_for(&row.path));
        let mut gains: Vec<(String, f64)> = differ
            .map(|(row, prices)| {
                let gain = self.price(from, row, prices) - self.price(to, row, prices);
                (row.path.clone(), gain)
            })
            .collect();
        gains.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        gains
    }
}
