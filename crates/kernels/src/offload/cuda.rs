//! Copies through pinned memory on a stream beside the one that computes.
//!
//! Everything here runs on CubeCL's device thread, in order with its launches. A buffer is held by a binding until the
//! thread has put the wait for its copy in line: from then on whoever gets its memory comes after the copy.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::client::Client;
use cubecl::server::{BufferBinding, ServerError, ServerStorage};
use cubecl_common::device::DeviceId;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_server::stream::{ExecuteScope, WriteScoped, failed_writing};
use cudarc::driver::DriverError;
use cudarc::driver::result::{event, free_host, malloc_host, stream};
use cudarc::driver::sys;

use super::idle::Idle;
use super::pinned::{CudaServer, thread_of};
use crate::cube::{CubeTensor, floats, len, tensor};

pub(super) fn is_there(device: &Device) -> bool {
    let probe = Tensor::<1>::zeros([1], (device, DType::F32));
    floats(&probe).is_some_and(|probe| on_cuda(&probe))
}

fn on_cuda(tensor: &CubeTensor) -> bool {
    matches!(tensor.device, cubecl::Device::Cuda(_))
}

/// Runs on the device's thread, after everything that was put in line before.
pub(super) fn submit(device: DeviceId, work: impl FnOnce(&mut CudaServer) + Send + 'static) {
    thread_of(device).submit(work);
}

/// What is on its way to the host.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// Of the present group and the one before.
    held: [Vec<BufferBinding>; 2],
    device: Option<DeviceId>,
}

impl Groups {
    /// `None` where the tensor is not on a CUDA device.
    pub(super) fn store(&mut self, x: &Tensor<2>) -> Option<Away> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let x = floats(x).filter(on_cuda)?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let device = x.client.service_id().device;
        let bytes = len(&x) * x.dtype.size();
        let (buffer, here) = (x.handle.clone().binding(), StreamId::current());
        self.held[0].push(buffer.clone());
        self.device = Some(device);
        submit(device, move |server| {
            let stored = locate(server, &buffer, here).and_then(|(address, compute)| {
                with_link(device, |link| link.store(address, bytes, compute))
            });
            // An error too: it reaches whoever fetches the tensor.
            HELD.with_borrow_mut(|held| held.insert(id, stored));
        });
        let shape = x.meta.shape();
        Some(Away {
            id,
            shape: [shape[0], shape[1]],
            dtype: x.dtype,
            client: x.client.clone(),
            device: x.device.clone(),
        })
    }

    pub(super) fn turn(&mut self) {
        let [now, before] = &mut self.held;
        let (Some(device), here) = (self.device, StreamId::current()) else {
            return;
        };
        let done = std::mem::replace(before, std::mem::take(now));
        submit(device, move |server| {
            // Of nothing in particular: a buffer that never got its memory must not keep the others.
            let compute = server.write_streams().resolve(here, std::iter::empty());
            let waited = compute.and_then(|mut compute| {
                let compute = compute.current().sys;
                // Without a link nothing was copied.
                with_open_link(device, |link| link.turn(compute)).unwrap_or(Ok(()))
            });
            if waited.is_err() {
                // Memory that may still be read is never given back. A driver that cannot wait has failed for good,
                // and says so to whoever reads next.
                std::mem::forget(done);
            }
        });
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if self.held.iter().any(|group| !group.is_empty()) {
            self.turn();
            self.turn();
        }
    }
}

/// A tensor on the host.
pub(super) struct Away {
    id: u64,
    shape: [usize; 2],
    dtype: DType,
    client: Client,
    device: cubecl::Device,
}

impl std::fmt::Debug for Away {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Away({}, {:?} {:?})", self.id, self.shape, self.dtype)
    }
}

impl Away {
    pub(super) fn fetch(self) -> Coming {
        let (client, on) = (self.client.clone(), self.device.clone());
        let x = empty_device_contiguous_dtype(client, on, Shape::from(self.shape), self.dtype);
        let (id, device) = (self.id, x.client.service_id().device);
        let (buffer, here) = (x.handle.clone().binding(), StreamId::current());
        let bytes = len(&x) * x.dtype.size();
        submit(device, move |server| {
            let stored = HELD.with_borrow_mut(|held| held.remove(&id));
            let located = locate(server, &buffer, here);
            ExecuteScope::over(server, here, vec![buffer]).execute(|_| {
                let (address, compute) = located?;
                let host = stored.unwrap_or_else(|| Err(failure("a tensor was never stored")))?;
                with_link(device, |link| {
                    link.fetch(id, host, (address, bytes), compute)
                })
            });
        });
        Coming {
            id,
            bound: Some(x.handle.clone().binding()),
            x: tensor(x),
        }
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        // Nothing is left of one that was fetched.
        let (id, device) = (self.id, self.client.service_id().device);
        submit(device, move |_| {
            if let Some(Ok(host)) = HELD.with_borrow_mut(|held| held.remove(&id)) {
                let _ = with_link(device, |link| {
                    link.idle.put(host.bytes, host);
                    Ok(())
                });
            }
        });
    }
}

/// A tensor on its way back.
#[derive(Debug)]
pub(super) struct Coming {
    id: u64,
    x: Tensor<2>,
    /// What is bound is not moved to other memory while the copy writes it; `None` once the computation waits for it.
    bound: Option<BufferBinding>,
}

impl Coming {
    pub(super) fn arrived(mut self) -> Tensor<2> {
        self.wait();
        self.x.clone()
    }

    fn wait(&mut self) {
        let Some(buffer) = self.bound.take() else {
            return;
        };
        let Some(x) = floats(&self.x) else {
            unreachable!("it was made on the device");
        };
        let (id, device, here) = (self.id, x.client.service_id().device, StreamId::current());
        submit(device, move |server| {
            let waited = locate(server, &buffer, here)
                .and_then(|(_, compute)| with_link(device, |link| link.arrived(id, compute)));
            if let Err(error) = waited {
                failed_writing(server, here, vec![buffer], error);
            }
        });
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        // The copy writes until then.
        self.wait();
    }
}

/// The buffer's address, and the stream that computes.
pub(super) fn locate(
    server: &mut CudaServer,
    buffer: &BufferBinding,
    here: StreamId,
) -> Result<(u64, sys::CUstream), ServerError> {
    let resource = server.get_resource(buffer.clone(), here)?;
    let address = resource.resource().ptr;
    let mut streams = server.write_streams().resolve(here, [buffer].into_iter())?;
    Ok((address, streams.current().sys))
}

fn failure(what: &str) -> ServerError {
    ServerError::Generic {
        reason: what.to_owned(),
        backtrace: BackTrace::capture(),
    }
}

/// Pinned memory.
#[derive(Debug)]
struct Host {
    address: *mut std::ffi::c_void,
    bytes: usize,
}

/// The way between a device and the host; it lives as long as the device's thread.
struct Link {
    copies: sys::CUstream,
    idle: Idle<Host>,
    /// When the copies before the last turn are done.
    mark: Option<sys::CUevent>,
    /// When a tensor has come back.
    arrivals: HashMap<u64, sys::CUevent>,
}

thread_local! {
    /// Of the device thread, which alone copies.
    static LINKS: RefCell<HashMap<DeviceId, Link>> = RefCell::new(HashMap::new());

    /// Tensors on the host, by number.
    static HELD: RefCell<HashMap<u64, Result<Host, ServerError>>> = RefCell::new(HashMap::new());
}

/// Opens the link first where it is not open.
fn with_link<T>(
    device: DeviceId,
    work: impl FnOnce(&mut Link) -> Result<T, DriverError>,
) -> Result<T, ServerError> {
    LINKS.with_borrow_mut(|links| {
        let link = match links.entry(device) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                Link::open().map(|link| entry.insert(link))
            }
        };
        link.and_then(work).map_err(|error| not_copied(&error))
    })
}

/// `None` where there is no link.
fn with_open_link<T>(
    device: DeviceId,
    work: impl FnOnce(&mut Link) -> Result<T, DriverError>,
) -> Option<Result<T, ServerError>> {
    LINKS.with_borrow_mut(|links| {
        let link = links.get_mut(&device)?;
        Some(work(link).map_err(|error| not_copied(&error)))
    })
}

pub(super) fn not_copied(error: &DriverError) -> ServerError {
    failure(&format!(
        "a tensor could not be copied between device and host: {error}"
    ))
}

#[expect(unsafe_code, reason = "calls of the driver")]
impl Link {
    fn open() -> Result<Self, DriverError> {
        Ok(Self {
            copies: stream::create(stream::StreamKind::NonBlocking)?,
            idle: Idle::default(),
            mark: None,
            arrivals: HashMap::new(),
        })
    }

    /// Memory for at least so many bytes.
    fn host(&mut self, bytes: usize) -> Result<Host, DriverError> {
        if let Some(host) = self.idle.take(bytes) {
            return Ok(host);
        }
        if let Some(host) = self.idle.outgrown(bytes) {
            self.unpin([host])?;
        }
        let pin = || {
            // SAFETY: nobody reads the memory before the copy that fills it.
            let address = unsafe { malloc_host(bytes.max(1), 0) }?;
            Ok(Host { address, bytes })
        };
        pin().or_else(|_: DriverError| {
            // What passes of other shapes have left.
            let idle = self.idle.drain();
            self.unpin(idle)?;
            pin()
        })
    }

    fn unpin(&self, idle: impl IntoIterator<Item = Host>) -> Result<(), DriverError> {
        // SAFETY: the stream lives as long as this.
        unsafe { stream::synchronize(self.copies) }?;
        for host in idle {
            // SAFETY: nothing is in it, and all copies from it are done.
            unsafe { free_host(host.address) }?;
        }
        Ok(())
    }

    fn store(
        &mut self,
        address: u64,
        bytes: usize,
        compute: sys::CUstream,
    ) -> Result<Host, DriverError> {
        let host = self.host(bytes)?;
        wait(self.copies, compute)?;
        // SAFETY: both ends have at least that many bytes; the device's end is held until `turn` has waited, the host's until
        // it is fetched, by a copy on the same stream.
        unsafe { sys::cuMemcpyDtoHAsync_v2(host.address, address, bytes, self.copies) }.result()?;
        Ok(host)
    }

    fn turn(&mut self, compute: sys::CUstream) -> Result<(), DriverError> {
        let mark = recorded(self.copies)?;
        match self.mark.replace(mark) {
            Some(before) => wait_for(compute, before),
            None => Ok(()),
        }
    }

    fn fetch(
        &mut self,
        id: u64,
        host: Host,
        (address, bytes): (u64, usize),
        compute: sys::CUstream,
    ) -> Result<(), DriverError> {
        // Who had the device's end before is done with it then.
        wait(self.copies, compute)?;
        // SAFETY: both ends have at least that many bytes; the device's end is held until `arrived` has waited, and what is
        // copied into the host's end later comes after this on the same stream.
        unsafe { sys::cuMemcpyHtoDAsync_v2(address, host.address, bytes, self.copies) }.result()?;
        self.idle.put(host.bytes, host);
        self.arrivals.insert(id, recorded(self.copies)?);
        Ok(())
    }

    fn arrived(&mut self, id: u64, compute: sys::CUstream) -> Result<(), DriverError> {
        match self.arrivals.remove(&id) {
            Some(arrival) => wait_for(compute, arrival),
            None => Ok(()),
        }
    }
}

/// An event after everything that is in line on `stream`.
#[expect(unsafe_code, reason = "calls of the driver")]
pub(super) fn recorded(stream: sys::CUstream) -> Result<sys::CUevent, DriverError> {
    let made = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
    // SAFETY: both are alive.
    unsafe { event::record(made, stream) }?;
    Ok(made)
}

/// Lets `stream` wait for an event, which is used up.
#[expect(unsafe_code, reason = "calls of the driver")]
pub(super) fn wait_for(stream: sys::CUstream, event: sys::CUevent) -> Result<(), DriverError> {
    let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: both are alive; the driver keeps an event that is waited for.
    unsafe {
        stream::wait_event(stream, event, flags)?;
        event::destroy(event)
    }
}

/// Lets `stream` wait for everything that is in line on `other`.
pub(super) fn wait(stream: sys::CUstream, other: sys::CUstream) -> Result<(), DriverError> {
    wait_for(stream, recorded(other)?)
}
