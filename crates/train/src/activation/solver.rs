//! The exact choice: least added time under a budget for the peak of the whole step.
//!
//! Layer i (first to last) takes a [`Choice`]. With Sᵢ the bytes kept by layers 1 to i, a step fits if for every
//! layer Sᵢ₋₁ + peakᵢ + extraᵢ ≤ budget, and Sₙ + after ≤ budget. The time is a sum.
//!
//! The search is a dynamic programme over (layers done, bytes kept) that holds the states no other dominates and
//! drops those that cannot be completed or cannot beat the best solution known. What layers can still cost is
//! bounded from below by the linear relaxation of the knapsack that remains.
//!
//! Identical layers are interchangeable, so only one order of their choices is tried: the one that puts the
//! largest difference between peak and kept bytes first. Exchanging two neighbours into that order never raises
//! the peak, because bytes kept below are fewest for the first layer (Liu 1987's argument for pebbling
//! sequences), as long as no layer keeps less than `extra` falls by from one layer to the next; where one does,
//! layers are treated one by one.

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
const BEAM: usize = 48;
/// How far below the last layer the other relaxations end.
const ENDS: [usize; 3] = [0, 1, 3];

/// Layers with the same choices, those sorted and without the useless ones.
struct Run {
    first: usize,
    count: usize,
    choices: Vec<Choice>,
    /// Where each choice stands in the problem.
    names: Vec<usize>,
}

struct Prepared<'a> {
    problem: &'a Problem,
    runs: Vec<Run>,
    caps: Vec<u64>,
    relaxations: Vec<Relaxation>,
}

/// A state: some layers done.
#[derive(Clone, Copy)]
struct Node {
    parent: u32,
    pick: u32,
    kept: u64,
    time: u64,
}

impl<'a> Prepared<'a> {
    fn new(problem: &'a Problem) -> Option<Self> {
        let caps = problem.caps()?;
        let falls = problem.extra.windows(2).map(|pair| pair[0] - pair[1]);
        let fall = falls.max().unwrap_or(0);
        let mut runs = Vec::new();
        let mut first = 0;
        for group in &problem.groups {
            let (choices, names) = undominated(&group.choices);
            let together = choices.iter().all(|choice| choice.kept >= fall);
            let size = if together { group.count } else { 1 };
            let mut left = group.count;
            while left > 0 {
                runs.push(Run {
                    first,
                    count: size,
                    choices: choices.clone(),
                    names: names.clone(),
                });
                first += size;
                left -= size;
            }
        }
        let ends = if runs.len() > 16 {
            &ENDS[..2]
        } else {
            &ENDS[..]
        };
        let relaxations = ends
            .iter()
            .filter_map(|below| first.checked_sub(*below))
            .map(|end| Relaxation::new(&runs, end, caps[end]))
            .collect();
        Some(Self {
            problem,
            runs,
            caps,
            relaxations,
        })
    }

    /// The least that the layers after the first `done` can add; `None` if they cannot fit.
    fn bound(&self, done: usize, kept: u64) -> Option<u64> {
        let mut bound = 0;
        for relaxation in &self.relaxations {
            if done <= relaxation.end {
                bound = bound.max(relaxation.bound(done, kept)?);
            }
        }
        Some(bound)
    }

    /// The best picks that take less time than `upper`; only the most promising states are followed where a
    /// `beam` is given.
    fn search(&self, beam: Option<usize>, upper: u64) -> Option<(u64, Vec<usize>)> {
        let mut nodes = vec![Node {
            parent: u32::MAX,
            pick: 0,
            kept: 0,
            time: 0,
        }];
        let mut frontier = vec![0u32];
        for run in &self.runs {
            let mut levels: Vec<Vec<u32>> = vec![Vec::new(); run.count + 1];
            levels[0] = frontier;
            for (pick, choice) in run.choices.iter().enumerate() {
                for n in 0..run.count {
                    let layer = run.first + n;
                    let mut made = Vec::new();
                    for &at in &levels[n] {
                        let node = nodes[at as usize];
                        if node.kept + choice.peak + self.problem.extra[layer] > self.problem.budget
                        {
                            // Sorted by kept bytes: the others have more.
                            break;
                        }
                        let (kept, time) = (node.kept + choice.kept, node.time + choice.time);
                        if kept > self.caps[layer + 1] {
                            break;
                        }
                        if time >= upper {
                            continue;
                        }
                        match self.bound(layer + 1, kept) {
                            Some(bound) if time.saturating_add(bound) < upper => {}
                            _ => continue,
                        }
                        nodes.push(Node {
                            parent: at,
                            pick: pick as u32,
                            kept,
                            time,
                        });
                        made.push(nodes.len() as u32 - 1);
                    }
                    if !made.is_empty() {
                        let level = std::mem::take(&mut levels[n + 1]);
                        levels[n + 1] = merge(&nodes, level, made);
                        if let Some(width) = beam {
                            self.narrow(&nodes, &mut levels[n + 1], layer + 1, width);
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

    /// Leaves the `width` most promising states, and the one that keeps least.
    fn narrow(&self, nodes: &[Node], level: &mut Vec<u32>, done: usize, width: usize) {
        if level.len() <= width {
            return;
        }
        let least = level[0];
        let promise = |&at: &u32| {
            let node = nodes[at as usize];
            let bound = self.bound(done, node.kept).unwrap_or(u64::MAX);
            node.time.saturating_add(bound)
        };
        let mut ranked: Vec<(u64, u32)> = level.iter().map(|at| (promise(at), *at)).collect();
        ranked.sort_unstable();
        ranked.truncate(width);
        let mut kept: Vec<u32> = ranked.into_iter().map(|(_, at)| at).collect();
        if !kept.contains(&least) {
            kept.push(least);
        }
        kept.sort_unstable_by_key(|&at| nodes[at as usize].kept);
        *level = kept;
    }

    fn picks(&self, nodes: &[Node], last: u32) -> Vec<usize> {
        let mut picks = Vec::with_capacity(self.problem.num_layers());
        let mut at = last;
        for run in self.runs.iter().rev() {
            for _ in 0..run.count {
                let node = nodes[at as usize];
                picks.push(run.names[node.pick as usize]);
                at = node.parent;
            }
        }
        picks.reverse();
        picks
    }
}

/// The states of both lists that no other dominates, by kept bytes.
fn merge(nodes: &[Node], mut level: Vec<u32>, made: Vec<u32>) -> Vec<u32> {
    level.extend(made);
    level.sort_unstable_by_key(|&at| (nodes[at as usize].kept, nodes[at as usize].time));
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

/// The knapsack of the layers up to `end` with choices that may be mixed.
struct Relaxation {
    end: usize,
    cap: u64,
    /// What the layers after `end` add at least.
    tail: u64,
    /// For each number of layers done.
    stages: Vec<Stage>,
}

/// What remains: everything at its smallest, and what more bytes buy, best first.
#[derive(Clone, Default)]
struct Stage {
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

impl Relaxation {
    fn new(runs: &[Run], end: usize, cap: u64) -> Self {
        let least = |run: &Run| run.choices.iter().map(|c| c.time).min().unwrap_or(0);
        let tail = runs
            .iter()
            .map(|run| {
                least(run) * (run.first + run.count).saturating_sub(end.max(run.first)) as u64
            })
            .sum();
        let hulls: Vec<(Choice, Vec<Piece>)> = runs.iter().map(|run| hull(&run.choices)).collect();
        // All pieces once, best first; each stage takes those of the layers that remain.
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
        let stages = (0..=end).map(|done| {
            let remaining = |run: &Run| {
                let last = (run.first + run.count).min(end);
                last.saturating_sub(run.first.max(done)) as u64
            };
            let counts: Vec<u64> = runs.iter().map(remaining).collect();
            let mut stage = Stage::default();
            for ((smallest, _), count) in hulls.iter().zip(&counts) {
                stage.kept += smallest.kept * count;
                stage.time += smallest.time * count;
            }
            let (mut bytes, mut saves) = (0, 0);
            for (run, piece) in pieces.iter().filter(|(run, _)| counts[*run] > 0) {
                bytes += piece.bytes * counts[*run];
                saves += piece.saves * counts[*run];
                stage.bought.push((bytes, saves));
            }
            stage
        });
        Self {
            end,
            cap,
            tail,
            stages: stages.collect(),
        }
    }

    fn bound(&self, done: usize, kept: u64) -> Option<u64> {
        let stage = &self.stages[done];
        let room = self.cap.checked_sub(kept)?.checked_sub(stage.kept)?;
        let whole = stage.bought.partition_point(|(bytes, _)| *bytes <= room);
        let (bytes, saves) = match whole {
            0 => (0, 0),
            n => stage.bought[n - 1],
        };
        let part = match stage.bought.get(whole) {
            Some((next_bytes, next_saves)) => {
                let (width, gain) = (next_bytes - bytes, next_saves - saves);
                let part = u128::from(room - bytes) * u128::from(gain);
                part.div_ceil(u128::from(width)) as u64
            }
            None => 0,
        };
        Some((stage.time - (saves + part).min(stage.time)) + self.tail)
    }
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
