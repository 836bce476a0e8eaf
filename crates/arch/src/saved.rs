//! What stays of a layer between its forward and its backward pass.

use crate::target::TargetModule;

/// A tensor that the backward pass of a layer uses, and that is kept for it or rebuilt.
///
/// In the order of the forward pass: each is rebuilt from the layer's input and tensors before it. An
/// adapter's x·Aᵀ goes with the output of its projection, that of `o_proj` with [`Mid`](Self::Mid); that of
/// `down_proj` always stays. act(gate)·up, which `down_proj` reads, is not among them: the gradients of gate and
/// up are made of the same values, and their kernel gives it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SavedTensor {
    /// The normed input of attention or of another mixer; there is none where norms follow.
    InputNormed,
    /// Queries after rotation, where there is one; before their norm, where there is one; with their gates as projected, where
    /// there are some. Of a DeltaNet: queries, keys and values before the convolution.
    Query,
    /// Keys likewise. Of a DeltaNet: the gate of its output.
    Key,
    /// Values; a DeltaNet has none of their own.
    Value,
    /// Attention's output, before its gate, and the log-sum-exp of its scores. Of a DeltaNet: what is read of the states.
    Attention,
    /// The residual stream between attention and MLP; where norms follow, what `o_proj` gives. Of a
    /// DeltaNet, `out_proj`.
    Mid,
    /// The normed input of the MLP; where norms follow, the residual stream, which it reads as it is.
    PostNormed,
    /// The gate before its activation.
    Gate,
    /// The other factor.
    Up,
    /// What `down_proj` gives, where it is normed before it is added.
    Down,
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
        Self::Down,
    ];

    /// The tensor that holds the output of a projection, of a fused one the first; that of `down_proj` is kept where it is normed
    /// before it is added, and is the next layer's input elsewhere. The gates of a DeltaNet, a value for each head, always stay.
    #[must_use]
    pub const fn of(target: TargetModule) -> Option<Self> {
        Some(match target {
            TargetModule::QProj | TargetModule::QkvProj | TargetModule::InProjQkv => Self::Query,
            TargetModule::KProj | TargetModule::InProjZ => Self::Key,
            TargetModule::VProj => Self::Value,
            TargetModule::OProj | TargetModule::OutProj => Self::Mid,
            TargetModule::GateProj | TargetModule::GateUpProj => Self::Gate,
            TargetModule::UpProj => Self::Up,
            TargetModule::DownProj => Self::Down,
            TargetModule::InProjB | TargetModule::InProjA => return None,
        })
    }

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
            Self::Down => "down",
        }
    }
}

/// Some of the tensors. Besides them a layer always keeps its input, x·Aᵀ of `down_proj`, and the statistics of
/// its norms, one number for each row.
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
        .with(SavedTensor::Up)
        .with(SavedTensor::Down);
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

/// What of a layer is offloaded to the host's memory between its two passes: tensors that are kept, and its input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OffloadSet {
    /// The layer's input.
    pub input: bool,
    /// Of what is kept. An adapter's x·Aᵀ and the statistics of attention's scores stay on the device.
    pub tensors: KeepSet,
}

impl OffloadSet {
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
