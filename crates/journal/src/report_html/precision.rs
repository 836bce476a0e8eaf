//! Bits by layer and projection, and what each point of adaptive precision did.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::escape;
use crate::adaptation::AdaptationReport;
use crate::run_files::RunFiles;

/// Side of a cell, in units of the drawing.
const CELL: usize = 20;

/// Room for the names of projections.
const LEFT: usize = 84;

/// Room for the numbers of layers.
const TOP: usize = 18;

/// A section for the runs that had points; nothing where none had.
pub(super) fn precision(runs: &[RunFiles]) -> String {
    let mut html = String::new();
    for run in runs.iter().filter(|run| !run.adaptations.is_empty()) {
        let name = match runs {
            [_] => String::new(),
            _ => format!(": {}", run.name()),
        };
        let _ = writeln!(html, "<h2>Precision{}</h2>", escape(&name));
        html.push_str("<ul>\n");
        for point in &run.adaptations {
            let _ = writeln!(html, "<li>{}</li>", escape(&point.to_string()));
        }
        html.push_str("</ul>\n");
        html.push_str(&grid(&run.adaptations));
    }
    html
}

/// The last plan: a cell for each projection, darker with its bits, ringed where a later point moved it.
fn grid(points: &[AdaptationReport]) -> String {
    let mut plans = points.iter().filter_map(|point| point.precision.as_ref());
    let Some(last) = plans.next_back() else {
        return String::new();
    };
    let layers = last.by_layer.values().map(String::len).max().unwrap_or(0);
    if layers == 0 {
        return String::new();
    }
    let later = points.iter().filter(|point| point.step > 0);
    let later = later.filter_map(|point| point.precision.as_ref());
    let moved: BTreeSet<&str> = later
        .filter(|plan| plan.accepted)
        .flat_map(|plan| plan.moves.iter().map(|one| one.module.as_str()))
        .collect();
    let (width, height) = (LEFT + layers * CELL, TOP + last.by_layer.len() * CELL);
    // Writing to a string cannot fail.
    let mut svg = format!(
        "<figure><figcaption>Bits of each projection, by layer</figcaption>\n\
         <svg viewBox=\"0 0 {width} {height}\" style=\"max-width:{width}px\" role=\"img\" \
         aria-label=\"Bits of each projection, by layer\">\n"
    );
    for layer in (0..layers).step_by(5) {
        let x = LEFT + layer * CELL + CELL / 2;
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"12\" text-anchor=\"middle\">{layer}</text>"
        );
    }
    for (row, (name, bits)) in last.by_layer.iter().enumerate() {
        let y = TOP + row * CELL;
        let _ = writeln!(
            svg,
            "<text x=\"0\" y=\"{}\">{}</text>",
            y + 14,
            escape(name)
        );
        for (layer, digit) in bits.chars().enumerate() {
            let x = LEFT + layer * CELL;
            let share = digit
                .to_digit(10)
                .map_or(100, |bits| (bits.saturating_sub(2) * 15).min(90));
            let ring = match moved.iter().any(|path| is_at(path, layer, name)) {
                true => " stroke=\"var(--c1)\" stroke-width=\"2\"",
                false => "",
            };
            let _ = writeln!(
                svg,
                "<rect x=\"{}\" y=\"{}\" width=\"{side}\" height=\"{side}\"{ring} \
                 style=\"fill:color-mix(in srgb,var(--c0) {share}%,transparent)\"/>\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                x + 1,
                y + 1,
                x + CELL / 2,
                y + 14,
                escape(&digit.to_string()),
                side = CELL - 2
            );
        }
    }
    svg.push_str("</svg>\n<p class=\"legend\">darker: more bits");
    if !moved.is_empty() {
        svg.push_str("; <span class=\"c1\">□</span> stored otherwise by a later point");
    }
    if last.by_layer.values().any(|bits| bits.contains('-')) {
        svg.push_str("; -: not quantized");
    }
    svg.push_str("</p></figure>\n");
    svg
}

/// Whether `path` is the projection `name` of `layer`.
fn is_at(path: &str, layer: usize, name: &str) -> bool {
    path.ends_with(&format!(".{name}")) && path.contains(&format!(".{layer}."))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::adaptation::{Move, PrecisionReport};

    fn point(step: usize, q_proj: &str) -> AdaptationReport {
        AdaptationReport {
            step,
            precision: Some(PrecisionReport {
                accepted: true,
                tries: 1,
                bits: 4.5,
                bytes: 1000,
                predicted: [0.1, 0.05],
                shares: BTreeMap::from([("nf4".to_owned(), 1.0)]),
                by_layer: BTreeMap::from([
                    ("q_proj".to_owned(), q_proj.to_owned()),
                    ("up_proj".to_owned(), "445".to_owned()),
                ]),
                moves: vec![Move {
                    module: "model.layers.1.self_attn.q_proj".to_owned(),
                    from: "nf4".to_owned(),
                    to: "nf6".to_owned(),
                }],
            }),
            start: None,
            nll: [2.0, 1.9],
            kl: None,
            verification_tokens: 10,
            calibration_tokens: 20,
            seconds: 1.0,
        }
    }

    #[test]
    fn a_cell_for_each_projection_and_rings_around_moves() {
        let first = grid(&[point(0, "4-8")]);
        assert_eq!(first.matches("<rect").count(), 6);
        assert!(!first.contains("stroke=") && first.contains("not quantized"));
        let later = grid(&[point(0, "448"), point(7, "468")]);
        assert_eq!(later.matches("stroke=\"var(--c1)\"").count(), 1);
        assert!(later.contains(">6</text>") && !later.contains("not quantized"));
        let mut alone = point(0, "444");
        alone.precision = None;
        assert_eq!(grid(&[alone]), "");
    }
}
