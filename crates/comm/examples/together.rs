//! Meets whoever was started beside it, and adds the blocks of one gradient.
//!
//! ```sh
//! torchrun --nproc-per-node 2 --no-python target/debug/examples/together
//! mpirun -n 4 target/debug/examples/together
//! target/debug/examples/together          # alone: the same sum
//! ```
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Duration;

use backdraft_comm::{BlockSums, Fingerprints, Start, World};

const BLOCKS: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let start = Start::from_env()?;
    let world = World::join(&start, "this machine", Duration::from_secs(30))?;
    world.agree(&Fingerprints::new().with("version", env!("CARGO_PKG_VERSION")))?;

    let mut engine = world.store_engine()?;
    let mut sums = BlockSums::new(world.rank(), world.size(), BLOCKS, 1000);
    for block in sums.range() {
        sums.push(
            (0..1000)
                .map(|i| (i as f32 + 1.0).sqrt() / (block as f32 + 1.0))
                .collect(),
        );
    }
    let blocks = sums.range();
    let sum = sums.finish(&mut *engine)?;
    let bits = sum.iter().fold(0_u64, |bits, number| {
        bits.rotate_left(7).wrapping_mul(31) ^ u64::from(number.to_bits())
    });
    println!(
        "rank {} of {} by {}, local {}, blocks {blocks:?}: {bits:016x}",
        world.rank(),
        world.size(),
        start.launcher,
        world.local_rank(),
    );
    world.leave()?;
    Ok(())
}
