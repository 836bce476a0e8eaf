//! Curves as SVG.

use std::fmt::Write;

use super::escape;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;
/// Points of a line at most; more cannot be told apart.
const POINTS: usize = 600;
/// Classes of colour in the page's style.
const COLORS: usize = 6;

/// How points are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Line,
    /// A thin line behind the others.
    Faint,
    Dots,
    /// A ring around one point.
    Best,
}

/// One curve.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    pub(super) name: String,
    /// Which run it belongs to: decides colour and dashes.
    pub(super) run: usize,
    pub(super) mark: Mark,
    pub(super) points: Vec<(f64, f64)>,
}

/// What lies below a figure.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    label: String,
    log: bool,
}

impl Axis {
    /// The steps of a run.
    pub(super) fn steps() -> Self {
        Self::named("step")
    }

    /// Numbers of any kind.
    pub(super) fn named(label: &str) -> Self {
        let label = label.to_owned();
        Self { label, log: false }
    }

    /// Numbers above 0, with equal distances for equal factors.
    pub(super) fn log10(label: &str) -> Self {
        let label = format!("{label}, log scale");
        Self { label, log: true }
    }

    /// Where a number lies on it.
    pub(super) fn place(&self, value: f64) -> f64 {
        if self.log { value.log10() } else { value }
    }

    /// The number of a place.
    fn tick(&self, place: f64) -> String {
        number(if self.log { 10f64.powf(place) } else { place })
    }
}

/// A figure over the steps of runs, with its curves, axes and legend.
pub(super) fn figure(title: &str, curves: &[Curve]) -> String {
    figure_over(title, &Axis::steps(), curves)
}

/// A figure over another axis; points are where it [places](Axis::place) them.
pub(super) fn figure_over(title: &str, axis: &Axis, curves: &[Curve]) -> String {
    let finite = |&&(x, y): &&(f64, f64)| x.is_finite() && y.is_finite();
    let all = || {
        curves
            .iter()
            .flat_map(|curve| curve.points.iter().filter(finite))
    };
    let (Some(x), Some(y)) = (range(all().map(|p| p.0)), range(all().map(|p| p.1))) else {
        return String::new();
    };
    let ticks_y = ticks(y.0, y.1);
    let ticks_x = ticks(x.0, x.1);
    let y = (
        y.0.min(*ticks_y.first().unwrap_or(&y.0)),
        y.1.max(*ticks_y.last().unwrap_or(&y.1)),
    );
    let across = |value: f64| LEFT + (value - x.0) / (x.1 - x.0) * (WIDTH - LEFT - RIGHT);
    let up = |value: f64| HEIGHT - BOTTOM - (value - y.0) / (y.1 - y.0) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"{}\">\n",
        escape(title),
        escape(title)
    );
    // Writing to a string cannot fail.
    for tick in &ticks_y {
        let at = up(*tick);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            number(*tick)
        );
    }
    for tick in ticks_x.iter().filter(|tick| (x.0..=x.1).contains(*tick)) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            across(*tick),
            HEIGHT - 14.0,
            axis.tick(*tick)
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        WIDTH - RIGHT,
        HEIGHT - 2.0,
        escape(&axis.label)
    );
    for curve in curves {
        let points: Vec<(f64, f64)> = curve.points.iter().filter(finite).copied().collect();
        let points = thinned(&points)
            .into_iter()
            .map(|(a, b)| (across(a), up(b)));
        draw(&mut svg, curve, points);
    }
    svg.push_str("</svg>\n<p class=\"legend\">");
    for curve in curves.iter().filter(|curve| !curve.points.is_empty()) {
        let sign = match curve.mark {
            // As the curve is drawn, dashes and all.
            Mark::Line => stroke(curve.run % COLORS, ""),
            Mark::Faint => stroke(curve.run % COLORS, " faint"),
            Mark::Dots => "●".to_owned(),
            Mark::Best => "◎".to_owned(),
        };
        let _ = write!(
            svg,
            "<span class=\"c{}\">{sign}</span> {} ",
            curve.run % COLORS,
            escape(&curve.name)
        );
    }
    svg.push_str("</p></figure>\n");
    svg
}

/// A piece of a line for the legend.
fn stroke(color: usize, more: &str) -> String {
    format!(
        "<svg class=\"key\" viewBox=\"0 0 36 8\"><line class=\"line s{color}{more}\" x1=\"0\" x2=\"36\" y1=\"4\" \
         y2=\"4\"/></svg>"
    )
}

fn draw(svg: &mut String, curve: &Curve, points: impl Iterator<Item = (f64, f64)>) {
    let color = curve.run % COLORS;
    match curve.mark {
        Mark::Line | Mark::Faint => {
            let faint = if curve.mark == Mark::Faint {
                " faint"
            } else {
                ""
            };
            let path: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let _ = writeln!(
                svg,
                "<polyline class=\"line s{color}{faint}\" points=\"{}\"/>",
                path.join(" ")
            );
        }
        Mark::Dots | Mark::Best => {
            let (class, radius) = match curve.mark {
                Mark::Best => ("ring", 7),
                _ => ("dot", 3),
            };
            for (x, y) in points {
                let _ = writeln!(
                    svg,
                    "<circle class=\"{class} s{color}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>"
                );
            }
        }
    }
}

/// Smallest and largest value, apart from each other; `None` without values.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    match low.partial_cmp(&high)? {
        std::cmp::Ordering::Less => Some((low, high)),
        std::cmp::Ordering::Equal => {
            let room = (0.1 * low.abs()).max(1e-9);
            Some((low - room, high + room))
        }
        std::cmp::Ordering::Greater => None,
    }
}

/// Round numbers from below `low` to above `high`, about five of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let magnitude = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|factor| factor * magnitude >= rough)
        .unwrap_or(10.0);
    let step = factor * magnitude;
    let (first, last) = ((low / step).floor() as i64, (high / step).ceil() as i64);
    (first..=last).take(20).map(|i| i as f64 * step).collect()
}

/// A number as short as it can be told from its neighbours.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e5).contains(&size) {
        return format!("{value:.1e}");
    }
    let text = if size >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.3}")
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Means of equally long runs of points.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let run = points.len().div_ceil(POINTS).max(1);
    points
        .chunks(run)
        .map(|chunk| {
            let n = chunk.len() as f64;
            let sum = |of: fn(&(f64, f64)) -> f64| chunk.iter().map(of).sum::<f64>() / n;
            (sum(|p| p.0), sum(|p| p.1))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_enclose() {
        assert_eq!(ticks(0.0, 10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        let around = ticks(1.03, 2.17);
        assert!(
            around[0] <= 1.03 && *around.last().unwrap() >= 2.17,
            "{around:?}"
        );
        assert!(around.len() <= 8);
    }

    #[test]
    fn numbers_are_short() {
        let texts = [0.0, 2e-4, 0.125, 1.5, 330.0, 2e6].map(number);
        assert_eq!(texts, ["0", "2.0e-4", "0.125", "1.5", "330", "2.0e6"]);
    }

    #[test]
    fn odd_curves_are_drawn_or_left_out() {
        let curve = |points: &[(f64, f64)]| Curve {
            name: "a <b>".to_owned(),
            run: 0,
            mark: Mark::Line,
            points: points.to_vec(),
        };
        assert_eq!(figure("none", &[curve(&[])]), "");
        assert_eq!(figure("none", &[curve(&[(1.0, f64::NAN)])]), "");
        let flat = figure(
            "flat",
            &[curve(&[(1.0, 2.0), (2.0, 2.0), (3.0, f64::INFINITY)])],
        );
        assert!(flat.contains("polyline") && !flat.contains("NaN") && !flat.contains("inf"));
        assert!(flat.contains("a &lt;b&gt;"));
        let many: Vec<_> = (0..100_000)
            .map(|i| (f64::from(i), f64::from(i % 7)))
            .collect();
        assert!(figure("many", &[curve(&many)]).len() < 20_000);
    }
}
