//! What comes of a step's answers, as numbers that lie beside its gradient: each where its micro-batch has it, so that a sum over
//! processes puts them together.

use std::slice::Iter;

use burn::tensor::{DType, Device, Tensor};

use crate::compared::floats;
use crate::metrics;
use crate::objective::{Objective, ToldAnswers};

/// Where the numbers of each micro-batch's answers lie.
#[derive(Clone, Debug)]
pub(crate) struct AnswerNumbers {
    objective: Objective,
    /// Answers of each micro-batch; empty where nothing is compared.
    answers: Vec<usize>,
}

impl AnswerNumbers {
    /// For micro-batches of so many `answers`.
    pub(crate) fn new(objective: Objective, answers: Vec<usize>) -> Self {
        Self { objective, answers }
    }

    /// All of a step.
    pub(crate) fn len(&self) -> usize {
        let each = self.answers.iter().map(|answers| self.of(*answers));
        each.sum()
    }

    /// Those of one micro-batch: losses, the terms of each, a reward and a log-likelihood of each answer.
    fn of(&self, answers: usize) -> usize {
        self.objective.losses(answers) * (1 + self.objective.terms().count()) + 2 * answers
    }

    /// The numbers of these micro-batches in their places, zeroes in those of others.
    pub(crate) fn write(&self, told: &[(usize, ToldAnswers)], numbers: &mut Vec<f32>) {
        for (i, answers) in self.answers.iter().enumerate() {
            match told.iter().find(|(of, _)| *of == i) {
                None => numbers.resize(numbers.len() + self.of(*answers), 0.0),
                Some((_, told)) => {
                    let parts = [&told.losses].into_iter().chain(&told.terms);
                    let parts = parts.chain([&told.rewards, &told.log_likelihoods]);
                    numbers.extend(parts.flat_map(metrics::host));
                }
            }
        }
    }

    /// The same as tensors, one after the other.
    pub(crate) fn tensors(&self, told: &[(usize, ToldAnswers)], device: &Device) -> Vec<Tensor<1>> {
        let each = self.answers.iter().enumerate().map(|(i, answers)| {
            match told.iter().find(|(of, _)| *of == i) {
                None => vec![Tensor::zeros([self.of(*answers)], (device, DType::F32))],
                Some((_, told)) => {
                    let parts = [&told.losses].into_iter().chain(&told.terms);
                    let parts = parts.chain([&told.rewards, &told.log_likelihoods]);
                    parts.map(|part| part.clone().cast(DType::F32)).collect()
                }
            }
        });
        each.flatten().collect()
    }

    /// What came of every micro-batch.
    pub(crate) fn read(&self, numbers: &[f32], device: &Device) -> Vec<ToldAnswers> {
        let mut numbers = numbers.iter();
        let each = self.answers.iter().map(|&answers| {
            let losses = self.objective.losses(answers);
            ToldAnswers {
                losses: next(&mut numbers, losses, device),
                terms: self
                    .objective
                    .terms()
                    .map(|_| next(&mut numbers, losses, device))
                    .collect(),
                rewards: next(&mut numbers, answers, device),
                log_likelihoods: next(&mut numbers, answers, device),
            }
        });
        each.collect()
    }
}

fn next(numbers: &mut Iter<'_, f32>, count: usize, device: &Device) -> Tensor<1> {
    floats(numbers.by_ref().take(count).copied(), device)
}
