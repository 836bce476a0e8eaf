use super::*;

fn devices() -> Vec<Device> {
    let mut devices = vec![Device::flex()];
    devices.extend(crate::device::cuda(0));
    devices
}

/// Tensors of every kind that weights are made of, other ones for each `seed`.
fn tensors(seed: u64, scale: usize) -> Vec<TensorData> {
    let number = |i: usize| (seed as usize * 7919 + i * 31) % 251;
    let bytes: Vec<u8> = (0..1001 * scale).map(|i| number(i) as u8).collect();
    let signed: Vec<i8> = (0..77).map(|i| number(i) as i8).collect();
    let floats: Vec<f32> = (0..333 * scale).map(|i| number(i) as f32 / 8.0).collect();
    let half = TensorData::new(floats.clone(), [333 * scale]).convert_dtype(DType::BF16);
    vec![
        TensorData::new(bytes, [1001 * scale]),
        TensorData::new(signed, [77]),
        TensorData::new(floats, [333 * scale]),
        half,
    ]
}

/// What of the block is on the device.
fn read(block: &Block, parts: &[Part]) -> Vec<TensorData> {
    let read = |part: &Part| match part.dtype {
        DType::U8 | DType::I8 => block.ints(*part).into_data(),
        _ => block.floats(*part).into_data(),
    };
    parts.iter().map(read).collect()
}

/// By whatever order blocks are entered, and with whatever hints, each has its own values.
#[test]
fn blocks_have_their_values_in_every_order() {
    for device in devices() {
        let slots = Slots::new(&device);
        let expected: Vec<_> = (0..5).map(|i| tensors(i, 1 + i as usize)).collect();
        let blocks: Vec<_> = (expected.iter())
            .map(|tensors| slots.block(tensors).unwrap())
            .collect();
        slots.open();
        let check = |i: usize| {
            let (block, parts) = &blocks[i];
            assert_eq!(read(block, parts), expected[i], "block {i} on {device:?}");
        };
        // Up and down as a step goes, each with the one after it; then hints that are wrong, and none.
        let course = [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1];
        for pair in course.windows(2) {
            blocks[pair[0]].0.enter(Some(&blocks[pair[1]].0));
            check(pair[0]);
        }
        for (i, hint) in [(0, 3), (1, 0), (4, 4), (2, 0), (0, 1)] {
            blocks[i].0.enter(Some(&blocks[hint].0));
            check(i);
        }
        for i in [3, 1, 4, 0, 2] {
            blocks[i].0.enter(None);
            check(i);
        }
        (0..5).rev().for_each(check);
    }
}

/// A slot is written over only when everything is done that was computed with what it had.
#[test]
fn what_is_computed_with_a_block_is_done_before_another_takes_its_place() {
    const VALUES: usize = 1 << 20;
    for device in devices() {
        let slots = Slots::new(&device);
        let blocks: Vec<_> = (0..6)
            .map(|i| slots.block(&[TensorData::new(vec![i as f32; VALUES], [VALUES])]))
            .collect::<Result<_, _>>()
            .unwrap();
        slots.open();
        for _ in 0..3 {
            let sums: Vec<Tensor<1>> = (0..6)
                .map(|i| {
                    let next = (i + 1) % 6;
                    blocks[i].0.enter(Some(&blocks[next].0));
                    let mut sum = Tensor::zeros([VALUES], &device);
                    for _ in 0..20 {
                        sum = sum + blocks[i].0.floats(blocks[i].1[0]);
                    }
                    sum
                })
                .collect();
            for (i, sum) in sums.into_iter().enumerate() {
                let values: Vec<f32> = sum.into_data().try_into_vec().unwrap();
                assert!(values.iter().all(|&value| value == 20.0 * i as f32));
            }
        }
    }
}

#[test]
fn slots_are_as_large_as_the_largest_block() {
    for device in devices() {
        let slots = Slots::new(&device);
        let blocks = [1, 3, 2].map(|scale| slots.block(&tensors(0, scale)).unwrap());
        let end = |part: &Part| (part.offset + part.bytes()).next_multiple_of(ALIGNMENT);
        let sizes = blocks.each_ref().map(|(_, parts)| end(&parts[3]));
        assert_eq!(slots.host_bytes(), sizes.iter().sum::<usize>());
        let there = super::super::is_there(&device);
        let expected = if there { SLOTS * sizes[1] } else { 0 };
        assert_eq!(slots.device_bytes(), expected);
        for (_, parts) in &blocks {
            assert!(
                parts
                    .iter()
                    .all(|part| part.offset.is_multiple_of(ALIGNMENT))
            );
        }
    }
}

/// Blocks that were made later may be larger than the slots were.
#[test]
fn a_block_that_is_larger_than_the_slots_finds_room() {
    for device in devices() {
        let slots = Slots::new(&device);
        let (small, large) = (tensors(1, 1), tensors(2, 9));
        let (first, parts) = slots.block(&small).unwrap();
        slots.open();
        assert_eq!(read(&first, &parts), small);
        let (second, others) = slots.block(&large).unwrap();
        assert_eq!(read(&second, &others), large);
        crate::device::recover(&device);
        assert_eq!(read(&first, &parts), small);
    }
}
