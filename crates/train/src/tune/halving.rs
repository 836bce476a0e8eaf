//! Successive halving: how far each trial goes before the best of them go further.
//!
//! # Source
//! Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016.

/// Steps after which trials are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Halving {
    factor: usize,
    /// Of each trial, rising; the last one is its end. Of all the same number.
    rungs: Vec<Vec<usize>>,
}

impl Halving {
    /// For trials of so many steps each, which are evaluated after every so many; `factor` is at least 2.
    ///
    /// Each rung has `factor` times the steps of the one before, rounded up to an evaluation. There are as many as leave one
    /// trial or more at the last, or fewer where evaluations do not lie close enough.
    #[must_use]
    pub fn new(trials: &[(usize, usize)], factor: usize) -> Self {
        let reductions = trials.len().max(1).ilog(factor) as usize;
        let rungs = |reductions: usize| -> Vec<Vec<usize>> {
            let of = |&(total, every): &(usize, usize)| -> Vec<usize> {
                let rung = |k: usize| {
                    let share = total.div_ceil(factor.pow((reductions - k) as u32));
                    let at = share.max(1).next_multiple_of(every.max(1));
                    if k == reductions {
                        total
                    } else {
                        at.min(total)
                    }
                };
                (0..=reductions).map(rung).collect()
            };
            trials.iter().map(of).collect()
        };
        let rises = |rungs: &Vec<Vec<usize>>| {
            let mut all = rungs.iter().flat_map(|rungs| rungs.windows(2));
            all.all(|pair| pair[0] < pair[1])
        };
        let fewer = (0..=reductions).rev();
        let rungs = fewer.map(rungs).find(rises).unwrap_or_default();
        Self { factor, rungs }
    }

    /// How often trials are compared before the end.
    #[must_use]
    pub fn reductions(&self) -> usize {
        self.rungs.first().map_or(0, |rungs| rungs.len() - 1)
    }

    /// The step of a trial, counted from 0, at a rung.
    #[must_use]
    pub fn step(&self, trial: usize, rung: usize) -> usize {
        self.rungs[trial][rung]
    }

    /// How many trials go on after a rung: one at least.
    #[must_use]
    pub fn keeps(&self, rung: usize) -> usize {
        let part = self.factor.pow(rung as u32 + 1);
        (self.rungs.len() / part).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(halving: &Halving, trial: usize) -> Vec<usize> {
        (0..=halving.reductions())
            .map(|rung| halving.step(trial, rung))
            .collect()
    }

    #[test]
    fn each_rung_has_a_third_of_the_trials_and_three_times_the_steps() {
        let halving = Halving::new(&[(270, 1); 27], 3);
        assert_eq!(steps(&halving, 26), [10, 30, 90, 270]);
        let kept: Vec<usize> = (0..halving.reductions())
            .map(|rung| halving.keeps(rung))
            .collect();
        assert_eq!(kept, [9, 3, 1]);
        let halving = Halving::new(&[(100, 1); 12], 3);
        assert_eq!(steps(&halving, 0), [12, 34, 100]);
        assert_eq!((halving.keeps(0), halving.keeps(1)), (4, 1));
        let halving = Halving::new(&[(100, 1); 4], 2);
        assert_eq!(steps(&halving, 0), [25, 50, 100]);
        assert_eq!((halving.keeps(0), halving.keeps(1)), (2, 1));
    }

    #[test]
    fn rungs_are_evaluations_and_there_are_fewer_where_those_are_far_apart() {
        let halving = Halving::new(&[(270, 20); 27], 3);
        assert_eq!(steps(&halving, 0), [20, 40, 100, 270]);
        let halving = Halving::new(&[(270, 50); 27], 3);
        // 10 and 30 would both be 50.
        assert_eq!(steps(&halving, 0), [50, 100, 270]);
        assert_eq!((halving.keeps(0), halving.keeps(1)), (9, 3));
        // One evaluation at the end leaves nothing to compare on the way.
        assert_eq!(steps(&Halving::new(&[(20, 50); 9], 3), 0), [20]);
    }

    #[test]
    fn few_trials_or_steps_end_at_once() {
        assert_eq!(steps(&Halving::new(&[(100, 1); 2], 3), 1), [100]);
        assert_eq!(steps(&Halving::new(&[(2, 1); 27], 3), 0), [1, 2]);
        assert_eq!(Halving::new(&[], 3).reductions(), 0);
    }

    #[test]
    fn trials_of_different_lengths_have_as_many_rungs() {
        let halving = Halving::new(
            &[
                (90, 1),
                (9, 1),
                (900, 100),
                (90, 1),
                (90, 1),
                (90, 1),
                (90, 1),
                (90, 1),
                (90, 1),
            ],
            3,
        );
        assert_eq!(steps(&halving, 0), [10, 30, 90]);
        assert_eq!(steps(&halving, 1), [1, 3, 9]);
        assert_eq!(steps(&halving, 2), [100, 300, 900]);
    }
}
