//! Many matrices in one buffer on a CubeCL device, so that a norm or an update of all of them is one launch, or a few.
//!
//! Each begins at a multiple of [`BLOCK_SIZE`] values; what lies between is
//! zero, and stays so. Views of the matrices share the buffer's memory: whoever holds one sees every update.

#[cfg(feature = "cube")]
pub(crate) mod cube;

use burn::tensor::{DType, Device, Tensor};

use crate::adamw::AdamWParams;
use crate::adamw8bit::{BLOCK_SIZE, Guard, Moments8Bit};
use crate::dispatch::on_device;

/// Matrices in one buffer.
#[derive(Clone, Debug)]
pub struct Flat {
    buffer: Tensor<1>,
    /// First value and dimensions of each.
    places: Vec<(usize, [usize; 2])>,
}

impl Flat {
    /// Zeroes for matrices of these dimensions; `None` elsewhere than on a CubeCL device.
    pub fn zeros(dims: &[[usize; 2]], device: &Device, dtype: DType) -> Option<Self> {
        let mut end = 0;
        let mut place = |dims: &[usize; 2]| {
            let start = end;
            end = (start + dims[0] * dims[1]).next_multiple_of(BLOCK_SIZE);
            (start, *dims)
        };
        let places: Vec<_> = dims.iter().map(&mut place).collect();
        let buffer = Tensor::zeros([end], (device, dtype));
        let shared: Option<()> = on_device!(cube::on_device(&buffer));
        shared.map(|()| Self { buffer, places })
    }

    /// The same matrices, each from `values`.
    ///
    /// # Panics
    /// If one has other dimensions.
    pub fn of(values: &[Tensor<2>], dtype: DType) -> Option<Self> {
        let dims: Vec<_> = values.iter().map(Tensor::dims).collect();
        let flat = Self::zeros(&dims, &values.first()?.device(), dtype)?;
        for (i, values) in values.iter().enumerate() {
            flat.write(i, values)?;
        }
        Some(flat)
    }

    /// Everything, also what lies between matrices.
    ///
    /// # Shapes
    /// `[n]`.
    pub fn buffer(&self) -> &Tensor<1> {
        &self.buffer
    }

    /// How many matrices there are.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Matrix `i`, in the buffer's memory.
    ///
    /// # Panics
    /// If there is no such matrix.
    pub fn view(&self, i: usize) -> Tensor<2> {
        let place = self.places[i];
        let view: Option<Tensor<2>> = on_device!(cube::view(&self.buffer, place));
        let _ = place;
        view.unwrap_or_else(|| unreachable!("a flat buffer is on a CubeCL device"))
    }

    /// Views of all matrices, in order.
    pub fn views(&self) -> Vec<Tensor<2>> {
        (0..self.len()).map(|i| self.view(i)).collect()
    }

    /// Where the values of matrix `i` are.
    ///
    /// # Panics
    /// If there is no such matrix.
    pub fn range(&self, i: usize) -> std::ops::Range<usize> {
        let (start, [rows, columns]) = self.places[i];
        start..start + rows * columns
    }

    /// Overwrites matrix `i`.
    fn write(&self, i: usize, values: &Tensor<2>) -> Option<()> {
        let view = self.view(i);
        assert_eq!(view.dims(), values.dims(), "dimensions of matrix {i}");
        on_device!(crate::views::cube::copy(values, &view))
    }

    /// All matrices, which are of one shape, in memory of their own or not to be written to.
    ///
    /// # Shapes
    /// `[n, rows, columns]`.
    ///
    /// # Panics
    /// If there is none.
    pub fn stacked(&self) -> Tensor<3> {
        let (n, stride, [rows, columns]) = self.shape();
        let padded: Tensor<2> = self.buffer.clone().reshape([n, stride]);
        padded
            .narrow(1, 0, rows * columns)
            .reshape([n, rows, columns])
    }

    /// Overwrites all matrices, which are of one shape, for whoever holds a view.
    ///
    /// # Shapes
    /// `[n, rows, columns]`.
    ///
    /// # Panics
    /// If it has another shape.
    pub fn overwrite(&self, values: &Tensor<3>) {
        let (n, stride, [rows, columns]) = self.shape();
        assert_eq!(values.dims(), [n, rows, columns], "stacked matrices");
        let values: Tensor<2> = values.clone().reshape([n, rows * columns]);
        let values = match stride - rows * columns {
            0 => values,
            gap => {
                let gap = Tensor::zeros([n, gap], (&values.device(), values.dtype()));
                Tensor::cat(vec![values, gap], 1)
            }
        };
        self.overwrite_whole(&values);
    }

    /// Moves every value `share` of its way to the one at its place in `other`, for whoever holds a view.
    ///
    /// # Panics
    /// If buffers are of different lengths.
    pub fn approach(&self, other: &Self, share: f64) {
        let [here, there] = [self, other].map(|flat| flat.buffer.clone().unsqueeze::<2>());
        assert_eq!(here.dims(), there.dims(), "buffers");
        let next = match share {
            1.0 => there,
            share => here.clone() + (there - here).mul_scalar(share),
        };
        self.overwrite_whole(&next);
    }

    /// Overwrites everything, for whoever holds a view.
    ///
    /// # Shapes
    /// Any two whose product is the buffer's length.
    fn overwrite_whole(&self, values: &Tensor<2>) {
        let whole = (0, values.dims());
        let view: Option<Tensor<2>> = on_device!(cube::view(&self.buffer, whole));
        let _ = whole;
        match view {
            Some(view) => crate::views::overwrite(values, &view),
            None => unreachable!("a flat buffer is on a CubeCL device"),
        }
    }

    /// How many matrices there are, how far apart they begin, and their shape.
    fn shape(&self) -> (usize, usize, [usize; 2]) {
        let (_, dims) = self.places[0];
        let alike = self.places.iter().all(|(_, other)| *other == dims);
        assert!(alike, "matrices of one shape, found {:?}", self.places);
        let n = self.len();
        (n, self.buffer.dims()[0] / n, dims)
    }

    /// The Euclidean norm of everything.
    ///
    /// # Shapes
    /// `[1]`, f32.
    pub fn norm(&self) -> Tensor<1> {
        let norm: Option<Tensor<1>> = on_device!(cube::norm(&self.buffer));
        norm.unwrap_or_else(|| self.buffer.clone().cast(DType::F32).square().sum().sqrt())
    }
}

/// Moments of a [`Flat`] buffer.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one of an optimiser")]
pub enum FlatMoments {
    /// In f32: m and v, as [`adamw`](crate::adamw) keeps them.
    F32 {
        /// m.
        m: Flat,
        /// v.
        v: Flat,
    },
    /// In 8 bits, as [`adamw8bit`](crate::adamw8bit) keeps them.
    Bits8(Moments8Bit, Guard),
}

/// What an update changes.
#[derive(Clone, Copy, Debug)]
pub struct FlatParams<'a> {
    /// The parameters, in f32.
    pub values: &'a Flat,
    /// Their copies in the dtype of activations, where that is another.
    pub rounded: Option<&'a Flat>,
}

/// One update in place, of everything, with learning rate `lr`; `t` counts from 1. Gradients are multiplied
/// by `factor` first, where there is one.
///
/// # Shapes
/// `factor` `[1]`, f32.
///
/// # Panics
/// If buffers are of different lengths.
pub fn adamw(
    params: FlatParams<'_>,
    grads: &Flat,
    factor: Option<&Tensor<1>>,
    moments: &FlatMoments,
    (lr, t): (f64, u64),
    constants: &AdamWParams,
) {
    let n = params.values.buffer.dims();
    assert_eq!(grads.buffer.dims(), n, "gradients");
    let done: Option<()> = on_device!(cube::adamw(
        params,
        grads,
        factor,
        moments,
        (lr, t),
        constants
    ));
    let _ = (lr, t, constants, factor, moments);
    if done.is_none() {
        unreachable!("flat buffers are on a CubeCL device");
    }
}
