//! Weights kept in codes.

use burn::tensor::{Device, Distribution, Tensor};

use super::places::places;
use crate::codebook::FourBitFormat;
use crate::dequantize::{FourBit, HostAbsmax, reference};
use crate::quantize::{four_bit, nested};

#[test]
fn four_bit_codes_with_single_and_double_scales() {
    let device = Device::flex();
    for (dims, block_size) in [
        ([1usize, 1], 64usize),
        ([3, 5], 8),
        ([7, 64], 64),
        ([64, 576], 128),
        ([129, 777], 64),
        ([256, 520], 64),
    ] {
        let source = Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &device);
        let source: Vec<f32> = source.into_data().try_into_vec().unwrap();
        for format in [FourBitFormat::Nf4, FourBitFormat::Fp4] {
            let blocks = four_bit(&source, format, block_size);
            for double in [false, true] {
                let matrix = |device: &Device| {
                    let absmax = if double {
                        HostAbsmax::Double(nested(&blocks.absmax))
                    } else {
                        HostAbsmax::Single(blocks.absmax.clone())
                    };
                    let packed = blocks.packed.clone();
                    FourBit::from_parts(format, block_size, dims, packed, absmax, device).unwrap()
                };
                let expected = reference::four_bit(&matrix(&device));
                for place in places() {
                    let y = matrix(&place.device).dequantize_as(place.dtype);
                    assert_eq!(y.dtype(), place.dtype);
                    place.assert_close("values", y, expected.clone());
                }
            }
        }
    }
}
