//! A step's sum where the gradients lie on a device: they stay there, as far as what moves them allows.

use backdraft_comm::{Additions, BlockSums, Tree};
use backdraft_kernels::exchange::{GroupSum, Messages, padded};
use backdraft_lora::AdapterGrads;
use backdraft_model::CausalLm;
use burn::tensor::{Device, Tensor};

use super::{Beside, Blocks, Sum};
use crate::metrics;

/// Room for numbers beside a gradient: a step has two, and some for each answer that it compares.
const ROOM: usize = 4096;

/// How a message is laid out: the gradients as the optimiser keeps them, then nll, penalised losses, and what came of answers.
#[derive(Debug)]
pub(crate) struct OnDevice {
    /// Where gradients are written, and taken from.
    gradients: Vec<Tensor<1>>,
    /// The same, as the gradients of a step that are all there.
    whole: AdapterGrads,
    /// Where numbers begin.
    behind: usize,
    device: Device,
    made: Option<Made>,
}

/// What lasts from step to step.
#[derive(Debug)]
struct Made {
    messages: Messages,
    /// Between cards.
    sum: Option<GroupSum>,
}

/// What an exchange through the device takes of it.
///
/// # Units
/// Bytes.
pub(crate) fn bytes(blocks: &Blocks, gradients: u64) -> u64 {
    let length = padded(gradients.div_ceil(4) as usize) + ROOM;
    let scratch = blocks
        .ranks
        .group()
        .map_or(0, |_| GroupSum::bytes(&blocks.additions().sums, length));
    Messages::bytes(blocks.most_messages(), length) + scratch
}

impl Blocks {
    /// How the sums that processes have left are added.
    pub(super) fn additions(&self) -> Additions {
        Additions::of(self.ranks.size(), self.count)
    }

    /// The most sums of its own that this process has at a time.
    fn most_messages(&self) -> usize {
        let mut tree = Tree::default();
        let there = self.range().map(|block| {
            let there = tree.sums().count() + 1;
            tree.push((block, 1), (), |(), ()| ());
            there
        });
        there.max().unwrap_or(1)
    }
}

impl OnDevice {
    /// For gradients that are written into buffers of the optimiser; `whole` are all of them.
    pub(crate) fn new(gradients: Vec<Tensor<1>>, whole: AdapterGrads, device: Device) -> Self {
        let behind = gradients.iter().map(|part| part.dims()[0]).sum();
        Self {
            gradients,
            whole,
            behind,
            device,
            made: None,
        }
    }

    /// The buffers for so many numbers beside the gradient; every process makes them anew at the same step.
    fn make(&mut self, blocks: &Blocks, numbers: usize) -> &Made {
        let length = padded(self.behind) + numbers.next_multiple_of(ROOM);
        let made = match self.made.take() {
            Some(made) if made.messages.length() >= length => made,
            before => {
                // Both would not fit.
                drop(before);
                let messages = Messages::new(blocks.most_messages(), length, &self.device);
                let Some(messages) = messages else {
                    unreachable!("gradients in buffers are on a CubeCL device");
                };
                let order = blocks.additions();
                let sum = blocks.ranks.group().map(|group| {
                    let order = (order.sums, order.pairs);
                    GroupSum::new(group.clone(), order, length, &self.device)
                });
                Made { messages, sum }
            }
        };
        self.made.insert(made)
    }

    /// As [`Blocks::sum`].
    pub(super) fn sum<E>(
        &mut self,
        blocks: &Blocks,
        (mine, beside): (&[Vec<usize>], &Beside),
        model: &CausalLm,
        mut compute: impl FnMut(&[usize]) -> Result<Sum, E>,
    ) -> Result<Option<Sum>, E> {
        let numbers = 2 + beside.answers.len();
        self.make(blocks, numbers);
        let Some(Made { messages, sum }) = &self.made else {
            unreachable!("they were just made");
        };
        let mut free: Vec<usize> = (0..blocks.most_messages()).rev().collect();
        let mut tree = Tree::default();
        for (block, micro_batches) in blocks.range().zip(mine) {
            let computed = compute(micro_batches)?;
            let Some(message) = free.pop() else {
                unreachable!("as many messages as the tree has sums");
            };
            self.write(messages, message, &computed, (beside, numbers));
            tree.push((block, 1), message, |left, right| {
                messages.add(left, right);
                free.push(right);
                left
            });
        }
        // Whoever has run out of memory repeats the step before anybody gets anything of it.
        for &message in tree.sums() {
            let norm = messages.norm(message);
            if norm.clone().try_into_data().is_err() {
                return Ok(Some(self.failed(norm, beside)));
            }
        }
        let whole = match sum {
            Some(sum) => {
                let sums = tree.into_sums();
                let buffers = sums.iter().map(|&i| messages.message(i).clone());
                sum.sum(buffers.collect());
                sums[0]
            }
            None if blocks.ranks.size() == 1 => {
                let whole = tree.folded(|left, right| {
                    messages.add(left, right);
                    left
                });
                whole.unwrap_or(0)
            }
            None => {
                let sums = tree.into_sums();
                let host = sums.iter().map(|&i| metrics::message(messages, i));
                let (place, length) = (
                    (blocks.ranks.rank(), blocks.ranks.size()),
                    messages.length(),
                );
                let host = BlockSums::of_sums(place, blocks.count, length, host.collect());
                let Some(whole) = blocks.ranks.sum(host) else {
                    return Ok(None);
                };
                messages.put(sums[0], &whole);
                sums[0]
            }
        };
        Ok(Some(self.read(messages, whole, (beside, numbers), model)))
    }

    fn write(
        &self,
        messages: &Messages,
        message: usize,
        sum: &Sum,
        (beside, numbers): (&Beside, usize),
    ) {
        let Some(nll) = &sum.nll else {
            messages.clear(message, 0..messages.length());
            return;
        };
        assert_eq!(
            sum.grads.len(),
            self.whole.len(),
            "a gradient for each factor"
        );
        let mut start = 0;
        for part in &self.gradients {
            messages.write(message, start, part);
            start += part.dims()[0];
        }
        let penalized = match &sum.penalized {
            Some(penalized) => penalized.clone(),
            None => nll.zeros_like(),
        };
        let mut parts = vec![nll.clone(), penalized];
        parts.extend(beside.answers.tensors(&sum.answers, &self.device));
        let told: Tensor<1> = Tensor::cat(parts, 0);
        messages.write(message, self.behind, &told);
        messages.clear(message, self.behind + numbers..messages.length());
    }

    fn read(
        &self,
        messages: &Messages,
        message: usize,
        (beside, numbers): (&Beside, usize),
        model: &CausalLm,
    ) -> Sum {
        let mut start = 0;
        for part in &self.gradients {
            messages.read(message, start, part);
            start += part.dims()[0];
        }
        let number = |i: usize| {
            let message = messages.message(message).clone();
            message.narrow(0, self.behind + i, 1)
        };
        let answers = match numbers {
            2 => Vec::new(),
            _ => {
                let message = messages.message(message).clone();
                let told = metrics::host(&message.narrow(0, self.behind + 2, numbers - 2));
                let device = model.device().inner();
                let answers = beside.answers.read(&told, &device);
                answers.into_iter().enumerate().collect()
            }
        };
        Sum {
            grads: self.whole.clone(),
            nll: Some(number(0)),
            penalized: beside.penalizes.then(|| number(1)),
            answers,
        }
    }

    /// What cannot be read, as whoever reads the step's numbers will find out.
    fn failed(&self, number: Tensor<1>, beside: &Beside) -> Sum {
        Sum {
            grads: self.whole.clone(),
            nll: Some(number.clone()),
            penalized: beside.penalizes.then_some(number),
            answers: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
