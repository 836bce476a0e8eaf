//! Preferences: losses, rewards, log-likelihoods and every gradient of each objective, and its first eight steps, through the
//! steps that a run takes, however pairs are dealt to micro-batches.

mod sums;

use std::collections::BTreeMap;
use std::sync::Arc;

use backdraft::burn::optim::SgdConfig;
use backdraft::burn::tensor::{Tensor, TensorData};
use backdraft::burn::train::{Learner, TrainStep};
use backdraft::data::pipeline::TokenizedRow;
use backdraft::data::{Answers, Batching, IGNORE_INDEX, Loader, LoaderOptions, RowSet, TokenRows};
use backdraft::formats::ModelSource;
use backdraft::journal::report::AnswersReport;
use backdraft::kernels::adamw::AdamWParams;
use backdraft::lora::{Adapter, AdapterGrads, AdapterWeights, LoraAdapter, LoraConfig};
use backdraft::model::{BaseTensor, CausalLm};
use backdraft::plan::memory::SystemMemory;
use backdraft::plan::tensors::MemoryModel;
use backdraft::plan::{ActivationPolicy, Activations, Planner, Setup};
use backdraft::recipe::schedule::{LrSchedule, ScheduleKind};
use backdraft::recipe::{DpoLoss, DpoLosses, ObjectiveRecipe, ReferenceStart};
use backdraft::train::deal::Deal;
use backdraft::train::known::Known;
use backdraft::train::loader::{Step, StepLoader};
use backdraft::train::metrics::StepMetrics;
use backdraft::train::objective::Objective;
use backdraft::train::optimizer::{Optimizer, StatePrecision};
use backdraft::train::run::log_likelihoods;
use backdraft::train::trainee::{Settings, Trainee};
use backdraft_testkit::folder::{Folder, folder_with};
use backdraft_testkit::golden::{self, Tensors};
use backdraft_testkit::tolerance::{TINY_GRADIENT, TINY_LOGITS, Tolerance};
use burn_dataloader::DataLoader;
use serde::Deserialize;

use super::compare::{by_name, norm, values};
use super::place;

use backdraft::burn::data::dataloader as burn_dataloader;

#[derive(Deserialize)]
struct Golden {
    lora: Lora,
    prompts: Vec<Vec<u32>>,
    chosen: Vec<Vec<u32>>,
    rejected: Vec<Vec<u32>>,
    losses: BTreeMap<String, Loss>,
    traces: BTreeMap<String, Trace>,
    trace_settings: TraceSettings,
}

#[derive(Deserialize)]
struct Lora {
    r: usize,
    lora_alpha: f64,
}

#[derive(Clone, Deserialize)]
struct Options {
    kind: String,
    loss_type: Option<String>,
    beta: f64,
    #[serde(default)]
    label_smoothing: f64,
    #[serde(default)]
    simpo_gamma: f64,
    #[serde(default)]
    cpo_alpha: f64,
    #[serde(default)]
    desirable_weight: f64,
    #[serde(default)]
    undesirable_weight: f64,
}

#[derive(Deserialize)]
struct Loss {
    options: Options,
    loss: f64,
    grad_norm: f64,
    per_row: Vec<f64>,
    nll: Option<f64>,
    kl: Option<f64>,
    policy_chosen_logps: Option<Vec<f64>>,
    policy_rejected_logps: Option<Vec<f64>>,
    chosen_rewards: Option<Vec<f64>>,
    rejected_rewards: Option<Vec<f64>>,
    /// Of single answers, chosen and rejected in turn.
    policy_logps: Option<Vec<f64>>,
    rewards: Option<Vec<f64>>,
}

#[derive(Deserialize)]
struct Trace {
    losses: Vec<f64>,
    grad_norms_before_clipping: Vec<f64>,
    mean_chosen_rewards: Vec<f64>,
    mean_rejected_rewards: Vec<f64>,
    mean_per_row: Vec<f64>,
    final_norms: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct TraceSettings {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
    clip_norm: f64,
    steps: usize,
}

/// Losses: absolute to one, relative above.
fn check_loss(what: impl std::fmt::Display, found: f64, expected: f64) {
    Tolerance::Absolute(1e-5 * expected.abs().max(1.0)).check_one(what, found, expected);
}

impl Options {
    fn dpo_loss(&self) -> DpoLoss {
        self.loss_type.as_deref().unwrap().parse().unwrap()
    }

    fn objective(&self) -> Objective {
        let kind = (self.kind.as_str(), self.loss_type.as_deref());
        let recipe = match kind {
            ("dpo", Some(_)) => ObjectiveRecipe::Dpo {
                beta: self.beta,
                losses: DpoLosses::one(self.dpo_loss()),
                label_smoothing: self.label_smoothing,
                sft_weight: 0.0,
                reference: ReferenceStart::Start,
                precompute_reference: false,
            },
            ("orpo", _) => ObjectiveRecipe::Orpo { beta: self.beta },
            ("kto", _) => ObjectiveRecipe::Kto {
                beta: self.beta,
                desirable_weight: self.desirable_weight,
                undesirable_weight: self.undesirable_weight,
                reference: ReferenceStart::Start,
            },
            ("cpo", Some("simpo")) => ObjectiveRecipe::Simpo {
                beta: self.beta,
                gamma: self.simpo_gamma,
                label_smoothing: self.label_smoothing,
                sft_weight: self.cpo_alpha,
            },
            ("cpo", Some("sigmoid")) => ObjectiveRecipe::Cpo {
                beta: self.beta,
                label_smoothing: self.label_smoothing,
                sft_weight: self.cpo_alpha,
            },
            other => panic!("an objective that is not supported: {other:?}"),
        };
        recipe.into()
    }
}

/// The case, unpacked.
struct Case {
    folder: Folder,
    golden: Golden,
    tensors: Tensors,
}

impl Case {
    fn open() -> Option<Self> {
        let folder = folder_with("preference", "preference.json")?;
        Some(Self {
            golden: golden::json(&folder.join("preference.json")),
            tensors: Tensors::open(folder.join("preference.safetensors")),
            folder,
        })
    }

    /// The policy, or the one that training begins with: its B zero.
    fn model(&self, fresh: bool) -> CausalLm {
        let device = place::device();
        let source = ModelSource::open(self.folder.join("model")).unwrap();
        let model = CausalLm::load(&source, &device).unwrap();
        let config = LoraConfig {
            rank: self.golden.lora.r,
            alpha: self.golden.lora.lora_alpha,
            ..LoraConfig::default()
        };
        let tensor = |name: &str| -> Tensor<2> {
            let shape = self.tensors.shape::<2>(name);
            Tensor::from_data(TensorData::new(self.tensors.f32(name), shape), &device)
        };
        let mut adapters = BTreeMap::new();
        for name in self.tensors.names() {
            let module = name.strip_prefix("lora.");
            let Some(module) = module.and_then(|name| name.strip_suffix(".lora_A.weight")) else {
                continue;
            };
            let b = tensor(&format!("lora.{module}.lora_B.weight"));
            let b = if fresh { b.zeros_like() } else { b };
            let factors = LoraAdapter::from_factors(&config, tensor(name), b);
            adapters.insert(module.to_owned(), Adapter::Lora(factors));
        }
        assert_eq!(adapters.len(), 14);
        model
            .with_adapter(&AdapterWeights {
                config,
                adapters,
                tokens: Vec::new(),
                whole: Default::default(),
            })
            .unwrap()
    }

    /// One row of `answer` to a prompt.
    fn text(&self, pair: usize, answer: &[u32]) -> (Vec<u32>, Vec<i64>) {
        let prompt = &self.golden.prompts[pair];
        let labels = answer.iter().map(|id| i64::from(*id));
        let labels = vec![IGNORE_INDEX; prompt.len()].into_iter().chain(labels);
        ([&prompt[..], answer].concat(), labels.collect())
    }

    /// Rows of some pairs, together or apart.
    fn rows(&self, pairs: &[usize], apart: bool) -> RowSet {
        let mut rows = Vec::new();
        let mut push = |(input_ids, labels): (Vec<u32>, Vec<i64>), answers| {
            rows.push(TokenizedRow {
                input_ids,
                labels,
                answers,
                file: 0,
                line: 1,
                key: 0,
            });
        };
        for &pair in pairs {
            let chosen = self.text(pair, &self.golden.chosen[pair]);
            let rejected = self.text(pair, &self.golden.rejected[pair]);
            if apart {
                push(chosen, Answers::Judged { desirable: true });
                push(rejected, Answers::Judged { desirable: false });
            } else {
                let answers = Answers::Pair {
                    rejected: chosen.0.len(),
                    margin: None,
                };
                let ids = [chosen.0, rejected.0].concat();
                push((ids, [chosen.1, rejected.1].concat()), answers);
            }
        }
        RowSet::new(TokenRows::Memory(rows), &[])
    }

    /// Steps over all of these rows, in micro-batches of `size`.
    fn steps(&self, rows: &RowSet, objective: Objective, size: usize, steps: usize) -> Vec<Step> {
        self.known_steps(rows, objective, size, steps, None)
    }

    /// The same where what the reference says is known.
    fn known_steps(
        &self,
        rows: &RowSet,
        objective: Objective,
        size: usize,
        steps: usize,
        known: Option<Known>,
    ) -> Vec<Step> {
        let options = LoaderOptions {
            micro_batch_size: size,
            grad_accumulation_steps: rows.len().div_ceil(size),
            seed: 1,
            shuffle: false,
            batching: Batching::PaddingFree,
            sources: Vec::new(),
        };
        let loader = Loader::with_options(rows.lengths(), options).unwrap();
        let deal = Deal {
            objective,
            max_seq_length: 64,
        };
        let loader = StepLoader::new(rows.clone(), loader, steps)
            .comparing(Some(deal))
            .knowing(known);
        loader.iter().map(Result::unwrap).collect()
    }

    fn trainee(&self, fresh: bool, objective: Objective) -> Trainee {
        let model = self.model(fresh);
        let TraceSettings {
            lr,
            betas: [beta1, beta2],
            eps,
            clip_norm,
            steps,
        } = self.golden.trace_settings;
        let params = AdamWParams {
            beta1,
            beta2,
            epsilon: eps,
            weight_decay: 0.0,
        };
        let setup = Setup {
            spec: model.spec().clone(),
            lora: model.lora_config().unwrap().clone(),
            tokens: 0,
            quantization: None,
            base: None,
            dense_element: 4,
            memory: match place::on_gpu() {
                true => MemoryModel::cube(4),
                false => MemoryModel::cpu(),
            },
            optimizer: StatePrecision::F32.into(),
            micro_batch_size: 3,
            max_seq_length: 64,
            texts_per_row: 2,
            grad_accumulation_steps: 1,
            releases: false,
            masters: true,
            host: 0,
            home: backdraft::arch::BaseHome::Device,
        };
        let cost = backdraft::plan::cost::CostModel::Roofline(backdraft::plan::cost::Roofline::CPU);
        let planner = Planner::new(setup.step(), ActivationPolicy::KeepAll, u64::MAX, cost);
        let settings = Settings {
            blocks: None,
            gradients: Default::default(),
            schedule: LrSchedule {
                kind: ScheduleKind::Constant {},
                warmup_steps: 0,
                total_steps: steps,
                peak_lr: lr,
            },
            max_grad_norm: if fresh { clip_norm } else { 0.0 },
            dropout_seed: None,
            objective,
            penalty: None,
            neftune: None,
            activations: Activations::new(planner, setup, Arc::new(SystemMemory), 0),
        };
        Trainee::new(
            model,
            Optimizer::adamw(params, StatePrecision::F32),
            settings,
        )
    }

    /// What a step of the policy says, and every gradient.
    fn step(&self, trainee: &Trainee, step: Step) -> (StepMetrics, Vec<(String, Vec<f32>)>) {
        let mut output = TrainStep::step(trainee, step);
        let metrics = output.item.read().unwrap();
        let params = trainee.model.trained_params().map(|(_, param)| param);
        let grads = AdapterGrads::from_params(&mut output.grads, params);
        (metrics, by_name(&trainee.model, &grads))
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Rewards and log-likelihoods of chosen and rejected answers. Where TRL goes by means over tokens, it has means here too.
fn sides(golden: &Golden, loss: &Loss) -> [[Vec<f64>; 2]; 2] {
    let of = |all: &Option<Vec<f64>>, both: [&Option<Vec<f64>>; 2]| match all {
        Some(all) => [0, 1].map(|side| all.iter().skip(side).step_by(2).copied().collect()),
        None => both.map(|side| side.clone().unwrap()),
    };
    let Options {
        kind, loss_type, ..
    } = &loss.options;
    let are_means = kind == "orpo" || loss_type.as_deref() == Some("simpo");
    let [rewards, mut log_likelihoods] = [
        of(
            &loss.rewards,
            [&loss.chosen_rewards, &loss.rejected_rewards],
        ),
        of(
            &loss.policy_logps,
            [&loss.policy_chosen_logps, &loss.policy_rejected_logps],
        ),
    ];
    if are_means {
        let answers = [&golden.chosen, &golden.rejected];
        for (side, answers) in log_likelihoods.iter_mut().zip(answers) {
            for (mean, answer) in side.iter_mut().zip(answers) {
                *mean *= answer.len() as f64;
            }
        }
    }
    [rewards, log_likelihoods]
}

fn check_answers(
    what: &str,
    found: &AnswersReport,
    (golden, loss): (&Golden, &Loss),
    pairs: &[usize],
) {
    let [rewards, log_likelihoods] = sides(golden, loss);
    let some = |values: &[f64]| {
        let chosen: Vec<f64> = pairs.iter().map(|pair| values[*pair]).collect();
        mean(&chosen)
    };
    let numbers = [
        (found.reward_chosen, some(&rewards[0])),
        (found.reward_rejected, some(&rewards[1])),
        (found.margin, some(&rewards[0]) - some(&rewards[1])),
        (found.logp_chosen, some(&log_likelihoods[0])),
        (found.logp_rejected, some(&log_likelihoods[1])),
    ];
    for (i, (found, expected)) in numbers.into_iter().enumerate() {
        // Sums over tokens are larger than a token's.
        let allowed = Tolerance::Absolute(1e-4 * expected.abs().max(1.0));
        allowed.check_one(format!("{what}, number {i}"), found.unwrap().mean, expected);
    }
    let right = pairs
        .iter()
        .filter(|pair| rewards[0][**pair] > rewards[1][**pair]);
    let share = right.count() as f64 / pairs.len() as f64;
    if let Some(accuracy) = found.accuracy {
        assert_eq!(accuracy.mean, share, "{what}");
    }
}

#[test]
fn golden_preference_losses_and_gradients() {
    let Some(case) = Case::open() else {
        return;
    };
    assert_eq!(case.golden.losses.len(), 11);
    for (name, expected) in &case.golden.losses {
        let objective = expected.options.objective();
        let trainee = case.trainee(false, objective);
        let single = objective.measures_divergence();
        // Pairs together, each in a pass of its own, and where answers are judged one by one those too.
        let mut dealt = vec![(false, 3), (false, 1), (false, 2)];
        if single {
            dealt.extend([(true, 6), (true, 1), (true, 4)]);
        }
        for (apart, size) in dealt {
            let what = format!("{name}, apart {apart}, {size} rows a pass");
            let rows = case.rows(&[0, 1, 2], apart);
            let step = case.steps(&rows, objective, size, 1).remove(0);
            let (metrics, grads) = case.step(&trainee, step);
            check_loss(&what, metrics.loss, expected.loss);
            let answers = metrics.answers.unwrap();
            check_loss(&what, answers.loss.mean, mean(&expected.per_row));
            check_answers(&what, &answers, (&case.golden, expected), &[0, 1, 2]);
            if let Some(nll) = answers.nll {
                check_loss(format!("{what}, nll"), nll, expected.nll.unwrap());
            }
            if let Some(kl) = expected.kl {
                TINY_LOGITS.check_one(format!("{what}, KL"), answers.kl.unwrap(), kl);
            }
            let all: Vec<f32> = grads.iter().flat_map(|(_, grad)| grad.clone()).collect();
            Tolerance::Relative(1e-4).check_one(&what, norm(&all), expected.grad_norm);
            Tolerance::Relative(1e-4).check_one(&what, metrics.grad_norm, expected.grad_norm);
            assert_eq!(grads.len(), 28);
            for (factor, grad) in grads {
                let expected = case.tensors.f32(&format!("{name}.grad.{factor}"));
                TINY_GRADIENT.check(format!("{what}, {factor}"), &grad, &expected);
            }
        }
        if single {
            continue;
        }
        // Each pair alone has its own loss, rewards and log-likelihoods.
        for pair in 0..3 {
            let what = format!("{name}, pair {pair}");
            let step = case
                .steps(&case.rows(&[pair], false), objective, 1, 1)
                .remove(0);
            let (metrics, _) = case.step(&trainee, step);
            let answers = metrics.answers.unwrap();
            check_loss(&what, answers.loss.mean, expected.per_row[pair]);
            check_answers(&what, &answers, (&case.golden, expected), &[pair]);
        }
    }
}

/// What the reference says is known before the step: the same numbers, and no pass through a reference that would give none.
#[test]
fn golden_preference_with_a_known_reference() {
    let Some(case) = Case::open() else {
        return;
    };
    let mut checked = 0;
    for (name, expected) in &case.golden.losses {
        let objective = expected.options.objective();
        if !objective.has_reference() || objective.measures_divergence() {
            continue;
        }
        checked += 1;
        let deal = Deal {
            objective,
            max_seq_length: 64,
        };
        let base = case.model(false).without_adapter();
        let mut broken = base.clone();
        broken.visit_base_mut(|_, tensor| {
            if let BaseTensor::Vector(weight) = tensor {
                *weight = weight.clone() * f32::NAN;
            }
        });
        let trainee = case.trainee(false, objective).compared_with(Some(broken));
        let rows = case.rows(&[2, 0, 1], false);
        let known = log_likelihoods(&base, &rows, (deal, 2), |_| ()).unwrap();
        for size in [3, 1, 2] {
            let what = format!("{name}, {size} rows a pass");
            let step = case.known_steps(&rows, objective, size, 1, Some(known.clone()));
            let (metrics, grads) = case.step(&trainee, step.into_iter().next().unwrap());
            check_loss(&what, metrics.loss, expected.loss);
            let answers = metrics.answers.unwrap();
            check_answers(&what, &answers, (&case.golden, expected), &[0, 1, 2]);
            for (factor, grad) in grads {
                let expected = case.tensors.f32(&format!("{name}.grad.{factor}"));
                TINY_GRADIENT.check(format!("{what}, {factor}"), &grad, &expected);
            }
            // The broken one is asked where nothing is known.
            let unknown = case.steps(&rows, objective, size, 1).remove(0);
            assert!(case.step(&trainee, unknown).0.loss.is_nan(), "{what}");
        }
    }
    assert!(checked >= 4, "{checked}");
}

#[test]
fn golden_preference_traces() {
    let Some(case) = Case::open() else {
        return;
    };
    assert_eq!(case.golden.traces.len(), 5);
    let close = Tolerance::Relative(1e-4);
    for (name, expected) in &case.golden.traces {
        let objective = case.golden.losses[name].options.objective();
        for size in [3, 1] {
            let trainee = case.trainee(true, objective);
            let steps = case.golden.trace_settings.steps;
            let mut learner = Learner::new(trainee, SgdConfig::new().init(), 1.0);
            let rows = case.rows(&[0, 1, 2], false);
            for (i, step) in case
                .steps(&rows, objective, size, steps)
                .into_iter()
                .enumerate()
            {
                let what = format!("{name}, {size} rows a pass, step {i}");
                let output = learner.train_step(step);
                let metrics = output.item.read().unwrap();
                let answers = metrics.answers.unwrap();
                let rewards = [
                    (answers.reward_chosen, expected.mean_chosen_rewards[i]),
                    (answers.reward_rejected, expected.mean_rejected_rewards[i]),
                ];
                for (found, expected) in rewards {
                    let allowed = 1e-4 * expected.abs().max(1.0);
                    Tolerance::Absolute(allowed).check_one(&what, found.unwrap().mean, expected);
                }
                let relative = |found: f64, expected: f64| {
                    // What is nothing but rounding has no share to be off by.
                    Tolerance::Absolute(1e-4 * expected.abs().max(1e-3))
                        .check_one(&what, found, expected);
                };
                relative(metrics.loss, expected.losses[i]);
                relative(answers.loss.mean, expected.mean_per_row[i]);
                relative(metrics.grad_norm, expected.grad_norms_before_clipping[i]);
                if name == "dpo_sigmoid_beta_0.1" && i == 0 {
                    assert_eq!(metrics.loss, f64::from(std::f32::consts::LN_2), "{what}");
                    assert_eq!(answers.reward_chosen.unwrap().mean, 0.0, "{what}");
                }
                learner.optimizer_step(output.grads);
            }
            let model = learner.model().model;
            for (path, param) in model.trained_params() {
                let factor = format!("{path}.{}", param.file_name);
                let found = norm(&values(&param.values));
                close.check_one(
                    format!("{name}, {factor}"),
                    found,
                    expected.final_norms[&factor],
                );
            }
        }
    }
}
