//! Tensors on CubeCL devices, and what their kernels share.
//!
//! A kernel reads and writes whole vectors of up to 16 bytes, so operands are contiguous and the length
//! of a vector divides the length of a row. It computes in f32, whatever its operands are stored as.

use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
pub(crate) use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::features::Plane;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Units of a cube where every unit works on its own.
pub(crate) const UNITS: u32 = 256;

/// Cubes along one axis: WebGPU's limit, below CUDA's.
const MAX_CUBES: usize = 65_535;

/// The contiguous values of a float tensor on a CubeCL device; `None` for others and under autodiff.
pub(crate) fn floats<const D: usize>(tensor: &Tensor<D>) -> Option<CubeTensor> {
    let tensor = tensor.clone().try_into_primitive::<CubeBackend>().ok()?;
    computes_in(&tensor, tensor.dtype).then(|| into_contiguous(tensor))
}

/// As [`floats`], giving up `tensor`, so that nothing else may hold its memory.
pub(crate) fn into_floats<const D: usize>(tensor: Tensor<D>) -> Result<CubeTensor, Tensor<D>> {
    if !on_cube(&tensor) {
        return Err(tensor);
    }
    match tensor.try_into_primitive::<CubeBackend>() {
        Ok(tensor) => Ok(into_contiguous(tensor)),
        Err(error) => panic!("a tensor that was on the device is not: {error:?}"),
    }
}

/// Whether `tensor` is one that [`floats`] gives.
pub(crate) fn on_cube<const D: usize>(tensor: &Tensor<D>) -> bool {
    let primitive = tensor.clone().try_into_primitive::<CubeBackend>();
    primitive.is_ok_and(|tensor| computes_in(&tensor, tensor.dtype))
}

/// `true` for the dtypes kernels are written for.
///
/// # Panics
/// If the device lacks one of them: WebGPU computes wrongly in bf16 and says nothing.
fn computes_in(tensor: &CubeTensor, dtype: DType) -> bool {
    let known = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
    assert!(
        !known || tensor.client.features().supports_type(elem(dtype)),
        "the device {:?} does not compute in {}: use another dtype",
        tensor.device,
        dtype.name()
    );
    known
}

/// A tensor of the Burn kind.
pub(crate) fn tensor<const D: usize>(tensor: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<CubeBackend>(tensor)
}

/// Contiguous memory beside `like`, not yet written.
pub(crate) fn empty<const D: usize>(
    like: &CubeTensor,
    shape: [usize; D],
    dtype: DType,
) -> CubeTensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::from(shape), dtype)
}

/// The type that kernels are generic over.
pub(crate) fn elem(dtype: DType) -> ElemType {
    dtype_to_storage_type(dtype)
}

/// The number of values.
pub(crate) fn len(tensor: &CubeTensor) -> usize {
    tensor.meta.num_elements()
}

/// Values in a vector: at most 16 bytes of `dtype`, and a divisor of `width`.
pub(crate) fn line(dtype: DType, width: usize) -> usize {
    let widest = (16 / dtype.size()).ilog2();
    1 << width.trailing_zeros().min(widest)
}

/// `tensor` as a kernel's argument, in vectors of `line` values.
///
/// In the kernel its `len()` is that of the memory, which is longer where CubeCL pads rows: good as a bound, not as the length of a
/// row or of a sum, which a kernel has to be told.
#[expect(unsafe_code, reason = "CubeCL takes lengths on trust")]
pub(crate) fn argument(tensor: &CubeTensor, line: usize) -> BufferArg {
    // SAFETY: a contiguous tensor holds as many values as its shape says.
    unsafe { BufferArg::from_raw_parts(tensor.handle.clone(), len(tensor) / line) }
}

/// `values` written to the device.
#[expect(unsafe_code, reason = "CubeCL takes lengths on trust")]
pub(crate) fn indices(client: &Client, values: &[u32]) -> BufferArg {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect();
    // SAFETY: as many values were just written.
    unsafe { BufferArg::from_raw_parts(client.create_from_slice(&bytes), values.len()) }
}

/// An output that is written over `input`, where nobody else holds that; else new memory.
pub(crate) struct InPlace {
    pub(crate) tensor: CubeTensor,
    pub(crate) argument: BufferArg,
}

impl InPlace {
    /// `position` is that of `input` among the kernel's buffers.
    pub(crate) fn over(input: &CubeTensor, line: usize, position: usize) -> Self {
        // The kernel's own argument is not made yet: `input` itself is the one holder.
        if input.handle.can_mut() {
            let argument = BufferArg::alias(position, len(input) / line);
            let tensor = input.clone();
            return Self { tensor, argument };
        }
        let tensor = CubeTensor::new_contiguous(
            input.client.clone(),
            input.device.clone(),
            input.meta.shape().clone(),
            input.client.empty(len(input) * input.dtype.size()),
            input.dtype,
        );
        let argument = argument(&tensor, line);
        Self { tensor, argument }
    }

    /// For an output that the kernel was compiled not to write.
    pub(crate) fn unused(input: &CubeTensor, line: usize, position: usize) -> Self {
        Self {
            tensor: input.clone(),
            argument: BufferArg::alias(position, len(input) / line),
        }
    }
}

/// At least `count` cubes.
pub(crate) fn cubes(count: usize) -> CubeCount {
    let y = count.div_ceil(MAX_CUBES);
    CubeCount::Static(count.div_ceil(y.max(1)) as u32, y as u32, 1)
}

/// Cubes in which each unit has one of `count` pieces of work.
pub(crate) fn elementwise(count: usize) -> (CubeCount, CubeDim) {
    (
        cubes(count.div_ceil(UNITS as usize)),
        CubeDim::new_1d(UNITS),
    )
}

/// A cube that works on one row, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowCube {
    /// Units, a power of two.
    pub(crate) units: u32,
    /// Whether planes of 32 units can sum among themselves.
    pub(crate) planes: bool,
}

impl RowCube {
    /// For rows of `vectors` vectors, with at most `most` units.
    pub(crate) fn new(tensor: &CubeTensor, vectors: usize, most: u32) -> Self {
        let hardware = &tensor.client.properties().hardware;
        let whole_planes = (hardware.plane_size_min, hardware.plane_size_max) == (32, 32);
        let most = most.min(hardware.max_units_per_cube);
        Self {
            units: (vectors.next_power_of_two() as u32).clamp(32, most),
            planes: whole_planes && tensor.client.features().plane.contains(Plane::Ops),
        }
    }

    pub(crate) fn dim(self) -> CubeDim {
        CubeDim::new_1d(self.units)
    }
}

/// Σ of a vector's lanes. (CubeCL's own sum does not compile for WebGPU beyond four lanes.)
#[cube]
pub(crate) fn sum_lanes<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = vector.extract(0usize);
    #[unroll]
    for lane in 1..N::value() {
        sum += vector.extract(lane);
    }
    sum
}

/// Σ `value` over the cube, for every unit.
#[cube]
pub(crate) fn sum_cube(value: f32, #[comptime] cube: RowCube) -> f32 {
    if comptime!(cube.planes) {
        let mut partial = Shared::<[f32]>::new_slice(32usize);
        let sum = plane_sum(value);
        if UNIT_POS_PLANE == 0 {
            partial[PLANE_POS as usize] = sum;
        }
        sync_cube();
        let mut total = 0.0f32;
        #[unroll]
        for i in 0..comptime!(cube.units as usize / 32) {
            total += partial[i];
        }
        total
    } else {
        let mut partial = Shared::<[f32]>::new_slice(comptime!(cube.units as usize));
        partial[UNIT_POS as usize] = value;
        sync_cube();
        let mut half = comptime!(cube.units / 2).runtime();
        while half > 0 {
            if UNIT_POS < half {
                let other = partial[(UNIT_POS + half) as usize];
                partial[UNIT_POS as usize] += other;
            }
            sync_cube();
            half /= 2;
        }
        partial[0]
    }
}

/// The largest `value` of the cube, for every unit.
#[cube]
pub(crate) fn max_cube(value: f32, #[comptime] cube: RowCube) -> f32 {
    if comptime!(cube.planes) {
        let mut partial = Shared::<[f32]>::new_slice(32usize);
        let top = plane_max(value);
        if UNIT_POS_PLANE == 0 {
            partial[PLANE_POS as usize] = top;
        }
        sync_cube();
        let mut largest = partial[0];
        #[unroll]
        for i in 1..comptime!(cube.units as usize / 32) {
            largest = max(largest, partial[i]);
        }
        largest
    } else {
        let mut partial = Shared::<[f32]>::new_slice(comptime!(cube.units as usize));
        partial[UNIT_POS as usize] = value;
        sync_cube();
        let mut half = comptime!(cube.units / 2).runtime();
        while half > 0 {
            if UNIT_POS < half {
                let other = partial[(UNIT_POS + half) as usize];
                let own = partial[UNIT_POS as usize];
                partial[UNIT_POS as usize] = max(own, other);
            }
            sync_cube();
            half /= 2;
        }
        partial[0]
    }
}

/// 1 / (1 + e⁻ˣ); beyond −80 the result has underflowed and e⁻ˣ must not overflow.
#[cube]
pub(crate) fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let one = Vector::<f32, N>::new(1.0f32);
    let x = max(x, Vector::<f32, N>::new(-80.0f32));
    one / (one + (-x).exp())
}
