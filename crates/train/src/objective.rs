//! What a step minimises: a weight for the nll of each supervised token.

use backdraft_kernels::Segments;
use backdraft_kernels::cross_entropy::{self, HeadLoss};
use backdraft_model::Targets;
use backdraft_quant::Weight;
use burn::tensor::{DType, Tensor};

/// What a run minimises. The loss of a step is L, its gradient that of Σ weightᵢ·nllᵢ over the supervised
/// tokens, with weightᵢ = dL/d(nllᵢ).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// The mean nll of all supervised tokens: every token of a step weighs the same.
    NextToken,
}

impl Objective {
    /// The weight of each target of a micro-batch, times `scale`: 1 / (targets of the whole optimiser step), and a
    /// loss scale where there is one. An objective that compares answers asks `outputs` for their log-likelihoods
    /// first; plain fine-tuning does not, and pays nothing for it.
    ///
    /// # Shapes
    /// `[targets]`, f32, on the device of the outputs.
    pub fn weights(self, outputs: &Outputs<'_>, scale: f32) -> Tensor<1> {
        match self {
            Self::NextToken => {
                let device = outputs.normed.device();
                Tensor::full([outputs.targets.len()], scale, (&device, DType::F32))
            }
        }
    }
}

/// A micro-batch in front of the head.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// Normed hidden states of the targets' rows, `[targets, hidden]`, without autodiff.
    pub normed: &'a Tensor<2>,
    /// The head, `[vocab, hidden]`.
    pub head: &'a Weight,
    /// The cap of logits, where they have one.
    pub cap: Option<f32>,
    /// The supervised positions.
    pub targets: &'a Targets,
    /// Where the documents begin and end.
    pub segments: &'a Segments,
}

impl Outputs<'_> {
    /// Log-likelihood of the supervised tokens of each segment, on the device: a product with the head that
    /// [`loss`](Self::loss) makes once more, because its gradient needs the weights that come of this.
    ///
    /// # Shapes
    /// `[segments]`, f32.
    ///
    /// # Units
    /// Nats.
    pub fn log_likelihoods(&self) -> Tensor<1> {
        let HeadLoss { nll, .. } = self.head(None);
        self.targets.log_likelihoods(self.segments, &nll)
    }

    /// Nll of each target, and the gradient of Σ weightᵢ·nllᵢ with respect to the normed hidden states.
    ///
    /// # Shapes
    /// `weights` and the nll `[targets]`, the gradient `[targets, hidden]`.
    pub fn loss(&self, weights: &Tensor<1>) -> (Tensor<1>, Tensor<2>) {
        let HeadLoss { nll, d_hidden } = self.head(Some(weights));
        match d_hidden {
            Some(d_normed) => (nll, d_normed),
            None => unreachable!("weights were given"),
        }
    }

    fn head(&self, weights: Option<&Tensor<1>>) -> HeadLoss {
        cross_entropy::forward(self.normed, self.head, self.cap, &self.targets.ids, weights)
    }
}

#[cfg(test)]
mod tests {
    use backdraft_model::Tokens;
    use burn::tensor::{Device, Distribution};

    use super::*;

    fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
        x.into_data().try_into_vec().unwrap()
    }

    /// Two answers to one prompt, as a preference has them: three targets and two.
    fn pair() -> (Tokens, Targets) {
        let tokens = Tokens::from_sequences(&[vec![1, 2, 3, 4], vec![1, 5, 6]]);
        let labels = [-100, 2, 3, 4, -100, 5, 6];
        let targets = Targets::from_labels(&tokens.segments, &labels);
        (tokens, targets)
    }

    #[test]
    fn plain_fine_tuning_weighs_every_token_alike() {
        let (tokens, targets) = pair();
        let (normed, head) = random();
        let outputs = Outputs {
            normed: &normed,
            head: &head,
            cap: None,
            targets: &targets,
            segments: &tokens.segments,
        };
        let weights = Objective::NextToken.weights(&outputs, 0.3);
        assert_eq!(values(weights), [0.3; 5]);
    }

    fn random() -> (Tensor<2>, Weight) {
        let normal = Distribution::Normal(0.0, 1.0);
        let device = Device::flex();
        let head = Tensor::random([9, 4], normal, &device);
        (Tensor::random([5, 4], normal, &device), Weight::Dense(head))
    }

    /// DPO's order: log-likelihoods, then the margin's weights, of opposite signs, then the gradient; against
    /// autodiff through −ln σ(β·(l₀ − l₁)).
    #[test]
    fn weights_that_come_of_log_likelihoods_give_the_gradient_of_a_preference() {
        const BETA: f64 = 0.7;
        let (tokens, targets) = pair();
        let (normed, head) = random();
        let outputs = Outputs {
            normed: &normed,
            head: &head,
            cap: None,
            targets: &targets,
            segments: &tokens.segments,
        };
        let likelihoods = values(outputs.log_likelihoods());
        let margin = BETA * f64::from(likelihoods[0] - likelihoods[1]);
        // dL/d(l₀) = −β·σ(−margin), and an nll is a likelihood's negative.
        let pull = (BETA / (1.0 + margin.exp())) as f32;
        let weights = [pull, pull, pull, -pull, -pull];
        let (nll, found) = outputs.loss(&Tensor::from_floats(weights, &normed.device()));
        let sums = targets.log_likelihoods(&tokens.segments, &nll);
        assert_eq!(values(sums), likelihoods);

        let leaf = normed.clone().autodiff().require_grad();
        let logits = leaf
            .clone()
            .matmul(head.dequantize().autodiff().transpose());
        let (nll, _) = cross_entropy::reference::softmax_nll(logits, None, &targets.ids, None);
        let [chosen, rejected] =
            [(0, 3), (3, 2)].map(|(at, len)| nll.clone().narrow(0, at, len).sum());
        let loss = ((chosen - rejected) * BETA).exp().add_scalar(1.0).log();
        let expected = leaf.grad(&loss.backward()).unwrap();
        for (found, expected) in values(found).into_iter().zip(values(expected)) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{found} instead of {expected}"
            );
        }
    }
}
