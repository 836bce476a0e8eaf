//! The projections of a decoder layer.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A projection of a decoder layer that can carry an adapter.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are Hugging Face's")]
pub enum TargetModule {
    #[default]
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
    QkvProj,
    GateUpProj,
    InProjQkv,
    InProjZ,
    InProjB,
    InProjA,
    OutProj,
}

/// Projections that read the same input, so that one product can serve the A of all their adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// Query, key and value.
    Qkv,
    /// Gate and up.
    GateUp,
    /// What a DeltaNet reads its input through.
    Delta,
}

impl Group {
    /// Its projections, in the order in which they are computed.
    #[must_use]
    pub const fn targets(self) -> &'static [TargetModule] {
        use TargetModule as M;
        match self {
            Self::Qkv => &[M::QProj, M::KProj, M::VProj],
            Self::GateUp => &[M::GateProj, M::UpProj],
            Self::Delta => &[M::InProjQkv, M::InProjZ, M::InProjB, M::InProjA],
        }
    }

    /// The one projection that stands for them where a family has them in one matrix: their rows, one behind the other. No
    /// family has those of a DeltaNet in one.
    #[must_use]
    pub const fn fused(self) -> Option<TargetModule> {
        match self {
            Self::Qkv => Some(TargetModule::QkvProj),
            Self::GateUp => Some(TargetModule::GateUpProj),
            Self::Delta => None,
        }
    }
}

impl TargetModule {
    /// All of them. No layer has every one, nor both fused ones and those that they stand for: see
    /// [`LayerSpec::modules`](crate::LayerSpec::modules).
    pub const ALL: [Self; 14] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
        Self::QkvProj,
        Self::GateUpProj,
        Self::InProjQkv,
        Self::InProjZ,
        Self::InProjB,
        Self::InProjA,
        Self::OutProj,
    ];

    /// Those of attention and MLP, the products that nearly every layer computes; fused ones are computed part by part.
    pub const USUAL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// Those of an MLP.
    pub const MLP: [Self; 3] = [Self::GateProj, Self::UpProj, Self::DownProj];

    /// Their names, in the same order.
    pub const NAMES: &'static [&'static str] = &[
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
        "qkv_proj",
        "gate_up_proj",
        "in_proj_qkv",
        "in_proj_z",
        "in_proj_b",
        "in_proj_a",
        "out_proj",
    ];

    /// The name that checkpoints and PEFT use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The block of a layer that holds it.
    #[must_use]
    pub const fn block(self) -> &'static str {
        match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj | Self::QkvProj => "self_attn",
            Self::GateProj | Self::UpProj | Self::DownProj | Self::GateUpProj => "mlp",
            Self::InProjQkv | Self::InProjZ | Self::InProjB | Self::InProjA | Self::OutProj => {
                "linear_attn"
            }
        }
    }

    /// Its path in layer `layer`, for instance `model.layers.3.mlp.up_proj`.
    #[must_use]
    pub fn path(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.{}", self.block(), self.name())
    }

    /// Those whose rows it has, where it is a fused one.
    #[must_use]
    pub const fn fuses(self) -> Option<Group> {
        match self {
            Self::QkvProj => Some(Group::Qkv),
            Self::GateUpProj => Some(Group::GateUp),
            _ => None,
        }
    }

    /// The projection of a decoder layer at that path; heads that predict several tokens, which are trained and computed by
    /// nobody here, have none.
    #[must_use]
    pub fn of_path(path: &str) -> Option<Self> {
        let name = path.rsplit('.').next()?;
        let found = name.parse().ok()?;
        (!path.starts_with("mtp.")).then_some(found)
    }

    /// The projections that share its input, where there are others.
    #[must_use]
    pub const fn group(self) -> Option<Group> {
        match self {
            Self::QProj | Self::KProj | Self::VProj => Some(Group::Qkv),
            Self::GateProj | Self::UpProj => Some(Group::GateUp),
            Self::InProjQkv | Self::InProjZ | Self::InProjB | Self::InProjA => Some(Group::Delta),
            Self::OProj | Self::DownProj | Self::OutProj | Self::QkvProj | Self::GateUpProj => None,
        }
    }

    /// Its place among those that share its input.
    #[must_use]
    pub const fn place_in_group(self) -> usize {
        match self {
            Self::KProj | Self::UpProj | Self::InProjZ => 1,
            Self::VProj | Self::InProjB => 2,
            Self::InProjA => 3,
            _ => 0,
        }
    }
}

/// Some of the projections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TargetSet(u16);

impl TargetSet {
    /// None of them.
    pub const NONE: Self = Self(0);

    /// The set and these projections.
    #[must_use]
    pub fn with(self, targets: impl IntoIterator<Item = TargetModule>) -> Self {
        let bits = targets.into_iter().map(|target| 1 << target as u16);
        Self(bits.fold(self.0, |set, bit| set | bit))
    }

    /// Whether a projection is in it.
    #[must_use]
    pub const fn contains(self, target: TargetModule) -> bool {
        self.0 & 1 << target as u16 != 0
    }
}

impl fmt::Display for TargetModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no projection has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` cannot carry an adapter: expected one of {}", TargetModule::ALL.map(TargetModule::name).join(", "))]
pub struct UnknownTarget {
    /// As it was given.
    pub name: String,
}

impl FromStr for TargetModule {
    type Err = UnknownTarget;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|target| target.name() == name)
            .ok_or_else(|| UnknownTarget {
                name: name.to_owned(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_groups_are_whole() {
        for target in TargetModule::ALL {
            assert_eq!(target.name().parse(), Ok(target));
            let text = format!("\"{target}\"");
            assert_eq!(serde_json::from_str::<TargetModule>(&text).unwrap(), target);
            if let Some(group) = target.group() {
                assert_eq!(group.targets()[target.place_in_group()], target);
            }
            if let Some(group) = target.fuses() {
                assert_eq!(group.fused(), Some(target));
            }
        }
        let of_path = TargetModule::of_path;
        let path = "model.layers.0.linear_attn.in_proj_qkv";
        assert_eq!(of_path(path), Some(TargetModule::InProjQkv));
        assert_eq!(of_path("mtp.layers.0.self_attn.q_proj"), None);
        assert_eq!(of_path("model.layers.0.input_layernorm"), None);
        let error = "qproj".parse::<TargetModule>().unwrap_err();
        assert!(error.to_string().contains("q_proj, k_proj"), "{error}");
    }
}
