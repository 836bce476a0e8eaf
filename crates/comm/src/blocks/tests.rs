use std::ops::Range;
use std::thread;

use proptest::prelude::*;

use super::{Additions, BlockSums, Tree, added, blocks_of, deal, remaining};
use crate::world::tests::together;
use crate::{Alone, Engine};

/// As the head of the module says it.
fn sum(blocks: &[Vec<f32>]) -> Vec<f32> {
    if let [only] = blocks {
        return only.clone();
    }
    let mut half = 1;
    while half * 2 < blocks.len() {
        half *= 2;
    }
    let (left, right) = blocks.split_at(half);
    let pairs = sum(left).into_iter().zip(sum(right));
    pairs.map(|(left, right)| left + right).collect()
}

fn of_rank(engine: &mut dyn Engine, blocks: &[Vec<f32>]) -> Vec<f32> {
    let length = blocks[0].len();
    let mut sums = BlockSums::new(engine.rank(), engine.size(), blocks.len(), length);
    for block in sums.range() {
        sums.push(blocks[block].clone());
    }
    sums.finish(engine).unwrap()
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// Numbers whose sums depend on their order: of any size, some zero, some infinite.
fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => (-1.0_f32..1.0, -20..20_i32).prop_map(|(x, e)| x * 2_f32.powi(e)),
        1 => Just(0.0),
        1 => Just(-0.0),
        1 => Just(f32::INFINITY),
    ]
}

fn gradients() -> impl Strategy<Value = Vec<Vec<f32>>> {
    (1..=17_usize, 0..=33_usize).prop_flat_map(|(blocks, length)| {
        let gradient = proptest::collection::vec(number(), length);
        proptest::collection::vec(gradient, blocks)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_number_of_ranks_has_the_bits_of_the_tree(blocks in gradients()) {
        let expected = bits(&sum(&blocks));
        prop_assert_eq!(&bits(&of_rank(&mut Alone, &blocks)), &expected);
        for size in [1, 2, 3, 4, 8] {
            let found = together(size, |world| {
                let mut engine = world.store_engine().unwrap();
                let found = of_rank(&mut *engine, &blocks);
                world.leave().unwrap();
                found
            });
            for found in found {
                prop_assert_eq!(&bits(&found), &expected, "{} ranks", size);
            }
        }
    }

    /// As a kernel adds them, which has the sums of all ranks before it.
    #[test]
    fn additions_have_the_bits_of_the_tree(blocks in gradients(), size in 1..9_usize) {
        let Additions { sums, pairs } = Additions::of(size, blocks.len());
        let mut left = Vec::new();
        for (rank, sums) in sums.iter().enumerate() {
            let mut tree = Tree::default();
            for block in blocks_of(rank, size, blocks.len()) {
                tree.push((block, 1), blocks[block].clone(), added);
            }
            let of_rank = tree.into_sums();
            prop_assert_eq!(of_rank.len(), *sums);
            if size == 1 {
                let length = blocks[0].len();
                let again = BlockSums::of_sums((0, 1), blocks.len(), length, of_rank.clone());
                prop_assert_eq!(bits(&again.finish(&mut Alone).unwrap()), bits(&sum(&blocks)));
            }
            left.extend(of_rank);
        }
        prop_assert_eq!(pairs.len(), left.len() - 1);
        for [onto, from] in pairs {
            left[onto] = added(left[onto].clone(), left[from].clone());
        }
        prop_assert_eq!(bits(&left[0]), bits(&sum(&blocks)));
    }

    #[test]
    fn every_micro_batch_is_dealt_once(costs in proptest::collection::vec(0..1000_u64, 0..40), blocks in 1..9_usize) {
        let dealt = deal(&costs, blocks);
        let mut all: Vec<usize> = dealt.concat();
        all.sort_unstable();
        prop_assert!(all.iter().copied().eq(0..costs.len()));
        prop_assert!(dealt.iter().all(|of| of.is_sorted()));
        // No block has more than another by more than what one micro-batch costs.
        let sums = dealt.iter().map(|of| of.iter().map(|&i| costs[i]).sum::<u64>());
        let (least, most) = (sums.clone().min().unwrap(), sums.max().unwrap());
        prop_assert!(most - least <= costs.iter().copied().max().unwrap_or(0));
    }

    #[test]
    fn blocks_are_dealt_in_order_and_evenly(size in 1..40_usize, blocks in 1..200_usize) {
        let ranges: Vec<Range<usize>> = (0..size).map(|rank| blocks_of(rank, size, blocks)).collect();
        prop_assert!(ranges.iter().cloned().flatten().eq(0..blocks));
        let (least, most) = (blocks / size, blocks.div_ceil(size));
        prop_assert!(ranges.iter().all(|range| (least..=most).contains(&range.len())));
    }
}

#[test]
fn micro_batches_go_to_the_lightest_block() {
    // As many as blocks: one each, in order.
    assert_eq!(deal(&[5, 5, 5], 3), [[0], [1], [2]]);
    assert_eq!(
        deal(&[1, 9, 2, 8, 3], 2),
        [[0, 1, 2].to_vec(), [3, 4].to_vec()]
    );
    // A short last step leaves a block without any; free ones are spread too.
    assert_eq!(deal(&[4], 2), [vec![0], vec![]]);
    assert_eq!(deal(&[0, 0, 0, 0], 2), [[0, 2], [1, 3]]);
}

/// What a sum in the order of the ranks would give differs: the test above can fail.
#[test]
fn the_order_of_a_sum_shows_in_its_bits() {
    let blocks: Vec<Vec<f32>> = [1e8, 1.0, -1e8, 1.0].map(|x| vec![x]).to_vec();
    let in_order = blocks.iter().fold(0.0, |sum, block| sum + block[0]);
    assert_eq!((sum(&blocks), in_order), (vec![0.0], 1.0));
}

#[test]
fn powers_of_two_leave_one_sum_each() {
    for (size, blocks) in [(1, 8), (2, 8), (4, 8), (8, 8), (3, 6), (5, 20)] {
        for rank in 0..size {
            let left = remaining(blocks_of(rank, size, blocks));
            let one = blocks / size;
            if one.is_power_of_two() {
                assert_eq!(
                    left,
                    [(rank * one, one)],
                    "{rank} of {size}, {blocks} blocks"
                );
            }
        }
    }
    // A rank without a block, and one with a block that fits no other of its own.
    assert_eq!(remaining(blocks_of(0, 4, 3)), []);
    assert_eq!(remaining(blocks_of(1, 3, 8)), [(2, 2), (4, 1)]);
}

#[test]
fn many_numbers_go_in_pieces() {
    // Three pieces of 4 MiB to each other rank.
    let length = 2 * 2_200_000;
    let block = |seed: u32| {
        let mut state = seed;
        let next = move |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 1e3
        };
        (0..length).map(next).collect::<Vec<f32>>()
    };
    let blocks: Vec<_> = (0..3).map(block).collect();
    let expected = thread::spawn({
        let blocks = blocks.clone();
        move || bits(&sum(&blocks))
    });
    let found = together(2, |world| {
        let mut engine = world.store_engine().unwrap();
        let found = of_rank(&mut *engine, &blocks);
        world.leave().unwrap();
        found
    });
    let expected = expected.join().unwrap();
    assert!(found.iter().all(|found| bits(found) == expected));
}
