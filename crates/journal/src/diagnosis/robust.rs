//! Statistics that a few wild values do not move.

/// Turns a median absolute deviation into the standard deviation of a normal distribution.
const MAD_TO_SD: f64 = 1.4826;

/// Standard error of a median in units of that of a mean, √(π/2).
pub(super) const MEDIAN_EFFICIENCY: f64 = 1.2533;

/// Median, with the upper middle value of an even number averaged in. NaN for nothing.
pub(super) fn median(values: &mut [f64]) -> f64 {
    let n = values.len();
    if n == 0 {
        return f64::NAN;
    }
    let (below, &mut upper, _) = values.select_nth_unstable_by(n / 2, f64::total_cmp);
    if n % 2 == 1 {
        return upper;
    }
    let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    lower / 2.0 + upper / 2.0
}

/// Median of values that stay where they are.
pub(super) fn median_of(values: &[f64]) -> f64 {
    median(&mut values.to_vec())
}

/// Standard deviation of the noise of single values around a smooth curve.
///
/// Second differences remove level and slope; of white noise they have 6 times the variance. Where there
/// are too few of them for a median, the largest is left out, which is the bend of a steep beginning more
/// often than noise. Zero below three values.
pub(super) fn noise(values: &[f64]) -> f64 {
    let mut second: Vec<f64> = values
        .windows(3)
        .map(|w| (w[0] - 2.0 * w[1] + w[2]).abs())
        .collect();
    let robust = MAD_TO_SD * median(&mut second) / 6f64.sqrt();
    if second.len() >= 8 && robust > 0.0 {
        return robust;
    }
    if second.len() < 3 {
        return rough_noise(values);
    }
    let by_second = without_largest(&mut second) / 6f64.sqrt();
    let mut third: Vec<f64> = values
        .windows(4)
        .map(|w| (w[3] - w[0] + 3.0 * (w[1] - w[2])).abs())
        .collect();
    if third.len() < 4 {
        return by_second;
    }
    // Third differences, with 20 times the variance, do not see the bend of a decay either.
    by_second.min(without_largest(&mut third) / 20f64.sqrt())
}

/// Root of the mean square of normal values, guessed from all but the largest.
fn without_largest(sizes: &mut [f64]) -> f64 {
    // What the largest of about five squares has of their sum.
    const LARGEST: f64 = 0.4;
    sizes.sort_by(f64::total_cmp);
    let (n, rest) = (
        sizes.len() as f64,
        sizes.split_last().map_or(&[][..], |s| s.1),
    );
    let squares: f64 = rest.iter().map(|d| d * d).sum();
    (squares / (1.0 - LARGEST) / n).sqrt()
}

/// As [`noise`], but every value counts, wild ones too.
pub(super) fn rough_noise(values: &[f64]) -> f64 {
    if values.len() < 3 {
        return 0.0;
    }
    let squares: f64 = values
        .windows(3)
        .map(|w| (w[0] - 2.0 * w[1] + w[2]).powi(2))
        .sum();
    (squares / (6 * (values.len() - 2)) as f64).sqrt()
}

/// The falling curve nearest to the values, in least squares.
///
/// # Source
/// Barlow, Bartholomew, Bremner, Brunk: Statistical inference under order restrictions, 1972: pool
/// adjacent violators.
pub(super) fn falling_fit(values: &[f64]) -> Vec<f64> {
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for &value in values {
        let mut pool = (value, 1);
        while let Some(&(mean, count)) = pools.last()
            && mean <= pool.0
        {
            pools.pop();
            let both = count + pool.1;
            pool = (mean + (pool.0 - mean) * pool.1 as f64 / both as f64, both);
        }
        pools.push(pool);
    }
    pools
        .into_iter()
        .flat_map(|(mean, count)| std::iter::repeat_n(mean, count))
        .collect()
}

/// Standard deviation of values around zero, by their median size.
pub(super) fn spread(values: impl Iterator<Item = f64>) -> f64 {
    let mut sizes: Vec<f64> = values.map(f64::abs).collect();
    MAD_TO_SD * median(&mut sizes)
}

/// Correlation of neighbours in values around zero; those beyond `limit` count as the limit.
pub(super) fn likeness(values: &[f64], limit: f64) -> f64 {
    let clip = |v: f64| v.max(-limit).min(limit);
    let squares: f64 = values.iter().map(|&v| clip(v).powi(2)).sum();
    let products: f64 = values.windows(2).map(|w| clip(w[0]) * clip(w[1])).sum();
    if squares > 0.0 {
        products / squares
    } else {
        0.0
    }
}

/// Mann–Kendall statistic of a trend: about normal with variance 1 where there is none, positive for a
/// rising series.
///
/// # Source
/// Mann: Nonparametric tests against trend, Econometrica 1945; Kendall: Rank correlation methods.
pub(super) fn mann_kendall(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mut s = 0i64;
    for (i, a) in values.iter().enumerate() {
        for b in &values[i + 1..] {
            s += i64::from(b > a) - i64::from(b < a);
        }
    }
    let variance = n * (n - 1.0) * (2.0 * n + 5.0) / 18.0;
    // One step of continuity correction towards zero.
    let s = s as f64 - s.signum() as f64;
    if variance > 0.0 {
        s / variance.sqrt()
    } else {
        0.0
    }
}

/// Difference in units of its standard error. Without noise any difference is beyond doubt.
pub(super) fn in_errors(difference: f64, standard_error: f64) -> f64 {
    const BEYOND_DOUBT: f64 = 1e3;
    if difference == 0.0 {
        0.0
    } else {
        (difference / standard_error).clamp(-BEYOND_DOUBT, BEYOND_DOUBT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median_of(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median_of(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median_of(&[]).is_nan());
    }

    #[test]
    fn noise_ignores_level_slope_and_one_wild_value() {
        let line: Vec<f64> = (0..50).map(|i| 7.0 - 0.1 * f64::from(i)).collect();
        assert!(noise(&line) < 1e-12);
        // ±1 in the order + + − −: each second difference has the size 2.
        let mut square: Vec<f64> = (0..80)
            .map(|i| if i % 4 < 2 { 1.0 } else { -1.0 })
            .collect();
        let expected = 2.0 * MAD_TO_SD / 6f64.sqrt();
        assert!((noise(&square) - expected).abs() < 1e-12);
        square[40] = 1e6;
        assert!((noise(&square) - expected).abs() < 1e-12);
        assert!(rough_noise(&square) > 1e4);
    }

    #[test]
    fn neighbours_alike_or_opposite() {
        assert_eq!(likeness(&[1.0, -1.0, 1.0, -1.0], 9.0), -0.75);
        assert_eq!(likeness(&[1.0, 1.0, 5.0, 1.0], 1.0), 0.75);
        assert_eq!(likeness(&[], 1.0), 0.0);
    }

    #[test]
    fn the_nearest_falling_curve() {
        let fit = falling_fit(&[5.0, 3.0, 4.0, 1.0, 2.0, 3.0]);
        assert_eq!(fit, [5.0, 3.5, 3.5, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn mann_kendall_knows_direction_and_its_own_doubt() {
        // n = 5: S = 10, variance 5·4·15/18.
        let rising = mann_kendall(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((rising - 9.0 / (50.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(mann_kendall(&[5.0, 4.0, 3.0, 2.0, 1.0]), -rising);
        assert_eq!(mann_kendall(&[1.0, 1.0, 1.0]), 0.0);
        assert_eq!(mann_kendall(&[]), 0.0);
    }
}
