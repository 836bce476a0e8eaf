//! `--devices`: the processes of a run on this machine, and what their parent does.

use std::env;
use std::fmt;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use backdraft_comm::{CommError, Launch};
use tempfile::TempDir;

use crate::error::{CliError, INTERRUPTED};
use crate::signals;

/// Between looks at the processes.
const LOOK: Duration = Duration::from_millis(20);

/// The most processes that are started: more would be a slip of the finger.
const MOST: usize = 256;

/// How many cores a process uses, which bits depend on.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Where programs make temporary files: on Unix, and on Windows.
const TEMPORARY: [&str; 3] = ["TMPDIR", "TMP", "TEMP"];

/// What `--devices` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    /// So many processes, which share the processor.
    Count(usize),
    /// A process for each of these GPUs.
    Gpus(Vec<usize>),
    /// A process for each GPU that is there.
    All,
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!("expected a number of processes (1 to {MOST}), or GPUs: a list (0,1) or all")
        };
        if text == "all" {
            return Ok(Self::All);
        }
        let numbers: Option<Vec<usize>> = text.split(',').map(|one| one.parse().ok()).collect();
        match numbers.as_deref() {
            Some([count @ 1..=MOST]) => Ok(Self::Count(*count)),
            Some(gpus @ [_, _, ..]) => {
                match (1..gpus.len()).find(|&i| gpus[..i].contains(&gpus[i])) {
                    None => Ok(Self::Gpus(gpus.to_vec())),
                    Some(twice) => Err(format!("GPU {} is there twice", gpus[twice])),
                }
            }
            _ => Err(expected()),
        }
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Gpus(gpus) => {
                let gpus: Vec<_> = gpus.iter().map(usize::to_string).collect();
                f.write_str(&gpus.join(","))
            }
            Self::All => f.write_str("all"),
        }
    }
}

impl Devices {
    /// How many processes share the run.
    ///
    /// # Errors
    /// GPUs, which this version does not train on by several processes.
    pub(crate) fn processes(&self) -> Result<usize, CliError> {
        match self {
            Self::Count(count) => Ok(*count),
            Self::Gpus(_) | Self::All => Err(CliError::usage(format!(
                "--devices {self} is for GPUs, and this version shares a run among processes on the processor only"
            ))
            .hint("--device cpu --devices 2 starts two processes there")),
        }
    }
}

/// Starts this program again with its arguments as `count` processes that share the run, and waits for them. Only rank 0 is
/// heard. A signal ends the run as it ends that of one process.
///
/// # Errors
/// That of the process that failed, which rank 0 has told wherever it could.
pub(crate) fn lead(count: usize) -> Result<(), CliError> {
    let signalled = signals::listen()?;
    let scratch = tempfile::Builder::new()
        .prefix("backdraft-ranks-")
        .tempdir()
        .map_err(|error| {
            CliError::user("cannot make a folder for temporary files").because(error)
        })?;
    let program = env::current_exe()
        .map_err(|error| CliError::user("cannot find this program's file").because(error))?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = env::var(THREADS).unwrap_or_else(|_| (cores / count).max(1).to_string());
    let command = |rank| {
        let mut command = Command::new(&program);
        command.args(env::args_os().skip(1)).env(THREADS, &threads);
        if rank > 0 {
            keep_quiet(&mut command, &scratch);
        }
        command
    };
    let mut launch = Launch::start(count, command)?.accepting(INTERRUPTED.into());
    let mut asked = false;
    loop {
        if signalled.swap(false, Ordering::Relaxed) {
            if asked || !launch.has_begun()? {
                return Err(CliError::interrupted());
            }
            asked = true;
            launch.ask_to_stop()?;
        }
        match launch.have_ended() {
            Ok(false) => thread::sleep(LOOK),
            Ok(true) => break,
            Err(error) => {
                let interrupted = asked || signalled.load(Ordering::Relaxed);
                return Err(failure(error, launch.children(), interrupted));
            }
        }
    }
    let mut children = launch.children().iter_mut();
    match children.any(|child| code(child) == Some(INTERRUPTED)) {
        true => Err(CliError::interrupted()),
        false => Ok(()),
    }
}

/// Rank 0 says what all would say; what a process leaves when it is killed goes with the parent's folder.
fn keep_quiet(command: &mut Command, scratch: &TempDir) {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    for name in TEMPORARY {
        command.env(name, scratch.path());
    }
}

/// What the parent ends with when a process has failed.
fn failure(error: CommError, children: &mut [Child], interrupted: bool) -> CliError {
    let CommError::Ended(words) = &error else {
        return error.into();
    };
    let failed = words.rank.and_then(|rank| children.get_mut(rank));
    let failed = failed.and_then(code);
    if interrupted && failed.is_none() {
        return CliError::interrupted();
    }
    // Whoever was killed has told nobody.
    match code(&mut children[0]) {
        Some(first) => CliError::told(failed.unwrap_or(first)),
        None => error.into(),
    }
}

/// The exit code of a process that has ended by itself.
fn code(child: &mut Child) -> Option<u8> {
    let status = child.try_wait().ok().flatten()?;
    u8::try_from(status.code()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_a_number_or_gpus() {
        assert_eq!("2".parse(), Ok(Devices::Count(2)));
        assert_eq!("0,3".parse(), Ok(Devices::Gpus(vec![0, 3])));
        assert_eq!("all".parse(), Ok(Devices::All));
        for good in ["1", "256", "0,1,2", "all"] {
            assert_eq!(good.parse::<Devices>().unwrap().to_string(), good);
        }
        let twice = "1,0,1".parse::<Devices>();
        assert_eq!(twice, Err("GPU 1 is there twice".to_owned()));
        for bad in ["", "0", "257", "-1", "two", "1,", ",1", "0,x", "cuda:0"] {
            let error = bad.parse::<Devices>().unwrap_err();
            assert!(
                error.starts_with("expected a number of processes"),
                "{bad}: {error}"
            );
        }
    }
}
