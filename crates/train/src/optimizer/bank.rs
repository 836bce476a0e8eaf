//! All factors with their gradients and moments in buffers of their own, on devices that have kernels for it.

use backdraft_kernels::adamw::Moments;
use backdraft_kernels::adamw8bit::{BLOCK_SIZE, MIN_8BIT_SIZE, Moment8Bit, Moments8Bit};
use backdraft_kernels::codebook::DynamicMap;
use backdraft_kernels::flat::{Flat, FlatMoments, FlatParams};
use backdraft_kernels::quantize::blockwise;
use backdraft_model::Llama;
use burn::module::ParamId;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{State, StatePrecision, factors};

/// Buffers of all factors, in the order of the layers.
#[derive(Clone, Debug)]
pub(super) struct Bank {
    pub(super) ids: Vec<ParamId>,
    pub(super) grads: Flat,
    pub(super) moments: FlatMoments,
    values: Flat,
    rounded: Option<Flat>,
}

impl Bank {
    /// Moves the factors of `model` into buffers. `None` where the device has no kernels for them, or a factor is
    /// too small for moments of 8 bits: those are kept one by one.
    pub(super) fn new(
        model: &mut Llama,
        precision: StatePrecision,
        states: &[Option<State>],
    ) -> Option<Self> {
        let (ids, params): (Vec<_>, Vec<_>) = factors(model)
            .map(|(_, id, param)| (id, param.inner()))
            .unzip();
        let small = |param: &Tensor<2>| param.shape().num_elements() < MIN_8BIT_SIZE;
        if precision != StatePrecision::F32 && params.iter().any(small) {
            return None;
        }
        let values = Flat::of(&params, DType::F32)?;
        let rounded_to = model.adapters().find_map(|(_, _, a)| a.rounded_to());
        let rounded = rounded_to.and_then(|dtype| Flat::of(&params, dtype));
        let dims: Vec<_> = params.iter().map(Tensor::dims).collect();
        let grads = Flat::zeros(&dims, &params.first()?.device(), DType::F32)?;
        let moments = moments(&values, precision, states)?;
        // A then B of each adapter.
        let pairs = |flat: &Flat, i: usize| [flat.view(2 * i), flat.view(2 * i + 1)];
        for (i, (_, _, adapter)) in model.adapters_mut().enumerate() {
            let rounded = rounded.as_ref().map(|rounded| pairs(rounded, i));
            adapter.store_in(pairs(&values, i), rounded);
        }
        Some(Self {
            ids,
            grads,
            moments,
            values,
            rounded,
        })
    }

    pub(super) fn params(&self) -> FlatParams<'_> {
        FlatParams {
            values: &self.values,
            rounded: self.rounded.as_ref(),
        }
    }

    /// The moments of factor `i`, apart.
    pub(super) fn state(&self, i: usize) -> State {
        match &self.moments {
            FlatMoments::F32 { m, v } => State::F32(Box::new(Moments {
                m: m.view(i),
                v: v.view(i),
            })),
            FlatMoments::Bits8(Moments8Bit { m, v }, _) => {
                let range = self.values.range(i);
                let cut = |moment: &Moment8Bit| {
                    let blocks = range.len().div_ceil(BLOCK_SIZE);
                    let (codes, absmax) = (moment.codes.clone(), moment.absmax.clone());
                    Moment8Bit {
                        codes: codes.narrow(0, range.start, range.len()),
                        absmax: absmax.narrow(0, range.start / BLOCK_SIZE, blocks),
                    }
                };
                State::Bits8(Box::new(Moments8Bit {
                    m: cut(m),
                    v: cut(v),
                }))
            }
        }
    }

    /// Takes over moments that were read from a checkpoint, one for each factor or none.
    pub(super) fn restore(&mut self, states: &[Option<State>]) {
        let precision = match &self.moments {
            FlatMoments::F32 { .. } => StatePrecision::F32,
            FlatMoments::Bits8(_, guard) => StatePrecision::Bits8(*guard),
        };
        if let Some(moments) = moments(&self.values, precision, states) {
            self.moments = moments;
        }
    }
}

/// Zeroes, or the given moments, laid out as `values`.
fn moments(
    values: &Flat,
    precision: StatePrecision,
    states: &[Option<State>],
) -> Option<FlatMoments> {
    let device = values.buffer().device();
    match precision {
        StatePrecision::F32 => {
            let dims: Vec<_> = values.views().iter().map(Tensor::dims).collect();
            let one = |pick: fn(&Moments<2>) -> &Tensor<2>| {
                let tensors = states.iter().zip(&dims).map(|(state, dims)| match state {
                    Some(State::F32(moments)) => pick(moments).clone(),
                    _ => Tensor::zeros(*dims, (&device, DType::F32)),
                });
                Flat::of(&tensors.collect::<Vec<_>>(), DType::F32)
            };
            Some(FlatMoments::F32 {
                m: one(|moments| &moments.m)?,
                v: one(|moments| &moments.v)?,
            })
        }
        StatePrecision::Bits8(guard) => {
            Some(FlatMoments::Bits8(eight_bit_moments(values, states), guard))
        }
    }
}

fn eight_bit_moments(values: &Flat, states: &[Option<State>]) -> Moments8Bit {
    let one = |map: DynamicMap, pick: fn(&Moments8Bit) -> &Moment8Bit| {
        let n = values.buffer().dims()[0];
        // Between factors stands the code of zero.
        let zero = blockwise(&[0.0], map, BLOCK_SIZE).codes[0];
        let (mut codes, mut absmax) = (vec![zero; n], vec![0f32; n / BLOCK_SIZE]);
        for (i, state) in states.iter().enumerate() {
            let Some(State::Bits8(moments)) = state else {
                continue;
            };
            let (range, moment) = (values.range(i), pick(moments));
            let scales = range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE);
            let from: Vec<u8> = moment.codes.clone().into_data().iter::<u8>().collect();
            codes[range].copy_from_slice(&from);
            let from: Vec<f32> = moment.absmax.clone().into_data().iter::<f32>().collect();
            absmax[scales].copy_from_slice(&from);
        }
        let device = values.buffer().device();
        let blocks = absmax.len();
        Moment8Bit {
            codes: Tensor::<1, Int>::from_data(TensorData::new(codes, [n]), (&device, DType::U8)),
            absmax: Tensor::from_data(TensorData::new(absmax, [blocks]), (&device, DType::F32)),
        }
    };
    Moments8Bit {
        m: one(DynamicMap::Signed, |moments| &moments.m),
        v: one(DynamicMap::Unsigned, |moments| &moments.v),
    }
}
