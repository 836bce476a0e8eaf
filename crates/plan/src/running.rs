//! The planner of a run: what the steps share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bytes::size;
use crate::memory::{MemoryWatch, OutOfMemory};
use crate::policies::{Lowered, Planned, Planner};
use crate::predict::{Prediction, Shortage};
use crate::setup::{Advice, Setup};
use crate::tensors::PassShape;

/// Why a step was not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepFailure {
    /// No plan fits the budget.
    #[error(transparent)]
    Shortage(Shortage),
    /// The plan did not get its memory.
    #[error(transparent)]
    OutOfMemory(OutOfMemory),
}

/// Plans the passes of a run, and remembers what it has promised; shared by clones.
#[derive(Clone, Debug)]
pub struct Activations {
    shared: Arc<Mutex<Shared>>,
    watch: Arc<dyn MemoryWatch>,
    /// What the process holds besides a step.
    overhead: u64,
    setup: Arc<Setup>,
}

#[derive(Debug)]
struct Shared {
    planner: Planner,
    /// The plan of the last pass.
    last: Option<Arc<Planned>>,
    /// The highest peak of a pass that was computed.
    highest: Option<Prediction>,
}

impl Activations {
    /// Plans of `planner` under a `watch` that sees `overhead` bytes besides those that are predicted.
    pub fn new(planner: Planner, setup: Setup, watch: Arc<dyn MemoryWatch>, overhead: u64) -> Self {
        let shared = Shared {
            planner,
            last: None,
            highest: None,
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            watch,
            overhead,
            setup: Arc::new(setup),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A panic elsewhere does not make the numbers wrong.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan for a pass.
    ///
    /// # Errors
    /// Nothing fits.
    pub fn plan(&self, pass: PassShape) -> Result<Arc<Planned>, Shortage> {
        let mut shared = self.lock();
        let planned = shared.planner.plan(pass)?;
        let peak = planned.prediction.peak.total();
        if shared
            .highest
            .is_none_or(|highest| highest.peak.total() < peak)
        {
            shared.highest = Some(planned.prediction);
        }
        shared.last = Some(planned.clone());
        Ok(planned)
    }

    /// Who knows how much memory there is, and how much a pass under `planned` needs of it.
    #[must_use]
    pub fn guard(&self, planned: &Planned) -> crate::memory::Guard<'_> {
        crate::memory::Guard {
            watch: &*self.watch,
            needed: planned.prediction.peak.total() + self.overhead,
        }
    }

    /// The prediction with the highest peak so far.
    #[must_use]
    pub fn highest(&self) -> Option<Prediction> {
        self.lock().highest
    }

    /// Bytes that a step may use, base included.
    #[must_use]
    pub fn budget(&self) -> u64 {
        self.lock().planner.budget()
    }

    /// Makes do with less after a failure.
    ///
    /// # Errors
    /// What to change instead, where no plan fits or the policy cannot do with less.
    pub fn lower(&self, failure: StepFailure) -> Result<Lowered, Exhausted> {
        let failure = match failure {
            StepFailure::Shortage(shortage) => return Err(self.exhausted(shortage)),
            StepFailure::OutOfMemory(failure) => failure,
        };
        let mut shared = self.lock();
        let Some(last) = shared.last.clone() else {
            unreachable!("a pass that failed had a plan")
        };
        let obtainable = failure
            .obtainable
            .map(|bytes| bytes.saturating_sub(self.overhead));
        let lowered = shared.planner.lower(&last, obtainable);
        // What was promised before does not hold any more.
        shared.highest = None;
        drop(shared);
        lowered.ok_or_else(|| {
            let needed = last.prediction.peak.total();
            Exhausted {
                needed,
                budget: obtainable.unwrap_or(needed),
                base: self.setup.base_bytes(),
                limit: Limit::Machine,
                advice: vec![Advice::Smart],
            }
        })
    }

    /// What is missing, and what to change.
    #[must_use]
    pub fn exhausted(&self, shortage: Shortage) -> Exhausted {
        Exhausted {
            needed: shortage.needed,
            budget: shortage.budget,
            base: self.setup.base_bytes(),
            limit: Limit::Machine,
            advice: self.setup.advice(shortage),
        }
    }
}

/// There is not enough memory for any plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// Bytes that are needed at least.
    pub needed: u64,
    /// Bytes that may be used.
    pub budget: u64,
    /// Bytes of the base model among those that are needed.
    pub base: u64,
    /// Who sets the budget.
    pub limit: Limit,
    /// Settings of which each alone would help.
    pub advice: Vec<Advice>,
}

/// Who says how much memory a step may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The recipe's `memory_budget`.
    Recipe,
    /// What the machine or the device has, or had left when memory ran out.
    Machine,
}

impl Limit {
    /// Of a budget of so many bytes, where the recipe may name one.
    #[must_use]
    pub fn of(recipe: Option<u64>, budget: u64) -> Self {
        match recipe {
            Some(named) if named == budget => Self::Recipe,
            _ => Self::Machine,
        }
    }
}

impl Exhausted {
    /// With the budget ascribed to the recipe where it is the one that it names.
    #[must_use]
    pub fn under(self, recipe: Option<u64>) -> Self {
        Self {
            limit: Limit::of(recipe, self.budget),
            ..self
        }
    }
}

impl std::fmt::Display for Exhausted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (needed, budget, base) = (size(self.needed), size(self.budget), size(self.base));
        write!(f, "a step needs at least {needed}, ")?;
        match self.limit {
            Limit::Recipe => write!(f, "memory_budget allows {budget}")?,
            Limit::Machine => write!(f, "{budget} can be used")?,
        }
        write!(f, " (the base alone takes {base})")
    }
}
