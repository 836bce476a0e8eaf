//! One decoder layer.

use backdraft_kernels::attention::Qkv;
use backdraft_kernels::swiglu;
use backdraft_lora::{AdapterGrads, Projection, ProjectionSaved, TargetModule};
use burn::module::Module;
use burn::tensor::Tensor;

use super::mlp::wanted;
use super::saved::{KeepSet, LayerSaved, Projected, SavedTensor};
use super::{Attention, Context, Mlp, RmsNorm};
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

    /// The tensors that the backward pass uses: what `keep-all` keeps. Without an adapter on a projection
    /// nobody needs its input, and where the gradient of the layer's own input is not `wanted` and attention
    /// has no adapter, the pass ends in the MLP.
    pub fn uses(&self, wanted: bool) -> KeepSet {
        use SavedTensor as T;
        let mut set = KeepSet::of([T::Gate, T::Up]);
        if self.mlp.down_proj.adapter().is_some() {
            set = set.with(T::Product);
        }
        if self.mlp.adapts_input() {
            set = set.with(T::PostNormed);
        }
        if !self.goes_on(wanted) {
            return set;
        }
        set = [T::Query, T::Key, T::Value, T::Attention, T::Mid]
            .into_iter()
            .fold(set, KeepSet::with);
        if self.self_attn.adapts_input() {
            set = set.with(T::InputNormed);
        }
        set
    }

    /// Whether the backward pass goes beyond the MLP.
    fn goes_on(&self, wanted: bool) -> bool {
        wanted || self.self_attn.adapts_input() || self.self_attn.o_proj.adapter().is_some()
    }

    /// Without autodiff; keeps what `keep` names for the backward pass, and lets the rest go as soon as
    /// possible.
    ///
    /// # Shapes
    /// As [`forward`](Self::forward).
    pub fn forward_saving(
        &self,
        input: Tensor<2>,
        context: &Context,
        keep: KeepSet,
    ) -> (Tensor<2>, LayerSaved) {
        use SavedTensor as T;
        let (attn, mlp, i) = (&self.self_attn, &self.mlp, self.index);
        let (x, input_rstd) = self.input_layernorm.forward_saving(&input);
        let downs = attn.downs(&x, context, i);
        let (query, key) = attn.query_and_key(&x, &downs, context, i);
        let value = attn.value(&x, &downs, context, i);
        let input_normed = keep.contains(T::InputNormed).then_some(x);
        let (out, lse) = attn.attend(&qkv(&query, &key, &value), context);
        let query = keep.contains(T::Query).then_some(query);
        let key = keep.contains(T::Key).then_some(key);
        let value = keep.contains(T::Value).then_some(value);
        let mid = attn.output(&input, &out, context, i);
        let attention = keep.contains(T::Attention).then_some((out, lse));

        let h = mid.y.clone();
        let mid = keep.contains(T::Mid).then_some(mid);
        let (x, post_rstd) = self.post_attention_layernorm.forward_saving(&h);
        let gate_and_up = mlp.gate_and_up(&x, context, i);
        let post_normed = keep.contains(T::PostNormed).then_some(x);
        let (gate, up, product) = Mlp::activate(gate_and_up);
        let gate = keep.contains(T::Gate).then_some(gate);
        let up = keep.contains(T::Up).then_some(up);
        let (h, saved) = mlp.down(&h, &product, context, i);
        let product = keep
            .contains(T::Product)
            .then_some(Projected { y: product, saved });
        let saved = LayerSaved {
            input: Some(input),
            input_rstd,
            input_normed,
            query,
            key,
            value,
            attention,
            mid,
            post_rstd,
            post_normed,
            gate,
            up,
            product,
        };
        (h, saved)
    }

    /// Computes the tensors of the layer one by one, in the order of the forward pass, and shows each to `made`
    /// as soon as its ops have been issued: to time them.
    pub fn visit_saved(
        &self,
        h: Tensor<2>,
        context: &Context,
        made: &mut dyn FnMut(SavedTensor, &Tensor<2>),
    ) {
        use SavedTensor as T;
        let (attn, mlp, i) = (&self.self_attn, &self.mlp, self.index);
        let (x, _) = self.input_layernorm.forward_saving(&h);
        made(T::InputNormed, &x);
        let downs = attn.downs(&x, context, i);
        let query = attn.query(&x, &downs, context, i);
        made(T::Query, &query.y);
        let key = attn.key(&x, &downs, context, i);
        made(T::Key, &key.y);
        let value = attn.value(&x, &downs, context, i);
        made(T::Value, &value.y);
        let (out, _) = attn.attend(&qkv(&query, &key, &value), context);
        made(T::Attention, &out);
        let mid = attn.output(&h, &out, context, i);
        made(T::Mid, &mid.y);
        let (x, _) = self.post_attention_layernorm.forward_saving(&mid.y);
        made(T::PostNormed, &x);
        let downs = mlp.downs(&x, context, i);
        let gate = mlp.gate(&x, &downs, context, i);
        made(T::Gate, &gate.y);
        let up = mlp.up(&x, &downs, context, i);
        made(T::Up, &up.y);
        let product = mlp.product(&gate.y, &up.y, context, i);
        made(T::Product, &product.y);
    }

    /// Adds the adapters' gradients to `grads` and returns the input's, if it is `wanted`. What was not kept is
    /// rebuilt when it is first needed, once, and let go after its last use.
    ///
    /// # Shapes
    /// `dy` and the result `[t, h]`.
    pub fn backward(
        &self,
        dy: Tensor<2>,
        mut saved: LayerSaved,
        context: &Context,
        grads: &mut AdapterGrads,
        wanted: bool,
    ) -> Option<Tensor<2>> {
        let dx = self.mlp_backward(&dy, &mut saved, context, grads);
        if !self.goes_on(wanted) {
            return None;
        }
        let mid = self.take_mid(&mut saved, context);
        let norm = &self.post_attention_layernorm;
        let d_mid = norm.backward_add(&dx, &mid.y, &saved.post_rstd, dy);
        drop(dx);
        let d_normed = self.attention_backward(&d_mid, mid, &mut saved, context, grads, wanted)?;
        let norm = &self.input_layernorm;
        Some(norm.backward_add(&d_normed, saved.input(), &saved.input_rstd, d_mid))
    }

    /// From the gradient of the MLP's result to that of its normed input.
    fn mlp_backward(
        &self,
        dy: &Tensor<2>,
        saved: &mut LayerSaved,
        context: &Context,
        grads: &mut AdapterGrads,
    ) -> Tensor<2> {
        let mlp = &self.mlp;
        self.rebuild_gate_and_up(saved, context);
        let (gate, up) = (taken(&mut saved.gate), taken(&mut saved.up));
        let product = match saved.product.take() {
            None if mlp.down_proj.adapter().is_some() => {
                Some(mlp.product(&gate.y, &up.y, context, self.index))
            }
            product => product,
        };
        let (x, down) = match product {
            Some(Projected { y, saved }) => (Some(y), saved),
            None => (None, ProjectionSaved::default()),
        };
        let branch = [(&mlp.down_proj, dy.clone(), &down)];
        let d_product = wanted(Projection::backward_adapted(
            branch,
            x.as_ref(),
            grads,
            true,
        ));
        drop((x, down));
        // Handed over, so that their gradients may take their place.
        let d = swiglu::backward_adapted(d_product, gate.y, up.y);
        let x = mlp.adapts_input().then(|| {
            self.rebuild_post_normed(saved, context);
            taken(&mut saved.post_normed)
        });
        mlp.project_backward(d, x.as_ref(), (&gate.saved, &up.saved), grads)
    }

    /// From the gradient behind attention to that of its normed input.
    fn attention_backward(
        &self,
        d_mid: &Tensor<2>,
        Projected { y, saved: o_proj }: Projected,
        saved: &mut LayerSaved,
        context: &Context,
        grads: &mut AdapterGrads,
        wanted_input: bool,
    ) -> Option<Tensor<2>> {
        drop(y);
        let attn = &self.self_attn;
        self.rebuild_attention(saved, context);
        let (out, lse) = taken(&mut saved.attention);
        let d_out = wanted(
            attn.o_proj
                .backward(d_mid.clone(), Some(&out), &o_proj, grads, true),
        );
        let [q, k, v] = [&mut saved.query, &mut saved.key, &mut saved.value].map(taken);
        let d = attn.attend_backward(&d_out, &qkv(&q, &k, &v), (&out, &lse), context);
        drop((d_out, out, lse));
        let projections = [q, k, v].map(|projected| projected.saved);
        let x = attn.adapts_input().then(|| {
            self.rebuild_input_normed(saved);
            taken(&mut saved.input_normed)
        });
        attn.project_backward(d, x.as_ref(), projections.each_ref(), grads, wanted_input)
    }

    fn rebuild_input_normed(&self, saved: &mut LayerSaved) {
        if saved.input_normed.is_none() {
            let (x, _) = self.input_layernorm.forward_saving(saved.input());
            saved.input_normed = Some(x);
        }
    }

    fn rebuild_qkv(&self, saved: &mut LayerSaved, context: &Context) {
        if saved.query.is_some() && saved.key.is_some() && saved.value.is_some() {
            return;
        }
        self.rebuild_input_normed(saved);
        let Some(x) = &saved.input_normed else {
            unreachable!("it was just rebuilt")
        };
        let (attn, i) = (&self.self_attn, self.index);
        let downs = &attn.downs(x, context, i);
        if saved.query.is_none() && saved.key.is_none() {
            let (query, key) = attn.query_and_key(x, downs, context, i);
            (saved.query, saved.key) = (Some(query), Some(key));
        }
        saved
            .query
            .get_or_insert_with(|| attn.query(x, downs, context, i));
        saved
            .key
            .get_or_insert_with(|| attn.key(x, downs, context, i));
        saved
            .value
            .get_or_insert_with(|| attn.value(x, downs, context, i));
        if !attn.adapts_input() {
            saved.input_normed = None;
        }
    }

    /// Attention's output, and q, k and v, which its own backward pass needs too.
    fn rebuild_attention(&self, saved: &mut LayerSaved, context: &Context) {
        self.rebuild_qkv(saved, context);
        if let (None, Some(q), Some(k), Some(v)) =
            (&saved.attention, &saved.query, &saved.key, &saved.value)
        {
            saved.attention = Some(self.self_attn.attend(&qkv(q, k, v), context));
        }
    }

    fn rebuild_mid(&self, saved: &mut LayerSaved, context: &Context) {
        if saved.mid.is_some() {
            return;
        }
        if saved.attention.is_none() {
            self.rebuild_attention(saved, context);
        }
        let Some((out, _)) = &saved.attention else {
            unreachable!("it was just rebuilt")
        };
        let mid = self
            .self_attn
            .output(saved.input(), out, context, self.index);
        saved.mid = Some(mid);
    }

    fn take_mid(&self, saved: &mut LayerSaved, context: &Context) -> Projected {
        self.rebuild_mid(saved, context);
        taken(&mut saved.mid)
    }

    fn rebuild_post_normed(&self, saved: &mut LayerSaved, context: &Context) {
        if saved.post_normed.is_some() {
            return;
        }
        self.rebuild_mid(saved, context);
        if let Some(mid) = &saved.mid {
            let (x, _) = self.post_attention_layernorm.forward_saving(&mid.y);
            saved.post_normed = Some(x);
        }
    }

    fn rebuild_gate_and_up(&self, saved: &mut LayerSaved, context: &Context) {
        if saved.gate.is_some() && saved.up.is_some() {
            return;
        }
        self.rebuild_post_normed(saved, context);
        let Some(x) = &saved.post_normed else {
            unreachable!("it was just rebuilt")
        };
        let (mlp, i) = (&self.mlp, self.index);
        if saved.gate.is_none() && saved.up.is_none() {
            let gate_and_up = mlp.gate_and_up(x, context, i);
            let waits = gate_and_up.iter().any(|(y, _)| y.term.is_some());
            let adapted = mlp.down_proj.adapter().is_some();
            if waits && adapted && saved.product.is_none() {
                let (gate, up, y) = Mlp::activate(gate_and_up);
                let down = mlp.down_saved(&y, context, i);
                saved.product = Some(Projected { y, saved: down });
                (saved.gate, saved.up) = (Some(gate), Some(up));
            } else {
                let [gate, up] = gate_and_up.map(|(y, saved)| Projected {
                    y: y.complete(),
                    saved,
                });
                (saved.gate, saved.up) = (Some(gate), Some(up));
            }
        } else {
            let downs = &mlp.downs(x, context, i);
            saved
                .gate
                .get_or_insert_with(|| mlp.gate(x, downs, context, i));
            saved.up.get_or_insert_with(|| mlp.up(x, downs, context, i));
        }
        if !mlp.adapts_input() {
            saved.post_normed = None;
        }
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

fn qkv(query: &Projected, key: &Projected, value: &Projected) -> Qkv {
    Qkv {
        q: query.y.clone(),
        k: key.y.clone(),
        v: value.y.clone(),
    }
}

/// A value that is there because it was kept or rebuilt.
fn taken<T>(value: &mut Option<T>) -> T {
    match value.take() {
        Some(value) => value,
        None => unreachable!("it was kept or rebuilt"),
    }
}
