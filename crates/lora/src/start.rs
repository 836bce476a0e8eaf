//! Where an adapter starts, so that it gives back what quantisation took.
//!
//! With E = W − Q, Γ = diag(γ) and D = diag(d), s·B·A is the matrix of rank r that makes ‖Γ^½·(E − s·B·A)·D‖ least:
//! Γ^{−½}·U·Uᵀ·Γ^½·E, U being the leading left singular vectors of Γ^½·E·D. Γ = D = I is LoftQ's first round, whose s is
//! divided out here as PEFT does not.
//!
//! The product is shared between the factors so that A's rows are orthogonal and as long as those of a default A, 1/√3:
//! learning rate, alpha and AdamW act on them as usual.
//!
//! # Source
//! Zhang et al. 2024, arXiv:2410.06040 (QERA, diagonal form, here on both sides); Li et al. 2023, arXiv:2310.08659
//! (LoftQ); Halko, Martinsson, Tropp 2011 (subspace iteration).

use backdraft_kernels::gemm::{Op, gemm};
use burn::tensor::{Device, Tensor, TensorData, TensorReadError};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::small::Small;
use crate::statistics::Sensitivity;

/// Rounds of subspace iteration. Quantisation errors have flat spectra, in which single directions converge slowly; what counts is
/// the energy that the subspace captures, which the golden errors of LoftQ and QERA hold to 1e-3.
const ROUNDS: usize = 6;

/// Rounds for single directions: those of weights are to be found as a full decomposition finds them.
const EXACT_ROUNDS: usize = 64;

/// A and B of an adapter that starts elsewhere than at zero.
#[derive(Clone, Debug)]
pub struct StartFactors {
    /// `[r, in]`, f32.
    pub a: Tensor<2>,
    /// `[out, r]`, f32.
    pub b: Tensor<2>,
}

/// The factors of rank `rank` whose product, times `scaling`, is nearest to `error`: in the plain sense, or weighed by
/// what was measured. `None` where there is nothing to give back: no error, or no room for the rank.
///
/// # Shapes
/// `error` `[out, in]`, f32, without autodiff.
///
/// # Errors
/// A device that failed.
///
/// # Panics
/// If the measurement is of another shape.
pub fn start_factors(
    error: &Tensor<2>,
    sensitivity: Option<&Sensitivity>,
    (rank, scaling): (usize, f64),
    seed: u64,
) -> Result<Option<StartFactors>, TensorReadError> {
    let [out, input] = error.dims();
    if rank == 0 || rank > out.min(input) {
        return Ok(None);
    }
    let device = error.device();
    let roots = |values: &[f32], power: f64| -> Tensor<1> {
        // Their mean does not matter, and f32 has more room around 1.
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len().max(1) as f64;
        let scaled = values
            .iter()
            .map(|&v| (f64::from(v) / mean).powf(power) as f32);
        let scaled: Vec<f32> = scaled.collect();
        Tensor::from_data(TensorData::new(scaled, [values.len()]), &device)
    };
    // Γ^½·E, and Γ^½·E·D.
    let (rows, weighed, back) = match sensitivity {
        None => (error.clone(), error.clone(), None),
        Some(Sensitivity {
            outputs, inputs, ..
        }) => {
            assert_eq!(
                [outputs.len(), inputs.len()],
                [out, input],
                "a measurement of the matrix"
            );
            let column = |power| roots(outputs, power).reshape([out, 1]);
            let rows = error.clone() * column(0.5);
            let weighed = rows.clone() * roots(inputs, 0.5).reshape([1, input]);
            (rows, weighed, Some(column(-0.5)))
        }
    };
    let Some(leading) = leading(&weighed, rank, ROUNDS, seed)? else {
        return Ok(None);
    };
    // Uᵀ·Γ^½·E = L·V with orthonormal rows of V.
    let small = gemm((Op::T, &leading), (Op::N, &rows), 1.0, None);
    let Some((v, lower)) = orthonormal_rows(small)? else {
        return Ok(None);
    };
    let length = 3f64.sqrt();
    let a = v.mul_scalar(1.0 / length);
    let lower = upload(&lower, length / scaling, &device);
    let b = gemm((Op::N, &leading), (Op::N, &lower), 1.0, None);
    let b = match back {
        Some(back) => b * back,
        None => b,
    };
    Ok(Some(StartFactors { a, b }))
}

/// The factors of rank `rank` whose product, times `scaling`, is the largest part of `weight`: with its singular values S,
/// A = √(S/s)·Vᵀ and B = U·√(S/s). `None` where there is nothing, or no room for the rank.
///
/// # Shapes
/// `weight` `[out, in]`, f32, without autodiff.
///
/// # Errors
/// A device that failed.
///
/// # Source
/// Meng, Wang, Zhang 2024, arXiv:2404.02948 (PiSSA); S is shared between the factors as PEFT does.
pub fn principal_factors(
    weight: &Tensor<2>,
    (rank, scaling): (usize, f64),
    seed: u64,
) -> Result<Option<StartFactors>, TensorReadError> {
    let [out, input] = weight.dims();
    if rank == 0 || rank > out.min(input) {
        return Ok(None);
    }
    let Some(u) = leading(weight, rank, EXACT_ROUNDS, seed)? else {
        return Ok(None);
    };
    // Uᵀ·W = S·Vᵀ, whose rows are as long as S says.
    let scaled = gemm((Op::T, &u), (Op::N, weight), 1.0, None);
    let lengths = scaled.clone().square().sum_dim(1).try_into_data()?;
    let singular: Vec<f64> = lengths.iter::<f32>().map(|v| f64::from(v).sqrt()).collect();
    if singular.iter().any(|&s| s <= 0.0) {
        return Ok(None);
    }
    let device = weight.device();
    let of = |share: fn(f64, f64) -> f64| -> Tensor<1> {
        let values: Vec<f32> = singular.iter().map(|&s| share(s, scaling) as f32).collect();
        Tensor::from_data(TensorData::new(values, [rank]), &device)
    };
    Ok(Some(StartFactors {
        a: scaled * of(|s, scaling| 1.0 / (s * scaling).sqrt()).reshape([rank, 1]),
        b: u * of(|s, scaling| (s / scaling).sqrt()).reshape([1, rank]),
    }))
}

/// The `rank` leading left singular vectors of `matrix`; `None` where it is zero.
///
/// # Shapes
/// `matrix` `[m, n]`, result `[m, rank]`.
fn leading(
    matrix: &Tensor<2>,
    rank: usize,
    rounds: usize,
    seed: u64,
) -> Result<Option<Tensor<2>>, TensorReadError> {
    let [m, n] = matrix.dims();
    // As many directions again are followed beside those that are wanted.
    let width = (2 * rank + 8).min(m).min(n);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let start: Vec<f32> = (0..width * n)
        .map(|_| rng.random_range(-1.0..1.0))
        .collect();
    let start = Tensor::from_data(TensorData::new(start, [width, n]), &matrix.device());
    // All bases are rows here: [width, m] or [width, n].
    let towards = |rows: &Tensor<2>| gemm((Op::N, rows), (Op::T, matrix), 1.0, None);
    let back = |rows: &Tensor<2>| gemm((Op::N, rows), (Op::N, matrix), 1.0, None);
    let Some((mut basis, _)) = orthonormal_rows(towards(&start))? else {
        return Ok(None);
    };
    for _ in 0..rounds {
        let next = towards(&back(&basis));
        // Once is enough on the way: what matters is that no direction drowns another.
        let Some((next, _)) = orthonormalized(&next, &gram(&next)?) else {
            return Ok(None);
        };
        basis = next;
    }
    let Some((basis, _)) = orthonormal_rows(basis)? else {
        return Ok(None);
    };
    // Within the subspace, exactly.
    let turn = gram(&back(&basis))?.eigenvectors();
    let turn = upload(&turn, 1.0, &matrix.device()).slice([0..width, 0..rank]);
    Ok(Some(gemm((Op::T, &basis), (Op::N, &turn), 1.0, None)))
}

/// What Gram matrices of f32 products are exact to, about.
const SHIFT: f64 = 1e-6;

/// V and lower triangular L with `rows` = L·V and orthonormal rows of V, by Cholesky's factor of the Gram matrix, over
/// again until they are; `None` where it is zero. A direction that `rows` lacks is made of noise.
///
/// # Source
/// Fukaya et al. 2020, arXiv:1809.11085 (shifted Cholesky QR).
fn orthonormal_rows(rows: Tensor<2>) -> Result<Option<(Tensor<2>, Small)>, TensorReadError> {
    let mut rows = rows;
    let mut lower: Option<Small> = None;
    for _ in 0..6 {
        let products = gram(&rows)?;
        if lower.is_some() && products.is_nearly_one() {
            break;
        }
        let Some((better, factor)) = orthonormalized(&rows, &products) else {
            return Ok(None);
        };
        rows = better;
        lower = Some(match lower {
            Some(before) => before.times(&factor),
            None => factor,
        });
    }
    Ok(lower.map(|lower| (rows, lower)))
}

/// One round of that: `rows`·`rows`ᵀ is `products`.
fn orthonormalized(rows: &Tensor<2>, products: &Small) -> Option<(Tensor<2>, Small)> {
    let factor = products.cholesky(SHIFT)?;
    let inverse = upload(&factor.inverse_of_lower(), 1.0, &rows.device());
    Some((gemm((Op::N, &inverse), (Op::N, rows), 1.0, None), factor))
}

/// `rows`·`rows`ᵀ on the host.
fn gram(rows: &Tensor<2>) -> Result<Small, TensorReadError> {
    let product = gemm((Op::N, rows), (Op::T, rows), 1.0, None);
    let data = product.try_into_data()?;
    let values = data.iter::<f32>().map(f64::from).collect();
    Ok(Small::new(rows.dims()[0], values))
}

fn upload(small: &Small, factor: f64, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = small.values.iter().map(|v| (v * factor) as f32).collect();
    Tensor::from_data(TensorData::new(values, [small.size; 2]), device)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Distribution;

    use super::*;

    fn random(dims: [usize; 2], device: &Device) -> Tensor<2> {
        Tensor::random(dims, Distribution::Normal(0.0, 1.0), device)
    }

    fn norm(x: Tensor<2>) -> f64 {
        let data = x.into_data();
        data.iter::<f32>()
            .map(|v| f64::from(v).powi(2))
            .sum::<f64>()
            .sqrt()
    }

    fn product(factors: &StartFactors, scaling: f64) -> Tensor<2> {
        factors
            .b
            .clone()
            .matmul(factors.a.clone())
            .mul_scalar(scaling)
    }

    #[test]
    fn an_error_of_low_rank_is_given_back_whole() {
        let device = Device::flex();
        let error = random([40, 5], &device).matmul(random([5, 70], &device));
        let sensitivity = Sensitivity {
            outputs: (1..=40).map(|i| 1.0 / i as f32).collect(),
            inputs: (1..=70).map(|i| (i * i) as f32).collect(),
            weight: 1.0,
        };
        for measured in [None, Some(&sensitivity)] {
            let found = start_factors(&error, measured, (5, 0.5), 7)
                .unwrap()
                .unwrap();
            let left = norm(error.clone() - product(&found, 0.5)) / norm(error.clone());
            assert!(left < 1e-5, "{left}");
            for row in found
                .a
                .clone()
                .square()
                .sum_dim(1)
                .into_data()
                .iter::<f32>()
            {
                assert!((row - 1.0 / 3.0).abs() < 1e-4, "{row}");
            }
        }
    }

    /// Whatever rank-r matrix is tried in its place, measured by the weighed norm.
    #[test]
    fn nothing_nearby_is_nearer() {
        let device = Device::flex();
        let error = random([30, 50], &device);
        let sensitivity = Sensitivity {
            outputs: (0..30).map(|i| (0.3 * i as f32).exp()).collect(),
            inputs: (0..50).map(|i| 1.0 + (i % 7) as f32).collect(),
            weight: 1.0,
        };
        let root = |values: &[f32]| -> Tensor<1> {
            let roots: Vec<f32> = values.iter().map(|v| v.sqrt()).collect();
            Tensor::from_floats(&roots[..], &device)
        };
        let weighed = |left: Tensor<2>| {
            let rows = root(&sensitivity.outputs).reshape([30, 1]);
            let columns = root(&sensitivity.inputs).reshape([1, 50]);
            norm(left * rows * columns)
        };
        let found = start_factors(&error, Some(&sensitivity), (6, 1.0), 1)
            .unwrap()
            .unwrap();
        let best = weighed(error.clone() - product(&found, 1.0));
        for _ in 0..20 {
            let other = StartFactors {
                a: found.a.clone() + random([6, 50], &device).mul_scalar(1e-2),
                b: found.b.clone() + random([30, 6], &device).mul_scalar(1e-2),
            };
            assert!(weighed(error.clone() - product(&other, 1.0)) > best);
        }
    }

    #[test]
    fn without_error_or_room_there_is_no_start() {
        let device = Device::flex();
        let zero = Tensor::zeros([8, 9], &device);
        assert!(start_factors(&zero, None, (2, 1.0), 0).unwrap().is_none());
        let error = random([8, 9], &device);
        assert!(start_factors(&error, None, (9, 1.0), 0).unwrap().is_none());
        assert!(start_factors(&error, None, (8, 1.0), 0).unwrap().is_some());
    }
}
