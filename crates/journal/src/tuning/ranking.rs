//! Which of the trials of a sweep is the best, and how sure that is.

use std::fmt;

use serde::Serialize;

use super::trial::{Measure, Settings, Standing, TrialReport};

/// The key whose values are repetitions of one setting.
const SEED: &str = "seed";
/// Standard errors that a difference must exceed.
const ERRORS: f64 = 2.0;

/// Trials in their order, and what follows from it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    /// The best first: those at their end, then dropped ones by how far they came, those that are not done, failed ones.
    pub trials: Vec<TrialReport>,
    /// Settings whose trials are at their end, the best first; trials that differ in `seed` alone are one.
    pub settings: Vec<SettingReport>,
    /// The best of them; none while no trial is at its end.
    pub recommendation: Option<Recommendation>,
}

/// A setting, over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SettingReport {
    /// Without the seed.
    pub settings: Settings,
    /// Its trials that are at their end.
    pub trials: Vec<usize>,
    /// Mean of their scores.
    pub mean: f64,
    /// Standard deviation of their scores, where there are several.
    pub deviation: Option<f64>,
}

/// What to take, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recommendation {
    /// The best setting, without the seed.
    pub settings: Settings,
    /// Its mean score.
    pub mean: f64,
    /// The next best setting.
    pub next: Option<Settings>,
    /// By how much that one is worse, 0 or more.
    pub difference: Option<f64>,
    /// Whether that is more than chance.
    pub confidence: Confidence,
    /// Sentences for people.
    pub evidence: Vec<String>,
}

/// Whether the best setting is better than the next by more than chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Confidence {
    /// There is no other.
    Alone,
    /// Every setting has one seed: nobody knows what chance does.
    Unknown,
    /// The difference is no more than this: two standard errors of it.
    WithinNoise {
        /// By the spread over seeds.
        noise: f64,
    },
    /// The difference is more than this.
    Clear {
        /// By the spread over seeds.
        noise: f64,
    },
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone => write!(f, "there is nothing to compare it with"),
            Self::Unknown => write!(
                f,
                "whether that is more than chance is not known: each setting has one seed; seed = [1, 2, 3] in [sweep] tells"
            ),
            Self::WithinNoise { noise } => write!(
                f,
                "within the noise, which is {noise:.4} (two standard errors of a difference, by the spread over seeds)"
            ),
            Self::Clear { noise } => write!(
                f,
                "more than the noise, which is {noise:.4} (two standard errors of a difference, by the spread over seeds)"
            ),
        }
    }
}

/// Orders the trials of a sweep.
#[must_use]
pub fn rank(mut trials: Vec<TrialReport>, measure: &Measure) -> Ranking {
    trials.sort_by(|a, b| {
        let cost = |trial: &TrialReport| {
            let score = trial.score.map(|score| measure.cost(score.value));
            score.unwrap_or(f64::INFINITY)
        };
        let further = match (a.standing, b.standing) {
            (Standing::Dropped, Standing::Dropped) => b.steps.cmp(&a.steps),
            _ => std::cmp::Ordering::Equal,
        };
        let standing = place(a.standing).cmp(&place(b.standing));
        let score = cost(a).total_cmp(&cost(b));
        standing
            .then(further)
            .then(score)
            .then(a.trial.cmp(&b.trial))
    });
    let settings = settings(&trials, measure);
    let recommendation = recommendation(&settings, &trials, measure);
    Ranking {
        trials,
        settings,
        recommendation,
    }
}

const fn place(standing: Standing) -> usize {
    match standing {
        Standing::Finished => 0,
        Standing::Dropped => 1,
        Standing::Begun => 2,
        Standing::Waiting => 3,
        Standing::Failed => 4,
    }
}

fn settings(trials: &[TrialReport], measure: &Measure) -> Vec<SettingReport> {
    let mut groups: Vec<(Settings, Vec<usize>, Vec<f64>)> = Vec::new();
    let finished = trials
        .iter()
        .filter(|trial| trial.standing == Standing::Finished);
    for (trial, score) in finished.filter_map(|trial| Some((trial, trial.score?))) {
        let settings = trial.settings.without(SEED);
        match groups.iter_mut().find(|(known, ..)| *known == settings) {
            Some((_, trials, scores)) => {
                trials.push(trial.trial);
                scores.push(score.value);
            }
            None => groups.push((settings, vec![trial.trial], vec![score.value])),
        }
    }
    let groups = groups.into_iter();
    let mut settings: Vec<SettingReport> = groups
        .map(|(settings, trials, scores)| {
            let count = scores.len() as f64;
            let mean = scores.iter().sum::<f64>() / count;
            let squares: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
            SettingReport {
                settings,
                trials,
                mean,
                deviation: (scores.len() > 1).then(|| (squares / (count - 1.0)).sqrt()),
            }
        })
        .collect();
    settings.sort_by(|a, b| measure.cost(a.mean).total_cmp(&measure.cost(b.mean)));
    settings
}

/// Standard deviation of one score, by the spread of all settings over their seeds.
fn spread(settings: &[SettingReport]) -> Option<f64> {
    let (mut squares, mut freedom) = (0.0, 0.0);
    for setting in settings {
        if let Some(deviation) = setting.deviation {
            let degrees = setting.trials.len() as f64 - 1.0;
            squares += deviation.powi(2) * degrees;
            freedom += degrees;
        }
    }
    (freedom > 0.0).then(|| (squares / freedom).sqrt())
}

fn recommendation(
    settings: &[SettingReport],
    trials: &[TrialReport],
    measure: &Measure,
) -> Option<Recommendation> {
    let (best, others) = settings.split_first()?;
    let next = others.first();
    let difference = next.map(|next| measure.cost(next.mean) - measure.cost(best.mean));
    let confidence = match (next, difference, spread(settings)) {
        (Some(next), Some(difference), Some(spread)) => {
            let share = |setting: &SettingReport| 1.0 / setting.trials.len() as f64;
            let noise = ERRORS * spread * (share(best) + share(next)).sqrt();
            match difference > noise {
                true => Confidence::Clear { noise },
                false => Confidence::WithinNoise { noise },
            }
        }
        (Some(_), _, _) => Confidence::Unknown,
        (None, ..) => Confidence::Alone,
    };
    let name = &measure.name;
    let mut evidence = vec![format!(
        "best: {}: {name} {}",
        shown(&best.settings),
        with_spread(best)
    )];
    if let (Some(next), Some(difference)) = (next, difference) {
        evidence.push(format!(
            "next: {}: {name} {}, worse by {difference:.4}: {confidence}",
            shown(&next.settings),
            with_spread(next)
        ));
    }
    if let Confidence::WithinNoise { noise } = confidence {
        let cost = measure.cost(best.mean);
        let as_good = others
            .iter()
            .filter(|other| measure.cost(other.mean) - cost <= noise);
        let as_good: Vec<String> = as_good.map(|other| shown(&other.settings)).collect();
        evidence.push(format!(
            "as good, as far as can be told: {}",
            as_good.join("; ")
        ));
    }
    evidence.extend(edges(&best.settings, trials));
    let failed = trials
        .iter()
        .filter(|trial| trial.standing == Standing::Failed)
        .count();
    if failed > 0 {
        evidence.push(format!("{failed} of {} trials failed", trials.len()));
    }
    Some(Recommendation {
        settings: best.settings.clone(),
        mean: best.mean,
        next: next.map(|next| next.settings.clone()),
        difference,
        confidence,
        evidence,
    })
}

fn shown(settings: &Settings) -> String {
    match settings.0.is_empty() {
        true => "the recipe's own settings".to_owned(),
        false => settings.to_string(),
    }
}

fn with_spread(setting: &SettingReport) -> String {
    match setting.deviation {
        Some(deviation) => format!(
            "{:.4} ± {deviation:.4} over {} seeds",
            setting.mean,
            setting.trials.len()
        ),
        None => format!("{:.4}", setting.mean),
    }
}

/// Keys whose best value is the lowest or the highest that was tried, of three or more.
fn edges(best: &Settings, trials: &[TrialReport]) -> Vec<String> {
    let number = |text: &str| text.parse::<f64>().ok();
    let edge = |(key, value): &(String, String)| {
        let value_number = number(value)?;
        let tried = trials.iter().map(|trial| number(trial.settings.get(key)?));
        let mut tried: Vec<f64> = tried.collect::<Option<_>>()?;
        tried.sort_by(f64::total_cmp);
        tried.dedup();
        let (first, last) = (*tried.first()?, *tried.last()?);
        let end = match tried.len() {
            ..3 => return None,
            _ if value_number == first => "lowest",
            _ if value_number == last => "highest",
            _ => return None,
        };
        Some(format!(
            "{key} = {value} is the {end} that was tried: beyond it may be a better one"
        ))
    };
    best.0.iter().filter_map(edge).collect()
}

#[cfg(test)]
mod tests {
    use super::super::trial::Score;
    use super::*;

    fn measure() -> Measure {
        Measure {
            name: "eval loss".to_owned(),
            higher_is_better: false,
            held_out: true,
        }
    }

    fn trial(
        number: usize,
        settings: &[(&str, &str)],
        standing: Standing,
        value: f64,
    ) -> TrialReport {
        let pairs = settings
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        TrialReport {
            trial: number,
            settings: Settings(pairs.collect()),
            standing,
            steps: 10,
            score: value.is_finite().then_some(Score { step: 10, value }),
            ..TrialReport::default()
        }
    }

    fn rates(scores: &[(&str, &str, f64)]) -> Ranking {
        let trials = scores.iter().enumerate().map(|(i, (rate, seed, value))| {
            let settings = [("train.learning_rate", *rate), ("seed", *seed)];
            trial(i + 1, &settings, Standing::Finished, *value)
        });
        rank(trials.collect(), &measure())
    }

    #[test]
    fn finished_trials_come_first_and_failed_ones_last() {
        let trials = vec![
            trial(1, &[], Standing::Failed, f64::NAN),
            trial(2, &[], Standing::Waiting, f64::NAN),
            trial(3, &[], Standing::Dropped, 0.5),
            trial(4, &[], Standing::Finished, 1.0),
            trial(5, &[], Standing::Finished, 0.9),
            TrialReport {
                steps: 20,
                ..trial(6, &[], Standing::Dropped, 0.7)
            },
        ];
        let order: Vec<usize> = rank(trials, &measure())
            .trials
            .iter()
            .map(|trial| trial.trial)
            .collect();
        assert_eq!(order, [5, 4, 6, 3, 2, 1]);
    }

    #[test]
    fn a_difference_is_held_against_the_spread_over_seeds() {
        let ranking = rates(&[
            ("1e-4", "1", 1.50),
            ("1e-4", "2", 1.54),
            ("1e-3", "1", 1.10),
            ("1e-3", "2", 1.14),
            ("3e-4", "1", 1.13),
            ("3e-4", "2", 1.17),
        ]);
        let best = ranking.recommendation.unwrap();
        assert_eq!(best.settings.get("train.learning_rate"), Some("1e-3"));
        assert_eq!(best.settings.get("seed"), None);
        // Each deviation is 0.02·√2, the standard error of a difference the same.
        let Confidence::WithinNoise { noise } = best.confidence else {
            panic!("{:?}", best.confidence);
        };
        assert!((noise - 2.0 * 0.02 * 2f64.sqrt()).abs() < 1e-12, "{noise}");
        assert!((best.difference.unwrap() - 0.03).abs() < 1e-12);
        let told = best.evidence.join("\n");
        for part in [
            "best: train.learning_rate = 1e-3: eval loss 1.1200 ± 0.0283 over 2 seeds",
            "next: train.learning_rate = 3e-4: eval loss 1.1500",
            "within the noise, which is 0.0566",
            "as good, as far as can be told: train.learning_rate = 3e-4",
            "is the highest that was tried",
        ] {
            assert!(told.contains(part), "{part} is not in\n{told}");
        }
        let clear = rates(&[
            ("1e-4", "1", 1.50),
            ("1e-4", "2", 1.51),
            ("1e-3", "1", 1.10),
            ("1e-3", "2", 1.11),
        ]);
        let clear = clear.recommendation.unwrap();
        assert!(
            matches!(clear.confidence, Confidence::Clear { .. }),
            "{clear:?}"
        );
        // Two values have no inside: nothing is said of edges.
        assert_eq!(clear.evidence.len(), 2);
    }

    #[test]
    fn one_seed_each_tells_nothing_of_chance_and_more_may_be_better() {
        let ranking = rates(&[("1e-4", "1", 1.5), ("1e-3", "1", 1.1)]);
        let best = ranking.recommendation.unwrap();
        assert_eq!(best.confidence, Confidence::Unknown);
        assert!(best.evidence[1].contains("each setting has one seed"));
        let accuracy = Measure {
            higher_is_better: true,
            ..measure()
        };
        let trials = vec![
            trial(1, &[("lora.rank", "4")], Standing::Finished, 0.6),
            trial(2, &[("lora.rank", "8")], Standing::Finished, 0.7),
        ];
        let best = rank(trials, &accuracy).recommendation.unwrap();
        assert_eq!(best.settings.get("lora.rank"), Some("8"));
        assert!((best.difference.unwrap() - 0.1).abs() < 1e-12);
        let alone = rank(vec![trial(1, &[], Standing::Finished, 0.6)], &accuracy);
        assert_eq!(alone.recommendation.unwrap().confidence, Confidence::Alone);
        let nothing = rank(vec![trial(1, &[], Standing::Failed, f64::NAN)], &accuracy);
        assert_eq!(nothing.recommendation, None);
    }
}
