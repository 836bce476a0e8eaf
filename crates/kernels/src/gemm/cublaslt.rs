//! Products through cuBLASLt on the stream that CubeCL launches its kernels on.
//!
//! The call runs on CubeCL's device thread, in order with all launches, and nobody waits for it. It fails
//! as a kernel's launch would: whoever reads the output gets the error.
//!
//! cuBLASLt thinks in columns. A matrix that lies by rows is to it the transpose, so D = A·B is asked for
//! as Dᵀ = Bᵀ·Aᵀ.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::OnceLock;

use burn::tensor::DType;
use cubecl::cuda::CudaRuntime;
use cubecl::server::{BufferBinding, ServerError, ServerStorage};
use cubecl_common::device::DeviceId;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_server::runtime::Runtime;
use cubecl_server::stream::{ExecuteScope, WriteScoped, failed_writing};
use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys;

use super::Op;

type CudaServer = <CudaRuntime as Runtime>::Server;

/// Memory that an algorithm may use, for each stream.
const WORKSPACE: usize = 64 << 20;

/// Whether the library is there; looked for once.
pub(crate) fn is_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    #[expect(unsafe_code, reason = "opens a library")]
    // SAFETY: the initialisers of NVIDIA's library have no conditions.
    *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}

/// Types of matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    pub(super) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    fn data_type(self) -> sys::cudaDataType {
        match self {
            Self::F32 => sys::cudaDataType::CUDA_R_32F,
            Self::F16 => sys::cudaDataType::CUDA_R_16F,
            Self::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        }
    }
}

/// A factor: `rows × columns` values by rows, entering the product by `op`.
pub(super) struct Matrix {
    pub(super) op: Op,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Values from one row to the next.
    pub(super) stride: usize,
    pub(super) buffer: BufferBinding,
}

/// `out = alpha·op(a)·op(b) (+ addend, or + out)`.
pub(super) struct Product {
    /// Rows and columns of the output, inner size.
    pub(super) sizes: [usize; 3],
    pub(super) a: Matrix,
    pub(super) b: Matrix,
    pub(super) element: Element,
    pub(super) out_element: Element,
    pub(super) alpha: f32,
    pub(super) accumulate: bool,
    /// What is added; the output itself where there is none.
    pub(super) addend: Option<BufferBinding>,
    pub(super) out: BufferBinding,
}

impl Product {
    /// Whether the output is added to what it holds.
    fn reads_output(&self) -> bool {
        self.accumulate && self.addend.is_none()
    }
}

/// Puts the product in line on its device.
pub(super) fn enqueue(product: Product, device: DeviceId) {
    let stream = StreamId::current();
    DeviceHandle::<CudaServer>::new(device).submit(move |server: &mut CudaServer| {
        let written = vec![product.out.clone()];
        // Operands are looked up before the output is claimed: it may be one of them.
        let mut located = Located::find(server, &product, stream);
        if located.is_err() && !product.reads_output() {
            // What an earlier failure left unwritten is refused like an operand, and is written over now.
            ExecuteScope::over(server, stream, written.clone()).execute(|_| Ok(()));
            located = Located::find(server, &product, stream);
        }
        match located {
            Ok(located) => {
                ExecuteScope::over(server, stream, written)
                    .execute(|_| located.multiply(&product, device));
            }
            Err(error) => failed_writing(server, stream, written, error),
        }
    });
}

/// Device addresses of a product, and the stream it belongs on.
struct Located {
    a: u64,
    b: u64,
    addend: u64,
    out: u64,
    stream: sys::cudaStream_t,
}

impl Located {
    fn find(
        server: &mut CudaServer,
        product: &Product,
        stream: StreamId,
    ) -> Result<Self, ServerError> {
        let mut address = |buffer: &BufferBinding| -> Result<u64, ServerError> {
            let resource = server.get_resource(buffer.clone(), stream)?;
            Ok(resource.resource().ptr)
        };
        let (a, b) = (address(&product.a.buffer)?, address(&product.b.buffer)?);
        let out = address(&product.out)?;
        let addend = match &product.addend {
            Some(addend) => address(addend)?,
            None => out,
        };
        let buffers = [&product.a.buffer, &product.b.buffer, &product.out];
        let buffers = buffers.into_iter().chain(&product.addend);
        // The stream waits for whatever other streams wrote into these.
        let mut streams = server.write_streams().resolve(stream, buffers)?;
        let stream = streams.current().sys.cast();
        Ok(Self {
            a,
            b,
            addend,
            out,
            stream,
        })
    }

    fn multiply(&self, product: &Product, device: DeviceId) -> Result<(), ServerError> {
        LIBRARIES.with_borrow_mut(|libraries| {
            let library = match libraries.entry(device) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let library = Library::open().map_err(|error| failure(product, &error))?;
                    entry.insert(library)
                }
            };
            library
                .multiply(product, self)
                .map_err(|error| failure(product, &error))
        })
    }
}

fn failure(product: &Product, error: &dyn std::fmt::Debug) -> ServerError {
    let [m, n, k] = product.sizes;
    ServerError::Generic {
        reason: format!(
            "cuBLASLt could not multiply [{m}, {k}] by [{k}, {n}] in {:?}: {error:?}",
            product.element
        ),
        backtrace: BackTrace::capture(),
    }
}

/// Bytes of a device that the library works in.
pub(crate) fn held(device: DeviceId) -> u64 {
    let count = |libraries: &HashMap<DeviceId, Library>| {
        let library = libraries.get(&device);
        library.map_or(0, |library| library.workspaces.len() * WORKSPACE)
    };
    let handle = DeviceHandle::<CudaServer>::new(device);
    let bytes = handle.submit_blocking(move |_| LIBRARIES.with_borrow(count));
    // Only a device's thread that is gone does not answer, and what it held with it.
    bytes.map_or(0, |bytes| bytes as u64)
}

thread_local! {
    /// Of the device thread, which alone calls cuBLASLt.
    static LIBRARIES: RefCell<HashMap<DeviceId, Library>> = RefCell::new(HashMap::new());
}

/// What cuBLASLt needs on one device; it lives as long as the device thread.
struct Library {
    handle: sys::cublasLtHandle_t,
    workspaces: HashMap<usize, u64>,
    plans: HashMap<Key, Plan>,
}

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    ops: [Op; 2],
    strides: [usize; 2],
    elements: [Element; 2],
    alignments: [u32; 4],
}

/// A product that was prepared.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

#[derive(Debug)]
#[expect(dead_code, reason = "shown through Debug, in the error of the output")]
enum LtError {
    Library(lt::CublasError),
    Driver(cudarc::driver::DriverError),
}

impl From<lt::CublasError> for LtError {
    fn from(error: lt::CublasError) -> Self {
        Self::Library(error)
    }
}

impl From<cudarc::driver::DriverError> for LtError {
    fn from(error: cudarc::driver::DriverError) -> Self {
        Self::Driver(error)
    }
}

#[expect(unsafe_code, reason = "calls of a C library")]
impl Library {
    fn open() -> Result<Self, LtError> {
        let handle = lt::create_handle()?;
        Ok(Self {
            handle,
            workspaces: HashMap::new(),
            plans: HashMap::new(),
        })
    }

    fn multiply(&mut self, product: &Product, located: &Located) -> Result<(), LtError> {
        let workspace = self.workspace(located.stream)?;
        let handle = self.handle;
        let plan = match self.plans.entry(Key::of(product, located)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let plan = Plan::new(handle, product, entry.key())?;
                entry.insert(plan)
            }
        };
        let beta = if product.accumulate { 1f32 } else { 0f32 };
        // SAFETY: the plan's layouts are those of this product; its addresses were just looked up and hold
        // as many values; the workspace is this stream's own.
        unsafe {
            lt::matmul(
                handle,
                plan.description,
                (&raw const product.alpha).cast(),
                (&raw const beta).cast(),
                located.b as *const c_void,
                plan.b,
                located.a as *const c_void,
                plan.a,
                located.addend as *const c_void,
                plan.out,
                located.out as *mut c_void,
                plan.out,
                &plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                located.stream,
            )?;
        }
        Ok(())
    }

    fn workspace(&mut self, stream: sys::cudaStream_t) -> Result<u64, LtError> {
        if let Some(workspace) = self.workspaces.get(&stream.addr()) {
            return Ok(*workspace);
        }
        // SAFETY: the device's context is current on its thread.
        let workspace = unsafe { cudarc::driver::result::malloc_sync(WORKSPACE)? };
        self.workspaces.insert(stream.addr(), workspace);
        Ok(workspace)
    }
}

impl Key {
    fn of(product: &Product, located: &Located) -> Self {
        let alignment = |address: u64| 1 << address.trailing_zeros().min(8);
        Self {
            sizes: product.sizes,
            ops: [product.a.op, product.b.op],
            strides: [product.a.stride, product.b.stride],
            elements: [product.element, product.out_element],
            alignments: [located.a, located.b, located.addend, located.out].map(alignment),
        }
    }
}

#[expect(unsafe_code, reason = "calls of a C library")]
impl Plan {
    fn new(handle: sys::cublasLtHandle_t, product: &Product, key: &Key) -> Result<Self, LtError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let [m, n, _] = product.sizes;
        // In f32, `COMPUTE_32F` is without TF32.
        let description = lt::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType::CUDA_R_32F,
        )?;
        let transposes = [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, product.b.op),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, product.a.op),
        ];
        for (attribute, op) in transposes {
            let transpose = i32::from(op == Op::T);
            // SAFETY: both attributes are 32-bit.
            unsafe {
                let value = (&raw const transpose).cast();
                lt::set_matmul_desc_attribute(description, attribute, value, size_of::<i32>())?;
            }
        }
        let element = product.element.data_type();
        let layout = |x: &Matrix| {
            lt::create_matrix_layout(element, x.columns as u64, x.rows as u64, x.stride as i64)
        };
        let (a, b) = (layout(&product.a)?, layout(&product.b)?);
        let out_type = product.out_element.data_type();
        let out = lt::create_matrix_layout(out_type, n as u64, m as u64, n as i64)?;
        let preference = Preference::new(key)?;
        // SAFETY: all were just made.
        let found = unsafe {
            lt::get_matmul_algo_heuristic(handle, description, b, a, out, out, preference.0)?
        };
        Ok(Self {
            description,
            a,
            b,
            out,
            algorithm: found.algo,
        })
    }
}

/// Limits on the choice of an algorithm.
struct Preference(sys::cublasLtMatmulPreference_t);

#[expect(unsafe_code, reason = "calls of a C library")]
impl Preference {
    fn new(key: &Key) -> Result<Self, LtError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(lt::create_matmul_pref()?);
        let [a, b, addend, out] = key.alignments;
        let alignments = [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (
                Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                addend,
            ),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
        ];
        let limit = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let workspace = WORKSPACE;
        // Parts of a long inner product are added in f32 in the workspace, not in the output's type.
        let reductions = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        let in_workspace =
            sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        // SAFETY: the workspace is 64-bit, the mask and alignments are 32-bit.
        unsafe {
            let size = (&raw const workspace).cast();
            lt::set_matmul_pref_attribute(preference.0, limit, size, size_of::<usize>())?;
            let mask = (&raw const in_workspace).cast();
            lt::set_matmul_pref_attribute(preference.0, reductions, mask, size_of::<u32>())?;
            for (attribute, bytes) in alignments {
                let value = (&raw const bytes).cast();
                lt::set_matmul_pref_attribute(preference.0, attribute, value, size_of::<u32>())?;
            }
        }
        Ok(preference)
    }
}

#[expect(unsafe_code, reason = "calls of a C library")]
impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was made by `create_matmul_pref` and is used nowhere else. There is nothing to do about
        // an error.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}
