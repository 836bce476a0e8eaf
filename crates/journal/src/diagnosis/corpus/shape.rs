//! Curves without noise.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::noise::normal;
use super::plan::{Plan, log_uniform};
use crate::diagnosis::Class;

/// A run without noise, and how large the noise will be.
#[derive(Clone, Debug)]
pub(super) struct Clean {
    pub(super) plan: Plan,
    pub(super) made: &'static str,
    pub(super) train: Vec<f64>,
    /// Part of `train` that jumps and explosions make, for the gradient norm.
    pub(super) excess: Vec<f64>,
    /// Indices into the log lines after which evaluation took place.
    pub(super) eval_at: Vec<usize>,
    pub(super) eval: Vec<f64>,
    /// Standard deviation of each training value, from the batches.
    pub(super) train_noise: Vec<f64>,
    /// Standard deviation of each evaluation.
    pub(super) eval_noise: f64,
    /// Log lines at the end that are no numbers.
    pub(super) broken: usize,
}

/// A fall along time from 1 towards 0.
#[derive(Clone, Copy)]
enum Decay {
    Exponential {
        rate: f64,
    },
    TwoRates {
        fast: f64,
        slow: f64,
        weight: f64,
    },
    Power {
        rate: f64,
        power: f64,
    },
    Line,
    /// Nothing happens at first.
    Late {
        rate: f64,
        start: f64,
    },
}

impl Decay {
    /// `rate`: time constants in what was seen of the run.
    fn draw(rng: &mut ChaCha8Rng, rate: f64) -> Self {
        match rng.random_range(0..5) {
            0 => Self::TwoRates {
                fast: rate * rng.random_range(3.0..10.0),
                slow: rate,
                weight: rng.random_range(0.1..0.5),
            },
            1 => Self::Power {
                rate: rate * rng.random_range(1.0..4.0),
                power: rng.random_range(0.3..2.0),
            },
            2 if rate < 2.0 => Self::Line,
            3 => Self::Late {
                rate: 2.0 * rate,
                start: rng.random_range(0.0..0.3),
            },
            _ => Self::Exponential { rate },
        }
    }

    fn at(self, time: f64) -> f64 {
        match self {
            Self::Exponential { rate } => (-rate * time).exp(),
            Self::TwoRates { fast, slow, weight } => {
                weight * (-fast * time).exp() + (1.0 - weight) * (-slow * time).exp()
            }
            Self::Power { rate, power } => (1.0 + rate * time).powf(-power),
            Self::Line => 1.0 - 0.9 * time,
            Self::Late { rate, start } => {
                let logistic = |t: f64| 1.0 / (1.0 + (rate * (t - start)).exp());
                logistic(time) / logistic(0.0)
            }
        }
    }
}

impl Clean {
    /// Draws curves that may well belong to `class`; whether they do is for the truth to say.
    pub(super) fn draw(rng: &mut ChaCha8Rng, class: Class, plan: Plan) -> Self {
        let start = log_uniform(rng, 0.05, 50.0);
        let rate = match class {
            Class::Converged => log_uniform(rng, 5.0, 60.0),
            Class::EvalTooNoisy => log_uniform(rng, 0.5, 40.0),
            _ => log_uniform(rng, 0.4, 6.0),
        };
        let depth = match class {
            Class::Stuck | Class::NoClearChange => rng.random_range(-0.01..0.02),
            Class::Unstable | Class::WarmingUp => rng.random_range(0.0..0.6),
            _ => rng.random_range(0.1..0.97),
        };
        let decay = Decay::draw(rng, rate);
        let elapsed = plan.elapsed();
        let base: Vec<f64> = elapsed
            .iter()
            .map(|&t| start * (1.0 - depth * (1.0 - decay.at(t))))
            .collect();
        let mut clean = Self {
            made: "decay",
            excess: vec![0.0; base.len()],
            eval_at: Vec::new(),
            eval: Vec::new(),
            train_noise: Vec::new(),
            eval_noise: 0.0,
            broken: 0,
            train: base,
            plan,
        };
        clean.add_trouble(rng, class, start);
        for (value, excess) in clean.train.iter_mut().zip(&clean.excess) {
            *value += excess;
        }
        clean.draw_train_noise(rng, class, start);
        clean.draw_eval(rng, class, &elapsed);
        clean
    }

    fn add_trouble(&mut self, rng: &mut ChaCha8Rng, class: Class, start: f64) {
        match class {
            Class::Unstable => match rng.random_range(0..4) {
                0 | 1 if !self.plan.short && !self.plan.brief => self.spikes(rng, start),
                2 => self.swings(rng, start, true),
                _ => self.swings(rng, start, false),
            },
            Class::Diverged => match rng.random_range(0..4) {
                0 => self.broken = rng.random_range(1..4),
                1 => {
                    self.swings(rng, start, false);
                    self.broken = 1;
                }
                _ => self.explosion(rng, start),
            },
            Class::Healthy | Class::Converged if rng.random_bool(0.1) => self.one_spike(rng, start),
            Class::Healthy | Class::Overfitting if rng.random_bool(0.15) => self.epochs(rng),
            _ => {}
        }
    }

    /// Jumps that come again and again, each decaying over some log lines.
    fn spikes(&mut self, rng: &mut ChaCha8Rng, start: f64) {
        self.made = "spikes";
        let count = rng.random_range(3..20);
        let early = rng.random_bool(0.3);
        for _ in 0..count {
            let place: f64 = rng.random_range(0.0..1.0);
            let place = if early {
                place * 0.9
            } else {
                0.2 + 0.8 * place
            };
            let at = (place * self.plan.len() as f64) as usize;
            let height = start * log_uniform(rng, 0.15, 1.2);
            let length = rng.random_range(2.0..(3.0 + 0.06 * self.plan.len() as f64));
            self.spike(at, height, length);
        }
    }

    fn one_spike(&mut self, rng: &mut ChaCha8Rng, start: f64) {
        self.made = "one spike, recovered";
        let at = (rng.random_range(0.05..0.35) * self.plan.len() as f64) as usize;
        let height = start * rng.random_range(0.2..0.6);
        self.spike(at, height, rng.random_range(1.0..4.0));
    }

    fn spike(&mut self, at: usize, height: f64, length: f64) {
        for (i, excess) in self.excess.iter_mut().enumerate().skip(at) {
            *excess += height * (-((i - at) as f64) / length).exp();
        }
    }

    /// A wandering that is pulled back, as around the minimum of a valley too narrow for the step.
    fn swings(&mut self, rng: &mut ChaCha8Rng, start: f64, growing: bool) {
        self.made = if growing { "growing swings" } else { "swings" };
        let n = self.plan.len();
        let size = start * rng.random_range(0.12..0.4);
        let memory: f64 = if self.plan.short || self.plan.brief {
            rng.random_range(-0.5..0.3)
        } else if rng.random_bool(0.2) {
            rng.random_range(-0.95..-0.5)
        } else {
            rng.random_range(0.5..0.97)
        };
        let mut state = normal(rng);
        for i in 0..n {
            let now = if growing {
                (i + 1) as f64 / n as f64
            } else {
                1.0
            };
            self.excess[i] = (1.5 * size * now * state).max(-0.5 * self.train[i]);
            state = memory * state + (1.0 - memory * memory).sqrt() * normal(rng);
        }
    }

    /// A loss that leaves for good.
    fn explosion(&mut self, rng: &mut ChaCha8Rng, start: f64) {
        self.made = "explosion";
        let n = self.plan.len() as f64;
        let from = rng.random_range(0.05..0.85) * n;
        let length = rng.random_range(0.01..0.3) * n + 0.5;
        let height = start * log_uniform(rng, 0.4, 8.0);
        let straight = rng.random_bool(0.3);
        for (i, excess) in self.excess.iter_mut().enumerate() {
            let since = i as f64 - from;
            if since > 0.0 {
                let part = if straight {
                    since / (n - from)
                } else {
                    1.0 - (-since / length).exp()
                };
                *excess = height * part;
            }
        }
    }

    /// The loss steps down when rows come for the second time.
    fn epochs(&mut self, rng: &mut ChaCha8Rng) {
        self.made = "epochs";
        let epochs = rng.random_range(2..5);
        let drop: f64 = rng.random_range(0.8..0.95);
        let n = self.plan.len();
        for (i, value) in self.train.iter_mut().enumerate() {
            *value *= drop.powi((i * epochs / n.max(1)) as i32);
        }
    }

    fn draw_train_noise(&mut self, rng: &mut ChaCha8Rng, class: Class, start: f64) {
        let share = if class == Class::NoClearChange && self.plan.len() < 24 {
            rng.random_range(0.03..0.07)
        } else if self.plan.short || self.plan.brief {
            log_uniform(rng, 0.002, 0.05)
        } else if rng.random_bool(0.5) {
            // Single steps of a few rows each, as most runs log them.
            rng.random_range(0.05..0.25)
        } else {
            log_uniform(rng, 0.003, 0.25)
        };
        let with_level = rng.random_bool(0.5);
        self.train_noise = self
            .train
            .iter()
            .map(|v| {
                if with_level {
                    share * v.abs()
                } else {
                    (share * start).min(0.4 * v.abs())
                }
            })
            .collect();
    }

    fn draw_eval(&mut self, rng: &mut ChaCha8Rng, class: Class, elapsed: &[f64]) {
        let needed = matches!(class, Class::Overfitting | Class::EvalTooNoisy);
        let n = self.plan.len();
        if !needed && rng.random_bool(0.35) {
            return;
        }
        let count = if self.plan.brief {
            rng.random_range(1..=4)
        } else if self.plan.short {
            n
        } else {
            log_uniform(rng, 2.0, 41.0) as usize
        };
        let every = (n / count.max(1)).max(1);
        let most = if self.plan.brief { count } else { n };
        self.eval_at = (every - 1..n).step_by(every).take(most).collect();
        let gain = (self.train[0] - self.train[n - 1]).abs();
        let gap = rng.random_range(-0.1..0.3) * self.train[0];
        let turn = rng.random_range(0.1..0.75);
        let rise = gain * log_uniform(rng, 0.05, 1.5);
        let bend = rng.random_range(1.0..2.0);
        let plateau = class == Class::Converged && rng.random_bool(0.3);
        if plateau {
            self.made = "eval flat, train falls";
            // Memory of single rows goes on making the training loss fall.
            for (value, t) in self.train.iter_mut().zip(elapsed) {
                *value -= 0.3 * gain.min(*value) * t;
            }
        }
        let bottom = self.train.clone();
        self.eval = self
            .eval_at
            .iter()
            .map(|&i| {
                let past = ((elapsed[i] - turn) / (1.0 - turn)).max(0.0);
                let base = if plateau {
                    bottom[i] + 0.3 * gain.min(bottom[i]) * elapsed[i]
                } else {
                    bottom[i]
                };
                let over = if class == Class::Overfitting {
                    let held = bottom[(turn * (n - 1) as f64) as usize];
                    (held - base).max(0.0) + rise * past.powf(bend)
                } else {
                    0.0
                };
                (base + gap + over).max(0.02 * self.train[0])
            })
            .collect();
        let lowest = self.eval.iter().copied().fold(f64::INFINITY, f64::min);
        self.eval_noise = match class {
            Class::EvalTooNoisy => gain * log_uniform(rng, 0.3, 4.0),
            _ => gain * log_uniform(rng, 0.0005, 0.08),
        }
        .min(0.4 * lowest);
    }
}
