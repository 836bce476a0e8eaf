//! Scores of generated answers.

use serde::Serialize;

/// Means over pairs of a generated and an expected answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GenerationScores {
    /// Pairs compared.
    pub rows: usize,
    /// Share of answers that equal the expected one but for whitespace at both ends, 0 to 1.
    pub exact_match: f64,
    /// Share of answers whose first word is the expected first word, 0 to 1.
    pub first_word: f64,
}

impl GenerationScores {
    /// Scores `(generated, expected)` pairs; all 0 where there are none.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let (mut rows, mut exact, mut first) = (0usize, 0usize, 0usize);
        for (generated, expected) in pairs {
            rows += 1;
            exact += usize::from(is_exact(generated, expected));
            first += usize::from(has_first_word(generated, expected));
        }
        let share = |count: usize| {
            if rows == 0 {
                0.0
            } else {
                count as f64 / rows as f64
            }
        };
        Self {
            rows,
            exact_match: share(exact),
            first_word: share(first),
        }
    }
}

/// Whether two answers are equal but for whitespace at both ends.
pub fn is_exact(generated: &str, expected: &str) -> bool {
    generated.trim() == expected.trim()
}

/// Whether two answers begin with the same word; two empty answers do.
pub fn has_first_word(generated: &str, expected: &str) -> bool {
    generated.split_whitespace().next() == expected.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::GenerationScores;

    #[test]
    fn counts_exact_and_first_word() {
        let scores = GenerationScores::new([
            (" ls -l\n", "ls -l"),
            ("ls -a", "ls -l"),
            ("lsof", "ls"),
            ("", "ls"),
            ("", " "),
        ]);
        assert_eq!(
            scores,
            GenerationScores {
                rows: 5,
                exact_match: 0.4,
                first_word: 0.6
            }
        );
        assert_eq!(GenerationScores::new([]), GenerationScores::default());
    }
}
