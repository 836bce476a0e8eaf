//! What a layer keeps between its forward and its backward pass.

use backdraft_kernels::offload::{Fetching, Lane, Offloaded};
use backdraft_lora::{Projection, ProjectionSaved};
use burn::tensor::Tensor;

/// A tensor that the backward pass of a layer uses, and that is kept for it or rebuilt.
///
/// In the order of the forward pass: each is rebuilt from the layer's input and tensors before it. An
/// adapter's x·Aᵀ goes with the output of its projection: that of `o_proj` with [`Mid`](Self::Mid), that of
/// `down_proj` with [`Product`](Self::Product).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SavedTensor {
    /// The normed input of attention.
    InputNormed,
    /// Queries after rotation.
    Query,
    /// Keys after rotation.
    Key,
    /// Values.
    Value,
    /// Attention's output and the log-sum-exp of its scores.
    Attention,
    /// The residual stream between attention and MLP.
    Mid,
    /// The normed input of the MLP.
    PostNormed,
    /// The gate before its activation.
    Gate,
    /// The other factor.
    Up,
    /// silu(gate)·up.
    Product,
}

impl SavedTensor {
    /// All of them, in the order of the forward pass.
    pub const ALL: [Self; 10] = [
        Self::InputNormed,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Attention,
        Self::Mid,
        Self::PostNormed,
        Self::Gate,
        Self::Up,
        Self::Product,
    ];

    /// The name that plans use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::InputNormed => "input_normed",
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Attention => "attention",
            Self::Mid => "mid",
            Self::PostNormed => "post_normed",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Product => "product",
        }
    }
}

/// Some of the tensors. Besides them a layer always keeps its input and the statistics of its two norms,
/// one number for each row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeepSet(u16);

impl KeepSet {
    /// Nothing but the input and the statistics.
    pub const NONE: Self = Self(0);
    /// What takes a product or attention to rebuild; the others take a pass over memory.
    pub const COSTLY: Self = Self::NONE
        .with(SavedTensor::Query)
        .with(SavedTensor::Key)
        .with(SavedTensor::Value)
        .with(SavedTensor::Attention)
        .with(SavedTensor::Mid)
        .with(SavedTensor::Gate)
        .with(SavedTensor::Up);
    /// Every tensor.
    pub const ALL: Self = Self((1 << SavedTensor::ALL.len()) - 1);

    /// The set with these tensors.
    #[must_use]
    pub fn of(tensors: impl IntoIterator<Item = SavedTensor>) -> Self {
        tensors.into_iter().fold(Self::NONE, Self::with)
    }

    /// The set and one more tensor.
    #[must_use]
    pub const fn with(self, tensor: SavedTensor) -> Self {
        Self(self.0 | 1 << tensor as u16)
    }

    /// The set less one tensor.
    #[must_use]
    pub const fn without(self, tensor: SavedTensor) -> Self {
        Self(self.0 & !(1 << tensor as u16))
    }

    /// Whether the tensor is in it.
    #[must_use]
    pub const fn contains(self, tensor: SavedTensor) -> bool {
        self.0 & 1 << tensor as u16 != 0
    }

    /// Tensors in both.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Tensors here that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many tensors it has.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Its tensors, in the order of the forward pass.
    pub fn iter(self) -> impl Iterator<Item = SavedTensor> {
        SavedTensor::ALL
            .into_iter()
            .filter(move |&tensor| self.contains(tensor))
    }

    /// Every subset.
    pub fn subsets(self) -> impl Iterator<Item = Self> {
        (0..=Self::ALL.0)
            .filter(move |bits| bits & !self.0 == 0)
            .map(Self)
    }
}

/// The output of a projection and what its backward pass needs.
#[derive(Clone, Debug)]
pub(super) struct Projected {
    pub(super) y: Tensor<2>,
    pub(super) saved: ProjectionSaved,
}

impl Projected {
    /// Without autodiff; `xa` is x·Aᵀ, where it is there.
    pub(super) fn of(
        projection: &Projection,
        x: &Tensor<2>,
        xa: Option<Tensor<2>>,
        dropout_seed: Option<u64>,
    ) -> Self {
        let (y, saved) = projection.forward_saving(x, xa, dropout_seed);
        Self { y, saved }
    }
}

/// x·Aᵀ of several projections of one input, where one product made all; where none did, each makes its own. All are
/// made whatever is kept, since a product of all may round otherwise than one of each.
pub(super) struct Downs<const N: usize>(pub(super) Option<[Tensor<2>; N]>);

impl<const N: usize> Downs<N> {
    /// That of the projection with this number.
    pub(super) fn of(&self, i: usize) -> Option<Tensor<2>> {
        self.0.as_ref().map(|all| all[i].clone())
    }
}

/// What is there for a layer's backward pass; what is not there is rebuilt.
#[derive(Clone, Debug)]
pub struct LayerSaved {
    /// Not there while it waits in the host's memory.
    pub(super) input: Option<Tensor<2>>,
    pub(super) input_rstd: Tensor<1>,
    pub(super) input_normed: Option<Tensor<2>>,
    pub(super) query: Option<Projected>,
    pub(super) key: Option<Projected>,
    pub(super) value: Option<Projected>,
    /// Output and log-sum-exp.
    pub(super) attention: Option<(Tensor<2>, Tensor<2>)>,
    /// With what `o_proj` needs.
    pub(super) mid: Option<Projected>,
    pub(super) post_rstd: Tensor<1>,
    pub(super) post_normed: Option<Tensor<2>>,
    pub(super) gate: Option<Projected>,
    pub(super) up: Option<Projected>,
    /// With what `down_proj` needs.
    pub(super) product: Option<Projected>,
}

/// What of a layer waits in the host's memory between its two passes: tensors that are kept, and its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AwaySet {
    /// The layer's input.
    pub input: bool,
    /// Of what is kept. What an adapter has beside it, and the statistics of attention's scores, stay.
    pub tensors: KeepSet,
}

impl AwaySet {
    /// Nothing.
    pub const NONE: Self = Self {
        input: false,
        tensors: KeepSet::NONE,
    };

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// How many tensors it has, the input included.
    #[must_use]
    pub const fn len(self) -> usize {
        self.tensors.len() + self.input as usize
    }
}

/// What goes with a tensor and stays on the device.
#[derive(Debug)]
enum Beside {
    Nothing,
    Projection(ProjectionSaved),
    LogSumExp(Tensor<2>),
}

/// A tensor that was kept, as `T`.
#[derive(Debug)]
struct Moved<T> {
    tensor: SavedTensor,
    main: T,
    beside: Beside,
}

impl<T> Moved<T> {
    fn map<U>(self, to: impl FnOnce(T) -> U) -> Moved<U> {
        Moved {
            tensor: self.tensor,
            main: to(self.main),
            beside: self.beside,
        }
    }
}

/// What is kept of a layer, a part of it in the host's memory, as `T`.
#[derive(Debug)]
pub struct LayerMoved<T> {
    saved: LayerSaved,
    input: Option<T>,
    tensors: Vec<Moved<T>>,
}

/// A layer of which a part waits in the host's memory.
pub type LayerAway = LayerMoved<Offloaded>;
/// A layer of which a part is on its way back.
pub type LayerComing = LayerMoved<Fetching>;

impl<T> LayerMoved<T> {
    fn map<U>(self, mut to: impl FnMut(T) -> U) -> LayerMoved<U> {
        LayerMoved {
            saved: self.saved,
            input: self.input.map(&mut to),
            tensors: self.tensors.into_iter().map(|it| it.map(&mut to)).collect(),
        }
    }
}

impl LayerAway {
    /// Starts the copies back.
    #[must_use]
    pub fn fetch(self) -> LayerComing {
        self.map(Offloaded::fetch)
    }
}

impl LayerComing {
    /// As it was kept.
    #[must_use]
    pub fn arrived(self) -> LayerSaved {
        let LayerMoved {
            mut saved,
            input,
            tensors,
        } = self.map(Fetching::arrived);
        saved.input = saved.input.or(input);
        for moved in tensors {
            saved.put(moved);
        }
        saved
    }
}

impl LayerSaved {
    /// Sends what `away` names to the host, as far as it is there.
    #[must_use]
    pub fn send(mut self, away: AwaySet, lane: &mut Lane) -> LayerAway {
        let input = if away.input { self.input.take() } else { None };
        let tensors = away.tensors.iter();
        let tensors = tensors.filter_map(|tensor| self.take(tensor)).collect();
        LayerMoved {
            saved: self,
            input,
            tensors,
        }
        .map(|tensor| lane.store(tensor))
    }

    pub(super) fn input(&self) -> &Tensor<2> {
        match &self.input {
            Some(input) => input,
            None => unreachable!("it has come back"),
        }
    }

    fn projected(&mut self, tensor: SavedTensor) -> Option<&mut Option<Projected>> {
        match tensor {
            SavedTensor::Query => Some(&mut self.query),
            SavedTensor::Key => Some(&mut self.key),
            SavedTensor::Value => Some(&mut self.value),
            SavedTensor::Mid => Some(&mut self.mid),
            SavedTensor::Gate => Some(&mut self.gate),
            SavedTensor::Up => Some(&mut self.up),
            SavedTensor::Product => Some(&mut self.product),
            SavedTensor::InputNormed | SavedTensor::Attention | SavedTensor::PostNormed => None,
        }
    }

    fn take(&mut self, tensor: SavedTensor) -> Option<Moved<Tensor<2>>> {
        let (main, beside) = match tensor {
            SavedTensor::InputNormed => (self.input_normed.take()?, Beside::Nothing),
            SavedTensor::PostNormed => (self.post_normed.take()?, Beside::Nothing),
            SavedTensor::Attention => {
                let (out, lse) = self.attention.take()?;
                (out, Beside::LogSumExp(lse))
            }
            _ => {
                let Projected { y, saved } = self.projected(tensor)?.take()?;
                (y, Beside::Projection(saved))
            }
        };
        Some(Moved {
            tensor,
            main,
            beside,
        })
    }

    fn put(&mut self, moved: Moved<Tensor<2>>) {
        let (tensor, y) = (moved.tensor, moved.main);
        match moved.beside {
            Beside::LogSumExp(lse) => self.attention = Some((y, lse)),
            Beside::Nothing if tensor == SavedTensor::InputNormed => self.input_normed = Some(y),
            Beside::Nothing => self.post_normed = Some(y),
            Beside::Projection(saved) => {
                if let Some(place) = self.projected(tensor) {
                    *place = Some(Projected { y, saved });
                }
            }
        }
    }

    /// Which tensors are there.
    #[must_use]
    pub fn kept(&self) -> KeepSet {
        let there = |tensor| match tensor {
            SavedTensor::InputNormed => self.input_normed.is_some(),
            SavedTensor::Query => self.query.is_some(),
            SavedTensor::Key => self.key.is_some(),
            SavedTensor::Value => self.value.is_some(),
            SavedTensor::Attention => self.attention.is_some(),
            SavedTensor::Mid => self.mid.is_some(),
            SavedTensor::PostNormed => self.post_normed.is_some(),
            SavedTensor::Gate => self.gate.is_some(),
            SavedTensor::Up => self.up.is_some(),
            SavedTensor::Product => self.product.is_some(),
        };
        KeepSet::of(SavedTensor::ALL.into_iter().filter(|&tensor| there(tensor)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_was_put_in() {
        let set = KeepSet::of([SavedTensor::Up, SavedTensor::Mid]);
        assert_eq!(set.len(), 2);
        let names: Vec<_> = set.iter().map(SavedTensor::name).collect();
        assert_eq!(names, ["mid", "up"]);
        assert_eq!(set.without(SavedTensor::Mid).len(), 1);
        assert_eq!(set.subsets().count(), 4);
        assert_eq!(KeepSet::ALL.len(), SavedTensor::ALL.len());
        assert!(KeepSet::ALL.difference(KeepSet::ALL).is_empty());
    }
}
