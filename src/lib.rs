//! Backdraft as a library: CausalLm, adapters, kernels and the training loop, as Burn modules and ops.
//!
//! This crate only gathers the others under one name.
//!
//! | module | what |
//! | --- | --- |
//! | [`model`] | [`CausalLm`](model::CausalLm), loaded from a Hugging Face directory or a GGUF file |
//! | [`lora`] | adapters, and the frozen projections that carry them |
//! | [`quant`] | frozen weights, whatever they are stored as |
//! | [`kernels`] | the operations, each with its backward pass and its reference |
//! | [`formats`] | safetensors, GGUF and PEFT files |
//! | `data` | conversations, chat templates, tokens, padding-free batches (feature `data`) |
//! | `plan` | the memory and time of a step, predicted without tensors (feature `train`) |
//! | `recipe` | what a run does, read from TOML and checked (feature `train`) |
//! | `journal` | what a run tells and leaves: reports, records, diagnosis (feature `train`) |
//! | `train` | the training run that `backdraft train` does (feature `train`) |
//!
//! Both features are on by default. A program that brings its own rows and its own loop does without them, and
//! compiles about a third fewer crates.
//!
//! A model with adapters is a Burn module whose only parameters are the adapters' factors, so Burn's
//! own optimisers train it:
//!
//! ```no_run
//! use backdraft::burn::module::Module;
//! use backdraft::burn::optim::{AdamWConfig, GradientsParams};
//! use backdraft::burn::tensor::Device;
//! use backdraft::formats::ModelSource;
//! use backdraft::lora::LoraConfig;
//! use backdraft::model::{CausalLm, Targets, Tokens};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let source = ModelSource::open("SmolLM2-135M-Instruct.gguf")?;
//! let model = CausalLm::load(&source, &Device::flex())?;
//! let mut model = model.with_lora(&LoraConfig::default(), 42)?.train();
//! let mut optimizer = AdamWConfig::new().init();
//!
//! let (ids, labels) = ([504, 3575, 282, 4649], [-100, -100, 282, 4649]);
//! let tokens = Tokens::from_sequences(&[ids]);
//! let targets = Targets::from_labels(&tokens.segments, &labels);
//! let loss = model.loss(&tokens, &targets, None) / targets.len() as f32;
//! let gradients = GradientsParams::from_grads(loss.backward(), &model);
//! model = optimizer.step(1e-3, model, gradients);
//! # Ok(())
//! # }
//! ```
//!
//! `examples/embed.rs` does this inside a module of its own, in a loop.

pub use backdraft_arch as arch;
#[cfg(feature = "data")]
pub use backdraft_data as data;
pub use backdraft_formats as formats;
#[cfg(feature = "train")]
pub use backdraft_journal as journal;
pub use backdraft_kernels as kernels;
pub use backdraft_lora as lora;
pub use backdraft_model as model;
#[cfg(feature = "train")]
pub use backdraft_plan as plan;
pub use backdraft_quant as quant;
#[cfg(feature = "train")]
pub use backdraft_recipe as recipe;
#[cfg(feature = "train")]
pub use backdraft_train as train;
/// The Burn that everything here is built on.
pub use burn;
