//! How the tensors of a model are stored.

/// The part of a base model that is stored in one way.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StoredShare {
    /// `f32`, or a scheme such as `nf4 (blocks of 64, double)`.
    pub stored_as: String,
    /// Tensors stored so.
    pub tensors: usize,
    /// Values in them.
    pub params: usize,
    /// Bytes that they take.
    pub bytes: usize,
}

impl StoredShare {
    /// Bits that a value takes on average, scales included.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes as f64 / self.params.max(1) as f64
    }
}
