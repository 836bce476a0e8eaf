//! Runs that several processes share, as a launcher starts them, or `--devices`.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use backdraft_comm::Server;
use backdraft_testkit::tiny;
use serde_json::Value;

/// Seven micro-batches in four blocks, and a last step of an epoch with three, which leaves a block empty; 24 rows.
const MORE: &str = "max_steps = 60\neval_steps = 15\nsave_steps = 10\nsave_total_limit = 20\nwarmup_steps = 5\n\
                    gradient_blocks = 4\nlabel_smoothing_factor = 0.1\n";
const SHAPE: [&str; 4] = [
    "--set",
    "train.micro_batch_size=1",
    "--set",
    "train.grad_accumulation_steps=7",
];

/// How soon all have to have ended.
const SOON: Duration = Duration::from_secs(5);

fn backdraft(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backdraft"));
    command
        .current_dir(directory)
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("RAYON_NUM_THREADS", "1");
    command
}

/// Processes that share a run, and the store that they meet at.
struct Ranks {
    children: Vec<Child>,
    _server: Server,
}

impl Ranks {
    /// Starts `size` of them; `more` are a rank's own arguments.
    fn start(
        directory: &Path,
        size: usize,
        arguments: &[&str],
        more: impl Fn(usize) -> Vec<&'static str>,
    ) -> Self {
        let server = Server::listen("127.0.0.1", 0).unwrap();
        let children = (0..size).map(|rank| {
            backdraft(directory, arguments)
                .args(more(rank))
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", size.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", server.port().to_string())
                .env("TORCHELASTIC_USE_AGENT_STORE", "True")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        });
        Self {
            children: children.collect(),
            _server: server,
        }
    }

    fn end(self) -> Vec<Output> {
        let ended = self
            .children
            .into_iter()
            .map(|child| child.wait_with_output().unwrap());
        ended.collect()
    }

    fn signal(&self, rank: usize, name: &str) {
        assert!(kill(name, &self.children[rank].id().to_string()));
    }
}

/// The parent that `--devices` makes, and where its processes put what is temporary.
struct Family {
    parent: Child,
    temporary: PathBuf,
}

impl Family {
    fn start(directory: &Path, arguments: &[&str]) -> Self {
        let temporary = directory.join("temporary");
        fs::create_dir_all(&temporary).unwrap();
        let parent = backdraft(directory, &[arguments, &SHAPE].concat())
            .env("TMPDIR", &temporary)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { parent, temporary }
    }

    /// Its processes, by rank.
    fn children(&self) -> Vec<String> {
        children(self.parent.id())
    }

    /// What the parent says, which leaves nothing behind.
    fn end(self) -> Output {
        let ended = self.parent.wait_with_output().unwrap();
        let left: Vec<_> = fs::read_dir(&self.temporary).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        ended
    }
}

/// The processes that a process has started, in that order.
fn children(id: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{id}/task")).unwrap();
    let listed = threads.map(|thread| thread.unwrap().path().join("children"));
    let listed: Vec<String> = listed
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let ids = listed.iter().flat_map(|ids| ids.split_whitespace());
    ids.map(str::to_owned).collect()
}

fn kill(name: &str, id: &str) -> bool {
    let mut kill = Command::new("kill");
    let status = kill.args([name, id]).stderr(Stdio::null()).status();
    status.unwrap().success()
}

fn train(directory: &Path, size: usize, arguments: &[&str]) -> Vec<Output> {
    let arguments = [arguments, &SHAPE].concat();
    Ranks::start(directory, size, &arguments, |_| vec![]).end()
}

fn text(bytes: &[u8]) -> String {
    // Long lines are wrapped for the terminal.
    let text = String::from_utf8_lossy(bytes);
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn succeed(ended: &[Output]) {
    for (rank, output) in ended.iter().enumerate() {
        assert!(
            output.status.success(),
            "rank {rank}: {}",
            text(&output.stderr)
        );
    }
}

fn project() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().to_owned();
    tiny::project(&directory, MORE);
    (root, directory)
}

fn without_clock(mut value: Value) -> Value {
    let object = value.as_object_mut().unwrap();
    for key in ["seconds", "elapsed", "effort", "records"] {
        object.remove(key);
    }
    value
}

/// Everything that a run leaves and that does not depend on the clock: records, adapter, and of each checkpoint factors,
/// moments and state.
fn result(directory: &Path) -> Vec<(String, Vec<u8>)> {
    result_of(directory, 60)
}

/// The same of a run of `steps` steps.
fn result_of(directory: &Path, steps: usize) -> Vec<(String, Vec<u8>)> {
    let out = directory.join("out");
    let records = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let records: Vec<String> = records
        .lines()
        .map(|line| without_clock(serde_json::from_str(line).unwrap()).to_string())
        .collect();
    assert!(records.len() >= steps, "{} records", records.len());
    let mut all = vec![("records".to_owned(), records.join("\n").into_bytes())];
    let mut add = |path: &str| {
        all.push((path.to_owned(), fs::read(out.join(path)).unwrap()));
    };
    add("adapter/adapter_model.safetensors");
    for step in (10..=steps).step_by(10) {
        let checkpoint = format!("checkpoints/step-{step:06}");
        add(&format!("{checkpoint}/adapter/adapter_model.safetensors"));
        add(&format!("{checkpoint}/optimizer.safetensors"));
    }
    all
}

#[track_caller]
fn same(found: &[(String, Vec<u8>)], expected: &[(String, Vec<u8>)]) {
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        assert!(found == expected, "{name} is another");
    }
    assert_eq!(found.len(), expected.len());
}

/// Waits until the run has a line for step `step`.
fn until(directory: &Path, processes: &mut [Child], step: usize) {
    let began = Instant::now();
    let line = format!("\"step\":{step},");
    loop {
        let records = fs::read_to_string(directory.join("out/metrics.jsonl")).unwrap_or_default();
        if records.contains(&line) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no step {step}");
        for child in &mut *processes {
            assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        }
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn any_number_of_processes_has_the_same_bits() {
    let (_root, directory) = project();
    let alone = backdraft(&directory, &["train", "recipe.toml"])
        .args(SHAPE)
        .output();
    succeed(&[alone.unwrap()]);
    let expected = result(&directory);
    for size in [2, 3, 4] {
        fs::remove_dir_all(directory.join("out")).unwrap();
        let ended = train(&directory, size, &["train", "recipe.toml"]);
        succeed(&ended);
        assert!(text(&ended[0].stdout).contains("run time"));
        assert_eq!(text(&ended[1].stdout), "");
        same(&result(&directory), &expected);
    }
    for size in ["1", "2"] {
        fs::remove_dir_all(directory.join("out")).unwrap();
        let family = Family::start(&directory, &["train", "recipe.toml", "--devices", size]);
        let ended = family.end();
        succeed(std::slice::from_ref(&ended));
        assert_eq!(text(&ended.stdout).matches("run time").count(), 1);
        same(&result(&directory), &expected);
    }
    // What the blocks are for: another number of them gives other bits.
    fs::remove_dir_all(directory.join("out")).unwrap();
    let ended = train(
        &directory,
        2,
        &["train", "recipe.toml", "--set", "train.gradient_blocks=2"],
    );
    succeed(&ended);
    assert!(result(&directory)[1].1 != expected[1].1, "the same bits");
}

#[test]
fn a_killed_process_ends_all_and_another_number_goes_on() {
    let (_root, directory) = project();
    succeed(&train(&directory, 2, &["train", "recipe.toml"]));
    let expected = result(&directory);
    fs::remove_dir_all(directory.join("out")).unwrap();

    let arguments = [&["train", "recipe.toml"], &SHAPE[..]].concat();
    let mut ranks = Ranks::start(&directory, 4, &arguments, |_| vec![]);
    until(&directory, &mut ranks.children, 23);
    ranks.signal(2, "-KILL");
    let killed = Instant::now();
    let ended = ranks.end();
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    for rank in [0, 1, 3] {
        assert_eq!(ended[rank].status.code(), Some(1));
        let said = text(&ended[rank].stderr);
        assert!(said.contains("rank 2 on "), "{said}");
        assert!(
            said.contains("without a word: it was killed, or its machine is gone"),
            "{said}"
        );
    }

    // SIGTERM reaches one of three.
    let arguments = [&["train", "--resume", "out"], &SHAPE[..]].concat();
    let mut ranks = Ranks::start(&directory, 3, &arguments, |_| vec![]);
    until(&directory, &mut ranks.children, 35);
    ranks.signal(1, "-TERM");
    let ended = ranks.end();
    let codes: Vec<_> = ended.iter().map(|output| output.status.code()).collect();
    assert_eq!(
        codes,
        [Some(0), Some(130), Some(0)],
        "{}",
        text(&ended[0].stderr)
    );
    assert!(text(&ended[0].stdout).contains("resumed at step 20"));

    // The rest alone.
    succeed(&train(&directory, 1, &["train", "--resume", "out"]));
    same(&result(&directory), &expected);
}

#[test]
fn what_differs_is_said_before_anything_is_trained() {
    let (_root, directory) = project();
    let arguments = [&["train", "recipe.toml"], &SHAPE[..]].concat();
    let ranks = Ranks::start(&directory, 3, &arguments, |rank| match rank {
        1 => vec!["--set", "seed=7"],
        _ => vec![],
    });
    for output in ranks.end() {
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(
            said.contains("the processes do not agree: recipe: ranks 0 and 2 have"),
            "{said}"
        );
    }
    assert!(!directory.join("out").exists());
    let wild = ["train", "recipe.toml", "--set", "train.learning_rate=1e30"];
    for output in train(&directory, 2, &wild) {
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains("is NaN") || said.contains("is inf"), "{said}");
    }
    fs::remove_dir_all(directory.join("out")).unwrap();
    let ended = train(&directory, 5, &["train", "recipe.toml"]);
    let said = text(&ended[0].stderr);
    let expected = "train.gradient_blocks = 4, and 5 processes share the run: 1 of them would have nothing to do";
    assert!(said.contains(expected), "{said}");
    assert!(!directory.join("out").exists());
}

#[test]
#[cfg(target_os = "linux")]
fn a_parent_ends_as_its_processes_do() {
    let (_root, directory) = project();
    succeed(&train(&directory, 2, &["train", "recipe.toml"]));
    let expected = result(&directory);

    // Rank 0 tells of another; the parent tells of rank 0.
    for rank in [1, 0] {
        fs::remove_dir_all(directory.join("out")).unwrap();
        let arguments = ["train", "recipe.toml", "--devices", "3"];
        let mut family = Family::start(&directory, &arguments);
        until(&directory, std::slice::from_mut(&mut family.parent), 13);
        let children = family.children();
        assert_eq!(children.len(), 3);
        assert!(kill("-KILL", &children[rank]));
        let killed = Instant::now();
        let ended = family.end();
        assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
        assert_eq!(ended.status.code(), Some(1));
        let said = text(&ended.stderr);
        let reason = "without a word: it was killed, or its machine is gone";
        assert!(said.contains(&format!("rank {rank} on ")), "{said}");
        assert_eq!(said.matches(reason).count(), 1, "{said}");
        assert!(!children.iter().any(|child| kill("-0", child)));
    }

    // As Ctrl-C ends one process: a checkpoint, and its code.
    let arguments = ["train", "--resume", "out", "--devices", "2"];
    let mut family = Family::start(&directory, &arguments);
    until(&directory, std::slice::from_mut(&mut family.parent), 25);
    assert!(kill("-TERM", &family.parent.id().to_string()));
    let ended = family.end();
    let said = text(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{said}");
    assert!(!said.contains("error"), "{said}");
    succeed(&train(&directory, 1, &["train", "--resume", "out"]));
    same(&result(&directory), &expected);

    // A process that fails itself: its words once, and its code.
    fs::remove_dir_all(directory.join("out")).unwrap();
    let wild = [
        "train",
        "recipe.toml",
        "--devices",
        "2",
        "--set",
        "train.learning_rate=1e30",
    ];
    let ended = Family::start(&directory, &wild).end();
    assert_eq!(ended.status.code(), Some(1));
    let said = text(&ended.stderr);
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
}

#[test]
fn devices_that_mean_nothing_are_refused() {
    let (_root, directory) = project();
    let refused = |devices: &str, variables: &[(&str, &str)], expected: &str| {
        let ended = backdraft(&directory, &["train", "recipe.toml", "--devices", devices])
            .env("CUDA_VISIBLE_DEVICES", "")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(said.matches("error: ").count(), 1, "{said}");
    };
    let none = "expected a number of processes (1 to 256), or GPUs: a list (0,1) or all";
    for bad in ["0", "two", "1,", "257"] {
        refused(bad, &[], none);
    }
    refused("1,1", &[], "GPU 1 is there twice");
    // No card is seen here.
    for gpus in ["0,1", "all"] {
        refused(gpus, &[], &format!("--devices {gpus}: "));
    }
    let torchrun = [
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("MASTER_ADDR", "a"),
        ("MASTER_PORT", "1"),
    ];
    refused("2", &torchrun, "has started this one as one of 2");
    // Where the recipe has too few blocks, as anywhere else.
    let ended = Family::start(&directory, &["train", "recipe.toml", "--devices", "5"]).end();
    assert_eq!(ended.status.code(), Some(1));
    let said = text(&ended.stderr);
    let expected = "train.gradient_blocks = 4, and 5 processes share the run";
    assert_eq!(said.matches(expected).count(), 1, "{said}");
    assert!(!directory.join("out").exists());
}

#[test]
fn an_exchange_between_processes_is_timed() {
    let root = tempfile::tempdir().unwrap();
    let exchange = ["devices", "--exchange", "1", "--device", "cpu"];
    let more = ["--devices", "3", "--json"];
    let ended = backdraft(root.path(), &[&exchange[..], &more[..]].concat())
        .output()
        .unwrap();
    succeed(std::slice::from_ref(&ended));
    // Rank 0 alone tells.
    let told: Value = serde_json::from_slice(&ended.stdout).unwrap();
    let exchanged = &told["exchange"];
    assert_eq!(exchanged["bytes"], 1 << 20);
    assert_eq!(exchanged["processes"], 3);
    assert_eq!(exchanged["through"], "the store");
    let [seconds, fastest] = ["seconds", "fastest"].map(|key| exchanged[key].as_f64().unwrap());
    assert!(fastest > 0.0 && fastest <= seconds, "{exchanged}");
    // One process has nobody.
    let ended = backdraft(root.path(), &exchange).output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    assert!(text(&ended.stderr).contains("nobody to exchange with"));
}

/// A project whose rows are answers to compare: pairs, or single ones.
fn comparing(objective: &str) -> (tempfile::TempDir, PathBuf) {
    let (root, directory) = project();
    let more = "label_smoothing_factor = 0.1\n";
    let recipe = directory.join("recipe.toml");
    let text = fs::read_to_string(&recipe).unwrap();
    let text = text.replace(more, "").replace(
        "format = \"alpaca\"\ncache = \"off\"\nprompt_template = \"w3 {instruction} w4 {output}\"\n",
        "cache = \"off\"\n",
    );
    let text = text.replace("[data]\n", &format!("[objective]\n{objective}[data]\n"));
    fs::write(&recipe, text).unwrap();
    for (name, count, seed) in [("train.jsonl", 24, 1), ("eval.jsonl", 6, 2)] {
        let path = directory.join(name);
        tiny::pairs(&path, count, seed);
        if objective.contains("kto") {
            let pairs = fs::read_to_string(&path).unwrap();
            fs::write(&path, pairs.lines().map(single).collect::<String>()).unwrap();
        }
    }
    (root, directory)
}

/// A pair's answers as two rows.
fn single(pair: &str) -> String {
    let pair: Value = serde_json::from_str(pair).unwrap();
    let row = |answer: &str, label: bool| {
        let (prompt, completion) = (&pair["prompt"], &pair[answer]);
        serde_json::json!({ "prompt": prompt, "completion": completion, "label": label })
    };
    format!("{}\n{}\n", row("chosen", true), row("rejected", false))
}

#[test]
fn answers_are_compared_by_any_number_of_processes() {
    let objectives = [
        "kind = \"dpo\"\nloss = [\"sigmoid\", \"sft\", \"apo_zero\"]\nloss_weights = [1.0, 0.1, 0.5]\n",
        "kind = \"orpo\"\n",
        "kind = \"simpo\"\n",
        "kind = \"cpo\"\n",
        "kind = \"kto\"\n",
        "kind = \"reward\"\n",
    ];
    for objective in objectives {
        let (_root, directory) = comparing(objective);
        let arguments = ["train", "recipe.toml", "--set", "train.max_steps=20"];
        let mut expected = Vec::new();
        for size in [1, 2, 3] {
            succeed(&train(&directory, size, &arguments));
            let found = result_of(&directory, 20);
            if size == 1 {
                expected = found;
            } else {
                println!("{objective} by {size}");
                same(&found, &expected);
            }
            fs::remove_dir_all(directory.join("out")).unwrap();
        }
        let records = String::from_utf8(expected.swap_remove(0).1).unwrap();
        assert!(records.contains("\"reward_chosen\":{"), "{records}");
    }
}

/// Ranks that Open MPI's `mpirun` starts, and that exchange through it; where there is no `mpirun`, a word about it.
#[cfg(feature = "mpi")]
fn mpirun(directory: &Path, size: usize, arguments: &[&str]) -> Option<Command> {
    let size = size.to_string();
    let mut command = Command::new("mpirun");
    command
        .current_dir(directory)
        .args(["--allow-run-as-root", "--oversubscribe", "-n", &size])
        // Memory between the ranks, and nothing beyond this machine.
        .args(["--mca", "btl", "self,vader"])
        .args(["--mca", "oob_tcp_if_include", "lo"])
        .arg(env!("CARGO_BIN_EXE_backdraft"))
        .args(arguments)
        .args(SHAPE)
        .env("HF_HUB_OFFLINE", "1")
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Err(error) = Command::new("mpirun").arg("--version").output() {
        println!("no mpirun ({error}): nothing was tested");
        return None;
    }
    Some(command)
}

#[test]
#[cfg(feature = "mpi")]
fn mpirun_has_the_bits_of_the_store() {
    let (_root, directory) = project();
    let recipe = ["train", "recipe.toml"];
    succeed(&train(&directory, 2, &recipe));
    let expected = result(&directory);
    for size in [2, 4] {
        fs::remove_dir_all(directory.join("out")).unwrap();
        let Some(mut ranks) = mpirun(&directory, size, &recipe) else {
            return;
        };
        succeed(&[ranks.output().unwrap()]);
        same(&result(&directory), &expected);
    }

    // Killed, and resumed by another number of them.
    fs::remove_dir_all(directory.join("out")).unwrap();
    let mut ranks = mpirun(&directory, 3, &recipe).unwrap().spawn().unwrap();
    until(&directory, std::slice::from_mut(&mut ranks), 23);
    let started = children(ranks.id());
    assert_eq!(started.len(), 3);
    assert!(kill("-KILL", &started[2]));
    let killed = Instant::now();
    let ended = ranks.wait_with_output().unwrap();
    assert!(killed.elapsed() < SOON, "{:?}", killed.elapsed());
    assert!(!ended.status.success());
    let resumed = ["train", "--resume", "out"];
    let ended = mpirun(&directory, 2, &resumed).unwrap().output().unwrap();
    succeed(&[ended]);
    same(&result(&directory), &expected);

    // Nothing else stands in for it.
    fs::remove_dir_all(directory.join("out")).unwrap();
    let mut ranks = mpirun(&directory, 2, &recipe).unwrap();
    let ended = ranks
        .env("BACKDRAFT_MPI", "/no/such/libmpi.so")
        .output()
        .unwrap();
    assert!(!ended.status.success());
    let said = text(&ended.stderr);
    assert!(said.contains("no Open MPI here"), "{said}");
}

#[test]
#[cfg(target_os = "linux")]
fn torchrun_starts_a_run_again_that_was_killed() {
    let Some(python) = std::env::var_os("BACKDRAFT_TORCH_PYTHON") else {
        println!("BACKDRAFT_TORCH_PYTHON is not set: nothing was started by torchrun");
        return;
    };
    let (_root, directory) = project();
    succeed(&train(&directory, 2, &["train", "recipe.toml"]));
    let expected = result(&directory);
    fs::remove_dir_all(directory.join("out")).unwrap();
    let mut agent = Command::new(python)
        .current_dir(&directory)
        .args(["-m", "torch.distributed.run", "--nproc-per-node", "2"])
        .args(["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"])
        .args(["--max-restarts", "1", "--no-python"])
        .arg(env!("CARGO_BIN_EXE_backdraft"))
        .args(["train", "recipe.toml", "--resume"])
        .args(SHAPE)
        .env("HF_HUB_OFFLINE", "1")
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until(&directory, std::slice::from_mut(&mut agent), 23);
    let is_rank_1 = |id: &&String| {
        let variables = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
        variables
            .split(|byte| *byte == 0)
            .any(|one| one == b"RANK=1")
    };
    let started = children(agent.id());
    let rank = started.iter().find(is_rank_1).unwrap();
    assert!(kill("-KILL", rank));
    let ended = agent.wait_with_output().unwrap();
    succeed(std::slice::from_ref(&ended));
    let said = text(&ended.stdout);
    assert!(said.contains("resumed at step 20"), "{said}");
    same(&result(&directory), &expected);
}
