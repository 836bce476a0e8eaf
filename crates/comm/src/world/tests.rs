use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::World;
use crate::{Client, CommError, Fingerprints, LastWords, Launcher, Meeting, Server, Start};

const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn start(rank: usize, size: usize, port: u16, kept: bool) -> Start {
    let meeting = Meeting {
        host: "127.0.0.1".to_owned(),
        port,
        kept,
    };
    Start {
        launcher: Launcher::Variables,
        rank,
        size,
        local_rank: rank,
        meeting: (size > 1).then_some(meeting),
        run: "backdraft/test/0".to_owned(),
    }
}

fn join(rank: usize, size: usize, port: u16, timeout: Duration) -> Result<World, CommError> {
    World::join(&start(rank, size, port, true), "here", timeout)
}

/// What `act` makes of every rank, each in a thread.
pub(crate) fn together<T: Send>(size: usize, act: impl Fn(World) -> T + Sync) -> Vec<T> {
    let server = Server::listen("127.0.0.1", 0).unwrap();
    let (port, act) = (server.port(), &act);
    thread::scope(|scope| {
        let ranks =
            (0..size).map(|rank| scope.spawn(move || act(join(rank, size, port, LIMIT).unwrap())));
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn one_process_needs_nobody() {
    let world = World::join(&Start::alone(), "here", LIMIT).unwrap();
    assert_eq!((world.rank(), world.size(), world.local_rank()), (0, 1, 0));
    assert_eq!(world.gather("x", b"mine").unwrap(), [b"mine"]);
    world.agree(&Fingerprints::new().with("a", "b")).unwrap();
    world.at_step(1).unwrap();
    world.fail(None, "nobody hears this");
    world.leave().unwrap();
}

#[test]
fn everybody_gathers_the_same() {
    let found = together(4, |world| {
        let first = world
            .gather("letters", &[b'a' + world.rank() as u8])
            .unwrap();
        let second = world.gather("nothing", &[]).unwrap();
        world.leave().unwrap();
        (first, second)
    });
    for (first, second) in found {
        assert_eq!(first, [b"a", b"b", b"c", b"d"]);
        assert_eq!(second, vec![Vec::<u8>::new(); 4]);
    }
}

#[test]
fn rank_0_keeps_the_store_and_waits_for_the_others() {
    let act = |world: &World| {
        let all = world.gather("ranks", &[world.rank() as u8]).unwrap();
        assert_eq!(all, [[0], [1], [2]]);
        thread::sleep(Duration::from_millis(100) * world.rank() as u32);
    };
    // Any port that is free.
    let first = World::found(&start(0, 3, 0, false), "here", LIMIT).unwrap();
    let met = first.met.as_ref().unwrap();
    let port = met.at.port;
    let ranks = [1, 2].map(|rank| {
        thread::spawn(move || {
            let world = World::join(&start(rank, 3, port, false), "here", LIMIT).unwrap();
            act(&world);
            world.leave().unwrap();
        })
    });
    first.arrive(met).unwrap();
    act(&first);
    first.leave().unwrap();
    for rank in ranks {
        rank.join().unwrap();
    }
}

#[test]
fn fingerprints_that_differ_are_an_error_everywhere() {
    let errors = together(3, |world| {
        let data = if world.rank() == 1 { "91ab" } else { "5f2c" };
        let prints = Fingerprints::new().with("data", data).with("recipe", "1");
        world.agree(&prints).unwrap_err().to_string()
    });
    let expected = "the processes do not agree: data: ranks 0 and 2 have 5f2c, rank 1 has 91ab";
    assert!(errors.iter().all(|error| error == expected), "{errors:?}");
}

#[test]
fn who_does_not_come_is_named() {
    let server = Server::listen("127.0.0.1", 0).unwrap();
    let port = server.port();
    let first = thread::spawn(move || join(0, 4, port, Duration::from_millis(800)));
    let third = thread::spawn(move || join(2, 4, port, Duration::from_secs(20)));
    let error = first.join().unwrap().unwrap_err();
    assert!(
        matches!(&error, CommError::Waited { missing, .. } if *missing == [1, 3]),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        format!(
            "waited 1 s for the other processes to come to 127.0.0.1:{port}; of 4 processes ranks 1, 3 did not arrive"
        )
    );
    // The other one reads why, long before its own time is over.
    let error = third.join().unwrap().unwrap_err().to_string();
    assert!(
        error.starts_with("rank 0 on here ended: waited 1 s for"),
        "{error}"
    );
}

#[test]
fn a_rank_is_taken_once_and_sizes_agree() {
    let server = Server::listen("127.0.0.1", 0).unwrap();
    let port = server.port();
    let late = thread::spawn(move || join(0, 2, port, Duration::from_secs(20)));
    thread::sleep(Duration::from_millis(200));
    let mut client = Client::connect("127.0.0.1", port, LIMIT).unwrap();
    client
        .set("backdraft/test/0/rank/1", b"process 7 on there")
        .unwrap();
    let error = join(1, 2, port, LIMIT).unwrap_err();
    let said = error.to_string();
    assert!(
        said.starts_with(
            "two processes say that they are rank 1: process 7 on there, and process "
        ),
        "{said}"
    );
    assert!(client.delete("backdraft/test/0/rank/1").unwrap());
    // It believes that there are three, where rank 0 believes in two.
    client.set("backdraft/test/0/gather/0/1", b"3").unwrap();
    let error = late.join().unwrap().unwrap_err().to_string();
    assert_eq!(
        error,
        "the processes do not agree: number of processes: rank 0 has 2, rank 1 has 3"
    );
}

#[test]
fn last_words_end_everybody_who_waits() {
    let (told, heard) = mpsc::channel();
    let all = Barrier::new(3);
    let started = Instant::now();
    let ends = together(3, |world| {
        let told = told.clone();
        world.on_end(move |words| told.send(words.clone()).unwrap());
        if world.rank() == 1 {
            all.wait();
            world.fail(Some(412), "the loss is NaN");
            return None;
        }
        let mut engine = world.store_engine().unwrap();
        all.wait();
        Some(match world.rank() {
            0 => engine.barrier().unwrap_err(),
            _ => world.gather("two", &[]).unwrap_err(),
        })
    });
    assert!(started.elapsed() < Duration::from_secs(5));
    let words = LastWords {
        rank: Some(1),
        host: "here".to_owned(),
        step: Some(412),
        message: "the loss is NaN".to_owned(),
    };
    let said = "rank 1 on here ended at step 412: the loss is NaN";
    assert_eq!(words.to_string(), said);
    assert!(ends[1].is_none());
    for end in [&ends[0], &ends[2]] {
        assert_eq!(end.as_ref().unwrap().to_string(), said);
    }
    assert_eq!(
        [heard.recv().unwrap(), heard.recv().unwrap()],
        [words.clone(), words]
    );
}

#[test]
fn who_is_dropped_leaves_a_will() {
    let both = Barrier::new(2);
    let ends = together(2, |world| {
        world.at_step(world.rank() as u64 + 6).unwrap();
        both.wait();
        if world.rank() == 0 {
            return None;
        }
        Some(world.gather("more", &[]).unwrap_err().to_string())
    });
    let expected =
        "rank 0 on here ended at step 6: without a word: it was killed, or its machine is gone";
    assert_eq!(ends, [None, Some(expected.to_owned())]);
}

#[test]
fn a_store_that_goes_away_is_the_reason() {
    let server = Server::listen("127.0.0.1", 0).unwrap();
    let port = server.port();
    let both = Arc::new(Barrier::new(2));
    let rank = thread::spawn({
        let both = Arc::clone(&both);
        move || {
            let world = join(0, 2, port, LIMIT).unwrap();
            both.wait();
            world.gather("waiting", &[]).unwrap_err().to_string()
        }
    });
    let other = join(1, 2, port, LIMIT).unwrap();
    both.wait();
    drop(server);
    let gone = format!(
        "the store at 127.0.0.1:{port} is gone: rank 0 or the launcher, which keeps it, has ended without a word"
    );
    assert_eq!(rank.join().unwrap(), gone);
    assert_eq!(other.gather("waiting", &[]).unwrap_err().to_string(), gone);
}

#[test]
fn any_bytes_are_last_words() {
    for bytes in [
        &b""[..],
        b"\n",
        b"1\t\t\n",
        b"x\ty\tz\nw",
        b"\xff\xfe\x1b[31m",
        &[b'\t'; 9000],
    ] {
        let words = LastWords::from_bytes(bytes);
        assert!(!words.to_string().contains('\u{1b}'));
        assert!(words.message.len() <= 3 * 4096);
    }
    let words = LastWords {
        rank: Some(3),
        host: "a\tb".to_owned(),
        step: None,
        message: "two\nlines".to_owned(),
    };
    let read = LastWords::from_bytes(&words.to_bytes());
    assert_eq!(read.to_string(), "rank 3 on a b ended: two\nlines");
}
