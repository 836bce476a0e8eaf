//! A table in pinned memory of the host, which kernels read over the link.

use burn::tensor::{DType, Device, Shape, Tensor};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::client::Client;
use cubecl::cuda::CudaRuntime;
use cubecl::prelude::*;
use cubecl_common::device::DeviceId;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_server::runtime::Runtime;
use cudarc::driver::result::{ctx, free_host, malloc_host};

use crate::cube::{elementwise, floats, indices, tensor};
use crate::hopper::loaded;

type CudaServer = <CudaRuntime as Runtime>::Server;

/// Bytes that a unit reads at once.
const CHUNK: usize = 16;

/// Pinned memory with the rows of a table, given back when nothing holds it.
pub(super) struct Pinned {
    /// The same for the host and, on 64 bits, for the device.
    address: usize,
    client: Client,
    on: cubecl::Device,
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pinned({:#x})", self.address)
    }
}

impl Pinned {
    /// `None` where `device` cannot read the host's memory by itself, or this much of it cannot be pinned.
    pub(super) fn holding(bytes: &[u8], row: usize, device: &Device) -> Option<Self> {
        if !row.is_multiple_of(CHUNK) || bytes.is_empty() {
            return None;
        }
        let probe = floats(&Tensor::<1>::zeros([1], (device, DType::F32)))?;
        let (client, on) = (probe.client, probe.device);
        if !matches!(on, cubecl::Device::Cuda(_)) {
            return None;
        }
        let (id, count) = (client.service_id().device, bytes.len());
        let pinned = thread_of(id).submit_blocking(move |_| {
            #[expect(unsafe_code, reason = "calls of the driver")]
            // SAFETY: nobody reads it before it is filled below.
            let pinned = unsafe { malloc_host(count, 0) };
            pinned.ok().map(|address| address.addr())
        });
        let address = pinned.ok().flatten()?;
        #[expect(unsafe_code, reason = "memory that the driver gave")]
        // SAFETY: it has as many bytes, and nobody else knows of it yet.
        unsafe {
            let to = std::ptr::with_exposed_provenance_mut::<u8>(address);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count);
        }
        Some(Self {
            address,
            client,
            on,
        })
    }

    /// Rows of `width` values, one for each id.
    pub(super) fn rows(&self, ids: &[u32], width: usize, dtype: DType) -> Tensor<2> {
        let (client, on) = (self.client.clone(), self.on.clone());
        let shape = Shape::from([ids.len(), width]);
        let out = empty_device_contiguous_dtype(client, on, shape, dtype);
        let row = width * dtype.size() / CHUNK;
        let count = ids.len() * row;
        if count > 0 {
            let (cubes, dim) = elementwise(count);
            let ids = indices(&out.client, ids);
            #[expect(unsafe_code, reason = "a kernel without bounds checks")]
            // SAFETY: the output has as many chunks, and the kernel does not go beyond the last; ids are rows of the
            // table, checked by the caller, which lies at the address until after the last kernel that reads it.
            unsafe {
                let chunks = BufferArg::from_raw_parts(out.handle.clone(), count);
                let address = self.address as u64;
                kernel::launch_unchecked(
                    &out.client,
                    cubes,
                    dim,
                    4,
                    ids,
                    chunks,
                    address,
                    row as u32,
                );
            }
        }
        tensor(out)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let address = self.address;
        thread_of(self.client.service_id().device).submit(move |_| {
            // A device that cannot finish has failed for good; what it may still read is kept.
            if ctx::synchronize().is_ok() {
                #[expect(unsafe_code, reason = "calls of the driver")]
                // SAFETY: every kernel that reads it is done, and nobody knows of it any more.
                let _ = unsafe { free_host(std::ptr::with_exposed_provenance_mut(address)) };
            }
        });
    }
}

fn thread_of(device: DeviceId) -> DeviceHandle<CudaServer> {
    DeviceHandle::new(device)
}

#[cube(launch_unchecked)]
fn kernel<N: Size>(ids: &[u32], out: &mut [Vector<u32, N>], address: u64, row: u32) {
    let i = ABSOLUTE_POS;
    if i < out.len() {
        let row = row as usize;
        let chunk = u64::cast_from(ids[i / row]) * u64::cast_from(row) + u64::cast_from(i % row);
        out[i] = chunk_at::<N>(address + chunk * 16u64);
    }
}

/// 16 bytes of global memory, which nobody writes.
#[cube]
fn chunk_at<N: Size>(address: u64) -> Vector<u32, N> {
    let address = loaded::<u64>(address);
    let out: Vector<u32, N>;
    gpu_asm!("ld.global.nc.v4.u32 {o}, [{a}];", o = out(_) out, a = in(_) address);
    out
}
