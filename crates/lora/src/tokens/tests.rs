use backdraft_kernels::cross_entropy;
use burn::optim::GradientsParams;
use burn::tensor::Distribution;

use super::*;

fn random(dims: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), device)
}

fn close(found: Tensor<2>, expected: Tensor<2>) {
    let most = (found - expected).abs().max().into_scalar::<f32>();
    assert!(most < 1e-5, "{most}");
}

const IDS: [u32; 4] = [1, 2, 5, 8];

/// A table of nine tokens, and the same with four rows replaced.
fn tables(device: &Device) -> (TrainedTokens, Weight, Tensor<2>) {
    let (base, rows) = (random([9, 6], device), random([4, 6], device));
    let mut dense = base.clone();
    for (i, id) in IDS.into_iter().enumerate() {
        let id = id as usize;
        let row = rows.clone().slice([i..i + 1, 0..6]);
        dense = dense.slice_assign([id..id + 1, 0..6], row);
    }
    let tokens = TrainedTokens::new(TokenTable::Embedding, &IDS, rows);
    (tokens, Weight::Dense(base), dense)
}

#[test]
fn a_table_with_trained_rows_is_the_dense_one() {
    let device = Device::flex();
    let (tokens, base, dense) = tables(&device);
    let table = tokens.within(&base, DType::F32);
    for ids in [&[8, 0, 1, 1, 3][..], &[0, 3], &[5, 2], &[4, 4, 8]] {
        let found = table.rows(ids, DType::F32);
        let expected = dense.clone().select(0, index(ids, &device));
        assert_eq!(found.into_data(), expected.into_data());
    }
    let (x, dy) = (random([7, 6], &device), random([7, 9], &device));
    let sum = random([7, 9], &device);
    close(table.matmul(&x), FrozenMatrix::matmul(&dense, &x));
    close(
        table.matmul_add(&x, 0.5, Some(&sum)),
        dense.matmul_add(&x, 0.5, Some(&sum)),
    );
    let sum = random([7, 6], &device);
    close(
        table.matmul_transposed_add(&dy, 2.0, Some(sum.clone())),
        dense.matmul_transposed_add(&dy, 2.0, Some(sum)),
    );
    // Rows that nobody trains keep their bits.
    let untouched = TokenMatrix::from(&base);
    let Weight::Dense(base) = base else { panic!() };
    let found = untouched.matmul(&x).into_data();
    assert_eq!(found, FrozenMatrix::matmul(&base, &x).into_data());
}

#[test]
fn gradients_are_those_of_autodiff() {
    let (tokens, base, _) = tables(&Device::flex());
    let tokens = tokens.train();
    let (ids, targets) = ([8u32, 0, 1, 1, 3], [2u32, 8, 0, 1, 5]);
    let table = tokens.within(&base, DType::F32);
    let hidden = table.rows(&ids, DType::F32).mul_scalar(0.7);
    let head = table.tracked().unwrap();
    let loss = cross_entropy::reference::cross_entropy(hidden.clone(), head, None, &targets);
    let mut of_tape = GradientsParams::from_grads(loss.backward(), &tokens);
    let expected = AdapterGrads::from_params(&mut of_tape, [tokens.param()]);
    let mut grads = AdapterGrads::new();
    let plain = table.plain();
    let hidden = hidden.inner();
    let ones = Tensor::ones([5], &hidden.device());
    let loss = cross_entropy::telling(
        &hidden,
        &plain,
        None,
        &targets,
        Some(&ones),
        None,
        &mut |hidden, d_logits| tokens.add_head_grad(&mut grads, hidden, d_logits),
    );
    let dh = loss.d_hidden.unwrap();
    tokens.add_embedding_grad(&mut grads, (&ids, &dh), 0.7);
    let id = tokens.param().id;
    let [found, expected] = [&grads, &expected].map(|it| it.get(id).unwrap().clone());
    close(found.clone().unsqueeze(), expected.unsqueeze());
    // A batch without any of them adds nothing, and is a gradient.
    let none = Tensor::ones([2, 6], &hidden.device());
    tokens.add_embedding_grad(&mut grads, (&[0, 3], &none), 1.0);
    let after = grads.get(id).unwrap().clone();
    assert_eq!(after.into_data(), found.into_data());
    let mut alone = AdapterGrads::new();
    tokens.add_embedding_grad(&mut alone, (&[0, 3], &none), 1.0);
    let zeros = alone.get(id).unwrap().clone().into_data();
    assert!(zeros.iter::<f32>().all(|value| value == 0.0));
}
