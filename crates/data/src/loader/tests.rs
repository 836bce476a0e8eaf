use super::*;
use proptest::prelude::*;

#[test]
fn the_order_of_a_seed_never_changes() {
    // Computed outside this project from the definition of SplitMix64.
    let order = |rows, seed, epoch| Loader::new(rows, 1, 1, seed, true).unwrap().order_of(epoch);
    assert_eq!(order(10, 42, 0), [4, 9, 8, 7, 3, 6, 5, 2, 1, 0]);
    assert_eq!(order(10, 42, 1), [7, 0, 2, 4, 3, 8, 9, 5, 6, 1]);
    assert_eq!(order(10, 3407, 0), [5, 1, 4, 0, 2, 7, 3, 9, 6, 8]);
    let many = order(100_000, 42, 7);
    assert_eq!(many[..6], [27_794, 92_615, 56_151, 9_309, 28_809, 46_324]);
    let sum: usize = many
        .iter()
        .enumerate()
        .map(|(place, row)| (place + 1) * row)
        .sum();
    assert_eq!(sum, 250_182_283_232_199);
}

#[test]
fn deals_steps_of_micro_batches_and_keeps_the_last_partial_one() {
    let mut loader = Loader::new(7, 2, 2, 0, false).unwrap();
    assert_eq!(loader.steps_per_epoch(), 2);
    assert_eq!(loader.next_step(), [vec![0, 1], vec![2, 3]]);
    assert_eq!(
        loader.state(),
        LoaderState {
            epoch: 0,
            cursor: 4
        }
    );
    assert_eq!(loader.next_step(), [vec![4, 5], vec![6]]);
    assert_eq!(
        loader.state(),
        LoaderState {
            epoch: 1,
            cursor: 0
        }
    );
    assert_eq!(loader.next_step(), [vec![0, 1], vec![2, 3]]);
    assert_eq!(loader.steps_done(), 3);
    let mut large = Loader::new(3, usize::MAX, usize::MAX, 0, false).unwrap();
    assert_eq!(large.next_step(), [vec![0, 1, 2]]);
}

#[test]
fn refuses_zeros_and_foreign_states() {
    for (rows, micro, accumulation) in [(0, 1, 1), (1, 0, 1), (1, 1, 0)] {
        assert!(Loader::new(rows, micro, accumulation, 0, true).is_err());
    }
    let mut loader = Loader::new(7, 2, 2, 0, true).unwrap();
    for cursor in [1, 3, 7, 8, usize::MAX] {
        let error = loader.restore(LoaderState { epoch: 0, cursor });
        assert!(matches!(error, Err(DataError::LoaderState { .. })));
    }
    let json = serde_json::to_string(&LoaderState {
        epoch: 2,
        cursor: 4,
    })
    .unwrap();
    assert_eq!(json, r#"{"epoch":2,"cursor":4}"#);
}

#[test]
fn another_epoch_of_weighted_rows_may_have_more_packs() {
    let lengths = vec![1, 4, 1, 6, 1];
    let batching = Batching::Packed { max_seq_length: 10 };
    for seed in 0..50 {
        let options = LoaderOptions {
            seed,
            ..options(batching, &[(2, 1.0), (3, 0.3)])
        };
        let mut loader = Loader::with_options(lengths.clone(), options).unwrap();
        let largest = loader.largest_micro_batch().len();
        while loader.state().epoch < 8 {
            for rows in loader.next_step() {
                let tokens: u32 = rows.iter().map(|row| lengths[*row]).sum();
                assert!(tokens as usize <= 10 * largest, "seed {seed}");
            }
        }
    }
}

proptest! {
    #[test]
    fn every_epoch_visits_every_row_once(rows in 1usize..60, micro in 1usize..9, accumulation in 1usize..5, seed: u64) {
        let mut loader = Loader::new(rows, micro, accumulation, seed, true).unwrap();
        for epoch in 0..3 {
            let mut seen: Vec<usize> = (0..loader.steps_per_epoch())
                .flat_map(|_| loader.next_step().concat())
                .collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..rows));
            prop_assert_eq!(loader.state(), LoaderState { epoch: epoch + 1, cursor: 0 });
        }
    }

    #[test]
    fn a_restored_loader_goes_on_as_if_never_stopped(
        rows in 1usize..60, micro in 1usize..9, accumulation in 1usize..5, seed: u64, steps in 0usize..40,
    ) {
        let mut loader = Loader::new(rows, micro, accumulation, seed, true).unwrap();
        for _ in 0..steps {
            loader.next_step();
        }
        let mut restored = Loader::new(rows, micro, accumulation, seed, true).unwrap();
        restored.restore(loader.state()).unwrap();
        prop_assert_eq!(restored.steps_done(), steps as u64);
        for _ in 0..10 {
            prop_assert_eq!(restored.next_step(), loader.next_step());
        }
    }
}

fn options(batching: Batching, sources: &[(usize, f64)]) -> LoaderOptions {
    LoaderOptions {
        micro_batch_size: 2,
        grad_accumulation_steps: 2,
        seed: 42,
        shuffle: true,
        batching,
        sources: sources.iter().copied().map(SourceShare::from).collect(),
    }
}

const PACKED: Batching = Batching::Packed { max_seq_length: 10 };

#[test]
fn packed_steps_are_the_same_for_a_seed() {
    let lengths = vec![5, 7, 5, 2, 4, 2, 5, 1, 10, 3];
    let mut loader = Loader::with_options(lengths.clone(), options(PACKED, &[])).unwrap();
    let density = loader.density().unwrap();
    assert_eq!(
        density,
        Density {
            rows: 10,
            packs: 5,
            micro_batches: 3,
            tokens: 44,
            places: 50
        }
    );
    assert_eq!((loader.steps_per_epoch(), density.wasted()), (2, 6));
    let steps: Vec<_> = (0..4).map(|_| loader.next_step()).collect();
    let mut again = Loader::with_options(lengths.clone(), options(PACKED, &[])).unwrap();
    assert_eq!(steps, (0..4).map(|_| again.next_step()).collect::<Vec<_>>());
    // Two packs of each micro-batch hold at most 20 tokens; epochs differ.
    for rows in steps.iter().flatten() {
        assert!(rows.iter().map(|row| lengths[*row]).sum::<u32>() <= 20);
    }
    assert_ne!(steps[..2], steps[2..]);
    let unshuffled = LoaderOptions {
        shuffle: false,
        ..options(PACKED, &[])
    };
    let mut loader = Loader::with_options(vec![4, 6, 5, 5, 9], unshuffled).unwrap();
    assert_eq!(loader.next_step(), [vec![1, 0, 2, 3], vec![4]]);
}

#[test]
fn weights_say_how_often_rows_are_visited() {
    let sources = [(4, 2.0), (6, 0.5), (3, 1.0)];
    let padding_free = options(Batching::PaddingFree, &sources);
    let mut loader = Loader::with_options(vec![1; 13], padding_free).unwrap();
    let mut halves = Vec::new();
    for _ in 0..6 {
        let epoch: Vec<usize> = (0..loader.steps_per_epoch())
            .flat_map(|_| loader.next_step().concat())
            .collect();
        assert_eq!(epoch.len(), 8 + 3 + 3);
        let count = |row| epoch.iter().filter(|other| **other == row).count();
        assert!((0..4).all(|row| count(row) == 2));
        assert!((10..13).all(|row| count(row) == 1));
        let half: Vec<usize> = (4..10).filter(|row| count(*row) == 1).collect();
        assert_eq!(half.len(), 3);
        halves.push(half);
    }
    halves.dedup();
    assert!(halves.len() > 1, "each epoch has other rows");
}

#[test]
fn rows_of_like_length_come_together() {
    let lengths: Vec<u32> = (0..1000).map(|row| 1 + row * 7919 % 97).collect();
    let density = |batching| {
        let loader = Loader::with_options(lengths.clone(), options(batching, &[])).unwrap();
        loader.density().unwrap()
    };
    let grouped = density(Batching::LengthGrouped);
    assert_eq!(
        grouped.tokens,
        lengths.iter().map(|length| u64::from(*length)).sum::<u64>()
    );
    assert!(grouped.density() > 0.97, "{}", grouped.density());
    assert_eq!(density(Batching::PaddingFree).wasted(), 0);
    assert!(Loader::new(3, 1, 1, 0, true).unwrap().density().is_none());
}

#[test]
fn refuses_rows_and_sources_that_do_not_fit() {
    let message = |lengths: &[u32], sources: &[(usize, f64)]| {
        Loader::with_options(lengths.to_vec(), options(PACKED, sources))
            .unwrap_err()
            .to_string()
    };
    insta::assert_snapshot!(message(&[11], &[]), @"max_seq_length: expected at least 11, as the longest row has, found 10");
    insta::assert_snapshot!(message(&[1, 1], &[(1, 1.0)]), @"sources: expected 2 rows in all, found 1");
    insta::assert_snapshot!(message(&[1, 1], &[(2, 0.0)]), @"weight: expected a number above 0 and at most 1000, found 0");
    insta::assert_snapshot!(message(&[1, 1], &[(2, 0.1)]), @"weight: expected weights that visit some rows, found none");
    insta::assert_snapshot!(message(&[], &[]), @"rows: expected at least 1, found 0");
}

#[test]
fn rows_in_turn_all_come_before_one_comes_again_and_epochs_go_on_from_each_other() {
    for (rows, weight, epochs) in [(10, 0.3, 7), (7, 1.0 / 3.0, 9), (4, 2.5, 3), (5, 0.2, 11)] {
        let share = |rows, weight, in_turn| SourceShare {
            rows,
            weight,
            in_turn,
        };
        let options = LoaderOptions {
            sources: vec![share(6, 1.0, false), share(rows, weight, true)],
            ..options(Batching::PaddingFree, &[])
        };
        let mut loader = Loader::with_options(vec![1; 6 + rows], options.clone()).unwrap();
        let visits = options.sources[1].visits();
        let mut counts = vec![0usize; rows];
        for epoch in 0..epochs {
            let mut seen = Vec::new();
            while loader.state().epoch == epoch {
                seen.extend(loader.next_step().concat());
            }
            assert_eq!(seen.len(), 6 + visits);
            let ours = seen.iter().filter_map(|row| row.checked_sub(6));
            ours.for_each(|row| counts[row] += 1);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{counts:?} after epoch {epoch}");
            // Where it stands is all that a loader needs to go on.
            let mut again = Loader::with_options(vec![1; 6 + rows], options.clone()).unwrap();
            again.restore(loader.state()).unwrap();
            assert_eq!(again.order, loader.order);
        }
        assert_eq!(counts.iter().sum::<usize>(), visits * epochs as usize);
    }
}

fn any_batching() -> impl Strategy<Value = Batching> {
    prop_oneof![
        Just(Batching::PaddingFree),
        Just(PACKED),
        Just(Batching::LengthGrouped),
    ]
}

proptest! {
    #[test]
    fn every_way_of_batching_visits_every_row_once(lengths in proptest::collection::vec(1u32..11, 1..60), batching in any_batching(), shuffle: bool, seed: u64) {
        let all = LoaderOptions { shuffle, seed, ..options(batching, &[]) };
        let mut loader = Loader::with_options(lengths.clone(), all).unwrap();
        for epoch in 0..2 {
            let mut seen: Vec<usize> = (0..loader.steps_per_epoch()).flat_map(|_| loader.next_step().concat()).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(0..lengths.len()));
            prop_assert_eq!(loader.state(), LoaderState { epoch: epoch + 1, cursor: 0 });
        }
    }

    #[test]
    fn no_micro_batch_is_larger_than_the_largest(
        lengths in proptest::collection::vec(1u32..11, 2..40), batching in any_batching(), weight in 0.3f64..2.5, weighted: bool, seed: u64,
    ) {
        let half = lengths.len() / 2;
        let weight = if weighted { weight } else { 1.0 };
        let sources = [(half, 1.0), (lengths.len() - half, weight)];
        let options = LoaderOptions { seed, ..options(batching, &sources) };
        let mut loader = Loader::with_options(lengths.clone(), options).unwrap();
        let largest = loader.largest_micro_batch();
        while loader.state().epoch < 3 {
            for rows in loader.next_step() {
                let mut tokens: Vec<usize> = rows.iter().map(|row| lengths[*row] as usize).collect();
                if batching == Batching::LengthGrouped {
                    let longest = tokens.iter().copied().max().unwrap();
                    tokens.fill(longest);
                }
                prop_assert!(tokens.iter().sum::<usize>() <= largest.iter().sum());
                prop_assert!(tokens.iter().max() <= largest.iter().max());
            }
        }
    }

    #[test]
    fn every_way_of_batching_goes_on_from_any_step_and_row(
        lengths in proptest::collection::vec(1u32..11, 1..40), batching in any_batching(), steps in 0usize..20, row in 0usize..40,
    ) {
        let new = || Loader::with_options(lengths.clone(), options(batching, &[])).unwrap();
        let mut loader = new();
        for _ in 0..steps {
            loader.next_step();
        }
        let mut restored = new();
        restored.restore(loader.state()).unwrap();
        prop_assert_eq!(restored.steps_done(), steps as u64);
        for _ in 0..5 {
            prop_assert_eq!(restored.next_step(), loader.next_step());
        }
        // From any row on, exactly the rest of the epoch is seen, in its order.
        let row = row % lengths.len();
        let order = new().order_of(1);
        let mut sought = new();
        sought.seek(LoaderState { epoch: 1, cursor: row }).unwrap();
        let mut rest = Vec::new();
        while sought.state().epoch == 1 {
            rest.extend(sought.next_step().concat());
        }
        prop_assert_eq!(&rest, &order[row..]);
        let before = sought.state();
        let beyond = LoaderState { epoch: 3, cursor: lengths.len() };
        let is_refused = matches!(sought.seek(beyond), Err(DataError::LoaderState { .. }));
        prop_assert!(is_refused);
        prop_assert_eq!(sought.state(), before);
    }
}
