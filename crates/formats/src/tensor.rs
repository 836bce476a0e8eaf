//! One tensor of a file: its description, and its bytes borrowed or owned.

use std::borrow::Cow;

use crate::dtype::{self, Dtype};

/// What a file says about a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, as Hugging Face spells it.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The shape, row-major, outermost first; a weight is `[out, in]`.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Describes a tensor.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape: shape.into(),
        }
    }

    /// The number of elements; `None` where that overflows.
    #[must_use]
    pub fn checked_elements(&self) -> Option<usize> {
        checked_product(&self.shape)
    }

    /// The number of bytes; `None` where that overflows.
    #[must_use]
    pub fn checked_bytes(&self) -> Option<usize> {
        self.checked_elements()?.checked_mul(self.dtype.size())
    }
}

/// The product of `shape`; `None` where it overflows.
pub(crate) fn checked_product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |n, &dim| n.checked_mul(dim))
}

/// A tensor with its bytes, which are borrowed from the file where that is possible.
#[derive(Debug, Clone)]
pub struct RawTensor<'a> {
    /// The description; `dtype` is that of `bytes`.
    pub info: Cow<'a, TensorInfo>,
    /// The elements, little-endian, row-major, possibly unaligned.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> RawTensor<'a> {
    /// Borrows both parts.
    pub(crate) fn borrowed(info: &'a TensorInfo, bytes: &'a [u8]) -> Self {
        Self {
            info: Cow::Borrowed(info),
            bytes: Cow::Borrowed(bytes),
        }
    }

    /// The elements as `f32`; `None` unless the type is a floating-point one (see
    /// [`Dtype::is_float`]).
    #[must_use]
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        dtype::to_f32(self.info.dtype, &self.bytes)
    }

    /// The elements as `i64`; `None` unless the type is an integer one.
    #[must_use]
    pub fn to_i64(&self) -> Option<Vec<i64>> {
        dtype::to_i64(self.info.dtype, &self.bytes)
    }
}
