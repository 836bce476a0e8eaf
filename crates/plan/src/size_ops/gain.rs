//! What the lengths of rows take, where they are trained.

use std::rc::Rc;

use super::{Memory, SizeOps, Value};
use crate::tensors::{ProjectionShape, Work};

impl<A: Memory> SizeOps<'_, A> {
    /// The lengths of the rows of a projection, in f32: a product with as many columns as the adapter's rank, and what is summed.
    pub(super) fn norms(&self, p: &ProjectionShape) -> Option<Value<A>> {
        p.dora.then(|| {
            self.transient(3 * 4 * p.b_values());
            self.lengths(p)
        })
    }

    /// A number for each output, in f32.
    pub(super) fn lengths(&self, p: &ProjectionShape) -> Value<A> {
        self.alloc(4 * p.out)
    }

    /// An output through its gain, in its place; under dropout with what the dropped-out input adds to it.
    pub(super) fn through_gain(&self, p: &ProjectionShape) {
        if !p.dora {
            return;
        }
        self.scale(p);
        if p.dropout {
            let _difference = self.alloc(self.features(p.input));
            self.product(p, p.input, || self.alloc(self.features(p.out)));
        }
    }

    /// A gradient back through the gain of its output: what goes on in its place, and what dropout adds to the input's.
    pub(super) fn back_through_gain(
        &self,
        p: &ProjectionShape,
        dy: Value<A>,
        needed: bool,
    ) -> (Value<A>, Option<Value<A>>) {
        let added = (p.dropout && needed).then(|| {
            let _scaled = self.alloc(self.features(p.out));
            let v = self.product(p, p.out, || self.alloc(self.features(p.input)));
            let added = self.alloc(self.features(p.input));
            drop(v);
            added
        });
        self.scale(p);
        let dy = match Rc::strong_count(&dy) {
            1 => dy,
            _ => self.alloc(self.features(p.out)),
        };
        (dy, added)
    }

    /// The gradient of the lengths: the output before its gain once more.
    pub(super) fn magnitude_gradient(&self, p: &ProjectionShape) -> Value<A> {
        let _seen = p.dropout.then(|| self.alloc(self.features(p.input)));
        let _again = self.product(p, p.input, || self.alloc(self.features(p.out)));
        if self.model.element != 4 {
            // Both factors and their product in f32.
            self.transient(3 * 4 * self.pass.tokens * p.out);
        }
        self.lengths(p)
    }

    /// Columns are multiplied in f32.
    fn scale(&self, p: &ProjectionShape) {
        if self.model.element != 4 {
            self.transient(2 * 4 * self.pass.tokens * p.out);
        }
    }

    /// The work of all that in the forward pass.
    pub(super) fn gain_work(&self, p: &ProjectionShape) -> Work {
        if !p.dora {
            return Work::default();
        }
        let products = if p.dropout { 1 } else { 0 };
        Work {
            gemm: 2 * p.rank * p.out * p.input + products * 2 * self.pass.tokens * p.out * p.input,
            attention: 0,
            bytes: self.features(2 * p.out),
            codes: if p.quantized {
                (1 + products) * p.weight_bytes
            } else {
                0
            },
            ops: 6,
        }
    }

    /// And in the backward pass.
    pub(super) fn gain_backward_work(&self, p: &ProjectionShape, needed: bool) -> Work {
        if !p.dora {
            return Work::default();
        }
        let products = 1 + u64::from(p.dropout && needed);
        Work {
            gemm: products * 2 * self.pass.tokens * p.out * p.input,
            attention: 0,
            bytes: self.features(4 * p.out),
            codes: if p.quantized {
                products * p.weight_bytes
            } else {
                0
            },
            ops: 6,
        }
    }
}
