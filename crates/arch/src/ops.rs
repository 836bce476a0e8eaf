//! The ops of a layer, for an executor to implement.
//!
//! [`layer`](crate::layer) says in which order they run and how long their results live; an executor says what they
//! do: compute on a device, build a tape, take times, or count bytes. What they compute is documented where it is
//! computed, in the kernels.

use crate::layer::InputGrad;
use crate::mixer::Mixer;
use crate::saved::SavedTensor;
use crate::target::{Group, TargetModule};

/// What an executor's values are. Dropping the last clone of one frees its memory.
pub trait Values {
    /// Activations, `[t, features]`.
    type Tensor: Clone;
    /// What a norm remembers of each row, `[t]`.
    type Stats;
    /// Log-sum-exp of attention's scores, `[t, heads]`.
    type LogSumExp;
    /// What a projection's backward pass needs besides its input: x·Aᵀ `[t, r]` where there is an adapter.
    type Side: Default;
}

/// A norm of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Norm {
    /// Before attention.
    Input,
    /// Before the MLP; where norms follow, after attention.
    PostAttention,
    /// Before the MLP, where norms stand around.
    PreFeedforward,
    /// After the MLP, where norms follow.
    PostFeedforward,
    /// Of the queries, before their rotation.
    Query,
    /// Of the keys.
    Key,
}

impl Norm {
    /// All of them. No layer has every one.
    pub const ALL: [Self; 6] = [
        Self::Input,
        Self::PostAttention,
        Self::PreFeedforward,
        Self::PostFeedforward,
        Self::Query,
        Self::Key,
    ];

    /// The tensor that holds its output, or the sum that it goes into; that of heads, a layer's result, and a stream that
    /// is normed once more are never kept.
    #[must_use]
    pub const fn output(self, places: NormPlaces) -> Option<SavedTensor> {
        match self {
            Self::Input => Some(SavedTensor::InputNormed),
            Self::PostAttention if matches!(places, NormPlaces::Around) => None,
            Self::PostAttention | Self::PreFeedforward => Some(SavedTensor::PostNormed),
            Self::PostFeedforward | Self::Query | Self::Key => None,
        }
    }

    /// The name of its weight in Hugging Face's files.
    #[must_use]
    pub fn tensor(self, layer: usize, names: NormNames) -> String {
        let name = match (self, names) {
            (Self::Input, _) => "input_layernorm",
            (Self::PostAttention, NormNames::Usual) => "post_attention_layernorm",
            (Self::PreFeedforward, NormNames::Usual) => "pre_feedforward_layernorm",
            (Self::PostFeedforward, NormNames::Usual) => "post_feedforward_layernorm",
            (Self::PostAttention, NormNames::Glm) => "post_self_attn_layernorm",
            (Self::PreFeedforward, NormNames::Glm) => "post_attention_layernorm",
            (Self::PostFeedforward, NormNames::Glm) => "post_mlp_layernorm",
            (Self::Query, _) => "self_attn.q_norm",
            (Self::Key, _) => "self_attn.k_norm",
        };
        format!("model.layers.{layer}.{name}.weight")
    }
}

/// What files call the norms of the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormNames {
    /// As Llama and Gemma do.
    Usual,
    /// As GLM 4 does, whose `post_attention_layernorm` stands before the MLP though another follows attention.
    Glm,
}

/// Where the norms of the residual stream stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormPlaces {
    /// Before attention and before the MLP.
    Before,
    /// After each, before it is added to the stream.
    After,
    /// Before and after each.
    Around,
}

impl NormPlaces {
    /// Whether attention reads the stream normed.
    #[must_use]
    pub const fn are_before(self) -> bool {
        matches!(self, Self::Before | Self::Around)
    }

    /// Whether attention and MLP are normed before they are added to the stream.
    #[must_use]
    pub const fn are_after(self) -> bool {
        matches!(self, Self::After | Self::Around)
    }
}

/// What a norm multiplies its rows by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormScale {
    /// Its weight.
    Weight,
    /// 1 + its weight, and the product is rounded once.
    OnePlusWeight,
}

/// What the gate of an MLP goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// g·σ(g).
    Silu,
    /// GELU in the form with tanh: g·½(1 + tanh(√(2/π)·(g + 0.044715·g³))).
    GeluTanh,
}

/// What becomes of queries and keys between their projections and attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Heads {
    /// Nothing: they see no positions.
    Plain,
    /// Each head is turned by its token's position.
    Turned,
    /// Each head is normed, then turned.
    NormedTurned,
    /// All heads of a token are normed together, then each is turned.
    NormedTogetherTurned,
}

impl Heads {
    /// Whether they are normed before they are turned.
    #[must_use]
    pub const fn are_normed(self) -> bool {
        match self {
            Self::Plain | Self::Turned => false,
            Self::NormedTurned | Self::NormedTogetherTurned => true,
        }
    }
}

/// What becomes of values between their projection and attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueHeads {
    /// Nothing.
    Plain,
    /// Each head is normed, by no weight.
    Normed,
    /// Likewise, and they are what `k_proj` gives: there is no `v_proj`. Keys are normed too, so that they are kept as
    /// projected.
    NormedKeys,
}

impl ValueHeads {
    /// Whether they are normed.
    #[must_use]
    pub const fn are_normed(self) -> bool {
        !matches!(self, Self::Plain)
    }

    /// Whether keys and values have one projection.
    #[must_use]
    pub const fn are_keys(self) -> bool {
        matches!(self, Self::NormedKeys)
    }
}

/// An executor's [`Values::Tensor`].
pub(crate) type TensorOf<O> = <<O as Forward>::Values as Values>::Tensor;
/// An executor's [`Values::Stats`].
pub(crate) type StatsOf<O> = <<O as Forward>::Values as Values>::Stats;
/// An executor's [`Values::LogSumExp`].
pub(crate) type LogSumExpOf<O> = <<O as Forward>::Values as Values>::LogSumExp;
/// An executor's [`Values::Side`].
pub(crate) type SideOf<O> = <<O as Forward>::Values as Values>::Side;

/// What of a layer is trained.
pub trait Trained {
    /// Whether a projection has an adapter, or its weight is trained: either's gradient takes the projection's input.
    fn trains(&self, target: TargetModule) -> bool;

    /// Whether the bias of a projection is trained; that of a fused one belongs to each of its parts.
    fn trains_bias(&self, target: TargetModule) -> bool;

    /// Whether the weight of a norm is trained.
    fn trains_norm(&self, norm: Norm) -> bool;
}

/// Ops of the forward pass.
pub trait Forward: Trained {
    /// What the ops take and give.
    type Values: Values;
    /// The output of a projection whose adapter's term may be left to the op that reads it next.
    type Deferred;
    /// x·Aᵀ of all projections of a group, where one product makes it for all.
    type SharedDown;

    /// Where the norms of the residual stream stand.
    fn norm_places(&self) -> NormPlaces;

    /// # Shapes
    /// `x` and the result `[t, hidden]`.
    fn norm(&mut self, norm: Norm, x: &TensorOf<Self>) -> (TensorOf<Self>, StatsOf<Self>);

    /// A norm added to the residual stream.
    ///
    /// # Shapes
    /// `x`, `stream` and the result `[t, hidden]`.
    fn norm_onto(
        &mut self,
        norm: Norm,
        x: &TensorOf<Self>,
        stream: &TensorOf<Self>,
    ) -> (TensorOf<Self>, StatsOf<Self>);

    /// x·Aᵀ of a group. It is made for the whole group whichever outputs are wanted of it, since one product of all may
    /// round otherwise than one of each.
    fn shared_down(&mut self, group: Group, x: &TensorOf<Self>) -> Self::SharedDown;

    /// A projection of a group.
    ///
    /// # Shapes
    /// `x` `[t, in]`, result `[t, out]`.
    fn project(
        &mut self,
        target: TargetModule,
        x: &TensorOf<Self>,
        down: &Self::SharedDown,
    ) -> (TensorOf<Self>, SideOf<Self>);

    /// As [`project`](Self::project); the adapter's term may be left to [`glu`](Self::glu).
    fn project_deferred(
        &mut self,
        target: TargetModule,
        x: &TensorOf<Self>,
        down: &Self::SharedDown,
    ) -> (Self::Deferred, SideOf<Self>);

    /// With the term.
    fn complete(&mut self, output: Self::Deferred) -> TensorOf<Self>;

    /// A projection added to the residual stream, where it is not to be normed first.
    ///
    /// # Shapes
    /// `x` `[t, in]`, `stream` and the result `[t, hidden]`.
    fn project_onto(
        &mut self,
        target: TargetModule,
        x: &TensorOf<Self>,
        stream: Option<&TensorOf<Self>>,
    ) -> (TensorOf<Self>, SideOf<Self>);

    /// Queries and keys turned by their positions, in one op.
    fn rope(
        &mut self,
        query: TensorOf<Self>,
        key: TensorOf<Self>,
    ) -> (TensorOf<Self>, TensorOf<Self>);

    /// Queries or keys alone.
    fn rope_one(&mut self, target: TargetModule, x: TensorOf<Self>) -> TensorOf<Self>;

    /// What becomes of queries and keys.
    fn heads(&self) -> Heads;

    /// Queries or keys, normed and turned.
    fn norm_rope(&mut self, norm: Norm, x: &TensorOf<Self>) -> TensorOf<Self>;

    /// What becomes of values.
    fn values(&self) -> ValueHeads;

    /// Each head of values normed, with the statistics of all heads.
    ///
    /// # Shapes
    /// `x` and the result `[t, kv_heads·d]`.
    fn norm_values(&mut self, x: &TensorOf<Self>) -> (TensorOf<Self>, StatsOf<Self>);

    /// The residual stream behind the layer, or its gradient, times the layer's scalar; as it is where there is none.
    ///
    /// # Shapes
    /// `stream` and the result `[t, hidden]`.
    fn scale(&mut self, stream: TensorOf<Self>) -> TensorOf<Self>;

    /// How the layer mixes tokens.
    fn mixer(&self) -> Mixer;

    /// Queries and their gates, of what `q_proj` gives for both.
    ///
    /// # Shapes
    /// `x` `[t, 2·heads·d]`, results `[t, heads·d]`.
    fn split_query(&mut self, x: &TensorOf<Self>) -> [TensorOf<Self>; 2];

    /// Attention's output times σ of its gate.
    ///
    /// # Shapes
    /// All `[t, heads·d]`.
    fn gate_heads(&mut self, out: &TensorOf<Self>, gate: &TensorOf<Self>) -> TensorOf<Self>;

    /// The convolution of a DeltaNet.
    ///
    /// # Shapes
    /// `[t, conv_width]`.
    fn convolve(&mut self, qkv: &TensorOf<Self>) -> TensorOf<Self>;

    /// The steps and decays of a DeltaNet's value heads, of what `in_proj_b` and `in_proj_a` give.
    ///
    /// # Shapes
    /// All `[t, num_value_heads]`.
    fn delta_gates(&mut self, ba: [&TensorOf<Self>; 2]) -> [TensorOf<Self>; 2];

    /// What the delta rule reads of its states.
    ///
    /// # Shapes
    /// `convolved` as [`convolve`](Self::convolve) gives it, result `[t, value_width]`.
    fn delta(&mut self, convolved: &TensorOf<Self>, gates: [&TensorOf<Self>; 2]) -> TensorOf<Self>;

    /// Each value head of `out` normed, times silu of `z`.
    ///
    /// # Shapes
    /// All `[t, value_width]`.
    fn norm_gated(&mut self, out: &TensorOf<Self>, z: &TensorOf<Self>) -> TensorOf<Self>;

    /// # Shapes
    /// Query and result `[t, heads·d]`, key and value `[t, kv_heads·d]`.
    fn attend(&mut self, qkv: [&TensorOf<Self>; 3]) -> (TensorOf<Self>, LogSumExpOf<Self>);

    /// Gate and up with what their adapters add, and act(gate)·up.
    ///
    /// # Shapes
    /// All `[t, intermediate]`.
    fn glu(&mut self, gate: Self::Deferred, up: Self::Deferred) -> [TensorOf<Self>; 3];

    /// act(gate)·up alone, once more.
    fn glu_again(&mut self, gate: &TensorOf<Self>, up: &TensorOf<Self>) -> TensorOf<Self>;
}

/// A projection in its backward pass: which, the gradient of its output, and what its forward pass left.
pub type Branch<'a, O> = (TargetModule, TensorOf<O>, &'a SideOf<O>);

/// Ops of the backward pass. Gradients of what is trained go where the executor has them.
pub trait Backward: Forward {
    /// What the gradient of an adapter's A takes besides the projection's input: dy·B `[t, r]`, and where it goes.
    type Ahead;

    /// The gradient of a norm's input, added to `sum`: what goes past the norm.
    ///
    /// # Shapes
    /// All tensors `[t, hidden]`.
    fn norm_backward(
        &mut self,
        norm: Norm,
        dy: &TensorOf<Self>,
        x: &TensorOf<Self>,
        stats: &StatsOf<Self>,
        sum: TensorOf<Self>,
    ) -> TensorOf<Self>;

    /// The gradient of a norm's input alone, where the norm's result was added to the residual stream.
    ///
    /// # Shapes
    /// All tensors `[t, hidden]`.
    fn norm_backward_alone(
        &mut self,
        norm: Norm,
        dy: &TensorOf<Self>,
        x: &TensorOf<Self>,
        stats: &StatsOf<Self>,
    ) -> TensorOf<Self>;

    /// The gradient of a norm's weight, which is trained.
    ///
    /// # Shapes
    /// As [`norm_backward`](Self::norm_backward).
    fn norm_gradient(
        &mut self,
        norm: Norm,
        dy: &TensorOf<Self>,
        x: &TensorOf<Self>,
        stats: &StatsOf<Self>,
    );

    /// Two gradients of the residual stream, summed in place of the first.
    fn add(&mut self, sum: TensorOf<Self>, term: TensorOf<Self>) -> TensorOf<Self>;

    /// Projections of one input: the gradients of their adapters and trained biases, and the sum of the input's gradients where it is
    /// needed. Each branch's gradient is dropped when it was used; the input may be absent where there is no adapter.
    fn project_backward<const N: usize>(
        &mut self,
        branches: [Branch<'_, Self>; N],
        x: Option<&TensorOf<Self>>,
        input_grad: InputGrad,
    ) -> Option<Self::Deferred>;

    /// A projection whose input is there only after its gradient: that, the gradient of B where there is an adapter, and
    /// what that of A takes.
    fn project_backward_ahead(&mut self, branch: Branch<'_, Self>)
    -> (Self::Deferred, Self::Ahead);

    /// The gradient of A, now that the projection's input is there.
    fn factor_gradient(&mut self, ahead: Self::Ahead, x: TensorOf<Self>);

    /// Gradients of queries and keys before they were turned.
    fn rope_backward(
        &mut self,
        dq: TensorOf<Self>,
        dk: TensorOf<Self>,
    ) -> (TensorOf<Self>, TensorOf<Self>);

    /// The gradient of the weight, which is trained, of the norm of queries or keys `x`.
    fn norm_rope_gradient(&mut self, norm: Norm, dy: &TensorOf<Self>, x: &TensorOf<Self>);

    /// The gradient of queries or keys `x` before they were normed and turned.
    fn norm_rope_backward(
        &mut self,
        norm: Norm,
        dy: TensorOf<Self>,
        x: &TensorOf<Self>,
    ) -> TensorOf<Self>;

    /// The gradient of values `x` before they were normed; where they are keys, added to that of the keys.
    ///
    /// # Shapes
    /// All tensors `[t, kv_heads·d]`.
    fn norm_values_backward(
        &mut self,
        dy: TensorOf<Self>,
        x: &TensorOf<Self>,
        stats: &StatsOf<Self>,
        keys: Option<TensorOf<Self>>,
    ) -> TensorOf<Self>;

    /// The gradient of `q_proj`'s output, of those of queries and gates.
    fn join_query(&mut self, dq: TensorOf<Self>, d_gate: TensorOf<Self>) -> TensorOf<Self>;

    /// Gradients of attention's output and of its gate.
    fn gate_heads_backward(
        &mut self,
        dy: TensorOf<Self>,
        out: &TensorOf<Self>,
        gate: TensorOf<Self>,
    ) -> [TensorOf<Self>; 2];

    /// The gradient of what was convolved.
    fn convolve_backward(&mut self, dy: TensorOf<Self>, qkv: &TensorOf<Self>) -> TensorOf<Self>;

    /// Gradients of what `in_proj_b` and `in_proj_a` gave.
    fn delta_gates_backward(
        &mut self,
        d: [TensorOf<Self>; 2],
        ba: [&TensorOf<Self>; 2],
    ) -> [TensorOf<Self>; 2];

    /// Gradients of what the delta rule read: of what was convolved, then of steps and decays.
    fn delta_backward(
        &mut self,
        d_out: &TensorOf<Self>,
        convolved: &TensorOf<Self>,
        gates: [&TensorOf<Self>; 2],
    ) -> (TensorOf<Self>, [TensorOf<Self>; 2]);

    /// Gradients of `out` and `z`, and the gated norm once more where `out_proj` has an adapter.
    fn norm_gated_backward(
        &mut self,
        dy: Self::Deferred,
        out: TensorOf<Self>,
        z: TensorOf<Self>,
    ) -> ([TensorOf<Self>; 2], Option<TensorOf<Self>>);

    /// Gradients of query, key and value as attention took them.
    fn attend_backward(
        &mut self,
        d_out: &TensorOf<Self>,
        qkv: [&TensorOf<Self>; 3],
        forward: (&TensorOf<Self>, &LogSumExpOf<Self>),
    ) -> [TensorOf<Self>; 3];

    /// Gradients of gate and up, and act(gate)·up once more where `down_proj` has an adapter. All take the places of
    /// what is handed over.
    fn glu_backward(
        &mut self,
        d_product: Self::Deferred,
        gate: TensorOf<Self>,
        up: TensorOf<Self>,
    ) -> ([TensorOf<Self>; 2], Option<TensorOf<Self>>);
}
