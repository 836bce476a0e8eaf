//! Curves with a known answer, to test the diagnosis on.
//!
//! A curve is made in three steps that know nothing of the detector:
//!
//! 1. [`plan`] draws how a run is laid out: length, log interval, schedule, warm-up, how much of it has
//!    been seen.
//! 2. [`shape`] draws the curves without noise: decays along effective time, with or without jumps,
//!    explosions and a rising evaluation loss. [`noise`] draws how single values scatter around them.
//! 3. [`truth`] names the class from the curves without noise and the true size of the noise alone. Its
//!    rules ask what a person who saw the clean curve would say, and whether an ideal observer who knew
//!    the noise could see it. Between the classes lie gaps (a curve that has half converged, a rise of
//!    one standard error) where nobody would insist on a name; such draws are thrown away, and
//!    [`Corpus::drawn`] counts them.
//!
//! What is left gets its noise and is handed out as a [`Specimen`].

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
        /// Far more than any class needs for one curve.
        const MOST_DRAWS: usize = 100_000;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut corpus = Self {
            specimens: Vec::with_capacity(per_class * Class::ALL.len()),
            drawn: 0,
        };
        for class in Class::ALL {
            for _ in 0..per_class {
                for _ in 0..MOST_DRAWS {
                    corpus.drawn += 1;
                    let plan = Plan::draw(&mut rng, class);
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
