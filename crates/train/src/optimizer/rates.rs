//! How fast each factor learns, beside the run's learning rate.

use backdraft_arch::ModulePattern;
use backdraft_arch::spec::EMBEDDING;
use backdraft_formats::TokenTable;
use backdraft_kernels::adamw::AdamWParams;
use backdraft_lora::AdapterParam;
use backdraft_model::CausalLm;
use backdraft_recipe::TrainRecipe;

/// What an update of one factor goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Its share of the run's learning rate.
    pub share: f64,
    /// λ, which its own learning rate multiplies; `None` is that of all factors.
    pub weight_decay: Option<f64>,
}

impl Default for Rate {
    /// As all.
    fn default() -> Self {
        Self {
            share: 1.0,
            weight_decay: None,
        }
    }
}

impl Rate {
    /// `params` with this weight decay.
    pub(super) fn params(self, params: &AdamWParams) -> AdamWParams {
        AdamWParams {
            weight_decay: self.weight_decay.unwrap_or(params.weight_decay),
            ..*params
        }
    }
}

/// How fast factors learn, compared with each other. What is said of one in several ways is multiplied.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// Learning rate of B over that of A. Both of an embedding's go with A: it is A that starts at zero there.
    ///
    /// # Source
    /// LoRA+: Hayou, Ghosh & Yu 2024, arXiv:2402.12354; as PEFT's optimizer, tensors of one dimension go with B, and
    /// the weight decay of either is multiplied by its own learning rate.
    pub b_over_a: f64,
    /// Learning rate of each layer over that of the one above it.
    pub layer_decay: f64,
    /// What modules have of their own, the first pattern that a path ends in.
    pub groups: ModulePattern<Rate>,
}

impl Default for Rates {
    /// All alike.
    fn default() -> Self {
        Self {
            b_over_a: 1.0,
            layer_decay: 1.0,
            groups: ModulePattern::default(),
        }
    }
}

impl Rates {
    /// As a recipe says.
    #[must_use]
    pub fn of_recipe(train: &TrainRecipe) -> Self {
        let groups = train.groups.iter().map(|group| {
            let rate = Rate {
                share: group
                    .learning_rate
                    .map_or(1.0, |lr| lr / train.learning_rate),
                weight_decay: group.weight_decay,
            };
            (group.modules.clone(), rate)
        });
        Self {
            b_over_a: train.loraplus_lr_ratio,
            layer_decay: train.layer_lr_decay,
            // Each was compiled when the recipe was read.
            groups: ModulePattern::new(groups).unwrap_or_default(),
        }
    }

    /// That of a factor of the module at `path`, which has `above` layers above it.
    #[must_use]
    pub fn of(&self, path: &str, above: usize, param: &AdapterParam) -> Rate {
        let Rate {
            mut share,
            weight_decay,
        } = self.groups.get(path).unwrap_or_default();
        if param.name == "lora_b" || param.dims.len() == 1 {
            share *= self.b_over_a;
        }
        Rate {
            share: share * self.layer_decay.powi(above as i32),
            weight_decay,
        }
    }

    /// Those of a model's factors, in their order.
    pub(super) fn of_model(&self, model: &CausalLm) -> Vec<Rate> {
        let layers = model.layers.len();
        let rates = model.adapters().flat_map(|(layer, target, adapter)| {
            let path = target.path(layer);
            let params = adapter.params().into_iter();
            params.map(move |param| self.of(&path, layers - 1 - layer, &param))
        });
        let above = move |table| match table {
            TokenTable::Embedding => layers,
            TokenTable::Head => 0,
        };
        let tables = model.table_adapters().flat_map(|(table, adapter)| {
            let params = adapter.params().into_iter();
            params.map(move |param| self.of(table.path(), above(table), &param))
        });
        let tokens = model.tokens().iter().map(|tokens| {
            let table = tokens.table();
            self.of(table.path(), above(table), &tokens.param())
        });
        let whole = model.whole().into_iter().map(|place| {
            let above = match (place.layer, place.name == EMBEDDING) {
                (Some(layer), _) => layers - 1 - layer,
                (None, true) => layers,
                (None, false) => 0,
            };
            let param = place.param();
            let mut rate = self.of(place.module(), above, &param);
            // As transformers' Trainer: norms and biases are not decayed.
            if model.trains_base() && param.dims.len() == 1 {
                rate.weight_decay.get_or_insert(0.0);
            }
            rate
        });
        rates.chain(tables).chain(tokens).chain(whole).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::ParamId;
    use burn::tensor::{Device, Tensor};

    fn param(name: &'static str, dims: &[usize]) -> AdapterParam {
        AdapterParam {
            name,
            file_name: name,
            id: ParamId::new(),
            dims: dims.to_vec(),
            values: Tensor::zeros([dims.iter().product::<usize>()], &Device::flex()),
        }
    }

    #[test]
    fn what_is_said_of_a_factor_is_multiplied() {
        let (a, b) = (param("lora_a", &[2, 3]), param("lora_b", &[3, 2]));
        let share = |rates: &Rates, path: &str, layer: usize, param: &AdapterParam| {
            rates.of(path, 3 - layer, param).share
        };
        let (q, k) = (
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.self_attn.k_proj",
        );
        let alike = Rates::default();
        assert_eq!(share(&alike, q, 0, &b), 1.0);
        let own = Rate {
            share: 0.25,
            weight_decay: Some(0.5),
        };
        let rates = Rates {
            b_over_a: 16.0,
            layer_decay: 0.5,
            groups: ModulePattern::new([("q_proj".to_owned(), own)]).unwrap(),
        };
        assert_eq!(share(&rates, k, 3, &a), 1.0);
        assert_eq!(share(&rates, k, 3, &b), 16.0);
        assert_eq!(share(&rates, k, 1, &a), 0.25);
        assert_eq!(share(&rates, q, 1, &b), 0.25 * 16.0 * 0.25);
        assert_eq!(share(&rates, k, 3, &param("magnitude", &[3])), 16.0);
        assert_eq!(rates.of(q, 0, &a).weight_decay, Some(0.5));
        assert_eq!(rates.of(k, 0, &a).weight_decay, None);
    }
}
