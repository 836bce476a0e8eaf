//! What an adapter was trained over, noted beside it.

use std::path::Path;

use backdraft_formats::FormatError;
use backdraft_quant::QuantizationPlan;
use serde::{Deserialize, Serialize};

/// The base that an adapter was trained over. PEFT has no place for how the base was quantised, and an
/// adapter learns to make up for the errors of just that quantisation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedOver {
    /// The model's name or path.
    pub model: String,
    /// The model's fingerprint.
    pub fingerprint: String,
    /// How its projections were quantised while it was loaded.
    pub quantization: Option<QuantizationPlan>,
}

impl TrainedOver {
    /// The file's name in an adapter's directory, as earlier versions wrote it alone.
    pub const FILE: &str = "trained_over.json";

    /// The file's contents.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// The note in an adapter's directory; `None` for an adapter that was made elsewhere.
    ///
    /// # Errors
    /// A note that is malformed.
    pub fn read(directory: &Path) -> Result<Option<Self>, FormatError> {
        let path = directory.join(Self::FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FormatError::io(path, "read")(error)),
        };
        let note: Self = serde_json::from_slice(&bytes).map_err(|source| FormatError::Json {
            path: path.clone(),
            source,
        })?;
        note.check(&path)?;
        Ok(Some(note))
    }

    /// Refuses values that no quantisation has; `path` is where they were read.
    ///
    /// # Errors
    /// [`FormatError::JsonField`].
    pub fn check(&self, path: &Path) -> Result<(), FormatError> {
        let sizes = self
            .quantization
            .iter()
            .flat_map(QuantizationPlan::all_schemes);
        let mut sizes = sizes.filter_map(|scheme| Some(scheme.blocks()?.0));
        match sizes.find(|size| ![64, 128].contains(size)) {
            None => Ok(()),
            Some(actual) => Err(FormatError::JsonField {
                path: path.to_owned(),
                field: "quantization.block_size".to_owned(),
                expected: "64 or 128",
                actual: actual.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use backdraft_quant::{NestedFormat, Scheme};

    use super::*;

    #[test]
    fn notes_survive_a_file() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(TrainedOver::read(directory.path()).unwrap(), None);
        for scheme in [Scheme::NF4, Scheme::Int8] {
            let nf6 = Scheme::nested(NestedFormat::Nf6);
            let plan = QuantizationPlan::new(scheme).with_scheme("model.layers.0.mlp.up_proj", nf6);
            let note = TrainedOver {
                model: "org/name".to_owned(),
                fingerprint: "00".to_owned(),
                quantization: Some(plan.clone()),
            };
            std::fs::write(directory.path().join(TrainedOver::FILE), note.to_json()).unwrap();
            let read = TrainedOver::read(directory.path()).unwrap().unwrap();
            assert_eq!(read, note);
            assert_eq!(read.quantization, Some(plan));
        }
        let broken = r#"{"model": "m", "fingerprint": "", "quantization":
            {"format": "nf4", "block_size": 0, "double_quant": true, "skip_modules": []}}"#;
        std::fs::write(directory.path().join(TrainedOver::FILE), broken).unwrap();
        let error = TrainedOver::read(directory.path()).unwrap_err().to_string();
        assert!(error.ends_with("`quantization.block_size` should be 64 or 128, but is 0"));
    }
}
