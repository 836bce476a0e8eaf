//! The log: whole lines, wrapped, and how far it can be scrolled.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::state::State;
use super::text::wrapped;
use super::view::section;

/// Columns that the further rows of a line are set off by.
const INDENT: usize = 4;

/// The last lines that fit.
pub(super) fn tail(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let rows = rows(
        state,
        usize::from(area.width),
        usize::from(area.height).saturating_sub(1),
        0,
    );
    frame.render_widget(Paragraph::new(rows).block(section("last lines")), area);
}

/// The log as a whole, scrolled.
pub(super) fn view(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let (width, height) = (
        usize::from(area.width),
        usize::from(area.height).saturating_sub(1),
    );
    let scroll = state.scroll.min(limit(state, width, height));
    let place = match (state.log.len(), scroll) {
        (0, _) => "nothing yet".to_owned(),
        (all, 0) => format!("lines to {all} of {all}"),
        (all, scroll) => format!("lines to {} of {all}", all - scroll),
    };
    let title = format!("log: {place}, ↑ ↓ PgUp PgDn scroll");
    let rows = rows(state, width, height, scroll);
    frame.render_widget(Paragraph::new(rows).block(section(title)), area);
}

/// The last `height` rows of all lines but the last `scroll`.
fn rows(state: &State, width: usize, height: usize, scroll: usize) -> Vec<Line<'static>> {
    let mut rows: Vec<String> = Vec::new();
    for line in state.log.iter().rev().skip(scroll) {
        if rows.len() >= height {
            break;
        }
        rows.extend(wrapped(line, width, INDENT).into_iter().rev());
    }
    rows.truncate(height);
    rows.into_iter().rev().map(Line::from).collect()
}

/// The most lines that can be scrolled away and still fill the view.
pub(super) fn limit(state: &State, width: usize, height: usize) -> usize {
    let mut rows = 0;
    for (shown, line) in state.log.iter().enumerate() {
        rows += wrapped(line, width, INDENT).len();
        if rows >= height {
            return state.log.len() - shown - 1;
        }
    }
    0
}
