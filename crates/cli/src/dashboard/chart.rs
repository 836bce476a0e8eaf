//! Curves over the steps of a run.

use backdraft_journal::report::{AnswersReport, Estimate};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Chart, Dataset, GraphType, Paragraph};

use super::state::{Point, State};
use super::ticks::Ticks;
use super::view::section;
use crate::plain::{fixed, rate, scientific};

/// A number of a step.
type Number = fn(&Point) -> f64;
/// How a number is written.
type Format = fn(f64) -> String;

/// Columns for the labels of the y axes, the same in all charts, so that their x axes line up.
const LABELS: usize = 7;
/// Rows of a chart that are not curve: title, axis and its labels.
const FRAME: u16 = 3;

/// Train and eval loss.
pub(super) fn loss(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let train = thinned(&state.points, area.width, |point| point.smoothed);
    let points = |(step, loss): (usize, f64)| (step as f64, loss);
    let eval: Vec<(f64, f64)> = state.eval.iter().copied().map(points).collect();
    let best: Vec<(f64, f64)> = state.best.into_iter().map(points).collect();
    let mut datasets = vec![line(&train)];
    let mut legend = vec![if area.width < 46 {
        "── train"
    } else {
        "── train, smoothed"
    }];
    if !eval.is_empty() {
        datasets.push(dots(&eval, 'o', Color::Yellow));
        datasets.push(dots(&best, '◆', Color::Green));
        legend.extend(["o eval", "◆ best"]);
    }
    let values = train.iter().chain(&eval).map(|(_, loss)| *loss);
    // The names of the curves stand above: a legend would hide where evaluation rises.
    let title = format!("loss  {}", legend.join("  "));
    chart(frame, area, &title, datasets, values, state, true);
}

/// Three charts, one above the other; the last one has the labels of all.
fn thirds(area: Rect) -> [Rect; 3] {
    let curves = area.height.saturating_sub(FRAME + 2) / 3;
    Layout::vertical([
        Constraint::Length(curves + 1),
        Constraint::Length(curves + 1),
        Constraint::Min(0),
    ])
    .areas(area)
}

/// Rewards, margin and accuracy of the answers of each step.
pub(super) fn answers(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let compared: Vec<Point> = (state.points.iter())
        .filter(|point| point.answers.is_some())
        .copied()
        .collect();
    let of = |number: fn(&AnswersReport) -> Option<Estimate>| {
        let points = thinned(&compared, area.width, |point| point.of_answers(number));
        let finite = |point: &(f64, f64)| point.1.is_finite();
        points.into_iter().filter(finite).collect::<Vec<_>>()
    };
    let [rewards, margins, accuracies] = thirds(area);
    let (chosen, rejected) = (of(|it| it.reward_chosen), of(|it| it.reward_rejected));
    let values = chosen.iter().chain(&rejected).map(|(_, value)| *value);
    let datasets = vec![line(&chosen), dots(&rejected, 'x', Color::Yellow)];
    let title = "rewards  ── chosen  x rejected";
    chart(frame, rewards, title, datasets, values, state, false);
    let (margin, accuracy) = (of(|it| it.margin), of(|it| it.accuracy));
    let others = [
        ("margin", margins, &margin, false),
        ("accuracy", accuracies, &accuracy, true),
    ];
    for (name, area, points, steps) in others {
        let values = points.iter().map(|(_, value)| *value);
        let last = points.last().map(|(_, value)| fixed(*value));
        let title = format!("{name} {}", last.unwrap_or_default());
        let title = title.trim_end();
        chart(frame, area, title, vec![line(points)], values, state, steps);
    }
}

/// Learning rate, gradient norm and throughput.
pub(super) fn rates(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let areas = thirds(area);
    let all: [(&str, Number, Format); 3] = [
        ("learning rate", |point| point.learning_rate, scientific),
        ("gradient norm", |point| point.grad_norm, fixed),
        ("tokens per second", |point| point.tokens_per_second, rate),
    ];
    for (place, ((name, value, format), area)) in all.into_iter().zip(areas).enumerate() {
        let points = thinned(&state.points, area.width, value);
        let datasets = vec![line(&points)];
        let values = points.iter().map(|(_, value)| *value);
        let last = state.points.last().map(|point| format(value(point)));
        let title = format!("{name} {}", last.unwrap_or_default());
        chart(
            frame,
            area,
            title.trim_end(),
            datasets,
            values,
            state,
            place == 2,
        );
    }
}

fn line(points: &[(f64, f64)]) -> Dataset<'_> {
    Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().fg(Color::Cyan))
        .data(points)
}

fn dots(points: &[(f64, f64)], sign: char, color: Color) -> Dataset<'_> {
    Dataset::default()
        .marker(Marker::Custom(sign))
        .graph_type(GraphType::Scatter)
        .style(Style::new().fg(color))
        .data(points)
}

/// Curves below a title; `steps` are the labels of the x axis.
fn chart(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    datasets: Vec<Dataset<'_>>,
    values: impl Iterator<Item = f64>,
    state: &State,
    steps: bool,
) {
    let block = section(title);
    let finite = values.filter(|value| value.is_finite());
    let Some((low, high)) = range(finite) else {
        let text = Paragraph::new("no step yet").alignment(Alignment::Center);
        return frame.render_widget(text.block(block), area);
    };
    let last = state.total_steps.max(state.steps()).max(1);
    let rows = area.height.saturating_sub(if steps { FRAME } else { 1 });
    let ticks = Ticks::around(low, high, usize::from(rows / 3 + 1).clamp(2, 7));
    let labels = ticks
        .labels()
        .into_iter()
        .map(|label| Line::from(format!("{label:>LABELS$}")));
    let x = Axis::default().bounds([0.0, last as f64]);
    let x = match steps {
        true => x.labels(["0".to_owned(), format!("step {last}")]),
        false => x,
    };
    let chart = Chart::new(datasets)
        .block(block)
        .legend_position(None)
        .x_axis(x)
        .y_axis(Axis::default().bounds(ticks.bounds()).labels(labels));
    frame.render_widget(chart, area);
}

/// The lowest and the highest value; `None` without values.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((f64::min(low, value), f64::max(high, value))),
    })
}

/// Means over so few runs of points that each has a column of dots.
fn thinned(points: &[Point], width: u16, value: impl Fn(&Point) -> f64) -> Vec<(f64, f64)> {
    let columns = usize::from(width).max(1) * 2;
    let run = points.len().div_ceil(columns).max(1);
    points
        .chunks(run)
        .map(|chunk| {
            let n = chunk.len() as f64;
            let step = chunk.iter().map(|point| point.step as f64).sum::<f64>() / n;
            (step, chunk.iter().map(&value).sum::<f64>() / n)
        })
        .collect()
}
