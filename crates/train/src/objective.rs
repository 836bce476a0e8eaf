//! What a step minimises: a weight for the nll of each supervised token.

mod judged;
mod pairs;
mod scores;
mod single;
#[cfg(test)]
mod tests;

use backdraft_kernels::Segments;
use backdraft_kernels::cross_entropy::{self, HeadLoss, Penalty};
use backdraft_kernels::frozen_matrix::FrozenMatrix;
use backdraft_lora::TokenMatrix;
use backdraft_model::Targets;
use backdraft_recipe::{DpoLoss, ObjectiveRecipe};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Tensor};

use crate::compared::Compared;
pub use judged::Judged;
pub use pairs::PairLoss;
pub use scores::ScoreLoss;
pub use single::SingleLoss;

/// What a run minimises. The loss of a step is L, its gradient that of Σ weightᵢ·nllᵢ over the supervised
/// tokens, with weightᵢ = dL/d(nllᵢ).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// The mean nll of all supervised tokens: every token of a step weighs the same.
    NextToken,
    /// The mean of a loss of pairs, and beside it the mean nll of the chosen ones.
    Pairs {
        /// Of each pair.
        loss: PairLoss,
        /// Weight of the nll.
        nll_weight: f64,
    },
    /// The mean of a loss of single answers.
    Single(SingleLoss),
    /// The mean of a loss of pairs whose answers are scored by the model's head; nothing goes by likelihoods.
    Scores(ScoreLoss),
}

impl From<ObjectiveRecipe> for Objective {
    fn from(recipe: ObjectiveRecipe) -> Self {
        match recipe {
            ObjectiveRecipe::Sft => Self::NextToken,
            ObjectiveRecipe::Dpo {
                beta,
                losses,
                label_smoothing,
                sft_weight,
                ..
            } => Self::Pairs {
                loss: PairLoss::Dpo {
                    beta,
                    losses,
                    label_smoothing,
                },
                nll_weight: sft_weight,
            },
            ObjectiveRecipe::Orpo { beta } => Self::Pairs {
                loss: PairLoss::Orpo { beta },
                nll_weight: 1.0,
            },
            ObjectiveRecipe::Simpo {
                beta,
                gamma,
                label_smoothing,
                sft_weight,
            } => Self::Pairs {
                loss: PairLoss::Margin {
                    beta,
                    gamma,
                    label_smoothing,
                    of_means: true,
                },
                nll_weight: sft_weight,
            },
            ObjectiveRecipe::Cpo {
                beta,
                label_smoothing,
                sft_weight,
            } => Self::Pairs {
                loss: PairLoss::Margin {
                    beta,
                    gamma: 0.0,
                    label_smoothing,
                    of_means: false,
                },
                nll_weight: sft_weight,
            },
            ObjectiveRecipe::Kto {
                beta,
                desirable_weight,
                undesirable_weight,
                ..
            } => Self::Single(SingleLoss {
                beta,
                desirable_weight,
                undesirable_weight,
            }),
            ObjectiveRecipe::Reward {
                gamma,
                center_rewards_coefficient,
            } => Self::Scores(ScoreLoss {
                gamma,
                center: center_rewards_coefficient,
            }),
        }
    }
}

impl Objective {
    /// Whether answers are compared.
    #[must_use]
    pub const fn compares(self) -> bool {
        !matches!(self, Self::NextToken)
    }

    /// Whether they are compared with those of another model.
    #[must_use]
    pub const fn has_reference(self) -> bool {
        match self {
            Self::NextToken | Self::Scores(_) => false,
            Self::Pairs { loss, .. } => loss.has_reference(),
            Self::Single(_) => true,
        }
    }

    /// Whether it asks how far the policy has gone from the reference, by prompts with other answers than their own.
    #[must_use]
    pub const fn measures_divergence(self) -> bool {
        matches!(self, Self::Single(_))
    }

    /// Whether a head scores answers, so that they have no likelihoods.
    #[must_use]
    pub const fn scores(self) -> bool {
        matches!(self, Self::Scores(_))
    }

    /// Whether the nll beside the pairs goes over the prompts of chosen answers too.
    #[must_use]
    pub const fn learns_prompts(self) -> bool {
        matches!(
            self,
            Self::Pairs {
                loss: PairLoss::Orpo { .. },
                ..
            }
        )
    }

    /// Weight of the mean nll beside the comparison.
    #[must_use]
    pub const fn nll_weight(self) -> f64 {
        match self {
            Self::NextToken => 1.0,
            Self::Pairs { nll_weight, .. } => nll_weight,
            Self::Single(_) | Self::Scores(_) => 0.0,
        }
    }

    /// How many losses `answers` answers have.
    #[must_use]
    pub const fn losses(self, answers: usize) -> usize {
        match self {
            Self::NextToken => 0,
            Self::Pairs { .. } | Self::Scores(_) => answers / 2,
            Self::Single(_) => answers,
        }
    }

    /// The losses that the loss of a pair is the sum of; empty where it is one.
    pub fn terms(self) -> impl Iterator<Item = DpoLoss> {
        let several = match self {
            Self::Pairs {
                loss: PairLoss::Dpo { losses, .. },
                ..
            } => Some(losses).filter(|losses| losses.are_several()),
            _ => None,
        };
        several
            .into_iter()
            .flat_map(|losses| losses.iter().map(|(loss, _)| loss))
    }

    /// Judges answers by their log-likelihoods under the policy, or by their scores where a head scores them.
    ///
    /// # Shapes
    /// `policy` `[answers]`, as `others` where they are needed.
    ///
    /// # Panics
    /// Where what is needed is absent, or nothing is compared.
    pub fn judge(self, policy: &Tensor<1>, others: &Others, compared: &Compared) -> Judged {
        let lengths = || compared.lengths(&policy.device());
        match (self, &others.reference, &others.divergence) {
            (Self::NextToken, ..) => panic!("nothing is compared"),
            (Self::Scores(loss), ..) => loss.judge(policy, &compared.margins(&policy.device())),
            (Self::Pairs { loss, .. }, reference, _) => {
                loss.judge(policy, reference.as_ref(), &lengths())
            }
            (Self::Single(loss), Some(reference), Some(divergence)) => {
                loss.judge(policy, reference, divergence, &compared.good)
            }
            (Self::Single(_), ..) => panic!("answers without a reference"),
        }
    }
}

/// What answers are compared with, beside each other.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// Log-likelihoods under the reference, `[answers]`.
    pub reference: Option<Tensor<1>>,
    /// How far the policy has gone from it, `[1]`, nats.
    pub divergence: Option<Tensor<1>>,
}

/// What a micro-batch is for.
#[derive(Clone, Debug)]
pub struct Goal<'a> {
    /// What is minimised.
    pub objective: Objective,
    /// What each loss counts: 1 / (losses of the whole optimiser step), of nll or of comparisons, and a loss scale where
    /// there is one.
    pub scale: f32,
    /// What the nll of each target of a good answer counts, beside a comparison.
    pub nll_scale: f32,
    /// What is minimised beside the nll of plain fine-tuning.
    pub penalty: Option<Penalty>,
    /// The answers, where they are compared, and with what.
    pub answers: Option<(&'a Compared, Others)>,
}

/// What a comparison leaves behind.
#[derive(Clone, Debug)]
pub struct ToldAnswers {
    /// Of each pair, or of each answer.
    pub losses: Tensor<1>,
    /// The losses that those are sums of, where they are, in the order of [`Objective::terms`].
    pub terms: Vec<Tensor<1>>,
    /// `[answers]`.
    pub rewards: Tensor<1>,
    /// Log-likelihoods, or scores where a head gives those, `[answers]`.
    pub log_likelihoods: Tensor<1>,
}

impl Goal<'_> {
    /// Plain fine-tuning, where each token's nll counts `scale`.
    pub const fn next_token(scale: f32) -> Self {
        Self {
            objective: Objective::NextToken,
            scale,
            nll_scale: 0.0,
            penalty: None,
            answers: None,
        }
    }

    /// The weight of each target. Answers that are compared are asked for their log-likelihoods first; plain fine-tuning does
    /// not, and pays nothing for it.
    ///
    /// # Shapes
    /// `[targets]`, f32, on the device of the outputs.
    pub fn weights(&self, outputs: &Outputs<'_>) -> (Tensor<1>, Option<ToldAnswers>) {
        let Some((compared, others)) = &self.answers else {
            let device = outputs.normed.device();
            let weights = Tensor::full([outputs.targets.len()], self.scale, (&device, DType::F32));
            return (weights, None);
        };
        let log_likelihoods = outputs.log_likelihoods(compared);
        let judged = self.objective.judge(&log_likelihoods, others, compared);
        let weights = compared.weights(judged.slopes * self.scale, self.nll_scale);
        let told = ToldAnswers {
            losses: judged.losses,
            terms: judged.terms,
            rewards: judged.rewards,
            log_likelihoods,
        };
        (weights, Some(told))
    }
}

impl Goal<'_> {
    /// dL/d(score) of each answer, from the scores that a head gives.
    ///
    /// # Shapes
    /// `[answers]`, f32.
    ///
    /// # Panics
    /// If no answers are compared.
    pub fn slopes(&self, scores: Tensor<1>) -> (Tensor<1>, ToldAnswers) {
        let Some((compared, others)) = &self.answers else {
            panic!("nothing is compared");
        };
        let judged = self.objective.judge(&scores, others, compared);
        let told = ToldAnswers {
            losses: judged.losses,
            terms: judged.terms,
            rewards: judged.rewards,
            log_likelihoods: scores,
        };
        (judged.slopes * self.scale, told)
    }
}

/// A micro-batch in front of the head.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// Normed hidden states of the targets' rows, `[targets, hidden]`, without autodiff.
    pub normed: &'a Tensor<2>,
    /// The head, `[vocab, hidden]`.
    pub head: &'a TokenMatrix,
    /// The cap of logits, where they have one.
    pub cap: Option<f32>,
    /// The supervised positions.
    pub targets: &'a Targets,
    /// Where the documents begin and end.
    pub segments: &'a Segments,
}

impl Outputs<'_> {
    /// Log-likelihood of each answer, on the device: a product with the head that [`loss`](Self::loss) makes once more,
    /// because its gradient needs the weights that come of this.
    ///
    /// # Shapes
    /// `[answers]`, f32.
    ///
    /// # Units
    /// Nats.
    pub fn log_likelihoods(&self, compared: &Compared) -> Tensor<1> {
        compared.log_likelihoods((self.targets, self.segments), &self.nll())
    }

    /// Nll of each target, without a gradient.
    ///
    /// # Shapes
    /// `[targets]`, f32.
    pub fn nll(&self) -> Tensor<1> {
        self.head(None, None, &mut |_, _| ()).nll
    }

    /// Entropy of the distribution that each target is drawn from, without a gradient. Logits are there for a few rows at a
    /// time, so that their copies take no more than the loss of a step has.
    ///
    /// # Shapes
    /// `[targets]`, f32.
    ///
    /// # Units
    /// Nats.
    pub fn entropies(&self) -> Tensor<1> {
        const ROWS: usize = 64;
        let rows = self.normed.dims()[0];
        let chunks = (0..rows).step_by(ROWS).map(|start| {
            let hidden = self.normed.clone().narrow(0, start, ROWS.min(rows - start));
            let logits = self.head.matmul_add(&hidden, 1.0, None).cast(DType::F32);
            let logits = match self.cap {
                None => logits,
                Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
            };
            let log_p = log_softmax(logits, 1);
            (log_p.clone().exp() * log_p).sum_dim(1).neg().flatten(0, 1)
        });
        Tensor::cat(chunks.collect(), 0)
    }

    /// Nll of each target, its loss with the penalty, and the gradient of Σ weightᵢ·lossᵢ with respect to the normed hidden
    /// states. `told` gets what the gradient of the head is made of, in chunks: what it read, and the gradient of its logits.
    ///
    /// # Shapes
    /// `weights` and the losses `[targets]`, the gradient `[targets, hidden]`.
    pub fn loss(
        &self,
        weights: &Tensor<1>,
        penalty: Option<Penalty>,
        told: &mut dyn FnMut(&Tensor<2>, &Tensor<2>),
    ) -> (Tensor<1>, Option<Tensor<1>>, Tensor<2>) {
        let HeadLoss {
            nll,
            penalized,
            d_hidden,
        } = self.head(Some(weights), penalty, told);
        match d_hidden {
            Some(d_normed) => (nll, penalized, d_normed),
            None => unreachable!("weights were given"),
        }
    }

    fn head(
        &self,
        weights: Option<&Tensor<1>>,
        penalty: Option<Penalty>,
        told: &mut dyn FnMut(&Tensor<2>, &Tensor<2>),
    ) -> HeadLoss {
        let (head, cap, ids) = (self.head, self.cap, &self.targets.ids);
        cross_entropy::telling(self.normed, head, cap, ids, weights, penalty, told)
    }
}
