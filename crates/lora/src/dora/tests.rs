//! Projections with gains against the reference in plain tensors: outputs and every gradient, however the weight is stored.

use backdraft_arch::{LoraConfig, NestedFormat};
use backdraft_kernels::dora::reference;
use backdraft_kernels::dropout::Dropout;
use backdraft_kernels::lora_linear::Factors;
use backdraft_quant::{Scheme, Weight};
use burn::module::Module;
use burn::tensor::{Device, Distribution, Tensor};

use super::Magnitude;
use crate::{Adapter, AdapterGrads, LoraAdapter, Projection, Rows};

const T: usize = 37;
const INPUT: usize = 64;
const RANK: usize = 4;
/// Of a fused projection.
const PARTS: [usize; 3] = [16, 8, 8];
const OUT: usize = PARTS[0] + PARTS[1] + PARTS[2];
const SEED: u64 = 5;
const SCALING: f32 = 0.5;

fn random<const D: usize>(dims: [usize; D]) -> Tensor<D> {
    Tensor::random(dims, Distribution::Normal(0.0, 1.0), &Device::flex())
}

#[track_caller]
fn close<const D: usize>(what: &str, found: Tensor<D>, expected: Tensor<D>) {
    let [found, expected] = [found, expected].map(Tensor::inner);
    let most = (found - expected.clone()).abs().max().into_scalar::<f32>();
    let scale = expected.abs().max().into_scalar::<f32>();
    assert!(most <= 2e-5 * scale, "{what}: {most} of {scale}");
}

/// A projection, and what it is made of.
struct Case {
    what: String,
    projection: Projection,
    weight: Tensor<2>,
    bias: Tensor<1>,
    alpha: f32,
    dropout: f64,
    x: Tensor<2>,
    dy: Tensor<2>,
}

impl Case {
    fn all() -> Vec<Self> {
        let nested = |format| Scheme::Nested {
            format,
            block_size: 64,
            double_quant: true,
        };
        let schemes = [
            None,
            Some(Scheme::NF4),
            Some(nested(NestedFormat::Nf3)),
            Some(nested(NestedFormat::Nf6)),
            Some(Scheme::Int8),
        ];
        let cases = schemes.into_iter().flat_map(|scheme| {
            [(0.0, 1.0), (0.3, 0.6)].map(|(dropout, alpha)| Self::new(scheme, dropout, alpha))
        });
        cases.collect()
    }

    fn new(scheme: Option<Scheme>, dropout: f64, alpha: f32) -> Self {
        let dense: Tensor<2> = random([OUT, INPUT]) * 0.125;
        let weight = match scheme {
            None => Weight::Dense(dense),
            Some(scheme) => {
                let values: Vec<f32> = dense.into_data().iter::<f32>().collect();
                Weight::quantize(&values, [OUT, INPUT], scheme, &Device::flex())
            }
        };
        let bias = random([OUT]);
        let config = LoraConfig {
            rank: RANK,
            alpha: f64::from(SCALING) * RANK as f64,
            dropout,
            use_dora: true,
            ..LoraConfig::default()
        };
        let (a, b) = (random([RANK, INPUT]) * 0.125, random([OUT, RANK]) * 0.5);
        let lengths = random::<1>([OUT]) * 0.3 + 1.0;
        let lora = LoraAdapter::from_factors(&config, a, b);
        let lora = lora.with_magnitude(Some(Magnitude::new(lengths)));
        let projection = Projection::new(weight.clone(), Some(bias.clone())).times(alpha);
        Self {
            what: format!("{scheme:?}, dropout {dropout}, alpha {alpha}"),
            projection: projection.with_adapter(Some(Adapter::Lora(lora))),
            weight: weight.dequantize(),
            bias,
            alpha,
            dropout,
            x: random([T, INPUT]),
            dy: random([T, OUT]),
        }
    }

    fn lora(&self) -> &LoraAdapter {
        let Some(Adapter::Lora(lora)) = self.projection.adapter() else {
            unreachable!()
        };
        lora
    }

    /// Output, and gradients of x, A, B and m.
    fn expected(&self) -> (Tensor<2>, [Tensor<2>; 3], Tensor<1>) {
        let lora = self.lora();
        let leaf = |x: Tensor<2>| x.autodiff().require_grad();
        let [x, a, b] = [self.x.clone(), lora.lora_a.val(), lora.lora_b.val()].map(leaf);
        let m = lora.magnitude.as_ref().unwrap().vector.val();
        let m = m.autodiff().require_grad();
        let factors = Factors {
            a: a.clone(),
            b: b.clone(),
            scaling: SCALING,
            dropout: self.drop_out(),
        };
        let weight = (self.weight.clone().autodiff(), self.alpha);
        let y = reference::forward(x.clone(), weight, &factors, m.clone());
        let grads = (y.clone() * self.dy.clone().autodiff()).sum().backward();
        let bias = self.bias.clone().mul_scalar(self.alpha);
        let found = [&x, &a, &b].map(|x| x.grad(&grads).unwrap());
        (y.inner() + bias.unsqueeze(), found, m.grad(&grads).unwrap())
    }

    fn drop_out(&self) -> Option<Dropout> {
        (self.dropout > 0.0).then_some(Dropout {
            p: self.dropout as f32,
            seed: SEED,
        })
    }

    fn check_grads(&self, grads: &AdapterGrads, ([_, da, db], dm): ([Tensor<2>; 3], Tensor<1>)) {
        let lora = self.lora();
        let grad = |id| grads.get(id).unwrap().clone();
        let what = |name: &str| format!("{}: {name}", self.what);
        close(&what("dA"), grad(lora.lora_a.id), da.flatten(0, 1));
        close(&what("dB"), grad(lora.lora_b.id), db.flatten(0, 1));
        let m = lora.magnitude.as_ref().unwrap();
        close(&what("dm"), grad(m.vector.id), dm);
    }
}

#[test]
fn layer_by_layer() {
    for case in Case::all() {
        let (y, d, dm) = case.expected();
        let (x, what) = (&case.x, &case.what);
        let (found, saved) = case.projection.forward_saving(x, None, Some(SEED));
        close(what, found.clone(), y.clone());
        let sum = random([T, OUT]);
        let (added, _) = case.projection.forward_adding(x, Some(SEED), Some(&sum));
        close(what, added, y + sum);
        let mut grads = AdapterGrads::new();
        let dy = case.dy.clone();
        let dx = case
            .projection
            .backward(dy, Some(x), &saved, &mut grads, true);
        close(what, dx.unwrap(), d[0].clone());
        case.check_grads(&grads, (d.clone(), dm.clone()));
        // Before the input is there.
        let mut grads = AdapterGrads::new();
        let (dx, ahead) = case
            .projection
            .backward_ahead(case.dy.clone(), &saved, &mut grads);
        close(what, dx.complete(), d[0].clone());
        case.projection.finish(ahead, x, &mut grads);
        case.check_grads(&grads, (d, dm));
    }
}

#[test]
fn on_the_tape() {
    for case in Case::all() {
        let (y, d, dm) = case.expected();
        let projection = case.projection.clone().train();
        let x = case.x.clone().autodiff().require_grad();
        let found = projection.forward(x.clone(), Some(SEED));
        close(&case.what, found.clone(), y);
        let tape = (found * case.dy.clone().autodiff()).sum().backward();
        close(&case.what, x.grad(&tape).unwrap(), d[0].clone());
        let Some(Adapter::Lora(lora)) = projection.adapter() else {
            unreachable!()
        };
        let mut grads = AdapterGrads::new();
        for factor in [&lora.lora_a, &lora.lora_b] {
            grads.add(factor.id, factor.val().grad(&tape).unwrap());
        }
        let m = &lora.magnitude.as_ref().unwrap().vector;
        grads.add(m.id, m.val().grad(&tape).unwrap());
        case.check_grads(&grads, (d, dm));
    }
}

#[test]
fn by_the_rows_of_a_fused_projection() {
    for case in Case::all() {
        let (y, d, dm) = case.expected();
        let x = &case.x;
        let down = case.projection.down(x, Some(SEED));
        let mut start = 0;
        let parts = PARTS.map(|count| {
            let rows = Rows::of(&case.projection, start..start + count);
            let (y, saved) = rows.forward_saving(x, down.clone(), Some(SEED));
            let dy = case.dy.clone().narrow(1, start, count);
            start += count;
            (rows, y, dy, saved)
        });
        let outputs = parts.iter().map(|(_, y, ..)| y.clone());
        close(&case.what, Tensor::cat(outputs.collect(), 1), y);
        let mut grads = AdapterGrads::new();
        let branches = parts.each_ref();
        let branches = branches.map(|(rows, _, dy, saved)| (rows.clone(), dy.clone(), saved));
        let dx = Rows::backward_together(branches, Some(x), &mut grads, true);
        close(&case.what, dx.unwrap(), d[0].clone());
        case.check_grads(&grads, (d, dm));
    }
}

/// Rows with gains, without, and of the base alone, in one batch.
#[test]
fn a_row_is_what_it_is_alone() {
    let bits =
        |x: Tensor<2>| -> Vec<u32> { x.into_data().iter::<f32>().map(f32::to_bits).collect() };
    for case in Case::all() {
        let mut lora = case.lora().clone();
        lora.magnitude = None;
        let plain = case
            .projection
            .clone()
            .with_adapter(Some(Adapter::Lora(lora)));
        let base = case.projection.clone().with_adapter(None);
        let sum = random([T, OUT]);
        for sum in [None, Some(&sum)] {
            let parts = [
                (0..9, &case.projection),
                (9..20, &plain),
                (20..30, &base),
                (30..T, &case.projection),
            ];
            let together = Projection::forward_parts(&parts, &case.x, sum);
            let cut = |x: &Tensor<2>, rows: &std::ops::Range<usize>| {
                x.clone().narrow(0, rows.start, rows.len())
            };
            for (rows, projection) in parts {
                let x = cut(&case.x, &rows);
                let sum = sum.map(|sum| cut(sum, &rows));
                let alone = [(0..rows.len(), projection)];
                let alone = Projection::forward_parts(&alone, &x, sum.as_ref());
                assert_eq!(bits(cut(&together, &rows)), bits(alone), "{}", case.what);
            }
        }
    }
}

#[test]
fn a_fresh_adapter_changes_nothing_to_the_bit() {
    use rand::SeedableRng;
    let case = Case::new(Some(Scheme::NF4), 0.0, 1.0);
    let config = LoraConfig {
        rank: RANK,
        use_dora: true,
        ..LoraConfig::default()
    };
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let weight = case.projection.weight();
    let fresh = Adapter::init(&config, ("x", weight), &mut rng, &Device::flex());
    assert_eq!(fresh.num_trained(), RANK * (INPUT + OUT) + OUT);
    let mut projection = case.projection.clone().with_adapter(Some(fresh));
    let output = |projection: &Projection| projection.forward_saving(&case.x, None, None).0;
    let base = output(&case.projection.clone().with_adapter(None));
    assert_eq!(output(&projection).into_data(), base.into_data());
    let adapter = projection.adapter_mut().unwrap();
    assert!(adapter.changes_nothing().unwrap());
    // Lengths are trained from the first step on, unlike A.
    adapter.update(|param| match param.name {
        "lora_magnitude_vector" => param.values * 2.0,
        _ => param.values,
    });
    assert!(!adapter.changes_nothing().unwrap());
    let bias = case.bias.clone().unsqueeze();
    let doubled = (output(&case.projection.clone().with_adapter(None)) - bias) * 2.0;
    let bias = case.bias.clone().unsqueeze();
    close("twice as long", output(&projection) - bias, doubled);
}
