//! The sequences that are being continued.

use backdraft_arch::Reach;
use burn::tensor::Device;
use rayon::prelude::*;

use super::pass::{self, Chunk};
use super::sampling::{GenerateConfig, Likely, Sampler, likeliest};
use crate::cache::{PAGE, Pages, Pool, Slot, Table, pages_for};
use crate::causal_lm::{BaseTensor, CausalLm};

/// How much a [`Decoder`] takes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Sequences at a time.
    pub sequences: usize,
    /// Tokens whose keys and values are kept, of all sequences together.
    pub tokens: usize,
    /// Tokens of one pass through the model, and of the pieces in which prompts are read.
    pub rows: usize,
}

impl DecodeLimits {
    /// For so many sequences and tokens on a device: passes of 64 tokens on the processor, of 512 elsewhere.
    pub fn on(device: &Device, sequences: usize, tokens: usize) -> Self {
        let rows = match *device == Device::flex() {
            true => 64,
            false => 512,
        };
        Self {
            sequences,
            tokens,
            rows,
        }
    }
}

/// A prompt to continue.
#[derive(Clone, Debug, Default)]
pub struct DecodeRequest {
    /// Which of the decoder's models continues it.
    pub model: usize,
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Independent continuations; they share the prompt's keys and values. Sample i draws from `seed + i`.
    pub samples: usize,
    /// When to stop, and how to choose.
    pub config: GenerateConfig,
    /// Tell how likely each token was, and so many of the likeliest.
    pub logprobs: Option<usize>,
}

impl DecodeRequest {
    /// Tokens that it keeps keys and values of, at most, rounded up to whole pages. Shared pages count for each sample.
    pub fn cached_tokens(&self) -> usize {
        // The last token is never read.
        let longest = self.prompt.len() + self.config.max_new_tokens.saturating_sub(1);
        self.samples * pages_for(longest) * PAGE
    }
}

/// Why a prompt is not taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdmitError {
    /// There is no room now; there will be when other sequences have ended.
    #[error("no room beside the sequences that are being continued")]
    Full,
    /// There will never be room.
    #[error("{what} {expected} at most, and this needs {actual}")]
    TooLarge {
        /// What is short.
        what: &'static str,
        /// How much of it there is.
        expected: usize,
        /// How much of it would be needed.
        actual: usize,
    },
}

/// A sequence's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// Why a sequence has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// It chose one of its stop ids.
    Stop,
    /// It has as many tokens as it may have.
    Length,
}

/// A token that a sequence has chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The sequence.
    pub sequence: SequenceId,
    /// The token.
    pub token: u32,
    /// How likely it was, and the likeliest tokens, where the request asks for that.
    pub likely: Option<(Likely, Vec<Likely>)>,
    /// Set where it was the last one: the sequence is gone then.
    pub finish: Option<Finish>,
}

/// A continuation of a prompt.
#[derive(Debug)]
struct Sample {
    id: SequenceId,
    sampler: Sampler,
    chosen: usize,
}

/// A prompt that is being read for all its samples, or one sample.
#[derive(Debug)]
struct Sequence {
    /// More than one only while the prompt is being read.
    samples: Vec<Sample>,
    model: usize,
    config: GenerateConfig,
    logprobs: Option<usize>,
    table: Table,
    /// All its tokens.
    ids: Vec<u32>,
    /// Those at the end that have no keys and values yet.
    pending: usize,
    /// How far it reaches: keys are turned by what that says.
    reach: Reach,
    /// Pages promised to each sample.
    promised: usize,
    /// What its states go by.
    slot: Slot,
}

/// A base model with several adapters, and the sequences that it continues; see [`decode`](crate::decode).
#[derive(Debug)]
pub struct Decoder {
    models: Vec<CausalLm>,
    limits: DecodeLimits,
    pages: Pages,
    pool: Pool,
    sequences: Vec<Sequence>,
    next_id: u64,
    next_slot: Slot,
}

impl Decoder {
    /// For models that are one base with different adapters: clones of one model that
    /// [`with_adapter`](CausalLm::with_adapter) and [`without_adapter`](CausalLm::without_adapter) made. The weights are
    /// read from the first.
    ///
    /// # Panics
    /// If there is no model, or they are of different shapes.
    pub fn new(models: Vec<CausalLm>, limits: DecodeLimits) -> Self {
        let models: Vec<CausalLm> = models.into_iter().map(untracked).collect();
        let base = &models[0];
        assert!(
            models.iter().all(|model| model.spec() == base.spec()),
            "the models are not one base with different adapters"
        );
        let pool = Pool::new(&base.spec().layers, &base.device(), base.dtype());
        Self {
            pool,
            pages: Pages::new(limits.tokens / PAGE),
            models,
            limits,
            sequences: Vec::new(),
            next_id: 0,
            next_slot: 0,
        }
    }

    /// Sequences that are being continued.
    pub fn len(&self) -> usize {
        self.sequences.iter().map(|s| s.samples.len()).sum()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Tokens that memory is held for, in whole pages.
    pub fn cached_tokens(&self) -> usize {
        self.pages.held() * PAGE
    }

    /// Takes a prompt on; a name for each of its samples.
    ///
    /// # Errors
    /// Where there is no room, now or ever.
    ///
    /// # Panics
    /// If the prompt is empty or there is no such model. [`step`](Self::step) panics over an id outside the vocabulary.
    pub fn admit(&mut self, request: DecodeRequest) -> Result<Vec<SequenceId>, AdmitError> {
        assert!(!request.prompt.is_empty(), "a prompt to continue is empty");
        assert!(request.model < self.models.len(), "no such model");
        let (count, tokens) = (request.samples, request.cached_tokens());
        let limit = |what, expected, actual| match actual > expected {
            true => Err(AdmitError::TooLarge {
                what,
                expected,
                actual,
            }),
            false => Ok(()),
        };
        limit("sequences at a time:", self.limits.sequences, count)?;
        limit("tokens in the cache:", self.pages.limit() * PAGE, tokens)?;
        if count == 0 || request.config.max_new_tokens == 0 {
            return Ok(Vec::new());
        }
        if self.len() + count > self.limits.sequences || !self.pages.promise(tokens / PAGE) {
            return Err(AdmitError::Full);
        }
        let first = self.next_id;
        self.next_id += count as u64;
        let samples: Vec<Sample> = (0..count)
            .map(|number| Sample {
                id: SequenceId(first + number as u64),
                sampler: Sampler::new(&request.config.sampling, number),
                chosen: 0,
            })
            .collect();
        let ids = samples.iter().map(|sample| sample.id).collect();
        self.sequences.push(Sequence {
            samples,
            model: request.model,
            config: request.config,
            logprobs: request.logprobs,
            table: Table::default(),
            pending: request.prompt.len(),
            reach: self.models[0].spec().rope.reach(request.prompt.len()),
            ids: request.prompt,
            promised: tokens / PAGE / count,
            slot: self.next_slot,
        });
        self.next_slot += 1;
        Ok(ids)
    }

    /// Ends a sequence before its end; one that has ended already is none.
    pub fn remove(&mut self, id: SequenceId) {
        let found = self.sequences.iter().enumerate().find_map(|(i, sequence)| {
            let sample = sequence.samples.iter().position(|sample| sample.id == id)?;
            Some((i, sample))
        });
        if let Some((i, sample)) = found {
            let sequence = &mut self.sequences[i];
            sequence.samples.remove(sample);
            self.pages.forgive(sequence.promised);
            if sequence.samples.is_empty() {
                let sequence = self.sequences.remove(i);
                self.pool.forget(sequence.slot);
                sequence.table.release(&mut self.pages);
            }
        }
    }

    /// A token for every sequence whose prompt has been read, and a piece of the prompts that wait.
    pub fn step(&mut self) -> Vec<Sampled> {
        self.read_again();
        let mut sampled = Vec::new();
        for pass in self.passes() {
            self.run(&pass, &mut sampled);
        }
        for Sampled {
            sequence, finish, ..
        } in &sampled
        {
            if finish.is_some() {
                self.remove(*sequence);
            }
        }
        sampled
    }

    /// A sequence that has come to reach further is read from its beginning: its keys were turned by other angles.
    fn read_again(&mut self) {
        let rope = &self.models[0].spec().rope;
        for sequence in &mut self.sequences {
            let reach = rope.reach(sequence.ids.len());
            if reach != sequence.reach {
                sequence.reach = reach;
                sequence.pending = sequence.ids.len();
                self.pool.forget(sequence.slot);
                std::mem::take(&mut sequence.table).release(&mut self.pages);
            }
        }
    }

    /// Which sequences take part in each pass, with how many tokens: all that have one token to read, and of prompts, in
    /// the order of their coming, as much as one pass takes. How a prompt is cut depends on nothing but its length.
    fn passes(&self) -> Vec<Vec<(usize, usize)>> {
        let rows = self.limits.rows;
        let waiting = |(i, sequence): (usize, &Sequence)| (i, sequence.pending.min(rows));
        let all = self.sequences.iter().enumerate().map(waiting);
        let (ones, prompts): (Vec<_>, Vec<_>) = all.partition(|(_, count)| *count == 1);
        let mut budget = rows;
        let fits = |(_, count): &(usize, usize)| {
            let fits = *count <= budget;
            budget = budget.saturating_sub(*count);
            fits
        };
        let mut passes: Vec<Vec<(usize, usize)>> = Vec::new();
        let mut room = 0;
        for (i, count) in ones.into_iter().chain(prompts.into_iter().take_while(fits)) {
            if count > room {
                passes.push(Vec::new());
                room = rows;
            }
            room -= count;
            if let Some(pass) = passes.last_mut() {
                pass.push((i, count));
            }
        }
        for pass in &mut passes {
            pass.sort_by_key(|&(i, _)| self.sequences[i].model);
        }
        passes
    }

    fn run(&mut self, pass: &[(usize, usize)], sampled: &mut Vec<Sampled>) {
        let mut chunks = Vec::with_capacity(pass.len());
        let mut whole = Vec::new();
        for (chunk, &(i, count)) in pass.iter().enumerate() {
            let sequence = &mut self.sequences[i];
            sequence.table.extend(count, &mut self.pages);
            let start = sequence.ids.len() - sequence.pending;
            let ids = sequence.ids[start..start + count].to_vec();
            sequence.pending -= count;
            if sequence.pending == 0 {
                whole.push(chunk);
            }
            chunks.push(Chunk {
                model: sequence.model,
                ids,
                rows: sequence.table.rows(),
                length: sequence.ids.len(),
                slot: sequence.slot,
            });
        }
        self.pool.reserve(self.pages.made(), self.pages.limit());
        let Some(logits) = pass::forward(&self.models, chunks, &whole, &mut self.pool) else {
            return;
        };
        // Weighing a whole vocabulary takes as long as some layers do: each sequence by itself.
        let mut rows = vec![None; self.sequences.len()];
        for (&chunk, logits) in whole.iter().zip(logits.rows()) {
            rows[pass[chunk].0] = Some(logits);
        }
        let drawn: Vec<Option<Vec<Sampled>>> = (self.sequences.par_iter_mut().zip(rows))
            .map(|(sequence, logits)| Some(sequence.draw(logits?)))
            .collect();
        for &chunk in &whole {
            let i = pass[chunk].0;
            if let Some(of_sequence) = &drawn[i] {
                self.part(i, of_sequence);
                sampled.extend_from_slice(of_sequence);
            }
        }
    }

    /// The samples of a sequence go their own ways from here, each with the token that it has drawn.
    fn part(&mut self, i: usize, drawn: &[Sampled]) {
        let sequence = &mut self.sequences[i];
        let others = sequence.samples.split_off(1);
        sequence.ids.push(drawn[0].token);
        sequence.pending = 1;
        for (sample, drawn) in others.into_iter().zip(&drawn[1..]) {
            let sequence = &self.sequences[i];
            let (table, rest) = sequence.table.fork(&mut self.pages);
            self.pool.reserve(self.pages.made(), self.pages.limit());
            self.pool.copy(rest);
            let mut ids = sequence.ids.clone();
            if let Some(last) = ids.last_mut() {
                *last = drawn.token;
            }
            let slot = self.next_slot;
            self.next_slot += 1;
            self.pool.fork(sequence.slot, slot);
            let fork = Sequence {
                samples: vec![sample],
                config: sequence.config.clone(),
                ids,
                table,
                slot,
                ..*sequence
            };
            self.sequences.push(fork);
        }
    }
}

impl Sequence {
    /// The next token of each sample.
    ///
    /// # Shapes
    /// `logits` `[v]`.
    fn draw(&mut self, logits: &[f32]) -> Vec<Sampled> {
        let (config, logprobs) = (&self.config, self.logprobs);
        let draw = |sample: &mut Sample| {
            let token = sample.sampler.choose(logits);
            sample.chosen += 1;
            let finish = if config.stop_ids.contains(&token) {
                Some(Finish::Stop)
            } else if sample.chosen >= config.max_new_tokens {
                Some(Finish::Length)
            } else {
                None
            };
            Sampled {
                sequence: sample.id,
                token,
                likely: logprobs.map(|count| likeliest(logits, token, count)),
                finish,
            }
        };
        self.samples.iter_mut().map(draw).collect()
    }
}

/// The model without autodiff: one that trains everything has tracked weights.
fn untracked(mut model: CausalLm) -> CausalLm {
    model.visit_base_mut(|_, tensor| match tensor {
        BaseTensor::Matrix(weight) => {
            if let Some(tracked) = weight.tracked() {
                *weight = backdraft_quant::Weight::Dense(tracked.inner());
            }
        }
        BaseTensor::Vector(vector) => *vector = vector.clone().inner(),
    });
    model
}

#[cfg(test)]
mod tests;
