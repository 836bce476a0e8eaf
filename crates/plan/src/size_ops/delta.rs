//! What a DeltaNet's convolution and its rule take: on the processor a task at a time, on a device all chunks at once.

use backdraft_arch::sizes::DELTA_CHUNK;
use backdraft_arch::{DeltaNetSpec, Mixer};

use super::{Memory, SizeOps, Value};
use crate::tensors::{LayerShape, PassShape};

const CHUNK: u64 = DELTA_CHUNK as u64;

/// Bytes of the largest tensor that the rule works in on a device; 0 where there is none.
pub(crate) fn largest(layer: &LayerShape, pass: PassShape) -> u64 {
    match layer.mixer {
        Mixer::DeltaNet(sizes) => {
            let Chunks {
                square,
                state,
                values,
            } = Chunks::of(sizes, pass);
            square.max(state).max(values)
        }
        Mixer::Attention | Mixer::GatedAttention => 0,
    }
}

/// f32 of all chunks and value heads.
#[derive(Clone, Copy)]
struct Chunks {
    /// Pairs of a chunk's tokens.
    square: u64,
    /// A state.
    state: u64,
    /// A value for each token.
    values: u64,
}

impl Chunks {
    const fn of(sizes: DeltaNetSpec, pass: PassShape) -> Self {
        let heads = 4 * pass.chunks * sizes.num_value_heads as u64;
        let (key, value) = (sizes.key_head_dim as u64, sizes.value_head_dim as u64);
        Self {
            square: heads * CHUNK * CHUNK,
            state: heads * key * value,
            values: heads * CHUNK * value,
        }
    }
}

impl<A: Memory> SizeOps<'_, A> {
    pub(super) fn delta_net(&self) -> DeltaNetSpec {
        match self.layer.mixer {
            Mixer::DeltaNet(sizes) => sizes,
            Mixer::Attention | Mixer::GatedAttention => unreachable!("this layer attends"),
        }
    }

    /// The taps of a convolution, turned for its passes on the processor.
    pub(super) fn taps(&self) -> u64 {
        let sizes = self.delta_net();
        4 * (sizes.conv_width() * sizes.conv_kernel_dim) as u64
    }

    /// f32 for each value head of every token.
    pub(super) fn of_value_heads(&self) -> u64 {
        4 * self.pass.tokens * self.delta_net().num_value_heads as u64
    }

    /// What the rule's forward pass works in.
    pub(super) fn delta_scratch(&self) {
        if self.model.paged {
            drop(self.prepared());
        } else {
            let heads = self.delta_net().num_value_heads;
            self.transient(self.tasks(heads) * (self.delta_state() + self.chunk()));
        }
    }

    /// The gradients of steps and decays, and what the rule's backward pass works in.
    pub(super) fn delta_backward_scratch(&self) -> [Value<A>; 2] {
        let gates = || [(); 2].map(|()| self.alloc(self.of_value_heads()));
        if self.model.paged {
            let _prepared = self.prepared();
            let chunks = Chunks::of(self.delta_net(), self.pass);
            // Forwards and backwards: the state before or behind each chunk, and what its tokens write or its gradient.
            let _scans =
                [(); 2].map(|()| [chunks.state, chunks.values].map(|bytes| self.alloc(bytes)));
            let _read = self.alloc(self.of_value_heads());
            return gates();
        }
        let gates = gates();
        let chunks = self.pass.longest.div_ceil(CHUNK);
        let states = (chunks + 1) * self.delta_state();
        let heads = self.delta_net().num_key_heads;
        self.transient(self.tasks(heads) * (states + 2 * self.chunk()));
        gates
    }

    /// On a device: what a chunk's tokens are to each other, twice; sums of decays; lengths of queries and keys.
    fn prepared(&self) -> [Value<A>; 4] {
        let sizes = self.delta_net();
        let square = Chunks::of(sizes, self.pass).square;
        let lengths = 8 * self.pass.tokens * sizes.num_key_heads as u64;
        [square, square, self.of_value_heads(), lengths].map(|bytes| self.alloc(bytes))
    }

    /// The state of one value head.
    fn delta_state(&self) -> u64 {
        let sizes = self.delta_net();
        4 * (sizes.key_head_dim * sizes.value_head_dim) as u64
    }

    /// What a task of the processor has of a chunk at a time, with what its gradients take.
    fn chunk(&self) -> u64 {
        let (c, sizes) = (CHUNK, self.delta_net());
        4 * c * (3 * sizes.key_head_dim as u64 + 4 * sizes.value_head_dim as u64 + 2 * c)
    }

    /// Heads of documents that are computed at a time.
    fn tasks(&self, heads: usize) -> u64 {
        let documents = self.pass.tokens.div_ceil(self.pass.longest.max(1));
        self.model.threads().min(documents * heads as u64)
    }

    /// The forward pass over chunks: products with the state and within a chunk.
    pub(super) fn delta_flops(&self) -> u64 {
        let (c, sizes) = (CHUNK, self.delta_net());
        let (key, value) = (sizes.key_head_dim as u64, sizes.value_head_dim as u64);
        let of_token = 6 * key * value + 4 * c * key + 3 * c * value;
        self.pass.tokens * sizes.num_value_heads as u64 * of_token
    }
}
