//! The values that codes of 3 to 8 bits stand for.
//!
//! # Source
//! NF4 and double quantisation: Dettmers et al. 2023, arXiv:2305.14314. Dynamic maps: Dettmers et al.
//! 2021, arXiv:2110.02861. Values and order of the codes are those of bitsandbytes, so that its
//! checkpoints can be read.

use std::sync::LazyLock;

pub use backdraft_arch::FourBitFormat;
pub use backdraft_arch::nested::{NestedFormat, THRESHOLDS, ZERO};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// 256 ascending values of logarithmic spacing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DynamicMap {
    /// −0.993 to 1, and 0: nested scales and first moments.
    Signed,
    /// 0 to 1: second moments.
    Unsigned,
}

impl DynamicMap {
    /// The value of each code, in units of the block's largest magnitude.
    #[must_use]
    pub fn values(self) -> &'static [f32; 256] {
        static SIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic_map(true));
        static UNSIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic_map(false));
        match self {
            Self::Signed => &SIGNED,
            Self::Unsigned => &UNSIGNED,
        }
    }

    /// The values halfway between neighbours; the code of x is the number of them below x.
    pub(crate) fn midpoints(self) -> &'static [f32; 256] {
        static SIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| midpoints(DynamicMap::Signed));
        static UNSIGNED: LazyLock<[f32; 256]> = LazyLock::new(|| midpoints(DynamicMap::Unsigned));
        match self {
            Self::Signed => &SIGNED,
            Self::Unsigned => &UNSIGNED,
        }
    }
}

/// Seven decades; each has twice the points of the one below, in the middle of equal intervals.
fn dynamic_map(signed: bool) -> [f32; 256] {
    const DECADES: i32 = 7;
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let intervals = 1usize << (decade + i32::from(!signed));
        let scale = 10f64.powi(decade + 1 - DECADES) as f32;
        for i in 0..intervals {
            let (low, high) = (boundary(i, intervals), boundary(i + 1, intervals));
            let value = scale * ((low + high) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    let mut map = [0.0; 256];
    map.copy_from_slice(&values);
    map
}

/// The `i`-th of `intervals + 1` points from 0.1 to 1, counted from the nearer end with one rounding, as
/// torch does.
fn boundary(i: usize, intervals: usize) -> f32 {
    let step = (1.0 - 0.1f32) / intervals as f32;
    if i < intervals.div_ceil(2) {
        step.mul_add(i as f32, 0.1)
    } else {
        (-step).mul_add((intervals - i) as f32, 1.0)
    }
}

fn midpoints(map: DynamicMap) -> [f32; 256] {
    let values = map.values();
    let mut points = [f32::INFINITY; 256];
    for (point, pair) in points.iter_mut().zip(values.windows(2)) {
        *point = (pair[0] + pair[1]) / 2.0;
    }
    points
}

/// Codes on a device, a byte each.
///
/// # Shapes
/// Result `[values]`, u8.
pub(crate) fn bytes(values: Vec<u8>, device: &Device) -> Tensor<1, Int> {
    let shape = [values.len()];
    Tensor::from_data(TensorData::new(values, shape), (device, DType::U8))
}
