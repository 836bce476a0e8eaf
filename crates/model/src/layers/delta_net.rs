//! The parts of a DeltaNet.

use backdraft_arch::{DeltaNetSpec, DeltaVector, NormScale};
use backdraft_kernels::gated_delta::DeltaLayout;
use backdraft_lora::Projection;
use backdraft_quant::Frozen;
use burn::module::Module;
use burn::tensor::Tensor;

use super::RmsNorm;

/// Linear attention by the gated delta rule; what it computes is told in [`backdraft_arch::delta_net`].
#[derive(Module, Debug)]
pub struct DeltaNet {
    /// hidden → queries, keys and values.
    pub in_proj_qkv: Projection,
    /// hidden → the gate of the output.
    pub in_proj_z: Projection,
    /// hidden → a step for each value head.
    pub in_proj_b: Projection,
    /// hidden → a decay for each value head.
    pub in_proj_a: Projection,
    /// values → hidden.
    pub out_proj: Projection,
    conv: Frozen<Tensor<1>>,
    a_log: Frozen<Tensor<1>>,
    dt_bias: Frozen<Tensor<1>>,
    norm: RmsNorm,
    #[module(skip)]
    sizes: DeltaNetSpec,
}

impl DeltaNet {
    /// From its projections, q‖k‖v, z, b, a and out, and its vectors in the order of [`DeltaVector::ALL`].
    ///
    /// # Shapes
    /// The taps of the convolution `[conv_width·k]`, A and dt `[num_value_heads]`, the norm `[value_head_dim]`.
    pub fn new(
        [in_proj_qkv, in_proj_z, in_proj_b, in_proj_a, out_proj]: [Projection; 5],
        [conv, a_log, dt_bias, norm]: [Tensor<1>; 4],
        sizes: DeltaNetSpec,
        eps: f64,
    ) -> Self {
        Self {
            in_proj_qkv,
            in_proj_z,
            in_proj_b,
            in_proj_a,
            out_proj,
            conv: Frozen(conv),
            a_log: Frozen(a_log),
            dt_bias: Frozen(dt_bias),
            norm: RmsNorm::new(norm, NormScale::Weight, eps),
            sizes,
        }
    }

    /// Its heads.
    pub fn layout(&self) -> DeltaLayout {
        DeltaLayout {
            key_heads: self.sizes.num_key_heads,
            value_heads: self.sizes.num_value_heads,
            key_dim: self.sizes.key_head_dim,
            value_dim: self.sizes.value_head_dim,
        }
    }

    pub(super) fn sizes(&self) -> DeltaNetSpec {
        self.sizes
    }

    pub(super) fn conv(&self) -> &Tensor<1> {
        &self.conv
    }

    /// A and dt of each value head.
    pub(super) fn rates(&self) -> [&Tensor<1>; 2] {
        [&self.a_log, &self.dt_bias]
    }

    pub(super) fn norm(&self) -> &RmsNorm {
        &self.norm
    }

    pub(super) fn vectors_mut(&mut self) -> [(DeltaVector, &mut Tensor<1>); 4] {
        [
            (DeltaVector::Conv, &mut *self.conv),
            (DeltaVector::ALog, &mut *self.a_log),
            (DeltaVector::DtBias, &mut *self.dt_bias),
            (DeltaVector::Norm, self.norm.weight_mut()),
        ]
    }

    /// Each value head of every token as a row.
    pub(super) fn heads(&self, x: &Tensor<2>) -> Tensor<2> {
        let [t, width] = x.dims();
        let value = self.sizes.value_head_dim;
        x.clone().reshape([t * width / value, value])
    }
}
