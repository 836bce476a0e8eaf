//! Codes to values on a CubeCL device.

pub(super) mod blocks;
pub(super) mod few_rows;
pub(super) mod gguf;
pub(super) mod gguf_few_rows;
pub(super) mod int8;

use std::cell::RefCell;
use std::collections::HashMap;

use burn::tensor::{DType, Int, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{CubeBackend, CubeDevice};
use cubecl::prelude::*;
use cubecl::server::Handle;

use crate::cube::{CubeTensor, len};

/// Contiguous codes of a byte each, or of several in a byte, on a CubeCL device.
fn codes(x: &Tensor<1, Int>, dtype: DType) -> Option<CubeTensor> {
    let x = x.clone().try_into_primitive::<CubeBackend>().ok()?;
    (x.dtype == dtype).then(|| into_contiguous(x))
}

/// Bytes as words, in vectors of `line` words.
#[expect(unsafe_code, reason = "bytes are read as words")]
fn words(bytes: &CubeTensor, line: usize) -> BufferArg {
    let words = len(bytes).div_ceil(4);
    // SAFETY: memory is allocated in whole words, and bytes beyond the last code are not used.
    unsafe { BufferArg::from_raw_parts(bytes.handle.clone(), words / line) }
}

thread_local! {
    /// Tables on devices, by device and contents: each is written once.
    static TABLES: RefCell<HashMap<(CubeDevice, Vec<u32>), Handle>> = RefCell::new(HashMap::new());
}

#[expect(unsafe_code, reason = "CubeCL takes lengths on trust")]
fn table(values: &[f32], on: &CubeTensor) -> BufferArg {
    let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
    let handle = TABLES.with_borrow_mut(|tables| {
        let entry = tables.entry((on.device.clone(), bits));
        entry
            .or_insert_with_key(|(_, bits)| {
                let bytes: Vec<u8> = bits.iter().flat_map(|bits| bits.to_ne_bytes()).collect();
                on.client.create_from_slice(&bytes)
            })
            .clone()
    });
    // SAFETY: the table has as many values.
    unsafe { BufferArg::from_raw_parts(handle, values.len()) }
}

/// Lets this thread's tables go.
pub(crate) fn forget() {
    TABLES.with_borrow_mut(HashMap::clear);
}
