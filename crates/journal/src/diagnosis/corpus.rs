//! Curves with a known answer, to test the diagnosis on.
//!
//! A curve is made in three steps that know nothing of the detector:
//!
//! 1. `plan` draws how a run is laid out: length, log interval, schedule, warm-up, how much of it has
//!    been seen.
//! 2. `shape` draws the curves without noise: decays along effective time, with or without jumps,
//!    explosions and a rising evaluation loss. `noise` draws how single values scatter around them.
//! 3. `truth` names the class from the curves without noise and the true size of the noise alone. Its
//!    rules ask what a person who saw the clean curve would say, and whether an ideal observer who knew
//!    the noise could see it. Between the classes lie gaps (a curve that has half converged, a rise of
//!    one standard error) where nobody would insist on a name; such draws are thrown away, and
//!    [`Corpus::drawn`] counts them.
//!
//! What is left gets its noise and is handed out as a [`Specimen`].
//!
//! # Truth
//!
//! Rules are tried from the top.
//!
//! | class | the clean curve |
//! | --- | --- |
//! | diverged | ends in NaN; or all of its last tenth (three values at least) is 25 % and 5σ above the first value |
//! | warming up | seen up to a step of the warm-up only, no rise of 12 % of the first value |
//! | unstable | two or more rises, trough to peak, by 14 % of the first value and 5σ, the last peak in the last 40 %; they outweigh half the net fall; in curves of 24 values and more each stays in its upper half for three values, or the excess over the decay changes sides (correlation of neighbours below −0.4) |
//! | over-fitting | five or more evaluations, three or more after the lowest; the last is 2.5 % and 5.5σ above it; the training loss is not above what it was there |
//! | stuck | at its pace the loss falls by less than 2.5 % until the end of the run, and a fall by 5 % would show |
//! | no clear change | as stuck, but a fall by 5 % would not show: over the run, noise alone makes one of 6 % |
//! | eval too noisy | six or more evaluations; training has gained 8 %; over thirds of the evaluations the clean change stays below 1.5 standard errors; giving back half of the gain would stay below 3 |
//! | healthy | training has gained 8 %; 6 % of that in the last third of the effective time, which is 4 standard errors; evaluation, if there is a series, is precise and not flat |
//! | converged | training has gained 8 %; the evaluation, or without one the training loss, got below 2.5 % of its gain in the last third, and 14 % would be 4 standard errors |
//!
//! Trials of 3 to 20 steps have their own corpus ([`Corpus::brief`]): fewer than five values after the warm-up are
//! "warming up" there, and no class needs evaluations.
//!
//! "Gained 8 %" is 8 % of the first value, and 4 standard errors from the first to the last third or 6σ.
//! Curves of fewer than 24 values have a σ of at most 5 % of the first value, 7 % where nothing changes: one could
//! not tell the scatter of batches from a loss that jumps.
//!
//! σ is the standard deviation of a single value. A standard error is that of a difference of means over
//! thirds, for an observer who knows σ. "Gain" is the first value less the mean of the last third.

pub(super) mod noise;
pub(super) mod plan;
pub(super) mod shape;
pub(super) mod truth;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Class, EvalPoint, Series, TrainPoint};
use plan::Plan;
use shape::Clean;

/// A curve and what it is.
#[derive(Clone, Debug)]
pub struct Specimen {
    /// What it is.
    pub truth: Class,
    /// How it was made, for whoever looks into a mistake.
    pub made: &'static str,
    /// Training losses.
    pub train: Vec<TrainPoint>,
    /// Evaluation losses; may be empty.
    pub eval: Vec<EvalPoint>,
    /// Steps that the run was to have.
    pub total_steps: usize,
    /// Steps of its warm-up.
    pub warmup_steps: usize,
}

impl Specimen {
    /// What the detector sees.
    #[must_use]
    pub fn series(&self) -> Series<'_> {
        Series {
            train: &self.train,
            eval: &self.eval,
            total_steps: self.total_steps,
            warmup_steps: self.warmup_steps,
            stopped_early: false,
        }
    }
}

/// A set of curves.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// The curves, class by class.
    pub specimens: Vec<Specimen>,
    /// How many clean curves were drawn to have them; the others fell between two classes or into another
    /// one than was wanted.
    pub drawn: usize,
}

impl Corpus {
    /// Makes `per_class` curves of every class. The same seed makes the same curves.
    #[must_use]
    pub fn generate(seed: u64, per_class: usize) -> Self {
        Self::of(&Class::ALL, seed, per_class, Plan::draw)
    }

    /// The same of trials of 3 to 20 steps with 4 evaluations at most, too few for verdicts on evaluation.
    #[must_use]
    pub fn brief(seed: u64, per_class: usize) -> Self {
        let classes = [
            Class::WarmingUp,
            Class::NoClearChange,
            Class::Healthy,
            Class::Converged,
            Class::Unstable,
            Class::Stuck,
            Class::Diverged,
        ];
        Self::of(&classes, seed, per_class, Plan::draw_brief)
    }

    fn of(
        classes: &[Class],
        seed: u64,
        per_class: usize,
        plan: fn(&mut ChaCha8Rng, Class) -> Plan,
    ) -> Self {
        /// Far more than any class needs for one curve.
        const MOST_DRAWS: usize = 100_000;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut corpus = Self {
            specimens: Vec::with_capacity(per_class * classes.len()),
            drawn: 0,
        };
        for &class in classes {
            for _ in 0..per_class {
                for _ in 0..MOST_DRAWS {
                    corpus.drawn += 1;
                    let plan = plan(&mut rng, class);
                    let clean = Clean::draw(&mut rng, class, plan);
                    if truth::class(&clean) == Some(class) {
                        corpus
                            .specimens
                            .push(noise::observe(&mut rng, clean, class));
                        break;
                    }
                }
            }
        }
        corpus
    }
}
