//! The projections of self-attention with grouped key–value heads.

use backdraft_arch::{Heads, Mixer, Norm};
use backdraft_kernels::attention::HeadLayout;
use backdraft_lora::Projection;
use burn::module::Module;

use super::{Joined, RmsNorm};

/// What attention is made of: o(attention(rope(q(x)), rope(k(x)), v(x))), with norms of q(x) and k(x) in some families,
/// without RoPE in some layers.
#[derive(Module, Debug)]
pub struct Attention {
    /// hidden → heads, key–value heads and key–value heads.
    pub qkv: Joined,
    /// heads → hidden.
    pub o_proj: Projection,
    /// Of queries and of keys.
    pub(super) head_norms: Option<[RmsNorm; 2]>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    mixer: Mixer,
    #[module(skip)]
    layout: HeadLayout,
}

impl Attention {
    /// From its projections, q, k and v, and o, and the norms of queries and keys where `heads` asks for them; `mixer` says
    /// whether its output has a gate.
    pub fn new(
        (qkv, o_proj): (Joined, Projection),
        head_norms: Option<[RmsNorm; 2]>,
        (heads, mixer): (Heads, Mixer),
        layout: HeadLayout,
    ) -> Self {
        Self {
            qkv,
            o_proj,
            head_norms,
            heads,
            mixer,
            layout,
        }
    }

    /// Its heads.
    pub fn layout(&self) -> HeadLayout {
        self.layout
    }

    /// What becomes of queries and keys.
    pub fn heads(&self) -> Heads {
        self.heads
    }

    /// Whether its output has a gate.
    pub(super) fn mixer(&self) -> Mixer {
        self.mixer
    }

    /// The norm of its queries or keys.
    pub(super) fn norm(&self, norm: Norm) -> &RmsNorm {
        match &self.head_norms {
            Some([_, key]) if norm == Norm::Key => key,
            Some([query, _]) => query,
            None => unreachable!("heads are not normed"),
        }
    }
}
