//! What came of answers that are compared.

use burn::tensor::Tensor;

/// What came of answers.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Of each pair, or of each answer.
    pub losses: Tensor<1>,
    /// The losses that those are sums of, where they are, in the order of [`Objective::terms`](super::Objective::terms).
    pub terms: Vec<Tensor<1>>,
    /// d(loss)/d(log-likelihood) of each answer, or d(loss)/d(score), `[answers]`.
    pub slopes: Tensor<1>,
    /// β times what each answer's log-likelihood is compared by, or its score, `[answers]`.
    pub rewards: Tensor<1>,
}
