//! What gradients of norms, biases and weights take, where those are trained.

use backdraft_arch::TargetModule;
use backdraft_arch::sizes::SUMMED_GROUPS;

use super::{Factors, Memory, PANEL, SizeOps};
use crate::tensors::{ProjectionShape, Rows};

impl<A: Memory> SizeOps<'_, A> {
    /// The gradient of a vector: it comes to stay, or is added.
    pub(super) fn vector_gradient(&mut self, values: u64) {
        let gradient = self.alloc(4 * values);
        if let Factors::Apart { accumulated: false } = self.factors {
            self.gradients.push(gradient);
        }
    }

    /// What is summed over tokens, where no kernel sums it without.
    pub(super) fn terms(&self, features: u64) {
        if self.model.paged || self.model.element != 4 {
            // Both factors and their product in f32.
            self.transient(3 * 4 * self.pass.tokens * features);
        }
    }

    /// Of a norm of heads on the processor: sums of so many groups each, and ones in place of the weight.
    pub(super) fn head_sums(&self, features: u64, normed: u64) {
        if !self.model.paged {
            let groups = self.pass.tokens * features / normed.max(1);
            let parts = groups.div_ceil(SUMMED_GROUPS as u64).max(1);
            self.transient(4 * normed * (parts + 1));
        }
    }

    /// The gradients of the weights of a group.
    pub(super) fn weight_gradients<const N: usize>(&mut self, targets: [TargetModule; N]) {
        let projections = targets.map(|target| self.projection(target));
        if projections[0].rows != Rows::First {
            return projections
                .into_iter()
                .for_each(|p| self.weight_gradient(p));
        }
        // The gradients of all outputs side by side make that of the one matrix.
        let out = projections.iter().map(|p| p.out).sum();
        let _joined = projections[0]
            .weight
            .then(|| self.alloc(self.features(out)));
        let fused = ProjectionShape {
            out,
            ..*projections[0]
        };
        self.weight_gradient(&fused);
    }

    /// The gradient of a weight, where that is trained: it comes to stay, or is added in its place.
    pub(super) fn weight_gradient(&mut self, p: &ProjectionShape) {
        if !p.weight {
            return;
        }
        let apart = match self.factors {
            Factors::Apart { accumulated } => !accumulated,
            Factors::Flat => false,
        };
        let gradient = apart.then(|| self.alloc(4 * p.out * p.input));
        if !self.model.paged {
            // Packed for the product over tokens, panel by panel; of the other factor as much again at most, by the caches' sizes. What
            // `workspace` has room for is counted there.
            let tokens = self.pass.tokens;
            let depth = tokens.div_ceil(tokens.div_ceil(PANEL).max(1));
            let packed = self.model.element * depth * (p.out + p.out.min(p.input));
            self.transient(packed.saturating_sub(self.model.workspace));
        }
        self.gradients.extend(gradient);
    }

    /// The gradients of the biases of a group.
    pub(super) fn bias_gradients<const N: usize>(&mut self, targets: [TargetModule; N]) {
        let projections = targets.map(|target| self.projection(target));
        for p in projections.into_iter().filter(|p| p.bias) {
            self.charge_rest(self.pass_over(p.out));
            if self.model.element != 4 {
                self.transient(self.features(1));
            }
            self.vector_gradient(p.out);
        }
    }
}
