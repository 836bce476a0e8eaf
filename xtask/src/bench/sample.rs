//! Rows of random tokens, and the pass of a step over them.

use anyhow::ensure;
use backdraft_data::Answer;
use backdraft_lora::AdapterGrads;
use backdraft_model::{CausalLm, Targets, Tokens};
use backdraft_plan::ActivationPlan;
use backdraft_recipe::DpoLosses;
use backdraft_train::compared::Compared;
use backdraft_train::objective::{self, Goal, Others, PairLoss};
use backdraft_train::step::{MicroBatch, Told, Trunk, forward_backward, guarded, nll};
use burn::tensor::Tensor;
use clap::ValueEnum;

/// What a step minimises.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum Objective {
    /// The mean nll of all tokens.
    Sft,
    /// DPO's sigmoid loss against the model without its adapter. Rows are pairs, one text after the other, and the first half of
    /// each text is the prompt.
    Dpo,
}

/// A micro-batch of random tokens.
pub(crate) struct Sample {
    batch: MicroBatch,
    compared: Option<Compared>,
}

impl Sample {
    /// # Errors
    /// An odd number of texts for an objective of pairs.
    pub(crate) fn new(documents: &[Vec<u32>], objective: Objective) -> anyhow::Result<Self> {
        let pairs = objective == Objective::Dpo;
        let texts = documents.len();
        ensure!(
            !pairs || texts.is_multiple_of(2),
            "--objective dpo compares texts in pairs, and there are {texts}: give an even number"
        );
        let labels = documents.iter().flat_map(|ids| {
            let prompt = if pairs { ids.len() / 2 } else { 0 };
            let labels = ids.iter().enumerate();
            labels.map(move |(i, id)| if i < prompt { -100 } else { i64::from(*id) })
        });
        let labels: Vec<i64> = labels.collect();
        let tokens = Tokens::from_sequences(documents);
        let targets = Targets::from_labels(&tokens.segments, &labels);
        let compared = pairs.then(|| {
            let answers = [Answer::Good, Answer::Bad].repeat(texts / 2);
            let in_answer = vec![true; targets.len()];
            Compared::new((&targets, &tokens.segments), in_answer, &answers)
        });
        Ok(Self {
            batch: MicroBatch { tokens, targets },
            compared,
        })
    }

    /// The loss, whose gradient is added to `grads`.
    pub(crate) fn pass(
        &self,
        model: &CausalLm,
        plan: &ActivationPlan,
        grads: &mut AdapterGrads,
    ) -> Tensor<1> {
        let batch = &self.batch;
        let Some(compared) = &self.compared else {
            let count = batch.targets.len() as f32;
            return forward_backward(model, batch, 1.0 / count, None, plan, grads) / count;
        };
        let trunk = Trunk::new(model, batch);
        let reference = nll(&model.clone().without_adapter(), batch, trunk.clone());
        let (targets, segments) = (&batch.targets, &batch.tokens.segments);
        let others = Others {
            reference: Some(compared.log_likelihoods((targets, segments), &reference)),
            divergence: None,
        };
        let pairs = (compared.len() / 2) as f32;
        let goal = Goal {
            objective: objective::Objective::Pairs {
                loss: PairLoss::Dpo {
                    beta: 0.1,
                    losses: DpoLosses::default(),
                    label_smoothing: 0.0,
                },
                nll_weight: 0.0,
            },
            answers: Some((compared, others)),
            ..Goal::next_token(1.0 / pairs)
        };
        match guarded(model, (batch, trunk), &goal, None, (plan, None), grads) {
            Ok(Told {
                answers: Some(told),
                ..
            }) => told.losses.mean(),
            Ok(_) => unreachable!("answers are compared"),
            Err(error) => unreachable!("nobody watches the memory: {error}"),
        }
    }
}
