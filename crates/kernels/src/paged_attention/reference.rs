//! [`paged_attention`](super) in plain tensors: rows gathered, scores materialised.

use burn::tensor::Tensor;

use super::{Places, gathered};
use crate::attention::{self, HeadLayout};

/// As [`forward`](super::forward).
pub fn forward(
    q: &Tensor<2>,
    pool: [&Tensor<2>; 2],
    places: &Places,
    layout: HeadLayout,
) -> Tensor<2> {
    let qkv = gathered(q, pool, places);
    attention::reference::forward(&qkv, &places.segments, layout).0
}
