//! What a point of adaptive precision found and did.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

/// One point: precision dealt out by measurement, adapters started, or both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdaptationReport {
    /// Optimiser steps done.
    pub step: usize,
    /// Bits that were dealt out; absent where only adapters were started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<PrecisionReport>,
    /// Where adapters start; absent at a later point, and where they start at zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StartReport>,
    /// Mean nll of the rows that changes are judged by, before and after, nats.
    pub nll: [f64; 2],
    /// How far the model is from its unquantised weights on them, before and after: KL in nats. Absent at later points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<[f64; 2]>,
    /// Supervised tokens of those rows.
    pub verification_tokens: usize,
    /// Tokens that the statistics come from.
    pub calibration_tokens: usize,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Bits as they were dealt out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrecisionReport {
    /// Whether the plan was kept; else everything is as it was.
    pub accepted: bool,
    /// Plans that were tried.
    pub tries: usize,
    /// Mean bits of a quantised weight now, scales included.
    pub bits: f64,
    /// Bytes of the quantised projections now.
    pub bytes: u64,
    /// Sum of the prices before and of the plan that was tried last: predicted KL, nats.
    pub predicted: [f64; 2],
    /// Share of the quantised weights by format now.
    pub shares: BTreeMap<String, f64>,
    /// Bits of each projection now, by its name: a digit for each layer from the first, `-` where it is not quantised.
    #[serde(default)]
    pub by_layer: BTreeMap<String, String>,
    /// Projections that are stored otherwise than before, or would have been.
    pub moves: Vec<Move>,
}

/// A projection that is stored otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Its path.
    pub module: String,
    /// Its format before.
    pub from: String,
    /// Its format now.
    pub to: String,
}

/// What all points of a run came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PrecisionSummary {
    /// Mean bits of a quantised weight at the end; absent where only adapters were started.
    pub bits: Option<f64>,
    /// KL to the unquantised weights before and after the first point, nats.
    pub kl: Option<[f64; 2]>,
    /// Points that measured.
    pub points: usize,
    /// Projections that later points stored otherwise.
    pub moves: usize,
    /// Points whose moves were taken back.
    pub taken_back: usize,
    /// Where adapters started, if that was kept.
    pub init: Option<String>,
    /// Seconds that the points took.
    pub seconds: f64,
}

impl PrecisionSummary {
    /// Of the reports of a run in their order; `None` where there are none.
    #[must_use]
    pub fn of(reports: &[AdaptationReport]) -> Option<Self> {
        if reports.is_empty() {
            return None;
        }
        let mut summary = Self {
            points: reports.len(),
            seconds: reports.iter().map(|report| report.seconds).sum(),
            ..Self::default()
        };
        for report in reports {
            if let Some(precision) = &report.precision {
                summary.bits = Some(precision.bits);
                let moved = precision.moves.len();
                match precision.accepted {
                    false => summary.taken_back += 1,
                    true if report.step > 0 => summary.moves += moved,
                    true => {}
                }
            }
            let start = report.start.as_ref().filter(|start| start.accepted);
            summary.init = start.map(|start| start.init.clone()).or(summary.init);
            summary.kl = summary.kl.or(report.kl);
        }
        Some(summary)
    }
}

/// `4.50 bits in the mean; KL 0.4711 -> 0.1612 at the start; adapters by qera; 3 moves later; 2 points in 18.6 s`.
impl fmt::Display for PrecisionSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.bits.map(|bits| format!("{bits:.2} bits in the mean")));
        let kl = self
            .kl
            .map(|[before, after]| format!("KL {before:.4} -> {after:.4} at the start"));
        parts.extend(kl);
        parts.extend(self.init.as_ref().map(|init| format!("adapters by {init}")));
        if self.moves > 0 {
            parts.push(format!("{} later", moves(self.moves)));
        }
        if self.taken_back > 0 {
            parts.push(format!("{} taken back", points(self.taken_back)));
        }
        parts.push(format!("{} in {:.1} s", points(self.points), self.seconds));
        f.write_str(&parts.join("; "))
    }
}

fn points(count: usize) -> String {
    format!("{count} {}", if count == 1 { "point" } else { "points" })
}

/// How adapters were started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StartReport {
    /// `loftq` or `qera`.
    pub init: String,
    /// Whether the starts were kept; else adapters start at zero.
    pub accepted: bool,
    /// Adapters that were started.
    pub adapters: usize,
    /// KL to the unquantised weights before and with them, nats.
    pub kl: [f64; 2],
}

/// Moves that a line names; of more only the number is said.
const NAMED: usize = 4;

impl fmt::Display for AdaptationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend(
            self.precision
                .as_ref()
                .map(|precision| precision.text(self.step)),
        );
        parts.extend(self.start.as_ref().map(StartReport::text));
        let [before, after] = self.nll;
        let mut numbers = String::new();
        if let Some([before, after]) = self.kl {
            let _ = write!(numbers, "KL {before:.4} -> {after:.4}, ");
        }
        let _ = write!(numbers, "nll {before:.3} -> {after:.3}");
        write!(f, "{}; {numbers} ({:.1} s)", parts.join("; "), self.seconds)
    }
}

impl PrecisionReport {
    fn text(&self, step: usize) -> String {
        let place = if step == 0 {
            String::new()
        } else {
            format!("step {step}: ")
        };
        if !self.accepted {
            return format!(
                "{place}{} tried and taken back, {}",
                moves(self.moves.len()),
                if step == 0 {
                    "KL would rise"
                } else {
                    "the loss would rise"
                }
            );
        }
        if step > 0 && (1..=NAMED).contains(&self.moves.len()) {
            let moves = self
                .moves
                .iter()
                .map(|m| format!("{} {} -> {}", m.module, m.from, m.to));
            return format!("{place}{}", moves.collect::<Vec<_>>().join(", "));
        }
        format!(
            "{place}{}precision at {:.2} bits: {}",
            if step > 0 {
                moves(self.moves.len()) + ", "
            } else {
                String::new()
            },
            self.bits,
            self.shares_in_words()
        )
    }

    /// `nf4 62 %, nf5 38 %`, the largest first.
    #[must_use]
    pub fn shares_in_words(&self) -> String {
        let mut shares: Vec<(&String, &f64)> = self.shares.iter().collect();
        shares.sort_by(|a, b| b.1.total_cmp(a.1));
        let shares = shares
            .into_iter()
            .map(|(name, share)| format!("{name} {:.0} %", share * 100.0));
        shares.collect::<Vec<_>>().join(", ")
    }
}

impl StartReport {
    fn text(&self) -> String {
        let Self { init, adapters, .. } = self;
        match self.accepted {
            true => format!("{adapters} adapters start by {init}"),
            false => format!("adapters start at zero: by {init} KL would rise"),
        }
    }
}

fn moves(count: usize) -> String {
    format!("{count} {}", if count == 1 { "move" } else { "moves" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> AdaptationReport {
        AdaptationReport {
            step: 0,
            precision: Some(PrecisionReport {
                accepted: true,
                tries: 1,
                bits: 4.4987,
                bytes: 59_000_000,
                predicted: [0.12, 0.044],
                shares: BTreeMap::from([("nf4".into(), 0.62), ("nf5".into(), 0.38)]),
                by_layer: BTreeMap::from([("q_proj".into(), "4454".into())]),
                moves: vec![Move {
                    module: "model.layers.3.mlp.down_proj".into(),
                    from: "nf4".into(),
                    to: "nf5".into(),
                }],
            }),
            start: None,
            nll: [4.162, 3.611],
            kl: Some([0.4711, 0.1612]),
            verification_tokens: 2048,
            calibration_tokens: 4096,
            seconds: 12.34,
        }
    }

    #[test]
    fn a_line_says_what_was_done_and_what_came_of_it() {
        let first = report();
        assert_eq!(
            first.to_string(),
            "precision at 4.50 bits: nf4 62 %, nf5 38 %; KL 0.4711 -> 0.1612, nll 4.162 -> 3.611 (12.3 s)"
        );
        let later = AdaptationReport {
            step: 200,
            kl: None,
            ..report()
        };
        assert_eq!(
            later.to_string(),
            "step 200: model.layers.3.mlp.down_proj nf4 -> nf5; nll 4.162 -> 3.611 (12.3 s)"
        );
        let mut vetoed = later;
        vetoed.precision.as_mut().unwrap().accepted = false;
        assert!(
            vetoed
                .to_string()
                .starts_with("step 200: 1 move tried and taken back")
        );
        let started = AdaptationReport {
            precision: None,
            start: Some(StartReport {
                init: "qera".into(),
                accepted: true,
                adapters: 210,
                kl: [0.4, 0.2],
            }),
            ..report()
        };
        assert!(
            started
                .to_string()
                .starts_with("210 adapters start by qera; KL")
        );
        let mut later = started.clone();
        (later.step, later.precision) = (9, report().precision);
        let summary = PrecisionSummary::of(&[report(), vetoed, later]).unwrap();
        assert_eq!(
            summary.to_string(),
            "4.50 bits in the mean; KL 0.4711 -> 0.1612 at the start; adapters by qera; 1 move later; 1 point taken back; \
             3 points in 37.0 s"
        );
        assert_eq!(PrecisionSummary::of(&[]), None);
        let text = serde_json::to_string(&report()).unwrap();
        assert_eq!(
            serde_json::from_str::<AdaptationReport>(&text).unwrap(),
            report()
        );
    }
}
