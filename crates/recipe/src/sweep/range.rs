//! A range of numbers to try.

/// Numbers between two ends, which belong to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Range {
    pub(crate) min: f64,
    /// Above `min`.
    pub(crate) max: f64,
    /// Equal factors instead of equal distances; `min` is above 0 then.
    pub(crate) log: bool,
    /// Whole numbers only.
    pub(crate) whole: bool,
    /// How many of its numbers there are, 2 or more; `None` is any.
    pub(crate) steps: Option<usize>,
}

impl Range {
    /// Its numbers as TOML, rising, each once; `None` where it has any.
    pub(crate) fn values(&self) -> Option<Vec<String>> {
        let steps = self.steps?;
        let last = (steps - 1) as f64;
        let mut values: Vec<String> = (0..steps).map(|i| self.at(i as f64 / last)).collect();
        values.dedup();
        Some(values)
    }

    /// The number at a share of the way, from 0 to 1, as TOML: what is shown is what is used.
    pub(crate) fn at(&self, share: f64) -> String {
        let value = match self.log {
            true => self.min * (self.max / self.min).powf(share),
            false => self.min + (self.max - self.min) * share,
        };
        if self.whole {
            return format!("{:.0}", value.round().clamp(self.min, self.max));
        }
        let short = match share {
            // The ends are as they were written.
            0.0 => self.min,
            1.0 => self.max,
            _ => format!("{value:.2e}").parse().unwrap_or(value),
        };
        format!("{:?}", f64::clamp(short, self.min, self.max))
    }

    /// The number that a uniform draw from `[0, 1)` stands for.
    pub(crate) fn draw(&self, uniform: f64) -> String {
        match self.values() {
            Some(values) => values[(uniform * values.len() as f64) as usize].clone(),
            // Each whole number has as much of the range as any other.
            None if self.whole && !self.log => {
                let count = self.max - self.min + 1.0;
                format!("{:.0}", self.min + (uniform * count).floor())
            }
            None => self.at(uniform),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Range = Range {
        min: 1e-5,
        max: 1e-3,
        log: true,
        whole: false,
        steps: Some(5),
    };

    #[test]
    fn values_are_what_is_written_and_the_ends_are_among_them() {
        let values = RATES.values().unwrap();
        assert_eq!(values, ["1e-5", "3.16e-5", "0.0001", "0.000316", "0.001"]);
        let ranks = Range {
            min: 4.0,
            max: 64.0,
            whole: true,
            ..RATES
        };
        assert_eq!(ranks.values().unwrap(), ["4", "8", "16", "32", "64"]);
        let few = Range {
            min: 1.0,
            max: 2.0,
            whole: true,
            log: false,
            steps: Some(9),
        };
        assert_eq!(few.values().unwrap(), ["1", "2"]);
        let linear = Range {
            min: 0.0,
            max: 0.12345,
            log: false,
            whole: false,
            steps: Some(3),
        };
        assert_eq!(linear.values().unwrap(), ["0.0", "0.0617", "0.12345"]);
    }

    #[test]
    fn draws_lie_in_the_range_and_reach_both_ends() {
        let any = Range {
            steps: None,
            ..RATES
        };
        for (uniform, expected) in [(0.0, 1e-5), (0.5, 1e-4), (0.999_999_999, 1e-3)] {
            let drawn: f64 = any.draw(uniform).parse().unwrap();
            assert!((drawn / expected - 1.0).abs() < 1e-6, "{drawn}");
        }
        let whole = Range {
            min: 1.0,
            max: 3.0,
            log: false,
            whole: true,
            steps: None,
        };
        let drawn = [0.0, 0.32, 0.34, 0.66, 0.67, 0.99].map(|uniform| whole.draw(uniform));
        assert_eq!(drawn, ["1", "1", "2", "2", "3", "3"]);
        assert_eq!(RATES.draw(0.99), "0.001");
    }
}
