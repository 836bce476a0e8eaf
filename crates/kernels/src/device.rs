//! The devices of this build, and which of its fast paths run on them.

use std::fmt;
use std::path::{Path, PathBuf};

use backdraft_arch::DeviceChoice;
use burn::tensor::{DType, Device};

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The program was built without the backend.
    #[error(
        "this build has no {backend} backend: build with `--features {backend}`, or use the cpu"
    )]
    NotBuilt {
        /// The backend, also the name of the feature.
        backend: &'static str,
    },
    /// A library that is opened at run time is not there.
    #[error("{library} was not found: install {package}, or use the cpu")]
    NoLibrary {
        /// What was looked for.
        library: &'static str,
        /// What brings it.
        package: &'static str,
    },
    /// There are fewer devices.
    #[error(
        "expected a {backend} device number {index}, found {available} of them: name another, or use the cpu"
    )]
    NoSuchDevice {
        /// The backend.
        backend: &'static str,
        /// The number that was asked for, from 0.
        index: usize,
        /// How many there are.
        available: usize,
    },
}

/// The device of that name.
///
/// # Errors
/// A device that was named and cannot be used.
pub fn open(choice: DeviceChoice) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Auto => Ok(cuda(0).unwrap_or_else(|_| Device::flex())),
        DeviceChoice::Cpu => Ok(Device::flex()),
        DeviceChoice::Cuda(index) => cuda(index),
        DeviceChoice::Wgpu => wgpu(),
    }
}

/// The best type to train in on `device`: bf16 where its tensor cores have it (compute capability 8.0), f16 where they have
/// only that (7.0), else f32.
pub fn best_dtype(device: &Device) -> DType {
    found::best_half(device).unwrap_or(DType::F32)
}

/// Whether activations of `dtype` can be computed on `device`.
pub fn computes_in(device: &Device, dtype: DType) -> bool {
    found::computes_in(device, dtype)
}

/// Looks for NVIDIA's libraries and headers in Python's packages, where the system has none: to be called by a program before
/// it opens a device. Does nothing without the feature `cuda` or NVIDIA's driver.
///
/// `cache` is a folder that it may make, for links to headers.
///
/// # Safety
/// No other thread may run yet: `CUDA_PATH` may be set.
#[expect(unsafe_code, reason = "the environment is changed")]
pub unsafe fn prepare(cache: &Path) {
    #[cfg(feature = "cuda")]
    // SAFETY: as promised by the caller.
    unsafe {
        crate::cuda_libraries::prepare(cache);
    }
    #[cfg(not(feature = "cuda"))]
    let _ = cache;
}

/// Whether NVIDIA's driver is there, and this build would use it.
pub fn has_driver() -> bool {
    #[cfg(feature = "cuda")]
    #[expect(unsafe_code, reason = "opens a library")]
    // SAFETY: the driver's initialisers have no conditions.
    return unsafe { cudarc::driver::sys::is_culib_present() };
    #[cfg(not(feature = "cuda"))]
    false
}

/// The CUDA device of that number.
///
/// # Errors
/// Without the feature `cuda`, an NVIDIA driver, NVRTC and the CUDA headers, or that device.
pub fn cuda(index: usize) -> Result<Device, DeviceError> {
    found::cuda(index)
}

/// The first WebGPU device: a discrete card, an integrated one, or one in software.
///
/// # Errors
/// Without the feature `wgpu`, or any such device.
pub fn wgpu() -> Result<Device, DeviceError> {
    found::wgpu()
}

/// Runs `make` with every allocation on `device` given memory of its own size, apart from the pages that tensors which
/// come and go share, and gives back what is free afterwards: for what lives as long as a run.
pub fn lasting<T: Send, I: Send>(device: &Device, input: I, make: impl Fn(I) -> T + Send) -> T {
    let made = device.memory_persistent_allocations(input, make);
    device.memory_cleanup();
    made
}

/// Has pages of at least so many bytes shared by the tensors that come and go on `device`, from the next one on. CubeCL's
/// are as large as the largest tensor so far, so that is what this makes and drops; where the device has no tensors of
/// that size, pages are as they were.
pub fn size_pages(device: &Device, bytes: u64) {
    found::size_pages(device, bytes);
}

/// After work on `device` has failed: gives back the memory that is free, and lets go of what kernels that this thread
/// launches keep there (tables, tiles of documents), since a failure may have spoiled it.
pub fn recover(device: &Device) {
    found::forget();
    crate::offload::slots::forget();
    device.memory_cleanup();
}

/// Bytes that programs could still take from the device, and bytes that this process [holds](held) there; `None` where
/// the memory is not a device's own.
///
/// The device's thread answers once it has launched what it was given.
pub fn free_and_held(device: &Device) -> Option<[u64; 2]> {
    Some([found::free(device)?, held(device)?])
}

/// Bytes of the device that this process holds: the allocator's pages, filled or not, and what cuBLASLt works in. `None`
/// on the processor. (The driver's own memory, kernels and context, is no part of it.)
pub fn held(device: &Device) -> Option<u64> {
    let pages = device.memory_pool_usage()?.bytes_reserved;
    Some(pages + found::held_by_libraries(device))
}

/// A path that is faster than the general one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FastPath {
    /// Its name.
    pub name: &'static str,
    /// Why it is off, `None` where it is on.
    pub missing: Option<String>,
}

/// A device, and what runs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceReport {
    /// What the device calls itself.
    pub name: String,
    /// Its memory.
    ///
    /// # Units
    /// Bytes.
    pub memory: Option<u64>,
    /// The newest CUDA that its driver serves, such as `13.0`.
    pub driver: Option<String>,
    /// Where NVIDIA's libraries and headers were found.
    pub libraries: Vec<(&'static str, PathBuf)>,
    /// Ours, on or off.
    pub fast_paths: Vec<FastPath>,
}

/// What a GPU is, and what runs on it; `None` for the processor.
pub fn gpu(device: &Device) -> Option<DeviceReport> {
    found::report(device)
}

/// What NVIDIA's driver calls a card, such as `GPU-5f0e…`: the same in every process; `None` for other devices.
pub fn card_id(device: &Device) -> Option<String> {
    found::card_id(device)
}

/// Looks at `device`; on a GPU this opens it.
pub fn report(device: &Device) -> DeviceReport {
    gpu(device).unwrap_or_else(|| DeviceReport {
        name: "cpu".to_owned(),
        memory: None,
        driver: None,
        libraries: Vec::new(),
        fast_paths: Vec::new(),
    })
}

impl DeviceReport {
    /// Where NVIDIA's libraries and headers were found, in one line; `None` where there are none.
    pub fn places(&self) -> Option<String> {
        let place = |(name, path): &(&str, PathBuf)| format!("{name} of {}", path.display());
        let places: Vec<String> = self.libraries.iter().map(place).collect();
        (!places.is_empty()).then(|| places.join("; "))
    }
}

/// One line: name, memory, driver, fast paths and why others are off.
impl fmt::Display for DeviceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(memory) = self.memory {
            write!(f, ", {:.1} GiB", memory as f64 / f64::from(1 << 30))?;
        }
        if let Some(driver) = &self.driver {
            write!(f, ", driver for CUDA {driver}")?;
        }
        for path in &self.fast_paths {
            match &path.missing {
                None => write!(f, "; {} on", path.name)?,
                Some(reason) => write!(f, "; {} off: {reason}", path.name)?,
            }
        }
        Ok(())
    }
}

#[cfg(feature = "cube")]
mod found {
    use std::path::PathBuf;

    use burn::tensor::{DType, Device, Tensor};
    use burn_cubecl::CubeBackend;
    use cubecl::RuntimeId;
    use cubecl::device::DeviceUnavailable;

    use super::{DeviceError, DeviceReport, FastPath};
    use crate::cube::CubeTensor;

    pub(super) fn forget() {
        crate::attention::forget();
        crate::dequantize::cube::forget();
        crate::adamw8bit::cube::forget();
        crate::runs::forget();
    }

    #[cfg(feature = "cuda")]
    pub(super) fn cuda(index: usize) -> Result<Device, DeviceError> {
        #[expect(unsafe_code, reason = "opens libraries")]
        // SAFETY: the initialisers of NVIDIA's libraries have no conditions.
        let (driver, compiler) = unsafe {
            (
                cudarc::driver::sys::is_culib_present(),
                cudarc::nvrtc::sys::is_culib_present(),
            )
        };
        if !driver {
            return Err(DeviceError::NoLibrary {
                library: "libcuda",
                package: "NVIDIA's driver",
            });
        }
        // A compiler that is newer than the driver makes code which that does not load.
        let package = match crate::cuda_libraries::driver_version() {
            ..13_000 => {
                "the CUDA toolkit (LD_LIBRARY_PATH and CUDA_PATH say where), or \
                 `pip install \"cuda-toolkit[nvrtc,cublas,cudart,nvcc,cccl]==12.8.1\"`"
            }
            _ => {
                "the CUDA toolkit (LD_LIBRARY_PATH and CUDA_PATH say where), or \
                 `pip install \"cuda-toolkit[nvrtc,cublas,cudart,crt,cccl]==13.0.2\"`"
            }
        };
        if !compiler {
            return Err(DeviceError::NoLibrary {
                library: "libnvrtc",
                package,
            });
        }
        if crate::cuda_libraries::system_headers().is_none() {
            return Err(DeviceError::NoLibrary {
                library: "CUDA's folder `include`",
                package,
            });
        }
        match cubecl::Device::cuda(index) {
            Ok(_) => Ok(Device::cuda(index)),
            Err(error) => Err(unavailable("cuda", index, error)),
        }
    }

    #[cfg(not(feature = "cuda"))]
    pub(super) fn cuda(_: usize) -> Result<Device, DeviceError> {
        Err(DeviceError::NotBuilt { backend: "cuda" })
    }

    #[cfg(not(feature = "wgpu"))]
    pub(super) fn wgpu() -> Result<Device, DeviceError> {
        Err(DeviceError::NotBuilt { backend: "wgpu" })
    }

    #[cfg(feature = "wgpu")]
    pub(super) fn wgpu() -> Result<Device, DeviceError> {
        use burn::tensor::DeviceKind;
        use cubecl::wgpu::WgpuDeviceKind as Kind;
        let candidates = [
            (Kind::DiscreteGpu(0), DeviceKind::DiscreteGpu(0)),
            (Kind::IntegratedGpu(0), DeviceKind::IntegratedGpu(0)),
            (Kind::Cpu, DeviceKind::Cpu),
        ];
        let mut last = Err(DeviceError::NotBuilt { backend: "wgpu" });
        for (kind, burn_kind) in candidates {
            match cubecl::Device::wgpu(kind) {
                Ok(_) => return Ok(Device::wgpu(burn_kind)),
                Err(error) => last = Err(unavailable("wgpu", 0, error)),
            }
        }
        last
    }

    fn unavailable(backend: &'static str, index: usize, error: DeviceUnavailable) -> DeviceError {
        match error {
            DeviceUnavailable::NotLinked(_) => DeviceError::NotBuilt { backend },
            DeviceUnavailable::NoSuchDevice { available, .. } => DeviceError::NoSuchDevice {
                backend,
                index,
                available,
            },
        }
    }

    /// The 16-bit type that the device's tensor cores multiply.
    pub(super) fn best_half(device: &Device) -> Option<DType> {
        #[cfg(feature = "cuda")]
        if let Some(cubecl::Device::Cuda(device)) = probe(device).map(|probe| probe.device) {
            return match crate::hopper::compute_capability(device.index)? {
                (8.., _) => Some(DType::BF16),
                (7, _) => Some(DType::F16),
                _ => None,
            };
        }
        let _ = device;
        None
    }

    pub(super) fn computes_in(device: &Device, dtype: DType) -> bool {
        match probe(device) {
            None => dtype == DType::F32,
            Some(probe) => {
                matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
                    && probe
                        .client
                        .features()
                        .supports_type(crate::cube::elem(dtype))
            }
        }
    }

    /// A tensor, which knows the device behind Burn's; `None` on the processor.
    fn probe(device: &Device) -> Option<CubeTensor> {
        let probe = Tensor::<1>::zeros([1], (&device.clone().inner(), DType::F32));
        probe.try_into_primitive::<CubeBackend>().ok()
    }

    pub(super) fn size_pages(device: &Device, bytes: u64) {
        if let Some(probe) = probe(device)
            && bytes <= probe.client.properties().memory.max_page_size
        {
            let values = bytes.div_ceil(4) as usize;
            drop(Tensor::<1>::empty([values], (device, DType::F32)));
        }
    }

    pub(super) fn report(device: &Device) -> Option<DeviceReport> {
        let probe = probe(device)?;
        let identity = &probe.client.properties().identity;
        let (memory, driver) = cuda_facts(&probe.device);
        Some(DeviceReport {
            name: identity.name.clone(),
            memory,
            driver,
            libraries: libraries(&probe),
            fast_paths: vec![products(probe.device.runtime()), attention(&probe)],
        })
    }

    /// Of a CUDA device.
    fn libraries(probe: &CubeTensor) -> Vec<(&'static str, PathBuf)> {
        #[cfg(feature = "cuda")]
        if probe.device.runtime() == RuntimeId::Cuda {
            return crate::cuda_libraries::places();
        }
        let _ = probe;
        Vec::new()
    }

    fn attention(probe: &CubeTensor) -> FastPath {
        #[cfg(feature = "cuda")]
        let missing = crate::mma::Generation::of(probe).is_none().then_some(
            "it is written for compute capability 7.5 and up (attention runs on a general kernel, tens of times slower)",
        );
        #[cfg(not(feature = "cuda"))]
        let missing = {
            let _ = probe;
            Some("it is part of CUDA")
        };
        FastPath {
            name: "attention on tensor cores",
            missing: missing.map(str::to_owned),
        }
    }

    fn products(runtime: RuntimeId) -> FastPath {
        let missing = match runtime {
            RuntimeId::Cuda if super::products_are_fast() => None,
            RuntimeId::Cuda => Some(
                "libcublasLt was not found (products run on Burn's kernels: several times slower, and f32 rounded to TF32)"
                    .to_owned(),
            ),
            _ => Some("it is part of CUDA".to_owned()),
        };
        FastPath {
            name: "cuBLASLt",
            missing,
        }
    }

    /// Memory of a CUDA device, and the version its driver serves.
    #[cfg(feature = "cuda")]
    fn cuda_facts(device: &cubecl::Device) -> (Option<u64>, Option<String>) {
        let cubecl::Device::Cuda(device) = device else {
            return (None, None);
        };
        #[expect(unsafe_code, reason = "calls the driver")]
        // SAFETY: the driver was opened and initialised, and writes one number.
        let memory = unsafe {
            cudarc::driver::result::device::get(device.index as i32)
                .and_then(|device| cudarc::driver::result::device::total_mem(device))
        };
        let version = crate::cuda_libraries::driver_version();
        let driver = (version > 0).then(|| format!("{}.{}", version / 1000, version % 1000 / 10));
        (memory.ok().map(|bytes| bytes as u64), driver)
    }

    pub(super) fn card_id(device: &Device) -> Option<String> {
        #[cfg(feature = "cuda")]
        if let Some(cubecl::Device::Cuda(device)) = probe(device).map(|probe| probe.device) {
            return crate::cards::id(device.index);
        }
        let _ = device;
        None
    }

    /// Bytes of a CUDA device that nobody has.
    #[cfg(feature = "cuda")]
    pub(super) fn free(device: &Device) -> Option<u64> {
        use cubecl_common::device_handle::DeviceHandle;
        use cubecl_server::runtime::Runtime;
        let probe = probe(device)?;
        let cubecl::Device::Cuda(_) = probe.device else {
            return None;
        };
        let id = probe.client.service_id().device;
        let handle = DeviceHandle::<<cubecl::cuda::CudaRuntime as Runtime>::Server>::new(id);
        // On the device's thread its context is the current one.
        let asked = handle.submit_blocking(|_| cudarc::driver::result::mem_get_info());
        let (free, _) = asked.ok()?.ok()?;
        Some(free as u64)
    }

    /// Bytes of a CUDA device in which cuBLASLt works.
    #[cfg(feature = "cuda")]
    pub(super) fn held_by_libraries(device: &Device) -> u64 {
        match probe(device) {
            Some(probe) if matches!(probe.device, cubecl::Device::Cuda(_)) => {
                crate::gemm::cublaslt::held(probe.client.service_id().device)
            }
            _ => 0,
        }
    }

    #[cfg(not(feature = "cuda"))]
    pub(super) fn held_by_libraries(_: &Device) -> u64 {
        0
    }

    #[cfg(not(feature = "cuda"))]
    pub(super) fn free(_: &Device) -> Option<u64> {
        None
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_facts(_: &cubecl::Device) -> (Option<u64>, Option<String>) {
        (None, None)
    }
}

#[cfg(feature = "cube")]
fn products_are_fast() -> bool {
    #[cfg(feature = "cuda")]
    return crate::gemm::cublaslt::is_present();
    #[cfg(not(feature = "cuda"))]
    false
}

#[cfg(not(feature = "cube"))]
mod found {
    use burn::tensor::{DType, Device};

    use super::{DeviceError, DeviceReport};

    pub(super) fn best_half(_: &Device) -> Option<DType> {
        None
    }

    pub(super) fn computes_in(_: &Device, dtype: DType) -> bool {
        dtype == DType::F32
    }

    pub(super) fn cuda(_: usize) -> Result<Device, DeviceError> {
        Err(DeviceError::NotBuilt { backend: "cuda" })
    }

    pub(super) fn wgpu() -> Result<Device, DeviceError> {
        Err(DeviceError::NotBuilt { backend: "wgpu" })
    }

    pub(super) fn report(_: &Device) -> Option<DeviceReport> {
        None
    }

    pub(super) fn free(_: &Device) -> Option<u64> {
        None
    }

    pub(super) fn size_pages(_: &Device, _: u64) {}

    pub(super) fn card_id(_: &Device) -> Option<String> {
        None
    }

    pub(super) fn held_by_libraries(_: &Device) -> u64 {
        0
    }

    pub(super) fn forget() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_line_that_says_what_is_off_and_why() {
        let report = DeviceReport {
            name: "GPU".to_owned(),
            memory: Some(3 << 29),
            driver: Some("13.0".to_owned()),
            libraries: vec![
                ("NVRTC", "/a/libnvrtc.so.13".into()),
                ("headers", "/b".into()),
            ],
            fast_paths: vec![
                FastPath {
                    name: "one",
                    missing: None,
                },
                FastPath {
                    name: "two",
                    missing: Some("no such library".to_owned()),
                },
            ],
        };
        assert_eq!(
            report.to_string(),
            "GPU, 1.5 GiB, driver for CUDA 13.0; one on; two off: no such library"
        );
        let places = "NVRTC of /a/libnvrtc.so.13; headers of /b";
        assert_eq!(report.places().as_deref(), Some(places));
        let cpu = super::report(&Device::flex());
        assert_eq!((cpu.to_string().as_str(), cpu.places()), ("cpu", None));
    }

    #[test]
    fn the_processor_computes_in_f32() {
        assert!(computes_in(&Device::flex(), DType::F32));
        assert!(!computes_in(&Device::flex(), DType::BF16));
        assert_eq!(best_dtype(&Device::flex()), DType::F32);
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let error = cuda(4095).unwrap_err();
        assert!(error.to_string().contains("or use the cpu"), "{error}");
    }
}
