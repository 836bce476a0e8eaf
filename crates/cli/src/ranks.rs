//! `train` as one of several processes that a launcher has started.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

use backdraft_arch::DeviceChoice;
use backdraft_comm::{CommError, Engine, Fingerprints, Launcher, Start, StartError, World};
use backdraft_journal::text::host;
use backdraft_kernels::{cards, device};
use backdraft_recipe::Recipe;
use backdraft_train::lock::RunLock;
use backdraft_train::ranks::Ranks;
use burn::tensor::Device;
use tempfile::TempDir;

use crate::error::CliError;
use crate::output::Output;

/// How long the processes may take to come together.
const ARRIVAL: Duration = Duration::from_secs(600);

/// How long one may take for anything later: reading rows or a model, a step, an evaluation. Who ends is noticed at once,
/// so this is for a process that hangs.
const WAITING: Duration = Duration::from_secs(24 * 3600);

/// How long this process may take to end by itself when another has ended.
const GRACE: Duration = Duration::from_secs(3);

/// The processes that share a run, and where this one puts its files: those of rank 0 stay, those of the others go.
pub(crate) struct Shared {
    pub(crate) ranks: Ranks,
    /// What moves bytes that are on the host.
    engine: &'static str,
    scratch: Option<TempDir>,
}

impl Shared {
    /// Meets the others; `None` where this process is alone.
    pub(crate) fn join(start: &Start, output: Output) -> Result<Option<Self>, CliError> {
        if start.size == 1 {
            return Ok(None);
        }
        if start.rank == 0 {
            output.progress(format!(
                "process 0 of {} ({}): waiting for the others",
                start.size, start.launcher
            ));
        }
        let world = World::join(start, &host(), ARRIVAL)?;
        let world = world.waiting(WAITING);
        let (name, engine) = engine(start, &world)?;
        let ranks = Ranks::new(world, engine);
        let rank = ranks.rank();
        let scratch = (rank > 0)
            .then(|| tempfile::Builder::new().prefix("backdraft-rank-").tempdir())
            .transpose()
            .map_err(|error| {
                ranks.fail(&format!(
                    "cannot make a folder for temporary files: {error}"
                ));
                CliError::user("cannot make a folder for temporary files").because(error)
            })?;
        let folder = scratch.as_ref().map(|scratch| scratch.path().to_owned());
        ranks.on_end(move |words| {
            // Whoever computes does not look; whoever waits ends by itself.
            thread::sleep(GRACE);
            CliError::user(format!("{words} (rank {rank} ends with it)")).report(output.is_json());
            if let Some(folder) = &folder {
                let _ = fs::remove_dir_all(folder);
            }
            process::exit(1);
        });
        Ok(Some(Self {
            ranks,
            engine: name,
            scratch,
        }))
    }

    /// The device of this process where all are told to compute on `choice`: of those on one machine each has another card, the
    /// first one the first.
    pub(crate) fn device(&self, choice: DeviceChoice) -> DeviceChoice {
        match (choice, cards::count()) {
            (DeviceChoice::Auto | DeviceChoice::Cuda(0), count @ 1..) => {
                let own = self.ranks.local_rank() % count;
                match device::cuda(own) {
                    Err(_) if choice == DeviceChoice::Auto => DeviceChoice::Cpu,
                    _ => DeviceChoice::Cuda(own),
                }
            }
            _ => choice,
        }
    }

    /// What moves bytes that are on the host.
    pub(crate) fn engine(&self) -> &'static str {
        self.engine
    }

    /// Has the processes find out what moves their gradients, and tells it.
    pub(crate) fn connect(&self, device: &Device, output: Output) -> Result<(), CliError> {
        let carriage = self.ranks.connect(device, self.engine)?;
        output.progress(carriage.to_string());
        Ok(())
    }

    /// Where this process's files go, in place of `output_dir`.
    fn place(&self, output_dir: &Path) -> PathBuf {
        match &self.scratch {
            Some(scratch) => scratch.path().join("run"),
            None => output_dir.to_owned(),
        }
    }

    /// The run to go on with: rank 0's own, of which the others have a copy.
    pub(crate) fn resumed(&self, at: &Path) -> Result<PathBuf, CliError> {
        let at = std::path::absolute(at).unwrap_or_else(|_| at.to_owned());
        let checkpoints = at.parent().filter(|parent| parent.ends_with("checkpoints"));
        let run = checkpoints.and_then(Path::parent).unwrap_or(&at);
        let to = self.place(run);
        if self.scratch.is_some() {
            copy(run, &to).map_err(|error| {
                CliError::user(format!("cannot copy the run in {}", run.display())).because(error)
            })?;
        }
        // Rank 0 may rename and remove from here on.
        self.ranks.meet("the others to copy the run")?;
        Ok(match at.strip_prefix(run) {
            Ok(rest) => to.join(rest),
            Err(_) => to,
        })
    }

    /// Agrees with the others on `recipe`, and puts this process's files where they belong.
    pub(crate) fn agree(&self, recipe: &mut Recipe, step: usize) -> Result<(), CliError> {
        let output_dir = std::mem::take(&mut recipe.output_dir);
        self.ranks.agree(
            &Fingerprints::new()
                .with("version", env!("CARGO_PKG_VERSION"))
                .with("recipe", &digest(&recipe.to_toml()?))
                .with("steps done before", &step.to_string()),
        )?;
        recipe.output_dir = self.place(&output_dir);
        Ok(())
    }

    /// Waits, in all processes but rank 0, until that has read the rows: then they lie in the cache.
    pub(crate) fn after_rank_0<T>(
        &self,
        read: impl FnOnce() -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let what = "rank 0 to read the rows";
        if self.ranks.rank() == 0 {
            let read = read()?;
            self.ranks.meet(what)?;
            return Ok(read);
        }
        self.ranks.meet(what)?;
        read()
    }

    /// Does this process's part, and tells the others how it has ended.
    pub(crate) fn work<T>(
        &self,
        work: impl FnOnce() -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        let result = panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
            let message = payload.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| payload.downcast_ref::<&str>().copied());
            let message = message.unwrap_or("unknown cause");
            self.ranks.fail(&format!("internal error: {message}"));
            panic::resume_unwind(payload)
        });
        match &result {
            Ok(_) => self.ranks.leave()?,
            Err(error) if error.is_interruption() => self.ranks.leave()?,
            Err(error) => self.ranks.fail(&error.to_string()),
        }
        result
    }
}

/// What moves gradients: Open MPI where its `mpirun` started the processes and this build has it, otherwise the store.
fn engine(start: &Start, world: &World) -> Result<(&'static str, Box<dyn Engine>), CommError> {
    let over_mpi = cfg!(all(feature = "mpi", unix)) && start.launcher == Launcher::OpenMpi;
    let name = if over_mpi { "Open MPI" } else { "the store" };
    // Whoever begins MPI waits there for the others.
    world.agree(&Fingerprints::new().with("exchange through", name))?;
    #[cfg(all(feature = "mpi", unix))]
    if over_mpi {
        let engine = world.mpi_engine().inspect_err(|error| {
            world.fail(None, &error.to_string());
        });
        return Ok((name, engine?));
    }
    Ok((name, world.store_engine()?))
}

fn digest(text: &str) -> String {
    use sha2::{Digest, Sha256};
    let hash = Sha256::digest(text.as_bytes());
    hash.iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Copies a directory with all that is in it, less its lock; one that is not there is an empty one: a launcher that starts runs
/// again asks for `--resume` the first time too.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    if !from.try_exists()? {
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else if entry.file_name() != RunLock::FILE {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

impl From<StartError> for CliError {
    fn from(error: StartError) -> Self {
        Self::library(error)
    }
}

impl From<CommError> for CliError {
    fn from(error: CommError) -> Self {
        Self::library(error)
    }
}
