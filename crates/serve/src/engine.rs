//! The thread that owns the models and continues all requests together.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use backdraft_data::{ChatTokenizer, TokenStream};
use backdraft_model::decode::{
    AdmitError, DecodeLimits, Decoder, Finish, Likely, Sampled, SequenceId,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::error::ServeError;
use crate::job::{Event, Job, Reason, TokenText};
use crate::models::{Model, Served};
use crate::settings::Settings;
use crate::stop::StopText;

/// The models at work, behind a queue.
#[derive(Debug)]
pub struct Engine {
    served: Vec<Served>,
    jobs: UnboundedSender<Job>,
    state: Arc<State>,
    queue: usize,
    /// Resolves when the thread has ended.
    pub(crate) ended: Option<oneshot::Receiver<()>>,
}

/// What the thread and the handlers both see.
#[derive(Debug, Default)]
struct State {
    waiting: AtomicUsize,
    running: AtomicUsize,
    cached_tokens: AtomicUsize,
    /// Tokens made since the start.
    tokens: AtomicUsize,
    abort: AtomicBool,
}

/// How busy an engine is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) waiting: usize,
    pub(crate) running: usize,
    pub(crate) cached_tokens: usize,
    /// Tokens made since the start.
    pub(crate) tokens: usize,
}

/// Why a job is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// As many wait as may.
    QueueFull,
    /// The thread has ended.
    Stopped,
}

impl Engine {
    /// Starts the thread. The first model is the base of the others.
    ///
    /// # Errors
    /// [`ServeError::Names`], or the system gives no thread.
    ///
    /// # Panics
    /// If the models are not clones of one base.
    pub fn start(models: Vec<Model>, settings: &Settings) -> Result<Self, ServeError> {
        let names: Vec<String> = models.iter().map(|model| model.name.clone()).collect();
        let mut different = names.clone();
        different.sort_unstable();
        different.dedup();
        if names.is_empty() || different.len() < names.len() {
            return Err(ServeError::Names { names });
        }
        let mut served = Vec::new();
        let mut loaded = Vec::new();
        for model in models {
            let spec = model.model.spec();
            served.push(Served {
                vocab_size: spec.vocab_size,
                context: spec.max_position_embeddings,
                name: model.name,
                tokenizer: Arc::new(model.tokenizer),
                prompting: model.prompting,
            });
            loaded.push(model.model);
        }
        let device = loaded[0].device();
        let limits = DecodeLimits::on(&device, settings.max_batch, settings.cached_tokens);
        let (jobs, received) = unbounded_channel();
        let (ends, ended) = oneshot::channel::<()>();
        let state = Arc::new(State::default());
        let tokenizers = served.iter().map(|model| model.tokenizer.clone()).collect();
        let theirs = state.clone();
        let work = move || {
            // Dropped when the thread ends, also by a panic.
            let _ends = ends;
            let decoder = Decoder::new(loaded, limits);
            run(decoder, tokenizers, received, &theirs);
        };
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(work)
            .map_err(ServeError::Start)?;
        Ok(Self {
            served,
            jobs,
            state,
            queue: settings.queue,
            ended: Some(ended),
        })
    }

    /// What is served, the base first.
    pub(crate) fn served(&self) -> &[Served] {
        &self.served
    }

    /// Takes jobs on, all of them or none.
    pub(crate) fn submit(&self, jobs: Vec<Job>) -> Result<(), Rejected> {
        let count = jobs.len();
        let more = |waiting| (waiting + count <= self.queue.max(1)).then_some(waiting + count);
        let waiting = &self.state.waiting;
        if waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more)
            .is_err()
        {
            return Err(Rejected::QueueFull);
        }
        for job in jobs {
            self.jobs.send(job).map_err(|_| Rejected::Stopped)?;
        }
        Ok(())
    }

    pub(crate) fn load(&self) -> Load {
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Load {
            waiting: read(&self.state.waiting),
            running: read(&self.state.running),
            cached_tokens: read(&self.state.cached_tokens),
            tokens: read(&self.state.tokens),
        }
    }

    /// Drops all that runs and waits.
    pub(crate) fn abort(&self) {
        self.state.abort.store(true, Ordering::Relaxed);
    }
}

/// One sequence of a job.
struct Running<'a> {
    choice: usize,
    deadline: Instant,
    to: UnboundedSender<Event>,
    tokenizer: &'a ChatTokenizer,
    stream: TokenStream<'a>,
    stop: StopText,
}

fn run(
    mut decoder: Decoder,
    tokenizers: Vec<Arc<ChatTokenizer>>,
    mut jobs: UnboundedReceiver<Job>,
    state: &State,
) {
    let mut queue: VecDeque<Job> = VecDeque::new();
    let mut running: HashMap<SequenceId, Running<'_>> = HashMap::new();
    loop {
        if decoder.is_empty() && queue.is_empty() {
            match jobs.blocking_recv() {
                Some(job) => queue.push_back(job),
                None => return,
            }
        }
        while let Ok(job) = jobs.try_recv() {
            queue.push_back(job);
        }
        if state.abort.load(Ordering::Relaxed) {
            return;
        }
        let before = queue.len();
        queue.retain(|job| is_wanted(&job.to, job.deadline));
        admit(&mut decoder, &mut queue, &mut running, &tokenizers);
        state
            .waiting
            .fetch_sub(before - queue.len(), Ordering::AcqRel);
        running.retain(|id, sequence| {
            let wanted = is_wanted(&sequence.to, sequence.deadline);
            if !wanted {
                decoder.remove(*id);
            }
            wanted
        });
        state.running.store(running.len(), Ordering::Relaxed);
        for sampled in decoder.step() {
            state.tokens.fetch_add(1, Ordering::Relaxed);
            deliver(sampled, &mut decoder, &mut running);
        }
        state
            .cached_tokens
            .store(decoder.cached_tokens(), Ordering::Relaxed);
        state.running.store(running.len(), Ordering::Relaxed);
    }
}

/// Whether anybody still waits; says so where it took too long.
fn is_wanted(to: &UnboundedSender<Event>, deadline: Instant) -> bool {
    if Instant::now() >= deadline {
        // Nobody may hear it any more.
        let _ = to.send(Event::Timeout);
        return false;
    }
    !to.is_closed()
}

/// In the order of their coming, as long as there is room.
fn admit<'a>(
    decoder: &mut Decoder,
    queue: &mut VecDeque<Job>,
    running: &mut HashMap<SequenceId, Running<'a>>,
    tokenizers: &'a [Arc<ChatTokenizer>],
) {
    while let Some(job) = queue.front() {
        match decoder.admit(job.request.clone()) {
            Err(AdmitError::Full) => return,
            Err(error) => {
                let _ = job.to.send(Event::Refused(error));
            }
            Ok(ids) => {
                let tokenizer = &tokenizers[job.request.model];
                for (number, id) in ids.into_iter().enumerate() {
                    let sequence = Running {
                        choice: job.first_choice + number,
                        deadline: job.deadline,
                        to: job.to.clone(),
                        tokenizer,
                        stream: tokenizer.stream(true),
                        stop: StopText::new(&job.stops),
                    };
                    running.insert(id, sequence);
                }
            }
        }
        queue.pop_front();
    }
}

fn deliver<'a>(
    sampled: Sampled,
    decoder: &mut Decoder,
    running: &mut HashMap<SequenceId, Running<'a>>,
) {
    let id = sampled.sequence;
    let Some(mut sequence) = running.remove(&id) else {
        decoder.remove(id);
        return;
    };
    let decoded = match sampled.finish {
        // The token that ends an answer is no part of its text.
        Some(Finish::Stop) => Ok(String::new()),
        _ => sequence.stream.push(sampled.token),
    };
    let piece = match decoded {
        Ok(piece) => piece,
        Err(error) => {
            let _ = sequence.to.send(Event::Failed(error.to_string()));
            decoder.remove(id);
            return;
        }
    };
    let (mut text, stopped) = sequence.stop.push(&piece);
    let mut reason = match (stopped, sampled.finish) {
        (true, _) | (_, Some(Finish::Stop)) => Some(Reason::Stop),
        (_, Some(Finish::Length)) => Some(Reason::Length),
        (false, None) => None,
    };
    let Running {
        choice,
        to,
        tokenizer,
        ..
    } = &sequence;
    let (choice, to, tokenizer) = (*choice, to.clone(), *tokenizer);
    let likely = (sampled.likely).map(|(token, top)| {
        let text = |likely| token_text(tokenizer, likely);
        (text(token), top.into_iter().map(text).collect())
    });
    match reason {
        None => {
            running.insert(id, sequence);
        }
        Some(_) if stopped => decoder.remove(id),
        Some(_) => {
            let (rest, found) = sequence
                .stop
                .push(&sequence.stream.finish().unwrap_or_default());
            text.push_str(&rest);
            match found {
                true => reason = Some(Reason::Stop),
                false => text.push_str(&sequence.stop.finish()),
            }
        }
    }
    let mut heard = to.send(Event::Token {
        choice,
        text,
        likely,
    });
    if let Some(reason) = reason {
        heard = to.send(Event::End { choice, reason });
    }
    if heard.is_err() && running.remove(&id).is_some() {
        decoder.remove(id);
    }
}

fn token_text(tokenizer: &ChatTokenizer, Likely { token, logprob }: Likely) -> TokenText {
    let text = tokenizer.decode(&[token], false).unwrap_or_default();
    TokenText { text, logprob }
}
