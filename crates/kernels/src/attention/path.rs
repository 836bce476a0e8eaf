//! Which kernels attention runs on.

use std::sync::OnceLock;

use burn::tensor::DType;

use super::HeadLayout;
use crate::cube::CubeTensor;

/// Kernels of attention on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Groups of warps (`wgmma`): compute capability 9.0, 16-bit values, heads of up to 128, scores without a cap.
    Hopper,
    /// Warps (`mma.sync`) with copies past the registers: 16-bit values from compute capability 8.0.
    Sm80,
    /// Warps with what compute capability 7.5 has: f16.
    Sm75,
    /// Any device and type, in f32 on the ordinary cores.
    Scalar,
}

impl Path {
    /// Each of them, the fastest first.
    pub const ALL: [Self; 4] = [Self::Hopper, Self::Sm80, Self::Sm75, Self::Scalar];

    /// What `BACKDRAFT_ATTENTION` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hopper => "hopper",
            Self::Sm80 => "sm80",
            Self::Sm75 => "sm75",
            Self::Scalar => "scalar",
        }
    }

    /// Whether it is for such queries on their device.
    pub(super) fn applies(self, q: &CubeTensor, layout: HeadLayout) -> bool {
        #[cfg(feature = "cuda")]
        match self {
            Self::Hopper => super::hopper::applies(q, layout),
            Self::Sm80 => super::mma::applies(q, layout, crate::mma::Generation::Ampere),
            Self::Sm75 => super::mma::applies(q, layout, crate::mma::Generation::Turing),
            Self::Scalar => true,
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (q, layout);
            self == Self::Scalar
        }
    }

    /// The one that was asked for, else the fastest that applies.
    ///
    /// # Panics
    /// If `BACKDRAFT_ATTENTION` names none, or one that does not apply to these 16-bit values.
    pub(super) fn of(q: &CubeTensor, layout: HeadLayout) -> Self {
        let asked = asked_for().filter(|_| matches!(q.dtype, DType::F16 | DType::BF16));
        if let Some(path) = asked {
            assert!(
                path.applies(q, layout),
                "BACKDRAFT_ATTENTION={}: expected a card, a type and heads that it is for, found {:?}, {} and {layout:?}",
                path.name(),
                q.device,
                q.dtype.name()
            );
            return path;
        }
        let mut paths = Self::ALL.into_iter();
        paths
            .find(|path| path.applies(q, layout))
            .unwrap_or(Self::Scalar)
    }
}

/// What `BACKDRAFT_ATTENTION` names, for tests and benches: read once.
fn asked_for() -> Option<Path> {
    static ASKED: OnceLock<Option<Path>> = OnceLock::new();
    *ASKED.get_or_init(|| {
        let name = std::env::var("BACKDRAFT_ATTENTION").ok()?;
        let path = Path::ALL.into_iter().find(|path| path.name() == name);
        assert!(
            path.is_some(),
            "BACKDRAFT_ATTENTION: expected hopper, sm80, sm75 or scalar, found {name}"
        );
        path
    })
}
