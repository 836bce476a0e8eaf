//! What an adapter adds to something that is read and written anyway: s·left·rightᵀ, with as many columns in both as
//! the adapter's rank.
//!
//! On CUDA the sum is one pass at the speed of memory, whose products the tensor cores make beside it; and where the
//! next op is such a pass too, it takes the term with it ([`swiglu`](crate::swiglu)).

#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use burn::tensor::Tensor;

use crate::dispatch::on_cuda;
use crate::gemm::{Op, gemm};

/// s·left·rightᵀ, not yet added to what it belongs to.
///
/// # Shapes
/// `left` `[t, r]`, `right` `[n, r]`; the term is `[t, n]`.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// A row for each token.
    pub left: Tensor<2>,
    /// A row for each column of the term.
    pub right: Tensor<2>,
    /// s.
    pub scaling: f32,
}

impl LowRank {
    /// `y` and the term, rounded once; written over `y` where nothing else holds it.
    ///
    /// # Shapes
    /// `y` and result `[t, n]`.
    pub fn add_to(&self, y: Tensor<2>) -> Tensor<2> {
        on_cuda!(cuda::add(y, self), or y).unwrap_or_else(|y| {
            let (left, right) = ((Op::N, &self.left), (Op::T, &self.right));
            gemm(left, right, self.scaling, Some(y))
        })
    }

    /// Whether there are kernels that add this term to `y` in passing.
    fn can_wait(&self, y: &Tensor<2>) -> bool {
        let waits: Result<(), ()> = on_cuda!(cuda::fits(y, self), or());
        let _ = y;
        waits.is_ok()
    }
}

/// Something to which a term may still have to be added.
///
/// # Shapes
/// `[t, n]`.
#[derive(Clone, Debug)]
pub struct Adapted {
    /// Without the term, where there is one.
    pub base: Tensor<2>,
    /// What is still to be added.
    pub term: Option<LowRank>,
}

impl Adapted {
    /// With a term that waits where there are kernels that add it in passing, and is added now where there are none.
    pub(crate) fn waiting(base: Tensor<2>, term: LowRank) -> Self {
        if term.can_wait(&base) {
            let term = Some(term);
            return Self { base, term };
        }
        let base = term.add_to(base);
        Self { base, term: None }
    }

    /// With the term.
    pub fn complete(self) -> Tensor<2> {
        match self.term {
            Some(term) => term.add_to(self.base),
            None => self.base,
        }
    }
}
