//! A plan that somebody gives, in place of a measurement.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use backdraft_arch::{ModelSpec, Precision, QuantizationPlan};
use backdraft_formats::FormatError;

use crate::trained_with::TrainedWith;

/// Why a file does not say how a base is stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GivenPlanError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FormatError),
    /// It is another kind of file.
    #[error(
        "{}: expected a plan as `backdraft plan --measure --write` makes it, or an adapter over a quantized base: {message}",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// It names something that the model lacks.
    #[error("{}: the model has no projection {module:?}; was the plan made for another model?", path.display())]
    UnknownModule {
        /// The file.
        path: PathBuf,
        /// What it names.
        module: String,
    },
    /// Later points could not deal it out.
    #[error(
        "{}: a projection is stored in {scheme}, which is none of quantization.formats; add it there, or take bits out",
        path.display()
    )]
    NotDealt {
        /// The file.
        path: PathBuf,
        /// A scheme of the plan.
        scheme: String,
    },
}

/// A plan takes some hundred bytes for each projection; a file of more is another kind of file.
const LARGEST: u64 = 16 << 20;

/// Reads the plan at `path`: a file, or the directory of an adapter that was trained over a quantised base.
///
/// `formats` is what may be dealt out later, where anything is.
///
/// # Errors
/// A file that cannot be read, is no plan, or is not one for a model of that shape.
pub fn read_plan(
    path: &Path,
    spec: &ModelSpec,
    formats: Option<&[Precision]>,
) -> Result<QuantizationPlan, GivenPlanError> {
    let content = |message: String| GivenPlanError::Content {
        path: path.to_owned(),
        message,
    };
    let plan = if path.is_dir() {
        let noted = TrainedWith::read(path)?;
        let plan = noted.and_then(|noted| noted.over.quantization);
        plan.ok_or_else(|| content("it notes no quantization".to_owned()))?
    } else {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST).read_to_end(&mut bytes));
        read.map_err(FormatError::io(path, "read"))?;
        serde_json::from_slice(&bytes).map_err(|error| content(error.to_string()))?
    };
    let paths: Vec<String> = spec
        .projections()
        .map(|(layer, target)| target.path(layer))
        .collect();
    let named = plan.schemes.keys().map(String::as_str);
    // Everything skips the head, which is none of the projections.
    let skipped = plan
        .unmatched(&paths)
        .into_iter()
        .filter(|skip| *skip != "lm_head");
    let unknown = named.filter(|name| !paths.iter().any(|path| path == name));
    if let Some(module) = unknown.chain(skipped).next() {
        return Err(GivenPlanError::UnknownModule {
            path: path.to_owned(),
            module: module.to_owned(),
        });
    }
    if let Some(formats) = formats {
        let known = |scheme| formats.iter().any(|&one| plan.scheme_of(one) == scheme);
        if let Some(scheme) = plan.all_schemes().find(|scheme| !known(*scheme)) {
            return Err(GivenPlanError::NotDealt {
                path: path.to_owned(),
                scheme: scheme.to_string(),
            });
        }
    }
    Ok(plan)
}
