//! What whoever watches a run may ask of it while it goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Requests to a run, taken between two steps. Clones are the same requests.
#[derive(Clone, Debug, Default)]
pub struct Control {
    stop: Arc<AtomicBool>,
    signal: Arc<AtomicBool>,
    save: Arc<AtomicBool>,
    pause: Arc<AtomicBool>,
}

impl Control {
    /// Requests to another run, which the same signals end.
    #[must_use]
    pub fn of_another_run(&self) -> Self {
        Self {
            signal: self.signal.clone(),
            ..Self::default()
        }
    }

    /// Ends the run after its present step, with a checkpoint.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// What a signal sets to end the run after its present step, with a checkpoint.
    #[must_use]
    pub fn signal_flag(&self) -> Arc<AtomicBool> {
        self.signal.clone()
    }

    /// Does what a signal does.
    pub fn signal(&self) {
        self.signal.store(true, Ordering::Relaxed);
    }

    /// Whether a signal asked for the end.
    #[must_use]
    pub fn signalled(&self) -> bool {
        self.signal.load(Ordering::Relaxed)
    }

    /// Whether the run is to end.
    #[must_use]
    pub fn should_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.signalled()
    }

    /// Asks for a checkpoint after the present step.
    pub fn save(&self) {
        self.save.store(true, Ordering::Relaxed);
    }

    /// Whether a checkpoint was asked for since the last time.
    #[must_use]
    pub fn take_save(&self) -> bool {
        self.save.swap(false, Ordering::Relaxed)
    }

    /// Pauses a run that goes on, and lets one go on that pauses.
    pub fn toggle_pause(&self) {
        self.pause.fetch_xor(true, Ordering::Relaxed);
    }

    /// Whether the run pauses after its present step.
    #[must_use]
    pub fn paused(&self) -> bool {
        self.pause.load(Ordering::Relaxed)
    }

    /// Returns when the run may go on, or is to save or to stop.
    pub fn wait_while_paused(&self) {
        while self.paused() && !self.should_stop() && !self.save.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
