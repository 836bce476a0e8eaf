//! On a CubeCL device: a unit goes down a run of rows with one vector of features, and has the last rows at hand.

use burn::tensor::Tensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use super::taps;
use crate::cube::{CubeTensor, argument, elem, empty, floats, len, line, sigmoid, tensor};
use crate::runs::{Documents, RUN, Runs, runs};
use crate::segments::Segments;

/// Rows of a run; each begins with those that its first row sees, or ends with those that see its last.
const ROWS: usize = 16;

/// Units of a cube.
const UNITS: usize = 128;

/// Operands on a device, and what a launch takes.
struct Conv {
    x: CubeTensor,
    weight: CubeTensor,
    runs: Runs,
    line: usize,
    shape: Shape,
}

/// What the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Vectors of a row.
    vectors: usize,
    /// Rows that an output sees, its own included.
    taps: usize,
}

impl Conv {
    fn of(x: &Tensor<2>, weight: &Tensor<1>, segments: &Segments) -> Option<Self> {
        let (features, taps) = (x.dims()[1], taps(x, weight));
        let (x, weight) = (floats(x)?, floats(weight)?);
        let line = line(x.dtype, features);
        Some(Self {
            runs: runs(segments, ROWS, Documents::All, &x),
            line,
            shape: Shape {
                vectors: features / line,
                taps,
            },
            x,
            weight,
        })
    }

    fn result(&self) -> CubeTensor {
        let shape = self.x.meta.shape();
        empty(&self.x, [shape[0], shape[1]], self.x.dtype)
    }

    fn count(&self) -> CubeCount {
        let across = self.shape.vectors.div_ceil(UNITS);
        CubeCount::Static(across as u32, self.runs.count as u32, 1)
    }

    fn dtypes(&self) -> [ElemType; 2] {
        [elem(self.x.dtype), elem(self.weight.dtype)]
    }
}

pub(super) fn forward(x: &Tensor<2>, weight: &Tensor<1>, segments: &Segments) -> Option<Tensor<2>> {
    let conv = Conv::of(x, weight, segments)?;
    let y = conv.result();
    if len(&y) > 0 {
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: x and y have a row of `vectors` vectors for each row of the runs, and the weight `taps` values for each of
        // their features, as the caller checked.
        unsafe {
            forward_kernel::launch_unchecked(
                &conv.x.client,
                conv.count(),
                CubeDim::new_1d(UNITS as u32),
                conv.line,
                argument(&conv.x, conv.line),
                argument(&conv.weight, 1),
                conv.runs.runs(),
                argument(&y, conv.line),
                conv.shape,
                conv.dtypes(),
            );
        }
    }
    Some(tensor(y))
}

/// `Err` hands `dy` back when something is not on a CubeCL device.
pub(super) fn backward(
    dy: Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    segments: &Segments,
) -> Result<Tensor<2>, Tensor<2>> {
    let (Some(conv), Some(d)) = (Conv::of(x, weight, segments), floats(&dy)) else {
        return Err(dy);
    };
    if d.dtype != conv.x.dtype {
        return Err(dy);
    }
    let dx = conv.result();
    if len(&dx) > 0 {
        #[expect(unsafe_code, reason = "a kernel without bounds checks")]
        // SAFETY: as in `forward`; dy and dx have as many vectors as x.
        unsafe {
            backward_kernel::launch_unchecked(
                &conv.x.client,
                conv.count(),
                CubeDim::new_1d(UNITS as u32),
                conv.line,
                argument(&d, conv.line),
                argument(&conv.x, conv.line),
                argument(&conv.weight, 1),
                conv.runs.runs(),
                argument(&dx, conv.line),
                conv.shape,
                conv.dtypes(),
            );
        }
    }
    Ok(tensor(dx))
}

/// The weights of a vector of features, tap by tap.
#[cube]
fn weights<W: Float, N: Size>(
    weight: &[W],
    column: usize,
    to: &mut Array<Vector<f32, N>>,
    #[comptime] taps: usize,
) {
    #[unroll]
    for tap in 0..taps {
        let mut own = Vector::<f32, N>::empty();
        #[unroll]
        for lane in 0..N::value() {
            let feature = column * N::value() + lane;
            own.insert(lane, f32::cast_from(weight[feature * taps + tap]));
        }
        to[tap] = own;
    }
}

/// The rows before `first`, as far as the document has them, into all places but the last.
#[cube]
fn rows_before<F: Float, N: Size>(
    x: &[Vector<F, N>],
    column: usize,
    first: usize,
    document: usize,
    to: &mut Array<Vector<f32, N>>,
    #[comptime] shape: Shape,
) {
    #[unroll]
    for i in 0..comptime!(shape.taps - 1) {
        let back = comptime!(shape.taps - 1 - i);
        let mut row = Vector::<f32, N>::new(0.0f32);
        if first >= document + back {
            row = Vector::cast_from(x[(first - back) * comptime!(shape.vectors) + column]);
        }
        to[i] = row;
    }
}

/// Σ of the window's rows times their weights.
#[cube]
fn convolved<N: Size>(
    window: &Array<Vector<f32, N>>,
    weights: &Array<Vector<f32, N>>,
    #[comptime] taps: usize,
) -> Vector<f32, N> {
    let mut z = window[0] * weights[0];
    #[unroll]
    for tap in 1..taps {
        z += window[tap] * weights[tap];
    }
    z
}

/// Makes room for the next row.
#[cube]
fn shift<N: Size>(window: &mut Array<Vector<f32, N>>, #[comptime] taps: usize) {
    #[unroll]
    for i in 0..comptime!(taps - 1) {
        window[i] = window[i + 1];
    }
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, W: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[W],
    runs: &[u32],
    y: &mut [Vector<F, N>],
    #[comptime] shape: Shape,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let column = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
    if column < comptime!(shape.vectors) {
        let run = CUBE_POS_Y as usize * RUN;
        let first = runs[run] as usize;
        let end = runs[run + 1] as usize;
        let document = runs[run + 2] as usize;
        let taps = comptime!(shape.taps);
        let mut own = Array::<Vector<f32, N>>::new(taps);
        weights::<W, N>(weight, column, &mut own, taps);
        let mut window = Array::<Vector<f32, N>>::new(taps);
        rows_before::<F, N>(x, column, first, document, &mut window, shape);
        let mut row = first;
        while row < end {
            let at = row * comptime!(shape.vectors) + column;
            window[comptime!(shape.taps - 1)] = Vector::cast_from(x[at]);
            let z = convolved::<N>(&window, &own, taps);
            y[at] = Vector::cast_from(z * sigmoid::<N>(z));
            shift::<N>(&mut window, taps);
            row += 1;
        }
    }
}

/// Goes beyond the run's end as far as rows see into it: dz of each row once, dx as soon as the last that sees it is there.
#[cube(launch_unchecked)]
fn backward_kernel<F: Float, W: Float, N: Size>(
    dy: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[W],
    runs: &[u32],
    dx: &mut [Vector<F, N>],
    #[comptime] shape: Shape,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let column = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
    if column < comptime!(shape.vectors) {
        let run = CUBE_POS_Y as usize * RUN;
        let first = runs[run] as usize;
        let end = runs[run + 1] as usize;
        let document = runs[run + 2] as usize;
        let document_end = runs[run + 3] as usize;
        let taps = comptime!(shape.taps);
        let ahead = comptime!(shape.taps - 1);
        let mut own = Array::<Vector<f32, N>>::new(taps);
        weights::<W, N>(weight, column, &mut own, taps);
        let mut window = Array::<Vector<f32, N>>::new(taps);
        rows_before::<F, N>(x, column, first, document, &mut window, shape);
        let one = Vector::<f32, N>::new(1.0f32);
        let mut slopes = Array::<Vector<f32, N>>::new(taps);
        #[unroll]
        for i in 0..taps {
            slopes[i] = Vector::<f32, N>::new(0.0f32);
        }
        let mut row = first;
        while row < end + ahead {
            let mut dz = Vector::<f32, N>::new(0.0f32);
            if row < document_end {
                let at = row * comptime!(shape.vectors) + column;
                window[ahead] = Vector::cast_from(x[at]);
                let z = convolved::<N>(&window, &own, taps);
                let s = sigmoid::<N>(z);
                let d = Vector::<f32, N>::cast_from(dy[at]);
                dz = d * s * (one + z * (one - s));
                shift::<N>(&mut window, taps);
            }
            slopes[ahead] = dz;
            if row >= first + ahead {
                let mut sum = Vector::<f32, N>::new(0.0f32);
                #[unroll]
                for i in 0..taps {
                    sum += slopes[i] * own[comptime!(shape.taps - 1 - i)];
                }
                let at = (row - ahead) * comptime!(shape.vectors) + column;
                dx[at] = Vector::cast_from(sum);
            }
            shift::<N>(&mut slopes, taps);
            row += 1;
        }
    }
}
