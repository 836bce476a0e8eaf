//! Arguments whose values are names: the names belong to the choice, the help stands here.

use std::error::Error;
use std::str::FromStr;

use backdraft_arch::{NestedFormat, UnknownName};
use backdraft_data::Format;
use backdraft_formats::ModelSource;
use backdraft_lora::base::blocks_plan;
use backdraft_model::LoadError;
use backdraft_quant::{FourBitFormat, QuantizationPlan, Scheme};
use backdraft_recipe::{DType, DataFormat};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::error::CliError;

/// Reads one of `values` by its name; `help` says what each is.
pub(crate) fn choice<T>(
    values: &[T],
    name: fn(T) -> &'static str,
    help: fn(T) -> &'static str,
) -> impl TypedValueParser<Value = T> + use<T>
where
    T: FromStr<Err: Error + Send + Sync> + Copy + Send + Sync + 'static,
{
    let value = |&value: &T| PossibleValue::new(name(value)).help(help(value));
    let possible: Vec<PossibleValue> = values.iter().map(value).collect();
    PossibleValuesParser::new(possible).try_map(|name| name.parse())
}

/// Reads the data type of a computation.
pub(crate) fn dtype() -> impl TypedValueParser<Value = DType> {
    choice(DType::ALL, DType::name, |dtype| match dtype {
        DType::Auto => "bf16 or f16 on tensor cores, else f32",
        DType::Bf16 => "bfloat16, accumulated in f32",
        DType::F16 => "Half precision, accumulated in f32",
        DType::F32 => "Single precision",
    })
}

/// Reads the shape of rows.
pub(crate) fn format() -> impl TypedValueParser<Value = DataFormat> {
    choice(DataFormat::ALL, DataFormat::name, |format| match format {
        DataFormat::Auto => "Detected from the first rows",
        DataFormat::Named(Format::Messages) => {
            r#"Chats: {"messages": [{"role": …, "content": …}, …]}"#
        }
        DataFormat::Named(Format::Alpaca) => {
            r#"{"instruction": …, "input": … (optional), "output": …}"#
        }
        DataFormat::Named(Format::Sharegpt) => {
            r#"Chats: {"conversations": [{"from": …, "value": …}, …]}"#
        }
        DataFormat::Named(Format::PromptCompletion) => r#"{"prompt": …, "completion": …}"#,
        DataFormat::Named(Format::Text) => r#"{"text": …}"#,
        DataFormat::Named(Format::Preference) => r#"{"prompt": …, "chosen": …, "rejected": …}"#,
        DataFormat::Named(Format::Unpaired) => {
            r#"{"prompt": …, "completion": …, "label": true or false}"#
        }
    })
}

/// What a base can be quantised to, in the order of the help.
const SCHEMES: [Scheme; 3] = [
    Scheme::NF4,
    Scheme::four_bit(FourBitFormat::Fp4),
    Scheme::Int8,
];

/// Reads the format of quantised weights; scales are as usual.
pub(crate) fn scheme() -> impl TypedValueParser<Value = Scheme> {
    choice(&SCHEMES, Scheme::name, |scheme| match scheme {
        Scheme::FourBit { format, .. } => match format {
            FourBitFormat::Nf4 => "4-bit NormalFloat",
            FourBitFormat::Fp4 => "4-bit floating point",
        },
        Scheme::Nested { format, .. } => match format {
            NestedFormat::Nf3 => "3-bit NormalFloat",
            NestedFormat::Nf5 => "5-bit NormalFloat",
            NestedFormat::Nf6 => "6-bit NormalFloat",
        },
        Scheme::Int8 => "8 bits, one scale per row",
        Scheme::Gguf(_) => BLOCKS,
    })
}

const BLOCKS: &str = "The blocks of a .gguf file, as they are";

/// How a base model is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuantizationArg {
    /// Only in codes where its files are.
    None,
    /// In the blocks of its GGUF file.
    Blocks,
    /// Quantised while it is loaded.
    To(Scheme),
}

impl QuantizationArg {
    /// The plan that loads a model so.
    pub(crate) fn plan(self, source: &ModelSource) -> Result<Option<QuantizationPlan>, CliError> {
        match self {
            Self::None => Ok(None),
            Self::Blocks => Ok(Some(blocks_plan(source).map_err(LoadError::from)?)),
            Self::To(scheme) => Ok(Some(QuantizationPlan::new(scheme))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Blocks => "blocks",
            Self::To(scheme) => scheme.name(),
        }
    }
}

impl FromStr for QuantizationArg {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, UnknownName> {
        match name {
            "none" => Ok(Self::None),
            "blocks" => Ok(Self::Blocks),
            name => name.parse().map(Self::To),
        }
    }
}

/// Reads how a base model is kept.
pub(crate) fn quantization() -> impl TypedValueParser<Value = QuantizationArg> {
    let values = [QuantizationArg::None, QuantizationArg::Blocks].into_iter();
    let values: Vec<QuantizationArg> = values.chain(SCHEMES.map(QuantizationArg::To)).collect();
    choice(&values, QuantizationArg::name, |kept| match kept {
        QuantizationArg::None => "No quantization beyond that of the files",
        QuantizationArg::Blocks | QuantizationArg::To(Scheme::Gguf(_)) => BLOCKS,
        QuantizationArg::To(Scheme::FourBit { format, .. }) => match format {
            FourBitFormat::Nf4 => "4-bit NormalFloat, double quantization",
            FourBitFormat::Fp4 => "4-bit floating point, double quantization",
        },
        QuantizationArg::To(Scheme::Nested { format, .. }) => match format {
            NestedFormat::Nf3 => "3-bit NormalFloat, double quantization",
            NestedFormat::Nf5 => "5-bit NormalFloat, double quantization",
            NestedFormat::Nf6 => "6-bit NormalFloat, double quantization",
        },
        QuantizationArg::To(Scheme::Int8) => "8 bits, one scale per row",
    })
}
