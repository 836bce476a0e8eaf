//! Sizes and speeds that kernels work with and a plan of memory counts on.

use serde::{Deserialize, Serialize};

/// Tokens whose logits exist at a time on the processor.
pub const CHUNK: usize = 256;

/// Tokens whose logits exist at a time on a CubeCL device: each chunk reads the whole head twice.
pub const CUBE_CHUNK: usize = 512;

/// Rows of scores that attention holds at a time on each thread of the processor.
pub const SCORE_ROWS: u64 = 64;

/// Tokens of a chunk of the gated delta rule.
pub const DELTA_CHUNK: usize = 64;

/// Groups of heads whose parts of a norm's gradient are summed one after the other on the processor, so that the order does not
/// depend on the number of threads.
pub const SUMMED_GROUPS: usize = 1024;

/// Values of a buffer that an optimiser on a device has for tensors of a base, at most; a larger tensor has one of its own. They are
/// moved into it one buffer at a time.
pub const LARGEST_GROUP: usize = 1 << 28;

/// Rows and columns, in f32, of the largest tensor that measuring the way to the host makes.
pub const SIDE: usize = 2048;

/// Bytes of that tensor. (Pages of a device's memory follow the largest tensor.)
pub const MEASURED: u64 = (4 * SIDE * SIDE) as u64;

/// Slots of a device for the layers of a base that stays in the host's memory: of the present one, and of the next.
pub const SLOTS: usize = 2;

/// How fast tensors go to the host's memory and come back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Bytes in a second, one way.
    pub bytes: f64,
    /// Seconds that a tensor of no size takes to go and come back: its memory, copies and events.
    pub round_trip: f64,
}
