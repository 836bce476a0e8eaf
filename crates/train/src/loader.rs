//! Optimiser steps out of rows, as a burn data loader.

use std::sync::Arc;

use backdraft_data::{Batch, DataError, Loader, LoaderState, RowSet};
use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use burn::data::dataset::DatasetError;
use burn::tensor::Device;

use crate::compared::Compared;
use crate::deal::Deal;
use crate::known::Known;
use crate::prefetch::Prefetch;
use crate::step::MicroBatch;

/// Everything one optimiser step computes on.
#[derive(Clone, Debug)]
pub struct Step {
    /// Counted from 0.
    pub number: usize,
    /// The micro-batches.
    pub micro_batches: Vec<MicroBatch>,
    /// The answers of each micro-batch; empty where nothing is compared.
    pub answers: Vec<Compared>,
    /// Prompts with other answers than their own, where something asks for them.
    pub mismatched: Vec<MicroBatch>,
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

    /// Answers of all micro-batches that are compared.
    pub fn num_answers(&self) -> usize {
        self.answers.iter().map(Compared::len).sum()
    }

    /// Targets of the good ones among them.
    pub fn good_targets(&self) -> usize {
        self.answers.iter().map(Compared::good_targets).sum()
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
    deal: Option<Deal>,
    known: Option<Known>,
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
            deal: None,
            known: None,
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

    /// The same for rows of answers to compare.
    #[must_use]
    pub fn comparing(self, deal: Option<Deal>) -> Self {
        Self { deal, ..self }
    }

    /// The same where the reference's log-likelihoods of all rows are known.
    #[must_use]
    pub fn knowing(self, known: Option<Known>) -> Self {
        Self { known, ..self }
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
        let mut batches = Vec::with_capacity(row_groups.len());
        for rows in &row_groups {
            batches.push(Batch::from_rows(&self.source.rows, rows)?);
        }
        let tokens = batches.iter().map(Batch::tokens).sum();
        if let Some(pad_id) = self.source.pad_id {
            for batch in &mut batches {
                *batch = batch.padded(pad_id)?;
            }
        }
        let mut answers = Vec::new();
        let mut mismatched = Vec::new();
        let micro_batches = match self.source.deal {
            None => batches.into_iter().map(MicroBatch::from).collect(),
            Some(deal) => {
                mismatched = deal.mismatched(&batches);
                let dealt = batches.iter().map(|batch| deal.micro_batch(batch));
                let (micro_batches, compared): (_, Vec<Compared>) = dealt.unzip();
                answers = compared;
                if let Some(known) = &self.source.known {
                    for (compared, rows) in answers.iter_mut().zip(&row_groups) {
                        compared.reference = Some(known.of(rows));
                    }
                }
                micro_batches
            }
        };
        Ok(Step {
            number: self.number,
            micro_batches,
            answers,
            mismatched,
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

/// Rows held out, as many as share a pass.
#[derive(Clone, Debug)]
pub struct EvalBatch {
    /// The pass.
    pub batch: MicroBatch,
    /// Its answers, where they are compared.
    pub answers: Option<Compared>,
    /// The prompts of its texts with the answers of those before them, where something asks for them.
    pub mismatched: Vec<MicroBatch>,
}

/// Rows in their own order, for evaluation.
#[derive(Clone)]
pub struct EvalLoader {
    deal: Option<Deal>,
    known: Option<Known>,
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
            deal: None,
            known: None,
        }
    }

    /// The same where the reference's log-likelihoods of all rows are known.
    #[must_use]
    pub fn knowing(self, known: Option<Known>) -> Self {
        Self { known, ..self }
    }

    /// The same for rows of answers to compare.
    #[must_use]
    pub fn comparing(self, deal: Option<Deal>) -> Self {
        Self { deal, ..self }
    }
}

impl DataLoader<EvalBatch> for EvalLoader {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<EvalBatch> + 'a> {
        Box::new(EvalBatches {
            source: self,
            done: 0,
        })
    }

    fn num_items(&self) -> usize {
        (self.end - self.start).div_ceil(self.size)
    }

    fn to_device(&self, _: &Device) -> Arc<dyn DataLoader<EvalBatch>> {
        Arc::new(self.clone())
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<EvalBatch>> {
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
    type Item = Result<EvalBatch, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let EvalLoader {
            rows,
            size,
            start,
            end,
            deal,
            known,
        } = self.source;
        let first = start + self.done * size;
        if first >= *end {
            return None;
        }
        self.done += 1;
        let numbers: Vec<usize> = (first..(first + size).min(*end)).collect();
        let batch = Batch::from_rows(rows, &numbers).and_then(|batch| {
            let Some(deal) = deal else {
                return Ok(EvalBatch {
                    batch: batch.into(),
                    answers: None,
                    mismatched: Vec::new(),
                });
            };
            // The answer that the first prompt meets is that of the row before it.
            let before = if first == 0 { rows.len() } else { first } - 1;
            let before = Batch::from_rows(rows, &[before])?;
            let (micro_batch, mut answers) = deal.micro_batch(&batch);
            answers.reference = known.as_ref().map(|known| known.of(&numbers));
            Ok(EvalBatch {
                batch: micro_batch,
                answers: Some(answers),
                mismatched: deal.mismatched_after(&before, &batch),
            })
        });
        Some(batch.map_err(DatasetError::new))
    }
}

impl DataLoaderIterator<EvalBatch> for EvalBatches<'_> {
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
            answers: backdraft_data::Answers::One,
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
