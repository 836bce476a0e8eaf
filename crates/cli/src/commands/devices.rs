//! `devices`: the GPUs of this machine, how they reach each other, and how fast gradients are exchanged.

use backdraft_comm::Start as Among;
use backdraft_kernels::cards::{self, Card, Through};
use backdraft_kernels::exchange::{self, NcclError, NcclLibrary};
use backdraft_train::ranks::{Carriage, Ranks, Timed};
use burn::tensor::Device;
use clap::Args;
use serde_json::{Value, json};

use crate::args::DeviceArgs;
use crate::commands::Context;
use crate::devices::{self, Devices};
use crate::error::CliError;
use crate::plain::lines;
use crate::ranks::Shared;
use crate::session;

/// Exchanges that are timed.
const ROUNDS: usize = 10;

/// Tell which GPUs there are, how they reach each other, and how fast gradients are exchanged between processes
///
/// Lists NVIDIA's cards with their memory, the ways between them, and the NCCL that was found. With --exchange processes exchange
/// messages as a step of `train` exchanges gradients: those that --devices or a launcher starts; one alone copies a message.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  backdraft devices
  backdraft devices --exchange 168 --devices all
  backdraft devices --exchange 8 --device cpu --devices 2")]
pub(crate) struct DevicesArgs {
    /// Time an exchange of messages of this many MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    exchange: Option<u64>,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Start the processes of the exchange on this machine: a number on the processor, or GPUs, a process on each: their
    /// number, a list (0,1) or all
    #[arg(long, value_name = "N|GPUS", requires = "exchange")]
    devices: Option<Devices>,
}

/// An exchange that was timed.
struct Exchanged {
    processes: usize,
    carriage: Carriage,
    timed: Timed,
}

pub(crate) fn run(args: &DevicesArgs, context: Context) -> Result<(), CliError> {
    let Some(mib) = args.exchange else {
        return show(None, context);
    };
    let among = Among::from_env()?;
    if devices::led(args.devices.as_ref(), &among, context.global.device)? {
        return Ok(());
    }
    let choice = context.global.device.unwrap_or_default();
    let shared = Shared::join(&among, context.output)?;
    let Some(shared) = &shared else {
        let device = session::open_device(choice, context.output)?;
        let ranks = Ranks::alone()?;
        return show(Some(time(&ranks, &device, "the store", mib)?), context);
    };
    let output = match shared.ranks.rank() {
        0 => context.output,
        _ => context.output.quiet(),
    };
    let context = Context { output, ..context };
    shared.work(|| {
        let device = session::open_device(shared.device(choice), output)?;
        let exchanged = time(&shared.ranks, &device, shared.engine(), mib)?;
        show(Some(exchanged), context)
    })
}

fn time(ranks: &Ranks, device: &Device, engine: &str, mib: u64) -> Result<Exchanged, CliError> {
    let alone = ranks.size() == 1;
    if alone && backdraft_kernels::device::gpu(device).is_none() {
        return Err(CliError::usage(
            "one process on the processor has nobody to exchange with, and nothing to copy",
        )
        .hint("--device cpu --devices 2 starts two"));
    }
    let carriage = ranks.connect(device, engine)?;
    let timed = ranks.time_exchange(mib << 20, ROUNDS, device)?;
    Ok(Exchanged {
        processes: ranks.size(),
        carriage,
        timed,
    })
}

fn show(exchanged: Option<Exchanged>, context: Context) -> Result<(), CliError> {
    let (cards, nccl) = (cards::all(), exchange::found());
    let output = context.output;
    output.record(
        "devices",
        &json!({
            "cards": cards.iter().map(card_json).collect::<Vec<Value>>(),
            "nccl": nccl.as_ref().ok().map(|nccl| json!({ "version": nccl.version, "path": nccl.path })),
            "no_nccl_because": nccl.as_ref().err().map(ToString::to_string),
            "exchange": exchanged.as_ref().map(Exchanged::json),
        }),
    )?;
    output.line(lines(&rows(&cards, &nccl, exchanged.as_ref())).trim_end())
}

fn rows(
    cards: &[Card],
    nccl: &Result<NcclLibrary, NcclError>,
    exchanged: Option<&Exchanged>,
) -> Vec<(&'static str, String)> {
    let mut rows: Vec<(&str, String)> = cards.iter().map(|card| ("card", in_words(card))).collect();
    if cards.is_empty() {
        rows.push(("card", "none that NVIDIA's driver shows".to_owned()));
    }
    for card in cards {
        for link in card.links.iter().filter(|link| link.to > card.number) {
            let through = way(link.through);
            rows.push((
                "link",
                format!("{} and {}: {through}", card.number, link.to),
            ));
        }
    }
    let nccl = match nccl {
        Ok(NcclLibrary { version, path }) => match path {
            Some(path) => format!("{version} of {}", path.display()),
            None => version.clone(),
        },
        Err(error) => format!("none ({error})"),
    };
    rows.push(("NCCL", nccl));
    rows.extend(exchanged.map(|exchanged| ("exchange", exchanged.in_words())));
    rows
}

fn in_words(card: &Card) -> String {
    let gib = card.memory as f64 / f64::from(1 << 30);
    let (major, minor) = card.capability;
    format!(
        "{}: {}, {gib:.1} GiB, compute capability {major}.{minor}, {}",
        card.number, card.name, card.id
    )
}

fn way(through: Through) -> &'static str {
    match through {
        Through::NvLink => "NVLink",
        Through::Peer => "PCIe, from one to the other",
        Through::Host => "through the host",
    }
}

fn card_json(card: &Card) -> Value {
    let links = card.links.iter().map(|link| {
        let through = match link.through {
            Through::NvLink => "nvlink",
            Through::Peer => "pcie",
            Through::Host => "host",
        };
        json!({ "to": link.to, "through": through })
    });
    let (major, minor) = card.capability;
    json!({
        "number": card.number,
        "name": card.name,
        "memory": card.memory,
        "id": card.id,
        "compute_capability": format!("{major}.{minor}"),
        "links": links.collect::<Vec<Value>>(),
    })
}

impl Exchanged {
    /// Seconds of the fastest exchange, and of the one in the middle.
    fn seconds(&self) -> [f64; 2] {
        let mut seconds = self.timed.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        [seconds[0], seconds[seconds.len() / 2]]
    }

    fn in_words(&self) -> String {
        let [fastest, middle] = self.seconds();
        let mib = self.timed.bytes >> 20;
        let rate = self.timed.moved(self.processes) / middle / 1e9;
        let took = format!("{:.2} ms, at best {:.2}", middle * 1e3, fastest * 1e3);
        match self.processes {
            1 => format!("{mib} MiB, alone: {took}; {rate:.1} GB/s read and written"),
            size => {
                let through = self.carriage.through_and_why();
                format!(
                    "{mib} MiB between {size} processes through {through}: {took}; {rate:.1} GB/s out of each"
                )
            }
        }
    }

    fn json(&self) -> Value {
        let [fastest, middle] = self.seconds();
        json!({
            "bytes": self.timed.bytes,
            "processes": self.processes,
            "through": self.carriage.through,
            "note": self.carriage.why,
            "seconds": middle,
            "fastest": fastest,
            "moved": self.timed.moved(self.processes),
        })
    }
}

#[cfg(test)]
mod tests {
    use backdraft_kernels::cards::Link;

    use super::*;
    use insta::assert_snapshot;

    #[test]
    fn cards_their_links_and_an_exchange_in_words() {
        let card = |number: usize, to, through| Card {
            number,
            name: "NVIDIA H200".to_owned(),
            memory: 150_000_000_000,
            id: format!("GPU-{number}"),
            capability: (9, 0),
            links: vec![Link { to, through }],
        };
        let cards = [card(0, 1, Through::NvLink), card(1, 0, Through::NvLink)];
        let nccl = Ok(NcclLibrary {
            version: "2.27.3".to_owned(),
            path: Some("/lib/libnccl.so.2".into()),
        });
        let exchanged = Exchanged {
            processes: 2,
            carriage: Carriage {
                through: "NCCL 2.27.3".to_owned(),
                why: None,
            },
            timed: Timed {
                bytes: 168 << 20,
                seconds: vec![0.002, 0.0005, 0.0006],
            },
        };
        assert_snapshot!(lines(&rows(&cards, &nccl, Some(&exchanged))), @"
        card      0: NVIDIA H200, 139.7 GiB, compute capability 9.0, GPU-0
        card      1: NVIDIA H200, 139.7 GiB, compute capability 9.0, GPU-1
        link      0 and 1: NVLink
        NCCL      2.27.3 of /lib/libnccl.so.2
        exchange  168 MiB between 2 processes through NCCL 2.27.3: 0.60 ms, at best 0.50; 293.6 GB/s out of each
        ");
        let missing = Err(NcclError::NotBuilt);
        assert_snapshot!(lines(&rows(&[], &missing, None)), @"
        card  none that NVIDIA's driver shows
        NCCL  none (this build has no cuda backend: build with `--features cuda`)
        ");
    }
}
