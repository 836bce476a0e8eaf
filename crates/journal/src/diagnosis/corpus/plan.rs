//! How a run is laid out.

use std::f64::consts::PI;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::diagnosis::Class;

/// Length, schedule and what has been seen so far.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) total_steps: usize,
    pub(super) warmup_steps: usize,
    /// Steps of the log lines seen so far.
    pub(super) steps: Vec<usize>,
    /// Learning rate at each of them.
    pub(super) rates: Vec<f64>,
    /// Effective time before each of them, 1 for a whole run at the peak.
    pub(super) time: Vec<f64>,
    /// Whether the whole run has few log lines, each an average of many steps.
    pub(super) short: bool,
    /// Whether the whole run has few steps.
    pub(super) brief: bool,
}

#[derive(Clone, Copy)]
enum Schedule {
    Constant,
    Linear,
    Cosine,
}

impl Plan {
    /// Draws a layout; of a run that warms up only the warm-up is seen.
    pub(super) fn draw(rng: &mut ChaCha8Rng, class: Class) -> Self {
        let short = rng.random_bool(0.15) && class != Class::WarmingUp;
        let lines = if short {
            rng.random_range(5..24)
        } else {
            log_uniform(rng, 24.0, 3000.0) as usize
        };
        let interval = [1, 1, 5, 10, 25, 100][rng.random_range(0..6)];
        let total_steps = lines * interval;
        let ratio = match class {
            Class::WarmingUp => rng.random_range(0.03..0.2),
            _ if short || rng.random_bool(0.2) => 0.0,
            _ => rng.random_range(0.01..0.1),
        };
        let warmup_steps = (ratio * total_steps as f64).ceil() as usize;
        let seen = match class {
            Class::WarmingUp => {
                let warm = warmup_steps / interval;
                rng.random_range(1..=warm.max(1))
            }
            _ if short || rng.random_bool(0.5) => lines,
            _ => (lines as f64 * rng.random_range(0.3..1.0)) as usize,
        };
        Self {
            short,
            ..Self::of(rng, total_steps, warmup_steps, (seen, interval))
        }
    }

    /// Draws a layout of a trial of 3 to 20 steps, each a log line, mostly seen to its end.
    pub(super) fn draw_brief(rng: &mut ChaCha8Rng, class: Class) -> Self {
        let total_steps = rng.random_range(3..=20);
        let warmup_steps = match class {
            Class::WarmingUp => rng.random_range(0..=total_steps),
            _ => rng.random_range(0..=total_steps / 5),
        };
        let seen = match rng.random_bool(0.7) {
            true => total_steps,
            false => rng.random_range(2..=total_steps),
        };
        Self {
            brief: true,
            ..Self::of(rng, total_steps, warmup_steps, (seen, 1))
        }
    }

    fn of(
        rng: &mut ChaCha8Rng,
        total_steps: usize,
        warmup_steps: usize,
        (seen, interval): (usize, usize),
    ) -> Self {
        let schedule =
            [Schedule::Constant, Schedule::Linear, Schedule::Cosine][rng.random_range(0..3)];
        let peak = log_uniform(rng, 1e-6, 1e-2);
        let steps: Vec<usize> = (1..=seen).map(|i| i * interval).collect();
        let share = |step: usize| share(schedule, step, warmup_steps, total_steps);
        let mut time = Vec::with_capacity(seen);
        let mut now = 0.0;
        for step in 1..=seen * interval {
            if step % interval == 0 {
                time.push(now);
            }
            now += share(step) / total_steps as f64;
        }
        Self {
            total_steps,
            warmup_steps,
            rates: steps.iter().map(|&s| peak * share(s)).collect(),
            steps,
            time,
            short: false,
            brief: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Time as a share of what was seen.
    pub(super) fn elapsed(&self) -> Vec<f64> {
        let end = self.time.last().copied().unwrap_or(0.0).max(1e-12);
        self.time.iter().map(|t| t / end).collect()
    }
}

/// Learning rate at a step, counted from 1, as a share of the peak.
fn share(schedule: Schedule, step: usize, warmup: usize, total: usize) -> f64 {
    let done = step - 1;
    if done < warmup {
        return done as f64 / warmup as f64;
    }
    let progress = (done - warmup) as f64 / (total - warmup).max(1) as f64;
    match schedule {
        Schedule::Constant => 1.0,
        Schedule::Linear => 1.0 - progress,
        Schedule::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
    }
}

/// A number whose logarithm is uniform.
pub(super) fn log_uniform(rng: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    rng.random_range(low.ln()..high.ln()).exp()
}
