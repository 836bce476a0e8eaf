//! The model as burn-train's learner sees it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backdraft_kernels::cross_entropy::Penalty;
use backdraft_lora::AdapterGrads;
use backdraft_model::CausalLm;
use backdraft_plan::{Activations, StepFailure};
use backdraft_recipe::KeptGradients;
use backdraft_recipe::schedule::LrSchedule;
use burn::module::Module;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;
use burn::train::{InferenceStep, TrainOutput, TrainStep};

use crate::compared::{Compared, floats};
use crate::loader::{EvalBatch, Step};
use crate::loss_scale::LossScale;
use crate::metrics::{EvalAnswers, EvalOutput, StepOutput};
use crate::neftune::Neftune;
use crate::objective::{Goal, Objective, Others};
use crate::optimizer::Optimizer;
use crate::ranks::{AnswerNumbers, Beside, Blocks, Sum};
use crate::release::{Norm, Update};
use crate::step::{GradientSink, MicroBatch, Told, Trunk, guarded, nll, nll_and_entropy, scores};

/// A model with adapters, its optimiser and its schedule.
///
/// The learner's own optimiser works tensor by tensor and hides its state; ours works over all
/// adapters at once and is saved with the run, so it travels with the model, shared by its clones.
#[derive(Module, Debug)]
pub struct Trainee {
    /// The model.
    pub model: CausalLm,
    #[module(skip)]
    optimizer: SharedOptimizer,
    #[module(skip)]
    settings: Settings,
    #[module(skip)]
    reference: Option<Arc<CausalLm>>,
}

/// What a step needs to know of the run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Learning rates.
    pub schedule: LrSchedule,
    /// Largest global norm of the gradients; 0 leaves them.
    pub max_grad_norm: f64,
    /// Seed of the dropout masks; `None` where nothing is dropped.
    pub dropout_seed: Option<u64>,
    /// What the steps minimise.
    pub objective: Objective,
    /// And beside the nll, where the objective is plain fine-tuning.
    pub penalty: Option<Penalty>,
    /// Strength and seed of the noise on embeddings, where there is any.
    pub neftune: Option<(f64, u64)>,
    /// What each pass keeps and recomputes.
    pub activations: Activations,
    /// The blocks that a step is summed in, where there are several.
    pub blocks: Option<Blocks>,
    /// How long gradients are kept.
    pub gradients: KeptGradients,
}

#[derive(Clone, Debug)]
struct SharedOptimizer(Arc<Mutex<Optimizer>>);

impl Trainee {
    /// A model at the beginning of its training.
    pub fn new(mut model: CausalLm, mut optimizer: Optimizer, mut settings: Settings) -> Self {
        // Buffers would hold all gradients.
        if settings.gradients == KeptGradients::Whole {
            optimizer.adopt(&mut model);
        }
        let device = model.device().inner();
        settings.blocks = settings.blocks.map(|blocks| blocks.of(&optimizer, &device));
        let optimizer = SharedOptimizer(Arc::new(Mutex::new(optimizer)));
        Self {
            model,
            optimizer,
            settings,
            reference: None,
        }
    }

    /// The same, whose answers are compared with those of `reference`, which has adapters on the same layers and stays as
    /// it is; `None` is the base alone.
    #[must_use]
    pub fn compared_with(self, reference: Option<CausalLm>) -> Self {
        Self {
            reference: reference.map(Arc::new),
            ..self
        }
    }

    /// The optimiser's present state.
    pub fn optimizer(&self) -> MutexGuard<'_, Optimizer> {
        // A panic elsewhere does not make the numbers wrong.
        self.optimizer
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The same with the adapter that is evaluated and saved, where that is another than the one that is trained.
    #[must_use]
    pub fn averaged(mut self) -> Self {
        let averaged = self.optimizer().averaged(&self.model);
        if let Some(adapter) = averaged {
            self.model = match self.model.with_adapter(&adapter) {
                Ok(model) => model,
                Err(error) => unreachable!("an adapter of the same model: {error}"),
            };
        }
        self
    }

    /// The learning rate of the update that follows `steps` others.
    pub fn learning_rate(&self, steps: u64) -> f64 {
        self.settings.schedule.at(steps as usize)
    }
}

impl Trainee {
    /// What the run's passes keep and recompute.
    pub fn activations(&self) -> &Activations {
        &self.settings.activations
    }

    /// The model that answers are compared with: the one that was given, or else the same weights, their adapters skipped.
    fn reference(&self) -> Option<CausalLm> {
        let asked = self.settings.objective.has_reference();
        asked.then(|| match &self.reference {
            Some(reference) => CausalLm::clone(reference),
            None => self.model.clone().without_adapter(),
        })
    }

    /// How far the policy has gone from `base`, `[1]`, where the objective asks; shared among the processes of the run. The
    /// outer `None` where that failed.
    ///
    /// # Errors
    /// A part of it that the device could not compute.
    fn divergence(
        &self,
        step: &Step,
        base: Option<&CausalLm>,
    ) -> Result<Option<Option<Tensor<1>>>, Box<Tensor<1>>> {
        let texts = &step.mismatched;
        let sum = match (&self.settings.blocks, base) {
            (Some(blocks), Some(base)) if !texts.is_empty() => {
                let apart = |i: usize| {
                    let apart = divergence_of(&self.model, base, &texts[i]);
                    apart
                        .clone()
                        .try_into_scalar::<f32>()
                        .map_err(|_| Box::new(apart))
                };
                let Some(total) = blocks.total(step.number, texts.len(), apart)? else {
                    return Ok(None);
                };
                Some(floats([total], &self.model.device().inner()))
            }
            _ => divergence(&self.model, base, texts),
        };
        Ok(Some(sum.map(|sum| {
            (sum / step.num_answers() as f64).clamp_min(0.0)
        })))
    }

    /// Updates the model by the gradients of a step, clipped already.
    pub fn update(&mut self, mut grads: GradientsParams) {
        let params = self.model.trained_params().map(|(_, param)| param);
        let grads = AdapterGrads::from_params(&mut grads, params);
        let optimizer = self.optimizer.clone();
        let mut optimizer = optimizer.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lr = self.learning_rate(optimizer.steps());
        optimizer.step(&mut self.model, &grads, lr);
    }

    /// How long a step keeps gradients.
    pub fn gradients(&self) -> KeptGradients {
        self.settings.gradients
    }

    /// A step of one micro-batch without an update: its numbers, and the norm by which [`release`](Self::release) will clip.
    ///
    /// # Panics
    /// As [`release`](Self::release).
    pub fn look_ahead(&self, step: &Step) -> StepOutput {
        let mut optimizer = self.optimizer();
        let mut sink = Norm::new(&self.model);
        let told = self.settings.alone(&mut sink, step, optimizer.loss_scale());
        let norm = told.is_ok().then(|| sink.norm());
        let max_norm = self.settings.max_grad_norm;
        let norm = norm.map(|norm| optimizer.clip_later(norm, max_norm));
        drop(optimizer);
        self.told(step, told, norm)
    }

    /// A step of one micro-batch that updates the model during its backward pass. Its numbers are known after that only. Nothing has
    /// changed where there was no memory for it.
    ///
    /// # Panics
    /// If the step has several micro-batches.
    pub fn release(&mut self, step: &Step) -> StepOutput {
        let optimizer = self.optimizer.clone();
        let mut optimizer = optimizer.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (lr, loss_scale) = (
            self.learning_rate(optimizer.steps()),
            optimizer.loss_scale(),
        );
        let mut sink = Update::new(&mut self.model, &mut optimizer, lr);
        let told = self.settings.alone(&mut sink, step, loss_scale);
        let norm = told.is_ok().then(|| sink.norm());
        self.told(step, told, norm)
    }

    /// What a step whose gradients are not kept leaves behind.
    fn told(
        &self,
        step: &Step,
        told: Result<Told, StepFailure>,
        norm: Option<Tensor<1>>,
    ) -> StepOutput {
        let device = self.model.device().inner();
        let (told, norm) = match (told, norm) {
            (Ok(told), Some(norm)) => (told, norm),
            (Err(failure), _) => return StepOutput::failed(step, failure, &device),
            (Ok(_), None) => return StepOutput::unknown(step, &device),
        };
        let answers = told.answers.into_iter().collect();
        StepOutput::new(step, told.nll, norm)
            .penalized(told.penalized)
            .comparing(step, (self.settings.objective, answers, None))
    }
}

impl Settings {
    /// What a step's micro-batch `i` is for; the loss is multiplied by `loss_scale`.
    fn goal<'a>(
        &self,
        step: &'a Step,
        (i, loss_scale): (usize, f32),
        others: impl FnOnce(&Compared) -> Others,
    ) -> Goal<'a> {
        let objective = self.objective;
        let losses = match objective.compares() {
            false => step.supervised_tokens(),
            true => objective.losses(step.num_answers()),
        };
        let nll_weight = loss_scale * objective.nll_weight() as f32;
        let answers = step.answers.get(i);
        Goal {
            objective,
            scale: loss_scale / losses as f32,
            nll_scale: nll_weight / step.good_targets().max(1) as f32,
            penalty: self.penalty,
            answers: answers.map(|compared| (compared, others(compared))),
        }
    }

    /// The noise on a step's embeddings, where there is any.
    fn noise(&self, step: &Step) -> Option<Neftune> {
        let noise = self.neftune;
        noise.map(|(alpha, seed)| Neftune::of_step(alpha, seed, step.number))
    }

    /// The seed of the masks of a step's micro-batch, where anything is dropped.
    fn masks(&self, step: &Step, i: usize) -> Option<u64> {
        self.dropout_seed
            .map(|seed| mask_seed(seed, step.number, i))
    }

    /// One micro-batch under its plan.
    fn pass(
        &self,
        sink: impl GradientSink,
        (batch, trunk): (&MicroBatch, Trunk),
        goal: &Goal<'_>,
        seed: Option<u64>,
        grads: &mut AdapterGrads,
    ) -> Result<Told, StepFailure> {
        let planned = self
            .activations
            .plan(batch.shape())
            .map_err(StepFailure::Shortage)?;
        let guard = Some(self.activations.guard(&planned));
        let plan = (&planned.plan, guard);
        guarded(sink, (batch, trunk), goal, seed, plan, grads).map_err(StepFailure::OutOfMemory)
    }

    /// The one micro-batch of a step whose gradients go to `sink`.
    ///
    /// # Panics
    /// If it has several micro-batches.
    fn alone(
        &self,
        sink: impl GradientSink,
        step: &Step,
        loss_scale: Option<LossScale>,
    ) -> Result<Told, StepFailure> {
        let [batch] = &step.micro_batches[..] else {
            panic!(
                "one micro-batch of a step whose gradients are not kept, found {}",
                step.micro_batches.len()
            );
        };
        let loss_scale = loss_scale.map_or(1.0, LossScale::factor);
        let goal = self.goal(step, (0, loss_scale), |_| Others::default());
        let trunk = Trunk::noisy(sink.model(), batch, self.noise(step));
        let seed = self.masks(step, 0);
        self.pass(sink, (batch, trunk), &goal, seed, &mut AdapterGrads::new())
    }
}

impl TrainStep for Trainee {
    type Input = Step;
    type Output = StepOutput;

    /// All micro-batches of an optimiser step; the gradients are clipped already.
    fn step(&self, step: Step) -> TrainOutput<StepOutput> {
        let optimizer = self.optimizer();
        let (grads, loss_scale) = (optimizer.grads(), optimizer.loss_scale());
        drop(optimizer);
        let objective = self.settings.objective;
        let loss_scale = loss_scale.map_or(1.0, LossScale::factor);
        let known = step.answers.iter().all(|one| one.reference.is_some());
        let base = self.reference().filter(|_| !known);
        let noise = self.settings.noise(&step);
        let device = self.model.device().inner();
        let nothing = |item| TrainOutput {
            grads: AdapterGrads::new().into_params(),
            item,
        };
        let divergence = match self.divergence(&step, base.as_ref()) {
            Ok(Some(divergence)) => divergence,
            Ok(None) => return nothing(StepOutput::unknown(&step, &device)),
            // Whoever reads it learns why.
            Err(failed) => return nothing(StepOutput::new(&step, Tensor::clone(&failed), *failed)),
        };
        let pass = |i: usize, grads: &mut AdapterGrads| {
            let batch = &step.micro_batches[i];
            let trunk = Trunk::noisy(&self.model, batch, noise);
            let others = |compared: &Compared| Others {
                reference: reference(base.as_ref(), (batch, compared), &trunk),
                divergence: divergence.clone(),
            };
            let settings = &self.settings;
            let goal = settings.goal(&step, (i, loss_scale), others);
            let seed = settings.masks(&step, i);
            settings.pass(&self.model, (batch, trunk), &goal, seed, grads)
        };
        let passes = |micro_batches: &[usize], mut grads: AdapterGrads| {
            let (mut nll, mut penalized, mut answers) = (None, None, Vec::new());
            for &i in micro_batches {
                let told = pass(i, &mut grads)?;
                answers.extend(told.answers.map(|answers| (i, answers)));
                penalized = sum(penalized, told.penalized);
                nll = sum(nll, Some(told.nll));
            }
            Ok(Sum {
                grads,
                nll,
                penalized,
                answers,
            })
        };
        let all: Vec<usize> = (0..step.micro_batches.len()).collect();
        let summed = match &self.settings.blocks {
            None => passes(&all, grads).map(Some),
            Some(blocks) => {
                let tokens = step
                    .micro_batches
                    .iter()
                    .map(|batch| batch.tokens.input_ids.len() as u64);
                let mine = blocks.mine(&tokens.collect::<Vec<_>>());
                let answers = step.answers.iter().map(Compared::len).collect();
                let beside = Beside {
                    penalizes: self.settings.penalty.is_some(),
                    answers: AnswerNumbers::new(objective, answers),
                };
                blocks.sum(&self.model, (&mine, &beside), |block| {
                    passes(block, self.optimizer().grads())
                })
            }
        };
        let Sum {
            grads,
            nll,
            penalized,
            answers,
        } = match summed {
            Ok(Some(sum)) => sum,
            Ok(None) => return nothing(StepOutput::unknown(&step, &device)),
            Err(failure) => return nothing(StepOutput::failed(&step, failure, &device)),
        };
        let Some(nll) = nll else {
            panic!("an optimiser step has at least one micro-batch");
        };
        let max_norm = self.settings.max_grad_norm;
        let (grads, grad_norm) = self.optimizer().clip(&self.model, grads, max_norm);
        let answers = answers.into_iter().map(|(_, answers)| answers).collect();
        let item = StepOutput::new(&step, nll, grad_norm)
            .penalized(penalized)
            .comparing(&step, (objective, answers, divergence));
        TrainOutput {
            grads: grads.into_params(),
            item,
        }
    }

    fn optimize(
        mut self,
        _: &mut ModuleOptimizer,
        _: ModuleLearningRate,
        grads: GradientsParams,
    ) -> Self {
        self.update(grads);
        self
    }
}

impl InferenceStep for Trainee {
    type Input = EvalBatch;
    type Output = EvalOutput;

    fn step(&self, batch: EvalBatch) -> EvalOutput {
        evaluated(&self.model, self.reference().as_ref(), batch)
    }
}

/// What an evaluation asks of one pass; answers are compared with those of `base`, where there is one.
pub(crate) fn evaluated(model: &CausalLm, base: Option<&CausalLm>, held: EvalBatch) -> EvalOutput {
    let EvalBatch {
        batch,
        answers,
        mismatched,
    } = held;
    let Some(compared) = answers else {
        return EvalOutput::new(model.nll(&batch.tokens, &batch.targets));
    };
    if model.spec().scores {
        return scored(model, &batch, compared);
    }
    let trunk = Trunk::of_both(model, base, &batch);
    let reference = reference(base, (&batch, &compared), &trunk);
    let [found, entropies] = nll_and_entropy(model, &batch, trunk);
    EvalOutput::comparing(EvalAnswers {
        nll: compared.good_nll(&found),
        policy: log_likelihoods(&batch, &compared, &found),
        reference,
        // Sums, as log-likelihoods are.
        entropy: Some(log_likelihoods(&batch, &compared, &entropies.neg())),
        divergence: divergence(model, base, &mismatched),
        compared,
    })
}

/// The same of answers that a head scores: they have neither a likelihood nor an entropy.
fn scored(model: &CausalLm, batch: &MicroBatch, compared: Compared) -> EvalOutput {
    let found = scores(model, batch, Trunk::new(model, batch));
    EvalOutput::comparing(EvalAnswers {
        nll: floats([f32::NAN], &found.device()),
        policy: found,
        reference: None,
        entropy: None,
        divergence: None,
        compared,
    })
}

/// Log-likelihoods of answers under the reference, where they are compared with it: those that are known, or what `base`
/// gives from the trunk on.
fn reference(
    base: Option<&CausalLm>,
    (batch, compared): (&MicroBatch, &Compared),
    trunk: &Trunk,
) -> Option<Tensor<1>> {
    if let Some(known) = &compared.reference {
        return Some(floats(known.iter().copied(), &trunk.device()));
    }
    let base = base?;
    let found = nll(base, batch, trunk.under(base, batch));
    Some(log_likelihoods(batch, compared, &found))
}

fn log_likelihoods(batch: &MicroBatch, compared: &Compared, nll: &Tensor<1>) -> Tensor<1> {
    compared.log_likelihoods((&batch.targets, &batch.tokens.segments), nll)
}

/// Σ of ln π − ln ρ over texts, π being the model and ρ its base; `None` where there are no texts.
fn divergence(
    model: &CausalLm,
    base: Option<&CausalLm>,
    texts: &[MicroBatch],
) -> Option<Tensor<1>> {
    let base = base?;
    let apart = texts.iter().map(|batch| divergence_of(model, base, batch));
    apart.reduce(|sum, one| sum + one)
}

/// The same of one micro-batch.
fn divergence_of(model: &CausalLm, base: &CausalLm, batch: &MicroBatch) -> Tensor<1> {
    let trunk = Trunk::new(model, batch);
    (nll(base, batch, trunk.under(base, batch)) - nll(model, batch, trunk)).sum()
}

/// A sum that begins with its first term.
fn sum(total: Option<Tensor<1>>, next: Option<Tensor<1>>) -> Option<Tensor<1>> {
    match (total, next) {
        (Some(total), Some(next)) => Some(total + next),
        (total, next) => total.or(next),
    }
}

/// A seed for the masks of one micro-batch of one step.
fn mask_seed(seed: u64, step: usize, micro_batch: usize) -> u64 {
    seed.wrapping_add((step as u64) << 20)
        .wrapping_add(micro_batch as u64)
        .wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
