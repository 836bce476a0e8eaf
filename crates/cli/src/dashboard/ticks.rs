//! Round numbers along an axis.

/// An axis whose ends and marks are round numbers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ticks {
    /// From the lowest to the highest, evenly apart.
    pub(super) values: Vec<f64>,
    /// Between two of them.
    step: f64,
}

impl Ticks {
    /// At most `most` marks, two at least, around finite values from `low` to `high`.
    pub(super) fn around(low: f64, high: f64, most: usize) -> Self {
        let (low, high) = match high - low > 1e-9 * high.abs().max(1e-12) {
            true => (low, high),
            // One value only: a range around it, from 0 where that is near.
            false if low == 0.0 => (0.0, 1.0),
            false => (low - 0.1 * low.abs(), high + 0.1 * high.abs()),
        };
        let most = most.max(2);
        // Rounding outwards may take one step more than the range has: try the next larger ones.
        let mut step = round_up((high - low) / (most - 1) as f64);
        loop {
            let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
            let count = (last - first) as usize + 1;
            if count <= most {
                let values = (0..count).map(|i| (first + i as f64) * step).collect();
                return Self { values, step };
            }
            step = round_up(1.01 * step);
        }
    }

    /// The ends.
    pub(super) fn bounds(&self) -> [f64; 2] {
        let end = |value: Option<&f64>| value.copied().unwrap_or_default();
        [end(self.values.first()), end(self.values.last())]
    }

    /// The marks in as few digits as tell them apart.
    pub(super) fn labels(&self) -> Vec<String> {
        let largest = self
            .values
            .iter()
            .fold(0.0f64, |most, value| most.max(value.abs()));
        self.values
            .iter()
            .map(|value| label(*value, self.step, largest))
            .collect()
    }
}

/// The next of 1, 2, 2.5, 5 and 10 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let round = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
    round
        .into_iter()
        .find(|round| *round >= value * (1.0 - 1e-9))
        .unwrap_or(10.0 * power)
}

fn label(value: f64, step: f64, largest: f64) -> String {
    if value.abs() < 1e-9 * step {
        return "0".to_owned();
    }
    if (1e-3..1e6).contains(&largest) {
        return format!("{value:.*}", decimals(step));
    }
    let power = value.abs().log10().floor();
    let unit = 10f64.powf(power);
    format!("{:.*}e{power}", decimals(step / unit), value / unit)
}

/// Digits after the point that multiples of `step` need.
fn decimals(step: f64) -> usize {
    (0..12)
        .find(|digits| {
            let scaled = step * 10f64.powi(*digits);
            (scaled - scaled.round()).abs() < 1e-6 * scaled
        })
        .unwrap_or(12) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64, most: usize) -> String {
        Ticks::around(low, high, most).labels().join(" ")
    }

    #[test]
    fn labels_are_round_and_hold_the_values() {
        for (low, high, most, text) in [
            (0.96, 2.07, 5, "0.5 1.0 1.5 2.0 2.5"),
            (0.96, 2.07, 4, "0 1 2 3"),
            (0.96, 2.07, 3, "0 2 4"),
            (1.2, 2.0, 5, "1.2 1.4 1.6 1.8 2.0"),
            (0.0, 1.986e-4, 3, "0 1e-4 2e-4"),
            (0.0, 2.1e-5, 3, "0 2e-5 4e-5"),
            (400.0, 431.0, 3, "400 420 440"),
            (3.4e6, 5.1e6, 3, "2e6 4e6 6e6"),
            (0.7, 0.9, 2, "0.5 1.0"),
            (5.0, 5.0, 3, "4.5 5.0 5.5"),
            (0.0, 0.0, 2, "0 1"),
            (-1.0, 1.0, 3, "-1 0 1"),
        ] {
            assert_eq!(labels(low, high, most), text, "{low} to {high}");
        }
    }

    #[test]
    fn every_range_has_its_values_inside_and_few_marks() {
        for i in 0..400 {
            let low = 1e-6 * 1.1f64.powi(i % 160);
            for width in [1e-6, 0.01, 0.3, 1.0, 40.0] {
                let high = low * (1.0 + width);
                for most in 2..8 {
                    let ticks = Ticks::around(low, high, most);
                    let [first, last] = ticks.bounds();
                    assert!(
                        first <= low * (1.0 + 1e-6) && last >= high * (1.0 - 1e-6),
                        "{low} {high}"
                    );
                    assert!((2..=most).contains(&ticks.values.len()), "{low} {high}");
                    let mut labels = ticks.labels();
                    labels.dedup();
                    assert_eq!(labels.len(), ticks.values.len(), "{labels:?}");
                }
            }
        }
    }
}
