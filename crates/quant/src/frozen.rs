//! What a module holds and does not train.

use std::fmt::Debug;
use std::ops::{Deref, DerefMut};

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::{Device, Tensor};

use crate::weight::Weight;

/// A part of a module that is moved with it and is no parameter: Burn's visitors, optimisers, records and
/// `num_params` do not see it, `to_device` and `fork` take it along. On an autodiff device it stays a constant.
#[derive(Clone, Debug)]
pub struct Frozen<T>(pub T);

/// What [`Frozen`] has to know of its content.
pub trait Movable: Clone + Debug + Send {
    /// Where it is.
    fn device(&self) -> Device;

    /// The same there.
    #[must_use]
    fn moved(self, device: &Device) -> Self;

    /// The same without autodiff: a weight may have been replaced by one that is trained.
    #[must_use]
    fn untracked(self) -> Self;
}

impl<const D: usize> Movable for Tensor<D> {
    fn device(&self) -> Device {
        Tensor::device(self)
    }

    fn moved(self, device: &Device) -> Self {
        self.to_device(device)
    }

    fn untracked(self) -> Self {
        self.inner()
    }
}

impl<T: Movable, const N: usize> Movable for [T; N] {
    fn device(&self) -> Device {
        self[0].device()
    }

    fn moved(self, device: &Device) -> Self {
        self.map(|one| one.moved(device))
    }

    fn untracked(self) -> Self {
        self.map(Movable::untracked)
    }
}

impl Movable for Weight {
    fn device(&self) -> Device {
        match self {
            Self::Dense(tensor) => tensor.device(),
            Self::Host(table) => table.device().clone(),
            Self::FourBit(matrix) => matrix.device(),
            Self::Nested(matrix) => matrix.device(),
            Self::Int8(matrix) => matrix.device(),
            Self::Gguf(matrix) => matrix.device(),
            Self::Streamed(matrix) => matrix.device().clone(),
        }
    }

    fn moved(self, device: &Device) -> Self {
        match self {
            Self::Dense(tensor) => Self::Dense(tensor.to_device(device)),
            Self::Host(table) if table.device() == device => Self::Host(table),
            Self::Host(table) => Self::Dense(table.whole().to_device(device)),
            Self::FourBit(matrix) => Self::FourBit(matrix.to_device(device)),
            Self::Nested(matrix) => Self::Nested(matrix.to_device(device)),
            Self::Int8(matrix) => Self::Int8(matrix.to_device(device)),
            Self::Gguf(matrix) => Self::Gguf(matrix.to_device(device)),
            Self::Streamed(matrix) if matrix.device() == device => Self::Streamed(matrix),
            Self::Streamed(matrix) => matrix.here().moved(device),
        }
    }

    fn untracked(self) -> Self {
        match self {
            Self::Dense(tensor) => Self::Dense(tensor.inner()),
            constant => constant,
        }
    }
}

impl<T> Deref for Frozen<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Frozen<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T: Movable> Module for Frozen<T> {
    fn collect_devices(&self, mut devices: Devices) -> Devices {
        let device = self.0.device();
        if !devices.contains(&device) {
            devices.push(device);
        }
        devices
    }

    fn fork(self, device: &Device) -> Self {
        Self(self.0.moved(device))
    }

    fn to_device(self, device: &Device) -> Self {
        Self(self.0.moved(device))
    }

    fn visit<Visitor: ModuleVisitor>(&self, _: &mut Visitor) {}

    fn map<Mapper: ModuleMapper>(self, _: &mut Mapper) -> Self {
        self
    }

    fn train(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        Self(self.0.clone().untracked())
    }

    fn materialize(self) -> Self {
        self
    }
}

impl<T: Movable> ModuleDisplayDefault for Frozen<T> {
    fn content(&self, content: Content) -> Option<Content> {
        content.add_formatted(&"frozen").optional()
    }
}

impl<T: Movable> ModuleDisplay for Frozen<T> {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use backdraft_arch::{NestedFormat, Scheme};
    use burn::module::Param;

    use super::*;

    /// Counts its moves, since Flex has a single device.
    #[derive(Clone, Debug)]
    struct Luggage(Arc<AtomicUsize>);

    impl Movable for Luggage {
        fn device(&self) -> Device {
            Device::flex()
        }

        fn moved(self, _: &Device) -> Self {
            self.0.fetch_add(1, Ordering::Relaxed);
            self
        }

        fn untracked(self) -> Self {
            self
        }
    }

    #[derive(Module, Debug)]
    struct Layer {
        weight: Frozen<Luggage>,
        bias: Option<Frozen<Luggage>>,
        trained: Param<Tensor<1>>,
    }

    fn layer() -> (Layer, Arc<AtomicUsize>) {
        let moves = Arc::new(AtomicUsize::new(0));
        let luggage = || Frozen(Luggage(moves.clone()));
        let layer = Layer {
            weight: luggage(),
            bias: Some(luggage()),
            trained: Param::from_tensor(Tensor::ones([3], &Device::flex())),
        };
        (layer, moves)
    }

    #[test]
    fn frozen_parts_move_with_their_module() {
        let (layer, moves) = layer();
        let layer = layer.to_device(&Device::flex());
        assert_eq!(moves.load(Ordering::Relaxed), 2);
        let layer = layer.fork(&Device::flex());
        assert_eq!(moves.load(Ordering::Relaxed), 4);
        layer.valid().train();
        assert_eq!(moves.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn frozen_parts_are_no_parameters() {
        let (layer, _) = layer();
        assert_eq!(Module::num_params(&layer), 3);
        let weight = Frozen(Weight::quantize(
            &[0.5; 128],
            [2, 64],
            Scheme::NF4,
            &Device::flex(),
        ));
        assert_eq!(Module::num_params(&weight), 0);
        assert_eq!(weight.devices(), [Device::flex()]);
        let record = weight.clone().into_record();
        assert_eq!(weight.load_record(record).dims(), [2, 64]);
    }

    #[test]
    fn a_module_in_training_keeps_its_frozen_parts_constant() {
        let frozen = Frozen(Tensor::<2>::ones([2, 2], &Device::flex()));
        assert!(!frozen.clone().train().is_autodiff());
        let trained = Tensor::<2>::ones([2, 2], &Device::flex()).autodiff();
        assert!(!Frozen(trained.require_grad()).valid().is_autodiff());
    }

    #[test]
    fn a_weight_is_the_same_after_a_move() {
        let values: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin()).collect();
        let schemes = [
            None,
            Some(Scheme::NF4),
            Some(Scheme::nested(NestedFormat::Nf6)),
            Some(Scheme::Int8),
        ];
        for scheme in schemes {
            let device = Device::flex();
            let weight = match scheme {
                Some(scheme) => Weight::quantize(&values, [4, 64], scheme, &device),
                None => {
                    Weight::Dense(Tensor::<1>::from_floats(&values[..], &device).reshape([4, 64]))
                }
            };
            let moved = weight.clone().moved(&device);
            assert_eq!(moved.scheme(), scheme);
            assert_eq!(
                moved.dequantize().into_data(),
                weight.dequantize().into_data()
            );
        }
    }
}
