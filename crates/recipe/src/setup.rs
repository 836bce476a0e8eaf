//! What a recipe asks of a model, an adapter and an optimiser.

use backdraft_arch::optimizer::Guard;
use backdraft_arch::spec::SCORE_MODULE;
use backdraft_arch::{
    KeptState, LoraConfig, LoraConfigError, LoraTargets, ModelSpec, OptimizerState, Precision,
    QuantizationPlan, Scheme, StatePrecision,
};
use backdraft_data::{Batching, Format};
use backdraft_plan::Setup;
use backdraft_plan::tensors::MemoryModel;

use crate::{
    DataFormat, LoraRecipe, ObjectiveRecipe, Optimizer, Recipe, ReferenceStart, RowBatching,
};

impl Recipe {
    /// How the base is quantised while it is loaded; `None` where it is not, be it that it keeps a file's blocks
    /// (`quantization.keep_blocks`): which those are only the file says.
    #[must_use]
    pub fn quantization_plan(&self) -> Option<QuantizationPlan> {
        let recipe = &self.quantization;
        let scheme = match (self.load_in_4bit, self.load_in_8bit) {
            (false, false) => return None,
            (true, _) if self.deals_bits() => self
                .uniform()
                .scheme(recipe.block_size, recipe.double_quant),
            (true, _) => Scheme::FourBit {
                format: recipe.quant_type,
                block_size: recipe.block_size,
                double_quant: recipe.double_quant,
            },
            (false, true) => Scheme::Int8,
        };
        Some(QuantizationPlan {
            skip_modules: recipe.skip_modules.clone(),
            ..QuantizationPlan::new(scheme)
        })
    }

    /// The largest format that every projection may have within the bits that are dealt out: what the base is loaded in;
    /// else, and while nobody knows how many they are, the smallest.
    fn uniform(&self) -> Precision {
        let recipe = &self.quantization;
        let (values, bits) = ([4096, 4096], self.mean_bits().unwrap_or_default());
        let size = |one: &&Precision| {
            let scheme = one.scheme(recipe.block_size, recipe.double_quant);
            scheme.num_bytes(values)
        };
        let budget = bytes_of(bits, (values[0] * values[1]) as u64) as usize;
        let fitting = recipe.formats.iter().filter(|one| size(one) <= budget);
        let chosen = fitting.max_by_key(size);
        let smallest = || recipe.formats.iter().min_by_key(size);
        chosen.or_else(smallest).copied().unwrap_or_default()
    }

    /// What the optimiser keeps.
    #[must_use]
    pub const fn kept_state(&self) -> OptimizerState {
        let rule = match self.train.optimizer {
            Optimizer::Adamw => KeptState::Moments(StatePrecision::F32),
            Optimizer::Adamw8bit => KeptState::Moments(StatePrecision::Bits8(Guard::On)),
            Optimizer::Lion | Optimizer::Sgd | Optimizer::Muon => KeptState::Momentum,
            Optimizer::Adafactor => KeptState::Factored,
            Optimizer::ScheduleFreeAdamw => KeptState::ScheduleFree,
        };
        OptimizerState {
            rule,
            mean: self.train.ema_decay.is_some(),
        }
    }

    /// Texts of a row at most: two of a pair of answers, else one. Answers that are judged may come in pairs.
    #[must_use]
    pub const fn texts_per_row(&self) -> usize {
        match self.objective {
            ObjectiveRecipe::Sft => 1,
            ObjectiveRecipe::Dpo { .. }
            | ObjectiveRecipe::Orpo { .. }
            | ObjectiveRecipe::Simpo { .. }
            | ObjectiveRecipe::Cpo { .. }
            | ObjectiveRecipe::Reward { .. } => 2,
            ObjectiveRecipe::Kto { .. } => match self.data.format {
                DataFormat::Named(Format::Unpaired) => 1,
                _ => 2,
            },
        }
    }

    /// How the loader puts rows together.
    #[must_use]
    pub fn batching(&self) -> Batching {
        match self.data.batching {
            RowBatching::PaddingFree => Batching::PaddingFree,
            RowBatching::Packed => Batching::Packed {
                max_seq_length: self.max_seq_length * self.texts_per_row(),
            },
            RowBatching::Padded => Batching::LengthGrouped,
        }
    }

    /// What it asks for of a model of that shape, kept so, on a device that takes memory so; activations may wait in `host`
    /// bytes of the host's memory where the recipe lets them. Adapters that do not fit the model, of which
    /// [`trained`](Self::trained) tells, count as those of all projections.
    #[must_use]
    pub fn setup(
        &self,
        spec: ModelSpec,
        quantization: Option<QuantizationPlan>,
        memory: MemoryModel,
        host: u64,
    ) -> Setup {
        let spec = self.shaped(spec);
        let lora = self.trained(&spec).unwrap_or_else(|_| LoraConfig {
            rank: self.lora.rank,
            target_modules: spec.targets(),
            ..LoraConfig::default()
        });
        let setup = Setup {
            spec,
            lora,
            tokens: self.tokens.add.len() + self.lora.trainable_tokens.len(),
            quantization,
            base: None,
            dense_element: memory.element,
            memory,
            optimizer: self.kept_state(),
            micro_batch_size: self.train.micro_batch_size,
            max_seq_length: self.max_seq_length,
            texts_per_row: self.texts_per_row(),
            grad_accumulation_steps: self.train.grad_accumulation_steps,
            releases: !self.train.gradients.is_whole(),
            masters: self.train.master_weights.are_kept(),
            host: if self.activation_offloading { host } else { 0 },
            home: self.base,
        };
        let mut base = setup.base_bytes();
        // What will be dealt out, in place of what the base is loaded in.
        if let Some((bits, plan)) = self.mean_bits().zip(setup.quantization.as_ref()) {
            let (values, bytes) = plan.quantized(&setup.spec);
            base += bytes_of(bits, values).max(bytes) - bytes;
        }
        base += self.frozen_adapter_bytes(&setup);
        match base == setup.base_bytes() {
            true => setup,
            false => setup.with_base(base),
        }
    }

    /// What it trains of a model of that shape.
    ///
    /// # Errors
    /// A name or a pattern that means no module of the model, or one that cannot carry an adapter or be trained; a layer that
    /// is not there.
    pub fn trained(&self, spec: &ModelSpec) -> Result<LoraConfig, LoraConfigError> {
        match self.trainable.is_full() {
            true => LoraConfig::full(self.trainable.clone(), spec),
            false => {
                let config = self.lora.config(spec)?;
                self.check_tables(&config)?;
                Ok(config)
            }
        }
    }

    /// Refuses what does not go with adapters of tables.
    fn check_tables(&self, config: &LoraConfig) -> Result<(), LoraConfigError> {
        let Some(module) = config.target_tables.first().map(|table| table.name()) else {
            return Ok(());
        };
        let lists = [
            ("tokens.add", !self.tokens.add.is_empty()),
            (
                "lora.trainable_tokens",
                !self.lora.trainable_tokens.is_empty(),
            ),
        ];
        if let Some((key, _)) = lists.into_iter().find(|(_, said)| *said) {
            return Err(LoraConfigError::TrainedTwice { module, key });
        }
        match self.train.optimizer {
            Optimizer::Muon => Err(LoraConfigError::NotOnTables {
                module,
                setting: "train.optimizer = \"muon\", which is for matrices between layers"
                    .to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// The model that it trains of that shape: under a head that scores texts, where that is what is trained.
    #[must_use]
    pub fn shaped(&self, spec: ModelSpec) -> ModelSpec {
        match self.objective.scores() {
            true => spec.scoring(),
            false => spec,
        }
    }

    /// Whether answers are compared with those of the adapter that the run goes on from.
    #[must_use]
    pub fn compares_with_start(&self) -> bool {
        self.lora.adapter.is_some() && self.objective.reference() == Some(ReferenceStart::Start)
    }

    /// Bytes of a copy of that adapter, as it was, which counts as a part of the base; none where all that it says is known
    /// before the first step.
    #[must_use]
    pub fn frozen_adapter_bytes(&self, setup: &Setup) -> u64 {
        match self.compares_with_start() && !self.objective.precomputes_reference() {
            true => setup.step().adapters,
            false => 0,
        }
    }
}

/// Bytes of so many values at so many bits each.
#[must_use]
pub fn bytes_of(bits: f64, values: u64) -> u64 {
    (bits / 8.0 * values as f64) as u64
}

impl LoraRecipe {
    /// What it means for a model of that shape.
    ///
    /// # Errors
    /// A name or a pattern that means no module of the model, or one that cannot carry an adapter; a layer that is not
    /// there.
    fn config(&self, spec: &ModelSpec) -> Result<LoraConfig, LoraConfigError> {
        let targets = LoraTargets {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
        };
        let mut modules_to_save = self.modules_to_save.clone();
        if spec.scores {
            // As PEFT does for the task SEQ_CLS.
            modules_to_save.push(SCORE_MODULE.to_owned());
        }
        let config = LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            start: self.init,
            bias: self.bias,
            modules_to_save,
            ..LoraConfig::default()
        };
        targets.resolve(spec, config)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn base_of(more: &str) -> (u64, u64) {
        let text = format!(
            "model = \"org/name\"\ndata.train = \"rows.jsonl\"\nlora.adapter = \"first\"\n{more}"
        );
        let recipe = Recipe::from_stored(&text, Path::new("/recipes")).unwrap();
        let spec = ModelSpec::from_hf(&serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 512, "rope_theta": 1e4, "hidden_act": "silu",
        }))
        .unwrap();
        let step = recipe.setup(spec, None, MemoryModel::cube(2), 0).step();
        (step.base, step.adapters)
    }

    #[test]
    fn a_frozen_copy_of_the_start_has_its_memory() {
        let (alone, adapters) = base_of("objective.kind = \"orpo\"");
        assert!(adapters > 0);
        let copied = base_of("objective.kind = \"dpo\"");
        assert_eq!(copied, (alone + adapters, adapters));
        assert_eq!(base_of("objective.kind = \"kto\""), copied);
        let base = base_of("objective = { kind = \"dpo\", reference = \"base\" }");
        assert_eq!(base, (alone, adapters));
        let known = base_of("objective = { kind = \"dpo\", precompute_reference = true }");
        assert_eq!(known, (alone, adapters));
    }
}
