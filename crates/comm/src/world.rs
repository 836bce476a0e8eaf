//! All processes of a run, as one of them sees them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{Alone, Engine, StoreEngine};
use crate::launch::STOP;
use crate::watch::Watch;
use crate::{Client, CommError, Fingerprints, LastWords, Meeting, Server, Start};

/// How long last words may take: who ends should not hang.
const LAST: Duration = Duration::from_secs(2);

/// The processes of a run, met at a store.
///
/// Every rank makes the same calls in the same order. A call that waits for others ends as soon as one of them has ended,
/// with its last words, and after the time limit with the ranks that are missing. Once that has happened, nobody goes on:
/// a run is started again from a checkpoint.
///
/// A `World` that is dropped without [`World::leave`] counts as ended without a word.
#[derive(Debug)]
pub struct World {
    rank: usize,
    size: usize,
    local_rank: usize,
    timeout: Duration,
    host: String,
    met: Option<Met>,
}

/// What a rank among others has beside its number.
#[derive(Debug)]
struct Met {
    at: Meeting,
    names: Names,
    client: Mutex<Client>,
    watch: Watch,
    /// How many times something was gathered: the same in every rank.
    gathered: AtomicU64,
    /// Dropped last.
    server: Option<Server>,
}

/// Keys of a run.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    run: String,
    size: usize,
}

impl Names {
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    pub(crate) fn key(&self, what: &str) -> String {
        format!("{}/{what}", self.run)
    }

    /// `what` of every rank.
    pub(crate) fn of_all(&self, what: &str) -> Vec<String> {
        (0..self.size)
            .map(|rank| self.key(&format!("{what}/{rank}")))
            .collect()
    }
}

impl Met {
    fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    /// Meets the others; rank 0 keeps the store where nobody else does. `host` is this machine's name, for messages.
    /// Waiting, here and later, ends after `timeout`.
    ///
    /// One process alone opens no port.
    ///
    /// # Errors
    /// No store answers in time, or no TCPStore; the port is taken; two processes have one rank; some do not arrive.
    pub fn join(start: &Start, host: &str, timeout: Duration) -> Result<Self, CommError> {
        let world = Self::found(start, host, timeout)?;
        if let Some(met) = &world.met
            && let Err(error) = world.arrive(met)
        {
            // Whoever is late should read why nobody is there, not that somebody fell silent.
            world.fail(None, &error.to_string());
            return Err(error);
        }
        Ok(world)
    }

    /// The same with another time limit for what is waited for from now on.
    #[must_use]
    pub fn waiting(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The store is found, the others are not yet there.
    fn found(start: &Start, host: &str, timeout: Duration) -> Result<Self, CommError> {
        let mut world = Self {
            rank: start.rank,
            size: start.size,
            local_rank: start.local_rank,
            timeout,
            host: host.to_owned(),
            met: None,
        };
        if let Some(at) = &start.meeting {
            world.met = Some(world.meet(at, &start.run)?);
        }
        Ok(world)
    }

    fn meet(&self, at: &Meeting, run: &str) -> Result<Met, CommError> {
        let keeps = !at.kept && self.rank == 0;
        let server = keeps
            .then(|| Server::listen(&at.host, at.port))
            .transpose()?;
        let mut at = at.clone();
        if let Some(server) = &server {
            at.port = server.port();
        }
        let connect = || Client::connect(&at.host, at.port, self.timeout);
        let names = Names {
            run: run.to_owned(),
            size: self.size,
        };
        let (mut client, watching) = (connect()?, connect()?);
        let me = format!("process {} on {}", std::process::id(), self.host);
        let claim = names.key(&format!("rank/{}", self.rank));
        let holder = client.compare_set(&claim, b"", me.as_bytes())?;
        if holder != me.as_bytes() {
            return Err(CommError::Twice {
                rank: self.rank,
                first: String::from_utf8_lossy(&holder).into_owned(),
                second: me,
            });
        }
        Ok(Met {
            at,
            names,
            client: Mutex::new(client),
            watch: self.watch(watching, run)?,
            gathered: AtomicU64::new(0),
            server,
        })
    }

    /// Leaves a will over the connection that then watches: it ends with the process.
    fn watch(&self, mut watching: Client, run: &str) -> Result<Watch, CommError> {
        let watch = Watch::default();
        let key = |what: &str| format!("{run}/{what}");
        let will = key(&format!("will/{}", self.rank));
        watching.set(&will, &self.will(None).to_bytes())?;
        // Setting is not answered; whoever changes the will from now on comes second.
        watching.check(&[will])?;
        let heard = key(&format!("heard/{}", self.rank));
        watch.start(watching, key("failed"), heard)?;
        Ok(watch)
    }

    fn will(&self, step: Option<u64>) -> LastWords {
        self.words(
            step,
            "without a word: it was killed, or its machine is gone",
        )
    }

    fn words(&self, step: Option<u64>, message: &str) -> LastWords {
        LastWords {
            rank: Some(self.rank),
            host: self.host.clone(),
            step,
            message: message.to_owned(),
        }
    }

    fn arrive(&self, met: &Met) -> Result<(), CommError> {
        met.watch.attend(&met.client())?;
        let what = format!(
            "the other processes to come to {}:{}",
            met.at.host, met.at.port
        );
        let mine = self.size.to_string();
        let sizes = self.gather_over(met, &what, mine.as_bytes())?;
        let sizes = sizes.into_iter().map(|size| {
            let size = String::from_utf8_lossy(&size).into_owned();
            Fingerprints::new().with("number of processes", &size)
        });
        differs(Fingerprints::differences(&sizes.collect::<Vec<_>>()))
    }

    /// Which process this is, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Which of those on this machine.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Everybody's bytes for `what`, by rank: at most 8 MiB each, for things told once. Steps use an [`Engine`].
    ///
    /// # Errors
    /// Another process ended, or does not come in time.
    pub fn gather(&self, what: &str, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        match &self.met {
            Some(met) => self.gather_over(met, what, mine),
            None => Ok(vec![mine.to_vec()]),
        }
    }

    fn gather_over(&self, met: &Met, what: &str, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        if let Some(words) = met.watch.ended() {
            return Err(CommError::Ended(words));
        }
        let number = met.gathered.fetch_add(1, Ordering::Relaxed);
        let keys = met.names.of_all(&format!("gather/{number}"));
        let gathered = || {
            let mut client = met.client();
            client.set(&keys[self.rank], mine)?;
            arrived(&mut client, &keys, what, self.timeout)?;
            let values = keys.iter().map(|key| client.get(key));
            values.collect::<Result<Vec<_>, _>>()
        };
        gathered().map_err(|error| met.watch.explain(error))
    }

    /// Compares `prints` of all processes, before anything is trained.
    ///
    /// # Errors
    /// [`CommError::Differs`], the same in every process; as [`World::gather`].
    pub fn agree(&self, prints: &Fingerprints) -> Result<(), CommError> {
        let all = self.gather("the fingerprints of all processes", &prints.to_bytes())?;
        let all = all.iter().map(|bytes| Fingerprints::from_bytes(bytes));
        let agreed = differs(Fingerprints::differences(&all.collect::<Vec<_>>()));
        if let (Err(_), Some(met)) = (&agreed, &self.met) {
            // Each is to end with this, and not with the news that another did: so nobody ends before all have read.
            met.watch.leave();
            let read = met.names.of_all("disagreed");
            let mut client = met.client();
            let told = client.set(&read[self.rank], b"1");
            let _ = told.and_then(|()| client.wait(&read, LAST));
        }
        agreed
    }

    /// An engine that moves bytes through the store: for tests, and where little is to be moved.
    ///
    /// # Errors
    /// No second connection to the store.
    pub fn store_engine(&self) -> Result<Box<dyn Engine>, CommError> {
        let Some(met) = &self.met else {
            return Ok(Box::new(Alone));
        };
        let client = Client::connect(&met.at.host, met.at.port, self.timeout)?;
        met.watch.attend(&client)?;
        let (names, watch) = (met.names.clone(), met.watch.clone());
        Ok(Box::new(StoreEngine::new(
            self.rank,
            names,
            client,
            watch,
            self.timeout,
        )))
    }

    /// An engine over Open MPI, for processes that its `mpirun` started. Once in a process.
    ///
    /// # Errors
    /// No Open MPI; it counts other processes than this world; it was begun before.
    #[cfg(all(feature = "mpi", unix))]
    pub fn mpi_engine(&self) -> Result<Box<dyn Engine>, CommError> {
        let Some(met) = &self.met else {
            return Ok(Box::new(Alone));
        };
        let engine =
            crate::engine::MpiEngine::begin(self.rank, self.size, &met.watch, self.timeout)?;
        Ok(Box::new(engine))
    }

    /// Notes that this process has come to `step`, for what is said of it if it is killed.
    ///
    /// # Errors
    /// The connection to the store ended.
    pub fn at_step(&self, step: u64) -> Result<(), CommError> {
        let Some(met) = &self.met else { return Ok(()) };
        let key = met.names.key(&format!("will/{}", self.rank));
        let mut client = met.client();
        let noted = client.set(&key, &self.will(Some(step)).to_bytes());
        // Setting is not answered: this is.
        let noted = noted.and_then(|()| client.check(&[key]));
        noted.map(drop).map_err(|error| met.watch.explain(error))
    }

    /// Whether the parent of the processes wants them to stop ([`Launch::ask_to_stop`](crate::Launch::ask_to_stop)); once
    /// that is so it stays so.
    ///
    /// # Errors
    /// The connection to the store ended.
    pub fn asked_to_stop(&self) -> Result<bool, CommError> {
        let Some(met) = &self.met else {
            return Ok(false);
        };
        let asked = met.client().check(&[met.names.key(STOP)]);
        asked.map_err(|error| met.watch.explain(error))
    }

    /// Calls `told` once, from another thread, when another process has ended early. A program whose own thread may be
    /// computing, or waiting in a library, ends from there.
    pub fn on_end(&self, told: impl Fn(&LastWords) + Send + 'static) {
        if let Some(met) = &self.met {
            met.watch.on_end(Box::new(told));
        }
    }

    /// What is known about another process that ended early.
    pub fn ended(&self) -> Option<LastWords> {
        self.met.as_ref().and_then(|met| met.watch.ended())
    }

    /// Tells the others that this process ends early, and why; the first to speak is heard. Takes at most 4 s, and has no
    /// error, since there is nobody left to tell it to.
    pub fn fail(&self, step: Option<u64>, why: &str) {
        let Some(met) = &self.met else { return };
        if met.watch.ended().is_some() {
            return;
        }
        met.watch.leave();
        // A connection of its own: the others may be in the middle of something.
        let told = Client::connect(&met.at.host, met.at.port, LAST).and_then(|mut client| {
            let words = self.words(step, why).to_bytes();
            client.compare_set(&met.names.key("failed"), b"", &words)?;
            Ok(client)
        });
        // The store ends with this process: let the others read first.
        if let (Ok(mut client), Some(_)) = (told, &met.server) {
            let others = met.names.of_all("heard").into_iter().enumerate();
            let others = others.filter(|(rank, _)| *rank != self.rank);
            let others: Vec<_> = others.map(|(_, key)| key).collect();
            let _ = client.wait(&others, LAST);
        }
    }

    /// Ends this process's part when all have done theirs. The rank that keeps the store waits for the others.
    ///
    /// # Errors
    /// Another process ended early, or does not come to its end in time.
    pub fn leave(&self) -> Result<(), CommError> {
        let Some(met) = &self.met else { return Ok(()) };
        if let Some(words) = met.watch.ended() {
            return Err(CommError::Ended(words));
        }
        met.watch.leave();
        let mut client = met.client();
        client.delete(&met.names.key(&format!("will/{}", self.rank)))?;
        // The last thing that is asked of the store: whoever keeps it may end once all have said so.
        client.set(&met.names.key(&format!("left/{}", self.rank)), b"1")?;
        if met.server.is_none() {
            return Ok(());
        }
        let (left, failed) = (met.names.of_all("left"), [met.names.key("failed")]);
        let until = Instant::now() + self.timeout;
        while !client.wait(&left, Duration::from_millis(500))? {
            if client.check(&failed)? {
                let words = client.get(&failed[0])?;
                return Err(CommError::Ended(LastWords::from_bytes(&words)));
            }
            if Instant::now() >= until {
                // Says who is missing.
                arrived(&mut client, &left, "the others to finish", Duration::ZERO)?;
            }
        }
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(met) = &self.met {
            met.watch.close();
        }
    }
}

fn differs(differences: Vec<String>) -> Result<(), CommError> {
    if differences.is_empty() {
        return Ok(());
    }
    Err(CommError::Differs { differences })
}

/// Waits for `keys`, one of each rank.
pub(crate) fn arrived(
    client: &mut Client,
    keys: &[String],
    what: &str,
    timeout: Duration,
) -> Result<(), CommError> {
    let start = Instant::now();
    if client.wait(keys, timeout)? {
        return Ok(());
    }
    let mut missing = Vec::new();
    for (rank, key) in keys.iter().enumerate() {
        if !client.check(std::slice::from_ref(key))? {
            missing.push(rank);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(CommError::Waited {
        what: what.to_owned(),
        missing,
        size: keys.len(),
        waited: start.elapsed(),
    })
}

#[cfg(test)]
pub(crate) mod tests;
