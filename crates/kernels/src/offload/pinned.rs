//! Pinned memory of the host, which a device copies from or reads by itself.

use burn::tensor::{DType, Device, Tensor};
use cubecl::client::Client;
use cubecl::cuda::CudaRuntime;
use cubecl_common::device::DeviceId;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_server::runtime::Runtime;
use cudarc::driver::result::{ctx, free_host, malloc_host};

use crate::cube::floats;

pub(crate) type CudaServer = <CudaRuntime as Runtime>::Server;

/// The device's thread.
pub(crate) fn thread_of(device: DeviceId) -> DeviceHandle<CudaServer> {
    DeviceHandle::new(device)
}

/// Pinned memory, given back when nothing holds it.
pub(crate) struct Pinned {
    /// The same for the host and, on 64 bits, for the device.
    pub(crate) address: usize,
    bytes: usize,
    pub(crate) client: Client,
    pub(crate) on: cubecl::Device,
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pinned({:#x}, {})", self.address, self.bytes)
    }
}

impl Pinned {
    /// Memory for `parts`, each from its offset on; what lies between them is not written. `None` where `device` is no CUDA device,
    /// or so much memory cannot be pinned.
    ///
    /// # Panics
    /// If a part ends beyond `bytes`.
    pub(crate) fn holding(bytes: usize, parts: &[(usize, &[u8])], device: &Device) -> Option<Self> {
        let probe = floats(&Tensor::<1>::zeros([1], (device, DType::F32)))?;
        let (client, on) = (probe.client, probe.device);
        if !matches!(on, cubecl::Device::Cuda(_)) || bytes == 0 {
            return None;
        }
        let pinned = thread_of(client.service_id().device).submit_blocking(move |_| {
            #[expect(unsafe_code, reason = "calls of the driver")]
            // SAFETY: nobody reads it before it is filled below.
            let pinned = unsafe { malloc_host(bytes, 0) };
            pinned.ok().map(|address| address.addr())
        });
        let address = pinned.ok().flatten()?;
        for &(offset, part) in parts {
            assert!(offset + part.len() <= bytes, "a part beyond the memory");
            #[expect(unsafe_code, reason = "memory that the driver gave")]
            // SAFETY: it has as many bytes, and nobody else knows of it yet.
            unsafe {
                let to = std::ptr::with_exposed_provenance_mut::<u8>(address + offset);
                std::ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
            }
        }
        Some(Self {
            address,
            bytes,
            client,
            on,
        })
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let address = self.address;
        thread_of(self.client.service_id().device).submit(move |_| {
            // A device that cannot finish has failed for good; what it may still read is kept.
            if ctx::synchronize().is_ok() {
                #[expect(unsafe_code, reason = "calls of the driver")]
                // SAFETY: everything that reads it is done, and nobody knows of it any more.
                let _ = unsafe { free_host(std::ptr::with_exposed_provenance_mut(address)) };
            }
        });
    }
}
