//! Parts of one projection, whose adapter has one A for all of them and the rows of B for each.

use burn::tensor::Tensor;

use super::{Branch, FactorGrads, WantedFactors};
use crate::frozen_matrix::FrozenMatrix;
use crate::gemm::{Op, gemm, gemm_f32, gemm_into};

/// [`backward`](super::backward) of the parts of one projection: the input's gradient, if it is `wanted`, dA, and the rows
/// of dB that each part has; where there are slots for those, they are not returned. All parts have the same A, x·Aᵀ and slot
/// of dA. The input may be absent where there is no adapter.
///
/// With dy = [dy₁ dy₂ …] and B's rows likewise, dy·B = Σ dyᵢ·Bᵢ, so A is multiplied with once.
///
/// # Shapes
/// As [`backward`](super::backward).
pub fn backward_fused<W: FrozenMatrix, const N: usize>(
    branches: [Branch<'_, W>; N],
    x: Option<&Tensor<2>>,
    wanted: bool,
) -> (Option<Tensor<2>>, Option<FactorGrads>) {
    let (mut dx, mut dyb, mut b_parts) = (None, None, Vec::with_capacity(N));
    let mut shared = None;
    for branch in branches {
        let (dy, (weight, alpha)) = (branch.dy, branch.weight);
        dx = wanted.then(|| weight.matmul_transposed_add(&dy, alpha, dx.take()));
        let Some((f, xa)) = branch.adapter else {
            continue;
        };
        dyb = Some(gemm((Op::N, &dy), (Op::N, &f.b), 1.0, dyb.take()));
        let slot = match branch.factors {
            WantedFactors::No => None,
            WantedFactors::New => {
                b_parts.push(gemm_f32((Op::T, &dy), (Op::N, xa), f.scaling));
                None
            }
            WantedFactors::Into([a, b]) => {
                gemm_into((Op::T, &dy), (Op::N, xa), f.scaling, &b);
                Some(a)
            }
        };
        shared.get_or_insert((f, slot));
    }
    let (Some((f, slot)), Some(dyb), Some(x)) = (shared, dyb, x) else {
        return (dx, None);
    };
    let b = (!b_parts.is_empty()).then(|| Tensor::cat(b_parts, 0));
    let factors = ((Op::T, &dyb), (Op::N, &f.input(x)));
    let grads = match slot {
        Some(slot) => {
            gemm_into(factors.0, factors.1, f.scaling, &slot);
            None
        }
        None => b.map(|b| FactorGrads {
            a: gemm_f32(factors.0, factors.1, f.scaling),
            b,
        }),
    };
    (dx.map(|base| f.add_input_gradient(&dyb, base)), grads)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::super::{Factors, Wanted, backward};
    use super::*;
    use crate::dropout::Dropout;

    fn close(a: Tensor<2>, b: Tensor<2>) {
        let largest = (a - b.clone()).abs().max().into_scalar::<f32>();
        let scale = b.abs().max().into_scalar::<f32>();
        assert!(largest <= 2e-6 * scale, "{largest} of {scale}");
    }

    #[test]
    fn parts_sum_to_the_whole() {
        let device = Device::flex();
        let random =
            |dims: [usize; 2]| Tensor::<2>::random(dims, Distribution::Uniform(-1.0, 1.0), &device);
        let (t, input, rank, rows) = (9, 24, 4, [16, 8, 8]);
        let out = rows.iter().sum();
        let (x, w, dy) = (random([t, input]), random([out, input]), random([t, out]));
        for p in [0.0, 0.3] {
            let dropout = (p > 0.0).then_some(Dropout { p, seed: 5 });
            let whole = Factors {
                a: random([rank, input]),
                b: random([out, rank]),
                scaling: 0.7,
                dropout,
            };
            let xa = whole.down(&x);
            let wanted = Wanted {
                input: true,
                factors: WantedFactors::New,
            };
            let adapter = Some((&whole, &xa));
            let (dx, grads) = backward(&dy, &x, (&w, 1.3), adapter, wanted, None);
            let mut start = 0;
            let parts = rows.map(|count| {
                let cut = |tensor: &Tensor<2>, dim| tensor.clone().narrow(dim, start, count);
                let part = (cut(&w, 0), cut(&dy, 1), cut(&whole.b, 0));
                start += count;
                part
            });
            let factors = parts.each_ref().map(|(_, _, b)| Factors {
                b: b.clone(),
                ..whole.clone()
            });
            let branches = std::array::from_fn::<_, 3, _>(|i| Branch {
                dy: parts[i].1.clone(),
                weight: (&parts[i].0, 1.3),
                adapter: Some((&factors[i], &xa)),
                factors: WantedFactors::New,
            });
            let (found_dx, found) = backward_fused(branches, Some(&x), true);
            close(found_dx.unwrap(), dx.unwrap());
            let (found, grads) = (found.unwrap(), grads.unwrap());
            close(found.a, grads.a);
            close(found.b, grads.b);
        }
    }

    #[test]
    fn without_an_adapter_only_the_input_has_a_gradient() {
        let device = Device::flex();
        let ones = |dims: [usize; 2]| Tensor::<2>::ones(dims, &device);
        let (w, dy) = (ones([2, 3]), ones([4, 2]));
        let branches = [(); 2].map(|()| Branch {
            dy: dy.clone(),
            weight: (&w, 1.0),
            adapter: None,
            factors: WantedFactors::New,
        });
        let (dx, grads) = backward_fused(branches, None, true);
        close(dx.unwrap(), ones([4, 3]).mul_scalar(4.0));
        assert!(grads.is_none());
    }
}
