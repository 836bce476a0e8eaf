//! A learning-rate range test: the loss of steps whose rate rises by the same factor from one to the next.
//!
//! # Source
//! Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3; the line fitted to a window of losses
//! in place of a running mean, which would lag behind the rate, is ours.

use serde::{Deserialize, Serialize};

/// Losses of the beginning, as a share of the steps: what they were before the rate did anything.
const BEGINNING: usize = 10;
/// Half of the window of a fitted line, as a share of the steps.
const WINDOW: usize = 12;
/// Steps in a row that are above the limit where the loss diverges, and twice as many where there is nothing more to see.
const IN_A_ROW: usize = 3;
/// Losses whose median is where the loss stands.
const RECENT: usize = 5;
/// What it may lose of what it had learned.
const LOST: f64 = 0.5;
/// Standard deviations that are not chance.
const DEVIATIONS: f64 = 4.0;
/// And the share of the beginning that counts as nothing.
const SHARE: f64 = 0.05;
/// What is recommended lies at least this factor below where the loss diverges.
const MARGIN: f64 = 4.0;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RangePoint {
    /// Its learning rate.
    pub learning_rate: f64,
    /// Its loss, before its update.
    pub loss: f64,
}

/// What a range test found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RangeTest {
    /// The steps, of rising rates.
    pub points: Vec<RangePoint>,
    /// The same with smoothed losses, up to where the loss diverges.
    pub smoothed: Vec<RangePoint>,
    /// The rate at which the smoothed loss falls fastest, where it falls at all.
    pub fastest: Option<f64>,
    /// How fast that is, nats for each tenfold of the rate, below 0.
    pub slope: Option<f64>,
    /// Its standard error.
    pub slope_error: Option<f64>,
    /// The rate of the lowest smoothed loss.
    pub lowest: Option<f64>,
    /// The rate from which on the loss has lost half of what it had learned, or is no number.
    pub diverges: Option<f64>,
    /// What to take.
    pub recommended: Option<f64>,
    /// Sentences for people.
    pub evidence: Vec<String>,
}

/// Tells when a range test has seen enough.
#[derive(Clone, Debug)]
pub struct Watchdog {
    steps: usize,
    losses: Vec<f64>,
    limit: Option<Limit>,
}

impl Watchdog {
    /// Of a test of that many steps.
    #[must_use]
    pub const fn new(steps: usize) -> Self {
        Self {
            steps,
            losses: Vec::new(),
            limit: None,
        }
    }

    /// Takes the next loss; whether the loss has diverged for so long that there is nothing more to see.
    pub fn sees_the_end(&mut self, loss: f64) -> bool {
        self.losses.push(loss);
        let beginning = beginning(self.steps);
        let at = self.losses.len().saturating_sub(2 * IN_A_ROW);
        if at < beginning {
            return false;
        }
        let (before, window) = self.losses.split_at(at);
        let limit = (self.limit).get_or_insert_with(|| Limit::of_beginning(&before[..beginning]));
        is_above(window, limit.after(before))
    }
}

const fn beginning(steps: usize) -> usize {
    let share = steps / BEGINNING;
    if share < 4 { 4 } else { share }
}

/// What a loss must not exceed, by those before it.
#[derive(Clone, Debug)]
struct Limit {
    /// That of the beginning.
    level: f64,
    /// The lowest that the loss has stood at.
    lowest: f64,
}

impl Limit {
    fn of_beginning(losses: &[f64]) -> Self {
        let level = median(losses.to_vec());
        let lowest = level;
        Self { level, lowest }
    }

    /// Of the loss behind `losses`; asked for one after the other.
    fn after(&mut self, losses: &[f64]) -> f64 {
        // Of one loss, by the differences of neighbours, which a trend hardly touches.
        let differences = losses.windows(2).map(|pair| (pair[1] - pair[0]).abs());
        let deviation = median(differences.collect()) / (0.6745 * 2f64.sqrt());
        let chance = (DEVIATIONS * deviation).max(SHARE * self.level.abs());
        let recent = &losses[losses.len().saturating_sub(RECENT)..];
        self.lowest = self.lowest.min(median(recent.to_vec()));
        self.lowest + chance.max(LOST * (self.level - self.lowest))
    }
}

fn is_above(losses: &[f64], limit: f64) -> bool {
    losses.iter().all(|loss| loss.is_nan() || *loss > limit)
}

/// Where so many losses in a row begin that are above what is left of the beginning's.
fn diverged(losses: &[f64], steps: usize, in_a_row: usize) -> Option<usize> {
    let beginning = beginning(steps);
    let mut limit = Limit::of_beginning(losses.get(..beginning)?);
    let windows = losses.windows(in_a_row).enumerate().skip(beginning);
    let mut above = windows.filter(|(at, window)| is_above(window, limit.after(&losses[..*at])));
    above.next().map(|(at, _)| at)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// A line fitted to the points of a window.
struct Line {
    middle: f64,
    slope: f64,
    error: f64,
}

/// Least squares; the value at the point `at` of the window.
fn line(window: &[(f64, f64)], at: f64) -> Line {
    let count = window.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| window.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let spread: f64 = window.iter().map(|point| (point.0 - x).powi(2)).sum();
    let both: f64 = window
        .iter()
        .map(|point| (point.0 - x) * (point.1 - y))
        .sum();
    let slope = both / spread;
    let rest: f64 = window
        .iter()
        .map(|point| (point.1 - y - slope * (point.0 - x)).powi(2))
        .sum();
    Line {
        middle: y + slope * (at - x),
        slope,
        error: (rest / (count - 2.0) / spread).sqrt(),
    }
}

impl RangeTest {
    /// Looks at the steps of a test that was to have `steps`; `broke_off` where the next one's loss or gradient was no number.
    #[must_use]
    pub fn of(points: Vec<RangePoint>, steps: usize, broke_off: Option<f64>) -> Self {
        let losses: Vec<f64> = points.iter().map(|point| point.loss).collect();
        let diverged = diverged(&losses, steps, IN_A_ROW);
        let diverges = diverged.map(|at| points[at].learning_rate).or(broke_off);
        let end = diverged.unwrap_or(points.len());
        let curve = points[..end].iter();
        let curve: Vec<(f64, f64)> = curve
            .map(|point| (point.learning_rate.log10(), point.loss))
            .collect();
        let half = (steps / WINDOW).max(3);
        let mut test = Self {
            smoothed: Vec::new(),
            fastest: None,
            slope: None,
            slope_error: None,
            lowest: None,
            diverges,
            recommended: None,
            evidence: Vec::new(),
            points,
        };
        if curve.len() > 2 * half {
            test.look(&curve, half);
        }
        test.tell();
        test
    }

    fn look(&mut self, curve: &[(f64, f64)], half: usize) {
        let mut fastest: Option<(f64, Line)> = None;
        for (at, &(x, _)) in curve.iter().enumerate() {
            let window = at.saturating_sub(half)..(at + half + 1).min(curve.len());
            let whole = window.len() == 2 * half + 1;
            let line = line(&curve[window], x);
            self.smoothed.push(RangePoint {
                learning_rate: self.points[at].learning_rate,
                loss: line.middle,
            });
            // By chance some of many windows falls by two or three.
            let falls = whole && line.slope + DEVIATIONS * line.error < 0.0;
            if falls
                && fastest
                    .as_ref()
                    .is_none_or(|(_, best)| line.slope < best.slope)
            {
                fastest = Some((self.points[at].learning_rate, line));
            }
        }
        let lowest = self.smoothed.iter();
        let lowest = lowest.min_by(|a, b| a.loss.total_cmp(&b.loss));
        self.lowest = lowest.map(|point| point.learning_rate);
        if let Some((rate, line)) = fastest {
            self.fastest = Some(rate);
            self.slope = Some(line.slope);
            self.slope_error = Some(line.error);
            let highest = self.diverges.map_or(f64::INFINITY, |rate| rate / MARGIN);
            self.recommended = Some(two_digits(rate.min(highest)));
        }
    }

    fn tell(&mut self) {
        let mut told = Vec::new();
        match (self.fastest, self.slope, self.slope_error) {
            (Some(rate), Some(slope), Some(error)) => told.push(format!(
                "the loss falls fastest at {rate:.1e}: {slope:.3} ± {error:.3} for each tenfold of the rate"
            )),
            _ => told.push(
                "the loss falls nowhere by more than chance: more steps, larger batches, or another range may show more".to_owned(),
            ),
        }
        if let Some(rate) = self.lowest {
            told.push(format!("it is lowest at {rate:.1e}"));
        }
        match (self.diverges, self.points.last()) {
            (Some(rate), _) => told.push(format!(
                "it diverges from {rate:.1e} on: half of what was learned is lost"
            )),
            (None, Some(last)) => told.push(format!(
                "it does not diverge up to {:.1e}, the highest rate that was tried",
                last.learning_rate
            )),
            (None, None) => {}
        }
        if let (Some(recommended), Some(fastest)) = (self.recommended, self.fastest) {
            told.push(match recommended < 0.95 * fastest {
                true => format!("recommended: {recommended:e}, a quarter of where it diverges"),
                false => format!("recommended: {recommended:e}, where it falls fastest"),
            });
        }
        self.evidence = told;
    }
}

fn two_digits(value: f64) -> f64 {
    format!("{value:.1e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: usize = 100;

    /// Rates from 1e-6 to 1e-1.
    fn test(loss: impl Fn(f64) -> f64, noise: f64) -> RangeTest {
        let mut state = 7u64;
        let points = (0..STEPS).map(|i| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let uniform = (state >> 33) as f64 / (1u64 << 31) as f64 - 0.5;
            let exponent = -6.0 + 5.0 * i as f64 / (STEPS - 1) as f64;
            RangePoint {
                learning_rate: 10f64.powf(exponent),
                loss: loss(exponent) + noise * uniform,
            }
        });
        let mut watchdog = Watchdog::new(STEPS);
        let mut seen = Vec::new();
        for point in points {
            seen.push(point);
            if watchdog.sees_the_end(point.loss) {
                break;
            }
        }
        RangeTest::of(seen, STEPS, None)
    }

    /// Falls by a nat around 1e-3.5, rises steeply from 1e-2 on.
    fn usual(x: f64) -> f64 {
        2.0 - 1.0 / (1.0 + (-4.0 * (x + 3.5)).exp()) + (20.0 * (x + 2.0)).max(0.0)
    }

    #[test]
    fn the_steepest_fall_the_lowest_point_and_the_divergence_are_found() {
        for noise in [0.0, 0.05, 0.2] {
            let found = test(usual, noise);
            let near = |rate: Option<f64>, expected: f64| {
                let off = (rate.unwrap().log10() - expected).abs();
                assert!(off < 0.35, "{noise}: {rate:?} for 1e{expected}: {found:?}");
            };
            near(found.fastest, -3.5);
            near(found.lowest, -2.1);
            near(found.diverges, -1.95);
            near(found.recommended, -3.5);
            // Nothing more is computed once that is clear.
            assert!(found.points.len() < 90, "{}", found.points.len());
            let told = found.evidence.join("\n");
            for part in [
                "falls fastest at",
                "is lowest at",
                "diverges from",
                "recommended: ",
            ] {
                assert!(told.contains(part), "{told}");
            }
        }
    }

    #[test]
    fn a_watchdog_sees_what_a_look_back_finds() {
        let losses = |x: f64| 2.0 + (7.0 * x).sin() * 0.3 + (10.0 * (x + 2.0)).max(0.0);
        let losses = (0..STEPS).map(|i| losses(-6.0 + 5.0 * i as f64 / STEPS as f64));
        let losses: Vec<f64> = losses.collect();
        let mut watchdog = Watchdog::new(STEPS);
        let ends = losses.iter().position(|loss| watchdog.sees_the_end(*loss));
        let long = 2 * IN_A_ROW;
        let found = diverged(&losses, STEPS, long).map(|at| at + long - 1);
        assert!(ends.is_some());
        assert_eq!(ends, found);
    }

    #[test]
    fn a_fall_just_below_the_divergence_is_kept_away_from() {
        // A nat at 1e-2.5, and over at 1e-2.2.
        let sudden =
            |x: f64| 2.0 - 1.0 / (1.0 + (-8.0 * (x + 2.5)).exp()) + (40.0 * (x + 2.2)).max(0.0);
        let found = test(sudden, 0.02);
        let (recommended, diverges) = (found.recommended.unwrap(), found.diverges.unwrap());
        assert!(
            recommended <= diverges / 3.9,
            "{recommended} and {diverges}"
        );
        assert!(found.evidence.last().unwrap().contains("a quarter"));
    }

    #[test]
    fn chance_is_no_fall() {
        let found = test(|_| 2.0, 0.3);
        assert_eq!(found.recommended, None, "{:?}", found.evidence);
        assert_eq!(found.diverges, None);
        assert_eq!(found.points.len(), STEPS);
        assert!(found.evidence[0].contains("falls nowhere"));
        assert!(
            found
                .evidence
                .last()
                .unwrap()
                .contains("1.0e-1, the highest")
        );
    }

    #[test]
    fn a_loss_that_is_no_number_is_where_it_diverges() {
        let points: Vec<RangePoint> = test(usual, 0.0).points;
        let some: Vec<RangePoint> = points.into_iter().take(60).collect();
        let found = RangeTest::of(some, STEPS, Some(2e-3));
        assert_eq!(found.diverges, Some(2e-3));
        assert!(found.recommended.is_some());
        let nothing = RangeTest::of(Vec::new(), STEPS, Some(1e-6));
        assert_eq!((nothing.recommended, nothing.lowest), (None, None));
    }
}
