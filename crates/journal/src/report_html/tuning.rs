//! The page of a sweep, and that of a range test.

use std::fmt::Write;

use super::svg::{Axis, Curve, Mark, figure_over};
use super::{STYLE, escape};
use crate::tuning::{RangePoint, RangeTest, Standing, TrialReport, TuneReport};

/// Curves of one figure; of more trials the best are drawn.
const CURVES: usize = 12;

fn head(title: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>Backdraft: {title}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n"
    )
}

fn list(sentences: &[String]) -> String {
    let items: String = sentences
        .iter()
        .map(|sentence| format!("<li>{}</li>\n", escape(sentence)))
        .collect();
    format!("<ul>\n{items}</ul>\n")
}

/// The page of a sweep of `model`.
#[must_use]
pub fn tuning_page(report: &TuneReport, model: &str) -> String {
    let mut html = head(&format!("{}: settings by {}", model, report.method));
    if let Some(recommendation) = &report.ranking.recommendation {
        html.push_str("<h2>Recommended</h2>\n");
        html.push_str(&list(&recommendation.evidence));
    }
    html.push_str("<h2>Trials</h2>\n");
    html.push_str(&trials(report));
    if report
        .ranking
        .settings
        .iter()
        .any(|one| one.deviation.is_some())
    {
        html.push_str("<h2>Settings over their seeds</h2>\n");
        html.push_str(&settings(report));
    }
    html.push_str("<h2>Curves</h2>\n<div class=\"figures\">\n");
    let name = capital(&report.measure.name);
    html.push_str(&figure_over(&name, &Axis::steps(), &curves(report)));
    for key in &report.keys {
        html.push_str(&by_key(report, key));
    }
    html.push_str("</div>\n");
    let _ = writeln!(
        html,
        "<p>{:.1} s in all, {:.1} s of them steps; the base was read {}.</p>",
        report.seconds,
        report.step_seconds,
        match report.base_loads {
            1 => "once".to_owned(),
            loads => format!("{loads} times"),
        }
    );
    html.push_str("</body></html>\n");
    html
}

fn trials(report: &TuneReport) -> String {
    let mut html = "<table>\n<tr><th></th><th>trial</th>".to_owned();
    for key in &report.keys {
        let _ = write!(html, "<th>{}</th>", escape(key));
    }
    let _ = writeln!(
        html,
        "<th>{}</th><th>at step</th><th>steps</th><th></th></tr>",
        escape(&report.measure.name)
    );
    for (place, trial) in report.ranking.trials.iter().enumerate() {
        let place = match trial.standing {
            Standing::Finished => (place + 1).to_string(),
            _ => String::new(),
        };
        let _ = write!(html, "<tr><td>{place}</td><td>{}</td>", trial.trial);
        for key in &report.keys {
            let value = trial.settings.get(key).unwrap_or_default();
            let _ = write!(html, "<td>{}</td>", escape(value));
        }
        let (value, step) = match trial.score {
            Some(score) => (format!("{:.4}", score.value), score.step.to_string()),
            None => ("–".to_owned(), "–".to_owned()),
        };
        let standing = match &trial.reason {
            Some(reason) => format!("{}: {reason}", trial.standing),
            None => trial.standing.to_string(),
        };
        let _ = writeln!(
            html,
            "<td>{value}</td><td>{step}</td><td>{} of {}</td><td>{}</td></tr>",
            trial.steps,
            trial.total_steps,
            escape(&standing)
        );
    }
    html.push_str("</table>\n");
    html
}

fn settings(report: &TuneReport) -> String {
    let mut html = format!(
        "<table>\n<tr><th>setting</th><th>{}, mean</th><th>standard deviation</th><th>seeds</th></tr>\n",
        escape(&report.measure.name)
    );
    for setting in &report.ranking.settings {
        let deviation = setting
            .deviation
            .map_or("–".to_owned(), |value| format!("{value:.4}"));
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{:.4}</td><td>{deviation}</td><td>{}</td></tr>",
            escape(&setting.settings.to_string()),
            setting.mean,
            setting.trials.len()
        );
    }
    html.push_str("</table>\n");
    html
}

/// The scores of each trial over its steps, of the best ones.
fn curves(report: &TuneReport) -> Vec<Curve> {
    let told = report
        .ranking
        .trials
        .iter()
        .filter(|trial| !trial.scores.is_empty());
    let curve = |(place, trial): (usize, &TrialReport)| Curve {
        name: format!("{}: {}", trial.trial, trial.settings),
        run: place,
        mark: match trial.scores.len() {
            1 => Mark::Dots,
            _ => Mark::Line,
        },
        points: trial
            .scores
            .iter()
            .map(|score| (score.step as f64, score.value))
            .collect(),
    };
    told.take(CURVES).enumerate().map(curve).collect()
}

/// Scores over the values of a key, where those are numbers.
fn by_key(report: &TuneReport, key: &str) -> String {
    let point = |trial: &TrialReport| {
        let value: f64 = trial.settings.get(key)?.parse().ok()?;
        Some((value, trial.score?.value))
    };
    let of = |standing: Standing| -> Vec<(f64, f64)> {
        let trials = report.ranking.trials.iter();
        trials
            .filter(|trial| trial.standing == standing)
            .filter_map(point)
            .collect()
    };
    let (finished, dropped) = (of(Standing::Finished), of(Standing::Dropped));
    let values = || finished.iter().chain(&dropped).map(|point| point.0);
    let (lowest, highest) = (
        values().fold(f64::INFINITY, f64::min),
        values().fold(0.0, f64::max),
    );
    // A tenfold or more has equal distances for equal factors.
    let log = lowest > 0.0 && highest / lowest >= 10.0;
    let axis = match log {
        true => Axis::log10(key),
        false => Axis::named(key),
    };
    let placed = |points: Vec<(f64, f64)>| {
        points
            .into_iter()
            .map(|(x, y)| (axis.place(x), y))
            .collect()
    };
    let curves = [("at its end", 0, finished), ("dropped", 1, dropped)];
    let curves: Vec<Curve> = curves
        .into_iter()
        .map(|(name, run, points)| Curve {
            name: name.to_owned(),
            run,
            mark: Mark::Dots,
            points: placed(points),
        })
        .collect();
    figure_over(
        &format!("{} by {key}", capital(&report.measure.name)),
        &axis,
        &curves,
    )
}

/// The page of a range test of `model`.
#[must_use]
pub fn range_page(test: &RangeTest, model: &str) -> String {
    let mut html = head(&format!("{model}: learning-rate range test"));
    html.push_str(&list(&test.evidence));
    let axis = Axis::log10("learning rate");
    let points = |points: &[RangePoint]| -> Vec<(f64, f64)> {
        let placed = points.iter();
        placed
            .map(|point| (axis.place(point.learning_rate), point.loss))
            .collect()
    };
    let recommended = test.recommended.and_then(|rate| {
        let distance = |point: &&RangePoint| (point.learning_rate / rate).ln().abs();
        let mut nearest = test.smoothed.iter();
        let first = nearest.next()?;
        let nearest = nearest.fold(
            first,
            |a, b| if distance(&b) < distance(&a) { b } else { a },
        );
        Some((axis.place(rate), nearest.loss))
    });
    let curves = [
        ("each step", 0, Mark::Faint, points(&test.points)),
        ("smoothed", 0, Mark::Line, points(&test.smoothed)),
        (
            "recommended",
            1,
            Mark::Best,
            recommended.into_iter().collect(),
        ),
    ];
    let curves = curves.map(|(name, run, mark, points)| Curve {
        name: name.to_owned(),
        run,
        mark,
        points,
    });
    html.push_str("<div class=\"figures\">\n");
    html.push_str(&figure_over("Loss, nats", &axis, &curves));
    html.push_str("</div>\n</body></html>\n");
    html
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::{Measure, Score, Settings, rank};

    fn report() -> TuneReport {
        let trials = [(1, "1e-4", 1.5), (2, "1e-2", 1.2), (3, "<b>", f64::NAN)];
        let trials = trials.map(|(trial, rate, value)| TrialReport {
            trial,
            settings: Settings(vec![("train.learning_rate".to_owned(), rate.to_owned())]),
            standing: match value.is_finite() {
                true => Standing::Finished,
                false => Standing::Failed,
            },
            steps: 10,
            total_steps: 10,
            score: value.is_finite().then_some(Score { step: 10, value }),
            scores: match value.is_finite() {
                true => vec![
                    Score {
                        step: 5,
                        value: 2.0,
                    },
                    Score { step: 10, value },
                ],
                false => Vec::new(),
            },
            reason: value.is_nan().then(|| "the loss is NaN & gone".to_owned()),
            ..TrialReport::default()
        });
        let measure = Measure {
            name: "eval loss".to_owned(),
            higher_is_better: false,
            held_out: true,
        };
        TuneReport {
            method: "grid".to_owned(),
            keys: vec!["train.learning_rate".to_owned()],
            ranking: rank(trials.into(), &measure),
            measure,
            interrupted: false,
            seconds: 12.0,
            step_seconds: 11.0,
            base_loads: 1,
            report: "tune.html".into(),
        }
    }

    fn is_whole(html: &str) {
        for foreign in ["http", "src=", "@import", "<script"] {
            assert!(!html.contains(foreign), "{foreign}");
        }
        for element in ["table", "figure", "svg", "ul", "li", "div", "p", "h2", "tr"] {
            let opened = html.matches(&format!("<{element}>")).count()
                + html.matches(&format!("<{element} ")).count();
            let closed = html.matches(&format!("</{element}>")).count();
            assert_eq!(opened, closed, "{element}");
        }
    }

    #[test]
    fn the_page_of_a_sweep_tells_the_order_and_why() {
        let html = tuning_page(&report(), "org/<model>");
        is_whole(&html);
        for part in [
            "org/&lt;model&gt;: settings by grid",
            "<li>best: train.learning_rate = 1e-2: eval loss 1.2000</li>",
            "<tr><td>1</td><td>2</td><td>1e-2</td><td>1.2000</td><td>10</td><td>10 of 10</td><td>finished</td></tr>",
            "<td>&lt;b&gt;</td>",
            "failed: the loss is NaN &amp; gone",
            "Eval loss by train.learning_rate",
            ">train.learning_rate, log scale</text>",
            "12.0 s in all, 11.0 s of them steps; the base was read once",
        ] {
            assert!(html.contains(part), "{part} is not in\n{html}");
        }
        assert_eq!(html.matches("<svg viewBox").count(), 2);
    }

    #[test]
    fn the_page_of_a_range_test_shows_its_curve() {
        let points = (0..40).map(|i| RangePoint {
            learning_rate: 1e-6 * 1.3f64.powi(i),
            loss: 2.0 - 0.02 * f64::from(i),
        });
        let test = RangeTest::of(points.collect(), 40, None);
        let html = range_page(&test, "org/model");
        is_whole(&html);
        assert!(html.contains("falls fastest at"), "{html}");
        assert!(html.contains("◎"));
        assert_eq!(html.matches("<polyline").count(), 2);
    }
}
