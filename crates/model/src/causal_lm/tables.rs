//! Adapters of the tables of tokens.

use backdraft_arch::TokenTable;
use backdraft_lora::{
    Adapter, AdapterGrads, AdapterParam, AdapterWeights, LoraConfig, TokenMatrix,
};
use burn::tensor::Tensor;
use rand_chacha::ChaCha8Rng;

use super::CausalLm;
use crate::error::LoadError;
use crate::layers::head_seed;

impl CausalLm {
    /// Every adapter of a table, the embedding's first.
    pub fn table_adapters(&self) -> impl Iterator<Item = (TokenTable, &Adapter)> {
        let adapters = [&self.embedding_adapter, &self.head_adapter];
        let adapters = TokenTable::ALL.into_iter().zip(adapters);
        adapters.filter_map(|(table, adapter)| Some((table, adapter.as_ref()?)))
    }

    /// The same, to be changed.
    pub fn table_adapters_mut(&mut self) -> impl Iterator<Item = (TokenTable, &mut Adapter)> {
        let adapters = [&mut self.embedding_adapter, &mut self.head_adapter];
        let adapters = TokenTable::ALL.into_iter().zip(adapters);
        adapters.filter_map(|(table, adapter)| Some((table, adapter.as_mut()?)))
    }

    /// Whether the embedding has an adapter, so that models over one base embed otherwise.
    pub const fn adapts_embedding(&self) -> bool {
        self.embedding_adapter.is_some()
    }

    /// What the head reads: normed hidden states over the family's divisor of the logits, and behind them what its adapter's A makes
    /// of those, where there is one; dropped out, where the seed of a batch is given.
    ///
    /// # Shapes
    /// `normed` `[n, hidden]`, without autodiff; result `[n, hidden]`, or `[n, hidden + r]`.
    pub fn before_head(&self, normed: Tensor<2>, dropout_seed: Option<u64>) -> Tensor<2> {
        let hidden = self.divided(normed);
        match &self.head_adapter {
            Some(Adapter::Lora(lora)) => lora.widen(hidden, dropout_seed.map(head_seed)),
            None => hidden,
        }
    }

    /// The way back of [`before_head`](Self::before_head): adds the gradient of the adapter's A, and returns that of the normed hidden
    /// states.
    ///
    /// # Shapes
    /// `read`, as `before_head` gave it, and its gradient, of the same shape; result `[n, hidden]`.
    pub fn before_head_backward(
        &self,
        grads: &mut AdapterGrads,
        (read, d_read): (&Tensor<2>, Tensor<2>),
        dropout_seed: Option<u64>,
    ) -> Tensor<2> {
        let d_hidden = match &self.head_adapter {
            Some(Adapter::Lora(lora)) => {
                let seed = dropout_seed.map(head_seed);
                lora.widen_backward(grads, (read, &d_read), seed)
            }
            None => d_read,
        };
        self.divided(d_hidden)
    }

    /// As [`before_head`](Self::before_head), differentiable where anything is.
    pub(super) fn before_head_tracked(
        &self,
        normed: Tensor<2>,
        dropout_seed: Option<u64>,
    ) -> Tensor<2> {
        let hidden = self.divided(normed);
        let Some(Adapter::Lora(lora)) = &self.head_adapter else {
            return hidden;
        };
        let seed = dropout_seed.map(head_seed);
        match hidden.is_tracked() || lora.lora_a.val().is_tracked() {
            true => lora.widen_tracked(hidden, seed),
            false => lora.widen(hidden, seed),
        }
    }

    fn divided(&self, normed: Tensor<2>) -> Tensor<2> {
        match self.spec.logits_scaling {
            1.0 => normed,
            divisor => normed.div_scalar(divisor),
        }
    }

    /// The head, tracked by autodiff where it is, with its adapter's B behind its columns, where there is one.
    pub(super) fn tracked_head(&self) -> TokenMatrix {
        let head = self.table(self.head_table());
        match &self.head_adapter {
            Some(Adapter::Lora(lora)) => head.widened(lora, self.dtype()),
            None => head,
        }
    }

    /// Rows of the embedding, and what its adapter adds to them.
    pub(super) fn add_to_rows(&self, rows: Tensor<2>, ids: &[u32]) -> Tensor<2> {
        match &self.embedding_adapter {
            Some(Adapter::Lora(lora)) => lora.add_to_rows(rows, ids),
            None => rows,
        }
    }

    /// Draws the adapters of the tables that `config` adapts, and takes away those of the others.
    pub(super) fn init_tables(&mut self, config: &LoraConfig, rng: &mut ChaCha8Rng) {
        let (device, dtype) = (self.device(), self.dtype());
        let dims = [self.spec.vocab_size, self.spec.hidden_size];
        for table in TokenTable::ALL {
            let adapter = config.adapts_table(table).then(|| {
                let made = Adapter::init_table(config, (table, dims), rng, &device);
                made.computing_in(dtype)
            });
            *self.table_adapter_mut(table) = adapter;
        }
    }

    /// Puts the adapters of tables that a file has in the place of those that were there.
    ///
    /// # Errors
    /// Factors that do not fit.
    pub(super) fn set_tables(&mut self, weights: &AdapterWeights) -> Result<(), LoadError> {
        let (device, dtype) = (self.device(), self.dtype());
        for table in TokenTable::ALL {
            let path = table.path();
            let found = weights.adapters.get(path);
            let expected = table.adapter_dims(&self.spec);
            let fits = |adapter: &Adapter| {
                adapter.fits(expected) && adapter.embeds() == (table == TokenTable::Embedding)
            };
            if let Some(adapter) = found.filter(|adapter| !fits(adapter)) {
                let shape = |param: &AdapterParam| format!("{} {:?}", param.name, param.dims);
                let params: Vec<String> = adapter.params().iter().map(shape).collect();
                return Err(LoadError::Adapter {
                    module: path.to_owned(),
                    expected: [self.spec.vocab_size, self.spec.hidden_size],
                    actual: params.join(" and "),
                });
            }
            let made = found.map(|adapter| {
                let made = adapter.for_module(&weights.config, path, &device);
                made.computing_in(dtype)
            });
            *self.table_adapter_mut(table) = made;
        }
        Ok(())
    }

    fn table_adapter_mut(&mut self, table: TokenTable) -> &mut Option<Adapter> {
        match table {
            TokenTable::Embedding => &mut self.embedding_adapter,
            TokenTable::Head => &mut self.head_adapter,
        }
    }
}
