//! How often the diagnosis is right on curves that it was not tuned on, written into `BENCHMARKS.md`.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use backdraft_journal::diagnosis::Confusion;
use backdraft_journal::diagnosis::answers::confusion::PairConfusion;

use crate::section;

const BEGIN: &str = "<!-- cargo xtask bench diagnosis writes from here -->";

/// Diagnoses the curves of `seeds`, shows the matrix and puts it into `BENCHMARKS.md`.
pub(crate) fn run(seeds: &[u64], per_class: usize) -> anyhow::Result<()> {
    let confusion = Confusion::on_seeds(seeds.iter().copied(), per_class);
    let brief = Confusion::of_brief_runs(seeds.iter().copied(), per_class);
    let pairs = PairConfusion::on_seeds(seeds.iter().copied(), per_class);
    println!("{confusion}\n\n{brief}\n\n{pairs}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../BENCHMARKS.md");
    let text = fs::read_to_string(&path).context("BENCHMARKS.md")?;
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let section = format!(
        "Seeds {}, {per_class} curves of each class and seed.\n\n{confusion}\n\nTrials of 3 to 20 steps with up to 4 \
         evaluations, where no verdict is about evaluation:\n\n{brief}\n\nRuns over pairs, {per_class} of each seed, and what their \
         answers show:\n\n{pairs}",
        seeds.join(", ")
    );
    fs::write(&path, section::replace(&text, BEGIN, &section)?)?;
    for (confusion, least) in [(confusion, 0.95), (brief, 0.93)] {
        let accuracy = confusion.accuracy();
        ensure!(accuracy >= least, "accuracy {accuracy:.3} is below {least}");
    }
    Ok(())
}
