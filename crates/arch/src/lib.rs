//! What a decoder is, without tensors.
//!
//! A layer is told once, in [`layer`]: straight-line code, generic over who executes its [`ops`]. The model
//! executes them on tensors, the planner on sizes and on the allocator's pages, calibration with a clock.
//!
//! | module | noun |
//! |---|---|
//! | [`spec`] | [`ModelSpec`], [`LayerSpec`]: what a model is made of, every tensor with name and shape |
//! | [`config`] | reading a `config.json` |
//! | [`wrapped`] | the decoder's config inside that of a model with more parts |
//! | [`families`] | [`Family`]: what each has of its own |
//! | [`rope`] | [`RopeConfig`]: rotary frequencies |
//! | [`quantization`] | [`Scheme`], [`QuantizationPlan`]: which matrix is stored how |
//! | [`base_home`] | [`BaseHome`]: where the matrices of a base's layers are while adapters are trained over them |
//! | [`four_bit`] | [`FourBitFormat`]: what 4-bit codes stand for |
//! | [`gguf_block`] | [`GgufBlock`]: the blocks of GGUF files, and their values |
//! | [`nested`] | [`NestedFormat`]: the same with a bit less or more |
//! | [`lora`] | [`LoraConfig`]: which projections carry adapters |
//! | [`whole`] | which tensors of the base are trained whole beside them |
//! | [`trainable`](mod@trainable) | [`Trainable`]: what a run trains, adapters or tensors of the base in their place |
//! | [`full`] | which tensors those are |
//! | [`module_names`], [`module_pattern`] | modules by name or pattern, as PEFT has them |
//! | [`lora_targets`] | [`LoraTargets`]: who gets which adapter, and what that means for a model |
//! | [`stored`] | [`StoredShare`]: the part of a base that is stored in one way |
//! | [`target`] | [`TargetModule`]: the projections of a layer, and which of them share an input |
//! | [`saved`] | [`SavedTensor`], [`KeepSet`], [`OffloadSet`]: what stays for the backward pass |
//! | [`ops`] | [`Forward`] and [`Backward`]: the ops of a layer, for an executor to implement |
//! | [`optimizer`] | [`OptimizerState`]: what is kept of a factor, [`KeptState`] by its update rule, [`StatePrecision`]: how AdamW does |
//! | [`device`] | [`DeviceChoice`]: devices by name |
//! | [`named`](mod@named) | [`named!`]: enums whose variants people write by name |
//! | [`sizes`] | what kernels work with and a plan of memory counts on |
//! | [`mixer`] | [`Mixer`]: how a layer mixes tokens |
//! | [`layer`] | [`forward`](layer::forward), [`backward`](layer::backward), [`Kept`] |
//! | [`delta_net`] | the part of a layer that is a DeltaNet |
//!
//! Start reading at [`layer`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod base_home;
pub mod config;
pub mod delta_net;
pub mod device;
pub mod families;
pub mod four_bit;
pub mod full;
pub mod gguf_block;
pub mod layer;
pub mod lora;
pub mod lora_targets;
pub mod mixer;
pub mod module_names;
pub mod module_pattern;
pub mod named;
pub mod nested;
pub mod ops;
pub mod optimizer;
pub mod quantization;
pub mod rope;
pub mod saved;
pub mod sizes;
pub mod spec;
pub mod stored;
pub mod target;
pub mod token_table;
pub mod trainable;
pub mod whole;
pub mod wrapped;

pub use base_home::BaseHome;
pub use config::{ConfigError, decoder_config};
pub use device::{DeviceChoice, UnknownDevice};
pub use families::Family;
pub use four_bit::FourBitFormat;
pub use gguf_block::GgufBlock;
pub use layer::{InputGrad, Kept, Projected};
pub use lora::{AdapterStart, Bias, LoraConfig, LoraConfigError};
pub use lora_targets::LoraTargets;
pub use mixer::{DeltaNetSpec, DeltaVector, Mixer};
pub use module_names::ModuleNames;
pub use module_pattern::ModulePattern;
pub use named::UnknownName;
pub use nested::NestedFormat;
pub use ops::{
    Activation, Backward, Forward, Heads, Norm, NormNames, NormPlaces, NormScale, Trained,
    ValueHeads, Values,
};
pub use optimizer::{KeptState, OptimizerState, StatePrecision};
pub use quantization::{Precision, QuantizationPlan, Scheme, embeds_on_host};
pub use rope::{QueryScaling, Reach, RopeConfig, RopeScaling, RotaryPairs};
pub use saved::{KeepSet, OffloadSet, SavedTensor};
pub use spec::{LayerSpec, ModelSpec, TensorSpec};
pub use stored::StoredShare;
pub use target::{Group, TargetModule, TargetSet, UnknownTarget};
pub use token_table::TokenTable;
pub use trainable::Trainable;
