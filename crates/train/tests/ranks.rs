//! Processes that share a run, as threads of one: what one of them meets, all hear of.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use backdraft_comm::{CommError, Launcher, Meeting, Server, Start as Among, World};
use backdraft_formats::ModelSource;
use backdraft_journal::report::{Reporter, RunSummary, StepReport};
use backdraft_plan::memory::MemoryWatch;
use backdraft_recipe::Recipe;
use backdraft_testkit::tiny;
use backdraft_train::TrainError;
use backdraft_train::control::Control;
use backdraft_train::data;
use backdraft_train::ranks::Ranks;
use backdraft_train::run::{Start, Watch, prepare};
use burn::tensor::Device;
use burn::train::Interrupter;
use burn::train::renderer::CliMetricsRenderer;

const MORE: &str = "max_steps = 8\nsave_steps = 100\nwarmup_steps = 2\ngradient_blocks = 2\n";

/// When each step of a process was told of, and what happens after one.
#[derive(Clone, Default)]
struct Told {
    steps: Arc<Mutex<Vec<Instant>>>,
    after: Option<(usize, Arc<dyn Fn() + Send + Sync>)>,
}

impl Reporter for Told {
    fn step(&mut self, report: &StepReport) {
        self.steps.lock().unwrap().push(Instant::now());
        if let Some((step, happens)) = &self.after
            && report.step == *step
        {
            happens();
        }
    }
}

/// What makes a process another than the others.
#[derive(Clone, Default)]
struct Own {
    told: Told,
    control: Control,
    memory: Option<Arc<dyn MemoryWatch>>,
}

/// Trains the project in `directory` by as many processes as there are in `own`.
fn train(directory: &Path, own: &[Own]) -> Vec<Result<RunSummary, TrainError>> {
    let server = Server::listen("127.0.0.1", 0).unwrap();
    let (port, size) = (server.port(), own.len());
    let of_rank = |rank: usize| {
        let start = Among {
            launcher: Launcher::Variables,
            rank,
            size,
            local_rank: rank,
            meeting: Some(Meeting {
                host: "127.0.0.1".to_owned(),
                port,
                kept: true,
            }),
            run: "backdraft/test/0".to_owned(),
        };
        let world = World::join(&start, "here", Duration::from_secs(60)).unwrap();
        let engine = world.store_engine().unwrap();
        let ranks = Ranks::new(world, engine);
        let result = alone(directory, rank, &ranks, &own[rank]);
        match &result {
            Ok(_) => ranks.leave().unwrap(),
            Err(error) => ranks.fail(&error.to_string()),
        }
        result
    };
    thread::scope(|scope| {
        let of_rank = &of_rank;
        let ranks: Vec<_> = (0..size)
            .map(|rank| scope.spawn(move || of_rank(rank)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// One of them, whose files lie apart.
fn alone(
    directory: &Path,
    rank: usize,
    ranks: &Ranks,
    own: &Own,
) -> Result<RunSummary, TrainError> {
    let out = directory.join(format!("out-{rank}"));
    let own_files = format!("output_dir=\"{}\"", out.display());
    let recipe = Recipe::load(&directory.join("recipe.toml"), &[own_files]).unwrap();
    let source = ModelSource::open(&recipe.model).unwrap();
    let data = data::read(&recipe, &source, &mut |_| ()).unwrap();
    let mut run = prepare(recipe, source, data, &Device::flex())?;
    run.share(ranks.clone())?;
    let watch = Watch {
        reporter: Box::new(own.told.clone()),
        renderer: Box::new(CliMetricsRenderer::new()),
        interrupter: Interrupter::default(),
        control: own.control.clone(),
        start: Start::New { force: true },
        memory: own.memory.clone(),
    };
    run.train(watch).map(|(summary, _)| summary)
}

fn project() -> (tempfile::TempDir, [Vec<u8>; 2]) {
    let root = tempfile::tempdir().unwrap();
    tiny::project(root.path(), MORE);
    let results = train(root.path(), &[Own::default(), Own::default()]);
    for result in results {
        result.unwrap();
    }
    let expected = adapters(root.path());
    (root, expected)
}

fn adapters(directory: &Path) -> [Vec<u8>; 2] {
    ["out-0", "out-1"].map(|out| {
        let file = directory
            .join(out)
            .join("adapter/adapter_model.safetensors");
        fs::read(file).unwrap()
    })
}

#[test]
fn all_pause_when_one_is_asked_to() {
    let (root, expected) = project();
    assert!(expected[0] == expected[1]);
    const PAUSE: Duration = Duration::from_millis(1200);
    let mut own = [Own::default(), Own::default()];
    let control = own[1].control.clone();
    let pause = move || {
        control.toggle_pause();
        let control = control.clone();
        thread::spawn(move || {
            thread::sleep(PAUSE);
            control.toggle_pause();
        });
    };
    own[1].told.after = Some((3, Arc::new(pause)));
    let results = train(root.path(), &own);
    for result in results {
        assert!(!result.unwrap().interrupted);
    }
    for own in &own {
        let steps = own.told.steps.lock().unwrap();
        assert_eq!(steps.len(), 8);
        let between = |step: usize| steps[step] - steps[step - 1];
        assert!(
            between(3) >= PAUSE - Duration::from_millis(100),
            "{:?}",
            between(3)
        );
    }
    assert!(adapters(root.path()) == expected, "other bits");
}

/// Memory that is gone after some looks at it.
#[derive(Debug)]
struct Gone(AtomicUsize);

impl MemoryWatch for Gone {
    fn obtainable(&self) -> Option<u64> {
        let left = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        Some(left.map_or(0, |_| u64::MAX >> 1))
    }
}

#[test]
fn all_end_when_one_has_no_memory() {
    let (root, _) = project();
    let mut own = [Own::default(), Own::default()];
    own[1].memory = Some(Arc::new(Gone(AtomicUsize::new(4))));
    let began = Instant::now();
    let results = train(root.path(), &own);
    assert!(began.elapsed() < Duration::from_secs(30));
    let Err(TrainError::OutOfMemory { step, .. }) = &results[1] else {
        panic!("{:?}", results[1])
    };
    let reason = results[1].as_ref().unwrap_err().to_string();
    let Err(TrainError::Ranks(CommError::Ended(words))) = &results[0] else {
        panic!("{:?}", results[0])
    };
    assert_eq!((words.rank, words.message.as_str()), (Some(1), &reason[..]));
    // Nobody has gone beyond that step.
    for own in &own {
        assert_eq!(own.told.steps.lock().unwrap().len(), step - 1);
    }
}

/// Writes numbers over row `id` of the embedding that are infinite once the embedding is multiplied, as Granite's is.
fn poison(model: &Path, id: usize) {
    let config = model.join("config.json");
    let mut keys: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    keys["model_type"] = "granite".into();
    keys["architectures"] = serde_json::json!(["GraniteForCausalLM"]);
    keys["embedding_multiplier"] = 16.0.into();
    fs::write(&config, keys.to_string()).unwrap();
    const TABLE: &str = "model.embed_tokens.weight";
    let index = fs::read(model.join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let file = model.join(index["weight_map"][TABLE].as_str().unwrap());
    let mut bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let table = &header[TABLE];
    let number = |key: &str, i: usize| table[key][i].as_u64().unwrap() as usize;
    let row = (number("data_offsets", 1) - number("data_offsets", 0)) / number("shape", 0);
    let size = row / number("shape", 1);
    let start = 8 + length + number("data_offsets", 0) + id * row;
    // In bf16 the upper half.
    let value = &3e38_f32.to_le_bytes()[4 - size..];
    for place in bytes[start..start + row].chunks_mut(size) {
        place.copy_from_slice(value);
    }
    fs::write(&file, bytes).unwrap();
}

#[test]
fn all_end_when_one_computes_no_number() {
    let root = tempfile::tempdir().unwrap();
    tiny::project(root.path(), MORE);
    poison(&root.path().join("model"), 200);
    let rows = root.path().join("train.jsonl");
    let text = fs::read_to_string(&rows).unwrap();
    let bad = "{\"instruction\": \"w200 w5\", \"output\": \"w5 w6 w7\"}";
    let lines: Vec<&str> = text.lines().collect();
    fs::write(
        &rows,
        [&lines[..7], &[bad], &lines[7..]].concat().join("\n"),
    )
    .unwrap();
    let own = [Own::default(), Own::default()];
    let results = train(root.path(), &own);
    let of_rank = |result: &Result<RunSummary, TrainError>| {
        let Err(TrainError::NotFinite { step, rows, .. }) = result else {
            panic!("{result:?}")
        };
        let lines: Vec<usize> = rows.values().flatten().copied().collect();
        assert!(lines.contains(&8), "{lines:?}");
        *step
    };
    let steps: Vec<usize> = results.iter().map(of_rank).collect();
    assert_eq!(steps[0], steps[1]);
    for (rank, own) in own.iter().enumerate() {
        assert_eq!(own.told.steps.lock().unwrap().len(), steps[0] - 1);
        let out = root.path().join(format!("out-{rank}"));
        assert!(!out.join("adapter/adapter_model.safetensors").exists());
    }
}
