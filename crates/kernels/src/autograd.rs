//! A hand-written backward pass as one node of Burn's tape, also for ops of other crates (`examples/new_op.rs`).

use std::fmt::Debug;
use std::marker::PhantomData;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::{
    BalancedCheckpointing, CheckpointStrategy, NoCheckpointing,
};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::{
    Autodiff, Backend, BackendTensor, DispatchAutodiffContext, DispatchKindConversion,
    DispatchTensor, DispatchTensorKind, Flex, GradientCheckpointingStrategy,
};
use burn::tensor::Tensor;
#[cfg(feature = "cube")]
use burn_cubecl::Cube;

/// The vector–Jacobian product of an operation with `N` differentiable inputs.
pub trait Vjp<const N: usize>: Clone + Debug + Send + 'static {
    /// Gradients of the inputs from the gradient of the output, `None` where not `wanted`.
    fn vjp(self, dy: DispatchTensor, wanted: [bool; N]) -> [Option<DispatchTensor>; N];
}

/// `tensor` as an input that may want a gradient: `None` for constants.
pub fn parent<const D: usize>(tensor: &Tensor<D>) -> Option<DispatchTensor> {
    tensor.is_tracked().then(|| tensor.clone().into_dispatch())
}

/// Puts `output`, computed without autodiff, on the tape of its tracked `parents`.
///
/// Returns `output` as it is when no parent is tracked.
///
/// # Panics
/// If more than three parents are tracked, or they lie on a backend without kernels here.
pub fn attach<V: Vjp<N>, const D: usize, const N: usize>(
    output: Tensor<D>,
    parents: [Option<DispatchTensor>; N],
    rule: V,
) -> Tensor<D> {
    let wanted = parents.each_ref().map(Option::is_some);
    let tracked: Vec<_> = parents.into_iter().flatten().collect();
    let Some(first) = tracked.first() else {
        return output;
    };
    let balanced = matches!(
        first.autodiff,
        DispatchAutodiffContext::Enabled(GradientCheckpointingStrategy::Balanced)
    );
    let output = output.into_dispatch();
    let attached = match (&output.kind, balanced) {
        (DispatchTensorKind::Flex(_), false) => {
            register::<Flex, NoCheckpointing, V, N>(output, tracked, rule, wanted)
        }
        (DispatchTensorKind::Flex(_), true) => {
            register::<Flex, BalancedCheckpointing, V, N>(output, tracked, rule, wanted)
        }
        #[cfg(feature = "cube")]
        (DispatchTensorKind::Cube(_), false) => {
            register::<Cube, NoCheckpointing, V, N>(output, tracked, rule, wanted)
        }
        #[cfg(feature = "cube")]
        (DispatchTensorKind::Cube(_), true) => {
            register::<Cube, BalancedCheckpointing, V, N>(output, tracked, rule, wanted)
        }
        (other, _) => panic!("no autodiff bridge for this backend: {other:?}"),
    };
    Tensor::from_dispatch(attached)
}

/// Burn wants the number of parents as a constant; only tracked ones are registered.
fn register<B, C, V, const N: usize>(
    output: DispatchTensor,
    tracked: Vec<DispatchTensor>,
    rule: V,
    wanted: [bool; N],
) -> DispatchTensor
where
    B: Backend,
    C: CheckpointStrategy,
    V: Vjp<N>,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    match tracked.len() {
        1 => register_n::<B, C, V, N, 1>(output, tracked, rule, wanted),
        2 => register_n::<B, C, V, N, 2>(output, tracked, rule, wanted),
        3 => register_n::<B, C, V, N, 3>(output, tracked, rule, wanted),
        n => panic!("operations have one to three differentiable inputs, found {n}"),
    }
}

fn register_n<B, C, V, const N: usize, const K: usize>(
    output: DispatchTensor,
    tracked: Vec<DispatchTensor>,
    rule: V,
    wanted: [bool; N],
) -> DispatchTensor
where
    B: Backend,
    C: CheckpointStrategy,
    V: Vjp<N>,
    DispatchTensor: DispatchKindConversion<B> + DispatchKindConversion<Autodiff<B, C>>,
{
    let nodes: Vec<_> = tracked
        .into_iter()
        .map(|tensor| float::<Autodiff<B, C>>(tensor).node())
        .collect();
    let Ok(nodes) = <[_; K]>::try_from(nodes) else {
        unreachable!("the caller matched the number of tracked parents");
    };
    let output = float::<B>(output);
    let output = match Backward::<B, K>::prepare::<C>(Step::<V, N>(PhantomData), nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => prep.finish((rule, wanted), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    };
    <DispatchTensor as DispatchKindConversion<Autodiff<B, C>>>::from_backend(BackendTensor::Float(
        output,
    ))
}

/// The tape's entry of an operation with rule `V`; its state travels in [`Ops`].
struct Step<V, const N: usize>(PhantomData<fn() -> V>);

impl<V, const N: usize> Debug for Step<V, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(std::any::type_name::<V>())
    }
}

impl<B, V, const N: usize, const K: usize> Backward<B, K> for Step<V, N>
where
    B: Backend,
    V: Vjp<N>,
    DispatchTensor: DispatchKindConversion<B>,
{
    type State = (V, [bool; N]);

    fn backward(self, ops: Ops<Self::State, K>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let dy = DispatchTensor::from_backend(BackendTensor::<B>::Float(dy));
        let (rule, wanted) = ops.state;
        let computed = rule.vjp(dy, wanted);
        let wanted_grads = computed
            .into_iter()
            .zip(wanted)
            .filter(|(_, wanted)| *wanted);
        for (node, (grad, _)) in ops.parents.into_iter().zip(wanted_grads) {
            if let (Some(node), Some(grad)) = (node, grad) {
                grads.register::<B>(node.id, float::<B>(grad));
            }
        }
    }
}

fn float<B: Backend>(tensor: DispatchTensor) -> B::FloatTensorPrimitive
where
    DispatchTensor: DispatchKindConversion<B>,
{
    match DispatchTensor::try_into_backend(tensor) {
        Ok(BackendTensor::Float(primitive)) => primitive,
        Ok(other) => panic!("expected a float tensor, found {}", other.name()),
        Err(error) => panic!("a gradient or an input lies on another backend: {error}"),
    }
}
