use backdraft_arch::LoraConfig;
use backdraft_kernels::cross_entropy;
use backdraft_kernels::frozen_matrix::FrozenMatrix;
use backdraft_quant::Weight;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::tokens::TokenMatrix;

const VOCAB: usize = 9;
const HIDDEN: usize = 6;
const RANK: usize = 2;

fn random(dims: [usize; 2]) -> Tensor<2> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), &Device::flex())
}

fn config(dropout: f64) -> LoraConfig {
    LoraConfig {
        rank: RANK,
        alpha: 3.0,
        dropout,
        ..LoraConfig::default()
    }
}

fn of_head(dropout: f64) -> LoraAdapter {
    let (a, b) = (random([RANK, HIDDEN]), random([VOCAB, RANK]));
    LoraAdapter::from_factors(&config(dropout), a, b)
}

fn of_embedding() -> LoraAdapter {
    let (a, b) = (random([RANK, VOCAB]), random([HIDDEN, RANK]));
    LoraAdapter::from_factors(&config(0.3), a, b).embedding()
}

fn close(found: &Tensor<2>, expected: &Tensor<2>) {
    assert_eq!(found.dims(), expected.dims());
    let most = (found.clone() - expected.clone())
        .abs()
        .max()
        .into_scalar::<f32>();
    assert!(most < 1e-5, "{most}");
}

/// Gradients by hand of A and B beside those of the tape.
fn compare(adapter: &LoraAdapter, grads: &AdapterGrads, mut tape: GradientsParams) {
    let params = adapter.params();
    let expected = AdapterGrads::from_params(&mut tape, params.clone());
    for param in params {
        let row = |grads: &AdapterGrads| grads.get(param.id).unwrap().clone().unsqueeze::<2>();
        close(&row(grads), &row(&expected));
    }
}

#[test]
fn an_embedding_with_its_adapter_is_the_merged_table() {
    let (table, adapter) = (random([VOCAB, HIDDEN]), of_embedding());
    let ids = [8u32, 0, 3, 3, 1];
    let merged = table.clone() + adapter.delta().transpose();
    let rows = |table: Tensor<2>| table.select(0, index(&ids, &Device::flex()));
    let found = adapter.add_to_rows(rows(table.clone()), &ids);
    close(&found, &rows(merged));

    // Twice, so that what is there is added to; a multiplier as some families have.
    let dh = random([ids.len(), HIDDEN]);
    let mut grads = AdapterGrads::new();
    for _ in 0..2 {
        adapter.add_embedding_grad(&mut grads, (&ids, &dh), 0.7);
    }
    let tracked = adapter.clone().train();
    let found = tracked.add_to_rows(rows(table), &ids);
    let loss = (found.mul_scalar(1.4) * dh.autodiff()).sum();
    compare(
        &adapter,
        &grads,
        GradientsParams::from_grads(loss.backward(), &tracked),
    );
}

#[test]
fn a_head_with_its_adapter_is_the_merged_table() {
    let (table, adapter, x) = (random([VOCAB, HIDDEN]), of_head(0.0), random([7, HIDDEN]));
    let merged = table.clone() + adapter.delta();
    let head = TokenMatrix::from(&Weight::Dense(table)).widened(&adapter, DType::F32);
    let read = adapter.widen(x.clone(), None);
    assert_eq!(read.dims(), [7, HIDDEN + RANK]);
    close(&head.matmul(&read), &FrozenMatrix::matmul(&merged, &x));
    let sum = random([7, VOCAB]);
    close(
        &head.matmul_add(&read, 0.5, Some(&sum)),
        &merged.matmul_add(&x, 0.5, Some(&sum)),
    );
    // With a sum and without.
    let (dy, sum) = (random([7, VOCAB]), random([7, HIDDEN + RANK]));
    let with = head.matmul_transposed_add(&dy, 2.0, Some(sum.clone()));
    close(&with, &(head.matmul_transposed_add(&dy, 2.0, None) + sum));
}

/// Through a capped loss, whose chunks are of fewer tokens than there are.
#[test]
fn gradients_of_a_head_are_those_of_autodiff() {
    for (dropout, seed) in [(0.0, None), (0.4, Some(11)), (0.4, None)] {
        let (table, adapter) = (Weight::Dense(random([VOCAB, HIDDEN])), of_head(dropout));
        let n = 2 * cross_entropy::CHUNK + 3;
        let (x, cap) = (random([n, HIDDEN]), Some(2.0));
        let targets: Vec<u32> = (0..n).map(|i| (i * i % VOCAB) as u32).collect();
        let tracked = adapter.clone().train();
        let of_tape = x.clone().autodiff().require_grad();
        let head = TokenMatrix::from(&table).widened(&tracked, DType::F32);
        let loss = cross_entropy::reference::cross_entropy(
            tracked.widen_tracked(of_tape.clone(), seed),
            head.tracked().unwrap(),
            cap,
            &targets,
        );
        let tape = (loss / n as f32).backward();

        let read = adapter.widen(x, seed);
        let weights = Tensor::full([n], 1.0 / n as f32, &Device::flex());
        let mut grads = AdapterGrads::new();
        let loss = cross_entropy::telling(
            &read,
            &TokenMatrix::from(&table).widened(&adapter, DType::F32),
            cap,
            &targets,
            Some(&weights),
            None,
            &mut |read, d_logits| adapter.add_head_grad(&mut grads, read, d_logits),
        );
        let d_read = loss.d_hidden.unwrap();
        let dx = adapter.widen_backward(&mut grads, (&read, &d_read), seed);
        close(&dx, &of_tape.grad(&tape).unwrap());
        compare(
            &adapter,
            &grads,
            GradientsParams::from_grads(tape, &tracked),
        );
    }
}

#[test]
fn an_embedding_starts_with_a_zero_a_as_by_peft() {
    use rand::SeedableRng;
    let device = Device::flex();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let config = LoraConfig {
        rank: 64,
        ..config(0.0)
    };
    let path = "model.embed_tokens";
    let adapter = LoraAdapter::init_embedding(&config, (path, [50, 300]), &mut rng, &device);
    assert_eq!(
        (adapter.lora_a.dims(), adapter.lora_b.dims()),
        ([64, 50], [300, 64])
    );
    assert!(adapter.changes_nothing().unwrap());
    let names: Vec<_> = adapter
        .params()
        .iter()
        .map(|param| param.file_name)
        .collect();
    assert_eq!(names, ["lora_embedding_A", "lora_embedding_B"]);
    let b: Vec<f32> = adapter.lora_b.val().into_data().try_into_vec().unwrap();
    let n = b.len() as f64;
    let mean = b.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let square = b.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
    // Five standard errors.
    assert!(mean.abs() < 5.0 / n.sqrt(), "{mean}");
    assert!((square - 1.0).abs() < 5.0 * (2.0 / n).sqrt(), "{square}");
}
