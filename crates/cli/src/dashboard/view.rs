//! Draws a [`State`]. Nothing here looks at a clock, a file or a terminal, and nothing is told by colour
//! alone: curves have shapes, states have names.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Borders, Chart, Dataset, GraphType, Paragraph, Wrap};

use super::state::{Hands, Phase, Point, State, View};
use crate::plain::{clock, fixed, rate, scientific};
use crate::reporter::size;

/// The smallest terminal that everything fits into.
const SMALLEST: (u16, u16) = (60, 16);
/// A terminal that has room for more of the log.
const TALL: u16 = 36;

/// A number of a step.
type Number = fn(&Point) -> f64;
/// How a number is written.
type Format = fn(f64) -> String;

/// Draws the whole dashboard.
pub(crate) fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        return too_small(frame, state);
    }
    let (diagnosis_height, log_height) = if area.height < TALL { (4, 4) } else { (6, 12) };
    let [
        title_area,
        progress_area,
        body,
        diagnosis_area,
        log_area,
        keys_area,
    ] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(5),
        Constraint::Length(diagnosis_height),
        Constraint::Length(log_height),
        Constraint::Length(1),
    ])
    .areas(area);
    title(frame, title_area, state);
    progress(frame, progress_area, state);
    match state.view {
        View::Loss => {
            let [chart, side] =
                Layout::horizontal([Constraint::Min(30), Constraint::Length(30)]).areas(body);
            loss(frame, chart, state);
            numbers(frame, side, state);
        }
        View::Rates => rates(frame, body, state),
        View::Memory => memory(frame, body, state),
        View::Log => log(frame, body, state, "log"),
    }
    diagnosis(frame, diagnosis_area, state);
    log(frame, log_area, state, "last lines");
    keys(frame, keys_area, state);
}

fn too_small(frame: &mut Frame<'_>, state: &State) {
    let (width, height) = SMALLEST;
    let text = format!(
        "step {}/{}, {}\nThis terminal is too small for the dashboard, which needs {width}×{height}.",
        state.steps(),
        state.total_steps,
        phase(&state.phase)
    );
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), frame.area());
}

fn phase(phase: &Phase) -> String {
    match phase {
        Phase::Starting => "starting".to_owned(),
        Phase::Training => "training".to_owned(),
        Phase::Evaluating(done, all) => format!("evaluating {done}/{all}"),
        Phase::Paused => "paused: p goes on".to_owned(),
        Phase::Stopping => "stopping after this step".to_owned(),
        Phase::Over(why) => (*why).to_owned(),
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn title(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let phase = format!("[{}]", phase(&state.phase));
    let [left, right] = Layout::horizontal([
        Constraint::Min(10),
        Constraint::Length(phase.chars().count() as u16),
    ])
    .areas(area);
    // The end of a path says more than its beginning.
    let model = state.model.rsplit(['/', '\\']).next().unwrap_or_default();
    let line = Line::from(vec![
        Span::styled("backdraft", bold()),
        Span::raw(format!("  {model} → {}", state.output)),
    ]);
    frame.render_widget(Paragraph::new(line), left);
    frame.render_widget(Paragraph::new(Span::styled(phase, bold())), right);
}

fn progress(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let (steps, total) = (state.steps(), state.total_steps.max(1));
    let share = (steps as f64 / total as f64).min(1.0);
    let epoch = steps as f64 / state.steps_per_epoch.max(1) as f64;
    let time = |seconds: f64| clock(std::time::Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    let left = state.left().map_or_else(|| "-".to_owned(), time);
    let text = format!(
        " step {steps}/{}  {:>3.0} %  epoch {epoch:.2}  elapsed {}  left {left}",
        state.total_steps,
        100.0 * share,
        time(state.elapsed)
    );
    let room = usize::from(area.width).saturating_sub(text.chars().count());
    let done = (room as f64 * share).round() as usize;
    let bar = format!("{}{}", "█".repeat(done), "░".repeat(room - done));
    frame.render_widget(Paragraph::new(format!("{bar}{text}")), area);
}

/// A block with a title and only a line above, since rows are scarce.
fn section(title: impl Into<String>) -> Block<'static> {
    Block::new()
        .borders(Borders::TOP)
        .title(format!(" {} ", title.into()))
}

fn loss(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let train = thinned(&state.points, area.width, |point| point.smoothed);
    let eval: Vec<(f64, f64)> = state
        .eval
        .iter()
        .map(|&(s, loss)| (s as f64, loss))
        .collect();
    let best: Vec<(f64, f64)> = state
        .best
        .iter()
        .map(|&(s, loss)| (s as f64, loss))
        .collect();
    let mut datasets = vec![line(&train, Color::Cyan)];
    if !eval.is_empty() {
        datasets.push(dots(&eval, 'o', Color::Yellow));
        datasets.push(dots(&best, '◆', Color::Green));
    }
    let values = train.iter().chain(&eval).map(|(_, loss)| *loss);
    // The names of the curves stand above: a legend would hide where evaluation rises.
    let title = "loss: ── train, smoothed  o eval  ◆ best";
    chart(frame, area, title, datasets, values, state, fixed);
}

fn rates(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let areas: [Rect; 3] = Layout::vertical([Constraint::Fill(1); 3]).areas(area);
    let all: [(&str, Number, Format); 3] = [
        ("learning rate", |point| point.learning_rate, scientific),
        ("gradient norm", |point| point.grad_norm, fixed),
        ("tokens per second", |point| point.tokens_per_second, rate),
    ];
    for ((name, value, format), area) in all.into_iter().zip(areas) {
        let points = thinned(&state.points, area.width, value);
        let datasets = vec![line(&points, Color::Cyan)];
        let values = points.iter().map(|(_, value)| *value);
        let last = state.points.last().map(|point| format(value(point)));
        let title = format!("{name} {}", last.unwrap_or_default());
        chart(frame, area, &title, datasets, values, state, format);
    }
}

fn line<'a>(points: &'a [(f64, f64)], color: Color) -> Dataset<'a> {
    Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().fg(color))
        .data(points)
}

fn dots<'a>(points: &'a [(f64, f64)], sign: char, color: Color) -> Dataset<'a> {
    Dataset::default()
        .marker(Marker::Custom(sign))
        .graph_type(GraphType::Scatter)
        .style(Style::new().fg(color))
        .data(points)
}

fn chart(
    frame: &mut Frame<'_>,
    area: Rect,
    title: &str,
    datasets: Vec<Dataset<'_>>,
    values: impl Iterator<Item = f64>,
    state: &State,
    format: Format,
) {
    let block = section(title);
    let finite = values.filter(|value| value.is_finite());
    let Some((low, high)) = bounds(finite) else {
        let text = Paragraph::new("no step yet").alignment(Alignment::Center);
        return frame.render_widget(text.block(block), area);
    };
    let last = state.total_steps.max(state.steps()).max(1) as f64;
    let labels = [low, 0.5 * (low + high), high].map(|value| Line::from(format(value)));
    let steps = [0.0, last].map(|step| Line::from(format!("{step:.0}")));
    let chart = Chart::new(datasets)
        .block(block)
        .legend_position(None)
        .x_axis(Axis::default().bounds([0.0, last]).labels(steps))
        .y_axis(Axis::default().bounds([low, high]).labels(labels));
    frame.render_widget(chart, area);
}

/// The range of the values with some room; `None` without values.
fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return None;
    }
    let room = if high > low {
        0.05 * (high - low)
    } else {
        0.05 * high.abs().max(1e-9)
    };
    // Nothing that is drawn here goes below zero by itself.
    let bottom = if low >= 0.0 {
        (low - room).max(0.0)
    } else {
        low - room
    };
    Some((bottom, high + room))
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

fn numbers(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let last = state.points.last();
    let of = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let best = state
        .best
        .map(|(step, loss)| format!("{} at {step}", fixed(loss)));
    let rows = [
        ("loss", of(last.map(|point| fixed(point.loss)))),
        (
            "eval loss",
            of(state.eval.last().map(|&(_, loss)| fixed(loss))),
        ),
        ("best eval", of(best)),
        (
            "learn. rate",
            of(last.map(|point| scientific(point.learning_rate))),
        ),
        ("grad norm", of(last.map(|point| fixed(point.grad_norm)))),
        (
            "tokens/s",
            of(last.map(|point| rate(point.tokens_per_second))),
        ),
        ("planned", size(state.memory.total())),
        ("  base", size(state.memory.base)),
        ("  adapters", size(state.memory.adapters)),
        ("  optimizer", size(state.memory.optimizer)),
        ("  activations", size(state.memory.activations)),
        ("  in use", of(state.resident.map(size))),
    ];
    table(frame, area, "now", &rows);
}

fn table(frame: &mut Frame<'_>, area: Rect, title: &str, rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<Line<'_>> = rows
        .iter()
        .map(|(name, value)| Line::from(format!(" {name:<width$}  {value}")))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(section(title)), area);
}

fn memory(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let memory = state.memory;
    let total = memory.total().max(1);
    let parts = [
        ("base", memory.base),
        ("adapters and gradients", memory.adapters),
        ("optimizer", memory.optimizer),
        ("activations", memory.activations),
        ("planned in all", memory.total()),
    ];
    let room = usize::from(area.width).saturating_sub(46);
    let bar =
        |bytes: usize| "█".repeat((room as f64 * bytes as f64 / total as f64).round() as usize);
    let mut rows: Vec<(&str, String)> = parts
        .into_iter()
        .map(|(name, bytes)| {
            let share = 100.0 * bytes as f64 / total as f64;
            (
                name,
                format!("{:>10} {share:>4.0} %  {}", size(bytes), bar(bytes)),
            )
        })
        .collect();
    if let Some(resident) = state.resident {
        rows.push(("in use by the process", format!("{:>10}", size(resident))));
    }
    rows.push(("", String::new()));
    rows.push(("model", state.model.clone()));
    rows.push(("device", state.device.clone()));
    rows.push(("output", state.output.clone()));
    table(frame, area, "memory", &rows);
}

fn diagnosis(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let text = match &state.diagnosis {
        None => vec![Line::from("nothing to judge by yet")],
        Some(diagnosis) => {
            let join = |items: Vec<String>| items.join("; ");
            let evidence = join(diagnosis.evidence.iter().map(ToString::to_string).collect());
            let advice = join(diagnosis.advice.iter().map(ToString::to_string).collect());
            let mut lines = vec![Line::from(Span::styled(
                diagnosis.verdict.to_string(),
                bold(),
            ))];
            if !advice.is_empty() {
                lines.push(Line::from(format!("change: {advice}")));
            }
            if !evidence.is_empty() {
                lines.push(Line::from(evidence));
            }
            lines
        }
    };
    let paragraph = Paragraph::new(text).wrap(Wrap { trim: true });
    frame.render_widget(paragraph.block(section("diagnosis")), area);
}

fn log(frame: &mut Frame<'_>, area: Rect, state: &State, title: &str) {
    let room = usize::from(area.height).saturating_sub(1);
    let skip = state.log.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = state
        .log
        .iter()
        .skip(skip)
        .map(|line| Line::from(line.as_str()))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(section(title)), area);
}

fn keys(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let mut spans = Vec::new();
    for (i, view) in View::ALL.into_iter().enumerate() {
        // Brackets, since not every terminal shows bold text.
        let name = if view == state.view {
            Span::styled(format!("[{} {}]", i + 1, view.name()), bold())
        } else {
            Span::raw(format!(" {} {} ", i + 1, view.name()))
        };
        spans.push(name);
    }
    spans.push(Span::raw(match state.hands {
        Hands::Own => "  p pause  s save now  q stop after step",
        Hands::Watching => "  q leave (the run goes on)",
    }));
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}
