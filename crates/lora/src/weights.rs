//! An adapter apart from the model it belongs to.

use std::collections::BTreeMap;

use backdraft_arch::LoraConfig;
use burn::tensor::Tensor;

use crate::adapter::Adapter;
use crate::lora_adapter::LoraAdapter;
use crate::tokens::TrainedTokens;
use crate::whole::TrainedTensor;

/// The adapter of every adapted projection, by module path such as
/// `model.layers.0.self_attn.q_proj`.
#[derive(Clone, Debug)]
pub struct AdapterWeights {
    /// Rank, scale and targets.
    pub config: LoraConfig,
    /// By module path.
    pub adapters: BTreeMap<String, Adapter>,
    /// Rows of tokens, in place of the base's: one entry at most for each table.
    pub tokens: Vec<TrainedTokens>,
    /// Tensors of the base that are trained whole, by their names in it, such as `model.norm.weight`.
    pub whole: BTreeMap<String, TrainedTensor>,
}

impl AdapterWeights {
    /// What training made of `start`, over the base that `start` was taken out of put back: s·(B·A − B₀·A₀), of twice the
    /// rank, which any program loads.
    ///
    /// # Source
    /// As PEFT's `subtract_mutated_init`.
    ///
    /// # Panics
    /// If `start` is not of the same modules and shapes.
    #[must_use]
    pub fn since(&self, start: &Self) -> Self {
        let rank = 2 * self.config.rank;
        let mut config = LoraConfig {
            rank,
            // s stays what it was.
            alpha: self.config.scaling() * rank as f64,
            use_rslora: false,
            ..self.config.clone()
        };
        config.rank_pattern.values_mut().for_each(|rank| *rank *= 2);
        let rank_of = |path: &String| self.config.rank_of(path);
        let others = (self.config.rank_pattern.keys()).chain(self.config.alpha_pattern.keys());
        config.alpha_pattern = others
            .map(|path| {
                let scaling = self.config.scaling_of(path, rank_of(path));
                (path.clone(), scaling * (2 * rank_of(path)) as f64)
            })
            .collect();
        let joined = |(path, Adapter::Lora(now)): (&String, &Adapter)| {
            let Some(Adapter::Lora(start)) = start.adapters.get(path) else {
                panic!("{path} has no start");
            };
            let [a, b, a0, b0] = [&now.lora_a, &now.lora_b, &start.lora_a, &start.lora_b]
                .map(|factor| factor.val().inner());
            let a = Tensor::cat(vec![a, a0], 0);
            let b = Tensor::cat(vec![b, b0.neg()], 1);
            let joined = LoraAdapter::from_factors(&config, a, b).scaled_for(&config, path);
            (path.clone(), Adapter::Lora(joined))
        };
        Self {
            adapters: self.adapters.iter().map(joined).collect(),
            config: config.clone(),
            tokens: self.tokens.clone(),
            whole: self.whole.clone(),
        }
    }

    /// Takes apart what [`since`](Self::since) joined, as `config` has it: the factors and their start. `None` where an
    /// adapter is not of twice its rank.
    #[must_use]
    pub fn apart(&self, config: &LoraConfig) -> Option<(Self, Self)> {
        let (mut now, mut start) = (Vec::new(), Vec::new());
        for (path, Adapter::Lora(joined)) in &self.adapters {
            let rank = config.rank_of(path);
            let [a, b] = [&joined.lora_a, &joined.lora_b].map(|factor| factor.val().inner());
            let ([rows, input], [out, columns]) = (a.dims(), b.dims());
            if [rows, columns] != [2 * rank; 2] {
                return None;
            }
            let [first, second] = [0..rank, rank..2 * rank].map(|part| {
                let a = a.clone().slice([part.clone(), 0..input]);
                (a, b.clone().slice([0..out, part]))
            });
            let adapter = |(a, b)| {
                let lora = LoraAdapter::from_factors(config, a, b);
                Adapter::Lora(lora.scaled_for(config, path))
            };
            now.push((path.clone(), adapter(first)));
            start.push((path.clone(), adapter((second.0, second.1.neg()))));
        }
        let of = |adapters: Vec<(String, Adapter)>, tokens, whole| Self {
            config: config.clone(),
            adapters: adapters.into_iter().collect(),
            tokens,
            whole,
        };
        let now = of(now, self.tokens.clone(), self.whole.clone());
        Some((now, of(start, Vec::new(), BTreeMap::new())))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution};

    use super::*;

    #[test]
    fn what_is_joined_comes_apart() {
        let device = Device::flex();
        let config = LoraConfig {
            rank: 3,
            use_rslora: true,
            rank_pattern: [("b".to_owned(), 2)].into(),
            alpha_pattern: [("c".to_owned(), 5.0)].into(),
            ..LoraConfig::default()
        };
        let random = || {
            let random = |dims: [usize; 2]| {
                Tensor::<2>::random(dims, Distribution::Normal(0.0, 1.0), &device)
            };
            let one = |path: &str| {
                let rank = config.rank_of(path);
                let lora = LoraAdapter::from_factors(&config, random([rank, 7]), random([5, rank]));
                let lora = lora.scaled_for(&config, path);
                (path.to_owned(), Adapter::Lora(lora))
            };
            AdapterWeights {
                config: config.clone(),
                adapters: ["a", "b", "c"].map(one).into(),
                tokens: Vec::new(),
                whole: BTreeMap::new(),
            }
        };
        let delta = |weights: &AdapterWeights| {
            let deltas = weights
                .adapters
                .values()
                .map(|Adapter::Lora(lora)| lora.delta());
            Tensor::cat(deltas.collect(), 0)
        };
        let (now, start) = (random(), random());
        let joined = now.since(&start);
        let expected = delta(&now) - delta(&start);
        let most = (delta(&joined) - expected).abs().max().into_scalar::<f32>();
        assert!(most < 1e-3, "{most}");
        let (again, from) = joined.apart(&config).unwrap();
        for (found, expected) in [(again, &now), (from, &start)] {
            assert_eq!(delta(&found).into_data(), delta(expected).into_data());
        }
        assert!(now.apart(&config).is_none());
    }
}
