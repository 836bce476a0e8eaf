//! What moves the gradients of processes: NCCL between cards, else bytes through the host.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::time::Duration;

use backdraft_comm::{CommError, Fingerprints};
use backdraft_kernels::device;
use backdraft_kernels::exchange::{self, Group, UniqueId};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::Ranks;
use crate::error::TrainError;

/// How long the cards may take to come together.
const ARRIVAL: Duration = Duration::from_secs(600);

/// The oldest NCCL that takes two processes on one card, and what has it do so.
const TWO_ON_A_CARD: [u32; 2] = [2, 30];
const MULTI: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Lets two processes share a card.
const SHARE: &str = "BACKDRAFT_SHARE_GPU";

/// Says what moves gradients.
const WANTED: &str = "BACKDRAFT_EXCHANGE";

/// Whether the user lets several processes have one card ([docs/environment.md](../../../../docs/environment.md)).
pub fn cards_may_be_shared() -> bool {
    is_on(SHARE)
}

/// Whether the user has one process exchange with itself, to measure what that costs.
///
/// # Errors
/// The variable says what is not known.
pub fn alone_through_nccl() -> Result<bool, TrainError> {
    Ok(Wanted::from_env()? == Wanted::Nccl)
}

fn is_on(name: &str) -> bool {
    env::var(name).is_ok_and(|value| value == "1")
}

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Wanted {
    Auto,
    Nccl,
    Host,
}

impl Wanted {
    fn from_env() -> Result<Self, TrainError> {
        match env::var(WANTED).unwrap_or_default().as_str() {
            "" | "auto" => Ok(Self::Auto),
            "nccl" => Ok(Self::Nccl),
            "host" => Ok(Self::Host),
            found => Err(TrainError::ExchangeVariable {
                found: found.to_owned(),
            }),
        }
    }
}

/// What one process has.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Place {
    /// Its card's own name; none on the processor.
    card: Option<String>,
    /// The version of its NCCL, or why it has none.
    nccl: Result<String, String>,
    wanted: Wanted,
    may_share: bool,
    /// Whether NCCL is told to take two processes on one card.
    multi: bool,
}

impl Place {
    fn here(device: &Device) -> Result<Self, TrainError> {
        let found = exchange::found();
        Ok(Self {
            card: device::card_id(device),
            nccl: found
                .map(|nccl| nccl.version)
                .map_err(|error| error.to_string()),
            wanted: Wanted::from_env()?,
            may_share: cards_may_be_shared(),
            multi: is_on(MULTI),
        })
    }

    fn takes_two_on_a_card(&self) -> bool {
        let version = self.nccl.as_deref().unwrap_or_default();
        let numbers = version
            .split('.')
            .map_while(|part| part.parse::<u32>().ok());
        self.multi && numbers.collect::<Vec<u32>>() >= TWO_ON_A_CARD.to_vec()
    }
}

/// What moves gradients, the same for all processes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Nccl,
    /// Through the host; and why, where all are on cards.
    Host(Option<String>),
}

impl Choice {
    fn of(places: &[Place]) -> Result<Self, TrainError> {
        let wants = |wanted| places.iter().any(|place| place.wanted == wanted);
        if places.iter().all(|place| place.card.is_none()) {
            return match wants(Wanted::Nccl) {
                true => Err(TrainError::NoNccl {
                    why: "nothing is computed on a card of NVIDIA's".to_owned(),
                }),
                false => Ok(Self::Host(None)),
            };
        }
        let shared = shared_card(places);
        if let Some((card, ranks)) = &shared
            && !places.iter().all(|place| place.may_share)
        {
            let (card, ranks) = (card.clone(), ranks.clone());
            return Err(TrainError::SharedGpu { ranks, card });
        }
        let host = |why: String| Ok(Self::Host(Some(why)));
        if wants(Wanted::Host) {
            return host(format!("{WANTED}=host"));
        }
        let refuse = |why: String| match wants(Wanted::Nccl) {
            true => Err(TrainError::NoNccl { why }),
            false => host(why),
        };
        for (rank, place) in places.iter().enumerate() {
            if place.card.is_none() {
                return refuse(format!("rank {rank} has no card"));
            }
            if let Err(why) = &place.nccl {
                let of = if places.len() > 1 {
                    format!("rank {rank}: ")
                } else {
                    String::new()
                };
                return refuse(format!("{of}{why}"));
            }
        }
        if let Some((_, ranks)) = &shared
            && !places.iter().all(Place::takes_two_on_a_card)
        {
            let [first, second, ..] = ranks[..] else {
                unreachable!("a card that is shared has two ranks");
            };
            let [major, minor] = TWO_ON_A_CARD;
            return refuse(format!(
                "ranks {first} and {second} share a card, which takes NCCL {major}.{minor} or newer and {MULTI}=1"
            ));
        }
        Ok(Self::Nccl)
    }
}

/// A card that several have, and who; the first such.
fn shared_card(places: &[Place]) -> Option<(String, Vec<usize>)> {
    let mut ranks: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (rank, place) in places.iter().enumerate() {
        if let Some(card) = &place.card {
            ranks.entry(card).or_default().push(rank);
        }
    }
    let shared = ranks.into_iter().filter(|(_, ranks)| ranks.len() > 1);
    let first = shared.min_by_key(|(_, ranks)| ranks[0]);
    first.map(|(card, ranks)| (card.to_owned(), ranks))
}

/// What moves gradients, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carriage {
    /// Such as `NCCL 2.27.3`.
    pub through: String,
    /// Why it is not NCCL, where all are on cards; where its file lies, where it is.
    pub why: Option<String>,
}

impl Carriage {
    /// What it is, and behind that in parentheses why.
    pub fn through_and_why(&self) -> String {
        match &self.why {
            Some(why) => format!("{} ({why})", self.through),
            None => self.through.clone(),
        }
    }
}

impl fmt::Display for Carriage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "gradients are exchanged through {}",
            self.through_and_why()
        )
    }
}

impl Ranks {
    /// Settles with the others what moves gradients, each on its `device`, and connects the cards where that is NCCL. `engine` is
    /// what else moves them.
    ///
    /// # Errors
    /// Two processes on one card; no NCCL where the user wants it; NCCL's of different versions; cards that do not come together.
    pub fn connect(&self, device: &Device, engine: &str) -> Result<Carriage, TrainError> {
        let mine = Place::here(device)?;
        let told = serde_json::to_vec(&mine).unwrap_or_default();
        let told = self
            .0
            .world
            .gather("what the processes exchange through", &told)?;
        let places = told.iter().map(|bytes| serde_json::from_slice(bytes));
        let places: Result<Vec<Place>, _> = places.collect();
        let places = places.map_err(|error| CommError::Differs {
            differences: vec![format!("what they exchange through: {error}")],
        })?;
        let through_host = || match device::gpu(device) {
            Some(_) => format!("host memory and {engine}"),
            None => engine.to_owned(),
        };
        match Choice::of(&places)? {
            Choice::Host(why) => Ok(Carriage {
                through: through_host(),
                why,
            }),
            Choice::Nccl => {
                let version = mine.nccl.unwrap_or_default();
                self.agree(&Fingerprints::new().with("NCCL", &version))?;
                let group = self.join_cards(device)?;
                if self.0.group.set(group).is_err() {
                    unreachable!("cards are connected once");
                }
                let path = exchange::found().ok().and_then(|found| found.path);
                Ok(Carriage {
                    through: format!("NCCL {version}"),
                    why: path.map(|path| path.display().to_string()),
                })
            }
        }
    }

    fn join_cards(&self, device: &Device) -> Result<Group, TrainError> {
        let mine = match self.rank() {
            0 => exchange::unique_id()?.0.to_vec(),
            _ => Vec::new(),
        };
        let told = self.0.world.gather("what NCCL meets by", &mine)?;
        let Ok(id) = <[u8; 128]>::try_from(&told[0][..]) else {
            let expected = 128;
            return Err(TrainError::Ranks(CommError::Length {
                from: 0,
                what: "what NCCL meets by",
                expected,
                found: told[0].len(),
            }));
        };
        let place = (self.rank(), self.size());
        Ok(Group::join(device, &UniqueId(id), place, ARRIVAL)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(card: &str) -> Place {
        Place {
            card: Some(card.to_owned()),
            nccl: Ok("2.27.3".to_owned()),
            wanted: Wanted::Auto,
            may_share: false,
            multi: false,
        }
    }

    fn why(places: &[Place]) -> String {
        match Choice::of(places) {
            Ok(Choice::Host(Some(why))) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn cards_of_their_own_exchange_through_nccl() {
        let all = [place("a"), place("b")];
        assert_eq!(Choice::of(&all).unwrap(), Choice::Nccl);
        assert_eq!(Choice::of(&all[..1]).unwrap(), Choice::Nccl);
        let nowhere = Place {
            card: None,
            ..place("")
        };
        let processor = [nowhere.clone(), nowhere.clone()];
        assert_eq!(Choice::of(&processor).unwrap(), Choice::Host(None));
        assert_eq!(why(&[place("a"), nowhere.clone()]), "rank 1 has no card");
        let wants = Place {
            wanted: Wanted::Nccl,
            ..nowhere
        };
        let error = Choice::of(&[wants]).unwrap_err().to_string();
        assert!(
            error.ends_with("nothing is computed on a card of NVIDIA's"),
            "{error}"
        );
        let host = Place {
            wanted: Wanted::Host,
            ..place("b")
        };
        assert_eq!(why(&[place("a"), host]), "BACKDRAFT_EXCHANGE=host");
    }

    #[test]
    fn without_nccl_somewhere_everybody_goes_through_the_host_or_is_told() {
        let mut all = [place("a"), place("b")];
        all[1].nccl = Err("none here".to_owned());
        assert_eq!(why(&all), "rank 1: none here");
        all[0].wanted = Wanted::Nccl;
        let error = Choice::of(&all).unwrap_err().to_string();
        assert_eq!(
            error,
            "BACKDRAFT_EXCHANGE=nccl, and gradients cannot be exchanged through NCCL: rank 1: none here"
        );
    }

    #[test]
    fn a_card_is_shared_where_the_user_says_so() {
        let mut all = [place("a"), place("b"), place("b")];
        let error = Choice::of(&all).unwrap_err().to_string();
        assert!(
            error.starts_with("ranks 1 and 2 both use the card b"),
            "{error}"
        );
        for place in &mut all {
            place.may_share = true;
        }
        let expected = "ranks 1 and 2 share a card, which takes NCCL 2.30 or newer and NCCL_MULTI_RANK_GPU_ENABLE=1";
        assert_eq!(why(&all), expected);
        for place in &mut all {
            place.multi = true;
        }
        assert_eq!(why(&all), expected);
        for place in &mut all {
            place.nccl = Ok("2.30.7".to_owned());
        }
        assert_eq!(Choice::of(&all).unwrap(), Choice::Nccl);
    }
}
