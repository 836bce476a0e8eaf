//! All factors with their gradients and moments in buffers of their own, on devices that have kernels for it.

use std::collections::HashMap;

use backdraft_arch::sizes::LARGEST_GROUP;
use backdraft_kernels::adamw::{AdamWParams, Moments};
use backdraft_kernels::adamw8bit::{BLOCK_SIZE, MIN_8BIT_SIZE, Moment8Bit, Moments8Bit};
use backdraft_kernels::codebook::DynamicMap;
use backdraft_kernels::exchange;
use backdraft_kernels::flat::{self, Flat, FlatMoments, FlatParams};
use backdraft_kernels::optimizers::Matrices;
use backdraft_kernels::quantize::blockwise;
use backdraft_lora::{AdapterParam, Stored};
use backdraft_model::CausalLm;
use burn::module::ParamId;
use burn::tensor::{DType, Int, Tensor, TensorData, TensorReadError};

use super::mean::{self, Mean};
use super::rule::{Rule, StackedRule};
use super::state::State;
use super::{Rate, Rates, StatePrecision};

/// All factors, each in a buffer of those that learn alike and of which the same is kept. There those of a layer stand together, all A
/// before all B: A's of projections that share their input are one matrix to `lora_linear`.
#[derive(Clone, Debug)]
pub(super) struct Bank {
    pub(super) ids: Vec<ParamId>,
    /// The shape of each factor.
    shapes: Vec<Vec<usize>>,
    groups: Vec<Group>,
    /// The group of each factor, and its number there.
    places: Vec<(usize, usize)>,
}

/// What the factors of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kind {
    rate: Rate,
    keeping: Keeping,
}

/// How factors are updated and what is kept of them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Keeping {
    AdamW(AdamWParams, StatePrecision),
    /// All of these dimensions.
    Stacked(StackedRule, [usize; 2]),
}

/// What is kept of a group.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there are a few groups")]
enum Kept {
    Moments(FlatMoments),
    Stacked(Vec<Matrices>),
}

/// Factors that learn alike and of which the same is kept.
#[derive(Clone, Debug)]
struct Group {
    kind: Kind,
    values: Flat,
    /// Copies in the dtype of activations, where that is another.
    rounded: Option<Flat>,
    grads: Flat,
    kept: Kept,
    /// Their running mean, where one is kept.
    mean: Option<Flat>,
}

impl Bank {
    /// Moves the factors of `model` into buffers. `None` where the device has no kernels for them.
    pub(super) fn new(
        model: &mut CausalLm,
        (rule, rates): (Rule, &Rates),
        (states, mean): (&[Option<State>], Option<&Mean>),
    ) -> Option<Self> {
        let (ids, (dims, shapes)): (Vec<_>, (Vec<_>, Vec<_>)) = model
            .trained_params()
            .map(|(_, param)| (param.id, (param.matrix_dims(), param.dims)))
            .unzip();
        let rates = rates.of_model(model);
        let dtype = model.dtype();
        let rounded_to = (dtype != DType::F32).then_some(dtype);
        // Of a layer, the first parameters of all adapters, then the second ones: all A, then all B; what is of no layer at the end.
        let sides: Vec<_> = model
            .adapters()
            .flat_map(|(layer, _, adapter)| (0..adapter.params().len()).map(move |j| (layer, j)))
            .chain(
                model
                    .table_adapters()
                    .flat_map(|(_, adapter)| (0..adapter.params().len()).map(|_| (usize::MAX, 0))),
            )
            .chain(model.tokens().iter().map(|_| (usize::MAX, 0)))
            .chain(model.whole().iter().map(|_| (usize::MAX, 0)))
            .collect();
        let largest = model.trains_base().then_some(LARGEST_GROUP);
        let (mut groups, mut places) = (Vec::new(), vec![(0, 0); ids.len()]);
        for (kind, mut members) in split(&dims, &rates, (rule, largest)) {
            members.sort_by_key(|&i| sides[i]);
            let number = groups.len();
            for (j, &i) in members.iter().enumerate() {
                places[i] = (number, j);
            }
            let params = values_of(model, members.iter().map(|&i| ids[i]));
            let states: Vec<_> = members.iter().map(|&i| states[i].clone()).collect();
            let values = (&params[..], rounded_to);
            let mut group = Group::new(values, kind, &states)?;
            if let Some(mean) = mean {
                // Before the first update it is nothing yet, and the factors stand there.
                let means = members.iter().zip(&params).map(|(&i, values)| {
                    let mean = mean.get(ids[i]);
                    mean.map_or_else(
                        || values.clone(),
                        |mean| mean.clone().reshape(values.dims()),
                    )
                });
                group.mean = Some(Flat::of(&means.collect::<Vec<_>>(), DType::F32)?);
            }
            // Before the next group is made, so that what they were is let go.
            drop(params);
            let numbers = members.iter().enumerate();
            let numbers: HashMap<ParamId, usize> = numbers.map(|(j, &i)| (ids[i], j)).collect();
            model.store_trained_in(|id| {
                let &j = numbers.get(&id)?;
                Some(Stored {
                    values: group.values.view(j),
                    rounded: group.rounded.as_ref().map(|rounded| rounded.view(j)),
                })
            });
            groups.push(group);
        }
        Some(Self {
            ids,
            shapes,
            groups,
            places,
        })
    }

    /// The shape of each factor, and where its gradient goes.
    pub(super) fn grads(&self) -> impl Iterator<Item = (ParamId, Vec<usize>, Tensor<2>)> {
        let factors = self.ids.iter().zip(&self.shapes).zip(&self.places);
        factors.map(|((&id, shape), &(group, j))| {
            (id, shape.clone(), self.groups[group].grads.view(j))
        })
    }

    /// The same, as buffers.
    pub(super) fn gradient_buffers(&self) -> impl Iterator<Item = Tensor<1>> {
        self.groups.iter().map(|group| group.grads.buffer().clone())
    }

    /// Of all factors; `None` elsewhere than on a device that computes it.
    ///
    /// # Errors
    /// A device that failed.
    pub(super) fn checksum(&self) -> Result<Option<u64>, TensorReadError> {
        let mut sum = 0_u64;
        for group in &self.groups {
            let Some(of_group) = exchange::checksum(group.values.buffer())? else {
                return Ok(None);
            };
            sum = sum.rotate_left(7) ^ of_group;
        }
        Ok(Some(sum))
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
    pub(super) fn update(&mut self, factor: Option<&Tensor<1>>, (lr, t): (f64, u64)) {
        for group in &mut self.groups {
            let Kind { rate, keeping } = group.kind;
            group.update(factor, (lr * rate.share, t), (keeping, rate));
        }
    }

    /// Takes the new factors into their means; `t` counts from 1.
    pub(super) fn update_means(&self, decay: f64, t: u64) {
        for group in &self.groups {
            if let Some(of) = &group.mean {
                mean::update_flat(of, &group.values, (decay, t));
            }
        }
    }

    /// The number of a factor.
    pub(super) fn place_of(&self, id: ParamId) -> Option<usize> {
        self.ids.iter().position(|other| *other == id)
    }

    /// The mean of factor `i`, in memory of its own.
    pub(super) fn mean(&self, i: usize) -> Option<Tensor<1>> {
        let (group, j) = self.places[i];
        let group = &self.groups[group];
        let range = group.values.range(j);
        let mean = group.mean.as_ref()?.buffer().clone();
        Some(mean.narrow(0, range.start, range.len()))
    }

    /// What is kept of factor `i`, apart.
    pub(super) fn state(&self, i: usize) -> State {
        let (group, j) = self.places[i];
        self.groups[group].state(j)
    }

    /// Memory of what is kept.
    pub(super) fn num_bytes(&self) -> usize {
        let bytes = |group: &Group| match &group.kept {
            Kept::Moments(FlatMoments::F32 { m, .. }) => 8 * m.buffer().dims()[0],
            Kept::Moments(FlatMoments::Bits8(moments, _)) => moments.num_bytes(),
            Kept::Stacked(kept) => kept.iter().map(|x| 4 * x.shape().num_elements()).sum(),
        };
        let means = |group: &Group| match &group.mean {
            Some(mean) => 4 * mean.buffer().dims()[0],
            None => 0,
        };
        let groups = self.groups.iter();
        groups.map(|group| bytes(group) + means(group)).sum()
    }
}

/// The values of some factors, in their order.
fn values_of(model: &CausalLm, ids: impl Iterator<Item = ParamId>) -> Vec<Tensor<2>> {
    let params = model.trained_params();
    let mut params: HashMap<ParamId, AdapterParam> =
        params.map(|(_, param)| (param.id, param)).collect();
    let found = ids.filter_map(|id| params.remove(&id));
    found
        .map(|param| param.values.clone().inner().reshape(param.matrix_dims()))
        .collect()
}

/// Numbers of the factors by how they learn and what is kept of them: moments of those too small for 8 bits are in f32. A group has
/// so many values at most, or a single factor.
fn split(
    dims: &[[usize; 2]],
    rates: &[Rate],
    (rule, largest): (Rule, Option<usize>),
) -> Vec<(Kind, Vec<usize>)> {
    let count = |[rows, columns]: [usize; 2]| rows * columns;
    let keeping = |dims: [usize; 2]| match rule {
        Rule::AdamW(params, StatePrecision::Bits8(_)) if count(dims) < MIN_8BIT_SIZE => {
            Keeping::AdamW(params, StatePrecision::F32)
        }
        Rule::AdamW(params, precision) => Keeping::AdamW(params, precision),
        Rule::Stacked(rule) => Keeping::Stacked(rule, dims),
    };
    let mut groups: Vec<(Kind, Vec<usize>)> = Vec::new();
    for (i, (&of, &rate)) in dims.iter().zip(rates).enumerate() {
        let kind = Kind {
            rate,
            keeping: keeping(of),
        };
        let room = |members: &[usize]| {
            let there: usize = members.iter().map(|&i| count(dims[i])).sum();
            largest.is_none_or(|largest| there + count(of) <= largest)
        };
        let mut alike = groups.iter_mut().rev();
        match alike.find(|(other, _)| *other == kind) {
            Some((_, members)) if room(members) => members.push(i),
            _ => groups.push((kind, vec![i])),
        }
    }
    // A sum of norms has an order: what is in 8 bits comes first.
    let in_f32 = |kind: &Kind| matches!(kind.keeping, Keeping::AdamW(_, StatePrecision::F32));
    groups.sort_by_key(|(kind, _)| in_f32(kind));
    groups
}

impl Group {
    fn new(
        (params, rounded_to): (&[Tensor<2>], Option<DType>),
        kind: Kind,
        states: &[Option<State>],
    ) -> Option<Self> {
        let values = Flat::of(params, DType::F32)?;
        let dims: Vec<_> = params.iter().map(Tensor::dims).collect();
        Some(Self {
            kind,
            rounded: rounded_to.and_then(|dtype| Flat::of(params, dtype)),
            grads: Flat::zeros(&dims, &params.first()?.device(), DType::F32)?,
            kept: kept(&values, kind.keeping, states)?,
            mean: None,
            values,
        })
    }

    fn update(
        &mut self,
        factor: Option<&Tensor<1>>,
        at: (f64, u64),
        (keeping, rate): (Keeping, Rate),
    ) {
        match (keeping, &mut self.kept) {
            (Keeping::AdamW(params, _), Kept::Moments(moments)) => {
                let flat = FlatParams {
                    values: &self.values,
                    rounded: self.rounded.as_ref(),
                };
                let params = rate.params(&params);
                flat::adamw(flat, &self.grads, factor, moments, at, &params);
            }
            (Keeping::Stacked(rule, _), Kept::Stacked(kept)) => {
                let grad = self.grads.stacked();
                let grad = match factor {
                    Some(factor) => grad * factor.clone().reshape([1, 1, 1]),
                    None => grad,
                };
                let values = self.values.stacked();
                let (values, next) = rule.at(rate).step(values, &grad, std::mem::take(kept), at);
                *kept = next;
                if let Some(rounded) = &self.rounded {
                    rounded.overwrite(&values);
                }
                self.values.overwrite(&values);
            }
            (keeping, kept) => unreachable!("{kept:?} is not of {keeping:?}"),
        }
    }

    fn state(&self, i: usize) -> State {
        match &self.kept {
            Kept::Stacked(kept) => {
                let one = kept.iter().map(|kept| kept.clone().narrow(0, i, 1));
                State::Stacked(one.collect())
            }
            Kept::Moments(FlatMoments::F32 { m, v }) => State::F32(Box::new(Moments {
                m: m.view(i).flatten(0, 1),
                v: v.view(i).flatten(0, 1),
            })),
            Kept::Moments(FlatMoments::Bits8(Moments8Bit { m, v }, _)) => {
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

/// Zeroes, or what is given, laid out as `values`.
fn kept(values: &Flat, keeping: Keeping, states: &[Option<State>]) -> Option<Kept> {
    let (rule, dims) = match keeping {
        Keeping::AdamW(_, precision) => {
            return Some(Kept::Moments(moments(values, precision, states)?));
        }
        Keeping::Stacked(rule, dims) => (rule, dims),
    };
    let device = values.buffer().device();
    let each: Vec<Vec<Matrices>> = states
        .iter()
        .map(|state| match state {
            Some(State::Stacked(kept)) => kept.clone(),
            _ => rule.zeros(1, dims, &device),
        })
        .collect();
    let stacked = (0..rule.names().len())
        .map(|i| Tensor::cat(each.iter().map(|kept| kept[i].clone()).collect(), 0));
    Some(Kept::Stacked(stacked.collect()))
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
