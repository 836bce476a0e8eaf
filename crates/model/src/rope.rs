//! Rotary tables on a device.

use backdraft_arch::{QueryScaling, Reach, RopeConfig};
use backdraft_kernels::rope::RotaryTables;
use burn::tensor::{Device, Tensor, TensorData};

use crate::tokens::Tokens;

/// Cosine and sine for each token of one sequence, or of several of which the longest decides how far all reach.
///
/// # Shapes
/// `position_ids` `[t]`; tables `[t, d / 2]` with d features that turn.
pub fn tables(rope: &RopeConfig, position_ids: &[u32], device: &Device) -> RotaryTables {
    let longest = position_ids
        .iter()
        .max()
        .map_or(0, |last| *last as usize + 1);
    let angles = rope.cos_sin(position_ids, rope.reach(longest));
    on_device(rope, angles, device)
}

/// Cosine and sine for each token of a batch; each sequence reaches as far as it is long.
///
/// # Shapes
/// `[t, d / 2]` with d features that turn.
pub(crate) fn tables_of(rope: &RopeConfig, tokens: &Tokens, device: &Device) -> RotaryTables {
    let reach = |length: &usize| rope.reach(*length);
    if (tokens.lengths.iter()).all(|length| reach(length) == Reach::Original) {
        let angles = rope.cos_sin(&tokens.position_ids, Reach::Original);
        return on_device(rope, angles, device);
    }
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for ((rows, _), length) in tokens.segments.iter().zip(&tokens.lengths) {
        let (c, s) = rope.cos_sin(&tokens.position_ids[rows], reach(length));
        cos.extend(c);
        sin.extend(s);
    }
    on_device(rope, (cos, sin), device)
}

/// Those that turn queries and multiply them by their factors in one; `None` where every factor is 1.
///
/// # Shapes
/// As [`tables`].
pub fn query_tables(
    rope: &RopeConfig,
    scaling: &QueryScaling,
    position_ids: &[u32],
    device: &Device,
) -> Option<RotaryTables> {
    let longest = position_ids.iter().max().map(|last| *last as usize + 1)?;
    if !scaling.reaches(longest) {
        return None;
    }
    let (mut cos, mut sin) = rope.cos_sin(position_ids, rope.reach(longest));
    let width = rope.rotary_dim / 2;
    for table in [&mut cos, &mut sin] {
        for (row, &position) in table.chunks_mut(width).zip(position_ids) {
            let factor = scaling.factor(position) as f32;
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
    Some(on_device(rope, (cos, sin), device))
}

fn on_device(rope: &RopeConfig, (cos, sin): (Vec<f32>, Vec<f32>), device: &Device) -> RotaryTables {
    let half = rope.rotary_dim / 2;
    let [cos, sin] = [cos, sin].map(|table| {
        let shape = [table.len() / half, half];
        Tensor::from_data(TensorData::new(table, shape), device)
    });
    RotaryTables {
        head_dim: rope.head_dim,
        pairs: rope.pairs,
        ..RotaryTables::new(cos, sin)
    }
}
