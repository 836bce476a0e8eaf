//! A decoder layer, told once: h ← h + attention(norm(h)); h ← h + mlp(norm(h)). Where norms follow, it is
//! h ← h + norm(attention(h)); h ← h + norm(mlp(h)); where they stand around, h ← h + norm(attention(norm(h))) and so on.
//!
//! Values are dropped as soon as nothing needs them any more, by their scopes; since executors free memory when a
//! value is dropped, this order is also the order of allocations that the planner simulates.

use crate::delta_net;
use crate::mixer::Mixer;
use crate::ops::{
    Backward, Forward, Heads, LogSumExpOf, Norm, NormPlaces, SideOf, StatsOf, TensorOf, Trained,
    ValueHeads, Values,
};
use crate::saved::{KeepSet, SavedTensor};
use crate::target::{Group, TargetModule};

use SavedTensor as T;
use TargetModule as M;

/// Whether a backward pass should give the gradient of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputGrad {
    /// It is needed below.
    Needed,
    /// Nothing below is trained.
    Skipped,
}

impl InputGrad {
    /// Needed where that is so.
    #[must_use]
    pub const fn needed_if(needed: bool) -> Self {
        if needed { Self::Needed } else { Self::Skipped }
    }

    /// Whether it is needed.
    #[must_use]
    pub const fn is_needed(self) -> bool {
        matches!(self, Self::Needed)
    }
}

/// The output of a projection, or its input where that is what is kept, and what its backward pass needs besides.
#[derive(Clone, Debug)]
pub struct Projected<T, S> {
    /// The tensor that is kept.
    pub y: T,
    /// What stays with it.
    pub side: S,
}

type ProjectedOf<O> = Projected<TensorOf<O>, SideOf<O>>;
type KeptOf<O> = Kept<<O as Forward>::Values>;

/// What there is of a layer for its backward pass; what is not there is rebuilt.
pub struct Kept<V: Values> {
    /// Absent while it is offloaded.
    pub input: Option<V::Tensor>,
    /// Statistics of the norm before attention, where there is one.
    pub input_stats: Option<V::Stats>,
    /// See [`SavedTensor::InputNormed`]; the others likewise.
    pub input_normed: Option<V::Tensor>,
    /// After RoPE, where there is some; where heads are normed, before the norm.
    pub query: Option<Projected<V::Tensor, V::Side>>,
    /// As queries.
    pub key: Option<Projected<V::Tensor, V::Side>>,
    /// Queries and keys after norm and RoPE, where heads are normed: made again by every backward pass.
    pub turned: Option<[V::Tensor; 2]>,
    /// As projected; there are none where they are keys.
    pub value: Option<Projected<V::Tensor, V::Side>>,
    /// Values after their norm, where there is one, with its statistics: made again by every backward pass.
    pub normed_value: Option<(V::Tensor, V::Stats)>,
    /// Queries and their gates apart, where there are some: made again by every backward pass.
    pub split: Option<[V::Tensor; 2]>,
    /// What gives the steps and decays of a DeltaNet: a value for each head, so they always stay.
    pub gates: Option<[Projected<V::Tensor, V::Side>; 2]>,
    /// What a DeltaNet's convolution gives: made again by every backward pass.
    pub convolved: Option<V::Tensor>,
    /// The heads' output, and the log-sum-exp of the scores where there are scores.
    pub attention: Option<(V::Tensor, Option<V::LogSumExp>)>,
    /// With what `o_proj` needs.
    pub mid: Option<Projected<V::Tensor, V::Side>>,
    /// Statistics of the norm between attention and MLP; where norms stand around, of the one after attention.
    pub post_stats: V::Stats,
    /// The residual stream between the two, where norms stand around: made again by every backward pass.
    pub stream: Option<V::Tensor>,
    /// Statistics of its norm there.
    pub pre_stats: Option<V::Stats>,
    /// The normed input of the MLP.
    pub post_normed: Option<V::Tensor>,
    /// Before its activation.
    pub gate: Option<Projected<V::Tensor, V::Side>>,
    /// The other factor.
    pub up: Option<Projected<V::Tensor, V::Side>>,
    /// What `down_proj` needs besides its input.
    pub down_side: V::Side,
    /// Before its norm, where there is one.
    pub down: Option<V::Tensor>,
    /// Statistics of that norm.
    pub down_stats: Option<V::Stats>,
}

/// What stays on the device when a tensor of a layer is offloaded.
pub enum Companion<V: Values> {
    /// Nothing belongs to it.
    Nothing,
    /// An adapter's x·Aᵀ.
    Side(V::Side),
    /// Of attention's scores.
    LogSumExp(Option<V::LogSumExp>),
}

impl<V: Values> Kept<V> {
    fn projected(&mut self, tensor: T) -> Option<&mut Option<Projected<V::Tensor, V::Side>>> {
        match tensor {
            T::Query => Some(&mut self.query),
            T::Key => Some(&mut self.key),
            T::Value => Some(&mut self.value),
            T::Mid => Some(&mut self.mid),
            T::Gate => Some(&mut self.gate),
            T::Up => Some(&mut self.up),
            T::InputNormed | T::Attention | T::PostNormed | T::Down => None,
        }
    }

    /// Takes a tensor out, apart from what goes with it.
    pub fn take(&mut self, tensor: T) -> Option<(V::Tensor, Companion<V>)> {
        match tensor {
            T::InputNormed => Some((self.input_normed.take()?, Companion::Nothing)),
            T::PostNormed => Some((self.post_normed.take()?, Companion::Nothing)),
            T::Down => Some((self.down.take()?, Companion::Nothing)),
            T::Attention => {
                let (out, lse) = self.attention.take()?;
                Some((out, Companion::LogSumExp(lse)))
            }
            _ => {
                let Projected { y, side } = self.projected(tensor)?.take()?;
                Some((y, Companion::Side(side)))
            }
        }
    }

    /// Puts back what [`take`](Self::take) gave.
    pub fn put(&mut self, tensor: T, y: V::Tensor, companion: Companion<V>) {
        match companion {
            Companion::LogSumExp(lse) => self.attention = Some((y, lse)),
            Companion::Nothing if tensor == T::InputNormed => self.input_normed = Some(y),
            Companion::Nothing if tensor == T::Down => self.down = Some(y),
            Companion::Nothing => self.post_normed = Some(y),
            Companion::Side(side) => {
                if let Some(place) = self.projected(tensor) {
                    *place = Some(Projected { y, side });
                }
            }
        }
    }

    /// Which tensors are there.
    #[must_use]
    pub fn tensors(&self) -> KeepSet {
        let there = |tensor| match tensor {
            T::InputNormed => self.input_normed.is_some(),
            T::Query => self.query.is_some(),
            T::Key => self.key.is_some(),
            T::Value => self.value.is_some(),
            T::Attention => self.attention.is_some(),
            T::Mid => self.mid.is_some(),
            T::PostNormed => self.post_normed.is_some(),
            T::Gate => self.gate.is_some(),
            T::Up => self.up.is_some(),
            T::Down => self.down.is_some(),
        };
        KeepSet::of(T::ALL.into_iter().filter(|&tensor| there(tensor)))
    }
}

/// Whether a projection of the group has an adapter, whose gradient needs the group's input.
fn trains_on_input(trained: &impl Trained, group: Group) -> bool {
    group.targets().iter().any(|&target| trained.trains(target))
}

/// Whether the backward pass goes beyond the MLP.
fn reaches_attention(trained: &impl Trained, input_grad: InputGrad) -> bool {
    let parts = [Group::Qkv, Group::Delta].map(Group::targets);
    let mut parts = parts.into_iter().flatten().chain(&[M::OProj, M::OutProj]);
    let norms = [
        Norm::Input,
        Norm::Query,
        Norm::Key,
        Norm::PostAttention,
        Norm::PreFeedforward,
    ];
    input_grad.is_needed()
        || parts.any(|&part| trained.trains(part) || trained.trains_bias(part))
        || norms.iter().any(|&norm| trained.trains_norm(norm))
}

/// Whether the layer has a [`SavedTensor::Value`]: a DeltaNet has none, nor has one whose values are its keys. One that has it
/// has every tensor of a layer that attends.
#[must_use]
pub const fn has_value(mixer: Mixer, values: ValueHeads) -> bool {
    !matches!(mixer, Mixer::DeltaNet(_)) && !values.are_keys()
}

/// The tensors that the backward pass uses, given what is trained: what `keep-all` keeps. The input of
/// a projection without an adapter is not among them; where the gradient of the layer's own input is skipped and
/// nothing before the MLP is trained, the pass ends in the MLP.
pub fn uses(
    trained: &impl Trained,
    (mixer, values): (Mixer, ValueHeads),
    norms: NormPlaces,
    input_grad: InputGrad,
) -> KeepSet {
    let mut set = KeepSet::of([T::Gate, T::Up]);
    if norms.are_after() {
        set = set.with(T::Down);
    }
    if trains_on_input(trained, Group::GateUp) {
        set = set.with(T::PostNormed);
    }
    if !reaches_attention(trained, input_grad) {
        return set;
    }
    set = [T::Query, T::Key, T::Attention, T::Mid]
        .into_iter()
        .fold(set, KeepSet::with);
    if has_value(mixer, values) {
        set = set.with(T::Value);
    }
    let group = match mixer {
        Mixer::Attention | Mixer::GatedAttention => Group::Qkv,
        Mixer::DeltaNet(_) => Group::Delta,
    };
    if trains_on_input(trained, group) && norms.are_before() {
        set = set.with(T::InputNormed);
    }
    set
}

/// The forward pass; keeps what `keep` names for the backward pass.
///
/// # Shapes
/// `input` and the result `[t, hidden]`.
pub fn forward<O: Forward>(
    o: &mut O,
    input: TensorOf<O>,
    keep: KeepSet,
) -> (TensorOf<O>, KeptOf<O>) {
    let after = o.norm_places().are_after();
    let (x, input_stats) = attention_input(o, &input);
    let Mixed {
        input_normed,
        query,
        key,
        value,
        gates,
        out,
        lse,
        read,
    } = match o.mixer() {
        Mixer::Attention | Mixer::GatedAttention => attention(o, x, keep),
        Mixer::DeltaNet(_) => delta_net(o, x, keep),
    };
    let last = o.mixer().last();
    let (mid, side) = o.project_onto(
        last,
        read.as_ref().unwrap_or(&out),
        (!after).then_some(&input),
    );
    drop(read);
    let attention = keep.contains(T::Attention).then_some((out, lse));
    let y = mid.clone();
    let kept_mid = keep.contains(T::Mid).then_some(Projected { y, side });

    let MlpInput {
        x,
        stream: h,
        post_stats,
        pre_stats,
    } = mlp_input(o, mid, &input);
    let [gate, up] = gate_and_up(o, &x);
    let post_normed = keep.contains(T::PostNormed).then_some(x);
    let (gate, up, product) = activate(o, gate, up);
    let gate = keep.contains(T::Gate).then_some(gate);
    let up = keep.contains(T::Up).then_some(up);
    let (y, down_side) = o.project_onto(M::DownProj, &product, (!after).then_some(&h));
    drop(product);
    let stream = after.then_some(h);
    let (y, down, down_stats) = match stream {
        None => (y, None, None),
        Some(h) => {
            let (sum, stats) = o.norm_onto(Norm::PostFeedforward, &y, &h);
            (sum, keep.contains(T::Down).then_some(y), Some(stats))
        }
    };
    let kept = Kept {
        input: Some(input),
        input_stats,
        input_normed,
        query,
        key,
        turned: None,
        value,
        normed_value: None,
        split: None,
        gates,
        convolved: None,
        attention,
        mid: kept_mid,
        post_stats,
        stream: None,
        pre_stats,
        post_normed,
        gate,
        up,
        down_side,
        down,
        down_stats,
    };
    (o.scale(y), kept)
}

/// What the first half of a layer leaves for the second, and for the backward pass.
struct Mixed<O: Forward> {
    input_normed: Option<TensorOf<O>>,
    query: Option<ProjectedOf<O>>,
    key: Option<ProjectedOf<O>>,
    value: Option<ProjectedOf<O>>,
    gates: Option<[ProjectedOf<O>; 2]>,
    out: TensorOf<O>,
    lse: Option<LogSumExpOf<O>>,
    /// What is projected back, where that is not `out` itself.
    read: Option<TensorOf<O>>,
}

fn attention<O: Forward>(o: &mut O, x: TensorOf<O>, keep: KeepSet) -> Mixed<O> {
    let down = o.shared_down(Group::Qkv, &x);
    let (query, key) = query_and_key(o, &x, &down);
    let value = (!o.values().are_keys()).then(|| project(o, M::VProj, &x, &down));
    let input_normed = keep.contains(T::InputNormed).then_some(x);
    drop(down);
    let (gate, [q, k]) = {
        let (q, gate) = match split(o, &query.y) {
            None => (query.y.clone(), None),
            Some([q, gate]) => (q, Some(gate)),
        };
        let turned = norm_and_turn(o, [&q, &key.y]);
        (gate, turned.unwrap_or_else(|| [q, key.y.clone()]))
    };
    let raw = &value.as_ref().unwrap_or(&key).y;
    let v = norm_values(o, raw).map_or_else(|| raw.clone(), |(v, _)| v);
    let query = keep.contains(T::Query).then_some(query);
    let key = keep.contains(T::Key).then_some(key);
    let (out, lse) = o.attend([&q, &k, &v]);
    drop(q);
    drop(k);
    drop(v);
    let value = value.filter(|_| keep.contains(T::Value));
    let read = gate.map(|gate| o.gate_heads(&out, &gate));
    Mixed {
        input_normed,
        query,
        key,
        value,
        gates: None,
        out,
        lse: Some(lse),
        read,
    }
}

fn delta_net<O: Forward>(o: &mut O, x: TensorOf<O>, keep: KeepSet) -> Mixed<O> {
    let delta_net::Inputs { qkv, z, gates } = delta_net::inputs(o, &x);
    let input_normed = keep.contains(T::InputNormed).then_some(x);
    let ba = gates.each_ref().map(|(y, _)| y);
    let (convolved, out) = delta_net::mix(o, &qkv.0, ba);
    drop(convolved);
    let query = keep.contains(T::Query).then_some(projected(qkv));
    let read = o.norm_gated(&out, &z.0);
    Mixed {
        input_normed,
        query,
        key: keep.contains(T::Key).then_some(projected(z)),
        value: None,
        gates: Some(gates.map(projected)),
        out,
        lse: None,
        read: Some(read),
    }
}

fn projected<T, S>((y, side): (T, S)) -> Projected<T, S> {
    Projected { y, side }
}

/// The backward pass: from the gradient of the layer's result to its input's, where that is needed. What was not kept
/// is rebuilt when it is first needed, once, by the same ops from the same values, and dropped after its last use.
///
/// # Shapes
/// `dy` and the result `[t, hidden]`.
pub fn backward<O: Backward>(
    o: &mut O,
    dy: TensorOf<O>,
    mut kept: KeptOf<O>,
    input_grad: InputGrad,
) -> Option<TensorOf<O>> {
    let dy = o.scale(dy);
    let d_down = match kept.down_stats.take() {
        None => dy.clone(),
        Some(stats) => {
            rebuild_down(o, &mut kept);
            let down = taken(&mut kept.down);
            norm_backward_alone(o, Norm::PostFeedforward, &dy, &down, &stats)
        }
    };
    let dx = mlp_backward(o, d_down, &mut kept);
    if !reaches_attention(o, input_grad) {
        return None;
    }
    rebuild_mid(o, &mut kept);
    if o.norm_places() == NormPlaces::Around {
        rebuild_stream(o, &mut kept);
    }
    let mid = taken(&mut kept.mid);
    let Some(input_stats) = kept.input_stats.take() else {
        let d_mid = o.add(dy, dx);
        let d_out = norm_backward_alone(o, Norm::PostAttention, &d_mid, &mid.y, &kept.post_stats);
        let dx = mixer_backward(o, d_out, mid, &mut kept, input_grad)?;
        return Some(o.add(d_mid, dx));
    };
    let (d_mid, d_out) = match kept.pre_stats.take() {
        None => {
            let norm = Norm::PostAttention;
            let d_mid = norm_backward(o, norm, &dx, (&mid.y, &kept.post_stats), dy);
            drop(dx);
            (d_mid.clone(), d_mid)
        }
        Some(pre_stats) => {
            let stream = taken(&mut kept.stream);
            let norm = Norm::PreFeedforward;
            let d_stream = norm_backward(o, norm, &dx, (&stream, &pre_stats), dy);
            drop((dx, stream));
            let norm = Norm::PostAttention;
            let d_out = norm_backward_alone(o, norm, &d_stream, &mid.y, &kept.post_stats);
            (d_stream, d_out)
        }
    };
    let trains = o.trains_norm(Norm::Input);
    let of_mixer = InputGrad::needed_if(trains || input_grad.is_needed());
    let d_normed = mixer_backward(o, d_out, mid, &mut kept, of_mixer)?;
    let input = there(&kept.input);
    if !input_grad.is_needed() {
        o.norm_gradient(Norm::Input, &d_normed, input, &input_stats);
        return None;
    }
    let before = (input, &input_stats);
    Some(norm_backward(o, Norm::Input, &d_normed, before, d_mid))
}

/// From the gradient of what a norm gives to that of what it read, added to `sum`; that of its weight where it is trained.
fn norm_backward<O: Backward>(
    o: &mut O,
    norm: Norm,
    dy: &TensorOf<O>,
    (x, stats): (&TensorOf<O>, &StatsOf<O>),
    sum: TensorOf<O>,
) -> TensorOf<O> {
    if o.trains_norm(norm) {
        o.norm_gradient(norm, dy, x, stats);
    }
    o.norm_backward(norm, dy, x, stats, sum)
}

/// As [`norm_backward`], alone.
fn norm_backward_alone<O: Backward>(
    o: &mut O,
    norm: Norm,
    dy: &TensorOf<O>,
    x: &TensorOf<O>,
    stats: &StatsOf<O>,
) -> TensorOf<O> {
    if o.trains_norm(norm) {
        o.norm_gradient(norm, dy, x, stats);
    }
    o.norm_backward_alone(norm, dy, x, stats)
}

/// From the gradient of normed and turned queries or keys to that of what was projected.
fn norm_rope_backward<O: Backward>(
    o: &mut O,
    norm: Norm,
    dy: TensorOf<O>,
    x: &TensorOf<O>,
) -> TensorOf<O> {
    if o.trains_norm(norm) {
        o.norm_rope_gradient(norm, &dy, x);
    }
    o.norm_rope_backward(norm, dy, x)
}

/// From the gradient of what `down_proj` gives to that of the MLP's input.
fn mlp_backward<O: Backward>(o: &mut O, dy: TensorOf<O>, kept: &mut KeptOf<O>) -> TensorOf<O> {
    rebuild_gate_and_up(o, kept);
    let (gate, up) = (taken(&mut kept.gate), taken(&mut kept.up));
    let (d_product, ahead) = o.project_backward_ahead((M::DownProj, dy, &kept.down_side));
    let ([d_gate, d_up], product) = o.glu_backward(d_product, gate.y, up.y);
    if let Some(product) = product {
        o.factor_gradient(ahead, product);
    }
    let x = reads_input(o, Group::GateUp).then(|| {
        rebuild_post_normed(o, kept);
        taken(&mut kept.post_normed)
    });
    let branches = [
        (M::GateProj, d_gate, &gate.side),
        (M::UpProj, d_up, &up.side),
    ];
    let dx = needed(o.project_backward(branches, x.as_ref(), InputGrad::Needed));
    o.complete(dx)
}

/// From the gradient of what the mixer's last projection gives to that of its input.
fn mixer_backward<O: Backward>(
    o: &mut O,
    dy: TensorOf<O>,
    mid: ProjectedOf<O>,
    kept: &mut KeptOf<O>,
    input_grad: InputGrad,
) -> Option<TensorOf<O>> {
    match o.mixer() {
        Mixer::Attention | Mixer::GatedAttention => {
            attention_backward(o, dy, mid, kept, input_grad)
        }
        Mixer::DeltaNet(_) => delta_net_backward(o, dy, mid, kept, input_grad),
    }
}

fn delta_net_backward<O: Backward>(
    o: &mut O,
    dy: TensorOf<O>,
    mid: ProjectedOf<O>,
    kept: &mut KeptOf<O>,
    input_grad: InputGrad,
) -> Option<TensorOf<O>> {
    drop(mid.y);
    rebuild_attention(o, kept);
    let apart = |Projected { y, side }| (y, side);
    let [qkv, z] = [&mut kept.query, &mut kept.key].map(|it| apart(taken(it)));
    let behind = delta_net::Behind {
        qkv,
        z,
        gates: taken(&mut kept.gates).map(apart),
        convolved: kept.convolved.take(),
        out: taken(&mut kept.attention).0,
        side: &mid.side,
    };
    let input = |o: &mut O| {
        reads_input(o, Group::Delta).then(|| {
            rebuild_input_normed(o, kept);
            taken(&mut kept.input_normed)
        })
    };
    delta_net::backward(o, dy, behind, input, input_grad)
}

/// From the gradient of what `o_proj` gives to that of attention's input.
fn attention_backward<O: Backward>(
    o: &mut O,
    dy: TensorOf<O>,
    mid: ProjectedOf<O>,
    kept: &mut KeptOf<O>,
    input_grad: InputGrad,
) -> Option<TensorOf<O>> {
    drop(mid.y);
    rebuild_attention(o, kept);
    let (out, mut lse) = taken(&mut kept.attention);
    let lse = taken(&mut lse);
    rebuild_split(o, kept);
    let (raw, gate) = match kept.split.take() {
        None => (None, None),
        Some([q, gate]) => (Some(q), Some(gate)),
    };
    let read = match &gate {
        Some(gate) if o.trains(M::OProj) => Some(o.gate_heads(&out, gate)),
        _ => None,
    };
    let branch = [(M::OProj, dy, &mid.side)];
    let d_out = needed(o.project_backward(
        branch,
        Some(read.as_ref().unwrap_or(&out)),
        InputGrad::Needed,
    ));
    drop(read);
    let d_out = o.complete(d_out);
    let (d_out, d_gate) = match gate {
        None => (d_out, None),
        Some(gate) => {
            let [d_out, d_gate] = o.gate_heads_backward(d_out, &out, gate);
            (d_out, Some(d_gate))
        }
    };
    rebuild_turned_of(o, kept, raw.as_ref());
    rebuild_normed_value(o, kept);
    let (turned, normed) = (kept.turned.take(), kept.normed_value.take());
    let [q, k] = [&mut kept.query, &mut kept.key].map(taken);
    let v = (!o.values().are_keys()).then(|| taken(&mut kept.value));
    let [dq, dk, dv] = {
        let [q, k] = match &turned {
            Some([q, k]) => [q, k],
            None => [&q.y, &k.y],
        };
        let v = match &normed {
            Some((v, _)) => v,
            None => &there(&v).y,
        };
        o.attend_backward(&d_out, [q, k, v], (&out, &lse))
    };
    let (dq, dk) = match (turned, o.heads()) {
        (Some(turned), _) => {
            drop(turned);
            let dq = norm_rope_backward(o, Norm::Query, dq, raw.as_ref().unwrap_or(&q.y));
            (dq, norm_rope_backward(o, Norm::Key, dk, &k.y))
        }
        (None, Heads::Plain) => (dq, dk),
        (None, _) => o.rope_backward(dq, dk),
    };
    let (dk, dv) = match (normed, &v) {
        (None, _) => (dk, Some(dv)),
        (Some((normed, stats)), Some(v)) => {
            drop(normed);
            (dk, Some(o.norm_values_backward(dv, &v.y, &stats, None)))
        }
        (Some((normed, stats)), None) => {
            drop(normed);
            (o.norm_values_backward(dv, &k.y, &stats, Some(dk)), None)
        }
    };
    drop((d_out, out, lse, raw));
    let dq = match d_gate {
        None => dq,
        Some(d_gate) => o.join_query(dq, d_gate),
    };
    let [q, k] = [q, k].map(|projected| projected.side);
    let v = v.map(|projected| projected.side);
    let x = reads_input(o, Group::Qkv).then(|| {
        rebuild_input_normed(o, kept);
        taken(&mut kept.input_normed)
    });
    let (query, key) = ((M::QProj, dq, &q), (M::KProj, dk, &k));
    let dx = match dv.zip(v.as_ref()) {
        Some((dv, v)) => {
            let branches = [query, key, (M::VProj, dv, v)];
            o.project_backward(branches, x.as_ref(), input_grad)
        }
        None => o.project_backward([query, key], x.as_ref(), input_grad),
    }?;
    Some(o.complete(dx))
}

/// What attention reads, with the statistics of its norm.
fn attention_input<O: Forward>(
    o: &mut O,
    input: &TensorOf<O>,
) -> (TensorOf<O>, Option<StatsOf<O>>) {
    if !o.norm_places().are_before() {
        return (input.clone(), None);
    }
    let (x, stats) = o.norm(Norm::Input, input);
    (x, Some(stats))
}

/// What the MLP reads, and what its result is added to.
struct MlpInput<T, S> {
    x: T,
    stream: T,
    post_stats: S,
    pre_stats: Option<S>,
}

/// The MLP reads the residual stream normed, or, where norms follow, the stream with attention's norm in it, as it is.
fn mlp_input<O: Forward>(
    o: &mut O,
    mid: TensorOf<O>,
    input: &TensorOf<O>,
) -> MlpInput<TensorOf<O>, StatsOf<O>> {
    match o.norm_places() {
        NormPlaces::Before => {
            let (x, post_stats) = o.norm(Norm::PostAttention, &mid);
            MlpInput {
                x,
                stream: mid,
                post_stats,
                pre_stats: None,
            }
        }
        NormPlaces::After => {
            let (x, post_stats) = o.norm_onto(Norm::PostAttention, &mid, input);
            MlpInput {
                stream: x.clone(),
                x,
                post_stats,
                pre_stats: None,
            }
        }
        NormPlaces::Around => {
            let (stream, post_stats) = o.norm_onto(Norm::PostAttention, &mid, input);
            drop(mid);
            let (x, pre_stats) = o.norm(Norm::PreFeedforward, &stream);
            MlpInput {
                x,
                stream,
                post_stats,
                pre_stats: Some(pre_stats),
            }
        }
    }
}

/// Whether the backward pass of a group reads the group's input.
fn reads_input<O: Forward>(o: &O, group: Group) -> bool {
    trains_on_input(o, group)
}

fn project<O: Forward>(
    o: &mut O,
    target: TargetModule,
    x: &TensorOf<O>,
    down: &O::SharedDown,
) -> ProjectedOf<O> {
    let (y, side) = o.project(target, x, down);
    Projected { y, side }
}

fn query_and_key<O: Forward>(
    o: &mut O,
    x: &TensorOf<O>,
    down: &O::SharedDown,
) -> (ProjectedOf<O>, ProjectedOf<O>) {
    let query = project(o, M::QProj, x, down);
    let key = project(o, M::KProj, x, down);
    if o.heads() != Heads::Turned {
        return (query, key);
    }
    let (q, k) = o.rope(query.y, key.y);
    (
        Projected {
            y: q,
            side: query.side,
        },
        Projected {
            y: k,
            side: key.side,
        },
    )
}

/// Queries and keys as attention takes them, where heads are normed first.
fn norm_and_turn<O: Forward>(o: &mut O, [q, k]: [&TensorOf<O>; 2]) -> Option<[TensorOf<O>; 2]> {
    (o.heads().are_normed()).then(|| [o.norm_rope(Norm::Query, q), o.norm_rope(Norm::Key, k)])
}

/// Values as attention takes them, where they are normed, with the statistics of their norm.
fn norm_values<O: Forward>(o: &mut O, x: &TensorOf<O>) -> Option<(TensorOf<O>, StatsOf<O>)> {
    o.values().are_normed().then(|| o.norm_values(x))
}

/// Queries and their gates, where there are some.
fn split<O: Forward>(o: &mut O, query: &TensorOf<O>) -> Option<[TensorOf<O>; 2]> {
    (o.mixer() == Mixer::GatedAttention).then(|| o.split_query(query))
}

/// Queries or keys alone, turned if that is all that becomes of them.
fn turned<O: Forward>(
    o: &mut O,
    target: TargetModule,
    x: &TensorOf<O>,
    down: &O::SharedDown,
) -> ProjectedOf<O> {
    let Projected { y, side } = project(o, target, x, down);
    if o.heads() != Heads::Turned {
        return Projected { y, side };
    }
    let y = o.rope_one(target, y);
    Projected { y, side }
}

/// A deferred output and what its backward pass needs.
type DeferredOf<O> = (<O as Forward>::Deferred, SideOf<O>);

fn gate_and_up<O: Forward>(o: &mut O, x: &TensorOf<O>) -> [DeferredOf<O>; 2] {
    let down = o.shared_down(Group::GateUp, x);
    [M::GateProj, M::UpProj].map(|target| o.project_deferred(target, x, &down))
}

fn activate<O: Forward>(
    o: &mut O,
    (gate, gate_side): DeferredOf<O>,
    (up, up_side): DeferredOf<O>,
) -> (ProjectedOf<O>, ProjectedOf<O>, TensorOf<O>) {
    let [gate, up, product] = o.glu(gate, up);
    let projected = |y, side| Projected { y, side };
    (projected(gate, gate_side), projected(up, up_side), product)
}

fn rebuild_input_normed<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    if kept.input_normed.is_none() {
        kept.input_normed = Some(attention_input(o, there(&kept.input)).0);
    }
}

fn rebuild_qkv<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    let value = kept.value.is_none() && !o.values().are_keys();
    if kept.query.is_some() && kept.key.is_some() && !value {
        return;
    }
    rebuild_input_normed(o, kept);
    let x = there(&kept.input_normed);
    let down = o.shared_down(Group::Qkv, x);
    if kept.query.is_none() && kept.key.is_none() {
        let (query, key) = query_and_key(o, x, &down);
        (kept.query, kept.key) = (Some(query), Some(key));
    }
    if kept.query.is_none() {
        kept.query = Some(turned(o, M::QProj, x, &down));
    }
    if kept.key.is_none() {
        kept.key = Some(turned(o, M::KProj, x, &down));
    }
    if value {
        kept.value = Some(project(o, M::VProj, x, &down));
    }
    if !reads_input(o, Group::Qkv) {
        kept.input_normed = None;
    }
}

/// The mixer's output, and its projected inputs, which its own backward pass needs too.
fn rebuild_attention<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    if let Mixer::DeltaNet(_) = o.mixer() {
        return rebuild_delta_net(o, kept);
    }
    rebuild_qkv(o, kept);
    if kept.attention.is_none() {
        rebuild_turned(o, kept);
        rebuild_normed_value(o, kept);
        let [q, k] = match &kept.turned {
            Some([q, k]) => [q, k],
            None => [&kept.query, &kept.key].map(|projected| &there(projected).y),
        };
        let v = match &kept.normed_value {
            Some((v, _)) => v,
            None => &there(&kept.value).y,
        };
        let (out, lse) = o.attend([q, k, v]);
        kept.attention = Some((out, Some(lse)));
    }
}

fn rebuild_delta_net<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    let missing = [kept.query.is_none(), kept.key.is_none()];
    if missing.contains(&true) {
        rebuild_input_normed(o, kept);
        let [qkv, z] = delta_net::inputs_again(o, there(&kept.input_normed), missing);
        if let Some(qkv) = qkv {
            kept.query = Some(projected(qkv));
        }
        if let Some(z) = z {
            kept.key = Some(projected(z));
        }
        if !reads_input(o, Group::Delta) {
            kept.input_normed = None;
        }
    }
    if kept.attention.is_none() {
        let ba = there(&kept.gates).each_ref().map(|gate| &gate.y);
        let (convolved, out) = delta_net::mix(o, &there(&kept.query).y, ba);
        kept.convolved = Some(convolved);
        kept.attention = Some((out, None));
    }
}

fn rebuild_turned<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    rebuild_split(o, kept);
    let raw = kept.split.take();
    rebuild_turned_of(o, kept, raw.as_ref().map(|[q, _]| q));
    kept.split = raw;
}

/// Queries and keys as attention takes them, of queries apart from their gates where there are some.
fn rebuild_turned_of<O: Forward>(o: &mut O, kept: &mut KeptOf<O>, raw: Option<&TensorOf<O>>) {
    if kept.turned.is_none() {
        let [q, k] = [&kept.query, &kept.key].map(|p| &there(p).y);
        kept.turned = norm_and_turn(o, [raw.unwrap_or(q), k]);
    }
}

/// Values as attention takes them, where they are normed.
fn rebuild_normed_value<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    if kept.normed_value.is_none() {
        let raw = kept.value.as_ref().unwrap_or_else(|| there(&kept.key));
        kept.normed_value = norm_values(o, &raw.y);
    }
}

/// Queries and their gates.
fn rebuild_split<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    if kept.split.is_none() {
        kept.split = split(o, &there(&kept.query).y);
    }
}

/// What is projected back, of the mixer's output, where that is not the output itself.
fn read_of<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) -> Option<TensorOf<O>> {
    match o.mixer() {
        Mixer::Attention => None,
        Mixer::GatedAttention => {
            rebuild_qkv(o, kept);
            rebuild_split(o, kept);
            let [_, gate] = there(&kept.split);
            Some(o.gate_heads(&there(&kept.attention).0, gate))
        }
        Mixer::DeltaNet(_) => {
            rebuild_delta_net(o, kept);
            let (out, z) = (&there(&kept.attention).0, &there(&kept.key).y);
            Some(o.norm_gated(out, z))
        }
    }
}

fn rebuild_mid<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    if kept.mid.is_some() {
        return;
    }
    if kept.attention.is_none() {
        rebuild_attention(o, kept);
    }
    let read = read_of(o, kept);
    let (out, _) = there(&kept.attention);
    let stream = (!o.norm_places().are_after()).then(|| there(&kept.input));
    let (y, side) = o.project_onto(o.mixer().last(), read.as_ref().unwrap_or(out), stream);
    kept.mid = Some(Projected { y, side });
}

fn rebuild_post_normed<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    if kept.post_normed.is_some() {
        return;
    }
    let x = if o.norm_places() == NormPlaces::Around {
        rebuild_stream(o, kept);
        o.norm(Norm::PreFeedforward, there(&kept.stream)).0
    } else {
        rebuild_mid(o, kept);
        let mid = there(&kept.mid).y.clone();
        mlp_input(o, mid, there(&kept.input)).x
    };
    kept.post_normed = Some(x);
}

/// The residual stream between attention and MLP, where it is normed for both.
fn rebuild_stream<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    if kept.stream.is_none() {
        rebuild_mid(o, kept);
        let mid = &there(&kept.mid).y;
        let (stream, _) = o.norm_onto(Norm::PostAttention, mid, there(&kept.input));
        kept.stream = Some(stream);
    }
}

/// What `down_proj` gives.
fn rebuild_down<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    if kept.down.is_some() {
        return;
    }
    rebuild_gate_and_up(o, kept);
    let product = o.glu_again(&there(&kept.gate).y, &there(&kept.up).y);
    kept.down = Some(o.project_onto(M::DownProj, &product, None).0);
}

fn rebuild_gate_and_up<O: Forward>(o: &mut O, kept: &mut KeptOf<O>) {
    if kept.gate.is_some() && kept.up.is_some() {
        return;
    }
    rebuild_post_normed(o, kept);
    let x = there(&kept.post_normed);
    if kept.gate.is_none() && kept.up.is_none() {
        let [gate, up] = gate_and_up(o, x).map(|(y, side)| Projected {
            y: o.complete(y),
            side,
        });
        (kept.gate, kept.up) = (Some(gate), Some(up));
    } else {
        let down = o.shared_down(Group::GateUp, x);
        if kept.gate.is_none() {
            kept.gate = Some(project(o, M::GateProj, x, &down));
        }
        if kept.up.is_none() {
            kept.up = Some(project(o, M::UpProj, x, &down));
        }
    }
    if !reads_input(o, Group::GateUp) {
        kept.post_normed = None;
    }
}

/// A value that was kept, has come back from the host, or was rebuilt.
fn there<T>(value: &Option<T>) -> &T {
    match value {
        Some(value) => value,
        None => unreachable!("it was kept, fetched or rebuilt"),
    }
}

/// A value that was kept or rebuilt, for its last use.
fn taken<T>(value: &mut Option<T>) -> T {
    match value.take() {
        Some(value) => value,
        None => unreachable!("it was kept or rebuilt"),
    }
}

/// A gradient that was asked for.
fn needed<T>(gradient: Option<T>) -> T {
    match gradient {
        Some(gradient) => gradient,
        None => unreachable!("the input's gradient was asked for"),
    }
}
