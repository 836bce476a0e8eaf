//! Clock and power of a GPU while something runs on it: a step's products are bound by both.

use serde_json::{Value, json};

/// What was seen: medians.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    /// Of the multiprocessors, in MHz.
    pub(crate) clock: f64,
    /// Drawn by the card, in watts.
    pub(crate) power: f64,
}

impl Load {
    fn of(samples: &[[f64; 2]]) -> Option<Self> {
        let median = |which: usize| {
            let mut values: Vec<f64> = samples.iter().map(|sample| sample[which]).collect();
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

/// Watches a GPU until it is [`finish`](Self::finish)ed.
#[derive(Default)]
pub(crate) struct Watch {
    #[cfg(feature = "cuda")]
    thread: Option<watching::Thread>,
}

impl Watch {
    /// Begins to watch the GPU of that number; where the driver does not tell, nothing is seen.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "no GPU"))]
    pub(crate) fn start(index: u32) -> Self {
        Self {
            #[cfg(feature = "cuda")]
            thread: watching::start(index),
        }
    }

    /// What was seen; `None` where nothing was.
    pub(crate) fn finish(self) -> Option<Load> {
        #[cfg(feature = "cuda")]
        return Load::of(&self.thread?.stop());
        #[cfg(not(feature = "cuda"))]
        Load::of(&[])
    }
}

#[cfg(feature = "cuda")]
mod watching {
    use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
    use std::thread::JoinHandle;
    use std::time::Duration;

    use nvml_wrapper::Nvml;
    use nvml_wrapper::enum_wrappers::device::Clock;

    /// How often the driver is asked.
    const PERIOD: Duration = Duration::from_millis(30);

    pub(super) struct Thread {
        done: Sender<()>,
        handle: JoinHandle<Vec<[f64; 2]>>,
    }

    pub(super) fn start(index: u32) -> Option<Thread> {
        let nvml = Nvml::builder()
            .lib_path("libnvidia-ml.so.1".as_ref())
            .init()
            .ok()?;
        nvml.device_by_index(index).ok()?;
        let (done, stopped) = channel();
        let handle = std::thread::spawn(move || {
            let mut samples = Vec::new();
            let Ok(device) = nvml.device_by_index(index) else {
                return samples;
            };
            while stopped.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
                if let (Ok(clock), Ok(power)) = (device.clock_info(Clock::SM), device.power_usage())
                {
                    samples.push([f64::from(clock), f64::from(power) / 1e3]);
                }
            }
            samples
        });
        Some(Thread { done, handle })
    }

    impl Thread {
        pub(super) fn stop(self) -> Vec<[f64; 2]> {
            drop(self.done);
            self.handle.join().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_each() {
        let load = Load::of(&[[1980.0, 120.5], [1500.0, 690.0], [1490.0, 688.0]]);
        let expected = Load {
            clock: 1500.0,
            power: 688.0,
        };
        assert_eq!(load, Some(expected));
        assert_eq!(Load::of(&[]), None);
        assert_eq!(
            Load::describe(Watch::default().finish()),
            "clock and power unknown"
        );
    }
}
