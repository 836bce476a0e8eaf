//! What the answers of a row are to each other, where some are better than others.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::IGNORE_INDEX;

/// How a row's tokens are answers to compare.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Answers {
    /// Nothing is compared: the row is one text to learn from.
    #[default]
    One,
    /// The prompt with the chosen answer, and behind it, from this token on, the prompt with the rejected one.
    Pair {
        /// Where the second text begins.
        rejected: usize,
        /// How much higher the chosen one should be rated, where the row says so; finite.
        margin: Option<f32>,
    },
    /// One answer, and whether it is a good one.
    Judged {
        /// Whether it is to become more likely.
        desirable: bool,
    },
}

/// What one text is to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is learned from, and compared with nothing.
    Plain,
    /// Chosen from a pair, or desirable.
    Good,
    /// Rejected of a pair, or undesirable.
    Bad,
}

impl Answers {
    /// The texts of a row of `tokens` tokens, each with what it is.
    pub fn texts(self, tokens: usize) -> impl Iterator<Item = (Range<usize>, Answer)> {
        let (first, second) = match self {
            Self::One => ((0..tokens, Answer::Plain), None),
            Self::Pair { rejected, .. } => {
                let middle = rejected.min(tokens);
                let second = (middle..tokens, Answer::Bad);
                ((0..middle, Answer::Good), Some(second))
            }
            Self::Judged { desirable: true } => ((0..tokens, Answer::Good), None),
            Self::Judged { desirable: false } => ((0..tokens, Answer::Bad), None),
        };
        std::iter::once(first).chain(second)
    }

    /// The margin of a pair whose row has one.
    pub const fn margin(self) -> Option<f32> {
        match self {
            Self::Pair { margin, .. } => margin,
            Self::One | Self::Judged { .. } => None,
        }
    }

    /// How many labels of a row are predicted: the first of each text never is.
    pub(crate) fn supervised_tokens(self, labels: &[i64]) -> usize {
        let texts = self.texts(labels.len());
        texts
            .map(|(text, _)| supervised_tokens(&labels[text]))
            .sum()
    }

    /// Tokens of the longest text of a row of `tokens` tokens.
    pub fn longest(self, tokens: usize) -> usize {
        let lengths = self.texts(tokens).map(|(text, _)| text.len());
        lengths.max().unwrap_or(0)
    }

    /// The row with every text cut after `limit` tokens.
    pub(crate) fn cut(
        self,
        (ids, labels): (Vec<u32>, Vec<i64>),
        limit: usize,
    ) -> (Vec<u32>, Vec<i64>, Self) {
        let Self::Pair { rejected, margin } = self else {
            let (mut ids, mut labels) = (ids, labels);
            ids.truncate(limit);
            labels.truncate(limit);
            return (ids, labels, self);
        };
        let kept: Vec<usize> = self
            .texts(ids.len())
            .flat_map(|(text, _)| text.take(limit))
            .collect();
        (
            kept.iter().map(|at| ids[*at]).collect(),
            kept.iter().map(|at| labels[*at]).collect(),
            Self::Pair {
                rejected: rejected.min(limit),
                margin,
            },
        )
    }
}

/// How rows of answers to compare divide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Comparisons {
    /// Pairs.
    pub pairs: usize,
    /// Trained tokens of their chosen answers.
    pub chosen_tokens: u64,
    /// Trained tokens of their rejected answers.
    pub rejected_tokens: u64,
    /// Pairs whose chosen answer has more tokens than the rejected one.
    pub chosen_longer: usize,
    /// Pairs whose rejected answer has more.
    pub rejected_longer: usize,
    /// The margins of pairs whose rows have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margins: Option<Margins>,
    /// Rows with one answer that is desirable.
    pub desirable: usize,
    /// Rows with one answer that is not.
    pub undesirable: usize,
}

/// How much higher chosen answers should be rated, by their rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Margins {
    /// Pairs that have a margin.
    pub pairs: usize,
    /// Sum of their margins.
    pub sum: f64,
    /// The lowest of them.
    pub lowest: f32,
    /// The highest.
    pub highest: f32,
}

impl Margins {
    /// Those of one pair more.
    fn with(before: Option<Self>, margin: f32) -> Self {
        let before = before.unwrap_or(Self {
            pairs: 0,
            sum: 0.0,
            lowest: margin,
            highest: margin,
        });
        Self {
            pairs: before.pairs + 1,
            sum: before.sum + f64::from(margin),
            lowest: before.lowest.min(margin),
            highest: before.highest.max(margin),
        }
    }

    /// Their mean.
    pub fn mean(&self) -> f64 {
        self.sum / self.pairs as f64
    }
}

impl Comparisons {
    /// Counts a row that is kept.
    pub(crate) fn add(&mut self, answers: Answers, labels: &[i64]) {
        match answers {
            Answers::One => {}
            Answers::Judged { desirable: true } => self.desirable += 1,
            Answers::Judged { desirable: false } => self.undesirable += 1,
            Answers::Pair { margin, .. } => {
                if let Some(margin) = margin {
                    self.margins = Some(Margins::with(self.margins, margin));
                }
                let mut tokens = answers.texts(labels.len());
                let mut next = || {
                    let text = tokens.next().map_or(0..0, |(text, _)| text);
                    supervised_tokens(&labels[text])
                };
                let (chosen, rejected) = (next(), next());
                self.pairs += 1;
                self.chosen_tokens += chosen as u64;
                self.rejected_tokens += rejected as u64;
                self.chosen_longer += usize::from(chosen > rejected);
                self.rejected_longer += usize::from(rejected > chosen);
            }
        }
    }

    /// Whether there are no such rows.
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }

    /// Tokens of chosen answers over those of rejected ones; `None` where there are none.
    pub fn length_ratio(&self) -> Option<f64> {
        let both = self.chosen_tokens > 0 && self.rejected_tokens > 0;
        both.then(|| self.chosen_tokens as f64 / self.rejected_tokens as f64)
    }

    /// Share of rows with one answer that is desirable; `None` where there are no such rows.
    pub fn desirable_share(&self) -> Option<f64> {
        let rows = self.desirable + self.undesirable;
        (rows > 0).then(|| self.desirable as f64 / rows as f64)
    }

    /// What is worth knowing about all of them together, a sentence each.
    pub fn notes(&self) -> Vec<String> {
        /// Answers that differ by more than this teach length.
        const BIAS: f64 = 1.2;
        /// KTO's own advice: weights bring the two sides within 4 to 3.
        const BALANCE: f64 = 4.0 / 3.0;
        let mut notes = Vec::new();
        if let Some(ratio) = self.length_ratio().filter(|r| *r > BIAS || *r < 1.0 / BIAS) {
            let mean = |tokens: u64| tokens as f64 / self.pairs.max(1) as f64;
            let (longer, shorter) = match ratio > 1.0 {
                true => ("chosen", "rejected"),
                false => ("rejected", "chosen"),
            };
            let ratio = ratio.max(1.0 / ratio);
            notes.push(format!(
                "{longer} answers are {ratio:.2} times as long as {shorter} ones ({:.1} tokens chosen, {:.1} rejected, on \
                 average), so that length is learned too; sums over tokens feel it most: loss = \"sigmoid_norm\" or \"ipo\", \
                 or kind = \"simpo\", go by means",
                mean(self.chosen_tokens),
                mean(self.rejected_tokens),
            ));
        }
        let (desirable, undesirable) = (self.desirable, self.undesirable);
        if desirable + undesirable > 0 {
            let (more, fewer) = (desirable.max(undesirable), desirable.min(undesirable));
            if fewer == 0 {
                let which = if desirable > 0 {
                    "desirable"
                } else {
                    "undesirable"
                };
                notes.push(format!(
                    "every answer is {which}: nothing is compared with the other kind"
                ));
            } else if more as f64 > BALANCE * fewer as f64 {
                let weight = match desirable > undesirable {
                    true => "undesirable_weight",
                    false => "desirable_weight",
                };
                notes.push(format!(
                    "{desirable} desirable answers and {undesirable} undesirable ones; objective.{weight} = {:.2} makes \
                     the two sides weigh the same",
                    more as f64 / fewer as f64
                ));
            }
        }
        notes
    }
}

/// How many labels are predicted.
pub(crate) fn supervised_tokens(labels: &[i64]) -> usize {
    labels
        .iter()
        .skip(1)
        .filter(|label| **label != IGNORE_INDEX)
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: i64 = IGNORE_INDEX;

    fn pair(rejected: usize) -> Answers {
        Answers::Pair {
            rejected,
            margin: None,
        }
    }

    #[test]
    fn a_pair_is_two_texts_that_are_cut_one_by_one() {
        let four = pair(4);
        let texts: Vec<_> = four.texts(7).collect();
        assert_eq!(texts, [(0..4, Answer::Good), (4..7, Answer::Bad)]);
        assert_eq!((four.longest(7), Answers::One.longest(7)), (4, 7));
        let row = (vec![1, 2, 3, 4, 1, 5, 6], vec![X, X, 3, 4, X, 5, 6]);
        assert_eq!(four.supervised_tokens(&row.1), 4);
        let (ids, labels, cut) = four.cut(row, 3);
        assert_eq!(ids, [1, 2, 3, 1, 5, 6]);
        assert_eq!(labels, [X, X, 3, X, 5, 6]);
        assert_eq!(cut, pair(3));
        // Nothing precedes the first token of either text.
        assert_eq!(pair(2).supervised_tokens(&[1, 2, 3, 4]), 2);
    }

    #[test]
    fn margins_stay_with_their_pairs_and_are_counted() {
        let pair = |margin| Answers::Pair {
            rejected: 2,
            margin,
        };
        let (.., cut) = pair(Some(0.5)).cut((vec![1; 4], vec![1; 4]), 1);
        assert_eq!(cut.margin(), Some(0.5));
        assert_eq!(Answers::One.margin(), None);
        let mut all = Comparisons::default();
        for margin in [Some(0.5), None, Some(-1.0), Some(2.0)] {
            all.add(pair(margin), &[X, 1, X, 1]);
        }
        let found = all.margins.unwrap();
        assert_eq!((all.pairs, found.pairs, found.mean()), (4, 3, 0.5));
        assert_eq!((found.lowest, found.highest), (-1.0, 2.0));
    }

    #[test]
    fn bias_and_balance_are_said_with_their_numbers() {
        let mut all = Comparisons::default();
        for _ in 0..3 {
            all.add(pair(4), &[X, 2, 3, 4, X, 2]);
        }
        assert_eq!(
            (all.pairs, all.chosen_tokens, all.rejected_tokens),
            (3, 9, 3)
        );
        assert_eq!((all.chosen_longer, all.rejected_longer), (3, 0));
        let notes = all.notes();
        assert!(
            notes[0].starts_with("chosen answers are 3.00 times as long as rejected ones (3.0 tokens chosen, 1.0 rejected"),
            "{notes:?}"
        );
        let judged = |desirable, undesirable| Comparisons {
            desirable,
            undesirable,
            ..Comparisons::default()
        };
        assert!(judged(4, 3).notes().is_empty());
        assert_eq!(judged(1, 3).desirable_share(), Some(0.25));
        assert_eq!(
            judged(1, 3).notes(),
            [
                "1 desirable answers and 3 undesirable ones; objective.desirable_weight = 3.00 makes the two sides weigh the \
              same"
            ]
        );
        assert_eq!(
            judged(0, 3).notes(),
            ["every answer is undesirable: nothing is compared with the other kind"]
        );
        assert!(Comparisons::default().notes().is_empty());
    }
}
