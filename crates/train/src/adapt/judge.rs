//! Whether a change was good: nll of rows kept for it, and how far the model is from what it would be without codes.

use backdraft_formats::ModelSource;
use backdraft_kernels::{cross_entropy, embedding};
use backdraft_lora::base::read_matrix;
use backdraft_model::CausalLm;
use backdraft_model::layers::Context;
use burn::tensor::Tensor;

use super::probe::normed;
use crate::error::TrainError;
use crate::evaluate::token_divergences;
use crate::step::MicroBatch;

/// Means over the supervised tokens of the rows that a change is judged by, nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) nll: f64,
    /// KL(unquantised ‖ now), where the reference was made.
    pub(crate) kl: Option<f64>,
}

/// Normed hidden states of the targets of each pass, as the model would give them with the weights of its file.
type Reference = Vec<Tensor<2>>;

/// Runs `passes` through the unquantised layers, one after the other: each is read, has the model's adapters, and is
/// dropped, so that the unquantised model is never in memory.
///
/// # Errors
/// A file that cannot be read.
fn reference(
    source: &ModelSource,
    model: &CausalLm,
    passes: &[MicroBatch],
) -> Result<Reference, TrainError> {
    let contexts: Vec<Context> = passes
        .iter()
        .map(|pass| model.context(&pass.tokens, None))
        .collect();
    let embedded = passes
        .iter()
        .map(|pass| model.embed(&pass.tokens.input_ids));
    let mut states: Vec<Tensor<2>> = embedded.map(Tensor::inner).collect();
    let device = model.device().inner();
    for (index, layer) in model.layers.iter().enumerate() {
        let mut dense = layer.clone();
        for target in layer.modules() {
            let name = format!("{}.weight", target.path(index));
            let weight = dense.projection_mut(target).weight_mut();
            let dims = weight.dims();
            *weight = read_matrix(source, &name, dims, None, (&device, model.dtype()))
                .map_err(|error| TrainError::Load(error.into()))?;
        }
        for (h, context) in states.iter_mut().zip(&contexts) {
            *h = dense.forward_alone(h.clone(), context);
        }
    }
    let rows = states.iter().zip(passes);
    let normed = rows.map(|(h, pass)| {
        let rows = embedding::forward(h, &pass.targets.rows);
        model.norm().forward_saving(&rows).0
    });
    Ok(normed.collect())
}

/// Rows by which a change is judged, and what the unquantised model says of them.
pub(crate) struct Look<'a> {
    passes: &'a [MicroBatch],
    reference: Option<Reference>,
}

impl<'a> Look<'a> {
    /// At the nll alone.
    pub(crate) const fn alone(passes: &'a [MicroBatch]) -> Self {
        Self {
            passes,
            reference: None,
        }
    }

    /// At the nll, and at the divergence from the model with the weights of its file.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn with_reference(
        source: &ModelSource,
        model: &CausalLm,
        passes: &'a [MicroBatch],
    ) -> Result<Self, TrainError> {
        Ok(Self {
            passes,
            reference: Some(reference(source, model, passes)?),
        })
    }

    /// Measures the model.
    ///
    /// # Errors
    /// A device that failed.
    pub(crate) fn at(&self, model: &CausalLm) -> Result<Verdict, TrainError> {
        let (mut nll, mut kl, mut tokens) = (0.0, 0.0, 0);
        for (i, pass) in self.passes.iter().enumerate() {
            let hidden = normed(model, pass);
            let before_head = model.before_head(hidden.clone(), None);
            let (head, cap, ids) = (model.head(), model.logits_softcap(), &pass.targets.ids);
            let losses = cross_entropy::forward(&before_head, &head, cap, ids, None).nll;
            let losses = losses.try_into_data();
            let losses = losses.map_err(|error| TrainError::Device {
                step: 0,
                message: error.to_string(),
            })?;
            nll += losses.iter::<f32>().map(f64::from).sum::<f64>();
            tokens += pass.targets.len();
            if let Some(reference) = &self.reference {
                let values = token_divergences(model, model, &[reference[i].clone(), hidden])?;
                kl += values.iter().sum::<f64>();
            }
        }
        let mean = |sum: f64| sum / tokens.max(1) as f64;
        Ok(Verdict {
            nll: mean(nll),
            kl: self.reference.as_ref().map(|_| mean(kl)),
        })
    }
}
