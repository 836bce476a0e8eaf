//! The reference's log-likelihoods of all answers, before the first step.

use backdraft_data::{RowSet, count};
use backdraft_journal::report::Reporter;
use backdraft_journal::text::with_causes;
use backdraft_model::CausalLm;
use burn::data::dataloader::DataLoader;

use super::Run;
use crate::checkpoint::Saved;
use crate::data::cache_folder;
use crate::deal::Deal;
use crate::error::TrainError;
use crate::known::{Key, Known};
use crate::loader::EvalLoader;
use crate::metrics::numbers;
use crate::step::{Trunk, nll};

impl Run {
    /// Finds the log-likelihoods of all answers under the reference in the cache, or computes and keeps them, where the recipe
    /// asks for that: no step and no evaluation computes them again.
    ///
    /// # Errors
    /// A reference that is not what it was, rows that cannot be read, a device that failed.
    pub(super) fn precompute(
        &mut self,
        saved: Option<&Saved>,
        reporter: &mut dyn Reporter,
    ) -> Result<(), TrainError> {
        if !self.recipe.objective.precomputes_reference() {
            return Ok(());
        }
        let rows = self.data.train.clone();
        self.known.train = Some(self.known_of(&rows, saved, reporter)?);
        if let Some(rows) = self.data.eval.clone() {
            self.known.eval = Some(self.known_of(&rows, saved, reporter)?);
        }
        for set in self.data.eval_sets.clone() {
            let known = self.known_of(&set.rows, saved, reporter)?;
            self.known.sets.push(known);
        }
        // Nothing asks for it any more.
        if let Some(start) = &mut self.start {
            start.adapter = None;
        }
        Ok(())
    }

    fn known_of(
        &mut self,
        rows: &RowSet,
        saved: Option<&Saved>,
        reporter: &mut dyn Reporter,
    ) -> Result<Known, TrainError> {
        let key = self.key(rows, saved)?;
        let path = cache_folder(&self.recipe.data.cache).map(|dir| dir.join(key.file_name()));
        if let Some(path) = &path {
            match Known::read(path, &key, rows.len()) {
                Ok(Some(known)) => return Ok(known),
                Ok(None) => {}
                Err(problem) => reporter.warn(&format!(
                    "{}: {problem}: what answers are compared with is computed again",
                    path.display()
                )),
            }
        }
        let known = self.compute(rows, saved, reporter)?;
        let written = path.map_or(Ok(()), |path| known.write(&path, &key));
        if let Err(error) = written {
            reporter.warn(&format!(
                "what answers are compared with is not kept for the next run: {}",
                with_causes(&error)
            ));
        }
        Ok(known)
    }

    /// A hash of all that the numbers depend on: the base as it is kept, what lies over it, and the rows as tokens, which
    /// template and length are a part of.
    fn key(&self, rows: &RowSet, saved: Option<&Saved>) -> Result<Key, TrainError> {
        let start = self.start_fingerprint(saved);
        let over = match start {
            None => "base".to_owned(),
            Some(start) => {
                let config = self.recipe.trained(self.model.spec())?;
                format!("{start} {config:?}")
            }
        };
        Ok(Key::of(&[
            &self.model_fingerprint,
            &format!("{:?} {:?}", self.quantization(), self.model.dtype()),
            &over,
            &rows.fingerprint(),
            &self.recipe.max_seq_length.to_string(),
        ]))
    }

    fn compute(
        &mut self,
        rows: &RowSet,
        saved: Option<&Saved>,
        reporter: &mut dyn Reporter,
    ) -> Result<Known, TrainError> {
        if let (None, Some(saved)) = (&self.start, saved) {
            self.read_start_again(saved)?;
        }
        let reference = self.reference()?;
        let reference: CausalLm = reference.unwrap_or_else(|| self.model.clone().without_adapter());
        let Some(deal) = self.deal() else {
            unreachable!("answers are compared");
        };
        let all = rows.len();
        let of = count(all as u64, "pair");
        reporter.adapting(&format!("the reference's log-likelihoods of {of}"));
        let size = self.recipe.train.micro_batch_size;
        let (mut told, tenth) = (0, all.div_ceil(10).max(1));
        log_likelihoods(&reference, rows, (deal, size), |done| {
            if done >= told + tenth && done < all {
                told = done;
                reporter.adapting(&format!("{done} of {of}"));
            }
        })
    }
}

/// Log-likelihoods of all answers of pairs under `reference`, in passes of `size` rows; `progress` hears how many rows are
/// done.
///
/// # Errors
/// Rows that cannot be read, or a device that failed.
pub fn log_likelihoods(
    reference: &CausalLm,
    rows: &RowSet,
    (deal, size): (Deal, usize),
    mut progress: impl FnMut(usize),
) -> Result<Known, TrainError> {
    let loader = EvalLoader::new(rows.clone(), size).comparing(Some(deal));
    let mut values = Vec::with_capacity(2 * rows.len());
    for held in loader.iter() {
        let held = held.map_err(|error| TrainError::Learner {
            message: error.to_string(),
        })?;
        let (batch, Some(compared)) = (&held.batch, &held.answers) else {
            unreachable!("answers are dealt out");
        };
        let found = nll(reference, batch, Trunk::new(reference, batch));
        let of = (&batch.targets, &batch.tokens.segments);
        let found = numbers(compared.log_likelihoods(of, &found));
        let found = found.map_err(|error| TrainError::Device {
            step: 0,
            message: error.to_string(),
        })?;
        values.extend(found.into_iter().map(|value| value as f32));
        progress(values.len() / 2);
    }
    Ok(Known::new(values))
}
