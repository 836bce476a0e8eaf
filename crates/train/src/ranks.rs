//! The processes that share the steps of a run.
//!
//! Each makes the same steps with the same loader, computes the micro-batches of its blocks, and applies the same sum of all
//! blocks, which `backdraft-comm` adds in an order that does not depend on the number of processes.

mod answers;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backdraft_comm::{BlockSums, CommError, Decision, Engine, Fingerprints, LastWords, Row, World};
use backdraft_comm::{Start, blocks_of, deal};
use backdraft_lora::{AdapterGrads, AdapterParam};
use backdraft_model::CausalLm;
use burn::tensor::{Tensor, TensorData};

use crate::metrics;
use crate::objective::ToldAnswers;
pub(crate) use answers::AnswerNumbers;

/// Between two rows of a run that pauses.
const PAUSE: Duration = Duration::from_millis(500);

/// The processes of a run, as one of them sees them. Clones are the same.
#[derive(Clone, Debug)]
pub struct Ranks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    world: World,
    engine: Mutex<Box<dyn Engine>>,
    /// Why an exchange inside a step failed.
    failed: Mutex<Option<CommError>>,
    /// A step, and numbers that were put together for it: one that is repeated by this process alone has them already.
    together: Mutex<Option<(usize, Vec<f32>)>>,
}

/// In which blocks a step is summed, and who computes them.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// How many.
    pub count: usize,
    /// Who.
    pub ranks: Ranks,
}

/// What some blocks come to: gradients, Σ nll, Σ of penalised losses, in f32, and what came of each micro-batch's answers.
pub(crate) struct Sum {
    pub(crate) grads: AdapterGrads,
    pub(crate) nll: Option<Tensor<1>>,
    pub(crate) penalized: Option<Tensor<1>>,
    pub(crate) answers: Vec<(usize, ToldAnswers)>,
}

/// What a step has beside gradients and nll, which a process without a micro-batch cannot see.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    /// Whether there are penalised losses.
    pub(crate) penalizes: bool,
    /// What comes of answers.
    pub(crate) answers: AnswerNumbers,
}

impl Ranks {
    /// The processes of `world`, which exchange through `engine`.
    pub fn new(world: World, engine: Box<dyn Engine>) -> Self {
        Self(Arc::new(Shared {
            world,
            engine: Mutex::new(engine),
            failed: Mutex::default(),
            together: Mutex::default(),
        }))
    }

    /// One process, which has all blocks.
    ///
    /// # Errors
    /// None: nobody is asked.
    pub fn alone() -> Result<Self, CommError> {
        let world = World::join(&Start::alone(), "", Duration::ZERO)?;
        let engine = world.store_engine()?;
        Ok(Self::new(world, engine))
    }

    /// Which process this is, from 0.
    pub fn rank(&self) -> usize {
        self.0.world.rank()
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.0.world.size()
    }

    /// Refuses to go on where others have something else.
    ///
    /// # Errors
    /// [`CommError::Differs`]; another process ended, or does not come.
    pub fn agree(&self, prints: &Fingerprints) -> Result<(), CommError> {
        self.0.world.agree(prints)
    }

    /// Waits until all have come here.
    ///
    /// # Errors
    /// Another process ended, or does not come.
    pub fn meet(&self, what: &str) -> Result<(), CommError> {
        self.0.world.gather(what, &[]).map(drop)
    }

    /// Calls `told` once when another process ends early.
    pub fn on_end(&self, told: impl Fn(&LastWords) + Send + 'static) {
        self.0.world.on_end(told);
    }

    /// Tells the others that this process ends early, and why.
    pub fn fail(&self, why: &str) {
        self.0.world.fail(None, why);
    }

    /// Ends this process's part.
    ///
    /// # Errors
    /// Another process ended early.
    pub fn leave(&self) -> Result<(), CommError> {
        self.0.world.leave()
    }

    /// What all do after a step, of what each of them asks for.
    ///
    /// # Errors
    /// Another process ended, or has another step or other factors.
    pub(crate) fn decide(&self, mine: &Row) -> Result<Decision, CommError> {
        let engine = &mut **self.0.engine.lock().unwrap_or_else(PoisonError::into_inner);
        Row::decide(&mine.exchange(engine)?)
    }

    /// Whether the parent of the processes wants the run to stop; rank 0 hears of it, and all [`decide`](Self::decide) alike.
    ///
    /// # Errors
    /// The store is gone, or another process.
    pub(crate) fn asked_to_stop(&self) -> Result<bool, CommError> {
        Ok(self.rank() == 0 && self.0.world.asked_to_stop()?)
    }

    /// Waits a little while the run pauses.
    pub(crate) fn pause() {
        std::thread::sleep(PAUSE);
    }

    /// Notes the step that is computed now, for what is said of this process if it is killed.
    ///
    /// # Errors
    /// The store is gone, or another process.
    pub(crate) fn at_step(&self, step: usize) -> Result<(), CommError> {
        self.0.world.at_step(step as u64)
    }

    /// Why the exchange of the last step failed, if it did.
    pub(crate) fn take_failure(&self) -> Option<CommError> {
        self.0
            .failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn sum(&self, sums: BlockSums) -> Option<Vec<f32>> {
        self.exchange(|engine| sums.finish(engine))
    }

    fn exchange<T>(
        &self,
        exchange: impl FnOnce(&mut dyn Engine) -> Result<T, CommError>,
    ) -> Option<T> {
        let engine = &mut **self.0.engine.lock().unwrap_or_else(PoisonError::into_inner);
        match exchange(engine) {
            Ok(found) => Some(found),
            Err(error) => {
                let mut failed = self.0.failed.lock().unwrap_or_else(PoisonError::into_inner);
                *failed = Some(error);
                None
            }
        }
    }

    /// `number(i)` for each i below `count`, computed by one process each, for step `step`. `None` where the exchange failed,
    /// of which [`take_failure`](Self::take_failure) tells.
    fn together(
        &self,
        step: usize,
        count: usize,
        number: impl Fn(usize) -> f32,
    ) -> Option<Vec<f32>> {
        let mut together = (self.0.together.lock()).unwrap_or_else(PoisonError::into_inner);
        if let Some((of, numbers)) = &*together
            && *of == step
        {
            return Some(numbers.clone());
        }
        let size = self.size();
        let mine = blocks_of(self.rank(), size, count).map(number);
        let mine: Vec<u8> = mine.flat_map(f32::to_le_bytes).collect();
        let room = |rank| vec![0; blocks_of(rank, size, count).len() * size_of::<f32>()];
        let mut all: Vec<Vec<u8>> = (0..size).map(room).collect();
        self.exchange(|engine| engine.all_gather(&mine, &mut all))?;
        let all = all.concat();
        let (numbers, _) = all.as_chunks::<{ size_of::<f32>() }>();
        let numbers: Vec<f32> = numbers
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        *together = Some((step, numbers.clone()));
        Some(numbers)
    }
}

impl Blocks {
    /// The micro-batches of each of this process's blocks; `tokens` are those of every micro-batch of the step.
    pub(crate) fn mine(&self, tokens: &[u64]) -> Vec<Vec<usize>> {
        let mut dealt = deal(tokens, self.count);
        let mine: Range<usize> = blocks_of(self.ranks.rank(), self.ranks.size(), self.count);
        dealt.drain(mine).collect()
    }

    /// Σ of `number(i)` for i below `count`, in that order; each process computes some. `None` where the exchange failed, of
    /// which [`Ranks::take_failure`] tells.
    pub(crate) fn total(
        &self,
        step: usize,
        count: usize,
        number: impl Fn(usize) -> f32,
    ) -> Option<f32> {
        let numbers = self.ranks.together(step, count, number)?;
        Some(numbers.into_iter().sum())
    }

    /// The sum of all blocks of all processes, of what `compute` makes of each of this one's. `None` where the exchange
    /// failed, of which [`Ranks::take_failure`] tells.
    ///
    /// # Errors
    /// What `compute` says, before anything is exchanged.
    pub(crate) fn sum<E>(
        &self,
        model: &CausalLm,
        (mine, beside): (&[Vec<usize>], &Beside),
        mut compute: impl FnMut(&[usize]) -> Result<Sum, E>,
    ) -> Result<Option<Sum>, E> {
        let params: Vec<AdapterParam> = model.trained_params().map(|(_, param)| param).collect();
        let length = params.iter().map(AdapterParam::len).sum::<usize>() + 2 + beside.answers.len();
        let mut sums = BlockSums::new(self.ranks.rank(), self.ranks.size(), self.count, length);
        for micro_batches in mine {
            let sum = compute(micro_batches)?;
            sums.push(flat(&params, &sum, beside, length));
        }
        let Some(sum) = self.ranks.sum(sums) else {
            return Ok(None);
        };
        Ok(Some(unflat(&params, &sum, beside, model)))
    }
}

/// All numbers of a block one after the other; zeroes where nothing was computed.
fn flat(params: &[AdapterParam], sum: &Sum, beside: &Beside, length: usize) -> Vec<f32> {
    let mut flat = Vec::with_capacity(length);
    for param in params {
        match sum.grads.get(param.id) {
            Some(grad) => flat.extend(metrics::host(grad)),
            None => flat.resize(flat.len() + param.len(), 0.0),
        }
    }
    for number in [&sum.nll, &sum.penalized] {
        match number {
            Some(number) => flat.extend(metrics::host(number)),
            None => flat.push(0.0),
        }
    }
    beside.answers.write(&sum.answers, &mut flat);
    flat
}

fn unflat(params: &[AdapterParam], flat: &[f32], beside: &Beside, model: &CausalLm) -> Sum {
    let device = model.device().inner();
    let mut grads = AdapterGrads::new();
    let (flat, answers) = flat.split_at(flat.len() - beside.answers.len());
    let (mut values, numbers) = flat.split_at(flat.len() - 2);
    for param in params {
        let (mine, rest) = values.split_at(param.len());
        values = rest;
        let data = TensorData::new(mine.to_vec(), param.dims.clone());
        match param.dims.len() {
            1 => grads.add(param.id, Tensor::<1>::from_data(data, &device)),
            2 => grads.add(param.id, Tensor::<2>::from_data(data, &device)),
            _ => grads.add(param.id, Tensor::<3>::from_data(data, &device)),
        }
    }
    let number = |number: f32| Tensor::from_floats([number], &device);
    Sum {
        grads,
        nll: Some(number(numbers[0])),
        penalized: beside.penalizes.then(|| number(numbers[1])),
        answers: beside
            .answers
            .read(answers, &device)
            .into_iter()
            .enumerate()
            .collect(),
    }
}

/// A number that two models have alike exactly where their trained factors are the same bits.
pub(crate) fn checksum(model: &CausalLm) -> u64 {
    model.trained_params().fold(0, |sum, (_, param)| {
        let values = metrics::host(&param.values.inner());
        values.into_iter().fold(sum, |sum: u64, value| {
            (sum.rotate_left(5) ^ u64::from(value.to_bits())).wrapping_mul(0x517C_C1B7_2722_0A95)
        })
    })
}
