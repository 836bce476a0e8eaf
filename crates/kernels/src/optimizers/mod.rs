//! Updates of many matrices of one shape at once, in plain tensors: on a GPU a rule is as many launches for hundreds of
//! adapters as for one.
//!
//! Parameters, gradients and states are `[n, rows, columns]` in f32: n matrices. Each rule has a function `step` that takes
//! parameters, their gradients, what is kept between updates and the learning rate, and gives the next of the first and the third.
//! Weight decay λ is decoupled in all of them: parameters are multiplied by 1 − lr·λ, or z by what its y says.
//!
//! | rule | what is kept of a matrix |
//! | --- | --- |
//! | [`lion`] | a mean of gradients |
//! | [`sgd`] | a sum of gradients |
//! | [`adafactor`] | means of squares, of its rows and of its columns |
//! | [`muon`] | a mean of gradients |
//! | [`schedule_free`] | z, and means of squares |

pub mod adafactor;
pub mod lion;
pub mod muon;
pub mod schedule_free;
pub mod sgd;

use burn::tensor::Tensor;

/// Matrices of one shape, `[n, rows, columns]`.
pub type Matrices = Tensor<3>;

/// Parameters after weight decay.
fn decayed(values: Matrices, lr: f64, weight_decay: f64) -> Matrices {
    match weight_decay {
        0.0 => values,
        weight_decay => values.mul_scalar(1.0 - lr * weight_decay),
    }
}

#[cfg(test)]
mod tests;
