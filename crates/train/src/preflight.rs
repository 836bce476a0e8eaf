//! What keeps a run from starting and is known from the recipe, the machine and the headers of files: refused
//! before rows are read or weights are loaded, which may take an hour.
//!
//! Nothing here claims anything. What has changed by the time a run starts is found again when it does.

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::Path;

use backdraft_arch::lora_targets::match_adapted;
use backdraft_arch::{BaseHome, QuantizationPlan};
use backdraft_data::Source;
use backdraft_formats::ModelSource;
use backdraft_kernels::device::report;
use backdraft_kernels::offload;
use backdraft_lora::base::scheme;
use backdraft_model::ModelSpec;
use backdraft_plan::memory;
use backdraft_plan::tensors::PassShape;
use backdraft_plan::{Exhausted, Limit, Setup, Shortage};
use backdraft_recipe::{ByteSize, DataRecipe, EvalRecipe, GROUPS, Recipe, bytes_of};
use burn::tensor::{self, Device};

use crate::adapt::Adaptation;
use crate::clear;
use crate::data::data_error;
use crate::device::{DeviceFacts, dtype_on};
use crate::error::TrainError;
use crate::lock::{self, RunLock};
use crate::run::{self, Start, going_on};

/// Refuses an output directory that a run cannot have.
///
/// # Errors
/// A directory that holds a run, where `start` does not replace or continue it; one that another process writes to;
/// a path that is a file, lies in one, or cannot be written to.
pub fn output_dir(path: &Path, start: &Start) -> Result<(), TrainError> {
    let cannot = |source| TrainError::OutputDir {
        path: path.to_owned(),
        source,
    };
    let parent = existing(path).map_err(cannot)?;
    if !parent.is_dir() {
        return Err(TrainError::OutputIsFile {
            path: path.to_owned(),
            file: parent.to_owned(),
        });
    }
    let Start::New { force } = *start else {
        // A run that is continued holds its directory already.
        return Ok(());
    };
    if lock::is_held(path) {
        // Says who has it.
        RunLock::acquire(path)?;
    }
    if let Some(path) = clear::users_recipe(path) {
        return Err(TrainError::RecipeInOutput { path });
    }
    if !force && run::holds_run(path) {
        return Err(TrainError::OutputExists {
            path: path.to_owned(),
        });
    }
    writable(parent).map_err(cannot)
}

/// The path itself, or the nearest part of it that is there.
///
/// # Errors
/// A part that may not be looked at.
pub fn existing(path: &Path) -> std::io::Result<&Path> {
    for part in path.ancestors() {
        match fs::metadata(part) {
            Ok(_) => return Ok(part),
            // A name below a file is no directory, and the file is what is looked for.
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Path::new("."))
}

/// Whether a file can be made there: the only question that every system answers truly.
///
/// # Errors
/// It cannot.
pub fn writable(directory: &Path) -> std::io::Result<()> {
    let path = directory.join(format!(".backdraft-{}", std::process::id()));
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)?;
    fs::remove_file(path)
}

/// Refuses rows that are not there. Those of the hub are not asked for.
///
/// # Errors
/// The first source that is no file, folder or glob.
pub fn sources(recipe: &DataRecipe) -> Result<(), TrainError> {
    let eval = match &recipe.eval {
        Some(EvalRecipe::Sources(sources)) => sources.0.as_slice(),
        Some(EvalRecipe::Fraction(_)) | None => &[],
    };
    let sets = recipe.eval_sets.values().flat_map(|sources| &sources.0);
    let local = recipe.train.0.iter().chain(eval).chain(sets);
    for source in local.filter(|source| !source.is_hub()) {
        // What is there may be a pipe, which is opened once.
        if !Path::new(&source.path).exists() {
            Source::open(&source.path).map_err(data_error(Path::new(&source.path)))?;
        }
    }
    Ok(())
}

/// Refuses an adapter to go on from that does not fit a model of that shape, where no checkpoint takes its place.
///
/// # Errors
/// Files that cannot be read, modules or ranks that are not those of the recipe, factors of other shapes.
pub fn adapter(recipe: &Recipe, spec: &ModelSpec, start: &Start) -> Result<(), TrainError> {
    if start.goes_on() {
        return Ok(());
    }
    let spec = recipe.shaped(spec.clone());
    let lora = recipe.trained(&spec)?;
    going_on::check(recipe, &lora, &spec)
}

/// Refuses a recipe that does not fit a model of that shape, or a model that does not fit the memory.
///
/// `plan` is how the base is kept. `quantized` says that the model's files hold codes already, whose size the shape does
/// not tell.
///
/// # Errors
/// A number format that the device lacks, layers or projections that the model lacks, and a budget below what the
/// least step of one row would need.
pub fn model(
    recipe: &Recipe,
    spec: &ModelSpec,
    plan: Option<&QuantizationPlan>,
    (device, quantized): (&Device, bool),
) -> Result<(), TrainError> {
    let dtype = dtype_on(recipe.dtype, device)?;
    shape(recipe, spec)?;
    if recipe.base == BaseHome::Host && !offload::is_there(device) {
        return Err(TrainError::HostBase {
            device: report(device).name,
        });
    }
    if quantized {
        return match adaptive_key(recipe) {
            Some(key) => Err(TrainError::StoredInCodes { key }),
            None => Ok(()),
        };
    }
    let facts = DeviceFacts::of(device, dtype.size() as u64);
    let setup = recipe.setup(spec.clone(), plan.cloned(), facts.memory, facts.host);
    let setup = setup.before_loading();
    device_memory(recipe, &setup, &facts)?;
    host_memory(setup.host_bytes(), memory::free())
}

/// Refuses a base that is to stay in the host's memory, which has no room for it, by the codes that its files have or the plan makes.
///
/// # Errors
/// A configuration that cannot be read; less memory than the matrices of its layers take.
pub(crate) fn stored_on_host(
    source: &ModelSource,
    plan: Option<&QuantizationPlan>,
    dtype: tensor::DType,
) -> Result<(), TrainError> {
    let spec = backdraft_model::spec(source)?;
    let bytes = spec.projections().map(|(layer, target)| {
        let (path, dims) = (target.path(layer), spec.layers[layer].shape(target));
        let stored = source.bnb_kind(&format!("{path}.weight")).map(scheme);
        match stored.or_else(|| plan.and_then(|plan| plan.scheme_for(&path))) {
            Some(scheme) => scheme.num_bytes(dims),
            None => dims[0] * dims[1] * dtype.size(),
        }
    });
    host_memory(bytes.sum::<usize>() as u64, memory::free())
}

/// Refuses a base that is to stay in the host's memory and does not fit into what is free of it.
fn host_memory(needed: u64, free: Option<u64>) -> Result<(), TrainError> {
    match free {
        Some(free) if needed > memory::usable(free) => Err(TrainError::HostMemory { needed, free }),
        _ => Ok(()),
    }
}

/// The key that asks for something to be measured against the unquantised weights.
fn adaptive_key(recipe: &Recipe) -> Option<&'static str> {
    let asked = &recipe.quantization;
    let keys = [
        ("quantization.bits", asked.bits.is_some()),
        ("quantization.base_memory", asked.base_memory.is_some()),
        ("quantization.plan", asked.plan.is_some()),
        ("lora.init", Adaptation::is_asked(recipe)),
    ];
    keys.into_iter()
        .find_map(|(key, is_asked)| is_asked.then_some(key))
}

/// Refuses a recipe that does not fit a model of that shape, on whatever device.
///
/// # Errors
/// Layers or projections that the model lacks, groups without any module, and fewer bits than the smallest formats take.
pub fn shape(recipe: &Recipe, spec: &ModelSpec) -> Result<(), TrainError> {
    let spec = &recipe.shaped(spec.clone());
    let lora = recipe.trained(spec)?;
    match_adapted(GROUPS, &recipe.train.group_rates(), &lora, spec)?;
    let (Some(bits), Some(plan)) = (recipe.mean_bits(), recipe.quantization_plan()) else {
        return Ok(());
    };
    let (least, values) = recipe.least_bytes(&plan, spec);
    if bytes_of(bits, values) >= least {
        return Ok(());
    }
    Err(TrainError::TooFewBits {
        bits,
        formats: recipe.quantization.formats.clone(),
    })
}

fn device_memory(recipe: &Recipe, setup: &Setup, facts: &DeviceFacts) -> Result<(), TrainError> {
    let budget = match (recipe.memory_budget, facts.capacity) {
        (Some(ByteSize(budget)), _) => Some(budget),
        (None, Some(capacity)) => Some(memory::usable(capacity)),
        (None, None) => facts.watch().obtainable(),
    };
    // How long the rows are shows later; none is shorter than this.
    let pass = PassShape::of_texts([2], recipe.objective.scores());
    let mut step = setup.step();
    step.page = step.page_for(pass);
    let needed = step.least_peak(pass);
    match budget {
        Some(budget) if needed > budget => Err(TrainError::OutOfMemory {
            step: 1,
            exhausted: Exhausted {
                needed,
                budget,
                base: step.base,
                limit: Limit::of(recipe.memory_budget.map(|bytes| bytes.0), budget),
                advice: setup.advice(Shortage { needed, budget }),
            },
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_that_the_hosts_memory_has_no_room_for_is_refused() {
        const GIB: u64 = 1 << 30;
        assert!(host_memory(30 * GIB, Some(32 * GIB)).is_ok());
        assert!(host_memory(99 * GIB, None).is_ok());
        let refused = host_memory(35 * GIB, Some(32 * GIB)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "base = \"host\" keeps 35.00 GiB of the base in host memory, of which 32.00 GiB are free and 30.00 GiB can be used"
        );
    }

    #[test]
    fn a_base_in_host_memory_needs_copies_beside_the_computation() {
        let spec = ModelSpec::from_hf(&serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512, "tie_word_embeddings": false,
        }))
        .unwrap();
        let text = "model = \"org/name\"\nbase = \"host\"\ndata.train = \"rows.jsonl\"\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe.toml");
        fs::write(&path, text).unwrap();
        let recipe = Recipe::load(&path, &[]).unwrap();
        let refused = model(&recipe, &spec, None, (&Device::flex(), false)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "base = \"host\" needs a GPU that layers come to by CUDA; this is cpu"
        );
    }
}
