use proptest::prelude::*;

use super::shares::{Chunk, of_at_most};
use super::{Moves, Piece, padded};

/// Buffers of each process: its messages, then the scratch memory.
type Buffers = Vec<Vec<Vec<f32>>>;

/// Moves everything at once, as an engine does: pieces from one process to another arrive in the order in which they were sent.
fn exchange(buffers: &mut Buffers, moves: &[Moves]) {
    let size = moves.len();
    let mut under_way = vec![Vec::new(); size * size];
    for (rank, moves) in moves.iter().enumerate() {
        for piece in &moves.send {
            let Piece {
                peer,
                buffer,
                start,
                count,
            } = *piece;
            let values = buffers[rank][buffer][start..start + count].to_vec();
            under_way[rank * size + peer].push(values);
        }
    }
    for (rank, moves) in moves.iter().enumerate() {
        for piece in &moves.receive {
            let Piece {
                peer,
                buffer,
                start,
                count,
            } = *piece;
            let values = under_way[peer * size + rank].remove(0);
            buffers[rank][buffer][start..start + count].copy_from_slice(&values);
        }
    }
    assert!(under_way.iter().all(Vec::is_empty), "a piece nobody takes");
}

fn of_chunk(buffers: &mut Buffers, chunk: &Chunk, (sums, pairs): (&[usize], &[[usize; 2]])) {
    let size = sums.len();
    let scatter: Vec<Moves> = (0..size)
        .map(|rank| Moves::scatter(chunk, sums, rank))
        .collect();
    exchange(buffers, &scatter);
    for (rank, buffers) in buffers.iter_mut().enumerate() {
        let share = chunk.shares[rank].clone();
        let width = share.len();
        let scratch = buffers.last_mut().unwrap();
        for &[onto, from] in pairs {
            for i in 0..width {
                scratch[onto * width + i] += scratch[from * width + i];
            }
        }
        let sum = scratch[..width].to_vec();
        buffers[0][share].copy_from_slice(&sum);
    }
    let gather: Vec<Moves> = (0..size).map(|rank| Moves::gather(chunk, rank)).collect();
    exchange(buffers, &gather);
}

proptest! {
    #[test]
    fn every_process_has_the_sum_of_all(
        sums in proptest::collection::vec(1..4_usize, 1..6),
        length in 1..200_usize,
        most in 1..30_usize,
        seed: u32,
    ) {
        let length = padded(length);
        let rows: usize = sums.iter().sum();
        // From the left, but the last two first.
        let mut pairs: Vec<[usize; 2]> = (1..rows).map(|row| [0, row]).collect();
        if let Some(last) = pairs.last_mut().filter(|_| rows > 2) {
            *last = [rows - 2, rows - 1];
            let before = pairs.len() - 2;
            pairs.swap(before, before + 1);
        }
        let mut state = seed;
        let mut number = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (f64::from(state) / 1e9 - 2.0).powi(15) as f32
        };
        let mut buffers: Buffers = sums
            .iter()
            .map(|&sums| {
                let mut mine: Vec<Vec<f32>> = (0..sums)
                    .map(|_| (0..length).map(|_| number()).collect())
                    .collect();
                mine.push(vec![f32::NAN; rows * length]);
                mine
            })
            .collect();
        let all = buffers.iter().flat_map(|mine| &mine[..mine.len() - 1]);
        let mut all: Vec<Vec<f32>> = all.cloned().collect();
        for &[onto, from] in &pairs {
            let from = all[from].clone();
            for (onto, from) in all[onto].iter_mut().zip(from) {
                *onto += from;
            }
        }
        for chunk in of_at_most(most * 4, length, sums.len()) {
            of_chunk(&mut buffers, &chunk, (&sums, &pairs));
        }
        for mine in &buffers {
            prop_assert_eq!(&mine[0], &all[0]);
        }
    }
}
