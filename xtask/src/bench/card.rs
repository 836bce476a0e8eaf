//! Clock and power of a GPU while something runs on it: a step's products are bound by both.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

/// Asks the driver's own program every so many milliseconds.
const PERIOD: &str = "--loop-ms=50";

/// Watches until it is [`finish`](Self::finish)ed.
pub(crate) struct Watch(Option<Child>);

/// What was seen: medians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    /// Of the multiprocessors, in MHz.
    pub(crate) clock: f64,
    /// Drawn by the card, in watts.
    pub(crate) power: f64,
}

impl Watch {
    /// Begins to watch the GPU of that number; where the driver's program is missing, nothing is seen.
    pub(crate) fn start(index: usize) -> Self {
        let child = Command::new("nvidia-smi")
            .args(["--query-gpu=clocks.sm,power.draw", PERIOD])
            .arg("--format=csv,noheader,nounits")
            .arg(format!("--id={index}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(child.ok())
    }

    /// What was seen; `None` where nothing was.
    pub(crate) fn finish(mut self) -> Option<Load> {
        let mut child = self.0.take()?;
        child.kill().ok()?;
        let output = child.wait_with_output().ok()?;
        Load::of(&String::from_utf8_lossy(&output.stdout))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Load {
    /// Of lines `clock, power`; one that was cut or says `[N/A]` does not count.
    fn of(lines: &str) -> Option<Self> {
        let numbers = lines.lines().filter_map(|line| {
            let (clock, power) = line.split_once(',')?;
            Some([clock.trim().parse().ok()?, power.trim().parse().ok()?])
        });
        let numbers: Vec<[f64; 2]> = numbers.collect();
        let median = |which: usize| {
            let mut values: Vec<f64> = numbers.iter().map(|pair| pair[which]).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some(Self {
            clock: median(0)?,
            power: median(1)?,
        })
    }

    pub(crate) fn to_json(load: Option<Self>) -> Value {
        json!({"megahertz": load.map(|load| load.clock), "watts": load.map(|load| load.power)})
    }

    pub(crate) fn describe(load: Option<Self>) -> String {
        load.map_or_else(
            || "clock and power unknown".to_owned(),
            |load| format!("{:.0} MHz, {:.0} W", load.clock, load.power),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_whole_lines() {
        let load = Load::of("1980, 120.5\n1500, 690.1\n1485, [N/A]\n1490, 688.0\n14").unwrap();
        assert_eq!(
            load,
            Load {
                clock: 1500.0,
                power: 688.0
            }
        );
        assert_eq!(Load::of(""), None);
        assert_eq!(Load::describe(None), "clock and power unknown");
    }
}
