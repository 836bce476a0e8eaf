//! What of the base is trained whole.

use std::collections::{BTreeMap, BTreeSet};

use backdraft_arch::Norm;
use backdraft_arch::full::trainable_in_full;
use backdraft_arch::spec::{EMBEDDING, FINAL_NORM, HEAD, SCORE};
use backdraft_arch::whole::trainable;
use backdraft_lora::{AdapterParam, AdapterWeights, LoraConfig, TrainedTensor};
use backdraft_quant::{Frozen, Weight};
use burn::module::ParamId;
use burn::tensor::{DType, Tensor};

use super::{BaseTensor, CausalLm};
use crate::error::LoadError;

/// A tensor that is trained whole in place of the base's.
#[derive(Clone, Debug)]
pub struct WholePlace<'a> {
    /// Its name in the base.
    pub name: String,
    /// The layer that it is in, if in one.
    pub layer: Option<usize>,
    /// Whether it is the bias of a module with an adapter, which PEFT wraps.
    pub adapted: bool,
    /// It.
    pub tensor: &'a TrainedTensor,
}

/// Whether a tensor is a bias.
fn is_bias(name: &str) -> bool {
    name.ends_with(".bias")
}

impl WholePlace<'_> {
    /// The path of its module.
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or("", |(module, _)| module)
    }

    /// It as a parameter.
    pub fn param(&self) -> AdapterParam {
        self.tensor.param(is_bias(&self.name), self.adapted)
    }
}

impl CausalLm {
    /// The tensors that are trained whole in place of the base's, in the order of
    /// [`visit_base_mut`](Self::visit_base_mut).
    pub fn whole(&self) -> Vec<WholePlace<'_>> {
        let mut places = Vec::new();
        let mut see = |name: String, layer, adapted, tensor: Option<_>| {
            places.extend(tensor.map(|tensor| (name, layer, adapted, tensor)));
        };
        see(
            EMBEDDING.to_owned(),
            None,
            false,
            self.whole_embedding.as_ref(),
        );
        let names = self.spec.layers.iter().map(|layer| layer.norm_names);
        for (i, (layer, names)) in self.layers.iter().zip(names).enumerate() {
            for target in layer.modules() {
                let projection = layer.projection(target);
                let adapted = projection.adapter().is_some();
                let path = target.path(i);
                let weight = projection.trained_weight();
                see(format!("{path}.weight"), Some(i), false, weight);
                let bias = projection.trained_bias();
                see(format!("{path}.bias"), Some(i), adapted, bias);
            }
            for norm in Norm::ALL {
                let trained = layer.find_norm(norm).and_then(|norm| norm.trained());
                see(norm.tensor(i, names), Some(i), false, trained);
            }
        }
        see(FINAL_NORM.to_owned(), None, false, self.norm.trained());
        let head = self.spec.head_name().unwrap_or(HEAD);
        see(head.to_owned(), None, false, self.whole_head.as_ref());
        let place = |(name, layer, adapted, tensor)| WholePlace {
            name,
            layer,
            adapted,
            tensor,
        };
        places.into_iter().map(place).collect()
    }

    /// Whether tensors of the base are trained in place of adapters: then the base has their values, and not its own any more.
    pub fn trains_base(&self) -> bool {
        let config = self.lora.as_ref();
        config.is_some_and(|config| config.trainable.is_full())
    }

    /// Every place of a tensor that can be trained whole, under the tensor's name, in the order of [`whole`](Self::whole); whether it
    /// is the bias of a module with an adapter. Where no adapter is made, the base's tensor is given up for the trained one as
    /// soon as that was seen.
    pub(super) fn visit_whole_mut(
        &mut self,
        mut visit: impl FnMut(&str, bool, &mut Option<TrainedTensor>),
    ) {
        let full = self.trains_base();
        let mut see = |name: &str, adapted, place: &mut Option<TrainedTensor>| {
            visit(name, adapted, place);
            place.clone().filter(|_| full)
        };
        if let Some(trained) = see(EMBEDDING, false, &mut self.whole_embedding) {
            self.embed_tokens = Frozen(trained.matrix());
        }
        let names = self.spec.layers.iter().map(|layer| layer.norm_names);
        for (i, (layer, names)) in self.layers.iter_mut().zip(names).enumerate() {
            for (target, projection) in layer.projections_mut() {
                let path = target.path(i);
                let weight = projection.trained_weight_mut();
                if let Some(trained) = see(&format!("{path}.weight"), false, weight) {
                    *projection.weight_mut() = trained.matrix();
                }
                if projection.bias().is_none() {
                    continue;
                }
                let adapted = projection.adapter().is_some();
                let bias = projection.trained_bias_mut();
                let trained = see(&format!("{path}.bias"), adapted, bias);
                if let (Some(trained), Some(bias)) = (trained, projection.bias_mut()) {
                    *bias = trained.now().clone();
                }
            }
            for (norm, weight) in layer.norms_mut() {
                let name = norm.tensor(i, names);
                if let Some(trained) = see(&name, false, weight.trained_mut()) {
                    *weight.weight_mut() = trained.now().clone();
                }
            }
        }
        if let Some(trained) = see(FINAL_NORM, false, self.norm.trained_mut()) {
            *self.norm.weight_mut() = trained.now().clone();
        }
        let name = self.spec.head_name().unwrap_or(HEAD);
        if let Some(head) = &mut self.lm_head
            && let Some(trained) = see(name, false, &mut self.whole_head)
        {
            *head = Frozen(trained.matrix());
        }
    }

    /// Replaces the values of those tensors that `wanted` names, of all that are trained whole, by what `update` makes of them.
    pub fn update_whole(
        &mut self,
        wanted: impl Fn(ParamId) -> bool,
        mut update: impl FnMut(AdapterParam) -> Tensor<1>,
    ) {
        self.visit_whole_mut(|name, adapted, place| {
            if let Some(tensor) = place.as_mut().filter(|tensor| wanted(tensor.id())) {
                tensor.update((is_bias(name), adapted), &mut update);
            }
        });
    }

    /// The table that is trained whole and both read by the embedding and by the head: its gradient is complete last.
    pub fn tied_table(&self) -> Option<ParamId> {
        let table = self.whole_embedding.as_ref();
        table
            .filter(|_| self.lm_head.is_none())
            .map(TrainedTensor::id)
    }

    /// Puts tensors whole in place of the base's, and the base's back in place of all others.
    pub(super) fn set_whole(&mut self, mut whole: BTreeMap<String, TrainedTensor>) {
        self.visit_whole_mut(|name, _, place| *place = whole.remove(name));
        assert!(whole.is_empty(), "tensors that can be trained whole");
    }

    /// The tensors that `config` trains whole, as the base has them.
    ///
    /// # Errors
    /// A table in codes, which cannot be trained.
    pub(super) fn of_base(
        &mut self,
        config: &LoraConfig,
    ) -> Result<BTreeMap<String, TrainedTensor>, LoadError> {
        let names = config.whole(&self.spec).into_iter();
        let names: BTreeSet<String> = names.map(|tensor| tensor.name).collect();
        let (dtype, mut whole, mut in_codes) = (self.dtype(), BTreeMap::new(), None);
        self.visit_base_mut(|name, tensor| {
            if !names.contains(name) {
                return;
            }
            let (values, dims) = match tensor {
                BaseTensor::Vector(vector) => (vector.clone().inner(), vector.dims().to_vec()),
                BaseTensor::Matrix(matrix) => {
                    if let Some(scheme) = matrix.scheme() {
                        in_codes = Some((name.to_owned(), scheme));
                        return;
                    }
                    let values = matrix.dequantize().inner();
                    (values.flatten(0, 1), matrix.dims().to_vec())
                }
            };
            let values = values.cast(DType::F32);
            whole.insert(name.to_owned(), TrainedTensor::new(values, dims, dtype));
        });
        match in_codes {
            Some((tensor, scheme)) if config.trainable.is_full() => {
                Err(LoadError::TrainedInCodes {
                    tensor,
                    scheme: scheme.to_string(),
                })
            }
            Some((tensor, scheme)) => Err(LoadError::WholeInCodes {
                tensor,
                scheme: scheme.to_string(),
            }),
            None => Ok(whole),
        }
    }

    /// The tensors of an adapter that stand whole in place of the base's, on this model's device.
    ///
    /// # Errors
    /// One that the base does not have, or of another shape; one of two tables that are one matrix in this model.
    pub(super) fn fitting(
        &self,
        adapter: &AdapterWeights,
    ) -> Result<BTreeMap<String, TrainedTensor>, LoadError> {
        let (device, dtype, whole) = (self.device(), self.dtype(), &adapter.whole);
        let tied = self.spec.tie_word_embeddings;
        let bits = |name: &str| {
            let values = whole.get(name)?.values().into_data();
            Some(values.iter::<f32>().map(f32::to_bits).collect::<Vec<_>>())
        };
        // The one table once is how this program has it.
        let alone = adapter.config.ensure_weight_tying && !whole.contains_key(HEAD);
        if tied && !alone && bits(EMBEDDING) != bits(HEAD) {
            return Err(LoadError::Untied);
        }
        let expected = self
            .spec
            .tensors()
            .map(|tensor| (tensor.name, tensor.shape));
        let expected: BTreeMap<String, Vec<usize>> = expected.collect();
        if whole.contains_key(SCORE) && !self.spec.scores {
            return Err(LoadError::Scores);
        }
        let mut fitting = BTreeMap::new();
        for (name, tensor) in whole.iter().filter(|(name, _)| !(tied && *name == HEAD)) {
            let shape = expected.get(name);
            if shape.is_none_or(|shape| shape != tensor.dims()) {
                return Err(LoadError::AdapterTensor {
                    tensor: name.clone(),
                    expected: shape.cloned(),
                    actual: tensor.dims().to_vec(),
                });
            }
            fitting.insert(name.clone(), tensor.on(&device, dtype));
        }
        let can = match adapter.config.trainable.is_full() {
            true => trainable_in_full(&self.spec),
            false => trainable(&self.spec),
        };
        match fitting.keys().find(|name| !can.contains(*name)) {
            Some(tensor) => Err(LoadError::NotWhole {
                tensor: tensor.clone(),
            }),
            None => Ok(fitting),
        }
    }

    /// Keeps what is trained whole in the dtype of activations alone, with the digits of bf16.
    pub fn drop_masters(&mut self) {
        self.visit_whole_mut(|_, _, place| {
            *place = place.take().map(TrainedTensor::without_master);
        });
    }

    /// The same model without its values, which it lets go: its shape, type and device are there.
    #[must_use]
    pub fn emptied(mut self) -> Self {
        self.visit_whole_mut(|_, _, place| *place = None);
        self.visit_base_mut(|_, tensor| match tensor {
            BaseTensor::Matrix(matrix) => {
                if let Weight::Dense(values) = matrix {
                    *values = Tensor::empty([0, 0], (&values.device(), values.dtype()));
                }
            }
            BaseTensor::Vector(vector) => {
                *vector = Tensor::empty([0], (&vector.device(), vector.dtype()));
            }
        });
        self
    }

    /// Whether every tensor that is trained whole is as the base has it. Reads them from the device.
    ///
    /// # Panics
    /// If the base has given up its own for them: see [`trains_base`](Self::trains_base).
    pub fn whole_changes_nothing(&mut self) -> bool {
        assert!(!self.trains_base(), "a base to compare with");
        let whole = self.whole().into_iter();
        let whole: BTreeMap<String, TrainedTensor> = whole
            .map(|place| (place.name, place.tensor.clone()))
            .collect();
        let mut nothing = true;
        self.visit_base_mut(|name, tensor| {
            let Some(trained) = whole.get(name) else {
                return;
            };
            let base = match tensor {
                BaseTensor::Vector(vector) => vector.clone().inner(),
                BaseTensor::Matrix(matrix) => matrix.dequantize().inner().flatten(0, 1),
            };
            nothing &= trained.is(&base).is_ok_and(|same| same);
        });
        nothing
    }
}
