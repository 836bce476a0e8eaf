//! One decoder layer.

use backdraft_lora::{AdapterGrads, Projection, TargetModule};
use burn::module::Module;
use burn::tensor::Tensor;

use super::{Attention, AttentionSaved, Context, Mlp, MlpSaved, NormSaved, RmsNorm};
use crate::cache::LayerCache;

/// h ← h + attention(norm(h)); h ← h + mlp(norm(h)).
#[derive(Module, Debug)]
pub struct DecoderLayer {
    /// Before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: Attention,
    /// Before the MLP.
    pub post_attention_layernorm: RmsNorm,
    /// MLP.
    pub mlp: Mlp,
    #[module(skip)]
    index: usize,
}

/// Everything a layer's backward pass needs; what an activation policy chooses from.
#[derive(Clone, Debug)]
pub struct LayerSaved {
    input_norm: NormSaved,
    attention: AttentionSaved,
    post_norm: NormSaved,
    mlp: MlpSaved,
}

impl DecoderLayer {
    /// Layer `index` of a model.
    pub fn new(
        index: usize,
        [input_layernorm, post_attention_layernorm]: [RmsNorm; 2],
        self_attn: Attention,
        mlp: Mlp,
    ) -> Self {
        Self {
            input_layernorm,
            self_attn,
            post_attention_layernorm,
            mlp,
            index,
        }
    }

    /// The differentiable layer.
    ///
    /// # Shapes
    /// `h` and the result `[t, h]`.
    pub fn forward(
        &self,
        h: Tensor<2>,
        context: &Context,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<2> {
        let normed = self.input_layernorm.forward(h.clone());
        let h = h + self.self_attn.forward(normed, context, self.index, cache);
        let normed = self.post_attention_layernorm.forward(h.clone());
        h + self.mlp.forward(normed, context, self.index)
    }

    /// Without autodiff, with what the backward pass needs.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    pub fn forward_saving(&self, h: Tensor<2>, context: &Context) -> (Tensor<2>, LayerSaved) {
        let (normed, input_norm) = self.input_layernorm.forward_saving(h.clone());
        let (y, attention) = self.self_attn.forward_saving(normed, context, self.index);
        let h = h + y;
        let (normed, post_norm) = self.post_attention_layernorm.forward_saving(h.clone());
        let (y, mlp) = self.mlp.forward_saving(normed, context, self.index);
        (
            h + y,
            LayerSaved {
                input_norm,
                attention,
                post_norm,
                mlp,
            },
        )
    }

    /// Adds the adapters' gradients to `grads` and returns the input's, if it is `wanted`.
    ///
    /// # Shapes
    /// `dy` and the result `[t, h]`.
    pub fn backward(
        &self,
        dy: Tensor<2>,
        saved: LayerSaved,
        context: &Context,
        grads: &mut AdapterGrads,
        wanted: bool,
    ) -> Option<Tensor<2>> {
        let d_normed = self.mlp.backward(&dy, saved.mlp, grads);
        let d_mid = dy
            + self
                .post_attention_layernorm
                .backward(&d_normed, &saved.post_norm);
        let d_normed = self
            .self_attn
            .backward(&d_mid, saved.attention, context, grads, wanted)?;
        Some(d_mid + self.input_layernorm.backward(&d_normed, &saved.input_norm))
    }

    /// The projection that goes by the name of `target`.
    pub fn projection(&self, target: TargetModule) -> &Projection {
        match target {
            TargetModule::QProj => &self.self_attn.q_proj,
            TargetModule::KProj => &self.self_attn.k_proj,
            TargetModule::VProj => &self.self_attn.v_proj,
            TargetModule::OProj => &self.self_attn.o_proj,
            TargetModule::GateProj => &self.mlp.gate_proj,
            TargetModule::UpProj => &self.mlp.up_proj,
            TargetModule::DownProj => &self.mlp.down_proj,
        }
    }

    /// As [`projection`](Self::projection), to be changed.
    pub fn projection_mut(&mut self, target: TargetModule) -> &mut Projection {
        match target {
            TargetModule::QProj => &mut self.self_attn.q_proj,
            TargetModule::KProj => &mut self.self_attn.k_proj,
            TargetModule::VProj => &mut self.self_attn.v_proj,
            TargetModule::OProj => &mut self.self_attn.o_proj,
            TargetModule::GateProj => &mut self.mlp.gate_proj,
            TargetModule::UpProj => &mut self.mlp.up_proj,
            TargetModule::DownProj => &mut self.mlp.down_proj,
        }
    }

    /// All seven projections, to be changed, in the order of [`TargetModule::ALL`].
    pub fn projections_mut(&mut self) -> [(TargetModule, &mut Projection); 7] {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        [
            (TargetModule::QProj, &mut attention.q_proj),
            (TargetModule::KProj, &mut attention.k_proj),
            (TargetModule::VProj, &mut attention.v_proj),
            (TargetModule::OProj, &mut attention.o_proj),
            (TargetModule::GateProj, &mut mlp.gate_proj),
            (TargetModule::UpProj, &mut mlp.up_proj),
            (TargetModule::DownProj, &mut mlp.down_proj),
        ]
    }
}
