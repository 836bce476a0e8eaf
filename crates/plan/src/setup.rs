//! What settings and a model's configuration say of a step's memory, without the weights.

use std::collections::BTreeSet;

use backdraft_arch::sizes::{CHUNK, CUBE_CHUNK, LARGEST_GROUP, SCORE_ROWS, SLOTS};
use backdraft_arch::spec::{EMBEDDING, FINAL_NORM, HEAD};
use backdraft_arch::{
    BaseHome, InputGrad, KeptState, LoraConfig, ModelSpec, Norm, OptimizerState, QuantizationPlan,
    Scheme, TargetModule, TensorSpec, TokenTable, embeds_on_host,
};

use crate::bytes::size;
use crate::predict::{Released, Shortage, StepShape};
use crate::tensors::{LayerShape, MemoryModel, PassShape, ProjectionShape, Rows};

/// Copies of the factors in f32 that an update in plain tensors has at once, at most: gradients, what is kept, and what comes of
/// them.
const STACKED_COPIES: u64 = 6;

/// Copies in f32 that an update of one tensor on the processor has at once, beside what it replaces: terms of what comes of it.
const REPLACED_COPIES: u64 = 2;

/// The same of one that is rounded to bf16 by chance in plain tensors.
const ROUNDED_COPIES: u64 = 10;

/// A run, as far as memory is concerned.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The model's shape.
    pub spec: ModelSpec,
    /// The adapters.
    pub lora: LoraConfig,
    /// Tokens whose rows of the embedding, and of a head of its own, are trained.
    pub tokens: usize,
    /// How projections are kept; `None` where they are dense.
    pub quantization: Option<QuantizationPlan>,
    /// Bytes of the base model where they are known; else they are counted from the shape.
    pub base: Option<u64>,
    /// Bytes of a value of a dense weight.
    pub dense_element: u64,
    /// How the device takes memory.
    pub memory: MemoryModel,
    /// What the optimiser keeps.
    pub optimizer: OptimizerState,
    /// Rows of a pass.
    pub micro_batch_size: usize,
    /// Tokens of a text of a row.
    pub max_seq_length: usize,
    /// Texts of a row: two of a pair of answers, else one.
    pub texts_per_row: usize,
    /// Passes of a step.
    pub grad_accumulation_steps: usize,
    /// Whether gradients update what they are of as soon as those of a layer are complete.
    pub releases: bool,
    /// Whether what is trained is kept in f32.
    pub masters: bool,
    /// Bytes of the host's memory in which activations may wait; 0 for none.
    pub host: u64,
    /// Where the matrices of the layers stay.
    pub home: BaseHome,
}

impl MemoryModel {
    /// f32 on the processor.
    #[must_use]
    pub fn cpu() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
        Self {
            element: 4,
            dequantizes_whole: false,
            score_rows: SCORE_ROWS * threads,
            logits_chunk: CHUNK as u64,
            // Packed panels of products.
            workspace: 640 << 10,
            paged: false,
            embeds_on_host: false,
        }
    }

    /// A CubeCL device, activations of `element` bytes.
    #[must_use]
    pub const fn cube(element: u64) -> Self {
        Self {
            element,
            dequantizes_whole: true,
            score_rows: 0,
            logits_chunk: CUBE_CHUNK as u64,
            workspace: 64 << 20,
            paged: true,
            embeds_on_host: true,
        }
    }
}

impl Setup {
    /// One of a layer's products; those of the rows of one matrix have one adapter.
    fn projection(
        &self,
        layer: usize,
        part: TargetModule,
        whole: &BTreeSet<String>,
    ) -> ProjectionShape {
        let spec = &self.spec.layers[layer];
        let dims @ [out, input] = spec.shape(part);
        let target = spec.module_of(part);
        let path = target.path(layer);
        let scheme = self
            .quantization
            .as_ref()
            .and_then(|plan| plan.scheme_for(&path));
        let rank = if self.lora.adapts(layer, target) {
            self.lora.rank_of(&path)
        } else {
            0
        };
        let scaling = match rank {
            0 => 0.0,
            rank => self.lora.scaling_of(&path, rank) as f32,
        };
        ProjectionShape {
            out: out as u64,
            input: input as u64,
            rank: rank as u64,
            scaling: scaling.to_bits(),
            dropout: rank > 0 && self.lora.dropout > 0.0,
            dora: rank > 0 && self.lora.use_dora,
            quantized: scheme.is_some(),
            weight_bytes: self.weight_bytes(dims, scheme),
            rows: match part.place_in_group() {
                _ if target == part => Rows::All,
                0 => Rows::First,
                _ => Rows::Later,
            },
            bias: whole.contains(&format!("{path}.bias")),
            weight: whole.contains(&format!("{path}.weight")),
        }
    }

    /// The tensors of the base that are trained whole.
    fn whole_tensors(&self) -> impl Iterator<Item = TensorSpec> + use<> {
        self.lora.whole(&self.spec).into_iter()
    }

    /// Their names.
    fn whole(&self) -> BTreeSet<String> {
        self.whole_tensors().map(|tensor| tensor.name).collect()
    }

    /// Those that a layer has, in their places.
    fn projections(
        &self,
        layer: usize,
        whole: &BTreeSet<String>,
    ) -> [ProjectionShape; TargetModule::ALL.len()] {
        let mut projections = [ProjectionShape::default(); TargetModule::ALL.len()];
        for target in self.spec.layers[layer].parts() {
            projections[target as usize] = self.projection(layer, target, whole);
        }
        projections
    }

    fn weight_bytes(&self, dims: [usize; 2], scheme: Option<Scheme>) -> u64 {
        match scheme {
            Some(scheme) => scheme.num_bytes(dims) as u64,
            None => (dims[0] * dims[1]) as u64 * self.dense_element,
        }
    }

    fn layer(&self, index: usize, input_grad: InputGrad, whole: &BTreeSet<String>) -> LayerShape {
        let spec = &self.spec.layers[index];
        let mut norms = [0; Norm::ALL.len()];
        for (norm, values) in spec.norms() {
            if whole.contains(&norm.tensor(index, spec.norm_names)) {
                norms[norm as usize] = values as u64;
            }
        }
        LayerShape {
            norms,
            hidden: self.spec.hidden_size as u64,
            query_heads: spec.num_attention_heads as u64,
            key_value_heads: spec.num_key_value_heads as u64,
            mixer: spec.mixer,
            heads: spec.heads,
            values: spec.values,
            norm_places: spec.norm_places,
            window: spec.sliding_window.map(|window| window as u64),
            scaled: spec.scaled,
            projections: self.projections(index, whole),
            input_grad,
            streamed: match self.home {
                BaseHome::Device => 0,
                BaseHome::Host => self.layer_bytes(index),
            },
        }
    }

    /// Values of the base that are given up for trained tensors.
    fn given_up(&self) -> usize {
        let whole = self
            .whole_tensors()
            .filter(|_| self.lora.trainable.is_full());
        whole.map(|tensor| tensor.num_values()).sum()
    }

    /// Bytes of the matrices of a layer, as they are stored.
    fn layer_bytes(&self, layer: usize) -> u64 {
        let spec = &self.spec.layers[layer];
        let plan = self.quantization.as_ref();
        let bytes = spec.modules().map(|target| {
            let scheme = plan.and_then(|plan| plan.scheme_for(&target.path(layer)));
            self.weight_bytes(spec.shape(target), scheme)
        });
        bytes.sum()
    }

    /// Bytes of the host's memory in which the matrices of the layers stay; 0 where they are on the device.
    #[must_use]
    pub fn host_bytes(&self) -> u64 {
        match self.home {
            BaseHome::Device => 0,
            BaseHome::Host => (0..self.spec.layers.len())
                .map(|i| self.layer_bytes(i))
                .sum(),
        }
    }

    /// As it will be once a base that stays in the host's memory has taken its part of that.
    #[must_use]
    pub fn before_loading(self) -> Self {
        Self {
            host: self.host.saturating_sub(self.host_bytes() / 2),
            ..self
        }
    }

    /// Bytes of the base model on the device, without what is given up for trained tensors. Of layers that stay in the host's
    /// memory, those of the slots that they come to.
    #[must_use]
    pub fn base_bytes(&self) -> u64 {
        if let Some(base) = self.base {
            return base;
        }
        let spec = &self.spec;
        let values = spec.tensors().map(|tensor| tensor.num_values());
        let (mut dense, mut quantized) = (values.sum::<usize>(), 0);
        for (layer, target) in spec.projections() {
            let dims = spec.layers[layer].shape(target);
            let plan = self.quantization.as_ref();
            if let Some(scheme) = plan.and_then(|plan| plan.scheme_for(&target.path(layer))) {
                dense -= dims[0] * dims[1];
                quantized += scheme.num_bytes(dims) as u64;
            }
        }
        let (table, whole) = (
            [spec.vocab_size, spec.hidden_size],
            self.memory.dequantizes_whole,
        );
        let tables = [EMBEDDING, HEAD].into_iter();
        for name in tables.filter(|name| *name == EMBEDDING || spec.head_name() == Some(name)) {
            let plan = self.quantization.as_ref();
            if let Some(scheme) = plan.and_then(|plan| plan.scheme_for_table(spec, name, whole)) {
                dense -= table[0] * table[1];
                quantized += scheme.num_bytes(table) as u64;
            }
        }
        let row = spec.hidden_size as u64 * self.dense_element;
        dense -= self.given_up();
        if self.memory.embeds_on_host
            && !(self.lora.trainable.is_full() && self.whole().contains(EMBEDDING))
            && embeds_on_host(spec, self.quantization.as_ref())
            && row.is_multiple_of(16)
        {
            dense -= table[0] * table[1];
        }
        let all = dense as u64 * self.dense_element + quantized;
        match self.home {
            BaseHome::Device => all,
            BaseHome::Host => {
                let layers = (0..spec.layers.len()).map(|layer| self.layer_bytes(layer));
                let largest = layers.clone().max().unwrap_or(0);
                all - layers.sum::<u64>() + SLOTS as u64 * largest
            }
        }
    }

    /// Sizes of trained rows: those of the embedding, and of a head of its own, where the table is not trained whole.
    fn token_rows(&self, whole: &BTreeSet<String>) -> Vec<[usize; 2]> {
        let tables = [Some(EMBEDDING), self.spec.head_name()];
        let tables = tables.into_iter().flatten();
        let tables = tables.filter(|name| self.tokens > 0 && !whole.contains(*name));
        tables
            .map(|_| [self.tokens, self.spec.hidden_size])
            .collect()
    }

    /// The lowest layer of which something is trained, or the first where the embedding or rows of it are.
    fn first_adapted(&self, whole: &BTreeSet<String>) -> usize {
        if self.reaches_embedding(whole) {
            return 0;
        }
        let mut projections = self.spec.projections();
        let first = projections.find(|&(layer, target)| self.lora.adapts(layer, target));
        let first = first.map(|(layer, _)| layer);
        let has_whole = |layer: &usize| {
            let mut tensors = self.spec.layers[*layer].tensors(*layer);
            tensors.any(|tensor| whole.contains(&tensor.name))
        };
        let layers = self.spec.layers.len();
        let lowest = (0..layers).find(has_whole);
        first.into_iter().chain(lowest).min().unwrap_or(layers)
    }

    /// Whether the backward pass goes down to the embedding.
    fn reaches_embedding(&self, whole: &BTreeSet<String>) -> bool {
        self.tokens > 0
            || whole.contains(EMBEDDING)
            || self.lora.adapts_table(TokenTable::Embedding)
    }

    /// The rank of a table's adapter; 0 where it has none.
    fn table_rank(&self, table: TokenTable) -> usize {
        let mut tables = TokenTable::adaptable(&self.spec);
        let adapted = self.lora.adapts_table(table) && tables.any(|it| it == table);
        if adapted {
            self.lora.rank_of(table.path())
        } else {
            0
        }
    }

    /// The step that it makes.
    #[must_use]
    pub fn step(&self) -> StepShape {
        let whole = &self.whole();
        let first = self.first_adapted(whole);
        let reaches = self.reaches_embedding(whole);
        let layer = |layer| {
            let input_grad = InputGrad::needed_if(layer > first || reaches);
            self.layer(layer, input_grad, whole)
        };
        let layers: Vec<LayerShape> = (first..self.spec.layers.len()).map(layer).collect();
        let adapted = self.spec.projections();
        let adapted = adapted.filter(|&(layer, target)| self.lora.adapts(layer, target));
        let factors = adapted.clone().flat_map(|(layer, target)| {
            let rank = self.lora.rank_of(&target.path(layer));
            let [out, input] = self.spec.layers[layer].shape(target);
            let lengths = self.lora.use_dora.then_some([1, out]);
            [[rank, input], [out, rank]].into_iter().chain(lengths)
        });
        let rows = self.token_rows(whole);
        let tensors = self.whole_tensors().map(|tensor| match tensor.shape[..] {
            [rows, columns] => [rows, columns],
            _ => [1, tensor.num_values()],
        });
        let tables = TokenTable::ALL.into_iter().flat_map(|table| {
            let (rank, [out, input]) = (self.table_rank(table), table.adapter_dims(&self.spec));
            [[rank, input], [out, rank]]
        });
        let tables = tables.filter(|[rows, columns]| rows * columns > 0);
        let factors = factors
            .chain(tables)
            .chain(rows.iter().copied())
            .chain(tensors);
        let factors: Vec<[usize; 2]> = factors.collect();
        let table = [self.spec.vocab_size, self.spec.hidden_size];
        let bytes_of = |name: &str, values: usize| match whole.contains(name) {
            true => 4 * values as u64,
            false => 0,
        };
        let embedding = bytes_of(EMBEDDING, table[0] * table[1]);
        let head_values = self.spec.head().iter().product();
        let head = self.spec.head_name();
        let head = head.map_or(0, |name| bytes_of(name, head_values));
        let tied = self.spec.tie_word_embeddings;
        let [embedding_rank, head_rank] =
            TokenTable::ALL.map(|table| self.table_rank(table) as u64);
        let of_adapter = |rank: u64| 4 * rank * (table[0] + table[1]) as u64;
        let values = |of: &[[usize; 2]]| {
            let values = of.iter().map(|[rows, columns]| rows * columns);
            values.sum::<usize>() as u64
        };
        // Squared lengths of the base's rows, which lie beside it.
        let lengths = adapted.map(|(layer, target)| match self.lora.use_dora {
            true => 4 * self.spec.layers[layer].shape(target)[0] as u64,
            false => 0,
        });
        let lengths: u64 = lengths.sum();
        let largest = factors.iter().map(|[rows, columns]| rows * columns);
        let largest = largest.max().unwrap_or(0);
        let (token_values, values) = (values(&rows), values(&factors));
        let adapters = self.bytes_of_factor() * values;
        let kept = factors.iter().map(|&dims| self.optimizer.state_bytes(dims));
        // Short rows have queries as they are.
        let scaling = self.spec.query_scaling;
        let scaled = scaling.filter(|scaling| scaling.reaches(self.max_seq_length));
        let rope = &self.spec.rope;
        let ropes = [
            Some(rope),
            self.spec.local_rope.as_ref(),
            scaled.map(|_| rope),
        ];
        let ropes = ropes.into_iter().flatten();
        let mut step = StepShape {
            frozen: (first > 0).then(|| (first, self.layer(0, InputGrad::Skipped, whole))),
            layers,
            vocab: self.spec.head()[0] as u64,
            hidden: self.spec.hidden_size as u64,
            rotary_dims: ropes.map(|rope| rope.rotary_dim as u64).collect(),
            memory: self.memory,
            base: self.base_bytes() + lengths,
            adapters,
            token_gradients: 4 * token_values,
            loss_gradients: bytes_of(FINAL_NORM, self.spec.hidden_size)
                + if tied { embedding } else { head }
                + of_adapter(head_rank),
            embedding_gradient: if tied { 0 } else { embedding } + of_adapter(embedding_rank),
            head_rank,
            embedding_rank,
            optimizer: kept.sum::<usize>() as u64,
            // A copy of the factors while they are replaced, or of one of the base's tensors at a time; in flat buffers rules in plain tensors take all of them at once, and a
            // mean what it moves by and what comes of it.
            update: match self.optimizer.rule {
                // A buffer's tensors at a time.
                _ if !self.masters => self.bytes_of_update() * largest as u64,
                rule if self.memory.paged && self.lora.trainable.is_full() => {
                    let group = values.min(LARGEST_GROUP.max(largest) as u64);
                    let copies = match rule {
                        KeptState::Moments(_) => 0,
                        _ => STACKED_COPIES,
                    };
                    (self.bytes_of_factor() + 4 * copies) * group
                }
                _ if !self.memory.paged && self.lora.trainable.is_full() => {
                    REPLACED_COPIES * 4 * largest as u64
                }
                _ if !self.memory.paged => adapters,
                KeptState::Moments(_) if self.optimizer.mean => adapters.max(2 * 4 * values),
                KeptState::Moments(_) => adapters,
                _ => adapters + STACKED_COPIES * 4 * values,
            },
            // In buffers that are there from the start.
            accumulated: !self.releases
                && ((self.memory.paged && self.masters) || self.grad_accumulation_steps > 1),
            released: self.released(whole),
            host: self.host,
            page: 0,
        };
        step.page = step.page_for(self.pass());
        step
    }

    /// What releasing gradients takes, where it is asked for.
    fn released(&self, whole: &BTreeSet<String>) -> Option<Released> {
        let table = (self.spec.vocab_size * self.spec.hidden_size) as u64;
        let values = |name: Option<&str>, values: u64| match name {
            Some(name) if whole.contains(name) => values,
            _ => 0,
        };
        let tied = self.spec.tie_word_embeddings;
        let embedding = values(Some(EMBEDDING), table);
        let norm = values(Some(FINAL_NORM), self.spec.hidden_size as u64);
        self.releases.then_some(Released {
            late: if tied { 4 * embedding } else { 0 },
            of_loss: norm.max(values(self.spec.head_name(), table)),
            last: embedding,
            update: self.bytes_of_update(),
        })
    }

    /// Bytes of a value of the factors, with its copy in the dtype of activations.
    fn bytes_of_factor(&self) -> u64 {
        match self.memory.element {
            4 => 4,
            element if self.masters => 4 + element,
            element => element,
        }
    }

    /// Bytes that the update of a tensor by itself works in for each value.
    const fn bytes_of_update(&self) -> u64 {
        let copy = match self.memory.element {
            4 => 0,
            element => element,
        };
        match self.masters || !self.memory.paged {
            true => REPLACED_COPIES * 4 + copy,
            false => ROUNDED_COPIES * 4 + copy,
        }
    }

    /// A pass over rows of full length. What answers are compared with has no part in it: the reference computes it before
    /// the pass, keeps nothing but a number for each answer, and has one layer's values at a time beside the input of the
    /// first one, as the pass itself has beside all that it saves.
    #[must_use]
    pub fn pass(&self) -> PassShape {
        let texts = self.texts_per_row * self.micro_batch_size;
        PassShape::of_texts(vec![self.max_seq_length; texts], self.spec.scores)
    }

    /// The least that a step needs under any plan.
    ///
    /// # Units
    /// Bytes.
    #[must_use]
    pub fn least(&self) -> u64 {
        self.step().least_peak(self.pass())
    }

    /// The most rows of a pass for which a plan fits.
    #[must_use]
    pub fn largest_micro_batch(&self, budget: u64) -> Option<usize> {
        largest(1, 1 << 14, |rows| {
            let setup = Self {
                micro_batch_size: rows,
                ..self.clone()
            };
            setup.least() <= budget
        })
    }

    /// The most tokens of a row for which a plan fits, up to what the model was made for.
    #[must_use]
    pub fn longest_sequence(&self, budget: u64) -> Option<usize> {
        largest(2, self.spec.max_position_embeddings.max(2), |tokens| {
            let setup = Self {
                max_seq_length: tokens,
                ..self.clone()
            };
            setup.least() <= budget
        })
    }

    /// The most columns of an adapter for which a plan fits.
    #[must_use]
    pub fn largest_rank(&self, budget: u64) -> Option<usize> {
        largest(1, self.lora.rank.max(1), |rank| {
            let lora = LoraConfig {
                rank,
                ..self.lora.clone()
            };
            let setup = Self {
                lora,
                ..self.clone()
            };
            setup.least() <= budget
        })
    }

    /// With the bytes that the weights of a loaded model take.
    #[must_use]
    pub fn with_base(self, bytes: u64) -> Self {
        Self {
            base: Some(bytes),
            ..self
        }
    }

    /// What to change so that a step fits.
    #[must_use]
    pub fn advice(&self, shortage: Shortage) -> Vec<Advice> {
        let budget = shortage.budget;
        let mut advice = Vec::new();
        if let Some(rows) = self.largest_micro_batch(budget) {
            advice.push(Advice::MicroBatch {
                from: self.micro_batch_size,
                to: rows,
                accumulation: (self.micro_batch_size * self.grad_accumulation_steps).div_ceil(rows),
            });
        }
        if let Some(tokens) = self.longest_sequence(budget) {
            advice.push(Advice::SequenceLength {
                from: self.max_seq_length,
                to: tokens,
            });
        }
        let full = self.lora.trainable.is_full();
        if !full && let Some(rank) = self.largest_rank(budget) {
            advice.push(Advice::Rank {
                from: self.lora.rank,
                to: rank,
            });
        }
        if !full && self.quantization.is_none() {
            let setup = Self {
                quantization: Some(QuantizationPlan::new(Scheme::NF4)),
                base: None,
                ..self.clone()
            };
            if setup.least() <= budget {
                advice.push(Advice::FourBit);
            }
        }
        // Where the device has copies beside the computation.
        if !full && self.home == BaseHome::Device && self.memory.embeds_on_host {
            let setup = Self {
                home: BaseHome::Host,
                base: None,
                ..self.clone()
            };
            if setup.least() <= budget {
                let host = setup.host_bytes();
                advice.push(Advice::HostBase { host });
            }
        }
        advice
    }
}

/// One setting that would make a step fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(tag = "setting", rename_all = "snake_case")]
pub enum Advice {
    /// `train.micro_batch_size`, with as many more passes.
    MicroBatch {
        /// What it is.
        from: usize,
        /// What fits.
        to: usize,
        /// Passes that keep the rows of a step.
        accumulation: usize,
    },
    /// `max_seq_length`.
    SequenceLength {
        /// What it is.
        from: usize,
        /// What fits.
        to: usize,
    },
    /// `lora.rank`.
    Rank {
        /// What it is.
        from: usize,
        /// What fits.
        to: usize,
    },
    /// `load_in_4bit = true`.
    FourBit,
    /// `base = "host"`.
    HostBase {
        /// Bytes of the host's memory that it takes.
        host: u64,
    },
    /// `activation_policy = "smart"`.
    Smart,
}

impl std::fmt::Display for Advice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MicroBatch {
                from,
                to,
                accumulation,
            } => write!(
                f,
                "train.micro_batch_size from {from} to {to}, and train.grad_accumulation_steps to {accumulation}"
            ),
            Self::SequenceLength { from, to } => write!(f, "max_seq_length from {from} to {to}"),
            Self::Rank { from, to } => write!(f, "lora.rank from {from} to {to}"),
            Self::FourBit => f.write_str("load_in_4bit to true"),
            Self::HostBase { host } => {
                write!(
                    f,
                    "base to \"host\", which takes {} of host memory",
                    size(*host)
                )
            }
            Self::Smart => f.write_str("activation_policy to \"smart\""),
        }
    }
}

/// The largest number from `low` to `high` that fits, if smaller ones fit whenever larger ones do.
fn largest(low: usize, high: usize, fits: impl Fn(usize) -> bool) -> Option<usize> {
    if !fits(low) {
        return None;
    }
    // Upwards in doubling strides, then by halving.
    let (mut good, mut bad) = (low, low);
    loop {
        if good == high {
            return Some(high);
        }
        bad = bad.saturating_mul(2).min(high);
        if fits(bad) {
            good = bad;
        } else {
            break;
        }
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle) {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Some(good)
}
