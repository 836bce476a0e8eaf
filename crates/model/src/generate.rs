//! Continuing prompts to their ends.

use std::collections::HashMap;

use crate::causal_lm::CausalLm;
use crate::decode::{DecodeLimits, DecodeRequest, Decoder};

pub use crate::decode::{GenerateConfig, SamplingConfig};

impl CausalLm {
    /// Continues each prompt on its own, all at once.
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
        let limits = DecodeLimits::on(&self.device(), prompts.len(), usize::MAX);
        let mut decoder = Decoder::new(vec![self.clone()], limits);
        let mut numbers = HashMap::new();
        for (number, prompt) in prompts.iter().enumerate() {
            let mut config = config.clone();
            config.sampling.seed = config.sampling.seed.wrapping_add(number as u64);
            let admitted = decoder.admit(DecodeRequest {
                prompt: prompt.as_ref().to_vec(),
                samples: 1,
                config,
                ..DecodeRequest::default()
            });
            let ids = admitted.unwrap_or_else(|error| unreachable!("no limit: {error}"));
            numbers.extend(ids.into_iter().map(|id| (id, number)));
        }
        while !decoder.is_empty() {
            for sampled in decoder.step() {
                let number = numbers[&sampled.sequence];
                outputs[number].push(sampled.token);
                if !on_token(number, sampled.token) {
                    decoder.remove(sampled.sequence);
                }
            }
        }
        outputs
    }
}
