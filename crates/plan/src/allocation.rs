//! Which matrix gets how many bits: for each one of its candidates, so that the prices add up to the least that the bytes
//! allow. A multiple-choice knapsack, solved exactly.
//!
//! # Source
//! Kellerer, Pferschy, Pisinger 2004, *Knapsack Problems*, chapter 11: lists of undominated states, cut off by the
//! Lagrangian bound.

/// One way to store a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What it takes.
    pub bytes: u64,
    /// What it costs, finite and not negative; it need not fall with the bytes.
    pub price: f64,
}

/// A candidate for each matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// Which one, by matrix.
    pub choice: Vec<usize>,
    /// What all take.
    pub bytes: u64,
    /// What all cost.
    pub price: f64,
    /// Less than this no allocation costs.
    pub bound: f64,
}

/// States that are kept after a matrix; beyond it only the cheapest of those that are close in bytes. No model has been
/// seen to need it; [`Allocation::bound`] tells by how much it could have mattered.
const MOST_STATES: usize = 1 << 16;

/// The cheapest allocation within `budget` bytes; of equally cheap ones the one with fewer bytes. `None` where even the
/// smallest candidates do not fit.
///
/// # Panics
/// If a matrix has no candidate.
#[must_use]
pub fn allocate(matrices: &[Vec<Candidate>], budget: u64) -> Option<Allocation> {
    let smallest = matrices.iter().map(|candidates| {
        let bytes = candidates.iter().map(|candidate| candidate.bytes);
        let Some(least) = bytes.min() else {
            panic!("a matrix without candidates");
        };
        least
    });
    if smallest.sum::<u64>() > budget {
        return None;
    }
    let relaxed = Relaxed::solve(matrices, budget);
    // A hair above, so that rounding does not cut off the solution itself.
    let ceiling = relaxed.feasible.price * (1.0 + 1e-12) + f64::MIN_POSITIVE;
    let mut levels: Vec<Vec<State>> = vec![vec![State::default()]];
    for (at, candidates) in matrices.iter().enumerate() {
        let before = &levels[at];
        let mut states = Vec::with_capacity(before.len() * candidates.len());
        for (parent, state) in before.iter().enumerate() {
            for (choice, candidate) in candidates.iter().enumerate() {
                let next = State {
                    bytes: state.bytes + candidate.bytes,
                    price: state.price + candidate.price,
                    parent,
                    choice,
                };
                let fits = next.bytes + relaxed.least_after[at + 1] <= budget;
                if fits && relaxed.bound_from(at + 1, &next, budget) <= ceiling {
                    states.push(next);
                }
            }
        }
        levels.push(thinned(undominated(states), budget));
    }
    let best = levels.last()?.last()?;
    let (bytes, price) = (best.bytes, best.price);
    let mut choice = vec![0; matrices.len()];
    let mut state = best;
    for at in (0..matrices.len()).rev() {
        choice[at] = state.choice;
        state = &levels[at][state.parent];
    }
    Some(Allocation {
        choice,
        bytes,
        price,
        bound: relaxed.bound.min(price),
    })
}

/// The matrices so far.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    bytes: u64,
    price: f64,
    /// The state before the last matrix.
    parent: usize,
    /// What the last matrix got.
    choice: usize,
}

/// By rising bytes and falling price; of equal ones the first stays.
fn undominated(mut states: Vec<State>) -> Vec<State> {
    states.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.price.total_cmp(&b.price)));
    let mut least = f64::INFINITY;
    states.retain(|state| {
        let better = state.price < least;
        if better {
            least = state.price;
        }
        better
    });
    states
}

/// At most [`MOST_STATES`]: the cheapest, which is the last, of each range of bytes.
fn thinned(states: Vec<State>, budget: u64) -> Vec<State> {
    if states.len() <= MOST_STATES {
        return states;
    }
    let unit = (budget / MOST_STATES as u64).max(1);
    let mut kept: Vec<State> = Vec::with_capacity(MOST_STATES + 1);
    for state in states {
        match kept.last_mut() {
            Some(last) if last.bytes / unit == state.bytes / unit => *last = state,
            _ => kept.push(state),
        }
    }
    kept
}

/// The problem with a price on bytes in place of the budget.
struct Relaxed {
    /// Price of a byte.
    per_byte: f64,
    /// Of the matrices from each one on: the least of price + bytes · `per_byte`.
    suffix: Vec<f64>,
    /// Of the matrices from each one on: the least bytes.
    least_after: Vec<u64>,
    /// Below every solution.
    bound: f64,
    /// A solution.
    feasible: State,
}

impl Relaxed {
    fn solve(matrices: &[Vec<Candidate>], budget: u64) -> Self {
        let mut high = 1e-300;
        while totals(matrices, high).0 > budget {
            high *= 16.0;
        }
        let mut low = 0.0;
        if totals(matrices, low).0 > budget {
            for _ in 0..200 {
                let middle = 0.5 * (low + high);
                if totals(matrices, middle).0 > budget {
                    low = middle;
                } else {
                    high = middle;
                }
            }
        } else {
            high = 0.0;
        }
        let per_byte = high;
        let cost = |candidate: &Candidate| candidate.price + per_byte * candidate.bytes as f64;
        let mut suffix = vec![0.0];
        let mut least_after = vec![0];
        for candidates in matrices.iter().rev() {
            let least = candidates.iter().map(cost).fold(f64::INFINITY, f64::min);
            suffix.push(suffix[suffix.len() - 1] + least);
            let bytes = candidates.iter().map(|candidate| candidate.bytes).min();
            least_after.push(least_after[least_after.len() - 1] + bytes.unwrap_or(0));
        }
        suffix.reverse();
        least_after.reverse();
        let bound = suffix[0] - per_byte * budget as f64;
        Self {
            per_byte,
            suffix,
            least_after,
            bound,
            feasible: filled(matrices, per_byte, budget),
        }
    }

    /// What every solution that begins with `state` costs at least.
    fn bound_from(&self, at: usize, state: &State, budget: u64) -> f64 {
        let left = (budget - state.bytes) as f64;
        // Rounding of large terms that cancel must not cut anything off.
        let slack = 1e-12 * (self.suffix[at].abs() + self.per_byte * left);
        state.price + self.suffix[at] - self.per_byte * left - slack
    }
}

/// The candidate that costs least where a byte costs `per_byte`; of equal ones the smaller.
fn cheapest(candidates: &[Candidate], per_byte: f64) -> &Candidate {
    let cost = |candidate: &Candidate| candidate.price + per_byte * candidate.bytes as f64;
    let by_cost = |a: &&Candidate, b: &&Candidate| {
        let costs = cost(a).total_cmp(&cost(b));
        costs.then(a.bytes.cmp(&b.bytes))
    };
    match candidates.iter().min_by(by_cost) {
        Some(candidate) => candidate,
        None => panic!("a matrix without candidates"),
    }
}

/// Bytes and price where each matrix takes what is cheapest.
fn totals(matrices: &[Vec<Candidate>], per_byte: f64) -> (u64, f64) {
    let chosen = matrices
        .iter()
        .map(|candidates| cheapest(candidates, per_byte));
    chosen.fold((0, 0.0), |(bytes, price), candidate| {
        (bytes + candidate.bytes, price + candidate.price)
    })
}

/// What is cheapest at that price of a byte, and whatever else still fits, first to last.
fn filled(matrices: &[Vec<Candidate>], per_byte: f64, budget: u64) -> State {
    let (mut bytes, mut price) = totals(matrices, per_byte);
    for candidates in matrices {
        let now = cheapest(candidates, per_byte);
        let fits = |candidate: &&Candidate| bytes - now.bytes + candidate.bytes <= budget;
        let better = candidates.iter().filter(fits);
        if let Some(best) = better.min_by(|a, b| a.price.total_cmp(&b.price)) {
            bytes = bytes - now.bytes + best.bytes;
            price += best.price - now.price;
        }
    }
    State {
        bytes,
        price,
        ..State::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cost(matrices: &[Vec<Candidate>], choice: &[usize]) -> (u64, f64) {
        let chosen = matrices.iter().zip(choice).map(|(m, &c)| m[c]);
        chosen.fold((0, 0.0), |(bytes, price), candidate| {
            (bytes + candidate.bytes, price + candidate.price)
        })
    }

    /// By trying everything.
    fn best(matrices: &[Vec<Candidate>], budget: u64) -> Option<(f64, u64)> {
        let Some((first, rest)) = matrices.split_first() else {
            return Some((0.0, 0));
        };
        let each = first.iter().filter_map(|candidate| {
            let left = budget.checked_sub(candidate.bytes)?;
            let (price, bytes) = best(rest, left)?;
            Some((price + candidate.price, bytes + candidate.bytes))
        });
        each.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
    }

    proptest! {
        #[test]
        fn nothing_cheaper_fits(
            matrices in prop::collection::vec(
                prop::collection::vec((1u64..40, 0u32..50), 1..5),
                1..7,
            ),
            budget in 1u64..200,
        ) {
            let candidates: Vec<Vec<Candidate>> = matrices
                .iter()
                .map(|m| m.iter().map(|&(bytes, price)| Candidate { bytes, price: f64::from(price) }).collect())
                .collect();
            let found = allocate(&candidates, budget);
            match (found, best(&candidates, budget)) {
                (None, None) => {}
                (Some(found), Some((price, bytes))) => {
                    prop_assert_eq!(found.price, price);
                    prop_assert_eq!(found.bytes, bytes);
                    prop_assert_eq!(cost(&candidates, &found.choice), (bytes, price));
                    prop_assert!(found.bound <= price);
                }
                (found, expected) => prop_assert!(false, "{found:?} instead of {expected:?}"),
            }
        }

        #[test]
        fn more_bytes_never_cost_more(
            matrices in prop::collection::vec(
                prop::collection::vec((1u64..1000, 0.0f64..1.0), 1..6),
                1..30,
            ),
            budget in 1u64..20_000,
            more in 0u64..5_000,
        ) {
            let candidates: Vec<Vec<Candidate>> = matrices
                .iter()
                .map(|m| m.iter().map(|&(bytes, price)| Candidate { bytes, price }).collect())
                .collect();
            if let Some(less) = allocate(&candidates, budget) {
                let more = allocate(&candidates, budget + more).unwrap();
                prop_assert!(more.price <= less.price + 1e-12);
                prop_assert!(less.bytes <= budget);
            }
        }
    }

    /// 224 matrices of seven shapes with five formats, as a model of 32 layers has them.
    #[test]
    fn a_large_model_is_solved_to_the_bound() {
        let shapes = [4096 * 4096, 1024 * 4096, 14336 * 4096_u64];
        let kinds = [0, 1, 1, 0, 2, 2, 2];
        let matrices: Vec<Vec<Candidate>> = (0..224_u64)
            .map(|at| {
                let values = shapes[kinds[(at % 7) as usize]];
                // A deal that looks like chance, over four orders of magnitude.
                let dealt = (at * 7919 % 1009) as f64 / 1009.0;
                let weight = (values as f64).sqrt() * (9.0 * dealt - 4.5).exp();
                [
                    (3.127, 0.033),
                    (4.127, 0.0085),
                    (5.127, 0.002),
                    (6.127, 0.0005),
                    (8.01, 7e-5),
                ]
                .map(|(bits, error)| Candidate {
                    bytes: (values as f64 * bits / 8.0) as u64,
                    price: weight * error,
                })
                .to_vec()
            })
            .collect();
        let values: u64 = kinds.iter().map(|&kind| 32 * shapes[kind]).sum();
        let budget = (values as f64 * 4.5 / 8.0) as u64;
        let found = allocate(&matrices, budget).unwrap();
        assert!(found.bytes <= budget);
        let gap = found.price / found.bound - 1.0;
        assert!(gap < 1e-3, "{gap}");
    }
}
