//! Models in several files: `NAME-00001-of-00003.gguf` and so on, all metadata in the first.

use std::path::{Path, PathBuf};

use super::error::GgufError;
use super::value::GgufMetadata;

/// `NAME.gguf`, or the name of one of several parts.
pub(super) fn part_path(path: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}{}", ending(index, count)))
}

fn ending(index: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", index + 1)
}

/// Where the other parts of a model lie whose first part is `path`; none for a model in one file.
pub(super) fn other_parts(
    path: &Path,
    metadata: GgufMetadata<'_>,
) -> Result<Vec<PathBuf>, GgufError> {
    let count = metadata.unsigned("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(Vec::new());
    }
    // The format counts parts in 16 bits.
    let (Ok(parts), number) = (u16::try_from(count), metadata.unsigned("split.no")?) else {
        return Err(GgufError::KeyValue {
            key: "split.count".into(),
            expected: "at most 65535 parts",
            actual: count.to_string(),
        });
    };
    let count = usize::from(parts);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(&ending(0, count));
    match (number, stem) {
        (Some(0), Some(stem)) => Ok((1..count)
            .map(|index| path.with_file_name(format!("{stem}{}", ending(index, count))))
            .collect()),
        _ => Err(GgufError::Split {
            parts: count as u64,
            number: number.map_or_else(|| "?".to_owned(), |number| (number + 1).to_string()),
            expected: ending(0, count),
        }),
    }
}
