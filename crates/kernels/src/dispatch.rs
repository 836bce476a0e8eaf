//! Which kernels this build has: the only place that asks for its device backends.

/// A device kernel's answer, or "does not apply" in a build without device backends: `None` for a
/// kernel that borrows its operands, `Err(operands)` for one that takes them.
#[cfg(feature = "cube")]
macro_rules! on_device {
    ($call:expr) => {
        $call
    };
    ($call:expr, or $operands:expr) => {
        $call
    };
}

#[cfg(not(feature = "cube"))]
macro_rules! on_device {
    ($call:expr) => {
        None
    };
    ($call:expr, or $operands:expr) => {
        Err($operands)
    };
}

/// As `on_device`, for kernels that exist on CUDA only.
#[cfg(feature = "cuda")]
macro_rules! on_cuda {
    ($call:expr, or $operands:expr) => {
        $call
    };
}

#[cfg(not(feature = "cuda"))]
macro_rules! on_cuda {
    ($call:expr, or $operands:expr) => {
        Err($operands)
    };
}

pub(crate) use {on_cuda, on_device};
