//! A model off the grid of its file: SmolLM2 comes in Q4_1, so that NF4 is a second loss there. Each weight of a projection moves by
//! up to half a step of its block (times an amount), either way, so that the error of NF4 is that of weights that were never in codes.

use std::path::Path;

use backdraft_formats::{Dtype, Existing, HfDirWriter, ModelSource, TensorInfo};

/// Values that share a scale in Q4_1, and steps between the least and the largest of them.
const BLOCK: usize = 32;
const STEPS: f32 = 15.0;

/// Writes `out`, a Hugging Face directory in f32.
pub(crate) fn write(model: &Path, out: &Path, amount: f32, seed: u64) -> anyhow::Result<()> {
    let source = ModelSource::open(model)?;
    let infos: Vec<TensorInfo> = source
        .tensor_names()
        .filter(|name| *name != "rope_freqs.weight")
        .filter_map(|name| source.tensor_info(name))
        .map(|info| TensorInfo {
            dtype: Dtype::F32,
            ..info.clone()
        })
        .collect();
    let mut writer = HfDirWriter::create(out, infos.clone(), Existing::Refuse)?;
    for (name, bytes) in source.companion_files()? {
        writer.companion(&name, &bytes)?;
    }
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    for info in &infos {
        let mut values = source.read_f32(&info.name)?;
        if info.name.ends_with("_proj.weight") {
            for block in values.chunks_mut(BLOCK) {
                let (low, high) = block.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| {
                    (low.min(v), high.max(v))
                });
                let step = (high - low) / STEPS;
                block
                    .iter_mut()
                    .for_each(|value| *value += amount * step * uniform());
            }
        }
        writer.write(&info.name, &info.encode(out, &values)?)?;
    }
    println!(
        "{:.1} MB in {}",
        writer.finish()? as f64 / 1e6,
        out.display()
    );
    Ok(())
}
