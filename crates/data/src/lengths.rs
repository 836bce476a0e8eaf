//! How long rows are.

use serde::{Deserialize, Serialize};

/// Rows by length in tokens, in classes that double.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LengthHistogram {
    /// Rows of 0 to 16 tokens, 17 to 32, 33 to 64, and so on.
    classes: Vec<usize>,
}

/// The upper end of the first class.
const FIRST: usize = 16;

impl LengthHistogram {
    /// Counts a row.
    pub fn add(&mut self, length: usize) {
        let class = length
            .div_ceil(FIRST)
            .max(1)
            .next_power_of_two()
            .trailing_zeros() as usize;
        if self.classes.len() <= class {
            self.classes.resize(class + 1, 0);
        }
        self.classes[class] += 1;
    }

    /// Shortest and longest length of each class, with its rows.
    pub fn classes(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        self.classes.iter().enumerate().map(|(class, rows)| {
            let longest = FIRST << class;
            let shortest = if class == 0 { 0 } else { longest / 2 + 1 };
            (shortest, longest, *rows)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::LengthHistogram;

    #[test]
    fn classes_double() {
        let mut lengths = LengthHistogram::default();
        for length in [0, 16, 17, 32, 33, 64, 65, 200] {
            lengths.add(length);
        }
        let classes: Vec<_> = lengths.classes().collect();
        assert_eq!(
            classes,
            [
                (0, 16, 2),
                (17, 32, 2),
                (33, 64, 2),
                (65, 128, 1),
                (129, 256, 1)
            ]
        );
    }
}
