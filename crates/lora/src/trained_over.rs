//! What an adapter was trained over, noted beside it.

use std::path::Path;

use backdraft_formats::FormatError;
use backdraft_quant::{FourBitFormat, QuantizationPlan, Scheme};
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
    pub quantization: Option<Quantization>,
}

/// A [`QuantizationPlan`] in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "lowercase")]
pub enum Quantization {
    /// 4-bit NormalFloat.
    Nf4(FourBitNote),
    /// 4-bit floating point.
    Fp4(FourBitNote),
    /// 8 bits by rows.
    Int8 {
        /// Modules that stay as they are.
        skip_modules: Vec<String>,
    },
}

/// Details of 4-bit codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FourBitNote {
    /// Values that share a scale.
    pub block_size: usize,
    /// Whether the scales are quantised too.
    pub double_quant: bool,
    /// Modules that stay as they are.
    pub skip_modules: Vec<String>,
}

impl From<&QuantizationPlan> for Quantization {
    fn from(plan: &QuantizationPlan) -> Self {
        let skip_modules = plan.skip_modules.clone();
        match plan.scheme {
            Scheme::Int8 => Self::Int8 { skip_modules },
            Scheme::FourBit {
                format,
                block_size,
                double_quant,
            } => {
                let note = FourBitNote {
                    block_size,
                    double_quant,
                    skip_modules,
                };
                match format {
                    FourBitFormat::Nf4 => Self::Nf4(note),
                    FourBitFormat::Fp4 => Self::Fp4(note),
                }
            }
        }
    }
}

impl From<&Quantization> for QuantizationPlan {
    fn from(note: &Quantization) -> Self {
        let four_bit = |format, note: &FourBitNote| Self {
            scheme: Scheme::FourBit {
                format,
                block_size: note.block_size,
                double_quant: note.double_quant,
            },
            skip_modules: note.skip_modules.clone(),
        };
        match note {
            Quantization::Nf4(note) => four_bit(FourBitFormat::Nf4, note),
            Quantization::Fp4(note) => four_bit(FourBitFormat::Fp4, note),
            Quantization::Int8 { skip_modules } => Self {
                scheme: Scheme::Int8,
                skip_modules: skip_modules.clone(),
            },
        }
    }
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
        match &self.quantization {
            Some(Quantization::Nf4(four_bit) | Quantization::Fp4(four_bit))
                if ![64, 128].contains(&four_bit.block_size) =>
            {
                Err(FormatError::JsonField {
                    path: path.to_owned(),
                    field: "quantization.block_size".to_owned(),
                    expected: "64 or 128",
                    actual: four_bit.block_size.to_string(),
                })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_survive_a_file() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(TrainedOver::read(directory.path()).unwrap(), None);
        for scheme in [Scheme::NF4, Scheme::Int8] {
            let plan = QuantizationPlan::new(scheme);
            let note = TrainedOver {
                model: "org/name".to_owned(),
                fingerprint: "00".to_owned(),
                quantization: Some((&plan).into()),
            };
            std::fs::write(directory.path().join(TrainedOver::FILE), note.to_json()).unwrap();
            let read = TrainedOver::read(directory.path()).unwrap().unwrap();
            assert_eq!(read, note);
            assert_eq!(QuantizationPlan::from(&read.quantization.unwrap()), plan);
        }
        let broken = r#"{"model": "m", "fingerprint": "", "quantization":
            {"format": "nf4", "block_size": 0, "double_quant": true, "skip_modules": []}}"#;
        std::fs::write(directory.path().join(TrainedOver::FILE), broken).unwrap();
        let error = TrainedOver::read(directory.path()).unwrap_err().to_string();
        assert!(error.ends_with("`quantization.block_size` should be 64 or 128, but is 0"));
    }
}
