use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Client, MAX_KEY, MAX_VALUE, Server};
use crate::CommError;

const LIMIT: Duration = Duration::from_secs(20);

fn server() -> Server {
    Server::listen("127.0.0.1", 0).unwrap()
}

fn client(server: &Server) -> Client {
    Client::connect("127.0.0.1", server.port(), LIMIT).unwrap()
}

fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap())
        .collect()
}

/// What torch 2.15.0's client sent for `set("k", "vv")`, `get`, `add("n", 5)`, …, and what its libuv server answered.
const TORCH: [(&str, &str); 15] = [
    ("00cef7853c0d383b0000", "383b0000"),
    ("0102000000000000002f6b02000000000000007676", ""),
    ("06010000000000000002000000000000002f6b", "00"),
    ("0302000000000000002f6b", "02000000000000007676"),
    ("0402000000000000002f6e0500000000000000", "0500000000000000"),
    (
        "05020000000000000002000000000000002f6b03000000000000002f7a7a",
        "01",
    ),
    (
        "0202000000000000002f71000000000000000003000000000000006e6577",
        "03000000000000006e6577",
    ),
    (
        "0203000000000000002f7132030000000000000065787003000000000000006e6577",
        "0300000000000000657870",
    ),
    ("0902000000000000002f6b02000000000000007777", ""),
    (
        "0a020000000000000002000000000000002f6b02000000000000002f6e",
        "040000000000000076767777010000000000000035",
    ),
    (
        "0b020000000000000002000000000000002f6101000000000000003102000000000000002f62010000000000000032",
        "",
    ),
    ("07", "0500000000000000"),
    ("0802000000000000002f6b", "0100000000000000"),
    ("0802000000000000002f6b", "0000000000000000"),
    ("06010000000000000005000000000000002f6e6f70650c", "01"),
];

#[test]
fn the_server_answers_torchs_client() {
    let server = server();
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    for (query, answer) in TORCH {
        stream.write_all(&unhex(query)).unwrap();
        let mut found = vec![0; answer.len() / 2];
        stream.read_exact(&mut found).unwrap();
        assert_eq!(hex(&found), answer, "{query}");
    }
    // Nothing is left over.
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(hex(&rest), "");
}

#[test]
fn the_client_asks_as_torchs_does() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let nonce = hex(&std::process::id().to_le_bytes());
    // All but those that our client has no call for.
    let calls = [0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14];
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        for (query, answer) in calls.map(|call| TORCH[call]) {
            let query = query.replace("383b0000", &nonce);
            let mut found = vec![0; query.len() / 2];
            stream.read_exact(&mut found).unwrap();
            assert_eq!(hex(&found), query);
            stream
                .write_all(&unhex(&answer.replace("383b0000", &nonce)))
                .unwrap();
        }
    });
    let mut client = Client::connect("127.0.0.1", port, LIMIT).unwrap();
    client.set("/k", b"vv").unwrap();
    assert!(client.wait(&keys(&["/k"]), LIMIT).unwrap());
    assert_eq!(client.get("/k").unwrap(), b"vv");
    assert_eq!(client.add("/n", 5).unwrap(), 5);
    assert!(!client.check(&keys(&["/k", "/zz"])).unwrap());
    assert_eq!(client.compare_set("/q", b"", b"new").unwrap(), b"new");
    assert_eq!(client.compare_set("/q2", b"exp", b"new").unwrap(), b"exp");
    client.append("/k", b"ww").unwrap();
    assert_eq!(client.num_keys().unwrap(), 5);
    assert!(client.delete("/k").unwrap());
    assert!(!client.delete("/k").unwrap());
    assert!(
        !client
            .wait(&keys(&["/nope"]), Duration::from_millis(50))
            .unwrap()
    );
    peer.join().unwrap();
}

#[test]
fn waiting_ends_with_the_last_key() {
    let server = server();
    let (mut one, mut two) = (client(&server), client(&server));
    assert!(one.wait(&[], Duration::ZERO).unwrap());
    let waiting = thread::spawn(move || {
        one.wait(&keys(&["a", "b", "c", "d"]), LIMIT)
            .map(|come| (come, one))
    });
    two.set("a", b"").unwrap();
    two.append("b", b"x").unwrap();
    two.add("c", 1).unwrap();
    thread::sleep(Duration::from_millis(50));
    assert!(!waiting.is_finished());
    two.compare_set("d", b"", b"x").unwrap();
    let (come, mut one) = waiting.join().unwrap().unwrap();
    assert!(come);
    // In time, and not before: the connection is of use afterwards.
    let start = Instant::now();
    assert!(
        !one.wait(&keys(&["a", "e"]), Duration::from_millis(100))
            .unwrap()
    );
    assert!(start.elapsed() >= Duration::from_millis(100));
    assert_eq!(one.get("b").unwrap(), b"x");
}

#[test]
fn values_of_any_length_up_to_the_limit() {
    let server = server();
    let mut client = client(&server);
    let most = vec![7; MAX_VALUE];
    client.set("k", &most).unwrap();
    assert!(client.get("k").unwrap() == most);
    let error = client.set("k", &vec![0; MAX_VALUE + 1]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a value of 8388609 bytes is over the store's limit of 8388608"
    );
    let error = client.set(&"k".repeat(MAX_KEY + 1), b"").unwrap_err();
    assert_eq!(
        error.to_string(),
        "a key of 8193 bytes is over the store's limit of 8192"
    );
    // Refused before anything was sent.
    assert_eq!(client.num_keys().unwrap(), 1);
    // Growing beyond it ends the connection, and no other.
    client.append("k", b"x").unwrap();
    assert!(matches!(client.get("k"), Err(CommError::Connection { .. })));
    let error = client.num_keys().unwrap_err();
    assert!(
        matches!(&error, CommError::Connection { source, .. } if source.to_string().contains("not answered"))
    );
    assert_eq!(self::client(&server).num_keys().unwrap(), 1);
}

#[test]
fn numbers_are_added_and_nothing_else() {
    let server = server();
    let mut one = client(&server);
    assert_eq!(one.add("n", -3).unwrap(), -3);
    assert_eq!(one.add("n", 5).unwrap(), 2);
    assert_eq!(one.get("n").unwrap(), b"2");
    one.set("text", b"two").unwrap();
    assert!(one.add("text", 1).is_err());
    let mut two = client(&server);
    two.add("n", i64::MAX - 2).unwrap();
    assert!(two.add("n", 1).is_err());
}

#[test]
fn a_will_speaks_for_whoever_is_cut_off() {
    let server = server();
    let (mut dying, mut other) = (client(&server), client(&server));
    dying.set("run/will/1", b"first").unwrap();
    dying.set("run/will/2", b"gone").unwrap();
    // Setting is not answered, this is.
    assert_eq!(dying.num_keys().unwrap(), 2);
    // Another connection may change the words, and is not the one that they are about.
    other.set("run/will/1", b"cut off").unwrap();
    assert_eq!(other.num_keys().unwrap(), 2);
    assert!(dying.delete("run/will/2").unwrap());
    let mut third = client(&server);
    third.set("run/will/3", b"too late").unwrap();
    assert_eq!(third.num_keys().unwrap(), 2);
    drop(dying);
    assert!(other.wait(&keys(&["run/failed"]), LIMIT).unwrap());
    assert_eq!(other.get("run/failed").unwrap(), b"cut off");
    drop(third);
    // The first to speak is heard.
    while other.check(&keys(&["run/will/3"])).unwrap() {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(other.get("run/failed").unwrap(), b"cut off");
}

#[test]
fn who_answers_otherwise_is_no_store() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = thread::spawn(move || {
        for answer in [&b"HTTP/1.1 400 Bad Request\r\n"[..], b""] {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(answer).unwrap();
        }
    });
    let error = Client::connect("127.0.0.1", port, LIMIT).unwrap_err();
    assert!(matches!(error, CommError::NotAStore { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("it answered 0x50545448 to a ping of"),
        "{error}"
    );
    let error = Client::connect("127.0.0.1", port, LIMIT).unwrap_err();
    assert!(
        error.to_string().contains("a ping was not answered"),
        "{error}"
    );
    peer.join().unwrap();
    // Nobody listens any more.
    let start = Instant::now();
    let error = Client::connect("127.0.0.1", port, Duration::from_millis(300)).unwrap_err();
    assert!(matches!(error, CommError::Unreachable { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
    let text = error.to_string();
    assert!(text.starts_with(&format!(
        "no store answers at 127.0.0.1:{port} after 0 s: check MASTER_ADDR"
    )));
}

#[test]
fn a_silent_listener_costs_no_more_than_the_time_limit() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let start = Instant::now();
    let error = Client::connect("127.0.0.1", port, Duration::from_millis(300)).unwrap_err();
    assert!(matches!(error, CommError::NotAStore { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_taken_port_is_said() {
    let server = server();
    let error = Server::listen("127.0.0.1", server.port()).unwrap_err();
    let port = server.port();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot listen on 127.0.0.1:{port} for the other processes: set MASTER_PORT to a free port, the same in every \
             process"
        )
    );
    // And free again when the server is gone.
    drop(server);
    Server::listen("127.0.0.1", port).unwrap();
}

/// Sends `bytes` and reads whatever comes until the server ends the connection, or has answered all.
fn send(server: &Server, bytes: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // The server may hang up in the middle.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    let timed_out = ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out, "the server keeps {}", hex(bytes));
}

#[test]
fn lengths_that_lie_make_no_room() {
    let server = server();
    let hello = unhex("00cef7853c");
    for lie in [u64::MAX, 1 << 40, MAX_VALUE as u64, MAX_VALUE as u64 + 1] {
        for code in 0..=20_u8 {
            // As a key's length, as a value's, as a number of keys.
            let number = lie.to_le_bytes();
            let key = [&1_u64.to_le_bytes()[..], b"k"].concat();
            send(&server, &[&hello[..], &[code], &number].concat());
            send(&server, &[&hello[..], &[code], &key, &number].concat());
            send(
                &server,
                &[&hello[..], &[code], &key, &key, &number].concat(),
            );
        }
    }
    // Without a greeting there is no answer.
    send(&server, &[13, 1, 2, 3, 4]);
    client(&server).set("still", b"there").unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_leave_the_server_alive(
        greeted in any::<bool>(),
        queries in proptest::collection::vec((0..20_u8, proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
    ) {
        let server = server();
        let mut bytes = if greeted { unhex("00cef7853c") } else { Vec::new() };
        for (code, rest) in queries {
            bytes.push(code);
            // Half of the numbers that stand first are small, so that queries are whole now and then.
            if rest.len() % 2 == 0 {
                bytes.extend([rest.len() as u8 % 5, 0, 0, 0, 0, 0, 0, 0]);
            }
            bytes.extend(rest);
        }
        send(&server, &bytes);
        client(&server).set("still", b"there").unwrap();
    }

    #[test]
    fn any_answer_is_a_value_or_an_error(answer in proptest::collection::vec(any::<u8>(), 0..64), which in 0..6) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut hello = [0; 10];
            stream.read_exact(&mut hello).unwrap();
            let _ = stream.write_all(&hello[6..]);
            let _ = stream.write_all(&answer);
            let _ = stream.shutdown(Shutdown::Write);
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let mut client = Client::connect("127.0.0.1", port, LIMIT).unwrap();
        let key = keys(&["k"]);
        let _ = match which {
            0 => client.get("k").map(drop),
            1 => client.add("k", 1).map(drop),
            2 => client.check(&key).map(drop),
            3 => client.wait(&key, Duration::from_millis(20)).map(drop),
            4 => client.compare_set("k", b"", b"v").map(drop),
            _ => client.delete("k").map(drop),
        };
        drop(client);
        peer.join().unwrap();
    }
}
