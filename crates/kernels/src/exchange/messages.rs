//! What is exchanged: buffers on the device that last as long as a run, so that an exchange takes no memory that comes and goes.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData, TensorReadError};

use super::padded;
use crate::device::lasting;
use crate::dispatch::on_device;

/// Numbers that are read from a device, or written to it, at once.
const PIECE: usize = 4 << 20;

/// Buffers of one length, by their numbers.
#[derive(Debug)]
pub struct Messages {
    buffers: Vec<Tensor<1>>,
    length: usize,
}

impl Messages {
    /// `count` buffers of `length` numbers, which is [`padded`]; `None` elsewhere than on a CubeCL device.
    ///
    /// # Panics
    /// The length is not padded.
    pub fn new(count: usize, length: usize, device: &Device) -> Option<Self> {
        assert_eq!(length, padded(length), "numbers of a message");
        let make = |()| {
            let make = |_| Tensor::zeros([length], (device, DType::F32));
            (0..count).map(make).collect::<Vec<Tensor<1>>>()
        };
        let buffers = lasting(device, (), make);
        let there: Option<()> = on_device!(all_there(&buffers));
        there.map(|()| Self { buffers, length })
    }

    /// Bytes of so many buffers of that length.
    pub fn bytes(count: usize, length: usize) -> u64 {
        (count * padded(length)) as u64 * 4
    }

    /// Numbers of a message.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Message `i`, in its memory.
    ///
    /// # Panics
    /// If there is none.
    pub fn message(&self, i: usize) -> &Tensor<1> {
        &self.buffers[i]
    }

    /// Writes values into message `i` from number `start` on.
    ///
    /// # Shapes
    /// `values` `[n]`, f32.
    ///
    /// # Panics
    /// If they are not on the message's device, or do not fit.
    pub fn write(&self, i: usize, start: usize, values: &Tensor<1>) {
        copied((&self.buffers[i], start), (values, 0), values.dims()[0]);
    }

    /// Writes zeroes over a part of message `i`.
    ///
    /// # Panics
    /// If there is no such part.
    #[cfg_attr(
        not(feature = "cube"),
        expect(unused_variables, reason = "there are no messages then")
    )]
    pub fn clear(&self, i: usize, part: Range<usize>) {
        let done: Option<()> = on_device!(cleared(&self.buffers[i], &part));
        expect_device(done);
    }

    /// Writes what message `i` has from number `start` on over `values`, in their memory.
    ///
    /// # Panics
    /// As [`write`](Self::write).
    pub fn read(&self, i: usize, start: usize, values: &Tensor<1>) {
        copied((values, 0), (&self.buffers[i], start), values.dims()[0]);
    }

    /// Adds message `from` onto message `onto`.
    ///
    /// # Panics
    /// If there is no such message.
    #[cfg_attr(
        not(feature = "cube"),
        expect(unused_variables, reason = "there are no messages then")
    )]
    pub fn add(&self, onto: usize, from: usize) {
        let done: Option<()> = on_device!(added(&self.buffers[onto], &self.buffers[from]));
        expect_device(done);
    }

    /// The norm of message `i`, `[1]`: it can be read where everything that the message was made of was computed.
    #[cfg_attr(
        not(feature = "cube"),
        expect(unused_variables, reason = "there are no messages then")
    )]
    pub fn norm(&self, i: usize) -> Tensor<1> {
        let norm: Option<Tensor<1>> = on_device!(crate::flat::cube::norm(&self.buffers[i]));
        norm.unwrap_or_else(|| unreachable!("messages are on a CubeCL device"))
    }

    /// Message `i` on the host.
    ///
    /// # Errors
    /// A device that failed.
    pub fn to_host(&self, i: usize) -> Result<Vec<f32>, TensorReadError> {
        let mut values = Vec::with_capacity(self.length);
        for part in pieces(self.length) {
            let piece = self.buffers[i].clone().narrow(0, part.start, part.len());
            values.extend(piece.try_into_data()?.iter::<f32>());
        }
        Ok(values)
    }

    /// Message `i` from the host.
    ///
    /// # Panics
    /// If there are more values than a message has numbers.
    pub fn put(&self, i: usize, values: &[f32]) {
        for part in pieces(values.len()) {
            let data = TensorData::new(values[part.clone()].to_vec(), [part.len()]);
            let device = self.buffers[i].device();
            self.write(
                i,
                part.start,
                &Tensor::from_data(data, (&device, DType::F32)),
            );
        }
    }
}

fn pieces(length: usize) -> impl Iterator<Item = Range<usize>> {
    (0..length)
        .step_by(PIECE)
        .map(move |start| start..(start + PIECE).min(length))
}

#[cfg(feature = "cube")]
fn all_there(buffers: &[Tensor<1>]) -> Option<()> {
    let there = |buffer: &Tensor<1>| super::cube::numbers(buffer).is_some();
    buffers.iter().all(there).then_some(())
}

#[cfg(feature = "cube")]
fn cleared(buffer: &Tensor<1>, part: &Range<usize>) -> Option<()> {
    let buffer = super::cube::numbers(buffer)?;
    super::cube::write((&buffer, part.start), None, part.len());
    Some(())
}

#[cfg(feature = "cube")]
fn added(onto: &Tensor<1>, from: &Tensor<1>) -> Option<()> {
    let [onto, from] = [onto, from].map(super::cube::numbers);
    super::cube::add_onto(&onto?, &from?);
    Some(())
}

/// Writes `n` values of one buffer over those of another, each from a place on.
fn copied(to: (&Tensor<1>, usize), from: (&Tensor<1>, usize), n: usize) {
    let done: Option<()> = on_device!(written(to, from, n));
    let _ = (to, from, n);
    expect_device(done);
}

#[cfg(feature = "cube")]
fn written(to: (&Tensor<1>, usize), from: (&Tensor<1>, usize), n: usize) -> Option<()> {
    let [there, here] = [to.0, from.0].map(super::cube::numbers);
    super::cube::write((&there?, to.1), Some((&here?, from.1)), n);
    Some(())
}

#[track_caller]
fn expect_device(done: Option<()>) {
    if done.is_none() {
        unreachable!("messages are on a CubeCL device");
    }
}
