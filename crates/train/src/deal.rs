//! From rows laid end to end to what a step computes on, where answers are compared.

use backdraft_data::{Answer, Batch, IGNORE_INDEX};
use backdraft_model::{Targets, Tokens};

use crate::compared::Compared;
use crate::objective::Objective;
use crate::step::MicroBatch;

/// How answers are dealt out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deal {
    /// What is minimised.
    pub objective: Objective,
    /// Tokens after which a text is cut.
    pub max_seq_length: usize,
}

impl Deal {
    /// A micro-batch with its answers.
    pub fn micro_batch(self, batch: &Batch) -> (MicroBatch, Compared) {
        if self.objective.scores() {
            return scored(batch);
        }
        let mut labels = batch.labels.clone();
        if self.objective.learns_prompts() {
            for (ends, answer) in batch.cu_seqlens.windows(2).zip(&batch.answers) {
                if *answer == Answer::Good {
                    let at = ends[0] as usize..ends[1] as usize;
                    let ids = batch.input_ids[at.clone()].iter();
                    for (label, &id) in labels[at].iter_mut().zip(ids) {
                        *label = i64::from(id);
                    }
                }
            }
        }
        let documents: Vec<&[u32]> = documents(batch).map(|(ids, _)| ids).collect();
        let tokens = Tokens::from_sequences(&documents);
        let targets = Targets::from_labels(&tokens.segments, &labels);
        // The row of the hidden states that predicts a token is the one before it.
        let is_trained = |row: &u32| batch.labels[*row as usize + 1] != IGNORE_INDEX;
        let in_answer = targets.rows.iter().map(is_trained).collect();
        let of = (&targets, &tokens.segments);
        let compared = Compared::new(of, in_answer, &batch.answers);
        (MicroBatch { tokens, targets }, compared)
    }

    /// The prompts of a step's texts with the answers of the texts before them, the last one's for the first: what tells how
    /// far the policy has gone from the reference. Empty where nothing asks.
    ///
    /// Passes have as many tokens as the largest of `batches` at most, or one text, which is cut as rows are: no pass is
    /// larger than one that is trained.
    pub fn mismatched(self, batches: &[Batch]) -> Vec<MicroBatch> {
        if !self.objective.measures_divergence() {
            return Vec::new();
        }
        let texts: Vec<Text<'_>> = batches.iter().flat_map(documents).collect();
        let room = batches.iter().map(Batch::tokens).max().unwrap_or(0);
        self.mix(texts.last().copied(), &texts, room)
    }

    /// The same for a part of many texts; `before` are those before it.
    pub fn mismatched_after(self, before: &Batch, batch: &Batch) -> Vec<MicroBatch> {
        if !self.objective.measures_divergence() {
            return Vec::new();
        }
        let texts: Vec<Text<'_>> = documents(batch).collect();
        self.mix(documents(before).last(), &texts, batch.tokens())
    }

    fn mix(self, before: Option<Text<'_>>, texts: &[Text<'_>], room: usize) -> Vec<MicroBatch> {
        let before = before.iter().chain(texts);
        let mixed = before
            .zip(texts)
            .map(|(before, text)| self.mixed(*before, *text));
        let mut passes: Vec<Vec<(Vec<u32>, Vec<i64>)>> = Vec::new();
        let mut left = 0;
        for text in mixed {
            let length = text.0.len();
            match passes.last_mut().filter(|_| length <= left) {
                Some(pass) => {
                    left -= length;
                    pass.push(text);
                }
                None => {
                    left = room.saturating_sub(length);
                    passes.push(vec![text]);
                }
            }
        }
        passes.into_iter().map(pass).collect()
    }

    /// The prompt of one text with the answer of another.
    fn mixed(
        self,
        (answer_ids, answer_labels): Text<'_>,
        (ids, labels): Text<'_>,
    ) -> (Vec<u32>, Vec<i64>) {
        let prompt = answer_start(labels);
        let answer = answer_start(answer_labels);
        let mut mixed_ids = [&ids[..prompt], &answer_ids[answer..]].concat();
        let mut mixed_labels = vec![IGNORE_INDEX; prompt];
        mixed_labels.extend(&answer_labels[answer..]);
        mixed_ids.truncate(self.max_seq_length);
        mixed_labels.truncate(self.max_seq_length);
        (mixed_ids, mixed_labels)
    }
}

/// Texts that a head scores, by the last token of each.
pub fn scored(batch: &Batch) -> (MicroBatch, Compared) {
    let (documents, lengths): (Vec<&[u32]>, Vec<usize>) = documents(batch)
        .map(|(ids, labels)| {
            let answer = labels.iter().filter(|label| **label != IGNORE_INDEX);
            (ids, answer.count())
        })
        .unzip();
    let tokens = Tokens::from_sequences(&documents);
    let targets = Targets::last_tokens(&tokens);
    let in_answer = vec![true; targets.len()];
    let of = (&targets, &tokens.segments);
    let compared = Compared::new(of, in_answer, &batch.answers).of_lengths(lengths);
    let compared = compared.with_margins(batch.margins.clone());
    (MicroBatch { tokens, targets }, compared)
}

/// Where the answer of a text begins.
fn answer_start(labels: &[i64]) -> usize {
    let trained = labels.iter().position(|label| *label != IGNORE_INDEX);
    trained.unwrap_or(labels.len())
}

fn pass(texts: Vec<(Vec<u32>, Vec<i64>)>) -> MicroBatch {
    let (ids, labels): (Vec<Vec<u32>>, Vec<Vec<i64>>) = texts.into_iter().unzip();
    let tokens = Tokens::from_sequences(&ids);
    let targets = Targets::from_labels(&tokens.segments, &labels.concat());
    MicroBatch { tokens, targets }
}

/// Ids and labels.
type Text<'a> = (&'a [u32], &'a [i64]);

fn documents(batch: &Batch) -> impl Iterator<Item = Text<'_>> {
    batch.cu_seqlens.windows(2).map(|ends| {
        let range = ends[0] as usize..ends[1] as usize;
        (&batch.input_ids[range.clone()], &batch.labels[range])
    })
}

#[cfg(test)]
mod tests {
    use backdraft_data::pipeline::TokenizedRow;
    use backdraft_data::{Answers, RowSet, TokenRows};

    use super::*;
    use crate::objective::SingleLoss;

    const X: i64 = IGNORE_INDEX;

    fn deal(objective: Objective) -> Deal {
        Deal {
            objective,
            max_seq_length: 5,
        }
    }

    fn rows(rows: &[(&[u32], usize, Answers)]) -> RowSet {
        let rows = rows.iter().map(|&(ids, prompt, answers)| {
            let mut labels: Vec<i64> = ids.iter().map(|id| i64::from(*id)).collect();
            labels[..prompt].fill(X);
            if let Answers::Pair { rejected, .. } = answers {
                labels[rejected..rejected + prompt].fill(X);
            }
            TokenizedRow {
                input_ids: ids.to_vec(),
                labels,
                answers,
                file: 0,
                line: 1,
                key: 0,
            }
        });
        RowSet::new(TokenRows::Memory(rows.collect()), &[])
    }

    #[test]
    fn a_pair_is_two_segments_of_one_micro_batch() {
        let pair = Answers::Pair {
            rejected: 4,
            margin: None,
        };
        let rows = rows(&[
            (&[1, 2, 3, 4, 1, 2, 5], 2, pair),
            (&[6, 7, 8, 9, 6, 7, 9], 2, pair),
        ]);
        let batch = Batch::from_rows(&rows, &[0, 1]).unwrap();
        let dpo = Objective::from(backdraft_recipe::ObjectiveRecipe::Dpo {
            beta: 0.1,
            losses: backdraft_recipe::DpoLosses::default(),
            label_smoothing: 0.0,
            sft_weight: 0.0,
            reference: backdraft_recipe::ReferenceStart::Start,
            precompute_reference: false,
        });
        let (found, compared) = deal(dpo).micro_batch(&batch);
        assert_eq!(found.targets.ids, [3, 4, 5, 8, 9, 9]);
        assert_eq!(compared.good, [true, false, true, false]);
        assert_eq!(compared.lengths, [2, 1, 2, 1]);
        assert!(
            deal(dpo)
                .mismatched(std::slice::from_ref(&batch))
                .is_empty()
        );
        let orpo = backdraft_recipe::ObjectiveRecipe::Orpo { beta: 0.1 };
        let (found, compared) = deal(orpo.into()).micro_batch(&batch);
        assert_eq!(found.targets.ids, [2, 3, 4, 5, 7, 8, 9, 9]);
        assert_eq!(
            (compared.lengths.as_slice(), compared.good_targets()),
            (&[2, 1, 2, 1][..], 6)
        );
    }

    #[test]
    fn what_a_head_scores_has_the_margin_of_its_row() {
        let pair = |margin| Answers::Pair {
            rejected: 2,
            margin,
        };
        let rows = rows(&[
            (&[1, 2, 1, 3], 1, pair(Some(0.5))),
            (&[4, 5, 4, 6], 1, pair(None)),
        ]);
        let batch = Batch::from_rows(&rows, &[0, 1]).unwrap();
        assert_eq!(batch.padded(0).unwrap().margins, batch.margins);
        let (_, compared) = scored(&batch);
        assert_eq!(compared.margins, [0.5, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn prompts_meet_the_answer_before_them() {
        let judged = |desirable| Answers::Judged { desirable };
        let rows = rows(&[
            (&[1, 2, 3, 4], 2, judged(true)),
            (&[5, 6, 7], 1, judged(false)),
            (&[8, 9, 10, 11], 3, judged(true)),
        ]);
        let kto = deal(Objective::Single(SingleLoss {
            beta: 0.1,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
        }));
        let of = |groups: &[&[usize]]| {
            let batches: Vec<Batch> = groups
                .iter()
                .map(|rows_of| Batch::from_rows(&rows, rows_of).unwrap())
                .collect();
            let passes = kto.mismatched(&batches);
            let texts: Vec<Vec<u32>> = passes
                .iter()
                .flat_map(|pass| {
                    let segments = pass.tokens.segments.iter();
                    segments.map(|(rows, _)| pass.tokens.input_ids[rows].to_vec())
                })
                .collect();
            let targets: Vec<u32> = passes
                .iter()
                .flat_map(|pass| pass.targets.ids.clone())
                .collect();
            (texts, targets, passes.len())
        };
        // The third is cut as rows are.
        let texts = vec![vec![1, 2, 11], vec![5, 3, 4], vec![8, 9, 10, 6, 7]];
        let targets = vec![11, 3, 4, 6, 7];
        assert_eq!(of(&[&[0, 1, 2]]), (texts.clone(), targets.clone(), 1));
        assert_eq!(of(&[&[0, 1], &[2]]), (texts, targets, 2));
    }
}
