//! Documents cut into runs of rows, written to a CubeCL device.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;

use burn_cubecl::CubeDevice;
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::cube::CubeTensor;
use crate::segments::Segments;

/// Numbers of a run: its first row and the row behind its last, then those of its document.
pub(crate) const RUN: usize = 4;

/// Numbers of a document: its first run and the run behind its last, then which of the documents it is.
pub(crate) const DOCUMENT: usize = 3;

/// Which documents are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Documents {
    All,
    /// Those that have one row.
    OfOneRow,
    /// All others.
    Others,
}

impl Documents {
    const fn has(self, rows: usize) -> bool {
        match self {
            Self::All => true,
            Self::OfOneRow => rows == 1,
            Self::Others => rows != 1,
        }
    }
}

/// Runs and documents in device memory; long documents come first, their runs in the order of rows.
#[derive(Clone, Debug)]
pub(crate) struct Runs {
    runs: Handle,
    documents: Handle,
    /// How many runs there are.
    pub(crate) count: usize,
    /// How many documents there are, those without a row included.
    pub(crate) document_count: usize,
}

impl Runs {
    pub(crate) fn runs(&self) -> BufferArg {
        numbers(&self.runs, self.count * RUN)
    }

    pub(crate) fn documents(&self) -> BufferArg {
        numbers(&self.documents, self.document_count * DOCUMENT)
    }
}

#[expect(unsafe_code, reason = "CubeCL takes lengths on trust")]
fn numbers(handle: &Handle, count: usize) -> BufferArg {
    // SAFETY: `cut` wrote so many numbers.
    unsafe { BufferArg::from_raw_parts(handle.clone(), count) }
}

/// What is cut: device, rows of a run, which documents, and where each begins.
type Key = (CubeDevice, usize, Documents, Vec<usize>);

thread_local! {
    /// Every layer of a pass works on the same runs.
    static WRITTEN: RefCell<HashMap<Key, Runs>> = RefCell::default();
}

/// Micro-batches whose runs are kept.
const KEPT: usize = 64;

/// Runs of at most `rows` rows, beside `like`.
pub(crate) fn runs(segments: &Segments, rows: usize, which: Documents, like: &CubeTensor) -> Runs {
    WRITTEN.with_borrow_mut(|written| {
        let mut bounds: Vec<usize> = segments.iter().map(|(rows, _)| rows.start).collect();
        bounds.push(segments.queries());
        let key = (like.device.clone(), rows, which, bounds);
        if let Some(runs) = written.get(&key) {
            return runs.clone();
        }
        if written.len() >= KEPT {
            written.clear();
        }
        let documents = segments.iter().map(|(rows, _)| rows).enumerate();
        let (runs, documents) = cut(documents.filter(|(_, own)| which.has(own.len())), rows);
        let write = |numbers: &[u32]| {
            let mut bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_ne_bytes()).collect();
            // There is no memory of no size.
            bytes.resize(bytes.len().max(size_of::<u32>()), 0);
            like.client.create_from_slice(&bytes)
        };
        let runs = Runs {
            runs: write(runs.as_flattened()),
            documents: write(documents.as_flattened()),
            count: runs.len(),
            document_count: documents.len(),
        };
        written.insert(key, runs.clone());
        runs
    })
}

/// Lets this thread's runs go.
pub(crate) fn forget() {
    WRITTEN.with_borrow_mut(HashMap::clear);
}

type Cut = (Vec<[u32; RUN]>, Vec<[u32; DOCUMENT]>);

fn cut(documents: impl Iterator<Item = (usize, Range<usize>)>, rows: usize) -> Cut {
    let mut documents: Vec<_> = documents.collect();
    documents.sort_by_key(|(_, own)| std::cmp::Reverse(own.len()));
    let (mut runs, mut cut) = (Vec::new(), Vec::new());
    for (index, own) in documents {
        let before = runs.len();
        for first in own.clone().step_by(rows) {
            let end = (first + rows).min(own.end);
            runs.push([first, end, own.start, own.end].map(|row| row as u32));
        }
        cut.push([before, runs.len(), index].map(|number| number as u32));
    }
    (runs, cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_each_row_once_and_long_documents_come_first() {
        let documents = [0..5, 5..5, 5..38, 38..39];
        let (runs, cut) = cut(documents.into_iter().enumerate(), 16);
        let mut rows: Vec<u32> = runs.iter().flat_map(|run| run[0]..run[1]).collect();
        rows.sort_unstable();
        assert_eq!(rows, (0..39).collect::<Vec<_>>());
        assert_eq!(runs[..2], [[5, 21, 5, 38], [21, 37, 5, 38]]);
        assert_eq!(cut, [[0, 3, 2], [3, 4, 0], [4, 5, 3], [5, 5, 1]]);
    }
}
