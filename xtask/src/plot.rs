//! A small plot as SVG: one line, and points with names.

use std::fmt::Write;

/// What is drawn.
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) line: (String, Vec<(f64, f64)>),
    pub(crate) points: Vec<Point>,
}

/// A point with a name.
pub(crate) struct Point {
    pub(crate) name: String,
    pub(crate) x: f64,
    pub(crate) y: f64,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;

/// From values to places on an axis.
struct Axis {
    low: f64,
    step: f64,
    ticks: usize,
    from: f64,
    to: f64,
}

impl Axis {
    /// From zero to beyond the largest value, in round steps.
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let high = values.fold(0.0, f64::max).max(f64::MIN_POSITIVE);
        let rough = high / 6.0;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .map(|factor| factor * unit)
            .find(|step| *step >= rough)
            .unwrap_or(10.0 * unit);
        Self {
            low: 0.0,
            step,
            ticks: (high * 1.02 / step).ceil() as usize,
            from,
            to,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.step * self.ticks as f64);
        self.from + share * (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        (0..=self.ticks).map(|i| self.low + self.step * i as f64)
    }
}

impl Plot {
    /// The file's text.
    pub(crate) fn to_svg(&self) -> String {
        let all = || {
            let points = self.points.iter().map(|point| (point.x, point.y));
            self.line.1.iter().copied().chain(points)
        };
        let x = Axis::new(all().map(|(x, _)| x), LEFT, WIDTH - RIGHT);
        let y = Axis::new(all().map(|(_, y)| y), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" \
             font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        text(&mut svg, WIDTH / 2.0, 24.0, "middle", &self.title);
        text(&mut svg, WIDTH / 2.0, HEIGHT - 14.0, "middle", &self.x);
        text(&mut svg, 12.0, TOP - 16.0, "start", &self.y);
        for tick in x.ticks() {
            let at = x.place(tick);
            rule(&mut svg, (at, TOP), (at, HEIGHT - BOTTOM));
            text(
                &mut svg,
                at,
                HEIGHT - BOTTOM + 18.0,
                "middle",
                &number(tick),
            );
        }
        for tick in y.ticks() {
            let at = y.place(tick);
            rule(&mut svg, (LEFT, at), (WIDTH - RIGHT, at));
            text(&mut svg, LEFT - 8.0, at + 4.0, "end", &number(tick));
        }
        let (name, line) = &self.line;
        let places: Vec<String> = line
            .iter()
            .map(|&(a, b)| format!("{:.1},{:.1}", x.place(a), y.place(b)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"#0b6\" stroke-width=\"2\"/>",
            places.join(" ")
        );
        for &(a, b) in line {
            circle(&mut svg, x.place(a), y.place(b), "#0b6");
        }
        if let Some(&(a, b)) = line.get(line.len() / 2) {
            text(&mut svg, x.place(a), y.place(b) - 10.0, "middle", name);
        }
        for point in &self.points {
            let (a, b) = (x.place(point.x), y.place(point.y));
            circle(&mut svg, a, b, "#c40");
            let (anchor, shift) = if a > WIDTH * 0.7 {
                ("end", -8.0)
            } else {
                ("start", 8.0)
            };
            text(&mut svg, a + shift, b - 8.0, anchor, &point.name);
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>"
    );
}

fn rule(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>"
    );
}

fn circle(svg: &mut String, x: f64, y: f64, colour: &str) {
    let _ = writeln!(
        svg,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>"
    );
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn points_lie_inside_the_frame() {
        let plot = Plot {
            title: "a < b".to_owned(),
            x: "GiB".to_owned(),
            y: "ms".to_owned(),
            line: ("smart".to_owned(), vec![(6.8, 400.0), (20.8, 280.0)]),
            points: vec![Point {
                name: "far".to_owned(),
                x: 21.0,
                y: 500.0,
            }],
        };
        let svg = plot.to_svg();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a &lt; b"));
        let numbers = |name: &str| -> Vec<f64> {
            let key = format!("{name}=\"");
            svg.split(&key)
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
                .collect()
        };
        assert_eq!(numbers("cx").len(), 3);
        assert!(
            numbers("cx")
                .iter()
                .all(|x| (LEFT..=WIDTH - RIGHT).contains(x))
        );
        assert!(
            numbers("cy")
                .iter()
                .all(|y| (TOP..=HEIGHT - BOTTOM).contains(y))
        );
    }
}
