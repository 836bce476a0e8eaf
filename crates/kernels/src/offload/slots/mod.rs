//! Blocks of bytes that stay in the host's memory and come to the device in turn: the layers of a base that its memory has no room
//! for.
//!
//! On CUDA a block lies in pinned memory, and the device has [`SLOTS`] lasting slots: one has the block that is computed with, another
//! receives the next, on a stream of its own beside those of the computation and of the [`Lane`](super::Lane). What a slot had is
//! written over once the computation that was issued by then is done, and the computation waits for a copy where it first reads it;
//! the host waits for neither. Elsewhere a block lies in plain memory, and what is read of it is copied each time.

#[cfg(feature = "cuda")]
mod cuda;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

pub use backdraft_arch::sizes::SLOTS;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

#[cfg(feature = "cuda")]
use super::pinned::Pinned;

/// What parts of a block begin at multiples of, in bytes: what the allocator of a CUDA device gives, so that kernels find a tensor
/// aligned as one that has memory of its own.
const ALIGNMENT: usize = 512;

/// The host's memory has no room for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{bytes} bytes of the host's memory could not be pinned, after {before} bytes that were: free some, or leave out base = \"host\""
)]
pub struct PinError {
    /// Of the block.
    pub bytes: usize,
    /// Of those before it.
    pub before: usize,
}

/// The slots of a device, shared by the blocks that come into them.
#[derive(Clone, Debug)]
pub struct Slots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    device: Device,
    /// Bytes of the largest block.
    largest: AtomicUsize,
    /// Bytes of all blocks that were ever made.
    all: AtomicUsize,
    #[cfg(feature = "cuda")]
    places: cuda::Places,
}

/// Tensors that come to the device together.
#[derive(Debug)]
pub struct Block {
    slots: Slots,
    memory: Memory,
    /// Of no other block.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "slots ask for it"))]
    id: u64,
}

/// Where a block lies.
#[derive(Debug)]
enum Memory {
    Plain(Vec<u8>),
    #[cfg(feature = "cuda")]
    Pinned(Pinned),
}

/// A tensor of a block, in one dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it begins, in bytes.
    offset: usize,
    /// Values.
    len: usize,
    dtype: DType,
}

impl Part {
    fn bytes(self) -> usize {
        self.len * self.dtype.size()
    }
}

impl Slots {
    /// Of `device`; they take no memory before [`open`](Self::open).
    #[must_use]
    pub fn new(device: &Device) -> Self {
        Self(Arc::new(Shared {
            device: device.clone(),
            largest: AtomicUsize::new(0),
            all: AtomicUsize::new(0),
            #[cfg(feature = "cuda")]
            places: cuda::Places::default(),
        }))
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Copies tensors into memory from which they come together; what each of them is there.
    ///
    /// # Errors
    /// Memory that cannot be pinned.
    pub fn block(&self, tensors: &[TensorData]) -> Result<(Block, Vec<Part>), PinError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut end = 0;
        let part = |tensor: &TensorData| {
            let (offset, dtype) = (end, tensor.dtype());
            let len = tensor.num_elements();
            end = (offset + len * dtype.size()).next_multiple_of(ALIGNMENT);
            Part { offset, len, dtype }
        };
        let parts: Vec<Part> = tensors.iter().map(part).collect();
        let filled = parts.iter().zip(tensors);
        let filled: Vec<_> = filled
            .map(|(part, tensor)| (part.offset, tensor.as_bytes()))
            .collect();
        let memory = self.memory(end, &filled)?;
        self.0.largest.fetch_max(end, Ordering::Relaxed);
        self.0.all.fetch_add(end, Ordering::Relaxed);
        let block = Block {
            slots: self.clone(),
            memory,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
        };
        Ok((block, parts))
    }

    fn memory(&self, bytes: usize, parts: &[(usize, &[u8])]) -> Result<Memory, PinError> {
        #[cfg(feature = "cuda")]
        if bytes > 0 && super::is_there(&self.0.device) {
            let pinned = Pinned::holding(bytes, parts, &self.0.device);
            return pinned.map(Memory::Pinned).ok_or(PinError {
                bytes,
                before: self.0.all.load(Ordering::Relaxed),
            });
        }
        let mut plain = vec![0; bytes];
        for (offset, part) in parts {
            plain[*offset..offset + part.len()].copy_from_slice(part);
        }
        Ok(Memory::Plain(plain))
    }

    /// Takes the device's memory for the blocks that there are.
    pub fn open(&self) {
        #[cfg(feature = "cuda")]
        if super::is_there(&self.0.device) {
            self.0.places.open(&self.0.device, self.largest());
        }
    }

    /// Memory of the device: that of the slots.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub fn device_bytes(&self) -> usize {
        match super::is_there(&self.0.device) {
            true => SLOTS * self.largest(),
            false => 0,
        }
    }

    /// Memory of the host: that of all blocks.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub fn host_bytes(&self) -> usize {
        self.0.all.load(Ordering::Relaxed)
    }

    fn largest(&self) -> usize {
        self.0.largest.load(Ordering::Relaxed)
    }
}

impl Block {
    /// Where it comes to.
    #[must_use]
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Has the block in a slot from now on, and starts to bring `next` into another. A block that is read without this comes when it
    /// is read, and nothing is computed meanwhile.
    pub fn enter(&self, next: Option<&Self>) {
        #[cfg(feature = "cuda")]
        if let Memory::Pinned(memory) = &self.memory {
            let next = next.and_then(|next| match &next.memory {
                Memory::Pinned(memory) => Some((next.id, memory)),
                Memory::Plain(_) => None,
            });
            let places = &self.slots.0.places;
            places.enter(
                (self.id, memory),
                next,
                (self.slots.device(), self.slots.largest()),
            );
        }
        let _ = next;
    }

    /// One of its tensors of floats on the device. What is computed from it must be issued before another block is read.
    #[must_use]
    pub fn floats(&self, part: Part) -> Tensor<1> {
        #[cfg(feature = "cuda")]
        if let Memory::Pinned(memory) = &self.memory {
            return Tensor::from_primitive::<burn_cubecl::CubeBackend>(self.in_slot(memory, part));
        }
        Tensor::from_data(self.copied(part), (self.slots.device(), part.dtype))
    }

    /// As [`floats`](Self::floats), of whole numbers.
    #[must_use]
    pub fn ints(&self, part: Part) -> Tensor<1, Int> {
        #[cfg(feature = "cuda")]
        if let Memory::Pinned(memory) = &self.memory {
            return Tensor::from_primitive::<burn_cubecl::CubeBackend>(self.in_slot(memory, part));
        }
        Tensor::from_data(self.copied(part), (self.slots.device(), part.dtype))
    }

    #[cfg(feature = "cuda")]
    fn in_slot(&self, memory: &Pinned, part: Part) -> crate::cube::CubeTensor {
        let places = &self.slots.0.places;
        let slots = (self.slots.device(), self.slots.largest());
        places.cut((self.id, memory), part, slots)
    }

    #[cfg_attr(
        not(feature = "cuda"),
        expect(irrefutable_let_patterns, reason = "nothing is pinned then")
    )]
    fn copied(&self, part: Part) -> TensorData {
        let Memory::Plain(bytes) = &self.memory else {
            unreachable!("what is pinned is read from its slot")
        };
        let bytes = bytes[part.offset..part.offset + part.bytes()].to_vec();
        TensorData::from_bytes_vec(bytes, [part.len], part.dtype)
    }
}

/// Takes what slots have for spoiled, after a device has failed.
pub(crate) fn forget() {
    #[cfg(feature = "cuda")]
    cuda::forget();
}

#[cfg(test)]
mod tests;
