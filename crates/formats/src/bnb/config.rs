//! `quantization_config` of a model's config.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::state::BnbQuantType;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::json::field_error;

/// How the weights of a checkpoint are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BnbKind {
    /// Blocks of 4-bit codes.
    FourBit {
        /// What the codes stand for.
        quant_type: BnbQuantType,
        /// Values that share a scale.
        block_size: usize,
        /// Whether the scales are quantised too.
        nested: bool,
    },
    /// Whole numbers of 8 bits by rows.
    Int8,
}

/// A checkpoint's `quantization_config`.
#[derive(Debug, Clone, PartialEq)]
pub struct BnbConfig {
    /// Bits of a code: 4 or 8.
    pub bits: u8,
    /// Modules that are not quantised.
    pub skip_modules: Vec<String>,
}

impl BnbConfig {
    /// Reads it from a config; `None` where nothing is quantised.
    ///
    /// # Errors
    /// Another method than bitsandbytes', or a field of the wrong type.
    pub fn read(path: &Path, config: &Value) -> Result<Option<Self>> {
        const FIELD: &str = "quantization_config";
        let value = match config.get(FIELD) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let Value::Object(fields) = value else {
            return Err(field_error(path, FIELD, "an object", value));
        };
        let nested = |key: &str| format!("{FIELD}.{key}");
        let method = fields.get("quant_method").unwrap_or(&Value::Null);
        if method != "bitsandbytes" {
            let expected = "\"bitsandbytes\" (or an unquantised checkpoint, or a GGUF file)";
            return Err(field_error(path, &nested("quant_method"), expected, method));
        }
        let flag = |key: &str| match fields.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(field_error(path, &nested(key), "true or false", other)),
        };
        let bits = match (flag("load_in_4bit")?, flag("load_in_8bit")?) {
            (true, false) => 4,
            (false, true) => 8,
            _ => {
                let expected = "an object with one of load_in_4bit and load_in_8bit true";
                return Err(field_error(path, FIELD, expected, value));
            }
        };
        Ok(Some(Self {
            bits,
            skip_modules: skip_modules(path, fields)?,
        }))
    }

    /// As it is written for transformers.
    #[must_use]
    pub fn to_json(kind: BnbKind, compute: Dtype, skip_modules: &[String]) -> Value {
        let four_bit = matches!(kind, BnbKind::FourBit { .. });
        let mut config = json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": four_bit,
            "load_in_8bit": !four_bit,
            "_load_in_4bit": four_bit,
            "_load_in_8bit": !four_bit,
            "llm_int8_threshold": 6.0,
            "llm_int8_skip_modules": skip_modules,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
        });
        if let BnbKind::FourBit {
            quant_type, nested, ..
        } = kind
        {
            config["bnb_4bit_quant_type"] = quant_type.name().into();
            config["bnb_4bit_use_double_quant"] = nested.into();
            config["bnb_4bit_compute_dtype"] = super::state::torch_name(compute).into();
            config["bnb_4bit_quant_storage"] = "uint8".into();
        }
        config
    }
}

fn skip_modules(path: &Path, fields: &Map<String, Value>) -> Result<Vec<String>> {
    let value = match fields.get("llm_int8_skip_modules") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(value) => value,
    };
    let names = value.as_array().and_then(|names| {
        let names = names.iter().map(|name| name.as_str().map(str::to_owned));
        names.collect::<Option<Vec<_>>>()
    });
    names.ok_or_else(|| {
        let field = "quantization_config.llm_int8_skip_modules";
        field_error(path, field, "a list of module names", value)
    })
}
