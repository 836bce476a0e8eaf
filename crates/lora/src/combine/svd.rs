//! The nearest factors of a rank to a sum of products, without the sum: with Σ wᵢ·sᵢ·Bᵢ·Aᵢ = P·Q, P = Q₁·R₁ and
//! Qᵀ = Q₂·R₂, what is left to decompose is R₁·R₂ᵀ, as large as the sum of the ranks. All in f64.
//!
//! # Source
//! Golub and Van Loan, *Matrix Computations*, 5.2 (modified Gram–Schmidt, twice), 8.6 (one-sided Jacobi).

use backdraft_formats::LoraPair;

use super::Part;

/// Columns, each a vector.
type Columns = Vec<Vec<f64>>;

/// B = U·S and A = Vᵀ of the largest `rank` singular values, filled up with zeros. The largest value of a row of A is
/// positive.
pub(super) fn decompose(parts: &[Part<'_>], rank: usize) -> LoraPair {
    let LoraPair {
        module,
        in_features,
        out_features,
        ..
    } = parts[0].pair;
    let (mut left, mut right) = (Columns::new(), Columns::new());
    for part in parts {
        let (pair, inner) = (part.pair, part.pair.rank());
        let factor = part.weight * part.scaling;
        for at in 0..inner {
            let column = (0..*out_features).map(|row| f64::from(pair.lora_b[row * inner + at]));
            left.push(column.collect());
            let row = &pair.lora_a[at * in_features..(at + 1) * in_features];
            right.push(row.iter().map(|&a| factor * f64::from(a)).collect());
        }
    }
    let (q1, r1) = orthonormal(left);
    let (q2, r2) = orthonormal(right);
    let inner = r1.len();
    // Column j of R₁·R₂ᵀ.
    let column = |j: usize| {
        let entry = |i: usize| (0..inner).map(|k| r1[k][i] * r2[k][j]).sum();
        (0..inner).map(entry).collect()
    };
    let (scaled, turned) = one_sided_jacobi((0..inner).map(column).collect());
    let length = |column: &[f64]| dot(column, column);
    let mut order: Vec<usize> = (0..inner).collect();
    order.sort_by(|&i, &j| length(&scaled[j]).total_cmp(&length(&scaled[i])));
    let mut lora_a = vec![0.0; rank * in_features];
    let mut lora_b = vec![0.0; rank * out_features];
    for (at, &place) in order.iter().take(rank).enumerate() {
        let v = combined(&q2, &turned[place], *in_features);
        let us = combined(&q1, &scaled[place], *out_features);
        let largest = v.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
        let sign = if largest.unwrap_or(0.0) < 0.0 {
            -1.0
        } else {
            1.0
        };
        for (input, value) in v.iter().enumerate() {
            lora_a[at * in_features + input] = (sign * value) as f32;
        }
        for (output, value) in us.iter().enumerate() {
            lora_b[output * rank + at] = (sign * value) as f32;
        }
    }
    LoraPair {
        module: module.clone(),
        in_features: *in_features,
        out_features: *out_features,
        lora_a,
        lora_b,
        magnitude: None,
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Σ cⱼ·columnⱼ.
fn combined(columns: &Columns, coefficients: &[f64], length: usize) -> Vec<f64> {
    let mut sum = vec![0.0; length];
    for (column, c) in columns.iter().zip(coefficients) {
        for (sum, value) in sum.iter_mut().zip(column) {
            *sum += c * value;
        }
    }
    sum
}

/// Q and R by columns. A column that is a sum of those before it becomes zero in Q.
fn orthonormal(columns: Columns) -> (Columns, Columns) {
    let count = columns.len();
    let mut q: Columns = Vec::with_capacity(count);
    // Column k of Rᵀ, which is row k of R.
    let mut rows = vec![vec![0.0; count]; count];
    for (j, mut column) in columns.into_iter().enumerate() {
        let before = dot(&column, &column).sqrt();
        // Once more takes what rounding left.
        for _ in 0..2 {
            for (k, done) in q.iter().enumerate() {
                let part = dot(done, &column);
                rows[k][j] += part;
                for (value, other) in column.iter_mut().zip(done) {
                    *value -= part * other;
                }
            }
        }
        let length = dot(&column, &column).sqrt();
        if length > 1e-14 * before {
            rows[j][j] = length;
            column.iter_mut().for_each(|value| *value /= length);
        } else {
            column.fill(0.0);
        }
        q.push(column);
    }
    let transposed = |rows: Columns| {
        let column = |j: usize| rows.iter().map(|row| row[j]).collect();
        (0..count).map(column).collect()
    };
    (q, transposed(rows))
}

/// W and V by columns: M·V = W with orthogonal columns, and orthonormal ones of V.
fn one_sided_jacobi(mut w: Columns) -> (Columns, Columns) {
    let count = w.len();
    let unit = |j: usize| (0..count).map(|i| f64::from(u8::from(i == j))).collect();
    let mut v: Columns = (0..count).map(unit).collect();
    for _ in 0..60 {
        let mut turned = false;
        for p in 0..count {
            for q in p + 1..count {
                let (a, b, c) = (dot(&w[p], &w[p]), dot(&w[q], &w[q]), dot(&w[p], &w[q]));
                if c == 0.0 || c.abs() <= 1e-15 * (a * b).sqrt() {
                    continue;
                }
                turned = true;
                let zeta = (b - a) / (2.0 * c);
                let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cos = 1.0 / t.hypot(1.0);
                rotate(&mut w, (p, q), (cos, cos * t));
                rotate(&mut v, (p, q), (cos, cos * t));
            }
        }
        if !turned {
            break;
        }
    }
    (w, v)
}

fn rotate(columns: &mut Columns, (p, q): (usize, usize), (cos, sin): (f64, f64)) {
    let (before, behind) = columns.split_at_mut(q);
    for (x, y) in before[p].iter_mut().zip(&mut behind[0]) {
        (*x, *y) = (cos * *x - sin * *y, sin * *x + cos * *y);
    }
}
