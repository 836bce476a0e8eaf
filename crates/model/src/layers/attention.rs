//! The projections of self-attention with grouped key–value heads.

use backdraft_arch::{Heads, Mixer, Norm, ValueHeads};
use backdraft_kernels::attention::HeadLayout;
use backdraft_lora::Projection;
use burn::module::Module;
use burn::tensor::Tensor;

use super::{Joined, RmsNorm};

/// What attention is made of: o(attention(rope(q(x)), rope(k(x)), v(x))), with norms of q(x) and k(x) in some families,
/// without RoPE in some layers, and a norm of v(x), or of k(x) in its place, in others.
#[derive(Module, Debug)]
pub struct Attention {
    /// hidden → heads, key–value heads and key–value heads.
    pub qkv: Joined,
    /// heads → hidden.
    pub o_proj: Projection,
    /// Of queries and of keys.
    pub(super) head_norms: Option<[RmsNorm; 2]>,
    /// Of values, where there is one: it multiplies by ones, which are in no file.
    value_norm: Option<RmsNorm>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    values: ValueHeads,
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
            value_norm: None,
            heads,
            values: ValueHeads::Plain,
            mixer,
            layout,
        }
    }

    /// With values that are normed by `norm`, of which `values` says what they are.
    pub fn with_values(self, values: ValueHeads, norm: RmsNorm) -> Self {
        Self {
            values,
            value_norm: Some(norm),
            ..self
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

    /// What becomes of values.
    pub(super) fn values(&self) -> ValueHeads {
        self.values
    }

    /// The norm of its values.
    pub(super) fn value_norm(&self) -> &RmsNorm {
        match &self.value_norm {
            Some(norm) => norm,
            None => unreachable!("values are not normed"),
        }
    }

    /// Values, a row for each head.
    ///
    /// # Shapes
    /// `x` `[t, kv_heads·d]`, result `[t·kv_heads, d]`.
    pub(super) fn value_heads(&self, x: &Tensor<2>) -> Tensor<2> {
        let [t, _] = x.dims();
        let rows = [t * self.layout.kv_heads, self.layout.head_dim];
        x.clone().reshape(rows)
    }

    /// Whether its output has a gate.
    pub(super) fn mixer(&self) -> Mixer {
        self.mixer
    }

    /// The norm of its queries or keys, where there is one.
    pub(super) fn find_norm(&self, norm: Norm) -> Option<&RmsNorm> {
        let [query, key] = self.head_norms.as_ref()?;
        Some(if norm == Norm::Key { key } else { query })
    }
}
