//! One pass in place on a CubeCL device: 64 units share a block, each with four values, one word of codes.

use std::cell::RefCell;
use std::collections::HashMap;

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::CubeDevice;
use burn_cubecl::kernel::into_contiguous;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::{BLOCK_SIZE, Guard, Moment8Bit, Moments8Bit};
use crate::adamw::AdamWParams;
use crate::adamw::cube::{Constants, ConstantsLaunch, constants};
use crate::codebook::DynamicMap;
use crate::cube::{
    CubeTensor, RowCube, argument, cubes, elem, floats, into_floats, len, max_cube, on_cube, tensor,
};

/// Codes in a word.
const CODES: usize = 4;

/// Units that share a block.
const UNITS: usize = BLOCK_SIZE / CODES;

/// Blocks that a cube goes through: they share its tables.
const BLOCKS: usize = 8;

/// `Err` hands parameter and moments back when something is not in f32 on a CubeCL device.
pub(super) fn step<const D: usize>(
    param: Tensor<D>,
    grad: &Tensor<D>,
    moments: Moments8Bit,
    (lr, t): (f64, u64),
    p: &AdamWParams,
    guard: Guard,
) -> Result<(Tensor<D>, Moments8Bit), (Tensor<D>, Moments8Bit)> {
    let ours = on_cube(&param) && param.dtype() == DType::F32;
    let (true, Some(grad)) = (ours, floats(grad)) else {
        return Err((param, moments));
    };
    let one = Tensor::<1>::ones([1], (&param.device(), DType::F32));
    let Some(one) = floats(&one) else {
        unreachable!("it is beside a tensor on the device");
    };
    let Ok(w) = into_floats(param) else {
        unreachable!("it was just found on the device");
    };
    let w = own(w);
    let (m, v) = (Moment::take(moments.m), Moment::take(moments.v));
    launch_over(
        &w,
        None,
        &grad,
        &one,
        [&m, &v],
        constants((lr, t), p),
        guard,
    );
    Ok((tensor(w), moments_of(m, v)))
}

/// Updates `w` and the moments in place, whoever else holds their memory; `rounded` gets a copy of `w` in its
/// own dtype. Gradients are multiplied by `factor`, one value.
pub(crate) fn launch(
    w: &CubeTensor,
    rounded: Option<&CubeTensor>,
    grad: &CubeTensor,
    factor: &CubeTensor,
    moments: &Moments8Bit,
    constants: ConstantsLaunch,
    guard: Guard,
) -> Option<()> {
    let moments = [&moments.m, &moments.v].map(|moment| {
        let codes = moment.codes.clone().try_into_primitive::<CubeBackend>();
        Some(Moment {
            codes: codes.ok()?,
            absmax: floats(&moment.absmax)?,
        })
    });
    let [Some(m), Some(v)] = &moments else {
        return None;
    };
    launch_over(w, rounded, grad, factor, [m, v], constants, guard);
    Some(())
}

fn launch_over(
    w: &CubeTensor,
    rounded: Option<&CubeTensor>,
    grad: &CubeTensor,
    factor: &CubeTensor,
    [m, v]: [&Moment; 2],
    constants: ConstantsLaunch,
    guard: Guard,
) {
    let n = len(w);
    if n == 0 {
        return;
    }
    let cube = RowCube::new(w, UNITS, UNITS as u32);
    // Without a copy the parameters stand in for it, and nothing is written.
    let (copy, copy_dtype) = match rounded {
        Some(copy) => (argument(copy, 1), copy.dtype),
        None => (argument(w, 1), w.dtype),
    };
    let dtypes = [elem(grad.dtype), elem(copy_dtype)];
    #[expect(unsafe_code, reason = "a kernel without bounds checks")]
    // SAFETY: codes are allocated in whole words, there is a scale for each started block, and the kernel
    // does not go beyond the last value.
    unsafe {
        kernel::launch_unchecked(
            &w.client,
            cubes(n.div_ceil(BLOCK_SIZE * BLOCKS)),
            CubeDim::new_1d(UNITS as u32),
            argument(w, 1),
            copy,
            argument(grad, 1),
            argument(factor, 1),
            m.words(),
            argument(&m.absmax, 1),
            v.words(),
            argument(&v.absmax, 1),
            tables(w),
            n as u32,
            constants,
            guard == Guard::On,
            rounded.is_some(),
            cube,
            dtypes,
        );
    }
}

fn moments_of(m: Moment, v: Moment) -> Moments8Bit {
    Moments8Bit {
        m: m.give(),
        v: v.give(),
    }
}

/// A moment whose memory nobody else holds.
struct Moment {
    codes: CubeTensor,
    absmax: CubeTensor,
}

impl Moment {
    fn take(moment: Moment8Bit) -> Self {
        let codes = match moment.codes.try_into_primitive::<CubeBackend>() {
            Ok(codes) => own_codes(into_contiguous(codes)),
            Err(error) => panic!("codes are not beside their parameter: {error:?}"),
        };
        let Ok(absmax) = into_floats(moment.absmax) else {
            panic!("scales are not beside their parameter");
        };
        Self {
            codes,
            absmax: own(absmax),
        }
    }

    fn give(self) -> Moment8Bit {
        Moment8Bit {
            codes: Tensor::<1, Int>::from_primitive::<CubeBackend>(self.codes),
            absmax: tensor(self.absmax),
        }
    }

    #[expect(unsafe_code, reason = "bytes are read and written as words")]
    fn words(&self) -> BufferArg {
        // SAFETY: memory is allocated in whole words.
        unsafe {
            BufferArg::from_raw_parts(self.codes.handle.clone(), len(&self.codes).div_ceil(CODES))
        }
    }
}

/// `x`, copied if somebody else holds its memory.
fn own(x: CubeTensor) -> CubeTensor {
    if x.handle.can_mut() { x } else { x.copy() }
}

/// [`own`] for codes, copied word by word: WGSL has no bytes, so there Burn's own copy of them is refused.
fn own_codes(codes: CubeTensor) -> CubeTensor {
    if codes.handle.can_mut() {
        return codes;
    }
    let words = CubeTensor::new_contiguous(
        codes.client.clone(),
        codes.device.clone(),
        [len(&codes).div_ceil(CODES)].into(),
        codes.handle.clone(),
        DType::U32,
    );
    CubeTensor {
        handle: words.copy().handle,
        ..codes
    }
}

thread_local! {
    /// Values and midpoints of both maps, on each device.
    static TABLES: RefCell<HashMap<CubeDevice, Handle>> = RefCell::default();
}

#[expect(unsafe_code, reason = "CubeCL takes lengths on trust")]
fn tables(on: &CubeTensor) -> BufferArg {
    let maps = [DynamicMap::Signed, DynamicMap::Unsigned];
    let handle = TABLES.with_borrow_mut(|tables| {
        let entry = tables.entry(on.device.clone());
        entry
            .or_insert_with(|| {
                let numbers = maps.map(|map| [map.values(), map.midpoints()]);
                let numbers = numbers.iter().flatten().flat_map(|table| table.iter());
                // Shaders know no infinity.
                let bytes: Vec<u8> = numbers
                    .flat_map(|x| x.min(f32::MAX).to_ne_bytes())
                    .collect();
                on.client.create_from_slice(&bytes)
            })
            .clone()
    });
    // SAFETY: so many numbers were written.
    unsafe { BufferArg::from_raw_parts(handle, 4 * 256) }
}

/// Lets this thread's tables go.
pub(crate) fn forget() {
    TABLES.with_borrow_mut(HashMap::clear);
}

/// The number of midpoints below `x`.
#[cube]
fn nearest(x: f32, midpoints: &[f32], #[comptime] first: usize) -> u32 {
    let mut code = 0usize;
    #[unroll]
    for k in 0..8usize {
        let half = comptime!(128usize >> k);
        if x > midpoints[first + code + half - 1] {
            code += half;
        }
    }
    code as u32
}

/// Which of a table's numbers are where.
const SIGNED: usize = 0;
const SIGNED_MIDPOINTS: usize = 256;
const UNSIGNED: usize = 512;
const UNSIGNED_MIDPOINTS: usize = 768;

#[cube(launch_unchecked)]
fn kernel<G: Float, R: Float>(
    w: &mut [f32],
    rounded: &mut [R],
    grad: &[G],
    factor: &[f32],
    m_codes: &mut [u32],
    m_absmax: &mut [f32],
    v_codes: &mut [u32],
    v_absmax: &mut [f32],
    tables: &[f32],
    values: u32,
    c: &Constants,
    #[comptime] guarded: bool,
    #[comptime] rounds: bool,
    #[comptime] cube: RowCube,
    #[define(G, R)] _dtypes: [ElemType; 2],
) {
    let mut table = Shared::<[f32]>::new_slice(1024usize);
    let mut i = UNIT_POS as usize;
    while i < 1024 {
        table[i] = tables[i];
        i += UNITS;
    }
    sync_cube();
    let values = values as usize;
    for k in 0..BLOCKS {
        let block = CUBE_POS * BLOCKS + k;
        let first = block * BLOCK_SIZE + UNIT_POS as usize * CODES;
        // Every unit takes part in the maxima, also one beyond the end.
        let inside = first < values;
        let word = first / CODES;
        let mut ms = Array::<f32>::new(CODES);
        let mut vs = Array::<f32>::new(CODES);
        let mut m_top = 0.0f32;
        let mut v_top = 0.0f32;
        #[unroll]
        for j in 0..CODES {
            ms[j] = 0.0f32;
            vs[j] = 0.0f32;
        }
        if inside {
            let m_word = m_codes[word];
            let v_word = v_codes[word];
            let m_scale = m_absmax[block];
            let v_scale = v_absmax[block];
            #[unroll]
            for j in 0..CODES {
                if first + j < values {
                    let shift = comptime!(8 * j as u32);
                    let m_code = (m_word >> shift) & 255u32;
                    let v_code = (v_word >> shift) & 255u32;
                    let g = f32::cast_from(grad[first + j]) * factor[0];
                    let m = table[SIGNED + m_code as usize] * m_scale * c.beta1 + g * c.rest1;
                    let v = table[UNSIGNED + v_code as usize] * v_scale * c.beta2 + g * g * c.rest2;
                    let step = m / (v.sqrt() * c.root + c.epsilon);
                    let new = w[first + j] * c.decay - step * c.step_size;
                    w[first + j] = new;
                    if comptime!(rounds) {
                        rounded[first + j] = R::cast_from(new);
                    }
                    ms[j] = m;
                    vs[j] = v;
                    m_top = max(m_top, m.abs());
                    v_top = max(v_top, v);
                }
            }
        }
        let m_top = max_cube(m_top, cube);
        let v_top = max_cube(v_top, cube);
        if inside {
            let m_factor = select(m_top > 0.0f32, 1.0f32 / m_top, 1.0f32);
            let v_factor = select(v_top > 0.0f32, 1.0f32 / v_top, 1.0f32);
            let mut m_word = 0u32;
            let mut v_word = 0u32;
            #[unroll]
            for j in 0..CODES {
                let shift = comptime!(8 * j as u32);
                let m_code = nearest(ms[j] * m_factor, &table, SIGNED_MIDPOINTS);
                let mut v_code = nearest(vs[j] * v_factor, &table, UNSIGNED_MIDPOINTS);
                if comptime!(guarded) {
                    v_code = select(v_code == 0u32 && vs[j] > 0.0f32, 1u32, v_code);
                }
                m_word |= m_code << shift;
                v_word |= v_code << shift;
            }
            m_codes[word] = m_word;
            v_codes[word] = v_word;
            if UNIT_POS == 0 {
                m_absmax[block] = m_top;
                v_absmax[block] = v_top;
            }
        }
        // The maxima's memory is used again.
        sync_cube();
    }
}
