//! Bytes through Open MPI: between processes of a machine through memory, between machines through what it finds.

mod library;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use self::library::{Handle, Mpi};
use super::{Engine, others};
use crate::CommError;
use crate::watch::Watch;

/// Bytes of one message: MPI counts in `int`.
const PIECE: usize = 1 << 30;

/// How long a process looks without a pause: long messages move while it looks.
const LOOKING: Duration = Duration::from_millis(200);

/// Between looks from then on.
const PAUSE: Duration = Duration::from_micros(50);

/// Whether MPI was begun in this process, which can be done once.
static BEGUN: AtomicBool = AtomicBool::new(false);

/// An [`Engine`] over Open MPI. It copies what it sends and receives, so that bytes under way belong to it whatever
/// happens; nothing waits inside MPI, so that time limits and the ends of others are seen.
pub(crate) struct MpiEngine {
    mpi: Mpi,
    rank: usize,
    size: usize,
    watch: Watch,
    timeout: Duration,
    /// Whether an exchange failed, after which MPI could only hang.
    failed: bool,
}

impl fmt::Debug for MpiEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MpiEngine(rank {} of {})", self.rank, self.size)
    }
}

/// Bytes under way.
struct Flight {
    peer: usize,
    /// Where they belong in the whole message.
    part: Range<usize>,
    bytes: Vec<u8>,
    /// Whether they come in.
    incoming: bool,
    /// `None` once it has ended.
    request: Option<Handle>,
}

impl MpiEngine {
    pub(crate) fn begin(
        rank: usize,
        size: usize,
        watch: &Watch,
        timeout: Duration,
    ) -> Result<Self, CommError> {
        if BEGUN.swap(true, Ordering::SeqCst) {
            return Err(CommError::MpiTwice);
        }
        let mpi = Mpi::begin()?;
        let (found_rank, found_size) = mpi.place()?;
        if (found_rank as usize, found_size as usize) != (rank, size) {
            return Err(CommError::MpiRanks {
                rank,
                size,
                found_rank,
                found_size,
            });
        }
        Ok(Self {
            mpi,
            rank,
            size,
            watch: watch.clone(),
            timeout,
            failed: false,
        })
    }

    /// Sends `to[r]` to every rank r that has one, and receives from every rank that `from` has a place for.
    fn exchange(
        &mut self,
        to: &[Option<&[u8]>],
        from: &mut [Option<&mut [u8]>],
    ) -> Result<(), CommError> {
        let mut flights = Vec::new();
        let moved = self
            .begin_all(to, from, &mut flights)
            .and_then(|()| self.end_all(&mut flights));
        if let Err(error) = moved {
            self.failed = true;
            // MPI may still read and write what is under way.
            std::mem::forget(flights);
            return Err(self.watch.explain(error));
        }
        for flight in flights.into_iter().filter(|flight| flight.incoming) {
            if let Some(room) = &mut from[flight.peer] {
                room[flight.part].copy_from_slice(&flight.bytes);
            }
        }
        Ok(())
    }

    #[expect(
        unsafe_code,
        reason = "hands buffers to MPI until it has done with them"
    )]
    fn begin_all(
        &self,
        to: &[Option<&[u8]>],
        from: &[Option<&mut [u8]>],
        flights: &mut Vec<Flight>,
    ) -> Result<(), CommError> {
        // Receiving first: what comes finds its place.
        for peer in others(self.rank, self.size) {
            let length = from[peer].as_ref().map(|room| room.len());
            for part in length.into_iter().flat_map(pieces) {
                // A byte more than is due, so that a longer message shows as such.
                let mut bytes = vec![0; part.len() + 1];
                // SAFETY: the bytes are on the heap, owned by the flight, and not looked at before the request has ended;
                // a flight that has not ended is never dropped (`exchange`).
                let request = unsafe { self.mpi.receive(&mut bytes, peer, 0)? };
                flights.push(Flight {
                    peer,
                    part,
                    bytes,
                    incoming: true,
                    request: Some(request),
                });
            }
        }
        for peer in others(self.rank, self.size) {
            for part in to[peer].iter().flat_map(|bytes| pieces(bytes.len())) {
                let bytes = to[peer].map_or_else(Vec::new, |bytes| bytes[part.clone()].to_vec());
                // SAFETY: as above, and nobody changes them.
                let request = unsafe { self.mpi.send(&bytes, peer, 0)? };
                flights.push(Flight {
                    peer,
                    part,
                    bytes,
                    incoming: false,
                    request: Some(request),
                });
            }
        }
        Ok(())
    }

    fn end_all(&self, flights: &mut [Flight]) -> Result<(), CommError> {
        let began = Instant::now();
        loop {
            let mut under_way = false;
            for flight in flights.iter_mut() {
                self.look(flight)?;
                under_way |= flight.request.is_some();
            }
            if !under_way {
                return Ok(());
            }
            if let Some(words) = self.watch.ended() {
                return Err(CommError::Ended(words));
            }
            let waited = began.elapsed();
            if waited >= self.timeout {
                let late = flights.iter().filter(|flight| flight.request.is_some());
                let mut missing: Vec<usize> = late.map(|flight| flight.peer).collect();
                missing.sort_unstable();
                missing.dedup();
                return Err(CommError::Waited {
                    what: "an exchange".to_owned(),
                    missing,
                    size: self.size,
                    waited,
                });
            }
            if waited < LOOKING {
                thread::yield_now();
            } else {
                thread::sleep(PAUSE);
            }
        }
    }

    fn look(&self, flight: &mut Flight) -> Result<(), CommError> {
        let Some(request) = &mut flight.request else {
            return Ok(());
        };
        let Some(found) = self.mpi.ended(request)? else {
            return Ok(());
        };
        flight.request = None;
        if !flight.incoming {
            return Ok(());
        }
        let expected = flight.part.len();
        if found != expected {
            return Err(CommError::Length {
                from: flight.peer,
                what: "an exchange",
                expected,
                found,
            });
        }
        flight.bytes.truncate(expected);
        Ok(())
    }
}

impl Drop for MpiEngine {
    fn drop(&mut self) {
        if !self.failed && self.watch.ended().is_none() && !thread::panicking() {
            self.mpi.finish();
        }
    }
}

/// An empty message is one empty piece, so that it is waited for as any other.
fn pieces(length: usize) -> impl Iterator<Item = Range<usize>> {
    let count = length.div_ceil(PIECE).max(1);
    (0..count).map(move |piece| piece * PIECE..((piece + 1) * PIECE).min(length))
}

impl Engine for MpiEngine {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_to_all(&mut self, to: &[&[u8]], from: &mut [Vec<u8>]) -> Result<(), CommError> {
        from[self.rank].copy_from_slice(to[self.rank]);
        let to: Vec<_> = to.iter().map(|bytes| Some(*bytes)).collect();
        let mut from: Vec<_> = from.iter_mut().map(|room| Some(&mut room[..])).collect();
        self.exchange(&to, &mut from)
    }

    fn all_gather(&mut self, mine: &[u8], all: &mut [Vec<u8>]) -> Result<(), CommError> {
        all[self.rank].copy_from_slice(mine);
        let to = vec![Some(mine); self.size];
        let mut from: Vec<_> = all.iter_mut().map(|room| Some(&mut room[..])).collect();
        self.exchange(&to, &mut from)
    }

    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<(), CommError> {
        let nobody = || (0..self.size).map(|_| None).collect::<Vec<_>>();
        if self.rank == root {
            let mut from = nobody();
            return self.exchange(&vec![Some(&*bytes); self.size], &mut from);
        }
        let to = vec![None; self.size];
        let mut from = nobody();
        from[root] = Some(bytes);
        self.exchange(&to, &mut from)
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        let mut all = vec![Vec::new(); self.size];
        self.all_gather(&[], &mut all)
    }
}
