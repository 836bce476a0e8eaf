//! Which rows are kept for evaluation.

use std::collections::HashSet;

use crate::error::DataError;
use crate::rng::SplitMix64;

/// Rows of a data set, by number, on two sides; no row of one side says the same as one of the
/// other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvalSplit {
    /// Rows to train on, ascending.
    pub train: Vec<usize>,
    /// Rows to evaluate on, ascending.
    pub eval: Vec<usize>,
}

/// Sets a share of the rows aside, chosen by a seed and by what the rows say: their order does not
/// matter, and equal rows stay together.
///
/// `keys` are those of [`TokenRows::keys`](crate::store::TokenRows::keys).
///
/// # Errors
/// [`DataError::Option`] for a share that is not between 0 and 1, and where one side would be empty.
pub fn split_fraction(keys: &[u64], fraction: f64, seed: u64) -> Result<EvalSplit, DataError> {
    let error = |expected: &str, actual: String| DataError::Option {
        option: "eval",
        expected: expected.to_owned(),
        actual,
    };
    if !(fraction > 0.0 && fraction < 1.0) {
        return Err(error("a share between 0 and 1", fraction.to_string()));
    }
    let score = |key: &u64| SplitMix64::stream(seed, *key).next_u64();
    let wanted = ((keys.len() as f64 * fraction).round() as usize).max(1);
    let mut scores: Vec<u64> = keys.iter().map(score).collect();
    if wanted >= scores.len() {
        let actual = format!("{fraction} of {} rows", keys.len());
        return Err(error("a share that leaves rows on both sides", actual));
    }
    let (_, limit, _) = scores.select_nth_unstable(wanted - 1);
    let limit = *limit;
    let (eval, train): (Vec<usize>, Vec<usize>) =
        (0..keys.len()).partition(|row| score(&keys[*row]) <= limit);
    if train.is_empty() {
        let actual = "rows that all say the same".to_owned();
        return Err(error("different rows to choose from", actual));
    }
    Ok(EvalSplit { train, eval })
}

/// How many rows of an evaluation set say the same as a row to train on.
pub fn count_seen(train_keys: &[u64], eval_keys: &[u64]) -> usize {
    let eval: HashSet<u64> = eval_keys.iter().copied().collect();
    let seen: HashSet<u64> = train_keys
        .iter()
        .copied()
        .filter(|key| eval.contains(key))
        .collect();
    eval_keys.iter().filter(|key| seen.contains(key)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_the_share_that_was_asked_for() {
        let keys: Vec<u64> = (0..1000).collect();
        let split = split_fraction(&keys, 0.05, 42).unwrap();
        assert_eq!((split.train.len(), split.eval.len()), (950, 50));
        assert_eq!(split, split_fraction(&keys, 0.05, 42).unwrap());
        assert_ne!(split.eval, split_fraction(&keys, 0.05, 43).unwrap().eval);
        assert_eq!(split_fraction(&keys, 0.000_1, 1).unwrap().eval.len(), 1);
    }

    #[test]
    fn refuses_what_leaves_a_side_empty() {
        let message =
            |keys: &[u64], fraction| split_fraction(keys, fraction, 1).unwrap_err().to_string();
        assert_eq!(
            message(&[1, 2], 1.0),
            "eval: expected a share between 0 and 1, found 1"
        );
        assert_eq!(
            message(&[1], 0.5),
            "eval: expected a share that leaves rows on both sides, found 0.5 of 1 rows"
        );
        assert_eq!(
            message(&[7; 10], 0.5),
            "eval: expected different rows to choose from, found rows that all say the same"
        );
        assert_eq!(count_seen(&[1, 2], &[2, 3, 1, 3]), 2);
        assert_eq!(count_seen(&[1, 2], &[]), 0);
    }

    proptest! {
        #[test]
        fn sides_are_whole_and_share_nothing(keys in proptest::collection::vec(0u64..40, 2..80), fraction in 0.01f64..0.99, seed: u64) {
            if let Ok(split) = split_fraction(&keys, fraction, seed) {
                let mut all = [split.train.clone(), split.eval.clone()].concat();
                all.sort_unstable();
                prop_assert!(all.into_iter().eq(0..keys.len()));
                let train: HashSet<u64> = split.train.iter().map(|row| keys[*row]).collect();
                prop_assert!(split.eval.iter().all(|row| !train.contains(&keys[*row])));
                // The choice is by content: in another order the same keys are chosen.
                let reversed: Vec<u64> = keys.iter().rev().copied().collect();
                let other = split_fraction(&reversed, fraction, seed).unwrap();
                let chosen: HashSet<u64> = split.eval.iter().map(|row| keys[*row]).collect();
                let other: HashSet<u64> = other.eval.iter().map(|row| reversed[*row]).collect();
                prop_assert_eq!(chosen, other);
            }
        }
    }
}
