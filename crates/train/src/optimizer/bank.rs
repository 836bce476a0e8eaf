//! All factors with their gradients and moments in buffers of their own, on devices that have kernels for it.

use std::collections::HashMap;

use backdraft_kernels::adamw::{AdamWParams, Moments};
use backdraft_kernels::adamw8bit::{BLOCK_SIZE, MIN_8BIT_SIZE, Moment8Bit, Moments8Bit};
use backdraft_kernels::codebook::DynamicMap;
use backdraft_kernels::flat::{self, Flat, FlatMoments, FlatParams};
use backdraft_kernels::quantize::blockwise;
use backdraft_lora::{AdapterParam, Stored};
use backdraft_model::CausalLm;
use burn::module::ParamId;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{State, StatePrecision};

/// All factors, each in a buffer of those whose moments are kept alike. There those of a layer stand together, all A
/// before all B: A's of projections that share their input are one matrix to `lora_linear`.
#[derive(Clone, Debug)]
pub(super) struct Bank {
    pub(super) ids: Vec<ParamId>,
    groups: Vec<Group>,
    /// The group of each factor, and its number there.
    places: Vec<(usize, usize)>,
}

/// Factors whose moments are kept alike.
#[derive(Clone, Debug)]
struct Group {
    values: Flat,
    /// Copies in the dtype of activations, where that is another.
    rounded: Option<Flat>,
    grads: Flat,
    moments: FlatMoments,
}

impl Bank {
    /// Moves the factors of `model` into buffers. `None` where the device has no kernels for them.
    pub(super) fn new(
        model: &mut CausalLm,
        precision: StatePrecision,
        states: &[Option<State>],
    ) -> Option<Self> {
        let (ids, params): (Vec<_>, Vec<_>) = model
            .trained_params()
            .map(|(_, param)| (param.id, matrix(&param)))
            .unzip();
        let rounded_to = model.adapters().find_map(|(_, _, a)| a.rounded_to());
        // Of a layer, the first parameters of all adapters, then the second ones: all A, then all B.
        let sides: Vec<_> = model
            .adapters()
            .flat_map(|(layer, _, adapter)| (0..adapter.params().len()).map(move |j| (layer, j)))
            .collect();
        let (mut groups, mut places) = (Vec::new(), vec![(0, 0); params.len()]);
        for (precision, mut members) in split(&params, precision) {
            members.sort_by_key(|&i| sides[i]);
            for (j, &i) in members.iter().enumerate() {
                places[i] = (groups.len(), j);
            }
            let params: Vec<_> = members.iter().map(|&i| params[i].clone()).collect();
            let states: Vec<_> = members.iter().map(|&i| states[i].clone()).collect();
            groups.push(Group::new(&params, rounded_to, precision, &states)?);
        }
        let bank = Self {
            ids,
            groups,
            places,
        };
        let numbers = bank.ids.iter().enumerate().map(|(i, id)| (*id, i));
        let numbers: HashMap<ParamId, usize> = numbers.collect();
        for (_, _, adapter) in model.adapters_mut() {
            adapter.store_in(|id| {
                let (group, j) = bank.places[numbers[&id]];
                let group = &bank.groups[group];
                Stored {
                    values: group.values.view(j),
                    rounded: group.rounded.as_ref().map(|rounded| rounded.view(j)),
                }
            });
        }
        Some(bank)
    }

    /// Where the gradient of each factor goes.
    pub(super) fn grads(&self) -> impl Iterator<Item = (ParamId, Tensor<2>)> {
        let places = self.ids.iter().zip(&self.places);
        places.map(|(&id, &(group, j))| (id, self.groups[group].grads.view(j)))
    }

    /// The Euclidean norm of all gradients, `[1]`.
    pub(super) fn norm(&self) -> Tensor<1> {
        let norms: Vec<_> = self.groups.iter().map(|group| group.grads.norm()).collect();
        match <[Tensor<1>; 1]>::try_from(norms) {
            Ok([norm]) => norm,
            Err(norms) => Tensor::cat(norms, 0).square().sum().sqrt(),
        }
    }

    /// One update of everything, with gradients multiplied by `factor`.
    pub(super) fn update(
        &self,
        factor: Option<&Tensor<1>>,
        at: (f64, u64),
        constants: &AdamWParams,
    ) {
        for group in &self.groups {
            let params = FlatParams {
                values: &group.values,
                rounded: group.rounded.as_ref(),
            };
            flat::adamw(params, &group.grads, factor, &group.moments, at, constants);
        }
    }

    /// The moments of factor `i`, apart.
    pub(super) fn state(&self, i: usize) -> State {
        let (group, j) = self.places[i];
        self.groups[group].state(j)
    }

    /// Takes over moments that were read from a checkpoint, one for each factor or none.
    pub(super) fn restore(&mut self, states: &[Option<State>]) {
        for (g, group) in self.groups.iter_mut().enumerate() {
            let mut own = vec![None; group.values.len()];
            for (&(of, j), state) in self.places.iter().zip(states) {
                if of == g {
                    own[j].clone_from(state);
                }
            }
            if let Some(moments) = moments(&group.values, group.precision(), &own) {
                group.moments = moments;
            }
        }
    }

    /// Memory of the moments.
    pub(super) fn num_bytes(&self) -> usize {
        let bytes = |group: &Group| match &group.moments {
            FlatMoments::F32 { m, .. } => 8 * m.buffer().dims()[0],
            FlatMoments::Bits8(moments, _) => moments.num_bytes(),
        };
        self.groups.iter().map(bytes).sum()
    }
}

fn matrix(param: &AdapterParam) -> Tensor<2> {
    param.values.clone().inner().reshape(param.matrix_dims())
}

/// Numbers of the factors by how their moments are kept: those too small for 8 bits in f32.
fn split(
    params: &[Tensor<2>],
    precision: StatePrecision,
) -> impl Iterator<Item = (StatePrecision, Vec<usize>)> {
    let small = |i: &usize| params[*i].shape().num_elements() < MIN_8BIT_SIZE;
    let all = 0..params.len();
    let groups = match precision {
        StatePrecision::F32 => vec![(StatePrecision::F32, all.collect())],
        StatePrecision::Bits8(_) => {
            let (small, large): (Vec<_>, Vec<_>) = all.partition(small);
            vec![(precision, large), (StatePrecision::F32, small)]
        }
    };
    groups
        .into_iter()
        .filter(|(_, members)| !members.is_empty())
}

impl Group {
    fn new(
        params: &[Tensor<2>],
        rounded_to: Option<DType>,
        precision: StatePrecision,
        states: &[Option<State>],
    ) -> Option<Self> {
        let values = Flat::of(params, DType::F32)?;
        let dims: Vec<_> = params.iter().map(Tensor::dims).collect();
        Some(Self {
            rounded: rounded_to.and_then(|dtype| Flat::of(params, dtype)),
            grads: Flat::zeros(&dims, &params.first()?.device(), DType::F32)?,
            moments: moments(&values, precision, states)?,
            values,
        })
    }

    fn precision(&self) -> StatePrecision {
        match &self.moments {
            FlatMoments::F32 { .. } => StatePrecision::F32,
            FlatMoments::Bits8(_, guard) => StatePrecision::Bits8(*guard),
        }
    }

    fn state(&self, i: usize) -> State {
        match &self.moments {
            FlatMoments::F32 { m, v } => State::F32(Box::new(Moments {
                m: m.view(i).flatten(0, 1),
                v: v.view(i).flatten(0, 1),
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
            let one = |pick: fn(&Moments<1>) -> &Tensor<1>| {
                let tensors = states.iter().zip(&dims).map(|(state, dims)| match state {
                    Some(State::F32(moments)) => pick(moments).clone().reshape(*dims),
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
