//! `--devices`: the processes of a run on this machine, and what their parent does.

use std::env;
use std::fmt;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use backdraft_arch::DeviceChoice;
use backdraft_comm::{CommError, Launch, Launcher, Start};
use backdraft_kernels::{cards, device};
use backdraft_train::ranks::cards_may_be_shared;
use tempfile::TempDir;

use crate::error::{CliError, INTERRUPTED};
use crate::signals;

/// Between looks at the processes.
const LOOK: Duration = Duration::from_millis(20);

/// The most processes that are started: more would be a slip of the finger.
const MOST: usize = 256;

/// How many cores a process uses, which bits depend on.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Which cards a process sees, by their numbers or names.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// Where programs make temporary files: on Unix, and on Windows.
const TEMPORARY: [&str; 3] = ["TMPDIR", "TMP", "TEMP"];

/// What `--devices` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Devices {
    /// So many processes, which share the processor, or each have a GPU.
    Count(usize),
    /// A process for each of these GPUs.
    Gpus(Vec<usize>),
    /// A process for each GPU that is there.
    All,
}

impl FromStr for Devices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text, cards_may_be_shared())
    }
}

impl Devices {
    fn parse(text: &str, may_share: bool) -> Result<Self, String> {
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
                    Some(twice) if !may_share => Err(format!(
                        "GPU {} is there twice (BACKDRAFT_SHARE_GPU=1 has processes share one)",
                        gpus[twice]
                    )),
                    _ => Ok(Self::Gpus(gpus.to_vec())),
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
    /// The processes that are to be started, where `--device` says `device`.
    ///
    /// # Errors
    /// GPUs that are not there, or beside a device that is none.
    pub(crate) fn processes(&self, device: Option<DeviceChoice>) -> Result<Processes, CliError> {
        let on_cards = match device {
            None | Some(DeviceChoice::Auto | DeviceChoice::Cuda(0)) => true,
            Some(_) => false,
        };
        let gpus: Vec<usize> = match self {
            // Which device it is may be for the recipe to say.
            Self::Count(count) if device != Some(DeviceChoice::Cuda(0)) => {
                return Ok(Processes {
                    count: *count,
                    gpus: None,
                });
            }
            Self::Count(count) => (0..*count).collect(),
            Self::Gpus(gpus) => gpus.clone(),
            Self::All => (0..cards::count()).collect(),
        };
        if !on_cards {
            return Err(CliError::usage(format!(
                "--devices {self} is for GPUs, and --device names another"
            ))
            .hint("--device cuda goes with them; --device cpu --devices 2 starts two processes on the processor"));
        }
        let cards = cards::count();
        let missing = gpus.iter().find(|gpu| **gpu >= cards);
        if cards == 0 || missing.is_some() {
            let why = match (missing, device::cuda(0)) {
                (Some(gpu), Ok(_)) => {
                    format!("there is no GPU {gpu}, found {cards} of them (from 0)")
                }
                (_, Err(error)) => error.to_string(),
                (None, Ok(_)) => "found no GPU".to_owned(),
            };
            return Err(CliError::usage(format!("--devices {self}: {why}"))
                .hint("--device cpu --devices 2 starts two processes on the processor"));
        }
        Ok(Processes {
            count: gpus.len(),
            gpus: Some(gpus),
        })
    }
}

/// What `--devices` comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Processes {
    pub(crate) count: usize,
    /// The GPU of each, as this process numbers them; `None` where the recipe says what computes.
    gpus: Option<Vec<usize>>,
}

impl Processes {
    /// What the processes are to see of the cards that `seen` names: each takes the one at the place of its rank, counted round.
    fn visible(&self, seen: Option<&str>) -> Option<String> {
        let gpus = self.gpus.as_ref()?;
        let seen: Option<Vec<&str>> = seen.map(|seen| seen.split(',').map(str::trim).collect());
        let mut names: Vec<String> = Vec::new();
        for &gpu in gpus {
            let name = match &seen {
                Some(seen) => (*seen.get(gpu)?).to_owned(),
                None => gpu.to_string(),
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Some(names.join(","))
    }
}

/// Does what `--devices` asks for, where this process was started by itself: leads others, or finds that it is to be alone. Whether
/// it led.
///
/// # Errors
/// Another launcher has started this process; as [`Devices::processes`] and [`lead`].
pub(crate) fn led(
    devices: Option<&Devices>,
    among: &Start,
    device: Option<DeviceChoice>,
) -> Result<bool, CliError> {
    let Some(devices) = devices else {
        return Ok(false);
    };
    match among.launcher {
        Launcher::Parent => Ok(false),
        Launcher::Alone => {
            let processes = devices.processes(device)?;
            if processes.count > 1 {
                lead(&processes, device)?;
            }
            Ok(processes.count > 1)
        }
        launcher => Err(CliError::usage(format!(
            "--devices starts the processes of a run, and {launcher} has started this one as one of {}",
            among.size
        ))
        .hint("leave --devices out")),
    }
}

/// Starts this program again with its arguments as the processes that share the run, and waits for them. Only rank 0 is heard. A
/// signal ends the run as it ends that of one process.
///
/// # Errors
/// That of the process that failed, which rank 0 has told wherever it could.
fn lead(processes: &Processes, device: Option<DeviceChoice>) -> Result<(), CliError> {
    let count = processes.count;
    let visible = processes.visible(env::var(VISIBLE).ok().as_deref());
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
        if let Some(visible) = &visible {
            command.env(VISIBLE, visible);
            if device.is_none() {
                command.args(["--device", "cuda"]);
            }
        }
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
    fn processes_see_the_cards_that_are_theirs() {
        let of = |gpus: &[usize]| Processes {
            count: gpus.len(),
            gpus: Some(gpus.to_vec()),
        };
        let see = |gpus: &[usize], seen| of(gpus).visible(seen);
        assert_eq!(see(&[0, 2], None).as_deref(), Some("0,2"));
        assert_eq!(
            see(&[2, 0], Some("5, 3,GPU-7f")).as_deref(),
            Some("GPU-7f,5")
        );
        // Two processes on one card see one.
        assert_eq!(see(&[0, 0], None).as_deref(), Some("0"));
        assert_eq!(see(&[1, 0, 1, 0], None).as_deref(), Some("1,0"));
        let any = Processes {
            count: 2,
            gpus: None,
        };
        assert_eq!(any.visible(Some("0,1")), None);
        let two: Devices = "2".parse().unwrap();
        for device in [None, Some(DeviceChoice::Auto), Some(DeviceChoice::Cpu)] {
            assert_eq!(two.processes(device).unwrap(), any);
        }
        let error = Devices::Gpus(vec![0, 1]).processes(Some(DeviceChoice::Cpu));
        let error = error.unwrap_err().to_string();
        assert_eq!(
            error,
            "--devices 0,1 is for GPUs, and --device names another"
        );
    }

    #[test]
    fn devices_are_a_number_or_gpus() {
        assert_eq!("2".parse(), Ok(Devices::Count(2)));
        assert_eq!("0,3".parse(), Ok(Devices::Gpus(vec![0, 3])));
        assert_eq!("all".parse(), Ok(Devices::All));
        for good in ["1", "256", "0,1,2", "all"] {
            assert_eq!(good.parse::<Devices>().unwrap().to_string(), good);
        }
        let twice = "1,0,1".parse::<Devices>();
        let hint = "GPU 1 is there twice (BACKDRAFT_SHARE_GPU=1 has processes share one)";
        assert_eq!(twice, Err(hint.to_owned()));
        let shared = Devices::parse("1,0,1", true);
        assert_eq!(shared, Ok(Devices::Gpus(vec![1, 0, 1])));
        for bad in ["", "0", "257", "-1", "two", "1,", ",1", "0,x", "cuda:0"] {
            let error = bad.parse::<Devices>().unwrap_err();
            assert!(
                error.starts_with("expected a number of processes"),
                "{bad}: {error}"
            );
        }
    }
}
