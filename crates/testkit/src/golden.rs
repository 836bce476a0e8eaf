//! Reference values: a directory of cases, found rather than listed.
//!
//! The directory is the one that the environment variable `BACKDRAFT_GOLDEN` names, or the copy in the
//! project; its `README.md` says what lies where. Another directory may hold other cases, or only
//! some of the parts. A case of a part is a [`Folder`], unpacked or packed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use backdraft_formats::{SafetensorsFile, TensorInfo};
use serde::de::DeserializeOwned;

pub use crate::folder::{Folder, folder_with, folders};

const VARIABLE: &str = "BACKDRAFT_GOLDEN";

/// The directory of all reference values.
#[must_use]
pub fn root() -> PathBuf {
    env::var_os(VARIABLE).map_or_else(
        || concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden").into(),
        Into::into,
    )
}

/// A part of the directory, a file or a folder; `None` where another directory than the project's
/// lacks it.
///
/// # Panics
/// If the project's own directory lacks it.
#[must_use]
pub fn part(name: &str) -> Option<PathBuf> {
    let path = root().join(name);
    let found = path.exists();
    assert!(
        found || env::var_os(VARIABLE).is_some(),
        "{} is not there",
        path.display()
    );
    found.then_some(path)
}

/// A JSON file; keys that `T` does not name are ignored.
///
/// # Panics
/// If it cannot be read as a `T`.
#[must_use]
pub fn json<T: DeserializeOwned>(path: &Path) -> T {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Tensors of a safetensors file.
#[derive(Debug)]
pub struct Tensors(SafetensorsFile);

impl Tensors {
    /// Opens a file.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Self(SafetensorsFile::open(path).unwrap_or_else(|e| panic!("{e}")))
    }

    /// Whether there is such a tensor.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.info(name).is_some()
    }

    /// The names, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.tensors().map(|info| info.name.as_str())
    }

    /// What the file says of each, in the same order.
    pub fn infos(&self) -> impl Iterator<Item = &TensorInfo> {
        self.0.tensors()
    }

    /// The shape of a tensor.
    ///
    /// # Panics
    /// If there is no such tensor of `D` dimensions.
    #[must_use]
    pub fn shape<const D: usize>(&self, name: &str) -> [usize; D] {
        let shape = self.0.info(name).map(|info| info.shape.clone());
        let shape = shape.unwrap_or_else(|| panic!("{}: no {name}", self.0.path().display()));
        <[usize; D]>::try_from(shape).unwrap_or_else(|shape| panic!("{name} has shape {shape:?}"))
    }

    /// A tensor of any floating-point type.
    ///
    /// # Panics
    /// If there is no such tensor.
    #[must_use]
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.0.read_f32(name).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The bytes of a tensor.
    ///
    /// # Panics
    /// If there is no such tensor.
    #[must_use]
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let raw = self.0.raw(name).unwrap_or_else(|e| panic!("{e}"));
        raw.bytes.into_owned()
    }

    /// A tensor of any integer type.
    ///
    /// # Panics
    /// If there is no such tensor.
    #[must_use]
    pub fn i64(&self, name: &str) -> Vec<i64> {
        let raw = self.0.raw(name).unwrap_or_else(|e| panic!("{e}"));
        raw.to_i64()
            .unwrap_or_else(|| panic!("{name} is no integer tensor"))
    }
}
