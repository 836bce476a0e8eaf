//! How factors are updated, and what is kept of them in between.

use backdraft_arch::KeptState;
use backdraft_kernels::adamw::AdamWParams;
use backdraft_kernels::optimizers::Matrices;
use backdraft_kernels::optimizers::adafactor::{self, Factored};
use backdraft_kernels::optimizers::lion::{self, LionParams};
use backdraft_kernels::optimizers::muon::{self, MuonParams};
use backdraft_kernels::optimizers::schedule_free::{self, ScheduleFree};
use backdraft_kernels::optimizers::sgd::{self, SgdParams};
use backdraft_recipe::{Optimizer as Name, Recipe, TrainRecipe};
use burn::tensor::{DType, Device, Tensor};

use super::{Rate, StatePrecision};

/// An update rule and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// AdamW, its moments kept so.
    AdamW(AdamWParams, StatePrecision),
    /// One for many matrices of a shape at once.
    Stacked(StackedRule),
}

/// A rule of [`backdraft_kernels::optimizers`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StackedRule {
    /// Lion.
    Lion(LionParams),
    /// Gradient descent with momentum.
    Sgd(SgdParams),
    /// Adafactor, with decoupled weight decay.
    Adafactor {
        /// λ.
        weight_decay: f64,
    },
    /// Muon.
    Muon(MuonParams),
    /// Schedule-free AdamW.
    ScheduleFree(AdamWParams),
}

impl Rule {
    /// As a recipe says.
    #[must_use]
    pub fn of_recipe(recipe: &Recipe) -> Self {
        let TrainRecipe {
            adam_beta1: beta1,
            adam_beta2: beta2,
            adam_epsilon: epsilon,
            weight_decay,
            ..
        } = recipe.train;
        let momentum = recipe.train.momentum.unwrap_or_default();
        let params = AdamWParams {
            beta1,
            beta2,
            epsilon,
            weight_decay,
        };
        let rule = match (recipe.train.optimizer, recipe.kept_state().rule) {
            (_, KeptState::Moments(precision)) => return Self::AdamW(params, precision),
            (Name::ScheduleFreeAdamw, _) => StackedRule::ScheduleFree(params),
            (Name::Lion, _) => StackedRule::Lion(LionParams {
                beta1,
                beta2,
                weight_decay,
            }),
            (Name::Muon, _) => StackedRule::Muon(MuonParams {
                momentum,
                weight_decay,
            }),
            (Name::Adafactor, _) => StackedRule::Adafactor { weight_decay },
            (Name::Adamw | Name::Adamw8bit | Name::Sgd, _) => StackedRule::Sgd(SgdParams {
                momentum,
                weight_decay,
            }),
        };
        Self::Stacked(rule)
    }
}

impl Rule {
    /// The rule, where what is learned is another than what is trained.
    pub(super) fn averaging(self) -> Option<StackedRule> {
        match self {
            Self::Stacked(rule) => rule.averages().then_some(rule),
            Self::AdamW(..) => None,
        }
    }
}

impl StackedRule {
    /// The same with a factor's own weight decay.
    pub(super) fn at(self, rate: Rate) -> Self {
        let Some(weight_decay) = rate.weight_decay else {
            return self;
        };
        match self {
            Self::Lion(p) => Self::Lion(LionParams { weight_decay, ..p }),
            Self::Sgd(p) => Self::Sgd(SgdParams { weight_decay, ..p }),
            Self::Adafactor { .. } => Self::Adafactor { weight_decay },
            Self::Muon(p) => Self::Muon(MuonParams { weight_decay, ..p }),
            Self::ScheduleFree(p) => Self::ScheduleFree(AdamWParams { weight_decay, ..p }),
        }
    }

    /// What a checkpoint calls the tensors that are kept.
    pub(super) const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Lion(_) => &["exp_avg"],
            Self::Sgd(_) | Self::Muon(_) => &["momentum_buffer"],
            Self::Adafactor { .. } => &["exp_avg_sq_row", "exp_avg_sq_col"],
            Self::ScheduleFree(_) => &["z", "exp_avg_sq", "weight_sum"],
        }
    }

    /// Their dimensions, of a factor `[rows, columns]`.
    pub(super) fn dims(self, [rows, columns]: [usize; 2]) -> Vec<[usize; 2]> {
        match self {
            Self::Lion(_) | Self::Sgd(_) | Self::Muon(_) => vec![[rows, columns]],
            Self::Adafactor { .. } => vec![[rows, 1], [1, columns]],
            Self::ScheduleFree(_) => vec![[rows, columns], [rows, columns], [1, 1]],
        }
    }

    /// What is kept before the first update of `n` factors.
    pub(super) fn zeros(self, n: usize, dims: [usize; 2], device: &Device) -> Vec<Matrices> {
        let dims = self.dims(dims).into_iter();
        dims.map(|[rows, columns]| Tensor::zeros([n, rows, columns], (device, DType::F32)))
            .collect()
    }

    /// What is learned, where that is another than what is trained.
    pub(super) fn averaged(self, values: Matrices, kept: &[Matrices]) -> Option<Matrices> {
        match (self, kept) {
            (Self::ScheduleFree(p), [z, ..]) => Some(schedule_free::averaged(values, z, &p)),
            _ => None,
        }
    }

    /// Whether what is learned is another than what is trained.
    pub(super) const fn averages(self) -> bool {
        matches!(self, Self::ScheduleFree(_))
    }

    /// One update; `t` counts from 1.
    pub(super) fn step(
        self,
        values: Matrices,
        grad: &Matrices,
        kept: Vec<Matrices>,
        (lr, t): (f64, u64),
    ) -> (Matrices, Vec<Matrices>) {
        let mut kept = kept.into_iter();
        let mut next = || match kept.next() {
            Some(kept) => kept,
            None => unreachable!("a tensor for each name"),
        };
        let (values, kept) = match self {
            Self::Lion(p) => lion::step(values, grad, next(), lr, &p),
            Self::Sgd(p) => sgd::step(values, grad, next(), lr, &p),
            Self::Muon(p) => muon::step(values, grad, next(), lr, &p),
            Self::Adafactor { weight_decay } => {
                let kept = Factored {
                    rows: next(),
                    columns: next(),
                };
                let (values, kept) = adafactor::step(values, grad, kept, (lr, t), weight_decay);
                return (values, vec![kept.rows, kept.columns]);
            }
            Self::ScheduleFree(p) => {
                let kept = ScheduleFree {
                    z: next(),
                    v: next(),
                    sum: next(),
                };
                let (values, kept) = schedule_free::step(values, grad, kept, (lr, t), &p);
                return (values, vec![kept.z, kept.v, kept.sum]);
            }
        };
        (values, vec![kept])
    }
}
