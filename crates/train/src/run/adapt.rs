//! Adaptive precision of a run: what is measured before its first step, or stored as a checkpoint has it.

use std::path::Path;
use std::sync::Arc;

use backdraft_arch::{ModelSpec, QuantizationPlan};
use backdraft_data::count;
use backdraft_formats::ModelSource;
use backdraft_journal::adaptation::AdaptationReport;
use backdraft_journal::report::Reporter;
use backdraft_kernels::device::size_pages;
use backdraft_model::CausalLm;
use backdraft_recipe::Recipe;

use super::{Run, Start, quantization};
use crate::adapt::{Adaptation, CalibrationRows, read_plan};
use crate::checkpoint::Saved;
use crate::data::{RunData, data_error};
use crate::device::DeviceFacts;
use crate::error::TrainError;
use crate::trained_with::TrainedWith;

/// How the base is stored at the beginning.
pub(super) fn stored_plan(
    recipe: &Recipe,
    source: &ModelSource,
    spec: &ModelSpec,
) -> Result<Option<QuantizationPlan>, TrainError> {
    let Some(path) = &recipe.quantization.plan else {
        return Ok(quantization(recipe, source)?);
    };
    let formats = recipe
        .deals_bits()
        .then_some(&recipe.quantization.formats[..]);
    Ok(Some(read_plan(path, spec, formats)?))
}

/// What `recipe` asks for; `None` where it asks for one precision and adapters that start at zero.
pub(super) fn adaptation(
    recipe: &Recipe,
    source: &Arc<ModelSource>,
    data: &RunData,
    plan: Option<&QuantizationPlan>,
) -> Result<Option<Adaptation>, TrainError> {
    let Some(plan) = plan.filter(|_| Adaptation::is_asked(recipe)) else {
        return Ok(None);
    };
    let tokens = recipe.quantization.calibration_tokens;
    let pass = data.loader.largest_micro_batch().iter().sum();
    let rows = CalibrationRows::choose(&data.train, data.loader.clone(), tokens, pass);
    let rows = rows.map_err(data_error(Path::new("data.train")))?;
    Ok(Adaptation::of(recipe, source, rows, plan))
}

impl Run {
    /// How the base is stored now.
    pub(super) fn quantization(&self) -> Option<QuantizationPlan> {
        match &self.adaptation {
            Some(adaptation) => Some(adaptation.plan().clone()),
            None => self.loaded.clone(),
        }
    }

    /// Stores the base as the checkpoint has it, or measures and deals out anew, before the first step or because bits
    /// have changed; a report of the latter.
    pub(super) fn adapt(
        &mut self,
        start: &Start,
        reporter: &mut dyn Reporter,
    ) -> Result<Option<AdaptationReport>, TrainError> {
        if self.adaptation.is_none() {
            return Ok(None);
        }
        let saved = start.from();
        if let Some(saved) = saved
            && !self.has_other_bits(saved)?
        {
            let mut model = self.model.clone();
            self.store_as_in(saved, &mut model)?;
            self.model = model;
            return Ok(None);
        }
        let tokens = self.recipe.quantization.calibration_tokens as u64;
        let measured = count(tokens, "token");
        reporter.adapting(&match saved {
            None => format!("measuring {measured} of training rows"),
            Some(saved) => format!("step {}: other bits, measuring anew", saved.state.step),
        });
        // What the measurement takes comes in the pages that steps will use.
        let facts = DeviceFacts::of(&self.device, self.model.dtype().size() as u64);
        let spec = self.model.spec().clone();
        let plan = self.loaded.clone();
        let setup = self.recipe.setup(spec, plan, facts.memory, facts.host);
        let step = setup.step();
        size_pages(&self.device, step.page_for(self.longest_pass()));
        let report = match saved {
            None => (self.adaptation.as_mut()).map_or(Ok(None), |it| it.begin(&mut self.model))?,
            Some(saved) => self.refit(saved)?,
        };
        if let Some(report) = &report {
            reporter.adapted(report);
        }
        Ok(report)
    }

    /// Whether the run goes on with other bits than those of the checkpoint, or in other formats.
    fn has_other_bits(&self, saved: &Saved) -> Result<bool, TrainError> {
        let was = Recipe::from_stored(&saved.recipe, &saved.path)?;
        let (was, now) = (&was, &self.recipe);
        Ok(was.mean_bits() != now.mean_bits()
            || was.quantization.formats != now.quantization.formats)
    }

    /// Deals out the new bits under the adapter of the checkpoint.
    fn refit(&mut self, saved: &Saved) -> Result<Option<AdaptationReport>, TrainError> {
        let adapter = self.adapter_of(saved)?;
        let Some(adaptation) = &mut self.adaptation else {
            return Ok(None);
        };
        self.model = self.model.clone().with_adapter(&adapter)?;
        let noted = TrainedWith::read(&saved.path.join("adapter"))?;
        let plan = noted.and_then(|noted| noted.over.quantization);
        let plan = plan.unwrap_or_else(|| adaptation.plan().clone());
        adaptation.refit(&mut self.model, &plan, saved.state.step)
    }

    /// Stores the base of `model` as a checkpoint has it.
    pub(super) fn store_as_in(
        &mut self,
        saved: &Saved,
        model: &mut CausalLm,
    ) -> Result<(), TrainError> {
        let Some(adaptation) = &mut self.adaptation else {
            return Ok(());
        };
        let noted = TrainedWith::read(&saved.path.join("adapter"))?;
        match noted.and_then(|noted| noted.over.quantization) {
            Some(plan) => adaptation.restore(model, &plan),
            None => Ok(()),
        }
    }
}
