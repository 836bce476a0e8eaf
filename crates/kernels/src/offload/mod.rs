//! Tensors that wait in the host's memory while the device computes.
//!
//! Copies run on a stream of their own, from and to pinned memory. What is on its way keeps its memory on the device
//! until the computation has been told to wait for the copy: two groups of tensors at most, see [`Lane::turn`].
//!
//! [`slots`] is the way for what is only read: layers of a base.
//!
//! Where there is no such copy, on the processor and on WebGPU, a tensor stays where it is; [`is_there`] tells.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(any(feature = "cuda", test))]
mod idle;
#[cfg(feature = "cuda")]
pub(crate) mod pinned;
pub mod slots;

use std::time::Instant;

use backdraft_arch::sizes::SIDE;
pub use backdraft_arch::sizes::{MEASURED, Speed};
use burn::tensor::{DType, Device, ExecutionError, Tensor};

/// Whether tensors on `device` can wait elsewhere.
pub fn is_there(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    return cuda::is_there(device);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        false
    }
}

/// Takes tensors to the host, a group after the other.
#[derive(Debug, Default)]
pub struct Lane {
    #[cfg(feature = "cuda")]
    groups: cuda::Groups,
}

/// A tensor that is on its way to the host, or there.
#[derive(Debug)]
pub struct Offloaded(Place);

#[derive(Debug)]
enum Place {
    /// It stayed.
    Device(Box<Tensor<2>>),
    #[cfg(feature = "cuda")]
    Host(cuda::Away),
}

/// A tensor that is on its way back.
#[derive(Debug)]
pub struct Fetching(Return);

#[derive(Debug)]
enum Return {
    Device(Tensor<2>),
    #[cfg(feature = "cuda")]
    Host(cuda::Coming),
}

impl Lane {
    /// Starts to copy `tensor`, once the computation so far is done, and gives its memory up.
    pub fn store(&mut self, tensor: Tensor<2>) -> Offloaded {
        #[cfg(feature = "cuda")]
        if let Some(away) = self.groups.store(&tensor) {
            return Offloaded(Place::Host(away));
        }
        Offloaded(Place::Device(Box::new(tensor)))
    }

    /// Ends a group. What is computed from now on waits for the copies of the group before, whose memory is free then.
    pub fn turn(&mut self) {
        #[cfg(feature = "cuda")]
        self.groups.turn();
    }

    /// Ends the last group; what is computed from now on waits for every copy.
    pub fn finish(mut self) {
        self.turn();
        self.turn();
    }
}

impl Offloaded {
    /// Starts to copy the tensor back.
    pub fn fetch(self) -> Fetching {
        match self.0 {
            Place::Device(tensor) => Fetching(Return::Device(*tensor)),
            #[cfg(feature = "cuda")]
            Place::Host(away) => Fetching(Return::Host(away.fetch())),
        }
    }
}

impl Fetching {
    /// The tensor; what is computed from now on waits for it.
    pub fn arrived(self) -> Tensor<2> {
        match self.0 {
            Return::Device(tensor) => tensor,
            #[cfg(feature = "cuda")]
            Return::Host(coming) => coming.arrived(),
        }
    }
}

/// How fast copies are; `None` where there are none.
///
/// # Errors
/// A device that failed.
pub fn measure(device: &Device) -> Result<Option<Speed>, ExecutionError> {
    const COPIES: usize = 8;
    const SMALL: usize = 64;
    if !is_there(device) {
        return Ok(None);
    }
    let zeros = |shape| Tensor::<2>::zeros(shape, (device, DType::F32));
    // The first time the host's memory is pinned.
    let shortest = |run: &dyn Fn()| {
        let mut shortest = f64::INFINITY;
        for _ in 0..3 {
            device.sync()?;
            let began = Instant::now();
            run();
            device.sync()?;
            shortest = shortest.min(began.elapsed().as_secs_f64());
        }
        Ok(shortest)
    };
    let large = zeros([SIDE, SIDE]);
    let there = shortest(&|| {
        let mut lane = Lane::default();
        let away: Vec<Offloaded> = (0..COPIES).map(|_| lane.store(large.clone())).collect();
        lane.finish();
        drop(away);
    })?;
    let small = zeros([1, SMALL]);
    let both_ways = shortest(&|| {
        let mut lane = Lane::default();
        let away: Vec<Offloaded> = (0..SMALL)
            .map(|_| {
                let away = lane.store(small.clone());
                lane.turn();
                away
            })
            .collect();
        lane.finish();
        for away in away {
            drop(away.fetch().arrived());
        }
    })?;
    Ok(Some(Speed {
        bytes: (COPIES as u64 * MEASURED) as f64 / there,
        round_trip: both_ways / SMALL as f64,
    }))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    #[test]
    fn what_comes_back_is_what_left() {
        let mut devices = vec![Device::flex()];
        devices.extend(crate::device::cuda(0));
        for device in devices {
            let there = is_there(&device);
            assert_eq!(measure(&device).unwrap().is_some(), there);
            // Twice, so that the host's memory is used again.
            for _ in 0..2 {
                let mut lane = Lane::default();
                let (mut expected, mut away) = (Vec::new(), Vec::new());
                for rows in [1, 3, 700, 700, 2048, 5, 700] {
                    let x = Tensor::<2>::random([rows, 513], Distribution::Default, &device);
                    let values: Vec<f32> = (x.clone() + 0.0).into_data().try_into_vec().unwrap();
                    expected.push(values);
                    // The copy must be of what was computed before it, and nothing after it may disturb it.
                    away.push(lane.store(x * 2.0));
                    lane.turn();
                    let mut noise =
                        Tensor::<2>::random([rows, 513], Distribution::Default, &device);
                    for _ in 0..4 {
                        noise = noise * 3.0;
                    }
                }
                lane.finish();
                let mut coming: Vec<Fetching> = Vec::new();
                for tensor in away {
                    coming.push(tensor.fetch());
                    let noise = Tensor::<2>::random([700, 513], Distribution::Default, &device);
                    drop(noise * 2.0);
                }
                for (x, expected) in coming.into_iter().zip(expected) {
                    let values: Vec<f32> = (x.arrived() / 2.0).into_data().try_into_vec().unwrap();
                    assert_eq!(values, expected);
                }
            }
        }
    }
}
