//! Weights kept in codes.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::places::{Place, places};
use crate::dequantize::{self, Scales};

const CODE: [f32; 16] = [
    -1.0, -0.7, -0.5, -0.4, -0.3, -0.2, -0.1, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0,
];

fn bytes(values: &[u8], place: &Place) -> Tensor<1, Int> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (&place.device, DType::U8))
}

fn floats(values: &[f32], place: &Place) -> Tensor<1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (&place.device, DType::F32))
}

fn noise(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

#[test]
fn four_bit_codes_with_single_and_double_scales() {
    let map: [f32; 256] = std::array::from_fn(|i| (i as f32 - 127.0) / 128.0);
    for (dims, block_size) in [
        ([1usize, 1], 64usize),
        ([3, 5], 8),
        ([7, 64], 64),
        ([64, 576], 128),
        ([129, 777], 64),
        ([256, 520], 64),
    ] {
        let values = dims[0] * dims[1];
        let blocks = values.div_ceil(block_size);
        let packed = noise(values.div_ceil(2), 1);
        let scale_codes = noise(blocks, 2);
        let nested: Vec<f32> = (0..blocks.div_ceil(256)).map(|i| 0.5 + i as f32).collect();
        let single: Vec<f32> = (0..blocks).map(|i| 0.1 + i as f32 % 17.0).collect();
        let double: Vec<f32> = (0..blocks)
            .map(|i| map[usize::from(scale_codes[i])] * nested[i / 256] + 0.75)
            .collect();
        let expected = |absmax: &[f32]| {
            let values: Vec<f32> = (0..values)
                .map(|i| {
                    let byte = packed[i / 2];
                    let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
                    CODE[usize::from(code)] * absmax[i / block_size]
                })
                .collect();
            Tensor::<2>::from_data(TensorData::new(values, dims), &Device::flex())
        };
        for place in places() {
            let codes = bytes(&packed, place);
            let absmax = floats(&single, place);
            let (scale_codes, nested) = (bytes(&scale_codes, place), floats(&nested, place));
            let nested = Scales::Double {
                codes: &scale_codes,
                scales: &nested,
                map: &map,
                offset: 0.75,
            };
            for (scales, absmax) in [(Scales::Single(&absmax), &single), (nested, &double)] {
                let y = dequantize::on_device(&codes, scales, &CODE, block_size, dims, place.dtype);
                match y {
                    Some(y) => {
                        assert_eq!(y.dtype(), place.dtype);
                        place.assert_close("values", y, expected(absmax));
                    }
                    None => assert_eq!(place.device, Device::flex(), "no kernel at {place:?}"),
                }
            }
        }
    }
}
