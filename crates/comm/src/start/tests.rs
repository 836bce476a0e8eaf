use std::collections::BTreeMap;

use proptest::prelude::*;

use super::slurm::first_node;
use super::{Launcher, Meeting, Start};
use crate::StartError;

fn start(lines: &str) -> Result<Start, StartError> {
    let variables: BTreeMap<&str, &str> = lines
        .split_whitespace()
        .filter_map(|line| line.split_once('='))
        .collect();
    Start::from_variables(&|name| variables.get(name).map(|value| (*value).to_owned()))
}

fn meeting(host: &str, port: u16, kept: bool) -> Option<Meeting> {
    Some(Meeting {
        host: host.to_owned(),
        port,
        kept,
    })
}

/// Rank, size, local rank.
fn place(start: &Start) -> (usize, usize, usize) {
    (start.rank, start.size, start.local_rank)
}

const TORCHRUN: &str = "RANK=5 WORLD_SIZE=8 LOCAL_RANK=1 LOCAL_WORLD_SIZE=4 GROUP_RANK=1 MASTER_ADDR=node-a \
    MASTER_PORT=29400 TORCHELASTIC_RESTART_COUNT=2 TORCHELASTIC_RUN_ID=job/7 TORCHELASTIC_USE_AGENT_STORE=True";

#[test]
fn nothing_set_is_one_process() {
    assert_eq!(start(""), Ok(Start::alone()));
    // Images and clusters set these for everybody.
    assert_eq!(start("WORLD_SIZE=1 MASTER_ADDR=node-a"), Ok(Start::alone()));
    // A batch script, outside of every step.
    let batch = "SLURM_JOB_ID=7 SLURM_NTASKS=8 SLURM_PROCID=0 SLURM_LOCALID=0";
    assert_eq!(start(batch), Ok(Start::alone()));
}

#[test]
fn torchrun_keeps_the_store_and_counts_attempts() {
    let found = start(TORCHRUN).unwrap();
    assert_eq!(found.launcher, Launcher::Torchrun);
    assert_eq!(place(&found), (5, 8, 1));
    assert_eq!(found.meeting, meeting("node-a", 29400, true));
    assert_eq!(found.run, "backdraft/job_7/2");
    // Inside srun, torchrun's names count.
    let inside = format!("{TORCHRUN} SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0");
    assert_eq!(start(&inside).unwrap(), found);
}

#[test]
fn a_parent_of_ours_is_not_torchrun() {
    let found = start(&format!("{TORCHRUN} BACKDRAFT_PARENT=7")).unwrap();
    assert_eq!(found.launcher, Launcher::Parent);
    assert_eq!(found.meeting, meeting("node-a", 29400, true));
    assert_eq!(found.run, "backdraft/job_7/2");
}

#[test]
fn variables_by_hand_or_of_kubernetes() {
    let found = start("RANK=0 WORLD_SIZE=2 MASTER_ADDR=trainer-0 MASTER_PORT=23456").unwrap();
    assert_eq!(found.launcher, Launcher::Variables);
    assert_eq!(place(&found), (0, 2, 0));
    assert_eq!(found.meeting, meeting("trainer-0", 23456, false));
}

#[test]
fn mpirun_of_open_mpi() {
    let ranks = "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=3";
    let here = format!("{ranks} OMPI_COMM_WORLD_LOCAL_SIZE=4 PMIX_NAMESPACE=2394554369");
    let found = start(&here).unwrap();
    assert_eq!(found.launcher, Launcher::OpenMpi);
    assert_eq!(place(&found), (3, 4, 3));
    let at = found.meeting.unwrap();
    assert_eq!(at.host, "127.0.0.1");
    assert!(at.port >= 61440 && !at.kept);
    // On several machines somebody has to say where rank 0 is.
    let apart = here.replace("LOCAL_SIZE=4", "LOCAL_SIZE=2");
    let error = start(&apart).unwrap_err();
    assert_eq!(
        error.to_string(),
        "MASTER_ADDR is not set, and the processes started by mpirun of Open MPI need it: set it in every process to the \
         machine of rank 0 (mpirun -x MASTER_ADDR=HOST; Hydra: -genv MASTER_ADDR HOST)"
    );
    let told = format!("{apart} MASTER_ADDR=node-a MASTER_PORT=29500");
    assert_eq!(
        start(&told).unwrap().meeting,
        meeting("node-a", 29500, false)
    );
}

#[test]
fn hydra_and_pmi2() {
    let found =
        start("PMI_RANK=1 PMI_SIZE=2 MPI_LOCALRANKID=1 MPI_LOCALNRANKS=2 MASTER_PORT=29500")
            .unwrap();
    assert_eq!(found.launcher, Launcher::Hydra);
    assert_eq!(place(&found), (1, 2, 1));
    assert_eq!(found.meeting, meeting("127.0.0.1", 29500, false));
    // srun --mpi=pmi2
    let slurm = "SLURM_JOB_ID=5000 SLURM_STEP_NODELIST=n[7-8] SLURM_LOCALID=0";
    let found = start(&format!("PMI_RANK=1 PMI_SIZE=2 {slurm}")).unwrap();
    assert_eq!(place(&found), (1, 2, 0));
    assert_eq!(found.meeting, meeting("n7", 61440 + (5000 - 4096), false));
    // Which device is whose cannot be guessed.
    let error = start("PMI_RANK=1 PMI_SIZE=2 MASTER_ADDR=a MASTER_PORT=1").unwrap_err();
    assert!(matches!(
        error,
        StartError::Missing {
            variable: "MPI_LOCALRANKID",
            ..
        }
    ));
}

#[test]
fn srun() {
    let found = start(
        "SLURM_PROCID=9 SLURM_STEP_NUM_TASKS=16 SLURM_LOCALID=1 SLURM_STEP_NODELIST=gpu[03-04] SLURM_JOB_ID=123456 \
         SLURM_STEP_ID=0",
    )
    .unwrap();
    assert_eq!(found.launcher, Launcher::Slurm);
    assert_eq!(place(&found), (9, 16, 1));
    assert_eq!(
        found.meeting,
        meeting("gpu03", 61440 + (123_456_u32 % 4096) as u16, false)
    );
    assert_eq!(found.run, "backdraft/123456/0");
}

#[test]
fn what_is_wrong_is_named() {
    let of = |lines| start(lines).unwrap_err().to_string();
    assert_eq!(
        of("RANK=1"),
        "WORLD_SIZE is not set, and the processes started by RANK and WORLD_SIZE need it: start all processes by one \
         launcher, or set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in each"
    );
    assert!(of("WORLD_SIZE=2").starts_with("RANK is not set"));
    assert_eq!(
        of("RANK=one WORLD_SIZE=2"),
        "RANK is \"one\", and has to be a number from 0: correct or unset it"
    );
    assert_eq!(
        of("RANK=2 WORLD_SIZE=2"),
        "RANK is 2 and WORLD_SIZE is 2: ranks count from 0, so the last one is 1"
    );
    assert!(of("RANK=0 WORLD_SIZE=0").starts_with("RANK is 0 and WORLD_SIZE is 0"));
    assert_eq!(
        of("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=70000"),
        "MASTER_PORT is \"70000\", and has to be a number from 1 to 65535, the same in every process"
    );
    assert!(of("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a").starts_with("MASTER_PORT is not set"));
    assert_eq!(
        of("PET_NNODES=4 PET_NODE_RANK=0"),
        "PET_NNODES is 4, but RANK is not set: start the program through torchrun in each pod, or unset PET_NNODES"
    );
}

#[test]
fn first_machines_of_lists() {
    let cases = [
        ("node7", "node7"),
        ("a,b", "a"),
        ("node[01-03,07]", "node01"),
        ("node[12,14]-ib,gpu5", "node12-ib"),
        ("r[1-2]n[08-09]", "r1n08"),
        ("login.cluster,n[1-2]", "login.cluster"),
    ];
    for (list, first) in cases {
        assert_eq!(first_node(list).as_deref(), Some(first), "{list}");
    }
    for bad in ["", ",a", "n[1-2"] {
        assert_eq!(first_node(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn any_text_is_an_answer_or_an_error(values in proptest::collection::vec("[ -~é]{0,12}", 12)) {
        let names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "PMI_RANK", "PMI_SIZE",
            "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_ID", "PET_NNODES"];
        let variables: BTreeMap<_, _> = names.into_iter().zip(values).collect();
        if let Ok(found) = Start::from_variables(&|name| variables.get(name).cloned()) {
            prop_assert!(found.rank < found.size);
            prop_assert_eq!(found.meeting.is_some(), found.size > 1);
        }
    }
}
