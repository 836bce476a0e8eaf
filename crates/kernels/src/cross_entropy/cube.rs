//! One cube for each row of logits on a CubeCL device: a pass for maximum and sum, and one that writes
//! the gradient over the logits.

use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::{CUBE_CHUNK, Penalty, RowLosses};
use crate::cube::{
    InPlace, RowCube, argument, cubes, elem, empty, floats, indices, into_floats, len, line,
    max_cube, on_cube, sigmoid, sum_cube, sum_lanes, tensor,
};

/// Units that share a row, at most.
const UNITS: u32 = 1024;

/// How many tokens to take at a time, `None` elsewhere than on a CubeCL device.
pub(super) fn chunk(hidden: &Tensor<2>) -> Option<usize> {
    on_cube(hidden).then_some(CUBE_CHUNK)
}

/// `Err` hands `logits` back when they are not on a CubeCL device.
pub(super) fn row_losses(
    logits: Tensor<2>,
    cap: Option<f32>,
    targets: &[u32],
    weights: Option<&Tensor<1>>,
    penalty: Option<Penalty>,
) -> Result<RowLosses, Tensor<2>> {
    let [rows, width] = logits.dims();
    let logits = into_floats(logits)?;
    assert_eq!(rows, targets.len(), "one target for each row of logits");
    if let Some(target) = targets.iter().find(|&&target| target as usize >= width) {
        panic!("target {target} of {width} classes");
    }
    let nll = empty(&logits, [rows], DType::F32);
    let penalized = penalty.map(|_| empty(&logits, [rows], DType::F32));
    if rows == 0 {
        return Ok(RowLosses {
            nll: tensor(nll),
            penalized: penalized.map(tensor),
            d_logits: weights.map(|_| tensor(logits)),
        });
    }
    let line = line(logits.dtype, width);
    let vectors = width / line;
    let cube = RowCube::new(&logits, vectors, UNITS);
    let elem = elem(logits.dtype);
    let client = nll.client.clone();
    let targets = indices(&client, targets);
    // Without a gradient nothing is written, and no copy may be made for it.
    let (out, to, weights) = match weights {
        Some(weights) => {
            let out = InPlace::over(&logits, line, 0);
            (Some(out.tensor), out.argument, row_weights(weights, rows))
        }
        None => (
            None,
            BufferArg::alias(0, rows * vectors),
            BufferArg::alias(2, rows),
        ),
    };
    let gradient = out.is_some();
    // Where nothing is written, the buffer of nll stands in.
    let penalized_to = match &penalized {
        Some(penalized) => argument(penalized, 1),
        None => BufferArg::alias(2, rows),
    };
    let Penalty {
        label_smoothing,
        z_loss,
    } = penalty.unwrap_or_default();
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: the logits, read and written, have `rows` rows of `vectors` vectors, targets, losses and weights a
    // value for each row, and no target is beyond a row.
    unsafe {
        kernel::launch_unchecked(
            &client,
            cubes(rows),
            cube.dim(),
            line,
            argument(&logits, line),
            targets,
            argument(&nll, 1),
            to,
            weights,
            penalized_to,
            vectors as u32,
            cap.unwrap_or(1.0),
            label_smoothing,
            z_loss,
            cap.is_some(),
            gradient,
            penalty.is_some(),
            cube,
            elem,
        );
    }
    Ok(RowLosses {
        nll: tensor(nll),
        penalized: penalized.map(tensor),
        d_logits: out.map(tensor),
    })
}

/// The weights of `rows` rows.
fn row_weights(weights: &Tensor<1>, rows: usize) -> BufferArg {
    match floats(weights).filter(|weights| weights.dtype == DType::F32 && len(weights) == rows) {
        Some(weights) => argument(&weights, 1),
        None => panic!("{rows} weights in f32 beside the logits, found {weights:?}"),
    }
}

/// The sum in one order, whatever else happens on the device; `None` elsewhere than on a CubeCL device.
pub(super) fn total(nll: &Tensor<1>) -> Option<Tensor<1>> {
    let nll = floats(nll).filter(|nll| nll.dtype == DType::F32)?;
    let cube = RowCube::new(&nll, len(&nll), UNITS);
    let sum = empty(&nll, [1], DType::F32);
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: it reads up to the length and writes one value.
    unsafe {
        total_kernel::launch_unchecked(
            &nll.client,
            CubeCount::Static(1, 1, 1),
            cube.dim(),
            argument(&nll, 1),
            argument(&sum, 1),
            len(&nll) as u32,
            cube,
        );
    }
    Some(tensor(sum))
}

#[cube(launch_unchecked)]
fn total_kernel(nll: &[f32], sum: &mut [f32], count: u32, #[comptime] cube: RowCube) {
    let units = comptime!(cube.units as usize);
    let mut part = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < count as usize {
        part += nll[i];
        i += units;
    }
    let all = sum_cube(part, cube);
    if UNIT_POS == 0 {
        sum[0] = all;
    }
}

/// Logits as the softmax takes them.
#[cube]
fn seen<N: Size>(logits: Vector<f32, N>, cap: f32, #[comptime] capped: bool) -> Vector<f32, N> {
    if comptime!(capped) {
        // tanh(x) = 2σ(2x) − 1, which cannot overflow.
        let cap = Vector::<f32, N>::new(cap);
        let two = Vector::<f32, N>::new(2.0f32);
        let one = Vector::<f32, N>::new(1.0f32);
        cap * (two * sigmoid(two * logits / cap) - one)
    } else {
        logits
    }
}

#[cube(launch_unchecked)]
fn kernel<F: Float, N: Size>(
    logits: &[Vector<F, N>],
    targets: &[u32],
    nll: &mut [f32],
    d_logits: &mut [Vector<F, N>],
    weights: &[f32],
    penalized: &mut [f32],
    vectors: u32,
    cap: f32,
    label_smoothing: f32,
    z_loss: f32,
    #[comptime] capped: bool,
    #[comptime] gradient: bool,
    #[comptime] penalizes: bool,
    #[comptime] cube: RowCube,
    #[define(F)] _dtype: ElemType,
) {
    let row = CUBE_POS;
    if row >= nll.len() {
        terminate!();
    }
    let vectors = vectors as usize;
    let start = row * vectors;
    let units = comptime!(cube.units as usize);
    let lanes = N::value();
    let target = targets[row] as usize;
    let (target_vector, target_lane) = (target / lanes, target % lanes);

    // Per unit: the largest logit so far, and Σ e^(logit − largest). The one unit that meets the target
    // keeps its logit.
    let mut top = f32::new(-3.4e38f32);
    let mut total = 0.0f32;
    let mut chosen = 0.0f32;
    // Σ of the logits, where a share of the target is everywhere.
    let mut plain = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < vectors {
        let v = seen::<N>(Vector::cast_from(logits[start + i]), cap, capped);
        let mut highest = v.extract(0usize);
        #[unroll]
        for lane in 1..lanes {
            highest = max(highest, v.extract(lane));
        }
        let higher = max(top, highest);
        let sum = sum_lanes((v - Vector::new(higher)).exp());
        total = total * (top - higher).exp() + sum;
        top = higher;
        if comptime!(penalizes) {
            plain += sum_lanes(v);
        }
        if i == target_vector {
            #[unroll]
            for lane in 0..lanes {
                if lane == target_lane {
                    chosen = v.extract(lane);
                }
            }
        }
        i += units;
    }
    let largest = max_cube(top, cube);
    let denominator = sum_cube(total * (top - largest).exp(), cube);
    let chosen = sum_cube(chosen, cube);
    if UNIT_POS == 0 {
        nll[row] = denominator.ln() + largest - chosen;
    }
    let logsumexp = denominator.ln() + largest;
    let width = f32::cast_from((vectors * lanes) as u32);
    if comptime!(penalizes) {
        let mean = sum_cube(plain, cube) / width;
        if UNIT_POS == 0 {
            let smoothed = (1.0f32 - label_smoothing) * (logsumexp - chosen)
                + label_smoothing * (logsumexp - mean);
            penalized[row] = smoothed + z_loss * logsumexp * logsumexp;
        }
    }
    if comptime!(gradient) {
        let weight = weights[row];
        let mut factor = weight / denominator;
        let mut at_target = weight;
        let mut everywhere = 0.0f32;
        if comptime!(penalizes) {
            factor *= 1.0f32 + 2.0f32 * z_loss * logsumexp;
            at_target *= 1.0f32 - label_smoothing;
            everywhere = weight * label_smoothing / width;
        }
        let mut i = UNIT_POS as usize;
        while i < vectors {
            let v = seen::<N>(Vector::cast_from(logits[start + i]), cap, capped);
            let mut d = (v - Vector::new(largest)).exp() * Vector::new(factor);
            if comptime!(penalizes) {
                d -= Vector::new(everywhere);
            }
            if i == target_vector {
                #[unroll]
                for lane in 0..lanes {
                    if lane == target_lane {
                        d.insert(lane, d.extract(lane) - at_target);
                    }
                }
            }
            if comptime!(capped) {
                let share = v / Vector::new(cap);
                d *= Vector::<f32, N>::new(1.0f32) - share * share;
            }
            d_logits[start + i] = Vector::cast_from(d);
            i += units;
        }
    }
}
