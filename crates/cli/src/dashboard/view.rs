//! Draws a [`State`]. Nothing here looks at a clock, a file or a terminal, and nothing is told by colour
//! alone: curves have shapes, states have names.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect, Size};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Wrap};

use super::state::{Hands, Phase, State, View};
use super::text::ending;
use super::{chart, log, panels};
use crate::plain::clock;

/// The smallest terminal that everything fits into.
const SMALLEST: (u16, u16) = (60, 16);
/// A terminal that has room for some of the log below the other views.
const MEDIUM: u16 = 22;
/// A terminal that has room for more of it.
const TALL: u16 = 36;
/// Columns of the numbers beside the curves.
pub(super) const NUMBERS: u16 = 29;

/// Draws the whole dashboard.
pub(crate) fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        return too_small(frame, state);
    }
    let [
        title_area,
        progress_area,
        body,
        diagnosis_area,
        log_area,
        keys_area,
    ] = areas(area, state.view);
    title(frame, title_area, state);
    progress(frame, progress_area, state);
    match state.view {
        View::Loss => {
            let [curves, side] =
                Layout::horizontal([Constraint::Min(30), Constraint::Length(NUMBERS)]).areas(body);
            chart::loss(frame, curves, state);
            panels::numbers(frame, side, state);
        }
        View::Answers => chart::answers(frame, body, state),
        View::Rates => chart::rates(frame, body, state),
        View::Memory => panels::memory(frame, body, state),
        View::Log => log::view(frame, body, state),
    }
    if diagnosis_area.height > 0 {
        panels::diagnosis(frame, diagnosis_area, state);
    }
    if log_area.height > 0 {
        log::tail(frame, log_area, state);
    }
    keys(frame, keys_area, state);
}

/// Title, progress, the view, diagnosis, last lines and keys; what a small terminal has no room for is empty.
fn areas(area: Rect, view: View) -> [Rect; 6] {
    let (diagnosis, log) = match (area.height, view) {
        (TALL.., View::Log) => (6, 0),
        (TALL.., _) => (6, 12),
        (MEDIUM.., View::Log) => (5, 0),
        (MEDIUM.., _) => (5, 3),
        (_, View::Loss) => (5, 0),
        _ => (0, 0),
    };
    Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(5),
        Constraint::Length(diagnosis),
        Constraint::Length(log),
        Constraint::Length(1),
    ])
    .areas(area)
}

/// Keeps the scrolling of the log within what there is, on a terminal of this size.
pub(crate) fn settle(state: &mut State, size: Size) {
    let [_, _, body, ..] = areas(Rect::new(0, 0, size.width, size.height), View::Log);
    let height = usize::from(body.height).saturating_sub(1);
    state.page = height.saturating_sub(1).max(1);
    state.scroll = state
        .scroll
        .min(log::limit(state, usize::from(body.width), height));
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
        Phase::Paused => "paused: p resumes".to_owned(),
        Phase::Stopping => "stopping after this step".to_owned(),
        Phase::Over(why) => (*why).to_owned(),
    }
}

pub(super) fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn title(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let phase = match &state.phase {
        Phase::Stopping if area.width < 72 => "[stopping]".to_owned(),
        other => format!("[{}]", phase(other)),
    };
    let phase_width = phase.chars().count() as u16;
    let [left, right] =
        Layout::horizontal([Constraint::Min(10), Constraint::Length(phase_width)]).areas(area);
    let name = "backdraft";
    // The end of a path says more than its beginning.
    let model = state.model.rsplit(['/', '\\']).next().unwrap_or_default();
    let room = usize::from(left.width).saturating_sub(name.len() + 3);
    let room = room.saturating_sub(3);
    let output = room.saturating_sub(model.chars().count());
    let output = ending(&state.output, output.max(room / 3));
    let model = ending(model, room.saturating_sub(output.chars().count()));
    let line = Line::from(vec![
        Span::styled(name, bold()),
        Span::raw(format!("  {model} → {output}")),
    ]);
    frame.render_widget(Paragraph::new(line), left);
    frame.render_widget(Paragraph::new(Span::styled(phase, bold())), right);
}

/// A bar and numbers, as many as there is room for.
fn progress(frame: &mut Frame<'_>, area: Rect, state: &State) {
    const BAR: usize = 8;
    let (steps, total) = (state.steps(), state.total_steps.max(1));
    let share = (steps as f64 / total as f64).min(1.0);
    let epoch = steps as f64 / state.steps_per_epoch.max(1) as f64;
    let time = |seconds: f64| clock(std::time::Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    // By importance; what has no room is left out from the end.
    let mut parts = vec![(0, format!("step {steps}/{}", state.total_steps))];
    if !matches!(state.phase, Phase::Over(_)) {
        let left = state.left().map_or_else(|| "-".to_owned(), time);
        parts.push((4, format!("left {left}")));
    }
    parts.push((3, format!("elapsed {}", time(state.elapsed))));
    parts.push((1, format!("{:.0} %", 100.0 * share)));
    parts.push((2, format!("epoch {epoch:.2}")));
    let width = |parts: &[(u8, String)]| -> usize {
        parts.iter().map(|(_, part)| part.chars().count() + 2).sum()
    };
    let room = usize::from(area.width);
    while parts.len() > 1 && width(&parts) + BAR > room {
        parts.pop();
    }
    parts.sort_by_key(|(place, _)| *place);
    let bar = room.saturating_sub(width(&parts));
    let done = (bar as f64 * share).round() as usize;
    let bar = format!("{}{}", "█".repeat(done), "░".repeat(bar - done));
    let text: String = parts
        .into_iter()
        .map(|(_, part)| format!("  {part}"))
        .collect();
    frame.render_widget(Paragraph::new(format!("{bar}{text}")), area);
}

/// A block with a title and only a line above, since rows are scarce.
pub(super) fn section(title: impl Into<String>) -> Block<'static> {
    Block::new()
        .borders(Borders::TOP)
        .title(format!(" {} ", title.into()))
}

fn keys(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let mut spans = Vec::new();
    for (i, &view) in state.views().iter().enumerate() {
        // Brackets, since not every terminal shows bold text.
        let name = if view == state.view {
            Span::styled(format!("[{} {}]", i + 1, view.name()), bold())
        } else {
            Span::raw(format!(" {} {} ", i + 1, view.name()))
        };
        spans.push(name);
    }
    let running = !matches!(state.phase, Phase::Over(_));
    let (long, short) = match (state.hands, running) {
        (Hands::Own, _) => (
            "  p pause  s save now  q stop after step",
            " p pause  s save  q stop",
        ),
        (Hands::Watching, true) => ("  q quit viewer (the run continues)", "  q quit viewer"),
        (Hands::Watching, false) => ("  q quit viewer", "  q quit viewer"),
    };
    let views: usize = spans.iter().map(Span::width).sum();
    let fits = views + long.chars().count() <= usize::from(area.width);
    spans.push(Span::raw(if fits { long } else { short }));
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}
