//! What an exchange computes, to the bit: sums whose order shows, and checksums.

use burn::tensor::{DType, Tensor, TensorData};

use super::places::{Place, normal, places, say};
use crate::exchange::{self, Group, GroupSum, Messages, NcclError, reference};

/// Numbers of very different sizes, so that sums depend on their order.
fn rows(n: usize, width: usize) -> Tensor<2> {
    let scales = normal(n * width).into_iter().zip(normal(n * width));
    let values = scales.map(|(x, scale)| x * (4.0 * scale).exp2());
    let data = TensorData::new(values.collect::<Vec<f32>>(), [n, width]);
    Tensor::from_data(data, &Place::cpu().device)
}

fn bits<const D: usize>(x: &Tensor<D>) -> Vec<u32> {
    let data = x.clone().into_data();
    data.iter::<f32>().map(f32::to_bits).collect()
}

/// Places in f32.
fn in_f32() -> impl Iterator<Item = &'static Place> {
    places().iter().filter(|place| place.dtype == DType::F32)
}

/// The tree over eight blocks, one by one from the left, and what three processes leave of five.
const ORDERS: [(usize, &[[usize; 2]]); 4] = [
    (1, &[]),
    (8, &[[0, 1], [2, 3], [0, 2], [4, 5], [6, 7], [4, 6], [0, 4]]),
    (4, &[[0, 1], [0, 2], [0, 3]]),
    (4, &[[1, 2], [0, 1], [0, 3]]),
];

#[test]
fn sums_of_rows_have_the_bits_of_plain_additions() {
    for width in [1, 4, 1000, 70_001] {
        let mut found = Vec::new();
        for (n, pairs) in ORDERS {
            let rows = rows(n, width);
            let expected = bits(&reference::add_rows(&rows, pairs));
            for place in in_f32() {
                let sum = exchange::add_rows(&place.put(&rows), pairs);
                assert!(bits(&sum) == expected, "{place:?}: {width}, {pairs:?}");
            }
            found.push(expected);
        }
    }
    // Otherwise nothing is tested.
    let rows = rows(4, 1000);
    let [.., (_, left), (_, other)] = ORDERS;
    let of = |pairs| bits(&reference::add_rows(&rows, pairs));
    assert!(of(left) != of(other), "the order shows");
}

#[test]
fn checksums_are_those_of_the_host() {
    for n in [1, 3, 1000, 300_007] {
        let values = rows(1, n).reshape([n]);
        let host: Vec<f32> = values.clone().into_data().iter::<f32>().collect();
        let expected = reference::checksum(&host);
        let mut other = host.clone();
        other[n / 2] = f32::from_bits(other[n / 2].to_bits() ^ 1);
        assert_ne!(reference::checksum(&other), expected);
        let mut turned = host.clone();
        turned.reverse();
        assert!(n == 1 || reference::checksum(&turned) != expected);
        for place in in_f32() {
            match exchange::checksum(&place.put(&values)).unwrap() {
                Some(found) => assert_eq!(found, expected, "{place:?}: {n}"),
                None => assert!(!place.is_gpu(), "{place:?}"),
            }
        }
    }
}

#[test]
fn messages_keep_and_add_what_is_written() {
    for place in in_f32() {
        let Some(messages) = Messages::new(2, 4096, &place.device) else {
            assert!(!place.is_gpu(), "{place:?}");
            continue;
        };
        let [left, right] = [0, 1].map(|_| rows(1, 4096).reshape([4096]));
        messages.write(0, 0, &place.put(&left.clone().narrow(0, 0, 1000)));
        messages.write(0, 1000, &place.put(&left.clone().narrow(0, 1000, 3096)));
        let whole: Vec<f32> = right.clone().into_data().iter::<f32>().collect();
        messages.put(1, &whole);
        assert_eq!(messages.to_host(1).unwrap(), whole, "{place:?}");
        let norm = messages.norm(0).try_into_scalar::<f64>().unwrap();
        let expected = left.clone().square().sum().sqrt().into_scalar::<f64>();
        assert!(
            (norm / expected - 1.0).abs() < 1e-5,
            "{place:?}: {norm} {expected}"
        );
        messages.add(0, 1);
        let sum = bits(&(left + right));
        assert!(bits(messages.message(0)) == sum, "{place:?}");
        let part = Tensor::<1>::zeros([96], (&place.device, DType::F32));
        messages.read(0, 1000, &part);
        assert!(bits(&part) == sum[1000..1096], "{place:?}");
        messages.clear(0, 4..4093);
        let cleared = bits(messages.message(0));
        assert!(cleared[4..4093].iter().all(|bits| *bits == 0), "{place:?}");
        assert!(
            cleared[..4] == sum[..4] && cleared[4093..] == sum[4093..],
            "{place:?}"
        );
        assert!(
            bits(messages.message(1))
                == bits(&place.put(&Tensor::<1>::from_floats(&whole[..], &Place::cpu().device)))
        );
    }
}

/// Through NCCL, where there is one: a process alone sends to itself.
#[test]
fn a_group_of_one_adds_what_it_has() {
    for place in in_f32().filter(|place| place.is_gpu()) {
        let id = match exchange::unique_id() {
            Ok(id) => id,
            Err(error) => {
                say(&format!("no exchange on {place:?}: {error}"));
                continue;
            }
        };
        let timeout = std::time::Duration::from_secs(60);
        let group = match Group::join(&place.device, &id, (0, 1), timeout) {
            Ok(group) => group,
            Err(NcclError::NoCard) => continue,
            Err(error) => panic!("{place:?}: {error}"),
        };
        for length in [4, 4096, 1_000_004] {
            for (n, pairs) in ORDERS {
                let rows = rows(n, length);
                let order = (vec![n], pairs.to_vec());
                let sum = GroupSum::new(group.clone(), order, length, &place.device);
                let on_card = place.put(&rows);
                let message = |i| on_card.clone().narrow(0, i, 1).reshape([length]) + 0.0;
                let found = sum.sum((0..n).map(message).collect());
                let expected = bits(&reference::add_rows(&rows, pairs));
                assert!(bits(&found) == expected, "{place:?}: {length}, {pairs:?}");
            }
        }
    }
}
