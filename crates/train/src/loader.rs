//! Optimiser steps out of a data set, as a burn data loader.

use std::sync::Arc;

use backdraft_data::{Batch, DataError, Example, Loader, LoaderState};
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;

use crate::step::MicroBatch;

/// Everything one optimiser step computes on.
#[derive(Clone, Debug)]
pub struct Step {
    /// Counted from 0.
    pub number: usize,
    /// The micro-batches.
    pub micro_batches: Vec<MicroBatch>,
    /// Rows of the data set, in the order of the micro-batches.
    pub rows: Vec<usize>,
    /// Where the data stands after this step.
    pub after: LoaderState,
}

impl Step {
    /// Targets of all micro-batches.
    pub fn supervised_tokens(&self) -> usize {
        self.micro_batches
            .iter()
            .map(|batch| batch.targets.len())
            .sum()
    }

    /// Tokens of all micro-batches.
    pub fn tokens(&self) -> usize {
        self.micro_batches
            .iter()
            .map(|batch| batch.tokens.len())
            .sum()
    }
}

/// The steps of a run, in order.
#[derive(Clone)]
pub struct StepLoader {
    examples: Arc<Vec<Example>>,
    loader: Loader,
    first: usize,
    total_steps: usize,
}

impl StepLoader {
    /// `total_steps` steps from where `loader` stands.
    pub fn new(examples: Arc<Vec<Example>>, loader: Loader, total_steps: usize) -> Self {
        Self {
            examples,
            loader,
            first: 0,
            total_steps,
        }
    }

    /// The same run after `steps` of its steps, which is where its loader has to stand.
    #[must_use]
    pub fn after(self, steps: usize) -> Self {
        Self {
            first: steps,
            ..self
        }
    }
}

impl DataLoader<Step> for StepLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<Step> + 'a> {
        Box::new(Steps {
            source: self,
            loader: self.loader.clone(),
            number: self.first,
        })
    }

    fn num_items(&self) -> usize {
        self.total_steps.saturating_sub(self.first)
    }

    fn to_device(&self, _: &Device) -> Arc<dyn DataLoader<Step>> {
        Arc::new(self.clone())
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<Step>> {
        let mut part = self.clone();
        for _ in 0..start {
            part.loader.next_step();
        }
        part.first += start;
        part.total_steps = (self.first + end).min(self.total_steps);
        Arc::new(part)
    }
}

struct Steps<'a> {
    source: &'a StepLoader,
    loader: Loader,
    number: usize,
}

impl Steps<'_> {
    fn make(&mut self) -> Result<Step, DataError> {
        let row_groups = self.loader.next_step();
        let micro_batches = row_groups
            .iter()
            .map(|rows| Batch::from_examples(&self.source.examples, rows).map(MicroBatch::from))
            .collect::<Result<_, _>>()?;
        Ok(Step {
            number: self.number,
            micro_batches,
            rows: row_groups.concat(),
            after: self.loader.state(),
        })
    }
}

impl Iterator for Steps<'_> {
    type Item = Result<Step, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.number >= self.source.total_steps {
            return None;
        }
        let step = self.make().map_err(DatasetError::new);
        self.number += 1;
        Some(step)
    }
}

impl DataLoaderIterator<Step> for Steps<'_> {
    fn progress(&self) -> Progress {
        Progress::new(
            self.number,
            self.source.total_steps,
            Some("steps".to_owned()),
        )
    }
}

/// Rows in the order of the file, for evaluation.
#[derive(Clone)]
pub struct EvalLoader {
    batches: Arc<Vec<MicroBatch>>,
}

impl EvalLoader {
    /// Micro-batches of `size` rows.
    ///
    /// # Errors
    /// More tokens in a micro-batch than can be counted.
    pub fn new(examples: &[Example], size: usize) -> Result<Self, DataError> {
        let rows: Vec<usize> = (0..examples.len()).collect();
        let batches = rows
            .chunks(size.max(1))
            .map(|rows| Batch::from_examples(examples, rows).map(MicroBatch::from))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            batches: Arc::new(batches),
        })
    }
}

impl DataLoader<MicroBatch> for EvalLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<MicroBatch> + 'a> {
        Box::new(EvalBatches {
            batches: &self.batches,
            next: 0,
        })
    }

    fn num_items(&self) -> usize {
        self.batches.len()
    }

    fn to_device(&self, _: &Device) -> Arc<dyn DataLoader<MicroBatch>> {
        Arc::new(self.clone())
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<MicroBatch>> {
        let end = end.min(self.batches.len());
        let batches = Arc::new(self.batches[start.min(end)..end].to_vec());
        Arc::new(Self { batches })
    }
}

struct EvalBatches<'a> {
    batches: &'a [MicroBatch],
    next: usize,
}

impl Iterator for EvalBatches<'_> {
    type Item = Result<MicroBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.batches.get(self.next)?;
        self.next += 1;
        Some(Ok(batch.clone()))
    }
}

impl DataLoaderIterator<MicroBatch> for EvalBatches<'_> {
    fn progress(&self) -> Progress {
        Progress::new(self.next, self.batches.len(), Some("batches".to_owned()))
    }
}
