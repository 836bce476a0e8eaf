//! What gradients of norms and biases take, where those are trained.

use backdraft_arch::TargetModule;
use backdraft_arch::sizes::SUMMED_GROUPS;

use super::{Factors, Memory, SizeOps};

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
