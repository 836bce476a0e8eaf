//! One chunk of one value head on slices, forwards and backwards; names are those of [`gated_delta`](super).

use std::ops::Range;

use gemm::Parallelism;

use super::{DeltaLayout, EPS};
use crate::cpu::{exp, simd, sum, sum2};
use crate::gemm::Op;
use crate::gemm::cpu::{Shape, View, raw};

/// The operands of all tokens.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) qkv: &'a [f32],
    pub(super) beta: &'a [f32],
    pub(super) decay: &'a [f32],
    pub(super) layout: DeltaLayout,
}

impl Source<'_> {
    /// Where a row of the query, the key and the value of a value head begins.
    pub(super) const fn columns(&self, head: usize) -> [usize; 3] {
        let DeltaLayout {
            key_dim, value_dim, ..
        } = self.layout;
        let key = head / self.layout.group() * key_dim;
        let width = self.layout.key_width();
        [key, width + key, 2 * width + head * value_dim]
    }
}

/// What a chunk's gradients are.
#[derive(Default)]
pub(super) struct ChunkGrads {
    /// Of queries and keys before they were normalised, and of values: c rows each.
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// One value for each token.
    pub(super) beta: Vec<f32>,
    pub(super) decay: Vec<f32>,
}

/// A chunk, row-major; its buffers serve one chunk after the other.
#[derive(Default)]
pub(super) struct Chunk {
    c: usize,
    key: usize,
    value: usize,
    /// Of length 1; q over √key.
    q: Vec<f32>,
    k: Vec<f32>,
    /// 1 / length of each q and k.
    q_norm: Vec<f32>,
    k_norm: Vec<f32>,
    beta: Vec<f32>,
    /// G.
    total: Vec<f32>,
    /// X.
    x: Vec<f32>,
    /// V − e^G∘X.
    rest: Vec<f32>,
    u: Vec<f32>,
    /// D∘(K·Kᵀ) below the diagonal, zero elsewhere.
    kk: Vec<f32>,
    /// P.
    p: Vec<f32>,
    /// Y.
    y: Vec<f32>,
    work: Vec<f32>,
}

impl Chunk {
    /// Reads the tokens `rows` of a value head, and solves for U.
    pub(super) fn load(
        &mut self,
        source: &Source<'_>,
        head: usize,
        rows: Range<usize>,
        s0: &[f32],
    ) {
        let layout = source.layout;
        (self.c, self.key, self.value) = (rows.len(), layout.key_dim, layout.value_dim);
        let (c, key, value, width) = (self.c, self.key, self.value, layout.width());
        let [q, k, v] = source.columns(head);
        let slice = |column: usize, features: usize, row: usize| {
            &source.qkv[row * width + column..][..features]
        };
        for (to, norms, column, scale) in [
            (
                &mut self.q,
                &mut self.q_norm,
                q,
                (key as f32).sqrt().recip(),
            ),
            (&mut self.k, &mut self.k_norm, k, 1.0),
        ] {
            to.clear();
            norms.clear();
            for row in rows.clone() {
                let x = slice(column, key, row);
                let norm = (sum(x, |x| x * x) + EPS).sqrt().recip();
                to.extend(x.iter().map(|x| x * (norm * scale)));
                norms.push(norm);
            }
        }
        self.beta.clear();
        self.total.clear();
        let mut total = 0.0;
        for row in rows.clone() {
            let at = row * layout.value_heads + head;
            total += source.decay[at];
            self.beta.push(source.beta[at]);
            self.total.push(total);
        }
        set(&mut self.x, [c, value, key], Rows(&self.k), Rows(s0));
        self.rest.clear();
        for (i, row) in rows.enumerate() {
            let (e, x) = (exp(self.total[i]), &self.x[i * value..][..value]);
            let v = slice(v, value, row);
            self.rest.extend(v.iter().zip(x).map(|(v, x)| v - e * x));
        }
        set(&mut self.kk, [c, c, key], Rows(&self.k), Turned(&self.k));
        decayed(&mut self.kk, &self.total, 0);
        self.u.clear();
        for (row, beta) in self.rest.chunks_exact(value).zip(&self.beta) {
            self.u.extend(row.iter().map(|r| beta * r));
        }
        for t in 1..c {
            let (before, own) = self.u.split_at_mut(t * value);
            for s in 0..t {
                let factor = -self.beta[t] * self.kk[t * c + s];
                add_scaled(&mut own[..value], &before[s * value..][..value], factor);
            }
        }
    }

    /// P and Y.
    fn read(&mut self, s0: &[f32]) {
        let (c, key, value) = (self.c, self.key, self.value);
        set(&mut self.p, [c, c, key], Rows(&self.q), Turned(&self.k));
        decayed(&mut self.p, &self.total, 1);
        set(&mut self.y, [c, value, key], Rows(&self.q), Rows(s0));
    }

    /// The chunk's output, c rows.
    pub(super) fn output(&mut self, s0: &[f32]) -> &[f32] {
        self.read(s0);
        let value = self.value;
        for (row, total) in self.y.chunks_exact_mut(value).zip(&self.total) {
            let e = exp(*total);
            row.iter_mut().for_each(|y| *y *= e);
        }
        let shape = [self.c, value, self.c];
        add(&mut self.y, shape, Rows(&self.p), Rows(&self.u));
        &self.y
    }

    /// The state behind the chunk, in place of the one before it.
    pub(super) fn advance(&mut self, state: &mut [f32]) {
        let last = self.last();
        self.fading_keys();
        let e = exp(last);
        state.iter_mut().for_each(|s| *s *= e);
        let shape = [self.key, self.value, self.c];
        add(state, shape, Turned(&self.work), Rows(&self.u));
    }

    fn last(&self) -> f32 {
        self.total.last().copied().unwrap_or(0.0)
    }

    /// K̃, into `work`.
    fn fading_keys(&mut self) {
        let last = self.last();
        self.work.clear();
        for (row, total) in self.k.chunks_exact(self.key).zip(&self.total) {
            let e = exp(last - total);
            self.work.extend(row.iter().map(|k| e * k));
        }
    }

    /// The chunk's gradients; `d_state`, of the state behind it, becomes that of the state before it.
    ///
    /// # Shapes
    /// `d_out` c rows; `s0` and `d_state` `[key, value]`.
    pub(super) fn backward(
        &mut self,
        d_out: &[f32],
        s0: &[f32],
        d_state: &mut [f32],
        grads: &mut ChunkGrads,
    ) {
        self.read(s0);
        let (c, key, value) = (self.c, self.key, self.value);
        let last = exp(self.last());
        let mut d_total = vec![0f32; c];
        let (mut du, mut dp, mut dl) = (Vec::new(), Vec::new(), Vec::new());

        // dU, then dB in its place.
        set(&mut du, [c, value, c], Turned(&self.p), Rows(d_out));
        self.fading_keys();
        add(&mut du, [c, value, key], Rows(&self.work), Rows(d_state));
        for t in (1..c).rev() {
            let (before, own) = du.split_at_mut(t * value);
            for s in 0..t {
                let factor = -self.beta[t] * self.kk[t * c + s];
                add_scaled(&mut before[s * value..][..value], &own[..value], factor);
            }
        }
        set(&mut dp, [c, c, value], Rows(d_out), Turned(&self.u));
        set(&mut dl, [c, c, value], Rows(&du), Turned(&self.u));

        // Values, steps, and what is read of S₀: dX in the place of dB, dY in the place of Y.
        grads.v.clear();
        grads.beta.clear();
        for (t, d_total) in d_total.iter_mut().enumerate().take(c) {
            let (row, beta) = (t * value..(t + 1) * value, self.beta[t]);
            let db = &mut du[row.clone()];
            grads.v.extend(db.iter().map(|d| beta * d));
            grads.beta.push(dot(db, &self.rest[row.clone()]));
            let e = exp(self.total[t]);
            db.iter_mut().for_each(|d| *d *= -beta * e);
            *d_total += dot(db, &self.x[row.clone()]);
            let y = &mut self.y[row.clone()];
            *d_total += e * dot(&d_out[row.clone()], y);
            for (y, d) in y.iter_mut().zip(&d_out[row]) {
                *y = e * d;
            }
        }

        // Pairs: dP becomes dA, dL becomes dM + dMᵀ.
        for t in 0..c {
            for s in 0..c {
                if s > t {
                    dp[t * c + s] = 0.0;
                    continue;
                }
                let e = exp(self.total[t] - self.total[s]);
                let mut change = dp[t * c + s] * self.p[t * c + s];
                dp[t * c + s] *= e;
                if s < t {
                    let d = -dl[t * c + s];
                    grads.beta[t] += d * self.kk[t * c + s];
                    change += d * self.beta[t] * self.kk[t * c + s];
                    let dm = d * self.beta[t] * e;
                    (dl[t * c + s], dl[s * c + t]) = (dm, dm);
                } else {
                    dl[t * c + t] = 0.0;
                }
                d_total[t] += change;
                d_total[s] -= change;
            }
        }

        let (dq, dk) = (&mut grads.q, &mut grads.k);
        set(dq, [c, key, value], Rows(&self.y), Turned(s0));
        add(dq, [c, key, c], Rows(&dp), Rows(&self.k));
        // U·dSᵀ, the part of dK̃.
        set(dk, [c, key, value], Rows(&self.u), Turned(d_state));
        for (t, row) in dk.chunks_exact_mut(key).enumerate() {
            let e = exp(self.last() - self.total[t]);
            let change = e * dot(row, &self.k[t * key..][..key]);
            row.iter_mut().for_each(|d| *d *= e);
            d_total[t] -= change;
            d_total[c - 1] += change;
        }
        add(dk, [c, key, value], Rows(&du), Turned(s0));
        add(dk, [c, key, c], Turned(&dp), Rows(&self.q));
        add(dk, [c, key, c], Rows(&dl), Rows(&self.k));

        d_total[c - 1] += last * dot(s0, d_state);
        d_state.iter_mut().for_each(|d| *d *= last);
        add(d_state, [key, value, c], Turned(&self.k), Rows(&du));
        add(d_state, [key, value, c], Turned(&self.q), Rows(&self.y));

        grads.decay.clear();
        grads.decay.resize(c, 0.0);
        let mut later = 0.0;
        for t in (0..c).rev() {
            later += d_total[t];
            grads.decay[t] = later;
        }
        let scale = (key as f32).sqrt().recip();
        unnormalised(dq, &self.q, &self.q_norm, scale);
        unnormalised(dk, &self.k, &self.k_norm, 1.0);
    }
}

/// From gradients of `scale`·x / |x| to those of x, given the former and 1 / |x|.
fn unnormalised(d: &mut [f32], normed: &[f32], norms: &[f32], scale: f32) {
    let width = d.len() / norms.len();
    let rows = d.chunks_exact_mut(width).zip(normed.chunks_exact(width));
    for ((d, x), norm) in rows.zip(norms) {
        let along = dot(d, x) / scale;
        for (d, x) in d.iter_mut().zip(x) {
            *d = norm * (scale * *d - x * along);
        }
    }
}

/// Multiplied by D on the diagonal, where `diagonal` is 1, and below it, zero elsewhere.
fn decayed(pairs: &mut [f32], total: &[f32], diagonal: usize) {
    let c = total.len();
    for (t, row) in pairs.chunks_exact_mut(c).enumerate() {
        let (seen, hidden) = row.split_at_mut(t + diagonal);
        for (pair, earlier) in seen.iter_mut().zip(total) {
            *pair *= exp(total[t] - earlier);
        }
        hidden.fill(0.0);
    }
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    simd(
        #[inline(always)]
        || sum2(x, y, |x, y| x * y),
    )
}

fn add_scaled(to: &mut [f32], x: &[f32], factor: f32) {
    simd(
        #[inline(always)]
        || {
            for (to, x) in to.iter_mut().zip(x) {
                *to += factor * x;
            }
        },
    );
}

/// A factor of a product: as it lies, or its transpose.
#[derive(Clone, Copy)]
enum Factor<'a> {
    Rows(&'a [f32]),
    Turned(&'a [f32]),
}
use Factor::{Rows, Turned};

impl Factor<'_> {
    /// As `rows` × `columns`.
    fn view(self, rows: usize, columns: usize) -> View {
        let (values, stride, op) = match self {
            Rows(values) => (values, columns, Op::N),
            Turned(values) => (values, rows, Op::T),
        };
        assert_eq!(values.len(), rows * columns, "a factor of a product");
        View::new(values, stride, op)
    }
}

/// to = a·b for `[m, n, k]`.
fn set(to: &mut Vec<f32>, shape: [usize; 3], a: Factor<'_>, b: Factor<'_>) {
    to.resize(shape[0] * shape[1], 0.0);
    product(to, false, shape, a, b);
}

/// to += a·b for `[m, n, k]`.
fn add(to: &mut [f32], shape: [usize; 3], a: Factor<'_>, b: Factor<'_>) {
    product(to, true, shape, a, b);
}

fn product(to: &mut [f32], accumulate: bool, [m, n, k]: [usize; 3], a: Factor<'_>, b: Factor<'_>) {
    assert_eq!(to.len(), m * n, "a product");
    let (a, b) = (a.view(m, k), b.view(k, n));
    let (shape, to) = (Shape { m, n, k }, (to.as_mut_ptr(), n));
    #[expect(unsafe_code, reason = "the gemm crate takes raw matrices")]
    // SAFETY: all three slices hold as many values as their sizes ask for, and the one that is written is borrowed alone.
    unsafe {
        raw(shape, to, accumulate, a, b, 1.0, Parallelism::None);
    }
}
