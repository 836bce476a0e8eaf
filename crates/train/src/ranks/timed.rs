//! How long an exchange takes here.

use std::time::Instant;

use backdraft_comm::BlockSums;
use backdraft_kernels::exchange::{GroupSum, Messages, NcclError, padded};
use burn::tensor::{DType, Device, Tensor};

use super::{Blocks, Ranks};
use crate::error::TrainError;
use crate::metrics;

/// How long some exchanges took, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// Of the message of each process.
    pub bytes: u64,
    /// Of each exchange.
    pub seconds: Vec<f64>,
}

impl Timed {
    /// Bytes that go out of each of `size` processes; of one alone, those that its copy reads and writes.
    pub fn moved(&self, size: usize) -> f64 {
        let bytes = self.bytes as f64;
        match size {
            1 => 2.0 * bytes,
            _ => 2.0 * (size - 1) as f64 / size as f64 * bytes,
        }
    }
}

impl Ranks {
    /// Exchanges messages of so many bytes `rounds` times, as a step does, and once before that is not timed. What comes is checked. A
    /// process alone that has no group copies a message.
    ///
    /// # Errors
    /// Another process ended; what came is not the sum; a device that failed.
    pub fn time_exchange(
        &self,
        bytes: u64,
        rounds: usize,
        device: &Device,
    ) -> Result<Timed, TrainError> {
        let length = padded(bytes.div_ceil(4) as usize);
        let mut seconds = Vec::with_capacity(rounds);
        let size = self.size();
        let expected = (size * (size + 1) / 2) as f32;
        let on_device = Messages::new(1, length, device);
        let blocks = Blocks::new(size, self.clone());
        let sum = self.group().map(|group| {
            let order = blocks.additions();
            GroupSum::new(group.clone(), (order.sums, order.pairs), length, device)
        });
        let own = (self.rank() + 1) as f32;
        let values = on_device
            .as_ref()
            .map(|_| Tensor::<1>::full([length], own, (device, DType::F32)));
        for round in 0..=rounds {
            let found = match (&on_device, &values) {
                (Some(messages), Some(values)) => {
                    messages.write(0, 0, values);
                    metrics::host(&messages.message(0).clone().narrow(0, 0, 1));
                    self.meet("the others to exchange")?;
                    let began = Instant::now();
                    match &sum {
                        Some(sum) => {
                            sum.sum(vec![messages.message(0).clone()]);
                        }
                        None if size == 1 => messages.write(0, 0, values),
                        None => {
                            let place = (self.rank(), size);
                            let mine = vec![metrics::message(messages, 0)];
                            let sums = BlockSums::of_sums(place, size, length, mine);
                            messages.put(0, &self.try_sum(sums)?);
                        }
                    }
                    let found = messages.message(0).clone().narrow(0, length - 1, 1);
                    let found = metrics::host(&found);
                    (found, began.elapsed())
                }
                _ => {
                    let mut sums = BlockSums::new(self.rank(), size, size, length);
                    sums.push(vec![own; length]);
                    self.meet("the others to exchange")?;
                    let began = Instant::now();
                    let found = self.try_sum(sums)?;
                    let took = began.elapsed();
                    (vec![found[length - 1]], took)
                }
            };
            let (found, took) = found;
            if found != [expected] {
                let expected = vec![expected];
                return Err(NcclError::Garbled { expected, found }.into());
            }
            if round > 0 {
                seconds.push(took.as_secs_f64());
            }
        }
        let bytes = length as u64 * 4;
        Ok(Timed { bytes, seconds })
    }

    fn try_sum(&self, sums: BlockSums) -> Result<Vec<f32>, TrainError> {
        match (self.sum(sums), self.take_failure()) {
            (Some(sum), _) => Ok(sum),
            (None, Some(error)) => Err(error.into()),
            (None, None) => unreachable!("an exchange that failed says why"),
        }
    }
}
