//! Any bytes as a Parquet file: rows or an error.
#![no_main]

use std::io::Write;

use backdraft_data::Source;
use backdraft_data::source::{DecompressLimits, RowReader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: {
        // The parquet crate's panics are caught where it is called; those that are not still end
        // the run.
        std::panic::set_hook(Box::new(|_| {}));
    },
    |bytes: &[u8]| {
        let mut file = tempfile::Builder::new().suffix(".parquet").tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let source = Source::from_file(file.path());
        for row in RowReader::new(&source.files, DecompressLimits::default()).take(10_000) {
            let _ = row;
        }
    }
);
