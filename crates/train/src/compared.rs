//! The answers of a micro-batch that are compared: which targets are theirs, and which of them are good.

use std::ops::Range;

use backdraft_data::Answer;
use backdraft_kernels::Segments;
use backdraft_model::Targets;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// Answers of a micro-batch, a segment each; of pairs the chosen one comes first, and the rejected one follows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compared {
    /// Targets of each segment.
    targets: Vec<Range<usize>>,
    /// Of each target: whether it belongs to the answer, and not to the prompt before it.
    in_answer: Vec<bool>,
    /// Of each segment: whether it is a good answer.
    pub good: Vec<bool>,
    /// Tokens of each answer that are compared.
    pub lengths: Vec<usize>,
    /// Of each answer: how much higher the chosen one of its pair should be rated by its row, 0 where that does not say.
    pub margins: Vec<f32>,
    /// Log-likelihood of each answer under the reference, where that was computed before, nats.
    pub reference: Option<Vec<f32>>,
}

impl Compared {
    /// The answers of a micro-batch's segments.
    ///
    /// # Panics
    /// If there is not one flag for each target and one answer for each segment.
    pub fn new(
        (targets, segments): (&Targets, &Segments),
        in_answer: Vec<bool>,
        answers: &[Answer],
    ) -> Self {
        let targets_of = targets.by_segment(segments);
        assert_eq!(in_answer.len(), targets.len(), "one flag for each target");
        assert_eq!(answers.len(), targets_of.len(), "one answer a segment");
        let length = |targets: &Range<usize>| {
            let flags = &in_answer[targets.clone()];
            flags.iter().filter(|flag| **flag).count()
        };
        Self {
            good: answers.iter().map(|one| *one == Answer::Good).collect(),
            lengths: targets_of.iter().map(length).collect(),
            targets: targets_of,
            in_answer,
            margins: vec![0.0; answers.len()],
            reference: None,
        }
    }

    /// The same, whose answers have so many tokens.
    #[must_use]
    pub(crate) fn of_lengths(self, lengths: Vec<usize>) -> Self {
        Self { lengths, ..self }
    }

    /// The same with these margins.
    ///
    /// # Panics
    /// If there is not one for each answer.
    #[must_use]
    pub fn with_margins(self, margins: Vec<f32>) -> Self {
        assert_eq!(margins.len(), self.len(), "one margin an answer");
        Self { margins, ..self }
    }

    /// Answers without their targets, for what is told of them alone.
    pub(crate) fn of_answers(good: Vec<bool>, lengths: Vec<usize>) -> Self {
        Self {
            margins: vec![0.0; good.len()],
            good,
            lengths,
            ..Self::default()
        }
    }

    /// Answers.
    pub fn len(&self) -> usize {
        self.good.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.good.is_empty()
    }

    /// Targets of good answers, with those of their prompts where they have any.
    pub fn good_targets(&self) -> usize {
        let good = self.targets.iter().zip(&self.good);
        good.filter(|(_, good)| **good)
            .map(|(targets, _)| targets.len())
            .sum()
    }

    /// Log-likelihood of each answer.
    ///
    /// # Shapes
    /// `nll` `[targets]`, result `[answers]`.
    ///
    /// # Units
    /// Nats.
    pub fn log_likelihoods(
        &self,
        (targets, segments): (&Targets, &Segments),
        nll: &Tensor<1>,
    ) -> Tensor<1> {
        if self.in_answer.iter().all(|inside| *inside) {
            return targets.log_likelihoods(segments, nll);
        }
        let inside = self.flags(|_, inside| inside, &nll.device());
        targets.log_likelihoods(segments, &(nll.clone() * inside))
    }

    /// Σ nll of the targets of good answers, with those of their prompts where they have any.
    ///
    /// # Shapes
    /// `[1]`.
    pub fn good_nll(&self, nll: &Tensor<1>) -> Tensor<1> {
        (nll.clone() * self.flags(|good, _| good, &nll.device())).sum()
    }

    /// The weight of each target's nll: its answer's slope, downwards, where it belongs to the answer, and `nll_weight`
    /// where the answer is a good one.
    ///
    /// # Shapes
    /// `slopes` `[answers]`, dL/d(log-likelihood); result `[targets]`.
    pub fn weights(&self, slopes: Tensor<1>, nll_weight: f32) -> Tensor<1> {
        let device = slopes.device();
        let of_target: Vec<i64> = self
            .targets
            .iter()
            .enumerate()
            .flat_map(|(segment, targets)| targets.clone().map(move |_| segment as i64))
            .collect();
        let count = of_target.len();
        let index = Tensor::<1, Int>::from_data(TensorData::new(of_target, [count]), &device);
        let weights = slopes.neg().select(0, index);
        let weights = match self.in_answer.iter().all(|inside| *inside) {
            true => weights,
            false => weights * self.flags(|_, inside| inside, &device),
        };
        match nll_weight {
            0.0 => weights,
            _ => weights + self.flags(|good, _| good, &device) * nll_weight,
        }
    }

    /// Tokens of each answer, `[answers]`.
    pub fn lengths(&self, device: &Device) -> Tensor<1> {
        floats(self.lengths.iter().map(|length| *length as f32), device)
    }

    /// Margins, `[answers]`.
    pub fn margins(&self, device: &Device) -> Tensor<1> {
        floats(self.margins.iter().copied(), device)
    }

    /// Ones and zeros, `[targets]`, by whether a target's answer is good and whether it belongs to the answer.
    fn flags(&self, of: impl Fn(bool, bool) -> bool, device: &Device) -> Tensor<1> {
        let segments = self.targets.iter().zip(&self.good);
        let flags = segments.flat_map(|(targets, good)| {
            let inside = &self.in_answer[targets.clone()];
            inside
                .iter()
                .map(|inside| f32::from(u8::from(of(*good, *inside))))
        });
        floats(flags.collect::<Vec<_>>(), device)
    }
}

/// Numbers as a tensor.
pub(crate) fn floats(values: impl IntoIterator<Item = f32>, device: &Device) -> Tensor<1> {
    let values: Vec<f32> = values.into_iter().collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}
