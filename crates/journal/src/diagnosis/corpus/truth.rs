//! What a curve is, from the curve without noise, by the table in [`corpus`](super).

use super::shape::Clean;
use crate::diagnosis::Class;

/// The class of a clean curve; none where it lies between classes.
pub(super) fn class(clean: &Clean) -> Option<Class> {
    let train = View::train(clean);
    if clean.broken > 0 {
        // A run that breaks at once is no curve.
        return (train.n() > clean.broken + 4).then_some(Class::Diverged);
    }
    if train.stays_above() {
        return Some(Class::Diverged);
    }
    if train.ends_above(0.08) && !has_swings(clean) {
        return None;
    }
    let last_step = *clean.plan.steps.last()?;
    if clean.plan.warmup_steps > 0 && last_step <= clean.plan.warmup_steps {
        return train.rises(0.12).is_empty().then_some(Class::WarmingUp);
    }
    if clean.plan.brief && train.after(clean.plan.warmup_steps, clean) < 5 {
        return train.rises(0.12).is_empty().then_some(Class::WarmingUp);
    }
    if train.n() < 5
        || (!clean.plan.brief && train.after(clean.plan.warmup_steps, clean) < 8.min(train.n()))
    {
        return None;
    }
    if train.n() < 24 && train.noise > 0.07 * train.values[0] {
        return None;
    }
    match train.jumping(clean.plan.short || clean.plan.brief || alternates(&clean.excess)) {
        Jumping::Yes => return (!train.ends_above(0.12)).then_some(Class::Unstable),
        Jumping::Between => return None,
        Jumping::No => {}
    }
    calm(clean, &train)
}

fn has_swings(clean: &Clean) -> bool {
    clean.excess.iter().any(|&e| e != 0.0)
}

fn alternates(excess: &[f64]) -> bool {
    let mean = excess.iter().sum::<f64>() / excess.len() as f64;
    let squares: f64 = excess.iter().map(|e| (e - mean).powi(2)).sum();
    let products: f64 = excess
        .windows(2)
        .map(|w| (w[0] - mean) * (w[1] - mean))
        .sum();
    squares > 0.0 && products < -0.4 * squares
}

fn calm(clean: &Clean, train: &View) -> Option<Class> {
    let eval = (clean.eval.len() >= 5).then(|| View::eval(clean));
    if let Some(eval) = &eval {
        match eval.rises_for_good(clean) {
            Some(true) => return Some(Class::Overfitting),
            Some(false) => {}
            None => return None,
        }
    }
    let [_, _, error] = train.falls();
    let warmup = clean.plan.warmup_steps;
    let seen = clean.plan.steps.last()?.saturating_sub(warmup).max(1) as f64;
    let ahead = (clean.plan.total_steps - warmup) as f64 / seen;
    let gain = train.gain();
    let visible = train.falls()[0] >= 4.0 * error || gain >= 6.0 * train.noise;
    if (train.values[0] - train.lowest()).abs() * ahead < 0.025 * train.values[0] {
        let visible = 2.0 * error * ahead < 0.025 * train.values[0];
        let hidden = error * ahead > 0.06 * train.values[0];
        return match (visible, hidden) {
            (true, _) => Some(Class::Stuck),
            (false, true) => Some(Class::NoClearChange),
            (false, false) => None,
        };
    }
    if train.n() < 24 && train.noise > 0.05 * train.values[0] {
        return None;
    }
    if gain < 0.08 * train.values[0] || !visible {
        return None;
    }
    let direction = match &eval {
        Some(eval) if eval.too_noisy(gain) => return Some(Class::EvalTooNoisy),
        Some(eval) => Some(eval.direction()?),
        None => None,
    };
    match (train.direction(), direction) {
        (Some(Direction::Falling), None | Some(Direction::Falling)) => Some(Class::Healthy),
        (_, Some(Direction::Flat)) | (Some(Direction::Flat), None) => Some(Class::Converged),
        _ => None,
    }
}

enum Jumping {
    Yes,
    Between,
    No,
}

#[derive(PartialEq)]
enum Direction {
    Falling,
    Flat,
}

/// A clean curve with its noise.
struct View {
    values: Vec<f64>,
    time: Vec<f64>,
    noise: f64,
}

impl View {
    fn train(clean: &Clean) -> Self {
        Self {
            values: clean.train.clone(),
            time: clean.plan.time.clone(),
            noise: clean.train_noise.iter().copied().fold(0.0, f64::max),
        }
    }

    fn eval(clean: &Clean) -> Self {
        Self {
            values: clean.eval.clone(),
            time: clean.eval_at.iter().map(|&i| clean.plan.time[i]).collect(),
            noise: clean.eval_noise,
        }
    }

    fn n(&self) -> usize {
        self.values.len()
    }

    fn after(&self, warmup: usize, clean: &Clean) -> usize {
        clean.plan.steps.iter().filter(|&&s| s > warmup).count()
    }

    fn lowest(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn stays_above(&self) -> bool {
        let n = self.n();
        let limit = (1.25 * self.values[0]).max(self.values[0] + 5.0 * self.noise_at_start());
        n >= 5
            && self.values[n - (n / 10).max(3)..]
                .iter()
                .all(|&v| v > limit)
    }

    /// Noise that grows with the level is judged where the curve began.
    fn noise_at_start(&self) -> f64 {
        let highest = self.values.iter().copied().fold(0.0, f64::max);
        self.noise * self.values[0] / highest
    }

    fn ends_above(&self, share: f64) -> bool {
        let n = self.n();
        let tail = &self.values[n - (n / 10).max(3).min(n)..];
        tail.iter().sum::<f64>() / tail.len() as f64 > (1.0 + share) * self.values[0]
    }

    /// Trough and peak of each rise by `share` of the first value.
    fn rises(&self, share: f64) -> Vec<(usize, usize)> {
        let least = share * self.values[0];
        let (mut found, mut low, mut high) = (Vec::new(), 0, 0);
        for (i, &v) in self.values.iter().enumerate() {
            let up = self.values[high] - self.values[low] >= least && high > low;
            if v > self.values[high] {
                high = i;
            }
            if up && v <= self.values[high] - least {
                found.push((low, high));
                (low, high) = (i, i);
            } else if !up && v < self.values[low] {
                (low, high) = (i, i);
            }
        }
        if high > low && self.values[high] - self.values[low] >= least {
            found.push((low, high));
        }
        found
    }

    /// `brief`: whether a rise need not last.
    fn jumping(&self, brief: bool) -> Jumping {
        let height = |&(low, high): &(usize, usize)| self.values[high] - self.values[low];
        let rises = self.rises(0.14);
        let loud: Vec<_> = rises
            .iter()
            .filter(|r| height(r) >= 5.0 * self.noise && (brief || self.lasts(r)))
            .collect();
        let total: f64 = loud.iter().map(|r| height(r)).sum();
        let recent = loud.last().is_some_and(|r| 5 * r.1 >= 3 * self.n());
        let net = self.values[0] - self.values[self.n() - 1];
        if loud.len() >= 2 && recent && total >= 0.5 * net {
            return Jumping::Yes;
        }
        match self.rises(0.05).as_slice() {
            [] => Jumping::No,
            [only] if 5 * only.1 < 2 * self.n() => Jumping::No,
            _ => Jumping::Between,
        }
    }

    fn lasts(&self, &(low, high): &(usize, usize)) -> bool {
        let half = (self.values[low] + self.values[high]) / 2.0;
        let before = self.values[..high].iter().rev().take_while(|&&v| v > half);
        let after = self.values[high..].iter().take_while(|&&v| v > half);
        before.count() + after.count() >= 3
    }

    /// None for a rise too small to insist on.
    fn rises_for_good(&self, clean: &Clean) -> Option<bool> {
        let at = (0..self.n()).min_by(|&a, &b| self.values[a].total_cmp(&self.values[b]))?;
        let (best, last) = (self.values[at], self.values[self.n() - 1]);
        let rise = last - best;
        if rise <= 0.004 * best {
            return Some(false);
        }
        let enough = self.n() - at > 3 && rise >= 0.025 * best && rise >= 5.5 * self.noise;
        let train = clean.train[clean.train.len() - 1] <= 1.01 * clean.train[clean.eval_at[at]];
        (enough && train).then_some(true)
    }

    /// Falls from the first to the last third and from the middle to the last, and their standard error.
    fn falls(&self) -> [f64; 3] {
        let [a, b, c] = [0, 1, 2].map(|k| self.third(k));
        let error = self.noise * (1.0 / b.1 + 1.0 / c.1).sqrt();
        [a.0 - c.0, b.0 - c.0, error]
    }

    /// Mean and number of values of a third of the effective time.
    fn third(&self, k: usize) -> (f64, f64) {
        let (begin, end) = (self.time[0], self.time[self.n() - 1]);
        let span = (end - begin) / 3.0;
        let (from, to) = (begin + span * k as f64, begin + span * (k + 1) as f64);
        let inside: Vec<f64> = (0..self.n())
            .filter(|&i| self.time[i] >= from && (self.time[i] < to || k == 2))
            .map(|i| self.values[i])
            .collect();
        let count = inside.len().max(1) as f64;
        (inside.iter().sum::<f64>() / count, count)
    }

    fn gain(&self) -> f64 {
        self.values[0] - self.third(2).0
    }

    fn direction(&self) -> Option<Direction> {
        let (gain, [_, recent, error]) = (self.gain(), self.falls());
        if recent >= 0.06 * gain && recent >= 4.0 * error {
            Some(Direction::Falling)
        } else if recent <= 0.025 * gain && 4.0 * error <= 0.14 * gain {
            Some(Direction::Flat)
        } else {
            None
        }
    }

    fn too_noisy(&self, gain: f64) -> bool {
        let [overall, recent, error] = self.falls();
        let enough = self.n() >= 6;
        let even = self.noise * (6.0 / self.n() as f64).sqrt();
        enough
            && overall.abs() < 1.5 * even
            && recent.abs() < 1.5 * error
            && 3.0 * even > 0.5 * gain
    }
}
