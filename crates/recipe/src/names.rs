//! The values of a recipe that are names.

use backdraft_arch::{
    AdapterStart, BaseHome, Bias, DeviceChoice, FourBitFormat, Precision, TargetModule, named,
};
use backdraft_data::{Overlong, Supervision};
use backdraft_plan::ActivationPolicy;

use crate::data_format::DataFormat;
use crate::reader::Value;

named! {
    /// Number format of the computation.
    DType {
        /// The best the device has: bf16 on a GPU with tensor cores for it, f16 on one that has them for f16 alone, else f32.
        #[default]
        Auto = "auto",
        /// bfloat16, with sums in f32.
        Bf16 = "bf16",
        /// Half precision, with sums in f32 and a scaled loss.
        F16 = "f16",
        /// Single precision.
        F32 = "f32",
    }
}

macro_rules! by_name {
    ($($name:ident)+) => {
        $(impl Value for $name {
            const EXPECTED: &'static str = "a name in quotes";
            const NAMES: &'static [&'static str] = Self::NAMES;
        })+
    };
}

by_name! {
    ActivationPolicy AdapterStart BaseHome Bias DType DataFormat FourBitFormat KeyPrefix Optimizer Overlong Precision RowBatching
    KeptGradients MasterWeights Supervision TargetModule TokenInit
}

impl Value for DeviceChoice {
    const EXPECTED: &'static str = Self::EXPECTED;
}

named! {
    /// What the matrices of an adapter are called.
    KeyPrefix {
        /// By the class of the base: with the place of the language model, where that is one part of it.
        #[default]
        Auto = "auto",
        /// By the language model alone.
        Text = "text",
    }
}

named! {
    /// Where rows of new tokens start.
    TokenInit {
        /// The mean of all rows.
        #[default]
        Mean = "mean",
        /// The mean of the rows of the tokens that a text is made of.
        Subtokens = "subtokens",
    }
}

named! {
    /// Which rows share a micro-batch.
    RowBatching {
        /// Rows in random order, laid end to end.
        #[default]
        PaddingFree = "padding-free",
        /// Packs of rows that fill `max_seq_length`, laid end to end.
        Packed = "packed",
        /// Rows of similar length, padded to the longest.
        Padded = "padded",
    }
}

named! {
    /// How long a step keeps gradients.
    KeptGradients {
        /// Until the update, all of them.
        #[default]
        Whole = "whole",
        /// Until those of a layer are complete: they update it at once.
        Released = "released",
        /// As released, and once before for nothing but their norm, by which they are clipped.
        TwoPasses = "two-passes",
    }
}

impl KeptGradients {
    /// Whether all of them are kept.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        *self == Self::Whole
    }
}

named! {
    /// What of the base's trained tensors is kept beside what computes.
    MasterWeights {
        /// Their values in f32, where that is another type.
        #[default]
        F32 = "f32",
        /// Nothing: values of bf16, to which every update is rounded by chance.
        None = "none",
    }
}

impl MasterWeights {
    /// Whether there are some.
    #[must_use]
    pub fn are_kept(&self) -> bool {
        *self == Self::F32
    }
}

named! {
    /// The optimiser.
    Optimizer {
        /// AdamW with decoupled decay, its state in f32.
        #[default]
        Adamw = "adamw",
        /// The same with its state in 8 bits; tensors of fewer than 4,096 values stay in f32.
        Adamw8bit = "adamw_8bit",
        /// The sign of a mean of gradients.
        Lion = "lion",
        /// Gradient descent with momentum.
        Sgd = "sgd",
        /// Second moments as products of rows and columns.
        Adafactor = "adafactor",
        /// A mean of gradients made orthogonal, matrix by matrix.
        Muon = "muon",
        /// AdamW whose result is a running mean, without a falling learning rate.
        ScheduleFreeAdamw = "schedule_free_adamw",
    }
}
