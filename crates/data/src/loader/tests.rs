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
