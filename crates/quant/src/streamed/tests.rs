use backdraft_arch::{GgufBlock, NestedFormat, Scheme};
use backdraft_kernels::dequantize::GgufBlocks;
use backdraft_kernels::frozen_matrix::FrozenMatrix;
use burn::tensor::{DType, Distribution};

use super::*;
use crate::frozen::Movable;

const DIMS: [usize; 2] = [96, 64];

fn devices() -> Vec<Device> {
    let mut devices = vec![Device::flex()];
    devices.extend(backdraft_kernels::device::cuda(0));
    devices
}

fn values(seed: usize) -> Vec<f32> {
    let value = |i: usize| ((i * 37 + seed * 101) as f32 * 0.37).sin();
    (0..DIMS[0] * DIMS[1]).map(value).collect()
}

/// One of each kind, on a device.
fn weights(seed: usize, device: &Device) -> Vec<Weight> {
    let values = values(seed);
    let schemes = [
        Scheme::NF4,
        Scheme::NF4.with_scales(64, false),
        Scheme::nested(NestedFormat::Nf6),
        Scheme::Int8,
    ];
    let mut weights: Vec<_> = (schemes.into_iter())
        .map(|scheme| Weight::quantize(&values, DIMS, scheme, device))
        .collect();
    // A scale of 2⁻⁶ in f16, and whole numbers.
    let count = DIMS[0] * DIMS[1] / 32;
    let block = |i: usize| {
        let codes = (0..32).map(move |j| ((i + j + seed) % 200) as u8);
        [0x00, 0x24].into_iter().chain(codes)
    };
    let bytes = (0..count).flat_map(block).collect();
    let blocks = GgufBlocks::from_parts(GgufBlock::Q8_0, DIMS, bytes, device).unwrap();
    weights.push(Weight::Gguf(blocks));
    let dense = Tensor::from_data(TensorData::new(values, DIMS), device);
    weights.push(Weight::Dense(dense));
    weights
}

fn data(tensor: Tensor<2>) -> TensorData {
    tensor.into_data()
}

/// Two layers of all kinds: as they are, and streamed.
fn layers(device: &Device) -> Vec<(Vec<Weight>, Vec<Weight>)> {
    let slots = Slots::new(device);
    let layer = |seed| {
        let mut streamed = weights(seed, &Device::flex());
        stream(streamed.iter_mut().collect(), &slots).unwrap();
        (weights(seed, device), streamed)
    };
    (0..3).map(layer).collect()
}

#[test]
fn a_streamed_matrix_is_the_matrix() {
    for device in devices() {
        for (resident, streamed) in layers(&device) {
            for (a, b) in resident.iter().zip(&streamed) {
                let what = format!("{a:?} on {device:?}");
                assert_eq!((a.dims(), a.scheme()), (b.dims(), b.scheme()), "{what}");
                assert_eq!((a.num_bytes(), 0), (b.num_bytes(), b.device_bytes()));
                assert_eq!(a.dense_dtype(), b.dense_dtype());
                assert_eq!(Movable::device(b), device);
                assert_eq!(data(a.dequantize()), data(b.dequantize()), "{what}");
                let rows = [3, 95, 0];
                assert_eq!(data(a.rows(&rows)), data(b.rows(&rows)), "{what}");
                assert_eq!(
                    a.row_squares().into_data(),
                    b.row_squares().into_data(),
                    "{what}"
                );
                let (a, b) = (a.part(32..64), b.part(32..64));
                assert_eq!(b.dims(), [32, 64]);
                assert_eq!(data(a.dequantize()), data(b.dequantize()), "{what}");
                let (a, b) = (a.part(3..9), b.part(3..9));
                assert_eq!(data(a.dequantize()), data(b.dequantize()), "{what}");
                let moved = b.moved(&Device::flex());
                assert_eq!(data(a.dequantize()), data(moved.dequantize()), "{what}");
            }
        }
    }
}

/// One product and many rows, both ways, of layers in turn.
#[test]
fn products_have_the_same_bits() {
    for device in devices() {
        let layers = layers(&device);
        for rows in [1, 5, 40] {
            let random = |width| {
                Tensor::<2>::random([rows, width], Distribution::Default, (&device, DType::F32))
            };
            let (x, dy) = (random(DIMS[1]), random(DIMS[0]));
            for (i, (resident, streamed)) in layers.iter().enumerate() {
                for (a, b) in resident.iter().zip(streamed) {
                    let sums = [None, Some(dy.clone())];
                    for sum in &sums {
                        let product = |w: &Weight| data(w.matmul_add(&x, 0.5, sum.as_ref()));
                        assert_eq!(product(a), product(b), "layer {i}, {a:?}");
                    }
                    let sums = [None, Some(x.clone())];
                    for sum in &sums {
                        let product =
                            |w: &Weight| data(w.matmul_transposed_add(&dy, 1.0, sum.clone()));
                        assert_eq!(product(a), product(b), "layer {i}, {a:?}");
                    }
                }
            }
        }
    }
}

/// What was taken out of a slot is not written over by what comes there next.
#[test]
fn dense_values_are_a_copy() {
    for device in devices() {
        let layers = layers(&device);
        let taken: Vec<_> = (layers.iter())
            .map(|(_, streamed)| streamed[5].dequantize())
            .collect();
        for ((resident, _), taken) in layers.iter().zip(taken) {
            assert_eq!(data(resident[5].dequantize()), data(taken));
        }
    }
}
