//! Layers of which a part waits in the host's memory between their two passes.

use backdraft_arch::layer::Companion;
use backdraft_arch::{Kept, OffloadSet, SavedTensor};
use backdraft_kernels::offload::{Fetching, Lane, Offloaded};
use burn::tensor::Tensor;

use super::device_ops::OnDevice;

/// What a layer keeps on its device.
pub type LayerSaved = Kept<OnDevice>;

/// A tensor that was kept, as `T`.
struct Moved<T> {
    tensor: SavedTensor,
    main: T,
    companion: Companion<OnDevice>,
}

/// What is kept of a layer, a part of it in the host's memory, as `T`.
pub struct LayerMoved<T> {
    kept: LayerSaved,
    input: Option<T>,
    tensors: Vec<Moved<T>>,
}

/// A layer of which a part is in the host's memory.
pub type OffloadedLayer = LayerMoved<Offloaded>;
/// A layer of which a part is on its way back.
pub type PrefetchedLayer = LayerMoved<Fetching>;

impl<T> LayerMoved<T> {
    fn map<U>(self, mut to: impl FnMut(T) -> U) -> LayerMoved<U> {
        LayerMoved {
            kept: self.kept,
            input: self.input.map(&mut to),
            tensors: self
                .tensors
                .into_iter()
                .map(|moved| Moved {
                    tensor: moved.tensor,
                    main: to(moved.main),
                    companion: moved.companion,
                })
                .collect(),
        }
    }
}

/// Sends what `away` names to the host, as far as it is there.
#[must_use]
pub fn offload(mut kept: LayerSaved, away: OffloadSet, lane: &mut Lane) -> OffloadedLayer {
    let input = if away.input { kept.input.take() } else { None };
    let tensors = away.tensors.iter().filter_map(|tensor| {
        let (main, companion) = kept.take(tensor)?;
        Some(Moved {
            tensor,
            main,
            companion,
        })
    });
    let tensors: Vec<Moved<Tensor<2>>> = tensors.collect();
    LayerMoved {
        kept,
        input,
        tensors,
    }
    .map(|tensor| lane.store(tensor))
}

impl OffloadedLayer {
    /// Starts the copies back.
    #[must_use]
    pub fn prefetch(self) -> PrefetchedLayer {
        self.map(Offloaded::fetch)
    }
}

impl PrefetchedLayer {
    /// As it was kept.
    #[must_use]
    pub fn arrived(self) -> LayerSaved {
        let LayerMoved {
            mut kept,
            input,
            tensors,
        } = self.map(Fetching::arrived);
        kept.input = kept.input.or(input);
        for moved in tensors {
            kept.put(moved.tensor, moved.main, moved.companion);
        }
        kept
    }
}
