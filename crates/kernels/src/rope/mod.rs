//! Rotary position embedding.
//!
//! Of the first d features of a head, the pair (xᵢ, xᵢ₊d/2), or (x₂ᵢ, x₂ᵢ₊₁), is turned by the angle position·fᵢ; the others
//! pass as they are. The backward pass turns by the negated angle.
//!
//! # Source
//! Su et al. 2021, arXiv:2104.09864; halves as in Hugging Face's Llama, neighbours as in its GLM 4.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod reference;

use backdraft_arch::RotaryPairs;
use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::dispatch::on_device;

/// Cosine and sine of each token's angles, and what they turn of a head.
///
/// # Shapes
/// Both `[t, d / 2]`, f32; any attention scaling is already multiplied in.
#[derive(Clone, Debug)]
pub struct RotaryTables {
    /// cos(position·fᵢ).
    pub cos: Tensor<2>,
    /// sin(position·fᵢ).
    pub sin: Tensor<2>,
    /// Features of a head, d of them or more.
    pub head_dim: usize,
    /// Which of the d belong together.
    pub pairs: RotaryPairs,
}

impl RotaryTables {
    /// For whole heads of d features, turned by halves.
    pub fn new(cos: Tensor<2>, sin: Tensor<2>) -> Self {
        Self {
            head_dim: 2 * cos.dims()[1],
            pairs: RotaryPairs::Halves,
            cos,
            sin,
        }
    }

    /// Features that turn: d.
    pub(crate) fn rotary_dim(&self) -> usize {
        2 * self.cos.dims()[1]
    }
}

/// Turns every head of every token.
///
/// # Shapes
/// `x` and the result `[t, h·head_dim]`.
pub fn forward(x: Tensor<2>, tables: &RotaryTables) -> Tensor<2> {
    rotate(x, tables, 1.0)
}

/// Gradient of the input: the rotation by the negated angle.
///
/// # Shapes
/// `dy` and the result `[t, h·head_dim]`.
pub fn backward(dy: Tensor<2>, tables: &RotaryTables) -> Tensor<2> {
    rotate(dy, tables, -1.0)
}

/// [`forward`] of queries and keys, in one launch where a device has a kernel for that.
///
/// # Shapes
/// `q` `[t, h·head_dim]`, `k` `[t, kv·head_dim]`, and so the results.
pub fn forward_both(q: Tensor<2>, k: Tensor<2>, tables: &RotaryTables) -> (Tensor<2>, Tensor<2>) {
    rotate_both(q, k, tables, 1.0)
}

/// [`backward`] of queries and keys, as [`forward_both`].
///
/// # Shapes
/// As [`forward_both`].
pub fn backward_both(
    dq: Tensor<2>,
    dk: Tensor<2>,
    tables: &RotaryTables,
) -> (Tensor<2>, Tensor<2>) {
    rotate_both(dq, dk, tables, -1.0)
}

/// The differentiable form of [`forward_both`]; what is tracked has a node and a launch of its own.
pub fn rope_both(q: Tensor<2>, k: Tensor<2>, tables: &RotaryTables) -> (Tensor<2>, Tensor<2>) {
    if parent(&q).is_some() || parent(&k).is_some() {
        return (rope(q, tables), rope(k, tables));
    }
    forward_both(q.inner(), k.inner(), tables)
}

/// The differentiable form of [`forward`].
pub fn rope(x: Tensor<2>, tables: &RotaryTables) -> Tensor<2> {
    let parents = [parent(&x)];
    attach(forward(x.inner(), tables), parents, Rope(tables.clone()))
}

fn rotate_both(
    q: Tensor<2>,
    k: Tensor<2>,
    tables: &RotaryTables,
    sign: f32,
) -> (Tensor<2>, Tensor<2>) {
    check(&q, tables);
    check(&k, tables);
    on_device!(cube::rotate_both(q, k, tables, sign), or(q, k))
        .unwrap_or_else(|(q, k)| (rotate(q, tables, sign), rotate(k, tables, sign)))
}

fn check(x: &Tensor<2>, tables: &RotaryTables) {
    let ([_, width], d) = (x.dims(), tables.head_dim);
    let turning = tables.rotary_dim();
    assert!(turning <= d, "{turning} features turn in heads of {d}");
    assert_eq!(
        width % d,
        0,
        "{width} features are no whole number of heads of {d}"
    );
}

fn rotate(x: Tensor<2>, tables: &RotaryTables, sign: f32) -> Tensor<2> {
    check(&x, tables);
    cpu::rotate(x, tables, sign)
        .or_else(|x| on_device!(cube::rotate(x, tables, sign), or x))
        .unwrap_or_else(|x| reference::rotate(x, tables, sign))
}

#[derive(Clone, Debug)]
struct Rope(RotaryTables);

impl Vjp<1> for Rope {
    fn vjp(self, dy: DispatchTensor, _: [bool; 1]) -> [Option<DispatchTensor>; 1] {
        [Some(
            backward(Tensor::from_dispatch(dy), &self.0).into_dispatch(),
        )]
    }
}
