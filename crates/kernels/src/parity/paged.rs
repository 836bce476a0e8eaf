//! Attention over a pool of rows.

use burn::tensor::{Tensor, TensorData};

use super::places::{Place, places, random};
use crate::attention::HeadLayout;
use crate::paged_attention::{self, Places};

const ROWS: usize = 512;

/// Rows of a pool for sequences of (past, new) tokens, no two alike and in no order.
fn scattered(lengths: &[(usize, usize)]) -> Vec<(Vec<u32>, usize)> {
    // 5 and 512 have no common divisor.
    let mut next = (0..ROWS as u32).map(|i| (i * 5 + 3) % ROWS as u32);
    let rows = |&(past, new): &(usize, usize)| (next.by_ref().take(past + new).collect(), new);
    lengths.iter().map(rows).collect()
}

fn check(place: &Place, lengths: &[(usize, usize)], layout: HeadLayout) {
    let sequences = scattered(lengths);
    let t = lengths.iter().map(|(_, new)| new).sum();
    let width = layout.kv_heads * layout.head_dim;
    let q = random([t, layout.heads * layout.head_dim]);
    let pools = [random([ROWS, width]), random([ROWS, width])];
    let new = [random([t, width]), random([t, width])];

    let here = Places::new(&sequences, &Place::cpu().device);
    let exact = [0, 1].map(|i| {
        let (pool, new) = (place.round(&pools[i]), place.round(&new[i]));
        let mut values = pool.into_data().try_into_vec::<f32>().unwrap();
        let new = new.into_data().try_into_vec::<f32>().unwrap();
        let rows = (sequences.iter()).flat_map(|(rows, new)| &rows[rows.len() - new..]);
        for (&row, new) in rows.zip(new.chunks(width)) {
            values[row as usize * width..][..width].copy_from_slice(new);
        }
        Tensor::<2>::from_data(TensorData::new(values, [ROWS, width]), &Place::cpu().device)
    });
    let there = Places::new(&sequences, &place.device);
    let written =
        [0, 1].map(|i| paged_attention::write(place.put(&pools[i]), place.put(&new[i]), &there));
    for (written, exact) in written.iter().zip(&exact) {
        place.assert_close("pool", written.clone(), exact.clone());
    }
    let out = paged_attention::forward(&place.put(&q), written.each_ref(), &there, layout);
    let expected =
        paged_attention::reference::forward(&place.round(&q), exact.each_ref(), &here, layout);
    place.assert_close("output", out, expected);
}

#[test]
fn attention_over_scattered_rows_on_every_device() {
    let lengths: [&[(usize, usize)]; 4] = [
        &[(0, 1)],
        &[(69, 1), (0, 1), (5, 1)],
        &[(0, 70), (3, 1), (100, 7)],
        &[(64, 64), (130, 1)],
    ];
    for place in places() {
        for layout in [
            HeadLayout::new(1, 1, 2),
            HeadLayout::new(9, 3, 64),
            HeadLayout::new(4, 2, 16).with_window(7),
            HeadLayout {
                softcap: Some(1.5),
                window: Some(33),
                ..HeadLayout::new(2, 1, 64)
            },
        ] {
            for lengths in lengths {
                check(place, lengths, layout);
            }
        }
    }
}
