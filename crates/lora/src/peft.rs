//! Adapters as PEFT directories.

use std::path::Path;

use backdraft_formats::{
    AdapterPrefix, AdapterTensors, FormatError, LoraPair, ModulePattern, PeftConfig, PeftDir,
    PeftWriteOptions, TokenRows, TokenTable, TrainableTokens, WholeTensor,
};
use burn::module::Param;
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::adapter::Adapter;
use crate::dora::Magnitude;
use crate::lora_adapter::LoraAdapter;
use crate::tokens::TrainedTokens;
use crate::weights::AdapterWeights;
use crate::whole::TrainedTensor;
use backdraft_arch::LoraConfig;

impl AdapterWeights {
    /// Reads an adapter.
    ///
    /// # Errors
    /// A directory that is no LoRA adapter, or one with a feature that is not supported.
    pub fn read(path: impl AsRef<Path>, device: &Device) -> Result<Self, FormatError> {
        Ok(Self::from_peft(&PeftDir::read(path.as_ref())?, device))
    }

    /// An adapter that was read from a directory.
    pub fn from_peft(directory: &PeftDir, device: &Device) -> Self {
        let tensor = |values: &[f32], shape: [usize; 2]| {
            Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
        };
        let peft = &directory.config;
        let pairs = || directory.tensors.iter();
        let modules = pairs().map(|pair| pair.module.clone()).collect();
        let others = pairs().filter(|pair| pair.rank() != peft.r);
        let config = LoraConfig {
            rank: peft.r,
            alpha: peft.lora_alpha,
            dropout: peft.lora_dropout,
            use_rslora: peft.use_rslora,
            use_dora: peft.use_dora,
            layers_to_transform: peft.layers_to_transform.clone(),
            rank_pattern: others
                .map(|pair| (pair.module.clone(), pair.rank()))
                .collect(),
            alpha_pattern: pairs()
                .filter_map(|pair| {
                    let alpha = peft.alpha_pattern.get(&pair.module)?;
                    Some((pair.module.clone(), alpha))
                })
                .collect(),
            bias: peft.bias,
            modules_to_save: peft.modules_to_save.clone(),
            ensure_weight_tying: peft.ensure_weight_tying,
            ..LoraConfig::default()
        }
        .with_modules(modules, peft.num_layers(pairs().map(|pair| &pair.module)));
        let adapter = |pair: &LoraPair| {
            let rank = pair.rank();
            let a = tensor(&pair.lora_a, [rank, pair.in_features]);
            let b = tensor(&pair.lora_b, [pair.out_features, rank]);
            let lengths = pair.magnitude.clone().map(|values| {
                let data = TensorData::new(values, [pair.out_features]);
                Magnitude::new(Tensor::from_data(data, device))
            });
            let lora = LoraAdapter::from_factors(&config, a, b).with_magnitude(lengths);
            let lora = match pair.embeds() {
                true => lora.embedding(),
                false => lora,
            };
            let lora = lora.scaled_for(&config, &pair.module);
            (pair.module.clone(), Adapter::Lora(lora))
        };
        let adapters = directory.tensors.iter().map(adapter).collect();
        let tokens = directory.tensors.tokens().iter().map(|rows| {
            let values = tensor(&rows.values, [rows.ids.len(), rows.width()]);
            TrainedTokens::new(rows.table, &rows.ids, values)
        });
        let whole = directory.tensors.whole().map(|tensor| {
            let values = TensorData::new(tensor.values.clone(), [tensor.values.len()]);
            let values = Tensor::from_data(values, (device, DType::F32));
            let trained = TrainedTensor::new(values, tensor.shape.clone(), DType::F32);
            (tensor.name.clone(), trained)
        });
        Self {
            tokens: tokens.collect(),
            whole: whole.collect(),
            config,
            adapters,
        }
    }

    /// Writes the adapter as a directory that PEFT loads; it appears whole or not at all.
    ///
    /// `base` is the model's name or path, noted for whoever loads the adapter.
    ///
    /// # Errors
    /// A directory that exists and must not be replaced, or a system that refuses.
    pub fn write(
        &self,
        path: impl AsRef<Path>,
        base: &str,
        options: &PeftWriteOptions,
    ) -> Result<(), FormatError> {
        let targets = self.config.module_names();
        let mut config = PeftConfig::new(self.config.rank, self.config.alpha, targets);
        config.base_model_name_or_path = Some(base.to_owned());
        config.lora_dropout = self.config.dropout;
        config.use_rslora = self.config.use_rslora;
        config.use_dora = self.config.use_dora;
        config.layers_to_transform = self.config.layers_to_transform.clone();
        let tensors: AdapterTensors = self
            .adapters
            .iter()
            .map(|(module, Adapter::Lora(lora))| LoraPair {
                module: module.clone(),
                in_features: lora.lora_a.dims()[1],
                out_features: lora.lora_b.dims()[0],
                lora_a: values(&lora.lora_a),
                lora_b: values(&lora.lora_b),
                magnitude: lora.magnitude.as_ref().map(|m| values(&m.vector)),
            })
            .collect();
        let ranks = tensors
            .iter()
            .map(|pair| (pair.module.clone(), pair.rank()));
        config.rank_pattern =
            ModulePattern::of_modules(ranks.filter(|(_, rank)| *rank != config.r));
        config.alpha_pattern = ModulePattern::of_modules(self.config.alpha_pattern.clone());
        let tokens = self.tokens.iter().map(|tokens| TokenRows {
            table: tokens.table(),
            ids: tokens.ids().to_vec(),
            values: tokens.rows().into_data().iter::<f32>().collect(),
        });
        let tensors = tensors.with_tokens(tokens.collect());
        let lists = tensors.tokens().iter();
        let lists = lists.map(|rows| (rows.table, rows.ids.clone()));
        config.trainable_tokens = TrainableTokens::new(lists.collect());
        config.bias = self.config.bias;
        config.modules_to_save = self.config.modules_to_save.clone();
        config.ensure_weight_tying = self.config.ensure_weight_tying;
        let whole = self.whole.iter().map(|(name, tensor)| WholeTensor {
            name: name.clone(),
            shape: tensor.dims().to_vec(),
            values: tensor.values().into_data().iter::<f32>().collect(),
        });
        let mut whole: Vec<WholeTensor> = whole.collect();
        if config.ensure_weight_tying {
            tie(&mut config.modules_to_save, &mut whole);
        }
        if options.prefix == AdapterPrefix::Wrapped && !config.modules_to_save.is_empty() {
            // The ends of names are those of other parts' modules too.
            let weights = whole
                .iter()
                .filter_map(|it| it.name.strip_suffix(".weight"));
            config.modules_to_save = weights.map(str::to_owned).collect();
        }
        let tensors = tensors.with_whole(whole);
        PeftDir::write(path.as_ref(), &config, &tensors, options)
    }
}

fn values<const D: usize>(tensor: &Param<Tensor<D>>) -> Vec<f32> {
    tensor.val().inner().into_data().iter::<f32>().collect()
}

/// As PEFT has an embedding that is the head too: the module is the embedding, and the file has the table under both names.
fn tie(modules: &mut Vec<String>, whole: &mut Vec<WholeTensor>) {
    let [embedding, head] = TokenTable::ALL.map(TokenTable::path);
    modules.retain(|name| !head.ends_with(name.as_str()));
    if !modules
        .iter()
        .any(|name| embedding.ends_with(name.as_str()))
    {
        modules.push("embed_tokens".to_owned());
    }
    let [embedding, head] = [embedding, head].map(|module| format!("{module}.weight"));
    let table = whole
        .iter()
        .find(|tensor| tensor.name == embedding)
        .cloned();
    whole.extend(table.map(|table| WholeTensor {
        name: head,
        ..table
    }));
}
