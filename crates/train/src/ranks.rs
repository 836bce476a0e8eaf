//! The processes that share the steps of a run.
//!
//! Each makes the same steps with the same loader, computes the micro-batches of its blocks, and applies the same sum of all
//! blocks, which `backdraft-comm` adds in an order that does not depend on the number of processes.

mod answers;
mod carrier;
mod on_device;
mod timed;

use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use backdraft_comm::{BlockSums, CommError, Decision, Engine, Fingerprints, LastWords, Row, World};
use backdraft_comm::{Start, blocks_of, deal};
use backdraft_kernels::exchange::Group;
use backdraft_lora::{AdapterGrads, AdapterParam};
use backdraft_model::CausalLm;
use burn::tensor::{Device, Tensor, TensorData, TensorReadError};

use crate::held_out::Pass;
use crate::metrics;
use crate::objective::{Objective, ToldAnswers};
use crate::optimizer::Optimizer;
pub(crate) use answers::AnswerNumbers;
pub use carrier::{Carriage, alone_through_nccl, cards_may_be_shared};
use on_device::OnDevice;
pub(crate) use on_device::bytes as bytes_on_device;
pub use timed::Timed;

/// Between two rows of a run that pauses.
const PAUSE: Duration = Duration::from_millis(500);

/// Bytes that a process may have to tell of an evaluation: some ten million answers.
const LONGEST: usize = 1 << 30;

/// The processes of a run, as one of them sees them. Clones are the same.
#[derive(Clone, Debug)]
pub struct Ranks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    world: World,
    engine: Mutex<Box<dyn Engine>>,
    /// Between cards, where they exchange themselves.
    group: OnceLock<Group>,
    /// Why an exchange inside a step failed.
    failed: Mutex<Option<CommError>>,
    /// A step, and numbers that were put together for it: one that is repeated by this process alone has them already.
    together: Mutex<Option<(usize, Vec<f32>)>>,
}

/// In which blocks a step is summed, and who computes them.
#[derive(Clone, Debug)]
pub struct Blocks {
    /// How many.
    count: usize,
    /// Who.
    ranks: Ranks,
    /// Where gradients lie in buffers on a device.
    on_device: Option<Arc<Mutex<OnDevice>>>,
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
            group: OnceLock::new(),
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

    /// Which of those on this machine.
    pub fn local_rank(&self) -> usize {
        self.0.world.local_rank()
    }

    /// The cards, where these exchange themselves.
    pub(crate) fn group(&self) -> Option<&Group> {
        self.0.group.get()
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

    /// Passes of an evaluation that all share: this process has computed `mine`, of each `size` the one that is its own
    /// ([`evaluates`](Self::evaluates)), and all get those of all, in order.
    ///
    /// # Errors
    /// Another process ended, or does not come.
    pub(crate) fn in_turn(&self, mine: &[Pass]) -> Result<Vec<Pass>, CommError> {
        let mine = Pass::to_bytes(mine);
        let engine = &mut **self.0.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lengths = vec![vec![0; size_of::<u64>()]; engine.size()];
        engine.all_gather(&(mine.len() as u64).to_le_bytes(), &mut lengths)?;
        let wrong = |from, found| CommError::Length {
            from,
            what: "an evaluation",
            expected: mine.len(),
            found,
        };
        let mut all = Vec::with_capacity(lengths.len());
        for (from, length) in lengths.iter().enumerate() {
            let length = length
                .first_chunk()
                .map_or(0, |length| u64::from_le_bytes(*length));
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > LONGEST {
                return Err(wrong(from, length));
            }
            all.push(vec![0; length]);
        }
        engine.all_gather(&mine, &mut all)?;
        let mut passes = Vec::with_capacity(all.len());
        for (from, bytes) in all.iter().enumerate() {
            let of_rank = Pass::from_bytes(bytes).ok_or_else(|| wrong(from, bytes.len()))?;
            passes.push(of_rank.into_iter());
        }
        let mut in_turn = Vec::new();
        // Whoever comes first has as many as anybody.
        for rank in (0..passes.len()).cycle() {
            match passes[rank].next() {
                Some(pass) => in_turn.push(pass),
                None => break,
            }
        }
        Ok(in_turn)
    }

    /// Whether pass `i` of an evaluation is this process's.
    pub(crate) fn evaluates(&self, i: usize) -> bool {
        i % self.size() == self.rank()
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
    ///
    /// # Errors
    /// What `number` says, before anything is exchanged.
    fn together<E>(
        &self,
        step: usize,
        count: usize,
        number: impl Fn(usize) -> Result<f32, E>,
    ) -> Result<Option<Vec<f32>>, E> {
        let mut together = (self.0.together.lock()).unwrap_or_else(PoisonError::into_inner);
        if let Some((of, numbers)) = &*together
            && *of == step
        {
            return Ok(Some(numbers.clone()));
        }
        let size = self.size();
        let mine = blocks_of(self.rank(), size, count).map(number);
        let mine: Vec<f32> = mine.collect::<Result<_, _>>()?;
        let mine: Vec<u8> = mine.into_iter().flat_map(f32::to_le_bytes).collect();
        let room = |rank| vec![0; blocks_of(rank, size, count).len() * size_of::<f32>()];
        let mut all: Vec<Vec<u8>> = (0..size).map(room).collect();
        let gathered = self.exchange(|engine| engine.all_gather(&mine, &mut all));
        if gathered.is_none() {
            return Ok(None);
        }
        let all = all.concat();
        let (numbers, _) = all.as_chunks::<{ size_of::<f32>() }>();
        let numbers: Vec<f32> = numbers
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        *together = Some((step, numbers.clone()));
        Ok(Some(numbers))
    }
}

impl Blocks {
    /// So many, computed by these.
    pub fn new(count: usize, ranks: Ranks) -> Self {
        Self {
            count,
            ranks,
            on_device: None,
        }
    }

    /// The same where `optimizer` may keep gradients in buffers on `device`: then they stay there.
    #[must_use]
    pub fn of(self, optimizer: &Optimizer, device: &Device) -> Self {
        let on_device = optimizer.gradient_buffers().map(|buffers| {
            let whole = optimizer.grads().written();
            Arc::new(Mutex::new(OnDevice::new(buffers, whole, device.clone())))
        });
        Self { on_device, ..self }
    }

    /// For a program with a step of its own, whose processes have a block each: gradients and Σ nll of this one in, those of all out.
    /// `None` where the exchange failed.
    pub fn exchange(
        &self,
        model: &CausalLm,
        grads: AdapterGrads,
        nll: Tensor<1>,
    ) -> Option<(AdapterGrads, Tensor<1>)> {
        let beside = Beside {
            penalizes: false,
            answers: AnswerNumbers::new(Objective::NextToken, Vec::new()),
        };
        let mut mine = Some(Sum {
            grads,
            nll: Some(nll),
            penalized: None,
            answers: Vec::new(),
        });
        let sum = self.sum(model, (&[vec![0]], &beside), |_| {
            Ok::<_, Infallible>(
                mine.take()
                    .unwrap_or_else(|| unreachable!("one block each")),
            )
        });
        let Ok(sum) = sum;
        let Sum { grads, nll, .. } = sum?;
        Some((grads, nll?))
    }

    /// This process's.
    fn range(&self) -> Range<usize> {
        blocks_of(self.ranks.rank(), self.ranks.size(), self.count)
    }

    /// The micro-batches of each of this process's blocks; `tokens` are those of every micro-batch of the step.
    pub(crate) fn mine(&self, tokens: &[u64]) -> Vec<Vec<usize>> {
        let mut dealt = deal(tokens, self.count);
        dealt.drain(self.range()).collect()
    }

    /// Σ of `number(i)` for i below `count`, in that order; each process computes some. `None` where the exchange failed, of
    /// which [`Ranks::take_failure`] tells.
    ///
    /// # Errors
    /// What `number` says, before anything is exchanged.
    pub(crate) fn total<E>(
        &self,
        step: usize,
        count: usize,
        number: impl Fn(usize) -> Result<f32, E>,
    ) -> Result<Option<f32>, E> {
        let numbers = self.ranks.together(step, count, number)?;
        Ok(numbers.map(|numbers| numbers.into_iter().sum()))
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
        if let Some(on_device) = &self.on_device {
            let mut on_device = on_device.lock().unwrap_or_else(PoisonError::into_inner);
            return on_device.sum(self, (mine, beside), model, compute);
        }
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

/// A number that two models have alike where their trained factors are the same bits, and hardly otherwise.
///
/// # Errors
/// A device that failed.
pub(crate) fn checksum(model: &CausalLm, optimizer: &Optimizer) -> Result<u64, TensorReadError> {
    if let Some(checksum) = optimizer.checksum()? {
        return Ok(checksum);
    }
    let sum = model.trained_params().fold(0, |sum, (_, param)| {
        let values = metrics::host(&param.values.inner());
        values.into_iter().fold(sum, |sum: u64, value| {
            (sum.rotate_left(5) ^ u64::from(value.to_bits())).wrapping_mul(0x517C_C1B7_2722_0A95)
        })
    });
    Ok(sum)
}
