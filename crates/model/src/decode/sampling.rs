//! Choosing the next token.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

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

/// A token and how likely the model held it, by its logits as they are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likely {
    /// The token.
    pub token: u32,
    /// Its log-probability in nats.
    pub logprob: f32,
}

/// The draws of one sequence.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    config: SamplingConfig,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// For sequence `number` of those that share the configuration.
    pub(super) fn new(config: &SamplingConfig, number: usize) -> Self {
        let seed = config.seed.wrapping_add(number as u64);
        Self {
            config: config.clone(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// The next token.
    ///
    /// # Shapes
    /// `logits` `[v]`.
    pub(super) fn choose(&mut self, logits: &[f32]) -> u32 {
        let config = &self.config;
        if config.temperature <= 0.0 {
            return argmax(logits);
        }
        let mut tokens = possible(logits, config.temperature);
        let kept = config.top_k.unwrap_or(usize::MAX).max(1);
        if kept < tokens.len() {
            likeliest_first(&mut tokens, kept);
            tokens.truncate(kept);
        }
        if let Some(p) = config.top_p {
            let mass = f64::from(p) * mass(&tokens);
            keep_mass(&mut tokens, mass);
        }
        let mut left = self.rng.random::<f64>() * mass(&tokens);
        for token in &tokens {
            left -= token.weight;
            if left < 0.0 {
                return token.id;
            }
        }
        // Rounding may leave a crumb; of logits that are no numbers no token is possible.
        tokens
            .last()
            .map_or_else(|| argmax(logits), |token| token.id)
    }
}

/// A token that may be chosen.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    logit: f32,
    /// Its probability, but for one factor that all share.
    weight: f64,
}

fn mass(tokens: &[Candidate]) -> f64 {
    tokens.iter().map(|token| token.weight).sum()
}

/// Tokens that are not beyond all chance: the others together weigh less than a rounding of the sum.
fn possible(logits: &[f32], temperature: f32) -> Vec<Candidate> {
    let top = logits[argmax(logits) as usize];
    let least = top - 40.0 * temperature;
    let numbered = logits.iter().zip(0u32..);
    numbered
        .filter(|(logit, _)| **logit >= least)
        .map(|(&logit, id)| Candidate {
            id,
            logit,
            weight: f64::from(((logit - top) / temperature).exp()),
        })
        .collect()
}

/// Puts the `count` likeliest tokens in front, likeliest first, the lower id first among equals.
fn likeliest_first(tokens: &mut [Candidate], count: usize) {
    let before = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
    let count = count.min(tokens.len());
    if count > 0 {
        tokens.select_nth_unstable_by(count - 1, before);
        tokens[..count].sort_unstable_by(before);
    }
}

/// Keeps the likeliest tokens that together weigh `mass`.
fn keep_mass(tokens: &mut Vec<Candidate>, mass: f64) {
    // Few tokens usually do: so only they are sorted.
    let mut sorted = 64;
    loop {
        sorted = sorted.min(tokens.len());
        likeliest_first(tokens, sorted);
        let mut sum = 0.0;
        let reaches = |token: &Candidate| {
            sum += token.weight;
            sum >= mass
        };
        if let Some(last) = tokens[..sorted].iter().position(reaches) {
            tokens.truncate(last + 1);
            return;
        }
        if sorted == tokens.len() {
            return;
        }
        sorted *= 8;
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

/// Log-probabilities of `token` and of the `count` likeliest tokens, likeliest first.
///
/// # Shapes
/// `logits` `[v]`.
pub(super) fn likeliest(logits: &[f32], token: u32, count: usize) -> (Likely, Vec<Likely>) {
    let top = logits[argmax(logits) as usize];
    let mut order: Vec<Candidate> = (logits.iter().zip(0u32..))
        .map(|(&logit, id)| Candidate {
            id,
            logit,
            weight: f64::from(logit - top).exp(),
        })
        .collect();
    let log_sum_exp = f64::from(top) + mass(&order).ln();
    let likely = |token: u32| Likely {
        token,
        logprob: (f64::from(logits[token as usize]) - log_sum_exp) as f32,
    };
    likeliest_first(&mut order, count);
    order.truncate(count);
    (
        likely(token),
        order.iter().map(|token| likely(token.id)).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(config: &SamplingConfig, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(config, 0);
        (0..2000).map(|_| sampler.choose(logits)).collect()
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

    #[test]
    fn logits_that_are_no_numbers_end_nothing() {
        for logits in [[f32::NAN; 3], [f32::NEG_INFINITY; 3], [f32::INFINITY; 3]] {
            let config = SamplingConfig {
                temperature: 1.0,
                top_k: Some(2),
                top_p: Some(0.5),
                seed: 1,
            };
            assert!(Sampler::new(&config, 0).choose(&logits) < 3);
            assert_eq!(likeliest(&logits, 1, 3).1.len(), 3);
        }
    }

    #[test]
    fn log_probabilities_add_up_to_one() {
        let logits = [1.0, 3.0, 2.0, 3.0];
        let (second, all) = likeliest(&logits, 2, 9);
        let order: Vec<u32> = all.iter().map(|likely| likely.token).collect();
        assert_eq!(order, [1, 3, 2, 0]);
        let sum: f32 = all.iter().map(|likely| likely.logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert_eq!(second, all[2]);
        assert!(likeliest(&logits, 0, 0).1.is_empty());
    }
}
