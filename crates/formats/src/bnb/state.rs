//! The tensors around a quantised weight: found, checked, read and written.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{BnbAbsmax, BnbFourBit, BnbInt8, BnbKind, BnbMaps, BnbTensor};
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::tensor::{RawTensor, TensorInfo};

/// Scales to one nested scale.
pub(super) const NESTED_BLOCK_SIZE: usize = 256;
/// Bytes of the state that a writer reserves before it knows the offset's digits.
pub(super) const PADDED: usize = 320;
/// Bytes of the state that a reader parses; real ones have some 200.
const MAX_STATE: usize = 1 << 14;
const MAX_BLOCK_SIZE: usize = 4096;
/// The `weight_format` of 8-bit codes that lie row by row.
pub(super) const ROW_MAJOR: u8 = 0;

/// What 4-bit codes stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BnbQuantType {
    /// 4-bit NormalFloat.
    Nf4,
    /// 4-bit floating point.
    Fp4,
}

impl BnbQuantType {
    /// The name in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        }
    }
}

pub(super) fn suffix(quant_type: BnbQuantType) -> String {
    format!("quant_state.bitsandbytes__{}", quant_type.name())
}

/// A type as torch calls it.
pub(super) fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// The JSON of a 4-bit weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct State {
    quant_type: BnbQuantType,
    blocksize: usize,
    dtype: String,
    shape: [usize; 2],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f32>,
}

/// The state of the weight `name`, padded with blanks to its fixed length; `path` is what it is written to.
///
/// # Errors
/// An offset that is not finite, which JSON has no form for.
pub(super) fn write(path: &Path, name: &str, weight: &BnbFourBit<'_>) -> Result<Vec<u8>> {
    let nested = match weight.absmax {
        BnbAbsmax::Single(_) => None,
        BnbAbsmax::Nested { offset, .. } => Some(offset),
    };
    if let Some(offset) = nested.filter(|offset| !offset.is_finite()) {
        let expected = "a nested_offset that is a finite number";
        let state = format!("{name}.{}", suffix(weight.quant_type));
        return Err(malformed(path, &state, expected, offset.to_string()));
    }
    let state = State {
        quant_type: weight.quant_type,
        blocksize: weight.block_size,
        dtype: torch_name(weight.dtype).to_owned(),
        shape: weight.shape,
        nested_blocksize: nested.map(|_| NESTED_BLOCK_SIZE),
        nested_dtype: nested.map(|_| "float32".to_owned()),
        nested_offset: nested,
    };
    let mut json = serde_json::to_vec(&state).map_err(FormatError::encode(path))?;
    json.resize(PADDED.max(json.len()), b' ');
    Ok(json)
}

/// A quantised weight of a directory.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The weight as it would be without quantisation.
    pub(crate) info: TensorInfo,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    FourBit(State),
    Int8,
}

/// Looks up tensors of a directory by name.
pub(crate) trait Lookup {
    fn info(&self, name: &str) -> Option<&TensorInfo>;
    fn raw(&self, name: &str) -> Result<RawTensor<'_>>;
}

/// Every quantised weight among `names`, and the names that only serve one of them.
///
/// # Errors
/// A weight in codes whose state is missing or malformed.
pub(crate) fn find<'a>(
    path: &Path,
    names: impl Iterator<Item = &'a str>,
    tensors: &impl Lookup,
) -> Result<(HashMap<String, Entry>, Vec<String>)> {
    let (mut entries, mut parts) = (HashMap::new(), Vec::new());
    for name in names.filter(|name| name.ends_with(".weight")) {
        let states = [BnbQuantType::Nf4, BnbQuantType::Fp4]
            .map(|quant_type| format!("{name}.{}", suffix(quant_type)));
        let scb = format!("{}.SCB", name.trim_end_matches(".weight"));
        if let Some(state) = states.iter().find(|state| tensors.info(state).is_some()) {
            let entry = four_bit(path, name, state, tensors)?;
            entries.insert(name.to_owned(), entry);
            let rest = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];
            parts.extend(rest.map(|rest| format!("{name}.{rest}")));
            parts.push(state.clone());
        } else if tensors.info(&scb).is_some() {
            let format = format!("{}.weight_format", name.trim_end_matches(".weight"));
            entries.insert(name.to_owned(), int8(path, name, (&scb, &format), tensors)?);
            parts.extend([format, scb]);
        } else if tensors.info(&format!("{name}.absmax")).is_some() {
            return Err(malformed(
                path,
                &format!("{name}.{}", suffix(BnbQuantType::Nf4)),
                "the state of a 4-bit weight (this one has scales, so it is in codes)",
                "no such tensor",
            ));
        }
    }
    Ok((entries, parts))
}

fn malformed(
    path: &Path,
    tensor: &str,
    expected: impl Into<String>,
    actual: impl Into<String>,
) -> FormatError {
    FormatError::BnbState {
        path: path.into(),
        tensor: tensor.into(),
        expected: expected.into(),
        actual: actual.into(),
    }
}

fn four_bit(path: &Path, name: &str, state_name: &str, tensors: &impl Lookup) -> Result<Entry> {
    let raw = tensors.raw(state_name)?;
    if raw.bytes.len() > MAX_STATE {
        let actual = format!("{} bytes", raw.bytes.len());
        return Err(malformed(path, state_name, "a short JSON object", actual));
    }
    let state: State = serde_json::from_slice(&raw.bytes).map_err(|error| {
        let expected = "JSON with quant_type, blocksize, dtype and a shape of two";
        malformed(path, state_name, expected, error.to_string())
    })?;
    if !state_name.ends_with(&suffix(state.quant_type)) {
        let expected = "the quant_type of the tensor's own name";
        return Err(malformed(
            path,
            state_name,
            expected,
            state.quant_type.name(),
        ));
    }
    if let Some(offset) = state.nested_offset.filter(|offset| !offset.is_finite()) {
        let expected = "a nested_offset that is a finite number";
        return Err(malformed(path, state_name, expected, offset.to_string()));
    }
    let dtype = match state.dtype.as_str() {
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "float32" => Dtype::F32,
        other => {
            let expected = "dtype float16, bfloat16 or float32";
            return Err(malformed(path, state_name, expected, other));
        }
    };
    let size = state.blocksize;
    if !(2..=MAX_BLOCK_SIZE).contains(&size) || !size.is_power_of_two() {
        let expected = format!("a block size that is a power of two up to {MAX_BLOCK_SIZE}");
        return Err(malformed(path, state_name, expected, size.to_string()));
    }
    if state.nested_offset.is_some() && state.nested_blocksize != Some(NESTED_BLOCK_SIZE) {
        let actual = format!("{:?}", state.nested_blocksize);
        return Err(malformed(path, state_name, "nested_blocksize 256", actual));
    }
    let info = TensorInfo::new(name, dtype, state.shape);
    let values = info.checked_elements();
    let bytes = tensors.info(name).and_then(TensorInfo::checked_bytes);
    let Some(values) = values.filter(|values| Some(values.div_ceil(2)) == bytes) else {
        let expected = format!("codes for shape {:?}, two to a byte", state.shape);
        let actual = format!("{} bytes", bytes.unwrap_or(0));
        return Err(malformed(path, name, expected, actual));
    };
    let blocks = values.div_ceil(size);
    let part = |suffix: &str, dtype, length: usize| {
        let part = format!("{name}.{suffix}");
        let expected = || format!("{length} values of type {dtype}");
        match tensors.info(&part) {
            None => Err(malformed(path, &part, expected(), "no such tensor")),
            Some(info) if info.dtype != dtype || info.checked_elements() != Some(length) => {
                let actual = format!("{} of shape {:?}", info.dtype, info.shape);
                Err(malformed(path, &part, expected(), actual))
            }
            Some(_) => Ok(()),
        }
    };
    part("quant_map", Dtype::F32, 16)?;
    match state.nested_offset {
        None => part("absmax", Dtype::F32, blocks)?,
        Some(_) => {
            part("absmax", Dtype::U8, blocks)?;
            let scales = blocks.div_ceil(NESTED_BLOCK_SIZE);
            part("nested_absmax", Dtype::F32, scales)?;
            part("nested_quant_map", Dtype::F32, 256)?;
        }
    }
    Ok(Entry {
        info,
        kind: Kind::FourBit(state),
    })
}

fn int8(
    path: &Path,
    name: &str,
    (scb, format): (&str, &str),
    tensors: &impl Lookup,
) -> Result<Entry> {
    let info = tensors.info(name);
    let Some(info) = info.filter(|info| info.dtype == Dtype::I8 && info.shape.len() == 2) else {
        let actual = info.map(|info| format!("{} of shape {:?}", info.dtype, info.shape));
        let expected = "a matrix of type I8, since it has a scale for each row";
        return Err(malformed(path, name, expected, actual.unwrap_or_default()));
    };
    let scales = tensors.info(scb).filter(|scales| {
        scales.dtype == Dtype::F32 && scales.checked_elements() == Some(info.shape[0])
    });
    if scales.is_none() {
        let expected = format!("{} values of type F32", info.shape[0]);
        let actual = tensors
            .info(scb)
            .map(|s| format!("{} of shape {:?}", s.dtype, s.shape));
        return Err(malformed(path, scb, expected, actual.unwrap_or_default()));
    }
    // Absent in old checkpoints, which knew rows only; others stand for layouts of one kind of GPU.
    if tensors.info(format).is_some() {
        let stored = tensors.raw(format)?.bytes;
        if *stored != [ROW_MAJOR] {
            let actual = format!("{:?}", &stored[..stored.len().min(8)]);
            return Err(malformed(
                path,
                format,
                "[0], rows one after another",
                actual,
            ));
        }
    }
    Ok(Entry {
        info: TensorInfo::new(name, Dtype::F16, info.shape.clone()),
        kind: Kind::Int8,
    })
}

impl Entry {
    /// Reads the weight's parts.
    ///
    /// # Errors
    /// Maps of other values than `maps`, codes out of range, or scales that are negative or not finite.
    pub(crate) fn read<'a>(
        &self,
        path: &Path,
        tensors: &'a impl Lookup,
        maps: BnbMaps<'_>,
    ) -> Result<BnbTensor<'a>> {
        let name = &self.info.name;
        let floats = |part: String| {
            let raw = tensors.raw(&part)?;
            let Some(values) = raw.to_f32() else {
                let actual = format!("values of type {}", raw.info.dtype);
                return Err(malformed(path, &part, "values of type F32", actual));
            };
            match values.iter().find(|value| !value.is_finite()) {
                Some(value) => Err(malformed(path, &part, "finite numbers", value.to_string())),
                None => Ok(values),
            }
        };
        let scales = |part: String| {
            let values = floats(part.clone())?;
            match values.iter().find(|value| **value < 0.0) {
                Some(value) => {
                    let expected = "largest magnitudes, which are 0 or more";
                    Err(malformed(path, &part, expected, value.to_string()))
                }
                None => Ok(values),
            }
        };
        let codes = tensors.raw(name)?.bytes;
        match &self.kind {
            Kind::Int8 => {
                // No early end, so that the loop is one of vector instructions.
                let beyond = codes.iter().fold(false, |any, &code| any | (code == 0x80));
                if beyond {
                    return Err(malformed(path, name, "codes from -127 to 127", "-128"));
                }
                Ok(BnbTensor::Int8(BnbInt8 {
                    shape: [self.info.shape[0], self.info.shape[1]],
                    codes,
                    absmax: scales(format!("{}.SCB", name.trim_end_matches(".weight")))?,
                }))
            }
            Kind::FourBit(state) => {
                let part = |suffix: &str| format!("{name}.{suffix}");
                let check = |part: String, expected: &[f32]| {
                    let actual = floats(part.clone())?;
                    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6;
                    if actual.len() == expected.len() && actual.iter().zip(expected).all(close) {
                        return Ok(());
                    }
                    let expected = "the values that the type prescribes";
                    Err(malformed(path, &part, expected, "others"))
                };
                check(part("quant_map"), maps.of(state.quant_type))?;
                let absmax = match state.nested_offset {
                    None => BnbAbsmax::Single(scales(part("absmax"))?),
                    Some(offset) => {
                        check(part("nested_quant_map"), maps.signed)?;
                        BnbAbsmax::Nested {
                            codes: tensors.raw(&part("absmax"))?.bytes.into_owned(),
                            scales: scales(part("nested_absmax"))?,
                            offset,
                        }
                    }
                };
                Ok(BnbTensor::FourBit(BnbFourBit {
                    quant_type: state.quant_type,
                    block_size: state.blocksize,
                    dtype: self.info.dtype,
                    shape: state.shape,
                    packed: codes,
                    absmax,
                }))
            }
        }
    }

    /// How it is stored.
    pub(crate) fn kind(&self) -> BnbKind {
        match &self.kind {
            Kind::Int8 => BnbKind::Int8,
            Kind::FourBit(state) => BnbKind::FourBit {
                quant_type: state.quant_type,
                block_size: state.blocksize,
                nested: state.nested_offset.is_some(),
            },
        }
    }

    /// How it is stored, for people.
    pub(crate) fn describe(&self) -> String {
        match &self.kind {
            Kind::Int8 => "int8".to_owned(),
            Kind::FourBit(state) => state.quant_type.name().to_owned(),
        }
    }
}
