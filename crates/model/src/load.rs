//! Building a model from its files, one tensor at a time.

use std::collections::HashSet;

use backdraft_formats::ModelSource;
use backdraft_kernels::attention::HeadLayout;
use backdraft_kernels::device;
use backdraft_lora::base::{self, read_dense, read_matrix};
use backdraft_lora::{Projection, TargetModule};
use backdraft_quant::{QuantizationPlan, Scheme, Weight};
use burn::tensor::{DType, Device, Tensor};

use crate::config::LlamaConfig;
use crate::error::LoadError;
use crate::families::llama::Llama;
use crate::layers::{Attention, DecoderLayer, Mlp, RmsNorm};
use crate::rope::RopeScaling;

/// Divisors of the rotary frequencies in GGUF files.
const ROPE_FACTORS: &str = "rope_freqs.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

impl LlamaConfig {
    /// The shape of the model in `source`.
    ///
    /// # Errors
    /// A configuration that cannot be used.
    pub fn from_source(source: &ModelSource) -> Result<Self, LoadError> {
        let wrap = |error| LoadError::Config {
            path: source.config_path().to_owned(),
            source: error,
        };
        let mut config = Self::from_hf(source.config()).map_err(wrap)?;
        if source.tensor_info(ROPE_FACTORS).is_some() {
            config.rope.scaling = RopeScaling::Factors(source.read_f32(ROPE_FACTORS)?);
        }
        Ok(config)
    }
}

impl Llama {
    /// Reads a model onto `device`: f32, or the codes that the checkpoint has.
    ///
    /// # Errors
    /// A file that cannot be read, or that disagrees with its configuration.
    pub fn load(source: &ModelSource, device: &Device) -> Result<Self, LoadError> {
        Self::load_quantized(source, None, device)
    }

    /// Reads a model onto `device` and quantises projections as the plan says, one at a time. A checkpoint
    /// that is quantised already stays as it is, the modules that it left out too; a plan, where there is
    /// one, must say the same.
    ///
    /// # Errors
    /// A file that cannot be read, that disagrees with its configuration, or whose codes are not those of
    /// the plan.
    pub fn load_quantized(
        source: &ModelSource,
        plan: Option<&QuantizationPlan>,
        device: &Device,
    ) -> Result<Self, LoadError> {
        Self::load_as(source, plan, (device, DType::F32))
    }

    /// As [`load_quantized`](Self::load_quantized); what is not quantised, and all activations, are of
    /// `dtype`.
    ///
    /// # Errors
    /// A file that cannot be read, or that disagrees with its configuration.
    pub fn load_as(
        source: &ModelSource,
        plan: Option<&QuantizationPlan>,
        (device, dtype): (&Device, DType),
    ) -> Result<Self, LoadError> {
        check_codes(source, plan)?;
        device::lasting(device, (), |()| Self::read(source, plan, (device, dtype)))
    }

    fn read(
        source: &ModelSource,
        plan: Option<&QuantizationPlan>,
        (device, dtype): (&Device, DType),
    ) -> Result<Self, LoadError> {
        let config = check(source)?;
        let reader = Reader {
            source,
            plan: plan.filter(|_| source.quantization().is_none()),
            place: (device, dtype),
        };
        let embedding = [config.vocab_size, config.hidden_size];
        let embed_tokens = reader.weight(EMBEDDING, embedding)?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| reader.layer(i, &config))
            .collect::<Result<_, _>>()?;
        let norm = reader.norm("model.norm", &config)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(reader.weight(HEAD, embedding)?),
        };
        Ok(Self::from_parts(
            config,
            embed_tokens,
            layers,
            norm,
            lm_head,
        ))
    }
}

/// The tensors of a projection of any layer: the shape of its weight, and whether it has a bias.
fn projection_shape(config: &LlamaConfig, target: TargetModule) -> ([usize; 2], bool) {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let q = config.num_attention_heads * config.head_dim;
    let kv = config.num_key_value_heads * config.head_dim;
    match target {
        TargetModule::QProj => ([q, hidden], config.attention_bias),
        TargetModule::KProj | TargetModule::VProj => ([kv, hidden], config.attention_bias),
        TargetModule::OProj => ([hidden, q], config.attention_bias),
        TargetModule::GateProj | TargetModule::UpProj => ([inner, hidden], config.mlp_bias),
        TargetModule::DownProj => ([hidden, inner], config.mlp_bias),
    }
}

/// Every tensor that a configuration asks for, with its shape.
fn expected_tensors(config: &LlamaConfig) -> impl Iterator<Item = (String, Vec<usize>)> {
    let embedding = vec![config.vocab_size, config.hidden_size];
    let layer = move |layer: usize| {
        let norms = ["input_layernorm", "post_attention_layernorm"];
        let norms = norms.map(|norm| {
            let name = format!("model.layers.{layer}.{norm}.weight");
            (name, vec![config.hidden_size])
        });
        let projections = TargetModule::ALL.into_iter().flat_map(move |target| {
            let (shape, biased) = projection_shape(config, target);
            let path = target.path(layer);
            let bias = biased.then(|| (format!("{path}.bias"), vec![shape[0]]));
            std::iter::once((format!("{path}.weight"), shape.to_vec())).chain(bias)
        });
        norms.into_iter().chain(projections)
    };
    let head = (!config.tie_word_embeddings).then(|| (HEAD.to_owned(), embedding.clone()));
    std::iter::once((EMBEDDING.to_owned(), embedding))
        .chain((0..config.num_hidden_layers).flat_map(layer))
        .chain([("model.norm.weight".to_owned(), vec![config.hidden_size])])
        .chain(head)
}

/// Whether the files hold the model that its configuration describes, by their headers alone: every
/// tensor, in its shape, and none besides.
///
/// # Errors
/// The first contradiction, with file and tensor.
pub fn check(source: &ModelSource) -> Result<LlamaConfig, LoadError> {
    let config = LlamaConfig::from_source(source)?;
    let path = source.config_path().to_owned();
    let mut used = HashSet::new();
    for (tensor, expected) in expected_tensors(&config) {
        let Some(info) = source.tensor_info(&tensor) else {
            return Err(LoadError::MissingTensor { path, tensor });
        };
        if info.shape != expected {
            return Err(LoadError::Shape {
                path,
                tensor,
                expected,
                actual: info.shape.clone(),
            });
        }
        used.insert(tensor);
    }
    let is_copy = |name: &str| config.tie_word_embeddings && name == HEAD;
    let derived = |name: &str| name == ROPE_FACTORS || name.ends_with("rotary_emb.inv_freq");
    let leftover = |name: &&str| !(used.contains(*name) || is_copy(name) || derived(name));
    match source.tensor_names().find(leftover) {
        None => Ok(config),
        Some(name) => Err(LoadError::UnexpectedTensor {
            path,
            tensor: name.to_owned(),
        }),
    }
}

/// Whether a checkpoint in codes is what its own list and the plan say.
fn check_codes(source: &ModelSource, plan: Option<&QuantizationPlan>) -> Result<(), LoadError> {
    let path = || source.path().to_owned();
    let Some(stored) = source.quantization() else {
        return Ok(());
    };
    for name in source.tensor_names() {
        let (Some(module), Some(kind)) = (name.strip_suffix(".weight"), source.bnb_kind(name))
        else {
            continue;
        };
        let scheme = base::scheme(kind);
        let listed = QuantizationPlan {
            scheme,
            skip_modules: stored.skip_modules.clone(),
        };
        let not_skipped = |list| LoadError::NotSkipped {
            path: path(),
            module: module.to_owned(),
            list,
        };
        if listed.scheme_for(module).is_none() {
            let list = "`quantization_config.llm_int8_skip_modules` in config.json";
            return Err(not_skipped(list));
        }
        match plan {
            Some(plan) if plan.scheme != scheme => {
                return Err(LoadError::OtherCodes {
                    path: path(),
                    expected: plan.scheme.to_string(),
                    actual: scheme.to_string(),
                });
            }
            Some(plan) if plan.scheme_for(module).is_none() => {
                return Err(not_skipped("the list of modules to skip that was given"));
            }
            _ => {}
        }
    }
    Ok(())
}

struct Reader<'a> {
    source: &'a ModelSource,
    plan: Option<&'a QuantizationPlan>,
    place: (&'a Device, DType),
}

impl Reader<'_> {
    fn layer(&self, index: usize, config: &LlamaConfig) -> Result<DecoderLayer, LoadError> {
        let prefix = format!("model.layers.{index}");
        let layout = HeadLayout::new(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        );
        let projection = |target| self.projection(index, target, config);
        let attention = [
            projection(TargetModule::QProj)?,
            projection(TargetModule::KProj)?,
            projection(TargetModule::VProj)?,
            projection(TargetModule::OProj)?,
        ];
        let mlp = Mlp {
            gate_proj: projection(TargetModule::GateProj)?,
            up_proj: projection(TargetModule::UpProj)?,
            down_proj: projection(TargetModule::DownProj)?,
        };
        let norms = [
            self.norm(&format!("{prefix}.input_layernorm"), config)?,
            self.norm(&format!("{prefix}.post_attention_layernorm"), config)?,
        ];
        Ok(DecoderLayer::new(
            index,
            norms,
            Attention::new(attention, layout),
            mlp,
        ))
    }

    fn projection(
        &self,
        layer: usize,
        target: TargetModule,
        config: &LlamaConfig,
    ) -> Result<Projection, LoadError> {
        let (shape, biased) = projection_shape(config, target);
        let path = target.path(layer);
        let scheme = self.plan.and_then(|plan| plan.scheme_for(&path));
        let weight = self.matrix(&format!("{path}.weight"), shape, scheme)?;
        let bias = if biased {
            Some(self.read(&format!("{path}.bias"), [shape[0]])?)
        } else {
            None
        };
        Ok(Projection::new(weight, bias))
    }

    fn norm(&self, path: &str, config: &LlamaConfig) -> Result<RmsNorm, LoadError> {
        let weight = self.read(&format!("{path}.weight"), [config.hidden_size])?;
        Ok(RmsNorm::new(weight, config.rms_norm_eps))
    }

    fn weight(&self, name: &str, shape: [usize; 2]) -> Result<Weight, LoadError> {
        self.matrix(name, shape, None)
    }

    fn matrix(
        &self,
        name: &str,
        shape: [usize; 2],
        scheme: Option<Scheme>,
    ) -> Result<Weight, LoadError> {
        Ok(read_matrix(self.source, name, shape, scheme, self.place)?)
    }

    fn read(&self, name: &str, shape: [usize; 1]) -> Result<Tensor<1>, LoadError> {
        Ok(read_dense(self.source, name, shape, self.place)?)
    }
}

#[cfg(test)]
mod tests;
