//! Continuing sequences token by token.

use burn::tensor::Tensor;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::cache::KvCache;
use crate::causal_lm::{CausalLm, index};
use crate::tokens::Tokens;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingConfig {
    /// 0 takes the likeliest token; above, logits are divided by it.
    pub temperature: f32,
    /// Only the k likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities add up to p.
    pub top_p: Option<f32>,
    /// Seed of the draws; sequence i of a batch draws from `seed + i`.
    pub seed: u64,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            seed: 0,
        }
    }
}

/// When to stop, and how to choose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateConfig {
    /// Tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end a sequence; they are part of the output.
    pub stop_ids: Vec<u32>,
    /// Choice of tokens.
    pub sampling: SamplingConfig,
}

impl CausalLm {
    /// Continues each prompt on its own, all in one batch.
    ///
    /// `on_token` sees (sequence, token) as it is chosen; where it returns `false`, that sequence ends.
    ///
    /// # Panics
    /// If a prompt is empty or holds an id outside the vocabulary.
    pub fn generate<P: AsRef<[u32]>>(
        &self,
        prompts: &[P],
        config: &GenerateConfig,
        mut on_token: impl FnMut(usize, u32) -> bool,
    ) -> Vec<Vec<u32>> {
        let mut outputs = vec![Vec::new(); prompts.len()];
        let mut samplers: Vec<_> = (0..prompts.len() as u64)
            .map(|i| ChaCha8Rng::seed_from_u64(config.sampling.seed.wrapping_add(i)))
            .collect();
        let mut active: Vec<usize> = (0..prompts.len()).collect();
        let mut cache = KvCache::new(self.layers.len(), prompts.len());
        let mut pending: Vec<Vec<u32>> = prompts.iter().map(|p| p.as_ref().to_vec()).collect();
        for _ in 0..config.max_new_tokens {
            if active.is_empty() {
                break;
            }
            let logits = self.next_logits(&pending, &mut cache);
            let mut keep = vec![true; active.len()];
            pending.clear();
            for (slot, (&sequence, logits)) in active.iter().zip(logits).enumerate() {
                let token = config.sampling.choose(&logits, &mut samplers[sequence]);
                outputs[sequence].push(token);
                let goes_on = on_token(sequence, token) && !config.stop_ids.contains(&token);
                keep[slot] = goes_on;
                if goes_on {
                    pending.push(vec![token]);
                }
            }
            if keep.contains(&false) {
                cache.retain(&keep, &self.device().inner());
                let mut keep = keep.iter();
                active.retain(|_| keep.next() == Some(&true));
            }
        }
        outputs
    }

    /// Logits after the last token of each sequence.
    fn next_logits(&self, sequences: &[Vec<u32>], cache: &mut KvCache) -> Vec<Vec<f32>> {
        assert!(
            sequences.iter().all(|s| !s.is_empty()),
            "a sequence to continue is empty"
        );
        let tokens = Tokens::continuing(sequences, cache.lengths());
        let hidden = self.forward_cached(&tokens, cache).inner();
        let last: Vec<u32> = tokens
            .segments
            .iter()
            .map(|(queries, _)| queries.end as u32 - 1)
            .collect();
        let logits = self.logits(hidden.select(0, index(&last, &self.device().inner())));
        rows(logits)
    }
}

/// The rows of a matrix on the host.
pub fn rows(x: Tensor<2>) -> Vec<Vec<f32>> {
    let [_, width] = x.dims();
    let values: Vec<f32> = x.into_data().iter::<f32>().collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

impl SamplingConfig {
    fn choose(&self, logits: &[f32], rng: &mut ChaCha8Rng) -> u32 {
        if self.temperature <= 0.0 {
            return argmax(logits);
        }
        let mut candidates: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
        candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        candidates.truncate(self.top_k.unwrap_or(usize::MAX).max(1));
        let top = candidates[0].1;
        let mut total = 0.0;
        let mut cumulative: Vec<f64> = candidates
            .iter()
            .map(|(_, logit)| {
                total += f64::from((logit - top) / self.temperature).exp();
                total
            })
            .collect();
        if let Some(p) = self.top_p {
            let enough = cumulative.partition_point(|&sum| sum < f64::from(p) * total) + 1;
            cumulative.truncate(enough);
            total = cumulative[cumulative.len() - 1];
        }
        let drawn = rng.random::<f64>() * total;
        let choice = cumulative
            .partition_point(|&sum| sum <= drawn)
            .min(cumulative.len() - 1);
        candidates[choice].0 as u32
    }
}

/// The largest logit's index, the first of equals.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(config: &SamplingConfig, logits: &[f32]) -> Vec<u32> {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        (0..2000).map(|_| config.choose(logits, &mut rng)).collect()
    }

    #[test]
    fn sampling_follows_temperature_top_k_and_top_p() {
        let logits = [1.0, 3.0, 2.0, -5.0];
        let greedy = SamplingConfig::default();
        assert!(draws(&greedy, &logits).iter().all(|&token| token == 1));
        let warm = SamplingConfig {
            temperature: 1.0,
            ..greedy.clone()
        };
        let drawn = draws(&warm, &logits);
        let share = drawn.iter().filter(|&&t| t == 1).count() as f64 / 2000.0;
        assert!((share - 0.665).abs() < 0.04, "share {share}");
        assert_eq!(drawn, draws(&warm, &logits));
        let top_k = SamplingConfig {
            top_k: Some(2),
            ..warm.clone()
        };
        assert!(
            draws(&top_k, &logits)
                .iter()
                .all(|token| [1, 2].contains(token))
        );
        let top_p = SamplingConfig {
            top_p: Some(0.6),
            ..warm
        };
        assert!(draws(&top_p, &logits).iter().all(|&token| token == 1));
    }
}
