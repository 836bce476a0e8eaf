//! How much memory a step may use, and the plan that keeps within it.

use std::path::PathBuf;
use std::sync::Arc;

use backdraft_arch::ModelSpec;
use backdraft_kernels::device::size_pages;
use backdraft_plan::cost::{CostModel, Roofline};
use backdraft_plan::memory::{self, MemoryWatch, usable};
use backdraft_plan::tensors::PassShape;
use backdraft_plan::{
    ActivationPlan, ActivationPolicy, Activations, Planner, Prediction, Setup, StepShape,
};
use backdraft_recipe::{ByteSize, Recipe};

use super::Run;
use crate::calibrate::{self, CalibrationKey};
use crate::device::DeviceFacts;
use crate::error::TrainError;
use crate::ranks::bytes_on_device;

/// Puts a number in place of bits that are left to the memory there is.
///
/// # Errors
/// A base that does not fit into what the recipe gives it.
pub(super) fn settle_bits(
    recipe: &mut Recipe,
    spec: &ModelSpec,
    facts: &DeviceFacts,
    longest: PassShape,
) -> Result<(), TrainError> {
    let budget = match (recipe.memory_budget, facts.capacity) {
        (Some(ByteSize(budget)), _) => budget,
        (None, Some(capacity)) => usable(capacity),
        (None, None) => facts.watch().obtainable().unwrap_or(u64::MAX) / 16 * 15,
    };
    let cost = CostModel::Roofline(facts.roofline);
    let machine = (facts.memory, facts.host);
    Ok(recipe.settle_bits(spec, machine, (budget, &cost), Some(longest))?)
}

impl Run {
    /// A pass over the largest micro-batch that the data can make, every token supervised.
    pub(super) fn longest_pass(&self) -> PassShape {
        let texts = self.data.loader.largest_micro_batch();
        PassShape::of_texts(texts, self.model.spec().scores)
    }

    /// What decides on the memory of a step.
    ///
    /// # Errors
    /// None: nobody is asked.
    fn setup(&mut self, facts: &DeviceFacts) -> Result<Setup, TrainError> {
        let spec = self.model.spec().clone();
        // What the base was loaded in: what is dealt out has its room below.
        let plan = self.loaded.clone();
        let setup = self.recipe.setup(spec, plan, facts.memory, facts.host);
        let bytes = self.model.device_bytes();
        let room = self.adaptation.as_ref();
        let room = room.map_or(0, |adaptation| adaptation.room(self.model.spec()));
        let copy = self.recipe.frozen_adapter_bytes(&setup);
        let exchange = self.exchange_bytes(facts)?;
        Ok(setup.with_base(bytes as u64 + room + copy + exchange))
    }

    /// What the device holds to add a step's blocks and to exchange them, as long as the run lasts.
    ///
    /// # Errors
    /// None: nobody is asked.
    fn exchange_bytes(&self, facts: &DeviceFacts) -> Result<u64, TrainError> {
        let blocks = match facts.capacity {
            None => None,
            Some(_) => self.blocks()?,
        };
        let gradients = 4 * self.model.num_trained() as u64;
        Ok(blocks.map_or(0, |blocks| bytes_on_device(&blocks, gradients)))
    }

    /// Who plans the passes, and what the longest one will need.
    ///
    /// # Errors
    /// No plan fits.
    pub(super) fn activations(
        &mut self,
        pass: PassShape,
        watch: Option<Arc<dyn MemoryWatch>>,
    ) -> Result<(Activations, Prediction), TrainError> {
        let element = self.model.norm().weight().dtype().size() as u64;
        let facts = DeviceFacts::of(&self.device, element);
        let watch = watch.unwrap_or_else(|| facts.watch());
        let setup = self.setup(&facts)?;
        let mut step = setup.step();
        step.page = step.page_for(pass);
        size_pages(&self.device, step.page);
        // What the process holds already, the base apart: tokenizer, rows, the program itself.
        let held = memory::resident().unwrap_or(0) as u64;
        let overhead = match facts.capacity {
            None => held.saturating_sub(step.base + step.adapters),
            Some(_) => 0,
        };
        let budget = match (
            self.recipe.memory_budget,
            facts.capacity,
            watch.obtainable(),
        ) {
            (Some(ByteSize(budget)), ..) => budget,
            (None, Some(capacity), _) => usable(capacity),
            (None, None, Some(bytes)) => bytes.saturating_sub(overhead) / 16 * 15,
            (None, None, None) => u64::MAX,
        };
        let policy = self.recipe.activation_policy;
        let cost = self.cost(&step, (budget, facts.roofline), pass)?;
        let mut planner = Planner::new(step, policy, budget, cost);
        let planned = planner.plan(pass);
        let activations = Activations::new(planner, setup, watch, overhead);
        match planned {
            Ok(planned) => Ok((activations, planned.prediction)),
            Err(shortage) => Err(TrainError::OutOfMemory {
                step: 1,
                exhausted: activations
                    .exhausted(shortage)
                    .under(self.recipe.memory_budget.map(|bytes| bytes.0)),
            }),
        }
    }

    /// What recomputing costs: measured on a layer of the model where something will have to be recomputed.
    fn cost(
        &self,
        step: &StepShape,
        (budget, line): (u64, Roofline),
        pass: PassShape,
    ) -> Result<CostModel, TrainError> {
        let estimate = CostModel::Roofline(line);
        let all = ActivationPlan::keep_all(step.layers.len());
        let fits = step.predict(&all, pass, &estimate).peak.total() <= budget;
        // The one that is measured.
        let layers = step.layers.iter();
        let whole = layers.clone().rfind(|layer| layer.has_value());
        let Some(shape) = whole.or(layers.last()) else {
            return Ok(estimate);
        };
        if fits || self.recipe.activation_policy != ActivationPolicy::Smart {
            return Ok(estimate);
        }
        let key = CalibrationKey {
            device: format!("{:?}", self.device),
            layer: *shape,
            memory: step.memory,
            tokens: pass.tokens.next_power_of_two(),
        };
        let dir = calibration_dir();
        if let Some(known) = dir.as_deref().and_then(|dir| calibrate::cached(dir, &key)) {
            return Ok(CostModel::Measured(known, line));
        }
        let measured = calibrate::measure(&self.model, &step.sample(pass));
        let measured = measured.map_err(|error| TrainError::Device {
            step: 0,
            message: error.to_string(),
        })?;
        if let Some(dir) = dir {
            // Without it the next run measures again.
            let _ = calibrate::store(&dir, &key, &measured);
        }
        Ok(CostModel::Measured(measured, line))
    }
}

/// Where measured times are kept between runs.
fn calibration_dir() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("backdraft").join("calibration"))
}
