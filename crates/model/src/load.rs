//! Building a model from its files.

mod ahead;

use std::collections::HashSet;

use backdraft_arch::spec::{EMBEDDING, FINAL_NORM, HEAD, SCORE, layer_scalar};
use backdraft_arch::{
    BaseHome, DeltaNetSpec, DeltaVector, Family, Group, LayerSpec, Mixer, ModelSpec, Norm,
    NormPlaces, NormScale, RopeScaling, TensorSpec, embeds_on_host,
};
use backdraft_formats::ModelSource;
use backdraft_kernels::attention::HeadLayout;
use backdraft_kernels::device;
use backdraft_lora::base::{self, read_dense};
use backdraft_lora::{Projection, TargetModule};
use backdraft_quant::{QuantizationPlan, Slots, Weight, stream};
use burn::tensor::{DType, Device, Tensor};

use self::ahead::{Ahead, Wanted};
use crate::causal_lm::CausalLm;
use crate::error::LoadError;
use crate::layers::{
    Attention, DecoderLayer, DeltaNet, Joined, LayerMixer, Mlp, RmsNorm, StreamNorms,
};
use crate::score::drawn;

/// What transformers takes for `initializer_range` where a config does not say it.
const INITIALIZER_RANGE: f64 = 0.02;
/// Divisors of the rotary frequencies in GGUF files.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// What the model in `source` is made of, by its configuration.
///
/// # Errors
/// A configuration that cannot be used.
pub fn spec(source: &ModelSource) -> Result<ModelSpec, LoadError> {
    let wrap = |error| LoadError::Config {
        path: source.config_path().to_owned(),
        source: error,
    };
    let mut spec = ModelSpec::from_hf(source.config()).map_err(wrap)?;
    if source.tensor_info(ROPE_FACTORS).is_some() {
        spec.rope.scaling = RopeScaling::Factors(source.read_f32(ROPE_FACTORS)?);
    }
    Ok(spec)
}

impl CausalLm {
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
        let spec = check(source)?;
        let places = (Tables::OnDevice, BaseHome::Device);
        Self::read((source, &spec), plan, (device, dtype), places)
    }

    /// As [`load_as`](Self::load_as), for a run that has better uses for the device's memory: the embedding of a model
    /// whose head is another matrix stays in the host's, where the device reads its rows there by itself; so do the matrices of its
    /// layers where that is their `home`, and come to the device one layer after the other.
    ///
    /// # Errors
    /// As [`load_as`](Self::load_as); layers that the host's memory has no room for.
    pub fn load_to_train(
        source: &ModelSource,
        plan: Option<&QuantizationPlan>,
        (device, dtype): (&Device, DType),
        home: BaseHome,
    ) -> Result<Self, LoadError> {
        let spec = check(source)?;
        let places = (Tables::OnHost, home);
        Self::read((source, &spec), plan, (device, dtype), places)
    }

    /// As [`load_to_train`](Self::load_to_train), under a head that scores texts ([`ModelSpec::scoring`]): that of the files, or,
    /// where they have none, one that is drawn from `seed`, with the standard deviation `initializer_range` of `config.json`. A
    /// head that predicts tokens is not read.
    ///
    /// # Errors
    /// As [`load_to_train`](Self::load_to_train).
    pub fn load_to_score(
        source: &ModelSource,
        plan: Option<&QuantizationPlan>,
        (device, dtype): (&Device, DType),
        (home, seed): (BaseHome, u64),
    ) -> Result<Self, LoadError> {
        let spec = check_as(source, spec(source)?.scoring())?;
        let places = (Tables::UnderScore { seed }, home);
        Self::read((source, &spec), plan, (device, dtype), places)
    }

    fn read(
        (source, spec): (&ModelSource, &ModelSpec),
        plan: Option<&QuantizationPlan>,
        (device, dtype): (&Device, DType),
        (tables, home): (Tables, BaseHome),
    ) -> Result<Self, LoadError> {
        check_codes(source, plan)?;
        let plan = plan.filter(|_| source.quantization().is_none());
        let wanted = in_order(spec, plan, device);
        let ahead = Ahead::new(source, dtype, wanted);
        let slots = match home {
            BaseHome::Device => None,
            BaseHome::Host => Some(Slots::new(device)),
        };
        device::lasting(device, (), |()| {
            ahead.beside(device::gpu(device).is_some(), |ahead| {
                let reader = Reader {
                    ahead,
                    source,
                    plan,
                    place: (device, dtype),
                    slots: slots.as_ref(),
                };
                let model = reader.model(spec, tables)?;
                if let Some(slots) = &slots {
                    slots.open();
                }
                Ok(model)
            })
        })
    }
}

/// Where the embedding of a model whose head is another matrix goes, and where a head that scores comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tables {
    OnDevice,
    /// Where it can.
    OnHost,
    /// Where it can, under a head that the files have, or that is drawn from a seed.
    UnderScore {
        seed: u64,
    },
}

/// The matrices of a model in the order in which [`Reader::model`] takes them.
fn in_order(spec: &ModelSpec, plan: Option<&QuantizationPlan>, device: &Device) -> Vec<Wanted> {
    let whole = device::gpu(device).is_some();
    let table = |name: &str| Wanted {
        name: name.to_owned(),
        dims: [spec.vocab_size, spec.hidden_size],
        scheme: plan.and_then(|plan| plan.scheme_for_table(spec, name, whole)),
    };
    let projections = spec.projections().map(|(layer, target)| {
        let path = target.path(layer);
        Wanted {
            name: format!("{path}.weight"),
            dims: spec.layers[layer].shape(target),
            scheme: plan.and_then(|plan| plan.scheme_for(&path)),
        }
    });
    let head = (spec.head_name() == Some(HEAD)).then(|| table(HEAD));
    let embedding = std::iter::once(table(EMBEDDING));
    embedding.chain(projections).chain(head).collect()
}

impl Reader<'_, '_> {
    fn model(&self, spec: &ModelSpec, tables: Tables) -> Result<CausalLm, LoadError> {
        let embed_tokens = match tables {
            Tables::OnHost | Tables::UnderScore { .. } if embeds_on_host(spec, self.plan) => {
                self.ahead.take(EMBEDDING)?.put_beside(self.place.0)?
            }
            _ => self.matrix(EMBEDDING)?,
        };
        let layers = spec.layers.iter().enumerate();
        let layers = layers
            .map(|(i, layer)| self.layer(i, layer, (spec.norm_scale, spec.rms_norm_eps)))
            .collect::<Result<_, _>>()?;
        let kind = (spec.norm_scale, spec.rms_norm_eps);
        let norm = self.norm(FINAL_NORM, spec.hidden_size, kind)?;
        let lm_head = match tables {
            Tables::UnderScore { seed } => Some(self.score(spec, seed)?),
            Tables::OnDevice | Tables::OnHost => match spec.head_name() {
                None => None,
                Some(name) => Some(self.matrix(name)?),
            },
        };
        Ok(CausalLm::from_parts(
            spec.clone(),
            embed_tokens,
            layers,
            norm,
            lm_head,
        ))
    }
}

/// Whether the files hold the model that its configuration describes, by their headers alone: every
/// tensor, in its shape, and none besides.
///
/// # Errors
/// The first contradiction, with file and tensor.
pub fn check(source: &ModelSource) -> Result<ModelSpec, LoadError> {
    check_as(source, spec(source)?)
}

/// As [`check`], of a model of that shape. A head that scores may be missing: it is drawn then.
fn check_as(source: &ModelSource, spec: ModelSpec) -> Result<ModelSpec, LoadError> {
    let path = source.config_path().to_owned();
    let mut used = HashSet::new();
    for TensorSpec { name, shape } in spec.tensors() {
        let (tensor, expected) = (name, shape);
        let Some(info) = source.tensor_info(&tensor) else {
            if tensor == SCORE {
                continue;
            }
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
    // A copy of the embedding, or what another head stands in place of.
    let is_copy = |name: &str| name == HEAD && spec.head_name() != Some(HEAD);
    let derived = |name: &str| name == ROPE_FACTORS || name.ends_with("rotary_emb.inv_freq");
    // Heads that predict several tokens at once: no part of the model that is trained.
    let apart = |name: &str| spec.family == Family::Qwen35 && name.starts_with("mtp.");
    let leftover =
        |name: &&str| !(used.contains(*name) || is_copy(name) || derived(name) || apart(name));
    match source.tensor_names().find(leftover) {
        None => Ok(spec),
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
            skip_modules: stored.skip_modules.clone(),
            ..QuantizationPlan::new(scheme)
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
        match plan.map(|plan| (plan, plan.scheme_for(module))) {
            Some((plan, None)) if plan.scheme == scheme => {
                return Err(not_skipped("the list of modules to skip that was given"));
            }
            Some((plan, asked)) if asked != Some(scheme) => {
                return Err(LoadError::OtherCodes {
                    path: path(),
                    expected: asked.unwrap_or(plan.scheme).to_string(),
                    actual: scheme.to_string(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

struct Reader<'a, 's> {
    ahead: &'a Ahead<'s>,
    source: &'a ModelSource,
    plan: Option<&'a QuantizationPlan>,
    place: (&'a Device, DType),
    /// What the matrices of layers come to, where they stay in the host's memory.
    slots: Option<&'a Slots>,
}

impl Reader<'_, '_> {
    fn layer(
        &self,
        index: usize,
        spec: &LayerSpec,
        kind: (NormScale, f64),
    ) -> Result<DecoderLayer, LoadError> {
        let mixer = match spec.mixer {
            Mixer::DeltaNet(sizes) => {
                LayerMixer::DeltaNet(self.delta_net(index, (spec, sizes), kind.1)?)
            }
            Mixer::Attention | Mixer::GatedAttention => {
                LayerMixer::Attention(self.attention(index, spec, kind)?)
            }
        };
        let mlp = Mlp {
            gate_up: self.joined(index, Group::GateUp, spec)?,
            down_proj: self.branch(index, TargetModule::DownProj, spec)?,
            activation: spec.activation,
        };
        let of_heads = |norm: &Norm| matches!(norm, Norm::Query | Norm::Key);
        let norms = spec.norms().filter(|(norm, _)| !of_heads(norm));
        let norms = norms.map(|(norm, features)| {
            self.norm(&norm.tensor(index, spec.norm_names), features, kind)
        });
        let mut norms = norms.collect::<Result<Vec<_>, _>>()?.into_iter();
        let mut pair = || match (norms.next(), norms.next()) {
            (Some(first), Some(second)) => [first, second],
            _ => unreachable!("norms are listed in pairs"),
        };
        let norms_of_stream = match spec.norm_places {
            NormPlaces::Before => StreamNorms::Before(pair()),
            NormPlaces::After => StreamNorms::After(pair()),
            NormPlaces::Around => {
                let ([input, post], [pre, last]) = (pair(), pair());
                StreamNorms::Around([input, post, pre, last])
            }
        };
        let mut layer = DecoderLayer::new(index, norms_of_stream, mixer, mlp);
        if let Some(slots) = self.slots {
            let weights = layer.projections_mut();
            let weights = weights.map(|(_, projection)| projection.weight_mut());
            stream(weights.collect(), slots)?;
        }
        Ok(match spec.scaled {
            false => layer,
            true => layer.scaled_by(self.number(&layer_scalar(index))?),
        })
    }

    fn delta_net(
        &self,
        index: usize,
        (spec, sizes): (&LayerSpec, DeltaNetSpec),
        eps: f64,
    ) -> Result<DeltaNet, LoadError> {
        let projection = |target| self.projection(index, target, spec);
        let projections = [
            projection(TargetModule::InProjQkv)?,
            projection(TargetModule::InProjZ)?,
            projection(TargetModule::InProjB)?,
            projection(TargetModule::InProjA)?,
            self.branch(index, TargetModule::OutProj, spec)?,
        ];
        let vector = |vector: DeltaVector| -> Result<Tensor<1>, LoadError> {
            let length = vector.shape(sizes).iter().product();
            self.read(&vector.tensor(index), [length])
        };
        let [conv, a_log, dt_bias, norm] = DeltaVector::ALL.map(vector);
        let vectors = [conv?, a_log?, dt_bias?, norm?];
        Ok(DeltaNet::new(projections, vectors, sizes, eps))
    }

    fn attention(
        &self,
        index: usize,
        spec: &LayerSpec,
        kind: (NormScale, f64),
    ) -> Result<Attention, LoadError> {
        let layout = HeadLayout::new(
            spec.num_attention_heads,
            spec.num_key_value_heads,
            spec.head_dim,
        );
        let layout = match spec.sliding_window {
            Some(window) => layout.with_window(window),
            None => layout,
        };
        let layout = match spec.attention_multiplier {
            Some(scale) => layout.with_scale(scale as f32),
            None => layout,
        };
        let layout = match spec.attention_softcap {
            Some(cap) => layout.with_softcap(cap as f32),
            None => layout,
        };
        let qkv = self.joined(index, Group::Qkv, spec)?;
        let o_proj = self.branch(index, TargetModule::OProj, spec)?;
        let norms = spec.norms();
        let mut norms = norms.filter(|(norm, _)| matches!(norm, Norm::Query | Norm::Key));
        let mut norm = || {
            let (norm, features) = norms.next()?;
            Some(self.norm(&norm.tensor(index, spec.norm_names), features, kind))
        };
        let head_norms = match (norm(), norm()) {
            (Some(query), Some(key)) => Some([query?, key?]),
            _ => None,
        };
        let how = (spec.heads, spec.mixer);
        let attention = Attention::new((qkv, o_proj), head_norms, how, layout);
        Ok(match spec.values.are_normed() {
            false => attention,
            true => {
                let (device, dtype) = self.place;
                let ones = Tensor::ones([spec.head_dim], (device, dtype));
                let norm = RmsNorm::new(ones, NormScale::Weight, kind.1);
                attention.with_values(spec.values, norm)
            }
        })
    }

    /// The projections of a group, in one matrix where the layer has them so.
    fn joined(&self, layer: usize, group: Group, spec: &LayerSpec) -> Result<Joined, LoadError> {
        let has = |part: &&TargetModule| spec.parts().any(|other| other == **part);
        let parts = group.targets().iter().filter(has);
        match group.fused().filter(|&fused| spec.fused.contains(fused)) {
            Some(fused) => {
                let rows = parts.map(|&part| spec.rows_of(part).len()).collect();
                Ok(Joined::fused(self.projection(layer, fused, spec)?, rows))
            }
            None => parts
                .map(|&part| self.projection(layer, part, spec))
                .collect::<Result<_, _>>()
                .map(Joined::Apart),
        }
    }

    /// A projection onto the residual stream.
    fn branch(
        &self,
        layer: usize,
        target: TargetModule,
        spec: &LayerSpec,
    ) -> Result<Projection, LoadError> {
        let projection = self.projection(layer, target, spec)?;
        Ok(projection.times(spec.residual_multiplier as f32))
    }

    fn projection(
        &self,
        layer: usize,
        target: TargetModule,
        spec: &LayerSpec,
    ) -> Result<Projection, LoadError> {
        let shape = spec.shape(target);
        let path = target.path(layer);
        let name = format!("{path}.weight");
        let weight = match self.slots {
            None => self.matrix(&name)?,
            Some(_) => self.ahead.take(&name)?.put_on(&Device::flex())?,
        };
        let bias = if spec.biases.contains(target) {
            Some(self.read(&format!("{path}.bias"), [shape[0]])?)
        } else {
            None
        };
        Ok(Projection::new(weight, bias))
    }

    fn norm(
        &self,
        name: &str,
        features: usize,
        (scale, eps): (NormScale, f64),
    ) -> Result<RmsNorm, LoadError> {
        Ok(RmsNorm::new(self.read(name, [features])?, scale, eps))
    }

    /// The next matrix of [`in_order`], which is that one.
    fn matrix(&self, name: &str) -> Result<Weight, LoadError> {
        Ok(self.ahead.take(name)?.put_on(self.place.0)?)
    }

    /// The head that scores texts.
    fn score(&self, spec: &ModelSpec, seed: u64) -> Result<Weight, LoadError> {
        if self.source.tensor_info(SCORE).is_some() {
            let row = read_dense(self.source, SCORE, spec.head(), self.place)?;
            return Ok(Weight::Dense(row));
        }
        let range = self.source.config().get("initializer_range");
        let range = range.and_then(serde_json::Value::as_f64);
        let row = drawn(spec.hidden_size, range.unwrap_or(INITIALIZER_RANGE), seed);
        Ok(Weight::Dense(Tensor::from_data(row, self.place)))
    }

    fn number(&self, name: &str) -> Result<f64, LoadError> {
        match self.source.read_f32(name)?[..] {
            [value] => Ok(f64::from(value)),
            _ => unreachable!("its shape was checked"),
        }
    }

    fn read(&self, name: &str, shape: [usize; 1]) -> Result<Tensor<1>, LoadError> {
        Ok(read_dense(self.source, name, shape, self.place)?)
    }
}

#[cfg(test)]
mod tests;
