//! Products of small matrices by one cube, in f32: a panel of a factor at a time goes through shared memory, inner feature by
//! inner feature. Of `across × DOWN` units, unit (x, y) has the sums of rows y + DOWN·i and columns x + across·j.

use cubecl::prelude::*;

/// Units down the rows of a product, which are a multiple.
pub(super) const DOWN: usize = 16;

/// Sizes of a product, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Units across the columns, which are a multiple.
    pub(super) across: usize,
    /// Inner features of a panel.
    pub(super) inner: usize,
    /// From one inner feature to the next of the right factor.
    pub(super) pitch: usize,
}

impl Product {
    /// Rows of a unit.
    pub(super) const fn down(self) -> usize {
        self.rows / DOWN
    }

    /// Columns of a unit.
    pub(super) const fn own(self) -> usize {
        self.columns / self.across
    }

    /// Sums of a unit, row by row.
    pub(super) const fn sums(self) -> usize {
        self.down() * self.own()
    }
}

/// A panel of a factor, known when a kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Panel {
    /// Rows or columns of the product.
    pub(super) outer: usize,
    pub(super) inner: usize,
    /// Whether rows of memory are the inner features.
    pub(super) turned: bool,
    /// Whether rows of memory are multiplied by factors.
    pub(super) weighted: bool,
    /// Units of the cube.
    pub(super) units: usize,
}

impl Panel {
    /// Columns of memory.
    const fn across(self) -> usize {
        if self.turned { self.outer } else { self.inner }
    }

    /// From one inner feature to the next: one more than there are values, so that neighbours in either direction are in
    /// different banks.
    pub(super) const fn pitch(self) -> usize {
        self.outer + 1
    }
}

/// A panel that begins at row `first` and column `column` of a matrix in memory; what the matrix does not have is zero.
///
/// # Shapes
/// `from` from `start` on `[rows, columns]`, each row `stride` behind the one before; `factors` from `list` on `[rows]`.
#[cube]
pub(super) fn load<F: Float>(
    from: &[F],
    to: &mut [f32],
    start: usize,
    stride: usize,
    rows: usize,
    columns: usize,
    first: usize,
    column: usize,
    factors: &[f32],
    list: usize,
    #[comptime] panel: Panel,
) {
    let across = comptime!(panel.across());
    let pitch = comptime!(panel.pitch());
    #[unroll]
    for n in 0..comptime!(panel.outer * panel.inner / panel.units) {
        let i = UNIT_POS as usize + comptime!(n * panel.units);
        let (r, c) = (i / across, i % across);
        let mut value = 0.0f32;
        if first + r < rows && column + c < columns {
            value = f32::cast_from(from[start + (first + r) * stride + column + c]);
            if comptime!(panel.weighted) {
                value *= factors[list + first + r];
            }
        }
        if comptime!(panel.turned) {
            to[r * pitch + c] = value;
        } else {
            to[c * pitch + r] = value;
        }
    }
}

/// Adds the product of a panel `a`, from `a_start` on, and the rows of `b` from `b_start` on.
#[cube]
pub(super) fn multiply(
    a: &[f32],
    a_start: usize,
    b: &[f32],
    b_start: usize,
    sums: &mut Array<f32>,
    #[comptime] product: Product,
) {
    let (x, y) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let own = comptime!(product.own());
    let mut left = Array::<f32>::new(comptime!(product.down()));
    for k in 0..comptime!(product.inner) {
        let row = a_start + k * comptime!(product.rows + 1) + y;
        let column = b_start + k * comptime!(product.pitch) + x;
        #[unroll]
        for i in 0..comptime!(product.down()) {
            left[i] = a[row + comptime!(i * DOWN)];
        }
        #[unroll]
        for j in 0..own {
            let right = b[column + comptime!(j * product.across)];
            #[unroll]
            for i in 0..comptime!(product.down()) {
                sums[comptime!(i * own + j)] += left[i] * right;
            }
        }
    }
}

/// Zeros.
#[cube]
pub(super) fn clear(sums: &mut Array<f32>, #[comptime] count: usize) {
    #[unroll]
    for i in 0..count {
        sums[i] = 0.0f32;
    }
}
