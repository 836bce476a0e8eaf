//! Optimiser steps out of rows, as a burn data loader.

use std::sync::Arc;

use backdraft_data::{Batch, DataError, Loader, LoaderState, RowSet};
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;

use crate::prefetch::Prefetch;
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
    /// Tokens of those rows, padding not among them.
    pub tokens: usize,
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
}

/// The steps of a run, in order. The next one is made while the device computes the last; where the data stands comes
/// with each step, so a run that stops goes on behind the step it took, not behind the one that was ready.
#[derive(Clone)]
pub struct StepLoader {
    rows: RowSet,
    loader: Loader,
    first: usize,
    total_steps: usize,
    pad_id: Option<u32>,
}

impl StepLoader {
    /// `total_steps` steps from where `loader` stands.
    pub fn new(rows: RowSet, loader: Loader, total_steps: usize) -> Self {
        Self {
            rows,
            loader,
            first: 0,
            total_steps,
            pad_id: None,
        }
    }

    /// The same with every row of a micro-batch filled up with `pad_id` to the longest, for
    /// comparison with code that pads.
    #[must_use]
    pub fn padded(self, pad_id: u32) -> Self {
        Self {
            pad_id: Some(pad_id),
            ..self
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
        let steps = Steps {
            number: self.first,
            source: self.clone(),
        };
        Box::new(StepsAhead {
            number: self.first,
            total_steps: self.total_steps,
            steps: Prefetch::new(steps),
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

/// Makes one step after the other.
struct Steps {
    source: StepLoader,
    number: usize,
}

impl Steps {
    fn make(&mut self) -> Result<Step, DataError> {
        let row_groups = self.source.loader.next_step();
        let (mut micro_batches, mut tokens) = (Vec::new(), 0);
        for rows in &row_groups {
            let batch = Batch::from_rows(&self.source.rows, rows)?;
            tokens += batch.tokens();
            micro_batches.push(MicroBatch::from(match self.source.pad_id {
                Some(pad_id) => batch.padded(pad_id)?,
                None => batch,
            }));
        }
        Ok(Step {
            number: self.number,
            micro_batches,
            tokens,
            rows: row_groups.concat(),
            after: self.source.loader.state(),
        })
    }
}

impl Iterator for Steps {
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

struct StepsAhead {
    steps: Prefetch<Result<Step, DatasetError>>,
    /// Steps taken.
    number: usize,
    total_steps: usize,
}

impl Iterator for StepsAhead {
    type Item = Result<Step, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.steps.next()?;
        self.number += 1;
        Some(step)
    }
}

impl DataLoaderIterator<Step> for StepsAhead {
    fn progress(&self) -> Progress {
        Progress::new(self.number, self.total_steps, Some("steps".to_owned()))
    }
}

/// Rows in their own order, for evaluation.
#[derive(Clone)]
pub struct EvalLoader {
    rows: RowSet,
    size: usize,
    /// Rows that are left out at the beginning.
    start: usize,
    end: usize,
}

impl EvalLoader {
    /// Micro-batches of `size` rows.
    pub fn new(rows: RowSet, size: usize) -> Self {
        Self {
            end: rows.len(),
            rows,
            size: size.max(1),
            start: 0,
        }
    }
}

impl DataLoader<MicroBatch> for EvalLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<MicroBatch> + 'a> {
        Box::new(EvalBatches {
            source: self,
            done: 0,
        })
    }

    fn num_items(&self) -> usize {
        (self.end - self.start).div_ceil(self.size)
    }

    fn to_device(&self, _: &Device) -> Arc<dyn DataLoader<MicroBatch>> {
        Arc::new(self.clone())
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<MicroBatch>> {
        let row = |batch: usize| self.end.min(self.start + batch.saturating_mul(self.size));
        Arc::new(Self {
            start: row(start),
            end: row(end.max(start)),
            ..self.clone()
        })
    }
}

struct EvalBatches<'a> {
    source: &'a EvalLoader,
    done: usize,
}

impl Iterator for EvalBatches<'_> {
    type Item = Result<MicroBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let EvalLoader {
            rows,
            size,
            start,
            end,
        } = self.source;
        let first = start + self.done * size;
        if first >= *end {
            return None;
        }
        self.done += 1;
        let numbers: Vec<usize> = (first..(first + size).min(*end)).collect();
        let batch = Batch::from_rows(rows, &numbers);
        Some(batch.map(MicroBatch::from).map_err(DatasetError::new))
    }
}

impl DataLoaderIterator<MicroBatch> for EvalBatches<'_> {
    fn progress(&self) -> Progress {
        Progress::new(
            self.done,
            self.source.num_items(),
            Some("batches".to_owned()),
        )
    }
}

#[cfg(test)]
mod tests {
    use backdraft_data::{TokenRows, TokenizedRow};

    use super::*;

    /// Seven rows, three steps an epoch.
    fn loader() -> StepLoader {
        let row = |i: u32| TokenizedRow {
            input_ids: (0..i + 2).collect(),
            labels: (0..i64::from(i) + 2).collect(),
            file: 0,
            line: i as usize + 1,
            key: u64::from(i),
        };
        let rows = RowSet::new(TokenRows::Memory((0..7).map(row).collect()), &[]);
        StepLoader::new(rows, Loader::new(7, 2, 2, 3, true).unwrap(), 6)
    }

    fn rows(steps: &[Step]) -> Vec<&[usize]> {
        steps.iter().map(|step| &step.rows[..]).collect()
    }

    #[test]
    fn a_run_goes_on_behind_the_step_it_took() {
        let whole: Vec<Step> = loader().iter().map(Result::unwrap).collect();
        let numbers: Vec<usize> = whole.iter().map(|step| step.number).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
        for taken in 1..6 {
            let all = loader();
            let mut steps = all.iter();
            let last = steps.by_ref().take(taken).last().unwrap().unwrap();
            assert_eq!(steps.progress().items_processed, taken);
            drop(steps);
            let mut again = loader().after(taken);
            again.loader.restore(last.after).unwrap();
            let rest: Vec<Step> = again.iter().map(Result::unwrap).collect();
            assert_eq!(rows(&rest), rows(&whole[taken..]));
            assert_eq!(rest[0].number, taken);
        }
    }
}
