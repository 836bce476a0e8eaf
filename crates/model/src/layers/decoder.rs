//! One decoder layer.

use std::ops::Range;

use backdraft_arch::layer;
use backdraft_arch::{
    DeltaVector, Group, Heads, InputGrad, KeepSet, Mixer, Norm, NormPlaces, SavedTensor,
    TargetModule, Trained, ValueHeads,
};
use backdraft_kernels::paged_attention::Places;
use backdraft_lora::{AdapterGrads, Projection};
use backdraft_quant::{Block, Weight};
use burn::module::Module;
use burn::tensor::Tensor;

use super::decode_ops::DecodeOps;
use super::device_ops::DeviceOps;
use super::joined::{Fused, Whole};
use super::offload::LayerSaved;
use super::tape_ops::TapeOps;
use super::timed_ops::TimedOps;
use super::{Attention, Context, DeltaNet, Joined, Mlp, RmsNorm};
use crate::cache::{LayerPool, Slot};

/// The parts of a layer; what it does with them is told in [`backdraft_arch::layer`].
#[derive(Module, Debug)]
pub struct DecoderLayer {
    norms: StreamNorms,
    /// Attention, or what stands in its place.
    pub mixer: LayerMixer,
    /// MLP.
    pub mlp: Mlp,
    /// What the residual stream behind it is multiplied by.
    #[module(skip)]
    scalar: Option<f64>,
    #[module(skip)]
    index: usize,
}

impl Trained for DecoderLayer {
    fn trains(&self, target: TargetModule) -> bool {
        let projection = self.find(target);
        projection.is_some_and(|projection| {
            projection.adapter().is_some() || projection.trained_weight().is_some()
        })
    }

    fn trains_bias(&self, target: TargetModule) -> bool {
        let projection = self.find(target);
        projection.is_some_and(|projection| projection.trained_bias().is_some())
    }

    fn trains_norm(&self, norm: Norm) -> bool {
        let norm = self.find_norm(norm);
        norm.is_some_and(|norm| norm.trained().is_some())
    }
}

/// What of a layer reads other tokens.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each layer")]
pub enum LayerMixer {
    /// Softmax attention.
    Attention(Attention),
    /// Linear attention by the gated delta rule.
    DeltaNet(DeltaNet),
}

/// The norms between the residual stream and a layer's attention and MLP.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each layer")]
pub enum StreamNorms {
    /// Before attention and before the MLP.
    Before([RmsNorm; 2]),
    /// After attention and after the MLP.
    After([RmsNorm; 2]),
    /// Before and after attention, before and after the MLP.
    Around([RmsNorm; 4]),
}

impl DecoderLayer {
    /// Layer `index` of a model.
    pub fn new(index: usize, norms: StreamNorms, mixer: LayerMixer, mlp: Mlp) -> Self {
        Self {
            norms,
            mixer,
            mlp,
            scalar: None,
            index,
        }
    }

    /// With a number that the residual stream behind it is multiplied by.
    pub fn scaled_by(self, scalar: f64) -> Self {
        Self {
            scalar: Some(scalar),
            ..self
        }
    }

    /// The block that its matrices come to the device in, where they stay in the host's memory.
    pub(crate) fn block(&self) -> Option<&Block> {
        let mut modules = self.modules().into_iter();
        modules.find_map(|target| match self.projection(target).weight() {
            Weight::Streamed(matrix) => Some(matrix.block()),
            _ => None,
        })
    }

    /// Says that the layer is computed from now on, and `next` after it. Where its matrices stay in the host's memory, they are on the
    /// device, or the device waits for them, and those of `next` start to come.
    pub fn enter(&self, next: Option<&Self>) {
        if let Some(block) = self.block() {
            block.enter(next.and_then(Self::block));
        }
    }

    /// The differentiable layer.
    ///
    /// # Shapes
    /// `h` and the result `[t, hidden]`.
    pub fn forward(&self, h: Tensor<2>, context: &Context) -> Tensor<2> {
        let mut ops = TapeOps {
            layer: self,
            context,
        };
        layer::forward(&mut ops, h, KeepSet::NONE).0
    }

    /// New tokens over keys and values in a pool, into which their own go; without autodiff. Each part names its rows and
    /// the layer, of one base, whose adapters they go through.
    ///
    /// # Shapes
    /// `h` and the result `[t, hidden]`; the parts follow one another from 0 to t.
    pub(crate) fn forward_cached(
        parts: &[(Range<usize>, &Self)],
        h: Tensor<2>,
        context: &Context,
        (pool, places, slots): (&mut LayerPool, &Places, &[Slot]),
    ) -> Tensor<2> {
        let mut ops = DecodeOps {
            parts,
            context,
            pool,
            places,
            slots,
        };
        layer::forward(&mut ops, h, KeepSet::NONE).0
    }

    /// The result alone, without autodiff, by the ops of a step.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    pub fn forward_alone(&self, h: Tensor<2>, context: &Context) -> Tensor<2> {
        self.forward_saving(h, context, KeepSet::NONE).0
    }

    /// Without autodiff; keeps what `keep` names for the backward pass.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    pub fn forward_saving(
        &self,
        h: Tensor<2>,
        context: &Context,
        keep: KeepSet,
    ) -> (Tensor<2>, LayerSaved) {
        let mut none = AdapterGrads::new();
        layer::forward(&mut self.ops(context, &mut none), h, keep)
    }

    /// Computes the tensors of the layer one by one, in the order of the forward pass, and shows each to `made` as soon
    /// as an op of it has been issued: to time them. One that takes two ops is shown twice, one that is never kept without a
    /// name.
    pub fn visit_saved(
        &self,
        h: Tensor<2>,
        context: &Context,
        made: &mut dyn FnMut(Option<SavedTensor>, &Tensor<2>),
    ) {
        let mut none = AdapterGrads::new();
        let ops = self.ops(context, &mut none);
        layer::forward(&mut TimedOps { ops, made }, h, KeepSet::NONE);
    }

    /// Adds the gradients of what is trained to `grads` and returns the input's, where it is needed.
    ///
    /// # Shapes
    /// `dy` and the result `[t, hidden]`.
    pub fn backward(
        &self,
        dy: Tensor<2>,
        saved: LayerSaved,
        context: &Context,
        grads: &mut AdapterGrads,
        input_grad: InputGrad,
    ) -> Option<Tensor<2>> {
        layer::backward(&mut self.ops(context, grads), dy, saved, input_grad)
    }

    /// Whether it has every tensor of a layer that attends.
    pub fn has_value(&self) -> bool {
        layer::has_value(self.mixer(), self.values())
    }

    /// The tensors that the backward pass uses: what `keep-all` keeps.
    pub fn uses(&self, input_grad: InputGrad) -> KeepSet {
        let mixing = (self.mixer(), self.values());
        layer::uses(self, mixing, self.norm_places(), input_grad)
    }

    fn ops<'a>(&'a self, context: &'a Context, grads: &'a mut AdapterGrads) -> DeviceOps<'a> {
        DeviceOps {
            layer: self,
            context,
            grads,
        }
    }

    pub(super) fn heads(&self) -> Heads {
        self.self_attn().heads()
    }

    /// What becomes of values.
    pub(super) fn values(&self) -> ValueHeads {
        match &self.mixer {
            LayerMixer::Attention(attention) => attention.values(),
            LayerMixer::DeltaNet(_) => ValueHeads::Plain,
        }
    }

    /// The residual stream behind it, or its gradient, times its number.
    pub(super) fn scale(&self, stream: Tensor<2>) -> Tensor<2> {
        match self.scalar {
            None => stream,
            Some(scalar) => stream.mul_scalar(scalar),
        }
    }

    /// How it mixes tokens.
    pub fn mixer(&self) -> Mixer {
        match &self.mixer {
            LayerMixer::Attention(attention) => attention.mixer(),
            LayerMixer::DeltaNet(net) => Mixer::DeltaNet(net.sizes()),
        }
    }

    /// Keys that a query sees at most, where that is limited.
    pub fn window(&self) -> Option<usize> {
        match &self.mixer {
            LayerMixer::Attention(attention) => attention.layout().window,
            LayerMixer::DeltaNet(_) => None,
        }
    }

    pub(super) fn self_attn(&self) -> &Attention {
        match &self.mixer {
            LayerMixer::Attention(attention) => attention,
            LayerMixer::DeltaNet(_) => unreachable!("this layer is a DeltaNet"),
        }
    }

    pub(super) fn delta_net(&self) -> &DeltaNet {
        match &self.mixer {
            LayerMixer::DeltaNet(net) => net,
            LayerMixer::Attention(_) => unreachable!("this layer attends"),
        }
    }

    /// Where the norms of the residual stream stand.
    pub(super) fn norm_places(&self) -> NormPlaces {
        match self.norms {
            StreamNorms::Before(_) => NormPlaces::Before,
            StreamNorms::After(_) => NormPlaces::After,
            StreamNorms::Around(_) => NormPlaces::Around,
        }
    }

    pub(super) fn norm(&self, norm: Norm) -> &RmsNorm {
        let found = self.find_norm(norm);
        found.unwrap_or_else(|| unreachable!("this layer has no {norm:?}"))
    }

    pub(crate) fn find_norm(&self, norm: Norm) -> Option<&RmsNorm> {
        Some(match (norm, &self.norms) {
            (Norm::Input, StreamNorms::Before([norm, _]) | StreamNorms::Around([norm, ..]))
            | (
                Norm::PostAttention,
                StreamNorms::Before([_, norm])
                | StreamNorms::After([norm, _])
                | StreamNorms::Around([_, norm, ..]),
            )
            | (Norm::PreFeedforward, StreamNorms::Around([_, _, norm, _]))
            | (
                Norm::PostFeedforward,
                StreamNorms::After([_, norm]) | StreamNorms::Around([.., norm]),
            ) => norm,
            (Norm::Query | Norm::Key, _) => match &self.mixer {
                LayerMixer::Attention(attention) => attention.find_norm(norm)?,
                LayerMixer::DeltaNet(_) => return None,
            },
            _ => return None,
        })
    }

    /// Its norms, to be changed.
    pub(crate) fn norms_mut(&mut self) -> impl Iterator<Item = (Norm, &mut RmsNorm)> {
        let stream = match &mut self.norms {
            StreamNorms::Before([input, post]) => {
                vec![(Norm::Input, input), (Norm::PostAttention, post)]
            }
            StreamNorms::After([post, last]) => {
                vec![(Norm::PostAttention, post), (Norm::PostFeedforward, last)]
            }
            StreamNorms::Around([input, post, pre, last]) => vec![
                (Norm::Input, input),
                (Norm::PostAttention, post),
                (Norm::PreFeedforward, pre),
                (Norm::PostFeedforward, last),
            ],
        };
        let heads = match &mut self.mixer {
            LayerMixer::Attention(attention) => attention.head_norms.as_mut(),
            LayerMixer::DeltaNet(_) => None,
        };
        let heads = heads.map(|[query, key]| [(Norm::Query, query), (Norm::Key, key)]);
        stream.into_iter().chain(heads.into_iter().flatten())
    }

    pub(super) fn dropout_seed(&self, part: TargetModule, context: &Context) -> Option<u64> {
        let fused = part.group().filter(|&group| self.fused(group).is_some());
        // One adapter drops its input out once.
        let first = fused.map_or(part, |group| group.targets()[0]);
        context.seed(self.index, first)
    }

    /// The vectors of its mixer, where that is a DeltaNet, to be changed.
    pub(crate) fn vectors_mut(&mut self) -> impl Iterator<Item = (DeltaVector, &mut Tensor<1>)> {
        let vectors = match &mut self.mixer {
            LayerMixer::Attention(_) => None,
            LayerMixer::DeltaNet(net) => Some(net.vectors_mut()),
        };
        vectors.into_iter().flatten()
    }

    /// The projection that has the rows of all in the group, where there is one.
    pub(super) fn fused(&self, group: Group) -> Option<&Fused> {
        self.joined(group)?.as_fused()
    }

    /// The features of `part` in what a fused projection gave.
    pub(super) fn cut(&self, part: TargetModule, whole: &Whole) -> Option<Tensor<2>> {
        let (whole, fused) = whole.as_ref().zip(self.fused(part.group()?))?;
        let features = fused.rows_of(part);
        Some(whole.clone().narrow(1, features.start, features.len()))
    }

    fn joined(&self, group: Group) -> Option<&Joined> {
        match (group, &self.mixer) {
            (Group::Qkv, LayerMixer::Attention(attention)) => Some(&attention.qkv),
            (Group::GateUp, _) => Some(&self.mlp.gate_up),
            (Group::Qkv | Group::Delta, _) => None,
        }
    }

    fn find(&self, target: TargetModule) -> Option<&Projection> {
        use TargetModule as M;
        Some(match (target, &self.mixer) {
            (M::QProj | M::KProj | M::VProj | M::QkvProj, LayerMixer::Attention(attention)) => {
                attention.qkv.of(target)?
            }
            (M::OProj, LayerMixer::Attention(attention)) => &attention.o_proj,
            (M::InProjQkv, LayerMixer::DeltaNet(net)) => &net.in_proj_qkv,
            (M::InProjZ, LayerMixer::DeltaNet(net)) => &net.in_proj_z,
            (M::InProjB, LayerMixer::DeltaNet(net)) => &net.in_proj_b,
            (M::InProjA, LayerMixer::DeltaNet(net)) => &net.in_proj_a,
            (M::OutProj, LayerMixer::DeltaNet(net)) => &net.out_proj,
            (M::GateProj | M::UpProj | M::GateUpProj, _) => self.mlp.gate_up.of(target)?,
            (M::DownProj, _) => &self.mlp.down_proj,
            _ => return None,
        })
    }

    /// The projection that goes by the name of `target`, or has its rows.
    ///
    /// # Panics
    /// If its mixer computes none of that name.
    pub fn projection(&self, target: TargetModule) -> &Projection {
        let found = self.find(target);
        found.unwrap_or_else(|| panic!("layer {} has no {target}", self.index))
    }

    /// As [`projection`](Self::projection), to be changed.
    ///
    /// # Panics
    /// As [`projection`](Self::projection).
    pub fn projection_mut(&mut self, target: TargetModule) -> &mut Projection {
        use TargetModule as M;
        let index = self.index;
        let found = match (target, &mut self.mixer) {
            (M::QProj | M::KProj | M::VProj | M::QkvProj, LayerMixer::Attention(attention)) => {
                attention.qkv.of_mut(target)
            }
            (M::OProj, LayerMixer::Attention(attention)) => Some(&mut attention.o_proj),
            (M::InProjQkv, LayerMixer::DeltaNet(net)) => Some(&mut net.in_proj_qkv),
            (M::InProjZ, LayerMixer::DeltaNet(net)) => Some(&mut net.in_proj_z),
            (M::InProjB, LayerMixer::DeltaNet(net)) => Some(&mut net.in_proj_b),
            (M::InProjA, LayerMixer::DeltaNet(net)) => Some(&mut net.in_proj_a),
            (M::OutProj, LayerMixer::DeltaNet(net)) => Some(&mut net.out_proj),
            (M::GateProj | M::UpProj | M::GateUpProj, _) => self.mlp.gate_up.of_mut(target),
            (M::DownProj, _) => Some(&mut self.mlp.down_proj),
            _ => None,
        };
        found.unwrap_or_else(|| panic!("layer {index} has no {target}"))
    }

    /// The names of its projections, in the order of files.
    pub fn modules(&self) -> Vec<TargetModule> {
        let name = |&part: &TargetModule| match part.group() {
            Some(group) if self.fused(group).is_some() => {
                group.fused().filter(|_| part.place_in_group() == 0)
            }
            _ => self.find(part).map(|_| part),
        };
        let mixer = self.mixer().targets().iter();
        let parts = mixer.chain(&TargetModule::MLP);
        parts.filter_map(name).collect()
    }

    /// All its projections, to be changed, in the order of [`modules`](Self::modules).
    pub fn projections_mut(&mut self) -> impl Iterator<Item = (TargetModule, &mut Projection)> {
        use TargetModule as M;
        let mixer: Vec<_> = match &mut self.mixer {
            LayerMixer::Attention(attention) => {
                let qkv = attention.qkv.modules_mut(Group::Qkv);
                qkv.chain([(M::OProj, &mut attention.o_proj)]).collect()
            }
            LayerMixer::DeltaNet(net) => vec![
                (M::InProjQkv, &mut net.in_proj_qkv),
                (M::InProjZ, &mut net.in_proj_z),
                (M::InProjB, &mut net.in_proj_b),
                (M::InProjA, &mut net.in_proj_a),
                (M::OutProj, &mut net.out_proj),
            ],
        };
        let mlp = &mut self.mlp;
        let gate_up = mlp.gate_up.modules_mut(Group::GateUp);
        let mlp = gate_up.chain([(M::DownProj, &mut mlp.down_proj)]);
        mixer.into_iter().chain(mlp)
    }
}
