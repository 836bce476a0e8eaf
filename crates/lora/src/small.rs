//! Square matrices of a few dozen rows, on the host in f64: what is left of a large problem after a projection.

/// A square matrix, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Small {
    pub(crate) size: usize,
    pub(crate) values: Vec<f64>,
}

impl Small {
    pub(crate) fn new(size: usize, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), size * size, "values of a square matrix");
        Self { size, values }
    }

    pub(crate) fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.size + column]
    }

    /// Whether it is the identity, as far as f32 products show.
    pub(crate) fn is_nearly_one(&self) -> bool {
        let one = |at: usize| {
            if at / self.size == at % self.size {
                1.0
            } else {
                0.0
            }
        };
        let mut entries = self.values.iter().enumerate();
        entries.all(|(at, value)| (value - one(at)).abs() < 1e-5)
    }

    fn set(&mut self, row: usize, column: usize, value: f64) {
        self.values[row * self.size + column] = value;
    }

    /// Sum of the diagonal.
    pub(crate) fn trace(&self) -> f64 {
        (0..self.size).map(|i| self.at(i, i)).sum()
    }

    /// L, lower triangular, with L·Lᵀ = self + ε·I, ε being `shift` times the mean of the diagonal: it keeps a matrix that
    /// has lost a direction from failing. `None` where all is zero or something is no number.
    pub(crate) fn cholesky(&self, shift: f64) -> Option<Self> {
        let trace = self.trace();
        if !(trace > 0.0 && trace.is_finite()) {
            return None;
        }
        let shift = shift * trace / self.size as f64;
        let mut lower = Self::new(self.size, vec![0.0; self.size * self.size]);
        for i in 0..self.size {
            for j in 0..=i {
                let known: f64 = (0..j).map(|k| lower.at(i, k) * lower.at(j, k)).sum();
                let rest = self.at(i, j) - known;
                let value = if i == j {
                    (rest + shift).max(shift).sqrt()
                } else {
                    rest / lower.at(j, j)
                };
                lower.set(i, j, value);
            }
        }
        Some(lower)
    }

    /// The inverse of a lower triangular matrix.
    pub(crate) fn inverse_of_lower(&self) -> Self {
        let mut inverse = Self::new(self.size, vec![0.0; self.size * self.size]);
        for j in 0..self.size {
            inverse.set(j, j, 1.0 / self.at(j, j));
            for i in j + 1..self.size {
                let sum: f64 = (j..i).map(|k| self.at(i, k) * inverse.at(k, j)).sum();
                inverse.set(i, j, -sum / self.at(i, i));
            }
        }
        inverse
    }

    pub(crate) fn times(&self, other: &Self) -> Self {
        let size = self.size;
        let entry = |i: usize, j: usize| (0..size).map(|k| self.at(i, k) * other.at(k, j)).sum();
        let values = (0..size * size).map(|at| entry(at / size, at % size));
        Self::new(size, values.collect())
    }

    #[cfg(test)]
    pub(crate) fn transposed(&self) -> Self {
        let size = self.size;
        let values = (0..size * size).map(|at| self.at(at % size, at / size));
        Self::new(size, values.collect())
    }

    /// The eigenvectors of a symmetric matrix as columns, that of the largest eigenvalue first.
    ///
    /// # Source
    /// Jacobi 1846; Golub and Van Loan, *Matrix Computations*, 8.5: rotations by cyclic sweeps.
    pub(crate) fn eigenvectors(&self) -> Self {
        let size = self.size;
        let mut a = self.clone();
        let mut vectors = Self::new(size, vec![0.0; size * size]);
        for i in 0..size {
            vectors.set(i, i, 1.0);
        }
        for _ in 0..60 {
            let off: f64 = (0..size)
                .flat_map(|i| (0..i).map(move |j| (i, j)))
                .map(|(i, j)| a.at(i, j).powi(2))
                .sum();
            let diagonal: f64 = (0..size).map(|i| a.at(i, i).powi(2)).sum();
            if off <= 1e-30 * diagonal {
                break;
            }
            for p in 0..size {
                for q in p + 1..size {
                    a.rotate(p, q, &mut vectors);
                }
            }
        }
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&i, &j| a.at(j, j).total_cmp(&a.at(i, i)));
        let values = (0..size * size).map(|at| vectors.at(at / size, order[at % size]));
        Self::new(size, values.collect())
    }

    /// Makes entry (p, q) zero.
    fn rotate(&mut self, p: usize, q: usize, vectors: &mut Self) {
        let between = self.at(p, q);
        if between == 0.0 {
            return;
        }
        let theta = (self.at(q, q) - self.at(p, p)) / (2.0 * between);
        let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
        let c = 1.0 / t.hypot(1.0);
        let s = t * c;
        for k in 0..self.size {
            let (left, right) = (self.at(k, p), self.at(k, q));
            self.set(k, p, c * left - s * right);
            self.set(k, q, s * left + c * right);
        }
        for k in 0..self.size {
            let (up, down) = (self.at(p, k), self.at(q, k));
            self.set(p, k, c * up - s * down);
            self.set(q, k, s * up + c * down);
            let (left, right) = (vectors.at(k, p), vectors.at(k, q));
            vectors.set(k, p, c * left - s * right);
            vectors.set(k, q, s * left + c * right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Symmetric and positive, with eigenvalues over six orders of magnitude.
    fn example() -> Small {
        let size = 7;
        let wave = |i: usize, j: usize| ((i * 31 + j * 17 + i * j * 7 + 3) as f64).sin();
        let values = (0..size * size).map(|at| {
            let (i, j) = (at / size, at % size);
            (0..size)
                .map(|k| wave(i, k) * wave(j, k) * 10f64.powi(-(k as i32)))
                .sum()
        });
        Small::new(size, values.collect())
    }

    fn close(found: &Small, expected: &Small) {
        for (found, expected) in found.values.iter().zip(&expected.values) {
            assert!(
                (found - expected).abs() < 1e-9,
                "{found} instead of {expected}"
            );
        }
    }

    #[test]
    fn cholesky_and_its_inverse_undo_each_other() {
        let matrix = example();
        let lower = matrix.cholesky(1e-15).unwrap();
        close(&lower.times(&lower.transposed()), &matrix);
        let mut one = Small::new(7, vec![0.0; 49]);
        (0..7).for_each(|i| one.set(i, i, 1.0));
        close(&lower.times(&lower.inverse_of_lower()), &one);
        assert!(Small::new(2, vec![0.0; 4]).cholesky(0.0).is_none());
        assert!(Small::new(1, vec![f64::NAN]).cholesky(0.0).is_none());
    }

    #[test]
    fn eigenvectors_make_it_diagonal_largest_first() {
        let matrix = example();
        let vectors = matrix.eigenvectors();
        let diagonal = vectors.transposed().times(&matrix).times(&vectors);
        for i in 0..7 {
            for j in 0..7 {
                let value = diagonal.at(i, j);
                assert!(i == j || value.abs() < 1e-10, "{i} {j}: {value}");
            }
            assert!(i == 0 || diagonal.at(i, i) <= diagonal.at(i - 1, i - 1) + 1e-10);
        }
    }
}
