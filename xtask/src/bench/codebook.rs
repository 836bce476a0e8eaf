//! The values of nested codes.

use anyhow::ensure;
use backdraft_arch::NestedFormat;
use backdraft_arch::nested::derivation;

/// How far constants may be from what is computed: rounding to f32 may go the other way.
const ALLOWED: f32 = 1e-7;

/// Prints each table and compares it with the library's constants.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut largest = 0f32;
    for &format in NestedFormat::ALL {
        println!("{format}");
        for (computed, &written) in derivation::table(format).iter().zip(format.values()) {
            largest = largest.max((computed - written).abs());
            println!("    {computed:?},");
        }
    }
    println!("largest difference from the library's values: {largest:e}");
    ensure!(
        largest <= ALLOWED,
        "the library's values are others: put those above into crates/arch/src/nested/tables.rs"
    );
    Ok(())
}
