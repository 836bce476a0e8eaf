//! Ctrl-C and its kin while a run goes on.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use backdraft_train::control::Control;
use signal_hook::consts::TERM_SIGNALS;
use signal_hook::flag;

use crate::error::{CliError, INTERRUPTED};

/// From now on the first signal to end the program ends the run after its present step, and the second
/// one ends the program at once. A terminal that is closed ends neither: the run goes on, and
/// `backdraft watch` shows it.
///
/// Sets what it returns when the terminal is closed.
pub(crate) fn guard(control: &Control) -> Result<Arc<AtomicBool>, CliError> {
    let flag = control.signal_flag();
    for signal in TERM_SIGNALS {
        // In this order: the second one finds what the first one set.
        flag::register_conditional_shutdown(*signal, i32::from(INTERRUPTED), flag.clone())
            .map_err(cannot)?;
        flag::register(*signal, flag.clone()).map_err(cannot)?;
    }
    hangup()
}

/// What every signal to end the program sets from now on, in place of ending it; a closed terminal sets nothing.
pub(crate) fn listen() -> Result<Arc<AtomicBool>, CliError> {
    let signalled = Arc::new(AtomicBool::new(false));
    for signal in TERM_SIGNALS {
        flag::register(*signal, signalled.clone()).map_err(cannot)?;
    }
    hangup()?;
    Ok(signalled)
}

/// What the closing of the terminal sets.
fn hangup() -> Result<Arc<AtomicBool>, CliError> {
    let hangup = Arc::new(AtomicBool::new(false));
    #[cfg(unix)]
    flag::register(signal_hook::consts::SIGHUP, hangup.clone()).map_err(cannot)?;
    Ok(hangup)
}

fn cannot(error: std::io::Error) -> CliError {
    CliError::user("cannot listen for signals").because(error)
}
