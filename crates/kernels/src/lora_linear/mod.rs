//! A frozen projection with a low-rank adapter: y = α·x·Wᵀ + s·(x·Aᵀ)·Bᵀ.
//!
//! α is 1 where a family does not multiply what its branches add to the residual stream; s has that factor too.
//! The rank-r product comes first; no dense delta is formed, and W gets no gradient.
//!
//! # Source
//! Hu et al. 2021, arXiv:2106.09685.

mod fused;
pub mod reference;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use crate::autograd::{Vjp, attach, parent};
use crate::dropout::Dropout;
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm::{self, Op, Slot, gemm, gemm_f32, gemm_into};
use crate::low_rank::{Adapted, LowRank};
use crate::views;

pub use fused::backward_fused;

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

    /// s·(x·Aᵀ)·Bᵀ, under dropout where there is some.
    ///
    /// # Shapes
    /// `x` `[t, in]`, the term `[t, out]`.
    pub fn term(self, x: &Tensor<2>) -> LowRank {
        LowRank {
            left: self.down(x),
            right: self.b,
            scaling: self.scaling,
        }
    }

    /// `base` and s·(dy·B)·A, under dropout where there is some.
    fn add_input_gradient(&self, dyb: &Tensor<2>, base: Tensor<2>) -> Tensor<2> {
        let (dyb, a) = ((Op::N, dyb), (Op::N, &self.a));
        match self.dropout {
            None => gemm(dyb, a, self.scaling, Some(base)),
            Some(dropout) => dropout.add_to(&gemm(dyb, a, self.scaling, None), base),
        }
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

/// Adapters of the same input whose A lie one behind the other in one [`Flat`](crate::flat::Flat) buffer, without
/// dropout, so that one product serves all of them: x is read once, and the gradient of x is added to once.
#[derive(Clone, Debug)]
struct Together {
    /// All rows.
    a: Tensor<2>,
    /// Rows of each.
    ranks: Vec<usize>,
    scaling: f32,
}

impl Together {
    fn of(factors: &[Option<&Factors>]) -> Option<Self> {
        let factors: Vec<_> = factors.iter().copied().collect::<Option<_>>()?;
        let scaling = factors.first()?.scaling;
        let alike = |f: &&Factors| f.dropout.is_none() && f.scaling == scaling;
        if !factors.iter().all(alike) {
            return None;
        }
        let a = views::stacked(&factors.iter().map(|f| &f.a).collect::<Vec<_>>())?;
        let ranks = factors.iter().map(|f| f.a.dims()[0]).collect();
        Some(Self { a, ranks, scaling })
    }

    /// The rows of each adapter, in the memory of `all`.
    ///
    /// # Shapes
    /// `all` `[Σ r, n]`, each `[r, n]`.
    fn split(&self, all: &Tensor<2>) -> Vec<Tensor<2>> {
        let mut start = 0;
        let part = |&rank: &usize| {
            let part = views::rows(all, start, rank);
            start += rank;
            part.unwrap_or_else(|| unreachable!("it is where the factors are"))
        };
        self.ranks.iter().map(part).collect()
    }
}

/// x·Aᵀ of each of several adapters of one input in one product, where their A lie together; elsewhere `None`, and
/// [`forward`] computes its own.
///
/// # Shapes
/// `x` `[t, in]`, results `[t, r]`.
pub fn down_together(x: &Tensor<2>, factors: &[Option<&Factors>]) -> Option<Vec<Tensor<2>>> {
    let together = Together::of(factors)?;
    let all = gemm((Op::N, &together.a), (Op::T, x), 1.0, None);
    let parts = together.split(&all).into_iter();
    Some(parts.map(Tensor::transpose).collect())
}

/// The projection, added to `sum` where there is one, and x·Aᵀ `[t, r]` for the backward pass where there is
/// an adapter; `xa` is that, where it is there already.
///
/// # Shapes
/// `x` `[t, in]`, `sum` and result `[t, out]`.
pub fn forward(
    x: &Tensor<2>,
    (weight, alpha): (&impl FrozenMatrix, f32),
    factors: Option<&Factors>,
    xa: Option<Tensor<2>>,
    sum: Option<&Tensor<2>>,
) -> (Tensor<2>, Option<Tensor<2>>) {
    let (y, xa) = forward_adapted(x, (weight, alpha), factors, xa, sum);
    (y.complete(), xa)
}

/// As [`forward`]; the adapter's term waits where there is a kernel that adds it in passing.
///
/// # Shapes
/// As [`forward`].
pub fn forward_adapted(
    x: &Tensor<2>,
    (weight, alpha): (&impl FrozenMatrix, f32),
    factors: Option<&Factors>,
    xa: Option<Tensor<2>>,
    sum: Option<&Tensor<2>>,
) -> (Adapted, Option<Tensor<2>>) {
    let base = weight.matmul_add(x, alpha, sum);
    let Some(f) = factors else {
        return (Adapted { base, term: None }, None);
    };
    let xa = xa.unwrap_or_else(|| f.down(x));
    let term = LowRank {
        left: xa.clone(),
        right: f.b.clone(),
        scaling: f.scaling,
    };
    (Adapted::waiting(base, term), Some(xa))
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

/// Gradient of the input, dx = α·dy·W + s·(dy·B)·A, and of the factors, dA = s·(dy·B)ᵀ·x and
/// dB = s·dyᵀ·(x·Aᵀ), as far as they are `wanted`. dx is added to `sum`, where there is one: the gradient
/// that reaches x from elsewhere.
///
/// # Shapes
/// `dy` `[t, out]`, `x`, `sum` and dx `[t, in]`; `adapter` holds the factors and x·Aᵀ `[t, r]` from
/// [`forward`].
pub fn backward(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    (weight, alpha): (&impl FrozenMatrix, f32),
    adapter: Option<(&Factors, &Tensor<2>)>,
    wanted: Wanted,
    sum: Option<Tensor<2>>,
) -> (Option<Tensor<2>>, Option<FactorGrads>) {
    let base = (wanted.input).then(|| weight.matmul_transposed_add(dy, alpha, sum));
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
    (base.map(|base| f.add_input_gradient(&dyb, base)), grads)
}

/// One of several projections of the same input, in their backward pass.
///
/// # Shapes
/// `dy` `[t, out]`, `weight` `[out, in]`, x·Aᵀ `[t, r]`.
#[derive(Debug)]
pub struct Branch<'a, W> {
    /// The gradient of its output.
    pub dy: Tensor<2>,
    /// Its weight, and the factor on its product.
    pub weight: (&'a W, f32),
    /// Its factors and x·Aᵀ.
    pub adapter: Option<(&'a Factors, &'a Tensor<2>)>,
    /// Where their gradients go.
    pub factors: WantedFactors,
}

/// [`backward`] of several projections of the same input: the sum of the input's gradients, if it is `wanted`, and
/// the gradients of each branch's factors. Those of adapters whose A lie together, and so do the slots for dA, take
/// one product for dA, and one term of low rank for what they add to the input's gradient, which waits where there is
/// a kernel that adds it in passing. The input may be absent where there is no adapter.
///
/// # Shapes
/// As [`backward`].
pub fn backward_together<W: FrozenMatrix, const N: usize>(
    branches: [Branch<'_, W>; N],
    x: Option<&Tensor<2>>,
    wanted: bool,
) -> (Option<Adapted>, [Option<FactorGrads>; N]) {
    let factors = branches.each_ref().map(|b| b.adapter.map(|(f, _)| f));
    let together = Together::of(&factors).zip(slot_of_all(&branches));
    let mut dx = None;
    let Some(((together, slot), x)) = together.zip(x) else {
        let grads = branches.map(|b| {
            let wanted = Wanted {
                input: wanted,
                factors: b.factors,
            };
            let x = x.unwrap_or(&b.dy);
            let (sum, grads) = backward(&b.dy, x, b.weight, b.adapter, wanted, dx.take());
            dx = sum;
            grads
        });
        let dx = dx.map(|base| Adapted { base, term: None });
        return (dx, grads);
    };
    let [t, _] = x.dims();
    let rank = together.ranks.iter().sum();
    // (dy·B)ᵀ of all, one behind the other.
    let all = views::unwritten([rank, t], x);
    let parts = together.split(&all);
    for (branch, view) in branches.into_iter().zip(parts) {
        let (Some((f, xa)), WantedFactors::Into([_, b])) = (branch.adapter, branch.factors) else {
            unreachable!("all have adapters and slots");
        };
        let (dy, (weight, alpha)) = (branch.dy, branch.weight);
        dx = wanted.then(|| weight.matmul_transposed_add(&dy, alpha, dx.take()));
        let accumulate = false;
        gemm_into((Op::T, &f.b), (Op::T, &dy), 1.0, &Slot { view, accumulate });
        gemm_into((Op::T, &dy), (Op::N, xa), f.scaling, &b);
    }
    let scaling = together.scaling;
    gemm_into((Op::N, &all), (Op::N, x), scaling, &slot);
    let term = LowRank {
        left: all.transpose(),
        right: together.a.transpose(),
        scaling,
    };
    let dx = dx.map(|base| Adapted::waiting(base, term));
    (dx, [const { None }; N])
}

/// What dA of a projection takes when its input is not there yet.
#[derive(Debug)]
pub struct Ahead {
    /// dy·B, `[t, r]`.
    dyb: Tensor<2>,
    scaling: f32,
    dropout: Option<Dropout>,
    into: AheadInto,
}

/// Where dA goes, and dB where it is not in its place yet.
#[derive(Debug)]
enum AheadInto {
    Slot(Slot),
    New { b: Tensor<2> },
}

impl Ahead {
    /// dA = s·(dy·B)ᵀ·x; the gradients of both factors where they did not go into slots.
    ///
    /// # Shapes
    /// `x` `[t, in]`.
    #[must_use]
    pub fn finish(self, x: &Tensor<2>) -> Option<FactorGrads> {
        let x = match self.dropout {
            Some(dropout) => dropout.apply(x.clone()),
            None => x.clone(),
        };
        let (dyb, x) = ((Op::T, &self.dyb), (Op::N, &x));
        match self.into {
            AheadInto::Slot(slot) => {
                gemm_into(dyb, x, self.scaling, &slot);
                None
            }
            AheadInto::New { b } => {
                let a = gemm_f32(dyb, x, self.scaling);
                Some(FactorGrads { a, b })
            }
        }
    }
}

/// [`backward`] of one projection, for one whose input is there only once its gradient is: that, dB, and what dA still
/// takes.
///
/// # Shapes
/// As [`backward`].
pub fn backward_ahead<W: FrozenMatrix>(branch: Branch<'_, W>) -> (Adapted, Option<Ahead>) {
    let (dy, (weight, alpha)) = (&branch.dy, branch.weight);
    let base = weight.matmul_transposed_add(dy, alpha, None);
    let Some((f, xa)) = branch.adapter else {
        return (Adapted { base, term: None }, None);
    };
    let slots = matches!(branch.factors, WantedFactors::Into(_));
    let together = slots.then(|| Together::of(&[Some(f)])).flatten();
    let dyb = match &together {
        Some(_) => {
            // By columns, as `backward_together` has it.
            let [t, rank] = xa.dims();
            let (view, accumulate) = (views::unwritten([rank, t], xa), false);
            let slot = Slot { view, accumulate };
            gemm_into((Op::T, &f.b), (Op::T, dy), 1.0, &slot);
            slot.view.transpose()
        }
        None => gemm::nn(dy, &f.b),
    };
    let into = match branch.factors {
        WantedFactors::Into([a, b]) => {
            gemm_into((Op::T, dy), (Op::N, xa), f.scaling, &b);
            Some(AheadInto::Slot(a))
        }
        WantedFactors::New => {
            let b = gemm_f32((Op::T, dy), (Op::N, xa), f.scaling);
            Some(AheadInto::New { b })
        }
        WantedFactors::No => None,
    };
    let dx = match together {
        Some(Together { a, scaling, .. }) => {
            let term = LowRank {
                left: dyb.clone(),
                right: a.transpose(),
                scaling,
            };
            Adapted::waiting(base, term)
        }
        None => Adapted {
            base: f.add_input_gradient(&dyb, base),
            term: None,
        },
    };
    let ahead = into.map(|into| Ahead {
        dyb,
        scaling: f.scaling,
        dropout: f.dropout,
        into,
    });
    (dx, ahead)
}

/// One slot for dA of all, where theirs lie together.
fn slot_of_all<W>(branches: &[Branch<'_, W>]) -> Option<Slot> {
    let slot = |branch| match branch {
        &Branch {
            factors: WantedFactors::Into([ref a, _]),
            ..
        } => Some(a),
        _ => None,
    };
    let slots: Vec<&Slot> = branches.iter().map(slot).collect::<Option<_>>()?;
    let accumulate = slots.first()?.accumulate;
    if slots.iter().any(|slot| slot.accumulate != accumulate) {
        return None;
    }
    let view = views::stacked(&slots.iter().map(|slot| &slot.view).collect::<Vec<_>>())?;
    Some(Slot { view, accumulate })
}

/// The differentiable form of [`forward`].
pub fn lora_linear<W: FrozenMatrix>(
    x: Tensor<2>,
    (weight, alpha): (W, f32),
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
    let (y, xa) = forward(&x, (&weight, alpha), factors.as_ref(), None, None);
    attach(
        y,
        parents,
        LoraLinear {
            x,
            xa,
            weight,
            alpha,
            factors,
        },
    )
}

#[derive(Clone, Debug)]
struct LoraLinear<W> {
    x: Tensor<2>,
    xa: Option<Tensor<2>>,
    weight: W,
    alpha: f32,
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
        let (dx, grads) = backward(
            &dy,
            &self.x,
            (&self.weight, self.alpha),
            adapter,
            wanted,
            None,
        );
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
