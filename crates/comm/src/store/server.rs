//! The side that keeps.

mod state;

use std::io::{self, BufReader, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs,
};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use self::state::{Reply, State};
use super::wire::{
    self, MAGIC, MAX_VALUE, Message, NOT_READY, Query, READY, STOP_WAITING, WAIT_CANCELED,
};
use crate::CommError;

/// How long a new connection may take to say the magic number.
const GREETING: Duration = Duration::from_secs(10);

/// How long a peer may take to read what it asked for.
const WRITING: Duration = Duration::from_secs(30);

/// Connections at once; each rank has three.
const CONNECTIONS: usize = 8192;

/// Answers that wait to be read by a peer, before its next query is read.
const ANSWERS: usize = 256;

/// A store, kept by threads of this process until it is dropped.
///
/// Queries are PyTorch's of [this protocol](super); who sends anything else is disconnected. Keys and
/// values take at most 4 GiB together, the connection that asks for more is ended.
///
/// # Wills
/// One thing goes beyond PyTorch: a key `RUN/will/NAME` belongs to the connection that set it first. If that ends while
/// the key is there, its value becomes that of `RUN/failed`, unless something stands there already. So a process that
/// is killed is missed at once.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held would be a bug of ours, and says nothing about the next query.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Listens on `port`, or on any that is free if it is 0: on loopback where `host` means that, otherwise on all
    /// addresses, since a name may stand for an address that this machine does not have (a service of Kubernetes).
    ///
    /// # Errors
    /// The port is taken.
    pub fn listen(host: &str, port: u16) -> Result<Self, CommError> {
        let listener = bind(host, port).map_err(|source| CommError::Listen {
            address: format!("{host}:{port}"),
            source,
        })?;
        let address = listener.local_addr().map_err(CommError::Thread)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let accepting = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || accept(&listener, &theirs))
            .map_err(CommError::Thread)?;
        Ok(Self {
            address,
            shared,
            accepting: Some(accepting),
        })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.state().stop();
        // Wakes the thread that accepts.
        let mut to = self.address;
        if to.ip().is_unspecified() {
            to.set_ip(match to.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let woken = TcpStream::connect_timeout(&to, Duration::from_secs(1));
        if let Some(thread) = self.accepting.take()
            && woken.is_ok()
        {
            let _ = thread.join();
        }
    }
}

fn bind(host: &str, port: u16) -> io::Result<TcpListener> {
    let resolved = (host, port).to_socket_addrs();
    let here: Vec<SocketAddr> = resolved.into_iter().flatten().collect();
    if let Some(first) = here.first()
        && here.iter().all(|address| address.ip().is_loopback())
    {
        return TcpListener::bind(first);
    }
    // The first takes IPv4 too, where there is IPv6.
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for id in 0_u64.. {
        let stream = listener.accept();
        if shared.state().stopped() {
            return;
        }
        let Ok((stream, _)) = stream else {
            // No more handles, for one: they may come back.
            thread::sleep(Duration::from_millis(50));
            continue;
        };
        // A peer that cannot be served sees its connection end.
        let _ = serve(id, stream, shared);
    }
}

/// Starts the two threads of a connection: one reads and answers, one writes, so that nobody who answers waits for a
/// peer that does not read.
fn serve(id: u64, stream: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GREETING))?;
    stream.set_write_timeout(Some(WRITING))?;
    let (answers, to_write) = sync_channel(ANSWERS);
    let writing = stream.try_clone()?;
    {
        let mut state = shared.state();
        if state.connections() >= CONNECTIONS {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        state.connect(id, stream.try_clone()?, answers.clone());
    }
    let theirs = Arc::clone(shared);
    let thread = || thread::Builder::new().stack_size(256 * 1024);
    let started = thread()
        .spawn(move || write(writing, &to_write))
        .and_then(|_| {
            thread().spawn(move || {
                let _ = read(id, &stream, &answers, &theirs);
                let _ = stream.shutdown(Shutdown::Both);
                theirs.state().disconnect(id);
            })
        });
    if let Err(error) = started {
        shared.state().disconnect(id);
        return Err(error);
    }
    Ok(())
}

fn write(mut stream: TcpStream, answers: &Receiver<Reply>) {
    for reply in answers {
        let value = reply.value.as_deref();
        let written = stream
            .write_all(&reply.head)
            .and_then(|()| stream.write_all(value.map_or(&[], Vec::as_slice)));
        if written.is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Answers queries until the connection ends, or asks for what nobody may.
fn read(
    id: u64,
    stream: &TcpStream,
    answers: &SyncSender<Reply>,
    shared: &Shared,
) -> io::Result<()> {
    let mut from = BufReader::with_capacity(64 * 1024, stream);
    if wire::read_byte(&mut from)? != Query::Validate as u8 || wire::read_short(&mut from)? != MAGIC
    {
        return Err(wire::invalid("no greeting of a TCPStore"));
    }
    stream.set_read_timeout(None)?;
    loop {
        let code = wire::read_byte(&mut from)?;
        let query = Query::from_code(code).ok_or_else(|| wire::invalid("an unknown query"))?;
        // Everything is read before the state is locked.
        for reply in answer(id, query, &mut from, shared)? {
            answers
                .send(reply)
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
    }
}

fn answer(id: u64, query: Query, from: &mut impl Read, shared: &Shared) -> io::Result<Vec<Reply>> {
    let replies = match query {
        Query::Validate => {
            wire::read_short(from)?;
            vec![]
        }
        Query::Ping => {
            let nonce = wire::read_short(from)?;
            vec![Message::answer().short(nonce).into()]
        }
        Query::Set => {
            let key = wire::read_key(from)?;
            let value = wire::read_bytes(from, MAX_VALUE)?;
            shared.state().set(id, key, value)?;
            vec![]
        }
        Query::CompareSet => {
            let key = wire::read_key(from)?;
            let expected = wire::read_bytes(from, MAX_VALUE)?;
            let value = wire::read_bytes(from, MAX_VALUE)?;
            let held = shared.state().compare_set(id, key, expected, value)?;
            vec![Reply::of(held)]
        }
        Query::Get => {
            let key = wire::read_key(from)?;
            vec![Reply::of(shared.state().get(&key))]
        }
        Query::Add => {
            let key = wire::read_key(from)?;
            let by = wire::read_number(from)? as i64;
            let sum = shared.state().add(id, key, by)?;
            vec![Message::answer().number(sum as u64).into()]
        }
        Query::Check => {
            let keys = read_keys(from)?;
            let all = shared.state().missing(keys).is_empty();
            let answer = if all { READY } else { NOT_READY };
            vec![Message::answer().byte(answer).into()]
        }
        Query::Wait => {
            let keys = read_keys(from)?;
            if shared.state().wait(id, keys) {
                vec![]
            } else {
                vec![Message::answer().byte(STOP_WAITING).into()]
            }
        }
        Query::CancelWait => {
            shared.state().cancel(id);
            vec![Message::answer().byte(WAIT_CANCELED).into()]
        }
        Query::GetNumKeys => {
            let count = shared.state().count();
            vec![Message::answer().number(count as u64).into()]
        }
        Query::DeleteKey => {
            let key = wire::read_key(from)?;
            let was = shared.state().delete(&key);
            vec![Message::answer().number(u64::from(was)).into()]
        }
        Query::Append => {
            let key = wire::read_key(from)?;
            let value = wire::read_bytes(from, MAX_VALUE)?;
            shared.state().append(id, key, &value)?;
            vec![]
        }
        Query::MultiGet => {
            let keys = read_keys(from)?;
            let state = shared.state();
            keys.iter().map(|key| Reply::of(state.get(key))).collect()
        }
        Query::MultiSet => {
            for _ in 0..wire::read_count(from)? {
                let key = wire::read_key(from)?;
                let value = wire::read_bytes(from, MAX_VALUE)?;
                shared.state().set(id, key, value)?;
            }
            vec![]
        }
    };
    Ok(replies)
}

/// The keys of a query, which together may be as long as a value.
fn read_keys(from: &mut impl Read) -> io::Result<Vec<String>> {
    let mut keys = Vec::new();
    let mut bytes = 0;
    for _ in 0..wire::read_count(from)? {
        let key = wire::read_key(from)?;
        bytes += key.len();
        if bytes > MAX_VALUE {
            return Err(wire::invalid(
                "more keys in a query than a value may have bytes",
            ));
        }
        keys.push(key);
    }
    Ok(keys)
}
