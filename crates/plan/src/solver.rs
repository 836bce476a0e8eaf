//! The exact choice: least added time under a budget for the peak of the whole step.
//!
//! Layer i (first to last) takes a [`Choice`]. With Sᵢ the bytes kept by layers 1 to i, a step fits if for every
//! layer Sᵢ₋₁ + peakᵢ + extraᵢ ≤ budget, and Sₙ + after ≤ budget. The time is a sum.
//!
//! The search is a dynamic programme from the last layer to the first, over (layers done, bytes that the others may
//! keep): the last layers have most below them, so that their peaks decide, and what is left is nearly a plain
//! knapsack, whose linear relaxation is a good lower bound. States that another dominates, that cannot be completed,
//! or that cannot beat the best solution known are dropped.
//!
//! Identical layers are interchangeable, so only one order of their choices is tried: the one that puts the
//! largest difference between peak and kept bytes first. Exchanging two neighbours into that order never raises
//! the peak, because bytes kept below are fewest for the first layer (Liu 1987's argument for pebbling
//! sequences), as long as no layer keeps less than `extra` falls by from one layer to the next; where one does,
//! layers are treated one by one. And no pair of them takes choices for which another pair does better.

use std::rc::Rc;

/// One way to treat a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// Bytes kept from the layer's forward pass to its backward pass.
    pub kept: u64,
    /// The most bytes while the layer is computed in either pass, beyond what the layers below keep.
    pub peak: u64,
    /// Time that it adds, in any unit.
    pub time: u64,
}

/// A run of layers that have the same choices.
#[derive(Clone, Debug)]
pub struct Group {
    /// How many.
    pub count: usize,
    /// What each may do.
    pub choices: Vec<Choice>,
}

/// A step to be planned.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The layers, first to last.
    pub groups: Vec<Group>,
    /// For each layer, bytes that are there besides while it is computed, such as gradients; not rising.
    pub extra: Vec<u64>,
    /// Bytes beyond what all layers keep between the two passes: the head and its loss.
    pub after: u64,
    /// What may be used at the most.
    pub budget: u64,
}

/// A choice for every layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solution {
    /// Index into the choices of each layer's group.
    pub picks: Vec<usize>,
    /// Time that they add.
    pub time: u64,
    /// The peak of the step.
    pub peak: u64,
}

impl Problem {
    /// The number of layers.
    #[must_use]
    pub fn num_layers(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// Time and peak of given choices.
    ///
    /// # Panics
    /// If there is not one valid pick for each layer.
    #[must_use]
    pub fn evaluate(&self, picks: &[usize]) -> (u64, u64) {
        let layers = self
            .groups
            .iter()
            .flat_map(|group| std::iter::repeat_n(group, group.count));
        let (mut kept, mut peak, mut time) = (0u64, 0u64, 0u64);
        let mut seen = 0;
        for ((group, &pick), &extra) in layers.zip(picks).zip(&self.extra) {
            let choice = group.choices[pick];
            peak = peak.max(kept + choice.peak + extra);
            kept += choice.kept;
            time += choice.time;
            seen += 1;
        }
        assert_eq!(seen, self.num_layers(), "picks");
        (time, peak.max(kept + self.after))
    }

    /// The least budget under which there is a solution.
    #[must_use]
    pub fn least_budget(&self) -> u64 {
        // Feasibility is monotone, so halving finds the edge.
        if self.groups.iter().any(|group| group.choices.is_empty()) {
            return u64::MAX;
        }
        // Times do not matter: of choices that keep as much, the one with the lowest peak is enough.
        let groups = self.groups.iter().map(|group| {
            let timeless = group
                .choices
                .iter()
                .map(|choice| Choice { time: 0, ..*choice });
            Group {
                count: group.count,
                choices: undominated(&timeless.collect::<Vec<_>>()).0,
            }
        });
        let mut problem = Self {
            groups: groups.collect(),
            ..self.clone()
        };
        let (_, mut high) = problem.evaluate(&vec![0; self.num_layers()]);
        let mut low = 0;
        while low < high {
            let middle = low + (high - low) / 2;
            problem.budget = middle;
            if problem.caps().is_some() {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        high
    }

    /// The choices that add the least time within the budget; `None` if nothing fits.
    ///
    /// # Panics
    /// If `extra` has another length than there are layers, or rises.
    #[must_use]
    pub fn solve(&self) -> Option<Solution> {
        assert_eq!(self.extra.len(), self.num_layers(), "extras of layers");
        assert!(
            self.extra.windows(2).all(|pair| pair[0] >= pair[1]),
            "extras must not rise"
        );
        if self
            .groups
            .iter()
            .any(|group| group.count > 0 && group.choices.is_empty())
        {
            return None;
        }
        let prepared = Prepared::new(self)?;
        let rough = prepared.search(Some(BEAM), u64::MAX);
        let upper = rough.as_ref().map_or(u64::MAX, |(time, _)| *time);
        let (_, picks) = prepared.search(None, upper).or(rough)?;
        let (time, peak) = self.evaluate(&picks);
        Some(Solution { picks, time, peak })
    }

    /// For each number of layers done, the most bytes they may keep so that the others still fit.
    fn caps(&self) -> Option<Vec<u64>> {
        let mut cap = self.budget.checked_sub(self.after)?;
        let mut caps = vec![cap];
        let mut layer = self.num_layers();
        for group in self.groups.iter().rev() {
            for _ in 0..group.count {
                layer -= 1;
                let extra = self.extra[layer];
                let room = |choice: &Choice| {
                    let during = self.budget.checked_sub(choice.peak + extra)?;
                    Some(during.min(cap.checked_sub(choice.kept)?))
                };
                cap = group.choices.iter().filter_map(room).max()?;
                caps.push(cap);
            }
        }
        caps.reverse();
        Some(caps)
    }
}

/// States kept in the rough search.
const BEAM: usize = 16;

/// Layers with the same choices, those sorted and without the useless ones.
struct Run {
    first: usize,
    count: usize,
    choices: Vec<Choice>,
    /// Where each choice stands in the problem.
    names: Vec<usize>,
    /// For each choice, those that no layer above needs to have taken beside it.
    needless: Rc<Vec<Set>>,
}

/// Some of the choices of a run.
type Set = [u64; SET_WORDS];
/// Runs with more choices than this has bits do without the rule of pairs.
const SET_WORDS: usize = 2;

struct Prepared<'a> {
    problem: &'a Problem,
    runs: Vec<Run>,
    /// For each number of lowest layers, what they can still do.
    below: Vec<Below>,
}

/// Makes equal times unequal: in multiples of a power of two, less a share of it that grows with the square of the kept
/// bytes, and that all layers together do not fill. The best solution stays one of the best, and among ways to spread
/// kept tensors over layers that cost the same, all but one become worse.
struct Unequal {
    shift: u32,
    most: u64,
    largest: u64,
}

impl Unequal {
    fn new(problem: &Problem) -> Self {
        let slowest = |group: &Group| {
            let slowest = group.choices.iter().map(|choice| choice.time).max();
            slowest.unwrap_or(0).saturating_mul(group.count as u64)
        };
        let total = problem
            .groups
            .iter()
            .map(slowest)
            .fold(0, u64::saturating_add);
        let shift = total.leading_zeros().saturating_sub(1).min(24);
        let choices = problem.groups.iter().flat_map(|group| &group.choices);
        Self {
            shift,
            most: (1 << shift) / (problem.num_layers() as u64 + 1),
            largest: choices.map(|choice| choice.kept).max().unwrap_or(0).max(1),
        }
    }

    fn times(&self, choices: &[Choice]) -> Vec<Choice> {
        let time = |choice: &Choice| {
            let share = choice.kept as f64 / self.largest as f64;
            let bonus = (share * share * self.most as f64) as u64;
            // One more, so that nothing falls below zero.
            ((choice.time + 1) << self.shift) - bonus.min(self.most)
        };
        choices
            .iter()
            .map(|choice| Choice {
                time: time(choice),
                ..*choice
            })
            .collect()
    }
}

/// A state: the uppermost layers are done.
#[derive(Clone, Copy)]
struct Node {
    parent: u32,
    pick: u32,
    /// What the layers below may keep.
    room: u64,
    time: u64,
    /// Choices that layers of the present run have taken.
    used: Set,
}

impl<'a> Prepared<'a> {
    fn new(problem: &'a Problem) -> Option<Self> {
        problem.caps()?;
        let unequal = Unequal::new(problem);
        let falls = problem.extra.windows(2).map(|pair| pair[0] - pair[1]);
        let fall = falls.max().unwrap_or(0);
        let mut runs = Vec::new();
        let mut first = 0;
        for group in &problem.groups {
            let (choices, names) = undominated(&unequal.times(&group.choices));
            let together = choices.iter().all(|choice| choice.kept >= fall);
            let size = if together { group.count } else { 1 };
            let needless = Rc::new(if size > 1 {
                needless_pairs(&choices)
            } else {
                vec![Set::default(); choices.len()]
            });
            let mut left = group.count;
            while left > 0 {
                runs.push(Run {
                    first,
                    count: size,
                    choices: choices.clone(),
                    names: names.clone(),
                    needless: needless.clone(),
                });
                first += size;
                left -= size;
            }
        }
        let below = Below::all(&runs, first);
        Some(Self {
            problem,
            runs,
            below,
        })
    }

    /// The best picks that take less time than `upper`; only the most promising states are followed where a
    /// `beam` is given.
    fn search(&self, beam: Option<usize>, upper: u64) -> Option<(u64, Vec<usize>)> {
        let mut nodes = vec![Node {
            parent: u32::MAX,
            pick: 0,
            room: self.problem.budget.checked_sub(self.problem.after)?,
            time: 0,
            used: Set::default(),
        }];
        let mut frontier = vec![0u32];
        for run in self.runs.iter().rev() {
            let mut levels: Vec<Vec<u32>> = vec![Vec::new(); run.count + 1];
            for &at in &frontier {
                nodes[at as usize].used = Set::default();
            }
            levels[0] = frontier;
            // The other way round than along the layers: the last of them takes the least surplus.
            for (pick, choice) in run.choices.iter().enumerate().rev() {
                for n in 0..run.count {
                    let layer = run.first + run.count - 1 - n;
                    let during = choice.peak + self.problem.extra[layer];
                    let Some(during) = self.problem.budget.checked_sub(during) else {
                        continue;
                    };
                    let below = &self.below[layer];
                    let needless = &run.needless[pick];
                    let mut made = Vec::new();
                    for &at in &levels[n] {
                        let node = nodes[at as usize];
                        if (0..SET_WORDS).any(|word| node.used[word] & needless[word] != 0) {
                            continue;
                        }
                        let Some(room) = node.room.checked_sub(choice.kept) else {
                            // Sorted by room: the others have less.
                            break;
                        };
                        let (room, time) = (room.min(during), node.time + choice.time);
                        match below.bound(room) {
                            None => break,
                            Some(bound) if time.saturating_add(bound) < upper => {}
                            Some(_) => continue,
                        }
                        let mut used = node.used;
                        if let Some(word) = used.get_mut(pick / 64) {
                            *word |= 1 << (pick % 64);
                        }
                        nodes.push(Node {
                            parent: at,
                            pick: pick as u32,
                            room,
                            time,
                            used,
                        });
                        made.push(nodes.len() as u32 - 1);
                    }
                    if !made.is_empty() {
                        let level = std::mem::take(&mut levels[n + 1]);
                        levels[n + 1] = merge(&nodes, level, made);
                        if let Some(width) = beam {
                            narrow(&nodes, &mut levels[n + 1], below, width);
                        }
                    }
                }
            }
            frontier = levels.pop()?;
        }
        let best = frontier
            .into_iter()
            .min_by_key(|&at| nodes[at as usize].time)?;
        Some((nodes[best as usize].time, self.picks(&nodes, best)))
    }

    fn picks(&self, nodes: &[Node], last: u32) -> Vec<usize> {
        let mut picks = Vec::with_capacity(self.problem.num_layers());
        let mut at = last;
        for run in &self.runs {
            for _ in 0..run.count {
                let node = nodes[at as usize];
                picks.push(run.names[node.pick as usize]);
                at = node.parent;
            }
        }
        picks
    }
}

/// Leaves the `width` most promising states, and the one with most room.
fn narrow(nodes: &[Node], level: &mut Vec<u32>, below: &Below, width: usize) {
    if level.len() <= width {
        return;
    }
    let most = level[0];
    let promise = |&at: &u32| {
        let node = nodes[at as usize];
        let bound = below.bound(node.room).unwrap_or(u64::MAX);
        (node.time.saturating_add(bound), at)
    };
    let mut ranked: Vec<(u64, u32)> = level.iter().map(promise).collect();
    ranked.select_nth_unstable(width);
    ranked.truncate(width);
    let mut kept: Vec<u32> = ranked.into_iter().map(|(_, at)| at).collect();
    if !kept.contains(&most) {
        kept.push(most);
    }
    kept.sort_unstable_by_key(|&at| std::cmp::Reverse(nodes[at as usize].room));
    *level = kept;
}

/// The states of both lists that no other dominates, those with most room first.
fn merge(nodes: &[Node], mut level: Vec<u32>, made: Vec<u32>) -> Vec<u32> {
    level.extend(made);
    level.sort_unstable_by_key(|&at| {
        let node = nodes[at as usize];
        (std::cmp::Reverse(node.room), node.time)
    });
    let mut best = u64::MAX;
    level.retain(|&at| {
        let better = nodes[at as usize].time < best;
        best = best.min(nodes[at as usize].time);
        better
    });
    level
}

/// Choices that no other one beats in everything, in the order in which identical layers take them.
fn undominated(choices: &[Choice]) -> (Vec<Choice>, Vec<usize>) {
    let mut order: Vec<usize> = (0..choices.len()).collect();
    order.sort_by_key(|&i| (choices[i].kept, choices[i].time, choices[i].peak));
    let mut left: Vec<usize> = Vec::new();
    for i in order {
        let choice = choices[i];
        let beaten = left.iter().any(|&j| {
            let other = choices[j];
            other.kept <= choice.kept && other.time <= choice.time && other.peak <= choice.peak
        });
        if !beaten {
            left.push(i);
        }
    }
    let surplus = |i: usize| i128::from(choices[i].peak) - i128::from(choices[i].kept);
    left.sort_by_key(|&i| (std::cmp::Reverse(surplus(i)), choices[i].kept));
    (left.iter().map(|&i| choices[i]).collect(), left)
}

/// The knapsack of the lowest layers with choices that may be mixed: everything at its smallest, and what more
/// bytes buy, best first.
#[derive(Clone, Default)]
struct Below {
    kept: u64,
    time: u64,
    /// Bytes and time saved up to and with each piece.
    bought: Vec<(u64, u64)>,
}

/// A stretch of a convex hull: these bytes save this time.
#[derive(Clone, Copy)]
struct Piece {
    bytes: u64,
    saves: u64,
}

impl Below {
    /// For each number of lowest layers.
    fn all(runs: &[Run], layers: usize) -> Vec<Self> {
        let hulls: Vec<(Choice, Vec<Piece>)> = runs.iter().map(|run| hull(&run.choices)).collect();
        // All pieces once, best first; each stage takes those of its layers.
        let mut pieces: Vec<(usize, Piece)> = Vec::new();
        for (i, (_, hull)) in hulls.iter().enumerate() {
            pieces.extend(hull.iter().map(|&piece| (i, piece)));
        }
        pieces.sort_by(|(_, a), (_, b)| {
            let (left, right) = (
                u128::from(a.saves) * u128::from(b.bytes),
                u128::from(b.saves) * u128::from(a.bytes),
            );
            right.cmp(&left)
        });
        let stage = |layers: usize| {
            let counts: Vec<u64> = runs
                .iter()
                .map(|run| layers.saturating_sub(run.first).min(run.count) as u64)
                .collect();
            let mut below = Self::default();
            for ((smallest, _), count) in hulls.iter().zip(&counts) {
                below.kept += smallest.kept * count;
                below.time += smallest.time * count;
            }
            let (mut bytes, mut saves) = (0, 0);
            for (run, piece) in pieces.iter().filter(|(run, _)| counts[*run] > 0) {
                bytes += piece.bytes * counts[*run];
                saves += piece.saves * counts[*run];
                below.bought.push((bytes, saves));
            }
            below
        };
        (0..=layers).map(stage).collect()
    }

    /// The least time that the layers can add within `room`; `None` if they cannot fit.
    fn bound(&self, room: u64) -> Option<u64> {
        let room = room.checked_sub(self.kept)?;
        let whole = self.bought.partition_point(|(bytes, _)| *bytes <= room);
        let (bytes, saves) = match whole {
            0 => (0, 0),
            n => self.bought[n - 1],
        };
        let part = match self.bought.get(whole) {
            Some((next_bytes, next_saves)) => {
                let (width, gain) = (next_bytes - bytes, next_saves - saves);
                let part = u128::from(room - bytes) * u128::from(gain);
                part.div_ceil(u128::from(width)) as u64
            }
            None => 0,
        };
        Some(self.time - (saves + part).min(self.time))
    }
}

/// For each choice of a lower layer, the choices of a layer above it that some other pair makes needless: the other
/// pair adds less time, keeps no more, and needs no more memory at either layer or between them. No best solution has
/// such a pair.
fn needless_pairs(choices: &[Choice]) -> Vec<Set> {
    let mut needless = vec![Set::default(); choices.len()];
    if choices.len() > 64 * SET_WORDS {
        return needless;
    }
    for (lower, a) in choices.iter().enumerate() {
        let instead: Vec<&Choice> = choices
            .iter()
            .filter(|c| c.kept <= a.kept && c.peak <= a.peak)
            .collect();
        // From the top downwards, choices come in the reverse of their order: the upper one has a later number.
        for (upper, b) in choices.iter().enumerate().skip(lower) {
            let (time, kept) = (a.time + b.time, a.kept + b.kept);
            let replaced = instead.iter().any(|c| {
                let (Some(most_time), Some(most_kept)) =
                    (time.checked_sub(c.time), kept.checked_sub(c.kept))
                else {
                    return false;
                };
                let most_peak = b.peak + (a.kept - c.kept);
                choices
                    .iter()
                    .any(|d| d.time < most_time && d.kept <= most_kept && d.peak <= most_peak)
            });
            if replaced {
                needless[lower][upper / 64] |= 1 << (upper % 64);
            }
        }
    }
    needless
}

/// The smallest choice, and the pieces of the lower convex hull of time over kept bytes behind it.
fn hull(choices: &[Choice]) -> (Choice, Vec<Piece>) {
    let mut points: Vec<Choice> = choices.to_vec();
    points.sort_by_key(|choice| (choice.kept, choice.time));
    let mut lower: Vec<Choice> = Vec::new();
    for point in points {
        if lower.last().is_some_and(|last| last.time <= point.time) {
            continue;
        }
        while let [.., a, b] = lower[..] {
            // b lies on or above the line from a to the point: it is no corner.
            let by_b = u128::from(a.time - b.time) * u128::from(point.kept - a.kept);
            let by_point = u128::from(a.time - point.time) * u128::from(b.kept - a.kept);
            if by_b > by_point {
                break;
            }
            lower.pop();
        }
        lower.push(point);
    }
    let pieces = lower.windows(2).map(|pair| Piece {
        bytes: pair[1].kept - pair[0].kept,
        saves: pair[0].time - pair[1].time,
    });
    (lower[0], pieces.collect())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;

    /// Every combination.
    fn brute_force(problem: &Problem) -> Option<u64> {
        fn go(problem: &Problem, sizes: &[usize], picks: &mut Vec<usize>, best: &mut Option<u64>) {
            if picks.len() == sizes.len() {
                let (time, peak) = problem.evaluate(picks);
                if peak <= problem.budget && best.is_none_or(|best| time < best) {
                    *best = Some(time);
                }
                return;
            }
            for pick in 0..sizes[picks.len()] {
                picks.push(pick);
                go(problem, sizes, picks, best);
                picks.pop();
            }
        }
        let sizes: Vec<usize> = problem
            .groups
            .iter()
            .flat_map(|group| std::iter::repeat_n(group.choices.len(), group.count))
            .collect();
        let mut best = None;
        go(problem, &sizes, &mut Vec::new(), &mut best);
        best
    }

    /// Layers whose choices are subsets of up to 4 tensors: bytes and time of each tensor, and what holding or
    /// rebuilding it takes while the layer is computed.
    fn group(max_layers: usize) -> impl Strategy<Value = Group> {
        let tensor = (0u64..40, 0u64..60, 0u64..30);
        let tensors = prop::collection::vec(tensor, 0..=4);
        (1..=max_layers, tensors, 0u64..20, 0u64..40).prop_map(|(count, tensors, input, base)| {
            let choices = (0..1u32 << tensors.len()).map(|set| {
                let mut choice = Choice {
                    kept: input,
                    peak: input + base,
                    time: 0,
                };
                for (i, (bytes, time, scratch)) in tensors.iter().enumerate() {
                    if set >> i & 1 == 1 {
                        choice.kept += bytes;
                        choice.peak += bytes;
                    } else {
                        choice.time += time;
                        choice.peak += scratch;
                    }
                }
                choice
            });
            Group {
                count,
                choices: choices.collect(),
            }
        })
    }

    fn problem() -> impl Strategy<Value = Problem> {
        let two = (group(2), group(2)).prop_map(|(a, b)| vec![a, b]);
        let one = group(4).prop_map(|group| vec![group]);
        let mixed = prop::collection::vec(group(1), 1..=4);
        (prop_oneof![one, two, mixed], 0u64..12, 0u64..80, 0u64..700).prop_map(
            |(groups, fall, after, budget)| {
                let layers: usize = groups.iter().map(|group| group.count).sum();
                Problem {
                    groups,
                    extra: (0..layers)
                        .map(|i| fall * (layers - 1 - i) as u64)
                        .collect(),
                    after,
                    budget,
                }
            },
        )
    }

    /// Up to six layers, which brute force can only do with fewer choices.
    fn six_layers() -> impl Strategy<Value = Problem> {
        let choice = (0u64..50, 0u64..50, 0u64..90).prop_map(|(kept, more, time)| Choice {
            kept,
            peak: kept + more,
            time,
        });
        let group = (1usize..=3, prop::collection::vec(choice, 1..=4))
            .prop_map(|(count, choices)| Group { count, choices });
        (
            prop::collection::vec(group, 1..=2),
            0u64..30,
            0u64..40,
            0u64..350,
        )
            .prop_map(|(groups, fall, after, budget)| {
                let layers: usize = groups.iter().map(|group| group.count).sum();
                Problem {
                    groups,
                    extra: (0..layers)
                        .map(|i| fall * (layers - 1 - i) as u64)
                        .collect(),
                    after,
                    budget,
                }
            })
    }

    fn check_optimal(problem: &Problem) -> Result<(), TestCaseError> {
        let solution = problem.solve();
        let expected = brute_force(problem);
        prop_assert_eq!(solution.as_ref().map(|s| s.time), expected);
        if let Some(solution) = solution {
            let (time, peak) = problem.evaluate(&solution.picks);
            prop_assert_eq!((time, peak), (solution.time, solution.peak));
            prop_assert!(peak <= problem.budget);
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn subsets_of_four_tensors_are_solved_optimally(problem in problem()) {
            check_optimal(&problem)?;
        }

        #[test]
        fn six_layers_are_solved_optimally(problem in six_layers()) {
            check_optimal(&problem)?;
        }

        #[test]
        fn more_memory_never_costs_time(problem in problem()) {
            let mut before: Option<u64> = None;
            for budget in (0..800).step_by(23) {
                let problem = Problem { budget, ..problem.clone() };
                let time = problem.solve().map(|solution| solution.time);
                if let Some(before) = before {
                    prop_assert!(time.is_some_and(|time| time <= before), "{budget}: {time:?} after {before}");
                }
                before = time;
            }
        }

        #[test]
        fn the_least_budget_is_the_edge(problem in six_layers()) {
            let least = problem.least_budget();
            let at = |budget| Problem { budget, ..problem.clone() }.solve();
            prop_assert!(at(least).is_some());
            if least > 0 {
                prop_assert!(at(least - 1).is_none());
            }
        }
    }

    #[test]
    fn eighty_layers_of_ten_tensors_are_solved_quickly() {
        // Not a test of speed but of the search's size: minutes would mean that a bound is lost.
        let bytes = [64, 64, 16, 16, 65, 64, 64, 224, 224, 224u64];
        let time = [3, 70, 18, 19, 90, 75, 3, 230, 231, 8u64];
        let choices: Vec<Choice> = (0..1u64 << 10)
            .map(|set| {
                let sum = |values: &[u64], kept: u64| -> u64 {
                    (0..10)
                        .filter(|i| set >> i & 1 == kept)
                        .map(|i| values[i])
                        .sum()
                };
                let kept = 64 + sum(&bytes, 1);
                Choice {
                    kept,
                    peak: kept + 300 + sum(&bytes, 0) / 2,
                    time: sum(&time, 0),
                }
            })
            .collect();
        let group = Group { count: 80, choices };
        let mut problem = Problem {
            groups: vec![group],
            extra: vec![0; 80],
            after: 500,
            budget: 0,
        };
        let least = problem.least_budget();
        let began = Instant::now();
        for i in 0..8 {
            problem.budget = least + i * 10_000;
            assert!(problem.solve().is_some());
        }
        assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    }
}
