//! Tensors as numbers.

use backdraft::burn::tensor::Tensor;
use backdraft::lora::AdapterGrads;
use backdraft::model::CausalLm;

/// The values of a tensor.
pub(super) fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().inner().into_data().iter::<f32>().collect()
}

/// The value of a tensor with one.
pub(super) fn scalar(tensor: &Tensor<1>) -> f64 {
    let values = values(tensor);
    assert_eq!(values.len(), 1);
    f64::from(values[0])
}

/// The Euclidean norm, in double precision.
pub(super) fn norm<'a>(values: impl IntoIterator<Item = &'a f32>) -> f64 {
    let squares = values.into_iter().map(|&value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}

/// Every factor's gradient by its name in an adapter file.
pub(super) fn by_name(model: &CausalLm, grads: &AdapterGrads) -> Vec<(String, Vec<f32>)> {
    let named = model.trained_params().map(|(path, param)| {
        let name = format!("{path}.{}", param.file_name);
        let grad = grads
            .get(param.id)
            .unwrap_or_else(|| panic!("no gradient for {name}"));
        (name, values(grad))
    });
    named.collect()
}
