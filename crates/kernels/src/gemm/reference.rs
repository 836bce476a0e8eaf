//! [`gemm`](super::gemm) in plain tensors.

use burn::tensor::Tensor;

use super::Op;

/// `alpha · op(a) · op(b) + c`.
pub fn gemm(
    (op_a, a): (Op, &Tensor<2>),
    (op_b, b): (Op, &Tensor<2>),
    alpha: f32,
    c: Option<Tensor<2>>,
) -> Tensor<2> {
    let orient = |op, x: &Tensor<2>| match op {
        Op::N => x.clone(),
        Op::T => x.clone().transpose(),
    };
    let product = orient(op_a, a).matmul(orient(op_b, b));
    let product = if alpha == 1.0 {
        product
    } else {
        product.mul_scalar(alpha)
    };
    match c {
        Some(c) => {
            let dtype = c.dtype();
            c + product.cast(dtype)
        }
        None => product,
    }
}
