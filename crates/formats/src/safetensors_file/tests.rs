use std::fs;

use proptest::prelude::*;
use safetensors::SafeTensors;

use super::*;
use crate::Existing;
use crate::dtype::from_f32;
use crate::safetensors_writer::SafetensorsWriter;

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn open(bytes: &[u8]) -> Result<SafetensorsFile> {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.safetensors");
    fs::write(&path, bytes).unwrap();
    SafetensorsFile::open(path)
}

fn problem(bytes: &[u8]) -> SafetensorsError {
    match open(bytes).unwrap_err() {
        FormatError::Safetensors { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

/// Two tensors of different types, written by our writer.
fn small_file() -> Vec<u8> {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.safetensors");
    let infos = [
        TensorInfo::new("half", Dtype::BF16, [3]),
        TensorInfo::new("full", Dtype::F32, [1, 2]),
    ];
    let mut writer = SafetensorsWriter::create(&path, infos, Existing::Refuse).unwrap();
    let half = from_f32(Dtype::BF16, &[1.0, 2.0, 3.0]).unwrap();
    let full = from_f32(Dtype::F32, &[4.0, 5.0]).unwrap();
    // In another order than the file's.
    writer.write("half", &half).unwrap();
    writer.write("full", &full).unwrap();
    writer.finish().unwrap();
    fs::read(path).unwrap()
}

#[test]
fn written_file_is_read_by_both() {
    let bytes = small_file();
    let ours = open(&bytes).unwrap();
    assert_eq!(ours.metadata()["format"], "pt");
    assert_eq!(ours.read_f32("half").unwrap(), [1.0, 2.0, 3.0]);
    assert_eq!(ours.read_f32("full").unwrap(), [4.0, 5.0]);
    assert_eq!(ours.info("full").unwrap().shape, [1, 2]);
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["half", "full"] {
        let tensor = theirs.tensor(name).unwrap();
        assert_eq!(tensor.data(), &*ours.raw(name).unwrap().bytes);
    }
    let missing = ours.read_f32("other").unwrap_err();
    assert!(matches!(missing, FormatError::TensorMissing { tensor, .. } if tensor == "other"));
}

#[test]
fn writer_wants_every_tensor_once_and_whole() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.safetensors");
    let infos = || [TensorInfo::new("a", Dtype::U8, [2])];
    let mut writer = SafetensorsWriter::create(&path, infos(), Existing::Refuse).unwrap();
    assert!(writer.write("b", &[1, 2]).is_err());
    assert!(writer.write("a", &[1]).is_err());
    writer.write("a", &[1, 2]).unwrap();
    assert!(writer.write("a", &[1, 2]).is_err());
    drop(writer);
    let writer = SafetensorsWriter::create(&path, infos(), Existing::Refuse).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(error.to_string().contains("never written: tensor a"));
    let twice = infos().into_iter().chain(infos());
    assert!(SafetensorsWriter::create(&path, twice, Existing::Refuse).is_err());
    let huge = [TensorInfo::new("a", Dtype::F32, [usize::MAX, 2])];
    assert!(SafetensorsWriter::create(&path, huge, Existing::Refuse).is_err());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}

#[test]
fn every_rule_is_enforced() {
    let one = |info: &str| format!(r#"{{"t":{info}}}"#);
    let ok = r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
    assert!(open(&with_header(&one(ok), &[0; 4])).is_ok());
    use SafetensorsError as E;
    type Case = (Vec<u8>, fn(&E) -> bool);
    let cases: [Case; 13] = [
        (vec![], |e| matches!(e, E::Truncated { .. })),
        (vec![1, 0, 0], |e| matches!(e, E::Truncated { .. })),
        (100_000_001_u64.to_le_bytes().to_vec(), |e| {
            matches!(e, E::HeaderTooLong { .. })
        }),
        (100_u64.to_le_bytes().to_vec(), |e| {
            matches!(e, E::Truncated { .. })
        }),
        (with_header("[]", &[]), |e| matches!(e, E::Header(_))),
        (with_header("{\"\u{1}", &[]), |e| matches!(e, E::Header(_))),
        (
            with_header(&format!(r#"{{"t":{ok},"t":{ok}}}"#), &[0; 4]),
            |e| matches!(e, E::Offsets { .. } | E::Duplicate { .. }),
        ),
        (
            with_header(
                &one(r#"{"dtype":"F4","shape":[4],"data_offsets":[0,2]}"#),
                &[0; 2],
            ),
            |e| matches!(e, E::UnknownDtype { actual, .. } if actual == "F4"),
        ),
        (
            with_header(
                &one(r#"{"dtype":"U8","shape":[4],"data_offsets":[1,5]}"#),
                &[0; 5],
            ),
            |e| matches!(e, E::Offsets { expected: 0, .. }),
        ),
        (
            with_header(
                &one(r#"{"dtype":"F32","shape":[4],"data_offsets":[0,4]}"#),
                &[0; 4],
            ),
            |e| {
                matches!(
                    e,
                    E::Size {
                        expected: 16,
                        actual: 4,
                        ..
                    }
                )
            },
        ),
        (
            with_header(
                &one(r#"{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}"#),
                &[],
            ),
            |e| matches!(e, E::ShapeOverflow { .. }),
        ),
        (with_header(&one(ok), &[0; 5]), |e| {
            matches!(e, E::FileLength { .. })
        }),
        (with_header(&one(ok), &[0; 3]), |e| {
            matches!(e, E::FileLength { .. })
        }),
    ];
    for (bytes, expected) in cases {
        let problem = problem(&bytes);
        assert!(expected(&problem), "{problem:?}");
    }
}

#[test]
fn empty_tensors_of_one_name_are_duplicates() {
    let empty = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let header = format!(r#"{{"t":{empty},"t":{empty}}}"#);
    let problem = problem(&with_header(&header, &[]));
    assert!(matches!(problem, SafetensorsError::Duplicate { tensor } if tensor == "t"));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small_file();
    for length in 0..bytes.len() {
        problem(&bytes[..length]);
    }
}

#[test]
fn directories_and_missing_files_are_errors() {
    let root = tempfile::tempdir().unwrap();
    assert!(SafetensorsFile::open(root.path()).is_err());
    let missing = SafetensorsFile::open(root.path().join("x")).unwrap_err();
    assert!(matches!(missing, FormatError::NotFound { .. }));
}

/// Whatever the reference reader refuses is refused; what it takes is taken, unless a name
/// appears twice.
fn compare_with_reference(bytes: &[u8]) {
    let ours = Header::parse(bytes);
    let theirs = SafeTensors::deserialize(bytes);
    match (&ours, &theirs) {
        (Ok(header), Ok(theirs)) => assert_eq!(header.infos.len(), theirs.len()),
        (Err(_), Err(_)) => {}
        (Ok(header), Err(error)) => panic!("we take what they refuse ({error}): {header:?}"),
        (Err(SafetensorsError::Duplicate { .. } | SafetensorsError::Offsets { .. }), Ok(_)) => {}
        // Sub-byte types, or a repeated key of another kind.
        (Err(SafetensorsError::UnknownDtype { .. } | SafetensorsError::Header(_)), Ok(_)) => {}
        (Err(error), Ok(_)) => panic!("we refuse what they take: {error}"),
    }
}

proptest! {
    #[test]
    fn flipped_bytes_do_no_harm(at in 0_usize..300, value: u8) {
        let mut bytes = small_file();
        let at = at % bytes.len();
        bytes[at] = value;
        compare_with_reference(&bytes);
    }

    #[test]
    fn odd_headers_do_no_harm(
        shape in prop::collection::vec(0_u64..5, 0..3),
        start in 0_u64..3,
        end in 0_u64..40,
        dtype in prop::sample::select(vec!["F32", "BF16", "U8", "F64", "F4", "X"]),
        data in 0_usize..40,
    ) {
        let header = format!(
            r#"{{"t":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}}}"#
        );
        compare_with_reference(&with_header(&header, &vec![0; data]));
    }
}
