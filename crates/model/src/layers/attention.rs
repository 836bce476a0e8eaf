//! The projections of self-attention with grouped key–value heads.

use backdraft_kernels::attention::HeadLayout;
use backdraft_lora::Projection;
use burn::module::Module;

/// What attention is made of: o(attention(rope(q(x)), rope(k(x)), v(x))).
#[derive(Module, Debug)]
pub struct Attention {
    /// hidden → heads.
    pub q_proj: Projection,
    /// hidden → key–value heads.
    pub k_proj: Projection,
    /// hidden → key–value heads.
    pub v_proj: Projection,
    /// heads → hidden.
    pub o_proj: Projection,
    #[module(skip)]
    layout: HeadLayout,
}

impl Attention {
    /// From its four projections: q, k, v and o.
    pub fn new([q_proj, k_proj, v_proj, o_proj]: [Projection; 4], layout: HeadLayout) -> Self {
        Self {
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            layout,
        }
    }

    /// Its heads.
    pub fn layout(&self) -> HeadLayout {
        self.layout
    }
}
