//! Bytes through the store: every message is a few keys.

use std::time::Duration;

use super::{Engine, others};
use crate::watch::Watch;
use crate::world::{Names, arrived};
use crate::{Client, CommError};

/// Bytes of one value. PyTorch's store takes up to 8 MiB.
const PIECE: usize = 4 << 20;

/// An [`Engine`] over a TCPStore. All bytes pass one process, twice: for tests, small adapters, and rows of numbers.
///
/// A message of exchange n has keys `exchange/n/FROM-TO/PIECE`. Who has heard from all others in exchange n knows that they
/// have read everything of those before, and removes its own keys of these.
#[derive(Debug)]
pub(crate) struct StoreEngine {
    rank: usize,
    names: Names,
    client: Client,
    watch: Watch,
    timeout: Duration,
    /// Exchanges so far: the same in every rank.
    exchange: u64,
    /// Own keys that others may still read, with the exchange that they are of.
    kept: Vec<(u64, String)>,
}

/// Who reads a message.
#[derive(Clone, Copy)]
enum To {
    One(usize),
    All,
}

impl StoreEngine {
    pub(crate) fn new(
        rank: usize,
        names: Names,
        client: Client,
        watch: Watch,
        timeout: Duration,
    ) -> Self {
        Self {
            rank,
            names,
            client,
            watch,
            timeout,
            exchange: 0,
            kept: Vec::new(),
        }
    }

    /// One exchange; `full` where every rank hears from every other.
    fn exchange(
        &mut self,
        full: bool,
        moves: impl FnOnce(&mut Self) -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        if let Some(words) = self.watch.ended() {
            return Err(CommError::Ended(words));
        }
        self.exchange += 1;
        let moved = moves(self).and_then(|()| if full { self.forget() } else { Ok(()) });
        moved.map_err(|error| self.watch.explain(error))
    }

    fn forget(&mut self) -> Result<(), CommError> {
        let now = self.exchange;
        for (_, key) in self.kept.extract_if(.., |(of, _)| *of < now) {
            self.client.delete(&key)?;
        }
        Ok(())
    }

    fn key(&self, from: usize, to: To, piece: usize) -> String {
        let to = match to {
            To::One(rank) => rank.to_string(),
            To::All => "all".to_owned(),
        };
        let exchange = self.exchange;
        self.names
            .key(&format!("exchange/{exchange}/{from}-{to}/{piece}"))
    }

    fn send(&mut self, to: To, bytes: &[u8]) -> Result<(), CommError> {
        for (piece, part) in pieces(bytes.len()).enumerate() {
            let key = self.key(self.rank, to, piece);
            self.client.set(&key, &bytes[part])?;
            self.kept.push((self.exchange, key));
        }
        Ok(())
    }

    fn receive(&mut self, from: usize, to: To, bytes: &mut [u8]) -> Result<(), CommError> {
        for (piece, part) in pieces(bytes.len()).enumerate() {
            let key = self.key(from, to, piece);
            self.wait_for(from, &key)?;
            let found = self.client.get(&key)?;
            if found.len() != part.len() {
                return Err(CommError::Length {
                    from,
                    what: "an exchange",
                    expected: part.len(),
                    found: found.len(),
                });
            }
            bytes[part].copy_from_slice(&found);
        }
        Ok(())
    }

    fn wait_for(&mut self, from: usize, key: &str) -> Result<(), CommError> {
        let keys = [key.to_owned()];
        let come = arrived(&mut self.client, &keys, "an exchange", self.timeout);
        come.map_err(|error| match error {
            CommError::Waited { what, waited, .. } => CommError::Waited {
                what,
                missing: vec![from],
                size: self.size(),
                waited,
            },
            other => other,
        })
    }
}

/// An empty message is one empty piece, so that it is waited for as any other.
fn pieces(length: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = length.div_ceil(PIECE).max(1);
    (0..count).map(move |piece| piece * PIECE..((piece + 1) * PIECE).min(length))
}

impl Engine for StoreEngine {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.names.size()
    }

    fn all_to_all(&mut self, to: &[&[u8]], from: &mut [Vec<u8>]) -> Result<(), CommError> {
        self.exchange(true, |engine| {
            let rank = engine.rank;
            for other in others(rank, engine.size()) {
                engine.send(To::One(other), to[other])?;
            }
            from[rank].copy_from_slice(to[rank]);
            for other in others(rank, engine.size()) {
                engine.receive(other, To::One(rank), &mut from[other])?;
            }
            Ok(())
        })
    }

    fn all_gather(&mut self, mine: &[u8], all: &mut [Vec<u8>]) -> Result<(), CommError> {
        self.exchange(true, |engine| {
            engine.send(To::All, mine)?;
            all[engine.rank].copy_from_slice(mine);
            for other in others(engine.rank, engine.size()) {
                engine.receive(other, To::All, &mut all[other])?;
            }
            Ok(())
        })
    }

    fn broadcast(&mut self, root: usize, bytes: &mut [u8]) -> Result<(), CommError> {
        self.exchange(false, |engine| {
            if engine.rank == root {
                engine.send(To::All, bytes)
            } else {
                engine.receive(root, To::All, bytes)
            }
        })
    }

    fn barrier(&mut self) -> Result<(), CommError> {
        let mut all = vec![Vec::new(); self.size()];
        self.all_gather(&[], &mut all)
    }
}
