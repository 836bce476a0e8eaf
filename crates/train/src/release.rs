//! Gradients that an update uses as soon as a layer's are complete, so that those of a model are never there at once.
//!
//! Gradients and updates are those of a step that keeps all of them, bit for bit. What such a step can do, and this cannot in one
//! pass, is to look at all gradients before it changes anything: to clip them by their global norm, and to stop before one that is
//! no number. Two passes can, the first of which finds nothing but that norm.
//!
//! # Source
//! Lv et al. 2023, "Full parameter fine-tuning for large language models with limited resources" (LOMO), arXiv:2306.09782, which
//! has both ways.

use std::collections::HashMap;

use backdraft_lora::AdapterGrads;
use backdraft_model::CausalLm;
use burn::module::ParamId;
use burn::tensor::Tensor;

use crate::optimizer::{Optimizer, Rate, norm_of_squares, square};
use crate::step::GradientSink;

/// Σ g² of every gradient so far, `[1]` each.
#[derive(Debug, Default)]
struct Squares(HashMap<ParamId, Tensor<1>>);

impl Squares {
    fn see(&mut self, grads: &AdapterGrads) {
        for id in grads.ids() {
            self.0.extend(grads.get(id).map(|grad| (id, square(grad))));
        }
    }

    fn norm(&self, model: &CausalLm) -> Tensor<1> {
        norm_of_squares(model, |id| self.0.get(&id).cloned())
    }
}

/// Finds the global norm of gradients, and drops them.
#[derive(Debug)]
pub(crate) struct Norm<'a> {
    model: &'a CausalLm,
    squares: Squares,
}

impl<'a> Norm<'a> {
    pub(crate) fn new(model: &'a CausalLm) -> Self {
        Self {
            model,
            squares: Squares::default(),
        }
    }

    /// `[1]`.
    pub(crate) fn norm(&self) -> Tensor<1> {
        self.squares.norm(self.model)
    }
}

impl GradientSink for &mut Norm<'_> {
    fn model(&self) -> &CausalLm {
        self.model
    }

    fn complete(&mut self, grads: &mut AdapterGrads, last: bool) {
        self.squares.see(&complete(self.model, grads, last));
    }
}

/// Updates what gradients are of, and drops them.
#[derive(Debug)]
pub struct Update<'a> {
    model: &'a mut CausalLm,
    optimizer: &'a mut Optimizer,
    lr: f64,
    rates: HashMap<ParamId, (usize, Rate)>,
    squares: Squares,
    began: bool,
}

impl<'a> Update<'a> {
    /// For one pass; the update counts from its first gradient on.
    ///
    /// # Panics
    /// During the pass, where the optimiser has everything in one buffer.
    pub fn new(model: &'a mut CausalLm, optimizer: &'a mut Optimizer, lr: f64) -> Self {
        Self {
            rates: optimizer.rates_of(model),
            squares: Squares::default(),
            began: false,
            model,
            optimizer,
            lr,
        }
    }

    /// The global norm of the gradients as they came, `[1]`.
    pub fn norm(&self) -> Tensor<1> {
        self.squares.norm(self.model)
    }
}

impl GradientSink for &mut Update<'_> {
    fn model(&self) -> &CausalLm {
        self.model
    }

    fn complete(&mut self, grads: &mut AdapterGrads, last: bool) {
        // Not before: a pass that has no memory ends ahead of its first gradient.
        if !std::mem::replace(&mut self.began, true) {
            self.optimizer.begin();
        }
        let grads = complete(self.model, grads, last);
        self.squares.see(&grads);
        let how = (self.lr, &self.rates);
        self.optimizer.update(self.model, grads, how);
        if last {
            self.optimizer.end();
        }
    }
}

/// Takes those gradients that nothing is added to any more.
fn complete(model: &CausalLm, grads: &mut AdapterGrads, last: bool) -> AdapterGrads {
    grads.take_all_but(model.tied_table().filter(|_| !last))
}
