//! What sequences leave in a DeltaNet: a state of fixed size each, however long they are.

use std::collections::BTreeMap;

use backdraft_arch::DeltaNetSpec;
use backdraft_kernels::gated_delta::{self, DeltaLayout, Operands};
use backdraft_kernels::{Segments, causal_conv};
use burn::tensor::{DType, Device, Tensor};

/// A sequence's name in a pool.
pub(crate) type Slot = u64;

/// Of one sequence.
#[derive(Clone, Debug)]
struct State {
    /// The last inputs of the convolution, `[k − 1, conv_width]`.
    past: Tensor<2>,
    /// `[num_value_heads·key_head_dim, value_head_dim]`, f32.
    matrix: Tensor<2>,
}

/// Of all sequences, in one layer.
#[derive(Debug)]
pub(crate) struct LayerStates {
    sizes: DeltaNetSpec,
    place: (Device, DType),
    of: BTreeMap<Slot, State>,
}

impl LayerStates {
    /// Of no sequence yet.
    pub(super) const fn new(sizes: DeltaNetSpec, place: (Device, DType)) -> Self {
        Self {
            sizes,
            place,
            of: BTreeMap::new(),
        }
    }

    /// A sequence's state, zeros where it begins.
    fn state(&mut self, slot: Slot) -> &mut State {
        let (sizes, (device, dtype)) = (self.sizes, &self.place);
        self.of.entry(slot).or_insert_with(|| State {
            past: Tensor::zeros(
                [sizes.conv_kernel_dim - 1, sizes.conv_width()],
                (device, *dtype),
            ),
            matrix: Tensor::zeros(
                [
                    sizes.num_value_heads * sizes.key_head_dim,
                    sizes.value_head_dim,
                ],
                (device, DType::F32),
            ),
        })
    }

    /// The convolution of the new tokens of these sequences, each after its own past.
    pub(crate) fn convolve(
        &mut self,
        x: &Tensor<2>,
        weight: &Tensor<1>,
        (segments, slots): (&Segments, &[Slot]),
    ) -> Tensor<2> {
        let past = slots.iter().map(|&slot| self.state(slot).past.clone());
        let past = past.collect();
        let (y, left) = causal_conv::forward_continuing(x, weight, segments, past);
        for (&slot, past) in slots.iter().zip(left) {
            self.state(slot).past = past;
        }
        y
    }

    /// The delta rule over the new tokens of these sequences, each from its own state.
    pub(crate) fn delta(
        &mut self,
        x: &Operands,
        layout: DeltaLayout,
        (segments, slots): (&Segments, &[Slot]),
    ) -> Tensor<2> {
        let states = slots.iter().map(|&slot| self.state(slot).matrix.clone());
        let states = states.collect();
        let (y, left) = gated_delta::forward_continuing(x, segments, layout, states);
        for (&slot, matrix) in slots.iter().zip(left) {
            self.state(slot).matrix = matrix;
        }
        y
    }

    pub(super) fn fork(&mut self, from: Slot, to: Slot) {
        let state = self.state(from).clone();
        self.of.insert(to, state);
    }

    pub(super) fn forget(&mut self, slot: Slot) {
        self.of.remove(&slot);
    }
}
