//! The projections of self-attention with grouped key–value heads.

use backdraft_arch::Norm;
use backdraft_kernels::attention::HeadLayout;
use backdraft_lora::Projection;
use burn::module::Module;

use super::RmsNorm;

/// What attention is made of: o(attention(rope(q(x)), rope(k(x)), v(x))), with a norm of each head of q(x) and k(x)
/// in some families.
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
    /// Of queries and of keys.
    pub(super) head_norms: Option<[RmsNorm; 2]>,
    #[module(skip)]
    layout: HeadLayout,
}

impl Attention {
    /// From its four projections, q, k, v and o, and the norms of query and key heads where there are any.
    pub fn new(
        [q_proj, k_proj, v_proj, o_proj]: [Projection; 4],
        head_norms: Option<[RmsNorm; 2]>,
        layout: HeadLayout,
    ) -> Self {
        Self {
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            head_norms,
            layout,
        }
    }

    /// Its heads.
    pub fn layout(&self) -> HeadLayout {
        self.layout
    }

    /// Whether queries and keys are normed head by head.
    pub fn norms_heads(&self) -> bool {
        self.head_norms.is_some()
    }

    /// The norm of its query or key heads.
    pub(super) fn norm(&self, norm: Norm) -> &RmsNorm {
        match &self.head_norms {
            Some([_, key]) if norm == Norm::Key => key,
            Some([query, _]) => query,
            None => unreachable!("heads are not normed"),
        }
    }
}
