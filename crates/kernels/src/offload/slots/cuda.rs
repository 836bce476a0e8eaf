//! Slots in the memory of a CUDA device.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::server::BufferBinding;
use cubecl_common::device::DeviceId;
use cubecl_environment::stream::StreamId;
use cubecl_server::stream::{ExecuteScope, failed_writing};
use cudarc::driver::DriverError;
use cudarc::driver::result::{ctx, stream};
use cudarc::driver::sys;

use super::{Part, SLOTS};
use crate::cube::{CubeTensor, floats, len};
use crate::offload::cuda::{locate, not_copied, recorded, submit, wait, wait_for};
use crate::offload::pinned::{Pinned, thread_of};

/// Failures of devices so far.
static FAILURES: AtomicU64 = AtomicU64::new(0);

pub(super) fn forget() {
    FAILURES.fetch_add(1, Ordering::Relaxed);
}

/// A block by its number.
type Numbered<'a> = (u64, &'a Pinned);

/// The slots of one device, once they are open.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    slots: [Slot; SLOTS],
    device: DeviceId,
    /// That of the block that is computed with.
    current: usize,
    /// Who issued what is computed with them.
    stream: StreamId,
    /// Failures that are known of.
    failures: u64,
}

#[derive(Debug)]
struct Slot {
    buffer: CubeTensor,
    holds: Option<u64>,
    /// A copy that the computation does not wait for yet. What is bound is not moved to other memory while it is written.
    coming: Option<(u64, BufferBinding)>,
}

impl Places {
    pub(super) fn open(&self, device: &Device, bytes: usize) {
        drop(self.opened((device, bytes)));
    }

    /// Slots for blocks of so many bytes.
    fn opened(&self, (device, bytes): (&Device, usize)) -> OpenGuard<'_> {
        // A panic elsewhere leaves no half of a change behind.
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *open {
            Some(slots) if len(&slots.slots[0].buffer) >= bytes => slots.settle(),
            _ => *open = Some(Open::new(device, bytes)),
        }
        OpenGuard(open)
    }

    pub(super) fn enter(
        &self,
        block: Numbered<'_>,
        next: Option<Numbered<'_>>,
        slots: (&Device, usize),
    ) {
        let mut guard = self.opened(slots);
        let open = guard.open();
        open.have(block);
        if let Some(next) = next
            && !open.holds(next.0)
        {
            open.bring(next);
        }
    }

    /// A part of a block, in the memory of its slot.
    pub(super) fn cut(
        &self,
        block: Numbered<'_>,
        part: Part,
        slots: (&Device, usize),
    ) -> CubeTensor {
        let mut guard = self.opened(slots);
        let open = guard.open();
        let slot = open.have(block);
        let buffer = &open.slots[slot].buffer;
        let behind = len(buffer) - part.offset - part.bytes();
        let handle = buffer.handle.clone();
        let handle = handle
            .offset_start(part.offset as u64)
            .offset_end(behind as u64);
        CubeTensor::new_contiguous(
            buffer.client.clone(),
            buffer.device.clone(),
            Shape::from([part.len]),
            handle,
            part.dtype,
        )
    }
}

struct OpenGuard<'a>(MutexGuard<'a, Option<Open>>);

impl OpenGuard<'_> {
    fn open(&mut self) -> &mut Open {
        let Some(open) = &mut *self.0 else {
            unreachable!("a guard is made of open slots")
        };
        open
    }
}

impl Open {
    fn new(device: &Device, bytes: usize) -> Self {
        let Some(probe) = floats(&Tensor::<1>::zeros([1], (device, DType::F32))) else {
            unreachable!("blocks are pinned for CUDA devices")
        };
        let slot = || {
            let (client, on) = (probe.client.clone(), probe.device.clone());
            let shape = Shape::from([bytes]);
            Slot {
                buffer: empty_device_contiguous_dtype(client, on, shape, DType::U8),
                holds: None,
                coming: None,
            }
        };
        Self {
            slots: std::array::from_fn(|_| slot()),
            device: probe.client.service_id().device,
            current: 0,
            stream: StreamId::current(),
            failures: FAILURES.load(Ordering::Relaxed),
        }
    }

    /// Waits for what other streams compute, and gives up what a failure may have spoiled.
    fn settle(&mut self) {
        let (here, failures) = (StreamId::current(), FAILURES.load(Ordering::Relaxed));
        if (self.stream, self.failures) == (here, failures) {
            return;
        }
        // A device that cannot finish says so to whoever reads next.
        let _ = thread_of(self.device).submit_blocking(|_| ctx::synchronize().is_ok());
        if self.failures != failures {
            for slot in &mut self.slots {
                (slot.holds, slot.coming) = (None, None);
            }
        }
        (self.stream, self.failures) = (here, failures);
    }

    fn place_of(&self, block: u64) -> Option<usize> {
        self.slots.iter().position(|slot| slot.holds == Some(block))
    }

    fn holds(&self, block: u64) -> bool {
        self.place_of(block).is_some()
    }

    /// The slot of a block that is computed with from now on.
    fn have(&mut self, block: Numbered<'_>) -> usize {
        let slot = self.place_of(block.0);
        let slot = slot.unwrap_or_else(|| self.bring(block));
        self.current = slot;
        self.arrived(slot);
        slot
    }

    /// Starts to copy a block into the slot after the current one, and which that is.
    fn bring(&mut self, (block, memory): Numbered<'_>) -> usize {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let into = (self.current + 1) % SLOTS;
        let slot = &mut self.slots[into];
        let (id, device, here) = (
            NEXT.fetch_add(1, Ordering::Relaxed),
            self.device,
            StreamId::current(),
        );
        let (from, bytes) = (memory.address, memory.bytes());
        let buffer = slot.buffer.handle.clone().binding();
        let (written, before) = (buffer.clone(), slot.coming.take());
        submit(device, move |server| {
            let located = locate(server, &written, here);
            ExecuteScope::over(server, here, vec![written]).execute(|_| {
                let (to, compute) = located?;
                with_copies(device, |copies| {
                    if let Some((before, _)) = &before {
                        copies.forget(*before)?;
                    }
                    copies.start(id, (from, to, bytes), compute)
                })
            });
        });
        slot.holds = Some(block);
        slot.coming = Some((id, buffer));
        into
    }

    /// Lets the computation wait for the copy into a slot.
    fn arrived(&mut self, slot: usize) {
        let Some((id, buffer)) = self.slots[slot].coming.take() else {
            return;
        };
        let (device, here) = (self.device, StreamId::current());
        submit(device, move |server| {
            let waited = locate(server, &buffer, here)
                .and_then(|(_, compute)| with_copies(device, |copies| copies.wait(id, compute)));
            if let Err(error) = waited {
                failed_writing(server, here, vec![buffer], error);
            }
        });
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Copies write until then.
        (0..SLOTS).for_each(|slot| self.arrived(slot));
    }
}

/// The stream of copies into slots; it lives as long as the device's thread.
struct Copies {
    stream: sys::CUstream,
    /// When a copy is done, by its number.
    arrivals: HashMap<u64, sys::CUevent>,
}

thread_local! {
    /// Of the device thread, which alone copies.
    static COPIES: RefCell<HashMap<DeviceId, Copies>> = RefCell::new(HashMap::new());
}

/// Opens the stream first where it is not open.
fn with_copies<T>(
    device: DeviceId,
    work: impl FnOnce(&mut Copies) -> Result<T, DriverError>,
) -> Result<T, cubecl::server::ServerError> {
    COPIES.with_borrow_mut(|all| {
        let copies = match all.entry(device) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let opened = stream::create(stream::StreamKind::NonBlocking);
                opened.map(|stream| {
                    entry.insert(Copies {
                        stream,
                        arrivals: HashMap::new(),
                    })
                })
            }
        };
        copies.and_then(work).map_err(|error| not_copied(&error))
    })
}

#[expect(unsafe_code, reason = "calls of the driver")]
impl Copies {
    fn start(
        &mut self,
        id: u64,
        (from, to, bytes): (usize, u64, usize),
        compute: sys::CUstream,
    ) -> Result<(), DriverError> {
        // What is computed with the block before is done then.
        wait(self.stream, compute)?;
        let from = std::ptr::with_exposed_provenance::<std::ffi::c_void>(from);
        // SAFETY: both ends have at least that many bytes; the slot is held until `wait`, and memory that is pinned is given back
        // only after everything that the device has in line.
        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, self.stream) }.result()?;
        self.arrivals.insert(id, recorded(self.stream)?);
        Ok(())
    }

    fn wait(&mut self, id: u64, compute: sys::CUstream) -> Result<(), DriverError> {
        match self.arrivals.remove(&id) {
            Some(arrival) => wait_for(compute, arrival),
            None => Ok(()),
        }
    }

    /// Of a copy that nobody waited for: the next into its slot comes after it on the same stream.
    fn forget(&mut self, id: u64) -> Result<(), DriverError> {
        match self.arrivals.remove(&id) {
            // SAFETY: the event is alive, and used up.
            Some(arrival) => unsafe { cudarc::driver::result::event::destroy(arrival) },
            None => Ok(()),
        }
    }
}
