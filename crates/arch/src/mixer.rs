//! How a layer mixes tokens.

use crate::target::TargetModule;

/// What of a layer reads other tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mixer {
    /// Softmax attention.
    Attention,
    /// The same, its output multiplied by σ of a gate: `q_proj` gives, head by head, `head_dim` features of the query, then
    /// as many of the gate. Its heads are normed.
    GatedAttention,
    /// The gated delta rule over a short convolution.
    DeltaNet(DeltaNetSpec),
}

/// The sizes of a [`Mixer::DeltaNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeltaNetSpec {
    /// Heads of queries and keys.
    pub num_key_heads: usize,
    /// Heads of values, a multiple.
    pub num_value_heads: usize,
    /// Features of a query or a key.
    pub key_head_dim: usize,
    /// Features of a value.
    pub value_head_dim: usize,
    /// Tokens that the convolution sees, the present one included.
    pub conv_kernel_dim: usize,
}

impl DeltaNetSpec {
    /// Features of all values.
    #[must_use]
    pub const fn value_width(&self) -> usize {
        self.num_value_heads * self.value_head_dim
    }

    /// Features of queries, keys and values: what is convolved.
    #[must_use]
    pub const fn conv_width(&self) -> usize {
        2 * self.num_key_heads * self.key_head_dim + self.value_width()
    }
}

/// A vector of a [`Mixer::DeltaNet`]; frozen, and in no adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeltaVector {
    /// The taps of the convolution, feature by feature.
    Conv,
    /// A of each value head: the logarithm of how fast it forgets.
    ALog,
    /// Added to what `in_proj_a` gives.
    DtBias,
    /// Weight of the norm of each value head's output, not one more than it.
    Norm,
}

impl DeltaVector {
    /// All of them, in the order of the modules.
    pub const ALL: [Self; 4] = [Self::Conv, Self::ALog, Self::DtBias, Self::Norm];

    /// Its name in Hugging Face's files.
    #[must_use]
    pub fn tensor(self, layer: usize) -> String {
        let name = match self {
            Self::Conv => "conv1d.weight",
            Self::ALog => "A_log",
            Self::DtBias => "dt_bias",
            Self::Norm => "norm.weight",
        };
        format!("model.layers.{layer}.linear_attn.{name}")
    }

    /// Its shape there.
    #[must_use]
    pub fn shape(self, sizes: DeltaNetSpec) -> Vec<usize> {
        match self {
            Self::Conv => vec![sizes.conv_width(), 1, sizes.conv_kernel_dim],
            Self::ALog | Self::DtBias => vec![sizes.num_value_heads],
            Self::Norm => vec![sizes.value_head_dim],
        }
    }
}

impl Mixer {
    /// Its projections, in the order in which files and adapters have them.
    #[must_use]
    pub const fn targets(self) -> &'static [TargetModule] {
        use TargetModule as M;
        match self {
            Self::Attention | Self::GatedAttention => &[M::QProj, M::KProj, M::VProj, M::OProj],
            Self::DeltaNet(_) => &[M::InProjQkv, M::InProjZ, M::InProjB, M::InProjA, M::OutProj],
        }
    }

    /// The projection back to the residual stream.
    #[must_use]
    pub const fn last(self) -> TargetModule {
        match self {
            Self::Attention | Self::GatedAttention => TargetModule::OProj,
            Self::DeltaNet(_) => TargetModule::OutProj,
        }
    }
}
