//! Losses that rise and fall again.
//!
//! Single values jump by chance, so rises are looked for between medians of three neighbours and between
//! means of 2, 4, 8, … such medians. One wild batch moves none of them; a model that has jumped away and
//! comes back over several steps moves some.

use super::curve::Curve;
use super::robust::{
    MEDIAN_EFFICIENCY, falling_fit, likeness, median, median_of, noise, rough_noise, spread,
};

/// Least height of a rise that matters, as a share of the first loss.
const MATERIAL: f64 = 0.08;
/// Smallest number of blocks that a scale is looked at with.
const MIN_BLOCKS: usize = 8;
/// Scatter around the nearest falling curve that matters, as a share of the first loss.
const MATERIAL_WANDER: f64 = 0.08;
/// Scatter of a wandering curve in units of the noise between neighbours. Batches drawn at random give 1,
/// neighbours with a correlation of 0.3 give 1.3.
const WANDER: f64 = 1.35;
/// The same for means of three values; a correlation of 0.3 gives 1.55.
const WANDER_OF_THREES: f64 = 1.6;
/// Correlation of neighbours below which a curve goes up and down in turn. Batches give 0, and a little
/// less next to the nearest falling curve.
const ALTERNATING: f64 = -0.25;
/// Scatter, as a share of the first loss, that is trouble wherever it comes from: batches of eight rows
/// and more stay below, and smaller ones should be made larger.
const LOUD: f64 = 0.36;
/// The same as a share of the present level, unless that is so low that a single hard row outweighs it.
const LOUD_FOR_LEVEL: f64 = 0.55;
const LOW_LEVEL: f64 = 0.2;
/// Below this many values there are no blocks, and only the scatter itself can tell.
pub(super) const SHORT: usize = 24;
/// Scatter of a short curve, as a share of the first loss, that batches do not explain: its values are
/// epochs or log intervals, averages over many rows.
const SHORT_SCATTER: f64 = 0.11;
/// The end of the curve in which the last rise must lie for the trouble to be present.
const RECENT: f64 = 0.4;

/// A rise from a trough to a peak.
#[derive(Clone, Copy, Debug)]
struct Rise {
    low: usize,
    peak: usize,
    height: f64,
}

/// Rises of a curve that are neither noise nor trifles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Jumps {
    pub(super) count: usize,
    pub(super) largest: f64,
    pub(super) total: f64,
    /// Step at which the first one began.
    pub(super) first_step: usize,
    /// Step at which the last one peaked.
    pub(super) last_step: usize,
    /// Whether the last one is recent.
    pub(super) recent: bool,
}

/// Jumps at the scale that shows the most of them.
pub(super) fn find(curve: &Curve) -> Option<Jumps> {
    let mut blocks: Vec<f64> = curve
        .values
        .chunks_exact(3)
        .map(|c| median(&mut [c[0], c[1], c[2]]))
        .collect();
    let mut width = 3;
    let mut found: Option<Jumps> = None;
    while blocks.len() >= MIN_BLOCKS {
        let threshold = threshold(curve, width, blocks.len());
        let here = summary(curve, width, &rises(&blocks, threshold));
        if let Some(here) = here
            && found.is_none_or(|best| (here.recent, here.count) > (best.recent, best.count))
        {
            found = Some(here);
        }
        blocks = blocks
            .chunks_exact(2)
            .map(|pair| pair[0] / 2.0 + pair[1] / 2.0)
            .collect();
        width *= 2;
    }
    found
}

/// Scatter of a curve that wanders up and down, as a share of its first loss.
///
/// Batches make single values scatter and neighbours as much as any two. When the model itself moves,
/// neighbours are alike, and the curve scatters more than they differ; or they lie on opposite sides, where
/// each step throws the model across the valley.
pub(super) fn wander(curve: &Curve) -> Option<f64> {
    if curve.len() < SHORT {
        return None;
    }
    // Trouble that grows or comes late shows in the second half more clearly.
    [&curve.values[..], &curve.values[curve.len() / 2..]]
        .into_iter()
        .filter(|values| values.len() >= SHORT)
        .filter_map(|values| wander_of(values, curve.first().abs()))
        .reduce(f64::max)
}

fn wander_of(values: &[f64], first: f64) -> Option<f64> {
    let noise = noise(values);
    let fit = falling_fit(values);
    let rest: Vec<f64> = values.iter().zip(&fit).map(|(v, f)| v - f).collect();
    let single = spread(rest.iter().copied());
    let threes = spread(rest.chunks_exact(3).map(|c| (c[0] + c[1] + c[2]) / 3.0));
    let doubt = 2.0 / (values.len() as f64).sqrt();
    let alike = single > (WANDER + doubt) * noise
        || threes > (WANDER_OF_THREES + 1.5 * doubt) * noise / 3f64.sqrt();
    let alternating = likeness(&rest, 3.0 * single) < ALTERNATING - doubt;
    let share = single / first;
    let loud = root_mean_square(&rest);
    let half = values.len() / 2;
    let (late, level) = (root_mean_square(&rest[half..]), median_of(&values[half..]));
    let for_level = late > LOUD_FOR_LEVEL * level && level > LOW_LEVEL * first;
    if loud > LOUD * first || for_level {
        return Some(loud / first);
    }
    ((alike || alternating) && share > MATERIAL_WANDER).then_some(share)
}

fn root_mean_square(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
}

/// Scatter of a short curve as a share of its first loss, where it is more than batches explain.
pub(super) fn scatter(curve: &Curve) -> Option<f64> {
    if !(5..SHORT).contains(&curve.len()) {
        return None;
    }
    let first = curve.first().abs();
    let share = rough_noise(&curve.values) / first;
    // A single rise is a spike.
    let again = rises(&curve.values, MATERIAL * first).len() > 1;
    (again && share > SHORT_SCATTER).then_some(share)
}

/// Noise alone spans about 2√(2 ln n) standard errors from the lowest to the highest of n blocks.
fn threshold(curve: &Curve, width: usize, blocks: usize) -> f64 {
    // Neighbouring losses may be a little alike, which makes blocks scatter more.
    const CORRELATION: f64 = 1.3;
    let span = 2.0 * (2.0 * (blocks as f64).ln()).sqrt() + 1.5;
    let error = MEDIAN_EFFICIENCY * curve.noise / (width as f64).sqrt();
    (CORRELATION * span * error).max(MATERIAL * curve.first().abs())
}

/// Rises of at least `threshold`, each ended by a fall of as much or by the end of the values.
fn rises(values: &[f64], threshold: f64) -> Vec<Rise> {
    let mut found = Vec::new();
    let (mut low, mut peak) = (0, 0);
    let mut rising = false;
    for (i, &value) in values.iter().enumerate() {
        if rising {
            if value > values[peak] {
                peak = i;
            } else if value < values[peak] - threshold {
                found.push(Rise::new(values, low, peak));
                rising = false;
                low = i;
            }
        } else if value < values[low] {
            low = i;
        } else if value > values[low] + threshold {
            rising = true;
            peak = i;
        }
    }
    if rising {
        found.push(Rise::new(values, low, peak));
    }
    found
}

impl Rise {
    fn new(values: &[f64], low: usize, peak: usize) -> Self {
        Self {
            low,
            peak,
            height: values[peak] - values[low],
        }
    }
}

fn summary(curve: &Curve, width: usize, rises: &[Rise]) -> Option<Jumps> {
    let (first, last) = (rises.first()?, rises.last()?);
    let middle = |block: usize| (block * width + width / 2).min(curve.len() - 1);
    Some(Jumps {
        count: rises.len(),
        largest: rises.iter().map(|r| r.height).fold(0.0, f64::max),
        total: rises.iter().map(|r| r.height).sum(),
        first_step: curve.steps[middle(first.low)],
        last_step: curve.steps[middle(last.peak)],
        recent: middle(last.peak) as f64 >= (1.0 - RECENT) * curve.len() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_are_separated_by_falls() {
        let values = [5.0, 4.0, 4.5, 4.0, 6.0, 6.2, 4.1, 3.0, 3.4, 5.0];
        let found = rises(&values, 1.0);
        let ends: Vec<(usize, usize)> = found.iter().map(|r| (r.low, r.peak)).collect();
        assert_eq!(ends, [(1, 5), (7, 9)]);
        assert!(rises(&values, 3.0).is_empty());
        assert!(rises(&[], 1.0).is_empty());
    }
}
