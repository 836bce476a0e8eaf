//! A product of two matrices on Burn's tape.

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use super::{nn, nt, tn};
use crate::autograd::{Vjp, attach, parent};

/// The differentiable form of [`nt`], in both factors: Burn's own product of matrices in f32 may round them to TF32 on a GPU.
///
/// # Shapes
/// `x` `[t, in]`, `w` `[out, in]`, result `[t, out]`.
///
/// # Panics
/// As [`gemm`](fn@super::gemm).
pub fn linear(x: Tensor<2>, w: Tensor<2>) -> Tensor<2> {
    let parents = [parent(&x), parent(&w)];
    let [x, w] = [x, w].map(Tensor::inner);
    attach(nt(&x, &w), parents, Linear { x, w })
}

#[derive(Clone, Debug)]
struct Linear {
    x: Tensor<2>,
    w: Tensor<2>,
}

impl Vjp<2> for Linear {
    fn vjp(self, dy: DispatchTensor, [of_x, of_w]: [bool; 2]) -> [Option<DispatchTensor>; 2] {
        let dy = Tensor::from_dispatch(dy);
        let dx = of_x.then(|| nn(&dy, &self.w).into_dispatch());
        let dw = of_w.then(|| tn(&dy, &self.x).into_dispatch());
        [dx, dw]
    }
}
