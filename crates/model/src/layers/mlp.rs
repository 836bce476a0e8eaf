//! The projections of the gated MLP.

use backdraft_arch::Activation;
use backdraft_lora::Projection;
use burn::module::Module;

use super::Joined;

/// What the MLP is made of: down(act(gate(x))·up(x)).
#[derive(Module, Debug)]
pub struct Mlp {
    /// hidden → intermediate, through the activation, and hidden → intermediate.
    pub gate_up: Joined,
    /// intermediate → hidden.
    pub down_proj: Projection,
    /// What the gate goes through.
    #[module(skip)]
    pub activation: Activation,
}
