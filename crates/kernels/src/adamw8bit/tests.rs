use burn::tensor::{Device, Distribution, Tensor, TensorData};

use super::*;

const PARAMS: AdamWParams = AdamWParams {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
};

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().try_into_vec().unwrap()
}

fn codes(moment: &Moment8Bit) -> Vec<u8> {
    moment.codes.clone().into_data().try_into_vec().unwrap()
}

/// Kernel and reference from the same start: parameters within rounding, and codes that differ at most by
/// one where a value lies on an edge.
#[test]
fn the_kernel_is_the_reference() {
    let device = Device::flex();
    for n in [1, 255, 256, 1000, 4096] {
        for guard in [Guard::On, Guard::Off] {
            let normal =
                |scale| Tensor::<1>::random([n], Distribution::Normal(0.0, scale), &device);
            let mut param = normal(1.0);
            let mut moments = Moments8Bit::zeros(&param);
            for t in 1..=4 {
                let grad = normal(0.1);
                let args = ((1e-3, t), &PARAMS, guard);
                let expected = reference::step(
                    param.clone(),
                    &grad,
                    moments.clone(),
                    args.0,
                    args.1,
                    args.2,
                );
                (param, moments) = step(param, &grad, moments, args.0, args.1, args.2);
                for (a, b) in values(&param).iter().zip(values(&expected.0)) {
                    assert!((a - b).abs() < 1e-6, "{a} and {b}");
                }
                for (ours, theirs) in [(&moments.m, &expected.1.m), (&moments.v, &expected.1.v)] {
                    let differing =
                        codes(ours)
                            .iter()
                            .zip(codes(theirs))
                            .fold(0, |count, (a, b)| {
                                assert!(a.abs_diff(b) <= 1);
                                count + usize::from(*a != b)
                            });
                    assert!(differing * 100 <= n, "{differing} of {n} codes differ");
                }
            }
        }
    }
}

/// Steps in which one gradient of a block is 10⁴ times the others, which are zero every second time; the
/// largest move of a parameter.
fn largest_move(guard: Guard) -> f32 {
    let device = Device::flex();
    let mut param = Tensor::<1>::zeros([BLOCK_SIZE], &device);
    let mut moments = Moments8Bit::zeros(&param);
    let mut largest = 0f32;
    for t in 1..=20 {
        let small = if t % 2 == 1 { 1e-4f32 } else { 0.0 };
        let mut grad = vec![small; BLOCK_SIZE];
        grad[0] = 1.0;
        let grad = Tensor::from_data(TensorData::new(grad, [BLOCK_SIZE]), &device);
        let before = values(&param);
        (param, moments) = step(param, &grad, moments, (1e-3, t), &PARAMS, guard);
        for (a, b) in values(&param).iter().zip(before) {
            largest = largest.max((a - b).abs());
        }
    }
    largest
}

#[test]
fn without_the_guard_small_gradients_blow_up() {
    // Adam moves no parameter further than about the learning rate, 1e-3.
    let unguarded = largest_move(Guard::Off);
    assert!(unguarded > 0.1, "the largest move was {unguarded}");
    let guarded = largest_move(Guard::On);
    assert!(guarded < 1.1e-3, "the largest move was {guarded}");
}
