use backdraft_formats::AdapterPrefix;

use super::*;

/// A module's name, the shape of its weight, A and B.
type Module<'a> = (&'a str, [usize; 2], &'a [f32], &'a [f32]);

/// An adapter of one module per entry: A `[r, in]` and B `[out, r]`.
fn adapter(name: &str, alpha: f64, modules: &[Module<'_>]) -> PeftDir {
    let pairs = modules.iter().map(|(module, [out, input], a, b)| LoraPair {
        module: format!("model.layers.0.self_attn.{module}"),
        in_features: *input,
        out_features: *out,
        lora_a: a.to_vec(),
        lora_b: b.to_vec(),
        magnitude: None,
    });
    let tensors: AdapterTensors = pairs.collect();
    let rank = tensors.iter().map(LoraPair::rank).max().unwrap();
    let names = modules.iter().map(|(module, ..)| *module);
    let mut config = PeftConfig::new(rank, alpha, names);
    config.base_model_name_or_path = Some("org/base".to_owned());
    PeftDir {
        path: name.into(),
        prefix: AdapterPrefix::Text,
        config,
        tensors,
    }
}

fn options(combination: Combination, weights: &[f64]) -> CombineOptions {
    CombineOptions {
        combination,
        weights: weights.to_vec(),
        density: None,
        majority_sign: MajoritySign::Total,
        svd_rank: None,
        seed: 42,
    }
}

/// s·B·A of a module.
fn product(config: &PeftConfig, pair: &LoraPair) -> Vec<f64> {
    let (rank, scaling) = (pair.rank(), config.scaling_of(&pair.module));
    let entry = |row: usize, column: usize| {
        let inner = (0..rank).map(|k| {
            f64::from(pair.lora_b[row * rank + k])
                * f64::from(pair.lora_a[k * pair.in_features + column])
        });
        scaling * inner.sum::<f64>()
    };
    let rows = (0..pair.out_features).flat_map(|row| (0..pair.in_features).map(move |c| (row, c)));
    rows.map(|(row, column)| entry(row, column)).collect()
}

fn close(found: &[f64], expected: &[f64], within: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < within, "{found} for {expected}");
    }
}

/// Numbers without a pattern.
fn noise(count: usize, seed: usize) -> Vec<f32> {
    let value = |at: usize| ((at * 7919 + seed * 104_729 + 13) as f32 * 0.37).sin();
    (0..count).map(value).collect()
}

fn pair_of(tensors: &AdapterTensors) -> &LoraPair {
    tensors.iter().next().unwrap()
}

/// Two adapters of rank 2 and 3 on a weight of 5 × 4, of scales 2 and 1/3; the second has a module more.
fn two() -> [PeftDir; 2] {
    let [a, b, c, d] = [(8, 1), (10, 2), (12, 3), (15, 4)].map(|(n, seed)| noise(n, seed));
    [
        adapter("first", 4.0, &[("q_proj", [5, 4], &a, &b)]),
        adapter(
            "second",
            1.0,
            &[("q_proj", [5, 4], &c, &d), ("v_proj", [5, 4], &c, &d)],
        ),
    ]
}

#[test]
fn cat_and_svd_give_the_weighted_sum() {
    let adapters = two();
    let expected: Vec<f64> = {
        let [first, second] = &adapters;
        let module = "model.layers.0.self_attn.q_proj";
        let of = |it: &PeftDir| product(&it.config, it.tensors.get(module).unwrap());
        let both = of(first).into_iter().zip(of(second));
        both.map(|(a, b)| 0.7 * a - 0.4 * b).collect()
    };
    for (combination, svd_rank, rank) in [
        (Combination::Cat, None, 5),
        (Combination::Svd, Some(5), 5),
        (Combination::Svd, Some(4), 4),
    ] {
        let options = CombineOptions {
            svd_rank,
            ..options(combination, &[0.7, -0.4])
        };
        let (config, tensors) = combine(&adapters, &options).unwrap();
        assert_eq!(
            (config.r, config.lora_alpha, tensors.len()),
            (rank, rank as f64, 2)
        );
        close(&product(&config, pair_of(&tensors)), &expected, 1e-6);
        assert_eq!(combine(&adapters, &options).unwrap().1, tensors);
    }
    // Of a lower rank, the rest is orthogonal to what is kept, and A has orthonormal rows.
    let (config, tensors) = combine(&adapters, &options(Combination::Svd, &[0.7, -0.4])).unwrap();
    assert_eq!(config.r, 3);
    let pair = pair_of(&tensors);
    let found = product(&config, pair);
    let rest: f64 = expected.iter().zip(&found).map(|(a, b)| (a - b) * b).sum();
    assert!(rest.abs() < 1e-6, "{rest}");
    for i in 0..3 {
        for j in 0..3 {
            let row = |i: usize| &pair.lora_a[4 * i..4 * i + 4];
            let dot: f32 = row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum();
            let one = if i == j { 1.0 } else { 0.0 };
            assert!((dot - one).abs() < 1e-6, "{i} {j}: {dot}");
        }
    }
}

#[test]
fn linear_weighs_both_factors_by_the_root() {
    // Scales 4 and 1; weights 1 and -0.25.
    let first = adapter("a", 4.0, &[("q_proj", [2, 2], &[1.0, 2.0], &[3.0, -1.0])]);
    let second = adapter("b", 1.0, &[("q_proj", [2, 2], &[4.0, 0.0], &[2.0, 2.0])]);
    let (config, tensors) = combine(
        &[first, second],
        &options(Combination::Linear, &[1.0, -0.25]),
    )
    .unwrap();
    let pair = pair_of(&tensors);
    // The sign of the second goes with A.
    assert_eq!(pair.lora_a, [2.0 - 2.0, 4.0]);
    assert_eq!(pair.lora_b, [6.0 + 1.0, -2.0 + 1.0]);
    assert_eq!((config.r, config.scaling()), (1, 1.0));
    assert_eq!(config.base_model_name_or_path.as_deref(), Some("org/base"));
}

/// Three adapters of scale 1 whose A is the row given, B one.
fn rows(rows: [&[f32]; 3]) -> [PeftDir; 3] {
    let mut name = 'a';
    rows.map(|row| {
        name = char::from(name as u8 + 1);
        adapter(
            &name.to_string(),
            1.0,
            &[("q_proj", [1, row.len()], row, &[1.0])],
        )
    })
}

/// Worked by hand from PEFT's `merge_utils.py`.
#[test]
fn ties_keeps_the_largest_and_the_sign_that_prevails() {
    let adapters = rows([
        &[3.0, -1.0, 0.5, 2.0],
        &[-1.0, -4.0, 3.0, 0.25],
        &[-1.5, 2.0, -5.0, 1.0],
    ]);
    let run = |majority_sign, weights: &[f64]| {
        let options = CombineOptions {
            density: Some(0.5),
            majority_sign,
            ..options(Combination::Ties, weights)
        };
        let (_, tensors) = combine(&adapters, &options).unwrap();
        pair_of(&tensors).lora_a.clone()
    };
    // Kept: [3, ., ., 2], [., -4, 3, .], [., 2, -5, .].
    assert_eq!(run(MajoritySign::Total, &[1.0; 3]), [3.0, -4.0, -5.0, 2.0]);
    // One against one: signs that add to zero count as positive.
    assert_eq!(
        run(MajoritySign::Frequency, &[1.0; 3]),
        [3.0, 2.0, 3.0, 2.0]
    );
    // A weight of 4 counts twice in A; signs are elected before.
    assert_eq!(
        run(MajoritySign::Total, &[4.0, 1.0, 1.0]),
        [6.0, -4.0, -5.0, 4.0]
    );
    // All are kept: the mean of those that agree.
    let all = CombineOptions {
        density: Some(1.0),
        ..options(Combination::Ties, &[1.0; 3])
    };
    let (_, tensors) = combine(&adapters, &all).unwrap();
    let pair = pair_of(&tensors);
    assert_eq!(pair.lora_a, [3.0, -2.5, -5.0, 3.25 / 3.0]);
    let pruned = CombineOptions {
        combination: Combination::MagnitudePrune,
        density: Some(0.5),
        ..all
    };
    let (_, tensors) = combine(&adapters, &pruned).unwrap();
    assert_eq!(pair_of(&tensors).lora_a, [3.0, -2.0, -2.0, 2.0]);
}

#[test]
fn dare_keeps_a_share_by_chance_and_makes_up_for_it() {
    let ones = vec![1.0; 4000];
    let adapters = rows([&ones, &ones, &ones]);
    let run = |combination, seed, density| {
        let options = CombineOptions {
            density: Some(density),
            seed,
            ..options(combination, &[1.0; 3])
        };
        let (_, tensors) = combine(&adapters, &options).unwrap();
        pair_of(&tensors).lora_a.clone()
    };
    let linear = run(Combination::DareLinear, 1, 0.25);
    assert!(
        linear
            .iter()
            .all(|value| [0.0, 4.0, 8.0, 12.0].contains(value))
    );
    let mean = linear.iter().sum::<f32>() / 4000.0;
    assert!((mean - 3.0).abs() < 0.15, "{mean}");
    assert_eq!(linear, run(Combination::DareLinear, 1, 0.25));
    assert_ne!(linear, run(Combination::DareLinear, 2, 0.25));
    // The mean of those that are kept.
    let ties = run(Combination::DareTies, 1, 0.25);
    for (tied, sum) in ties.iter().zip(&linear) {
        assert_eq!(*tied, if *sum > 0.0 { 4.0 } else { 0.0 });
    }
    assert_eq!(run(Combination::DareLinear, 1, 1.0), vec![3.0; 4000]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let said = |adapters: &[PeftDir], options: &CombineOptions| {
        combine(adapters, options).unwrap_err().to_string()
    };
    let adapters = two();
    let linear = options(Combination::Linear, &[1.0, 1.0]);
    let error = said(&adapters, &linear);
    assert!(
        error.contains("linear adds factors of the same rank"),
        "{error}"
    );
    assert!(
        error.contains("q_proj` are of 2 in first, of 3 in second"),
        "{error}"
    );
    let error = said(&adapters, &options(Combination::Cat, &[1.0]));
    assert!(error.contains("2 adapters and 1 weights"), "{error}");
    let error = said(&adapters, &options(Combination::Ties, &[1.0, 1.0]));
    assert!(
        error.contains("ties takes a density above 0 and at most 1"),
        "{error}"
    );
    let with = CombineOptions {
        density: Some(0.5),
        ..linear
    };
    assert_eq!(said(&adapters, &with), "linear has no density");
    let other = adapter("third", 1.0, &[("q_proj", [5, 3], &[1.0; 3], &[1.0; 5])]);
    let [first, _] = two();
    let error = said(
        &[first.clone(), other],
        &options(Combination::Cat, &[1.0, 1.0]),
    );
    assert!(
        error.contains("is [5, 4] in first, [5, 3] in third"),
        "{error}"
    );
    let mut rewards = first.clone();
    rewards.config.modules_to_save = vec!["score".to_owned()];
    let both = options(Combination::Cat, &[1.0, 1.0]);
    let error = said(&[first.clone(), rewards], &both);
    assert!(
        error.contains("first: the adapter is of a reward model"),
        "{error}"
    );
    assert!(!error.contains("merge it"), "{error}");
    let broken = adapter("broken", 1.0, &[("q_proj", [1, 1], &[f32::NAN], &[1.0])]);
    let error = said(&[broken], &options(Combination::Cat, &[1.0]));
    assert!(error.contains("broken: the factors of"), "{error}");
    let error = said(&[first], &options(Combination::Cat, &[f64::NAN]));
    assert!(error.contains("finite"), "{error}");
}
