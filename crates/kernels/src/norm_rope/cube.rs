//! One plane for each head on a CubeCL device, or for the heads that are normed together, or one cube where planes cannot
//! sum; a unit has pairs of vectors.

use backdraft_arch::{NormScale, RotaryPairs};
use burn::tensor::{DType, Tensor};
use cubecl::ir::ElemType;
use cubecl::prelude::*;

use crate::cube::{
    CubeTensor, InPlace, RowCube, argument, cubes, elem, empty, floats, into_floats, len, on_cube,
    sum_cube, sum_lanes, tensor,
};
use crate::rms_norm::Gain;
use crate::rms_norm::cube::factor;
use crate::rope::RotaryTables;

/// Groups of heads of a cube where each has a plane.
const PLANES: u32 = 8;
/// Units of a plane, or of the cube that stands for one.
const UNITS: u32 = 32;

/// What both kernels read besides the gradient.
struct Operands {
    x: CubeTensor,
    weight: CubeTensor,
    scale: NormScale,
    cos: CubeTensor,
    sin: CubeTensor,
    /// Features that are normed together: a group of heads.
    normed: usize,
    /// Half the features of a head that turn.
    half: usize,
    /// Half of all its features.
    units: usize,
    /// Groups of a token.
    groups: usize,
    /// Values in a vector.
    line: usize,
    cube: RowCube,
}

impl Operands {
    fn of(x: &Tensor<2>, gain: Gain<'_>, tables: &RotaryTables) -> Option<Self> {
        let ([_, width], [normed]) = (x.dims(), gain.weight.dims());
        let (half, units) = (tables.cos.dims()[1], tables.head_dim / 2);
        let (x, weight) = (floats(x)?, floats(gain.weight)?);
        let (cos, sin) = (floats(&tables.cos)?, floats(&tables.sin)?);
        let halves = tables.pairs == RotaryPairs::Halves;
        if cos.dtype != DType::F32 || sin.dtype != DType::F32 || !halves {
            return None;
        }
        let cube = RowCube::new(&x, UNITS as usize, UNITS);
        Some(Self {
            line: line(x.dtype, half, units),
            groups: width / normed,
            x,
            weight,
            scale: gain.scale,
            cos,
            sin,
            normed,
            half,
            units,
            cube,
        })
    }

    /// Pairs of vectors of a head that turn, of a head, of a group.
    fn pairs(&self) -> [u32; 3] {
        [self.half, self.units, self.normed / 2].map(|count| (count / self.line) as u32)
    }

    fn kind(&self) -> Kind {
        Kind {
            together: self.normed > 2 * self.units,
            whole: self.half == self.units,
            gain: self.scale,
        }
    }

    /// Cubes and their units.
    fn launch(&self) -> (CubeCount, CubeDim) {
        let rows = len(&self.x) / self.normed;
        if self.cube.planes {
            let count = cubes(rows.div_ceil(PLANES as usize));
            return (count, CubeDim::new_1d(PLANES * UNITS));
        }
        (cubes(rows), self.cube.dim())
    }
}

/// What is known of heads when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    /// Several are normed together.
    together: bool,
    /// All of a head turns.
    whole: bool,
    gain: NormScale,
}

/// Values in a vector: as few as give every unit of a plane a pair, but no more than 16 bytes, and a divisor of what turns
/// and of what passes.
fn line(dtype: DType, half: usize, units: usize) -> usize {
    let wanted = units.div_ceil(UNITS as usize).next_power_of_two();
    let fits = crate::cube::line(dtype, half).min(crate::cube::line(dtype, units));
    wanted.min(fits)
}

pub(super) fn forward(
    x: &Tensor<2>,
    gain: Gain<'_>,
    eps: f64,
    tables: &RotaryTables,
) -> Option<Tensor<2>> {
    let o = Operands::of(x, gain, tables)?;
    let y = empty(&o.x, x.dims(), o.x.dtype);
    if len(&o.x) == 0 {
        return Some(tensor(y));
    }
    let (count, dim) = o.launch();
    let [x, w, cos, sin, out] = [&o.x, &o.weight, &o.cos, &o.sin, &y].map(|x| argument(x, o.line));
    let [half, units, pairs] = o.pairs();
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: x and y have whole groups of 2·pairs vectors, the weight one group, groups whole heads of 2·units vectors, the
    // tables half ≤ units vectors for each token, as the caller checked; the kernel ends beyond the last group of y.
    unsafe {
        forward_kernel::launch_unchecked(
            &o.x.client,
            count,
            dim,
            o.line,
            x,
            w,
            cos,
            sin,
            out,
            half,
            units,
            pairs,
            o.groups as u32,
            1.0 / o.normed as f32,
            eps as f32,
            o.cube,
            o.kind(),
            [elem(o.x.dtype), elem(o.weight.dtype)],
        );
    }
    Some(tensor(y))
}

/// `Err` hands `dy` back when something is not on a CubeCL device.
pub(super) fn backward(
    dy: Tensor<2>,
    x: &Tensor<2>,
    gain: Gain<'_>,
    eps: f64,
    tables: &RotaryTables,
) -> Result<Tensor<2>, Tensor<2>> {
    let fits = on_cube(&dy) && dy.dtype() == x.dtype();
    let Some(o) = Operands::of(x, gain, tables).filter(|_| fits) else {
        return Err(dy);
    };
    let dy = into_floats(dy)?;
    if len(&o.x) == 0 {
        return Ok(tensor(dy));
    }
    let (count, dim) = o.launch();
    let out = InPlace::over(&dy, o.line, 0);
    let [dy, x, w, cos, sin] = [&dy, &o.x, &o.weight, &o.cos, &o.sin].map(|x| argument(x, o.line));
    let [half, units, pairs] = o.pairs();
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: dy, x and dx have whole groups of 2·pairs vectors, the weight one group, groups whole heads of 2·units vectors,
    // the tables half ≤ units vectors for each token, as the caller checked; the kernel ends beyond the last group of dx. Written
    // over dy, each unit reads its pairs before it writes them, and no other unit reads them.
    unsafe {
        backward_kernel::launch_unchecked(
            &o.x.client,
            count,
            dim,
            o.line,
            dy,
            x,
            w,
            cos,
            sin,
            out.argument,
            half,
            units,
            pairs,
            o.groups as u32,
            1.0 / o.normed as f32,
            eps as f32,
            o.cube,
            o.kind(),
            [elem(o.x.dtype), elem(o.weight.dtype)],
        );
    }
    Ok(tensor(out.tensor))
}

/// The group of heads that this unit works on.
#[cube]
fn own_group(#[comptime] cube: RowCube) -> usize {
    if comptime!(cube.planes) {
        CUBE_POS * comptime!(PLANES as usize) + PLANE_POS as usize
    } else {
        CUBE_POS
    }
}

/// Its place among the units of the group.
#[cube]
fn own_place(#[comptime] cube: RowCube) -> usize {
    if comptime!(cube.planes) {
        UNIT_POS_PLANE as usize
    } else {
        UNIT_POS as usize
    }
}

/// Σ `value` over the units of a group.
#[cube]
fn sum_group(value: f32, #[comptime] cube: RowCube) -> f32 {
    if comptime!(cube.planes) {
        plane_sum(value)
    } else {
        sum_cube(value, cube)
    }
}

/// Pair `i` of a group within its head of `heads` pairs.
#[cube]
fn within(i: usize, heads: usize, #[comptime] kind: Kind) -> usize {
    if comptime!(kind.together) {
        i % heads
    } else {
        i
    }
}

/// Where pair `i` of a group begins: heads follow one another, each with both halves of what turns, then pairs of what passes.
#[cube]
fn first_of(i: usize, half: usize, heads: usize, #[comptime] kind: Kind) -> usize {
    let begin = if comptime!(kind.together) {
        i / heads * heads + i
    } else {
        i
    };
    if comptime!(kind.whole) {
        begin
    } else {
        let place = within(i, heads, kind);
        select(place < half, begin, begin + place)
    }
}

/// Where the other vector of a pair is that begins at `at`.
#[cube]
fn second_of(at: usize, i: usize, half: usize, heads: usize, #[comptime] kind: Kind) -> usize {
    if comptime!(kind.whole) {
        at + half
    } else {
        at + select(within(i, heads, kind) < half, half, 1usize)
    }
}

/// Cosine or sine of pair `within` of a head, or what stands for it where the pair passes.
#[cube]
fn entry<N: Size>(
    table: &[Vector<f32, N>],
    angle: usize,
    within: usize,
    half: usize,
    passing: f32,
    #[comptime] kind: Kind,
) -> Vector<f32, N> {
    if comptime!(kind.whole) {
        table[angle + within]
    } else {
        let mut value = Vector::<f32, N>::new(passing);
        if within < half {
            value = table[angle + within];
        }
        value
    }
}

#[cube(launch_unchecked)]
fn forward_kernel<F: Float, W: Float, N: Size>(
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    half: u32,
    units: u32,
    pairs: u32,
    groups: u32,
    scale: f32,
    eps: f32,
    #[comptime] cube: RowCube,
    #[comptime] kind: Kind,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let group = own_group(cube);
    let (half, heads, pairs) = (half as usize, units as usize, pairs as usize);
    let start = group * 2 * pairs;
    if start >= y.len() {
        terminate!();
    }
    let angle = group / groups as usize * half;
    let units = comptime!(UNITS as usize);

    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut i = own_place(cube);
    while i < pairs {
        let at = first_of(i, half, heads, kind);
        let beside = second_of(at, i, half, heads, kind);
        let a = Vector::<f32, N>::cast_from(x[start + at]);
        let b = Vector::<f32, N>::cast_from(x[start + beside]);
        squares += a * a + b * b;
        i += units;
    }
    let mean = sum_group(sum_lanes(squares), cube) * scale;
    let r = Vector::<f32, N>::new(1.0f32 / (mean + eps).sqrt());
    let mut i = own_place(cube);
    while i < pairs {
        let at = first_of(i, half, heads, kind);
        let beside = second_of(at, i, half, heads, kind);
        let a = Vector::<f32, N>::cast_from(x[start + at])
            * r
            * factor::<W, N>(weight[at], comptime!(kind.gain));
        let b = Vector::<f32, N>::cast_from(x[start + beside])
            * r
            * factor::<W, N>(weight[beside], comptime!(kind.gain));
        let turn = within(i, heads, kind);
        let c = entry::<N>(cos, angle, turn, half, 1.0f32, kind);
        let s = entry::<N>(sin, angle, turn, half, 0.0f32, kind);
        y[start + at] = Vector::cast_from(a * c - b * s);
        y[start + beside] = Vector::cast_from(b * c + a * s);
        i += units;
    }
}

#[cube(launch_unchecked)]
fn backward_kernel<F: Float, W: Float, N: Size>(
    dy: &[Vector<F, N>],
    x: &[Vector<F, N>],
    weight: &[Vector<W, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    dx: &mut [Vector<F, N>],
    half: u32,
    units: u32,
    pairs: u32,
    groups: u32,
    scale: f32,
    eps: f32,
    #[comptime] cube: RowCube,
    #[comptime] kind: Kind,
    #[define(F, W)] _dtypes: [ElemType; 2],
) {
    let group = own_group(cube);
    let (half, heads, pairs) = (half as usize, units as usize, pairs as usize);
    let start = group * 2 * pairs;
    if start >= dx.len() {
        terminate!();
    }
    let angle = group / groups as usize * half;
    let units = comptime!(UNITS as usize);

    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut products = Vector::<f32, N>::new(0.0f32);
    let mut i = own_place(cube);
    while i < pairs {
        let at = first_of(i, half, heads, kind);
        let beside = second_of(at, i, half, heads, kind);
        let a = Vector::<f32, N>::cast_from(x[start + at]);
        let b = Vector::<f32, N>::cast_from(x[start + beside]);
        squares += a * a + b * b;
        let da = Vector::<f32, N>::cast_from(dy[start + at]);
        let db = Vector::<f32, N>::cast_from(dy[start + beside]);
        let turn = within(i, heads, kind);
        let c = entry::<N>(cos, angle, turn, half, 1.0f32, kind);
        let s = entry::<N>(sin, angle, turn, half, 0.0f32, kind);
        let ga = (da * c + db * s) * factor::<W, N>(weight[at], comptime!(kind.gain));
        let gb = (db * c - da * s) * factor::<W, N>(weight[beside], comptime!(kind.gain));
        products += ga * a + gb * b;
        i += units;
    }
    let mean = sum_group(sum_lanes(squares), cube) * scale;
    if comptime!(!cube.planes) {
        // The sum's shared memory is used again.
        sync_cube();
    }
    let r = 1.0f32 / (mean + eps).sqrt();
    let c0 = Vector::<f32, N>::new(sum_group(sum_lanes(products), cube) * r * r * scale);
    let r = Vector::<f32, N>::new(r);
    let mut i = own_place(cube);
    while i < pairs {
        let at = first_of(i, half, heads, kind);
        let beside = second_of(at, i, half, heads, kind);
        let a = Vector::<f32, N>::cast_from(x[start + at]);
        let b = Vector::<f32, N>::cast_from(x[start + beside]);
        let da = Vector::<f32, N>::cast_from(dy[start + at]);
        let db = Vector::<f32, N>::cast_from(dy[start + beside]);
        let turn = within(i, heads, kind);
        let c = entry::<N>(cos, angle, turn, half, 1.0f32, kind);
        let s = entry::<N>(sin, angle, turn, half, 0.0f32, kind);
        let ga = (da * c + db * s) * factor::<W, N>(weight[at], comptime!(kind.gain));
        let gb = (db * c - da * s) * factor::<W, N>(weight[beside], comptime!(kind.gain));
        dx[start + at] = Vector::cast_from((ga - a * c0) * r);
        dx[start + beside] = Vector::cast_from((gb - b * c0) * r);
        i += units;
    }
}
