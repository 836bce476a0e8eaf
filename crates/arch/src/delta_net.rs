//! A DeltaNet as a layer's mixer: out(norm(delta(silu(conv(qkv(x))), σ(b(x)), decay(a(x))))∘silu(z(x))).

use crate::layer::InputGrad;
use crate::ops::{Backward, Forward, SideOf, TensorOf};
use crate::target::{Group, TargetModule};

use TargetModule as M;

/// The output of a projection with what its backward pass needs.
type Output<O> = (TensorOf<O>, SideOf<O>);

/// What reads the mixer's input.
pub(crate) struct Inputs<O: Forward> {
    /// Queries, keys and values.
    pub(crate) qkv: Output<O>,
    /// The gate of the output.
    pub(crate) z: Output<O>,
    /// A step and a decay for each value head.
    pub(crate) gates: [Output<O>; 2],
}

/// The four projections of the input.
pub(crate) fn inputs<O: Forward>(o: &mut O, x: &TensorOf<O>) -> Inputs<O> {
    let down = o.shared_down(Group::Delta, x);
    Inputs {
        qkv: o.project(M::InProjQkv, x, &down),
        z: o.project(M::InProjZ, x, &down),
        gates: [M::InProjB, M::InProjA].map(|target| o.project(target, x, &down)),
    }
}

/// The two wide ones again, as far as they are `missing`: the gates stay.
pub(crate) fn inputs_again<O: Forward>(
    o: &mut O,
    x: &TensorOf<O>,
    missing: [bool; 2],
) -> [Option<Output<O>>; 2] {
    let down = o.shared_down(Group::Delta, x);
    let [qkv, z] = missing;
    [
        qkv.then(|| o.project(M::InProjQkv, x, &down)),
        z.then(|| o.project(M::InProjZ, x, &down)),
    ]
}

/// What was convolved, and what is read of the states.
pub(crate) fn mix<O: Forward>(
    o: &mut O,
    qkv: &TensorOf<O>,
    ba: [&TensorOf<O>; 2],
) -> (TensorOf<O>, TensorOf<O>) {
    let convolved = o.convolve(qkv);
    let [beta, decay] = o.delta_gates(ba);
    let out = o.delta(&convolved, [&beta, &decay]);
    (convolved, out)
}

/// What the backward pass starts from.
pub(crate) struct Behind<'a, O: Forward> {
    pub(crate) qkv: Output<O>,
    pub(crate) z: Output<O>,
    pub(crate) gates: [Output<O>; 2],
    /// Where it was made on the way.
    pub(crate) convolved: Option<TensorOf<O>>,
    pub(crate) out: TensorOf<O>,
    /// Of `out_proj`.
    pub(crate) side: &'a SideOf<O>,
}

/// From the gradient of what `out_proj` gives to that of the mixer's input, which `input` gives where an adapter needs it.
pub(crate) fn backward<O: Backward>(
    o: &mut O,
    dy: TensorOf<O>,
    behind: Behind<'_, O>,
    input: impl FnOnce(&mut O) -> Option<TensorOf<O>>,
    input_grad: InputGrad,
) -> Option<TensorOf<O>> {
    let Behind {
        qkv,
        z,
        gates: [b, a],
        convolved,
        out,
        side,
    } = behind;
    let (d_read, ahead) = o.project_backward_ahead((M::OutProj, dy, side));
    let ([d_out, dz], read) = o.norm_gated_backward(d_read, out, z.0);
    if let Some(read) = read {
        o.factor_gradient(ahead, read);
    }
    let convolved = convolved.unwrap_or_else(|| o.convolve(&qkv.0));
    let [beta, decay] = o.delta_gates([&b.0, &a.0]);
    let (d_convolved, d_gates) = o.delta_backward(&d_out, &convolved, [&beta, &decay]);
    drop((d_out, convolved, beta, decay));
    let d_qkv = o.convolve_backward(d_convolved, &qkv.0);
    drop(qkv.0);
    let [db, da] = o.delta_gates_backward(d_gates, [&b.0, &a.0]);
    let x = input(o);
    let branches = [
        (M::InProjQkv, d_qkv, &qkv.1),
        (M::InProjZ, dz, &z.1),
        (M::InProjB, db, &b.1),
        (M::InProjA, da, &a.1),
    ];
    let dx = o.project_backward(branches, x.as_ref(), input_grad)?;
    Some(o.complete(dx))
}
