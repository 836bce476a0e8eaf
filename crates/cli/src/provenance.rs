//! Where a tuned model comes from: its base's card, the run, the data sets of the hub.

use std::path::Path;

use backdraft_formats::hub::{HubName, HubOptions, resolve_config};
use backdraft_formats::{CardHead, ModelSource};
use backdraft_journal::records;
use backdraft_journal::run_files::RunFiles;
use backdraft_recipe::{Recipe, SourceRecipe};

use crate::error::CliError;

/// Whether a model is named by its id on the hub, and not by a path of this machine.
pub(crate) fn is_hub_id(name: &str) -> bool {
    HubName::parse(name).is_some() && !Path::new(name).exists()
}

/// What the card of a model says, as far as it is on this machine: in the model's directory, in the cache, or among a
/// GGUF file's metadata. Asks nobody.
pub(crate) fn card_of(model: &str) -> CardHead {
    let offline = HubOptions {
        offline: true,
        ..HubOptions::from_env()
    };
    match resolve_config(model, &offline, &mut ()) {
        Ok(path) if path.is_dir() => CardHead::of_directory(&path),
        Ok(path) => {
            ModelSource::open(path).map_or_else(|_| CardHead::default(), |source| card_in(&source))
        }
        Err(_) => CardHead::default(),
    }
}

/// The same of a model that is open.
pub(crate) fn card_in(source: &ModelSource) -> CardHead {
    let ModelSource::Gguf(gguf) = source else {
        return CardHead::of_directory(source.path());
    };
    let metadata = gguf.file().metadata();
    // One of another type says nothing of a licence.
    let text = |key: &str| metadata.str(key).ok().flatten();
    CardHead::default()
        .with("license", text("general.license"))
        .with("license_name", text("general.license.name"))
        .with("license_link", text("general.license.link"))
}

/// The run in whose output directory an adapter lies; `None` for an adapter that lies elsewhere.
pub(crate) fn run_of(adapter: &Path) -> Result<Option<RunFiles>, CliError> {
    let absolute = std::path::absolute(adapter).unwrap_or_else(|_| adapter.to_owned());
    let directory = match absolute.parent() {
        Some(parent) if absolute.ends_with("adapter") => parent,
        _ => return Ok(None),
    };
    match directory.join(records::FILE).is_file() {
        true => Ok(Some(RunFiles::read(directory)?)),
        false => Ok(None),
    }
}

/// The hub ids of the data sets that a run was trained on.
pub(crate) fn datasets(run: &RunFiles) -> Vec<String> {
    let recipe = Recipe::from_stored(&run.recipe, &run.directory);
    let mut ids = Vec::new();
    for source in recipe.iter().flat_map(|recipe| &recipe.data.train.0) {
        if let Some(id) = dataset(source)
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    ids
}

/// The id of a source that is one of the hub's.
fn dataset(source: &SourceRecipe) -> Option<String> {
    // Recipes name whatever is on this machine by absolute paths.
    let (name, _) = HubName::parse_dataset(&source.path)?;
    Some(name.repository().to_owned())
}
