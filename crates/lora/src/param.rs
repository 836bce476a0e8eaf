//! A trained tensor of an adapter, as optimisers, checkpoints and files know it.

use burn::module::{Param, ParamId};
use burn::tensor::Tensor;

/// One trained tensor of an adapter.
#[derive(Clone, Debug)]
pub struct AdapterParam {
    /// Its name, such as `lora_a`.
    pub name: &'static str,
    /// Its name in adapter files, behind the module's path: PEFT's, such as `lora_A.weight`.
    pub file_name: &'static str,
    /// Its number.
    pub id: ParamId,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Its values row by row, `[product of dims]`.
    pub values: Tensor<1>,
}

impl AdapterParam {
    pub(crate) fn new<const D: usize>(
        [name, file_name]: [&'static str; 2],
        id: ParamId,
        value: Tensor<D>,
    ) -> Self {
        Self {
            name,
            file_name,
            id,
            dims: value.dims().to_vec(),
            values: value.flatten(0, D - 1),
        }
    }

    pub(crate) fn of<const D: usize>(names: [&'static str; 2], param: &Param<Tensor<D>>) -> Self {
        Self::new(names, param.id, param.val())
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The parameter as a matrix; one with a single dimension is a row.
    pub fn matrix_dims(&self) -> [usize; 2] {
        let columns = self.dims.last().copied().unwrap_or(1);
        [self.len() / columns.max(1), columns]
    }
}

/// Where a parameter's values are from now on: memory of the caller's, which holds the same values.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The values, as [`AdapterParam::matrix_dims`].
    pub values: Tensor<2>,
    /// Their copy in the dtype of activations, where that is another.
    pub rounded: Option<Tensor<2>>,
}
