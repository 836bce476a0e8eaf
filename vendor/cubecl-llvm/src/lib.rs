//! Stand-in for `cubecl-llvm` 0.11.3, put in its place by `[patch.crates-io]` in the workspace root,
//! so that `cubecl-cuda` builds without LLVM and without a download.
//!
//! `cubecl-cuda` links two code generators whichever is in use: CUDA C++, which NVRTC compiles at run
//! time, and LLVM. This crate has the names that `cubecl-cuda` needs of the second and nothing behind
//! them: [`PlironCompiler::compile`] always returns [`NO_LLVM`]. So it is of use only together with
//! cubecl's feature `cuda-cpp`. `cubecl-cpu` and `cubecl-hip` need the real crate.

use core::convert::Infallible;
use core::ffi::c_char;
use core::fmt;

use cubecl_environment::backtrace::BackTrace;
use cubecl_ir::nvidia::SmArch;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::{BufferIOAttr, KernelDefinition};

use nvptx::ptx_version::PtxVersion;

/// What every compilation answers.
pub const NO_LLVM: &str = "this build has no LLVM code generator (a stand-in replaces cubecl-llvm): \
    enable cubecl's feature `cuda-cpp`";

/// The one target that `cubecl-cuda` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA's virtual instruction set.
    #[default]
    Nvptx,
}

/// The code generator that is not there.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would generate.
    pub target: LlvmTarget,
}

/// The options `cubecl-cuda` fills in; none is read.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// An AMD architecture: never one here.
    pub arch: Option<Infallible>,
    /// The NVIDIA architecture.
    pub sm_arch: Option<SmArch>,
    /// The PTX version.
    pub ptx_version: Option<PtxVersion>,
    /// Whether kernel parameters may be constants of the grid.
    pub grid_constants: bool,
}

/// A compiled PTX module. None can exist: `never` has no value.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// The code.
    pub ptx: Vec<c_char>,
    /// What it was made from.
    pub ir: String,
    /// Bytes.
    pub shared_memory_size: usize,
    /// How each buffer is used.
    pub io: Vec<BufferIOAttr>,
    /// Why there is none.
    pub never: Infallible,
}

/// What compiling would yield.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// A PTX module.
    NvptxCode(NvptxModule),
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::NvptxCode(module) = self;
        match module.never {}
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _: KernelDefinition,
        _: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: NO_LLVM.into(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "none"
    }

    fn lang_tag(&self) -> &'static str {
        "none"
    }
}

/// Names of the NVPTX target.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        use core::fmt;

        /// A PTX version to emit. None can exist, for nothing is emitted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// No version, whatever the driver.
            pub fn for_driver(_: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// Names that all targets share.
pub mod shared {
    /// What a target's lowering leaves of a device's features.
    pub mod lowered_features {
        use cubecl_ir::DeviceProperties;

        /// Whose features to narrow.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Leaves the properties as they are: the C++ route lowers all that it advertises.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}
