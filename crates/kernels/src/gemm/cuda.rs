//! [`gemm`](super::gemm) on CUDA: which products cuBLASLt takes, and how their operands lie in memory.

use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::RuntimeId;

use super::cublaslt::{self, Element, Matrix, Product};
use super::{Op, Slot, oriented};
use crate::cube::{CubeTensor, empty, tensor};

/// `Err` hands `c` back when cuBLASLt is missing or has no such product.
pub(super) fn gemm(
    a: (Op, &Tensor<2>),
    b: (Op, &Tensor<2>),
    alpha: f32,
    c: Option<Tensor<2>>,
) -> Result<Tensor<2>, Option<Tensor<2>>> {
    let dtype = c.as_ref().map_or(a.1.dtype(), Tensor::dtype);
    let sum = match c {
        Some(c) => Sum::Over(c),
        None => Sum::New,
    };
    product(a, b, alpha, sum, dtype).map_err(|sum| match sum {
        Sum::Over(c) => Some(c),
        Sum::New | Sum::Beside(_) => None,
    })
}

/// Into new memory.
pub(super) fn gemm_beside(
    a: (Op, &Tensor<2>),
    b: (Op, &Tensor<2>),
    alpha: f32,
    c: &Tensor<2>,
) -> Result<Tensor<2>, ()> {
    product(a, b, alpha, Sum::Beside(c), c.dtype()).map_err(|_| ())
}

/// A product in f32, where cuBLASLt has it.
pub(super) fn gemm_f32(
    a: (Op, &Tensor<2>),
    b: (Op, &Tensor<2>),
    alpha: f32,
) -> Result<Tensor<2>, ()> {
    product(a, b, alpha, Sum::New, DType::F32).map_err(|_| ())
}

/// What a product is added to.
#[expect(clippy::large_enum_variant, reason = "made for one call")]
enum Sum<'a> {
    New,
    Over(Tensor<2>),
    Beside(&'a Tensor<2>),
}

impl Sum<'_> {
    fn addend(&self) -> Option<&Tensor<2>> {
        match self {
            Self::New => None,
            Self::Over(c) => Some(c),
            Self::Beside(c) => Some(c),
        }
    }
}

fn product<'a>(
    (op_a, a): (Op, &Tensor<2>),
    (op_b, b): (Op, &Tensor<2>),
    alpha: f32,
    sum: Sum<'a>,
    out_dtype: DType,
) -> Result<Tensor<2>, Sum<'a>> {
    let (Some((left, element)), Some((right, _))) = (on_cuda(a), on_cuda(b)) else {
        return Err(sum);
    };
    let fits = left.dtype == right.dtype
        && (out_dtype == left.dtype || out_dtype == DType::F32)
        && sum.addend().is_none_or(|c| on_cuda(c).is_some());
    let Some(out_element) = Element::of(out_dtype).filter(|_| fits) else {
        return Err(sum);
    };
    let ([m, k], [_, n]) = (oriented(op_a, a.dims()), oriented(op_b, b.dims()));
    if k == 0 || m * n == 0 {
        return Ok(match sum {
            Sum::New => Tensor::zeros([m, n], (&a.device(), out_dtype)),
            Sum::Over(c) => c,
            Sum::Beside(c) => c.clone(),
        });
    }
    let new = || empty(&left, [m, n], out_dtype);
    let (accumulate, addend, out) = match sum {
        Sum::New => (false, None, new()),
        Sum::Over(c) => (true, None, own(into_contiguous(primitive(c)), new)),
        Sum::Beside(c) => (true, Some(into_contiguous(primitive(c.clone()))), new()),
    };
    let device = left.client.service_id().device;
    let product = Product {
        sizes: [m, n, k],
        a: matrix(op_a, left),
        b: matrix(op_b, right),
        element,
        out_element,
        alpha,
        accumulate,
        addend: addend.map(|c| c.handle.binding()),
        out: out.handle.clone().binding(),
    };
    cublaslt::enqueue(product, device);
    Ok(tensor(out))
}

/// `c` where nothing else holds it, else a copy. (A tensor seems held too while the device's thread makes its memory.)
fn own(c: CubeTensor, new: impl FnOnce() -> CubeTensor) -> CubeTensor {
    if c.handle.can_mut() {
        return c;
    }
    let copy = new();
    crate::views::overwrite(&tensor(c), &tensor(copy.clone()));
    copy
}

/// Into the memory of the slot, whoever else holds it.
pub(super) fn gemm_into(
    (op_a, a): (Op, &Tensor<2>),
    (op_b, b): (Op, &Tensor<2>),
    alpha: f32,
    slot: &Slot,
) -> Result<(), ()> {
    let operands = (on_cuda(a), on_cuda(b), on_cuda(&slot.view));
    let (Some((left, element)), Some((right, _)), Some((out, out_element))) = operands else {
        return Err(());
    };
    let ([m, k], [_, n]) = (oriented(op_a, a.dims()), oriented(op_b, b.dims()));
    let fits = left.dtype == right.dtype && (out.dtype == left.dtype || out.dtype == DType::F32);
    if !fits || k == 0 || m * n == 0 {
        return Err(());
    }
    let device = left.client.service_id().device;
    let product = Product {
        sizes: [m, n, k],
        a: matrix(op_a, left),
        b: matrix(op_b, right),
        element,
        out_element,
        alpha,
        accumulate: slot.accumulate,
        addend: None,
        out: out.handle.clone().binding(),
    };
    cublaslt::enqueue(product, device);
    Ok(())
}

/// A matrix in CUDA memory of a type that cuBLASLt multiplies.
fn on_cuda(x: &Tensor<2>) -> Option<(CubeTensor, Element)> {
    let x = x.clone().try_into_primitive::<CubeBackend>().ok()?;
    let element = Element::of(x.dtype)?;
    let usable = x.device.runtime() == RuntimeId::Cuda && cublaslt::is_present();
    usable.then_some((x, element))
}

fn primitive(x: Tensor<2>) -> CubeTensor {
    match x.try_into_primitive::<CubeBackend>() {
        Ok(x) => x,
        Err(error) => panic!("a tensor that was on the device is not: {error:?}"),
    }
}

/// How `x` lies: as it is, or as its transpose, by rows with a stride; copied where it is neither.
fn matrix(op: Op, x: CubeTensor) -> Matrix {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let ([rows, columns], [down, across]) = ([shape[0], shape[1]], [strides[0], strides[1]]);
    let by_rows = (across == 1 || columns == 1) && (down >= columns || rows == 1);
    let by_columns = (down == 1 || rows == 1) && (across >= rows || columns == 1);
    if by_rows {
        return Matrix {
            op,
            rows,
            columns,
            stride: if rows == 1 { columns } else { down },
            buffer: x.handle.binding(),
        };
    }
    if by_columns {
        return Matrix {
            op: op.flipped(),
            rows: columns,
            columns: rows,
            stride: if columns == 1 { rows } else { across },
            buffer: x.handle.binding(),
        };
    }
    matrix(op, into_contiguous(x))
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    #[expect(clippy::print_stderr, reason = "what a test leaves out is said")]
    fn an_error_reaches_whoever_reads_the_output() {
        let device = match crate::device::cuda(0) {
            Ok(device) if cublaslt::is_present() => device,
            Ok(_) => return eprintln!("no errors of cuBLASLt here: it is not installed"),
            Err(error) => return eprintln!("no errors of cuBLASLt here: {error}"),
        };
        let ones = Tensor::<2>::ones([8, 8], &device);
        let (like, _) = on_cuda(&ones).unwrap();
        let out = empty(&like, [8, 8], DType::F32);
        let multiply = |stride| {
            let (a, element) = on_cuda(&ones).unwrap();
            let (b, _) = on_cuda(&ones).unwrap();
            let out = out.clone();
            let id = a.client.service_id().device;
            let product = Product {
                sizes: [8, 8, 8],
                a: Matrix {
                    stride,
                    ..matrix(Op::N, a)
                },
                b: matrix(Op::N, b),
                element,
                out_element: element,
                alpha: 1.0,
                accumulate: false,
                addend: None,
                out: out.handle.clone().binding(),
            };
            cublaslt::enqueue(product, id);
            let read = || tensor::<2>(out).into_data().try_into_vec::<f32>();
            catch_unwind(AssertUnwindSafe(read))
        };
        // Rows closer together than they are long: no such matrix.
        assert!(multiply(1).is_err(), "an impossible product gave a result");
        // The device goes on, also into the memory that was to be written.
        let right = multiply(8).unwrap().unwrap();
        assert_eq!(right, [8.0; 64]);
    }
}
