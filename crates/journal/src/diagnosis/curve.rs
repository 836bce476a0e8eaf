//! The training losses along effective time.

use super::robust::{MEDIAN_EFFICIENCY, in_errors, median_of, noise};
use super::{EvalPoint, Series, TrainPoint};

/// Values of a series along effective time, finite and in order.
#[derive(Debug)]
pub(super) struct Curve {
    pub(super) steps: Vec<usize>,
    pub(super) values: Vec<f64>,
    /// Sum of the learning rates before each value.
    pub(super) time: Vec<f64>,
    /// Standard deviation of single values.
    pub(super) noise: f64,
}

/// Median and size of a stretch of a curve.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    median: f64,
    points: usize,
}

/// A difference and how certain it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    /// Positive for a fall.
    pub(super) fall: f64,
    pub(super) standard_error: f64,
}

impl Change {
    pub(super) fn in_errors(self) -> f64 {
        in_errors(self.fall, self.standard_error)
    }
}

impl Curve {
    /// Points in order, one for each step.
    pub(super) fn train(series: &Series<'_>) -> Self {
        let points = ordered(series.train, |p| p.step);
        let steps: Vec<usize> = points.iter().map(|p| p.step).collect();
        let time = effective_time(&points);
        let finite: Vec<usize> = (0..points.len())
            .filter(|&i| points[i].loss.is_finite())
            .collect();
        Self::new(
            finite.iter().map(|&i| steps[i]).collect(),
            finite.iter().map(|&i| points[i].loss).collect(),
            finite.iter().map(|&i| time[i]).collect(),
        )
    }

    /// Evaluations along the time of `train`.
    pub(super) fn eval(points: &[EvalPoint], train: &Self) -> Self {
        let points: Vec<EvalPoint> = ordered(points, |p| p.step)
            .into_iter()
            .filter(|p| p.loss.is_finite())
            .collect();
        Self::new(
            points.iter().map(|p| p.step).collect(),
            points.iter().map(|p| p.loss).collect(),
            points.iter().map(|p| train.time_after(p.step)).collect(),
        )
    }

    fn new(steps: Vec<usize>, values: Vec<f64>, time: Vec<f64>) -> Self {
        let noise = noise(&values);
        Self {
            steps,
            values,
            time,
            noise,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    pub(super) fn last_step(&self) -> usize {
        self.steps.last().copied().unwrap_or(0)
    }

    /// The time after `step`, on a line between the two points around it.
    fn time_after(&self, step: usize) -> f64 {
        let next = self.steps.partition_point(|&s| s <= step);
        let (Some(&before), after) = (self.time.get(next.saturating_sub(1)), self.time.get(next))
        else {
            return step as f64;
        };
        match after {
            Some(&after) if next > 0 => {
                let (from, to) = (self.steps[next - 1], self.steps[next]);
                before + (after - before) * (step - from) as f64 / (to - from) as f64
            }
            _ => before,
        }
    }

    /// Level at the beginning: a few values, or the very first where it is too far above them to be
    /// noise, since the first fall may be steep.
    pub(super) fn first(&self) -> f64 {
        const STEEP: f64 = 5.0;
        let few = if self.len() < 12 {
            1
        } else {
            3.max(self.len() / 64)
        };
        let level = median_of(&self.values[..few.min(self.len())]);
        match self.values.first() {
            Some(&first) if first > level + STEEP * self.noise => first,
            _ => level,
        }
    }

    /// Level over the last `share` of the values, at least three, five of more than a few.
    pub(super) fn last(&self, share: f64) -> f64 {
        let least = if self.len() < 24 { 3 } else { 5 };
        let count = ((self.len() as f64 * share) as usize)
            .max(least)
            .min(self.len());
        median_of(&self.values[self.len() - count..])
    }

    /// Fall from one stretch of the time to another; stretches are numbered parts of `parts` equal ones.
    pub(super) fn fall(&self, parts: usize, from: usize, to: usize) -> Change {
        let (from, to) = (self.stretch(parts, from), self.stretch(parts, to));
        let spread = (1.0 / from.points as f64 + 1.0 / to.points as f64).sqrt();
        let efficiency = if from.points.min(to.points) > 2 {
            MEDIAN_EFFICIENCY
        } else {
            1.0
        };
        Change {
            fall: from.median - to.median,
            standard_error: self.noise * efficiency * spread,
        }
    }

    /// Level over one of `parts` equal stretches of the time.
    pub(super) fn level(&self, parts: usize, index: usize) -> f64 {
        self.stretch(parts, index).median
    }

    fn stretch(&self, parts: usize, index: usize) -> Stretch {
        let (mut low, mut high) = self.bounds(parts, index);
        if low >= high {
            // Nothing was logged in this stretch of time: the same stretch of the list instead.
            low = (index * self.len() / parts).min(self.len().saturating_sub(1));
            high = ((index + 1) * self.len() / parts).clamp(low + 1, self.len().max(1));
        }
        let values = self.values.get(low..high).unwrap_or_default();
        Stretch {
            median: median_of(values),
            points: values.len().max(1),
        }
    }

    fn bounds(&self, parts: usize, index: usize) -> (usize, usize) {
        let (Some(&begin), Some(&end)) = (self.time.first(), self.time.last()) else {
            return (0, 0);
        };
        let at = |part: usize| {
            let time = begin + (end - begin) * part as f64 / parts as f64;
            self.time.partition_point(|&t| t < time)
        };
        let low = if index == 0 { 0 } else { at(index) };
        let high = if index + 1 == parts {
            self.len()
        } else {
            at(index + 1)
        };
        (low, high)
    }
}

/// Points in the order of their steps; the last of those with the same step counts.
pub(super) fn ordered<T: Copy>(points: &[T], step: impl Fn(&T) -> usize) -> Vec<T> {
    let mut points = points.to_vec();
    let in_order = points.windows(2).all(|w| step(&w[0]) < step(&w[1]));
    if !in_order {
        points.sort_by_key(&step);
        points.reverse();
        points.dedup_by_key(|p| step(p));
        points.reverse();
    }
    points
}

/// Sum of learning rate times steps before each point; counts steps where no rate is usable.
fn effective_time(points: &[TrainPoint]) -> Vec<f64> {
    let usable = |rate: f64| rate.is_finite() && rate > 0.0;
    let peak = points
        .iter()
        .map(|p| p.learning_rate)
        .filter(|&r| usable(r))
        .fold(0.0, f64::max);
    let mut time = 0.0;
    let mut times = Vec::with_capacity(points.len());
    for (i, point) in points.iter().enumerate() {
        if i > 0 {
            let before = points[i - 1];
            let share = match (peak > 0.0, usable(before.learning_rate)) {
                (true, true) => before.learning_rate / peak,
                (true, false) => 0.0,
                (false, _) => 1.0,
            };
            time += share * (point.step - before.step) as f64;
        }
        times.push(time);
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(step: usize, loss: f64, learning_rate: f64) -> TrainPoint {
        TrainPoint {
            step,
            loss,
            grad_norm: None,
            learning_rate,
        }
    }

    fn curve(train: &[TrainPoint]) -> Curve {
        Curve::train(&Series {
            train,
            eval: &[],
            total_steps: 10,
            warmup_steps: 0,
            stopped_early: false,
        })
    }

    #[test]
    fn the_last_of_equal_steps_counts_and_order_is_restored() {
        let curve = curve(&[
            point(1, 1.0, 1.0),
            point(3, 3.0, 1.0),
            point(2, f64::NAN, 1.0),
            point(2, 2.0, 1.0),
            point(4, f64::INFINITY, 1.0),
        ]);
        assert_eq!(curve.steps, [1, 2, 3]);
        assert_eq!(curve.values, [1.0, 2.0, 3.0]);
    }

    #[test]
    fn time_is_the_sum_of_rates_before() {
        let rates = [0.0, 1.0, 2.0, 1.0];
        let points: Vec<TrainPoint> = rates
            .iter()
            .enumerate()
            .map(|(i, &r)| point(10 * (i + 1), 1.0, r))
            .collect();
        let curve = curve(&points);
        assert_eq!(curve.time, [0.0, 0.0, 5.0, 15.0]);
        assert_eq!(curve.time_after(35), 10.0);
        assert_eq!(curve.time_after(99), 15.0);
        assert_eq!(curve.time_after(0), 0.0);
    }

    #[test]
    fn a_fall_between_stretches_of_time() {
        let points: Vec<TrainPoint> = (0..30)
            .map(|i| point(i + 1, 3.0 - (i / 10) as f64, 1.0))
            .collect();
        let change = curve(&points).fall(3, 1, 2);
        assert_eq!(change.fall, 1.0);
        assert_eq!(curve(&points).fall(3, 0, 2).fall, 2.0);
    }
}
