//! Rows of the embedding and the head that are trained in place of the base's.

use std::sync::Arc;

use backdraft_arch::TokenTable;
use backdraft_kernels::frozen_matrix::FrozenMatrix;
use backdraft_kernels::gemm::{Op, gemm};
use backdraft_quant::Weight;
use burn::module::{Module, Param, ParamId};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::gradients::AdapterGrads;
use crate::lora_adapter::LoraAdapter;
use crate::param::{AdapterParam, Stored};

/// Name of the parameter, and in files of PEFT, which calls the rows themselves a delta.
const NAMES: [&str; 2] = ["trainable_tokens", "token_adapter.trainable_tokens_delta"];

/// Rows of some tokens, the only ones of their table that training changes.
#[derive(Module, Debug)]
pub struct TrainedTokens {
    rows: Param<Tensor<2>>,
    #[module(skip)]
    table: TokenTable,
    #[module(skip)]
    ids: Arc<[u32]>,
}

impl TrainedTokens {
    /// Rows of the tokens `ids`, which ascend.
    ///
    /// # Shapes
    /// `rows` `[ids, hidden]`.
    ///
    /// # Panics
    /// If ids do not ascend, or there is not a row for each.
    pub fn new(table: TokenTable, ids: &[u32], rows: Tensor<2>) -> Self {
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "ids ascend");
        assert_eq!(rows.dims()[0], ids.len(), "a row for each token");
        Self {
            rows: Param::from_tensor(rows),
            table,
            ids: ids.into(),
        }
    }

    /// Whose rows they are.
    pub fn table(&self) -> TokenTable {
        self.table
    }

    /// Their tokens, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The rows, without autodiff.
    ///
    /// # Shapes
    /// `[ids, hidden]`.
    pub fn rows(&self) -> Tensor<2> {
        self.rows.val().inner()
    }

    /// The rows as a parameter.
    pub fn param(&self) -> AdapterParam {
        AdapterParam::of(NAMES, &self.rows)
    }

    /// A copy with a parameter of its own.
    #[must_use]
    pub fn on(&self, device: &Device) -> Self {
        Self::new(self.table, &self.ids, self.rows().to_device(device))
    }

    /// Replaces the rows by what `update` makes of them.
    pub fn update(&mut self, mut update: impl FnMut(AdapterParam) -> Tensor<1>) {
        let id = self.rows.id;
        self.rows = self.rows.clone().map(|rows| {
            let dims = rows.dims();
            update(AdapterParam::new(NAMES, id, rows)).reshape(dims)
        });
    }

    /// Moves the rows to where `place` says.
    pub fn store_in(&mut self, mut place: impl FnMut(ParamId) -> Option<Stored>) {
        if let Some(Stored { values, .. }) = place(self.rows.id) {
            self.rows = self.rows.clone().map(|_| values);
        }
    }

    /// The table with these rows in it, tracked by autodiff where they are.
    pub fn within(&self, base: &Weight, dtype: DType) -> TokenMatrix {
        let rows = self.rows.val();
        let rows = match rows.dtype() == dtype {
            true => rows,
            false => rows.cast(dtype),
        };
        TokenMatrix {
            base: base.clone(),
            trained: Some((Arc::clone(&self.ids), rows)),
            more: None,
        }
    }

    /// Adds what an embedding of `input_ids` tells of the rows, `dh` being the gradient of what it gave, which was
    /// multiplied by `multiplier`. Occurrences of a token are summed by one product, whose order is always the same.
    ///
    /// # Shapes
    /// `dh` `[input_ids, hidden]`.
    pub fn add_embedding_grad(
        &self,
        grads: &mut AdapterGrads,
        (input_ids, dh): (&[u32], &Tensor<2>),
        multiplier: f32,
    ) {
        let found = (0u32..).zip(input_ids).filter_map(|(place, id)| {
            let row = self.ids.binary_search(id).ok()?;
            Some((place, row))
        });
        let (places, rows): (Vec<u32>, Vec<usize>) = found.unzip();
        let (count, k) = (places.len(), self.ids.len());
        let device = dh.device();
        let options = (&device, dh.dtype());
        if places.is_empty() {
            let [none, nothing] = [k, dh.dims()[1]].map(|n| Tensor::zeros([1, n], options));
            return grads.add_product(self.rows.id, (Op::T, &none), (Op::N, &nothing), 1.0);
        }
        let mut chosen = vec![0f32; count * k];
        for (i, row) in rows.into_iter().enumerate() {
            chosen[i * k + row] = 1.0;
        }
        let chosen = Tensor::from_data(TensorData::new(chosen, [count, k]), options);
        let dh = dh.clone().select(0, index(&places, &device));
        grads.add_product(self.rows.id, (Op::T, &chosen), (Op::N, &dh), multiplier);
    }

    /// Adds what logits tell of the rows.
    ///
    /// # Shapes
    /// `hidden` `[n, hidden]` is what the head read, `d_logits` `[n, vocab]` the gradient of what it gave.
    pub fn add_head_grad(
        &self,
        grads: &mut AdapterGrads,
        hidden: &Tensor<2>,
        d_logits: &Tensor<2>,
    ) {
        let columns = index(&self.ids, &d_logits.device());
        let columns = d_logits.clone().select(1, columns);
        grads.add_product(self.rows.id, (Op::T, &columns), (Op::N, hidden), 1.0);
    }
}

/// A table with a row for each token, some of which may be trained.
#[derive(Clone, Debug)]
pub struct TokenMatrix {
    base: Weight,
    trained: Option<(Arc<[u32]>, Tensor<2>)>,
    /// Columns behind the table's: B of an adapter.
    more: Option<Tensor<2>>,
}

impl From<&Weight> for TokenMatrix {
    fn from(base: &Weight) -> Self {
        Self {
            base: base.clone(),
            trained: None,
            more: None,
        }
    }
}

impl TokenMatrix {
    /// The same table with B of a head's adapter behind its columns, which reads what A made of the hidden states
    /// ([`LoraAdapter::widen`](crate::LoraAdapter::widen)); tracked by autodiff where B is.
    #[must_use]
    pub fn widened(self, adapter: &LoraAdapter, dtype: DType) -> Self {
        let b = match adapter.lora_b.val().is_tracked() {
            true => adapter.factors(dtype, None).b,
            false => adapter.plain_factors(dtype, None).b,
        };
        Self {
            more: Some(b),
            ..self
        }
    }

    /// The dense matrix where autodiff tracks it, or rows or columns of it.
    pub fn tracked(&self) -> Option<Tensor<2>> {
        let table = self.tracked_table();
        let Some(more) = &self.more else {
            return table;
        };
        if table.is_none() && !more.is_tracked() {
            return None;
        }
        let frozen = || self.base.dequantize().cast(more.dtype()).autodiff();
        let more = match more.is_tracked() {
            true => more.clone(),
            false => more.clone().autodiff(),
        };
        Some(Tensor::cat(vec![table.unwrap_or_else(frozen), more], 1))
    }

    fn tracked_table(&self) -> Option<Tensor<2>> {
        match &self.trained {
            Some((ids, rows)) if rows.is_tracked() => {
                let dense = self.base.dequantize().cast(rows.dtype()).autodiff();
                let [_, width] = dense.dims();
                let place = |dense: Tensor<2>, (first, run): (u32, std::ops::Range<usize>)| {
                    let to = first as usize..first as usize + run.len();
                    dense.slice_assign([to, 0..width], rows.clone().slice([run, 0..width]))
                };
                Some(runs(ids).fold(dense, place))
            }
            _ => self.base.tracked(),
        }
    }

    /// The same without autodiff.
    #[must_use]
    pub fn plain(self) -> Self {
        Self {
            trained: self.trained.map(|(ids, rows)| (ids, rows.inner())),
            more: self.more.map(Tensor::inner),
            ..self
        }
    }

    /// The rows of tokens: an embedding.
    ///
    /// # Shapes
    /// `[ids, hidden]`, in `dtype`.
    ///
    /// # Panics
    /// If an id has no row.
    pub fn rows(&self, ids: &[u32], dtype: DType) -> Tensor<2> {
        let of_base = |ids: &[u32]| {
            let rows = self.base.rows(ids);
            match rows.dtype() == dtype {
                true => rows,
                false => rows.cast(dtype),
            }
        };
        let Some((own, rows)) = &self.trained else {
            return of_base(ids);
        };
        let is_own = |id: &&u32| own.binary_search(id).is_ok();
        let others: Vec<u32> = ids.iter().filter(|id| !is_own(id)).copied().collect();
        if others.len() == ids.len() {
            return of_base(ids);
        }
        let mut next = 0..;
        let places: Vec<u32> = ids
            .iter()
            .map(|id| match own.binary_search(id) {
                Ok(row) => (others.len() + row) as u32,
                Err(_) => next.next().unwrap_or_default(),
            })
            .collect();
        let rows = match others.is_empty() {
            true => rows.clone(),
            false => {
                let others = of_base(&others);
                let others = match rows.is_tracked() {
                    true => others.autodiff(),
                    false => others,
                };
                Tensor::cat(vec![others, rows.clone()], 0)
            }
        };
        let places = index(&places, &rows.device().inner());
        rows.select(0, places)
    }
}

/// The products of the table alone.
impl TokenMatrix {
    fn table_matmul_add(&self, x: &Tensor<2>, alpha: f32, sum: Option<&Tensor<2>>) -> Tensor<2> {
        let y = self.base.matmul_add(x, alpha, sum);
        let Some((ids, rows)) = &self.trained else {
            return y;
        };
        let sum = sum.map(|sum| sum.clone().select(1, index(ids, &sum.device())));
        let columns = gemm((Op::N, x), (Op::T, rows), alpha, sum);
        let [n, _] = y.dims();
        runs(ids).fold(y, |y, (first, run)| {
            let to = first as usize..first as usize + run.len();
            y.slice_assign([0..n, to], columns.clone().slice([0..n, run]))
        })
    }

    fn table_matmul_transposed_add(
        &self,
        dy: &Tensor<2>,
        alpha: f32,
        sum: Option<Tensor<2>>,
    ) -> Tensor<2> {
        let Some((ids, rows)) = &self.trained else {
            return self.base.matmul_transposed_add(dy, alpha, sum);
        };
        let columns = dy.clone().select(1, index(ids, &dy.device()));
        let [n, _] = dy.dims();
        let others = runs(ids).fold(dy.clone(), |dy, (first, run)| {
            let zeros = Tensor::zeros([n, run.len()], (&dy.device(), dy.dtype()));
            let to = first as usize..first as usize + run.len();
            dy.slice_assign([0..n, to], zeros)
        });
        let others = self.base.matmul_transposed_add(&others, alpha, sum);
        gemm((Op::N, &columns), (Op::N, rows), alpha, Some(others))
    }
}

impl FrozenMatrix for TokenMatrix {
    fn matmul_add(&self, x: &Tensor<2>, alpha: f32, sum: Option<&Tensor<2>>) -> Tensor<2> {
        let Some(more) = &self.more else {
            return self.table_matmul_add(x, alpha, sum);
        };
        let [x, behind] = apart(x, more);
        let y = self.table_matmul_add(&x, alpha, sum);
        gemm((Op::N, &behind), (Op::T, more), alpha, Some(y))
    }

    fn matmul_transposed_add(
        &self,
        dy: &Tensor<2>,
        alpha: f32,
        sum: Option<Tensor<2>>,
    ) -> Tensor<2> {
        let Some(more) = &self.more else {
            return self.table_matmul_transposed_add(dy, alpha, sum);
        };
        let [sum, behind] = match sum {
            Some(sum) => apart(&sum, more).map(Some),
            None => [None, None],
        };
        let x = self.table_matmul_transposed_add(dy, alpha, sum);
        let behind = gemm((Op::N, dy), (Op::N, more), alpha, behind);
        Tensor::cat(vec![x, behind], 1)
    }
}

/// The columns that a table reads, and those that what stands behind it does.
fn apart(x: &Tensor<2>, more: &Tensor<2>) -> [Tensor<2>; 2] {
    let ([_, all], [_, rank]) = (x.dims(), more.dims());
    let width = all - rank;
    [(0, width), (width, rank)].map(|(start, length)| x.clone().narrow(1, start, length))
}

/// Ids that follow one another: the first, and their places in the list.
fn runs(ids: &[u32]) -> impl Iterator<Item = (u32, std::ops::Range<usize>)> {
    let mut start = 0;
    ids.chunk_by(|a, b| a + 1 == *b).map(move |run| {
        let places = start..start + run.len();
        start = places.end;
        (run[0], places)
    })
}

pub(crate) fn index(places: &[u32], device: &Device) -> Tensor<1, Int> {
    let places: Vec<i64> = places.iter().map(|&place| i64::from(place)).collect();
    let count = places.len();
    Tensor::from_data(TensorData::new(places, [count]), device)
}

#[cfg(test)]
mod tests;
