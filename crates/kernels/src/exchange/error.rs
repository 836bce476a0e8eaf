//! Why NCCL does not move bytes.

use std::time::Duration;

/// Why NCCL does not move bytes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// A build without CUDA.
    #[error("this build has no cuda backend: build with `--features cuda`")]
    NotBuilt,
    /// No library, or none that is new enough.
    #[error(
        "no NCCL from 2.18 on was found: install NVIDIA's libnccl2, or `pip install nvidia-nccl-cu12` (cu13 with CUDA 13), or set \
         BACKDRAFT_NCCL to libnccl.so.2; tried {}", tried.join("; ")
    )]
    NotFound {
        /// Each name or file, and why it is none.
        tried: Vec<String>,
    },
    /// A device of another kind.
    #[error("NCCL moves what lies on NVIDIA's cards, and this device is none")]
    NoCard,
    /// A call failed.
    #[error("{call} of NCCL failed: {message} (NCCL_DEBUG=INFO says more)")]
    Call {
        /// The function.
        call: &'static str,
        /// What NCCL says.
        message: String,
    },
    /// The others did not come.
    #[error("waited {:.0} s for {what} of NCCL", waited.as_secs_f64())]
    Late {
        /// What.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// What was exchanged to try it out is not what was sent.
    #[error("an exchange delivered {found:?} where {expected:?} was sent")]
    Garbled {
        /// Numbers that were due.
        expected: Vec<f32>,
        /// Numbers that came.
        found: Vec<f32>,
    },
    /// The device has failed.
    #[error("the device failed: {message}")]
    Device {
        /// What it says.
        message: String,
    },
}
