//! Which process of how many this is, from the variables that launchers set.

mod slurm;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::StartError;
use crate::launch::PARENT;

/// Who started this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Nobody in particular: one process.
    Alone,
    /// torchrun, or whoever sets `TORCHELASTIC_USE_AGENT_STORE=True`: a store is there already.
    Torchrun,
    /// [`Launch`](crate::Launch), with a store of its own.
    Parent,
    /// `RANK` and `WORLD_SIZE` by hand or by Kubernetes.
    Variables,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// `mpirun` of MPICH, Intel MPI and others with Hydra; `srun --mpi=pmi2`.
    Hydra,
    /// `srun`.
    Slurm,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alone => "one process",
            Self::Torchrun => "torchrun",
            Self::Parent => "--devices",
            Self::Variables => "RANK and WORLD_SIZE",
            Self::OpenMpi => "mpirun of Open MPI",
            Self::Hydra => "mpirun with Hydra",
            Self::Slurm => "srun",
        })
    }
}

/// Where the processes meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meeting {
    /// Name or address of the machine.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Whether somebody else keeps the store there. Otherwise rank 0 does.
    pub kept: bool,
}

/// What a process knows about itself before it has spoken to any other.
///
/// # Units
/// `rank` counts from 0 over all processes, `local_rank` from 0 over those of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Who started it.
    pub launcher: Launcher,
    /// Which of all processes this is.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Which of those on this machine, which says which device is its own.
    pub local_rank: usize,
    /// Where they meet; `None` exactly where `size` is 1.
    pub meeting: Option<Meeting>,
    /// What keys in the store begin with: job and attempt, since a store may outlive both.
    pub run: String,
}

/// The variables of one launcher: rank, size, local rank.
struct Names {
    launcher: Launcher,
    rank: &'static str,
    size: &'static str,
    /// The first that is set; without any it is 0 where `alone_on_node`.
    local: &'static [&'static str],
    alone_on_node: bool,
}

const TORCH: Names = Names {
    launcher: Launcher::Torchrun,
    rank: "RANK",
    size: "WORLD_SIZE",
    local: &["LOCAL_RANK"],
    // Kubernetes' jobs have a process per pod and set no local rank.
    alone_on_node: true,
};

const OTHERS: [Names; 3] = [
    Names {
        launcher: Launcher::OpenMpi,
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local: &["OMPI_COMM_WORLD_LOCAL_RANK"],
        alone_on_node: false,
    },
    Names {
        launcher: Launcher::Hydra,
        rank: "PMI_RANK",
        size: "PMI_SIZE",
        local: &["MPI_LOCALRANKID", "SLURM_LOCALID"],
        alone_on_node: false,
    },
    Names {
        launcher: Launcher::Slurm,
        rank: "SLURM_PROCID",
        // Not SLURM_NTASKS, which a batch script sees too, outside every step.
        size: "SLURM_STEP_NUM_TASKS",
        local: &["SLURM_LOCALID"],
        alone_on_node: false,
    },
];

/// Reads variables, and treats empty ones as not set.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn number(&self, name: &'static str, launcher: Launcher) -> Result<usize, StartError> {
        let found = self.get(name).ok_or(StartError::Missing {
            variable: name,
            launcher,
        })?;
        found.trim().parse().map_err(|_| StartError::NotANumber {
            variable: name,
            found,
        })
    }
}

impl Start {
    /// One process by itself.
    pub fn alone() -> Self {
        Self {
            launcher: Launcher::Alone,
            rank: 0,
            size: 1,
            local_rank: 0,
            meeting: None,
            run: String::new(),
        }
    }

    /// From this process's environment.
    ///
    /// # Errors
    /// See [`Start::from_variables`].
    pub fn from_env() -> Result<Self, StartError> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// From variables by name: torchrun's first, then MPI's, then Slurm's, since torchrun inside `srun` is usual.
    ///
    /// # Errors
    /// A variable that is missing beside others of its launcher, or has no number; a rank that is not below the
    /// size; no place to meet.
    ///
    /// # Source
    /// PyTorch `elastic/agent/server/local_elastic_agent.py` (names), the manuals of `mpirun(1)` and `srun(1)`,
    /// JAX `_src/clusters/slurm_cluster.py` (the port under Slurm), Kubeflow Trainer `pkg/constants` (`PET_*`).
    pub fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Self, StartError> {
        let variables = Variables(get);
        let Some(names) = launcher(&variables)? else {
            return Ok(Self::alone());
        };
        let launcher = match names.launcher {
            Launcher::Torchrun if !kept(&variables) => Launcher::Variables,
            Launcher::Torchrun if variables.get(PARENT).is_some() => Launcher::Parent,
            other => other,
        };
        let rank = variables.number(names.rank, launcher)?;
        let size = variables.number(names.size, launcher)?;
        if rank >= size {
            return Err(StartError::NotBelow {
                rank_variable: names.rank,
                rank,
                size_variable: names.size,
                size,
            });
        }
        let local = names
            .local
            .iter()
            .find(|name| variables.get(name).is_some());
        let local_rank = match local {
            Some(name) => variables.number(name, launcher)?,
            None if names.alone_on_node || size == 1 => 0,
            None => variables.number(names.local[0], launcher)?,
        };
        let meeting = (size > 1)
            .then(|| meeting(&variables, launcher, size))
            .transpose()?;
        Ok(Self {
            launcher,
            rank,
            size,
            local_rank,
            meeting,
            run: run(&variables, launcher),
        })
    }
}

fn launcher(variables: &Variables<'_>) -> Result<Option<&'static Names>, StartError> {
    let one = |name| variables.get(name).is_none_or(|found| found.trim() == "1");
    // Images set WORLD_SIZE=1 by itself, which says nothing.
    if variables.get(TORCH.rank).is_some() || !one(TORCH.size) {
        return Ok(Some(&TORCH));
    }
    for names in &OTHERS {
        if variables.get(names.rank).is_some() && variables.get(names.size).is_some() {
            return Ok(Some(names));
        }
    }
    if !one("PET_NNODES") {
        return Err(StartError::Pods {
            nodes: variables.get("PET_NNODES").unwrap_or_default(),
        });
    }
    Ok(None)
}

/// Whether torchrun's agent keeps the store: its port is taken then.
fn kept(variables: &Variables<'_>) -> bool {
    variables
        .get("TORCHELASTIC_USE_AGENT_STORE")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

fn meeting(
    variables: &Variables<'_>,
    launcher: Launcher,
    size: usize,
) -> Result<Meeting, StartError> {
    let host = match variables.get("MASTER_ADDR") {
        Some(host) => host,
        None => default_host(variables, size).ok_or(StartError::Missing {
            variable: "MASTER_ADDR",
            launcher,
        })?,
    };
    let port = match variables.get("MASTER_PORT") {
        Some(found) => found
            .trim()
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(StartError::NotAPort { found })?,
        None => default_port(variables).ok_or(StartError::Missing {
            variable: "MASTER_PORT",
            launcher,
        })?,
    };
    Ok(Meeting {
        host,
        port,
        kept: matches!(launcher, Launcher::Torchrun | Launcher::Parent),
    })
}

/// The first machine of the step, or this one where all processes are on it.
fn default_host(variables: &Variables<'_>, size: usize) -> Option<String> {
    let nodes = variables
        .get("SLURM_STEP_NODELIST")
        .and_then(|list| slurm::first_node(&list));
    let all_here = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"]
        .iter()
        .find_map(|name| variables.get(name))
        .and_then(|found| found.trim().parse::<usize>().ok())
        .is_some_and(|here| here == size);
    nodes.or_else(|| all_here.then(|| "127.0.0.1".to_owned()))
}

/// One of the last 4,096 ports, by what only processes of this job have in common.
fn default_port(variables: &Variables<'_>) -> Option<u16> {
    const FIRST: u16 = u16::MAX - 4095;
    if let Some(job) = variables.get("SLURM_JOB_ID") {
        let job: u64 = job.trim().parse().ok()?;
        return Some(FIRST + (job % 4096) as u16);
    }
    let job = job(variables)?;
    // FNV-1a, 32 bits: any function would do that is the same in every process.
    let hash = job.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    Some(FIRST + (hash % 4096) as u16)
}

/// What only the processes of one `mpirun` have in common.
fn job(variables: &Variables<'_>) -> Option<String> {
    // Open MPI 4 and 5, Hydra of MPICH 4, Intel MPI.
    [
        "PMIX_NAMESPACE",
        "OMPI_MCA_ess_base_jobid",
        "PMI_JOBID",
        "HYDRA_JOBID",
    ]
    .iter()
    .find_map(|name| variables.get(name))
}

fn run(variables: &Variables<'_>, launcher: Launcher) -> String {
    let of = |name| variables.get(name);
    let (job, attempt) = match launcher {
        Launcher::Alone => (None, None),
        Launcher::Torchrun | Launcher::Parent => {
            (of("TORCHELASTIC_RUN_ID"), of("TORCHELASTIC_RESTART_COUNT"))
        }
        Launcher::Variables => (None, None),
        Launcher::OpenMpi | Launcher::Hydra => (job(variables), None),
        Launcher::Slurm => (of("SLURM_JOB_ID"), of("SLURM_STEP_ID")),
    };
    let part = |found: Option<String>| {
        let text = found.unwrap_or_else(|| "0".to_owned());
        // Keys are made of parts with a slash between.
        text.chars()
            .map(|c| if c == '/' || c.is_control() { '_' } else { c })
            .take(128)
            .collect::<String>()
    };
    format!("backdraft/{}/{}", part(job), part(attempt))
}
