//! The policies of a recipe, and the planner that a run asks before each pass.

use std::collections::HashMap;
use std::sync::Arc;

use backdraft_arch::named;
use serde::Serialize;

use crate::cost::CostModel;
use crate::plan::ActivationPlan;
use crate::predict::{Prediction, Shortage, StepShape};
use crate::tensors::PassShape;

/// Plans that are remembered.
const REMEMBERED: usize = 256;

named! {
    /// What the forward pass keeps for the backward pass.
    ActivationPolicy {
        /// The least recomputation that fits the memory.
        #[default]
        Smart = "smart",
        /// Everything: nothing is recomputed.
        KeepAll = "keep-all",
        /// The input of each layer: each layer runs again.
        RecomputeAll = "recompute-all",
        /// The input of every √n-th layer.
        Sqrt = "sqrt",
    }
}

/// A plan for passes of one shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// What the step obeys.
    pub plan: ActivationPlan,
    /// What it needs.
    pub prediction: Prediction,
    /// The passes that it is for.
    pub pass: PassShape,
}

/// A budget that was lowered while a run went on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lowered {
    /// Bytes that a step could use before.
    pub from: u64,
    /// Bytes that it may use from now on.
    pub to: u64,
}

/// Chooses a plan for each pass, under a budget that shrinks when memory runs out.
#[derive(Clone, Debug)]
pub struct Planner {
    step: StepShape,
    policy: ActivationPolicy,
    cost: CostModel,
    budget: u64,
    plans: HashMap<PassShape, Arc<Planned>>,
}

impl ActivationPolicy {
    /// The plan of a policy that does not look at the budget; `None` for `smart`.
    #[must_use]
    pub fn fixed(self, layers: usize) -> Option<ActivationPlan> {
        match self {
            Self::KeepAll => Some(ActivationPlan::keep_all(layers)),
            Self::RecomputeAll => Some(ActivationPlan::recompute_all(layers)),
            Self::Sqrt => Some(ActivationPlan::sqrt(layers)),
            Self::Smart => None,
        }
    }
}

impl Planner {
    /// Plans for `step` within `budget` bytes for everything, base included.
    #[must_use]
    pub fn new(step: StepShape, policy: ActivationPolicy, budget: u64, cost: CostModel) -> Self {
        Self {
            step,
            policy,
            cost,
            budget,
            plans: HashMap::new(),
        }
    }

    /// Bytes that a step may use, base included.
    #[must_use]
    pub const fn budget(&self) -> u64 {
        self.budget
    }

    /// The step that is planned.
    #[must_use]
    pub const fn step(&self) -> &StepShape {
        &self.step
    }

    /// The plan for a pass.
    ///
    /// # Errors
    /// Nothing fits; only `smart` says so.
    pub fn plan(&mut self, pass: PassShape) -> Result<Arc<Planned>, Shortage> {
        if let Some(planned) = self.plans.get(&pass) {
            return Ok(planned.clone());
        }
        let planned = Arc::new(self.make(pass)?);
        if self.plans.len() >= REMEMBERED {
            self.plans.clear();
        }
        self.plans.insert(pass, planned.clone());
        Ok(planned)
    }

    fn make(&self, pass: PassShape) -> Result<Planned, Shortage> {
        let plan = match self.policy.fixed(self.step.layers.len()) {
            Some(plan) => plan,
            None => self.step.solve(self.budget, pass, &self.cost)?,
        };
        let prediction = self.step.predict(&plan, pass, &self.cost);
        Ok(Planned {
            plan,
            prediction,
            pass,
        })
    }

    /// Lowers the budget after a pass under `failed` did not get its memory: to `obtainable` where that is known,
    /// and by a sixteenth at least. `None` under a policy that cannot do with less.
    pub fn lower(&mut self, failed: &Planned, obtainable: Option<u64>) -> Option<Lowered> {
        if self.policy != ActivationPolicy::Smart {
            return None;
        }
        let from = self.budget;
        let used = failed.prediction.peak.total().min(from);
        let to = obtainable.unwrap_or(u64::MAX).min(used - used / 16);
        self.budget = to;
        self.plans.clear();
        Some(Lowered { from, to })
    }
}
