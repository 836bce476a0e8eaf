//! The panels beside and below the curves: numbers of the last step, memory, diagnosis.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::state::State;
use super::text::{clipped, ending, wrapped};
use super::view::{NUMBERS, bold, section};
use crate::plain::{fixed, rate, scientific};
use crate::reporter::size;

/// Columns of the longest of our own names of numbers.
const NAME: usize = "  activations".len();

/// A set's name, as much of it as there is room for.
fn shortened(name: &str) -> &str {
    name.get(..NAME).unwrap_or(name)
}

/// The last step in numbers, and its memory: as many as there are rows for, the more important ones first.
pub(super) fn numbers(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let last = state.points.last();
    let of = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let mut rows = vec![("loss", of(last.map(|point| fixed(point.loss))))];
    if let Some((_, loss)) = state.eval.last() {
        rows.push(("eval loss", fixed(*loss)));
    }
    if let Some((step, loss)) = state.best {
        let at = format!("{} at {step}", fixed(loss));
        // A number must not lose digits; the step is in the log too.
        let fits = at.len() <= usize::from(NUMBERS) - "   activations  ".len();
        rows.push(("best eval", if fits { at } else { fixed(loss) }));
    }
    rows.extend(state.sets.iter().map(|set| {
        let loss = fixed(set.eval_loss);
        let with = set.change().map(|change| format!("{loss} {change:+.2}"));
        let fits =
            with.filter(|with| with.len() <= usize::from(NUMBERS) - "   activations  ".len());
        (shortened(&set.name), fits.unwrap_or(loss))
    }));
    rows.extend([
        (
            "learn. rate",
            of(last.map(|point| scientific(point.learning_rate))),
        ),
        ("grad norm", of(last.map(|point| fixed(point.grad_norm)))),
        (
            "tokens/s",
            of(last.map(|point| rate(point.tokens_per_second))),
        ),
    ]);
    let parts = [
        ("  base", size(state.memory.base)),
        ("  adapters", size(state.memory.adapters)),
        ("  optimizer", size(state.memory.optimizer)),
        ("  activations", size(state.memory.activations)),
    ];
    let in_use = state.resident.map(|bytes| ("in use", size(bytes)));
    let room = usize::from(area.height).saturating_sub(1);
    let whole = rows.len() + 1 + parts.len() + usize::from(in_use.is_some()) <= room;
    rows.push(("memory plan", size(state.memory.total())));
    if whole {
        rows.extend(parts);
    }
    rows.extend(in_use);
    table(frame, area, "now", &rows);
}

fn table(frame: &mut Frame<'_>, area: Rect, title: &str, rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let room = usize::from(area.width).saturating_sub(width + 3);
    let lines: Vec<Line<'_>> = rows
        .iter()
        .map(|(name, value)| Line::from(format!(" {name:<width$}  {}", ending(value, room))))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(section(title)), area);
}

pub(super) fn memory(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let memory = state.memory;
    let total = memory.total().max(1);
    let parts = [
        ("base", memory.base),
        ("adapters and gradients", memory.adapters),
        ("optimizer", memory.optimizer),
        ("activations", memory.activations),
        ("predicted in all", memory.total()),
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

/// The verdict in bold, then what to change and the evidence.
pub(super) fn diagnosis(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let (width, height) = (
        usize::from(area.width),
        usize::from(area.height).saturating_sub(1),
    );
    let (verdict, rest) = match &state.diagnosis {
        None => ("no diagnosis yet".to_owned(), Vec::new()),
        Some(diagnosis) => {
            let join = |items: Vec<String>| items.join("; ");
            let evidence = join(diagnosis.evidence.iter().map(ToString::to_string).collect());
            let advice = join(diagnosis.advice.iter().map(ToString::to_string).collect());
            let mut rest = Vec::new();
            if !advice.is_empty() {
                rest.push(format!("to change: {advice}"));
            }
            if !evidence.is_empty() {
                rest.push(evidence);
            }
            (diagnosis.verdict.to_string(), rest)
        }
    };
    let verdict = wrapped(&verdict, width, 2);
    let bold_lines = verdict.len();
    let mut lines = verdict;
    lines.extend(rest.iter().flat_map(|text| wrapped(text, width, 2)));
    let lines: Vec<Line<'_>> = clipped(lines, width, height)
        .into_iter()
        .enumerate()
        .map(|(i, line)| match i < bold_lines {
            true => Line::from(Span::styled(line, bold())),
            false => Line::from(line),
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(section("diagnosis")), area);
}
