//! A frozen projection with a low-rank adapter: y = x·Wᵀ (+ bias) + s·(x·Aᵀ)·Bᵀ.
//!
//! The rank-r product comes first; no dense delta is formed, and W gets no gradient.
//!
//! # Source
//! Hu et al. 2021, arXiv:2106.09685.

pub mod reference;

use std::fmt::Debug;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::dropout::Dropout;
use crate::gemm::{self, Op, Slot, gemm, gemm_f32, gemm_into};

/// A frozen weight, however it is stored.
pub trait FrozenMatrix: Clone + Debug + Send + 'static {
    /// `x · Wᵀ`.
    ///
    /// # Shapes
    /// `x` `[t, in]`, result `[t, out]`.
    fn matmul(&self, x: &Tensor<2>) -> Tensor<2>;

    /// `x · Wᵀ`, added to `sum` where there is one, which is written over if nothing else holds it.
    ///
    /// # Shapes
    /// As [`matmul`](Self::matmul).
    fn matmul_add(&self, x: &Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
        let product = self.matmul(x);
        match sum {
            Some(sum) => sum + product,
            None => product,
        }
    }

    /// `dy · W`.
    ///
    /// # Shapes
    /// `dy` `[t, out]`, result `[t, in]`.
    fn matmul_transposed(&self, dy: &Tensor<2>) -> Tensor<2>;

    /// `dy · W`, added to `sum` where there is one, which is written over if nothing else holds it.
    ///
    /// # Shapes
    /// As [`matmul_transposed`](Self::matmul_transposed).
    fn matmul_transposed_add(&self, dy: &Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
        let product = self.matmul_transposed(dy);
        match sum {
            Some(sum) => sum + product,
            None => product,
        }
    }
}

impl FrozenMatrix for Tensor<2> {
    fn matmul(&self, x: &Tensor<2>) -> Tensor<2> {
        gemm::nt(x, self)
    }

    fn matmul_transposed(&self, dy: &Tensor<2>) -> Tensor<2> {
        gemm::nn(dy, self)
    }

    fn matmul_add(&self, x: &Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
        gemm((Op::N, x), (Op::T, self), 1.0, sum)
    }

    fn matmul_transposed_add(&self, dy: &Tensor<2>, sum: Option<Tensor<2>>) -> Tensor<2> {
        gemm((Op::N, dy), (Op::N, self), 1.0, sum)
    }
}

/// The low-rank factors of one projection.
///
/// # Shapes
/// `a` `[r, in]`, `b` `[out, r]`.
#[derive(Clone, Debug)]
pub struct Factors {
    /// A, applied first.
    pub a: Tensor<2>,
    /// B, applied second.
    pub b: Tensor<2>,
    /// s.
    pub scaling: f32,
    /// Dropout on the adapter's input.
    pub dropout: Option<Dropout>,
}

impl Factors {
    /// x·Aᵀ, under dropout where there is some: the adapter's half of the way, which the backward pass needs.
    ///
    /// # Shapes
    /// `x` `[t, in]`, result `[t, r]`.
    pub fn down(&self, x: &Tensor<2>) -> Tensor<2> {
        gemm::nt(&self.input(x), &self.a)
    }

    fn input(&self, x: &Tensor<2>) -> Tensor<2> {
        match self.dropout {
            Some(dropout) => dropout.apply(x.clone()),
            None => x.clone(),
        }
    }
}

/// Gradients of the factors, in f32.
///
/// # Shapes
/// `a` `[r, in]`, `b` `[out, r]`.
#[derive(Clone, Debug)]
pub struct FactorGrads {
    /// dA.
    pub a: Tensor<2>,
    /// dB.
    pub b: Tensor<2>,
}

/// The projection, added to `sum` where there is one, and x·Aᵀ `[t, r]` for the backward pass where there is
/// an adapter.
///
/// # Shapes
/// `x` `[t, in]`, `sum` and result `[t, out]`.
pub fn forward(
    x: &Tensor<2>,
    weight: &impl FrozenMatrix,
    factors: Option<&Factors>,
    sum: Option<Tensor<2>>,
) -> (Tensor<2>, Option<Tensor<2>>) {
    let y = weight.matmul_add(x, sum);
    match factors {
        None => (y, None),
        Some(f) => {
            let xa = f.down(x);
            let y = gemm((Op::N, &xa), (Op::T, &f.b), f.scaling, Some(y));
            (y, Some(xa))
        }
    }
}

/// What a backward pass should compute.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The input's gradient.
    pub input: bool,
    /// The factors' gradients.
    pub factors: WantedFactors,
}

/// Where the factors' gradients go.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "made for one call")]
pub enum WantedFactors {
    /// They are not wanted.
    No,
    /// Into new tensors.
    New,
    /// Those of A and of B into slots; they are not returned.
    Into([Slot; 2]),
}

/// Gradient of the input, dx = dy·W + s·(dy·B)·A, and of the factors, dA = s·(dy·B)ᵀ·x and
/// dB = s·dyᵀ·(x·Aᵀ), as far as they are `wanted`. dx is added to `sum`, where there is one: the gradient
/// that reaches x from elsewhere.
///
/// # Shapes
/// `dy` `[t, out]`, `x`, `sum` and dx `[t, in]`; `adapter` holds the factors and x·Aᵀ `[t, r]` from
/// [`forward`].
pub fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &impl FrozenMatrix,
    adapter: Option<(&Factors, &Tensor<2>)>,
    wanted: Wanted,
    sum: Option<Tensor<2>>,
) -> (Option<Tensor<2>>, Option<FactorGrads>) {
    let base = wanted.input.then(|| weight.matmul_transposed_add(dy, sum));
    let Some((f, xa)) = adapter else {
        return (base, None);
    };
    let dyb = gemm::nn(dy, &f.b);
    let grads = match wanted.factors {
        WantedFactors::No => None,
        WantedFactors::New => Some(FactorGrads {
            a: gemm_f32((Op::T, &dyb), (Op::N, &f.input(x)), f.scaling),
            b: gemm_f32((Op::T, dy), (Op::N, xa), f.scaling),
        }),
        WantedFactors::Into([a, b]) => {
            gemm_into((Op::T, &dyb), (Op::N, &f.input(x)), f.scaling, &a);
            gemm_into((Op::T, dy), (Op::N, xa), f.scaling, &b);
            None
        }
    };
    let dx = base.map(|base| match f.dropout {
        None => gemm((Op::N, &dyb), (Op::N, &f.a), f.scaling, Some(base)),
        Some(dropout) => base + dropout.apply(gemm((Op::N, &dyb), (Op::N, &f.a), f.scaling, None)),
    });
    (dx, grads)
}

/// The differentiable form of [`forward`].
pub fn lora_linear<W: FrozenMatrix>(
    x: Tensor<2>,
    weight: W,
    factors: Option<Factors>,
) -> Tensor<2> {
    let parents = match &factors {
        Some(f) => [parent(&x), parent(&f.a), parent(&f.b)],
        None => [parent(&x), None, None],
    };
    let x = x.inner();
    let factors = factors.map(|f| Factors {
        a: f.a.inner(),
        b: f.b.inner(),
        ..f
    });
    let (y, xa) = forward(&x, &weight, factors.as_ref(), None);
    attach(
        y,
        parents,
        LoraLinear {
            x,
            xa,
            weight,
            factors,
        },
    )
}

#[derive(Clone, Debug)]
struct LoraLinear<W> {
    x: Tensor<2>,
    xa: Option<Tensor<2>>,
    weight: W,
    factors: Option<Factors>,
}

impl<W: FrozenMatrix> Vjp<3> for LoraLinear<W> {
    fn vjp(self, dy: DispatchTensor, [dx, da, db]: [bool; 3]) -> [Option<DispatchTensor>; 3] {
        let dy = Tensor::from_dispatch(dy);
        let wanted = Wanted {
            input: dx,
            factors: if da || db {
                WantedFactors::New
            } else {
                WantedFactors::No
            },
        };
        let adapter = self.factors.as_ref().zip(self.xa.as_ref());
        let (dx, grads) = backward(&dy, &self.x, &self.weight, adapter, wanted, None);
        let dx = dx.map(Tensor::into_dispatch);
        // On the tape a gradient has the dtype of what it belongs to.
        let dtype = self.x.dtype();
        let (a, b) = grads
            .map(|g| {
                (
                    g.a.cast(dtype).into_dispatch(),
                    g.b.cast(dtype).into_dispatch(),
                )
            })
            .unzip();
        [dx, a, b]
    }
}
