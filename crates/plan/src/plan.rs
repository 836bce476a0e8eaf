//! A plan: for each layer of the backward pass, what is kept for it.

use backdraft_arch::{KeepSet, OffloadSet, SavedTensor};
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

/// Layers that are treated as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Segment {
    /// One layer, which keeps its input and these tensors, some of that in the host's memory; its backward pass rebuilds
    /// the others that it uses.
    Stored(KeepSet, OffloadSet),
    /// Layers of which only the first one's input is kept. Their forward pass runs again before their backward
    /// pass, and then each keeps these tensors besides its input.
    Rerun(Vec<KeepSet>),
}

impl Segment {
    /// Layers in it.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Stored(..) => 1,
            Self::Rerun(layers) => layers.len(),
        }
    }

    /// Whether it has no layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is kept for the backward pass, for every layer from the lowest adapted one to the last.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ActivationPlan {
    /// First layer to last.
    pub segments: Vec<Segment>,
}

/// What becomes of one tensor of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Kept from the forward pass to the backward pass.
    Keep,
    /// Kept in the host's memory.
    Offload,
    /// Rebuilt in the backward pass.
    Recompute,
    /// Nobody needs it.
    Unused,
}

impl Fate {
    /// Its letter in a strip chart.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Keep => '█',
            Self::Offload => '▒',
            Self::Recompute => '·',
            Self::Unused => ' ',
        }
    }
}

impl ActivationPlan {
    /// Keeps everything that the backward pass uses, in `layers` layers.
    #[must_use]
    pub fn keep_all(layers: usize) -> Self {
        Self {
            segments: vec![Segment::Stored(KeepSet::ALL, OffloadSet::NONE); layers],
        }
    }

    /// Keeps the input of each layer and runs its whole forward pass again, as gradient checkpointing by layers
    /// does.
    #[must_use]
    pub fn recompute_all(layers: usize) -> Self {
        Self {
            segments: vec![Segment::Rerun(vec![KeepSet::ALL]); layers],
        }
    }

    /// Keeps the input of every √n-th layer and runs the layers up to the next one again.
    ///
    /// # Source
    /// Chen et al. 2016, arXiv:1604.06174.
    #[must_use]
    pub fn sqrt(layers: usize) -> Self {
        let size = (layers as f64).sqrt().ceil().max(1.0) as usize;
        Self::rerun(layers, size, KeepSet::ALL)
    }

    /// Segments of `size` layers that run again and then keep `keep`.
    #[must_use]
    pub fn rerun(layers: usize, size: usize, keep: KeepSet) -> Self {
        let size = size.max(1);
        let starts = (0..layers).step_by(size);
        let segments = starts.map(|start| Segment::Rerun(vec![keep; size.min(layers - start)]));
        Self {
            segments: segments.collect(),
        }
    }

    /// The layers that it is for.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.segments.iter().map(Segment::len).sum()
    }

    /// What is kept of each layer between the two passes; `None` where not even the input is.
    pub fn kept(&self) -> impl Iterator<Item = Option<KeepSet>> {
        self.segments.iter().flat_map(|segment| match segment {
            Segment::Stored(keep, _) => vec![Some(*keep)],
            Segment::Rerun(layers) => {
                let inner = layers.len().saturating_sub(1);
                let first = (!layers.is_empty()).then_some(Some(KeepSet::NONE));
                first.into_iter().chain(vec![None; inner]).collect()
            }
        })
    }

    /// What of each layer waits in the host's memory.
    pub fn away(&self) -> impl Iterator<Item = OffloadSet> {
        self.segments.iter().flat_map(|segment| {
            let away = match segment {
                Segment::Stored(_, away) => *away,
                Segment::Rerun(_) => OffloadSet::NONE,
            };
            vec![away; segment.len()]
        })
    }

    /// What becomes of a tensor in each layer, given what each layer's backward pass uses.
    ///
    /// # Panics
    /// If `uses` has another number of layers.
    pub fn fates(&self, tensor: SavedTensor, uses: &[KeepSet]) -> Vec<Fate> {
        assert_eq!(uses.len(), self.num_layers(), "layers of the plan");
        let fate = |((kept, away), uses): ((Option<KeepSet>, OffloadSet), &KeepSet)| {
            if !uses.contains(tensor) {
                Fate::Unused
            } else if away.tensors.contains(tensor) {
                Fate::Offload
            } else if kept.is_some_and(|kept| kept.contains(tensor)) {
                Fate::Keep
            } else {
                Fate::Recompute
            }
        };
        self.kept().zip(self.away()).zip(uses).map(fate).collect()
    }
}

impl Serialize for ActivationPlan {
    /// For each layer the names of the tensors that are kept; those in the host's memory, `input` among them, begin with
    /// a `^`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut layers = serializer.serialize_seq(Some(self.num_layers()))?;
        for (kept, away) in self.kept().zip(self.away()) {
            let name = |tensor: SavedTensor| match away.tensors.contains(tensor) {
                true => format!("^{}", tensor.name()),
                false => tensor.name().to_owned(),
            };
            let input = away.input.then(|| "^input".to_owned());
            let names = kept.map(|kept| {
                let tensors = kept.iter().map(name);
                input.into_iter().chain(tensors).collect::<Vec<String>>()
            });
            layers.serialize_element(&names)?;
        }
        layers.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_plans_cover_every_layer() {
        for layers in [1, 2, 5, 32] {
            assert_eq!(ActivationPlan::keep_all(layers).num_layers(), layers);
            assert_eq!(ActivationPlan::recompute_all(layers).num_layers(), layers);
            let sqrt = ActivationPlan::sqrt(layers);
            assert_eq!(sqrt.num_layers(), layers);
            assert_eq!(sqrt.kept().count(), layers);
        }
        let sizes: Vec<usize> = ActivationPlan::sqrt(5)
            .segments
            .iter()
            .map(Segment::len)
            .collect();
        assert_eq!(sizes, [3, 2]);
    }

    #[test]
    fn fates_follow_what_is_kept_and_used() {
        let plan = ActivationPlan {
            segments: vec![
                Segment::Stored(
                    KeepSet::of([SavedTensor::Gate, SavedTensor::Up]),
                    OffloadSet {
                        input: true,
                        tensors: KeepSet::of([SavedTensor::Up]),
                    },
                ),
                Segment::Rerun(vec![KeepSet::ALL; 2]),
            ],
        };
        let uses = [KeepSet::ALL, KeepSet::ALL, KeepSet::NONE];
        assert_eq!(
            plan.fates(SavedTensor::Gate, &uses),
            [Fate::Keep, Fate::Recompute, Fate::Unused]
        );
        assert_eq!(plan.fates(SavedTensor::Up, &uses)[0], Fate::Offload);
        let names = serde_json::to_value(&plan).unwrap();
        assert_eq!(
            names,
            serde_json::json!([["^input", "gate", "^up"], [], null])
        );
    }
}
