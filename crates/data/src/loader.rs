//! The order in which rows are seen, counted in optimiser steps.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::pack::{Batching, Density, length_grouped, packs};
use crate::rng::SplitMix64;

/// Where a loader stands, as a checkpoint stores it: two numbers.
///
/// There is no state of a random generator in it. Everything else that the order depends on is what
/// the loader was made of: seed, batch sizes, batching, the lengths of the rows in their order, and
/// the sources with their weights. A loader made of the same goes on from here as if it had never
/// stopped, on any number of threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Epochs finished.
    pub epoch: u64,
    /// Rows of this epoch seen, below the number of its rows; after a step always at its end.
    pub cursor: usize,
}

/// What a loader deals out, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct LoaderOptions {
    /// Rows of a micro-batch, or packs where rows are packed.
    pub micro_batch_size: usize,
    /// Micro-batches of a step.
    pub grad_accumulation_steps: usize,
    /// Decides every order together with the epoch.
    pub seed: u64,
    /// Whether rows come in random order.
    pub shuffle: bool,
    /// Which rows share a micro-batch.
    pub batching: Batching,
    /// The sources in the order of the rows; empty if every row is visited once.
    pub sources: Vec<SourceShare>,
}

/// What an epoch visits of a source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceShare {
    /// Rows that it has.
    pub rows: usize,
    /// How often an epoch visits each of them, to a whole number of rows.
    pub weight: f64,
    /// Whether an epoch goes on with the rows where the one before stopped, so that none comes again before all others
    /// have; else each epoch chooses anew.
    pub in_turn: bool,
}

impl SourceShare {
    /// How many rows an epoch visits, one that it visits twice counted twice.
    #[must_use]
    pub fn visits(&self) -> usize {
        (self.rows as f64 * self.weight).round() as usize
    }
}

/// Rows and weight, chosen anew in each epoch.
impl From<(usize, f64)> for SourceShare {
    fn from((rows, weight): (usize, f64)) -> Self {
        Self {
            rows,
            weight,
            in_turn: false,
        }
    }
}

/// Deals out row numbers.
///
/// Each epoch visits every row once (or as often as its source's weight says), in an order that
/// depends on seed and epoch only. A step has up to `grad_accumulation_steps` micro-batches of up to
/// `micro_batch_size` rows or packs; the last step of an epoch takes what is left.
#[derive(Clone, Debug)]
pub struct Loader {
    rows: usize,
    /// Tokens of every row; empty where batching does not ask for them.
    lengths: Arc<[u32]>,
    options: LoaderOptions,
    state: LoaderState,
    /// The order of `state.epoch`.
    order: Vec<usize>,
    /// Where packs end in `order`; `None` if every row is one.
    pack_ends: Option<Vec<usize>>,
}

impl Loader {
    /// A loader of single rows at the beginning of epoch 0.
    ///
    /// # Errors
    /// [`DataError::Option`] if there are no rows or a size is 0.
    pub fn new(
        rows: usize,
        micro_batch_size: usize,
        grad_accumulation_steps: usize,
        seed: u64,
        shuffle: bool,
    ) -> Result<Self, DataError> {
        Self::start(
            rows,
            Arc::default(),
            LoaderOptions {
                micro_batch_size,
                grad_accumulation_steps,
                seed,
                shuffle,
                batching: Batching::PaddingFree,
                sources: Vec::new(),
            },
        )
    }

    /// A loader of rows of these lengths at the beginning of epoch 0.
    ///
    /// # Errors
    /// [`DataError::Option`] if there are no rows, a size is 0, a row does not fit a pack, or the
    /// sources have other rows or weights that visit none.
    pub fn with_options(lengths: Vec<u32>, options: LoaderOptions) -> Result<Self, DataError> {
        Self::start(lengths.len(), lengths.into(), options)
    }

    fn start(rows: usize, lengths: Arc<[u32]>, options: LoaderOptions) -> Result<Self, DataError> {
        for (option, value) in [
            ("rows", rows),
            ("micro_batch_size", options.micro_batch_size),
            ("grad_accumulation_steps", options.grad_accumulation_steps),
        ] {
            if value == 0 {
                return Err(refuse(option, "at least 1", "0"));
            }
        }
        if let Batching::Packed { max_seq_length } = options.batching
            && let Some(longest) = lengths.iter().max()
            && *longest as usize > max_seq_length
        {
            let expected = format!("at least {longest}, as the longest row has");
            return Err(refuse("max_seq_length", expected, max_seq_length));
        }
        check_sources(rows, &options.sources)?;
        let mut loader = Self {
            rows,
            lengths,
            options,
            state: LoaderState::default(),
            order: Vec::new(),
            pack_ends: None,
        };
        loader.arrange(0);
        Ok(loader)
    }

    /// The next optimiser step: its micro-batches of row numbers, none of them empty.
    pub fn next_step(&mut self) -> Vec<Vec<usize>> {
        let mut step = Vec::new();
        let mut at = self.state.cursor;
        while at < self.order.len() && step.len() < self.options.grad_accumulation_steps {
            let start = at;
            let mut packs = 0;
            while at < self.order.len() && packs < self.options.micro_batch_size {
                at = self.pack_end(at);
                packs += 1;
            }
            step.push(self.order[start..at].to_vec());
        }
        if at >= self.order.len() {
            self.enter(LoaderState {
                epoch: self.state.epoch + 1,
                cursor: 0,
            });
        } else {
            self.state.cursor = at;
        }
        step
    }

    /// Where the loader stands: what the next step will be.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Goes to a saved place.
    ///
    /// # Errors
    /// [`DataError::LoaderState`] if no step of this loader ends there; the loader stays where it is.
    pub fn restore(&mut self, state: LoaderState) -> Result<(), DataError> {
        let before = self.state;
        self.seek(state)?;
        let at_a_step = self.is_pack_start(state.cursor)
            && self
                .packs_before(state.cursor)
                .is_multiple_of(self.rows_per_step());
        if !at_a_step {
            self.enter(before);
            return Err(DataError::LoaderState {
                expected: format!(
                    "a cursor that is a multiple of {} {} and below {}",
                    self.rows_per_step(),
                    if self.pack_ends.is_some() {
                        "packs"
                    } else {
                        "rows"
                    },
                    self.order.len()
                ),
                actual: format!("cursor {} in epoch {}", state.cursor, state.epoch),
            });
        }
        Ok(())
    }

    /// Goes to any row of any epoch, as after a change of batch sizes. Inside a pack its remaining
    /// rows come first.
    ///
    /// # Errors
    /// [`DataError::LoaderState`] for a row beyond the epoch; the loader stays where it is.
    pub fn seek(&mut self, state: LoaderState) -> Result<(), DataError> {
        let before = self.state;
        self.enter(state);
        if state.cursor >= self.order.len() {
            let expected = format!("a cursor below {}", self.order.len());
            self.enter(before);
            return Err(DataError::LoaderState {
                expected,
                actual: format!("cursor {} in epoch {}", state.cursor, state.epoch),
            });
        }
        Ok(())
    }

    /// What it deals out, and how.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// Rows, or packs where rows are packed, of a full step.
    pub fn rows_per_step(&self) -> usize {
        let LoaderOptions {
            micro_batch_size,
            grad_accumulation_steps,
            ..
        } = self.options;
        micro_batch_size.saturating_mul(grad_accumulation_steps)
    }

    /// Optimiser steps of an epoch, the last partial one included. Where rows are packed and a
    /// weight is no whole number, other epochs may have a few more or less.
    pub fn steps_per_epoch(&self) -> usize {
        self.packs().div_ceil(self.rows_per_step())
    }

    /// Optimiser steps done.
    pub fn steps_done(&self) -> u64 {
        let inside = (self.packs_before(self.state.cursor) / self.rows_per_step()) as u64;
        self.state
            .epoch
            .saturating_mul(self.steps_per_epoch() as u64)
            .saturating_add(inside)
    }

    /// What the present epoch computes, and what of it is for nothing; `None` if the loader does
    /// not know lengths.
    pub fn density(&self) -> Option<Density> {
        if self.lengths.is_empty() {
            return None;
        }
        let length = |row: &usize| u64::from(self.lengths[*row]);
        let tokens = self.order.iter().map(length).sum();
        let size = self.options.micro_batch_size;
        let places = match self.options.batching {
            Batching::PaddingFree => tokens,
            Batching::Packed { max_seq_length } => (self.packs() * max_seq_length) as u64,
            Batching::LengthGrouped => self
                .order
                .chunks(size)
                .map(|rows| rows.len() as u64 * rows.iter().map(length).max().unwrap_or(0))
                .sum(),
        };
        Some(Density {
            rows: self.order.len(),
            packs: self.packs(),
            micro_batches: self.packs().div_ceil(size),
            tokens,
            places,
        })
    }

    /// Tokens of each document of a micro-batch that needs as much memory as any that an epoch can
    /// have, padding included where rows are padded; empty if the loader does not know lengths.
    pub fn largest_micro_batch(&self) -> Vec<usize> {
        let mut lengths: Vec<usize> = self.lengths.iter().map(|length| *length as usize).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let longest = lengths.first().copied().unwrap_or(0);
        let LoaderOptions {
            micro_batch_size,
            batching,
            sources,
            ..
        } = &self.options;
        // Where weights choose rows, other epochs have other ones, and a row may come twice.
        let same_rows = sources.iter().all(|source| source.weight == 1.0);
        let packs = if same_rows {
            self.packs()
        } else {
            self.order.len()
        };
        let size = (*micro_batch_size).min(packs);
        match batching {
            _ if lengths.is_empty() => Vec::new(),
            Batching::PaddingFree if same_rows => {
                lengths.truncate(size);
                lengths
            }
            Batching::PaddingFree | Batching::LengthGrouped => vec![longest; size],
            Batching::Packed { max_seq_length } => {
                let packs = (0..self.packs()).map(|pack| self.pack_tokens(pack));
                let fullest = packs.max().unwrap_or(0);
                vec![if same_rows { fullest } else { *max_seq_length }; size]
            }
        }
    }

    fn pack_tokens(&self, pack: usize) -> usize {
        let Some(ends) = &self.pack_ends else {
            return 0;
        };
        let start = pack.checked_sub(1).map_or(0, |before| ends[before]);
        let rows = &self.order[start..ends[pack]];
        rows.iter().map(|row| self.lengths[*row] as usize).sum()
    }

    fn packs(&self) -> usize {
        self.pack_ends.as_ref().map_or(self.order.len(), Vec::len)
    }

    fn pack_end(&self, at: usize) -> usize {
        match &self.pack_ends {
            None => at + 1,
            Some(ends) => ends[ends.partition_point(|end| *end <= at)],
        }
    }

    fn packs_before(&self, at: usize) -> usize {
        match &self.pack_ends {
            None => at,
            Some(ends) => ends.partition_point(|end| *end <= at),
        }
    }

    fn is_pack_start(&self, at: usize) -> bool {
        match &self.pack_ends {
            None => true,
            Some(ends) => at == 0 || ends.binary_search(&at).is_ok(),
        }
    }

    fn enter(&mut self, state: LoaderState) {
        if state.epoch != self.state.epoch {
            self.arrange(state.epoch);
        }
        self.state = state;
    }

    /// Puts the rows of an epoch in order.
    fn arrange(&mut self, epoch: u64) {
        let mut rng = SplitMix64::stream(self.options.seed, epoch);
        let mut order = visits(self.rows, &self.options, epoch);
        if self.options.shuffle {
            rng.shuffle(&mut order);
        }
        let rng = self.options.shuffle.then_some(&mut rng);
        self.pack_ends = None;
        self.order = match self.options.batching {
            Batching::PaddingFree => order,
            Batching::LengthGrouped => {
                length_grouped(&order, &self.lengths, self.options.micro_batch_size, rng)
            }
            Batching::Packed { max_seq_length } => {
                let packs = packs(&order, &self.lengths, max_seq_length, rng);
                let ends = packs.iter().scan(0, |end, pack| {
                    *end += pack.len();
                    Some(*end)
                });
                self.pack_ends = Some(ends.collect());
                packs.concat()
            }
        };
    }

    #[cfg(test)]
    fn order_of(&self, epoch: u64) -> Vec<usize> {
        let mut other = self.clone();
        other.arrange(epoch);
        other.order
    }
}

fn check_sources(rows: usize, sources: &[SourceShare]) -> Result<(), DataError> {
    if sources.is_empty() {
        return Ok(());
    }
    let all: usize = sources.iter().map(|source| source.rows).sum();
    if all != rows {
        return Err(refuse("sources", format!("{rows} rows in all"), all));
    }
    let fits = |weight: f64| weight > 0.0 && weight <= MOST_VISITS;
    if let Some(source) = sources.iter().find(|source| !fits(source.weight)) {
        return Err(refuse(
            "weight",
            "a number above 0 and at most 1000",
            source.weight,
        ));
    }
    let visited: usize = sources.iter().map(SourceShare::visits).sum();
    match visited {
        0 => Err(refuse("weight", "weights that visit some rows", "none")),
        _ => Ok(()),
    }
}

/// How often an epoch may visit a row.
pub const MOST_VISITS: f64 = 1000.0;

/// The rows that an epoch visits, in their own order.
fn visits(rows: usize, options: &LoaderOptions, epoch: u64) -> Vec<usize> {
    /// Sets the choice of rows apart from the order of rows.
    const CHOICE: u64 = 0xC401_CE00;
    if options.sources.iter().all(|source| source.weight == 1.0) {
        return (0..rows).collect();
    }
    let mut visits = Vec::new();
    let mut first = 0;
    let mut rng = SplitMix64::stream(options.seed ^ CHOICE, epoch);
    for source in &options.sources {
        let all: Vec<usize> = (first..first + source.rows).collect();
        if source.in_turn {
            visits.extend(in_turn(&all, source.visits(), options.seed, epoch));
            first += source.rows;
            continue;
        }
        first += source.rows;
        let mut left = source.visits();
        while left >= all.len() && left > 0 {
            visits.extend(&all);
            left -= all.len();
        }
        let mut some = all;
        rng.shuffle(&mut some);
        some.truncate(left);
        some.sort_unstable();
        visits.extend(some);
    }
    visits
}

/// The rows of a source that an epoch visits, `count` in each: one pass over the rows follows the other, each in an order
/// of its own, and epochs take what comes next.
fn in_turn(rows: &[usize], count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    /// Sets the order of a pass apart from that of an epoch.
    const PASS: u64 = 0x9A55_0000;
    let Some(first) = rows.first() else {
        return Vec::new();
    };
    let (length, count) = (rows.len() as u64, count as u64);
    let (start, end) = (
        epoch.saturating_mul(count),
        epoch.saturating_add(1).saturating_mul(count),
    );
    let mut visits = Vec::new();
    let mut at = start;
    while at < end {
        let pass = at / length;
        let mut order = rows.to_vec();
        let stream = seed ^ PASS ^ (*first as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        SplitMix64::stream(stream, pass).shuffle(&mut order);
        let until = end.min((pass + 1).saturating_mul(length));
        let inside = (at - pass * length) as usize..(until - pass * length) as usize;
        visits.extend(&order[inside]);
        at = until;
    }
    visits.sort_unstable();
    visits
}

fn refuse(option: &'static str, expected: impl Into<String>, actual: impl ToString) -> DataError {
    DataError::Option {
        option,
        expected: expected.into(),
        actual: actual.to_string(),
    }
}

#[cfg(test)]
mod tests;
