//! Which rows are measured.

use std::collections::BTreeSet;

use backdraft_data::{Batch, DataError, Loader, RowSet};

use crate::step::MicroBatch;

/// Training rows that points look at: those that the first epoch comes to last, so that a point within it sees rows that
/// were not trained on. They are trained on nevertheless, in their turn.
#[derive(Clone, Debug)]
pub struct CalibrationRows {
    /// Where the statistics come from.
    pub statistics: Vec<MicroBatch>,
    /// By which a change is judged. None of them is among the others, unless there is a single row.
    pub verification: Vec<MicroBatch>,
}

impl CalibrationRows {
    /// Rows with about `tokens` tokens for the statistics and half as many to judge by, in passes of at most
    /// `pass` tokens. `loader` stands at its beginning.
    ///
    /// # Errors
    /// A row that cannot be read.
    pub fn choose(
        rows: &RowSet,
        mut loader: Loader,
        tokens: usize,
        pass: usize,
    ) -> Result<Self, DataError> {
        let steps = loader.steps_per_epoch();
        let order = (0..steps).flat_map(|_| loader.next_step()).flatten();
        let mut seen = BTreeSet::new();
        let mut order: Vec<usize> = order.filter(|&row| seen.insert(row)).collect();
        order.reverse();
        let mut left = order.into_iter().peekable();
        let most = rows.len().div_ceil(3);
        let verification = take(rows, &mut left, (tokens / 2, most))?;
        let statistics = if left.peek().is_some() {
            take(rows, &mut left, (tokens, usize::MAX))?
        } else {
            verification.clone()
        };
        Ok(Self {
            statistics: packed(rows, &statistics, pass)?,
            verification: packed(rows, &verification, pass)?,
        })
    }

    /// Supervised tokens of some passes.
    #[must_use]
    pub fn tokens(passes: &[MicroBatch]) -> usize {
        passes.iter().map(|pass| pass.targets.len()).sum()
    }
}

/// Rows with supervised tokens until they have so many tokens, or are so many.
fn take(
    rows: &RowSet,
    order: &mut impl Iterator<Item = usize>,
    (tokens, most): (usize, usize),
) -> Result<Vec<usize>, DataError> {
    let (mut taken, mut sum) = (Vec::new(), 0);
    while sum < tokens && taken.len() < most {
        let Some(row) = order.next() else {
            break;
        };
        let batch = Batch::from_rows(rows, &[row])?;
        if batch.targets().next().is_some() {
            sum += batch.tokens();
            taken.push(row);
        }
    }
    Ok(taken)
}

/// Rows end to end, as many in a pass as fit, at least one.
fn packed(rows: &RowSet, numbers: &[usize], pass: usize) -> Result<Vec<MicroBatch>, DataError> {
    let mut passes: Vec<Vec<usize>> = Vec::new();
    let mut filled = 0;
    for &number in numbers {
        let length = rows.row(number).map_or(0, |row| row.input_ids.len());
        match passes.last_mut() {
            Some(last) if filled + length <= pass => {
                last.push(number);
                filled += length;
            }
            _ => {
                passes.push(vec![number]);
                filled = length;
            }
        }
    }
    let batches = passes.iter().map(|numbers| Batch::from_rows(rows, numbers));
    batches.map(|batch| Ok(MicroBatch::from(batch?))).collect()
}
