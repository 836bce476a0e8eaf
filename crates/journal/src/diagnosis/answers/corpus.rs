//! Runs over pairs with a known answer, to test the findings on.
//!
//! A run is drawn in two steps that know nothing of the detector. `Clean` has the levels that rewards go towards, how pairs
//! scatter around them, and how strongly their margin follows the lengths; its truth is read off these numbers alone. Every step
//! then draws its pairs and reports what a step reports.
//!
//! | finding | is there | is not there |
//! | --- | --- | --- |
//! | both rewards fall | chosen answers go towards a level below their start, by 40 % to 150 % of what the margin gains; over the thirds of the steps either changes by six standard errors | they go above it, or both answers fall alike |
//! | separable pairs | from step 25 on a pair is right with a probability of 99.5 % | the probability stays below 92 % for 100 steps |
//! | length bias | the margin's scatter correlates with the lengths by 0.65 to 0.95, at least 150 pairs in the last third, four a step | by −0.2 to 0.2 |
//!
//! What lies between is not drawn.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{AnswerPoint, Kind};

/// A run and what it shows.
#[derive(Clone, Debug)]
pub struct PairRun {
    /// What is there.
    pub truth: Vec<Kind>,
    /// Its steps.
    pub steps: Vec<AnswerPoint>,
    /// Its evaluations; may be empty.
    pub evals: Vec<AnswerPoint>,
}

/// A run without the scatter of its pairs.
struct Clean {
    steps: usize,
    pairs: usize,
    /// Pairs of an evaluation, and steps between two.
    held_out: Option<(usize, usize)>,
    /// Where the rewards of chosen answers and the margin end.
    chosen: f64,
    margin: f64,
    /// Steps after which 1 − 1/e of that is reached.
    pace: f64,
    /// Standard deviation of a pair's margin, and of what its rewards have in common.
    scatter: f64,
    common: f64,
    /// Correlation of the margin's scatter with the difference of the lengths.
    bias: f64,
}

impl PairRun {
    /// `count` runs; the same seed makes the same.
    #[must_use]
    pub fn generate(seed: u64, count: usize) -> Vec<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..count).map(|_| Self::draw(&mut rng)).collect()
    }

    fn draw(rng: &mut ChaCha8Rng) -> Self {
        let mut truth = Vec::new();
        let steps = rng.random_range(60..400);
        let is_biased = rng.random_bool(0.4);
        let least = if is_biased {
            (450 / steps).max(4) + 1
        } else {
            1
        };
        let pairs = rng.random_range(least..=least.max(16));
        let scatter = 10f64.powf(rng.random_range(-2.0..1.0));
        let separable = rng.random_bool(0.4);
        // A pair is right where its scatter does not outweigh the margin.
        let (margin, pace) = match separable {
            true => (
                scatter * rng.random_range(4.0..8.0),
                rng.random_range(3.0..20.0),
            ),
            false => (
                scatter * rng.random_range(0.3..1.2),
                rng.random_range(3.0..f64::from(steps as u32) / 2.0),
            ),
        };
        if separable {
            truth.push(Kind::Separable);
        }
        let common = scatter * rng.random_range(0.2..1.0);
        // From the first to the last third, and how well the mean of so many pairs is known.
        let reached: Vec<f64> = (0..steps).map(|i| reached(i, pace)).collect();
        let third = steps / 3;
        let mean = |part: &[f64]| part.iter().sum::<f64>() / third as f64;
        let change = mean(&reached[steps - third..]) - mean(&reached[..third]);
        let sure = scatter.hypot(common) * (6.0 / (steps * pairs) as f64).sqrt();
        let down = -margin * rng.random_range(0.4..1.5);
        let (chosen, margin) = match rng.random_range(0.0..1.0) {
            0.0..0.6 if f64::min(-down, margin) * change > 6.0 * sure => {
                truth.push(Kind::BothFall);
                (down, margin)
            }
            // Both fall, and nothing is gained by it.
            0.85..1.0 if !separable => (-scatter * rng.random_range(0.3..2.0), 0.0),
            _ => (margin * rng.random_range(0.1..0.9), margin),
        };
        let bias = match is_biased {
            true => {
                truth.push(Kind::LengthBias);
                let sign = if rng.random_bool(0.7) { 1.0 } else { -1.0 };
                sign * rng.random_range(0.65..0.95)
            }
            false => rng.random_range(-0.2..0.2),
        };
        let held_out = rng
            .random_bool(0.5)
            .then(|| (rng.random_range(60..300), steps / 6));
        let clean = Clean {
            steps,
            pairs,
            held_out,
            chosen,
            margin,
            pace,
            scatter,
            common,
            bias,
        };
        let (steps, evals) = clean.observe(rng);
        truth.sort_unstable();
        Self {
            truth,
            steps,
            evals,
        }
    }
}

impl Clean {
    fn observe(&self, rng: &mut ChaCha8Rng) -> (Vec<AnswerPoint>, Vec<AnswerPoint>) {
        let (mut steps, mut evals) = (Vec::new(), Vec::new());
        for step in 1..=self.steps {
            steps.push(self.point(rng, step, self.pairs));
            if let Some((pairs, every)) = self.held_out
                && step % every == 0
            {
                evals.push(self.point(rng, step, pairs));
            }
        }
        (steps, evals)
    }

    fn point(&self, rng: &mut ChaCha8Rng, step: usize, pairs: usize) -> AnswerPoint {
        let reached = reached(step - 1, self.pace);
        let mut margins = Vec::with_capacity(pairs);
        let mut lengths = Vec::with_capacity(pairs);
        let (mut chosen, mut rejected) = (0.0, 0.0);
        for _ in 0..pairs {
            let length = normal(rng);
            let own = (1.0 - self.bias * self.bias).sqrt() * normal(rng);
            // Pairs part as the model learns: nothing is told apart at first.
            let scatter = self.scatter * reached.max(1e-3);
            let margin = reached * self.margin + scatter * (self.bias * length + own);
            let c = reached * self.chosen
                + 0.5 * scatter * normal(rng)
                + self.common * reached * normal(rng);
            chosen += c;
            rejected += c - margin;
            margins.push(margin);
            lengths.push(length);
        }
        let count = pairs as f64;
        let right = margins.iter().filter(|margin| **margin > 0.0).count();
        AnswerPoint {
            step,
            pairs,
            chosen: chosen / count,
            rejected: rejected / count,
            accuracy: right as f64 / count,
            length_bias: crate::answers::correlation(&margins, &lengths),
        }
    }
}

/// Share of the way after so many steps.
fn reached(steps: usize, pace: f64) -> f64 {
    1.0 - (-(steps as f64) / pace).exp()
}

/// Gaussian numbers by the sum of twelve uniform ones.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}
