//! The operations Backdraft trains with.
//!
//! Every operation is a folder: `mod.rs` holds its signature, documentation and autodiff rule,
//! `reference.rs` the same maths in plain Burn tensors (the oracle, and the path of every device
//! and dtype without a kernel), `cpu.rs` the f32 kernel for Burn's Flex backend, `cube.rs` the kernels for
//! GPUs (features `cuda` and `wgpu`; f32, f16 and bf16 with f32 arithmetic). A `forward` returns
//! what its `backward` needs; both work on tensors without autodiff, so that a training step can
//! decide itself what to keep. The function named like the operation is the differentiable form:
//! it records that `backward` as one node of Burn's tape.
//!
//! Activations are laid out token-major, `[t, features]`: the documents of a micro-batch stand one
//! behind the other without padding, and [`Segments`] says where each begins.
//!
//! | op | forward | backward |
//! | --- | --- | --- |
//! | [`gemm`] | α·op(A)·op(B) + C | – (a building block) |
//! | [`rms_norm`] | x·w / rms(x) | dx, dw |
//! | [`rope`] | rotate-half by position | the same with the angle negated |
//! | [`norm_rope`] | each head by its root mean square, then rotate-half | dx, dw |
//! | [`attention`] | causal softmax attention, grouped heads, per document | dq, dk, dv |
//! | [`paged_attention`] | the same of new tokens over rows of a pool | – (nothing is trained over a cache) |
//! | [`gated_delta`] | the gated delta rule per document, in chunks | dq, dk, dv, dβ, dg |
//! | [`causal_conv`] | a short convolution of each feature per document, then SiLU | dx; dw by the reference |
//! | [`head_gate`] | attention's output · σ(gate), the gate beside the query in one projection | both |
//! | [`swiglu`] | silu(gate)·up | dgate, dup |
//! | [`lora_linear`] | x·Wᵀ + s·(x·Aᵀ)·Bᵀ | dx, dA, dB; never dW |
//! | [`dora`] | the same with each output brought to a trained length | dx, dA, dB, dm |
//! | [`cross_entropy`] | head and loss in chunks of tokens | d(hidden), in the forward pass |
//! | [`embedding`] | rows of a table | – (the table is frozen) |
//! | [`noise`] | uniform noise on rows, of a number for each | – (it passes through) |
//! | [`adamw`] | AdamW with decoupled decay | – |
//! | [`adamw8bit`] | the same with both moments in 8 bits | – |
//! | [`exchange`] | sums over processes, in a fixed order; checksums | – |
//! | [`flat`] | norm and AdamW of many matrices in one buffer | – |
//! | [`optimizers`] | Lion, SGD, Adafactor, Muon and schedule-free AdamW, of many matrices at once | – |
//! | [`stochastic_round`] | f32 to values of bf16, up or down by chance | – |
//! | [`offload`] | copies to the host's memory and back, beside the computation | – |
//! | [`frozen_matrix`] | x·Wᵀ and dy·W of a weight, however it is stored | – |
//! | [`quantize`] | values on the host into codes of 3 to 8 bits | – |
//! | [`dequantize`] | a matrix of codes: its values, x·Wᵀ and dy·W | as frozen weight of [`lora_linear`] |

#![cfg_attr(test, allow(clippy::unwrap_used))]
#![cfg_attr(
    not(feature = "cuda"),
    allow(
        clippy::bind_instead_of_map,
        reason = "without device kernels their place in the chain stays"
    )
)]
#![allow(
    clippy::result_large_err,
    reason = "a kernel that does not apply hands its operands to the reference"
)]

mod bits;
mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(any(feature = "cuda", test))]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only tested"))]
mod cuda_libraries;
mod dispatch;
#[cfg(feature = "cuda")]
mod hopper;
#[cfg(feature = "cuda")]
mod mma;
#[cfg(test)]
mod parity;
#[cfg(feature = "cube")]
mod runs;
mod segments;
mod views;

pub mod adamw;
pub mod adamw8bit;
pub mod attention;
pub mod autograd;
pub mod cards;
pub mod causal_conv;
pub mod codebook;
pub mod column_sums;
pub mod cross_entropy;
pub mod dequantize;
pub mod device;
pub mod dora;
pub mod dropout;
pub mod embedding;
pub mod exchange;
pub mod flat;
pub mod frozen_matrix;
pub mod gated_delta;
pub mod gemm;
pub mod head_gate;
pub mod lora_linear;
pub mod low_rank;
pub mod noise;
pub mod norm_rope;
pub mod offload;
pub mod optimizers;
pub mod paged_attention;
pub mod quantize;
pub mod rms_norm;
pub mod rope;
pub mod stochastic_round;
pub mod swiglu;
pub mod uniform;

pub use segments::Segments;
