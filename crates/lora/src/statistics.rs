//! What a projection sees of a loss: how much an error of each of its weights would matter.

use burn::tensor::{DType, Tensor, TensorReadError};

/// Rows that are squared at a time: their f32 copies are all the memory that this takes.
const ROWS: usize = 512;

/// Sums over tokens of a projection's input x and its output's gradient g.
///
/// With ω = ‖g‖² of a token: γ = Σ g² of each output, Σ ω·x² of each input, and Σ ω. Their product γ ⊗ (Σ ω x² / Σ ω)
/// has the exact sums over columns of the diagonal of the loss's Fisher information, Σ g²·x²; tokens that the loss
/// hardly depends on, such as attention sinks, weigh nothing.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// γ, `[out]`, f32.
    outputs: Tensor<1>,
    /// Σ ω·x², `[in]`, f32.
    inputs: Tensor<1>,
    /// Σ ω, `[1]`, f32.
    weight: Tensor<1>,
}

/// [`Statistics`] on the host, floored at 1e-6 of their means so that they can be divided by.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// γ, `[out]`: Σ g² over tokens.
    pub outputs: Vec<f32>,
    /// d², `[in]`: the mean of x² over tokens, weighted by ‖g‖².
    pub inputs: Vec<f32>,
    /// Σ ‖g‖².
    pub weight: f64,
}

impl Statistics {
    /// Of one pass.
    ///
    /// # Shapes
    /// `x` `[t, in]`, `dy` `[t, out]`, without autodiff.
    pub(crate) fn of(x: &Tensor<2>, dy: &Tensor<2>) -> Self {
        let ([t, input], [_, output]) = (x.dims(), dy.dims());
        let pieces = (0..t).step_by(ROWS).map(|start| {
            let rows = start..(start + ROWS).min(t);
            let piece = |of: &Tensor<2>, width| {
                let part = of.clone().slice([rows.clone(), 0..width]);
                part.cast(DType::F32).square()
            };
            let (g, x) = (piece(dy, output), piece(x, input));
            let token = g.clone().sum_dim(1);
            Self {
                outputs: g.sum_dim(0).squeeze_dim(0),
                inputs: (x * token.clone()).sum_dim(0).squeeze_dim(0),
                weight: token.sum(),
            }
        });
        match pieces.reduce(Self::plus) {
            Some(sum) => sum,
            None => panic!("statistics of no token"),
        }
    }

    /// For gradients `factor` times as large.
    #[must_use]
    pub(crate) fn of_larger(self, factor: f32) -> Self {
        if factor == 1.0 {
            return self;
        }
        let square = factor * factor;
        Self {
            outputs: self.outputs.mul_scalar(square),
            inputs: self.inputs.mul_scalar(square),
            weight: self.weight.mul_scalar(square),
        }
    }

    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            outputs: self.outputs + other.outputs,
            inputs: self.inputs + other.inputs,
            weight: self.weight + other.weight,
        }
    }

    /// Reads them from the device. The loss was scaled by `scale`.
    ///
    /// # Errors
    /// A device that failed.
    pub fn read(&self, scale: f64) -> Result<Sensitivity, TensorReadError> {
        let read = |tensor: &Tensor<1>| -> Result<Vec<f64>, TensorReadError> {
            let data = tensor.clone().try_into_data()?;
            Ok(data.iter::<f32>().map(f64::from).collect())
        };
        let square = scale * scale;
        let weight = read(&self.weight)?[0];
        let outputs = read(&self.outputs)?.into_iter().map(|sum| sum / square);
        let inputs = read(&self.inputs)?.into_iter();
        Ok(Sensitivity {
            outputs: floored(outputs.collect()),
            inputs: floored(
                inputs
                    .map(|sum| sum / weight.max(f64::MIN_POSITIVE))
                    .collect(),
            ),
            weight: weight / square,
        })
    }
}

fn floored(values: Vec<f64>) -> Vec<f32> {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let least = 1e-6 * mean;
    values
        .into_iter()
        .map(|value| value.max(least) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    fn values<const D: usize>(x: &Tensor<D>) -> Vec<f64> {
        let data = x.clone().into_data();
        data.iter::<f32>().map(f64::from).collect()
    }

    #[test]
    fn sums_are_those_of_their_definition_whatever_the_pieces() {
        let (t, input, output) = (ROWS + 100, 5, 3);
        let normal = Distribution::Normal(0.0, 1.0);
        let device = Device::flex();
        let x = Tensor::<2>::random([t, input], normal, &device);
        let g = Tensor::<2>::random([t, output], normal, &device);
        let cut = |of: &Tensor<2>, rows, width| of.clone().slice([rows, 0..width]);
        let [first, second] = [0..70, 70..t].map(|rows: std::ops::Range<usize>| {
            Statistics::of(&cut(&x, rows.clone(), input), &cut(&g, rows, output))
        });
        // A loss that was scaled by 8 has gradients 8 times as large.
        let found = first.plus(second).read(8.0).unwrap();
        let (xs, gs) = (values(&x), values(&g));
        let omega: Vec<f64> = gs
            .chunks(output)
            .map(|g| g.iter().map(|g| g * g).sum())
            .collect();
        let weight: f64 = omega.iter().sum();
        for (o, &found) in found.outputs.iter().enumerate() {
            let expected = (0..t).map(|i| gs[i * output + o].powi(2)).sum::<f64>() / 64.0;
            assert!((f64::from(found) / expected - 1.0).abs() < 1e-5);
        }
        for (j, &found) in found.inputs.iter().enumerate() {
            let sum: f64 = (0..t).map(|i| omega[i] * xs[i * input + j].powi(2)).sum();
            assert!((f64::from(found) / (sum / weight) - 1.0).abs() < 1e-5);
        }
        assert!((found.weight * 64.0 / weight - 1.0).abs() < 1e-5);
    }

    #[test]
    fn what_was_never_seen_is_small_and_not_zero() {
        let device = Device::flex();
        let x = Tensor::<2>::from_floats([[1.0, 0.0]], &device);
        let g = Tensor::<2>::from_floats([[2.0, 0.0]], &device);
        let found = Statistics::of(&x, &g).read(1.0).unwrap();
        assert_eq!(found.outputs, [4.0, 2e-6]);
        assert_eq!(found.inputs, [1.0, 0.5e-6]);
    }
}
