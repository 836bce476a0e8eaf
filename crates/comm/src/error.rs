//! Why processes do not come together, or part.

use std::time::Duration;

use crate::start::Launcher;

/// Why a process does not know which one it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A launcher's other variables are there.
    #[error(
        "{variable} is not set, and the processes started by {launcher} need it: {}",
        advice(variable)
    )]
    Missing {
        /// Its name.
        variable: &'static str,
        /// Who set the others.
        launcher: Launcher,
    },
    /// Text where a count belongs.
    #[error("{variable} is {found:?}, and has to be a number from 0: correct or unset it")]
    NotANumber {
        /// The variable.
        variable: &'static str,
        /// What it says.
        found: String,
    },
    /// Text where a port belongs.
    #[error(
        "MASTER_PORT is {found:?}, and has to be a number from 1 to 65535, the same in every process"
    )]
    NotAPort {
        /// What it says.
        found: String,
    },
    /// Ranks count from 0.
    #[error(
        "{rank_variable} is {rank} and {size_variable} is {size}: ranks count from 0, so the last one is {}",
        size.saturating_sub(1)
    )]
    NotBelow {
        /// The variable of the rank.
        rank_variable: &'static str,
        /// The rank.
        rank: usize,
        /// The variable of the number of processes.
        size_variable: &'static str,
        /// The number of processes.
        size: usize,
    },
    /// Kubeflow tells pods about each other, but nobody has started a process per device.
    #[error(
        "PET_NNODES is {nodes}, but RANK is not set: start the program through torchrun in each pod, or unset PET_NNODES"
    )]
    Pods {
        /// How many pods there are.
        nodes: String,
    },
}

fn advice(variable: &str) -> &'static str {
    match variable {
        "MASTER_ADDR" => {
            "set it in every process to the machine of rank 0 (mpirun -x MASTER_ADDR=HOST; Hydra: -genv MASTER_ADDR HOST)"
        }
        "MASTER_PORT" => {
            "set it in every process to the same free port of rank 0's machine, 29500 for one"
        }
        _ => {
            "start all processes by one launcher, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in each"
        }
    }
}

/// Why processes do not come together, or part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommError {
    /// Nobody answers where the processes are to meet.
    #[error(
        "no store answers at {address} after {:.0} s: check MASTER_ADDR and MASTER_PORT, that rank 0 runs, and that no \
         firewall stands between", waited.as_secs_f64()
    )]
    Unreachable {
        /// Host and port.
        address: String,
        /// How long it was tried.
        waited: Duration,
        /// What the system said last.
        source: std::io::Error,
    },
    /// Somebody else listens there.
    #[error(
        "what listens at {address} is no TCPStore ({found}): is MASTER_PORT the port of another program?"
    )]
    NotAStore {
        /// Host and port.
        address: String,
        /// How that showed.
        found: String,
    },
    /// Rank 0 cannot keep the store.
    #[error(
        "cannot listen on {address} for the other processes: set MASTER_PORT to a free port, the same in every process"
    )]
    Listen {
        /// Host and port.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A connection to the store ended.
    #[error("the connection to the store at {address} ended: {doing}")]
    Connection {
        /// Host and port.
        address: String,
        /// What was being done.
        doing: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The store answered what it must not.
    #[error("the store at {address} answered {found} to {doing}")]
    Protocol {
        /// Host and port.
        address: String,
        /// What was being done.
        doing: String,
        /// What came.
        found: String,
    },
    /// A key or value that no store takes.
    #[error("{what} of {length} bytes is over the store's limit of {limit}")]
    TooLong {
        /// A key or a value.
        what: &'static str,
        /// Its bytes.
        length: usize,
        /// The most.
        limit: usize,
    },
    /// Some processes did not come in time.
    #[error("waited {:.0} s for {what}; of {size} processes {} did not arrive", waited.as_secs_f64(), names(missing))]
    Waited {
        /// For what.
        what: String,
        /// Who is missing.
        missing: Vec<usize>,
        /// How many processes there are.
        size: usize,
        /// How long.
        waited: Duration,
    },
    /// Two processes say that they are the same one.
    #[error(
        "two processes say that they are rank {rank}: {first}, and {second}; each needs a RANK of its own"
    )]
    Twice {
        /// The rank.
        rank: usize,
        /// Who was first.
        first: String,
        /// Who came then.
        second: String,
    },
    /// Processes that would not train the same thing.
    #[error("the processes do not agree: {}", differences.join("; "))]
    Differs {
        /// For each thing: its name, and which ranks have what.
        differences: Vec<String>,
    },
    /// Another process ended, and said why, or had no time to.
    #[error("{0}")]
    Ended(crate::LastWords),
    /// A message that is not as long as both sides have to know it to be.
    #[error(
        "rank {from} sent {found} bytes of {what} where {expected} were due: the processes have parted"
    )]
    Length {
        /// Who sent it.
        from: usize,
        /// What it was part of.
        what: &'static str,
        /// Bytes due.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
    /// A process of a run cannot be started.
    #[error("cannot start {program} as rank {rank}")]
    Start {
        /// The program.
        program: String,
        /// Which process it was to be.
        rank: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Open MPI's library cannot be opened.
    #[error(
        "no Open MPI here: install its runtime library, or set BACKDRAFT_MPI to libmpi.so; tried {}",
        tried.join("; ")
    )]
    NoMpi {
        /// Each name, with what the system said.
        tried: Vec<String>,
    },
    /// MPI counts other processes than the launcher's variables.
    #[error(
        "MPI says rank {found_rank} of {found_size}, the variables rank {rank} of {size}: start all processes by one mpirun"
    )]
    MpiRanks {
        /// The rank by the variables.
        rank: usize,
        /// The number of processes by the variables.
        size: usize,
        /// The rank by MPI.
        found_rank: i32,
        /// The number of processes by MPI.
        found_size: i32,
    },
    /// MPI can be begun once in a process.
    #[error("MPI was begun in this process before, and cannot be begun again")]
    MpiTwice,
    /// A call of MPI failed.
    #[error("{call} of MPI failed: {message}")]
    Mpi {
        /// The call.
        call: &'static str,
        /// What MPI says.
        message: String,
    },
    /// Ranks that should have the same.
    #[error(
        "at step {step} {} {} than rank 0: a bad device, other devices, or another program",
        names(ranks),
        have_other(ranks, what)
    )]
    Parted {
        /// What differs.
        what: &'static str,
        /// The step of rank 0.
        step: u64,
        /// Who has something else than rank 0.
        ranks: Vec<usize>,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

fn names(ranks: &[usize]) -> String {
    let named: Vec<String> = ranks.iter().take(16).map(usize::to_string).collect();
    let more = ranks.len() - named.len();
    let word = if ranks.len() == 1 { "rank" } else { "ranks" };
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{word} {}{rest}", named.join(", "))
}

fn have_other(ranks: &[usize], what: &str) -> String {
    let have = if ranks.len() == 1 { "has" } else { "have" };
    let other = if what == "step" { "another" } else { "other" };
    format!("{have} {other} {what}")
}
