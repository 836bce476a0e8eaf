//! Ranks that Open MPI's `mpirun` starts, where there is one: this program starts itself again as the ranks.
#![cfg(all(feature = "mpi", unix))]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::env;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use backdraft_comm::{Alone, BlockSums, Engine, Server, Start, World};

/// What makes a process a rank: how it behaves.
const ROLE: &str = "BACKDRAFT_MPI_TEST_ROLE";

const BLOCKS: usize = 8;

fn gradient(block: usize, length: usize) -> Vec<f32> {
    let mut state = block as u32 + 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 1e3
    };
    (0..length).map(next).collect()
}

fn sum(engine: &mut dyn Engine, length: usize) -> Vec<u32> {
    let mut sums = BlockSums::new(engine.rank(), engine.size(), BLOCKS, length);
    for block in sums.range() {
        sums.push(gradient(block, length));
    }
    let sum = sums.finish(engine).unwrap();
    sum.into_iter().map(f32::to_bits).collect()
}

/// The rank's part; in the parent, which has no role, there is nothing to do.
#[test]
fn rank() {
    let Ok(role) = env::var(ROLE) else { return };
    let mut start = Start::from_env().unwrap();
    if let Some(at) = &mut start.meeting {
        // The parent keeps the store.
        at.kept = true;
    }
    let world = World::join(&start, "here", Duration::from_secs(60)).unwrap();
    let mut engine = world.mpi_engine().unwrap();
    let (rank, size) = (engine.rank(), engine.size());
    match role.as_str() {
        "sums" => {
            for length in [0, 1, 5, 1000, 1_000_003] {
                assert_eq!(
                    sum(&mut *engine, length),
                    sum(&mut Alone, length),
                    "{length}"
                );
            }
            for root in 0..size {
                let mut bytes = if rank == root {
                    [7, 8, root as u8]
                } else {
                    [0; 3]
                };
                engine.broadcast(root, &mut bytes).unwrap();
                assert_eq!(bytes, [7, 8, root as u8]);
            }
            engine.barrier().unwrap();
            assert!(
                world
                    .mpi_engine()
                    .unwrap_err()
                    .to_string()
                    .starts_with("MPI was begun")
            );
            println!("\n@sums of rank {rank} are right");
            world.leave().unwrap();
        }
        // Rank 1 has another length than the others expect.
        "lengths" => {
            let mine = vec![0; if rank == 1 { 3 } else { 4 }];
            let mut all = vec![vec![0; 4]; size];
            all[rank] = mine.clone();
            let found = engine.all_gather(&mine, &mut all);
            if rank != 1 {
                let error = found.unwrap_err().to_string();
                assert_eq!(
                    error,
                    "rank 1 sent 3 bytes of an exchange where 4 were due: the processes have parted"
                );
                println!("\n@rank {rank} notices");
            }
            world.gather("all to notice", &[]).unwrap();
            std::process::exit(0);
        }
        // Rank 1 ends with last words while the others wait for it.
        "words" => {
            if rank == 1 {
                world.fail(Some(3), "the loss is NaN");
                // mpirun would end the others at once.
                std::thread::sleep(Duration::from_secs(3));
            } else {
                let error = engine.barrier().unwrap_err().to_string();
                println!("\n@rank {rank}: {error}");
            }
            std::process::exit(0);
        }
        other => panic!("{other}"),
    }
}

/// What `size` ranks say, or a word about why there are none.
fn mpirun(role: &str, size: usize) -> Option<Output> {
    let server = Server::listen("127.0.0.1", 0).unwrap();
    let port = server.port().to_string();
    let ran = Command::new("mpirun")
        .args([
            "--allow-run-as-root",
            "--oversubscribe",
            "-n",
            &size.to_string(),
        ])
        // Memory between the ranks, and nothing beyond this machine.
        .args([
            "--mca",
            "btl",
            "self,vader",
            "--mca",
            "oob_tcp_if_include",
            "lo",
        ])
        .args(["-x", ROLE, "-x", "MASTER_ADDR", "-x", "MASTER_PORT"])
        .arg(env::current_exe().unwrap())
        .args(["rank", "--exact", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", &port)
        .output();
    match ran {
        Ok(ran) => Some(ran),
        Err(error) => {
            println!("no mpirun ({error}): nothing was tested");
            None
        }
    }
}

fn lines(ran: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    let mut lines: Vec<String> = text
        .lines()
        .filter_map(|line| line.split_once('@').map(|(_, said)| said.to_owned()))
        .collect();
    lines.sort();
    assert!(
        !lines.is_empty(),
        "{text}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    lines
}

#[test]
fn sums_over_mpi_have_the_bits_of_one_process() {
    for size in [2, 3, 4] {
        let Some(ran) = mpirun("sums", size) else {
            return;
        };
        let right: Vec<_> = (0..size)
            .map(|rank| format!("sums of rank {rank} are right"))
            .collect();
        assert_eq!(lines(&ran), right);
        assert!(ran.status.success());
    }
}

#[test]
fn another_length_is_noticed() {
    let Some(ran) = mpirun("lengths", 3) else {
        return;
    };
    assert_eq!(lines(&ran), ["rank 0 notices", "rank 2 notices"]);
}

#[test]
fn nobody_waits_in_mpi_for_a_rank_that_has_ended() {
    let began = Instant::now();
    let Some(ran) = mpirun("words", 2) else {
        return;
    };
    assert_eq!(
        lines(&ran),
        ["rank 0: rank 1 on here ended at step 3: the loss is NaN"]
    );
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
}
