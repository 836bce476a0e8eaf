use proptest::prelude::*;

use super::super::testing::{Builder, TensorSpec, llama, text};
use super::*;

fn problem(builder: &Builder) -> GgufError {
    Directory::read(&builder.build()).unwrap_err()
}

fn spec(name: &str, shape: &[u64], kind: u32, data: usize, offset: Option<u64>) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        shape: shape.into(),
        kind,
        data: vec![0; data],
        offset,
    }
}

#[test]
fn metadata_and_tensors_are_read() {
    for version in [2, 3] {
        let mut builder = llama()
            .raw("small", 0, &[7])
            .raw("negative", 5, &(-7_i32).to_le_bytes())
            .bool("yes", true)
            .strings("words", &["a", "", "ö"])
            .i32s("numbers", &[-1, 2])
            .f32s("scores", &[0.5]);
        builder.version = version;
        let (_root, path) = builder.write();
        let file = GgufFile::open(path).unwrap();
        assert_eq!(file.version(), version);
        let metadata = file.metadata();
        assert_eq!(metadata.unsigned("small").unwrap(), Some(7));
        assert!(metadata.unsigned("negative").is_err());
        assert!(metadata.str("small").is_err());
        assert_eq!(metadata.bool("yes").unwrap(), Some(true));
        assert_eq!(metadata.unsigned("absent").unwrap(), None);
        assert_eq!(metadata.strings("words").unwrap().unwrap(), ["a", "", "ö"]);
        assert!(metadata.strings("numbers").is_err());
        assert_eq!(metadata.integers("numbers").unwrap().unwrap(), [-1, 2]);
        assert_eq!(metadata.floats("scores").unwrap().unwrap(), [0.5]);
        let tensor = file.tensor("blk.0.ffn_down.weight").unwrap();
        assert_eq!(tensor.shape, [8, 2]);
        assert_eq!(file.read_f32(tensor)[15], 15.0);
        assert!(tensor.range.start.is_multiple_of(32));
    }
}

#[test]
fn header_is_checked() {
    let mut builder = Builder::new();
    let read = |bytes: &[u8]| Directory::read(bytes).unwrap_err();
    assert!(matches!(read(b""), GgufError::Magic { .. }));
    assert!(matches!(read(b"GGML0000"), GgufError::Magic { .. }));
    assert!(matches!(read(b"GGUF"), GgufError::Truncated { .. }));
    builder.version = 1;
    assert!(matches!(
        problem(&builder),
        GgufError::Version { actual: 1 }
    ));
    builder.version = 3_u32.swap_bytes();
    assert!(matches!(problem(&builder), GgufError::BigEndian));
}

#[test]
fn huge_counts_are_refused_before_anything_is_allocated() {
    let mut bytes = llama().build();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = Directory::read(&bytes).unwrap_err();
    assert!(matches!(
        error,
        GgufError::Count {
            what: "tensors",
            ..
        }
    ));
    let mut bytes = llama().build();
    bytes[16..24].copy_from_slice(&(1_u64 << 60).to_le_bytes());
    let error = Directory::read(&bytes).unwrap_err();
    assert!(matches!(
        error,
        GgufError::Count {
            what: "metadata entries",
            ..
        }
    ));
    let list = |kind: u32| {
        let mut value = kind.to_le_bytes().to_vec();
        value.extend((1_u64 << 61).to_le_bytes());
        problem(&Builder::new().raw("list", 9, &value))
    };
    for kind in [0, 5, 8, 12] {
        assert!(matches!(list(kind), GgufError::Count { .. }));
    }
    let string = problem(&Builder::new().raw("text", 8, &u64::MAX.to_le_bytes()));
    assert!(matches!(string, GgufError::Truncated { .. }));
}

#[test]
fn metadata_is_checked() {
    let new = Builder::new;
    assert!(matches!(
        problem(&new().u32("k", 1).u32("k", 1)),
        GgufError::DuplicateKey { key } if key == "k"
    ));
    assert!(matches!(
        problem(&new().raw("k", 13, &[0; 8])),
        GgufError::ValueType { actual: 13, .. }
    ));
    assert!(matches!(
        problem(&new().raw("k", 7, &[2])),
        GgufError::Bool { actual: 2, .. }
    ));
    let nested = [9_u32.to_le_bytes().to_vec(), vec![0; 8]].concat();
    assert!(matches!(
        problem(&new().raw("k", 9, &nested)),
        GgufError::NestedArray { .. }
    ));
    let mut broken = text("ab");
    broken[8] = 0xff;
    assert!(matches!(
        problem(&new().raw("k", 8, &broken)),
        GgufError::Utf8 { .. }
    ));
    for alignment in [0, 3, 1 << 21] {
        assert!(matches!(
            problem(&new().u32("general.alignment", alignment)),
            GgufError::Alignment { .. }
        ));
    }
}

#[test]
fn alignment_is_honoured() {
    let mut builder = llama().u32("general.alignment", 128);
    builder.alignment = 128;
    let (_root, path) = builder.write();
    let file = GgufFile::open(path).unwrap();
    let last = file.tensors().last().unwrap();
    assert!(last.range.start.is_multiple_of(128));
    assert_eq!(file.read_f32(last)[15], 15.0);
}

#[test]
fn tensors_are_checked() {
    let one = |spec| problem(&Builder::new().spec(spec));
    assert!(matches!(
        one(spec("t", &[1; 5], 0, 4, None)),
        GgufError::Dimensions { actual: 5, .. }
    ));
    for (kind, name) in [(10, "Q2_K"), (20, "IQ4_NL"), (39, "MXFP4"), (4, "Q4_2")] {
        assert!(matches!(
            one(spec("t", &[256], kind, 256, None)),
            GgufError::TensorType { actual, .. } if actual.starts_with(name)
        ));
    }
    assert!(matches!(
        one(spec("t", &[1], 999, 4, None)),
        GgufError::TensorType { actual, .. } if actual.contains("999")
    ));
    assert!(matches!(
        one(spec("t", &[1 << 40, 1 << 40], 0, 4, None)),
        GgufError::ShapeOverflow { .. }
    ));
    assert!(matches!(
        one(spec("t", &[0, u64::MAX], 0, 0, None)),
        GgufError::ShapeOverflow { .. }
    ));
    assert!(matches!(
        one(spec("t", &[2, 33], 2, 36, None)),
        GgufError::RowLength {
            expected: 32,
            actual: 33,
            ..
        }
    ));
    assert!(matches!(
        one(spec("t", &[4], 0, 64, Some(4))),
        GgufError::Misaligned { offset: 4, .. }
    ));
    assert!(matches!(
        one(spec("t", &[4], 0, 16, Some(32))),
        GgufError::OutOfBounds { .. }
    ));
    assert!(matches!(
        one(spec("t", &[4], 0, 16, Some(u64::MAX - 31))),
        GgufError::OutOfBounds { .. }
    ));
    assert!(matches!(
        one(spec("t", &[5], 0, 16, None)),
        GgufError::OutOfBounds { .. }
    ));
    let twice =
        Builder::new()
            .spec(spec("t", &[4], 0, 16, None))
            .spec(spec("t", &[4], 0, 16, None));
    assert!(matches!(problem(&twice), GgufError::DuplicateTensor { .. }));
    let overlap = Builder::new()
        .spec(spec("first", &[12], 0, 48, None))
        .spec(spec("second", &[4], 0, 16, Some(32)));
    assert!(matches!(
        problem(&overlap),
        GgufError::Overlap { first, second } if first == "first" && second == "second"
    ));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = llama().strings("words", &["a", "b"]).build();
    for length in 0..bytes.len() {
        assert!(Directory::read(&bytes[..length]).is_err(), "{length}");
    }
}

/// Reads everything that a file offers.
fn exercise(bytes: &[u8]) {
    let Ok(directory) = Directory::read(bytes) else {
        return;
    };
    let metadata = directory.metadata.view(bytes);
    for (key, value) in metadata.iter() {
        let _ = (metadata.strings(key), metadata.integers(key));
        let _ = (metadata.floats(key), metadata.unsigned(key));
        let _ = value.to_string();
    }
    for tensor in &directory.tensors {
        assert!(tensor.range.end <= bytes.len());
        let mut out = vec![0.0; tensor.elements()];
        dequantize(tensor.kind, &bytes[tensor.range.clone()], &mut out);
    }
}

proptest! {
    #[test]
    fn damaged_bytes_do_no_harm(damage in prop::collection::vec((0_usize..2000, any::<u8>()), 1..4)) {
        let mut bytes = llama().strings("words", &["a", "b"]).f32s("scores", &[1.0]).build();
        for (at, value) in damage {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        exercise(&bytes);
    }

    #[test]
    fn damaged_lengths_do_no_harm(at in 0_usize..2000, value: u64) {
        let mut bytes = llama().strings("words", &["a", "b"]).build();
        let at = at % (bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        exercise(&bytes);
    }

    #[test]
    fn any_bytes_do_no_harm(tail: Vec<u8>) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tail);
        exercise(&bytes);
    }
}
