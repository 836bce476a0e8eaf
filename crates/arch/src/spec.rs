//! What a model is made of: its layers, their matrices and vectors, with names and shapes.

use std::ops::Range;

use crate::families::Family;
use crate::mixer::{DeltaVector, Mixer};
use crate::ops::{Activation, Heads, Norm, NormNames, NormPlaces, NormScale, ValueHeads};
use crate::rope::{QueryScaling, RopeConfig};
use crate::target::{Group, TargetModule, TargetSet};

/// The name of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The name of the norm before the head.
pub const FINAL_NORM: &str = "model.norm.weight";
/// The name of a head that is not the embedding.
pub const HEAD: &str = "lm_head.weight";
/// The name of a head with one row, which scores texts.
pub const SCORE: &str = "score.weight";
/// Its module.
pub const SCORE_MODULE: &str = "score";

/// A decoder-only language model. Names are those of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// The family that it belongs to.
    pub family: Family,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// What they multiply by.
    pub norm_scale: NormScale,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the head has one row, which scores texts by the last of their tokens, and no token is predicted.
    pub scores: bool,
    /// Factor on embeddings; 1 in most families.
    pub embedding_multiplier: f64,
    /// Whether that factor is rounded to the type of activations before it multiplies.
    pub rounds_embedding_multiplier: bool,
    /// Divisor of logits; 1 in most families.
    pub logits_scaling: f64,
    /// Logits l become c·tanh(l / c); left as they are where absent.
    pub logits_softcap: Option<f64>,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// That of layers with a window, where it is another.
    pub local_rope: Option<RopeConfig>,
    /// What turned queries are multiplied by; nothing in most families.
    pub query_scaling: Option<QueryScaling>,
    /// The decoder layers, first to last; at least one.
    pub layers: Vec<LayerSpec>,
}

/// One decoder layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features inside the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key–value heads.
    pub num_key_value_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// How it mixes tokens; fields of attention say nothing of another mixer.
    pub mixer: Mixer,
    /// What becomes of queries and keys before attention.
    pub heads: Heads,
    /// What becomes of values.
    pub values: ValueHeads,
    /// Where the norms of the residual stream stand.
    pub norm_places: NormPlaces,
    /// What files call them.
    pub norm_names: NormNames,
    /// What the MLP's gate goes through.
    pub activation: Activation,
    /// Keys that a query sees, itself included; all before it where absent.
    pub sliding_window: Option<usize>,
    /// Factor on attention's scores; 1/√`head_dim` where absent.
    pub attention_multiplier: Option<f64>,
    /// Scores s, multiplied, become c·tanh(s / c); left as they are where absent.
    pub attention_softcap: Option<f64>,
    /// Factor on what attention and MLP add to the residual stream; 1 in most families.
    pub residual_multiplier: f64,
    /// Whether the residual stream behind it is multiplied by a number of its own, which stands in the files.
    pub scaled: bool,
    /// The fused projections, each in the place of those whose rows it has.
    pub fused: TargetSet,
    /// The projections that have a bias.
    pub biases: TargetSet,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in Hugging Face's files.
    pub name: String,
    /// Row by row: `[out, in]` for a matrix.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    fn new(name: String, shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        Self { name, shape }
    }

    /// How many values it has.
    #[must_use]
    pub fn num_values(&self) -> usize {
        self.shape.iter().product()
    }
}

impl LayerSpec {
    /// The shape of a projection's weight, `[out, in]`.
    #[must_use]
    pub fn shape(&self, target: TargetModule) -> [usize; 2] {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let query = self.num_attention_heads * self.head_dim;
        let key_value = self.num_key_value_heads * self.head_dim;
        let delta = match self.mixer {
            Mixer::DeltaNet(sizes) => (
                sizes.conv_width(),
                sizes.value_width(),
                sizes.num_value_heads,
            ),
            Mixer::Attention | Mixer::GatedAttention => (0, 0, 0),
        };
        match target {
            TargetModule::QProj if self.mixer == Mixer::GatedAttention => [2 * query, hidden],
            TargetModule::QProj => [query, hidden],
            TargetModule::KProj | TargetModule::VProj => [key_value, hidden],
            TargetModule::OProj => [hidden, query],
            TargetModule::GateProj | TargetModule::UpProj => [inner, hidden],
            TargetModule::DownProj => [hidden, inner],
            TargetModule::QkvProj => {
                let parts = Group::Qkv.targets().iter();
                [parts.map(|&part| self.shape(part)[0]).sum(), hidden]
            }
            TargetModule::GateUpProj => [2 * inner, hidden],
            TargetModule::InProjQkv => [delta.0, hidden],
            TargetModule::InProjZ => [delta.1, hidden],
            TargetModule::InProjB | TargetModule::InProjA => [delta.2, hidden],
            TargetModule::OutProj => [hidden, delta.1],
        }
    }

    /// The products that it computes, in the order of files; fused projections part by part.
    pub fn parts(&self) -> impl Iterator<Item = TargetModule> + Clone + use<> {
        let keys = self.values.are_keys();
        let mixer = self.mixer.targets().iter().copied();
        let mixer = mixer.filter(move |&part| !(keys && part == TargetModule::VProj));
        mixer.chain(TargetModule::MLP)
    }

    /// Its projections, in the order of files: each has a matrix, and can have an adapter.
    pub fn modules(&self) -> impl Iterator<Item = TargetModule> + Clone + use<> {
        let fused = self.fused;
        self.parts().filter_map(move |part| {
            let module = fused_in(fused, part);
            (part.place_in_group() == 0 || module == part).then_some(module)
        })
    }

    /// The projection that has the rows of `part`: itself, unless it is fused with others.
    #[must_use]
    pub fn module_of(&self, part: TargetModule) -> TargetModule {
        fused_in(self.fused, part)
    }

    /// Which rows of its projection are those of `part`.
    #[must_use]
    pub fn rows_of(&self, part: TargetModule) -> Range<usize> {
        let rows = |part| self.shape(part)[0];
        let before = match part.group() {
            Some(group) if self.module_of(part) != part => {
                let before = &group.targets()[..part.place_in_group()];
                before.iter().map(|&part| rows(part)).sum()
            }
            _ => 0,
        };
        before..before + rows(part)
    }

    /// The vectors of its mixer, where that is a DeltaNet, with their shapes.
    pub fn delta_vectors(&self) -> impl Iterator<Item = (DeltaVector, Vec<usize>)> + use<> {
        let sizes = match self.mixer {
            Mixer::DeltaNet(sizes) => Some(sizes),
            Mixer::Attention | Mixer::GatedAttention => None,
        };
        let vectors =
            sizes.map(|sizes| DeltaVector::ALL.map(|vector| (vector, vector.shape(sizes))));
        vectors.into_iter().flatten()
    }

    /// Its norms with the lengths of their weights.
    pub fn norms(&self) -> impl Iterator<Item = (Norm, usize)> + use<> {
        let stream: &[Norm] = match self.norm_places {
            NormPlaces::Before => &[Norm::Input, Norm::PostAttention],
            NormPlaces::After => &[Norm::PostAttention, Norm::PostFeedforward],
            NormPlaces::Around => &[
                Norm::Input,
                Norm::PostAttention,
                Norm::PreFeedforward,
                Norm::PostFeedforward,
            ],
        };
        let hidden = self.hidden_size;
        let stream = stream.iter().map(move |&norm| (norm, hidden));
        let together = match self.heads {
            Heads::NormedTogetherTurned => [self.num_attention_heads, self.num_key_value_heads],
            Heads::Plain | Heads::Turned | Heads::NormedTurned => [1, 1],
        };
        let [query, key] = together.map(|heads| heads * self.head_dim);
        let heads = [(Norm::Query, query), (Norm::Key, key)];
        let attends = !matches!(self.mixer, Mixer::DeltaNet(_));
        let normed = attends && self.heads.are_normed();
        let heads = heads.into_iter().take(if normed { 2 } else { 0 });
        stream.chain(heads)
    }

    /// Values of an adapter of rank `rank` on each projection.
    #[must_use]
    pub fn adapter_params(&self, rank: usize) -> usize {
        let sides = (self.modules()).map(|target| self.shape(target).iter().sum::<usize>());
        rank * sides.sum::<usize>()
    }

    /// Every tensor of layer `index`, norms first.
    pub fn tensors(&self, index: usize) -> impl Iterator<Item = TensorSpec> {
        let norms = self.norms().map(move |(norm, length)| {
            TensorSpec::new(norm.tensor(index, self.norm_names), [length])
        });
        let vectors = self.delta_vectors();
        let vectors =
            vectors.map(move |(vector, shape)| TensorSpec::new(vector.tensor(index), shape));
        let projections = self.modules().flat_map(move |target| {
            let shape = self.shape(target);
            let path = target.path(index);
            let bias = self
                .biases
                .contains(target)
                .then(|| TensorSpec::new(format!("{path}.bias"), [shape[0]]));
            std::iter::once(TensorSpec::new(format!("{path}.weight"), shape)).chain(bias)
        });
        let scalar = (self.scaled).then(|| TensorSpec::new(layer_scalar(index), [1]));
        norms.chain(vectors).chain(projections).chain(scalar)
    }
}

/// The name of what the residual stream behind layer `index` is multiplied by.
#[must_use]
pub fn layer_scalar(index: usize) -> String {
    format!("model.layers.{index}.layer_scalar")
}

/// The projection that has the rows of `part` in a layer with these fused ones.
fn fused_in(fused: TargetSet, part: TargetModule) -> TargetModule {
    let module = part.group().and_then(Group::fused);
    module
        .filter(|&module| fused.contains(module))
        .unwrap_or(part)
}

impl ModelSpec {
    /// Every tensor, layer by layer.
    pub fn tensors(&self) -> impl Iterator<Item = TensorSpec> {
        let table = [self.vocab_size, self.hidden_size];
        let layers = self.layers.iter().enumerate();
        let head = (self.head_name()).map(|name| TensorSpec::new(name.to_owned(), self.head()));
        std::iter::once(TensorSpec::new(EMBEDDING.to_owned(), table))
            .chain(layers.flat_map(|(index, layer)| layer.tensors(index)))
            .chain([TensorSpec::new(FINAL_NORM.to_owned(), [self.hidden_size])])
            .chain(head)
    }

    /// The same decoder under a head that scores texts: one row over normed hidden states as they are.
    ///
    /// # Source
    /// transformers' `GenericForSequenceClassification` with one label.
    #[must_use]
    pub fn scoring(self) -> Self {
        Self {
            scores: true,
            tie_word_embeddings: false,
            logits_scaling: 1.0,
            logits_softcap: None,
            ..self
        }
    }

    /// The name of a head that is a matrix of its own.
    #[must_use]
    pub const fn head_name(&self) -> Option<&'static str> {
        match (self.scores, self.tie_word_embeddings) {
            (true, _) => Some(SCORE),
            (false, false) => Some(HEAD),
            (false, true) => None,
        }
    }

    /// Rows and columns of the head.
    #[must_use]
    pub const fn head(&self) -> [usize; 2] {
        match self.scores {
            true => [1, self.hidden_size],
            false => [self.vocab_size, self.hidden_size],
        }
    }

    /// Every projection of every layer, with its layer.
    pub fn projections(&self) -> impl Iterator<Item = (usize, TargetModule)> + Clone + use<> {
        let layers: Vec<_> = self.layers.iter().map(LayerSpec::modules).collect();
        let layers = layers.into_iter().enumerate();
        layers.flat_map(|(index, modules)| modules.map(move |target| (index, target)))
    }

    /// The projections that some layer has, each once.
    #[must_use]
    pub fn targets(&self) -> Vec<TargetModule> {
        let has = |target: &TargetModule| self.projections().any(|(_, other)| other == *target);
        TargetModule::ALL.into_iter().filter(has).collect()
    }

    /// Whether a layer mixes tokens by the delta rule.
    #[must_use]
    pub fn has_delta_nets(&self) -> bool {
        let layers = self.layers.iter();
        layers
            .map(|layer| layer.mixer)
            .any(|mixer| matches!(mixer, Mixer::DeltaNet(_)))
    }
}
