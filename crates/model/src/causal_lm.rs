//! A language model: embedding, decoder layers, norm and head.

mod tables;
mod whole;

use std::collections::{BTreeMap, BTreeSet};

use backdraft_arch::spec::{EMBEDDING, FINAL_NORM, HEAD};
use backdraft_arch::{LoraConfigError, ModelSpec, StoredShare, TokenTable};
use backdraft_kernels::cross_entropy::{self, HeadLoss};
use backdraft_kernels::gemm::linear;
use backdraft_lora::{
    Adapter, AdapterGrads, AdapterParam, AdapterWeights, LoraConfig, Projection, Stored,
    TargetModule, TokenMatrix, TrainedTensor, TrainedTokens,
};
use backdraft_quant::{Frozen, Weight};
use burn::module::{Module, ParamId};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::error::LoadError;
use crate::layers::{Context, DecoderLayer, RmsNorm};
use crate::rope;
use crate::tokens::{Targets, Tokens};
pub use whole::WholePlace;

/// A causal language model of one of the families of [`ModelSpec`].
///
/// Only its adapters, and what else is trained, are Burn parameters; see [`Projection`].
#[derive(Module, Debug)]
pub struct CausalLm {
    #[module(skip)]
    spec: ModelSpec,
    embed_tokens: Frozen<Weight>,
    /// The decoder layers, first to last.
    pub layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    lm_head: Option<Frozen<Weight>>,
    /// Rows that are trained in place of the embedding's and the head's.
    tokens: Vec<TrainedTokens>,
    /// What is trained whole in place of the embedding.
    whole_embedding: Option<TrainedTensor>,
    /// And of the head, where that is a matrix of its own.
    whole_head: Option<TrainedTensor>,
    /// The embedding's adapter, whose inputs are the tokens.
    embedding_adapter: Option<Adapter>,
    /// The head's, be the head a matrix of its own or the embedding.
    head_adapter: Option<Adapter>,
    #[module(skip)]
    lora: Option<LoraConfig>,
}

fn dense_name(dtype: DType) -> String {
    format!("{dtype:?}").to_lowercase()
}

/// A frozen tensor of the base model.
pub enum BaseTensor<'a> {
    /// A projection, the embedding or the head.
    Matrix(&'a mut Weight),
    /// The weight of a norm, or a bias.
    Vector(&'a mut Tensor<1>),
}

impl CausalLm {
    pub(crate) fn from_parts(
        spec: ModelSpec,
        embed_tokens: Weight,
        layers: Vec<DecoderLayer>,
        norm: RmsNorm,
        lm_head: Option<Weight>,
    ) -> Self {
        Self {
            spec,
            embed_tokens: Frozen(embed_tokens),
            layers,
            norm,
            lm_head: lm_head.map(Frozen),
            tokens: Vec::new(),
            whole_embedding: None,
            whole_head: None,
            embedding_adapter: None,
            head_adapter: None,
            lora: None,
        }
    }

    /// What the model is made of.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The device of the base weights.
    pub fn device(&self) -> Device {
        self.norm.weight().device()
    }

    /// The matrix that turns what [`before_head`](Self::before_head) gives into logits, without autodiff.
    ///
    /// # Shapes
    /// `[vocab, hidden]`; with an adapter of rank r `[vocab, hidden + r]`.
    pub fn head(&self) -> TokenMatrix {
        let table = self.head_table();
        match self.whole_of(table) {
            Some(whole) => TokenMatrix::from(&whole.matrix()),
            None => self.tracked_head().plain(),
        }
    }

    /// The values of the head as they are trained, `[rows, hidden]`, f32, without autodiff.
    pub(crate) fn head_values(&self) -> Tensor<2> {
        match (&self.whole_head, &self.lm_head) {
            (Some(whole), _) => whole.values().reshape(self.spec.head()),
            (None, Some(head)) => head.dequantize().inner().cast(DType::F32),
            (None, None) => self.embed_tokens.dequantize().inner().cast(DType::F32),
        }
    }

    /// The head, where it is trained whole.
    pub(crate) fn trained_head(&self) -> Option<&TrainedTensor> {
        self.whole_of(self.head_table())
    }

    /// The table that the head reads.
    fn head_table(&self) -> TokenTable {
        match self.lm_head {
            Some(_) => TokenTable::Head,
            None => TokenTable::Embedding,
        }
    }

    /// A table with its trained rows, tracked by autodiff where they are.
    fn table(&self, table: TokenTable) -> TokenMatrix {
        let base = match (&self.lm_head, table) {
            (Some(head), TokenTable::Head) => head,
            _ => &self.embed_tokens,
        };
        match (self.whole_of(table), self.tokens_of(table)) {
            (Some(whole), _) => TokenMatrix::from(&whole.tracked_matrix()),
            (None, Some(tokens)) => tokens.within(base, self.dtype()),
            (None, None) => TokenMatrix::from(&**base),
        }
    }

    /// What is trained whole in place of a table.
    fn whole_of(&self, table: TokenTable) -> Option<&TrainedTensor> {
        match table {
            TokenTable::Embedding => self.whole_embedding.as_ref(),
            TokenTable::Head => self.whole_head.as_ref(),
        }
    }

    fn tokens_of(&self, table: TokenTable) -> Option<&TrainedTokens> {
        self.tokens.iter().find(|it| it.table() == table)
    }

    /// The norm in front of the head.
    pub fn norm(&self) -> &RmsNorm {
        &self.norm
    }

    /// Rotary tables and boundaries of a batch.
    pub fn context(&self, tokens: &Tokens, dropout_seed: Option<u64>) -> Context {
        let device = self.device().inner();
        let tables = |rope| rope::tables_of(rope, tokens, &device);
        Context {
            tables: tables(&self.spec.rope),
            local_tables: self.spec.local_rope.as_ref().map(tables),
            query_tables: self.spec.query_scaling.and_then(|scaling| {
                rope::query_tables(&self.spec.rope, &scaling, &tokens.position_ids, &device)
            }),
            segments: tokens.segments.clone(),
            dropout_seed,
        }
    }

    /// Embeddings of the tokens, multiplied as the family says.
    ///
    /// # Shapes
    /// `[t, hidden]`.
    ///
    /// # Panics
    /// If an id is not in the vocabulary.
    pub fn embed(&self, input_ids: &[u32]) -> Tensor<2> {
        let rows = self.table(TokenTable::Embedding);
        let rows = rows.rows(input_ids, self.dtype());
        let rows = self.add_to_rows(rows, input_ids);
        match self.embedding_multiplier() {
            1.0 => rows,
            multiplier => rows.mul_scalar(multiplier),
        }
    }

    /// What embeddings are multiplied by.
    fn embedding_multiplier(&self) -> f64 {
        match self.spec.embedding_multiplier {
            1.0 => 1.0,
            multiplier if self.spec.rounds_embedding_multiplier => {
                rounded(multiplier, self.dtype())
            }
            multiplier => multiplier,
        }
    }

    /// The cap of logits, where they have one.
    pub fn logits_softcap(&self) -> Option<f32> {
        self.spec.logits_softcap.map(|cap| cap as f32)
    }

    /// The dtype of activations, and of weights that are not quantised.
    pub fn dtype(&self) -> DType {
        self.norm.weight().dtype()
    }

    /// The residual stream after the embedding and after each layer, without the final norm.
    ///
    /// # Shapes
    /// `layers + 1` tensors `[t, hidden]`.
    pub fn hidden_states(&self, tokens: &Tokens) -> Vec<Tensor<2>> {
        let context = self.context(tokens, None);
        let mut states = vec![self.embed(&tokens.input_ids)];
        for layer in &self.layers {
            let h = layer.forward(states[states.len() - 1].clone(), &context);
            states.push(h);
        }
        states
    }

    /// Normed hidden states, differentiable; `dropout_seed` is given while training.
    ///
    /// # Shapes
    /// `[t, hidden]`.
    pub fn forward_hidden(&self, tokens: &Tokens, dropout_seed: Option<u64>) -> Tensor<2> {
        let context = self.context(tokens, dropout_seed);
        let h = self
            .layers
            .iter()
            .fold(self.embed(&tokens.input_ids), |h, layer| {
                layer.forward(h, &context)
            });
        self.norm.forward(h)
    }

    /// Logits of normed hidden states.
    ///
    /// # Shapes
    /// `hidden` `[n, hidden]`, result `[n, vocab]`.
    pub fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let hidden = self.before_head_tracked(hidden, None);
        let logits = match self.tracked_head().tracked() {
            Some(head) => linear(hidden, head),
            None => backdraft_kernels::lora_linear::lora_linear(hidden, (self.head(), 1.0), None),
        };
        match self.logits_softcap() {
            None => logits,
            Some(cap) => logits.div_scalar(cap).tanh().mul_scalar(cap),
        }
    }

    /// Logits of a rectangular batch without padding, differentiable.
    ///
    /// # Shapes
    /// `input_ids` `[b, s]`, result `[b, s, vocab]`.
    pub fn forward(&self, input_ids: Tensor<2, Int>) -> Tensor<3> {
        let [b, s] = input_ids.dims();
        let ids: Vec<u32> = input_ids
            .into_data()
            .iter::<i64>()
            .map(|id| id as u32)
            .collect();
        let sequences: Vec<&[u32]> = ids.chunks(s.max(1)).collect();
        let hidden = self.forward_hidden(&Tokens::from_sequences(&sequences), None);
        self.logits(hidden).reshape([b, s, self.spec.vocab_size])
    }

    /// Σ nll over the supervised positions in nats, differentiable. Divide by the number of targets
    /// of the whole optimiser step.
    ///
    /// # Shapes
    /// `[1]`.
    ///
    /// # Panics
    /// If there is no target.
    pub fn loss(&self, tokens: &Tokens, targets: &Targets, dropout_seed: Option<u64>) -> Tensor<1> {
        let hidden = self.forward_hidden(tokens, dropout_seed);
        let hidden = hidden.select(0, index(&targets.rows, &self.device()));
        let hidden = self.before_head_tracked(hidden, dropout_seed);
        let cap = self.logits_softcap();
        match self.tracked_head().tracked() {
            Some(head) => {
                let logits = linear(hidden, head);
                let (nll, _) =
                    cross_entropy::reference::softmax_nll(logits, cap, &targets.ids, None);
                nll.sum()
            }
            None => cross_entropy::cross_entropy(hidden, &self.head(), cap, &targets.ids),
        }
    }

    /// Nll of each target in nats, in chunks: no logits are kept.
    ///
    /// # Shapes
    /// `[targets]`.
    pub fn nll(&self, tokens: &Tokens, targets: &Targets) -> Tensor<1> {
        let hidden = self.forward_hidden(tokens, None).inner();
        let hidden = hidden.select(0, index(&targets.rows, &self.device().inner()));
        let hidden = self.before_head(hidden, None);
        let cap = self.logits_softcap();
        let head = self.head();
        let HeadLoss { nll, .. } = cross_entropy::forward(&hidden, &head, cap, &targets.ids, None);
        nll
    }

    /// The model with fresh adapters, drawn from `seed`, or without any where the base itself is trained, and the tensors that
    /// are trained whole as the base has them.
    ///
    /// # Errors
    /// Settings that do not fit the model; a tensor in codes, which cannot be trained.
    pub fn with_lora(mut self, config: &LoraConfig, seed: u64) -> Result<Self, LoadError> {
        config.validate(self.layers.len())?;
        let config = &config.clone().with_whole(&self.spec)?;
        let (device, dtype) = (self.device(), self.dtype());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        self.replace_adapters(|layer, target, projection| {
            let (path, weight) = (target.path(layer), projection.weight());
            Ok(config
                .adapts(layer, target)
                .then(|| Adapter::init(config, (&path, weight), &mut rng, &device))
                .map(|adapter| adapter.computing_in(dtype)))
        })?;
        self.init_tables(config, &mut rng);
        self.lora = Some(config.clone());
        let whole = self.of_base(config)?;
        self.set_whole(whole);
        Ok(self)
    }

    /// The model with the adapter of a file in place of the one it had.
    ///
    /// # Errors
    /// An adapter that does not fit the model.
    pub fn with_adapter(mut self, adapter: &AdapterWeights) -> Result<Self, LoadError> {
        if let Some(module) = adapter.adapters.keys().find(|path| !self.can_adapt(path)) {
            let module = module.clone();
            return Err(LoadError::AdapterModule { module });
        }
        adapter.config.validate(self.layers.len())?;
        let (device, dtype) = (self.device(), self.dtype());
        self.replace_adapters(|layer, target, projection| {
            let path = target.path(layer);
            let Some(found) = adapter.adapters.get(&path) else {
                return Ok(None);
            };
            let expected = projection.weight().dims();
            if !found.fits(expected) {
                let shape = |param: &AdapterParam| format!("{} {:?}", param.name, param.dims);
                let params: Vec<String> = found.params().iter().map(shape).collect();
                let actual = params.join(" and ");
                return Err(LoadError::Adapter {
                    module: path,
                    expected,
                    actual,
                });
            }
            let made = found.for_module(&adapter.config, &path, &device);
            Ok(Some(made.computing_in(dtype)))
        })?;
        self.set_tables(adapter)?;
        self.lora = Some(adapter.config.clone());
        let whole = self.fitting(adapter)?;
        self.set_whole(whole);
        self.with_tokens(&adapter.tokens)
    }

    /// The same model with rows of tokens that are trained in place of the base's, and of those that it had.
    ///
    /// # Errors
    /// [`LoadError::AdapterTokens`] for rows that its tables have no place for.
    pub fn with_tokens(mut self, tokens: &[TrainedTokens]) -> Result<Self, LoadError> {
        for tokens in tokens {
            let (table, [_, width]) = (tokens.table(), tokens.rows().dims());
            let (vocab, hidden) = (self.spec.vocab_size, self.spec.hidden_size);
            if let Some((adapted, _)) = self.table_adapters().next() {
                return Err(LoadError::Lora(LoraConfigError::TrainedTwice {
                    module: adapted.name(),
                    key: "a list of tokens",
                }));
            }
            let last = tokens.ids().last().map_or(0, |&id| id as usize);
            let absent = table == TokenTable::Head && self.lm_head.is_none();
            if absent || last >= vocab || width != hidden {
                return Err(LoadError::AdapterTokens {
                    module: table.path(),
                    expected: [if absent { 0 } else { vocab }, hidden],
                    last,
                    width,
                });
            }
        }
        let device = self.device();
        self.tokens.clear();
        for tokens in tokens {
            // Rows of a table that is trained whole are a part of it.
            let whole = match tokens.table() {
                TokenTable::Embedding => &mut self.whole_embedding,
                TokenTable::Head => &mut self.whole_head,
            };
            match whole {
                Some(whole) => *whole = whole.with_rows(tokens.ids(), &tokens.rows()),
                None => self.tokens.push(tokens.on(&device)),
            }
        }
        Ok(self)
    }

    /// The rows of tokens that are trained.
    pub fn tokens(&self) -> &[TrainedTokens] {
        &self.tokens
    }

    /// Rows of a table as the base has them, whatever is trained in their place.
    ///
    /// # Shapes
    /// `[ids, hidden]`.
    ///
    /// # Panics
    /// If an id has no row.
    pub fn token_rows(&self, table: TokenTable, ids: &[u32]) -> Tensor<2> {
        let base = match (&self.lm_head, table) {
            (Some(head), TokenTable::Head) => head,
            _ => &self.embed_tokens,
        };
        base.rows(ids)
    }

    /// Whether the backward pass goes down to the embedding.
    pub fn trains_embedding(&self) -> bool {
        self.whole_embedding.is_some()
            || self.embedding_adapter.is_some()
            || self.tokens_of(TokenTable::Embedding).is_some()
    }

    /// Adds the gradient of the head, of rows of it, or of its adapter's B, where that is trained, from what it read and the gradient of
    /// what it gave.
    ///
    /// # Shapes
    /// `hidden` `[n, hidden]`, as [`before_head`](Self::before_head) gave it, `d_logits` `[n, vocab]`.
    pub fn add_head_grad(
        &self,
        grads: &mut AdapterGrads,
        (hidden, d_logits): (&Tensor<2>, &Tensor<2>),
    ) {
        let table = self.head_table();
        if let Some(Adapter::Lora(lora)) = &self.head_adapter {
            lora.add_head_grad(grads, hidden, d_logits);
        }
        match (self.whole_of(table), self.tokens_of(table)) {
            (Some(whole), _) => whole.add_matrix_grad(grads, hidden, (1.0, d_logits)),
            (None, Some(tokens)) => tokens.add_head_grad(grads, hidden, d_logits),
            (None, None) => {}
        }
    }

    /// Adds the gradient of the embedding, of rows of it, or of its adapter, where that is trained, from that of what
    /// [`embed`](Self::embed) gave.
    ///
    /// # Shapes
    /// `dh` `[input_ids, hidden]`.
    pub fn add_embedding_grad(
        &self,
        grads: &mut AdapterGrads,
        (input_ids, dh): (&[u32], &Tensor<2>),
    ) {
        let (table, multiplier) = (TokenTable::Embedding, self.embedding_multiplier() as f32);
        if let Some(Adapter::Lora(lora)) = &self.embedding_adapter {
            lora.add_embedding_grad(grads, (input_ids, dh), multiplier);
        }
        match (self.whole_of(table), self.tokens_of(table)) {
            (Some(whole), _) => whole.add_embedding_grad(grads, (input_ids, dh), multiplier),
            (None, Some(tokens)) => tokens.add_embedding_grad(grads, (input_ids, dh), multiplier),
            (None, None) => {}
        }
    }

    /// The same model with an adapter on every projection: zeros where there was none, which change nothing. For
    /// measuring what each projection sees.
    pub fn adapted_everywhere(mut self) -> Self {
        let config = self.lora.clone().unwrap_or_default();
        let (device, dtype) = (self.device().inner(), self.dtype());
        for layer in &mut self.layers {
            for (_, projection) in layer.projections_mut() {
                if projection.adapter().is_none() {
                    let dims = projection.weight().dims();
                    let adapter = Adapter::zero(&config, dims, &device).computing_in(dtype);
                    *projection = projection.clone().with_adapter(Some(adapter));
                }
            }
        }
        self.lora = Some(config);
        self
    }

    /// The base model alone; of one that has given up tensors for trained ones, with those.
    pub fn without_adapter(mut self) -> Self {
        for layer in &mut self.layers {
            for (_, projection) in layer.projections_mut() {
                *projection = projection.clone().with_adapter(None);
            }
        }
        self.embedding_adapter = None;
        self.head_adapter = None;
        self.lora = None;
        self.tokens = Vec::new();
        self.set_whole(BTreeMap::new());
        self
    }

    /// The present adapter, apart from the model.
    pub fn adapter(&self) -> Option<AdapterWeights> {
        let config = self.lora.clone()?;
        let adapters = self
            .adapters()
            .map(|(layer, target, adapter)| (target.path(layer), adapter.valid()));
        let tables = self.table_adapters();
        let tables = tables.map(|(table, adapter)| (table.path().to_owned(), adapter.valid()));
        let adapters = adapters.chain(tables).collect();
        Some(AdapterWeights {
            config,
            adapters,
            tokens: self.tokens.iter().map(Module::valid).collect(),
            whole: (self.whole().into_iter())
                .map(|place| (place.name, place.tensor.valid()))
                .collect(),
        })
    }

    /// The settings of the present adapter.
    pub fn lora_config(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// Every adapter of a projection with its layer, in the order of the layers.
    pub fn adapters(&self) -> impl Iterator<Item = (usize, TargetModule, &Adapter)> {
        self.layers.iter().enumerate().flat_map(|(i, layer)| {
            layer.modules().into_iter().filter_map(move |target| {
                layer
                    .projection(target)
                    .adapter()
                    .map(|adapter| (i, target, adapter))
            })
        })
    }

    /// Every trained tensor with the path of its module, in the order of the layers and of files; adapters of tables come after those
    /// of layers, then rows of tokens, then what is trained whole.
    pub fn trained_params(&self) -> impl Iterator<Item = (String, AdapterParam)> {
        let tokens = self.tokens.iter();
        let tokens = tokens.map(|tokens| (tokens.table().path().to_owned(), tokens.param()));
        let factors = self.adapters().flat_map(|(layer, target, adapter)| {
            let path = target.path(layer);
            let params = adapter.params().into_iter();
            params.map(move |param| (path.clone(), param))
        });
        let whole = self.whole().into_iter();
        let whole = whole.map(|place| (place.module().to_owned(), place.param()));
        let tables = self.table_adapters().flat_map(|(table, adapter)| {
            let params = adapter.params().into_iter();
            params.map(move |param| (table.path().to_owned(), param))
        });
        factors.chain(tables).chain(tokens).chain(whole)
    }

    /// Replaces the values of every trained tensor by what `update` makes of it.
    pub fn update_trained(&mut self, mut update: impl FnMut(AdapterParam) -> Tensor<1>) {
        for (_, _, adapter) in self.adapters_mut() {
            adapter.update(&mut update);
        }
        for (_, adapter) in self.table_adapters_mut() {
            adapter.update(&mut update);
        }
        for tokens in &mut self.tokens {
            tokens.update(&mut update);
        }
        self.update_whole(|_| true, update);
    }

    /// Moves every trained tensor, and its copy in the dtype of activations, to where `place` says; those of which it says nothing
    /// stay.
    pub fn store_trained_in(&mut self, mut place: impl FnMut(ParamId) -> Option<Stored>) {
        for (_, _, adapter) in self.adapters_mut() {
            adapter.store_in(&mut place);
        }
        for (_, adapter) in self.table_adapters_mut() {
            adapter.store_in(&mut place);
        }
        for tokens in &mut self.tokens {
            tokens.store_in(&mut place);
        }
        self.visit_whole_mut(|_, _, tensor| {
            if let Some(tensor) = tensor {
                tensor.store_in(&mut place);
            }
        });
    }

    /// Every adapter, to be changed, in the order of [`adapters`](Self::adapters).
    pub fn adapters_mut(&mut self) -> impl Iterator<Item = (usize, TargetModule, &mut Adapter)> {
        self.layers.iter_mut().enumerate().flat_map(|(i, layer)| {
            layer
                .projections_mut()
                .filter_map(move |(target, p)| p.adapter_mut().map(|adapter| (i, target, adapter)))
        })
    }

    /// The lowest layer of which something is trained, or the first one where the embedding or rows of it are: nothing below it
    /// needs a gradient.
    pub fn first_adapted_layer(&self) -> Option<usize> {
        if self.trains_embedding() {
            return Some(0);
        }
        let whole = self.whole().into_iter().filter_map(|place| place.layer);
        let adapted = self.adapters().map(|(layer, _, _)| layer);
        adapted.chain(whole).min()
    }

    /// Layers that the backward pass goes through: from [`first_adapted_layer`](Self::first_adapted_layer) to the last.
    pub fn num_backward_layers(&self) -> usize {
        self.first_adapted_layer()
            .map_or(0, |first| self.layers.len() - first)
    }

    /// The number of values that training changes.
    pub fn num_trained(&self) -> usize {
        self.trained_params().map(|(_, param)| param.len()).sum()
    }

    /// How the base is stored, most bytes first.
    pub fn stored(&mut self) -> Vec<StoredShare> {
        let mut shares: Vec<StoredShare> = Vec::new();
        self.visit_base_mut(|_, tensor| {
            let (stored_as, params, bytes) = match tensor {
                BaseTensor::Matrix(weight) => {
                    let dense = weight.dense_dtype().map(dense_name);
                    let codes = weight.scheme().map(|scheme| scheme.to_string());
                    let stored_as = codes.or(dense).unwrap_or_default();
                    let stored_as = match weight {
                        Weight::Host(_) | Weight::Streamed(_) => {
                            format!("{stored_as} in host memory")
                        }
                        _ => stored_as,
                    };
                    (stored_as, weight.num_params(), weight.num_bytes())
                }
                BaseTensor::Vector(weight) => {
                    let params = weight.dims()[0];
                    let dtype = weight.dtype();
                    (dense_name(dtype), params, params * dtype.size())
                }
            };
            match shares.iter_mut().find(|share| share.stored_as == stored_as) {
                Some(share) => {
                    share.tensors += 1;
                    share.params += params;
                    share.bytes += bytes;
                }
                None => shares.push(StoredShare {
                    stored_as,
                    tensors: 1,
                    params,
                    bytes,
                }),
            }
        });
        shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        shares
    }

    /// Bytes of the device's memory that the base takes, without what it has given up for trained tensors: of layers that stay in the
    /// host's memory, that of the slots that they come to.
    pub fn device_bytes(&mut self) -> usize {
        let whole = self.whole().into_iter().filter(|_| self.trains_base());
        let given_up: BTreeSet<String> = whole.map(|place| place.name).collect();
        let slots = self.layers.iter().find_map(DecoderLayer::block);
        let mut bytes = slots.map_or(0, |block| block.slots().device_bytes());
        self.visit_base_mut(|name, tensor| {
            if given_up.contains(name) {
                return;
            }
            bytes += match tensor {
                BaseTensor::Matrix(weight) => weight.device_bytes(),
                BaseTensor::Vector(weight) => weight.dims()[0] * weight.dtype().size(),
            };
        });
        bytes
    }

    /// The number of values in the base model.
    pub fn num_base_params(&mut self) -> usize {
        let mut count = 0;
        self.visit_base_mut(|_, tensor| {
            count += match tensor {
                BaseTensor::Matrix(weight) => weight.num_params(),
                BaseTensor::Vector(weight) => weight.dims()[0],
            };
        });
        count
    }

    /// Visits every frozen tensor under its checkpoint name: to quantise it, or to train it. A number that the residual stream is
    /// multiplied by is no parameter, as in transformers, and is left out.
    pub fn visit_base_mut(&mut self, mut visit: impl FnMut(&str, BaseTensor<'_>)) {
        visit(EMBEDDING, BaseTensor::Matrix(&mut self.embed_tokens));
        let layers = self.spec.layers.iter().map(|layer| layer.norm_names);
        let names: Vec<_> = layers.collect();
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for (target, projection) in layer.projections_mut() {
                let path = target.path(i);
                let weight = BaseTensor::Matrix(projection.weight_mut());
                visit(&format!("{path}.weight"), weight);
                if let Some(bias) = projection.bias_mut() {
                    visit(&format!("{path}.bias"), BaseTensor::Vector(bias));
                }
            }
            for (norm, weight) in layer.norms_mut() {
                visit(
                    &norm.tensor(i, names[i]),
                    BaseTensor::Vector(weight.weight_mut()),
                );
            }
            for (vector, weight) in layer.vectors_mut() {
                visit(&vector.tensor(i), BaseTensor::Vector(weight));
            }
        }
        visit(FINAL_NORM, BaseTensor::Vector(self.norm.weight_mut()));
        let name = self.spec.head_name().unwrap_or(HEAD);
        if let Some(head) = &mut self.lm_head {
            visit(name, BaseTensor::Matrix(head));
        }
    }

    fn can_adapt(&self, path: &str) -> bool {
        let mut tables = TokenTable::adaptable(&self.spec);
        if tables.any(|table| table.path() == path) {
            return true;
        }
        self.spec
            .projections()
            .any(|(layer, target)| target.path(layer) == path)
    }

    fn replace_adapters(
        &mut self,
        mut make: impl FnMut(usize, TargetModule, &Projection) -> Result<Option<Adapter>, LoadError>,
    ) -> Result<(), LoadError> {
        for (i, layer) in self.layers.iter_mut().enumerate() {
            for (target, projection) in layer.projections_mut() {
                let adapter = make(i, target, projection)?;
                *projection = projection.clone().with_adapter(adapter);
            }
        }
        Ok(())
    }
}

/// A factor as a value of `dtype`.
fn rounded(factor: f64, dtype: DType) -> f64 {
    let data = TensorData::new(vec![factor as f32], [1]).convert_dtype(dtype);
    data.iter::<f64>().next().unwrap_or(factor)
}

/// Row numbers as a tensor.
pub(crate) fn index(rows: &[u32], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

#[cfg(test)]
mod tests;
