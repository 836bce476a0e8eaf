//! Factors whose product is zero although neither is.
//!
//! With rows q of a random orthogonal matrix `[r, r]`, A = Eᵀ·N/10 of the even ones, B = M·O/10 of the odd ones, N and M normal:
//! B·A = M·(O·Eᵀ)·N/100 = 0. So training begins at the base model, and both factors learn from the first step on.
//!
//! # Source
//! As PEFT's `init_lora_weights = "orthogonal"`.

use burn::tensor::{Device, Tensor, TensorData};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::start::StartFactors;

/// What the entries of both factors are divided by.
const OVER: f32 = 10.0;

/// Factors of an even rank for a weight `[out, input]`.
///
/// # Panics
/// If the rank is odd.
pub(crate) fn orthogonal_factors(
    rank: usize,
    [out, input]: [usize; 2],
    rng: &mut ChaCha8Rng,
    device: &Device,
) -> StartFactors {
    assert!(rank.is_multiple_of(2), "an even rank, found {rank}");
    let half = rank / 2;
    let rows = orthonormal(rank, rng);
    // On the host, so that a seed means the same everywhere.
    let host = Device::flex();
    let of = |values: Vec<f64>, dims: [usize; 2]| -> Tensor<2> {
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        Tensor::from_data(TensorData::new(values, dims), &host)
    };
    let every_second = |first: usize| {
        let rows = rows.iter().skip(first).step_by(2);
        of(rows.flatten().copied().collect(), [half, rank])
    };
    let (even, odd) = (every_second(0), every_second(1));
    let a = of(normal(half * input, rng), [half, input]);
    let b = of(normal(out * half, rng), [out, half]);
    let there = |factor: Tensor<2>| Tensor::from_data(factor.div_scalar(OVER).into_data(), device);
    StartFactors {
        a: there(even.transpose().matmul(a)),
        b: there(b.matmul(odd)),
    }
}

/// Rows of a random orthogonal matrix: those of a normal one, each less its parts along those before it, twice over.
fn orthonormal(size: usize, rng: &mut ChaCha8Rng) -> Vec<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(size);
    while rows.len() < size {
        let mut row = normal(size, rng);
        for before in rows.iter().chain(&rows) {
            let along = dot(&row, before);
            row.iter_mut()
                .zip(before)
                .for_each(|(x, b)| *x -= along * b);
        }
        let length = dot(&row, &row).sqrt();
        // One that lay among the others almost wholly is drawn again.
        if length > 1e-6 {
            rows.push(row.into_iter().map(|x| x / length).collect());
        }
    }
    rows
}

/// Values of a normal distribution, by Box and Muller.
pub(crate) fn normal(count: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let value = || {
        let length = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        length * (std::f64::consts::TAU * rng.random::<f64>()).cos()
    };
    std::iter::repeat_with(value).take(count).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn both_factors_are_drawn_and_their_product_is_nothing() {
        for (rank, dims) in [(2, [5, 3]), (16, [48, 64])] {
            let draw = |seed| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                orthogonal_factors(rank, dims, &mut rng, &Device::flex())
            };
            let StartFactors { a, b } = draw(1);
            assert_eq!((a.dims(), b.dims()), ([rank, dims[1]], [dims[0], rank]));
            let most = |x: Tensor<2>| x.abs().max().into_scalar::<f32>();
            let product = most(b.clone().matmul(a.clone()));
            assert!(product < 1e-7, "{product}");
            // A row of a normal matrix of so many columns, on half of the directions.
            let mean_square = |x: &Tensor<2>| x.clone().square().mean().into_scalar::<f32>();
            if rank == 16 {
                for factor in [&a, &b] {
                    let spread = mean_square(factor) / 0.005;
                    assert!((0.7..1.3).contains(&spread), "{spread}");
                }
            }
            assert_eq!(a.into_data(), draw(1).a.into_data());
            assert_ne!(b.into_data(), draw(2).b.into_data());
        }
    }
}
