//! Projections of one input.

use std::ops::Range;

use backdraft_arch::Group;
use backdraft_lora::{Projection, TargetModule};
use burn::module::Module;
use burn::tensor::Tensor;

/// The projections of a group.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "two for each layer")]
pub enum Joined {
    /// Each with a matrix and an adapter of its own, in the group's order; the last may be absent.
    Apart(Vec<Projection>),
    /// All in one matrix with one adapter.
    Fused(Fused),
}

/// One projection with the rows of a whole group.
#[derive(Module, Debug)]
pub struct Fused {
    /// All rows.
    pub whole: Projection,
    /// How many each of the group has, in its order.
    #[module(skip)]
    pub(super) rows: Vec<usize>,
}

impl Fused {
    /// The rows of one of the group.
    pub(super) fn rows_of(&self, part: TargetModule) -> Range<usize> {
        let place = part.place_in_group();
        let start = self.rows[..place].iter().sum();
        start..start + self.rows[place]
    }
}

/// What a fused projection gives, for executors that compute it as one.
pub(super) type Whole = Option<Tensor<2>>;

impl Joined {
    /// One projection with the rows of a group, so many for each of it.
    pub fn fused(whole: Projection, rows: Vec<usize>) -> Self {
        Self::Fused(Fused { whole, rows })
    }

    /// Whether one has the rows of all.
    pub(super) fn as_fused(&self) -> Option<&Fused> {
        match self {
            Self::Apart(_) => None,
            Self::Fused(fused) => Some(fused),
        }
    }

    /// The projection that has the rows of one of the group, where the layer has it.
    pub(super) fn of(&self, part: TargetModule) -> Option<&Projection> {
        match self {
            Self::Apart(projections) => projections.get(part.place_in_group()),
            Self::Fused(fused) => Some(&fused.whole),
        }
    }

    pub(super) fn of_mut(&mut self, part: TargetModule) -> Option<&mut Projection> {
        match self {
            Self::Apart(projections) => projections.get_mut(part.place_in_group()),
            Self::Fused(fused) => Some(&mut fused.whole),
        }
    }

    /// Its projections by name.
    pub(super) fn modules_mut(
        &mut self,
        group: Group,
    ) -> impl Iterator<Item = (TargetModule, &mut Projection)> {
        let (names, projections) = match self {
            Self::Apart(projections) => (group.targets().to_vec(), projections.as_mut_slice()),
            Self::Fused(fused) => (
                group.fused().into_iter().collect(),
                std::slice::from_mut(&mut fused.whole),
            ),
        };
        names.into_iter().zip(projections)
    }
}
